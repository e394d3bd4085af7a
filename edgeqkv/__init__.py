"""edgeqkv: export language models with shared attention projections to devices, with a static K-only cache.

Importing this costs numpy and the standard library; everything else is loaded by the part that needs it.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeqkv.errors import CacheFull, EdgeQKVError, MissingPackage

if TYPE_CHECKING:
    from edgeqkv.export.bundle import export_bundle as export
    from edgeqkv.parity import Parity
    from edgeqkv.session import Session

__version__ = "0.1.0"
__all__ = ["CacheFull", "EdgeQKVError", "MissingPackage", "export", "open", "verify"]


def open(  # noqa: A001 - the name reads well where it is used: edgeqkv.open(...)
    bundle: str | Path,
    runtime: str | None = None,
    kernel: str | None = None,
    threads: int | None = None,
    check: bool = True,
) -> "Session":
    """Load a bundle and get a session that prefills and steps.

    ``runtime`` is "onnx", "executorch" or "coreml" (off macOS a numpy interpreter of the package, for checking it); ``kernel``
    is "fused" (our operator reads each cached row once) or "stock" (the runtime's own operators). None takes the bundle's first
    that can run here, and warns when that is not the fused one. ``threads`` None leaves the choice to the runtime, and Core ML
    makes it itself. ``check`` compares every file with the sha256 in the manifest first.
    Raises :class:`EdgeQKVError`.
    """
    from edgeqkv.runtimes import open_bundle

    return open_bundle(Path(bundle), runtime, kernel, threads, check)


def verify(bundle: str | Path, against: str | Path, **options: Any) -> "list[Parity]":
    """Compare every runtime of a bundle with the model it came from; see :func:`edgeqkv.parity.verify`."""
    from edgeqkv.parity import verify as run

    return run(Path(bundle), Path(against), **options)


def __getattr__(name: str) -> Any:
    if name == "export":
        import importlib

        return importlib.import_module("edgeqkv.export")
    raise AttributeError(f"module 'edgeqkv' has no attribute {name!r}")
