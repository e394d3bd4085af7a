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

from edgeqkv.bench.record import Record, Timing

SMALLEST = 0.03
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


def speed_ratio(baseline: Timing, variant: Timing, rounds: int) -> Ratio | None:
    """None with fewer than two rounds, which say nothing about spread."""
    if rounds < 2 or len(baseline.seconds) % rounds or len(variant.seconds) % rounds:
        return None
    pairs = zip(_round_medians(baseline.seconds, rounds), _round_medians(variant.seconds, rounds), strict=True)
    logs = [math.log(ours / theirs) for ours, theirs in pairs]
    middle = statistics.fmean(logs)
    freedom = max(f for f in _T99 if f <= rounds - 1)
    half = _T99[freedom] * statistics.stdev(logs) / math.sqrt(rounds)
    return Ratio(math.exp(middle), math.exp(middle - half), math.exp(middle + half))


def _round_medians(seconds: Sequence[float], rounds: int) -> list[float]:
    size = len(seconds) // rounds
    return [statistics.median(seconds[i : i + size]) for i in range(0, len(seconds), size)]


def baseline_of(record: Record, run: Sequence[Record]) -> Record | None:
    """The QKV record of the same run, geometry and capacity, the one most like it in weights, cache, runtime and kernel."""
    if record.variant == "QKV":
        return None

    def alike(other: Record) -> int:
        names = ("weights", "cache", "runtime", "kernel")
        return sum(getattr(other, name) == getattr(record, name) for name in names)

    fitting = [
        other
        for other in run
        if other.variant == "QKV"
        and other.capacity == record.capacity
        and (other.model.n_layer, other.model.d_model, other.model.n_head, other.model.d_mlp, other.model.vocab_size)
        == (record.model.n_layer, record.model.d_model, record.model.n_head, record.model.d_mlp, record.model.vocab_size)
    ]
    return max(fitting, key=alike) if fitting else None


def peak(record: Record) -> int | None:
    """Peak RSS over the whole run, bytes."""
    split = record.memory_split
    return None if split is None else split.weights + split.cache + split.rest
