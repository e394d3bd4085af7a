"""Several devices at once: each in a thread of its own, so that one that fails or waits does not stop the others."""

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from msgspec.structs import replace

from edgeqkv.bench.baseline import Bundle, too_large
from edgeqkv.bench.device import Connections, Device
from edgeqkv.bench.in_app import ready_app
from edgeqkv.bench.machine import Environment
from edgeqkv.bench.matrix import Cell, Matrix, cells_of
from edgeqkv.bench.measure import Outcome, measure
from edgeqkv.bench.plan import Plan
from edgeqkv.bench.probe import look_at
from edgeqkv.bench.program import Program, Programs, choose_program
from edgeqkv.bench.record import Ended, Failure, Record
from edgeqkv.bench.running import Bench, Stop, cell_id
from edgeqkv.errors import EdgeQKVError, MissingPackage
from edgeqkv.files import file_sha256
from edgeqkv.manifest import MANIFEST
from edgeqkv.progress import Update, note
from edgeqkv.tables import mib
from edgeqkv.targets import Target, targets

Save = Callable[[Sequence[Record | Failure]], None]


@dataclass(frozen=True)
class Order:
    """What is to be measured on each device. ``earlier`` are records to resume from: runs that are complete among them are
    returned as they are. ``clean`` removes what was sent at the end."""

    bundles: Sequence[Bundle]
    matrix: Matrix
    programs: Programs
    earlier: Sequence[Record]
    clean: bool


class Collector:
    """What all devices have found, ``save``\\ d run by run."""

    def __init__(self, save: Save) -> None:
        self.found, self._save, self._lock = Outcome(), save, threading.Lock()

    def add(self, outcome: Outcome, new: bool = True) -> None:
        with self._lock:
            self.found.records.extend(outcome.records)
            self.found.failures.extend(outcome.failures)
            self.found.errors.extend(outcome.errors)
            if new:
                self._save([*outcome.records, *outcome.failures])


def measure_devices(
    names: Sequence[str], order: Order, connections: Connections, progress: Callable[[str], Update], save: Save
) -> Outcome:
    """Measure every bundle on every device; ``save`` is given each interleaved run's records when it ends or is interrupted.

    KeyboardInterrupt ends all devices, saves what they measured, and is raised again.
    """
    for threads in order.matrix.threads:  # refuses before anything has been measured
        order.matrix.plan_for(order.bundles, 1 if threads is None else threads)
    cells = cells_of(order.matrix, order.bundles)
    stops, collector = {name: Stop() for name in names}, Collector(save)

    def work(name: str) -> None:
        try:
            device = connections.open(name)
            with _cleaned(device, order.clean):
                _measure_device(device, order, cells, stops[name], progress(name), collector)
        except EdgeQKVError as error:
            outcome = Outcome(errors=[error])
            if not stops[name].event.is_set():
                outcome = Outcome()
                outcome.fail("", name, None, error)
            collector.add(outcome)

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
    return collector.found


@contextmanager
def _cleaned(device: Device, clean: bool) -> Iterator[None]:
    """Remove what was sent at the end, if that is wanted."""
    try:
        yield
    except EdgeQKVError:
        if clean:
            with suppress(EdgeQKVError):  # the first error is the one to tell
                device.clean()
        raise
    if clean:
        device.clean()


def _measure_device(
    device: Device, order: Order, cells: Sequence[Cell], stop: Stop, progress: Update, collector: Collector
) -> None:
    """One interleaved run for each number of threads."""
    progress("connecting", 0, 0)
    environment = look_at(device, order.programs.emulator is not None)
    cells = _without_large_baselines(cells, environment, device.name)
    needed = [targets()[name] for name in dict.fromkeys(cell.artifacts[0].runtime for cell in cells)]
    program = _ready_program(device, environment, order.programs, needed, progress)
    if program.most_cells is not None and len(cells) > program.most_cells:
        raise EdgeQKVError(
            f"{device.name}: the {program.name} measures {program.most_cells} bundles and kernels in one run at most, and "
            f"there are {len(cells)}; name fewer, or leave the baseline out with --no-baseline"
        )
    bundles = {cell.bundle.folder: cell.bundle for cell in cells}
    places = {folder: _place(device, folder, cells, progress) for folder in bundles}
    program.files_sent()
    bench = Bench(device, _as_seen(environment, program), program, places, stop)
    for threads in order.matrix.threads:
        count = (environment.cores or 1) if threads is None else threads
        plan = order.matrix.plan_for(list(bundles.values()), count)
        begun = _begun(bench, cells, plan, order.earlier)
        if begun and all(record.ended and (record.sustained or not plan.sustain_s) for record in begun):
            collector.add(Outcome(records=begun), new=False)
        elif not stop.event.is_set():
            collector.add(measure(bench, cells, begun[0].plan if begun else plan, begun, progress))
    program.end()


