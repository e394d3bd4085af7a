"""Plots as shapes in pixels: bars in rows, and lines over two axes. ``drawing.svg.j2`` writes them as SVG.

Shapes have no colours of their own, only classes of ``drawing.css``; ``s0`` .. ``s6`` are the colours of the series.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

COLOURS, MARKERS = 7, ("circle", "square", "triangle", "diamond", "down", "cross")  # no common divisor: 42 pairs
CHARACTER, BOLD = 6.8, 7.8  # pixels that a character takes, at most, on average
TOP, BOTTOM, ROW, BAR = 8, 44, 52, 22


@dataclass(frozen=True)
class Rect:
    """``pattern`` is drawn over the fill: "hatch" or nothing. ``hover`` is shown when a pointer rests on the shape."""

    kind: ClassVar = "rect"
    x: float
    y: float
    width: float
    height: float
    style: str
    pattern: str = ""
    hover: str = ""


@dataclass(frozen=True)
class Path:
    """A line through points, or the area inside of them."""

    kind: ClassVar = "path"
    points: tuple[tuple[float, float], ...]
    style: str


@dataclass(frozen=True)
class Text:
    """``anchor`` is the end of the text that lies at (x, y): start, middle or end."""

    kind: ClassVar = "text"
    x: float
    y: float
    text: str
    style: str = ""
    anchor: str = "start"


@dataclass(frozen=True)
class Point:
    kind: ClassVar = "point"
    x: float
    y: float
    marker: str
    style: str
    hover: str = ""


Shape = Rect | Path | Text | Point


def colour(index: int) -> str:
    """The class of a series' colour."""
    return f"s{index % COLOURS}"


@dataclass(frozen=True)
class Drawing:
    """``title`` is what a screen reader says of it."""

    width: float
    height: float
    title: str
    shapes: tuple[Shape, ...]


# -- bars in rows -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Part:
    """From ``start`` to ``end`` of a row; ``key`` names it in the legend."""

    start: float
    end: float
    style: str
    hover: str
    key: str = ""
    pattern: str = ""


@dataclass(frozen=True)
class Row:
    """``name`` stands above the bar, ``value`` behind it."""

    name: str
    value: str
    parts: tuple[Part, ...]


def bars(title: str, rows: Sequence[Row], unit: str, width: float) -> Drawing:
    most = max((part.end for row in rows for part in row.parts), default=1.0) or 1.0
    room = 12 + BOLD * max(len(row.value) for row in rows)
    ticks = _ticks(most, 8 if width > 600 else 4)
    scale = (width - room) / max(most, ticks[-1] if ticks[-1] < 1.02 * most else most)
    legend, legend_height = _part_legend(rows, width)
    top = TOP + legend_height
    bottom = top + ROW * len(rows)
    shapes: list[Shape] = list(legend)
    for tick in ticks:
        if tick <= most * 1.02:
            shapes += [Path(((tick * scale, top), (tick * scale, bottom)), "grid")]
            shapes += [Text(tick * scale, bottom + 16, number(tick), "tick", "middle" if tick else "start")]
    for i, row in enumerate(rows):
        y = top + ROW * i
        shapes.append(Text(0, y + 15, row.name, "name"))
        for part in row.parts:
            left, right = sorted((part.start * scale, part.end * scale))
            shapes.append(Rect(left, y + 21, max(right - left, 0.5), BAR, part.style, part.pattern, part.hover))
        end = max((part.end for part in row.parts), default=0.0)
        shapes.append(Text(end * scale + 6, y + 21 + 16, row.value, "value"))
    shapes.append(Text(width, bottom + 36, unit, "axis", "end"))
    return Drawing(width, bottom + BOTTOM, title, tuple(shapes))


def _part_legend(rows: Sequence[Row], width: float) -> tuple[list[Shape], float]:
    """The kinds of parts, without the colours of the rows."""
    kinds = {part.key: part for row in rows for part in row.parts if part.key}
    shapes: list[Shape] = []
    x, y = 0.0, TOP
    for key, part in kinds.items():
        wide = 30 + CHARACTER * len(key)
        if x and x + wide > width:
            x, y = 0.0, y + 20
        shade = " ".join(style for style in part.style.split() if not (style[0] == "s" and style[1:].isdigit()))
        shapes += [Rect(x, y, 14, 12, shade, part.pattern), Text(x + 20, y + 11, key, "name")]
        x += wide
    return shapes, y + 20 - TOP if kinds else 0.0


# -- lines over two axes ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Axis:
    """From 0, or from ``low``, to the largest value. ``label`` has the unit."""

    label: str
    low: float = 0.0


