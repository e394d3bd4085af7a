"""The decoder's verbs as Core ML's MIL: one package whose two functions prefill and decode over states that they share.

The program is built, not traced: traced cache writes are silently dropped or baked in. Everything has a fixed shape, as the
Neural Engine wants it, so that attention always reads the whole capacity and a mask hides what is not filled yet.

========  ===========  ==============================================================================================
input     ids          int32 [1, tokens]: ``prefill_chunk`` of them for the function ``prefill``, one for ``decode``
input     position     int32 [1], how many positions of the cache are filled
state     cache_N_k    (and cache_N_v when the variant has a V) fp16 [1, n_kv_head, capacity, head_dim]
output    logits       float32 [vocab_size] of the last token
========  ===========  ==============================================================================================
"""

import errno
import json
import math
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import coremltools as ct
import numpy as np
from coremltools.converters.mil.backend.mil.load import load as to_proto
from coremltools.converters.mil.mil import Builder as mb
from coremltools.converters.mil.mil import Function, Program, types

from edgeqkv.cache import CacheLayout, cache_name, identifier
from edgeqkv.config import ModelConfig
from edgeqkv.coreml_package import MANIFEST_FILE, SPEC_FILE, WEIGHTS_FOLDER
from edgeqkv.decoder import decoder
from edgeqkv.errors import EdgeQKVError
from edgeqkv.export.quantize import quantize_channels

TARGET = ct.target.iOS18  # and macOS 15: the first with states and with more than one function in a package
STATE_MULTIPLE = 32  # the Neural Engine fails on states of other sizes (coremltools issue 2631)
WIDEST = 16384  # a tensor that is longer in one dimension may leave the Neural Engine
LONGEST_CHUNK = 64  # writes of 128 tokens into a state fail on the Neural Engine, 16 and 32 work (coremltools issue 2553)
HIDDEN = -4e4  # added to scores behind the mask: exp of it is 0, and no sum with a score leaves fp16


def check_sizes(config: ModelConfig, capacity: int, prefill_chunk: int, head_parts: int | None) -> None:
    """Refuse what would not load, or not run, on a device."""
    for name, size in (("capacity", capacity), ("head_dim", config.head_dim)):
        if size % STATE_MULTIPLE:
            remedy = (
                f"--capacity {size // STATE_MULTIPLE * STATE_MULTIPLE or STATE_MULTIPLE}"
                if name == "capacity"
                else "--target onnx"
            )
            raise EdgeQKVError(f"{name} {size} is not a multiple of {STATE_MULTIPLE}, which Core ML states need; use {remedy}")
    for name, size in (("capacity", capacity), ("d_model", config.d_model), ("d_mlp", config.d_mlp)):
        if size > WIDEST:
            raise EdgeQKVError(f"{name} {size} is beyond {WIDEST}, the longest dimension that the Neural Engine takes")
    if not 2 <= prefill_chunk <= min(LONGEST_CHUNK, capacity):
        raise EdgeQKVError(
            f"prefill chunk {prefill_chunk} is outside 2..{min(LONGEST_CHUNK, capacity)}, what a Core ML state takes at once"
        )
    if head_parts is not None and not 1 <= head_parts <= config.vocab_size:
        raise EdgeQKVError(f"head parts {head_parts} is outside 1..{config.vocab_size}")


def head_rows(vocab_size: int, parts: int | None) -> int:
    """Rows of each part of the head and embedding but the last; by default as few parts as keep to :data:`WIDEST`."""
    return math.ceil(vocab_size / (parts or math.ceil(vocab_size / WIDEST)))


