"""Records as text: what a reader compares, with its spread, for each interleaved run; or one flat row for each depth."""

import csv
import dataclasses
import io
import json
from collections.abc import Sequence
from typing import Any

from edgeqkv.bench.record import Record, Timing, largest_capacity
from edgeqkv.bench.results import json_line
from edgeqkv.tables import mib, table

FORMATS = ("md", "csv", "json", "jsonl")
_COLUMNS = (
    *("run", "time", "device", "variant", "weights", "cache", "kernel", "runtime", "runtime_version", "program", "threads"),
    *("bundle", "baseline", "capacity", "rounds_done", "throttled"),
)
RUNTIMES = {"onnx": "ONNX Runtime", "executorch": "ExecuTorch", "coreml": "Core ML"}


def written(records: Sequence[Record], form: str, budget: int | None = None) -> str:
    """Records in one of FORMATS; ``budget`` in bytes adds the largest capacity that fits to the tables."""
    if form == "csv":
        return _csv(records, budget)
    if form == "jsonl":
        return "\n".join(map(json_line, records))
    if form == "json":
        return json.dumps([dataclasses.asdict(record) for record in records], indent=2, ensure_ascii=False)
    return "\n\n".join(summary(run, budget) for run in runs(records))


def runs(records: Sequence[Record]) -> list[list[Record]]:
    """The records of each interleaved run together: only those are compared."""
    found: dict[str, list[Record]] = {}
    for record in records:
        found.setdefault(record.run, []).append(record)
    return list(found.values())


def machine(record: Record) -> str:
    """The device in a few words."""
    e = record.environment
    return e.model if e.model and e.soc else e.cpu or e.model or e.machine or "an unknown machine"


def summary(records: Sequence[Record], budget: int | None = None) -> str:
    """One run: memory and decode speed side by side first, then what is behind it, then each record against the first."""
    first, environment = records[0], records[0].environment
    runtimes = ", ".join(dict.fromkeys(f"{RUNTIMES.get(r.runtime, r.runtime)} {r.runtime_version}" for r in records))
    lines = [
        f"{machine(first)}, {environment.cores or 'unknown'} cores, {environment.kernel or 'unknown system'}, {first.device}; "
        f"{runtimes} in {first.program}, {first.threads} threads, "
        + ("emulated, so nothing is timed" if environment.emulated else f"{first.rounds_done} rounds of {first.steps} tokens")
        + ", interleaved"
    ]
    lines += [f"note: {text}" for text in notes(records)]
    if environment.emulated:
        return "\n".join([*lines, "", _ids(records)])
    lines += ["", _side_by_side(records), "", _speed(records), "", _memory(records, budget)]
    if len(records) > 1:
        lines += ["", _ratios(records)]
    return "\n".join(lines)


def notes(records: Sequence[Record]) -> list[str]:
    """What a reader has to know before the numbers."""
    out = []
    if any(record.throttled for record in records):
        out.append("the machine throttled during this run; cool it and measure again with --resume --again-throttled")
    if any(record.rounds_done < record.rounds for record in records if not record.environment.emulated):
        out.append(f"interrupted after {records[0].rounds_done} of {records[0].rounds} rounds; --resume goes on")
    if any(record.baseline == "random weights" for record in records):
        out.append("the QKV baseline has random weights: it shows memory and speed, not quality")
    return out


def name(record: Record) -> str:
    return f"{record.variant}, {record.weights} / {record.cache}, {record.runtime} {record.kernel}"


def _ids(records: Sequence[Record]) -> str:
    rows = [[name(record), mib(record.cache_bytes, 2), " ".join(map(str, record.greedy_ids))] for record in records]
    return table(["variant, weights / cache, runtime", "cache MiB", "ids after 1 2 3"], rows)


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
        end, last = record.memory["end"], record.decode[-1]
        row = [name(record), mib(record.cache_bytes, 2), mib(end.peak_rss), mib(end.private)]
        rows.append([*row, f"{last.median * 1e3:.2f}", f"{last.tokens_per_s:,.0f}"])
    return table(header, rows)


