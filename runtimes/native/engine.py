"""libedgeqkv by ctypes: the sessions of C programs, from Python. Needs neither onnxruntime nor executorch as Python packages,
but their shared libraries.

``include/edgeqkv.h`` describes every function that is called here.
"""

import ctypes
import functools
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgeqkv.bundle import read_bundle
from edgeqkv.errors import CacheFull, CheckFailed, EdgeQKVError, MissingPackage
from edgeqkv.limits import check_threads
from edgeqkv.manifest import Artifact, Manifest
from edgeqkv.sampling import Sampler

_ERRORS: dict[int, type[EdgeQKVError]] = {
    1: CheckFailed,
    2: EdgeQKVError,
    3: MissingPackage,
    4: CacheFull,
    5: EdgeQKVError,
    6: EdgeQKVError,
}
_STEP_OF_SEED = 0x9E3779B97F4A7C15  # what SplitMix64 adds to its state at each draw
_ON_TOKEN = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_void_p, ctypes.c_int64, ctypes.POINTER(ctypes.c_char), ctypes.c_size_t)
_END_TOKEN = 2  # EDGEQKV_STOP_END_TOKEN


class _OpenOptions(ctypes.Structure):
    _fields_ = (
        ("size", ctypes.c_size_t),
        ("runtime", ctypes.c_char_p),
        ("kernel", ctypes.c_char_p),
        ("threads", ctypes.c_int32),
        ("unchecked", ctypes.c_int32),
        ("onnxruntime_library", ctypes.c_char_p),
        ("executorch_library", ctypes.c_char_p),
    )


class _GenerateOptions(ctypes.Structure):
    _fields_ = (
        ("size", ctypes.c_size_t),
        ("limit", ctypes.c_int64),
        ("temperature", ctypes.c_double),
        ("top_k", ctypes.c_int32),
        ("top_p", ctypes.c_double),
        ("repetition_penalty", ctypes.c_double),
        ("seed", ctypes.c_uint64),
        ("end_tokens", ctypes.POINTER(ctypes.c_int64)),
        ("n_end_tokens", ctypes.c_size_t),
        ("ignore_end_tokens", ctypes.c_int32),
    )


@dataclass(frozen=True)
class Libraries:
    """``edgeqkv`` is libedgeqkv; the others the runtimes' libraries, None where the dynamic linker finds them."""

    edgeqkv: Path
    onnxruntime: Path | None = None
    executorch: Path | None = None


