"""The decoder in eager PyTorch, exported by ExecuTorch itself into one .pte with two methods over one cache.

========  =======  ==================================================================================================
decode    ids      int64 [1, 1], with position int64 [1], how many positions of the cache are filled
prefill   ids      int64 [1, chunk], with position int64 [1] and count int64 [1]: the first ``count`` ids are tokens, the
                   rest is padding
both      logits   float32 [1, 1, vocab_size] of the last token
========  =======  ==================================================================================================

The cache is a set of mutable buffers of the program, planned into an arena of their own that both methods share. Linears go to
XNNPACK; attention is our operator (runtimes/executorch/cached_attention.cc), which updates the buffers in place and writes no
padding, or ExecuTorch's own update_cache and custom_sdpa, which write padding too: it has to fit, and later rows replace it.

int8 weights are symmetric with one scale for each row, and XNNPACK rounds activations to int8 too, with a scale for each
token. The head and the embedding are one table in the file (:mod:`edgeqkv.export.executorch_file`), though XNNPACK packs a copy
of the head when it loads it.
"""

from collections.abc import Mapping
from typing import Any, cast

import executorch.exir as exir
import numpy as np
import torch
import torch.nn.functional as F
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.exir.passes import MemoryPlanningPass, _quant_patterns_and_replacements  # noqa: F401 - declares embedding_byte
from torch import Tensor
from torch.ao.quantization.fx import _decomposed  # noqa: F401 - declares the operators that XNNPACK reads int8 linears from

from edgeqkv.bundle import Kernel
from edgeqkv.cache import CacheLayout, cache_name, identifier
from edgeqkv.config import ModelConfig
from edgeqkv.decoder import decoder
from edgeqkv.eager import EagerVerbs
from edgeqkv.errors import CheckFailed
from edgeqkv.export.quantize import quantize_channels

PADDING_BIAS = "padding.bias"
METHODS = ("prefill", "decode")
ARENA_ROOM = 64 * 1024  # bytes that decode may plan beside the cache: its activations

# Cache tensors marked (x!) are updated in place; runtimes/executorch/cached_attention.cc says what each argument is.
_ARGUMENTS = (
    "Tensor q, Tensor k, Tensor? v, Tensor position, Tensor? count, "
    "Tensor(a!) k_cache, Tensor(b!)? k_scale, Tensor(c!)? v_cache, Tensor(d!)? v_scale"
)
_library = cast(Any, torch.library.Library)("edgeqkv", "DEF")
_library.define(f"cached_attention({_ARGUMENTS}) -> Tensor")
_library.define(f"cached_attention.out({_ARGUMENTS}, *, Tensor(e!) out) -> Tensor(e!)")
# Export needs the shape of the result alone: it never computes.
_library.impl("cached_attention", lambda q, *others: torch.empty_like(q), "Meta")
_library.impl("cached_attention.out", lambda q, *others, out: out, "Meta")

_int8 = torch.ops.quantized_decomposed


