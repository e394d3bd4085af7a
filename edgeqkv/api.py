"""What ``import edgeqkv`` offers: functions that load what they need when they are called."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from edgeqkv.cache import CacheDtype
    from edgeqkv.manifest import Kernel, Manifest
    from edgeqkv.parity import Parity
    from edgeqkv.session import Session


def open(  # noqa: A001 - the name reads well where it is used: edgeqkv.open(...)
    bundle: str | Path,
    runtime: str | None = None,
    kernel: str | None = None,
    threads: int | None = None,
    check: bool = True,
) -> "Session":
    """Load a bundle and get a session that prefills and steps.

    ``runtime`` is "onnx", "executorch", "coreml" (off macOS a numpy interpreter of the package, for checking it) or "native"
    (the C library, over the bundle's best artifact for it). ``kernel`` is "fused" (our operator reads each cached row once)
    or "stock" (the runtime's own operators). None takes the bundle's first that can run here, and warns when that is not the
    fused one. ``threads`` None leaves the choice to the runtime. ``check`` compares every file with the sha256 in the
    manifest first.

    ONNX Runtime would send telemetry and leave files in the user's home folder; ORT_DISABLE_TELEMETRY=1 is set before it is
    loaded, which a program that has imported onnxruntime before has to do itself. Raises :class:`EdgeQKVError`.
    """
    if runtime == "native":
        from edgeqkv.runtimes.native.opening import open_native

        return cast("Session", open_native(Path(bundle), kernel, threads))  # it has the same calls
    from edgeqkv.runtimes import open_bundle

    return open_bundle(Path(bundle), runtime, kernel, threads, check)


def export(
    model: str | Path,
    out: str | Path,
    targets: Sequence[str] = ("onnx",),
    weights: str = "int8",
    cache: "CacheDtype | None" = None,
    capacity: int | None = None,
    *,
    prefill_chunk: int | None = None,
    calibration: str | Path | None = None,
    kernel: "Kernel | None" = None,
    head_parts: int | None = None,
    mla: str = "absorbed",
    progress: Callable[[str], None] = lambda stage: None,
) -> "Manifest":
    """Export a model folder, a Hugging Face folder or a checkpoint of the paper into the bundle ``out``.

    Where a bundle of the same model lies there, the export adds its targets to it or replaces them; anything else that lies
    there is left alone and refused. ``targets`` are "onnx", "executorch" and "coreml". ``weights`` is "int8", "int4" (embedding
    and head in int8), "int4-all", "fp32" or "fp16"; ``cache`` None takes each target's own dtype, fp32 or fp16. ``capacity`` is
    the number of positions of the static cache, by default all that the model was trained with; ``prefill_chunk`` how many
    tokens are prefilled at once. ``calibration`` is a text file for int4 weights, and for the static scales of ONNX's stock
    int8 cache (a small sample is built in).

    What few targets have: ``kernel`` chooses the one program of ExecuTorch, "fused" with our operator or "stock" with
    ExecuTorch's own; ``head_parts`` cuts Core ML's head and embedding. ``mla`` "expanded" caches K and V of every head of a
    model with latent attention, as other runtimes do: the baseline. ``progress`` is told each stage.

    Raises :class:`EdgeQKVError`, and then leaves everything as it was.
    """
    from edgeqkv.export.to_bundle import Options, export_bundle

    options = Options(
        targets=targets,
        weights=weights,
        cache=cache,
        capacity=capacity,
        prefill_chunk=prefill_chunk,
        calibration=None if calibration is None else Path(calibration),
        kernel=kernel,
        head_parts=head_parts,
        mla=mla,
    )
    return export_bundle(Path(model), Path(out), options, progress)


def verify(bundle: str | Path, against: str | Path, text: str | Path | None = None, tokens: int = 4096) -> "list[Parity]":
    """Compare every runtime of a bundle that can run here with the model it came from, token by token.

    ``text`` is a file, by default a built-in sample. The results go into the bundle's manifest. What cannot run here is a
    warning.
    """
    from edgeqkv.parity import verify as run

    return run(Path(bundle), Path(against), None if text is None else Path(text), tokens)


def tokenizer(bundle: str | Path) -> Any:
    """The bundle's ``tokenizers.Tokenizer``: ``.encode(text).ids`` and ``.decode(ids)``."""
    from edgeqkv.bundle import bundle_tokenizer, read_bundle

    return bundle_tokenizer(Path(bundle), read_bundle(Path(bundle)))
