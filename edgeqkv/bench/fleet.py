"""Several devices at once: each in a thread of its own, so that one that fails or waits does not stop the others."""

import tempfile
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

from edgeqkv.bench.baseline import Subject
from edgeqkv.bench.device import Connections, Device
from edgeqkv.bench.measure import (
    Bench,
    Outcome,
    Plan,
    Progress,
    Stop,
    Variant,
    cell_id,
    failure,
    make_plan,
    measurable,
    measure,
    nothing_to_measure,
)
from edgeqkv.bench.probe import environment_script, parse_environment
from edgeqkv.bench.program import Program, Programs, choose_program
from edgeqkv.bench.record import Environment, Failure, Record
from edgeqkv.bundle import MANIFEST, Artifact
from edgeqkv.errors import EdgeQKVError
from edgeqkv.model_folder import file_sha256


@dataclass(frozen=True)
class Matrix:
    """What is measured of every bundle: each of ``runtimes`` with each of ``kernels`` that the bundle has for it. They may hold
    None: the bundle's best on the device; ``threads`` may hold None: one for each core of the device. ``depths`` None: a
    quarter, a half and all of the capacity."""

    runtimes: tuple[str | None, ...] = (None,)
    kernels: tuple[str | None, ...] = (None,)
    depths: tuple[int, ...] | None = None
    threads: tuple[int | None, ...] = (None,)
    rounds: int = 5
    steps: int = 8
    prompt: int = 128
    cool_down: float = 1.0

    def artifacts(self, subject: Subject) -> dict[tuple[str | None, str | None], list[Artifact]]:
        """By runtime and kernel, those that the subject has of what was asked; it must have each runtime and each kernel."""
        pairs = list(product(self.runtimes, self.kernels))
        found = {pair: able for pair in pairs if (able := measurable(subject, *pair))}
        for runtime, kernel in pairs:
            if not any(pair[0] == runtime for pair in found) or not any(pair[1] == kernel for pair in found):
                raise nothing_to_measure(subject, runtime, kernel)
        return found


def measure_devices(
    names: Sequence[str],
    subjects: Sequence[Subject],
    matrix: Matrix,
    programs: Programs,
    connections: Connections,
    earlier: Sequence[Record] = (),
    clean: bool = False,
    progress: Callable[[str], Progress] = lambda name: lambda what, done, total: None,
    save: Callable[[Sequence[Record | Failure]], None] = lambda records: None,
) -> Outcome:
    """Measure every subject on every device; ``save`` is given each interleaved run's records when it ends or is interrupted.

    ``earlier`` are records to resume from: runs that are complete among them are returned as they are. KeyboardInterrupt ends
    all devices, saves what they measured, and is raised again.
    """
    plan_of(matrix, subjects, 1)  # refuses before anything has been measured
    for subject in subjects:
        matrix.artifacts(subject)
    lock, stops = threading.Lock(), {name: Stop() for name in names}
    out = Outcome([], [], [])

    def keep(records: Sequence[Record], failures: Sequence[Failure], new: bool = True) -> None:
        with lock:
            out.records.extend(records)
            out.failures.extend(failures)
            if new:
                save([*records, *failures])

    def work(name: str) -> None:
        try:
            device = connections.open(name)
            try:
                errors = _measure_device(device, subjects, matrix, programs, stops[name], earlier, progress(name), keep)
            except EdgeQKVError:
                if clean:
                    with suppress(EdgeQKVError):  # the first error is the one to tell
                        device.clean()
                raise
            if clean:
                device.clean()
        except EdgeQKVError as error:
            errors = [error]
            if not stops[name].event.is_set():
                keep([], [failure("", name, None, str(error))])
        with lock:
            out.errors.extend(errors)

    with ThreadPoolExecutor(len(names)) as pool:
        futures = [pool.submit(work, name) for name in names]
        try:
            wait(futures)
        except KeyboardInterrupt:
            for stop in stops.values():
                stop.now()
            wait(futures)
            raise
    for future in futures:
        future.result()  # a fault of ours is not swallowed
    return out


