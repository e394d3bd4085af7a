"""Which records of one run are compared: each with the baselines of its geometry and capacity."""

from collections.abc import Sequence
from itertools import combinations

from edgeqkv.bench.record import Record
from edgeqkv.bench.timing import Timing
from edgeqkv.config import baseline

FACTS = ("runtime", "kernel", "weights", "cache")
# Every set of facts that two records may have in common, the largest first.
_CHOICES = [chosen for count in range(len(FACTS), -1, -1) for chosen in combinations(FACTS, count)]
_TODAY: list[tuple[str, ...]] = [("runtime", "weights"), ("runtime",), ()]


class Baselines:
    """The baselines of one run, to ask for those of each record: of its geometry and capacity.

    They are kept by every choice of the facts that may agree, so that asking does not look at all of them.
    """

    def __init__(self, run: Sequence[Record]) -> None:
        self._groups: dict[object, dict[tuple[str, ...], Record]] = {}
        self._today: dict[object, dict[tuple[str, ...], Record]] = {}
        for record in run:
            if is_baseline(record):
                group = self._groups.setdefault(group_of(record), {})
                for facts in _CHOICES:
                    group.setdefault(_key(record, facts), record)
        for record in sorted(filter(is_baseline, run), key=_unlike_today):
            group = self._today.setdefault(group_of(record), {})
            for facts in _TODAY:
                group.setdefault(_key(record, facts), record)

    def today(self, record: Record) -> Record | None:
        """What a team has today: the runtime's own attention with a cache of floats, on the same runtime with the same weights
        where the run has that. None where the run has no baseline; that baseline itself is its own."""
        group = self._today.get(group_of(record), {})
        return next((found for facts in _TODAY if (found := group.get(_key(record, facts)))), None)

    def of(self, record: Record) -> Record | None:
        """The baseline that is most like ``record``. None for a baseline itself, and where the run has none."""
        if is_baseline(record):
            return None
        group = self._groups.get(group_of(record), {})
        return next((found for facts in _CHOICES if (found := group.get(_key(record, facts)))), None)


def is_baseline(record: Record) -> bool:
    """Whether it is the standard model, which has no baseline itself."""
    return record.subject.model == baseline(record.subject.model)


def _unlike_today(record: Record) -> tuple[bool, int]:
    """Sorts what a team has today first."""
    caches = ("fp32", "fp16")
    cache = record.subject.cache
    return record.subject.kernel != "stock", caches.index(cache) if cache in caches else len(caches)


def pairs(run: Sequence[Record]) -> list[tuple[Record, Record]]:
    """Each record of a run with the baselines that it is compared with: what a team has today, and the one most like it."""
    baselines = Baselines(run)
    found = []
    for record in run:
        both = [base for base in (baselines.today(record), baselines.of(record)) if base is not None and base is not record]
        found += [(record, base) for base in both[: 1 if len(both) == 2 and both[0] is both[1] else 2]]
    return found


def group_of(record: Record) -> object:
    """What a record and its baselines have in common: the geometry, and the capacity."""
    return baseline(record.subject.model), record.subject.capacity


def _key(record: Record, facts: tuple[str, ...]) -> tuple[str, ...]:
    return (*facts, *(getattr(record.subject, fact) for fact in facts))


def deepest(record: Record, base: Record) -> tuple[Timing, Timing] | None:
    """Decoding of both at the deepest depth that both have; None where there is none."""
    theirs = {timing.depth: timing for timing in base.timings.decode}
    common = [timing for timing in record.timings.decode if timing.depth in theirs]
    ours = max(common, key=lambda timing: timing.depth, default=None)
    return None if ours is None else (ours, theirs[ours.depth])
