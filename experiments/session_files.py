"""What saving, restoring and forking a session takes next to prefilling it again.

    python experiments/session_files.py BUNDLE...

All bundles in one process, in turn, round after round. A prompt of random ids fills three quarters of the capacity.
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

import edgeqkv
from edgeqkv.errors import EdgeQKVError
from edgeqkv.progress import progress_bar
from edgeqkv.session import Session
from edgeqkv.tables import mib, table

ROUNDS = 5
PREFILLS = 1  # of them the slow part; it says nothing new a second time


def timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def visit(session: Session, ids: list[int], file: Path, seconds: dict[str, list[float]], prefill: bool) -> None:
    """One round of one session; each figure's seconds are appended."""
    if prefill:
        session.reset()
        seconds["prefill"].append(timed(lambda: session.prefill(ids)))
    seconds["save"].append(timed(lambda: session.save(file)))
    seconds["restore"].append(timed(lambda: session.restore(file)))
    forks: list[Session] = []
    seconds["fork"].append(timed(lambda: forks.append(session.fork())))
    forks[0].close()


def measure(bundles: list[Path]) -> list[list[str]]:
    sessions = [edgeqkv.open(bundle) for bundle in bundles]
    depth = 3 * min(session.capacity for session in sessions) // 4
    seconds = [{name: list[float]() for name in ("prefill", "save", "restore", "fork")} for _ in sessions]
    sizes = [0] * len(sessions)
    with tempfile.TemporaryDirectory(prefix="edgeqkv-") as folder, progress_bar("sessions") as update:
        for number in range(ROUNDS):
            for i, session in enumerate(sessions):
                update(session.manifest.model.variant, number * len(sessions) + i, ROUNDS * len(sessions))
                known = session.manifest.model.config.token_count
                ids = np.random.default_rng(0).integers(known, size=depth).tolist()
                visit(session, ids, Path(folder) / f"{i}.session", seconds[i], number < PREFILLS)
                sizes[i] = (Path(folder) / f"{i}.session").stat().st_size
    rows = []
    for session, size, taken in zip(sessions, sizes, seconds, strict=True):
        cache = session.artifact.cache.dtype
        row = [f"{session.manifest.model.variant}, {cache} cache, {session.artifact.name}", f"{depth:,}", mib(size, 2) or ""]
        row.append(f"{1e3 * min(taken['prefill']):,.0f}")
        row += [f"{1e3 * min(taken[n]):,.1f} {1e3 * statistics.median(taken[n]):,.1f}" for n in ("save", "restore", "fork")]
        rows.append(row)
    return rows


def main(bundles: list[Path]) -> None:
    header = ["variant, cache, runtime", "depth", "file MiB", "prefill ms", "save ms", "restore ms", "fork ms"]
    rows = measure(bundles)
    print(f"a session at a depth: prefilled once, then min and median ms of {ROUNDS} rounds; save waits for the disk\n")
    print(table(header, rows))


if __name__ == "__main__":
    try:
        main([Path(argument) for argument in sys.argv[1:]])
    except EdgeQKVError as error:
        sys.exit(f"edgeqkv: {error}")