class ExecutorchVerbs(EagerVerbs):
    """Eager PyTorch, but for the cache, and for weights that are stored in int8.

    ``weights`` may hold NAME.int8 (int8 [rows, columns]), NAME.scale and NAME.zero ([rows]) in place of NAME. ``buffers`` are
    the cache's by name. ``start`` and ``count`` are int64 [1]; without a count all ids are tokens.
    """

    def __init__(
        self,
        config: ModelConfig,
        weights: Mapping[str, Tensor],
        buffers: Mapping[str, Tensor],
        start: Tensor,
        count: Tensor | None,
    ) -> None:
        super().__init__(config, weights)
        self.buffers, self.start, self.count = buffers, start, count

    def embed(self, name: str, ids: Tensor) -> Tensor:
        table = f"{name}.weight"
        if f"{table}.int8" not in self.weights:
            return super().embed(name, ids)
        rows, scale = self.weights[f"{table}.int8"], self.weights[f"{table}.scale"]
        return cast(Tensor, _int8.embedding_byte(rows, scale, None, -128, 127, ids))

    def embed_positions(self, name: str, ids: Tensor) -> Tensor:
        table = self.weights[f"{name}.weight"]
        positions = self.start + torch.arange(ids.shape[1])
        if self.count is not None:  # padding may reach beyond the table
            positions = positions.clamp(max=table.shape[0] - 1)
        return F.embedding(positions, table)

    def linear(self, x: Tensor, name: str) -> Tensor:
        return self._matmul(x, f"{name}.weight", self.weights[f"{name}.bias"])

    def attend(self, q: Tensor, k: Tensor, v: Tensor, layer: int) -> Tensor:
        key, value = cache_name(layer, "k"), cache_name(layer, "v")
        caches = [self.buffers.get(name) for name in (key, f"{key}.scale", value, f"{value}.scale")]
        attention = torch.ops.edgeqkv.cached_attention
        return cast(Tensor, attention(q, k, None if v is k else v, self.start, self.count, *caches))

    def last_token(self, x: Tensor) -> Tensor:
        return x if self.count is None else x.index_select(1, self.count - 1)

    def logits(self, x: Tensor, name: str) -> Tensor:
        return self._matmul(x, f"{name}.weight", self.weights.get(PADDING_BIAS))

    def _matmul(self, x: Tensor, name: str, bias: Tensor | None) -> Tensor:
        if f"{name}.int8" not in self.weights:
            return F.linear(x, self.weights[name], bias)
        # Not computed as written: XNNPACK takes this pattern as one int8 linear with dynamic activations.
        scale, zero = _int8.choose_qparams_per_token_asymmetric(x, torch.int8)
        rounded = _int8.quantize_per_token(x, scale, zero, -128, 127, torch.int8)
        x = _int8.dequantize_per_token(rounded, scale, zero, -128, 127, torch.int8, torch.float32)
        values, scales, zeros = (self.weights[f"{name}.{part}"] for part in ("int8", "scale", "zero"))
        return F.linear(x, _int8.dequantize_per_channel(values, scales, zeros, 0, -127, 127, torch.int8), bias)


class StockVerbs(ExecutorchVerbs):
    """With ExecuTorch's llama operators, whose caches are float32 [1, capacity, n_kv_head, head_dim]."""

    def __init__(self, *arguments: Any) -> None:
        from executorch.extension.llm.custom_ops import custom_ops  # noqa: F401 - declares the operators

        super().__init__(*arguments)
        self.position_now = self.start.item()  # the operators take a number

    def attend(self, q: Tensor, k: Tensor, v: Tensor, layer: int) -> Tensor:
        key = self._update(k, cache_name(layer, "k"))
        value = key if v is k else self._update(v, cache_name(layer, "v"))
        out = torch.ops.llama.custom_sdpa(self._by_position(q), key, value, self.position_now, None, 0.0, True)
        return cast(Tensor, out.view(q.shape))

    def _update(self, x: Tensor, name: str) -> Tensor:
        torch.ops.llama.update_cache(self._by_position(x), self.buffers[name], self.position_now)
        return self.buffers[name]

    def _by_position(self, x: Tensor) -> Tensor:
        return x.view(1, x.shape[1], -1, self.config.head_dim)


class Decoder(torch.nn.Module):
    """The decoder as the module that torch.export takes: weights and cache are its buffers."""

    def __init__(
        self, config: ModelConfig, weights: Mapping[str, Tensor], layout: CacheLayout, verbs: type[ExecutorchVerbs]
    ) -> None:
        super().__init__()
        self.config, self.verbs = config, verbs
        self.weight_names = tuple(weights)
        self.cache_names = tuple(layout.buffers)
        for name, tensor in weights.items():
            self.register_buffer(identifier(name), tensor)
        for name, (dtype, shape) in layout.buffers.items():
            self.register_buffer(identifier(name), torch.zeros(shape, dtype=getattr(torch, dtype)))

    def forward(self, ids: Tensor, position: Tensor, count: Tensor | None = None) -> Tensor:
        weights, buffers = self._named(self.weight_names), self._named(self.cache_names)
        # As the head gives them: any other shape is a copy, which is planned.
        return cast(Tensor, decoder(self.verbs(self.config, weights, buffers, position, count), self.config, ids))

    def _named(self, names: tuple[str, ...]) -> dict[str, Tensor]:
        return {name: getattr(self, identifier(name)) for name in names}


