"""The compiled libraries that a wheel carries, and what to do where it carries none."""

import ctypes
import functools
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

WHY_MISSING = (
    "this edgeqkv was installed without its compiled kernel; to have it, install a C++ compiler (Debian: g++), unset "
    "EDGEQKV_NO_NATIVE and install edgeqkv again"
)


@functools.cache
def native_library(name: str) -> Path | None:
    """Where the library ``name`` (its path in the package, without ".so") lies, or None if it is absent or does not load."""
    try:
        path = Path(str(distribution("edgeqkv").locate_file(f"edgeqkv/{name}.so")))
        ctypes.CDLL(str(path))
    except (PackageNotFoundError, OSError):
        return None
    return path
