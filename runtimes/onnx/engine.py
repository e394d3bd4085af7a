"""ONNX Runtime on a static cache that is updated in place through IOBinding."""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np

from edgeqkv.cache import CacheLayout, position_axis
from edgeqkv.errors import EdgeQKVError
from edgeqkv.runtimes.onnx.library import onnxruntime


class OnnxEngine:
    """Runs a graph that :mod:`edgeqkv.export.onnx` builds. ``aliases`` maps its cache outputs to its cache inputs;
    ``operators`` is our library of custom operators, for the graphs that need it.

    Every cache tensor is allocated once. Each is bound as the graph's input and as the output that succeeds it, so that the
    runtime writes the new rows where the old ones lie and copies nothing. A plain ``run()`` would copy the cache each step.
    """

    def __init__(
        self,
        model: Path,
        layout: CacheLayout,
        aliases: Mapping[str, str],
        vocab_size: int,
        threads: int | None,
        operators: Path | None = None,
    ) -> None:
        ort = onnxruntime()
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = threads or 0
        options.inter_op_num_threads = 1
        # A block of activations planned for each shape (a step, a prompt's piece) would stay allocated: 8 MiB at 300M, and no
        # faster.
        options.enable_mem_pattern = False
        # Waiting threads must not spin on after a step: on a phone that is battery, beside another session it is time.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        try:
            if operators is not None:
                if threads is not None:
                    options.add_session_config_entry("edgeqkv.threads", str(threads))
                options.register_custom_ops_library(str(operators))
            self._session = ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's errors have no common base class
            raise EdgeQKVError(f"onnxruntime {ort.__version__} cannot load {model}: {error}") from error
        self._version: str = ort.__version__
        self._allocate_value = ort.OrtValue.ortvalue_from_numpy
        self._layout, self._aliases, self._vocab_size = layout, aliases, vocab_size
        self._axes = {buffer.name: position_axis(layout, buffer.name) for buffer in layout.buffers}
        try:
            self._allocate()
        except Exception as error:  # the graph has other inputs or outputs than the manifest says
            raise EdgeQKVError(f"{model} is another graph than the manifest describes: {error}; export it again") from error

    def _allocate(self) -> None:
        """The cache, and what a step is bound to."""
        self._caches = {b.name: self._allocate_value(np.zeros(b.shape, b.dtype)) for b in self._layout.buffers}
        self._logits = np.empty(self._vocab_size, np.float32)
        self._position = np.zeros(1, np.int64)
        # Decoding binds once: the one token, its position and the logits keep their place in memory from step to step.
        self._token = np.zeros(1, np.int64)
        self._decode = self._bound(self._token)

    def fork(self) -> "OnnxEngine":
        other = copy.copy(self)  # the same session of ONNX Runtime, which several threads may run
        other._allocate()
        return other

    @property
    def version(self) -> str:
        return self._version

    @property
    def cache_bytes(self) -> int:
        """Bytes of the buffers that are really there (static scales are constants of the graph)."""
        return sum(cast(int, value.numpy().nbytes) for value in self._caches.values())

    def run(self, ids: np.ndarray, position: int) -> np.ndarray:
        """Append ``ids`` (int64 [T]) at ``position``; logits of the last one, float32 [vocab_size]."""
        self._position[0] = position
        if len(ids) == 1:
            self._token[0] = ids[0]
            binding = self._decode
        else:
            binding = self._bound(np.ascontiguousarray(ids, np.int64))
        try:
            self._session.run_with_iobinding(binding)
        except Exception as error:  # onnxruntime's errors have no common base class
            raise EdgeQKVError(f"onnxruntime {self._version} stopped at position {position}: {error}") from error
        return self._logits.copy()

    def read(self, name: str, depth: int) -> np.ndarray:
        return np.ascontiguousarray(self._rows(name, 0, depth))

    def write(self, name: str, rows: np.ndarray, first: int = 0) -> None:
        self._rows(name, first, rows.shape[self._axes[name]])[...] = rows

    def _rows(self, name: str, first: int, count: int) -> np.ndarray:
        """Rows of a buffer where they lie: an OrtValue's numpy() shares its memory on the CPU."""
        array: np.ndarray = self._caches[name].numpy()
        return array[(slice(None),) * self._axes[name] + (slice(first, first + count),)]

    def close(self) -> None:
        self._decode = self._session = None
        self._caches.clear()

    def _bound(self, ids: np.ndarray) -> Any:
        binding = self._session.io_binding()
        for name, array in (("ids", ids), ("position", self._position)):
            binding.bind_input(name, "cpu", 0, np.int64, array.shape, array.ctypes.data)
        for name, value in self._caches.items():
            binding.bind_ortvalue_input(name, value)
        binding.bind_output("logits", "cpu", 0, np.float32, self._logits.shape, self._logits.ctypes.data)
        for output, name in self._aliases.items():
            binding.bind_ortvalue_output(output, self._caches[name])
        return binding
