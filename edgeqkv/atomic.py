"""Folders and files that appear whole or not at all."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edgeqkv.errors import EdgeQKVError


@contextmanager
def atomic_folder(target: Path, owned_by: str) -> Iterator[Path]:
    """A new folder beside ``target`` that takes its place when the block ends well, and is removed when it does not.

    An existing target is replaced only when it holds the file ``owned_by`` (so it is one of ours) or is empty.
    """
    target = Path(os.path.abspath(target))
    for path in (target, *target.parents):
        if path.exists() and not path.is_dir():
            raise EdgeQKVError(f"cannot write {target}: {path} is a file; name a folder to write to")
    if target.is_dir() and any(target.iterdir()) and not (target / owned_by).exists():
        raise EdgeQKVError(f"{target} holds other files and no {owned_by}, so it is not overwritten; name another folder")
    with _explained(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        with _explained(target):
            yield scratch
            os.chmod(scratch, 0o755)
            old = scratch.with_name(scratch.name + ".old")
            if target.exists():
                os.rename(target, old)
            try:
                os.rename(scratch, target)
            except OSError:
                if old.exists():
                    os.rename(old, target)
                raise
            shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def atomic_write(target: Path, data: bytes) -> None:
    """Replace one file; a reader sees the old content or the new, never a part."""
    with _explained(target):
        descriptor, scratch = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
            os.chmod(scratch, 0o644)
            os.replace(scratch, target)
        except BaseException:
            os.unlink(scratch)
            raise


@contextmanager
def _explained(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise EdgeQKVError(f"cannot write {target}: {error.strerror or error}; nothing was left behind") from error
