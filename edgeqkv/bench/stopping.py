"""When a run has measured enough: after a number of rounds, when every ratio is precise, or when its time is up."""

import math
import time
from collections.abc import Callable, Sequence

from edgeqkv.bench.compared import pairs
from edgeqkv.bench.plan import Plan
from edgeqkv.bench.ratio import speed_ratio
from edgeqkv.bench.record import Ended, Record


def widest_interval(run: Sequence[Record]) -> float | None:
    """Half the width of the widest interval of a ratio of decoding speed, 0.03 for 3 %: of each record to each of its
    baselines, at each depth. Infinite where a ratio is not known at all; None where the run compares nothing."""
    widths = []
    for record, base in pairs(run):
        theirs = {timing.depth: timing for timing in base.timings.decode}
        for ours in record.timings.decode:
            ratio = speed_ratio(theirs[ours.depth], ours, record.rounds_done) if ours.depth in theirs else None
            widths.append(ratio.half_width if ratio else math.inf)
    return max(widths, default=None)


class Stopping:
    """Asked after each round of a run that begins now. ``clock`` says seconds."""

    def __init__(self, plan: Plan, clock: Callable[[], float] = time.monotonic) -> None:
        self.plan, self._clock, self._start = plan, clock, clock()
        self.widest: float | None = math.inf
        self._rounds = 0
        self._ends_at = plan.time_s or math.inf  # seconds after the start, by what is known so far

    def why(self, rounds_done: int, run: Sequence[Record]) -> Ended | None:
        """Why there are no more rounds after so many, of which ``run`` holds the records; None: go on.

        A run that compares nothing has no precision to wait for.
        """
        plan, passed = self.plan, self._clock() - self._start
        self._rounds += 1
        if plan.precision is None:
            return "rounds" if rounds_done >= plan.rounds else None
        self.widest = widest_interval(run)
        if self.widest is None:
            return "rounds" if rounds_done >= plan.rounds else None
        if rounds_done >= plan.rounds and self.widest <= plan.precision:
            return "precision"
        if plan.time_s is not None and passed >= plan.time_s and rounds_done > 1:  # one round compares nothing
            return "time"
        if math.isfinite(self.widest):  # it gets narrower with the root of the rounds
            more = rounds_done * ((self.widest / plan.precision) ** 2 - 1)
            self._ends_at = min(plan.time_s or math.inf, passed + max(1.0, more) * passed / self._rounds)
        return None

    def state(self) -> str:
        """For who waits: how precise it is, and how precise it shall be."""
        if self.plan.precision is None or self.widest is None:
            return ""
        known = f"±{self.widest:.1%}" if self.widest < 1 else "not known yet"
        return f"the widest interval is {known}, wanted is ±{self.plan.precision:.1%}"

    def progress(self) -> tuple[int, int] | None:
        """Seconds that have passed, and those that it will take in all by what is known so far; None where rounds say that."""
        if self.plan.precision is None or self.widest is None or math.isinf(self._ends_at):
            return None
        passed = self._clock() - self._start
        return round(passed), max(round(passed) + 1, round(self._ends_at))
