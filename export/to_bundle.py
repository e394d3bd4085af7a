"""From a model to a bundle: checks first, then the artifacts of each target, then the manifest; whole or not at all."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from msgspec.structs import replace

from edgeqkv import __version__
from edgeqkv.atomic import atomic_folder, refuse_to_replace
from edgeqkv.bundle import bundle_files, check_files, is_bundle, read_bundle, write_manifest
from edgeqkv.cache import DTYPES, CacheDtype
from edgeqkv.errors import EdgeQKVError
from edgeqkv.files import file_sha256
from edgeqkv.manifest import FORMAT, MANIFEST, Artifact, Kernel, Manifest, ModelEntry
from edgeqkv.model_folder import Model, expanded
from edgeqkv.parameters import parameter_count
from edgeqkv.sources import load_model
from edgeqkv.targets import Request, Target, targets
from edgeqkv.text import TOKENIZER, FileEntry, TextEntry
from edgeqkv.weights import INT4

MLA_FORMS = ("absorbed", "expanded")


@dataclass(frozen=True)
class Options:
    """What a user asked for; None leaves it to each target. See :func:`edgeqkv.export`."""

    targets: Sequence[str] = ("onnx",)
    weights: str = "int8"
    cache: CacheDtype | None = None
    capacity: int | None = None
    prefill_chunk: int | None = None
    calibration: Path | None = None
    kernel: Kernel | None = None
    head_parts: int | None = None
    mla: str = "absorbed"


def export_bundle(model: Path, out: Path, options: Options, progress: Callable[[str], None]) -> Manifest:
    """See :func:`edgeqkv.export`."""
    chosen = chosen_targets(options)
    known = entries()
    refuse_to_replace(out, known)
    for target in chosen.values():
        target.need()
    progress("reading the model")
    source = load_model(model)
    if options.mla == "expanded":
        source = expanded(source)
    capacity = source.config.n_positions if options.capacity is None else options.capacity
    requests = {name: _request(target, options, capacity) for name, target in chosen.items()}
    for name, target in chosen.items():
        target.check(source.config, requests[name])
    earlier = _kept(out, source, capacity, chosen)
    with atomic_folder(out, ours=known) as scratch:
        artifacts: tuple[Artifact, ...] = ()
        for name, target in chosen.items():
            artifacts += target.write(source, requests[name], scratch, progress)
        if earlier is not None:
            for file in bundle_files(earlier):
                (scratch / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(out / file, scratch / file)
        manifest = Manifest(
            format=FORMAT,
            edgeqkv=__version__,
            model=ModelEntry(source.config.variant, source.config, parameter_count(source.config), source.sha256),
            text=_text(source, scratch),
            capacity=capacity,
            artifacts=((*earlier.artifacts, *artifacts) if earlier else artifacts),
            parity=earlier.parity if earlier else (),
        )
        write_manifest(scratch, manifest)
    return manifest


def entries() -> tuple[str, ...]:
    """All that a bundle holds at its top."""
    return (MANIFEST, TOKENIZER, *targets())


def chosen_targets(options: Options) -> dict[str, Target]:
    """The targets that were asked for, once each can do what was asked."""
    names = options.targets
    if isinstance(names, str) or not names:
        raise EdgeQKVError(f"targets is a list of at least one of {', '.join(targets())}, found {names!r}")
    if options.calibration is not None and options.cache != "int8" and options.weights not in INT4:
        held = options.cache or "floating point"
        raise EdgeQKVError(
            f"calibration text is for int4 weights or an int8 cache; this export has {options.weights} weights and a cache in "
            f"{held}"
        )
    _refuse_unknown("kernel", options.kernel, ("fused", "stock"))
    _refuse_unknown("mla", options.mla, MLA_FORMS)
    for name in names:
        _refuse_unknown("target", name, tuple(targets()))
    _refuse_unknown("weights", options.weights, tuple(w for target in targets().values() for w in target.weights))
    _refuse_unknown("cache", options.cache, DTYPES)
    chosen = {name: targets()[name] for name in names}
    for field in ("calibration", "kernel", "head_parts"):
        able = [name for name, target in targets().items() if field in target.options]
        if getattr(options, field) is not None and not set(able) & set(chosen):
            option = field.replace("_", "-")
            raise EdgeQKVError(f"--{option} is for the target {' or '.join(able)}, which this export does not have")
    for name, target in chosen.items():
        if options.weights not in target.weights:
            raise EdgeQKVError(
                f"weights {options.weights!r} are not possible for {name}, which can do {', '.join(target.weights)}"
            )
        if options.cache is not None and options.cache not in target.caches:
            others = target.other_caches or f"it can do {', '.join(target.caches)}"
            raise EdgeQKVError(f"cache {options.cache!r} is not possible for {name}: {others}")
    return chosen


def _request(target: Target, options: Options, capacity: int) -> Request:
    def own(field: str) -> object:
        return getattr(options, field) if field in target.options else None

    chunk = min(target.prefill_chunk, capacity) if options.prefill_chunk is None else options.prefill_chunk
    return Request(
        weights=options.weights,
        cache=options.cache or target.caches[0],
        capacity=capacity,
        prefill_chunk=chunk,
        calibration=own("calibration"),  # type: ignore[arg-type]
        kernel=own("kernel"),  # type: ignore[arg-type]
        head_parts=own("head_parts"),  # type: ignore[arg-type]
    )


def _kept(out: Path, source: Model, capacity: int, chosen: dict[str, Target]) -> Manifest | None:
    """What a bundle that lies there keeps: the artifacts of other targets, if they are of this model and capacity.

    A bundle of another model or capacity is refused: an export adds or replaces a target, and deletes nothing else.
    """
    if not is_bundle(out):
        return None
    try:
        there = read_bundle(out)
    except EdgeQKVError as error:
        raise EdgeQKVError(
            f"{out} holds a bundle that cannot be added to ({error}); remove it or name another folder"
        ) from error
    others = tuple(artifact for artifact in there.artifacts if artifact.runtime not in chosen)
    if not others:
        return None
    same = (there.model.config, there.model.checkpoint_sha256, there.capacity) == (source.config, source.sha256, capacity)
    if not same:
        names = ", ".join(dict.fromkeys(artifact.runtime for artifact in others))
        raise EdgeQKVError(
            f"{out} holds a bundle of another model or capacity ({there.model.variant}, {there.capacity} positions) for "
            f"{names}, which this export would have to delete; remove it or name another folder"
        )
    check_files(out, there)
    parity = tuple(record for record in there.parity if record.runtime not in chosen)
    return replace(there, artifacts=others, parity=parity)


def _text(source: Model, folder: Path) -> TextEntry:
    tokenizer = None
    if source.tokenizer is not None:
        (folder / TOKENIZER).write_text(source.tokenizer, encoding="utf-8")
        tokenizer = FileEntry(TOKENIZER, file_sha256(folder / TOKENIZER))
    return TextEntry(tokenizer, source.text.end_tokens, source.text.chat_template, source.text.special_tokens)


def _refuse_unknown(what: str, value: str | None, known: Sequence[str]) -> None:
    if value is not None and value not in known:
        raise EdgeQKVError(f"{what} {value!r} is not possible; this version can do {', '.join(dict.fromkeys(known))}")
