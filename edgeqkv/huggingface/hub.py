"""Where a Hugging Face folder lies: at a path, or in the hub's local cache. Nothing is downloaded.

The cache's layout (huggingface.co/docs/hub/local-cache): ``models--ORG--NAME/refs/main`` holds the name of a folder in
``snapshots/``, whose files are links into ``blobs/``.
"""

import os
import re
from pathlib import Path

from edgeqkv.strict import read_bounded, read_json

CONFIG = "config.json"


def find_folder(path: Path) -> Path | None:
    """The folder that ``path`` names if it holds a Hugging Face model, else that of the hub's "org/name" in the local cache."""
    path = Path(path)
    if path.exists():
        return path if _is_huggingface(path) else None
    if re.fullmatch(r"[\w.-]+/[\w.-]+", path.as_posix()) is None or ".." in path.parts:
        return None
    repository = cache_folder() / f"models--{'--'.join(path.parts)}"
    head = repository / "refs" / "main"
    if not head.is_file():
        return None
    snapshot = read_bounded(head, 100).decode("ascii", "replace").strip()
    if re.fullmatch(r"[\w-]+", snapshot) is None:
        return None
    folder = repository / "snapshots" / snapshot
    return folder if _is_huggingface(folder) else None


def cache_folder() -> Path:
    """The hub's cache: HF_HUB_CACHE, else ``hub`` in HF_HOME, else in ``huggingface`` in the user's caches."""
    if named := os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE"):
        return Path(named).expanduser()
    if home := os.environ.get("HF_HOME"):
        return Path(home).expanduser() / "hub"
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "huggingface" / "hub"


def _is_huggingface(folder: Path) -> bool:
    if not (folder / CONFIG).is_file():
        return False
    data = read_json(folder / CONFIG)
    return isinstance(data, dict) and "model_type" in data
