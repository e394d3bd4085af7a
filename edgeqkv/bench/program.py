"""Which program is measured on a device: the native runner where there is one for its processor, else Python.

Both speak the worker's protocol (:mod:`edgeqkv.bench.worker`).
"""

import importlib.util
import shlex
import struct
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

from edgeqkv.bench.device import Device
from edgeqkv.bench.record import Environment
from edgeqkv.errors import EdgeQKVError, MissingPackage
from edgeqkv.native import native_program

PYTHON = "python"
RUNNER = "runtimes/run/edgeqkv-run"
_MACHINES = {3: ("i386", "i686"), 40: ("armv7l", "armv8l"), 62: ("x86_64",), 183: ("aarch64", "arm64"), 243: ("riscv64",)}


@dataclass(frozen=True)
class Programs:
    """What the user named. ``runners`` are files, or "python" to prefer that; ``libraries`` the runtime's, for the runners.

    ``emulator`` is a command of the device that runs a foreign program ("qemu-aarch64 -L DIR"); such a run is not timed.
    """

    runners: tuple[str, ...] = ()
    libraries: tuple[Path, ...] = ()
    python: str | None = None
    emulator: str | None = None


@dataclass(frozen=True)
class Program:
    """``script`` starts its worker on the device. ``emulated`` is the processor that an emulator stands for, or None."""

    name: str
    script: str
    emulated: str | None = None


def choose_program(device: Device, environment: Environment, wanted: Programs, scratch: Path) -> Program:
    """Find the program for ``device`` and send it there; ``scratch`` is a folder of this machine to pack it in."""
    runners = [Path(runner) for runner in wanted.runners if runner != PYTHON]
    for runner in runners:
        if not runner.is_file():
            raise EdgeQKVError(f"--runner {runner} does not exist; name the file edgeqkv-run, or python")
    for library in wanted.libraries:
        if not library.is_file():
            raise EdgeQKVError(f"--library {library} does not exist; name the runtime's shared library for the device")
    machine = environment.machine
    fitting = [runner for runner in runners if elf_machines(runner) and (wanted.emulator or machine in elf_machines(runner))]
    if fitting:
        libraries = [library for library in wanted.libraries if elf_machines(library) == elf_machines(fitting[0])]
        return _runner(device, fitting[0], libraries[0] if libraries else _own_library(fitting[0]), wanted.emulator)
    if runners and PYTHON not in wanted.runners:
        raise EdgeQKVError(f"{device.name} is {machine}, and no --runner is for that; name one more, or python")
    own = native_program(RUNNER)
    if not wanted.runners and own and machine in elf_machines(own) and "Android" not in (environment.os or ""):
        runtime = _own_library(own)
        if runtime is not None:
            return _runner(device, own, runtime, None)
    return _python(device, wanted.python, scratch)


def elf_machines(path: Path) -> tuple[str, ...]:
    """The names (as of uname -m) of the processor that an executable or library is for; empty when it is neither."""
    with path.open("rb") as file:
        head = file.read(20)
    if len(head) < 20 or head[:4] != b"\x7fELF":
        return ()
    return _MACHINES.get(struct.unpack_from("<H", head, 18)[0], ())


def _own_library(runner: Path) -> Path | None:
    """This installation's ONNX Runtime, when it is for the same processor; None leaves it to the device's linker."""
    spec = importlib.util.find_spec("onnxruntime")
    if spec is None or not spec.submodule_search_locations:
        return None
    found = sorted(Path(spec.submodule_search_locations[0]).glob("capi/libonnxruntime.so*"))
    return found[0] if found and elf_machines(found[0]) == elf_machines(runner) else None


def _runner(device: Device, runner: Path, library: Path | None, emulator: str | None) -> Program:
    files = {runner.name: runner} | ({library.name: library} if library else {})
    if device.folder is None:
        places = {name: str(path) for name, path in files.items()}
    else:
        folder = device.send(files, f"runner-{elf_machines(runner)[0]}")
        places = {name: f"{folder}/{name}" for name in files}
    words = [*shlex.split(emulator or ""), places[runner.name], "--worker"]
    words += ["--library", places[library.name]] if library else []
    return Program("edgeqkv-run", f"exec {shlex.join(words)}", elf_machines(runner)[0] if emulator else None)


def _python(device: Device, python: str | None, scratch: Path) -> Program:
    worker = "-P -m edgeqkv.bench.worker"  # -P: not an edgeqkv/ folder that happens to be in the current one
    if device.folder is None:
        return Program(PYTHON, f"exec {shlex.quote(python or sys.executable)} {worker}")
    python = python or "python3"
    test = "import sys, numpy, onnxruntime; sys.exit(sys.version_info < (3, 11))"
    try:
        device.run(f"{shlex.quote(python)} -c {shlex.quote(test)}", "looking for Python 3.11 with numpy and onnxruntime")
    except EdgeQKVError as error:
        raise MissingPackage(
            f"{error}; name its Python with --python, or a runner built for it with --runner and --library"
        ) from error
    packed = pack_package(scratch)
    folder = device.send({packed.name: packed}, "python")
    return Program(PYTHON, f"PYTHONPATH={shlex.quote(f'{folder}/{packed.name}')} exec {shlex.quote(python)} {worker}")


def pack_package(folder: Path) -> Path:
    """This package's Python files as edgeqkv.zip, which Python imports from; the same bytes whenever the files are the same."""
    target = folder / "edgeqkv.zip"
    spec = importlib.util.find_spec("edgeqkv")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    parts = {"edgeqkv": Path(spec.submodule_search_locations[0])}
    for name in ("export", "runtimes"):
        inner = importlib.util.find_spec(f"edgeqkv.{name}")
        assert inner is not None
        assert inner.submodule_search_locations is not None
        parts[f"edgeqkv/{name}"] = Path(inner.submodule_search_locations[0])
    files = {f"{prefix}/{path.relative_to(root)}": path for prefix, root in parts.items() for path in root.rglob("*.py")}
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted(files):
            archive.writestr(zipfile.ZipInfo(name), files[name].read_bytes(), zipfile.ZIP_DEFLATED)
    return target
