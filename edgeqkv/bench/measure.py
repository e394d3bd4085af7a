"""What is measured, in which order: every bundle in its own process, all of them in turn, round after round.

Machines drift, so two variants are compared only within one round-robin: each round visits every bundle before it repeats.
"""

import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeqkv.bench.device import WorkerProcess, start_worker
from edgeqkv.bench.record import SCHEMA, Environment, Memory, Record, Timing, environment
from edgeqkv.bench.worker import WARM_UP_STEPS
from edgeqkv.bundle import MANIFEST, Artifact, Manifest, check_files, read_bundle
from edgeqkv.errors import EdgeQKVError
from edgeqkv.model_folder import file_sha256
from edgeqkv.runtimes import choose_artifact


@dataclass(frozen=True)
class Plan:
    """``depths`` are ascending; ``prompt`` is the length behind the time to first token, and of a prefill ending at a depth."""

    depths: tuple[int, ...]
    threads: int
    prompt: int
    rounds: int
    steps: int


def make_plan(
    depths: Sequence[int] | None, threads: int | None, capacity: int, rounds: int, steps: int, prompt: int = 128
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
    if threads is not None and threads < 1:
        raise EdgeQKVError(f"threads must be at least 1, found {threads}")
    return Plan(tuple(chosen), threads or os.cpu_count() or 1, min(prompt, chosen[-1]), rounds, steps)


def measure(
    bundles: Sequence[Path],
    device: str,
    kernels: Sequence[str | None] = (None,),
    depths: Sequence[int] | None = None,
    threads: int | None = None,
    rounds: int = 5,
    steps: int = 8,
    prompt: int = 128,
    native: bool = False,
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> list[Record]:
    """One record for each bundle and kernel ("stock", "executorch:fused"; None: the bundle's best), all from one interleaved
    run on ``device``; with ``native`` without Python in the measured processes."""
    manifests = [read_bundle(bundle) for bundle in bundles]
    plan = make_plan(depths, threads, min(m.capacity for m in manifests), rounds, steps, prompt)
    for bundle, manifest in zip(bundles, manifests, strict=True):
        check_files(bundle, manifest)
    # Refused, if at all, before anything has been measured.
    cells = [
        (bundle, manifest, _choose(bundle, manifest, kernel))
        for bundle, manifest in zip(bundles, manifests, strict=True)
        for kernel in kernels
    ]
    for bundle, _, artifact in cells:
        if artifact.runtime == "coreml":
            raise EdgeQKVError(f"{bundle} holds only Core ML, which bench does not measure: use Xcode's performance report")
    machine = environment()
    total = len(cells) * (1 + plan.rounds + len(plan.depths) * (1 + plan.rounds))
    done = 0

    def tick(what: str) -> None:
        nonlocal done
        progress(what, done, total)
        done += 1

    with ExitStack() as stack:
        runs = [
            _Run(stack.enter_context(start_worker(device, bundle, native)), bundle, manifest, artifact, native)
            for bundle, manifest, artifact in cells
        ]
        for run in runs:
            tick(f"{run.label}: loading")
            run.load(plan)
        for _ in range(plan.rounds):
            for run in runs:
                tick(f"{run.label}: time to first token")
                run.first_token(plan)
        for depth in plan.depths:
            for run in runs:
                tick(f"{run.label}: filling to {depth}")
                run.fill(depth)
        for _ in range(plan.rounds):
            for depth in plan.depths:
                for run in runs:
                    tick(f"{run.label}: decoding at {depth}")
                    run.prefill(depth, plan)
                    run.decode(depth, plan)
        for run in runs:
            run.note_memory("end")
        progress("done", total, total)
        return [run.record(device, machine, plan) for run in runs]


def _choose(bundle: Path, manifest: Manifest, kernel: str | None) -> Artifact:
    runtime, _, name = (kernel or "").rpartition(":")
    return choose_artifact(bundle, manifest, runtime or None, name or None)


class _Run:
    """One bundle's worker and what it has said so far."""

    def __init__(self, worker: WorkerProcess, bundle: Path, manifest: Manifest, artifact: Artifact, native: bool) -> None:
        self.worker, self.bundle, self.manifest, self.artifact = worker, bundle, manifest, artifact
        self.native = native
        self.label = f"{manifest.model.variant} ({self.artifact.cache.dtype} cache, {self.artifact.name})"
        self.loaded: dict[str, Any] = {}
        self.memory: dict[str, Memory] = {}
        self.first_tokens: list[float] = []
        self.prefills: dict[tuple[int, int], list[float]] = {}
        self.steps: dict[int, list[float]] = {}

    def load(self, plan: Plan) -> None:
        bundle = str(self.bundle.resolve())
        chosen = {"runtime": self.artifact.runtime, "kernel": self.artifact.kernel}
        self.loaded = self.worker.ask("load", bundle=bundle, threads=plan.threads, **chosen)
        self.memory["start"] = Memory(**self.loaded["start"])
        self.note_memory("loaded")

    def first_token(self, plan: Plan) -> None:
        self.first_tokens.append(self.worker.ask("first_token", tokens=plan.prompt)["seconds"])

    def fill(self, depth: int) -> None:
        self.worker.ask("fill", depth=depth)
        self.note_memory(f"depth {depth}")

    def prefill(self, depth: int, plan: Plan) -> None:
        tokens = min(plan.prompt, depth)
        answer = self.worker.ask("prefill", depth=depth - tokens, tokens=tokens)
        self.prefills.setdefault((depth - tokens, tokens), []).append(answer["seconds"])

    def decode(self, depth: int, plan: Plan) -> None:
        self.steps.setdefault(depth, []).extend(self.worker.ask("decode", depth=depth, steps=plan.steps)["seconds"])

    def note_memory(self, phase: str) -> None:
        self.memory[phase] = Memory(**self.worker.ask("memory"))

    def record(self, device: str, machine: Environment, plan: Plan) -> Record:
        files = [self.bundle / name for name in self.artifact.files]
        return Record(
            schema=SCHEMA,
            device=device,
            environment=machine,
            bundle=self.bundle.name,
            manifest_sha256=file_sha256(self.bundle / MANIFEST),
            variant=self.manifest.model.variant,
            weights=self.artifact.weights.scheme,
            cache=self.artifact.cache.dtype,
            capacity=self.manifest.capacity,
            runtime=self.loaded["runtime"],
            runtime_version=self.loaded["runtime_version"],
            kernel=self.loaded["kernel"],
            native=self.native,
            threads=plan.threads,
            load_s=self.loaded["load_s"],
            first_token=Timing(0, plan.prompt, tuple(self.first_tokens)),
            prefill=tuple(Timing(*cell, tuple(seconds)) for cell, seconds in self.prefills.items()),
            decode=tuple(Timing(depth, 1, tuple(seconds)) for depth, seconds in self.steps.items()),
            memory=self.memory,
            cache_bytes=self.loaded["cache_bytes"],
            cache_bytes_analytic=self.artifact.cache.bytes,
            weights_bytes=sum(file.stat().st_size for file in files),
        )
