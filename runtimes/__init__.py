"""The engines that run bundles, one folder each."""

import warnings
from pathlib import Path

from edgeqkv.bundle import Artifact, Executor, Manifest, check_files, read_bundle
from edgeqkv.errors import EdgeQKVError, MissingPackage
from edgeqkv.native import native_library
from edgeqkv.session import Engine, Session

# By runtime, the library that has our operators; for ExecuTorch the whole session.
OPERATORS = {"onnx": "runtimes/onnx/libedgeqkv_onnx", "executorch": "runtimes/executorch/libedgeqkv_executorch"}


def open_bundle(folder: Path, runtime: str | None, kernel: str | None, threads: int | None, check: bool) -> Session:
    """See :func:`edgeqkv.open`."""
    if threads is not None and threads < 1:
        raise EdgeQKVError(f"threads must be at least 1, found {threads}")
    manifest = read_bundle(folder)
    artifact = choose_artifact(folder, manifest, runtime, kernel)
    if check:
        check_files(folder, manifest)
    return open_artifact(folder, manifest, artifact, threads)


def open_artifact(
    folder: Path, manifest: Manifest, artifact: Artifact, threads: int | None = None, executor: Executor | None = None
) -> Session:
    """A session on one artifact. ``executor`` is for Core ML: what computes it, by default what this machine can do."""
    path, layout = folder / next(iter(artifact.files)), manifest.cache_layout(artifact)
    engine: Engine
    if artifact.runtime == "coreml":
        from edgeqkv.runtimes.coreml.engine import NOT_CORE_ML, CoremlEngine, executor_here

        if threads is not None:
            raise EdgeQKVError("Core ML chooses its threads and compute units itself; leave threads out")
        engine = CoremlEngine(path.parent, layout, artifact.prefill_chunk, executor or executor_here())
        if executor is None and executor_here() == "interpreter":
            warnings.warn(NOT_CORE_ML, RuntimeWarning, stacklevel=1)
    elif artifact.runtime == "executorch":
        from edgeqkv.runtimes.executorch.engine import ExecutorchEngine

        library = native_library(OPERATORS["executorch"])
        engine = ExecutorchEngine(path, layout, artifact, manifest.model.config.vocab_size, threads, library)
    else:
        from edgeqkv.runtimes.onnx.engine import OnnxEngine

        operators = native_library(OPERATORS["onnx"]) if artifact.operators else None
        aliases = artifact.entry_points[0].aliases
        engine = OnnxEngine(path, layout, aliases, manifest.model.config.vocab_size, threads, operators)
    return Session(engine, manifest, artifact)


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
            if artifact.operators:
                native_library(OPERATORS[artifact.runtime])
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
