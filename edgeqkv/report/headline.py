"""What a report says first: one sentence, and three numbers with what they are compared with."""

import math
from dataclasses import dataclass
from itertools import product

from edgeqkv.bench.compared import deepest
from edgeqkv.bench.ratio import Ratio, disturbed
from edgeqkv.bench.record import Record, largest_capacity
from edgeqkv.bench.tables import NOT_MEASURED
from edgeqkv.bench.words import place
from edgeqkv.report.names import facts
from edgeqkv.report.pairs import Pair, memory_share, percent, speed
from edgeqkv.tables import mib

MIB = 2**20
# Sizes of RAM that are looked at for the third number, powers of two before what lies between them.
_SIZES = ((1.0,), (1.5,), (1.25, 1.75))


@dataclass(frozen=True)
class Number:
    """``value`` is set large. ``alike`` says the same against the like-for-like baseline."""

    title: str
    value: str
    sentence: str
    alike: str


def sentence(pair: Pair) -> str:
    """The gain in fewer than 25 words."""
    record, base = pair.record, pair.today
    today = " as it runs today" if is_today(base) else ""
    share, depth = memory_share(record, base), pair.depth
    where = f"At {depth:,} positions, " if depth is not None else ""
    needs = f"needs {_change(share)} memory than" if share else "has no measured memory against"
    return f"{where}{record.subject.variant} {needs} {base.subject.variant}{today}{_decodes(pair)}."


def is_today(base: Record) -> bool:
    """Whether a standard model is what a team has without us: the runtime's own attention over a cache of floats."""
    return base.subject.kernel == "stock" and base.subject.cache != "int8"


def compared(pair: Pair) -> str:
    """What differs between the two, what is the same, and where it was measured."""
    ours, theirs = facts(pair.record), facts(pair.today)
    differing = [fact for fact in ours if ours[fact] != theirs[fact]]
    common = [ours[fact] for fact in ours if fact not in differing]

    def named(record: Record, known: dict[str, str]) -> str:
        return record.subject.variant + (f" ({', '.join(known[fact] for fact in differing)})" if differing else "")

    both = f"; both {', '.join(common)}" if common else ""
    slow = " The machine throttled during this run." if pair.record.throttled or pair.today.throttled else ""
    return f"{named(pair.record, ours)} against {named(pair.today, theirs)}{both}. Measured on {place(pair.record)}.{slow}"


def numbers(pair: Pair, budget: int | None) -> tuple[Number, Number, Number]:
    """Peak memory, decoding speed, and the positions that fit in ``budget`` bytes of RAM."""
    return _memory(pair), _speed(pair), _positions(pair, budget)


def _memory(pair: Pair) -> Number:
    title, ours, theirs = "peak memory", pair.record.memory.peak, pair.today.memory.peak
    share = memory_share(pair.record, pair.today)
    if share is None:
        return Number(title, "–", f"{NOT_MEASURED.capitalize()}.", "")
    alike = memory_share(pair.record, pair.alike) if pair.alike else None
    text = f"{mib(ours, 0)} MiB instead of {mib(theirs, 0)} MiB with {_today(pair)}."
    return Number(title, percent(share), text, _alike(pair, percent(alike) if alike else None))


def _speed(pair: Pair) -> Number:
    title, ratio, timings = "decoding speed", speed(pair.record, pair.today), deepest(pair.record, pair.today)
    if ratio is None or timings is None:
        why = (
            "Other programs had the processors too often to compare."
            if _busy(pair)
            else "Not measured often enough to compare."
        )
        return Number(title, "–", why, "")
    ours, theirs = (f"{timing.tokens_per_s:,.0f}" for timing in timings)
    text = f"{ours} tokens a second instead of {theirs} with {_today(pair)}, at {pair.depth:,} positions"
    sure = f"99 % interval {_interval(ratio)}" if ratio.differs else f"no difference was shown, {_interval(ratio)}"
    alike = speed(pair.record, pair.alike) if pair.alike else None
    return Number(title, f"{ratio.value:.2f}×", f"{text}; {sure}.", _alike(pair, _times(alike) if alike else None))


def _positions(pair: Pair, budget: int | None) -> Number:
    title = "positions that fit"
    ours = largest_capacity(pair.record, budget) if budget else None
    theirs = largest_capacity(pair.today, budget) if budget else None
    if budget is None or ours is None or theirs is None:
        return Number(title, "–", f"{NOT_MEASURED.capitalize()}.", "")
    every = " (all that the model has)" if ours == pair.record.subject.model.n_positions else ""
    text = f"In {mib(budget, 0)} MiB of RAM{every}, instead of {theirs:,} with {_today(pair)}."
    alike = largest_capacity(pair.alike, budget) if pair.alike else None
    return Number(title, f"{ours:,}", text, _alike(pair, f"{alike:,}" if alike is not None else None))


def telling_budget(pair: Pair) -> int | None:
    """A round size of RAM in which more positions fit than with the baseline; the next one above both where there is none.
    None where memory was not measured."""
    split, today = pair.record.memory.split, pair.today.memory
    if split is None or today.split is None:
        return None
    full = today.split.weights + today.split.rest + today.cache_bytes_per_position * pair.today.subject.model.n_positions
    top = max(20, math.ceil(math.log2(full)))
    for factors in _SIZES:
        for power, factor in product(range(top, 19, -1), sorted(factors, reverse=True)):
            budget = int(factor * 2**power)
            ours, theirs = largest_capacity(pair.record, budget), largest_capacity(pair.today, budget)
            if ours is not None and theirs is not None and ours > theirs:
                return budget
    return int(2**top)


def _today(pair: Pair) -> str:
    name = pair.today.subject.variant
    return f"{name} as it runs today" if is_today(pair.today) else name


def _alike(pair: Pair, value: str | None) -> str:
    """The line below a number; nothing where the baseline of the large number is like for like itself."""
    if pair.alike is pair.today and pair.alike.subject.kernel == pair.record.subject.kernel:
        return ""
    if pair.alike is None:
        return f"Like for like (same kernel and cache): {NOT_MEASURED}."
    s = pair.alike.subject
    faster = "" if s.kernel == pair.record.subject.kernel else ", which is faster for it"
    return f"Like for like ({s.variant}, {s.cache} cache, {s.kernel} kernel{faster}): {value or NOT_MEASURED}."


def _change(share: float) -> str:
    return f"{100 * (1 - share):.0f} % less" if share <= 1 else f"{100 * (share - 1):.0f} % more"


def _decodes(pair: Pair) -> str:
    ratio = speed(pair.record, pair.today)
    if ratio is None:
        return "; its speed was not compared" + (", as other programs ran" if _busy(pair) else "")
    if not ratio.differs:
        return "; no difference in speed was shown"
    return (
        f" and decodes {ratio.value:.1f} times as fast"
        if ratio.value > 1
        else f" and decodes {100 * (1 - ratio.value):.0f} % slower"
    )


def _busy(pair: Pair) -> bool:
    """Whether rounds do not count because other programs ran."""
    return any(disturbed(timing) for timing in deepest(pair.record, pair.today) or ())


def _interval(ratio: Ratio) -> str:
    return f"{ratio.low:.2f} to {ratio.high:.2f}"


def _times(ratio: Ratio) -> str:
    return f"{ratio.value:.2f}× ({_interval(ratio)})"
