"""Folders and files that appear whole or not at all."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edgeqkv.errors import EdgeQKVError


@contextmanager
def atomic_folder(target: Path, ours: tuple[str, ...] = ()) -> Iterator[Path]:
    """A new folder beside ``target`` that takes its place when the block ends well, and is removed when it does not.

    A target that holds anything is replaced only when it has the entry ``ours[0]`` and none that ``ours`` does not name;
    without ``ours``, never.
    """
    target = Path(target).resolve()
    for path in (target, *target.parents):
        if path.exists() and not path.is_dir():
            raise EdgeQKVError(f"cannot write {target}: {path} is a file; name a folder to write to")
    refuse_to_replace(target, ours)
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


def refuse_to_replace(target: Path, ours: tuple[str, ...] = ()) -> None:
    """Raise :class:`EdgeQKVError` when :func:`atomic_folder` would not replace ``target``, to know before long work."""
    target = Path(target).resolve()
    held = {entry.name for entry in target.iterdir()} if target.is_dir() else set()
    if held and not (ours and ours[0] in held and held <= set(ours)):
        raise EdgeQKVError(f"{target} exists and holds {min(held)}, so it is not replaced; remove it or name another folder")


def atomic_write(target: Path, data: bytes, mode: int = 0o644, durable: bool = False) -> None:
    """Replace one file; a reader sees the old content or the new, never a part. ``durable`` has it on the disk before the old
    one is gone."""
    with _explained(target):
        descriptor, scratch = tempfile.mkstemp(prefix=".edgeqkv-", dir=target.parent)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                if durable:
                    file.flush()
                    os.fsync(file.fileno())
            os.chmod(scratch, mode)
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
