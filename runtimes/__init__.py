"""The engines that run bundles, one folder each. Which of a bundle's artifacts is opened is decided here."""

import warnings
from pathlib import Path

from edgeqkv.bundle import check_files, read_bundle
from edgeqkv.errors import EdgeQKVError, MissingPackage
from edgeqkv.limits import check_threads
from edgeqkv.manifest import Artifact, Executor, Manifest
from edgeqkv.session import Session
from edgeqkv.targets import target_of


def open_bundle(folder: Path, runtime: str | None, kernel: str | None, threads: int | None, check: bool) -> Session:
    """See :func:`edgeqkv.open`."""
    check_threads(threads)
    manifest = read_bundle(folder)
    artifact = choose_artifact(folder, manifest, runtime, kernel)
    if check:
        check_files(folder, manifest)
    return open_artifact(folder, manifest, artifact, threads)


def open_artifact(
    folder: Path, manifest: Manifest, artifact: Artifact, threads: int | None = None, executor: Executor | None = None
) -> Session:
    """A session on one artifact. ``executor`` None is what this machine can do."""
    target = target_of(artifact)
    target.missing(artifact)
    return Session(target.open(folder, manifest, artifact, threads, executor), manifest, artifact)


def choose_artifact(folder: Path, manifest: Manifest, runtime: str | None, kernel: str | None) -> Artifact:
    """The first artifact for ``runtime`` and ``kernel`` (None: any) whose operators this installation has.

    A warning says so when a better one had to be passed over; :class:`MissingPackage` when none is left.
    """
    found = matching_artifacts(manifest, runtime, kernel)
    if not found:
        raise no_artifact(folder, manifest, runtime, kernel)
    missing: MissingPackage | None = None
    for artifact in found:
        try:
            target_of(artifact).missing(artifact)
        except MissingPackage as error:
            missing = error
            continue
        if missing:
            text = f"running the {artifact.kernel} graph, which is slower: {missing}"
            warnings.warn(text, RuntimeWarning, stacklevel=1)  # one place, so that Python says it once
        return artifact
    raise MissingPackage(f"{folder} cannot run here: {missing}")


def matching_artifacts(manifest: Manifest, runtime: str | None, kernel: str | None) -> list[Artifact]:
    """Those for ``runtime`` and ``kernel`` (None: any), best first, whether they can run here or not."""
    return [a for a in manifest.artifacts if runtime in (None, a.runtime) and kernel in (None, a.kernel)]


def no_artifact(folder: Path, manifest: Manifest, runtime: str | None, kernel: str | None) -> EdgeQKVError:
    have = ", ".join(f"{a.runtime} ({a.kernel} kernel)" for a in manifest.artifacts)
    asked = f"the runtime {runtime or 'any'!r}" + (f" with the kernel {kernel!r}" if kernel else "")
    return EdgeQKVError(f"{folder} holds nothing for {asked}; it was exported for: {have}")
