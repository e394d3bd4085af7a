"""What each target can store, and how its part of a bundle is written. A new target is one more entry of :data:`TARGETS`."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from edgeqkv.bundle import OPERATORS, WeightScheme
from edgeqkv.cache import BY_POSITION, CacheDtype, CacheLayout, cache_layout, identifier
from edgeqkv.config import ModelConfig
from edgeqkv.coreml_package import MANIFEST_FILE, PACKAGE, SPEC_FILE, WEIGHT_FILE, require_coremltools
from edgeqkv.errors import EdgeQKVError, require
from edgeqkv.export.quantize import block_size
from edgeqkv.export.quiet import quiet
from edgeqkv.files import file_sha256
from edgeqkv.manifest import Artifact, EntryPoint, Kernel, Port, WeightsEntry, cache_entry
from edgeqkv.model_folder import Model
from edgeqkv.runtimes.executorch.engine import require_version

EXECUTORCH = "1.5.1"
INT8_SCALES: dict[Kernel, Literal["static", "per_token"]] = {"fused": "per_token", "stock": "static"}
Progress = Callable[[str], None]


@dataclass(frozen=True)
class Request:
    """What was asked of one target, with its defaults filled in."""

    weights: WeightScheme
    cache: CacheDtype
    capacity: int
    calibration: Path | None
    prefill_chunk: int
    head_parts: int | None
    kernel: Kernel | None


@dataclass(frozen=True)
class Target:
    """``weights`` and ``caches`` are what it can store, the first cache by default; ``other_caches`` answers who wants more.

    ``need`` imports its packages or raises, ``check`` refuses what it cannot do with a model, and ``write`` puts its files into
    a folder.
    """

    weights: tuple[WeightScheme, ...]
    caches: tuple[CacheDtype, ...]
    other_caches: str
    prefill_chunk: int
    need: Callable[[], object]
    check: Callable[[ModelConfig, Request], None]
    write: Callable[[Model, Request, Path, Progress], tuple[Artifact, ...]]


def fused_possible(config: ModelConfig) -> bool:
    """Whether our operator takes the model's heads (runtimes/kernels/include/edgeqkv_attention.h)."""
    return config.head_dim % 8 == 0 and config.head_dim <= 1024


def _check_chunk(request: Request, least: int) -> None:
    if not least <= request.prefill_chunk <= request.capacity:
        raise EdgeQKVError(f"prefill chunk {request.prefill_chunk} is outside {least}..{request.capacity}, the capacity")


def _weights_by_row(config: ModelConfig, scheme: WeightScheme) -> WeightsEntry:
    """Where int8 has one scale for a whole row."""
    return WeightsEntry(scheme, {str(w): w for w in sorted({config.d_model, config.d_mlp})} if scheme == "int8" else {})


# -- ONNX ---------------------------------------------------------------------------------------------------------


def _check_onnx(config: ModelConfig, request: Request) -> None:
    cache_layout(config, request.capacity, request.cache)
    if request.weights == "int8":
        _onnx_blocks(config)
    _check_chunk(request, 1)


def _onnx_blocks(config: ModelConfig) -> dict[str, int]:
    return {str(width): block_size(width) for width in sorted({config.d_model, config.d_mlp})}


