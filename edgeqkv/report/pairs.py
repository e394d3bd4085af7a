"""What each record is compared with: the standard model as a team has it today, and the one that only shares less."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from edgeqkv.bench.compared import Baselines, deepest, group_of, is_baseline
from edgeqkv.bench.ratio import Ratio, speed_ratio
from edgeqkv.bench.record import Record

_SAME = ("runtime", "weights", "cache")


@dataclass(frozen=True)
class Pair:
    """``today`` is the standard model with the runtime's own attention and a cache of floats, or what was measured that comes
    nearest to it. ``alike`` has the kernel, the cache dtype and the weights of ``record``; where that kernel makes the standard
    model slower than another one, it is the faster of them. None where the run has no such record."""

    record: Record
    today: Record
    alike: Record | None

    @property
    def depth(self) -> int | None:
        """The deepest that both were decoded at."""
        timings = deepest(self.record, self.today)
        return timings[0].depth if timings else None

    @property
    def gain(self) -> float:
        """Of memory and speed together, to find the record that gains most: a sum of logarithms."""
        memory, timings = memory_share(self.record, self.today), deepest(self.record, self.today)
        faster = timings[1].median / timings[0].median if timings else 1.0
        return math.log(faster) - (math.log(memory) if memory else 0.0)


def pairs(run: Sequence[Record]) -> list[Pair]:
    """Of each record that is no baseline itself and has one in its run."""
    baselines = Baselines(run)
    fastest: dict[object, Record] = {}
    for record in filter(is_baseline, run):
        key = _key(record)
        fastest[key] = _faster(fastest.get(key, record), record)
    found = []
    for record in run:
        like, today = baselines.of(record), baselines.today(record)
        if like is None or today is None:
            continue
        same = _key(like) == _key(record) and like.subject.kernel == record.subject.kernel
        found.append(Pair(record, today, _faster(like, fastest[_key(like)]) if same else None))
    return found


def _key(record: Record) -> object:
    return group_of(record), *(getattr(record.subject, fact) for fact in _SAME)


def _faster(one: Record, other: Record) -> Record:
    """By the median at the deepest depth that both have; ``one`` where they do not differ."""
    timings = deepest(one, other)
    return other if timings and timings[1].median < timings[0].median else one


def speed(record: Record, base: Record) -> Ratio | None:
    """How many times as fast as ``base`` at the deepest depth of both; None where that was not measured often enough."""
    timings = deepest(record, base)
    return speed_ratio(timings[1], timings[0], record.rounds_done) if timings else None


def percent(share: float, digits: int = 0) -> str:
    """A share of something as what it changes: 0.51 is "−49 %"."""
    text = f"{100 * (share - 1):+.{digits}f} %".replace("-", "\N{MINUS SIGN}")
    return text if any(digit in text for digit in "123456789") else f"±{text[1:]}"


def memory_share(record: Record, base: Record) -> float | None:
    """Peak memory over that of ``base``."""
    ours, theirs = record.memory.peak, base.memory.peak
    return ours / theirs if ours and theirs else None
