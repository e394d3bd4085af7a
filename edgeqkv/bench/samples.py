"""What a worker has said of one cell, round after round, before it is a record."""

from dataclasses import dataclass, field

from edgeqkv.bench.memory import Memory
from edgeqkv.bench.record import Record, Timings
from edgeqkv.bench.timing import Timing, timing


@dataclass
class Samples:
    """Seconds by what was timed, bytes by phase."""

    loads: list[float] = field(default_factory=list)
    first_tokens: list[float] = field(default_factory=list)
    prefills: dict[tuple[int, int], list[float]] = field(default_factory=dict)  # by depth and tokens
    steps: dict[int, list[float]] = field(default_factory=dict)  # by depth
    waited: dict[int, list[float | None]] = field(default_factory=dict)  # by depth, one for each round
    memory: dict[str, Memory] = field(default_factory=dict)

    def timings(self, prompt: int, rounds_a_start: int | None) -> Timings:
        first_token = timing(0, prompt, tuple(self.first_tokens))
        prefills = tuple(timing(*cell, tuple(seconds)) for cell, seconds in self.prefills.items())
        steps = tuple(
            timing(depth, 1, tuple(seconds), self._waited(depth), rounds_a_start or 1) for depth, seconds in self.steps.items()
        )
        return Timings(tuple(self.loads), first_token, prefills, steps)

    def _waited(self, depth: int) -> tuple[float, ...]:
        known = [share for share in self.waited.get(depth, []) if share is not None]
        return tuple(known) if len(known) == len(self.waited.get(depth, [])) else ()


def samples_of(record: Record) -> Samples:
    """Those that a record holds, to go on from."""

    def seconds(one: Timing | None) -> list[float]:
        return list(one.seconds) if one else []

    t = record.timings
    return Samples(
        loads=list(t.load_s),
        first_tokens=seconds(t.first_token),
        prefills={(one.depth, one.tokens): seconds(one) for one in t.prefill},
        steps={one.depth: seconds(one) for one in t.decode},
        waited={one.depth: list(one.waited or [None] * record.rounds_done) for one in t.decode},
        memory=dict(record.memory.phases),
    )
