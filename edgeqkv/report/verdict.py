"""One sentence that decides: what a variant needs, and how fast it decodes, next to its baseline."""

from edgeqkv.bench.compared import deepest
from edgeqkv.bench.ratio import Ratio, speed_ratio
from edgeqkv.bench.record import Record
from edgeqkv.bench.words import place, runtime_title
from edgeqkv.tables import mib


def verdict(record: Record, base: Record) -> str:
    """At the deepest depth at which both were measured."""
    pair = deepest(record, base)
    ours, theirs, shared = _told_apart(record, base)
    where = f"At {pair[0].depth:,} positions on" if pair else "On"
    speed = _speed(speed_ratio(pair[1], pair[0], record.rounds_done) if pair else None)
    joint = " and " if speed.startswith("decodes") else "; "
    throttled = " The machine throttled during this run." if record.throttled or base.throttled else ""
    return f"{where} {place(record)}, {ours} {_memory(record, base)} than {theirs}{shared}{joint}{speed}.{throttled}"


def amount(saved: int) -> str:
    """Bytes that are saved, in words."""
    return f"{mib(abs(saved))} MiB {'less' if saved >= 0 else 'more'}"


def _memory(record: Record, base: Record) -> str:
    ours, theirs = record.memory.peak, base.memory.peak
    cache = amount(base.memory.cache_bytes - record.memory.cache_bytes)
    if ours is None or theirs is None:
        return f"keeps {cache} cache"
    return f"needs {amount(theirs - ours)} memory at its peak ({cache} cache)"


def _speed(ratio: Ratio | None) -> str:
    if ratio is None:
        return "its speed was not measured often enough to compare"
    if not ratio.differs:
        interval = f"{ratio.value:.2f}, {ratio.low:.2f} to {ratio.high:.2f}"
        return f"no difference in decoding speed could be shown ({interval} times)"
    if ratio.value > 1:
        return f"decodes {ratio.value:.2f} times faster ({ratio.low:.2f} to {ratio.high:.2f})"
    return f"decodes {1 / ratio.value:.2f} times slower ({1 / ratio.high:.2f} to {1 / ratio.low:.2f})"


def _told_apart(record: Record, base: Record) -> tuple[str, str, str]:
    """The two names with what differs between them besides the sharing, and what they have in common."""
    ours, theirs = _facts(record), _facts(base)
    differing = [fact for fact in ours if ours[fact] != theirs[fact]]
    common = [theirs[fact] for fact in theirs if fact not in differing]

    def named(one: Record, facts: dict[str, str]) -> str:
        return one.subject.variant + (f" ({', '.join(facts[fact] for fact in differing)})" if differing else "")

    return named(record, ours), named(base, theirs), f" (both {', '.join(common)})" if common else ""


def _facts(record: Record) -> dict[str, str]:
    subject = record.subject
    return {
        "cache": f"{subject.cache} cache",
        "weights": f"{subject.weights} weights",
        "kernel": f"{subject.kernel} kernel",
        "runtime": runtime_title(subject.runtime),
    }
