"""One flat row for each record and depth: for spreadsheets, and for the table of every number."""

import csv
import io
from collections.abc import Sequence

from edgeqkv.bench.printable import printable
from edgeqkv.bench.record import Record, largest_capacity
from edgeqkv.bench.timing import Timing

Cell = str | int | float | bool | None
# A spreadsheet takes a text that begins with one of these for a formula.
FORMULA = ("=", "+", "-", "@", "\t", "\r")


def flat_rows(records: Sequence[Record], budget: int | None = None) -> list[dict[str, Cell]]:
    """Every value a plain one; None is unknown. ``budget`` in bytes adds the largest capacity that fits in it."""
    rows = []
    for record in records:
        common = _common(record) | {"largest_capacity": largest_capacity(record, budget) if budget else None}
        prefill = {timing.end: timing.tokens_per_s for timing in record.timings.prefill}
        rows += [common | _at_depth(timing, prefill) for timing in record.timings.decode or (None,)]
    return rows


def csv_text(records: Sequence[Record], budget: int | None = None) -> str:
    rows, text = flat_rows(records, budget), io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: _harmless(value) for key, value in row.items()} for row in rows)
    return text.getvalue().rstrip("\n")


def _harmless(value: Cell) -> Cell:
    """No formula, and no character that would end a row."""
    if not isinstance(value, str):
        return value
    return f"'{printable(value)}" if value.startswith(FORMULA) else printable(value)


def _common(record: Record) -> dict[str, Cell]:
    subject, memory, split, end = record.subject, record.memory, record.memory.split, record.memory.at("end")
    first_token = record.timings.first_token
    return {
        "run": record.run,
        "time": record.time,
        "device": record.device,
        "variant": subject.variant,
        "weights": subject.weights,
        "cache": subject.cache,
        "kernel": subject.kernel,
        "runtime": subject.runtime,
        "runtime_version": subject.runtime_version,
        "program": record.program.name,
        "threads": record.plan.threads,
        "bundle": subject.bundle,
        "baseline": subject.baseline,
        "capacity": subject.capacity,
        "filled": record.plan.filled,
        "rounds_done": record.rounds_done,
        "throttled": record.throttled,
        "emulated": record.environment.emulated,
        "load_s": min(record.timings.load_s, default=None),
        "first_token_s": first_token.p50_s if first_token else None,
        "cache_bytes": memory.cache_bytes,
        "cache_bytes_analytic": memory.cache_bytes_analytic,
        "peak_rss_bytes": memory.peak,
        "pss_bytes": end.pss,
        "private_bytes": end.private,
        "peak_weights_bytes": split.weights if split else None,
        "peak_cache_bytes": split.cache if split else None,
        "peak_rest_bytes": split.rest if split else None,
    }


def _at_depth(timing: Timing | None, prefill: dict[int, float]) -> dict[str, Cell]:
    return {
        "depth": timing.depth if timing else None,
        "decode_tokens_per_s": timing.tokens_per_s if timing else None,
        "decode_p50_s": timing.p50_s if timing else None,
        "decode_p90_s": timing.p90_s if timing else None,
        "decode_p99_s": timing.p99_s if timing else None,
        "prefill_tokens_per_s": prefill.get(timing.depth) if timing else None,
        "samples": len(timing.seconds) if timing else 0,
    }
