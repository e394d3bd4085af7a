"""The QKV bundle that others are compared with: given, found beside them, or made with random weights."""

import hashlib
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from edgeqkv.bundle import Manifest, check_files, is_bundle, read_bundle
from edgeqkv.config import ModelConfig
from edgeqkv.errors import EdgeQKVError, MissingPackage

Origin = Literal["given", "found", "random weights"]


@dataclass(frozen=True)
class Subject:
    """A bundle to measure; ``baseline`` says where it came from when it is the QKV one that others are compared with."""

    folder: Path
    manifest: Manifest
    baseline: Origin | None


def geometry(config: ModelConfig) -> ModelConfig:
    """What a model and its QKV baseline have in common."""
    return replace(config, projections="QKV", n_kv_head=config.n_head)


NO_CORE_ML = "{}: bench does not measure Core ML; use Xcode's performance report"


def with_baselines(
    bundles: Sequence[Path], wanted: bool, progress: Callable[[str], None], note: Callable[[str], None]
) -> list[Subject]:
    """The bundles as given; each QKV baseline that is missing is put before the first bundle that needs it.

    A bundle has its baseline when a QKV one of the same geometry and capacity is given, lies in the same folder (then one with
    the same weights and cache is preferred), or can be made here with random weights, which is kept for the next time.
    """
    manifests = [read_bundle(bundle) for bundle in bundles]
    for bundle, manifest in zip(bundles, manifests, strict=True):
        check_files(bundle, manifest)
        if all(artifact.runtime == "coreml" for artifact in manifest.artifacts):
            raise EdgeQKVError(NO_CORE_ML.format(bundle))  # before a baseline is made for it
    have = {(geometry(m.model.config), m.capacity) for m in manifests if m.model.variant == "QKV"}
    out: list[Subject] = []
    for bundle, manifest in zip(bundles, manifests, strict=True):
        key = geometry(manifest.model.config), manifest.capacity
        if wanted and key not in have:
            have.add(key)
            found = _beside(bundle, manifest)
            if found is not None:
                note(f"the baseline of {bundle} is {found}, a QKV bundle of the same geometry")
                out.append(Subject(found, read_bundle(found), "found"))
            else:
                try:
                    made = _random(manifest, progress)
                except MissingPackage as error:
                    note(f"no QKV baseline for {bundle}: {error}")
                else:
                    note(f"the baseline of {bundle} is a QKV model of the same geometry with random weights")
                    out.append(Subject(made, read_bundle(made), "random weights"))
        is_baseline = manifest.model.variant == "QKV"
        out.append(Subject(bundle, manifest, "given" if is_baseline else None))
    return out


def _beside(bundle: Path, manifest: Manifest) -> Path | None:
    same = []
    for folder in sorted(bundle.resolve().parent.iterdir()):
        try:
            other = read_bundle(folder) if is_bundle(folder) else None
            if other is None or other.model.config != geometry(manifest.model.config) or other.capacity != manifest.capacity:
                continue
            check_files(folder, other)
        except (EdgeQKVError, OSError):  # nothing that the user asked for
            continue
        same.append((-len(set(_kinds(other)) & set(_kinds(manifest))), folder))
    return min(same)[1] if same else None


def _kinds(manifest: Manifest) -> list[tuple[str, str, str, str]]:
    return [(a.runtime, a.kernel, a.weights.scheme, a.cache.dtype) for a in manifest.artifacts]


def _random(manifest: Manifest, progress: Callable[[str], None]) -> Path:
    """A QKV bundle like ``manifest``'s with random weights, in the user's cache folder."""
    from edgeqkv.export.bundle import export_bundle
    from edgeqkv.model_folder import write_model
    from edgeqkv.presets import random_weights

    config = geometry(manifest.model.config)
    parts = asdict(config), manifest.capacity, _kinds(manifest), manifest.format
    key = hashlib.sha256(repr(parts).encode()).hexdigest()[:12]
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edgeqkv" / "baselines"
    target = home / f"qkv-{key}"
    if is_bundle(target):
        check_files(target, read_bundle(target))
        return target
    progress("making the QKV baseline")
    try:
        home.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EdgeQKVError(f"cannot make the QKV baseline in {home}: {error.strerror}; use --no-baseline") from error
    with tempfile.TemporaryDirectory(dir=home) as scratch:
        model = Path(scratch) / "model"
        write_model(model, config, random_weights(config, 0), "# QKV: random weights, for memory and latency only\n")
        export_bundle(
            model,
            target,
            targets=list(dict.fromkeys(artifact.runtime for artifact in manifest.artifacts)),
            weights=manifest.artifacts[0].weights.scheme,
            cache=manifest.artifacts[0].cache.dtype,
            capacity=manifest.capacity,
            kernel=next((artifact.kernel for artifact in manifest.artifacts if artifact.runtime == "executorch"), None),
        )
    return target
