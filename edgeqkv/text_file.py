"""Reading a text file that a user named."""

from pathlib import Path

from edgeqkv.errors import EdgeQKVError
from edgeqkv.strict import read_bounded

LARGEST = 2**30  # bytes: a text for calibration


def read_text(path: Path, largest: int = LARGEST) -> str:
    """The content of a UTF-8 file; :class:`EdgeQKVError` that names it when there is none."""
    try:
        return read_bounded(Path(path), largest).decode("utf-8")
    except UnicodeDecodeError as error:
        raise EdgeQKVError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start})") from error
