"""What files are: their sha256, computed once for a file and its state."""

import functools
import hashlib
import os
from pathlib import Path


def file_sha256(path: Path) -> str:
    """The sha256 of a file. It is read again when its place, size or times of change differ from what they were: a file that
    is changed within one process is noticed unless the change keeps all of them."""
    state = os.stat(path)
    return _sha256(str(path), state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns)


@functools.lru_cache(maxsize=4096)
def _sha256(path: str, *state: int) -> str:
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
