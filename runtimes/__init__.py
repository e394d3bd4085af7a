"""The engines that run bundles, one folder each."""

from pathlib import Path

from edgeqkv.bundle import check_files, read_bundle
from edgeqkv.errors import EdgeQKVError
from edgeqkv.session import Engine, Session


def open_bundle(folder: Path, runtime: str | None, kernel: str | None, threads: int | None, check: bool) -> Session:
    """See :func:`edgeqkv.open`."""
    if threads is not None and threads < 1:
        raise EdgeQKVError(f"threads must be at least 1, found {threads}")
    manifest = read_bundle(folder)
    found = [a for a in manifest.artifacts if runtime in (None, a.runtime) and kernel in (None, a.kernel)]
    if not found:
        have = ", ".join(f"{a.runtime} ({a.kernel} kernel)" for a in manifest.artifacts) or "nothing"
        asked = f"the runtime {runtime or 'any'!r}" + (f" with the kernel {kernel!r}" if kernel else "")
        raise EdgeQKVError(f"{folder} holds nothing for {asked}; it was exported for: {have}")
    if check:
        check_files(folder, manifest)
    artifact = found[0]
    # One engine today; the next one adds its line here.
    from edgeqkv.runtimes.onnx.engine import OnnxEngine

    model = folder / next(iter(artifact.files))
    vocab_size = manifest.model.config.vocab_size
    engine: Engine = OnnxEngine(model, manifest.cache_layout, artifact.entry_points[0].aliases, vocab_size, threads)
    return Session(engine, manifest, artifact)
