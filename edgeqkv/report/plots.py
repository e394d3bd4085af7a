"""What is drawn of one run: each plot in two widths, or a line that says what was not measured."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from edgeqkv.bench.compared import is_baseline
from edgeqkv.bench.record import Record, bandwidth_share
from edgeqkv.bench.timing import Timing
from edgeqkv.report.drawing import Axis, Drawing, Mark, Part, Row, Series, bars, colour, lines
from edgeqkv.report.names import Names
from edgeqkv.report.pairs import Pair, memory_share, percent
from edgeqkv.report.steps import Step
from edgeqkv.tables import mib

MIB = 2**20
WIDE, NARROW = 920.0, 380.0
LIMIT = "Dotted: what the memory bandwidth allows, when a token reads the weights and the filled rows once."


@dataclass(frozen=True)
class Plot:
    """``caption`` says how to read it. ``missing`` says why there is nothing to draw; else there are two drawings, for a page
    and for a phone. A ``half`` is drawn beside the next one where there is room, from the narrow drawing alone."""

    title: str
    caption: str
    missing: str = ""
    wide: Drawing | None = None
    narrow: Drawing | None = None
    half: bool = False


def plots(run: Sequence[Record], pair: Pair | None, steps: Sequence[Step], budget: int | None, names: Names) -> list[Plot]:
    """``pair`` is what the report speaks of, ``steps`` what its gain is made of; ``budget`` of RAM in bytes."""
    return [
        *_waterfall(steps, names),
        _memory(run, pair, names),
        _speed(run, pair, names),
        _capacity(run, budget, names),
        _sustained(run, names),
        _quality(run, names),
    ]


def _both(title: str, caption: str, draw: Callable[[float], Drawing]) -> Plot:
    return Plot(title, caption, wide=draw(WIDE), narrow=draw(NARROW))


def _missing(title: str, why: str) -> Plot:
    return Plot(title, "", missing=f"{title}: not measured; {why}.")


# -- where the gain comes from ------------------------------------------------------------------------------------


def _waterfall(steps: Sequence[Step], names: Names) -> list[Plot]:
    """One drawing for memory and one for time, a row for each step; what a step saves is hatched."""
    if len(steps) < 3:
        return []
    caption = "From top to bottom one thing changes with each row; hatched is what that saves, outlined what it costs."
    memory = [step.record.memory.peak for step in steps]
    depths = [{timing.depth for timing in step.record.timings.decode} for step in steps]
    depth = max(set.intersection(*depths), default=None)
    found = []
    if all(memory):
        values = [(value or 0) / MIB for value in memory]
        found.append(_fall("Where the memory goes", caption, steps, values, "MiB at the peak", names))
    if depth is not None:
        times = [_at(step.record, depth).median * 1e3 for step in steps]
        found.append(_fall("Where the time goes", caption, steps, times, f"ms a token at {depth:,} positions", names))
    return found


def _at(record: Record, depth: int) -> Timing:
    return next(timing for timing in record.timings.decode if timing.depth == depth)


def _fall(title: str, caption: str, steps: Sequence[Step], values: Sequence[float], unit: str, names: Names) -> Plot:
    rows = []
    for i, (step, value) in enumerate(zip(steps, values, strict=True)):
        before = values[i - 1] if i else value
        shade = colour(names.index(step.record))
        name, change = names.of(step.record), percent(value / before) if before else ""
        parts = [Part(0, min(value, before), f"bar {shade}", f"{name}: {value:,.1f} {unit}")]
        if i and value < before:
            parts.append(Part(value, before, f"saved {shade}", f"{step.change}: {change}", pattern="hatch"))
        elif i and value > before:
            parts.append(Part(before, value, f"cost {shade}", f"{step.change}: {change}"))
        label = f"+ {step.change}" if i else f"{step.record.subject.variant} as it runs today"
        rows.append(Row(label, f"{value:,.1f}" + (f" ({change})" if i else ""), tuple(parts)))
    return Plot(title, caption, wide=None, narrow=bars(title, rows, unit, 440.0), half=True)


# -- memory, speed, capacity --------------------------------------------------------------------------------------


def _memory(run: Sequence[Record], pair: Pair | None, names: Names) -> Plot:
    title = "Peak memory"
    shown = [record for record in run if record.memory.split is not None]
    if not shown:
        return _missing(title, "the device did not say what its processes take")

    def row(record: Record) -> Row:
        split, name, shade = record.memory.split, names.of(record), colour(names.index(record))
        assert split is not None
        parts, end = [], 0.0
        for key, pattern in (("weights", ""), ("cache", "hatch"), ("rest", "")):
            start, end = end, end + getattr(split, key) / MIB
            parts.append(Part(start, end, f"bar {key} {shade}", f"{name}: {key} {mib(getattr(split, key))} MiB", key, pattern))
        share = memory_share(record, pair.today) if pair and record is not pair.today else None
        return Row(name, f"{end:,.0f} MiB" + (f" ({percent(share)})" if share else ""), tuple(parts))

    rows = [row(record) for record in shown]
    against = f" Percentages are against {names.of(pair.today)}." if pair else ""
    caption = f"Weights are the files, cache is the filled rows, rest is the runtime and its copies.{against}"
    return _both(title, caption, lambda width: bars(title, rows, "MiB", width))


def _speed(run: Sequence[Record], pair: Pair | None, names: Names) -> Plot:
    title = "Speed over depth"
    shown = [record for record in run if record.timings.decode]
    if not shown:
        return _missing(title, "nothing was timed")
    series = [_decode_series(record, names) for record in shown]
    chosen = (pair.today, pair.record) if pair else tuple(shown[:1])
    limits = [line for record in chosen if (line := _limit(record, names))]
    said = LIMIT if limits else "The memory bandwidth was not measured."
    caption = f"Tokens a second by the median step; the band holds the middle half of all steps. {said}"
    across, up = Axis("positions in the cache"), Axis("tokens a second")
    return _both(title, caption, lambda width: lines(title, [*series, *limits], across, up, width))


def _decode_series(record: Record, names: Names) -> Series:
    points, band = [], []
    for timing in record.timings.decode:
        ranked, quarter = sorted(timing.seconds), len(timing.seconds) // 4
        speed = 1 / timing.median
        points.append((float(timing.depth), speed, f"{speed:,.1f} tokens/s, {timing.median * 1e3:.2f} ms at {timing.depth:,}"))
        band.append((float(timing.depth), 1 / ranked[-1 - quarter], 1 / ranked[quarter]))
    return Series(names.of(record), names.index(record), tuple(points), baseline=is_baseline(record), band=tuple(band))


def _limit(record: Record, names: Names) -> Series | None:
    """What the bandwidth allows; None where it is unknown."""
    points = []
    for timing in record.timings.decode:
        share = bandwidth_share(record, timing)
        if share is None:
            return None
        most = 1 / timing.median / share
        hover = f"{most:,.0f} tokens/s at {timing.depth:,}, of which {100 * share:.0f} % were reached"
        points.append((float(timing.depth), most, hover))
    return Series(f"limit of {names.of(record)}", names.index(record), tuple(points), limit=True)


def _capacity(run: Sequence[Record], budget: int | None, names: Names) -> Plot:
    title = "Positions that fit in RAM"
    shown = [record for record in run if record.memory.split is not None]
    if not shown:
        return _missing(title, "the device did not say what its processes take")
    series = [_capacity_series(record, names) for record in shown]
    widest = max(x for one in series for x, _, _ in one.points)
    mark, beyond = None, ""
    if budget is not None and budget / MIB <= 1.25 * widest:
        mark = Mark(budget / MIB, f"{mib(budget, 0)} MiB")
    elif budget is not None:
        beyond = f" {mib(budget, 0)} MiB are far to the right: all positions of every variant fit."
    # A line goes on to the right of its end: the model has no more positions.
    most = max(widest, mark.x if mark else 0)
    series = [_prolonged(one, most) for one in series]
    caption = f"Below its line's foot a variant does not run; each line ends where all of the model's positions fit.{beyond}"
    across, up = Axis("RAM for the process, MiB", low=_floor(series, mark)), Axis("positions that fit")
    return _both(title, caption, lambda width: lines(title, series, across, up, width, mark))


def _capacity_series(record: Record, names: Names) -> Series:
    """From no position to all that the model has: what was measured without the cache, and the cache by its formula."""
    split, most = record.memory.split, record.subject.model.n_positions
    assert split is not None
    foot = split.weights + split.rest
    full = foot + most * record.memory.cache_bytes_per_position
    ends = (
        (foot / MIB, 0.0, f"runs from {mib(foot)} MiB on"),
        (full / MIB, float(most), f"{most:,} positions take {mib(full)} MiB"),
    )
    return Series(names.of(record), names.index(record), ends, baseline=is_baseline(record))


def _prolonged(one: Series, end: float) -> Series:
    x, y, hover = one.points[-1]
    return one if x >= end else Series(one.name, one.index, (*one.points, (end, y, hover)), one.baseline)


def _floor(series: Sequence[Series], mark: Mark | None) -> float:
    """The axis begins a little below the first foot, or what is to be seen would be on the right edge."""
    least = min([x for one in series for x, _, _ in one.points] + ([mark.x] if mark else []))
    return 0.8 * least if least > 1 else 0.0


# -- sustained speed, quality -------------------------------------------------------------------------------------


def _sustained(run: Sequence[Record], names: Names) -> Plot:
    title = "Sustained speed"
    shown = [record for record in run if record.sustained]
    if not shown:
        return _missing(title, "edgeqkv bench --sustain 10m does")
    series = [
        Series(
            names.of(record),
            names.index(record),
            tuple(
                (w.seconds, w.tokens_per_s, f"{w.tokens_per_s:,.1f} tokens/s after {w.seconds:,.0f} s")
                for w in record.sustained
            ),
            baseline=is_baseline(record),
        )
        for record in shown
    ]
    caption = "Decoding without a rest: where a line falls, the device slows down as it gets hot."
    return _both(title, caption, lambda width: lines(title, series, Axis("seconds"), Axis("tokens a second"), width))


def _quality(run: Sequence[Record], names: Names) -> Plot:
    """Only perplexities on one text are compared: that of the first record that has one."""
    title = "Quality against memory"
    verified = [record for record in run if record.subject.parity is not None and record.memory.peak is not None]
    told = [(record, record.subject.parity, record.memory.peak) for record in verified]
    found = [(r, parity, peak) for r, parity, peak in told if parity is not None and peak is not None and parity.perplexity > 0]
    same = [(r, p, peak) for r, p, peak in found if (p.text, p.tokens) == (found[0][1].text, found[0][1].tokens)]
    if not same:
        return _missing(title, "edgeqkv verify records it, and random weights have none")
    series = [
        Series(
            names.of(r),
            names.index(r),
            ((peak / MIB, p.perplexity, f"perplexity {p.perplexity:.2f} at {mib(peak)} MiB"),),
            joined=False,
        )
        for r, p, peak in same
    ]
    text = same[0][1]
    left_out = f" {len(found) - len(same)} verified on another text are left out." if len(found) > len(same) else ""
    caption = (
        f"Perplexity on {text.tokens:,} tokens of the text {text.text!r}; lower is better, further left takes less.{left_out}"
    )
    # Both axes begin near the smallest value: what differs is what is asked.
    across = Axis("peak memory, MiB", low=0.8 * min(peak for _, _, peak in same) / MIB)
    up = Axis("perplexity", low=0.9 * min(p.perplexity for _, p, _ in same))
    return _both(title, caption, lambda width: lines(title, series, across, up, width))
