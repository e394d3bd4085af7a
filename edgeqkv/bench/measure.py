"""One interleaved run: every cell in its own process, all of them in turn, round after round.

Machines drift, so two cells are compared only within one round-robin: each round visits every cell before it repeats. Processes
of the same program differ, too, by where their memory lies, so that all are started anew every few rounds. Between two starts
all bundles stay loaded where the device has the memory; else each is loaded again for each of its visits. :mod:`stopping` says
after which round the run ends.
"""

import sys
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial

from msgspec.structs import replace

from edgeqkv.bench.bandwidth import BandwidthMeter
from edgeqkv.bench.energy import read_energy
from edgeqkv.bench.matrix import Cell
from edgeqkv.bench.plan import Plan
from edgeqkv.bench.probe import read_vitals
from edgeqkv.bench.record import SCHEMA, Failure, Interleaving, Record
from edgeqkv.bench.running import Bench, RunningCell, cell_id, now
from edgeqkv.bench.stopping import Stopping
from edgeqkv.bench.sustain import energy_of, sustained
from edgeqkv.errors import EdgeQKVError
from edgeqkv.progress import Update

Work = tuple[RunningCell, str, Callable[[], None]]
PROCESS_BYTES = 64 * 2**20  # of a worker, besides weights and cache
RESIDENT_SHARE = 0.7  # of the available memory that all bundles may take together


@dataclass(frozen=True)
class Outcome:
    """``errors`` are what was raised behind those of ``failures`` that left nothing to report."""

    records: list[Record] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    errors: list[EdgeQKVError] = field(default_factory=list)

    def fail(self, run: str, device: str, bundle: str | None, error: EdgeQKVError) -> None:
        self.errors.append(error)
        self.failures.append(Failure(SCHEMA, run, now(), device, bundle, str(error)))


def measure(bench: Bench, cells: Sequence[Cell], plan: Plan, earlier: Sequence[Record], progress: Update) -> Outcome:
    """One interleaved run of all ``cells``: a record for each, and a failure for each that could not end.

    ``earlier`` are records of the same run and fewer rounds, to go on from. Only whole rounds are kept, so that every record of
    a run has seen the same ones.
    """
    run = InterleavedRun(bench, cells, plan, earlier, progress)
    try:
        if run.all_rounds():
            run.after_rounds()
    finally:
        run.meter.close()
        for running in run.started:
            running.unload()
    return run.outcome()