def plan_of(matrix: Matrix, subjects: Sequence[Subject], threads: int) -> Plan:
    capacity = min(subject.manifest.capacity for subject in subjects)
    return make_plan(matrix.depths, threads, capacity, matrix.rounds, matrix.steps, matrix.prompt, matrix.cool_down)


def look_at(device: Device, programs: Programs | None = None) -> Environment:
    emulator = programs is not None and programs.emulator is not None
    parent = (device.folder or ".").rpartition("/")[0] or "."  # ours may not exist yet
    return parse_environment(device.run(environment_script(parent), "describing it"), emulator)


def _measure_device(
    device: Device,
    subjects: Sequence[Subject],
    matrix: Matrix,
    programs: Programs,
    stop: Stop,
    earlier: Sequence[Record],
    progress: Progress,
    keep: Callable[..., None],
) -> list[EdgeQKVError]:
    """The errors, when nothing at all could be measured."""
    progress("connecting", 0, 0)
    environment = look_at(device, programs)
    found = [matrix.artifacts(subject) for subject in subjects]
    with tempfile.TemporaryDirectory(prefix="edgeqkv-") as scratch:
        runtimes = {able[0].runtime for pairs in found for able in pairs.values()}
        program = choose_program(device, environment, programs, runtimes, Path(scratch))
    cells: list[tuple[Subject, str, str | None, str | None]] = []
    for subject, pairs in zip(subjects, found, strict=True):
        place = _place(device, subject, pairs.values(), progress)
        cells += [(subject, place, *pair) for pair in pairs]
    variants = [Variant(number, *cell) for number, cell in enumerate(cells)]
    errors: list[EdgeQKVError] = []
    measured = 0
    for threads in matrix.threads:
        bench = Bench(device, _as_seen(look_at(device, programs), program), program, stop)
        plan = plan_of(matrix, subjects, threads or environment.cores or 1)
        begun = _begun(bench, variants, plan, earlier)
        if begun and all(record.rounds_done >= plan.rounds for record in begun):
            keep(begun, [], new=False)
            measured += len(begun)
        elif not stop.event.is_set():
            outcome = measure(bench, variants, plan, begun, progress)
            keep(outcome.records, outcome.failures)
            measured += len(outcome.records)
            errors += outcome.errors
    return [] if measured else errors


def _as_seen(environment: Environment, program: Program) -> Environment:
    """Under an emulator the program does not see the processor of the machine that it runs on."""
    if program.emulated is None:
        return environment
    cpu = f"{program.emulated}, emulated"
    return replace(environment, machine=program.emulated, cpu=cpu, cpu_features=None, model=None, soc=None, clusters=None)


def _place(device: Device, subject: Subject, wanted: Iterable[list[Artifact]], progress: Progress) -> str:
    """Where the bundle lies for the worker; sent there first, with only the files of the artifacts that are wanted."""
    if device.folder is None:
        return str(subject.folder.resolve())
    names = (MANIFEST, *(name for able in wanted for artifact in able for name in artifact.files))
    files = {name: subject.folder / name for name in names}
    key = file_sha256(subject.folder / MANIFEST)[:16]
    return device.send(files, f"bundle-{key}", lambda what: progress(what, 0, 0))


def _begun(bench: Bench, variants: Sequence[Variant], plan: Plan, earlier: Sequence[Record]) -> list[Record]:
    """The latest run among ``earlier`` that has all of these cells, as far as each other; else nothing."""
    cells = [cell_id(bench, variant, plan) for variant in variants]
    runs: dict[str, dict[str, Record]] = {}
    for record in earlier:
        runs.setdefault(record.run, {})[record.cell] = record
    for found in reversed(runs.values()):
        if all(cell in found for cell in cells) and len({found[cell].rounds_done for cell in cells}) == 1:
            return [replace(found[cell], rounds=plan.rounds) for cell in cells]
    return []
