"""What a runtime provides to a session."""

from typing import Protocol

import numpy as np


class Engine(Protocol):
    """What a runtime provides. It owns the cache; the session says where to write."""

    @property
    def version(self) -> str:
        """Version of the runtime library."""

    @property
    def cache_bytes(self) -> int:
        """Bytes of the cache buffers that are really there, scales that are written beside the rows included."""

    def run(self, ids: np.ndarray, position: int) -> np.ndarray:
        """Append ids (int64 [T]) at ``position``; logits of the last one, float32 [vocab_size]."""

    def read(self, name: str, depth: int) -> np.ndarray:
        """A copy of the first ``depth`` rows of a cache buffer, along its axis of positions."""

    def write(self, name: str, rows: np.ndarray, first: int = 0) -> None:
        """Put ``rows`` into a cache buffer, from position ``first`` on."""

    def fork(self) -> "Engine":
        """A second engine over the same weights, with an empty cache of its own."""

    def close(self) -> None:
        """Free everything; no other call follows."""
