"""Reading a text file that a user named."""

from pathlib import Path

from edgeqkv.errors import EdgeQKVError


def read_text(path: Path) -> str:
    """The content of a UTF-8 file; :class:`EdgeQKVError` that names it when there is none."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise EdgeQKVError(f"{path} does not exist") from error
    except OSError as error:
        raise EdgeQKVError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise EdgeQKVError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start})") from error