def _speed(records: Sequence[Record]) -> str:
    first = records[0].first_token
    header = ["ms: p50, p90, p99", f"first token, {first.tokens if first else 0} prompt"]
    header += [f"a token at {timing.depth}" for timing in records[0].decode]
    header += [f"prefill tokens/s from {timing.depth}" for timing in records[0].prefill]
    rows = []
    for record in records:
        prefill = (f"{timing.tokens_per_s:,.0f}" for timing in record.prefill)
        first_token = _spread(record.first_token, 1) if record.first_token else None
        rows.append([name(record), first_token, *map(_spread, record.decode), *prefill])
    return table(header, rows)


def _spread(timing: Timing, digits: int = 2) -> str:
    return " ".join(f"{s * 1e3:.{digits}f}" for s in (timing.p50_s, timing.p90_s, timing.p99_s))


def _memory(records: Sequence[Record], budget: int | None) -> str:
    header = ["MiB", "cache by formula", "cache in memory", "files", "RSS loaded", "RSS at end", "PSS at end", "load ms"]
    header += [f"capacity in {mib(budget, 0)} MiB"] if budget else []
    rows = []
    for record in records:
        end, loaded = record.memory["end"], record.memory["loaded"]
        row = [name(record), mib(record.cache_bytes_analytic, 2), mib(record.cache_bytes, 2), mib(record.weights_bytes)]
        row += [mib(loaded.rss), mib(end.rss), mib(end.pss), f"{min(record.load_s) * 1e3:,.0f}"]
        if budget:
            capacity = largest_capacity(record, budget)
            row.append(None if capacity is None else f"{capacity:,}")
        rows.append(row)
    return table(header, rows)


def _ratios(records: Sequence[Record]) -> str:
    base = records[0]
    header = [f"relative to {name(base)}", "cache", "peak RSS", "private"]
    header += [f"ms/token at {timing.depth}" for timing in base.decode]
    shallow, deep = base.decode[0].depth, base.decode[-1].depth
    header += [f"its own {deep} / {shallow}"] if deep != shallow else []
    rows = []
    for record in records:
        end, base_end = record.memory["end"], base.memory["end"]
        shares = [_share(end.peak_rss, base_end.peak_rss), _share(end.private, base_end.private)]
        times = [f"{a.median / b.median:.2f}" for a, b in zip(record.decode, base.decode, strict=True)]
        growth = [f"{record.decode[-1].median / record.decode[0].median:.2f}"] if deep != shallow else []
        rows.append([name(record), f"{record.cache_bytes / base.cache_bytes:.3f}", *shares, *times, *growth])
    return table(header, rows)


def _share(part: int | None, whole: int | None) -> str | None:
    return f"{part / whole:.2f}" if part and whole else None


def flat_rows(records: Sequence[Record], budget: int | None = None) -> list[dict[str, Any]]:
    """One row for each record and depth, every value a plain one; None is unknown."""
    rows = []
    for record in records:
        split, end = record.memory_split, record.memory.get("end")
        common = {field: getattr(record, field) for field in _COLUMNS}
        common |= {
            "emulated": record.environment.emulated,
            "load_s": min(record.load_s, default=None),
            "first_token_s": record.first_token.p50_s if record.first_token else None,
            "cache_bytes": record.cache_bytes,
            "cache_bytes_analytic": record.cache_bytes_analytic,
            "peak_rss_bytes": end.peak_rss if end else None,
            "pss_bytes": end.pss if end else None,
            "private_bytes": end.private if end else None,
            "peak_weights_bytes": split.weights if split else None,
            "peak_cache_bytes": split.cache if split else None,
            "peak_rest_bytes": split.rest if split else None,
            "largest_capacity": largest_capacity(record, budget) if budget else None,
        }
        prefill = {timing.depth + timing.tokens: timing.tokens_per_s for timing in record.prefill}
        for timing in record.decode or (None,):
            rows.append(
                common
                | {
                    "depth": timing.depth if timing else None,
                    "decode_tokens_per_s": timing.tokens_per_s if timing else None,
                    "decode_p50_s": timing.p50_s if timing else None,
                    "decode_p90_s": timing.p90_s if timing else None,
                    "decode_p99_s": timing.p99_s if timing else None,
                    "prefill_tokens_per_s": prefill.get(timing.depth) if timing else None,
                    "samples": len(timing.seconds) if timing else 0,
                }
            )
    return rows


def _csv(records: Sequence[Record], budget: int | None) -> str:
    rows, text = flat_rows(records, budget), io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().rstrip("\n")
