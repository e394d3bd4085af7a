"""Folders and files that appear whole or not at all, whatever ends the program meanwhile.

What is written lies beside its target, locked for as long as its writer lives, and takes the target's place in one step. What a
killed writer left there, the next one for the same target removes: nobody holds its lock any more.
"""

import ctypes
import errno
import fcntl
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from edgeqkv.errors import EdgeQKVError

PART = ".part"


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
        scratch, lock = _locked(target, lambda prefix, parent: tempfile.mkdtemp(PART, prefix, parent))
    try:
        with _explained(target):
            yield scratch
            os.chmod(scratch, 0o755)
            refuse_to_replace(target, ours)  # something may have come there meanwhile
            while not _take_place(scratch, target):
                refuse_to_replace(target, ours)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        os.close(lock)


def refuse_to_replace(target: Path, ours: tuple[str, ...] = ()) -> None:
    """Raise :class:`EdgeQKVError` when :func:`atomic_folder` would not replace ``target``, to know before long work."""
    target = Path(target).resolve()
    held = _held(target)
    if held and not (ours and ours[0] in held and held <= set(ours)):
        raise EdgeQKVError(f"{target} exists and holds {min(held)}, so it is not replaced; remove it or name another folder")


def _held(folder: Path) -> set[str]:
    """The names in a folder, none where there is no folder. Another writer may exchange it and empty the old one meanwhile:
    what was listed has to be there still."""
    while True:
        try:
            opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        except (FileNotFoundError, NotADirectoryError):
            return set()
        try:
            names = set(os.listdir(opened))
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(opened), os.stat(folder)):
                    return names
        finally:
            os.close(opened)


def atomic_write(target: Path, data: bytes, mode: int = 0o644, durable: bool = False) -> None:
    """Replace one file, as :func:`atomic_file` does."""
    with atomic_file(target, mode, durable) as file:
        file.write(data)


@contextmanager
def atomic_file(target: Path, mode: int = 0o644, durable: bool = False) -> Iterator[BinaryIO]:
    """A file to write, which replaces ``target`` when the block ends well; a reader sees the old content or the new, never a
    part. ``durable`` has it on the disk before the old one is gone."""

    def new(prefix: str, parent: Path) -> str:
        descriptor, name = tempfile.mkstemp(PART, prefix, parent)
        os.close(descriptor)
        return name

    with _explained(target):
        scratch, lock = _locked(target, new)
        try:
            with scratch.open("wb") as file:
                yield file
                if durable:
                    file.flush()
                    os.fsync(file.fileno())
            os.chmod(scratch, mode)
            os.replace(scratch, target)
        finally:
            with suppress(FileNotFoundError):
                os.unlink(scratch)
            os.close(lock)


def _locked(target: Path, new: Callable[[str, Path], str]) -> tuple[Path, int]:
    """What ``new`` makes beside ``target``, and the descriptor that holds its lock."""
    prefix = f".{target.name}."
    _remove_abandoned(target.parent, prefix)
    while True:
        scratch = Path(new(prefix, target.parent))
        with suppress(FileNotFoundError):  # taken for abandoned before it was locked
            lock = os.open(scratch, os.O_RDONLY)
            with suppress(OSError):  # a file system without locks: what is left there stays
                fcntl.flock(lock, fcntl.LOCK_EX)
            if scratch.exists():
                return scratch, lock
            os.close(lock)


def _remove_abandoned(parent: Path, prefix: str) -> None:
    """Scratch folders and files of ours, of the same user, whose lock nobody holds."""
    for path in parent.iterdir():
        if not (path.name.startswith(prefix) and path.name.endswith(PART)):
            continue
        with suppress(OSError):  # in use, or gone in the meantime
            lock = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
            try:
                if os.fstat(lock).st_uid == os.getuid():
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink()
            finally:
                os.close(lock)


def _take_place(scratch: Path, target: Path) -> bool:
    """Put ``scratch`` where ``target`` is, and what was there, if anything, where ``scratch`` was. False if the target came or
    went meanwhile."""
    try:
        if not target.exists():
            os.rename(scratch, target)
        elif not _exchange(scratch, target):
            old = scratch.with_suffix(".old")  # which nobody takes for abandoned
            os.rename(target, old)
            try:
                os.rename(scratch, target)
            except OSError:
                os.rename(old, target)
                raise
            os.rename(old, scratch)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTEMPTY, errno.EEXIST) and scratch.exists():
            return False
        raise
    return True


def _exchange(one: Path, other: Path) -> bool:
    """Swap two names in one step, by Linux's renameat2(2) or macOS's renamex_np(2). False where the system or the file system
    cannot."""
    libc = ctypes.CDLL(None, use_errno=True)
    first, second = os.fsencode(one), os.fsencode(other)
    try:
        if sys.platform == "darwin":
            failed = libc.renamex_np(first, second, 2)  # RENAME_SWAP
        else:
            failed = libc.renameat2(-100, first, -100, second, 2)  # AT_FDCWD, RENAME_EXCHANGE
    except AttributeError:
        return False
    if failed and ctypes.get_errno() not in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(other))
    return not failed


@contextmanager
def _explained(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or (os.strerror(errno.ENOSPC) if _is_full(target.parent) else str(error))
        raise EdgeQKVError(f"cannot write {target}: {reason}; nothing was left behind") from error


def _is_full(folder: Path) -> bool:
    """For libraries that raise an OSError without a number when a write is cut short."""
    return shutil.disk_usage(folder).free < 2**20
