"""What records are called, the same in every plot and sentence of a report."""

from collections.abc import Sequence

from edgeqkv.bench.record import Record
from edgeqkv.bench.words import runtime_title

LONGEST = 60


def facts(record: Record) -> dict[str, str]:
    """What can differ between two records besides the sharing, in words."""
    s = record.subject
    return {
        "weights": f"{s.weights} weights",
        "cache": f"{s.cache} cache",
        "kernel": f"{s.kernel} kernel",
        "runtime": runtime_title(s.runtime),
        "threads": f"{record.plan.threads} threads",
    }


class Names:
    """A short name for each record: its variant, and those facts in which the records differ. Records of different devices that
    measured the same thing have the same name, and so the same colour and marker: ``index`` counts the names."""

    def __init__(self, records: Sequence[Record]) -> None:
        every = [facts(record) for record in records]
        self._differing = [fact for fact in every[0] if len({one[fact] for one in every}) > 1] if every else []
        self._index: dict[str, int] = {}
        for record in records:
            self._index.setdefault(self.of(record), len(self._index))

    def of(self, record: Record) -> str:
        known = facts(record)
        text = ", ".join([record.subject.variant, *(known[fact] for fact in self._differing)])
        return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"

    def index(self, record: Record) -> int:
        return self._index[self.of(record)]

    def common(self, record: Record) -> str:
        """The facts that all records share."""
        return ", ".join(text for fact, text in facts(record).items() if fact not in self._differing)
