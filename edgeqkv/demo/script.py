"""The demo's commands, as anyone could type them."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from edgeqkv.bench.device import attached
from edgeqkv.errors import EdgeQKVError

STORY = ["--prompt", "Once upon a time there was a little princess", "--tokens", "120"]
STORY += ["--temperature", "0.6", "--top-k", "40", "--seed", "7"]
# By folder: the variant, the dtypes of its cache that are exported, and of these what is measured. What a team has today comes
# first; then what takes the way from there to ours one change at a time.
VARIANTS: dict[str, tuple[str, dict[str, tuple[str, ...]]]] = {
    "qkv": ("QKV", {"fp32": ("stock", "fused"), "fp16": ("stock",), "int8": ("fused",)}),
    "q-kv": ("Q-K=V", {"int8": ("fused",)}),
    "q-mqa": ("Q-MQA", {"int8": ("fused",)}),
}
PRESET, DEPTHS = "paper-300m", "128,2000"
ROUND_S, MOST = 17.0, 9  # seconds of a round; up to so many of them bench starts all processes anew in each
NOTE = "The weights are random: this shows memory and speed, and says nothing about quality."


@dataclass(frozen=True)
class Command:
    """Arguments of edgeqkv. ``seconds`` is what it takes on two cores of a server of 2024, for the time that is left.

    It is left out where the folder is there that it ``makes``. The folder that it ``removes`` is not needed after it. ``said``
    is a heading above it; what it prints goes to the file ``prints_to``, where the report tells it better.
    """

    arguments: tuple[str, ...]
    seconds: float
    makes: Path | None = None
    removes: Path | None = None
    said: str = ""
    prints_to: Path | None = None


def stories(models: Sequence[Path], out: Path) -> list[Command]:
    """Each trained model exported, compared with PyTorch, and heard."""
    bundles = {model: out / model.name for model in models}
    found = [
        Command(("export", str(model), "--out", str(bundle), "--weights", "int8"), 2, said=f"{model.name}, a trained model")
        for model, bundle in bundles.items()
    ]
    found += [
        Command(("verify", str(bundle), "--against", str(model)), 6, said=f"{bundle.name} against PyTorch")
        for model, bundle in bundles.items()
    ]
    found += [Command(("generate", str(bundle), *STORY), 1, said=f"A story by {bundle.name}") for bundle in bundles.values()]
    return found


def gain(folder: Path, rounds: int) -> list[Command]:
    """The 300M geometry with random weights, measured in so many ``rounds``."""
    found, named = [], []
    for name, (variant, caches) in VARIANTS.items():
        model = folder / "models" / name
        bundles = {cache: folder / f"{name}-{cache}" for cache in caches}
        if not all(map(Path.exists, bundles.values())):
            making = ("new", PRESET, "--variant", variant, "--out", str(model))
            found.append(Command(making, 6, makes=model, said=f"{variant} at 300M parameters, with random weights"))
        for cache, bundle in bundles.items():
            exporting = ("export", str(model), "--out", str(bundle), "--cache", cache)
            last = model if cache == list(caches)[-1] else None
            found.append(Command(exporting, 18 if cache == "int8" else 7, makes=bundle, removes=last))
            named += [f"{bundle}:{kernel}" for kernel in caches[cache]]
    results, report = folder / "results.jsonl", folder / "report.html"
    measuring = ("bench", *named, "--depths", DEPTHS, "--prompt", "64", "--rounds", str(rounds), "--fill", "zeros")
    measuring += ("--results", str(results))
    said = "Measured in turn, in one run"
    found.append(Command(measuring, rounds * ROUND_S, said=said, prints_to=folder / "tables.md"))
    found.append(Command(("report", str(results), "--out", str(report), "--note", NOTE), 2, said="What came out"))
    return found


def closing(folder: Path) -> str:
    """What to do next."""
    phones: list[str] = []
    with suppress(EdgeQKVError):  # an adb that does not answer is no reason to end with an error
        phones = [name for name, _ in attached()]
    phone = phones[0] if phones else "adb://SERIAL"
    return (
        f"\nThe report is {folder / 'report.html'}, the tables are in {folder / 'tables.md'}.\n"
        f"Next, your own model on your own phone: edgeqkv export MODEL --out mine --cache int8 && "
        f"edgeqkv bench mine --device {phone} --results mine.jsonl && edgeqkv report mine.jsonl --out mine.html"
    )
