"""What the memory of edgeqkv-run consists of besides weights and cache.

    python experiments/memory_parts.py BUNDLE:RUNTIME:KERNEL...

Each bundle is held by a process of its own on two threads, is given a prompt of 512 random ids (or all that fit), and then
takes 16 steps at the end of its cache. MiB, by /proc/PID/smaps:

weights    the size of the files
cache      what the formula says
rest       what is in memory after the last step, less both
libraries  of the rest, pages of programs and libraries
files      of the rest, pages of the bundle that are still mapped; the system can drop them
work       of the rest, anonymous memory beyond weights and cache: activations, the graph, what the runtime adds to weights
           when it packs them; below 0 where weights are read from the mapped file
peak       the most that the process ever had in memory
"""

import re
import shlex
import sys
from pathlib import Path

from edgeqkv.bench.device import LOCAL
from edgeqkv.bench.protocol import Elapsed, Loaded, Steps
from edgeqkv.bench.worker_process import WorkerProcess
from edgeqkv.bundle import read_bundle
from edgeqkv.native import RUNNER, native_file, runtime_libraries
from edgeqkv.tables import mib, table

PROMPT, STEPS, THREADS = 512, 16, 2


class Held(WorkerProcess):
    """A process of this machine, whose pages can be looked at."""

    def resident(self, folder: Path) -> dict[str, int]:
        """Bytes in memory now, and the peak: of the bundle's files, of other files, of none."""
        parts = {"files": 0, "libraries": 0, "anonymous": 0}
        part = ""
        for line in Path(f"/proc/{self._process.pid}/smaps").read_text().splitlines():
            if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
                name = line.split(maxsplit=5)[5] if len(line.split(maxsplit=5)) == 6 else ""
                part = "files" if name.startswith(f"{folder}/") else "libraries" if name.startswith("/") else "anonymous"
            elif line.startswith("Rss:"):
                parts[part] += int(line.split()[1]) * 1024
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        parts["peak"] = int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) * 1024
        return parts


def measure(folder: Path, runtime: str, kernel: str) -> list[str]:
    manifest = read_bundle(folder)
    artifact = next(a for a in manifest.artifacts if (a.runtime, a.kernel) == (runtime, kernel))
    weights = sum((folder / name).stat().st_size for name in artifact.files)
    cache = artifact.cache.bytes
    command = [str(native_file(RUNNER)), "--worker", *runtime_libraries()]
    worker = Held(LOCAL, f"exec {shlex.join(command)}", f"{folder.name}:{runtime}:{kernel}")
    worker.ask(Loaded, "load", bundle=str(folder), runtime=runtime, kernel=kernel, threads=THREADS)
    worker.ask(Elapsed, "prefill", tokens=min(PROMPT, manifest.capacity), depth=0)
    worker.ask(Steps, "decode", depth=manifest.capacity - STEPS, warm_up=0, steps=STEPS)
    held = worker.resident(folder)
    worker.close()
    total = held["files"] + held["libraries"] + held["anonymous"]
    figures = [held["peak"], total, weights, cache, total - weights - cache]
    parts = [held["libraries"], held["files"], held["anonymous"] - weights - cache]
    return [f"{manifest.model.variant}, {runtime} {kernel}", *(mib(figure) for figure in (*figures, *parts))]


def main() -> None:
    rows = []
    for argument in sys.argv[1:]:
        folder, runtime, kernel = argument.split(":")
        rows.append(measure(Path(folder).resolve(), runtime, kernel))
    print(table(["MiB", "peak", "now", "weights", "cache", "rest", "libraries", "files", "work"], rows))


if __name__ == "__main__":
    main()
