"""Choosing the next token from logits: the rules of docs/sessions.md, the same in every language."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from edgeqkv.errors import EdgeQKVError

MASK = 2**64 - 1


@dataclass(frozen=True)
class Sampler:
    """Greedy when ``temperature`` is 0; otherwise softmax sampling from the ``top_k`` best and the smallest set of them that
    holds ``top_p`` of the probability, seeded. ``repetition_penalty`` lowers what the session already holds."""

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not (self.temperature >= 0 and math.isfinite(self.temperature)):
            raise EdgeQKVError(f"temperature must be 0 (greedy) or a positive number, found {self.temperature}")
        if self.top_k is not None and self.top_k < 1:
            raise EdgeQKVError(f"top-k must be at least 1, found {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise EdgeQKVError(f"top-p must lie between 0 and 1, found {self.top_p}")
        if not (self.repetition_penalty > 0 and math.isfinite(self.repetition_penalty)):
            raise EdgeQKVError(f"the repetition penalty must be a positive number, found {self.repetition_penalty}")
        if not 0 <= self.seed <= MASK:
            raise EdgeQKVError(f"seed must be 0 or more and fit 64 bits, found {self.seed}")

    def start(self) -> Callable[[np.ndarray, Sequence[int]], int]:
        """One generation's choice: the next id from logits float32 [token_count] and the tokens held so far."""
        state = self.seed

        def uniform() -> float:
            """SplitMix64 (Steele, Lea and Flood, OOPSLA 2014): the upper 53 bits as a number in [0, 1)."""
            nonlocal state
            state = (state + 0x9E3779B97F4A7C15) & MASK
            z = ((state ^ state >> 30) * 0xBF58476D1CE4E5B9) & MASK
            z = ((z ^ z >> 27) * 0x94D049BB133111EB) & MASK
            return ((z ^ z >> 31) >> 11) * 2.0**-53

        def choose(logits: np.ndarray, tokens: Sequence[int]) -> int:
            scores = self._penalised(logits.astype(np.float64), tokens)
            if self.temperature == 0:
                return int(np.argmax(scores))
            running = np.cumsum(self._weights(scores))
            return int(np.searchsorted(running, uniform() * running[-1], side="right"))

        return choose

    def _penalised(self, scores: np.ndarray, tokens: Sequence[int]) -> np.ndarray:
        """Keskar et al., arXiv 1909.05858: each held id once."""
        if self.repetition_penalty != 1 and len(tokens):
            held = np.unique(tokens)
            found = scores[held]
            scores[held] = np.where(found > 0, found / self.repetition_penalty, found * self.repetition_penalty)
        return scores

    def _weights(self, scores: np.ndarray) -> np.ndarray:
        weights: np.ndarray = np.exp((scores - scores.max()) / self.temperature)
        if self.top_k is not None and self.top_k < len(scores):
            weights[scores < np.partition(scores, -self.top_k)[-self.top_k]] = 0
        if self.top_p < 1:
            order = np.argsort(-weights, kind="stable")  # the lower id first among equals
            running = np.cumsum(weights[order])
            kept = int(np.searchsorted(running, self.top_p * running[-1], side="left")) + 1
            weights[order[kept:]] = 0
        return weights
