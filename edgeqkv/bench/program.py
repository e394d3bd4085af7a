"""Which program is measured on a device: the native runner where there is one for its processor, else Python; or the app.

All speak the worker's protocol (:mod:`edgeqkv.bench.protocol`).
"""

import shlex
import struct
import sys
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgeqkv.bench.device import Device
from edgeqkv.bench.machine import Environment
from edgeqkv.bench.package import pack_package
from edgeqkv.bench.scratch import scratch_folder
from edgeqkv.bench.worker_process import MeasuredProcess, WorkerProcess
from edgeqkv.errors import EdgeQKVError, MissingPackage
from edgeqkv.native import native_program
from edgeqkv.targets import Target

PYTHON = "python"
RUNNER = "runtimes/run/edgeqkv-run"
ANDROID = Path(__file__).resolve().parents[2] / "build" / "android"  # what make android-native and make apk leave in a checkout
APK = ANDROID / "edgeqkv-demo.apk"
NEEDED = ("numpy", "msgspec")  # by edgeqkv itself; a target's packages come on top
# By the number of an ELF header (e_machine), what uname -m may call the processor.
_MACHINES = {3: ("i386", "i686"), 40: ("armv7l", "armv8l"), 62: ("x86_64",), 183: ("aarch64", "arm64"), 243: ("riscv64",)}


@dataclass(frozen=True)
class Programs:
    """What the user named. ``runners`` are files, or "python" to prefer that; ``libraries`` the runtimes', for the runners.

    ``emulator`` is a command of the device that runs a foreign program ("qemu-aarch64 -L DIR"); such a run is not timed.
    ``apk`` is that of the app to measure in, instead of all of these.
    """

    runners: tuple[str, ...] = ()
    libraries: tuple[Path, ...] = ()
    python: str | None = None
    emulator: str | None = None
    apk: Path | None = None

    @property
    def files(self) -> list[Path]:
        return [Path(runner) for runner in self.runners if runner != PYTHON]

    def check(self) -> None:
        if self.apk is not None:
            if self.runners or self.libraries or self.python or self.emulator:
                raise EdgeQKVError("--in-app measures the app; --runner, --library, --python and --emulator are for the others")
            if not self.apk.is_file():
                raise MissingPackage(f"there is no app at {self.apk}; build it with make apk, or name one with --apk")
        for runner in self.files:
            if not runner.is_file():
                raise EdgeQKVError(f"--runner {runner} does not exist; name the file edgeqkv-run, or python")
        for library in self.libraries:
            if not library.is_file():
                raise EdgeQKVError(f"--library {library} does not exist; name a runtime's shared library for the device")


class Program(ABC):
    """On one device. ``emulated`` is the processor that an emulator stands for, or None; ``most_cells`` is how many processes
    of it there can be, None where that is not limited."""

    name: str
    emulated: str | None = None
    most_cells: int | None = None

    @abstractmethod
    def start(self, device: Device, name: str, title: str) -> MeasuredProcess:
        """A process for one cell. ``name`` is for errors, ``title`` for who looks at the device."""

    def files_sent(self) -> None:  # noqa: B027 - most have nothing to do
        """All that it will open is on the device."""

    def end(self) -> None:  # noqa: B027 - most end with their processes
        """Nothing more is measured."""


@dataclass(frozen=True)
class ShellProgram(Program):
    """``script`` starts its worker on the device."""

    name: str
    script: str
    emulated: str | None = None

    def start(self, device: Device, name: str, title: str) -> MeasuredProcess:
        return WorkerProcess(device, self.script, name)


