"""The tables of memory and speed of one interleaved run: what ``bench`` prints and ``report`` shows."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from edgeqkv.bench.printable import printable
from edgeqkv.bench.record import Record, bandwidth_share, largest_capacity
from edgeqkv.bench.timing import Timing, quantile
from edgeqkv.bench.words import name
from edgeqkv.tables import mib, table

NOT_MEASURED = "not measured"
NAME = "variant, weights / cache, runtime"


@dataclass(frozen=True)
class Table:
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def text(self) -> str:
        """Aligned for a terminal, whatever a record holds."""
        return table([printable(cell) for cell in self.header], [[printable(cell) for cell in row] for row in self.rows])


def size(count: int | None, digits: int = 1) -> str:
    return mib(count, digits) or NOT_MEASURED


def memory_table(run: Sequence[Record], budget: int | None = None) -> Table:
    """``budget`` in bytes adds the largest capacity that fits in it."""
    header = ["MiB", "weights", "cache", "rest", "peak RSS", "private", "PSS", "cache by formula", "cache in memory", "files"]
    header += ["positions a MiB of cache holds"]
    header += [f"capacity in {mib(budget, 0)} MiB"] if budget else []
    rows = []
    for record in run:
        use, end = record.memory, record.memory.at("end")
        split = (use.split.weights, use.split.cache, use.split.rest) if use.split else (None, None, None)
        row = [name(record), *(size(part) for part in (*split, use.peak, end.private, end.pss))]
        row += [size(use.cache_bytes_analytic, 2), size(use.cache_bytes, 2), size(use.weights_bytes)]
        row.append(f"{2**20 // use.cache_bytes_per_position:,}")
        row += [_capacity(record, budget)] if budget else []
        rows.append(tuple(row))
    return Table(tuple(header), tuple(rows))


def _capacity(record: Record, budget: int) -> str:
    fits = largest_capacity(record, budget)
    if fits is None:
        return NOT_MEASURED
    return f"{fits:,}" + (" (all it has)" if fits == record.subject.model.n_positions else "")


def speed_table(run: Sequence[Record]) -> Table:
    """Records may differ in their depths."""
    depths = sorted({timing.depth for record in run for timing in record.timings.decode})
    prefills = sorted({timing.end for record in run for timing in record.timings.prefill})
    prompts = sorted({record.timings.first_token.tokens for record in run if record.timings.first_token})
    header = [NAME, "load ms", f"first token ms, {' or '.join(map(str, prompts)) or 'no'} prompt tokens"]
    header += [f"ms/token at {depth:,}: p50 p90 p99" for depth in depths]
    header += [f"prefill tokens/s to {end:,}" for end in prefills]
    rows = []
    for record in run:
        t = record.timings
        decode = {timing.depth: timing for timing in t.decode}
        prefill = {timing.end: f"{timing.tokens_per_s:,.0f}" for timing in t.prefill}
        row = [name(record), f"{1e3 * min(t.load_s):,.0f}" if t.load_s else NOT_MEASURED]
        row.append(f"{1e3 * t.first_token.p50_s:,.1f}" if t.first_token else NOT_MEASURED)
        row += [spread(decode.get(depth)) for depth in depths]
        row += [prefill.get(end, NOT_MEASURED) for end in prefills]
        rows.append(tuple(row))
    return Table(tuple(header), tuple(rows))


def spread(timing: Timing | None) -> str:
    if timing is None:
        return NOT_MEASURED
    return " ".join(f"{1e3 * s:.2f}" for s in (timing.p50_s, timing.p90_s, timing.p99_s))


def traffic_table(run: Sequence[Record]) -> Table | None:
    """How much of the machine's read bandwidth decoding reached (:func:`~edgeqkv.bench.record.bandwidth_share`): at the median
    time, and at its 90th and 10th percentile. None where the run did not measure the bandwidth."""
    best = next((record.bandwidth for record in run if record.bandwidth and record.bandwidth.best), None)
    if best is None:
        return None
    depths = sorted({timing.depth for record in run for timing in record.timings.decode})
    samples = max((best.one_thread, best.threads), key=lambda rates: statistics.median(rates) if rates else 0.0)
    low, median, high = (f"{rate / 1e9:.1f}" for rate in (min(samples), statistics.median(samples), max(samples)))
    header = [f"read at {median} GB/s ({low} to {high}) in order"]
    header += [f"MB a token at {depth:,}" for depth in depths]
    header += [f"share of that at {depth:,}: p50 (p90 to p10)" for depth in depths]
    rows = []
    for record in run:
        decode = {timing.depth: timing for timing in record.timings.decode}
        needed = [record.bytes_per_token(depth) for depth in depths]
        row = [name(record), *(NOT_MEASURED if count is None else f"{count / 1e6:,.1f}" for count in needed)]
        row += [_reached(record, decode.get(depth)) for depth in depths]
        rows.append(tuple(row))
    return Table(tuple(header), tuple(rows))


def _reached(record: Record, timing: Timing | None) -> str:
    share = bandwidth_share(record, timing) if timing else None
    if timing is None or share is None:
        return NOT_MEASURED
    slow, fast = (share * timing.median / quantile(timing.seconds, percent) for percent in (90, 10))
    return f"{share:.0%} ({slow:.0%} to {fast:.0%})"
