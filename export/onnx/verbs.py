"""The decoder's verbs as ONNX nodes: a graph that prefills and decodes over a static cache, updated in place.

Activations are [T, width].

========  =======  ==================================================================================================
input     ids      int64 [tokens], any number of them
input     position int64 [1], how many positions of the cache are filled
input     cache.N.k (and cache.N.v where the value has a tensor of its own), [1, kv_heads, capacity, width]; with scales that
          are written beside the rows also cache.N.k.scale, [1, kv_heads, capacity] or [1, kv_heads, 2, capacity]
output    logits   float32 [vocab_size] of the last token
output    NAME.out for each of the cache's inputs, to be bound to the memory of the input it succeeds (and .k.out_again)
========  =======  ==================================================================================================
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import cast

import numpy as np
import onnx_ir as ir

from edgeqkv.cache import CacheLayout, cache_name
from edgeqkv.config import ModelConfig, Rotary
from edgeqkv.decoder import absorbed
from edgeqkv.export.onnx.attention import ATTEND, Attention, Fused
from edgeqkv.export.onnx.graph import CONTRIB, GraphBuilder, Tensors, value
from edgeqkv.parameters import parameter_shapes
from edgeqkv.rotary import turns
from edgeqkv.weights import BlockInt4, BlockInt8, Formats, Quantized, RowInt8, WeightFormat

HEAD_BYTES = 8 * 2**20


class OnnxVerbs(GraphBuilder):
    """Records nodes. ``scales`` maps a cache tensor's name to float32 [kv_heads * width] when the cache has static scales."""

    def __init__(
        self,
        config: ModelConfig,
        weights: Mapping[str, np.ndarray],
        layout: CacheLayout,
        formats: Formats,
        scales: Mapping[str, np.ndarray],
        attention: Attention,
        tensors: Tensors,
        quantized: Quantized,
    ) -> None:
        super().__init__(tensors)
        self.shapes = parameter_shapes(config)
        self.config, self.weights, self.layout, self.formats, self.scales = config, weights, layout, formats, scales
        self.ids, self.position = value("ids", "int64", ["tokens"]), value("position", "int64", [1])
        self.caches = {buffer.name: value(buffer.name, buffer.dtype, buffer.shape) for buffer in layout.buffers}
        self.present: dict[str, ir.Value] = {}
        # What every layer needs to know about the step is computed once.
        self.tokens = self.op("Shape", self.ids)
        self.total = self.op("Add", self.position, self.tokens)
        self.attention = ATTEND[attention](self)
        self.quantized = quantized

    # -- weights --------------------------------------------------------------------------------------------------

    def parameter(self, name: str) -> ir.Value:
        return self.lazy(name, "float32", self.shapes[name], lambda: self.weights[name].astype(np.float32))

    def blocks(self, name: str, form: BlockInt8 | BlockInt4) -> tuple[ir.Value, ir.Value]:
        """Values uint8 [rows, blocks, bytes of a block] and scales [rows, blocks] of a quantised matrix."""
        rows, columns = self.shapes[name]
        count = columns // form.block

        def values() -> np.ndarray:
            made = self.quantized(name, form)[0]
            return made if isinstance(form, BlockInt8) else two_in_a_byte(made).reshape(rows, count, -1)

        shape = (rows, count, form.block * bits_of(form) // 8)
        scales = self.lazy(f"{name}.scales", "float32", (rows, count), lambda: self.quantized(name, form)[1])
        return self.lazy(f"{name}.int{bits_of(form)}", "uint8", shape, values), scales

    def form(self, name: str) -> WeightFormat:
        return self.formats(name, self.shapes[name])

    # -- verbs ----------------------------------------------------------------------------------------------------

    def embed(self, name: str, ids: ir.Value) -> ir.Value:
        name = f"{name}.weight"
        form = self.form(name)
        if not isinstance(form, BlockInt8 | BlockInt4):
            return self.op("Gather", self.parameter(name), ids)
        # A tied head's quantised matrix is the embedding too; this op wants its scales with one more axis.
        values, scales = self.blocks(name, form)
        rows = self.op(
            "GatherBlockQuantized",
            values,
            ids,
            self.reshape(scales, 0, 0, 1),
            domain=CONTRIB,
            bits=bits_of(form),
            block_size=form.block,
            gather_axis=0,
            quantize_axis=2,
        )
        return self.reshape(rows, -1, self.config.d_model)

    def embed_positions(self, name: str, ids: ir.Value) -> ir.Value:
        name, capacity = f"{name}.weight", self.layout.capacity
        shape = (capacity, self.config.d_model)
        table = self.lazy(name, "float32", shape, lambda: self.weights[name][:capacity].astype(np.float32))
        return self.op("Slice", table, self.position, self.total, self.ints("int.0", [0]))

    def norm(self, x: ir.Value, name: str, eps: float) -> ir.Value:
        if self.config.norm.kind == "layer_norm":
            vectors = self.parameter(f"{name}.weight"), self.parameter(f"{name}.bias")
            return self.op("LayerNormalization", x, *vectors, axis=-1, epsilon=eps)
        # RMSNorm as ONNX Runtime has it in the default domain; ONNX's own needs opset 23.
        return self.op("SimplifiedLayerNormalization", x, self.parameter(f"{name}.weight"), axis=-1, epsilon=eps)

    def head_norm(self, x: ir.Value, name: str, n_head: int, eps: float) -> ir.Value:
        (width,) = self.shapes[f"{name}.weight"]
        return self.reshape(self.norm(self.reshape(x, -1, width), name, eps), -1, n_head * width)

    def linear(self, x: ir.Value, name: str, width: int, bias: bool) -> ir.Value:
        return self._matmul(x, f"{name}.weight", self.parameter(f"{name}.bias") if bias else None)

    def _matmul(self, x: ir.Value, name: str, bias: ir.Value | None) -> ir.Value:
        """x [T, in] times the transpose of weight [out, in]."""
        form = self.form(name)
        if not isinstance(form, BlockInt8 | BlockInt4):
            return self.op("Gemm", x, self.parameter(name), *([bias] if bias else []), transB=1)
        return self._matmul_blocks(x, *self.blocks(name, form), self.shapes[name], form, bias)

    def _matmul_blocks(
        self,
        x: ir.Value,
        values: ir.Value,
        scales: ir.Value,
        shape: Sequence[int],
        form: BlockInt8 | BlockInt4,
        bias: ir.Value | None,
    ) -> ir.Value:
        rows, columns = shape
        # accuracy_level 4 multiplies in int8; without it this op is fifty times slower.
        attributes = {"bits": bits_of(form), "block_size": form.block, "N": rows, "K": columns, "accuracy_level": 4}
        inputs = [x, values, scales] + ([None, None, bias] if bias else [])
        return self.op("MatMulNBits", *inputs, domain=CONTRIB, **attributes)

    def head_linear(self, x: ir.Value, name: str, n_head: int, width: int) -> ir.Value:
        """In floating point: the runtime has no batched int8 product."""
        name = f"{name}.weight"
        _, rows, columns = self.shapes[name]
        matrix = self.lazy(
            f"{name}.transposed",
            "float32",
            (n_head, columns, rows),
            lambda: self.weights[name].astype(np.float32).transpose(0, 2, 1),
        )
        heads = self.op("Transpose", self.reshape(x, -1, n_head, columns), perm=[1, 0, 2])
        out = self.op("Transpose", self.op("MatMul", heads, matrix), perm=[1, 0, 2])
        return self.reshape(out, -1, n_head * width)

    def gelu(self, x: ir.Value) -> ir.Value:
        return self.op("Gelu", x)

    def swiglu(self, gate: ir.Value, x: ir.Value) -> ir.Value:
        return self.op("Mul", self.op("QuickGelu", gate, domain=CONTRIB, alpha=1.0), x)  # x * sigmoid(x): silu

    def add(self, x: ir.Value, y: ir.Value) -> ir.Value:
        return self.op("Add", x, y)

    def scale(self, x: ir.Value, factor: float) -> ir.Value:
        return x if factor == 1 else self.op("Mul", x, self.constant(f"scale.{factor}", np.array(factor, np.float32)))

    def turn(self, x: ir.Value, n_head: int, back: bool = False) -> ir.Value:
        positions = self.config.positions
        assert isinstance(positions, Rotary)
        count, half = self.layout.capacity, positions.dim // 2
        cosine = self.lazy("turns.cosine", "float32", (count, half), lambda: turns(positions, count)[0])
        if back:
            sine = self.lazy("turns.minus_sine", "float32", (count, half), lambda: -turns(positions, count)[1])
        else:
            sine = self.lazy("turns.sine", "float32", (count, half), lambda: turns(positions, count)[1])
        heads = self.op(
            "RotaryEmbedding",
            self.op("Unsqueeze", x, self.ints("int.0", [0])),
            self.position,
            cosine,
            sine,
            domain=CONTRIB,
            interleaved=int(positions.pairs == "interleaved"),
            num_heads=n_head,
            rotary_embedding_dim=positions.dim,
        )
        return self.op("Squeeze", heads, self.ints("int.0", [0]))

    def channels(self, x: ir.Value, n_head: int, start: int, stop: int) -> ir.Value:
        heads = self.op("Reshape", x, self.ints(f"heads.{n_head}", [0, n_head, -1]))
        return self.reshape(self.slice(heads, start, stop, 2), -1, n_head * (stop - start))

    def join(self, parts: list[ir.Value], n_head: int) -> ir.Value:
        if n_head == 1:
            return self.op("Concat", *parts, axis=1)
        heads = [self.op("Reshape", part, self.ints(f"heads.{n_head}", [0, n_head, -1])) for part in parts]
        return self.op("Flatten", self.op("Concat", *heads, axis=2), axis=1)

    def repeat(self, x: ir.Value, n_head: int) -> ir.Value:
        return self.op("Tile", x, self.ints(f"repeat.{n_head}", [1, n_head]))

    def attend(self, q: ir.Value, k: ir.Value, v: ir.Value | None, layer: int) -> ir.Value:
        return self.attention.attend(q, k, v, cache_name(layer, "k"), cache_name(layer, "v" if v is not None else "k"))

    def attend_latent(self, q_nope: ir.Value, q_rope: ir.Value, row: ir.Value, name: str, layer: int) -> ir.Value:
        """By our operator where it has W_K and W_V in int8."""
        if not isinstance(self.form(f"{name}.k_b.weight"), RowInt8):
            return cast(ir.Value, absorbed(self, self.config, q_nope, q_rope, row, name, layer))
        assert isinstance(self.attention, Fused)
        matrices = [tensor for part in ("k_b", "v_b") for tensor in self._int8_rows(f"{name}.{part}.weight")]
        return self.attention.attend_latent(q_nope, q_rope, row, matrices, cache_name(layer, "k"))

    def _int8_rows(self, name: str) -> tuple[ir.Value, ir.Value]:
        """Values int8 [n_head, rows, columns] and scales [n_head, rows, 1] of a product of each head."""
        form, shape = self.form(name), self.shapes[name]
        assert isinstance(form, RowInt8)
        values = self.lazy(f"{name}.int8", "int8", shape, lambda: self.quantized(name, form)[0])
        return values, self.lazy(f"{name}.scales", "float32", (*shape[:-1], 1), lambda: self.quantized(name, form)[1])

    def last_token(self, x: ir.Value) -> ir.Value:
        return self.slice(x, -1, 2**31 - 1, 0)

    def _head(self, x: ir.Value, name: str) -> ir.Value:
        """In pieces of up to ``HEAD_BYTES``: ONNX Runtime copies a matrix into an order of its own when it loads the graph, and
        then unmaps it, so that one piece is in memory twice. A tied table as a whole would stay mapped, for the embedding.
        """
        form = self.form(name)
        rows, columns = self.shapes[name]
        if not isinstance(form, BlockInt8 | BlockInt4):
            return self._matmul(x, name, None)
        pieces = -(-rows * columns * bits_of(form) // 8 // HEAD_BYTES)
        if pieces == 1:
            return self._matmul(x, name, None)
        values, scales = self.blocks(name, form)
        bounds = [rows * piece // pieces for piece in range(pieces + 1)]
        parts = [
            self._matmul_blocks(
                x, self.rows(values, first, last), self.rows(scales, first, last), (last - first, columns), form, None
            )
            for first, last in pairwise(bounds)
        ]
        return self.op("Concat", *parts, axis=1)

    def logits(self, x: ir.Value, name: str) -> ir.Value:
        out = self.reshape(self._head(x, f"{name}.weight"), -1)
        padding = self.config.vocab_size - self.config.token_count
        if not padding:
            return out
        kept = self.slice(out, 0, self.config.token_count, 0)
        minus_infinity = self.constant("minus_infinity", np.array(-np.inf, np.float32))
        return self.op("Pad", kept, self.ints("padding", [0, padding]), minus_infinity)


def bits_of(form: BlockInt8 | BlockInt4) -> int:
    return 8 if isinstance(form, BlockInt8) else 4


def two_in_a_byte(values: np.ndarray) -> np.ndarray:
    """int4 values [rows, columns] as uint8 [rows, columns / 2] around the zero point 8, the first of two in the low half."""
    raised = (values + 8).astype(np.uint8)
    packed: np.ndarray = raised[:, 0::2] | raised[:, 1::2] << 4
    return packed
