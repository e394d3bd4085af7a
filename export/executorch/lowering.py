"""From weights to a program: how each is stored, the module that torch.export takes, what XNNPACK takes, the memory plan."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import executorch.exir as exir
import numpy as np
import torch
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.exir.passes import MemoryPlanningPass
from torch import Tensor

from edgeqkv.cache import CacheLayout, identifier
from edgeqkv.config import ModelConfig, Rotary
from edgeqkv.decoder import decoder
from edgeqkv.eager import turn_tables
from edgeqkv.errors import CheckFailed
from edgeqkv.export.executorch.verbs import COSINES, PADDING_BIAS, SINES, ExecutorchVerbs, Int4Blocks, Int8Rows, StockVerbs
from edgeqkv.export.rounding import nearest
from edgeqkv.manifest import Kernel
from edgeqkv.runtimes.operator import PRODUCT_WIDTH
from edgeqkv.weights import BlockInt4, Formats, Plain, Quantized, RowInt8, WeightFormat, block_int4, in_int4

METHODS = ("prefill", "decode")
# What XNNPACK must not leave to ExecuTorch's own operators, which would be slow.
NOT_DELEGATED = (
    *("linear", "addmm", "mm", "bmm"),
    *("dequantize_per_channel", "dequantize_per_channel_group", "choose_qparams_per_token_asymmetric"),
)
ROWS_AT_ONCE = 4096
INT4_BLOCK = 64  # measured (docs/weights.md): a twentieth faster than 32, the smallest that XNNPACK takes


def weight_formats(scheme: str) -> Formats:
    """How each weight is stored. With "int8": all matrices, in rows, but the positions, which are added, not multiplied, and
    MLA's products where our operator does not take their rows. With int4 those products stay what they are there."""

    def choose(name: str, shape: tuple[int, ...]) -> WeightFormat:
        products = len(shape) == 3 and shape[2] % PRODUCT_WIDTH == 0
        if scheme == "fp32" or name == "wpe.weight" or not (len(shape) == 2 or products):
            return Plain("float32")
        if products or not in_int4(scheme, name, shape):
            return RowInt8()
        return block_int4(shape[-1], INT4_BLOCK, 32, "bfloat16")

    return choose


def stored_weights(
    config: ModelConfig,
    weights: Mapping[str, np.ndarray],
    formats: Formats,
    capacity: int,
    quantized: Quantized | None = None,
) -> dict[str, Tensor | Int8Rows | Int4Blocks]:
    """The weights as the program holds them, and its other constants. ``quantized`` gives what is int4, by default each matrix
    rounded by itself. A floating-point product for each head is transposed,
    [n_head, in, out], as bmm takes it.

    Where there are padding ids the head gets a bias, 0 and for them -inf: any other way to -inf plans the logits twice.
    """
    out: dict[str, Tensor | Int8Rows | Int4Blocks] = {}
    quantized = quantized or nearest(weights)
    if config.token_count < config.vocab_size:
        bias = torch.zeros(config.vocab_size)
        bias[config.token_count :] = float("-inf")
        out[PADDING_BIAS] = bias
    if isinstance(config.positions, Rotary):
        out[COSINES], out[SINES] = turn_tables(config.positions, capacity)
    for name in weights:
        array = weights[name]
        stored = formats(name, array.shape)
        if isinstance(stored, RowInt8):
            out[name] = int8_rows(stored, array)
        elif isinstance(stored, BlockInt4):
            values, scales = (torch.from_numpy(part) for part in quantized(name, stored))
            out[name] = Int4Blocks(values, scales, embeds=name == "wte.weight")
        else:
            tensor = torch.from_numpy(array.astype(np.float32))
            out[name] = tensor.transpose(1, 2).contiguous() if tensor.dim() == 3 else tensor
    return out


def int8_rows(stored: RowInt8, array: np.ndarray) -> Int8Rows:
    """Rounded some rows at a time: else the largest table would lie in memory in fp32 several times over."""
    flat = array.reshape(-1, array.shape[-1])
    values, scale = np.empty(flat.shape, np.int8), np.empty((len(flat), 1), np.float32)
    for start in range(0, len(flat), ROWS_AT_ONCE):
        rows = slice(start, start + ROWS_AT_ONCE)
        values[rows], scale[rows] = stored.quantize(flat[rows])
    scales = torch.from_numpy(scale)
    shaped = scales[:, 0] if array.ndim == 2 else scales.view(*array.shape[:-1], 1)
    return Int8Rows(torch.from_numpy(values).view(array.shape), shaped)


