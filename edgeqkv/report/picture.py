"""The report as one picture, for a README or a slide: the sentence, the three numbers, and its first two plots."""

import textwrap
from dataclasses import replace

from edgeqkv.errors import EdgeQKVError
from edgeqkv.report.content import Content
from edgeqkv.report.drawing import Drawing, Path, Shape, Text

WIDTH, EDGE, GAP = 940.0, 20.0, 40.0
COLUMN = (WIDTH - 2 * EDGE + GAP) / 3
LINE, WRAPPED, SENTENCE = 18.0, 42, 72  # pixels between lines, characters in a line of a column, and of the sentence


def picture(content: Content) -> Drawing:
    """Of the first section that compares something."""
    section = next((section for section in content.sections if section.numbers), None)
    if section is None:
        raise EdgeQKVError("there is nothing to draw: no variant was measured beside a baseline in the same run")
    shapes: list[Shape] = []
    y = EDGE + 20
    for line in textwrap.wrap(section.verdict, SENTENCE):
        shapes.append(Text(EDGE, y, line, "headline"))
        y += 26
    lowest = y
    for i, number in enumerate(section.numbers):
        x = EDGE + i * COLUMN
        shapes += [Text(x, y + 16, number.title, "quiet"), Text(x, y + 52, number.value, "large")]
        lines = textwrap.wrap(number.sentence, WRAPPED)
        shapes += [Text(x, y + 76 + LINE * j, line) for j, line in enumerate(lines)]
        lowest = max(lowest, y + 76 + LINE * len(lines))
    y = bottom = lowest + 24
    drawn = [plot for plot in section.plots if plot.narrow is not None][:2]
    for x, plot in zip((EDGE, WIDTH / 2 + GAP / 4), drawn, strict=False):
        assert plot.narrow is not None
        shapes.append(Text(x, y, plot.title, "value"))
        shapes += [_moved(shape, x, y + 10) for shape in plot.narrow.shapes]
        bottom = max(bottom, y + 10 + plot.narrow.height)
    below = [*content.notes, section.compared]
    for line in (line for note in below for line in textwrap.wrap(note, 140)):
        bottom += LINE
        shapes.append(Text(EDGE, bottom, line, "tick"))
    return Drawing(WIDTH, bottom + EDGE, section.verdict, tuple(shapes))


def _moved(shape: Shape, x: float, y: float) -> Shape:
    if isinstance(shape, Path):
        return replace(shape, points=tuple((left + x, top + y) for left, top in shape.points))
    return replace(shape, x=shape.x + x, y=shape.y + y)
