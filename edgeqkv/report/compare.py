"""Is one variant faster than another? By round, because the samples of one round are not independent.

A round visits every variant once; what slows the machine for a moment slows a whole visit, so that forty samples of five rounds
are five observations, not forty. A rank test over all of them would call two identical bundles different. Each round gives one
ratio of medians instead, the two measured within seconds of each other, and Student's t over the logarithms of these ratios
gives an interval. Of a difference we ask that the whole 99 % interval lies beyond 3 %: two processes of the same program differ
by some percent for as long as they live, by where their memory lies.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from edgeqkv.bench.record import Record
from edgeqkv.bench.timing import Timing
from edgeqkv.config import baseline

SMALLEST = 0.03
_LARGEST = 700.0  # of a logarithm: beyond it there is no such number
# Two-sided 99 % points of Student's t by degrees of freedom; in between, the one before, which is larger.
_T99 = {1: 63.657, 2: 9.925, 3: 5.841, 4: 4.604, 5: 4.032, 6: 3.707, 7: 3.499, 8: 3.355, 9: 3.250, 10: 3.169}
_T99 |= {12: 3.055, 14: 2.977, 16: 2.921, 18: 2.878, 20: 2.845, 25: 2.787, 30: 2.750, 40: 2.704, 60: 2.660, 120: 2.617}


@dataclass(frozen=True)
class Ratio:
    """Time of the baseline over time of the variant, above 1 when the variant is faster, with its 99 % interval."""

    value: float
    low: float
    high: float

    @property
    def differs(self) -> bool:
        return self.low > 1 + SMALLEST or self.high < 1 / (1 + SMALLEST)


def speed_ratio(base: Timing, variant: Timing, rounds: int) -> Ratio | None:
    """None with fewer than two rounds, which say nothing about spread."""
    if rounds < 2 or len(base.seconds) % rounds or len(variant.seconds) % rounds:
        return None
    pairs = zip(_round_medians(base.seconds, rounds), _round_medians(variant.seconds, rounds), strict=True)
    logs = [math.log(ours / theirs) for ours, theirs in pairs]
    middle = statistics.fmean(logs)
    freedom = max(f for f in _T99 if f <= rounds - 1)
    half = _T99[freedom] * statistics.stdev(logs) / math.sqrt(rounds)
    value, low, high = (math.exp(max(-_LARGEST, min(x, _LARGEST))) for x in (middle, middle - half, middle + half))
    return Ratio(value, low, high)


def _round_medians(seconds: Sequence[float], rounds: int) -> list[float]:
    size = len(seconds) // rounds
    return [statistics.median(seconds[i : i + size]) for i in range(0, len(seconds), size)]


FACTS = ("runtime", "kernel", "weights", "cache")
# Every set of facts that two records may have in common, the largest first.
_CHOICES = [chosen for count in range(len(FACTS), -1, -1) for chosen in combinations(FACTS, count)]


class Baselines:
    """The baselines of one run, to ask for that of each record: the one of its geometry and capacity that is most like it.

    They are kept by every choice of the facts that may agree, so that asking does not look at all of them.
    """

    def __init__(self, run: Sequence[Record]) -> None:
        self._groups: dict[object, dict[tuple[str, ...], Record]] = {}
        for record in run:
            if is_baseline(record):
                group = self._groups.setdefault(_group(record), {})
                for facts in _CHOICES:
                    group.setdefault(_key(record, facts), record)

    def of(self, record: Record) -> Record | None:
        """None for a baseline itself, and where the run has none."""
        if is_baseline(record):
            return None
        group = self._groups.get(_group(record), {})
        return next((found for facts in _CHOICES if (found := group.get(_key(record, facts)))), None)


def is_baseline(record: Record) -> bool:
    """Whether it is the standard model, which has no baseline itself."""
    return record.subject.model == baseline(record.subject.model)


def _group(record: Record) -> object:
    return baseline(record.subject.model), record.subject.capacity


def _key(record: Record, facts: tuple[str, ...]) -> tuple[str, ...]:
    return (*facts, *(getattr(record.subject, fact) for fact in facts))


def deepest(record: Record, base: Record) -> tuple[Timing, Timing] | None:
    """Decoding of both at the deepest depth that both have; None where there is none."""
    theirs = {timing.depth: timing for timing in base.timings.decode}
    common = [timing for timing in record.timings.decode if timing.depth in theirs]
    ours = max(common, key=lambda timing: timing.depth, default=None)
    return None if ours is None else (ours, theirs[ours.depth])
