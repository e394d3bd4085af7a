"""ExecuTorch through our own session (edgeqkv_executorch.h), which holds the cache; no torch."""

import ctypes
import os
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from edgeqkv.cache import CacheLayout
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

    A stock program attends with ExecuTorch's llama operators, which its package has for hosts with torch alone.
    """

    def __init__(
        self, program: Path, layout: CacheLayout, artifact: Artifact, vocab_size: int, threads: int | None, library: Path
    ) -> None:
        chunk, stock = artifact.prefill_chunk, artifact.kernel == "stock"
        if stock:
            _load_llama_operators()
        # Those operators write a whole chunk, padding too, so that where no chunk fits any more, tokens go one by one.
        self._chunks_end = layout.capacity - chunk if stock else layout.capacity
        self._library = ctypes.CDLL(str(library))
        self._library.edgeqkv_executorch_version.restype = ctypes.c_char_p
        require_version(self.version)
        if self.version != artifact.runtime_version:
            made_by = artifact.runtime_version
            raise EdgeQKVError(f"{program} was made by ExecuTorch {made_by}, and this is {self.version}; export it again")
        session, info = ctypes.c_void_p(), _Info()
        self._call("open", os.fsencode(program), threads or 0, ctypes.byref(session), ctypes.byref(info))
        self._session, self._info = session, info
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
        if position > self._chunks_end and len(ids) > 1:
            for i, token in enumerate(ids[:-1]):
                self.run(np.array([token]), position + i)
            ids, position = ids[-1:], position + len(ids) - 1
        ids = np.ascontiguousarray(ids, np.int64)
        logits = np.empty(self._info.vocab_size, np.float32)
        where = (ctypes.c_int32(len(ids)), ctypes.c_int64(position))
        self._call("run", self._session, ids.ctypes.data_as(ctypes.c_void_p), *where, logits.ctypes.data_as(ctypes.c_void_p))
        return logits

    def _call(self, name: str, *arguments: Any) -> None:
        """Raises what the function says went wrong."""
        function: Callable[..., int] = getattr(self._library, f"edgeqkv_executorch_{name}")
        sentence = ctypes.create_string_buffer(SENTENCE)
        code = function(*arguments, sentence, ctypes.c_size_t(SENTENCE))
        if code:
            kinds = {kind.exit_code: kind for kind in (CheckFailed, EdgeQKVError, MissingPackage)}
            raise kinds[code](sentence.value.decode(errors="replace"))

    def __del__(self) -> None:
        session = getattr(self, "_session", None)
        if session is not None:
            self._library.edgeqkv_executorch_close(session)


def require_version(wanted: str) -> None:
    """Raises :class:`MissingPackage` unless the package is this very version: our session is compiled for its C++, and the
    export relies on how it lays out its file."""
    try:
        found = version("executorch").partition("+")[0]
    except PackageNotFoundError:
        return  # its libraries come from elsewhere
    if found != wanted:
        raise MissingPackage(f'executorch is {found} and edgeqkv needs {wanted}: pip install "executorch=={wanted}"')


def _load_llama_operators() -> None:
    """Into this process and ExecuTorch's registry: the package has them in a library that needs torch's."""
    folder = Path(require("executorch.extension", "executorch").__path__[0])
    require("torch", "torch")  # loads the libraries that this one names
    try:
        ctypes.CDLL(str(folder / "llm/custom_ops/libcustom_ops_aot_lib.so"))
    except OSError as error:
        raise MissingPackage(f"ExecuTorch's llama operators cannot be loaded: {error}") from error
