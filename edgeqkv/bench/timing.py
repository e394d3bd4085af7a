"""Samples of time, and what is worked out from them."""

import statistics
from typing import Annotated

from msgspec import Meta

from edgeqkv.strict import Strict

# A clock that says less or more has not measured anything.
Seconds = Annotated[float, Meta(ge=1e-12, le=1e9)]
Rate = Annotated[float, Meta(gt=0, le=1e30)]
Share = Annotated[float, Meta(ge=0, le=1e9)]
Samples = Annotated[tuple[Seconds, ...], Meta(min_length=1)]


class Timing(Strict, frozen=True):
    """Raw samples. ``tokens`` is what one sample covers, ``depth`` the filled positions when it began.

    The samples are in the order of the rounds, as many for each round. Quantiles are nearest-rank, so that each occurred.
    ``waited`` is one number for each round: the share of that visit in which a thread of the program, on average, could have
    run and had no processor. It is empty where that is not known. After every ``rounds_a_start`` rounds the program was started
    anew.
    """

    depth: Annotated[int, Meta(ge=0, le=2**31)]
    tokens: Annotated[int, Meta(ge=1, le=2**31)]
    seconds: Samples
    p50_s: Seconds
    p90_s: Seconds
    p99_s: Seconds
    tokens_per_s: Rate
    waited: tuple[Share, ...] = ()
    rounds_a_start: Annotated[int, Meta(ge=1, le=2**31)] = 1

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def end(self) -> int:
        """Filled positions when a sample ended."""
        return self.depth + self.tokens


def timing(
    depth: int, tokens: int, seconds: tuple[float, ...], waited: tuple[float, ...] = (), rounds_a_start: int = 1
) -> Timing:
    """A :class:`Timing` with its quantiles; ``tokens_per_s`` is by the median."""
    p50, p90, p99 = (quantile(seconds, percent) for percent in (50, 90, 99))
    return Timing(depth, tokens, seconds, p50, p90, p99, tokens / statistics.median(seconds), waited, rounds_a_start)


def quantile(samples: tuple[float, ...], percent: int) -> float:
    ranked = sorted(samples)
    return ranked[max(0, -(-percent * len(ranked) // 100) - 1)]
