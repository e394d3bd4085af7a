"""From a model to the ONNX artifacts of a bundle."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir

from edgeqkv.cache import CacheLayout, cache_layout
from edgeqkv.config import LatentAttention, ModelConfig
from edgeqkv.decoder import decoder
from edgeqkv.errors import require
from edgeqkv.export.onnx.attention import Attention, attention_form
from edgeqkv.export.onnx.graph import CONTRIB, DATA_FILE, OURS, TABLES_FILE, Tensors, name_output, write_graphs
from edgeqkv.export.onnx.verbs import OnnxVerbs
from edgeqkv.export.rounding import nearest, rounding
from edgeqkv.files import file_sha256
from edgeqkv.manifest import Artifact, EntryPoint, Kernel, Port, WeightsEntry, cache_entry
from edgeqkv.model_folder import Model
from edgeqkv.parameters import parameter_shapes
from edgeqkv.runtimes.onnx.library import onnxruntime
from edgeqkv.runtimes.operator import operator_takes_products
from edgeqkv.targets import Progress, Request
from edgeqkv.weights import Formats, Plain, Quantized, RowInt8, WeightFormat, block_int4, block_int8, format_names, in_int4

INT4_BLOCK = 128  # measured (docs/weights.md): with smaller ones MatMulNBits spends its time on scales
FILES: dict[Kernel, str] = {"fused": "model.fused.onnx", "stock": "model.onnx"}
# TensorScatter, the in-place cache write of standard ONNX that the folded form needs, came with opset 24. Everything else is in
# 21, which ONNX Runtime takes from 1.23 on.
OPSETS: dict[Attention, int] = {"folded": 24, "gqa": 21, "fused": 21}


def weight_formats(scheme: str, products: bool) -> Formats:
    """int8 and int4 are for what is multiplied by a matrix: not for positions, which are added, nor for vectors. ``products``:
    for MLA's product of each head too, which the runtime's own operators do not have in int8; ours has it in int8 alone."""

    def choose(name: str, shape: tuple[int, ...]) -> WeightFormat:
        if scheme == "fp32" or len(shape) < 2 or name == "wpe.weight":
            return Plain("float32")
        if len(shape) == 3:
            return RowInt8() if products else Plain("float32")
        return block_int4(shape[-1], INT4_BLOCK, 16) if in_int4(scheme, name, shape) else block_int8(shape[-1])

    return choose


def products_in_int8(config: ModelConfig, kernel: Kernel) -> bool:
    """Whether a kernel's graph multiplies by MLA's W_K and W_V in int8."""
    attention = config.attention
    return kernel == "fused" and isinstance(attention, LatentAttention) and operator_takes_products(attention)


def build_graph(
    config: ModelConfig,
    weights: Mapping[str, np.ndarray],
    layout: CacheLayout,
    formats: Formats,
    scales: Mapping[str, np.ndarray],
    attention: Attention,
    tensors: Tensors | None = None,
    quantized: Quantized | None = None,
) -> ir.Model:
    """The whole model as an ONNX graph, whose weights graphs with the same ``tensors`` share. ``quantized`` gives the matrices
    that are not floating point, by default each rounded by itself."""
    shared, made = {} if tensors is None else tensors, quantized or nearest(weights)
    verbs = OnnxVerbs(config, weights, layout, formats, scales, attention, shared, made)
    logits = decoder(verbs, config, verbs.ids)
    name_output(logits, "logits", "float32", [config.vocab_size])
    buffers = {buffer.name: buffer for buffer in layout.buffers}
    for name, value in verbs.present.items():
        buffer = buffers[aliased(name)]
        name_output(value, name, buffer.dtype, buffer.shape)
    opsets = {"": OPSETS[attention], CONTRIB: 1} | ({OURS: 1} if attention == "fused" else {})
    inputs, outputs = [verbs.ids, verbs.position, *verbs.caches.values()], [logits, *verbs.present.values()]
    return verbs.model(f"edgeqkv {config.variant}", inputs, outputs, opsets)


def aliased(output: str) -> str:
    """The input that a cache output must share its memory with: cache.0.k for cache.0.k.out."""
    return output.rpartition(".")[0]


def aliases(model: ir.Model) -> dict[str, str]:
    """:func:`aliased` for each cache output of a graph."""
    names = [value.name or "" for value in model.graph.outputs]
    return {name: aliased(name) for name in names if name != "logits"}


def operators(model: ir.Model) -> tuple[str, ...]:
    """Those of ours that a graph uses."""
    return tuple(sorted({f"{OURS}::{node.op_type}" for node in model.graph if node.domain == OURS}))


def write_artifacts(
    source: Model, request: Request, layouts: Mapping[Kernel, CacheLayout], folder: Path, progress: Progress
) -> tuple[Artifact, ...]:
    """One artifact for each of ``layouts``, best first, over one weight file in ``folder``/onnx."""
    config, shared, scales = source.config, Tensors(), dict[str, np.ndarray]()
    static = next((layout for layout in layouts.values() if layout.scales == "static"), None)
    if static is not None:
        require("torch", "torch")
        from edgeqkv.export.calibrate import cache_scales

        progress("calibrating the int8 cache")
        scales = cache_scales(source, static, request.calibration)
    forms = {kernel: "fused" if kernel == "fused" else attention_form(config.row, request.cache) for kernel in layouts}
    formats = {kernel: weight_formats(request.weights, products_in_int8(config, kernel)) for kernel in layouts}
    # The graphs share their weight file, and so the matrices: what is int4 is the same in both.
    made = rounding(source, next(iter(formats.values())), request.calibration, folder, progress)
    progress("building the ONNX graphs")
    graphs = {
        kernel: build_graph(config, source.weights, layout, formats[kernel], scales, forms[kernel], shared, made.quantized)
        for kernel, layout in layouts.items()
    }
    progress("writing the ONNX graphs and their weights")
    write_graphs({FILES[kernel]: graph for kernel, graph in graphs.items()}, folder / "onnx")
    names = (*FILES.values(), DATA_FILE, TABLES_FILE)
    present = {name: file_sha256(path) for name in names if (path := folder / "onnx" / name).is_file()}

    shapes = parameter_shapes(config)

    def artifact(kernel: Kernel, layout: CacheLayout) -> Artifact:
        held = {name: tuple(float(str(x)) for x in scale) for name, scale in scales.items()}
        return Artifact(
            runtime="onnx",
            kernel=kernel,
            attention=forms[kernel],
            operators=operators(graphs[kernel]),
            weights=WeightsEntry(request.weights, format_names(formats[kernel], shapes, made.int4_method)),
            cache=cache_entry(layout, held if layout.scales == "static" else {}),
            files={f"onnx/{name}": present[name] for name in (FILES[kernel], DATA_FILE, TABLES_FILE) if name in present},
            runtime_version=onnxruntime("onnx").__version__,
            prefill_chunk=request.prefill_chunk,
            entry_points=(_entry_point(config, layout, aliases(graphs[kernel])),),
        )

    return tuple(artifact(kernel, layout) for kernel, layout in layouts.items())


def _entry_point(config: ModelConfig, layout: CacheLayout, aliases: dict[str, str]) -> EntryPoint:
    """One entry point prefills and decodes; what goes in is ids and a position."""
    logits = Port("logits", "float32", (config.vocab_size,))
    caches = {buffer.name: Port(buffer.name, buffer.dtype, buffer.shape) for buffer in layout.buffers}
    return EntryPoint(
        name="main",
        inputs=(Port("ids", "int64", ("tokens",)), Port("position", "int64", (1,)), *caches.values()),
        outputs=(logits, *(Port(name, caches[source].dtype, caches[source].shape) for name, source in aliases.items())),
        aliases=aliases,
        states={},
        arena_bytes=None,
    )


def fused_layout(config: ModelConfig, request: Request) -> CacheLayout:
    return cache_layout(config, request.capacity, request.cache)


def stock_layout(config: ModelConfig, request: Request) -> CacheLayout:
    """int8 with static scales: what the runtime's own operators can do."""
    return cache_layout(config, request.capacity, request.cache, "static")
