"""From a model to a bundle: checks first, then the artifacts of each target, then the manifest; whole or not at all."""

from collections.abc import Callable, Sequence
from pathlib import Path

import edgeqkv
from edgeqkv.atomic import atomic_folder, refuse_to_replace
from edgeqkv.bundle import ENTRIES, FORMAT, Artifact, Kernel, Manifest, ModelEntry, WeightScheme, write_manifest
from edgeqkv.cache import CacheDtype
from edgeqkv.config import parameter_count
from edgeqkv.errors import EdgeQKVError
from edgeqkv.export.targets import TARGETS, Request
from edgeqkv.model_folder import TOKENIZER, file_sha256, load_model


def export_bundle(
    model: str | Path,
    out: str | Path,
    targets: Sequence[str] = ("onnx",),
    weights: WeightScheme = "int8",
    cache: CacheDtype | None = None,
    capacity: int | None = None,
    calibration: str | Path | None = None,
    prefill_chunk: int | None = None,
    head_parts: int | None = None,
    kernel: Kernel | None = None,
    progress: Callable[[str], None] = lambda stage: None,
) -> Manifest:
    """Export a model folder or a checkpoint of the paper into the bundle ``out``, replacing an older bundle there.

    ``targets`` are "onnx", "executorch" and "coreml"; ``cache`` None takes each one's own, fp32 or fp16. ``capacity`` is the
    number of positions of the static cache, by default all that the model was trained with. ``calibration`` is a text file for
    the static scales of an int8 cache; a small sample is built in. ``prefill_chunk`` is how many tokens are prefilled at once;
    ``head_parts`` cuts Core ML's head and embedding, by default into parts of at most 16384 rows. ``kernel`` is for ExecuTorch,
    whose program attends either with our operator, "fused", or for apps without it with ExecuTorch's own, "stock".
    ``progress`` is told each stage. Raises :class:`EdgeQKVError`, and then leaves nothing behind.

    For ONNX the bundle holds two graphs over one weight file. The fused one attends with our operator, which quantises an int8
    cache as it writes it, with a scale for each token; the stock one needs only what ONNX Runtime brings, and has static
    scales.
    For ExecuTorch it holds one program, and for Core ML one package; each has ``prefill`` and ``decode``.
    """
    if isinstance(targets, str) or not targets:
        raise EdgeQKVError(f"targets is a list of at least one of {', '.join(TARGETS)}, found {targets!r}")
    if calibration is not None and cache != "int8":
        raise EdgeQKVError(f"calibration text is for an int8 cache; this export has a cache in {cache or 'floating point'}")
    if head_parts is not None and "coreml" not in targets:
        raise EdgeQKVError("head parts are for the target coreml, which this export does not have")
    if kernel is not None and "executorch" not in targets:
        raise EdgeQKVError("a kernel is chosen for the target executorch alone; an ONNX bundle holds the graphs of both")
    _refuse_unknown("kernel", [] if kernel is None else [kernel], ["fused", "stock"])
    _refuse_unknown("target", targets, list(TARGETS))
    _refuse_unknown("weights", [weights], [scheme for target in TARGETS.values() for scheme in target.weights])
    _refuse_unknown("cache", [] if cache is None else [cache], [dtype for t in TARGETS.values() for dtype in t.caches])
    chosen = {name: TARGETS[name] for name in targets}
    for name, target in chosen.items():
        if weights not in target.weights:
            raise EdgeQKVError(f"weights {weights!r} are not possible for {name}, which can do {', '.join(target.weights)}")
        if cache is not None and cache not in target.caches:
            raise EdgeQKVError(f"cache {cache!r} is not possible for {name}: {target.other_caches}")
    refuse_to_replace(Path(out), ENTRIES)
    for target in chosen.values():
        target.need()
    progress("reading the model")
    source = load_model(Path(model))
    capacity = source.config.n_positions if capacity is None else capacity
    requests = {
        name: Request(
            weights=weights,
            cache=cache or target.caches[0],
            capacity=capacity,
            calibration=Path(calibration) if calibration else None,
            prefill_chunk=min(target.prefill_chunk, capacity) if prefill_chunk is None else prefill_chunk,
            head_parts=head_parts,
            kernel=kernel,
        )
        for name, target in chosen.items()
    }
    for name, target in chosen.items():
        target.check(source.config, requests[name])
    with atomic_folder(Path(out), ours=ENTRIES) as scratch:
        artifacts: tuple[Artifact, ...] = ()
        for name, target in chosen.items():
            artifacts += target.write(source, requests[name], scratch, progress)
        tokenizer_sha256 = None
        if source.tokenizer is not None:
            (scratch / TOKENIZER).write_text(source.tokenizer, encoding="utf-8")
            tokenizer_sha256 = file_sha256(scratch / TOKENIZER)
        config = source.config
        manifest = Manifest(
            format=FORMAT,
            edgeqkv=edgeqkv.__version__,
            model=ModelEntry(config.variant, config, parameter_count(config), source.sha256, tokenizer_sha256),
            capacity=capacity,
            artifacts=artifacts,
            parity=(),
        )
        write_manifest(scratch, manifest)
    return manifest


def _refuse_unknown(what: str, values: Sequence[str], known: Sequence[str]) -> None:
    for value in values:
        if value not in known:
            raise EdgeQKVError(f"{what} {value!r} is not possible; this version can do {', '.join(dict.fromkeys(known))}")
