"""The compiled libraries and programs that a wheel carries, and what to do where it carries none."""

import ctypes
import functools
import os
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from edgeqkv.errors import MissingPackage


@functools.cache
def native_library(name: str) -> Path:
    """Where the library ``name`` (its path in the package, without ".so") lies; :class:`MissingPackage` says why it cannot be
    used."""
    path = native_file(f"{name}.so")
    try:
        ctypes.CDLL(str(path))
    except OSError as error:
        cure = "install edgeqkv again on this machine"
        if "libexecutorch" in str(error):
            cure = 'pip install "edgeqkv[executorch-runtime]"'
        raise MissingPackage(f"{path.name} does not load ({error}); {cure}") from error
    return path


def native_program(name: str) -> Path | None:
    """Where the executable ``name`` (its path in the package) lies, or None if this installation has none."""
    try:
        path = native_file(name)
    except MissingPackage:
        return None
    return path if os.access(path, os.X_OK) else None


def native_file(name: str) -> Path:
    """Where the compiled file ``name`` (its path in the package) lies; :class:`MissingPackage` where there is none."""
    try:
        path = Path(str(distribution("edgeqkv").locate_file(f"edgeqkv/{name}")))
    except PackageNotFoundError as error:
        raise MissingPackage("edgeqkv is not installed, so its compiled kernel is not there: pip install edgeqkv") from error
    if not path.is_file() and "executorch" in name:
        raise MissingPackage(
            "this edgeqkv was installed without its ExecuTorch session, which is built beside the package executorch: "
            'pip install "executorch==1.5.1", then pip install --force-reinstall --no-deps --no-cache-dir --no-build-isolation '
            "edgeqkv"
        )
    if not path.is_file():
        raise MissingPackage(
            "this edgeqkv was installed without its compiled kernel: there was no C++ compiler (Debian: g++), "
            "EDGEQKV_NO_NATIVE was set, or the build failed (pip install -v shows why)"
        )
    return path
