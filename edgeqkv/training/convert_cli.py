"""``edgeqkv convert``."""

from pathlib import Path
from typing import Annotated, cast, get_args

import typer

from edgeqkv.errors import EdgeQKVError


def convert(
    model: Annotated[
        Path, typer.Argument(help="A trained QKV, GQA or MQA model: model folder, Hugging Face folder, checkpoint.")
    ],
    to: Annotated[str, typer.Option(help="Q-K=V, Q-GQA-g or Q-MQA.")],
    out: Annotated[Path, typer.Option("--out", help="Model folder to write; beside it, OUT.progress as long as it heals.")],
    start: Annotated[
        str | None,
        typer.Option(help="What healing begins from: fit, factor or mean; by default fit, and mean where that cannot be."),
    ] = None,
    calibration: Annotated[Path | None, typer.Option(help="Text for --start fit, instead of the built-in sample.")] = None,
    text: Annotated[
        Path | None, typer.Option(help="Text to heal on, by distillation from MODEL; without it, no healing.")
    ] = None,
    held_out: Annotated[Path | None, typer.Option(help="Text to judge by.")] = None,
    recipe: Annotated[str, typer.Option(help="How to heal: heal, or a .toml file of your own.")] = "heal",
    threads: Annotated[int | None, typer.Option(help="CPU threads.")] = None,
) -> None:
    """Give an ordinary model one cached tensor: replace its keys and values by one row, then heal it by distillation."""
    from edgeqkv.training.cli import run_job, use_threads

    use_threads(threads)
    from edgeqkv.atomic import refuse_to_replace
    from edgeqkv.model_folder import write_model
    from edgeqkv.sources import load_model
    from edgeqkv.training.convert import Start, can_be_fitted, converted
    from edgeqkv.training.job import healing_job
    from edgeqkv.training.recipe import read_recipe

    if (text is None) != (held_out is None):
        raise EdgeQKVError("to heal, give both --text and --held-out; to convert alone, neither")
    if start is not None and start not in get_args(Start):
        raise EdgeQKVError(f"--start {start!r} is not one of {', '.join(get_args(Start))}")
    refuse_to_replace(out)
    teacher = load_model(model)
    way = cast("Start", start or ("fit" if can_be_fitted(teacher.config) else "mean"))
    student = converted(teacher, to, way, calibration)
    if text is not None and held_out is not None:
        run_job(healing_job(read_recipe(recipe), text, held_out, student, teacher, way, model), out)
        return
    card = (
        f"# {student.config.variant} from {model.name}, not healed\n\nMade by `edgeqkv convert --start {way}` of a "
        f"{teacher.config.variant} model (sha256 {teacher.sha256}). With `--text` and `--held-out` the command heals it too.\n"
    )
    write_model(out, student, card)
    print(f"{out}: {student.config.variant} by {way}, not healed")
