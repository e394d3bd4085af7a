"""The baseline that others are compared with: the standard model of the same geometry, given, found beside them, or made here.

It is what a team runs today: K and V of every head (:func:`edgeqkv.config.baseline`: QKV, or MLA expanded), in the cache dtype
that a target takes when nothing is said. A bundle with an int8 cache therefore shows all that it saves.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from edgeqkv.bench.baseline_folder import random_baseline
from edgeqkv.bench.record import Origin
from edgeqkv.bundle import check_files, is_bundle, read_bundle
from edgeqkv.cache import cache_layout
from edgeqkv.config import baseline
from edgeqkv.errors import EdgeQKVError, MissingPackage
from edgeqkv.manifest import Artifact, Kernel, Manifest
from edgeqkv.tables import mib
from edgeqkv.targets import targets

LARGEST_SHARE = 0.5  # of the available memory, for a baseline's cache


@dataclass(frozen=True)
class Bundle:
    """A bundle to measure; ``baseline`` says where it came from when it is one that others are compared with. ``kernel`` is the
    only one to measure; None: what is asked of all."""

    folder: Path
    manifest: Manifest
    baseline: Origin | None
    kernel: Kernel | None = None

    @property
    def optional(self) -> bool:
        """Nobody asked for it."""
        return self.baseline in ("found", "random weights")

    @property
    def measurable(self) -> tuple[Artifact, ...]:
        """The artifacts that a worker can run."""
        return tuple(a for a in self.manifest.artifacts if a.runtime in targets() and not targets()[a.runtime].not_measured)


def why_not_measured(folder: Path, artifacts: Sequence[Artifact]) -> EdgeQKVError:
    """Of artifacts that are there and that no worker runs."""
    reasons = {
        targets()[a.runtime].not_measured or "" if a.runtime in targets() else f"this edgeqkv has no target {a.runtime!r}"
        for a in artifacts
    }
    return EdgeQKVError(f"{folder}: {'; '.join(sorted(reasons))}")


def too_large(cache_bytes: int, available: int | None) -> bool:
    """Whether a baseline's cache takes so much of the memory that measuring it would say nothing about the others."""
    return available is not None and cache_bytes > LARGEST_SHARE * available


def with_baselines(
    folders: Sequence[Path], available: int | None, progress: Callable[[str], None], note: Callable[[str], None]
) -> list[Bundle]:
    """The bundles as given; each baseline that is missing is put before the first bundle that needs it.

    A bundle has its baseline when one of the same geometry and capacity is given, lies in the same folder (then the one most
    like it is preferred), or can be made here with random weights, which is kept for the next time. One whose cache would take
    more than half of the ``available`` bytes (None: unknown) is left out.
    """
    bundles = given(folders)
    have = {_group(bundle.manifest) for bundle in bundles if bundle.baseline}
    out: list[Bundle] = []
    for bundle in bundles:
        if _group(bundle.manifest) not in have:
            have.add(_group(bundle.manifest))
            found = _baseline_for(bundle, available, progress, note)
            out += [found] if found else []
        out.append(bundle)
    return out


def given(folders: Sequence[Path]) -> list[Bundle]:
    """The bundles that the user named, checked. FOLDER:stock and FOLDER:fused name one kernel of a bundle."""
    out = []
    for named in folders:
        folder, kernel = _kernel_of(named)
        manifest = read_bundle(folder)
        check_files(folder, manifest)
        standard = manifest.model.config == baseline(manifest.model.config)
        bundle = Bundle(folder, manifest, "given" if standard else None, kernel)
        if not bundle.measurable:
            raise why_not_measured(folder, manifest.artifacts)  # before a baseline is made for it
        out.append(bundle)
    return out


def _kernel_of(named: Path) -> tuple[Path, Kernel | None]:
    name, _, kernel = named.name.rpartition(":")
    for known in get_args(Kernel):
        if kernel == known and name and not named.exists():
            return named.with_name(name), known
    return named, None


def _group(manifest: Manifest) -> object:
    """What a model and its baseline have in common."""
    return baseline(manifest.model.config), manifest.capacity


def _baseline_for(
    bundle: Bundle, available: int | None, progress: Callable[[str], None], note: Callable[[str], None]
) -> Bundle | None:
    config, capacity = baseline(bundle.manifest.model.config), bundle.manifest.capacity
    found = _beside(bundle)
    if found is not None:
        note(f"the baseline of {bundle.folder} is {found}, a {config.variant} bundle of the same geometry")
        return Bundle(found, read_bundle(found), "found")
    dtype = targets()[bundle.measurable[0].runtime].caches[0]
    size = cache_layout(config, capacity, dtype).bytes
    what = f"{config.variant} with a cache of {dtype}"
    if too_large(size, available):
        note(f"{bundle.folder} has no baseline: {what} would take {mib(size, 0)} of {mib(available, 0)} MiB available")
        return None
    try:
        made = random_baseline(bundle.manifest, bundle.measurable, progress)
    except MissingPackage as error:
        note(f"{bundle.folder} has no baseline, {what}: {error}")
        return None
    note(f"the baseline of {bundle.folder} is {what}, at the same geometry with random weights")
    return Bundle(made, read_bundle(made), "random weights")


def _beside(bundle: Bundle) -> Path | None:
    """The baseline in the same folder that is most like ``bundle``."""
    same = []
    for folder in sorted(bundle.folder.resolve().parent.iterdir()):
        try:
            other = read_bundle(folder) if is_bundle(folder) else None
            if other is None or (other.model.config, other.capacity) != _group(bundle.manifest):
                continue
            check_files(folder, other)
        except (EdgeQKVError, OSError):  # nothing that the user asked for
            continue
        same.append((-len(_kinds(other.artifacts, False) & _kinds(bundle.measurable, True)), folder))
    return min(same)[1] if same else None


def _kinds(artifacts: Sequence[Artifact], default_cache: bool) -> set[tuple[str, str, str, str]]:
    """What artifacts are like: runtime, kernel, weights, and the cache's dtype or the one that a target takes by default."""
    found: set[tuple[str, str, str, str]] = set()
    for artifact in artifacts:
        cache = targets()[artifact.runtime].caches[0] if default_cache else artifact.cache.dtype
        found.add((artifact.runtime, artifact.kernel, artifact.weights.scheme, cache))
    return found
