"""Records as tables: what a reader compares, with its spread."""

from collections.abc import Sequence

from edgeqkv.bench.record import Record, Timing
from edgeqkv.tables import mib, table

RUNTIMES = {"onnx": "ONNX Runtime", "executorch": "ExecuTorch"}


def summary(records: Sequence[Record]) -> str:
    """Memory and decode speed side by side first, then what is behind it, then each record against the first."""
    first = records[0]
    environment = first.environment
    runtimes = ", ".join(dict.fromkeys(f"{RUNTIMES[r.runtime]} {r.runtime_version}" for r in records))
    lines = [
        f"{environment.cpu or environment.machine}, {environment.cores} cores, {environment.system}; {runtimes}, "
        f"{first.threads} threads, {len(first.decode[0].seconds)} samples a cell, interleaved, "
        f"{'edgeqkv-run' if first.native else 'Python in the process'}",
        "",
        _side_by_side(records),
        "",
        _speed(records),
        "",
        _memory(records),
    ]
    if len(records) > 1:
        lines += ["", _ratios(records)]
    return "\n".join(lines)


def _name(record: Record) -> str:
    return f"{record.variant}, {record.weights} / {record.cache}, {record.runtime} {record.kernel}"


def _side_by_side(records: Sequence[Record]) -> str:
    depth = records[0].decode[-1].depth
    header = [
        "variant, weights / cache, runtime",
        "cache MiB",
        "peak RSS MiB",
        "private MiB",
        f"ms/token at {depth}",
        "tokens/s",
    ]
    rows = []
    for record in records:
        end, median = record.memory["end"], record.decode[-1].median
        row = [_name(record), mib(record.cache_bytes, 2), mib(end.peak_rss), mib(end.private)]
        rows.append([*row, f"{median * 1e3:.2f}", f"{1 / median:,.0f}"])
    return table(header, rows)


def _speed(records: Sequence[Record]) -> str:
    prompt = records[0].first_token.tokens
    header = ["ms: min, median, p90", f"first token, {prompt} prompt"]
    header += [f"a token at {timing.depth}" for timing in records[0].decode]
    header += [f"prefill tokens/s from {timing.depth}" for timing in records[0].prefill]
    rows = []
    for record in records:
        prefill = (f"{timing.tokens / timing.median:,.0f}" for timing in record.prefill)
        rows.append([_name(record), _spread(record.first_token, 1), *map(_spread, record.decode), *prefill])
    return table(header, rows)


def _spread(timing: Timing, digits: int = 2) -> str:
    return " ".join(f"{s * 1e3:.{digits}f}" for s in (min(timing.seconds), timing.median, timing.quantile(90)))


def _memory(records: Sequence[Record]) -> str:
    header = ["MiB", "cache by formula", "cache in memory", "files", "RSS loaded", "RSS at end", "PSS at end", "load ms, once"]
    rows = []
    for record in records:
        end, loaded = record.memory["end"], record.memory["loaded"]
        row = [_name(record), mib(record.cache_bytes_analytic, 2), mib(record.cache_bytes, 2), mib(record.weights_bytes)]
        rows.append([*row, mib(loaded.rss), mib(end.rss), mib(end.pss), f"{record.load_s * 1e3:,.0f}"])
    return table(header, rows)


def _ratios(records: Sequence[Record]) -> str:
    base = records[0]
    header = [f"relative to {_name(base)}", "cache", "peak RSS", "private"]
    header += [f"ms/token at {timing.depth}" for timing in base.decode]
    shallow, deep = base.decode[0].depth, base.decode[-1].depth
    header += [f"its own {deep} / {shallow}"] if deep != shallow else []
    rows = []
    for record in records:
        end, base_end = record.memory["end"], base.memory["end"]
        shares = [_share(end.peak_rss, base_end.peak_rss), _share(end.private, base_end.private)]
        times = [f"{a.median / b.median:.2f}" for a, b in zip(record.decode, base.decode, strict=True)]
        growth = [f"{record.decode[-1].median / record.decode[0].median:.2f}"] if deep != shallow else []
        rows.append([_name(record), f"{record.cache_bytes / base.cache_bytes:.3f}", *shares, *times, *growth])
    return table(header, rows)


def _share(part: int | None, whole: int | None) -> str | None:
    return f"{part / whole:.2f}" if part and whole else None
