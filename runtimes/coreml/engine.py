"""Core ML packages as an engine: Apple's runtime on macOS, and anywhere what computes the package without it."""

import copy
from pathlib import Path
from typing import Any

import numpy as np

from edgeqkv.cache import CacheLayout, identifier
from edgeqkv.errors import EdgeQKVError
from edgeqkv.manifest import Executor
from edgeqkv.runtimes.coreml.package import require_coremltools


class CoremlEngine:
    """Feeds ``chunk`` tokens at once to the function ``prefill`` and any other number one by one to ``decode``.

    Both work on one set of states. What executes them is one of three with the same calls: ``new_states(function)``;
    ``run(function, inputs, states)``, which returns the outputs by name; ``read_state(states, name)`` and
    ``write_state(states, name, value)``, which are of a whole state.
    """

    def __init__(self, package: Path, layout: CacheLayout, chunk: int, executor: Executor) -> None:
        self._version: str = require_coremltools().__version__
        self._chunk = chunk
        self._program: Any
        if executor == "runtime":
            self._program = AppleRuntime(package)
        elif executor == "interpreter":
            from edgeqkv.runtimes.coreml.interpreter import Interpreter

            self._program = Interpreter(package)
        else:
            from edgeqkv.runtimes.coreml.value_inference import ValueInference

            self._program = ValueInference(package)
        self._states = self._program.new_states("decode")
        self._state_names = [identifier(buffer.name) for buffer in layout.buffers]

    @property
    def version(self) -> str:
        return self._version

    @property
    def cache_bytes(self) -> int:
        return sum(self._program.read_state(self._states, name).nbytes for name in self._state_names)

    def read(self, name: str, depth: int) -> np.ndarray:
        """The first ``depth`` rows of a cache buffer: fp16 [1, n_kv_head, depth, width], a copy."""
        state = self._program.read_state(self._states, identifier(name))
        rows: np.ndarray = state[:, :, :depth].astype(np.float16)
        return rows

    def write(self, name: str, rows: np.ndarray, first: int = 0) -> None:
        """Put ``rows``, as :meth:`read` gave them, into a cache buffer, from position ``first`` on."""
        state = np.array(self._program.read_state(self._states, identifier(name)), np.float16)
        state[:, :, first : first + rows.shape[2]] = rows
        self._program.write_state(self._states, identifier(name), state)

    def fork(self) -> "CoremlEngine":
        """A second engine over the same program, with states of its own."""
        other = copy.copy(self)
        other._states = self._program.new_states("decode")
        return other

    def close(self) -> None:
        """Let go of program and states."""
        self._program = self._states = None

    def run(self, ids: np.ndarray, position: int) -> np.ndarray:
        """Append ``ids`` (int64 [T]) at ``position``; logits of the last one, float32 [vocab_size]."""
        if len(ids) == self._chunk:
            return self._call("prefill", ids, position)
        logits = np.empty(0, np.float32)
        for i in range(len(ids)):
            logits = self._call("decode", ids[i : i + 1], position + i)
        return logits

    def _call(self, function: str, ids: np.ndarray, position: int) -> np.ndarray:
        inputs = {"ids": ids[None].astype(np.int32), "position": np.array([position], np.int32)}
        logits: np.ndarray = self._program.run(function, inputs, self._states)["logits"]
        return logits


class AppleRuntime:
    """Core ML itself through coremltools, on macOS 15 or newer. Written to its documentation, and not run yet."""

    def __init__(self, package: Path) -> None:
        ct = require_coremltools()
        try:
            self._functions = {name: ct.models.MLModel(str(package), function_name=name) for name in ("prefill", "decode")}
        except Exception as error:  # coremltools passes on what Core ML says, in several classes
            raise EdgeQKVError(f"Core ML cannot load {package}: {error}") from error

    def new_states(self, function: str) -> Any:
        return self._functions[function].make_state()

    def read_state(self, states: Any, name: str) -> np.ndarray:
        out: np.ndarray = states.read_state(name)
        return out

    def write_state(self, states: Any, name: str, value: np.ndarray) -> None:
        states.write_state(name, value)

    def run(self, function: str, inputs: dict[str, np.ndarray], states: Any) -> Any:
        return self._functions[function].predict(inputs, state=states)