class Decoder(torch.nn.Module):
    """The decoder as the module that torch.export takes: weights and cache are its buffers."""

    def __init__(
        self,
        config: ModelConfig,
        weights: Mapping[str, Tensor | Int8Rows | Int4Blocks],
        layout: CacheLayout,
        verbs: type[ExecutorchVerbs],
    ) -> None:
        super().__init__()
        self.config, self.layout, self.verbs = config, layout, verbs
        self.weight_names = tuple(weights)
        for name, stored in weights.items():
            if isinstance(stored, Int8Rows | Int4Blocks):
                self.add_module(identifier(name), stored)
            else:
                self.register_buffer(identifier(name), stored)
        for buffer in layout.buffers:
            self.register_buffer(identifier(buffer.name), torch.zeros(buffer.shape, dtype=getattr(torch, buffer.dtype)))

    def forward(self, ids: Tensor, position: Tensor, count: Tensor | None = None) -> Tensor:
        weights = {name: getattr(self, identifier(name)) for name in self.weight_names}
        buffers = {buffer.name: getattr(self, identifier(buffer.name)) for buffer in self.layout.buffers}
        verbs = self.verbs(self.config, weights, self.layout, buffers, position, count)
        # As the head gives them: any other shape is a copy, which is planned.
        return cast(Tensor, decoder(verbs, self.config, ids))


def lower(
    config: ModelConfig,
    weights: Mapping[str, np.ndarray],
    layout: CacheLayout,
    formats: Formats,
    chunk: int,
    kernel: Kernel,
    quantized: Quantized | None = None,
) -> Any:
    """Both methods lowered to XNNPACK, as ExecuTorch's edge program manager: what is left of each graph is to be seen there.

    Raises :class:`CheckFailed` when XNNPACK has left a linear to ExecuTorch's own slow operators.
    """
    verbs = ExecutorchVerbs if kernel == "fused" else StockVerbs
    module = Decoder(config, stored_weights(config, weights, formats, layout.capacity, quantized), layout, verbs).eval()
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


@dataclass(frozen=True)
class Program:
    """What ExecuTorch writes; the bytes that each method plans; the operators that its core does not bring."""

    manager: Any  # of executorch.exir, with write_to_file
    arenas: dict[str, int]
    operators: tuple[str, ...]


def arena_room(config: ModelConfig) -> int:
    """Bytes that decode may plan beside the cache: its activations, of which a few are alive at once. A copy of a layer's cache
    is larger by the number of positions."""
    row = config.row
    widths = (row.heads * row.key.width, row.heads * row.value.width, *(row.kv_heads * width for width in row.widths.values()))
    return 64 * 1024 + 4 * 4 * max(config.d_model, config.mlp.width, *widths)


def to_program(lowered: Any, layout: CacheLayout, room: int) -> Program:
    """What ExecuTorch makes of the lowered methods, checked to plan the cache and little else.

    Inputs and logits are the caller's memory, so that they are in no plan. Raises :class:`CheckFailed` when decode plans more
    than ``room`` bytes beside the cache: then something in the graph has copied it.
    """
    planning = MemoryPlanningPass(share_mutable_buffers=True, alloc_graph_input=False, alloc_graph_output=False)
    config = exir.ExecutorchBackendConfig(memory_planning_pass=planning, emit_mutable_buffer_names=True)
    program = lowered.to_executorch(config)
    plans = {plan.name: plan for plan in program.executorch_program.execution_plan}
    arenas = {name: sum(plans[name].non_const_buffer_sizes) for name in METHODS}
    if not layout.bytes <= arenas["decode"] <= layout.bytes + room:
        raise CheckFailed(
            f"decode plans {arenas['decode']:,} bytes for a cache of {layout.bytes:,}, and may take {room:,} more: "
            "the cache is not updated in place"
        )
    names = {f"{operator.name}.{operator.overload}" for plan in plans.values() for operator in plan.operators}
    operators = sorted(name for name in names if name.startswith(("edgeqkv::", "llama::")))
    return Program(program, arenas, tuple(operators))
