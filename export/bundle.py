"""From a model to a bundle: checks first, then one artifact per target, then the manifest; whole or not at all."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

import edgeqkv
from edgeqkv.atomic import atomic_folder, refuse_to_replace
from edgeqkv.bundle import (
    ENTRIES,
    FORMAT,
    Artifact,
    EntryPoint,
    Kernel,
    Manifest,
    ModelEntry,
    Port,
    WeightsEntry,
    cache_entry,
    write_manifest,
)
from edgeqkv.cache import CacheDtype, CacheLayout, cache_layout
from edgeqkv.config import ModelConfig, parameter_count
from edgeqkv.errors import EdgeQKVError, require
from edgeqkv.export.quantize import block_size
from edgeqkv.model_folder import TOKENIZER, Model, file_sha256, load_model

TARGETS = ("onnx",)
WEIGHTS = ("int8", "fp32")
CACHES = ("fp32", "fp16", "int8")
INT8_SCALES: dict[Kernel, Literal["static", "per_token"]] = {"fused": "per_token", "stock": "static"}
PREFILL_CHUNK = 64  # activations, and so the peak of memory, grow with it; the weights are read once a chunk


def export_bundle(
    model: str | Path,
    out: str | Path,
    targets: Sequence[str] = TARGETS,
    weights: Literal["int8", "fp32"] = "int8",
    cache: CacheDtype = "fp32",
    capacity: int | None = None,
    calibration: str | Path | None = None,
    progress: Callable[[str], None] = lambda stage: None,
) -> Manifest:
    """Export a model folder or a checkpoint of the paper into the bundle ``out``, replacing an older bundle there.

    ``capacity`` is the number of positions of the static cache, by default all that the model was trained with.
    ``calibration`` is a text file for the static scales of an int8 cache; a small sample is built in. ``progress`` is told
    each stage. Raises :class:`EdgeQKVError`, and then leaves nothing behind.

    For ONNX the bundle holds two graphs over one weight file. The fused one attends with our operator, which quantises an int8
    cache as it writes it, with a scale for each token; the stock one needs nothing of ours and has static scales.
    """
    if isinstance(targets, str) or not targets:
        raise EdgeQKVError(f"targets is a list of at least one of {', '.join(TARGETS)}, found {targets!r}")
    if calibration is not None and cache != "int8":
        raise EdgeQKVError(f"calibration text is for an int8 cache; this export has a cache in {cache}")
    for what, chosen, known in (("target", targets, TARGETS), ("weights", [weights], WEIGHTS), ("cache", [cache], CACHES)):
        for value in chosen:
            if value not in known:
                raise EdgeQKVError(f"{what} {value!r} is not possible; this version can do {', '.join(known)}")
    require("onnx_ir", "onnx")
    refuse_to_replace(Path(out), ENTRIES)
    progress("reading the model")
    source = load_model(Path(model))
    config = source.config
    capacity = config.n_positions if capacity is None else capacity
    layouts = {kernel: cache_layout(config, capacity, cache, scales) for kernel, scales in INT8_SCALES.items()}
    blocks = {str(w): block_size(w) for w in sorted({config.d_model, config.d_mlp})} if weights == "int8" else {}
    scales: dict[str, np.ndarray] = {}
    if layouts["stock"].scales == "static":
        require("torch", "torch")
        from edgeqkv.export.calibrate import cache_scales

        progress("calibrating the int8 cache")
        scales = cache_scales(source, layouts["stock"], Path(calibration) if calibration else None)
    with atomic_folder(Path(out), ours=ENTRIES) as scratch:
        progress("building the ONNX graphs")
        artifacts = _onnx_artifacts(source, layouts, weights == "int8", scales, scratch)
        tokenizer_sha256 = None
        if source.tokenizer is not None:
            (scratch / TOKENIZER).write_text(source.tokenizer, encoding="utf-8")
            tokenizer_sha256 = file_sha256(scratch / TOKENIZER)
        manifest = Manifest(
            format=FORMAT,
            edgeqkv=edgeqkv.__version__,
            model=ModelEntry(config.variant, config, parameter_count(config), source.sha256, tokenizer_sha256),
            capacity=capacity,
            weights=WeightsEntry(weights, blocks),
            artifacts=artifacts,
            parity=(),
        )
        write_manifest(scratch, manifest)
    return manifest


def _onnx_artifacts(
    source: Model, layouts: dict[Kernel, CacheLayout], int8_weights: bool, scales: dict[str, np.ndarray], folder: Path
) -> tuple[Artifact, ...]:
    """The fused graph first: it is preferred where its operator can be loaded."""
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
    forms: dict[Kernel, Attention] = {"fused": "fused", "stock": attention_form(config, layouts["stock"].dtype)}
    files: dict[Kernel, str] = {"fused": "model.fused.onnx", "stock": "model.onnx"}
    graphs = {
        kernel: build_graph(config, source.weights, layout, int8_weights, scales, forms[kernel], shared)
        for kernel, layout in layouts.items()
    }
    write_graphs({files[kernel]: graph for kernel, graph in graphs.items()}, folder / "onnx")
    present = {name: file_sha256(path) for name in (*files.values(), DATA_FILE) if (path := folder / "onnx" / name).is_file()}
    version = require("onnxruntime", "onnx").__version__

    def artifact(kernel: Kernel, layout: CacheLayout) -> Artifact:
        static = scales if layout.scales == "static" else {}
        return Artifact(
            runtime="onnx",
            kernel=kernel,
            attention=forms[kernel],
            operators=(f"{OURS}::{FUSED_OPERATOR}",) if kernel == "fused" else (),
            cache=cache_entry(layout, {name: tuple(float(str(x)) for x in scale) for name, scale in static.items()}),
            files={f"onnx/{name}": present[name] for name in (files[kernel], DATA_FILE) if name in present},
            runtime_version=version,
            prefill_chunk=min(PREFILL_CHUNK, layout.capacity),
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
    )