class CoremlVerbs:
    """Records operations into the MIL function that is open.

    ``tokens`` is how many ids the function takes. ``arrays`` holds the weights prepared so far, by name: functions that are
    given the same one share them in the package.
    """

    def __init__(
        self,
        config: ModelConfig,
        weights: Mapping[str, np.ndarray],
        layout: CacheLayout,
        int8_weights: bool,
        head_parts: int | None,
        function: Function,
        tokens: int,
        arrays: dict[str, np.ndarray],
    ) -> None:
        self.config, self.weights, self.layout, self.int8_weights = config, weights, layout, int8_weights
        self.tokens, self.arrays = tokens, arrays
        self.values: dict[str, Any] = {}
        self.count = 0
        rows = head_rows(config.vocab_size, head_parts)
        self.parts = [(start, min(start + rows, config.vocab_size)) for start in range(0, config.vocab_size, rows)]
        self.ids, self.position = function.inputs["ids"], function.inputs["position"]
        self.states = {name: function.inputs[identifier(name)] for name in layout.names}
        # What every layer needs to know about the step is computed once.
        self.group = config.n_head // config.n_kv_head
        self.mask = self._causal_mask()
        middle = self.op("add", x=self.position, y=_ints(tokens))
        self.begin = self.op("concat", values=[_ints(0, 0), self.position, _ints(0)], axis=0)
        self.end = self.op("concat", values=[_ints(0, 0), middle, _ints(0)], axis=0)

    # -- building blocks ------------------------------------------------------------------------------------------

    def op(self, kind: str, **inputs: Any) -> Any:
        """Names count up, so that the same export gives the same bytes."""
        self.count += 1
        return getattr(mb, kind)(**inputs, name=f"{kind}_{self.count}")

    def constant(self, name: str, array: np.ndarray) -> Any:
        """The weight_id is how coremltools knows one tensor in two functions, and writes it once."""
        if name not in self.values:
            value = mb.const(val=self.arrays.setdefault(name, array), name=identifier(name))
            value.op.weight_id = name
            self.values[name] = value
        return self.values[name]

    def parameter(self, name: str) -> Any:
        if name not in self.arrays:
            self.arrays[name] = half(name, self.weights[name])
        return self.constant(name, self.arrays[name])

    def matrix(self, name: str, start: int = 0, end: int | None = None) -> Any:
        """Rows of a weight [out, in], in fp16 or as int8 with a scale for each row, dequantised by Core ML."""
        key = name if end is None else f"{name}.{start}"
        if key in self.values:
            return self.values[key]
        if not self.int8_weights:
            if key not in self.arrays:
                self.arrays[key] = half(name, self.weights[name][start:end])
            return self.constant(key, self.arrays[key])
        if f"{key}.int8" not in self.arrays:
            quantized = quantize_channels(half(name, self.weights[name][start:end]), np.float16)
            self.arrays[f"{key}.int8"], self.arrays[f"{key}.scale"] = quantized.values, quantized.scales
        data, scale = (self.constant(f"{key}.{part}", self.arrays[f"{key}.{part}"]) for part in ("int8", "scale"))
        self.values[key] = mb.constexpr_blockwise_shift_scale(data=data, scale=scale, name=identifier(key))
        return self.values[key]

    def reshape(self, x: Any, *shape: int) -> Any:
        return self.op("reshape", x=x, shape=shape)

    # -- verbs ----------------------------------------------------------------------------------------------------

    def embed(self, name: str, ids: Any) -> Any:
        """The head's matrix is the embedding too. When it is in parts, each is asked and the right answer selected."""
        tables = self._head(name)
        if len(tables) == 1:
            return self.op("gather", x=tables[0], indices=ids, axis=0)
        rows, out = np.int32(self.parts[0][1]), None
        part, row = self.op("floor_div", x=ids, y=rows), self.op("mod", x=ids, y=rows)
        for i, (table, (start, end)) in enumerate(zip(tables, self.parts, strict=True)):
            inside = row if end - start == rows else self.op("minimum", x=row, y=np.int32(end - start - 1))
            found = self.op("gather", x=table, indices=inside, axis=0)
            here = self.op("expand_dims", x=self.op("equal", x=part, y=np.int32(i)), axes=[2])
            out = found if out is None else self.op("select", cond=here, a=found, b=out)
        return out

    def embed_positions(self, name: str, ids: Any) -> Any:
        table = self.constant(name, half(name, self.weights[f"{name}.weight"][: self.layout.capacity]))
        steps = np.arange(self.tokens, dtype=np.int32)[None]
        return self.op("gather", x=table, indices=self.op("add", x=self.position, y=steps), axis=0)

    def layer_norm(self, x: Any, name: str) -> Any:
        gamma, beta = self.parameter(f"{name}.weight"), self.parameter(f"{name}.bias")
        return self.op("layer_norm", x=x, axes=[-1], gamma=gamma, beta=beta, epsilon=np.float16(self.config.layer_norm_eps))

    def linear(self, x: Any, name: str) -> Any:
        return self.op("linear", x=x, weight=self.matrix(f"{name}.weight"), bias=self.parameter(f"{name}.bias"))

    def gelu(self, x: Any) -> Any:
        return self.op("gelu", x=x, mode="EXACT")

    def add(self, x: Any, y: Any) -> Any:
        return self.op("add", x=x, y=y)

    def attend(self, q: Any, k: Any, v: Any, layer: int) -> Any:
        """The query heads that share a KV head become rows of one matrix, so that the cache is never repeated for them."""
        n_kv_head, head_dim = self.config.n_kv_head, self.config.head_dim
        keys = self._append(k, cache_name(layer, "k"))
        values = keys if v is k else self._append(v, cache_name(layer, "v"))
        if self.tokens > 1:
            q = self.reshape(q, self.tokens, n_kv_head, self.group, head_dim)
            q = self.op("transpose", x=q, perm=[1, 0, 2, 3])
        rows = self.reshape(q, 1, n_kv_head, self.tokens * self.group, head_dim)
        rows = self.op("mul", x=rows, y=np.float16(1 / math.sqrt(head_dim)))
        scores = self.op("matmul", x=rows, y=keys, transpose_y=True)  # [1, n_kv_head, tokens * group, capacity]
        weights = self.op("softmax", x=self.op("add", x=scores, y=self.mask), axis=-1)
        out = self.op("matmul", x=weights, y=values)
        if self.tokens > 1:
            out = self.reshape(out, n_kv_head, self.tokens, self.group, head_dim)
            out = self.op("transpose", x=out, perm=[1, 0, 2, 3])
        return self.reshape(out, 1, self.tokens, self.config.d_model)

    def last_token(self, x: Any) -> Any:
        if self.tokens == 1:
            return x
        shape = [1, self.tokens, self.config.d_model]
        return self.op("slice_by_index", x=x, begin=[0, self.tokens - 1, 0], end=shape)

    def logits(self, x: Any, name: str) -> Any:
        x = self.reshape(x, 1, self.config.d_model)
        parts = [self.op("linear", x=x, weight=table) for table in self._head(name)]
        padding = self.config.vocab_size - self.config.token_count
        while padding and self.parts[len(parts) - 1][0] >= self.config.token_count:
            parts.pop()  # a part of padding alone
        kept = self.config.token_count - self.parts[len(parts) - 1][0]
        if padding:
            parts[-1] = self.op("slice_by_index", x=parts[-1], begin=[0, 0], end=[1, kept])
            parts.append(self.constant("padding", np.full((1, padding), -np.inf, np.float16)))
        whole = parts[0] if len(parts) == 1 else self.op("concat", values=parts, axis=1)
        return mb.cast(x=self.reshape(whole, self.config.vocab_size), dtype="fp32", name="logits")

    # -- pieces ---------------------------------------------------------------------------------------------------

    def _head(self, name: str) -> list[Any]:
        if len(self.parts) == 1:
            return [self.matrix(f"{name}.weight")]
        return [self.matrix(f"{name}.weight", start, end) for start, end in self.parts]

    def _append(self, x: Any, name: str) -> Any:
        """Write the new rows at ``position``; returns the whole tensor as the state then holds it.

        A prefill takes the heads apart and stacks them: a reshape with a transpose before a state write of more than one
        token has failed to load on devices (coremltools issue 2278).
        """
        n_kv_head, head_dim = self.config.n_kv_head, self.config.head_dim
        if self.tokens == 1 or n_kv_head == 1:
            rows = self.reshape(x, 1, n_kv_head, self.tokens, head_dim)
        else:
            rows = self.op("stack", values=self.op("split", x=x, num_splits=n_kv_head, axis=2), axis=1)
        other_axes = [True, True, False, True]
        state = self.states[name]
        updated = self.op(
            "slice_update",
            x=self.op("read_state", input=state),
            update=rows,
            begin=self.begin,
            end=self.end,
            begin_mask=other_axes,
            end_mask=other_axes,
        )
        return self.op("coreml_update_state", state=state, value=updated)

    def _causal_mask(self) -> Any:
        """fp16 [1, 1, tokens * group, capacity]: 0 where a row may look, :data:`HIDDEN` elsewhere."""
        columns = self.constant("columns", np.arange(self.layout.capacity, dtype=np.int32)[None, None, None])
        steps = np.repeat(np.arange(self.tokens, dtype=np.int32), self.group)[None, None, :, None]
        visible = self.op("less_equal", x=columns, y=self.op("add", x=self.position, y=steps))
        return self.op("select", cond=visible, a=np.float16(0), b=np.float16(HIDDEN))


