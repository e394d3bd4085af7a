"""Baselines with random weights, kept in the user's cache folder: making one takes a while, and it is the same every time."""

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
from platformdirs import user_cache_path

from edgeqkv.bundle import check_files, is_bundle, read_bundle
from edgeqkv.config import ModelConfig, baseline
from edgeqkv.errors import EdgeQKVError
from edgeqkv.manifest import MANIFEST, Artifact, Manifest
from edgeqkv.targets import targets

KEPT = 4


def baseline_folder() -> Path:
    return user_cache_path("edgeqkv") / "baselines"


def random_baseline(manifest: Manifest, artifacts: Sequence[Artifact], progress: Callable[[str], None]) -> Path:
    """A bundle of the baseline of ``manifest``'s model, for the targets of ``artifacts``; only :data:`KEPT` are kept, those
    that were used last."""
    config = baseline(manifest.model.config)
    kinds = [(artifact.runtime, artifact.kernel, artifact.weights.scheme) for artifact in artifacts]
    parts = msgspec.json.encode((config, manifest.capacity, kinds, manifest.format))
    home = baseline_folder()
    target = home / f"{config.variant.lower().replace(' ', '-')}-{hashlib.sha256(parts).hexdigest()[:12]}"
    if is_bundle(target):
        check_files(target, read_bundle(target))
    else:
        progress(f"making the baseline, {config.variant}")
        _make(config, manifest.capacity, artifacts, target)
    os.utime(target)
    _forget_old(home)
    return target


def _make(config: ModelConfig, capacity: int, artifacts: Sequence[Artifact], target: Path) -> None:
    import edgeqkv
    from edgeqkv.model_folder import Model, write_model
    from edgeqkv.presets import random_weights
    from edgeqkv.text import Text

    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = f"cannot make the baseline in {target.parent}: {error.strerror}"
        raise EdgeQKVError(f"{reason}; use --no-baseline") from error
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        model = Path(scratch) / "model"
        weights = Model(config, random_weights(config, 0), None, Text(), "")
        write_model(model, weights, f"# {config.variant}: random weights, for memory and latency only\n")
        edgeqkv.export(
            model,
            target,
            targets=list(dict.fromkeys(artifact.runtime for artifact in artifacts)),
            weights=artifacts[0].weights.scheme,
            capacity=capacity,
            kernel=next((a.kernel for a in artifacts if "kernel" in targets()[a.runtime].options), None),
        )


def _forget_old(home: Path) -> None:
    """Remove all but those used last; their folders' times say when that was."""

    def used(folder: Path) -> float:
        with contextlib.suppress(OSError):  # another process has removed it
            return folder.stat().st_mtime
        return 0.0

    bundles = [folder for folder in home.iterdir() if (folder / MANIFEST).is_file()]
    for folder in sorted(bundles, key=used, reverse=True)[KEPT:]:
        shutil.rmtree(folder, ignore_errors=True)
