"""Temporary folders that do not outlive us: what a killed program left of its own is removed by the next one."""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PREFIX, LOCK = "edgeqkv-", "lock"


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A new folder, removed at the end. Its lock is held as long as we live, whatever ends us."""
    _remove_abandoned(Path(tempfile.gettempdir()))
    folder = Path(tempfile.mkdtemp(prefix=PREFIX))
    try:
        with (folder / LOCK).open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _remove_abandoned(parent: Path) -> None:
    """Folders of ours, of the same user, whose lock nobody holds."""
    for path in parent.glob(f"{PREFIX}*/{LOCK}"):
        try:
            if path.parent.stat().st_uid != os.getuid():
                continue
            with path.open("r+") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path.parent, ignore_errors=True)
        except OSError:  # in use, or gone in the meantime
            continue