def choose_program(device: Device, environment: Environment, wanted: Programs, targets: Sequence[Target]) -> Program:
    """Find the program that runs artifacts of ``targets`` on ``device``, and send it there."""
    wanted.check()
    machine = environment.machine
    for runner in wanted.files:
        found = elf_machines(runner)
        if found and (wanted.emulator or machine in found):
            given = [library for library in wanted.libraries if elf_machines(library) == found]
            return _runner(device, runner, given or _own_libraries(runner, targets) or [], wanted.emulator)
    if wanted.files and PYTHON not in wanted.runners:
        raise EdgeQKVError(f"{device.name} is {machine}, and no --runner is for that; name one more, or python")
    if not wanted.runners and "Android" in (environment.os or ""):
        built = _built_for_android(machine, targets)
        if built is not None:
            return _runner(device, *built, None)
    own = native_program(RUNNER)
    if not wanted.runners and own and machine in elf_machines(own) and "Android" not in (environment.os or ""):
        ours = _own_libraries(own, targets)
        if ours is not None:
            return _runner(device, own, ours, None)
    return _python(device, wanted.python, targets)


def elf_machines(path: Path) -> tuple[str, ...]:
    """The names (as of uname -m) of the processor that an executable or library is for; empty when it is neither."""
    with path.open("rb") as file:
        head = file.read(20)
    if len(head) < 20 or head[:4] != b"\x7fELF":
        return ()
    return _MACHINES.get(struct.unpack_from("<H", head, 18)[0], ())


def _own_libraries(runner: Path, targets: Sequence[Target]) -> list[Path] | None:
    """This installation's libraries for ``targets``; None when one is not there, or for another processor."""
    out: list[Path] = []
    for target in targets:
        libraries = target.runner_libraries()
        if libraries is None or any(elf_machines(path) != elf_machines(runner) for path in libraries):
            return None
        out += libraries
    return out


def _built_for_android(machine: str | None, targets: Sequence[Target]) -> tuple[Path, list[Path]] | None:
    """The runner for Android and the libraries that an app ships; None where they have not been built, or do not fit."""
    runner = ANDROID / "bin" / "edgeqkv-run"
    libraries = [ANDROID / "lib" / "arm64-v8a" / (target.android or "") for target in targets]
    there = all(path.is_file() for path in (runner, *libraries))
    return (runner, libraries) if there and machine in elf_machines(runner) else None


def _runner(device: Device, runner: Path, libraries: Sequence[Path], emulator: str | None) -> Program:
    files = {path.name: path for path in (runner, *libraries)}
    if device.folder is None:
        places = {name: str(path) for name, path in files.items()}
    else:
        folder = device.send(files, f"runner-{elf_machines(runner)[0]}")
        places = {name: f"{folder}/{name}" for name in files}
    words = [*shlex.split(emulator or ""), places[runner.name], "--worker"]
    words += [word for library in libraries for word in ("--library", places[library.name])]
    return ShellProgram("edgeqkv-run", f"exec {shlex.join(words)}", elf_machines(runner)[0] if emulator else None)


def _python(device: Device, python: str | None, targets: Sequence[Target]) -> Program:
    worker = "-P -m edgeqkv.bench.worker"  # -P: not an edgeqkv/ folder that happens to be in the current one
    if device.folder is None:
        return ShellProgram(PYTHON, f"exec {shlex.quote(python or sys.executable)} {worker}")
    for target in targets:
        if not target.pure:
            raise MissingPackage(
                f"{device.name}: {target.title} is measured there by edgeqkv-run; name one built for it with --runner, and the "
                "shared libraries that it needs with --library"
            )
    python = python or "python3"
    needed = tuple(dict.fromkeys((*NEEDED, *(package for target in targets for package in target.packages))))
    test = f"import sys, {', '.join(needed)}; sys.exit(sys.version_info < (3, 11))"
    try:
        device.run(f"{shlex.quote(python)} -c {shlex.quote(test)}", f"looking for Python 3.11 with {', '.join(needed)}")
    except EdgeQKVError as error:
        raise MissingPackage(
            f"{error}; name its Python with --python, or a runner built for it with --runner and --library"
        ) from error
    with scratch_folder() as scratch:
        packed = pack_package(scratch)
        folder = device.send({packed.name: packed}, "python")
    return ShellProgram(PYTHON, f"PYTHONPATH={shlex.quote(f'{folder}/{packed.name}')} exec {shlex.quote(python)} {worker}")
