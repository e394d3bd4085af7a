"""``edgeqkv train``, ``edgeqkv study`` and ``edgeqkv perplexity``."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast, get_args

import typer

from edgeqkv.errors import EdgeQKVError

if TYPE_CHECKING:
    from edgeqkv.training.job import Job
    from edgeqkv.training.recipe import Planned, Positions

Recipe = Annotated[str, typer.Argument(help="tales, study, heal, paper-300m, or a .toml file of your own.")]
Every = Annotated[bool, typer.Option("--every", help="Train on every text of --text, not on the titles of the recipe alone.")]
Threads = Annotated[int | None, typer.Option(help="CPU threads; with 1 a second run gives the same weights bit for bit.")]


def train(
    recipe: Recipe,
    text: Annotated[Path, typer.Option(help="Text to learn: UTF-8, .txt or .txt.xz.")],
    held_out: Annotated[Path, typer.Option(help="Text of the same kind to judge by; it is never learned.")],
    out: Annotated[Path, typer.Option("--out", help="Model folder to write; beside it, OUT.progress as long as it trains.")],
    variant: Annotated[
        str | None, typer.Option(help="QKV, GQA-g, MQA, Q-K=V, Q-GQA-g, Q-MQA, Q=K-V or Q=K=V; by default QKV.")
    ] = None,
    positions: Annotated[
        str | None,
        typer.Option(help="learned (default); rotary: a quarter of each head; rotary-turned: the value is the turned key."),
    ] = None,
    source: Annotated[
        Path | None, typer.Option("--from", help="Fine-tune this model, with its own geometry and tokenizer.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, max=2**31 - 1, help="Seed of weights and order; by default the recipe's.")
    ] = None,
    every: Every = False,
    threads: Threads = None,
) -> None:
    """Train a model by a recipe, on a GPU where there is one. Given again after a kill, the command goes on."""
    use_threads(threads)
    from edgeqkv.atomic import refuse_to_replace
    from edgeqkv.training.job import new_job, tuning_job
    from edgeqkv.training.recipe import read_recipe

    named = read_recipe(recipe)
    refuse_to_replace(out)
    if source is None:
        job = new_job(named, text, held_out, variant or "QKV", _positions(positions), seed, every)
    elif variant is not None or positions is not None:
        raise EdgeQKVError("--from takes variant and positions from the model; leave out --variant and --positions")
    else:
        job = tuning_job(named, text, held_out, source, seed, every)
    run_job(job, out)


def study(
    folder: Annotated[Path, typer.Argument(help="Where the logs of finished runs are, *.jsonl.")],
    recipe: Annotated[str, typer.Option(help="A recipe that lists runs.")] = "study",
    text: Annotated[Path | None, typer.Option(help="Text to learn: train what is not finished yet.")] = None,
    held_out: Annotated[Path | None, typer.Option(help="Text to judge by.")] = None,
    every: Every = False,
    threads: Threads = None,
) -> None:
    """Print perplexity by variant, from the logs in FOLDER. With --text and --held-out, train the runs of the recipe that have
    none first; given again after a kill, the command goes on."""
    from edgeqkv.progress import note
    from edgeqkv.training.recipe import read_recipe
    from edgeqkv.training.study import read_study, run_study, study_tables

    if (text is None) != (held_out is None):
        raise EdgeQKVError("to train, give both --text and --held-out; to print what is there, neither")
    if text is not None and held_out is not None:
        use_threads(threads)
        from edgeqkv.training.job import new_job

        named = read_recipe(recipe)
        learned, judged = text, held_out

        def train_one(planned: "Planned", out: Path) -> None:
            run_job(new_job(named, learned, judged, planned.variant, planned.positions, planned.seed, every), out)

        _make(folder)
        run_study(named, folder, train_one, note)
    print(study_tables(read_study(folder)))


def perplexity(
    model: Annotated[Path, typer.Argument(help="Model folder, Hugging Face folder or checkpoint, with a tokenizer.")],
    text: Annotated[Path | None, typer.Option(help="UTF-8 text, .txt or .txt.xz, instead of the built-in sample.")] = None,
    width: Annotated[int | None, typer.Option(help="Tokens in a window; by default all positions, 2048 at most.")] = None,
    threads: Threads = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
) -> None:
    """Print the perplexity of a model on a text, as a whole and by position in the context; fp32, in PyTorch."""
    use_threads(threads)
    from edgeqkv.strict import to_json
    from edgeqkv.tables import table
    from edgeqkv.training.judge import judged

    found = judged(model, text, width)
    if as_json:
        print(to_json(found), end="")
        return
    stop = max(stretch.stop for stretch in found.by_position)
    print(
        f"{model}: perplexity {found.perplexity:.2f}, {found.bits_per_byte:.3f} bits per byte, "
        f"on {found.tokens:,} tokens in windows of {stop}\n"
    )
    names = ["positions", *(f"{s.start} to {s.stop - 1}" for s in found.by_position)]
    print(table(names, [["perplexity", *(f"{s.perplexity:.2f}" for s in found.by_position)]]))


def run_job(job: "Job", out: Path) -> None:
    import torch

    from edgeqkv.progress import note
    from edgeqkv.training.card import write_trained
    from edgeqkv.training.loop import train

    device = "cuda" if torch.cuda.is_available() else "cpu"
    _make(out.parent)
    progress = out.with_name(f"{out.name}.progress")
    note(f"{out.name}: {job.config.variant}, {len(job.train.ids):,} tokens of text, on {device}")
    try:
        weights, log = train(job, progress, device, lambda line: note(f"{out.name}: {line}"))
    except KeyboardInterrupt:
        note(f"interrupted; the same command goes on from {progress}")
        raise typer.Exit(130) from None
    write_trained(out, job, weights, log)
    progress.unlink(missing_ok=True)
    print(
        f"{out}: {job.config.variant}, held-out perplexity {log.end.perplexity:.2f}, {log.end.bits_per_byte:.3f} bits per byte"
    )


def _make(folder: Path) -> None:
    """Now, rather than after hours of training."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EdgeQKVError(f"cannot write to {folder}: {error.strerror}; name another folder") from error


def _positions(name: str | None) -> "Positions":
    from edgeqkv.training.recipe import Positions

    if name is not None and name not in get_args(Positions):
        raise EdgeQKVError(f"--positions {name!r} is not one of {', '.join(get_args(Positions))}")
    return cast("Positions", name or "learned")


def use_threads(threads: int | None) -> None:
    from edgeqkv.errors import require
    from edgeqkv.limits import check_threads

    torch = require("torch", "train")  # before any module that cannot do without it
    check_threads(threads)
    if threads is not None:
        torch.set_num_threads(threads)
