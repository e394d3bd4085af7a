"""The process that is measured: holds one bundle and answers the requests of :mod:`edgeqkv.bench.protocol`.

It imports no more than an app would: no torch, no command line.
"""

import contextlib
import json
import platform
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import msgspec
import numpy as np

import edgeqkv
from edgeqkv.bench.memory import Memory, memory_of_this_process
from edgeqkv.bench.plan import Filling
from edgeqkv.bench.protocol import Done, Elapsed, Ids, Loaded, ReadRate, Steps
from edgeqkv.session import Session
from edgeqkv.targets import target_of


class Worker:
    def __init__(self) -> None:
        self._session: Session | None = None
        self._ids = np.random.default_rng(0)
        self._written = 0  # positions whose rows have been written, whatever the session's depth is now

    @property
    def session(self) -> Session:
        if self._session is None:
            raise edgeqkv.EdgeQKVError("no bundle is loaded")
        return self._session

    def load(self, bundle: str, runtime: str, kernel: str | None, threads: int) -> Loaded:
        before = memory_of_this_process()
        start = time.perf_counter()
        self._session = edgeqkv.open(bundle, runtime, kernel, threads, check=False)
        seconds = time.perf_counter() - start
        self._written = 0
        artifact = self._session.artifact
        return Loaded(
            load_s=seconds,
            start=before,
            runtime=artifact.runtime,
            runtime_version=self._session.runtime_version,
            kernel=artifact.kernel,
            cache_bytes=self._session.cache_bytes,
            packages={"python": platform.python_version(), **_versions("numpy", *target_of(artifact).packages)},
        )

    def greedy(self, ids: list[int], tokens: int) -> Ids:
        """What two devices must agree on."""
        self._go_to(0)
        return Ids(tuple(self.session.generate(ids, limit=tokens)))

    def first_token(self, tokens: int) -> Elapsed:
        return self.prefill(0, tokens)

    def fill(self, depth: int, how: Filling = "prefill") -> Done:
        """Go on from the deepest row that has been written."""
        self._go_to(self._written)
        if depth > self._written:
            more = depth - self._written
            self.session.skip(more) if how == "zeros" else self.session.prefill(self._random(more))
        return Done()

    def prefill(self, depth: int, tokens: int) -> Elapsed:
        ids = self._random(tokens)
        self._go_to(depth)
        start = time.perf_counter()
        int(np.argmax(self.session.prefill(ids)))
        return Elapsed(time.perf_counter() - start)

    def decode(self, depth: int, warm_up: int, steps: int, series: int = 1) -> Steps:
        timed, before, begin = [], waited_for_processor(), time.perf_counter()
        for _ in range(series):
            tokens, seconds = self._random(warm_up + steps), []
            self._go_to(depth - warm_up)
            for token in tokens:
                start = time.perf_counter()
                int(np.argmax(self.session.step(token)))
                seconds.append(time.perf_counter() - start)
            timed += seconds[warm_up:]
        taken, after = time.perf_counter() - begin, waited_for_processor()
        return Steps(tuple(timed), None if before is None or after is None else max(0.0, after - before) / taken)

    def bandwidth(self, threads: int, mib: int) -> ReadRate:
        return ReadRate(read_bandwidth(threads, mib), "numpy")

    def memory(self) -> Memory:
        return memory_of_this_process()

    def _go_to(self, depth: int) -> None:
        """Stand at a depth whose rows have been written; what they hold does not matter to the clock, so that those that a
        rewind has left behind may be zeros."""
        self._written = max(self._written, self.session.depth)
        if depth > self._written:
            raise edgeqkv.EdgeQKVError(f"depth {depth} has not been filled, only {self._written} positions")
        self.session.rewind(min(depth, self.session.depth))
        self.session.skip(depth - self.session.depth)

    def _random(self, count: int) -> list[int]:
        known = self.session.manifest.model.config.token_count
        return [int(token) for token in self._ids.integers(known, size=count)]


def read_bandwidth(threads: int, mib: int) -> float:
    """Bytes a second, as runtimes/run/bandwidth.h measures it; numpy looks for a maximum without holding Python's lock."""
    words = np.ones(mib * 2**20 // 8, np.uint64)
    parts, seconds = np.array_split(words, threads), []
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(3):
            start = time.perf_counter()
            list(pool.map(np.max, parts))
            seconds.append(time.perf_counter() - start)
    return words.nbytes / min(seconds)


def waited_for_processor() -> float | None:
    """Seconds that this process's threads together have waited for a processor, as runtimes/run/waiting.h reads it."""
    found = []
    for thread in Path("/proc/self/task").glob("*/schedstat"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            found.append(int(thread.read_text().split()[1]))
    return 1e-9 * sum(found) if found else None


def _versions(*packages: str) -> dict[str, str]:
    found = {}
    for package in packages:
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def main() -> None:
    worker = Worker()
    verbs: dict[str, Callable[..., msgspec.Struct]] = {
        name: getattr(worker, name)
        for name in ("load", "greedy", "first_token", "fill", "prefill", "decode", "bandwidth", "memory")
    }
    for line in sys.stdin:
        request = json.loads(line)
        answer: object
        try:
            answer = verbs[request.pop("do")](**request)
        except edgeqkv.EdgeQKVError as error:
            answer = {"error": str(error), "exit_code": error.exit_code}
        except Exception as error:  # a runtime's own errors have no common base class
            answer = {"error": f"{type(error).__name__}: {error}", "exit_code": edgeqkv.EdgeQKVError.exit_code}
        print(msgspec.json.encode(answer).decode(), flush=True)


if __name__ == "__main__":
    main()
