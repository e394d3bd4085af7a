"""``edgeqkv demo``: from models to the report that shows what they gain."""

from pathlib import Path
from typing import Annotated

import typer


def demo(
    models: Annotated[
        list[Path] | None, typer.Argument(help="Trained model folders to export, verify and hear a story from first.")
    ] = None,
    out: Annotated[
        Path, typer.Option("--out", help="Folder for bundles, records and the report; exports are kept there.")
    ] = Path("edgeqkv-demo"),
    rounds: Annotated[int, typer.Option(help="Rounds of measuring, 5 to 9.")] = 9,
) -> None:
    """Show the gain: QKV as a team has it today against Q-K=V and Q-MQA, at 300M parameters on this machine."""
    from edgeqkv.bench.ratio import FEWEST
    from edgeqkv.demo.kept import forget_old
    from edgeqkv.demo.running import run_all
    from edgeqkv.demo.script import MOST, closing, gain, stories
    from edgeqkv.errors import EdgeQKVError

    if not FEWEST <= rounds <= MOST:
        raise EdgeQKVError(f"--rounds is from {FEWEST}, for an interval to mean anything, to {MOST}, found {rounds}")
    for model in models or ():
        if not (model / "config.json").is_file():
            raise EdgeQKVError(f"{model} is no model folder: it holds no config.json")
    large = out / "300m"
    forget_old(large)
    (large / "results.jsonl").unlink(missing_ok=True)
    run_all([*stories(models or (), out), *gain(large, rounds)])
    print(closing(large))
