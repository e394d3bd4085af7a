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

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import onnxruntime

from edgeqkv.bundle import read_bundle
from edgeqkv.native import native_file
from edgeqkv.tables import mib, table

PROMPT, STEPS, THREADS = 512, 16, 2


class Worker:
    """A process that speaks the protocol of edgeqkv/bench/protocol.py."""

    def __init__(self) -> None:
        libraries = [
            next(Path(onnxruntime.__file__).parent.glob("capi/libonnxruntime.so*")),
            native_file("runtimes/executorch/libedgeqkv_executorch.so"),
        ]
        command = [native_file("runtimes/run/edgeqkv-run"), "--worker"]
        self._process = subprocess.Popen(
            [*command, *(part for library in libraries for part in ("--library", library))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, do: str, **arguments: object) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        if "error" in answer:
            raise SystemExit(answer["error"])
        return answer

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

    def close(self) -> None:
        self._process.communicate()


def measure(folder: Path, runtime: str, kernel: str) -> list[str]:
    manifest = read_bundle(folder)
    artifact = next(a for a in manifest.artifacts if (a.runtime, a.kernel) == (runtime, kernel))
    weights = sum((folder / name).stat().st_size for name in artifact.files)
    cache = artifact.cache.bytes
    worker = Worker()
    worker.ask("load", bundle=str(folder), runtime=runtime, kernel=kernel, threads=THREADS)
    worker.ask("prefill", tokens=min(PROMPT, manifest.capacity), depth=0)
    worker.ask("decode", depth=manifest.capacity - STEPS, warm_up=0, steps=STEPS)
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
