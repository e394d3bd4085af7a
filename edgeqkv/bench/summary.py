"""Records as tables: what a reader compares, with its spread."""

from collections.abc import Sequence

from edgeqkv.bench.record import Record, Timing
from edgeqkv.tables import mib, table

RUNTIMES = {"onnx": "ONNX Runtime"}


def summary(records: Sequence[Record]) -> str:
    """Three tables: memory, speed, and each variant against the first record."""
    first = records[0]
    environment = first.environment
    lines = [
        f"{environment.cpu or environment.machine}, {environment.cores} cores, {environment.system}; {RUNTIMES[first.runtime]} "
        f"{first.runtime_version}, {first.threads} threads, {len(first.decode[0].seconds)} samples a cell, interleaved",
        "",
        _memory(records),
        "",
        _speed(records),
    ]
    if len(records) > 1:
        lines += ["", _ratios(records)]
    return "\n".join(lines)


def _name(record: Record) -> str:
    return f"{record.variant}, {record.cache} cache"


def _memory(records: Sequence[Record]) -> str:
    depth = max(timing.depth for timing in records[0].decode)
    rows = []
    for record in records:
        end, deep = record.memory["end"], record.memory[f"depth {depth}"]
        rows.append(
            [
                _name(record),
                mib(record.cache_bytes_analytic, 2),
                mib(record.cache_bytes, 2),
                mib(record.weights_bytes),
                mib(end.peak_rss),
                mib(deep.private),
                f"{record.load_s * 1e3:,.0f}",
            ]
        )
    return table(["variant", "cache MiB", "real", "files MiB", "peak RSS MiB", f"private MiB at {depth}", "load ms"], rows)


def _speed(records: Sequence[Record]) -> str:
    prompt = records[0].first_token.tokens
    header = ["variant", f"first token ms ({prompt} prompt)", "prefill tokens/s"]
    header += [f"at {timing.depth}: ms/token min, median, p90; tokens/s" for timing in records[0].decode]
    rows = []
    for record in records:
        first = record.first_token.median
        rows.append([_name(record), f"{first * 1e3:,.1f}", f"{prompt / first:,.0f}", *map(_spread, record.decode)])
    return table(header, rows)


def _spread(timing: Timing) -> str:
    milliseconds = (f"{s * 1e3:.2f}" for s in (min(timing.seconds), timing.median, timing.quantile(90)))
    return f"{' '.join(milliseconds)}; {1 / timing.median:,.0f}"


def _ratios(records: Sequence[Record]) -> str:
    base = records[0]
    header = [f"relative to {_name(base)}", "cache", "peak RSS"]
    header += [f"ms/token at {timing.depth}" for timing in base.decode]
    rows = []
    for record in records:
        peak, base_peak = record.memory["end"].peak_rss, base.memory["end"].peak_rss
        rows.append(
            [
                _name(record),
                f"{record.cache_bytes / base.cache_bytes:.3f}",
                f"{peak / base_peak:.2f}" if peak and base_peak else None,
                *(f"{a.median / b.median:.2f}" for a, b in zip(record.decode, base.decode, strict=True)),
            ]
        )
    return table(header, rows)
