"""One ``edgeqkv bench``: from folders and options to records, and to the file that keeps them."""

import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from edgeqkv.bench.baseline import given, with_baselines
from edgeqkv.bench.device import connections
from edgeqkv.bench.fleet import Order, measure_devices
from edgeqkv.bench.matrix import Matrix
from edgeqkv.bench.measure import Outcome
from edgeqkv.bench.memory import available_memory
from edgeqkv.bench.program import Programs
from edgeqkv.bench.record import Failure, Record
from edgeqkv.bench.results import append, check_writable, read_results
from edgeqkv.errors import EdgeQKVError
from edgeqkv.progress import note, progress_bar, progress_bars


@dataclass(frozen=True)
class Fleet:
    """The devices by name, and how they are reached. ``folder`` of each gets one of ours; ``clean`` removes it at the end."""

    names: tuple[str, ...]
    folder: str | None
    ssh_config: Path | None
    clean: bool

    def check(self) -> None:
        if self.folder is not None and not self.folder.startswith("/"):
            raise EdgeQKVError(f"--folder {self.folder!r} is not an absolute path; name one of the device")


@dataclass(frozen=True)
class Results:
    """The file that records are appended to, if any; ``resume`` goes on from what it holds."""

    file: Path | None
    resume: bool
    again_throttled: bool

    def check(self) -> None:
        if self.file is not None:
            check_writable(self.file)
        elif self.resume:
            raise EdgeQKVError("--resume needs --results with the file of the run that was interrupted")

    def earlier(self) -> list[Record]:
        if not self.resume or self.file is None or not self.file.exists():
            return []
        records, _ = read_results([self.file])
        return [record for record in records if not (self.again_throttled and record.throttled)]

    def save(self, records: Sequence[Record | Failure]) -> None:
        if self.file is not None:
            append(self.file, records)


def run(folders: Sequence[Path], fleet: Fleet, matrix: Matrix, programs: Programs, results: Results, baseline: bool) -> Outcome:
    """Measure the bundles in ``folders``, with ``baseline`` besides those that they are compared with.

    Whatever can be refused is refused before anything is measured. KeyboardInterrupt, and SIGTERM as that, is raised when what
    was measured is safe.
    """
    fleet.check()
    results.check()
    programs.check()
    earlier = results.earlier()
    here = available_memory() if fleet.names == ("local",) else None
    with progress_bar("bench") as update:
        bundles = with_baselines(folders, here, lambda what: update(what, 0, 0), note) if baseline else given(folders)
    order = Order(bundles, matrix, programs, earlier, fleet.clean)
    with (
        _terminated_as_interrupted(),
        connections(fleet.folder, fleet.ssh_config) as opened,
        progress_bars(fleet.names) as bars,
    ):
        return measure_devices(fleet.names, order, opened, bars.__getitem__, results.save)


@contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
