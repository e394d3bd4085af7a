"""One cell while it is measured: its worker, what that has said, and the record that comes of it."""

import functools
import hashlib
import math
import threading
import warnings
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import edgeqkv
from edgeqkv.bench.device import Device
from edgeqkv.bench.machine import Environment, Vitals, has_throttled
from edgeqkv.bench.matrix import Cell
from edgeqkv.bench.memory import Memory
from edgeqkv.bench.plan import Plan
from edgeqkv.bench.program import Program
from edgeqkv.bench.protocol import Done, Elapsed, Ids, Loaded, Steps
from edgeqkv.bench.record import SCHEMA, AppEntry, Interleaving, MemoryUse, ProgramEntry, Record, Subject, Timings, split_memory
from edgeqkv.bench.samples import Samples, samples_of
from edgeqkv.bench.source import git_commit
from edgeqkv.bench.traffic import weights_bytes_a_token
from edgeqkv.bench.worker_process import MeasuredProcess
from edgeqkv.files import file_sha256
from edgeqkv.manifest import MANIFEST

GREEDY_PROMPT, GREEDY_TOKENS = (1, 2, 3), 16
PROMPT_ROUNDS = 5  # in which prompts are timed: they take most of a round, and no ratio's interval waits for them
MOST_STEPS = 2000  # of a visit, however fast they are


@dataclass
class Stop:
    """Set from outside to end a run: the processes that are being waited for are killed."""

    event: threading.Event = field(default_factory=threading.Event)
    workers: list[MeasuredProcess] = field(default_factory=list)

    def now(self) -> None:
        self.event.set()
        for worker in list(self.workers):
            worker.kill()


@dataclass(frozen=True)
class Bench:
    """A device that is ready: its program is there, and ``places`` says where each bundle's folder lies there."""

    device: Device
    environment: Environment
    program: Program
    places: dict[Path, str]
    stop: Stop

    @property
    def timed(self) -> bool:
        return not self.environment.emulated


def cell_id(bench: Bench, cell: Cell, plan: Plan) -> str:
    """The same for the same question: what resuming goes by. More rounds are more of the same."""
    manifest = file_sha256(cell.bundle.folder / MANIFEST)
    parts = (bench.device.name, bench.program.name, cell.number, manifest, cell.runtime, cell.kernel)
    sizes = (plan.depths, plan.threads, plan.prompt, plan.warm_up_steps, plan.steps, plan.visit_s, plan.filled)
    return hashlib.sha256(repr((parts, sizes)).encode()).hexdigest()[:16]


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


