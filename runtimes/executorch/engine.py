"""ExecuTorch through our own session (edgeqkv_executorch.h), which holds the cache; no torch."""

import ctypes
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from edgeqkv.cache import CacheLayout, identifier, position_axis
from edgeqkv.errors import CheckFailed, EdgeQKVError, MissingPackage, require
from edgeqkv.manifest import Artifact

SENTENCE = 1024  # bytes of an error


class _Info(ctypes.Structure):
    """edgeqkv_executorch_info."""

    _fields_ = (
        ("chunk", ctypes.c_int32),
        ("vocab_size", ctypes.c_int32),
        ("cache_bytes", ctypes.c_int64),
        ("arena_bytes", ctypes.c_int64),
    )


class ExecutorchEngine:
    """Runs a program that :mod:`edgeqkv.export.executorch` writes; ``library`` is our compiled session.

    A stock program attends with ExecuTorch's llama operators, which its package has for hosts with torch alone. A call while
    another thread is inside one is refused.
    """

    def __init__(
        self, program: Path, layout: CacheLayout, artifact: Artifact, vocab_size: int, threads: int | None, library: Path
    ) -> None:
        self._made_of = (program, layout, artifact, vocab_size, threads, library)
        self._layout, self._in_use = layout, threading.Lock()
        chunk, stock = artifact.prefill_chunk, artifact.kernel == "stock"
        if stock:
            _load_llama_operators()
        # Those operators write a whole chunk, padding too, so that where no chunk fits any more, tokens go one by one.
        self._chunks_end = layout.capacity - chunk if stock else layout.capacity
        self._library = ctypes.CDLL(str(library))
        self._library.edgeqkv_executorch_version.restype = ctypes.c_char_p
        if self.version != artifact.runtime_version:
            made_by = artifact.runtime_version
            raise EdgeQKVError(f"{program} was made by ExecuTorch {made_by}, and this is {self.version}; export it again")
        session, info = ctypes.c_void_p(), _Info()
        self._call("open", os.fsencode(program), threads or 0, ctypes.byref(session), ctypes.byref(info))
        self._session: ctypes.c_void_p | None = session
        self._info = info
        found, expected = (info.chunk, info.vocab_size, info.cache_bytes), (chunk, vocab_size, layout.bytes)
        if found != expected:
            raise EdgeQKVError(
                f"{program} is another program than the manifest describes: its chunk, vocabulary and cache bytes are {found}, "
                f"not {expected}; export the bundle again"
            )

    @property
    def version(self) -> str:
        text: bytes = self._library.edgeqkv_executorch_version()
        return text.decode()

    @property
    def cache_bytes(self) -> int:
        """Bytes of the cache tensors in the program's arena."""
        return int(self._info.cache_bytes)

    def run(self, ids: np.ndarray, position: int) -> np.ndarray:
        """Append ``ids`` (int64 [T]) at ``position``; logits of the last one, float32 [vocab_size]."""
        with self._alone():
            if position > self._chunks_end:
                for i, token in enumerate(ids[:-1]):
                    self._run(np.array([token]), position + i)
                ids, position = ids[-1:], position + len(ids) - 1
            return self._run(ids, position)

    def _run(self, ids: np.ndarray, position: int) -> np.ndarray:
        ids = np.ascontiguousarray(ids, np.int64)
        logits = np.empty(self._info.vocab_size, np.float32)
        where = (ctypes.c_int32(len(ids)), ctypes.c_int64(position))
        self._call("run", self._session, ids.ctypes.data_as(ctypes.c_void_p), *where, logits.ctypes.data_as(ctypes.c_void_p))
        return logits

    def read(self, name: str, depth: int) -> np.ndarray:
        with self._alone():
            return self._rows(name, 0, depth).copy()

    def write(self, name: str, rows: np.ndarray, first: int = 0) -> None:
        with self._alone():
            self._rows(name, first, rows.shape[position_axis(self._layout, name)])[...] = rows

    def _rows(self, name: str, first: int, count: int) -> np.ndarray:
        """Rows of a buffer where they lie in the session's arena."""
        buffer = next(buffer for buffer in self._layout.buffers if buffer.name == name)
        data, size = ctypes.c_void_p(), ctypes.c_size_t()
        self._call("buffer", self._session, identifier(name).encode(), ctypes.byref(data), ctypes.byref(size))
        if size.value != buffer.bytes:
            raise EdgeQKVError(f"the program's {name} has {size.value} bytes, not {buffer.bytes}; export the bundle again")
        memory = (ctypes.c_uint8 * buffer.bytes).from_address(data.value or 0)
        array = np.ctypeslib.as_array(memory).view(buffer.dtype).reshape(buffer.shape)
        before = (slice(None),) * position_axis(self._layout, name)
        rows: np.ndarray = array[(*before, slice(first, first + count))]
        return rows

    def fork(self) -> "ExecutorchEngine":
        return ExecutorchEngine(*self._made_of)  # XNNPACK packs a matrix once for the process

    def close(self) -> None:
        with self._alone():
            session, self._session = self._session, None
            if session is not None:
                self._library.edgeqkv_executorch_close(session)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        if not self._in_use.acquire(blocking=False):
            raise EdgeQKVError("the session is in use by another thread; give each thread a session of its own")
        try:
            yield
        finally:
            self._in_use.release()

    def _call(self, name: str, *arguments: Any) -> None:
        """Raises what the function says went wrong."""
        function: Callable[..., int] = getattr(self._library, f"edgeqkv_executorch_{name}")
        sentence = ctypes.create_string_buffer(SENTENCE)
        code = function(*arguments, sentence, ctypes.c_size_t(SENTENCE))
        if code:
            kinds = {kind.exit_code: kind for kind in (CheckFailed, EdgeQKVError, MissingPackage)}
            raise kinds[code](sentence.value.decode(errors="replace"))

    def __del__(self) -> None:
        if getattr(self, "_session", None) is not None:
            self.close()


def _load_llama_operators() -> None:
    """Into this process and ExecuTorch's registry: the package has them in a library that needs torch's."""
    folder = Path(require("executorch.extension", "executorch").__path__[0])
    require("torch", "torch")  # loads the libraries that this one names
    try:
        ctypes.CDLL(str(folder / "llm/custom_ops/libcustom_ops_aot_lib.so"))
    except OSError as error:
        raise MissingPackage(f"ExecuTorch's llama operators cannot be loaded: {error}") from error
