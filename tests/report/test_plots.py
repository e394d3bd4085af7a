"""What is drawn, and where: the shapes of drawings, without a browser."""

from xml.etree import ElementTree

import pytest
from msgspec.structs import replace
from records import MIB, made_record

from edgeqkv.bench.record import Bandwidth, SustainedWindow
from edgeqkv.errors import EdgeQKVError
from edgeqkv.manifest import ParityRecord
from edgeqkv.report.content import content
from edgeqkv.report.drawing import Axis, Path, Point, Rect, Series, Text, lines, number
from edgeqkv.report.page import svg
from edgeqkv.report.picture import picture

PARITY = ParityRecord(
    "onnx", "fused", "runtime", "1.31.1", "0" * 64, "sample", 100, 0.1, 1e-4, 0.99, 10, 10, 30.0, 30.3, {}, True
)


def plots(records, **options):
    return {plot.title: plot for plot in content(records, [], **options).sections[0].plots}


def pair(**changes):
    return [made_record(kernel="stock", **changes), made_record("Q-MQA", milliseconds=5.0, cache_mib=1, **changes)]


def hovers(plot):
    return [shape.hover for shape in plot.wide.shapes if isinstance(shape, Rect | Point) and shape.hover]


def test_the_parts_of_memory_are_stacked_in_proportion():
    bars = [shape for shape in plots(pair())["Peak memory"].wide.shapes if isinstance(shape, Rect) and shape.hover]
    weights, cache, rest = bars[:3]
    assert cache.x == pytest.approx(weights.x + weights.width)
    assert rest.x == pytest.approx(cache.x + cache.width)
    assert cache.width / weights.width == pytest.approx(8 / 20)
    assert rest.width / weights.width == pytest.approx(12 / 20)
    assert len({(bar.style, bar.pattern) for bar in bars[:3]}) == 3, "told apart without colour"


def test_speed_has_its_limit_where_the_bandwidth_was_measured():
    assert not any("were reached" in text for text in hovers(plots(pair())["Speed over depth"]))
    measured = pair(bandwidth=Bandwidth(one_thread=(1e10,), threads=(2e10,), source="numpy"), weights_bytes_a_token=20 * MIB)
    said = hovers(plots(measured)["Speed over depth"])
    needed = 20 * MIB + 1000 * 8 * MIB // 1024
    most, share = 2e10 / needed, 100 * needed / 0.01 / 2e10
    assert f"limit of QKV, stock kernel: {most:,.0f} tokens/s at 1,000, of which {share:.0f} % were reached" in said


def test_the_size_of_ram_is_a_line_among_the_others():
    found = plots(pair(), budget=36 * MIB)["Positions that fit in RAM"]
    (line,) = (shape for shape in found.wide.shapes if isinstance(shape, Path) and shape.style == "mark")
    assert 52 < line.points[0][0] < found.wide.width
    assert "36 MiB" in [shape.text for shape in found.wide.shapes if isinstance(shape, Text)]


def test_a_size_of_ram_far_beyond_does_not_flatten_the_lines():
    usual, far = plots(pair(), budget=36 * MIB), plots(pair(), budget=512 * MIB)
    ends = [max(p.x for p in one["Positions that fit in RAM"].wide.shapes if isinstance(p, Point)) for one in (usual, far)]
    assert ends[0] == ends[1]
    assert "512 MiB are far to the right" in far["Positions that fit in RAM"].caption


def test_what_was_not_measured_is_said_in_a_line():
    found = plots([made_record(decode=(), split=None)])
    assert {title: plot.missing.partition(";")[0] for title, plot in found.items() if plot.missing} == {
        "Peak memory": "Peak memory: not measured",
        "Speed over depth": "Speed over depth: not measured",
        "Positions that fit in RAM": "Positions that fit in RAM: not measured",
        "Sustained speed": "Sustained speed: not measured",
        "Quality against memory": "Quality against memory: not measured",
    }


def test_sustained_speed_is_drawn_over_time():
    windows = tuple(
        SustainedWindow(depth=1000, seconds=10.0 * i, tokens_per_s=100.0 / i, frequency_khz=None, temperature_mc=None)
        for i in (1, 2, 3)
    )
    assert "QKV: 33.3 tokens/s after 30 s" in hovers(plots([made_record(sustained=windows)])["Sustained speed"])


def test_quality_is_compared_on_one_text_alone():
    other = made_record("Q-MQA", parity=replace(PARITY, text="another"))
    found = plots([made_record(parity=PARITY), other])["Quality against memory"]
    assert hovers(found) == ["QKV: perplexity 30.30 at 40.0 MiB"]
    assert "1 verified on another text are left out" in found.caption


def test_a_record_looks_the_same_in_every_plot():
    found = plots(pair(), budget=36 * MIB)
    for title in ("Speed over depth", "Positions that fit in RAM"):
        shapes = [s for s in found[title].wide.shapes if isinstance(s, Point) and s.hover.startswith("Q-MQA")]
        assert {(s.style, s.marker) for s in shapes} == {("s1", "square")}
    assert any("s1" in s.style for s in found["Peak memory"].wide.shapes if isinstance(s, Rect) and s.hover.startswith("Q-MQA"))


def test_forty_two_series_differ_in_colour_or_marker():
    every = [Series(str(i), i, ()) for i in range(42)]
    assert len({(one.colour, one.marker) for one in every}) == 42


def test_everything_lies_within_the_drawing():
    for width in (380.0, 920.0):
        series = [Series("a name", 0, ((1.0, 1e-6, "low"), (1e6, 3.14e9, "high")))]
        drawing = lines("title", series, Axis("across"), Axis("up"), width)
        points = [p for s in drawing.shapes for p in (s.points if isinstance(s, Path) else [(s.x, s.y)])]
        assert all(-0.01 <= x <= width and 0 <= y <= drawing.height for x, y in points)


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (0.05, "0.05"), (2.5, "2.5"), (20, "20"), (1500, "1,500"), (0.30000000000000004, "0.3")]
)
def test_numbers_of_an_axis(value, text):
    assert number(value) == text


def test_the_picture_has_the_sentence_the_numbers_and_two_plots():
    found = content(pair(), [], budget=36 * MIB, notes=("made up",))
    drawing = picture(found)
    texts = [shape.text for shape in drawing.shapes if isinstance(shape, Text)]
    assert " ".join(text for text in texts[:2]) == found.verdict
    assert {number.value for number in found.sections[0].numbers} < set(texts)
    assert {"Peak memory", "Speed over depth", "made up"} < set(texts)
    text = svg(drawing)
    assert "prefers-color-scheme: dark" in text
    assert ElementTree.fromstring(text).tag == "{http://www.w3.org/2000/svg}svg"


def test_there_is_no_picture_of_nothing():
    with pytest.raises(EdgeQKVError, match="no variant was measured beside a baseline"):
        picture(content([made_record()], []))
