"""The compiled libraries and programs that a wheel carries, and what to do where it carries none.

``python -m edgeqkv.native --cflags --libs`` prints what a C or C++ compiler needs to build against libedgeqkv.
"""

import ctypes
import functools
import os
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from edgeqkv.errors import EdgeQKVError, MissingPackage

LIBRARY = "runtimes/native/libedgeqkv"
HEADERS = "runtimes/native/include/edgeqkv.h"
RUNNER = "runtimes/run/edgeqkv-run"
SUFFIX = ".dylib" if sys.platform == "darwin" else ".so"


@functools.cache
def native_library(name: str, cure: str = "install edgeqkv again on this machine") -> Path:
    """Where the library ``name`` (its path in the package, without its suffix) lies; :class:`MissingPackage` says why it cannot
    be used, and ``cure`` what to do when it does not load."""
    path = native_file(f"{name}{SUFFIX}")
    try:
        ctypes.CDLL(str(path))
    except OSError as error:
        raise MissingPackage(f"{path.name} does not load ({error}); {cure}") from error
    return path


def native_program(name: str) -> Path | None:
    """Where the executable ``name`` (its path in the package) lies, or None if this installation has none."""
    try:
        path = native_file(name)
    except MissingPackage:
        return None
    return path if os.access(path, os.X_OK) else None


def native_file(name: str, otherwise: str | None = None) -> Path:
    """Where the compiled file ``name`` (its path in the package) lies; :class:`MissingPackage` where there is none, which says
    ``otherwise`` or why an installation may lack its compiled parts."""
    try:
        path = Path(str(distribution("edgeqkv").locate_file(f"edgeqkv/{name}")))
    except PackageNotFoundError as error:
        raise MissingPackage("edgeqkv is not installed, so its compiled parts are not there: pip install edgeqkv") from error
    if not path.is_file():
        raise MissingPackage(
            otherwise
            or "this edgeqkv was installed without its compiled kernel: there was no C++ compiler (Debian: g++), "
            "EDGEQKV_NO_NATIVE was set, or the build failed (pip install -v shows why)"
        )
    return path


def compiler_flags(cflags: bool, libs: bool) -> str:
    """Flags for a compiler: where the header lies, and the library with its place for the dynamic linker."""
    header, library = native_file(HEADERS), native_file(f"{LIBRARY}{SUFFIX}")
    flags = [f"-I{header.parent}"] if cflags else []
    flags += [f"-L{library.parent}", f"-Wl,-rpath,{library.parent}", "-ledgeqkv"] if libs else []
    return " ".join(flags)


def run() -> None:
    """The command ``edgeqkv-run``: the program over libedgeqkv, in place of this process, with the runtimes' libraries that are
    installed here."""
    program = native_program(RUNNER)
    if program is None:
        print(f"edgeqkv: {_why_not()}", file=sys.stderr)
        raise SystemExit(MissingPackage.exit_code)
    given = [] if "--library" in sys.argv else runtime_libraries()
    os.execv(program, [str(program), *sys.argv[1:], *given])


def runtime_libraries() -> list[str]:
    """``--library PATH`` for each shared library of the runtimes that are installed here, as edgeqkv-run takes them."""
    from edgeqkv.targets import targets

    libraries = [path for target in targets().values() for path in target.runner_libraries() or ()]
    return [word for path in libraries for word in ("--library", str(path))]


def _why_not() -> str:
    try:
        native_file(RUNNER)
    except MissingPackage as error:
        return str(error)
    return "edgeqkv-run is not executable here"


def main() -> None:
    known = {"--cflags", "--libs"}
    asked = set(sys.argv[1:])
    if not asked or not asked <= known:
        print(f"usage: python -m edgeqkv.native [{'] ['.join(sorted(known))}]", file=sys.stderr)
        raise SystemExit(2)
    try:
        print(compiler_flags("--cflags" in asked, "--libs" in asked))
    except EdgeQKVError as error:
        print(f"edgeqkv: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None


if __name__ == "__main__":
    main()
