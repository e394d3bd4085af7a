"""The session: what an app holds while it generates, the same on every runtime."""

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np

from edgeqkv.bundle import Artifact, Manifest
from edgeqkv.errors import CacheFull, EdgeQKVError
from edgeqkv.sampling import Sampler


class Engine(Protocol):
    """What a runtime provides. It owns the cache; the session says where to write."""

    @property
    def version(self) -> str:
        """Version of the runtime library."""

    @property
    def cache_bytes(self) -> int:
        """Bytes of the cache buffers that are really there, those of scales for each token included."""

    def run(self, ids: np.ndarray, position: int) -> np.ndarray:
        """Append ids (int64 [T]) at ``position``; logits of the last one, float32 [vocab_size]."""


class Session:
    """Prefills and steps over one static cache. Not for use from two threads at once; open two sessions for that."""

    def __init__(self, engine: Engine, manifest: Manifest, artifact: Artifact) -> None:
        self._engine = engine
        self.manifest, self.artifact = manifest, artifact
        self.depth = 0

    @property
    def runtime_version(self) -> str:
        """Version of the runtime library in use, which may differ from the one the bundle was exported with."""
        return self._engine.version

    @property
    def capacity(self) -> int:
        """Positions that the cache holds."""
        return self.manifest.capacity

    @property
    def cache_bytes(self) -> int:
        """Bytes of the whole cache in this process, quantisation scales included."""
        cache = self.artifact.cache
        return self._engine.cache_bytes + (cache.scale_bytes if cache.scale_layout == "static" else 0)

    def prefill(self, ids: Sequence[int]) -> np.ndarray:
        """Append token ids, any number that fits; logits of the last one, float32 [vocab_size].

        Raises :class:`CacheFull` before anything is written when they do not fit.
        """
        try:
            tokens = np.asarray(ids)
        except ValueError as error:
            raise EdgeQKVError("prefill needs a flat list of at least one token id") from error
        if tokens.ndim != 1 or tokens.size == 0:
            raise EdgeQKVError("prefill needs a flat list of at least one token id")
        if tokens.dtype.kind not in "iu":
            raise EdgeQKVError(f"token ids are whole numbers of 64 bits at most, found {ids[0]!r:.40}")
        known = self.manifest.model.config.token_count
        wrong = tokens[(tokens < 0) | (tokens >= known)]
        if wrong.size:
            raise EdgeQKVError(f"token id {wrong[0]} is out of range: this model knows 0 to {known - 1}")
        if self.depth + len(tokens) > self.capacity:
            raise CacheFull(
                f"{len(tokens)} more tokens do not fit: the cache holds {self.capacity} positions and {self.depth} are "
                "filled; reset the session, or export with a larger --capacity"
            )
        tokens = tokens.astype(np.int64)
        logits = np.empty(0, np.float32)
        for chunk in np.split(tokens, range(self.artifact.prefill_chunk, len(tokens), self.artifact.prefill_chunk)):
            logits = self._engine.run(chunk, self.depth)
            self.depth += len(chunk)
        return logits

    def step(self, token: int) -> np.ndarray:
        """Append one token id; logits for the next, float32 [vocab_size]. :class:`CacheFull` at capacity."""
        return self.prefill([token])

    def reset(self) -> None:
        """Start over at depth 0. The buffers stay; old rows are never looked at again."""
        self.depth = 0

    def generate(self, ids: Sequence[int], sampler: Sampler | None = None, limit: int | None = None) -> Iterator[int]:
        """Prefill ``ids`` at once, then yield up to ``limit`` sampled ids, or until the cache is full.

        The last id is not fed back: as many come as there are free positions, and one more.
        """
        choose = sampler or Sampler()
        first = self.prefill(ids)
        room = self.capacity - self.depth + 1
        count = room if limit is None else min(limit, room)

        def tokens() -> Iterator[int]:
            logits = first
            for i in range(count):
                token = choose(logits)
                yield token
                if i + 1 < count:
                    logits = self.step(token)

        return tokens()
