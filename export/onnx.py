"""The decoder's verbs as ONNX nodes: a graph that prefills and decodes over a static cache, updated in place.

The graph is built, not traced: a tracer turns cache writes into copies of the whole cache. Activations are [T, width].

========  =======  ==================================================================================================
input     ids      int64 [tokens], any number of them
input     position int64 [1], how many positions of the cache are filled
input     cache.N.k (and cache.N.v when the variant has a V), [1, n_kv_head, capacity, head_dim]; with scales for each token
          also cache.N.k.scale, [1, n_kv_head, capacity]
output    logits   float32 [vocab_size] of the last token
output    NAME.out for each of the cache's inputs, to be bound to the memory of the input it succeeds (and .k.out_again)
========  =======  ==================================================================================================

Two graphs of one model share one weight file: the stock one has only operators that the runtime brings, the fused one attends
with ours.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np
import onnx_ir as ir
from onnx_ir.tape import Tape

from edgeqkv.cache import CacheDtype, CacheLayout, cache_name
from edgeqkv.config import ModelConfig
from edgeqkv.decoder import decoder
from edgeqkv.export.quantize import quantize_rows

OPSET = 24  # TensorScatter, the in-place cache write of standard ONNX
CONTRIB = "com.microsoft"
OURS = "edgeqkv"
FUSED_OPERATOR = "CachedAttention"
TYPES = {"float32": ir.DataType.FLOAT, "float16": ir.DataType.FLOAT16, "int8": ir.DataType.INT8}
DATA_FILE = "model.data"
INLINE_BYTES = 256  # smaller tensors (shapes, axes) stay in the graph, where shape inference can read them

Attention = Literal["gqa", "folded", "fused"]


def attention_form(config: ModelConfig, dtype: CacheDtype) -> Attention:
    """Which of the runtime's own nodes attend: measured with ``python -m edgeqkv.bench.attention``, the reasons are in
    ARCHITECTURE.md. GroupQueryAttention takes no fp16 cache beside fp32 queries, and heads in multiples of 8 only."""
    shared_by = config.n_head // config.n_kv_head
    if dtype == "fp16" or config.head_dim % 8:
        return "folded"
    return "folded" if shared_by >= (8 if dtype == "int8" else 4) else "gqa"


class OnnxVerbs:
    """Records nodes.

    ``scales`` maps a cache tensor's name to float32 [n_kv_head * head_dim] when the cache has static scales. ``tensors`` holds
    the constants made so far, by name: graphs that are given the same one share them.
    """

    def __init__(
        self,
        config: ModelConfig,
        weights: Mapping[str, np.ndarray],
        layout: CacheLayout,
        int8_weights: bool,
        scales: Mapping[str, np.ndarray],
        attention: Attention,
        tensors: dict[str, ir.TensorProtocol],
    ) -> None:
        self.config, self.weights, self.layout, self.scales = config, weights, layout, scales
        self.int8_weights, self.attention, self.tensors = int8_weights, attention, tensors
        self.tape = Tape()
        self.initializers: dict[str, ir.Value] = {}
        self.ids, self.position = _value("ids", ir.DataType.INT64, ["tokens"]), _value("position", ir.DataType.INT64, [1])
        self.caches = {name: _value(name, TYPES[dtype], shape) for name, (dtype, shape) in layout.buffers.items()}
        self.inputs = [self.ids, self.position, *self.caches.values()]
        self.present: dict[str, ir.Value] = {}
        # What every layer needs to know about the step is computed once.
        self.tokens = self.op("Shape", self.ids)
        self.total = self.op("Add", self.position, self.tokens)
        if attention == "gqa":
            self.total_int32 = self.op("Cast", self.op("Squeeze", self.total), to=ir.DataType.INT32)
            last = self.op("Sub", self.total, self.ints("one", [1]))
            self.last_int32 = self.op("Cast", last, to=ir.DataType.INT32)
        if attention == "folded":
            self.mask, self.scores_shape = self._causal_mask(), self._shape_of_scores()

    # -- building blocks ------------------------------------------------------------------------------------------

    def op(self, kind: str, *inputs: ir.Value | None, domain: str = "", **attributes: object) -> ir.Value:
        return self.tape.op(kind, list(inputs), attributes=attributes, domain=domain)  # type: ignore[arg-type]

    def constant(self, name: str, array: np.ndarray) -> ir.Value:
        if name not in self.tensors:
            self.tensors[name] = ir.Tensor(np.ascontiguousarray(array), name=name)
        return self._initializer(name)

    def _initializer(self, name: str) -> ir.Value:
        if name not in self.initializers:
            self.initializers[name] = self.tape.initializer(self.tensors[name])
        return self.initializers[name]

    def ints(self, name: str, values: list[int]) -> ir.Value:
        return self.constant(name, np.array(values, np.int64))

    def reshape(self, x: ir.Value, *shape: int) -> ir.Value:
        return self.op("Reshape", x, self.ints("shape." + "x".join(map(str, shape)), list(shape)))

    def parameter(self, name: str) -> ir.Value:
        return self.constant(name, self.weights[name].astype(np.float32))

    def int8_parameter(self, name: str) -> tuple[ir.Value, ir.Value, int]:
        """Values uint8 [rows, blocks, block], scales [rows, blocks] and the block size of a quantised matrix."""
        if f"{name}.int8" not in self.tensors:
            quantized = quantize_rows(self.weights[name])
            self.constant(f"{name}.int8", quantized.values)
            self.constant(f"{name}.scales", quantized.scales)
        values = self._initializer(f"{name}.int8")
        return values, self._initializer(f"{name}.scales"), int(values.shape[2])  # type: ignore[index,arg-type]

    # -- verbs ----------------------------------------------------------------------------------------------------

    def embed(self, name: str, ids: ir.Value) -> ir.Value:
        if not self.int8_weights:
            return self.op("Gather", self.parameter(f"{name}.weight"), ids)
        # The head's int8 matrix is the embedding too; this op wants its scales with one more axis.
        values, scales, block = self.int8_parameter(f"{name}.weight")
        rows = self.op(
            "GatherBlockQuantized",
            values,
            ids,
            self.reshape(scales, 0, 0, 1),
            domain=CONTRIB,
            bits=8,
            block_size=block,
            gather_axis=0,
            quantize_axis=2,
        )
        return self.reshape(rows, -1, self.config.d_model)

    def embed_positions(self, name: str, ids: ir.Value) -> ir.Value:
        table = self.constant(f"{name}.weight", self.weights[f"{name}.weight"][: self.layout.capacity].astype(np.float32))
        return self.op("Slice", table, self.position, self.total, self.ints("axis.0", [0]))

    def layer_norm(self, x: ir.Value, name: str) -> ir.Value:
        weight, bias = self.parameter(f"{name}.weight"), self.parameter(f"{name}.bias")
        return self.op("LayerNormalization", x, weight, bias, axis=-1, epsilon=self.config.layer_norm_eps)

    def linear(self, x: ir.Value, name: str) -> ir.Value:
        return self._matmul(x, f"{name}.weight", self.parameter(f"{name}.bias"))

    def _matmul(self, x: ir.Value, weight: str, bias: ir.Value | None) -> ir.Value:
        """x [T, in] times the transpose of weight [out, in]."""
        if not self.int8_weights:
            return self.op("Gemm", x, self.parameter(weight), *([bias] if bias else []), transB=1)
        values, scales, block = self.int8_parameter(weight)
        rows, columns = self.weights[weight].shape
        # accuracy_level 4 multiplies in int8; without it this op is fifty times slower.
        attributes = {"bits": 8, "block_size": block, "N": rows, "K": columns, "accuracy_level": 4}
        inputs = [x, values, scales] + ([None, None, bias] if bias else [])
        return self.op("MatMulNBits", *inputs, domain=CONTRIB, **attributes)

    def gelu(self, x: ir.Value) -> ir.Value:
        return self.op("Gelu", x)

    def add(self, x: ir.Value, y: ir.Value) -> ir.Value:
        return self.op("Add", x, y)

    def attend(self, q: ir.Value, k: ir.Value, v: ir.Value, layer: int) -> ir.Value:
        key, value = cache_name(layer, "k"), cache_name(layer, "k" if v is k else "v")
        forms = {"gqa": self._attend_gqa, "folded": self._attend_folded, "fused": self._attend_fused}
        return forms[self.attention](q, k, v, key, value)

    def last_token(self, x: ir.Value) -> ir.Value:
        return self.op("Slice", x, self.ints("minus_one", [-1]), self.ints("end", [2**31 - 1]), self.ints("axis.0", [0]))

    def logits(self, x: ir.Value, name: str) -> ir.Value:
        out = self.reshape(self._matmul(x, f"{name}.weight", None), -1)
        padding = self.config.vocab_size - self.config.token_count
        if not padding:
            return out
        kept = self.op("Slice", out, self.ints("zero", [0]), self.ints("token_count", [self.config.token_count]))
        minus_infinity = self.constant("minus_infinity", np.array(-np.inf, np.float32))
        return self.op("Pad", kept, self.ints("padding", [0, padding]), minus_infinity)

    # -- the forms of attention -----------------------------------------------------------------------------------

    def _attend_fused(self, q: ir.Value, k: ir.Value, v: ir.Value, key: str, value: str) -> ir.Value:
        """Our operator (runtimes/onnx/custom_op.cc): appends, and reads each cached row once."""
        names: list[str | None] = []
        for tensor in [key] if value == key else [key, value]:
            names += [tensor, f"{tensor}.scale" if self.layout.scales == "per_token" else None]
        while names[-1] is None:
            names.pop()
        caches = [self.caches[name] if name else None for name in names]
        inputs = [q, k, None if v is k else v, self.position, *caches]
        attributes = {"n_head": self.config.n_head, "n_kv_head": self.config.n_kv_head}
        out, *present = self.tape.op_multi_out(
            FUSED_OPERATOR, inputs, attributes=attributes, domain=OURS, num_outputs=1 + len(names)
        )
        for name, after in zip(names, present, strict=True):
            if name is None:
                after.name = ""  # how ONNX leaves out an optional output
            else:
                self.present[f"{name}.out"] = after
        return out

    def _attend_gqa(self, q: ir.Value, k: ir.Value, v: ir.Value, key: str, value: str) -> ir.Value:
        """ONNX Runtime's fused op. For K-only one buffer is past_key and past_value at once: it is written twice with
        the same rows and read twice, and never exists twice."""
        config = self.config
        past_key, past_value = self.caches[key], self.caches[value]
        attributes: dict[str, int | str] = {"num_heads": config.n_head, "kv_num_heads": config.n_kv_head}
        inputs: list[ir.Value | None] = [
            self.reshape(q, 1, -1, config.d_model),
            self.reshape(k, 1, -1, config.kv_dim),
            self.reshape(v, 1, -1, config.kv_dim),
            past_key,
            past_value,
            self.last_int32,
            self.total_int32,
        ]
        if self.layout.dtype == "int8":
            attributes |= {"k_quant_type": "PER_CHANNEL", "v_quant_type": "PER_CHANNEL", "kv_cache_bit_width": 8}
            inputs += [None] * 5
            inputs += [self._scale(name) for name in (key, value)]
        out, present_key, present_value = self.tape.op_multi_out(
            "GroupQueryAttention", inputs, attributes=attributes, domain=CONTRIB, num_outputs=3
        )
        self.present[f"{key}.out"] = present_key
        # For K-only the second output has to exist too, bound to the same buffer.
        self.present[f"{value}.out" if value != key else f"{key}.out_again"] = present_value
        return self.reshape(out, -1, config.d_model)

    def _attend_folded(self, q: ir.Value, k: ir.Value, v: ir.Value, key: str, value: str) -> ir.Value:
        """Plain nodes for few KV heads: the query heads that share a KV head become rows of one matrix, so that a step is
        two batched matrix products over the filled part of the cache."""
        config = self.config
        n_kv_head, head_dim = config.n_kv_head, config.head_dim
        group = config.n_head // n_kv_head
        keys = self._append(k, key)
        values = keys if value == key else self._append(v, value)
        heads = self.op("Transpose", self.reshape(q, -1, n_kv_head, group, head_dim), perm=[1, 0, 2, 3])
        rows = self.reshape(heads, n_kv_head, -1, head_dim)  # [n_kv_head, T * group, head_dim]
        if self.layout.dtype == "int8":
            # (q * s) kᵀ = q (s * k)ᵀ and p (s * k) = s * (p k): the cache is only cast, scales touch the small sides.
            rows = self.op("Mul", rows, self._scale_of_heads(key))
        transposed = {"transB": 1, "alpha": 1 / math.sqrt(head_dim)}
        scores = self.op("FusedMatMul", rows, keys, domain=CONTRIB, **transposed)  # [n_kv_head, T * group, depth]
        by_token = self.op("Reshape", scores, self.scores_shape)
        weights = self.op("Softmax", self.op("Add", by_token, self.mask), axis=-1)
        out = self.op("MatMul", self.op("Reshape", weights, self.op("Shape", scores)), values)
        if self.layout.dtype == "int8":
            out = self.op("Mul", out, self._scale_of_heads(value))
        by_token = self.op("Transpose", self.reshape(out, n_kv_head, -1, group, head_dim), perm=[1, 0, 2, 3])
        return self.reshape(by_token, -1, config.d_model)

    def _append(self, x: ir.Value, name: str) -> ir.Value:
        """Write the new rows in place; returns the filled rows as fp32 [n_kv_head, depth, head_dim], unscaled when int8."""
        n_kv_head, head_dim = self.config.n_kv_head, self.config.head_dim
        if self.layout.dtype == "int8":
            zero = self.constant("zero_point", np.zeros(self.config.kv_dim, np.int8))
            x = self.op("QuantizeLinear", x, self._scale(name), zero, axis=1)
        elif self.layout.dtype == "fp16":
            x = self.op("Cast", x, to=ir.DataType.FLOAT16)
        update = self.op("Transpose", self.reshape(x, 1, -1, n_kv_head, head_dim), perm=[0, 2, 1, 3])
        present = self.op("TensorScatter", self.caches[name], update, self.position, axis=2)
        self.present[f"{name}.out"] = present
        filled = self.op("Slice", present, self.ints("zero", [0]), self.total, self.ints("axis.2", [2]))
        filled = self.reshape(filled, n_kv_head, -1, head_dim)
        return filled if self.layout.dtype == "fp32" else self.op("Cast", filled, to=ir.DataType.FLOAT)

    def _scale_of_heads(self, name: str) -> ir.Value:
        return self.reshape(self._scale(name), self.config.n_kv_head, 1, self.config.head_dim)

    def _scale(self, name: str) -> ir.Value:
        return self.constant(f"{name}.scale", self.scales[name])

    def _causal_mask(self) -> ir.Value:
        """[T, 1, depth]: 0 where a token may look, -inf behind it."""
        zero, one = self.constant("scalar.0", np.array(0, np.int64)), self.constant("scalar.1", np.array(1, np.int64))
        columns = self.op("Range", zero, self.op("Squeeze", self.total), one)
        rows = self.op("Range", self.op("Squeeze", self.position), self.op("Squeeze", self.total), one)
        visible = self.op("LessOrEqual", columns, self.reshape(rows, -1, 1, 1))
        yes, no = (self.constant(f"mask.{v}", np.array(v, np.float32)) for v in (0.0, -np.inf))
        return self.op("Where", visible, yes, no)

    def _shape_of_scores(self) -> ir.Value:
        n_kv_head, group = self.config.n_kv_head, self.config.n_head // self.config.n_kv_head
        parts = [self.ints("n_kv_head", [n_kv_head]), self.tokens, self.ints("group", [group]), self.total]
        return self.op("Concat", *parts, axis=0)

    # -- the model ------------------------------------------------------------------------------------------------

    def model(self, logits: ir.Value) -> ir.Model:
        _name(logits, "logits", ir.DataType.FLOAT, [self.config.vocab_size])
        for name, value in self.present.items():
            dtype, shape = self.layout.buffers[aliased(name)]
            _name(value, name, TYPES[dtype], shape)
        graph = ir.Graph(
            self.inputs,
            [logits, *self.present.values()],
            nodes=self.tape.nodes,
            initializers=list(self.initializers.values()),
            opset_imports={"": OPSET, CONTRIB: 1, OURS: 1} if self.attention == "fused" else {"": OPSET, CONTRIB: 1},
            name=f"edgeqkv {self.config.variant}",
        )
        return ir.Model(graph, ir_version=11, producer_name="edgeqkv")


def _value(name: str, dtype: ir.DataType, shape: object) -> ir.Value:
    return ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape))  # type: ignore[arg-type]


def _name(value: ir.Value, name: str, dtype: ir.DataType, shape: object) -> None:
    value.name, value.type, value.shape = name, ir.TensorType(dtype), ir.Shape(shape)  # type: ignore[arg-type]


def build_graph(
    config: ModelConfig,
    weights: Mapping[str, np.ndarray],
    layout: CacheLayout,
    int8_weights: bool,
    scales: Mapping[str, np.ndarray],
    attention: Attention,
    tensors: dict[str, ir.TensorProtocol] | None = None,
) -> ir.Model:
    """The whole model as an ONNX graph with its weights in memory, which graphs with the same ``tensors`` share."""
    verbs = OnnxVerbs(config, weights, layout, int8_weights, scales, attention, {} if tensors is None else tensors)
    return verbs.model(decoder(verbs, config, verbs.ids))


def aliased(output: str) -> str:
    """The input that a cache output must share its memory with: cache.0.k for cache.0.k.out."""
    return output.rsplit(".", 1)[0]


def aliases(model: ir.Model) -> dict[str, str]:
    """:func:`aliased` for each cache output of a graph."""
    names = [value.name or "" for value in model.graph.outputs]
    return {name: aliased(name) for name in names if name != "logits"}


def write_graphs(models: Mapping[str, ir.Model], folder: Path) -> None:
    """Each model under its file name, and the weights of all once in model.data beside them, which the runtime maps."""
    folder.mkdir(parents=True, exist_ok=True)
    initializers = [value for model in models.values() for value in model.graph.initializers.values()]
    tensors = {value.name: value.const_value for value in initializers}
    large = [tensor for tensor in tensors.values() if tensor is not None and tensor.nbytes >= INLINE_BYTES]
    external = ir.external_data.convert_tensors_to_external(large, folder, DATA_FILE) if large else []
    stored: dict[str | None, ir.TensorProtocol | None] = {tensor.name: tensor for tensor in external}
    for value in initializers:
        value.const_value = stored.get(value.name, value.const_value)
    for file, model in models.items():
        ir.save(model, folder / file)