def _onnx_artifacts(source: Model, request: Request, folder: Path, progress: Progress) -> tuple[Artifact, ...]:
    """The fused graph first: it is preferred where its operator can be loaded. A head_dim that it does not take has none."""
    from edgeqkv.export.onnx import (
        DATA_FILE,
        FUSED_OPERATOR,
        OURS,
        Attention,
        aliases,
        attention_form,
        build_graph,
        write_graphs,
    )

    config, shared = source.config, dict[str, Any]()
    kernels: tuple[Kernel, ...] = ("fused", "stock") if fused_possible(config) else ("stock",)
    layouts = {kernel: cache_layout(config, request.capacity, request.cache, INT8_SCALES[kernel]) for kernel in kernels}
    scales: dict[str, np.ndarray] = {}
    if layouts["stock"].scales == "static":
        require("torch", "torch")
        from edgeqkv.export.calibrate import cache_scales

        progress("calibrating the int8 cache")
        scales = cache_scales(source, layouts["stock"], request.calibration)
    progress("building the ONNX graphs")
    forms: dict[Kernel, Attention] = {"fused": "fused", "stock": attention_form(config, layouts["stock"].dtype)}
    files: dict[Kernel, str] = {"fused": "model.fused.onnx", "stock": "model.onnx"}
    graphs = {
        kernel: build_graph(config, source.weights, layout, request.weights == "int8", scales, forms[kernel], shared)
        for kernel, layout in layouts.items()
    }
    write_graphs({files[kernel]: graph for kernel, graph in graphs.items()}, folder / "onnx")
    present = {name: file_sha256(path) for name in (*files.values(), DATA_FILE) if (path := folder / "onnx" / name).is_file()}
    runtime_version = require("onnxruntime", "onnx").__version__

    def artifact(kernel: Kernel, layout: CacheLayout) -> Artifact:
        static = scales if layout.scales == "static" else {}
        return Artifact(
            runtime="onnx",
            kernel=kernel,
            attention=forms[kernel],
            operators=(f"{OURS}::{FUSED_OPERATOR}",) if kernel == "fused" else (),
            weights=WeightsEntry(request.weights, _onnx_blocks(config) if request.weights == "int8" else {}),
            cache=cache_entry(layout, {name: tuple(float(str(x)) for x in scale) for name, scale in static.items()}),
            files={f"onnx/{name}": present[name] for name in (files[kernel], DATA_FILE) if name in present},
            runtime_version=runtime_version,
            prefill_chunk=request.prefill_chunk,
            entry_points=(_entry_point(config, layout, aliases(graphs[kernel])),),
        )

    return tuple(artifact(kernel, layout) for kernel, layout in layouts.items())


def _entry_point(config: ModelConfig, layout: CacheLayout, aliases: dict[str, str]) -> EntryPoint:
    """One entry point prefills and decodes; what goes in is ids and a position."""
    logits = Port("logits", "float32", (config.vocab_size,))
    caches = {name: Port(name, dtype, shape) for name, (dtype, shape) in layout.buffers.items()}
    return EntryPoint(
        name="main",
        inputs=(Port("ids", "int64", ("tokens",)), Port("position", "int64", (1,)), *caches.values()),
        outputs=(logits, *(Port(name, caches[source].dtype, caches[source].shape) for name, source in aliases.items())),
        aliases=aliases,
        states={},
        arena_bytes=None,
    )


# -- Core ML ------------------------------------------------------------------------------------------------------


def _check_coreml(config: ModelConfig, request: Request) -> None:
    from edgeqkv.export.coreml import check_sizes

    cache_layout(config, request.capacity, request.cache)
    check_sizes(config, request.capacity, request.prefill_chunk, request.head_parts)


def _coreml_artifacts(source: Model, request: Request, folder: Path, progress: Progress) -> tuple[Artifact, ...]:
    from edgeqkv.export.coreml import build_program, write_package

    config, int8_weights = source.config, request.weights == "int8"
    layout = cache_layout(config, request.capacity, request.cache)
    progress("building the Core ML functions")
    program = build_program(config, source.weights, layout, int8_weights, request.prefill_chunk, request.head_parts)
    progress("writing the Core ML package")
    write_package(program, folder / PACKAGE, f"{config.variant} language model, {request.weights} weights")
    names = [f"{PACKAGE}/{name}" for name in (MANIFEST_FILE, SPEC_FILE, WEIGHT_FILE)]

    def entry_point(function: str, tokens: int) -> EntryPoint:
        return EntryPoint(
            name=function,
            inputs=(Port("ids", "int32", (1, tokens)), Port("position", "int32", (1,))),
            outputs=(Port("logits", "float32", (config.vocab_size,)),),
            aliases={},
            states={identifier(name): name for name in layout.names},
            arena_bytes=None,
        )

    artifact = Artifact(
        runtime="coreml",
        kernel="stock",
        attention="folded",
        operators=(),
        weights=_weights_by_row(config, request.weights),
        cache=cache_entry(layout, {}),
        files={name: file_sha256(folder / name) for name in names},
        runtime_version=require_coremltools().__version__,
        prefill_chunk=request.prefill_chunk,
        entry_points=(entry_point("prefill", request.prefill_chunk), entry_point("decode", 1)),
    )
    return (artifact,)