def _ready_program(
    device: Device, environment: Environment, programs: Programs, needed: Sequence[Target], progress: Update
) -> Program:
    """The program is on the device, and nothing of it runs."""
    if programs.apk is None:
        return choose_program(device, environment, programs, needed)
    for target in needed:
        if target.android is None:
            known = " or ".join(name for name, other in targets().items() if other.android)
            raise MissingPackage(f"the app has no {target.title}; measure another runtime there: --runtimes {known}")
    return ready_app(device, environment, programs.apk, progress)


def _without_large_baselines(cells: Sequence[Cell], environment: Environment, device: str) -> list[Cell]:
    """Baselines that nobody asked for are left out where their cache would take most of the memory."""
    kept, available = [], environment.memory_available_bytes
    for cell in cells:
        size = cell.artifacts[0].cache.bytes
        if cell.bundle.optional and too_large(size, available):
            name = f"{cell.bundle.manifest.model.variant} ({cell.artifacts[0].name})"
            share = f"{mib(size, 0)} of {mib(available, 0)} MiB available"
            note(f"{device}: the baseline {name} is left out: its cache takes {share}")
        else:
            kept.append(cell)
    return kept


def _as_seen(environment: Environment, program: Program) -> Environment:
    """Under an emulator the program does not see the processor of the machine that it runs on."""
    if program.emulated is None:
        return environment
    cpu = f"{program.emulated}, emulated"
    return replace(environment, machine=program.emulated, cpu=cpu, cpu_features=None, model=None, soc=None, clusters=None)


def _place(device: Device, folder: Path, cells: Sequence[Cell], progress: Update) -> str:
    """Where the bundle in ``folder`` lies for the worker; sent there first, with no more files than ``cells`` need."""
    if device.folder is None:
        return str(folder.resolve())
    wanted = [artifact for cell in cells if cell.bundle.folder == folder for artifact in cell.artifacts]
    names = (MANIFEST, *(name for artifact in wanted for name in artifact.files))
    key = file_sha256(folder / MANIFEST)[:16]
    return device.send({name: folder / name for name in names}, f"bundle-{key}", lambda what: progress(what, 0, 0))


def _begun(bench: Bench, cells: Sequence[Cell], plan: Plan, earlier: Sequence[Record]) -> list[Record]:
    """The latest run among ``earlier`` that has all of these cells, as far as each other; else nothing."""
    ids = [cell_id(bench, cell, plan) for cell in cells]
    runs: dict[str, dict[str, Record]] = {}
    for record in earlier:
        runs.setdefault(record.run, {})[record.cell] = record
    for found in reversed(runs.values()):
        if all(cell in found for cell in ids) and len({found[cell].rounds_done for cell in ids}) == 1:
            # They are started anew as often as they were.
            plan = replace(plan, rounds_a_start=found[ids[0]].plan.rounds_a_start)
            return [replace(found[cell], plan=plan, ended=_ended(found[cell], plan)) for cell in ids]
    return []


def _ended(record: Record, plan: Plan) -> Ended | None:
    """Whether the rounds of a record are all that ``plan`` asks for, which may be more than was asked for then."""
    if plan.precision is None:
        return "rounds" if record.rounds_done >= plan.rounds else None
    return record.ended if (record.plan.precision, record.plan.time_s) == (plan.precision, plan.time_s) else None