class NativeBundle:
    """An opened bundle: the weights, for any number of sessions and threads."""

    def __init__(
        self,
        folder: Path,
        libraries: Libraries,
        runtime: str | None = None,
        kernel: str | None = None,
        threads: int | None = None,
        check: bool = True,
    ) -> None:
        check_threads(threads)
        self.folder = folder
        self._library = _load(libraries.edgeqkv)
        self._handle = ctypes.c_void_p()
        options = _OpenOptions(
            size=ctypes.sizeof(_OpenOptions),
            runtime=runtime and runtime.encode(),
            kernel=kernel and kernel.encode(),
            threads=threads or 0,
            unchecked=not check,
            onnxruntime_library=libraries.onnxruntime and os.fsencode(libraries.onnxruntime),
            executorch_library=libraries.executorch and os.fsencode(libraries.executorch),
        )
        self.call("bundle_open", os.fsencode(folder), ctypes.byref(options), ctypes.byref(self._handle))
        self.info: dict[str, Any] = json.loads(self._library.edgeqkv_bundle_json(self._handle))

    @functools.cached_property
    def manifest(self) -> Manifest:
        """As Python reads it: the library has its own reader and needs none of this."""
        return read_bundle(self.folder)

    @property
    def artifact(self) -> Artifact:
        """The one that was opened."""
        return next(a for a in self.manifest.artifacts if (a.runtime, a.kernel) == (self.info["runtime"], self.info["kernel"]))

    @property
    def handle(self) -> ctypes.c_void_p:
        return self._handle

    def call(self, name: str, *arguments: Any) -> None:
        """Call edgeqkv_NAME; raises what it says went wrong."""
        code = getattr(self._library, f"edgeqkv_{name}")(*arguments)
        if code:
            text: bytes = self._library.edgeqkv_error()
            raise _ERRORS[code](text.decode(errors="replace"))

    def depth(self, session: ctypes.c_void_p) -> int:
        return int(self._library.edgeqkv_session_depth(session))

    def encode(self, text: str, add_special: bool = True) -> list[int]:
        """Token ids of a text; :class:`MissingPackage` where the library does not know the tokenizer."""
        given, count = text.encode(), ctypes.c_size_t()
        arguments = self._handle, given, ctypes.c_size_t(len(given)), ctypes.c_int32(add_special)
        self.call("bundle_encode", *arguments, None, ctypes.c_size_t(0), ctypes.byref(count))
        ids = np.empty(count.value, np.int64)
        self.call("bundle_encode", *arguments, _pointer(ids), count, ctypes.byref(count))
        return [int(token) for token in ids]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, special tokens left out."""
        given, count = _ids(ids), ctypes.c_size_t()
        arguments = self._handle, _pointer(given), ctypes.c_size_t(len(given))
        self.call("bundle_decode", *arguments, None, ctypes.c_size_t(0), ctypes.byref(count))
        text = ctypes.create_string_buffer(count.value)
        self.call("bundle_decode", *arguments, text, count, ctypes.byref(count))
        return text.raw.decode()

    def __del__(self) -> None:
        if getattr(self, "_handle", None):
            self._library.edgeqkv_bundle_close(self._handle)


class NativeSession:
    """A session of the library; docs/sessions.md has its rules. Its logits are copies, for the caller to keep."""

    def __init__(self, bundle: NativeBundle) -> None:
        handle = ctypes.c_void_p()
        bundle.call("session_open", bundle.handle, ctypes.byref(handle))
        self._take(bundle, handle)

    def _take(self, bundle: NativeBundle, handle: ctypes.c_void_p) -> None:
        self.bundle, self._handle = bundle, handle

    @property
    def manifest(self) -> Manifest:
        return self.bundle.manifest

    @property
    def artifact(self) -> Artifact:
        return self.bundle.artifact

    @property
    def depth(self) -> int:
        """How many positions are filled."""
        return self.bundle.depth(self._open)

    @property
    def capacity(self) -> int:
        """Positions that the cache holds."""
        return int(self.bundle.info["capacity"])

    @property
    def cache_bytes(self) -> int:
        """Bytes of the whole cache, quantisation scales included."""
        return int(self.bundle.info["cache_bytes"])

    @property
    def runtime_version(self) -> str:
        """Version of the runtime's library in use."""
        return str(self.bundle.info["runtime_version"])

    @property
    def tokens(self) -> list[int]:
        """The ids that the session holds, ``depth`` of them."""
        count = ctypes.c_size_t()
        ids = np.empty(self.capacity, np.int64)
        self._call("tokens", _pointer(ids), ctypes.c_size_t(len(ids)), ctypes.byref(count))
        return [int(token) for token in ids[: count.value]]

    @property
    def logits(self) -> np.ndarray | None:
        """Those after the last token, float32 [vocab_size]; None where there are none."""
        found = ctypes.POINTER(ctypes.c_float)()
        self._call("logits", ctypes.byref(found))
        return self._copied(found) if found else None

    def prefill(self, ids: Sequence[int]) -> np.ndarray:
        """Append token ids; logits of the last one, float32 [vocab_size]."""
        return self._run("prefill", ids)

    def step(self, token: int) -> np.ndarray:
        """Append one token id; logits for the next, float32 [vocab_size]."""
        return self._run("prefill", [token])

    def feed(self, ids: Sequence[int]) -> np.ndarray:
        """Hold exactly ``ids``: keep the longest prefix that is held already, prefill the rest; logits of the last one."""
        return self._run("feed", ids)

    def rewind(self, depth: int) -> None:
        """Keep the first ``depth`` tokens."""
        self._call("rewind", ctypes.c_int64(depth))

    def reset(self) -> None:
        """Start over at depth 0."""
        self._call("reset")

    def generate(
        self,
        ids: Sequence[int] = (),
        sampler: Sampler | None = None,
        limit: int | None = None,
        end_tokens: Sequence[int] | None = None,
    ) -> Iterator[int]:
        """Prefill ``ids``, then yield sampled ids (greedy without a sampler), up to ``limit``, until one of ``end_tokens``
        (None: the bundle's) or until the cache is full. Without ids it goes on from the logits that the session has."""
        options = _GenerateOptions(size=ctypes.sizeof(_GenerateOptions), limit=1)
        if sampler is not None:
            options.temperature, options.top_k = sampler.temperature, sampler.top_k or 0
            options.top_p, options.repetition_penalty = sampler.top_p, sampler.repetition_penalty
        ends = _ids([] if end_tokens is None else end_tokens)
        options.n_end_tokens, options.ignore_end_tokens = len(ends), end_tokens is not None
        seed = sampler.seed if sampler is not None else 0
        handed: list[int] = []

        def keep(user: Any, token: int, text: Any, n: int) -> int:
            handed.append(token)
            return 0

        on_token = _ON_TOKEN(keep)
        first = _ids(ids)

        def tokens() -> Iterator[int]:
            # One token a call, so that the caller gets it before the next is computed. The seed of call i is the generator's
            # state after i draws.
            given, count = first, 0
            while limit is None or count < limit:
                options.seed = (seed + count * _STEP_OF_SEED) % 2**64
                options.end_tokens = _pointer(ends)  # here, so that the array lives as long as the iterator
                stopped = ctypes.c_int32()
                where = _pointer(given), ctypes.c_size_t(len(given)), ctypes.byref(options)
                self._call("generate", *where, on_token, None, ctypes.byref(stopped))
                if stopped.value == _END_TOKEN:
                    return
                token = next(token for token in handed if token >= 0)
                handed.clear()
                yield token
                count += 1
                if self.depth == self.capacity:
                    return
                given = _ids([token])

        return tokens()

    def save(self, path: str | Path) -> None:
        """Write tokens, rows and logits to a file, whole or not at all."""
        self._call("save", os.fsencode(path))

    def restore(self, path: str | Path) -> None:
        """Take over what a file holds; another bundle's, a truncated or a changed one is refused."""
        self._call("restore", os.fsencode(path))

    def fork(self) -> "NativeSession":
        """A second session over the same weights, with a copy of what this one holds."""
        handle = ctypes.c_void_p()
        self._call("fork", ctypes.byref(handle))
        other = NativeSession.__new__(NativeSession)
        other._take(self.bundle, handle)
        return other

    def skip(self, count: int) -> None:
        """For measurements: ``count`` more positions with rows of zeros."""
        self._call("skip", ctypes.c_int64(count))

    def cancel(self) -> None:
        """End what another thread is running on this session, in mid-token; it raises, and the depth is as before its call."""
        self.bundle._library.edgeqkv_session_cancel(self._open)

    def close(self) -> None:
        """Free the cache. Closing twice is fine; any other call on a closed session is refused."""
        if getattr(self, "_handle", None):
            self._call("close")
            self._handle = ctypes.c_void_p()

    def __enter__(self) -> "NativeSession":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    @property
    def _open(self) -> ctypes.c_void_p:
        if not self._handle:
            raise EdgeQKVError("the session is closed")
        return self._handle

    def _call(self, name: str, *arguments: Any) -> None:
        self.bundle.call(f"session_{name}", self._open, *arguments)

    def _run(self, name: str, ids: Sequence[int]) -> np.ndarray:
        given, logits = _ids(ids), ctypes.POINTER(ctypes.c_float)()
        self._call(name, _pointer(given), ctypes.c_size_t(len(given)), ctypes.byref(logits))
        return self._copied(logits)

    def _copied(self, logits: Any) -> np.ndarray:
        return np.ctypeslib.as_array(logits, (int(self.bundle.info["vocab_size"]),)).copy()


