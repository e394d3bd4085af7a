"""What a training run does, as data: a TOML file. Those in ``recipes/`` are known by name."""

import math
import tomllib
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

from msgspec import Meta
from msgspec.structs import replace

from edgeqkv.config import ModelConfig, Rotary, SharedAttention, checked, refuse
from edgeqkv.errors import EdgeQKVError
from edgeqkv.presets import PRESETS, gpt2
from edgeqkv.strict import Strict, from_json
from edgeqkv.text_file import read_text

Count = Annotated[int, Meta(ge=1, le=2**31 - 1)]
Seed = Annotated[int, Meta(ge=0, le=2**31 - 1)]
Rate = Annotated[float, Meta(gt=0, le=1)]
Beta = Annotated[float, Meta(ge=0, lt=1)]
Positions = Literal["learned", "rotary", "rotary-turned"]
LARGEST = 2**20  # bytes of a recipe


class Geometry(Strict, frozen=True):
    """The paper's architecture at these sizes; heads have ``d_model / n_head`` channels."""

    n_layer: Count
    d_model: Count
    n_head: Count
    n_positions: Count
    vocab_size: Count

    def __post_init__(self) -> None:
        if self.d_model % self.n_head:
            refuse(f"d_model {self.d_model} is not divisible by n_head {self.n_head}")


class Leg(Strict, frozen=True):
    """Steps that warm up to a learning rate and fall along a cosine to a tenth of it."""

    steps: Count
    peak: Rate


class Planned(Strict, frozen=True):
    """A run of a study."""

    variant: str
    seed: Seed
    positions: Positions = "learned"

    @property
    def name(self) -> str:
        return "-".join([self.variant, *([] if self.positions == "learned" else [self.positions]), str(self.seed)])


class Recipe(Strict, frozen=True):
    """A recipe file. What has a default here is the paper's (arXiv 2606.04032, its configs/train_config_300M.yaml), but for
    ``precision`` and ``save_every``. A step sees ``batch`` windows of ``geometry.n_positions`` tokens, ``at_once`` of them at a
    time (all, where that is 0). Weight decay is for matrices. With ``titles``, the texts of the training file that begin
    with a line "Title: ..." and are named here are trained on; without, all of it. ``runs`` are those of ``edgeqkv study``.
    """

    geometry: str | Geometry
    legs: Annotated[tuple[Leg, ...], Meta(min_length=1)]
    batch: Count
    at_once: Annotated[int, Meta(ge=0)] = 0
    warmup: Annotated[int, Meta(ge=0)] = 500
    betas: tuple[Beta, Beta] = (0.9, 0.95)
    weight_decay: Annotated[float, Meta(ge=0)] = 0.1
    clip: Annotated[float, Meta(gt=0)] = 1.0
    seed: Seed = 42
    precision: Literal["bf16", "fp32"] = "bf16"
    save_every: Count = 100
    titles: tuple[str, ...] = ()
    runs: tuple[Planned, ...] = ()

    def __post_init__(self) -> None:
        if isinstance(self.geometry, str) and self.geometry not in PRESETS:
            refuse(f"geometry: unknown preset {self.geometry!r}; known are {', '.join(PRESETS)}")

    @property
    def steps(self) -> int:
        return sum(leg.steps for leg in self.legs)

    def learning_rate(self, step: int) -> float:
        leg = 0
        while step >= self.legs[leg].steps and leg + 1 < len(self.legs):
            step, leg = step - self.legs[leg].steps, leg + 1
        steps, peak = self.legs[leg].steps, self.legs[leg].peak
        if step < self.warmup:
            return peak * (step + 1) / self.warmup
        done = (step - self.warmup) / max(1, steps - self.warmup)
        return peak * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * done)))


class Named(NamedTuple):
    name: str
    recipe: Recipe


def known_recipes() -> list[str]:
    """The names of the recipes that ship with the package."""
    folder = files("edgeqkv.training") / "recipes"
    return sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml"))


def read_recipe(name: str) -> Named:
    """A shipped recipe by its name, or the file of a user."""
    if name in known_recipes():
        content, where = (files("edgeqkv.training") / "recipes" / f"{name}.toml").read_text(encoding="utf-8"), name
    elif name.endswith(".toml"):
        content, where = read_text(Path(name), LARGEST), Path(name).stem
    else:
        raise EdgeQKVError(f"unknown recipe {name!r}; known are {', '.join(known_recipes())}, or name a .toml file")
    try:
        data = tomllib.loads(content)
    except tomllib.TOMLDecodeError as error:
        raise EdgeQKVError(f"{name} is not a TOML file: {error}") from error
    return Named(where, from_json(Recipe, data, name))


def base_config(recipe: Recipe) -> ModelConfig:
    """The recipe's geometry with QKV attention and learned positions."""
    g = recipe.geometry
    if isinstance(g, str):
        return PRESETS[g]
    return checked(gpt2(g.n_layer, g.d_model, g.n_head, g.n_positions, g.vocab_size, g.vocab_size), "geometry")


def with_positions(config: ModelConfig, positions: Positions) -> ModelConfig:
    """``rotary`` turns a quarter of each head and takes the value before that, so that the row of a shared key and value is a
    quarter wider; ``rotary-turned`` turns all channels, takes the turned key as value and turns the output back."""
    if positions == "learned":
        return config
    if not isinstance(config.attention, SharedAttention):
        raise EdgeQKVError(f"a {config.variant} model has its own positions; leave out positions {positions!r}")
    turned = positions == "rotary-turned"
    dim = config.attention.head_dim if turned else config.attention.head_dim // 4
    if dim < 2 or dim % 2:
        raise EdgeQKVError(f"{positions} positions would turn {dim} channels of a head; that must be an even number from 2")
    value: Literal["turned", "unturned"] = "turned" if turned else "unturned"
    return replace(config, positions=Rotary(theta=10_000.0, dim=dim, pairs="halves", scaling=None, value=value))
