"""This package's Python files as one zip, for a device's Python to import from."""

import importlib.resources
import zipfile
from importlib.resources.abc import Traversable
from pathlib import Path


def pack_package(folder: Path) -> Path:
    """``edgeqkv.zip`` in ``folder``; the same bytes whenever the files are the same."""
    files, target = _python_files(importlib.resources.files("edgeqkv"), "edgeqkv"), folder / "edgeqkv.zip"
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted(files):
            archive.writestr(zipfile.ZipInfo(name), files[name].read_bytes(), zipfile.ZIP_DEFLATED)
    return target


def _python_files(folder: Traversable, prefix: str) -> dict[str, Traversable]:
    found: dict[str, Traversable] = {}
    for entry in folder.iterdir():
        if entry.is_dir():
            found |= _python_files(entry, f"{prefix}/{entry.name}")
        elif entry.name.endswith(".py"):
            found[f"{prefix}/{entry.name}"] = entry
    return found
