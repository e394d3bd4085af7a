"""Which program is measured on a device: the native runner where there is one for its processor, else Python.

Both speak the worker's protocol (:mod:`edgeqkv.bench.worker`).
"""

import importlib.util
import shlex
import struct
import sys
import zipfile
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgeqkv.bench.device import Device
from edgeqkv.bench.record import Environment
from edgeqkv.errors import EdgeQKVError, MissingPackage
from edgeqkv.native import native_file, native_program
from edgeqkv.runtimes import OPERATORS

PYTHON = "python"
RUNNER = "runtimes/run/edgeqkv-run"
# What our ExecuTorch session links (runtimes/executorch/CMakeLists.txt).
LINKED = tuple(
    f"libexecutorch{part}" for part in ("", "_kernels_optimized", "_kernels_quantized", "_backend_xnnpack", "_threadpool")
)
_MACHINES = {3: ("i386", "i686"), 40: ("armv7l", "armv8l"), 62: ("x86_64",), 183: ("aarch64", "arm64"), 243: ("riscv64",)}


@dataclass(frozen=True)
class Programs:
    """What the user named. ``runners`` are files, or "python" to prefer that; ``libraries`` the runtimes', for the runners.

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


def choose_program(
    device: Device, environment: Environment, wanted: Programs, runtimes: Collection[str], scratch: Path
) -> Program:
    """Find the program that runs ``runtimes`` on ``device`` and send it there; ``scratch`` is a folder of this machine to pack
    it in."""
    runners = [Path(runner) for runner in wanted.runners if runner != PYTHON]
    for runner in runners:
        if not runner.is_file():
            raise EdgeQKVError(f"--runner {runner} does not exist; name the file edgeqkv-run, or python")
    for library in wanted.libraries:
        if not library.is_file():
            raise EdgeQKVError(f"--library {library} does not exist; name a runtime's shared library for the device")
    machine = environment.machine
    fitting = [runner for runner in runners if elf_machines(runner) and (wanted.emulator or machine in elf_machines(runner))]
    if fitting:
        libraries = [library for library in wanted.libraries if elf_machines(library) == elf_machines(fitting[0])]
        return _runner(device, fitting[0], libraries or _own_libraries(fitting[0], runtimes) or [], wanted.emulator)
    if runners and PYTHON not in wanted.runners:
        raise EdgeQKVError(f"{device.name} is {machine}, and no --runner is for that; name one more, or python")
    own = native_program(RUNNER)
    if not wanted.runners and own and machine in elf_machines(own) and "Android" not in (environment.os or ""):
        ours = _own_libraries(own, runtimes)
        if ours is not None:
            return _runner(device, own, ours, None)
    return _python(device, wanted.python, runtimes, scratch)


def elf_machines(path: Path) -> tuple[str, ...]:
    """The names (as of uname -m) of the processor that an executable or library is for; empty when it is neither."""
    with path.open("rb") as file:
        head = file.read(20)
    if len(head) < 20 or head[:4] != b"\x7fELF":
        return ()
    return _MACHINES.get(struct.unpack_from("<H", head, 18)[0], ())


def _own_libraries(runner: Path, runtimes: Collection[str]) -> list[Path] | None:
    """This installation's libraries for ``runtimes``; None when one is not there, or for another processor."""
    found: list[Path | None] = []
    if "onnx" in runtimes:
        found.append(_in_package("onnxruntime", "capi/libonnxruntime.so*"))
    if "executorch" in runtimes:
        try:
            found.append(native_file(f"{OPERATORS['executorch']}.so"))
        except MissingPackage:
            return None
        found += [_in_package("executorch", f"lib/{name}.so") for name in LINKED]
    usable = [path for path in found if path and elf_machines(path) == elf_machines(runner)]
    return usable if len(usable) == len(found) else None


def _in_package(name: str, pattern: str) -> Path | None:
    """The first file of an installed package that fits ``pattern``."""
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        return None
    return next(iter(sorted(Path(spec.submodule_search_locations[0]).glob(pattern))), None)


def _runner(device: Device, runner: Path, libraries: Sequence[Path], emulator: str | None) -> Program:
    files = {path.name: path for path in (runner, *libraries)}
    if device.folder is None:
        places = {name: str(path) for name, path in files.items()}
    else:
        folder = device.send(files, f"runner-{elf_machines(runner)[0]}")
        places = {name: f"{folder}/{name}" for name in files}
    words = [*shlex.split(emulator or ""), places[runner.name], "--worker"]
    words += [word for library in libraries for word in ("--library", places[library.name])]
    return Program("edgeqkv-run", f"exec {shlex.join(words)}", elf_machines(runner)[0] if emulator else None)


def _python(device: Device, python: str | None, runtimes: Collection[str], scratch: Path) -> Program:
    worker = "-P -m edgeqkv.bench.worker"  # -P: not an edgeqkv/ folder that happens to be in the current one
    if device.folder is None:
        return Program(PYTHON, f"exec {shlex.quote(python or sys.executable)} {worker}")
    if "executorch" in runtimes:
        raise MissingPackage(
            f"{device.name}: ExecuTorch is measured there by edgeqkv-run; name one built for it with --runner, and "
            "libedgeqkv_executorch.so and the libexecutorch*.so that it links with --library"
        )
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
