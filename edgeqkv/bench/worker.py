"""The process that is measured: holds one bundle, takes one JSON request a line on stdin, answers one on stdout.

Requests: {"do": "load", "bundle": DIR, "runtime": R, "kernel": K, "threads": N}, {"do": "first_token", "tokens": N},
{"do": "fill", "depth": D}, {"do": "prefill", "depth": D, "tokens": N}, {"do": "decode", "depth": D, "steps": N},
{"do": "memory"}. It imports no more than an app would: no torch, no command line.
edgeqkv-run --worker (runtimes/run) answers the same requests without Python.
"""

import dataclasses
import json
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

import edgeqkv
from edgeqkv.bench.record import memory_of_this_process
from edgeqkv.session import Session

WARM_UP_STEPS = 2


class Worker:
    def __init__(self) -> None:
        self._session: Session | None = None
        self._ids = np.random.default_rng(0)

    @property
    def session(self) -> Session:
        if self._session is None:
            raise edgeqkv.EdgeQKVError("no bundle is loaded")
        return self._session

    def load(self, bundle: str, runtime: str, kernel: str, threads: int) -> dict[str, Any]:
        """Seconds from the files to a session; the sha256 check is not timed, the caller has done it."""
        before = memory_of_this_process()
        start = time.perf_counter()
        self._session = edgeqkv.open(bundle, runtime, kernel, threads, check=False)
        seconds = time.perf_counter() - start
        artifact = self._session.artifact
        return {
            "load_s": seconds,
            "start": dataclasses.asdict(before),
            "runtime": artifact.runtime,
            "runtime_version": self._session.runtime_version,
            "kernel": artifact.kernel,
            "cache_bytes": self._session.cache_bytes,
        }

    def first_token(self, tokens: int) -> dict[str, Any]:
        """Seconds from a prompt at depth 0 to the first sampled token."""
        ids = self._random(tokens)
        self.session.reset()
        start = time.perf_counter()
        int(np.argmax(self.session.prefill(ids)))
        return {"seconds": time.perf_counter() - start}

    def fill(self, depth: int) -> dict[str, Any]:
        """Prefill on, from where the session is, to ``depth``."""
        if depth > self.session.depth:
            self.session.prefill(self._random(depth - self.session.depth))
        return {}

    def prefill(self, depth: int, tokens: int) -> dict[str, Any]:
        """Seconds of prefilling ``tokens`` more tokens at ``depth``, over rows that a fill has written before."""
        ids = self._random(tokens)
        self.session.depth = depth
        start = time.perf_counter()
        self.session.prefill(ids)
        return {"seconds": time.perf_counter() - start}

    def decode(self, depth: int, steps: int) -> dict[str, Any]:
        """Seconds of each of ``steps`` single-token steps, the first at ``depth``, after two that are not counted."""
        # The rows are there since the fill; what they hold now does not matter to the clock.
        self.session.depth = depth - WARM_UP_STEPS
        seconds = []
        for i, token in enumerate(self._random(WARM_UP_STEPS + steps)):
            start = time.perf_counter()
            int(np.argmax(self.session.step(token)))
            if i >= WARM_UP_STEPS:
                seconds.append(time.perf_counter() - start)
        return {"seconds": seconds}

    def memory(self) -> dict[str, Any]:
        return dataclasses.asdict(memory_of_this_process())

    def _random(self, count: int) -> list[int]:
        known = self.session.manifest.model.config.token_count
        return [int(token) for token in self._ids.integers(known, size=count)]


def main() -> None:
    worker = Worker()
    verbs: dict[str, Callable[..., dict[str, Any]]] = {
        name: getattr(worker, name) for name in ("load", "first_token", "fill", "prefill", "decode", "memory")
    }
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = verbs[request.pop("do")](**request)
        except edgeqkv.EdgeQKVError as error:
            answer = {"error": str(error), "exit_code": error.exit_code}
        except Exception as error:  # a runtime's own errors have no common base class
            answer = {"error": f"{type(error).__name__}: {error}", "exit_code": edgeqkv.EdgeQKVError.exit_code}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
