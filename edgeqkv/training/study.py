"""A study: the runs that a recipe lists, one after the other, and the table of what came out."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgeqkv.atomic import atomic_write
from edgeqkv.cache import cache_layout
from edgeqkv.config import Rotary
from edgeqkv.errors import EdgeQKVError
from edgeqkv.tables import table
from edgeqkv.training.log import LOG, Log, read_log
from edgeqkv.training.recipe import Named, Planned

# Validation perplexity relative to QKV at 300M parameters, per cent, from the paper's table (arXiv 2606.04032): 5.11 for QKV.
PAPER = {"QKV": 5.11, "Q-K=V": 5.27, "Q=K-V": 5.36, "Q=K=V": 6.41, "GQA": 5.15, "MQA": 5.19, "Q-GQA": 5.32, "Q-MQA": 5.36}


def run_study(named: Named, folder: Path, train_one: Callable[[Planned, Path], None], say: Callable[[str], None]) -> None:
    """``train_one`` writes a model to ``folder / run``. Its log goes beside it as ``run.jsonl``, which says that it is done."""
    runs = named.recipe.runs
    if not runs:
        raise EdgeQKVError(f"the recipe {named.name} lists no runs, so there is no study of it; edgeqkv train makes one model")
    for i, planned in enumerate(runs, 1):
        log = folder / f"{planned.name}.jsonl"
        if log.exists():
            continue
        say(f"run {i} of {len(runs)}: {planned.name}")
        model = folder / planned.name
        if not (model / LOG).exists():
            train_one(planned, model)
        atomic_write(log, (model / LOG).read_bytes())


@dataclass(frozen=True)
class Group:
    """Runs that differ in their seed alone."""

    variant: str
    positions: str
    logs: tuple[Log, ...]

    @property
    def name(self) -> str:
        return self.variant if self.positions == "learned" else f"{self.variant}, {self.positions}"

    @property
    def perplexity(self) -> float:
        return statistics.mean(log.end.perplexity for log in self.logs)

    @property
    def spread(self) -> float | None:
        """Standard deviation over seeds."""
        return statistics.stdev(log.end.perplexity for log in self.logs) if len(self.logs) > 1 else None


def read_study(folder: Path) -> list[Group]:
    """The finished runs of a folder by variant and positions, QKV first. They have to be alike in everything else."""
    paths = sorted(folder.glob("*.jsonl"))
    if not paths:
        raise EdgeQKVError(f"{folder} holds no logs (*.jsonl) of finished runs; --text and --held-out train them")
    logs = [read_log(path) for path in paths]
    found: dict[tuple[str, str], list[Log]] = {}
    for path, log in zip(paths, logs, strict=True):
        first, this = logs[0].start, log.start
        for field in ("recipe", "steps", "tokens_a_step", "precision", "text_sha256", "held_out_sha256"):
            if getattr(first, field) != getattr(this, field):
                raise EdgeQKVError(f"{path} is of another study than {paths[0]}: {field} differs; compare runs that are alike")
        found.setdefault((this.variant, _positions(log)), []).append(log)
    order = list(PAPER)
    groups = [Group(variant, positions, tuple(logs)) for (variant, positions), logs in found.items()]
    return sorted(groups, key=lambda g: (g.positions != "learned", g.positions, _index(order, g.variant), g.variant))


def study_tables(groups: Sequence[Group]) -> str:
    """Perplexity beside the paper's, then by position in the context."""
    baseline = next((g for g in groups if g.name == "QKV"), None)
    header = ["variant", "seeds", "parameters", "cache KiB", "perplexity", "± sd", "against QKV", "paper, 300M"]
    rows = [
        [
            g.name,
            len(g.logs),
            f"{g.logs[0].start.parameters:,}",
            f"{_cache_bytes(g) / 1024:,.0f}",
            f"{g.perplexity:.2f}",
            "one seed" if g.spread is None else f"{g.spread:.2f}",
            _percent(g, baseline),
            _paper(g),
        ]
        for g in groups
    ]
    stretches = groups[0].logs[0].end.by_position
    by_position = [
        [
            g.name,
            *(f"{statistics.mean(log.end.by_position[i].perplexity for log in g.logs):.2f}" for i in range(len(stretches))),
        ]
        for g in groups
    ]
    names = ["perplexity at positions", *(f"{s.start} to {s.stop - 1}" for s in stretches)]
    return f"{table(header, rows)}\n\n{table(names, by_position)}"


def _percent(group: Group, baseline: Group | None) -> str | None:
    """Of the same seeds alone: a seed decides the order of the text, which moves all variants alike."""
    if baseline is None or group is baseline:
        return "" if group is baseline else None
    by_seed = {log.start.seed: log.end.perplexity for log in baseline.logs}
    shares = [100 * (log.end.perplexity / by_seed[log.start.seed] - 1) for log in group.logs if log.start.seed in by_seed]
    if not shares:
        return None
    spread = f" ± {statistics.stdev(shares):.1f}" if len(shares) > 1 else ""
    return f"{statistics.mean(shares):+.1f}{spread} %"


def _paper(group: Group) -> str:
    published = PAPER.get(group.variant.rstrip("-0123456789"))
    if published is None or group.positions != "learned":
        return ""
    return f"{published:.2f} ({100 * (published / PAPER['QKV'] - 1):+.1f} %)" if group.variant != "QKV" else f"{published:.2f}"


def _cache_bytes(group: Group) -> int:
    config = group.logs[0].start.config
    return cache_layout(config, config.n_positions, "fp16").bytes


def _positions(log: Log) -> str:
    positions = log.start.config.positions
    if not isinstance(positions, Rotary):
        return "learned"
    return "rotary-turned" if positions.value == "turned" else "rotary"


def _index(order: list[str], variant: str) -> int:
    name = variant.rstrip("-0123456789")
    return order.index(name) if name in order else len(order)