@dataclass(frozen=True)
class Series:
    """Points (x, y, what is shown on hovering). ``index`` decides colour and marker; a ``baseline``'s line is dashed.
    ``band`` is (x, low, high). ``limit`` is dotted and has no markers. ``joined`` is False for points without a line."""

    name: str
    index: int
    points: tuple[tuple[float, float, str], ...]
    baseline: bool = False
    limit: bool = False
    joined: bool = True
    band: tuple[tuple[float, float, float], ...] = ()

    @property
    def colour(self) -> str:
        return colour(self.index)

    @property
    def stroke(self) -> str:
        """The classes of its line."""
        return f"{'limit' if self.limit else 'line dashed' if self.baseline else 'line'} {self.colour}"

    @property
    def marker(self) -> str:
        return MARKERS[self.index % len(MARKERS)]


@dataclass(frozen=True)
class Mark:
    """A vertical line at ``x``."""

    x: float
    text: str


def lines(title: str, series: Sequence[Series], across: Axis, up: Axis, width: float, mark: Mark | None = None) -> Drawing:
    left, right, top = 52.0, 26.0, 30.0
    height = 300.0 if width > 600 else 260.0
    xs = [x for one in series for x, _, _ in one.points] + ([mark.x] if mark else [])
    ys = [y for one in series for _, y, _ in one.points] + [high for one in series for _, _, high in one.band]
    x_ticks = _ticks(max(xs), 8 if width > 600 else 4, across.low)
    y_ticks = _ticks(max(ys), 6, up.low)
    x_end, y_end = max(max(xs), x_ticks[-1]), max(max(ys) * 1.05, y_ticks[-1])

    def at(x: float, y: float) -> tuple[float, float]:
        return (
            left + (x - across.low) / ((x_end - across.low) or 1) * (width - left - right),
            top + height - (y - up.low) / ((y_end - up.low) or 1) * height,
        )

    shapes: list[Shape] = [Text(0, 14, up.label, "axis")]
    for tick in y_ticks:
        shapes += [
            Path((at(across.low, tick), at(x_end, tick)), "grid"),
            Text(left - 8, at(0, tick)[1] + 4, number(tick), "tick", "end"),
        ]
    shapes += [Text(at(tick, 0)[0], top + height + 18, number(tick), "tick", "middle") for tick in x_ticks]
    shapes.append(Text(width - right, top + height + 38, across.label, "axis", "end"))
    if mark:
        x = at(mark.x, 0)[0]
        shapes += [Path(((x, top), (x, top + height)), "mark"), _beside(x, top + 12, mark.text, width)]
    for one in series:
        if one.band:
            edge = [at(x, low) for x, low, _ in one.band] + [at(x, high) for x, _, high in reversed(one.band)]
            shapes.append(Path(tuple(edge), f"area {one.colour}"))
    for one in series:
        if one.joined and len(one.points) > 1:
            shapes.append(Path(tuple(at(x, y) for x, y, _ in one.points), one.stroke))
        shapes += [
            Point(*at(x, y), "" if one.limit else one.marker, one.colour, f"{one.name}: {hover}") for x, y, hover in one.points
        ]
    return Drawing(width, *_with_legend(title, series, shapes, width, top + height + 54))


def _with_legend(
    title: str, series: Sequence[Series], shapes: list[Shape], width: float, y: float
) -> tuple[float, str, tuple[Shape, ...]]:
    columns = 2 if width > 600 and all(len(one.name) * CHARACTER < width / 2 - 50 for one in series) else 1
    for i, one in enumerate(series):
        x, line = (i % columns) * width / columns, y + 22 * (i // columns)
        if one.joined:
            shapes.append(Path(((x, line), (x + 30, line)), one.stroke))
        if not one.limit:
            shapes.append(Point(x + 15, line, one.marker, one.colour))
        shapes.append(Text(x + 38, line + 4, one.name, "name"))
    return y + 22 * -(-len(series) // columns), title, tuple(shapes)


def _beside(x: float, y: float, text: str, width: float) -> Text:
    """On the side of a vertical line where there is room."""
    return Text(x - 5, y, text, "axis", "end") if x > width / 2 else Text(x + 5, y, text, "axis")


def _ticks(most: float, about: int, low: float = 0.0) -> list[float]:
    """Round numbers from ``low`` to ``most`` or one step beyond it."""
    span = most - low
    if not 0 < span < math.inf:
        return [low]
    rough = span / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)
    first = math.floor(low / step)
    return [i * step for i in range(first, math.ceil(most / step - 1e-9) + 1) if i * step >= low - 1e-9 * step]


def number(value: float) -> str:
    """With at most three digits that matter behind thousands."""
    if value == 0:
        return "0"
    digits = max(0, 2 - math.floor(math.log10(abs(value)))) if abs(value) < 100 else 0
    return f"{value:,.{digits}f}".rstrip("0").rstrip(".") if digits else f"{value:,.0f}"
