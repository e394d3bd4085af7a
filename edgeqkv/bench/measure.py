"""What is measured, in which order: every bundle in its own process, all of them in turn, round after round.

Machines drift, so two variants are compared only within one round-robin: each round visits every bundle before it repeats. All
bundles stay loaded where the device has the memory; else each is loaded again for each of its visits.
"""

import functools
import hashlib
import threading
import uuid
import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import edgeqkv
from edgeqkv.bench.baseline import NO_CORE_ML, Subject
from edgeqkv.bench.device import Device
from edgeqkv.bench.memory import Memory
from edgeqkv.bench.probe import VITALS_SCRIPT, parse_vitals
from edgeqkv.bench.program import Program
from edgeqkv.bench.record import (
    SCHEMA,
    Environment,
    Failure,
    Record,
    Timing,
    Vitals,
    has_throttled,
    split_memory,
    timing,
)
from edgeqkv.bench.source import git_commit
from edgeqkv.bench.worker import WARM_UP_STEPS
from edgeqkv.bench.worker_process import WorkerProcess
from edgeqkv.bundle import MANIFEST, Artifact
from edgeqkv.errors import EdgeQKVError
from edgeqkv.model_folder import file_sha256
from edgeqkv.runtimes import matching_artifacts, no_artifact

GREEDY_PROMPT, GREEDY_TOKENS = (1, 2, 3), 16
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Plan:
    """``depths`` are ascending; ``prompt`` is the length behind the time to first token, and of a prefill ending at a depth."""

    depths: tuple[int, ...]
    threads: int
    prompt: int
    rounds: int
    steps: int
    cool_down: float = 0.0