# -- ExecuTorch ---------------------------------------------------------------------------------------------------


def _need_executorch() -> None:
    with quiet():
        require("executorch.exir", "executorch")
    require_version(EXECUTORCH)


def _check_executorch(config: ModelConfig, request: Request) -> None:
    cache_layout(config, request.capacity, request.cache)
    if request.kernel == "stock" and request.cache != "fp32":
        raise EdgeQKVError(f"ExecuTorch's own operators, --kernel stock, take an fp32 cache, not {request.cache}")
    if request.kernel != "stock" and not fused_possible(config):
        raise EdgeQKVError(
            f"head_dim is {config.head_dim}, and our operator takes multiples of 8 up to 1024; for ExecuTorch's own add "
            "--kernel stock"
        )
    if request.capacity < 2:
        raise EdgeQKVError("ExecuTorch needs a capacity of at least 2: its prefill takes a fixed chunk of more than one token")
    _check_chunk(request, 2)


def _executorch_artifacts(source: Model, request: Request, folder: Path, progress: Progress) -> tuple[Artifact, ...]:
    config, chunk, int8_weights = source.config, request.prefill_chunk, request.weights == "int8"
    kernel: Kernel = request.kernel or "fused"
    layout = cache_layout(config, request.capacity, request.cache)
    if kernel == "stock":
        layout = replace(layout, axes=BY_POSITION)
    progress("exporting the ExecuTorch program")
    with quiet():
        from edgeqkv.export.executorch import METHODS, lower, to_program
        from edgeqkv.export.executorch_file import store_once

        program, arenas = to_program(lower(config, source.weights, layout, int8_weights, chunk, kernel), layout)
    path = folder / "executorch" / "model.pte"
    path.parent.mkdir()
    path.write_bytes(store_once(program))
    position, count = Port("position", "int64", (1,)), Port("count", "int64", (1,))

    def entry_point(name: str) -> EntryPoint:
        ids = Port("ids", "int64", (1, chunk if name == "prefill" else 1))
        return EntryPoint(
            name=name,
            inputs=(ids, position, count) if name == "prefill" else (ids, position),
            outputs=(Port("logits", "float32", (1, 1, config.vocab_size)),),
            aliases={},
            states={identifier(buffer): buffer for buffer in layout.buffers},
            arena_bytes=arenas[name],
        )

    artifact = Artifact(
        runtime="executorch",
        kernel=kernel,
        attention="fused" if kernel == "fused" else "sdpa",
        operators=tuple(sorted(OPERATORS["executorch", kernel])),
        weights=_weights_by_row(config, request.weights),
        cache=cache_entry(layout, {}),
        files={"executorch/model.pte": file_sha256(path)},
        runtime_version=EXECUTORCH,
        prefill_chunk=chunk,
        entry_points=tuple(entry_point(name) for name in METHODS),
    )
    return (artifact,)


TARGETS = {
    "onnx": Target(
        weights=("int8", "fp32"),
        caches=("fp32", "fp16", "int8"),
        other_caches="it can do fp32, fp16, int8",
        prefill_chunk=64,  # activations, and so the peak of memory, grow with it; the weights are read once a chunk
        need=lambda: require("onnx_ir", "onnx"),
        check=_check_onnx,
        write=_onnx_artifacts,
    ),
    "executorch": Target(
        weights=("int8", "fp32"),
        caches=("fp32", "fp16", "int8"),
        other_caches="it can do fp32, fp16, int8",
        prefill_chunk=64,  # as for ONNX; the program is made for it, and a shorter prompt is padded to it
        need=_need_executorch,
        check=_check_executorch,
        write=_executorch_artifacts,
    ),
    "coreml": Target(
        weights=("int8", "fp16"),
        caches=("fp16",),
        other_caches="Core ML holds states in fp16 only; leave --cache out, and for a smaller cache lower --capacity or take a "
        "model with fewer KV heads",
        prefill_chunk=32,  # writes of 32 rows into a state are known to work on the Neural Engine, of 128 to fail
        need=require_coremltools,
        check=_check_coreml,
        write=_coreml_artifacts,
    ),
}
