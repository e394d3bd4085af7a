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

from edgeqkv.bench.timing import Timing

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

    @property
    def half_width(self) -> float:
        """0.03: the interval reaches from 3 % below its middle to 3 % above."""
        return math.exp(min(_LARGEST, math.log(self.high / self.low) / 2)) - 1


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
