"""Is one variant faster than another? By rounds and starts, because the samples of one round are not independent.

A round visits every variant once; what slows the machine for a moment slows a whole visit, so that forty samples of five rounds
are five observations, not forty. A rank test over all of them would call two identical bundles different. Each round gives one
ratio of medians instead, the two measured within seconds of each other, and what counts is the logarithms of these ratios:

- A round in which one of the two had to wait for a processor does not count: beside other programs the scheduler is not even.
- The rounds of two starts of all processes make one observation, their mean. Two processes of the same program differ for as
  long as they live, by where their memory lies: by some percent, and by up to a fifth where free memory is in small pieces,
  which the one that is started first gets. In the second of the two starts that is the other one.
- The trimmed mean of the observations, without the tenth at either end, is the ratio's: what a virtual machine's neighbour or
  an interrupt does moves it little. Its error is that of Tukey and McLaughlin (1963), from the Winsorised deviation.
- The interval holds the truth with 99 % after **every** round at once, because a run looks after each of them whether it may
  end: an interval that is right for one look is wrong too often for a hundred. It is the t-test's confidence sequence, the
  ratios at which a Bayes factor of the t statistic stays below 100 (Lai 1976; Wang and Ramdas, arXiv 2310.03722), from 20
  observations on 1.5 times as wide as Student's interval for a single look.
- Of a difference we ask that the whole interval lies beyond 3 %, because smaller ones matter to nobody.

``experiments/bench_noise.py`` tries this on recorded noise.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from edgeqkv.bench.timing import Timing

SMALLEST = 0.03
ALPHA = 0.01
TRIMMED = 0.1  # at either end, as far as that leaves FEWEST
FEWEST = 5  # observations that can say anything, see largest_t
MOST_WAITED = 0.1  # of a visit, a thread's on average, of a round that counts
# Of the effects that the Bayes factor weighs, in deviations of one round, squared. Smaller ones give narrower intervals after
# many rounds (1.4 times Student's for 0.5) and none after five.
EFFECT_VARIANCE = 4.0
_LARGEST = 700.0  # of a logarithm: beyond it there is no such number


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
        return math.expm1(min(_LARGEST, math.log(self.high / self.low) / 2))


def speed_ratio(base: Timing, variant: Timing, rounds: int) -> Ratio | None:
    """None where there are fewer than five observations, which say nothing about spread."""
    if rounds < 1 or len(base.seconds) % rounds or len(variant.seconds) % rounds:
        return None
    visits = zip(round_medians(base.seconds, rounds), round_medians(variant.seconds, rounds), strict=True)
    waited = zip(_waited(base, rounds), _waited(variant, rounds), strict=True)
    logs = [
        math.log(ours / theirs) if max(shares) <= MOST_WAITED else None
        for (ours, theirs), shares in zip(visits, waited, strict=True)
    ]
    found = interval(observations(logs, max(base.rounds_a_start, variant.rounds_a_start)))
    if found is None:
        return None
    middle, half = found
    value, low, high = (math.exp(max(-_LARGEST, min(x, _LARGEST))) for x in (middle, middle - half, middle + half))
    return Ratio(value, low, high)


def observations(logs: Sequence[float | None], rounds_a_start: int) -> list[float]:
    """The means of as many rounds as two starts have, without those that do not count (None); fewer at the end are left out.
    Where each round has its own start, or none has, each is an observation."""
    size = 2 * rounds_a_start if rounds_a_start > 1 else 1
    found = []
    for i in range(0, len(logs) - size + 1, size):
        counted = [x for x in logs[i : i + size] if x is not None]
        found += [statistics.fmean(counted)] if counted else []
    return found


def disturbed(timing: Timing) -> int:
    """Rounds in which it had to wait for a processor."""
    return sum(share > MOST_WAITED for share in timing.waited)


def _waited(timing: Timing, rounds: int) -> tuple[float, ...]:
    """Zeros where it is not known."""
    return timing.waited if len(timing.waited) == rounds else (0.0,) * rounds


def interval(logs: Sequence[float]) -> tuple[float, float] | None:
    """The trimmed mean of the observations' logarithms, and half the width of its interval."""
    cut = max(0, min(int(TRIMMED * len(logs)), (len(logs) - FEWEST) // 2))
    ranked = sorted(logs)
    kept = ranked[cut : len(ranked) - cut]
    largest = largest_t(len(kept))
    if math.isinf(largest):
        return None
    winsorised = [kept[0]] * cut + kept + [kept[-1]] * cut
    middle = statistics.fmean(winsorised)
    squares = math.fsum((x - middle) ** 2 for x in winsorised)
    return statistics.fmean(kept), largest * math.sqrt(squares / (len(kept) * (len(kept) - 1)))


def largest_t(count: int) -> float:
    """The t statistic of ``count`` observations at which the Bayes factor against "no difference" reaches 1 / ALPHA.

    With effects ~ N(0, v) in deviations and the right Haar prior of the deviation, the factor is
    sqrt(r) ((1 + x) / (1 + r x)) ^ (count / 2), where x = t² / (count - 1) and r = 1 / (1 + count v). Infinite where no t
    reaches it.
    """
    if count < 2:
        return math.inf
    r = 1 / (1 + count * EFFECT_VARIANCE)
    reached = (1 / (ALPHA * math.sqrt(r))) ** (2 / count)
    return math.sqrt((count - 1) * (reached - 1) / (1 - r * reached)) if r * reached < 1 else math.inf


def round_medians(seconds: Sequence[float], rounds: int) -> list[float]:
    """Of as many samples for each round, in their order."""
    size = len(seconds) // rounds
    return [statistics.median(seconds[i : i + size]) for i in range(0, len(seconds), size)]
