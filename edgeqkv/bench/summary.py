"""Records as text: what a reader compares, with its spread, for each interleaved run; or one flat row for each depth."""

from collections.abc import Sequence

import msgspec

from edgeqkv.bench.flat import csv_text
from edgeqkv.bench.printable import printable
from edgeqkv.bench.record import Record
from edgeqkv.bench.results import json_line
from edgeqkv.bench.tables import NAME, NOT_MEASURED, Table, memory_table, size, speed_table, traffic_table
from edgeqkv.bench.words import machine, name, notes, runs, runtimes, threads

FORMATS = ("md", "csv", "json", "jsonl")


def written(records: Sequence[Record], form: str, budget: int | None = None) -> str:
    """Records in one of FORMATS; ``budget`` in bytes adds the largest capacity that fits to the tables."""
    if form == "csv":
        return csv_text(records, budget)
    if form == "jsonl":
        return "\n".join(map(json_line, records))
    if form == "json":
        return msgspec.json.format(msgspec.json.encode(records), indent=2).decode()
    return "\n\n".join(summary(run, budget) for run in runs(records))


def summary(run: Sequence[Record], budget: int | None = None) -> str:
    """One run: memory and decode speed side by side first, then what is behind it, then each record against the first."""
    head = "\n".join([printable(_headline(run)), *(f"note: {text}" for text in notes(run))])
    if run[0].environment.emulated:
        return f"{head}\n\n{_ids(run).text()}"
    tables = [_side_by_side(run), speed_table(run), traffic_table(run), memory_table(run, budget)]
    tables += [_ratios(run)] if len(run) > 1 else []
    return "\n\n".join([head, *(one.text() for one in tables if one)])


def _headline(run: Sequence[Record]) -> str:
    first, environment, plan = run[0], run[0].environment, run[0].plan
    extent = f"{first.rounds_done} rounds of {plan.steps} tokens in a row or more"
    return (
        f"{machine(first)}, {environment.cores or 'unknown'} cores, {environment.os_kernel or 'unknown system'}, "
        f"{first.device}; {runtimes(run)} in {first.program.name}, {threads(first)}, "
        f"{'emulated, so nothing is timed' if environment.emulated else extent}, interleaved"
    )


def _ids(run: Sequence[Record]) -> Table:
    rows = [(name(r), size(r.memory.cache_bytes, 2), " ".join(map(str, r.greedy_ids))) for r in run]
    return Table((NAME, "cache MiB", "ids after 1 2 3"), tuple(rows))


def _side_by_side(run: Sequence[Record]) -> Table:
    depth = max((timing.depth for record in run for timing in record.timings.decode), default=0)
    rows = []
    for record in run:
        end = record.memory.at("end")
        last = next((timing for timing in record.timings.decode if timing.depth == depth), None)
        speed = (f"{last.median * 1e3:.2f}", f"{last.tokens_per_s:,.0f}") if last else (NOT_MEASURED,) * 2
        rows.append((name(record), size(record.memory.cache_bytes, 2), size(record.memory.peak), size(end.private), *speed))
    return Table((NAME, "cache MiB", "peak RSS MiB", "private MiB", f"ms/token at {depth}", "tokens/s"), tuple(rows))


def _ratios(run: Sequence[Record]) -> Table:
    base = run[0]
    depths = [timing.depth for timing in base.timings.decode]
    header = [f"relative to {name(base)}", "cache", "peak RSS", "private", *(f"ms/token at {depth}" for depth in depths)]
    header += [f"its own {depths[-1]} / {depths[0]}"] if len(depths) > 1 else []
    theirs = {timing.depth: timing.median for timing in base.timings.decode}
    rows = []
    for record in run:
        end, base_end = record.memory.at("end"), base.memory.at("end")
        ours = {timing.depth: timing.median for timing in record.timings.decode}
        row = [name(record), f"{record.memory.cache_bytes / base.memory.cache_bytes:.3f}"]
        row += [_share(record.memory.peak, base.memory.peak), _share(end.private, base_end.private)]
        row += [_share(ours.get(depth), theirs[depth]) for depth in depths]
        row += [_share(ours.get(depths[-1]), ours.get(depths[0]))] if len(depths) > 1 else []
        rows.append(tuple(row))
    return Table(tuple(header), tuple(rows))


def _share(part: float | None, whole: float | None) -> str:
    return f"{part / whole:.2f}" if part and whole else NOT_MEASURED
