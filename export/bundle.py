"""From a model to a bundle: checks first, then one artifact per target, then the manifest; whole or not at all."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

import edgeqkv
from edgeqkv.atomic import atomic_folder, refuse_to_replace
from edgeqkv.bundle import (
    ENTRIES,
    FORMAT,
    Artifact,
    EntryPoint,
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
CACHES = ("fp32", "int8")
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
    layout = cache_layout(config, config.n_positions if capacity is None else capacity, cache)
    blocks = {str(w): block_size(w) for w in sorted({config.d_model, config.d_mlp})} if weights == "int8" else {}
    scales: dict[str, np.ndarray] = {}
    if layout.scales == "static":
        require("torch", "torch")
        from edgeqkv.export.calibrate import cache_scales

        progress("calibrating the int8 cache")
        scales = cache_scales(source, layout, Path(calibration) if calibration else None)
    with atomic_folder(Path(out), ours=ENTRIES) as scratch:
        progress("building the ONNX graph")
        artifact = _onnx_artifact(source, layout, weights == "int8", scales, scratch)
        tokenizer_sha256 = None
        if source.tokenizer is not None:
            (scratch / TOKENIZER).write_text(source.tokenizer, encoding="utf-8")
            tokenizer_sha256 = file_sha256(scratch / TOKENIZER)
        manifest = Manifest(
            format=FORMAT,
            edgeqkv=edgeqkv.__version__,
            model=ModelEntry(config.variant, config, parameter_count(config), source.sha256, tokenizer_sha256),
            cache=cache_entry(layout, {name: tuple(float(str(x)) for x in scale) for name, scale in scales.items()}),
            weights=WeightsEntry(weights, blocks),
            artifacts=(artifact,),
            parity=(),
        )
        write_manifest(scratch, manifest)
    return manifest


def _onnx_artifact(
    source: Model, layout: CacheLayout, int8_weights: bool, scales: dict[str, np.ndarray], folder: Path
) -> Artifact:
    from edgeqkv.export.onnx import DATA_FILE, MODEL_FILE, aliases, attention_form, build_graph, write_graph

    graph = build_graph(source.config, source.weights, layout, int8_weights, scales)
    write_graph(graph, folder / "onnx")
    files = [f"onnx/{name}" for name in (MODEL_FILE, DATA_FILE) if (folder / "onnx" / name).is_file()]
    return Artifact(
        runtime="onnx",
        kernel="stock",
        attention=attention_form(source.config, layout.dtype),
        files={name: file_sha256(folder / name) for name in files},
        runtime_version=require("onnxruntime", "onnx").__version__,
        prefill_chunk=min(PREFILL_CHUNK, layout.capacity),
        entry_points=(_entry_point(source.config, layout, aliases(graph)),),
    )


def _entry_point(config: ModelConfig, layout: CacheLayout, aliases: dict[str, str]) -> EntryPoint:
    """One entry point prefills and decodes; what goes in is ids and a position."""
    dtype = {"fp32": "float32", "int8": "int8"}[layout.dtype]
    logits = Port("logits", "float32", (config.vocab_size,))
    caches = {name: Port(name, dtype, layout.shape) for name in layout.names}
    return EntryPoint(
        name="main",
        inputs=(Port("ids", "int64", ("tokens",)), Port("position", "int64", (1,)), *caches.values()),
        outputs=(logits, *(Port(name, dtype, layout.shape) for name in aliases)),
        aliases=aliases,
    )
