"""The decoder's verbs in eager PyTorch: the reference that every export is compared with, and what training runs."""

from collections.abc import Mapping, Sequence
from functools import cached_property, lru_cache
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from edgeqkv.cache import cache_layout
from edgeqkv.config import ModelConfig, Rotary
from edgeqkv.decoder import absorbed, decoder
from edgeqkv.errors import CacheFull, EdgeQKVError
from edgeqkv.rotary import turns


class EagerVerbs:
    """Computes at once, in the dtype of the weights. Without a cache, ``ids`` [B, T] start at position 0.

    ``cache`` maps (layer, tensor) to a tensor [1, kv_heads, capacity, width]; ``position`` is how much of it is filled.
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

    def norm(self, x: Tensor, name: str, eps: float) -> Tensor:
        weight = self.weights[f"{name}.weight"]
        if self.config.norm.kind == "layer_norm":
            return F.layer_norm(x, weight.shape, weight, self.weights[f"{name}.bias"], eps)
        return F.rms_norm(x, weight.shape, weight, eps)

    def head_norm(self, x: Tensor, name: str, n_head: int, eps: float) -> Tensor:
        return self.norm(heads_of(x, n_head), name, eps).flatten(-2)

    def linear(self, x: Tensor, name: str, width: int, bias: bool) -> Tensor:
        return F.linear(x, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"] if bias else None)

    def head_linear(self, x: Tensor, name: str, n_head: int, width: int) -> Tensor:
        heads = heads_of(x, n_head).transpose(1, 2)  # [B, n_head, T, channels]
        out: Tensor = (heads @ self.weights[f"{name}.weight"].transpose(1, 2)).transpose(1, 2).flatten(-2)
        return out

    def gelu(self, x: Tensor) -> Tensor:
        return F.gelu(x)

    def swiglu(self, gate: Tensor, x: Tensor) -> Tensor:
        return F.silu(gate) * x

    def add(self, x: Tensor, y: Tensor) -> Tensor:
        return x + y

    def scale(self, x: Tensor, factor: float) -> Tensor:
        return x if factor == 1 else x * factor

    def turn(self, x: Tensor, n_head: int, back: bool = False) -> Tensor:
        positions = self.config.positions
        assert isinstance(positions, Rotary)
        cosine, sine = self.angles(x)
        sine = -sine if back else sine
        heads = heads_of(x, n_head)
        first, plain = heads[..., : positions.dim], heads[..., positions.dim :]
        if positions.pairs == "interleaved":
            a, b = first[..., 0::2], first[..., 1::2]
            turned = torch.stack((a * cosine - b * sine, b * cosine + a * sine), -1).flatten(-2)
        else:
            a, b = first.chunk(2, -1)
            turned = torch.cat((a * cosine - b * sine, b * cosine + a * sine), -1)
        return torch.cat((turned, plain), -1).flatten(-2)

    def angles(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines of the tokens of x, [T, 1, dim / 2]."""
        end = self.position + x.shape[1]
        cosine, sine = self._turns
        return cosine[self.position : end, None], sine[self.position : end, None]

    @cached_property
    def _turns(self) -> tuple[Tensor, Tensor]:
        assert isinstance(self.config.positions, Rotary)
        like = self.weights["wte.weight"]
        cosine, sine = turn_tables(self.config.positions, self.config.n_positions)
        return cosine.to(like.device, like.dtype), sine.to(like.device, like.dtype)

    def channels(self, x: Tensor, n_head: int, start: int, stop: int) -> Tensor:
        return heads_of(x, n_head)[..., start:stop].flatten(-2)

    def join(self, parts: list[Tensor], n_head: int) -> Tensor:
        return torch.cat([heads_of(part, n_head) for part in parts], -1).flatten(-2)

    def repeat(self, x: Tensor, n_head: int) -> Tensor:
        return x.repeat(1, 1, n_head)

    def attend_latent(self, q_nope: Tensor, q_rope: Tensor, row: Tensor, name: str, layer: int) -> Tensor:
        return cast(Tensor, absorbed(self, self.config, q_nope, q_rope, row, name, layer))

    def attend(self, q: Tensor, k: Tensor, v: Tensor | None, layer: int) -> Tensor:
        row = self.config.row
        rows = {"k": self._append(k, layer, "k")}
        if v is not None:
            rows["v"] = self._append(v, layer, "v")
        key, value = (rows[part.tensor][..., part.start : part.stop] for part in (row.key, row.value))
        query = heads_of(q, row.heads).transpose(1, 2)
        # Row t sees the positions up to position + t. A square is plain causal, which has a faster path without a mask.
        square = query.shape[2] == key.shape[2]
        mask = None
        if not square:
            mask = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool, device=q.device).tril(self.position)
        out = F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, is_causal=square, scale=row.softmax_scale, enable_gqa=row.group != 1
        )
        return out.transpose(1, 2).flatten(2)

    def _append(self, x: Tensor, layer: int, tensor: str) -> Tensor:
        """The new rows at their place in the cache; returns all rows filled so far, [B, kv_heads, depth, width]."""
        rows = heads_of(x, self.config.row.kv_heads).transpose(1, 2)
        if self.cache is None:
            return rows
        buffer, end = self.cache[layer, tensor], self.position + rows.shape[2]
        buffer[:, :, self.position : end] = rows
        return buffer[:, :, :end]

    def last_token(self, x: Tensor) -> Tensor:
        return x[:, -1:]

    def logits(self, x: Tensor, name: str) -> Tensor:
        out = F.linear(x, self.weights[f"{name}.weight"])
        if self.config.token_count == self.config.vocab_size:
            return out
        return out.index_fill(
            2, torch.arange(self.config.token_count, self.config.vocab_size, device=out.device), float("-inf")
        )


def heads_of(x: Tensor, n_head: int) -> Tensor:
    """[..., n_head * channels] as [..., n_head, channels]."""
    return x.reshape(*x.shape[:-1], n_head, -1)


@lru_cache(maxsize=2)
def turn_tables(positions: Rotary, count: int) -> tuple[Tensor, Tensor]:
    """:func:`edgeqkv.rotary.turns` as tensors; made once for all steps of a model."""
    cosine, sine = turns(positions, count)
    return torch.from_numpy(cosine), torch.from_numpy(sine)


class EagerModel:
    """A model in memory (fp32), with the same calls as a runtime's session: the reference for parity."""

    def __init__(self, config: ModelConfig, weights: Mapping[str, np.ndarray], capacity: int | None = None) -> None:
        self.config = config
        self.weights = {name: torch.from_numpy(array.astype(np.float32)) for name, array in weights.items()}
        layout = cache_layout(config, config.n_positions if capacity is None else capacity, "fp32")
        self.capacity, self.depth = layout.capacity, 0
        self._cache = {
            (layer, tensor): torch.zeros(layout.shape(tensor)) for layer in range(layout.n_layer) for tensor in layout.tensors
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
