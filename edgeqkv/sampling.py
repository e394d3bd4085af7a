"""Choosing the next token from logits."""

import numpy as np

from edgeqkv.errors import EdgeQKVError


class Sampler:
    """Greedy when ``temperature`` is 0; otherwise softmax sampling, from the ``top_k`` best when given, seeded."""

    def __init__(self, temperature: float = 0.0, top_k: int | None = None, seed: int = 0) -> None:
        if temperature < 0 or not np.isfinite(temperature):
            raise EdgeQKVError(f"temperature must be 0 (greedy) or a positive number, found {temperature}")
        if top_k is not None and top_k < 1:
            raise EdgeQKVError(f"top-k must be at least 1, found {top_k}")
        if seed < 0:
            raise EdgeQKVError(f"seed must be 0 or more, found {seed}")
        self.temperature, self.top_k = temperature, top_k
        self._generator = np.random.default_rng(seed)

    def __call__(self, logits: np.ndarray) -> int:
        """``logits`` float32 [vocab_size], -inf for what must not be chosen."""
        if self.temperature == 0:
            return int(np.argmax(logits))
        scaled = (logits.astype(np.float64) - logits.max()) / self.temperature
        if self.top_k is not None and self.top_k < len(scaled):
            scaled[scaled < np.partition(scaled, -self.top_k)[-self.top_k]] = -np.inf
        weights = np.exp(scaled)
        return int(self._generator.choice(len(weights), p=weights / weights.sum()))