def _ints(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


def half(name: str, array: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        out = array.astype(np.float16)
    if not np.isfinite(out).all():
        raise EdgeQKVError(
            f"{name} holds values beyond fp16's largest, 65504, and Core ML computes in fp16; export it with --target onnx"
        )
    return out


def build_program(
    config: ModelConfig,
    weights: Mapping[str, np.ndarray],
    layout: CacheLayout,
    int8_weights: bool,
    prefill_chunk: int,
    head_parts: int | None,
) -> Program:
    """The functions ``prefill`` and ``decode`` over one set of weights."""
    program, arrays = Program(), dict[str, np.ndarray]()
    mb.name_count.clear()
    for name, tokens in (("prefill", prefill_chunk), ("decode", 1)):
        inputs = {"ids": mb.TensorSpec((1, tokens), types.int32), "position": mb.TensorSpec((1,), types.int32)}
        inputs |= {identifier(cache): mb.StateTensorSpec(layout.shape, types.fp16) for cache in layout.names}
        with Function(inputs, opset_version=TARGET) as function:
            verbs = CoremlVerbs(config, weights, layout, int8_weights, head_parts, function, tokens, arrays)
            function.set_outputs([decoder(verbs, config, verbs.ids)])
        program.add_function(name, function)
    program.default_function_name = "decode"
    program.export_as_multifunction = True
    program.skip_all_passes = True  # it is built as it shall be, and a pass would fold weights into copies
    return program


def write_package(program: Program, package: Path, description: str) -> None:
    """Save a program as ``package``, the same bytes for the same program.

    Only the backend of coremltools runs: what it would do before and after (passes, temporary copies, loading) is not needed,
    and it would put the date and random ids into the package.
    """
    (package / WEIGHTS_FOLDER).mkdir(parents=True)
    try:
        spec = to_proto(program, str(package / WEIGHTS_FOLDER), specification_version=TARGET.value)
    except RuntimeError as error:
        if "FileWriter" not in str(error):
            raise
        raise OSError(errno.EIO, "coremltools could not write all of the weights") from error  # its words for a full disk
    metadata = spec.description.metadata
    metadata.shortDescription, metadata.author = description, "edgeqkv"
    metadata.userDefined["com.github.apple.coremltools.version"] = ct.__version__
    (package / SPEC_FILE).write_bytes(spec.SerializeToString(deterministic=True))
    items = {name: uuid.uuid5(uuid.NAMESPACE_URL, name) for name in ("model.mlmodel", "weights")}
    entries = {
        str(items[name]).upper(): {
            "author": "com.apple.CoreML",
            "description": f"CoreML Model {what}",
            "name": name,
            "path": f"com.apple.CoreML/{name}",
        }
        for name, what in (("model.mlmodel", "Specification"), ("weights", "Weights"))
    }
    root = str(items["model.mlmodel"]).upper()
    manifest = {"fileFormatVersion": "1.0.0", "itemInfoEntries": entries, "rootModelIdentifier": root}
    (package / MANIFEST_FILE).write_text(json.dumps(manifest, indent=4) + "\n", encoding="utf-8")
