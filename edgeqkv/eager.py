"""The decoder's verbs in eager PyTorch: the reference that every export is compared with, and what training runs."""

from collections.abc import Mapping, Sequence
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from edgeqkv.cache import cache_layout
from edgeqkv.config import ModelConfig
from edgeqkv.decoder import decoder
from edgeqkv.errors import CacheFull, EdgeQKVError


class EagerVerbs:
    """Computes at once, in the dtype of the weights. Without a cache, ``ids`` [B, T] start at position 0.

    ``cache`` maps (layer, "k" | "v") to a tensor [1, n_kv_head, capacity, head_dim]; ``position`` is how much of it is filled.
    """

    def __init__(
        self,
        config: ModelConfig,
        weights: Mapping[str, Tensor],
        cache: dict[tuple[int, str], Tensor] | None = None,
        position: int = 0,
    ) -> None:
        self.config, self.weights, self.cache, self.position = config, weights, cache, position

    def embed(self, name: str, ids: Tensor) -> Tensor:
        return F.embedding(ids, self.weights[f"{name}.weight"])

    def embed_positions(self, name: str, ids: Tensor) -> Tensor:
        return self.weights[f"{name}.weight"][self.position : self.position + ids.shape[1]]

    def layer_norm(self, x: Tensor, name: str) -> Tensor:
        weight, bias = self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]
        return F.layer_norm(x, weight.shape, weight, bias, self.config.layer_norm_eps)

    def linear(self, x: Tensor, name: str) -> Tensor:
        return F.linear(x, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])

    def gelu(self, x: Tensor) -> Tensor:
        return F.gelu(x)

    def add(self, x: Tensor, y: Tensor) -> Tensor:
        return x + y

    def attend(self, q: Tensor, k: Tensor, v: Tensor, layer: int) -> Tensor:
        key = self._append(k, layer, "k")
        value = key if v is k else self._append(v, layer, "v")
        query = self._heads(q, self.config.n_head)
        # Row t sees the positions up to position + t. A square is plain causal, which has a faster path without a mask.
        square = query.shape[2] == key.shape[2]
        mask = None if square else torch.ones(query.shape[2], key.shape[2], dtype=torch.bool).tril(self.position)
        out = F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, is_causal=square, enable_gqa=self.config.n_kv_head != self.config.n_head
        )
        return out.transpose(1, 2).flatten(2)

    def _append(self, x: Tensor, layer: int, tensor: str) -> Tensor:
        """The new rows at their place in the cache; returns all rows filled so far, [B, n_kv_head, depth, head_dim]."""
        rows = self._heads(x, self.config.n_kv_head)
        if self.cache is None:
            return rows
        buffer, end = self.cache[layer, tensor], self.position + rows.shape[2]
        buffer[:, :, self.position : end] = rows
        return buffer[:, :, :end]

    def _heads(self, x: Tensor, n_head: int) -> Tensor:
        return x.view(x.shape[0], x.shape[1], n_head, self.config.head_dim).transpose(1, 2)

    def last_token(self, x: Tensor) -> Tensor:
        return x[:, -1:]

    def logits(self, x: Tensor, name: str) -> Tensor:
        out = F.linear(x, self.weights[f"{name}.weight"])
        if self.config.token_count == self.config.vocab_size:
            return out
        return out.index_fill(
            2, torch.arange(self.config.token_count, self.config.vocab_size, device=out.device), float("-inf")
        )


class EagerModel:
    """A model in memory (fp32), with the same calls as a runtime's session: the reference for parity."""

    def __init__(self, config: ModelConfig, weights: Mapping[str, np.ndarray], capacity: int | None = None) -> None:
        self.config = config
        self.weights = {name: torch.from_numpy(array).float() for name, array in weights.items()}
        layout = cache_layout(config, config.n_positions if capacity is None else capacity, "fp32")
        self.capacity, self.depth = layout.capacity, 0
        self._cache = {
            (layer, tensor): torch.zeros(layout.shape) for layer in range(layout.n_layer) for tensor in layout.tensors
        }

    @property
    def cache_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self._cache.values())

    @torch.inference_mode()
    def forward(self, ids: Sequence[int]) -> np.ndarray:
        """Logits of every position of one full causal pass without a cache: float32 [T, vocab_size]."""
        x = torch.tensor([list(ids)])
        return cast(np.ndarray, decoder(EagerVerbs(self.config, self.weights), self.config, x, True)[0].numpy())

    @torch.inference_mode()
    def prefill(self, ids: Sequence[int]) -> np.ndarray:
        """Append ``ids`` to the cache; logits of the last one: float32 [vocab_size]."""
        if not ids:
            raise EdgeQKVError("prefill needs at least one token id")
        if self.depth + len(ids) > self.capacity:
            raise CacheFull(f"{len(ids)} more tokens at depth {self.depth} do not fit a cache of {self.capacity}")
        verbs = EagerVerbs(self.config, self.weights, self._cache, self.depth)
        out = decoder(verbs, self.config, torch.tensor([list(ids)]))[0, 0].numpy()
        self.depth += len(ids)
        return cast(np.ndarray, out)

    def step(self, token: int) -> np.ndarray:
        return self.prefill([token])

    def reset(self) -> None:
        self.depth = 0
