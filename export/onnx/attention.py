"""The forms of attention in an ONNX graph: ONNX Runtime's fused operator, plain nodes, or our operator.

Each form appends the new rows to the cache in place and attends over what it then holds. ``key`` and ``value`` name the cache
tensors of a layer; they are the same name where the value is a slice of the key's row.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
import onnx_ir as ir

from edgeqkv.cache import CacheDtype, scale_name
from edgeqkv.config import Row, Slice
from edgeqkv.export.onnx.graph import CONTRIB, OURS

if TYPE_CHECKING:
    from edgeqkv.export.onnx.verbs import OnnxVerbs

Attention = Literal["gqa", "folded", "fused"]
CACHED_ATTENTION, LATENT_ATTENTION = "CachedAttention", "LatentAttention"


class Form(Protocol):
    def attend(self, q: ir.Value, k: ir.Value, v: ir.Value | None, key: str, value: str) -> ir.Value:
        """q [T, heads * key width], k and v [T, kv_heads * width]: [T, heads * value width]."""


def attention_form(row: Row, dtype: CacheDtype) -> Attention:
    """Which of the runtime's own nodes attend: measured, the reasons are in docs/decisions.md. GroupQueryAttention takes no
    fp16 cache beside fp32 queries, heads in multiples of 8 only, and key and value of one width that are whole rows."""
    whole = all(part.width == row.key.width == width for part in (row.key, row.value) for width in row.widths.values())
    if dtype == "fp16" or row.key.width % 8 or not whole:
        return "folded"
    return "folded" if row.group >= (8 if dtype == "int8" else 4) else "gqa"


class Fused:
    """Our operators (runtimes/onnx/custom_op.cc): append, and read each cached row once."""

    def __init__(self, graph: "OnnxVerbs") -> None:
        self.graph = graph
        row, split = graph.layout.row, graph.layout.scale_split
        self.attributes: dict[str, int | float] = {"n_head": row.heads, "n_kv_head": row.kv_heads}
        plain = row.key.width == row.value.width == row.widths["k"] and row.softmax_scale == row.key.width**-0.5
        if not plain:
            self.attributes |= {"key_dim": row.key.width, "value_start": row.value.start, "value_dim": row.value.width}
            self.attributes |= {"scale_split": split, "softmax_scale": row.softmax_scale}

    def attend(self, q: ir.Value, k: ir.Value, v: ir.Value | None, key: str, value: str) -> ir.Value:
        tensors = [key] if value == key else [key, value]
        return self._op(CACHED_ATTENTION, [q, k, v, self.graph.position], tensors, self.attributes)

    def attend_latent(
        self, q_nope: ir.Value, q_rope: ir.Value, row: ir.Value, matrices: list[ir.Value], cache: str
    ) -> ir.Value:
        """runtimes/onnx/latent_attention.cc; ``matrices`` are W_K, its scales, W_V and its scales."""
        layout = self.graph.layout
        attributes = {"scale_split": layout.scale_split, "softmax_scale": layout.row.softmax_scale}
        return self._op(LATENT_ATTENTION, [q_nope, q_rope, row, self.graph.position, *matrices], [cache], attributes)

    def _op(
        self, name: str, inputs: list[ir.Value | None], tensors: list[str], attributes: Mapping[str, int | float]
    ) -> ir.Value:
        """One of ours, which updates cache tensors and their scales: its last inputs, and its outputs after the first."""
        graph = self.graph
        names: list[str | None] = []
        for tensor in tensors:
            names += [tensor, scale_name(tensor) if graph.layout.scale_shape else None]
        while names[-1] is None:
            names.pop()
        caches = [graph.caches[name] if name else None for name in names]
        out, *present = graph.ops(name, 1 + len(names), *inputs, *caches, domain=OURS, **attributes)
        for cache, after in zip(names, present, strict=True):
            if cache is None:
                after.name = ""  # how ONNX leaves out an optional output
            else:
                graph.present[f"{cache}.out"] = after
        return out


class GroupQuery:
    """ONNX Runtime's fused op. For K-only one buffer is past_key and past_value at once: it is written twice with the same rows
    and read twice, and never exists twice."""

    def __init__(self, graph: "OnnxVerbs") -> None:
        self.graph = graph
        self.total = graph.op("Cast", graph.op("Squeeze", graph.total), to=ir.DataType.INT32)
        last = graph.op("Sub", graph.total, graph.ints("int.1", [1]))
        self.last = graph.op("Cast", last, to=ir.DataType.INT32)

    def attend(self, q: ir.Value, k: ir.Value, v: ir.Value | None, key: str, value: str) -> ir.Value:
        graph, row = self.graph, self.graph.layout.row
        q_width, kv_width = row.heads * row.key.width, row.kv_heads * row.key.width
        attributes: dict[str, int | str | float] = {"num_heads": row.heads, "kv_num_heads": row.kv_heads}
        if row.softmax_scale != row.key.width**-0.5:
            attributes["scale"] = row.softmax_scale
        inputs: list[ir.Value | None] = [
            graph.reshape(q, 1, -1, q_width),
            graph.reshape(k, 1, -1, kv_width),
            graph.reshape(k if v is None else v, 1, -1, kv_width),
            graph.caches[key],
            graph.caches[value],
            self.last,
            self.total,
        ]
        if graph.layout.dtype == "int8":
            attributes |= {"k_quant_type": "PER_CHANNEL", "v_quant_type": "PER_CHANNEL", "kv_cache_bit_width": 8}
            inputs += [None] * 5
            inputs += [graph.constant(scale_name(name), graph.scales[name]) for name in (key, value)]
        out, present_key, present_value = graph.ops("GroupQueryAttention", 3, *inputs, domain=CONTRIB, **attributes)
        graph.present[f"{key}.out"] = present_key
        # For K-only the second output has to exist too, bound to the same buffer.
        graph.present[f"{value}.out" if value != key else f"{key}.out_again"] = present_value
        return graph.reshape(out, -1, q_width)


class Folded:
    """Plain nodes for few KV heads and for rows with slices: the query heads that share a KV head become rows of one matrix, so
    that a step is two batched matrix products over the filled part of the cache."""

    def __init__(self, graph: "OnnxVerbs") -> None:
        self.graph = graph
        self.mask, self.scores_shape = self._causal_mask(), self._shape_of_scores()

    def attend(self, q: ir.Value, k: ir.Value, v: ir.Value | None, key: str, value: str) -> ir.Value:
        graph, row = self.graph, self.graph.layout.row
        kv_heads, group = row.kv_heads, row.group
        filled = {"k": self._append(k, key, row.widths["k"])}
        if v is not None:
            filled["v"] = self._append(v, value, row.widths["v"])
        keys, values = (self._part(filled[part.tensor], part) for part in (row.key, row.value))
        heads = graph.op("Transpose", graph.reshape(q, -1, kv_heads, group, row.key.width), perm=[1, 0, 2, 3])
        rows = graph.reshape(heads, kv_heads, -1, row.key.width)  # [kv_heads, T * group, key width]
        if graph.layout.dtype == "int8":
            # (q * s) kᵀ = q (s * k)ᵀ and p (s * k) = s * (p k): the cache is only cast, scales touch the small sides.
            rows = graph.op("Mul", rows, self._scale_of_heads(key, row.key))
        transposed = {"transB": 1, "alpha": row.softmax_scale}
        scores = graph.op("FusedMatMul", rows, keys, domain=CONTRIB, **transposed)  # [kv_heads, T * group, depth]
        by_token = graph.op("Reshape", scores, self.scores_shape)
        weights = graph.op("Softmax", graph.op("Add", by_token, self.mask), axis=-1)
        out = graph.op("MatMul", graph.op("Reshape", weights, graph.op("Shape", scores)), values)
        if graph.layout.dtype == "int8":
            out = graph.op("Mul", out, self._scale_of_heads(value, row.value))
        by_token = graph.op("Transpose", graph.reshape(out, kv_heads, -1, group, row.value.width), perm=[1, 0, 2, 3])
        return graph.reshape(by_token, -1, row.heads * row.value.width)

    def _append(self, x: ir.Value, name: str, width: int) -> ir.Value:
        """Write the new rows in place; returns the filled rows as fp32 [kv_heads, depth, width], unscaled when int8."""
        graph, kv_heads = self.graph, self.graph.layout.row.kv_heads
        if graph.layout.dtype == "int8":
            zero = graph.constant(f"zero_point.{kv_heads * width}", np.zeros(kv_heads * width, np.int8))
            x = graph.op("QuantizeLinear", x, graph.constant(scale_name(name), graph.scales[name]), zero, axis=1)
        elif graph.layout.dtype == "fp16":
            x = graph.op("Cast", x, to=ir.DataType.FLOAT16)
        update = graph.op("Transpose", graph.reshape(x, 1, -1, kv_heads, width), perm=[0, 2, 1, 3])
        present = graph.op("TensorScatter", graph.caches[name], update, graph.position, axis=2)
        graph.present[f"{name}.out"] = present
        filled = graph.op("Slice", present, graph.ints("int.0", [0]), graph.total, graph.ints("int.2", [2]))
        filled = graph.reshape(filled, kv_heads, -1, width)
        return filled if graph.layout.dtype == "fp32" else graph.op("Cast", filled, to=ir.DataType.FLOAT)

    def _part(self, rows: ir.Value, part: Slice) -> ir.Value:
        whole = part.start == 0 and part.stop == self.graph.layout.row.widths[part.tensor]
        return rows if whole else self.graph.slice(rows, part.start, part.stop, 2)

    def _scale_of_heads(self, name: str, part: Slice) -> ir.Value:
        graph, row = self.graph, self.graph.layout.row
        scale = graph.constant(scale_name(name), graph.scales[name])
        return self._part(graph.reshape(scale, row.kv_heads, 1, row.widths[part.tensor]), part)

    def _causal_mask(self) -> ir.Value:
        """[T, 1, depth]: 0 where a token may look, -inf behind it."""
        graph = self.graph
        zero, one = graph.constant("scalar.0", np.array(0, np.int64)), graph.constant("scalar.1", np.array(1, np.int64))
        columns = graph.op("Range", zero, graph.op("Squeeze", graph.total), one)
        rows = graph.op("Range", graph.op("Squeeze", graph.position), graph.op("Squeeze", graph.total), one)
        visible = graph.op("LessOrEqual", columns, graph.reshape(rows, -1, 1, 1))
        yes, no = (graph.constant(f"mask.{v}", np.array(v, np.float32)) for v in (0.0, -np.inf))
        return graph.op("Where", visible, yes, no)

    def _shape_of_scores(self) -> ir.Value:
        graph, row = self.graph, self.graph.layout.row
        parts = [graph.ints(f"int.{row.kv_heads}", [row.kv_heads]), graph.tokens, graph.ints(f"int.{row.group}", [row.group])]
        return graph.op("Concat", *parts, graph.total, axis=0)


ATTEND: dict[Attention, type[Fused] | type[GroupQuery] | type[Folded]] = {"fused": Fused, "gqa": GroupQuery, "folded": Folded}