def _load(path: Path) -> ctypes.CDLL:
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise MissingPackage(f"libedgeqkv does not load: {error}") from error
    library.edgeqkv_error.restype = ctypes.c_char_p
    library.edgeqkv_bundle_json.restype = ctypes.c_char_p
    library.edgeqkv_session_depth.restype = ctypes.c_int64
    library.edgeqkv_bundle_close.restype = None
    library.edgeqkv_session_cancel.restype = None
    return library


def _ids(ids: Sequence[int]) -> np.ndarray:
    """Token ids as the library takes them; what is none is refused here, as by :class:`edgeqkv.session.Session`."""
    if isinstance(ids, str | bytes):
        raise EdgeQKVError("token ids are needed, not text; tokenise it first")
    try:
        tokens = np.asarray(ids)
    except ValueError as error:
        raise EdgeQKVError("a flat list of token ids is needed") from error
    if tokens.ndim != 1 or (tokens.size and tokens.dtype.kind not in "iu"):
        raise EdgeQKVError(f"a flat list of token ids is needed, whole numbers of 64 bits at most; found {ids!r:.40}")
    if tokens.size and tokens.max() > np.iinfo(np.int64).max:
        raise EdgeQKVError(f"token id {tokens.max()} is out of range")
    return np.ascontiguousarray(tokens, np.int64)


def _pointer(ids: np.ndarray) -> Any:
    return ids.ctypes.data_as(ctypes.POINTER(ctypes.c_int64))
