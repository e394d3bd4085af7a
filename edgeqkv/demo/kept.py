"""Exports of an earlier demo: they are kept as long as the code that writes them is the same."""

import hashlib
import shutil
from pathlib import Path

import edgeqkv
from edgeqkv.atomic import atomic_write
from edgeqkv.errors import EdgeQKVError
from edgeqkv.tables import mib

STAMP = "made-by.txt"
ROOM = 3 * 2**30  # bytes: five bundles of 300 MiB, and one model of 600 MiB at a time


def forget_old(folder: Path) -> None:
    """Remove ``folder`` if another version of the exporters wrote it; else leave it, or make it. A folder that is not a demo's
    is refused."""
    stamp, ours = folder / STAMP, exporters()
    if folder.exists() and any(folder.iterdir()):
        if not stamp.is_file():
            raise EdgeQKVError(f"{folder} holds files that are not a demo's; name another folder with --out")
        if stamp.read_text(encoding="utf-8").strip() == ours:
            return
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if free < ROOM:
        raise EdgeQKVError(
            f"{folder.resolve()} has {mib(free, 0)} MiB free, and the demo needs {mib(ROOM, 0)}; name another with --out"
        )
    atomic_write(stamp, f"{ours}\n".encode())


def exporters() -> str:
    """Version of edgeqkv, and a digest of all of its Python source that an export can depend on."""
    root = Path(edgeqkv.__file__).parent
    sources = sorted([*root.glob("*.py"), *(root / "export").rglob("*.py")])
    digest = hashlib.sha256()
    for source in sources:
        digest.update(source.relative_to(root).as_posix().encode() + b"\0" + source.read_bytes())
    return f"{edgeqkv.__version__} {digest.hexdigest()[:16]}"
