"""The command line: results on stdout, progress on stderr.

Exit codes: 0 done, 1 a check failed, 2 the input was wrong, 3 the environment lacks something, 70 a fault of ours.
"""

import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

import edgeqkv
from edgeqkv.bench.cli import bench, devices
from edgeqkv.demo.cli import demo
from edgeqkv.errors import EdgeQKVError
from edgeqkv.generate_cli import chat, generate
from edgeqkv.progress import note
from edgeqkv.report.cli import report
from edgeqkv.training.cli import perplexity, study, train
from edgeqkv.training.convert_cli import convert

if TYPE_CHECKING:
    from edgeqkv.config import Row, Slice
    from edgeqkv.manifest import ParityRecord

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Train with K = V, ship with one cache.",
)

SCALES = {
    "none": "",
    "static": " with static scales",
    "per_row": " with a scale for each row",
    "per_slice": " with two scales for each row",
}
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
Out = Annotated[Path, typer.Option("--out", help="Folder to write.")]
Text = Annotated[Path | None, typer.Option("--text", help="UTF-8 text file to use instead of the built-in sample.")]


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"edgeqkv {edgeqkv.__version__}")
        raise typer.Exit


@app.callback()
def options(
    debug: Annotated[bool, typer.Option(help="Show the traceback of an error.")] = False,
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    """Options of every command; main() reads --debug itself."""


@app.command()
def inspect(
    path: Annotated[Path, typer.Argument(help="Checkpoint, model folder or bundle.")],
    capacity: Annotated[int | None, typer.Option(help="Number of positions; by default all that the model has.")] = None,
    cache: Annotated[str | None, typer.Option(help="Dtype of the cache: fp32, fp16 or int8.")] = None,
    attention: Annotated[
        bool,
        typer.Option("--attention", help="Show instead how alike Q, K and V are in each layer, and their effective ranks."),
    ] = False,
    plot: Annotated[Path | None, typer.Option(help="Draw that to a file, .svg.")] = None,
    as_json: Json = False,
) -> None:
    """Show a model and what the cache of every variant of its geometry takes."""
    from edgeqkv.cache import DTYPES
    from edgeqkv.inspection import inspect_path
    from edgeqkv.tables import mib, table

    if cache is not None and cache not in DTYPES:
        raise EdgeQKVError(f"--cache {cache!r} is not one of {', '.join(DTYPES)}")
    if attention or plot is not None:
        _inspect_attention(path, plot, as_json)
        return
    seen = inspect_path(path, capacity, cache)
    if as_json:
        _print_json(seen)
        return
    c, row = seen.config, seen.config.row
    print(f"{path}: {seen.kind}, {seen.variant}, {seen.parameters:,} parameters")
    print(
        f"{c.n_layer} layers, d_model {c.d_model}, {row.heads} heads of {row.key.width}, KV heads: {row.kv_heads}, "
        f"MLP {c.mlp.width}, {c.n_positions} positions, {c.token_count} tokens in {c.vocab_size} rows, "
        f"{'with' if seen.has_tokenizer else 'no'} tokenizer"
    )
    print("a cached row: " + ", ".join(_slice("key", row.key, row) + _slice("value", row.value, row)))
    if seen.bundle is not None:
        for artifact in seen.bundle.artifacts:
            held = artifact.cache
            print(
                f"{artifact.name} ({artifact.runtime} {artifact.runtime_version}): {artifact.weights.scheme} weights, "
                f"{artifact.attention} attention, {held.dtype} cache{SCALES[held.scales]}, {held.bytes:,} bytes"
            )
            for form, names in _by_format(artifact.weights.formats).items():
                print(f"  {form}: {', '.join(names)}")
        for record in seen.bundle.parity:
            result = "passed" if record.passed else "FAILED"
            print(f"verified on {_executed(record)} {record.kernel}: {result}, perplexity {record.perplexity:.2f}")
    scales = ", scales included" if seen.cache_dtype == "int8" else ""
    print(f"\ncache at {seen.capacity:,} positions, {seen.cache_dtype}{scales}\n")
    rows = [
        [
            f"{b.variant} <" if b.variant == seen.variant else b.variant,
            b.cache_tensors_per_layer,
            b.n_kv_head,
            mib(b.bytes, 2),
            f"{b.bytes_per_position:,}",
            f"{100 * (b.relative_to_baseline - 1):+.1f} %" if i else "",
        ]
        for i, b in enumerate(seen.budgets)
    ]
    against = f"against {seen.budgets[0].variant}"
    print(table(["variant", "tensors/layer", "KV heads", "cache MiB", "bytes/position", against], rows))


def _inspect_attention(path: Path, plot: Path | None, as_json: bool) -> None:
    from edgeqkv.atomic import atomic_write
    from edgeqkv.bundle import is_bundle
    from edgeqkv.projections import projections, projections_drawing, projections_table
    from edgeqkv.sources import load_model

    if plot is not None and (plot.suffix != ".svg" or not plot.resolve().parent.is_dir()):
        raise EdgeQKVError(f"--plot {plot} is no .svg file in a folder that exists; name one")
    if path.is_dir() and is_bundle(path):
        raise EdgeQKVError(f"{path} is a bundle, whose weights are rounded; name the model that it was exported from")
    found = projections(load_model(path))
    if plot is not None:
        from edgeqkv.report.page import svg

        atomic_write(plot, svg(projections_drawing(found, f"{path.name}: projections of attention")).encode())
    if as_json:
        _print_json(found)
        return
    print(projections_table(found))


def _slice(name: str, part: "Slice", row: "Row") -> list[str]:
    return [f"{name} {part.tensor}[{part.start}:{part.stop}] of {row.widths[part.tensor]}"]


def _by_format(formats: dict[str, str]) -> dict[str, list[str]]:
    """The matrices in each format, without what all of their names have."""
    out: dict[str, list[str]] = {}
    for name, form in formats.items():
        out.setdefault(form, []).append(name.removesuffix(".weight"))
    return out


@app.command("import")
def import_(
    source: Annotated[
        Path, typer.Argument(help="A Hugging Face folder, or the name of one in the local cache, or a .pt file of the paper.")
    ],
    out: Out,
    tokenizer: Annotated[
        Path | None, typer.Option(help="A tokenizer.json to add, or a folder with vocab.json and merges.txt.")
    ] = None,
    token_count: Annotated[int | None, typer.Option(help="Number of ids that may be sampled; the others are padding.")] = None,
    as_json: Json = False,
) -> None:
    """Turn a Hugging Face model or a training checkpoint into a model folder."""
    from edgeqkv.sources import import_model

    config = import_model(source, out, tokenizer, token_count)
    if as_json:
        _print_json(config)
        return
    print(f"{out}: {config.variant}, {config.n_layer} layers, d_model {config.d_model}, {config.token_count} tokens")


@app.command()
def new(
    preset: Annotated[
        str, typer.Argument(help="Geometry: paper-300m, paper-300m-8k, paper-1.2b, tale-4m, youtu-2b, minicpm3-4b.")
    ],
    out: Out,
    variant: Annotated[
        str | None, typer.Option(help="QKV, GQA-g, MQA, Q-K=V, Q-GQA-g, Q-MQA, Q=K-V or Q=K=V; by default the preset's own.")
    ] = None,
    layers: Annotated[int | None, typer.Option(help="Number of layers; by default that of the geometry.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the random weights.")] = 0,
    as_json: Json = False,
) -> None:
    """Write a model with random weights, for memory and latency work."""
    from edgeqkv.parameters import parameter_count
    from edgeqkv.presets import new_model

    config = new_model(preset, variant, out, seed, layers)
    if as_json:
        _print_json(config)
        return
    print(f"{out}: {config.variant}, {parameter_count(config):,} random parameters")


@app.command()
def export(
    model: Annotated[Path, typer.Argument(help="Model folder, Hugging Face folder or checkpoint.")],
    out: Out,
    target: Annotated[list[str], typer.Option(help="onnx, executorch or coreml; may be repeated.")] = ["onnx"],  # noqa: B006 - typer reads it, nobody changes it
    weights: Annotated[
        str,
        typer.Option(help="int8, int4 (embedding and head in int8), int4-all, or fp32 (onnx, executorch) or fp16 (coreml)."),
    ] = "int8",
    cache: Annotated[str | None, typer.Option(help="fp32, fp16 or int8, by default fp32; Core ML's states are fp16.")] = None,
    capacity: Annotated[int | None, typer.Option(help="Positions of the cache; by default all that the model has.")] = None,
    calibration: Annotated[
        Path | None, typer.Option(help="Text for int4 weights and for the static scales of the stock int8 cache.")
    ] = None,
    prefill_chunk: Annotated[
        int | None, typer.Option(help="Tokens of a prompt that run at once; by default 128, executorch 64, coreml 32.")
    ] = None,
    head_parts: Annotated[
        int | None, typer.Option(help="Core ML: parts of head and embedding; by default as few as have 16384 rows each.")
    ] = None,
    kernel: Annotated[
        str | None,
        typer.Option(help="ExecuTorch: fused (default) uses our attention operator, stock ExecuTorch's own."),
    ] = None,
    mla: Annotated[
        str, typer.Option(help="Latent attention: absorbed caches one row, expanded K and V of every head (the baseline).")
    ] = "absorbed",
    as_json: Json = False,
) -> None:
    """Write a bundle that a device can run."""
    from edgeqkv.progress import progress_bar
    from edgeqkv.tables import mib

    with progress_bar("export") as update:
        manifest = edgeqkv.export(
            model,
            out,
            targets=target,
            weights=weights,
            cache=cache,  # type: ignore[arg-type]  # export refuses what it does not know
            capacity=capacity,
            calibration=calibration,
            prefill_chunk=prefill_chunk,
            head_parts=head_parts,
            kernel=kernel,  # type: ignore[arg-type]
            mla=mla,
            progress=lambda stage: update(stage, 0, 0),
        )
    if as_json:
        _print_json(manifest)
        return
    written = [artifact for artifact in manifest.artifacts if artifact.runtime in target]
    size = sum((out / name).stat().st_size for name in {name for a in written for name in a.files})
    kinds = ", ".join(f"{a.runtime} {a.kernel} ({mib(a.cache.bytes, 2)} MiB)" for a in written)
    caches = "/".join(dict.fromkeys(a.cache.dtype for a in written))
    print(
        f"{out}: {manifest.model.variant}, {weights} weights, {mib(size)} MiB; {caches} cache of {manifest.capacity} positions "
        f"for {kinds}"
    )


@app.command()
def verify(
    bundle: Annotated[Path, typer.Argument(help="Bundle to check.")],
    against: Annotated[Path, typer.Option(help="The model folder or checkpoint it was exported from.")],
    text: Text = None,
    tokens: Annotated[int, typer.Option(help="How many tokens of the text to compare.")] = 4096,
    as_json: Json = False,
) -> None:
    """Compare a bundle with its PyTorch model, token by token; exit 1 when it is not the same function."""
    from edgeqkv.bundle import record_parity
    from edgeqkv.parity import compare, proofs
    from edgeqkv.progress import progress_bar

    if tokens < 2:
        raise EdgeQKVError(f"--tokens must be at least 2, found {tokens}")
    with progress_bar("verify") as update:
        results = compare(bundle, against, text, tokens, lambda d, t: update("", d, t), note)
    if as_json:
        _print_json([result.record for result in results])
    else:
        _print_parity([result.record for result in results], tokens)
        for text_ in proofs(results):
            print(f"\n{text_}")
    for result in results:
        record_parity(bundle, result.record)
        for failure in result.failures:
            note(f"{_executed(result.record)} {result.record.kernel}: {failure}")
    if any(result.failures for result in results):
        raise typer.Exit(1)


def _print_parity(records: "list[ParityRecord]", asked: int) -> None:
    from edgeqkv.parity import perplexity_percent
    from edgeqkv.tables import table

    header = [
        "runtime",
        "kernel",
        "tokens",
        "max |Δlogit|",
        "mean KL nats",
        "same top-1",
        "greedy",
        "ppl PyTorch",
        "ppl",
        "result",
    ]
    rows = [
        [
            _executed(r),
            r.kernel,
            r.tokens,
            f"{r.max_abs_logit:.1e}",
            f"{r.mean_kl:.1e}",
            f"{100 * r.top1_agreement:.1f} %",
            f"{r.greedy_identical}/{r.greedy_tokens}",
            f"{r.perplexity_reference:.3f}",
            f"{r.perplexity:.3f} ({perplexity_percent(r):+.2f} %)",
            "passed" if r.passed else "FAILED",
        ]
        for r in records
    ]
    print(table(header, rows))
    if any(r.tokens < asked for r in records):
        print(
            "\ntokens: how many logits were compared. Each window of the text but the first begins with a quarter that is "
            "prefilled in chunks, of which only the last logits are."
        )
    if any(0 < r.greedy_identical < r.greedy_tokens for r in records):
        print(
            "\ngreedy: how many tokens of a greedy text are the same before the first difference. Where two tokens are nearly "
            "equally likely, rounding decides, so that an int8 export may pass with a different text."
        )


app.command()(generate)
app.command()(chat)
app.command()(bench)
app.command()(devices)
app.command()(report)
app.command()(train)
app.command()(convert)
app.command()(study)
app.command()(perplexity)
app.command()(demo)


def _executed(record: "ParityRecord") -> str:
    """The runtime, and what stood in for it."""
    return record.runtime if record.executor == "runtime" else f"{record.runtime} ({record.executor})"


def _print_json(value: Any) -> None:
    print(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())


def main() -> None:
    """Entry point: our errors become one sentence on stderr and their exit code, our warnings one sentence."""
    warnings.showwarning = lambda message, *_: note(str(message))
    try:
        app()
    except EdgeQKVError as error:
        if "--debug" in sys.argv:
            raise
        note(str(error))
        raise SystemExit(error.exit_code) from None
    except (OSError, MemoryError) as error:  # of the machine, not of ours
        if "--debug" in sys.argv:
            raise
        named = f"{str(error.filename)[:200]}: " if isinstance(error, OSError) and error.filename else ""
        note(named + ((error.strerror if isinstance(error, OSError) else "") or str(error) or "there is not enough memory"))
        raise SystemExit(EdgeQKVError.exit_code) from None
    except Exception as error:
        if "--debug" in sys.argv:
            raise
        note(f"a fault of ours, please report it: {type(error).__name__}: {error} (--debug shows more)")
        raise SystemExit(70) from None


if __name__ == "__main__":
    main()
