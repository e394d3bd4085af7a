"""The decoder's verbs for ExecuTorch: eager PyTorch, but for the cache, the positions, and weights in int8."""

from collections.abc import Mapping
from functools import cached_property
from typing import Any, cast

import torch
import torch.nn.functional as F
from executorch.exir.passes import _quant_patterns_and_replacements  # noqa: F401 - declares embedding_byte
from torch import Tensor
from torch.ao.quantization.fx import _decomposed  # noqa: F401 - declares the operators that XNNPACK reads int8 linears from

import edgeqkv.export.executorch.operators  # noqa: F401 - declares ours
from edgeqkv.cache import CacheLayout, cache_name, scale_name
from edgeqkv.config import ModelConfig, Rotary
from edgeqkv.eager import EagerVerbs

# Constants that the program holds beside the weights: what is added to the logits (0, and for padding ids -inf), and the turns
# of rotary positions, [capacity, dim / 2].
PADDING_BIAS, COSINES, SINES = "padding.bias", "turns.cosine", "turns.sine"

_int8 = torch.ops.quantized_decomposed


class Int8Rows(torch.nn.Module):
    """A weight [..., rows, columns] in int8, with ``scale`` float32: [rows] of a matrix, [..., rows, 1] of many."""

    values: Tensor
    scale: Tensor
    zero: Tensor

    def __init__(self, values: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.register_buffer("values", values)
        self.register_buffer("scale", scale)
        self.register_buffer("zero", torch.zeros(scale.shape, dtype=torch.int64))  # XNNPACK's pattern has it


class Int4Blocks(torch.nn.Module):
    """A weight [rows, columns] in int4: ``values`` int8, ``scale`` float32 [rows, blocks] of numbers that bfloat16 holds, which
    is what XNNPACK stores. ``packed`` uint8 [rows, columns / 2] is for an embedding, else None: the bytes as XNNPACK writes
    them, the first of two values in the low half, so that a table that is both lies in the file once."""

    values: Tensor
    scale: Tensor
    zero: Tensor
    packed: Tensor | None

    def __init__(self, values: Tensor, scale: Tensor, embeds: bool) -> None:
        super().__init__()
        self.block = values.shape[1] // scale.shape[1]
        raised = (values + 8).to(torch.uint8)
        self.register_buffer("values", values)
        self.register_buffer("scale", scale)
        self.register_buffer("zero", torch.zeros(scale.shape, dtype=torch.int64))
        self.register_buffer("packed", raised[:, 0::2] | raised[:, 1::2] << 4 if embeds else None)


class ExecutorchVerbs(EagerVerbs):
    """``weights`` are as :func:`~edgeqkv.export.executorch.lowering.stored_weights` makes them; ``buffers`` are the cache's.

    ``start`` and ``count`` are int64 [1]; without a count all ids are tokens.
    """

    def __init__(
        self,
        config: ModelConfig,
        weights: Mapping[str, Tensor | Int8Rows | Int4Blocks],
        layout: CacheLayout,
        buffers: Mapping[str, Tensor],
        start: Tensor,
        count: Tensor | None,
    ) -> None:
        super().__init__(config, cast(Mapping[str, Tensor], weights))
        self.layout, self.buffers, self.start, self.count = layout, buffers, start, count

    def embed(self, name: str, ids: Tensor) -> Tensor:
        self.tokens = ids.shape[1]
        table: Any = self.weights[f"{name}.weight"]
        if isinstance(table, Int8Rows):
            return cast(Tensor, _int8.embedding_byte(table.values, table.scale, None, -128, 127, ids))
        if isinstance(table, Int4Blocks):
            # This operator takes the first of two values from the high half, and so gives each pair the wrong way round.
            pairs = _int8.embedding_4bit(table.packed, table.scale, None, -8, 7, ids).view(1, self.tokens, -1, 2)
            return torch.cat((pairs.narrow(3, 1, 1), pairs.narrow(3, 0, 1)), 3).flatten(2)
        return F.embedding(ids, table)

    def embed_positions(self, name: str, ids: Tensor) -> Tensor:
        table = self.weights[f"{name}.weight"]
        return F.embedding(self._positions(table), table)

    def norm(self, x: Tensor, name: str, eps: float) -> Tensor:
        if self.config.norm.kind == "layer_norm":
            return super().norm(x, name, eps)
        return x * torch.rsqrt((x * x).mean(-1, keepdim=True) + eps) * self.weights[f"{name}.weight"]

    def linear(self, x: Tensor, name: str, width: int, bias: bool) -> Tensor:
        return self._matmul(x, f"{name}.weight", self.weights[f"{name}.bias"] if bias else None)

    def head_linear(self, x: Tensor, name: str, n_head: int, width: int) -> Tensor:
        weight: Any = self.weights[f"{name}.weight"]
        if isinstance(weight, Int8Rows):
            return cast(Tensor, torch.ops.edgeqkv.head_linear(x, weight.values, weight.scale))
        heads = x.view(x.shape[1], n_head, -1).transpose(0, 1)  # [n_head, T, channels]
        return torch.bmm(heads, weight).transpose(0, 1).reshape(1, x.shape[1], -1)

    def turn(self, x: Tensor, n_head: int, back: bool = False) -> Tensor:
        # As EagerVerbs, by views and slices of one step, which is what XNNPACK takes: both of a pair lie along ``axis``.
        positions = self.config.positions
        assert isinstance(positions, Rotary)
        cosine, sine = self._angles
        sine = -sine if back else sine
        axis = -1 if positions.pairs == "interleaved" else -2
        width = x.shape[2] // n_head
        shape = (1, x.shape[1], n_head, -1, 2) if axis == -1 else (1, x.shape[1], n_head, 2, -1)
        pairs = self.channels(x, n_head, 0, positions.dim).view(shape)
        a, b = pairs.narrow(axis, 0, 1), pairs.narrow(axis, 1, 1)
        turned = torch.cat((a * cosine - b * sine, b * cosine + a * sine), axis).flatten(2)
        if positions.dim == width:
            return turned
        return self.join([turned, self.channels(x, n_head, positions.dim, width)], n_head)

    def channels(self, x: Tensor, n_head: int, start: int, stop: int) -> Tensor:
        whole = n_head * (stop - start) == x.shape[2]  # a slice would be a copy
        return x if whole else super().channels(x, n_head, start, stop)

    @cached_property
    def _angles(self) -> tuple[Tensor, Tensor]:
        """Of the tokens of this call, as what they turn: [T, 1, 1, dim / 2] or, interleaved, [T, 1, dim / 2, 1]."""
        assert isinstance(self.config.positions, Rotary)
        cosines, sines = self.weights[COSINES], self.weights[SINES]
        positions = self._positions(cosines)
        shape = (-1, 1, 1, cosines.shape[1]) if self.config.positions.pairs == "halves" else (-1, 1, cosines.shape[1], 1)
        return cosines.index_select(0, positions).view(shape), sines.index_select(0, positions).view(shape)

    def _positions(self, table: Tensor) -> Tensor:
        """Of the tokens of this call, int64 [T]; padding may reach beyond a table and has its last row."""
        positions = self.start + torch.arange(self.tokens)
        return positions if self.count is None else positions.clamp(max=table.shape[0] - 1)

    def attend(self, q: Tensor, k: Tensor, v: Tensor | None, layer: int) -> Tensor:
        names = [cache_name(layer, tensor) for tensor in ("k", "v")]
        caches = [self.buffers.get(name) for key in names for name in (key, scale_name(key))]
        row = self.config.row
        slices = (row.heads, row.key.width, row.value.start, row.value.width, self.layout.scale_split, row.softmax_scale)
        attention = torch.ops.edgeqkv.cached_attention
        return cast(Tensor, attention(q, k, v, self.start, self.count, *caches, *slices))

    def last_token(self, x: Tensor) -> Tensor:
        return x if self.count is None else x.index_select(1, self.count - 1)

    def logits(self, x: Tensor, name: str) -> Tensor:
        return self._matmul(x, f"{name}.weight", self.weights.get(PADDING_BIAS))

    def _matmul(self, x: Tensor, name: str, bias: Tensor | None) -> Tensor:
        weight: Any = self.weights[name]
        if not isinstance(weight, Int8Rows | Int4Blocks):
            return F.linear(x, weight, bias)
        # Not computed as written: XNNPACK takes this pattern as one linear with dynamic int8 activations.
        scale, zero = _int8.choose_qparams_per_token_asymmetric(x, torch.int8)
        rounded = _int8.quantize_per_token(x, scale, zero, -128, 127, torch.int8)
        x = _int8.dequantize_per_token(rounded, scale, zero, -128, 127, torch.int8, torch.float32)
        if isinstance(weight, Int4Blocks):
            blocks = (-8, 7, torch.int8, weight.block, torch.float32)
            matrix = _int8.dequantize_per_channel_group(weight.values, weight.scale, weight.zero, *blocks)
        else:
            matrix = _int8.dequantize_per_channel(weight.values, weight.scale, weight.zero, 0, -127, 127, torch.int8)
        return F.linear(x, matrix, bias)


class StockVerbs(ExecutorchVerbs):
    """With ExecuTorch's llama operators, whose caches are float32 [1, capacity, n_kv_head, head_dim]."""

    def __init__(self, *arguments: Any) -> None:
        from executorch.extension.llm.custom_ops import custom_ops  # noqa: F401 - declares the operators

        super().__init__(*arguments)
        self.position_now = self.start.item()  # the operators take a number

    def attend(self, q: Tensor, k: Tensor, v: Tensor | None, layer: int) -> Tensor:
        row = self.config.row
        key = self._update(k, cache_name(layer, "k"))
        value = key if v is None else self._update(v, cache_name(layer, "v"))
        query = q.view(1, q.shape[1], row.heads, -1)
        out = torch.ops.llama.custom_sdpa(query, key, value, self.position_now, None, 0.0, True, row.softmax_scale)
        return cast(Tensor, out.view(1, q.shape[1], -1))

    def _update(self, x: Tensor, name: str) -> Tensor:
        torch.ops.llama.update_cache(x.view(1, x.shape[1], self.config.row.kv_heads, -1), self.buffers[name], self.position_now)
        return self.buffers[name]