def make_plan(
    depths: Sequence[int] | None,
    threads: int,
    capacity: int,
    rounds: int,
    steps: int,
    prompt: int = 128,
    cool_down: float = 0.0,
) -> Plan:
    """Fill in what was not said, and refuse what does not fit the smallest bundle."""
    chosen = sorted(set(depths)) if depths else sorted({max(WARM_UP_STEPS, capacity * i // 4 - steps) for i in (1, 2, 4)})
    if chosen[0] < WARM_UP_STEPS:
        raise EdgeQKVError(f"depth {chosen[0]} is too small: {WARM_UP_STEPS} warm-up tokens come before it")
    if chosen[-1] + steps > capacity:
        raise EdgeQKVError(
            f"depth {chosen[-1]} and {steps} measured steps do not fit a cache of {capacity} positions; lower --depths or "
            "--steps"
        )
    if rounds < 1 or steps < 1 or prompt < 1:
        raise EdgeQKVError("rounds, steps and prompt must be at least 1")
    if threads < 1:
        raise EdgeQKVError(f"threads must be at least 1, found {threads}")
    if not 0 <= cool_down <= 3600:
        raise EdgeQKVError(f"the cool-down is between 0 and 3600 seconds, found {cool_down:g}")
    return Plan(tuple(chosen), threads, min(prompt, chosen[-1]), rounds, steps, cool_down)


@dataclass(frozen=True)
class Variant:
    """One bundle with one of its artifacts; ``place`` is where the bundle lies on the device, ``runtime`` and ``kernel`` as
    asked for (None: the best that runs there). ``number`` tells it from an identical one in the same run."""

    number: int
    subject: Subject
    place: str
    runtime: str | None
    kernel: str | None


@dataclass
class Stop:
    """Set from outside to end a run: the processes that are being waited for are killed."""

    event: threading.Event = field(default_factory=threading.Event)
    workers: list[WorkerProcess] = field(default_factory=list)

    def now(self) -> None:
        self.event.set()
        for worker in list(self.workers):
            worker.kill()


@dataclass(frozen=True)
class Bench:
    """A device that is ready: its program is there, its bundles too."""

    device: Device
    environment: Environment
    program: Program
    stop: Stop


@dataclass(frozen=True)
class Outcome:
    """``errors`` are what was raised behind those of ``failures`` that left nothing to report."""

    records: list[Record]
    failures: list[Failure]
    errors: list[EdgeQKVError]


def cell_id(bench: Bench, variant: Variant, plan: Plan) -> str:
    """The same for the same question: what resuming goes by. More rounds are more of the same."""
    manifest = file_sha256(variant.subject.folder / MANIFEST)
    parts = (bench.device.name, bench.program.name, variant.number, manifest, variant.runtime, variant.kernel)
    sizes = (plan.depths, plan.threads, plan.prompt, plan.steps)
    return hashlib.sha256(repr((parts, sizes)).encode()).hexdigest()[:16]


def measure(bench: Bench, variants: Sequence[Variant], plan: Plan, earlier: Sequence[Record], progress: Progress) -> Outcome:
    """One interleaved run of all ``variants``: a record for each, and a failure for each that could not end.

    ``earlier`` are records of the same run and fewer rounds, to go on from. Only whole rounds are kept, so that every record of
    a run has seen the same ones.
    """
    run_id = earlier[0].run if earlier else f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{uuid.uuid4().hex[:6]}"
    before = {record.cell: record for record in earlier}
    visits = [_Visit(bench, variant, plan, before.get(cell_id(bench, variant, plan))) for variant in variants]
    vitals = list(earlier[0].vitals) if earlier else [_vitals(bench.device)]
    failures: list[Failure] = []
    errors: list[EdgeQKVError] = []
    kept: dict[str, Record] = {}
    resident = _fits(bench.environment, visits)
    first = visits[0].rounds_done
    rounds = range(first, first + 1 if bench.environment.emulated else plan.rounds)
    total, done = len(visits) * len(rounds) * (1 + len(plan.depths)), 0

    def attempt(visit: _Visit, what: str, work: Callable[[], None]) -> None:
        nonlocal done
        if visit not in visits or bench.stop.event.is_set():
            return
        progress(f"{visit.label}: {what}", done, total)
        done += what != "loading"
        try:
            work()
        except EdgeQKVError as error:
            visits.remove(visit)
            if not bench.stop.event.is_set():
                errors.append(error)
                failures.append(failure(run_id, bench.device.name, visit.variant.subject.folder.name, str(error)))

    with ExitStack() as everything:
        for number in rounds:
            for batch in [list(visits)] if resident else [[visit] for visit in visits]:
                with ExitStack() as visit_only:
                    stack = everything if resident else visit_only
                    for visit in batch:
                        if visit.worker is None:
                            attempt(visit, "loading", lambda v=visit, s=stack: v.load(s))  # type: ignore[misc]
                        if not bench.environment.emulated:
                            attempt(visit, "first token", visit.first_token)
                    for depth in () if bench.environment.emulated else plan.depths:
                        for visit in batch:
                            attempt(visit, f"at depth {depth}", lambda v=visit, d=depth: v.at_depth(d))  # type: ignore[misc]
                    for visit in batch:
                        attempt(visit, "end of round", visit.end_round)
                if not resident:
                    batch[0].worker = None
            if not visits or bench.stop.event.is_set():
                break
            try:
                vitals.append(_vitals(bench.device))
            except EdgeQKVError as error:
                errors.append(error)
                failures.append(failure(run_id, bench.device.name, None, str(error)))
                break
            complete = plan.rounds if bench.environment.emulated else number + 1
            records = [visit.record(run_id, tuple(vitals), complete, resident) for visit in visits]
            kept |= {record.cell: record for record in records}
            if number + 1 < plan.rounds:
                bench.stop.event.wait(plan.cool_down)
    progress("done", total, total)
    return Outcome(list(kept.values()), failures, errors)


def failure(run: str, device: str, bundle: str | None, message: str) -> Failure:
    return Failure(SCHEMA, "failure", run, _now(), device, bundle, message)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _vitals(device: Device) -> Vitals:
    return parse_vitals(device.run(VITALS_SCRIPT, "reading its frequencies and temperatures"))


def _fits(environment: Environment, visits: "Sequence[_Visit]") -> bool:
    """Whether all bundles may stay loaded at once: weights may be copied by a runtime, and a process takes some itself."""
    need = sum(2 * visit.weights_bytes + visit.artifact.cache.bytes + 64 * 2**20 for visit in visits)
    available = environment.memory_available_bytes
    return available is None or need < 0.7 * available


def measurable(subject: Subject, runtime: str | None, kernel: str | None) -> list[Artifact]:
    """The subject's artifacts for ``runtime`` and ``kernel``, best first, that a worker can run."""
    found = matching_artifacts(subject.manifest, runtime, kernel)
    return [artifact for artifact in found if artifact.runtime != "coreml"]


def nothing_to_measure(subject: Subject, runtime: str | None, kernel: str | None) -> EdgeQKVError:
    if runtime == "coreml" or all(artifact.runtime == "coreml" for artifact in subject.manifest.artifacts):
        return EdgeQKVError(NO_CORE_ML.format(subject.folder))
    return no_artifact(subject.folder, subject.manifest, runtime, kernel)


@functools.cache
def _warn_once(text: str) -> None:
    warnings.warn(text, RuntimeWarning, stacklevel=1)


class _Visit:
    """One variant's worker and what it has said so far."""

    def __init__(self, bench: Bench, variant: Variant, plan: Plan, earlier: Record | None) -> None:
        self.bench, self.variant, self.plan = bench, variant, plan
        manifest = variant.subject.manifest
        self.artifact = measurable(variant.subject, variant.runtime, variant.kernel)[0]
        self.label = f"{manifest.model.variant} ({self.artifact.cache.dtype} cache, {self.artifact.name})"
        self.worker: WorkerProcess | None = None
        self.loaded: dict[str, Any] = {}
        self.ids: tuple[int, ...] = ()
        self.memory: dict[str, Memory] = dict(earlier.memory) if earlier else {}
        self.rounds_done = earlier.rounds_done if earlier else 0
        self.loads = list(earlier.load_s) if earlier else []
        self.first_tokens = list(earlier.first_token.seconds) if earlier and earlier.first_token else []
        self.prefills = {(t.depth, t.tokens): list(t.seconds) for t in earlier.prefill} if earlier else {}
        self.steps = {t.depth: list(t.seconds) for t in earlier.decode} if earlier else {}
        self._filled: set[int] = set()

    @property
    def weights_bytes(self) -> int:
        return sum((self.variant.subject.folder / name).stat().st_size for name in self.artifact.files)

    def load(self, stack: ExitStack) -> None:
        name = f"{self.variant.subject.folder} on {self.bench.device.name}"
        self.worker = stack.enter_context(WorkerProcess(self.bench.device, self.bench.program.script, name))
        self.bench.stop.workers.append(self.worker)
        self._filled.clear()
        asked = {"runtime": self.artifact.runtime, "kernel": self.variant.kernel, "threads": self.plan.threads}
        self.loaded = self.worker.ask("load", bundle=self.variant.place, **asked)
        best, found = self.artifact.kernel, self.loaded["kernel"]
        if found != best:
            _warn_once(f"{self.bench.device.name}: running the {found} graph, which is slower: no operator for the {best} one")
        manifest = self.variant.subject.manifest
        self.artifact = matching_artifacts(manifest, self.artifact.runtime, found)[0]
        self.loads.append(self.loaded["load_s"])
        self.memory.setdefault("start", Memory(**self.loaded["start"]))
        self._note_memory("loaded")
        self.ids = tuple(self.worker.ask("greedy", ids=GREEDY_PROMPT, tokens=self._room())["ids"])

    def first_token(self) -> None:
        self.first_tokens.append(self._ask("first_token", tokens=self.plan.prompt)["seconds"])
        self._note_memory("prefilled")

    def at_depth(self, depth: int) -> None:
        if depth not in self._filled:
            self._ask("fill", depth=depth)
            self._filled.add(depth)
            self._note_memory(f"depth {depth}")
        tokens = min(self.plan.prompt, depth)
        seconds = self._ask("prefill", depth=depth - tokens, tokens=tokens)["seconds"]
        self.prefills.setdefault((depth - tokens, tokens), []).append(seconds)
        self.steps.setdefault(depth, []).extend(self._ask("decode", depth=depth, steps=self.plan.steps)["seconds"])

    def end_round(self) -> None:
        self.memory["end"] = Memory(**self._ask("memory"))

    def _room(self) -> int:
        return min(GREEDY_TOKENS, self.variant.subject.manifest.capacity - len(GREEDY_PROMPT))

    def _note_memory(self, phase: str) -> None:
        if phase not in self.memory:
            self.memory[phase] = Memory(**self._ask("memory"))

    def _ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        assert self.worker is not None
        return self.worker.ask(do, **arguments)

    def record(self, run: str, vitals: tuple[Vitals, ...], rounds_done: int, resident: bool) -> Record:
        subject, plan, cache = self.variant.subject, self.plan, self.artifact.cache
        manifest, timed = subject.manifest, not self.bench.environment.emulated
        split = split_memory(
            self.memory, self.weights_bytes, self.loaded["cache_bytes"], manifest.capacity, plan.depths[-1] + plan.steps
        )
        ours = (self.artifact.runtime, self.artifact.kernel, "runtime")
        parity = [p for p in manifest.parity if (p.runtime, p.kernel, p.executor) == ours]
        return Record(
            schema=SCHEMA,
            kind="measurement",
            run=run,
            cell=cell_id(self.bench, self.variant, plan),
            time=_now(),
            device=self.bench.device.name,
            environment=self.bench.environment,
            vitals=vitals,
            throttled=has_throttled(vitals),
            edgeqkv=edgeqkv.__version__,
            git_commit=git_commit(),
            program=self.bench.program.name,
            packages=self.loaded.get("packages", {}),
            bundle=subject.folder.name,
            bundle_sha256=file_sha256(subject.folder / MANIFEST),
            baseline=subject.baseline,
            model=manifest.model.config,
            variant=manifest.model.variant,
            weights=self.artifact.weights.scheme,
            cache=cache.dtype,
            capacity=manifest.capacity,
            runtime=self.loaded["runtime"],
            runtime_version=self.loaded["runtime_version"],
            kernel=self.loaded["kernel"],
            threads=plan.threads,
            steps=plan.steps,
            rounds=plan.rounds,
            rounds_done=rounds_done,
            cool_down_s=plan.cool_down,
            interleaving="resident" if resident else "reloaded",
            load_s=tuple(self.loads) if timed else (),
            first_token=timing(0, plan.prompt, tuple(self.first_tokens)) if timed else None,
            prefill=_timings(self.prefills),
            decode=_timings({(depth, 1): seconds for depth, seconds in self.steps.items()}),
            memory=self.memory if timed else {},
            memory_split=split if timed else None,
            cache_bytes=self.loaded["cache_bytes"],
            cache_bytes_analytic=cache.bytes,
            cache_bytes_per_position=cache.bytes_per_position,
            weights_bytes=self.weights_bytes,
            greedy_ids=self.ids,
            parity=parity[0] if parity else None,
        )


def _timings(cells: dict[tuple[int, int], list[float]]) -> tuple[Timing, ...]:
    return tuple(timing(depth, tokens, tuple(seconds)) for (depth, tokens), seconds in cells.items())