def stored_weights(config: ModelConfig, weights: Mapping[str, np.ndarray], int8: bool) -> dict[str, Tensor]:
    """The weights as the program holds them: with ``int8`` all matrices but the positions, which are added, not multiplied.

    Where there are padding ids the head gets a bias, 0 and for them -inf: any other way to -inf plans the logits twice.
    """
    out = {}
    if config.token_count < config.vocab_size:
        out[PADDING_BIAS] = torch.zeros(config.vocab_size)
        out[PADDING_BIAS][config.token_count :] = float("-inf")
    for name, array in weights.items():
        if int8 and array.ndim == 2 and name != "wpe.weight":
            rounded = quantize_channels(array)
            out[f"{name}.int8"] = torch.from_numpy(rounded.values)
            out[f"{name}.scale"] = torch.from_numpy(rounded.scales[:, 0])
            out[f"{name}.zero"] = torch.zeros(len(array), dtype=torch.int64)
        else:
            out[name] = torch.from_numpy(array.astype(np.float32))
    return out


NOT_DELEGATED = ("linear", "addmm", "mm", "dequantize_per_channel", "choose_qparams_per_token_asymmetric")


def lower(
    config: ModelConfig, weights: Mapping[str, np.ndarray], layout: CacheLayout, int8: bool, chunk: int, kernel: Kernel
) -> Any:
    """Both methods lowered to XNNPACK, as ExecuTorch's edge program manager: what is left of each graph is to be seen there.

    Raises :class:`CheckFailed` when XNNPACK has left a linear to ExecuTorch's own slow operators.
    """
    verbs = ExecutorchVerbs if kernel == "fused" else StockVerbs
    module = Decoder(config, stored_weights(config, weights, int8), layout, verbs).eval()
    ids = torch.zeros(1, chunk, dtype=torch.int64)
    # Two tensors: torch.export takes one that is passed twice for one input, and then both are the first.
    position, count = torch.zeros(1, dtype=torch.int64), torch.ones(1, dtype=torch.int64)
    with torch.no_grad():
        graphs = {
            "prefill": torch.export.export(module, (ids, position, count), strict=False),
            "decode": torch.export.export(module, (ids[:, :1], position), strict=False),
        }
        # Its check of the graph knows no operators but PyTorch's own.
        options = exir.EdgeCompileConfig(_check_ir_validity=False, _skip_dim_order=True)
        lowered = exir.to_edge_transform_and_lower(graphs, partitioner=[XnnpackPartitioner()], compile_config=options)
    for method in METHODS:
        for node in lowered.exported_program(method).graph.nodes:
            operator = getattr(node.target, "__name__", str(node.target))
            if node.op == "call_function" and set(operator.split(".")) & set(NOT_DELEGATED):
                raise CheckFailed(f"XNNPACK did not take {operator} in {method}, so that the program would be slow")
    return lowered


def to_program(lowered: Any, layout: CacheLayout) -> tuple[bytes, dict[str, int]]:
    """The .pte file, and the bytes that each method plans: checked to be the cache and little else.

    Inputs and logits are the caller's memory, so that they are in no plan. Raises :class:`CheckFailed` when decode plans more
    than 64 KiB beside the cache: then something in the graph has copied it.
    """
    planning = MemoryPlanningPass(share_mutable_buffers=True, alloc_graph_input=False, alloc_graph_output=False)
    config = exir.ExecutorchBackendConfig(memory_planning_pass=planning, emit_mutable_buffer_names=True)
    program = lowered.to_executorch(config)
    plans = {plan.name: plan for plan in program.executorch_program.execution_plan}
    arenas = {name: sum(plans[name].non_const_buffer_sizes) for name in METHODS}
    if not layout.bytes <= arenas["decode"] <= layout.bytes + ARENA_ROOM:
        raise CheckFailed(
            f"decode plans {arenas['decode']:,} bytes for a cache of {layout.bytes:,}, and may take {ARENA_ROOM:,} more: "
            "the cache is not updated in place"
        )
    return bytes(program.buffer), arenas