class RunningCell:
    def __init__(self, bench: Bench, cell: Cell, plan: Plan, earlier: Record | None) -> None:
        self.bench, self.cell, self.plan = bench, cell, plan
        self.id = cell_id(bench, cell, plan)
        self.artifact = cell.artifacts[0]
        self.samples = samples_of(earlier) if earlier else Samples()
        self.rounds_done = earlier.rounds_done if earlier else 0
        self._series = {depth: len(s) // (self.rounds_done * plan.steps) for depth, s in self.samples.steps.items()}
        self._worker: MeasuredProcess | None = None
        self._app: AppEntry | None = None
        self._loaded: Loaded | None = None
        self._ids: tuple[int, ...] = ()
        self._filled: set[int] = set()

    @property
    def label(self) -> str:
        variant = self.cell.bundle.manifest.model.variant
        return f"{variant} ({self.artifact.cache.dtype} cache, {self.artifact.name})"

    @property
    def weights_bytes(self) -> int:
        return sum((self.cell.bundle.folder / name).stat().st_size for name in self.artifact.files)

    @property
    def worker(self) -> MeasuredProcess:
        assert self._worker is not None
        return self._worker

    # -- what is measured ---------------------------------------------------------------------------------------------

    def load(self) -> None:
        """Start the worker and let it open the bundle, unless it holds it already."""
        if self._worker is not None:
            return
        device, folder = self.bench.device, self.cell.bundle.folder
        self._worker = self.bench.program.start(device, f"{folder} on {device.name}", self.label)
        self.bench.stop.workers.append(self._worker)
        self._filled.clear()
        self._loaded = self._worker.ask(
            Loaded,
            "load",
            bundle=self.bench.places[folder],
            runtime=self.artifact.runtime,
            kernel=self.cell.kernel,
            threads=self.plan.threads,
        )
        self._take_kernel(self._loaded.kernel)
        self.samples.loads.append(self._loaded.load_s)
        self.samples.memory.setdefault("start", self._loaded.start)
        self._note_memory("loaded")
        if not self._ids:
            room = min(GREEDY_TOKENS, self.cell.bundle.manifest.capacity - len(GREEDY_PROMPT))
            self._ids = self._worker.ask(Ids, "greedy", ids=GREEDY_PROMPT, tokens=room).ids

    def first_token(self) -> None:
        if len(self.samples.first_tokens) == PROMPT_ROUNDS:
            return
        self.samples.first_tokens.append(self.worker.ask(Elapsed, "first_token", tokens=self.plan.prompt).seconds)
        self._note_memory("prefilled")

    def at_depth(self, depth: int) -> None:
        self.fill(depth)
        tokens = min(self.plan.prompt, depth)
        prefills = self.samples.prefills.setdefault((depth - tokens, tokens), [])
        if len(prefills) < PROMPT_ROUNDS:
            prefills.append(self.worker.ask(Elapsed, "prefill", depth=depth - tokens, tokens=tokens).seconds)
        if depth not in self._series:  # the same in all rounds, so that each has as many samples
            series = self.series_for(depth, self.plan.visit_s) if self.plan.visit_s else 1
            self._series[depth] = max(1, min(series, MOST_STEPS // self.plan.steps))
        found = self.decode(depth, self._series[depth])
        self.samples.steps.setdefault(depth, []).extend(found.seconds)
        # More threads than cores wait for each other.
        alone = self.plan.threads <= (self.bench.environment.cores or self.plan.threads)
        waited = found.waited / self.plan.threads if alone and found.waited is not None else None
        self.samples.waited.setdefault(depth, []).append(waited)

    def fill(self, depth: int) -> None:
        """As the plan says, the first time; when the bundle has been loaded again, quickly: the clock sees no difference."""
        if depth in self._filled:
            return
        phase = f"depth {depth}"
        how = "zeros" if phase in self.samples.memory else self.plan.filled
        self.worker.ask(Done, "fill", depth=depth, how=how)
        self._filled.add(depth)
        self._note_memory(phase)

    def decode(self, depth: int, series: int) -> Steps:
        """Each token of so many series."""
        plan = self.plan
        return self.worker.ask(Steps, "decode", depth=depth, warm_up=plan.warm_up_steps, steps=plan.steps, series=series)

    def series_for(self, depth: int, seconds: float) -> int:
        """How many series take at least so long, by the fastest token of one that is not kept."""
        return max(1, math.ceil(seconds / min(self.decode(depth, 1).seconds) / self.plan.steps))

    def end_round(self) -> None:
        self.samples.memory["end"] = self.worker.ask(Memory, "memory")
        self._app = self.worker.app()

    def unload(self) -> None:
        if self._worker is not None:
            self._worker.close()
            self._worker = None

    def _take_kernel(self, found: str) -> None:
        """The worker may have had to pass over the best one."""
        best = self.artifact
        if found != best.kernel:
            _warn_once(
                f"{self.bench.device.name}: running the {found} graph, which is slower: no operator for the {best.kernel} one"
            )
        self.artifact = next(a for a in self.cell.artifacts if (a.runtime, a.kernel) == (best.runtime, found))

    def _note_memory(self, phase: str) -> None:
        if phase not in self.samples.memory:
            self.samples.memory[phase] = self.worker.ask(Memory, "memory")

    # -- what is recorded ---------------------------------------------------------------------------------------------

    def record(self, run: str, vitals: tuple[Vitals, ...], rounds_done: int, interleaving: Interleaving) -> Record:
        assert self._loaded is not None
        bench, timed = self.bench, self.bench.timed
        return Record(
            schema=SCHEMA,
            run=run,
            cell=self.id,
            time=now(),
            device=bench.device.name,
            environment=bench.environment,
            vitals=vitals,
            throttled=has_throttled(vitals),
            program=ProgramEntry(bench.program.name, edgeqkv.__version__, git_commit(), self._loaded.packages),
            subject=self._subject(self._loaded),
            plan=self.plan,
            rounds_done=rounds_done,
            interleaving=interleaving,
            timings=self.samples.timings(self.plan.prompt, self.plan.rounds_a_start if interleaving == "resident" else 1)
            if timed
            else Timings((), None, (), ()),
            memory=self._memory(self._loaded, self.samples.memory if timed else {}),
            greedy_ids=self._ids,
            app=self._app,
        )

    def _subject(self, loaded: Loaded) -> Subject:
        bundle, artifact = self.cell.bundle, self.artifact
        model = bundle.manifest.model
        verified = (p for p in bundle.manifest.parity if (p.runtime, p.kernel) == (artifact.runtime, artifact.kernel))
        return Subject(
            bundle=bundle.folder.name,
            bundle_sha256=file_sha256(bundle.folder / MANIFEST),
            baseline=bundle.baseline,
            variant=model.variant,
            model=model.config,
            capacity=bundle.manifest.capacity,
            weights=artifact.weights.scheme,
            cache=artifact.cache.dtype,
            runtime=loaded.runtime,
            runtime_version=loaded.runtime_version,
            kernel=loaded.kernel,
            parity=next((p for p in verified if p.executor == "runtime"), None),
        )

    def _memory(self, loaded: Loaded, phases: dict[str, Memory]) -> MemoryUse:
        cache, filled = self.artifact.cache, self.plan.depths[-1] + self.plan.steps
        share = filled / self.cell.bundle.manifest.capacity
        return MemoryUse(
            phases=phases,
            split=split_memory(phases, self.weights_bytes, loaded.cache_bytes, share),
            cache_bytes=loaded.cache_bytes,
            cache_bytes_analytic=cache.bytes,
            cache_bytes_per_position=cache.bytes_per_position,
            weights_bytes=self.weights_bytes,
            weights_bytes_a_token=weights_bytes_a_token(self.cell.bundle.manifest.model.config, self.artifact.weights.formats),
        )


@functools.cache
def _warn_once(text: str) -> None:
    warnings.warn(text, RuntimeWarning, stacklevel=1)
