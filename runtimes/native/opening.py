"""Opening a bundle through the C library, with the libraries of this installation."""

from pathlib import Path

from edgeqkv.native import LIBRARY, native_library
from edgeqkv.runtimes.native.engine import Libraries, NativeBundle, NativeSession
from edgeqkv.targets import targets


def open_native(folder: Path, kernel: str | None, threads: int | None, runtime: str | None = None) -> NativeSession:
    """A session of libedgeqkv on the bundle's first artifact for ``runtime`` and ``kernel`` (None: any) that can run here."""
    found = {name: target.runner_libraries() for name, target in targets().items()}
    paths = {name: libraries[0] for name, libraries in found.items() if libraries}
    libraries = Libraries(native_library(LIBRARY), paths.get("onnx"), paths.get("executorch"))
    return NativeSession(NativeBundle(folder, libraries, runtime, kernel, threads))