class InterleavedRun:
    def __init__(self, bench: Bench, cells: Sequence[Cell], plan: Plan, earlier: Sequence[Record], progress: Update) -> None:
        self.bench, self.plan, self.progress = bench, plan, progress
        self.id = earlier[0].run if earlier else f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{uuid.uuid4().hex[:6]}"
        before = {record.cell: record for record in earlier}
        self.started = [RunningCell(bench, cell, plan, before.get(cell_id(bench, cell, plan))) for cell in cells]
        self.running = list(self.started)  # those that have not failed
        self.vitals = list(earlier[0].vitals) if earlier else [read_vitals(bench.device)]
        self.interleaving: Interleaving = "resident" if fits(bench, self.running) else "reloaded"
        self.meter = BandwidthMeter(bench, plan.threads, earlier[0].bandwidth if earlier else None)
        self.stopping = Stopping(plan)
        self._ended = earlier[0].ended if earlier else None
        self._kept = before
        self._problems = Outcome()
        self._done = 0

    def outcome(self) -> Outcome:
        return Outcome(list(self._kept.values()), self._problems.failures, self._problems.errors)

    def all_rounds(self) -> bool:
        """False when there was no end to them: the run was stopped, or nothing is left of it."""
        done = self.running[0].rounds_done
        while self._ended is None:
            starts, since = divmod(done, self.plan.rounds_a_start or sys.maxsize)
            if since == 0:
                self._unload()
            for batch in self._batches(backwards=(starts + since) % 2 == 1):
                self._visit(batch)
            done += 1
            if not self.running or self.bench.stop.event.is_set() or not self._end_round(done):
                return False
            self._ended = self.stopping.why(done, [self._kept[running.id] for running in self.running])
            if not self.bench.timed:
                self._ended = "rounds"
            if self._ended is None:
                self.bench.stop.event.wait(self.plan.cool_down_s)
        for running in self.running:
            self._keep(running, ended=self._ended)
        return True

    def after_rounds(self) -> None:
        """What is measured of each cell by itself, where there is any of it."""
        if not self.bench.timed:
            return
        try:
            energy = read_energy(self.bench.device).source is not None
        except EdgeQKVError as error:
            self._problems.fail(self.id, self.bench.device.name, None, error)
            return
        for batch in self._batches(backwards=False) if energy or self.plan.sustain_s else ():
            for running in batch:
                self._attempt(running, "loading", running.load)
                if energy:
                    self._attempt(running, "energy", partial(self._take_energy, running))
                if self.plan.sustain_s:
                    self.bench.stop.event.wait(self.plan.cool_down_s)
                    self._attempt(running, "sustained", partial(self._sustain, running, self.plan.sustain_s))
            if self.interleaving == "reloaded":
                batch[0].unload()
        self.progress("done", 1, 1)

    def _batches(self, backwards: bool) -> list[list[RunningCell]]:
        """Cells that are loaded at the same time. Every second round goes ``backwards``, and so does every second start, so
        that none is always the first: the process that is started first gets the memory that is left in small pieces."""
        order = self.running[::-1] if backwards else list(self.running)
        return [order] if self.interleaving == "resident" else [[one] for one in order]

    def _visit(self, batch: Sequence[RunningCell]) -> None:
        """All that there is to do in one round for cells that are loaded together."""
        for running, what, work in self._work(batch):
            self._attempt(running, what, work)
        if self.interleaving == "reloaded":
            batch[0].unload()

    def _work(self, batch: Sequence[RunningCell]) -> Iterator[Work]:
        for running in batch:
            yield running, "loading", running.load
            if self.bench.timed:
                yield running, "first token", running.first_token
        if self.bench.timed:
            for depth in self.plan.depths:
                for running in batch:
                    yield running, f"at depth {depth}", partial(running.at_depth, depth)
        for running in batch:
            yield running, "end of round", running.end_round

    def _attempt(self, running: RunningCell, what: str, work: Callable[[], None]) -> None:
        """A cell that fails leaves the run; when the run is being stopped, that is why."""
        if running not in self.running or self.bench.stop.event.is_set():
            return
        each = 3 + len(self.plan.depths) if self.bench.timed else 2
        self._done += 1
        done, total = self.stopping.progress() or (self._done, len(self.running) * self.plan.rounds * each)
        self.progress("; ".join(filter(None, (f"{running.label}: {what}", self.stopping.state()))), done, max(done, total))
        try:
            work()
        except EdgeQKVError as error:
            self.running.remove(running)
            if not self.bench.stop.event.is_set():
                self._problems.fail(self.id, self.bench.device.name, running.cell.bundle.folder.name, error)

    def _end_round(self, rounds_done: int) -> bool:
        """Keep what has been measured; False when the device does not answer any more."""
        try:
            self.vitals.append(read_vitals(self.bench.device))
        except EdgeQKVError as error:
            self._problems.fail(self.id, self.bench.device.name, None, error)
            return False
        self.meter.sample()
        complete = rounds_done if self.bench.timed else self.plan.rounds
        for running in self.running:
            record = running.record(self.id, tuple(self.vitals), complete, self.interleaving)
            self._kept[running.id] = replace(record, bandwidth=self.meter.found)
        return True

    def _unload(self) -> None:
        for running in self.running:
            running.unload()

    def _keep(self, running: RunningCell, **found: object) -> None:
        self._kept[running.id] = replace(self._kept[running.id], **found)

    def _take_energy(self, running: RunningCell) -> None:
        self._keep(running, energy=energy_of(running, self.plan.depths))

    def _sustain(self, running: RunningCell, seconds: float) -> None:
        def progress(passed: float) -> None:
            self.progress(f"{running.label}: decoding for {seconds:,.0f} s", round(passed), round(seconds))

        self._keep(running, sustained=sustained(running, self.plan.depths[-1], seconds, progress))


def fits(bench: Bench, cells: Sequence[RunningCell]) -> bool:
    """Whether all bundles may stay loaded at once: weights may be copied by a runtime, and a process takes some itself."""
    need = sum(2 * running.weights_bytes + running.artifact.cache.bytes + PROCESS_BYTES for running in cells)
    available = bench.environment.memory_available_bytes
    return available is None or need < RESIDENT_SHARE * available
