"""Trains the models that ship with edgeqkv: same data, order, seed, steps and settings for every attention variant.

    python models/train.py --books books.train.txt.xz --valid books.valid.txt --variant Q-K=V --out models/q-kv

The books file holds texts that each begin with the lines "Title: ..." and "Author: ..."; TALES names those that are used.
Progress is saved every 100 steps under --state, and a run that was killed goes on from there. On a machine with a GPU it is
used. The optimiser is the paper's (AdamW, betas 0.9 and 0.95, weight decay 0.1, clipping at 1.0, warm-up, cosine to a tenth),
in two legs, with the higher learning rate that a model of this size wants.
"""

import argparse
import hashlib
import io
import json
import lzma
import math
import platform
import re
import sys
import time
import zlib
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import msgspec
import torch
import torch.nn.functional as F
from msgspec.structs import replace
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from edgeqkv.atomic import refuse_to_replace
from edgeqkv.config import ModelConfig, Rotary, with_variant
from edgeqkv.decoder import decoder
from edgeqkv.eager import EagerVerbs
from edgeqkv.model_folder import Model, write_model
from edgeqkv.parameters import initial_std, parameter_count, parameter_shapes
from edgeqkv.presets import PRESETS
from edgeqkv.text import Text

TALES = [
    "A Kidnapped Santa Claus",
    "A Little Princess",
    "Aesop's Fables",
    "Andersen's Fairy Tales",
    "Black Beauty",
    "Dorothy and the Wizard in Oz",
    "Five Children and It",
    "Great Big Treasury of Beatrix Potter",
    "Heidi",
    "Ozma of Oz",
    "The Adventures of Pinocchio",
    "The Book of Dragons",
    "The Christmas Angel",
    "The Happy Prince & Other Tales",
    "The Jungle Book",
    "The Life and Adventures of Santa Claus",
    "The Little Mermaid",
    "The Marvelous Land of Oz",
    "The Princess and the Goblin",
    "The Railway Children",
    "The Rose and the Ring",
    "The Secret Garden",
    "The Wind in the Willows",
    "Through the Looking-Glass",
]
SAVE_EVERY = 100
END_OF_TEXT = "<|endoftext|>"
GEOMETRY = PRESETS["tale-4m"]
# What --positions stands for; both kinds of rotary positions turn half of each head's channels.
POSITIONS = {"learned": None, "rotary": "unturned", "rotary-turned": "turned"}


@dataclass(frozen=True)
class Recipe:
    """``legs`` are (steps, peak learning rate): each warms up and falls along a cosine to a tenth of its peak."""

    seed: int = 20260604
    legs: tuple[tuple[int, float], ...] = ((4000, 2e-3), (1000, 1e-3))
    warmup: int = 200
    batch: int = 4
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.1
    clip: float = 1.0

    @property
    def steps(self) -> int:
        return sum(steps for steps, _ in self.legs)

    def lr(self, step: int) -> float:
        leg = 0
        while step >= self.legs[leg][0] and leg + 1 < len(self.legs):
            step, leg = step - self.legs[leg][0], leg + 1
        steps, peak = self.legs[leg]
        if step < self.warmup:
            return peak * (step + 1) / self.warmup
        done = (step - self.warmup) / max(1, steps - self.warmup)
        return peak * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * done)))


def read_tales(books: Path, every: bool) -> list[str]:
    """The texts of TALES, in that order, or ``every`` text of the file."""
    data = books.read_bytes()
    raw = (lzma.decompress(data) if books.suffix == ".xz" else data).decode()
    if every:
        return [text for text in re.split(r"(?m)^(?=Title: )", raw) if text.strip()]
    by_title = {re.match(r"Title: (.*)", text)[1].strip(): text for text in re.split(r"(?m)^(?=Title: )", raw)[1:]}
    missing = [title for title in TALES if title not in by_title]
    if missing:
        sys.exit(f"{books} lacks {', '.join(missing)}; --every takes the texts that it has")
    return [by_title[title] for title in TALES]


def titles_of(text: str) -> list[str]:
    return [title.strip() for title in re.findall(r"(?m)^Title: (.*)", text)] or ["the text given as --valid"]


def with_positions(config: ModelConfig, name: str) -> ModelConfig:
    value = POSITIONS[name]
    if value is None:
        return config
    dim = config.attention.head_dim // 2
    return replace(config, positions=Rotary(theta=10_000.0, dim=dim, pairs="halves", scaling=None, value=value))


def train_tokenizer(texts: list[str]) -> Tokenizer:
    """Byte-level BPE, so that every text can be encoded."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=GEOMETRY.vocab_size,
            special_tokens=[END_OF_TEXT],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return tokenizer


def token_stream(tokenizer: Tokenizer, texts: list[str]) -> torch.Tensor:
    end = tokenizer.token_to_id(END_OF_TEXT)
    ids = [token for text in texts for token in [end, *tokenizer.encode(text).ids]]
    return torch.tensor(ids)


def initial_weights(config: ModelConfig, seed: int, device: str) -> dict[str, torch.Tensor]:
    """GPT-2's initialisation; each weight has a generator of its own, so that variants start alike where they share one."""
    weights = {}
    for name, shape in parameter_shapes(config).items():
        if len(shape) == 1:
            value = torch.ones(shape) if re.search(r"ln_\w+\.weight$", name) else torch.zeros(shape)
        else:
            generator = torch.Generator().manual_seed(seed ^ zlib.crc32(name.encode()))
            value = torch.randn(shape, generator=generator) * initial_std(config, name)
        weights[name] = value.to(device).requires_grad_()
    return weights


def batch_at(stream: torch.Tensor, recipe: Recipe, step: int) -> torch.Tensor:
    """[batch, n_positions + 1] ids, a function of the seed and the step alone: resuming needs no generator state."""
    generator = torch.Generator().manual_seed(recipe.seed * 1_000_003 + step)
    starts = torch.randint(len(stream) - GEOMETRY.n_positions - 1, (recipe.batch,), generator=generator)
    return torch.stack([stream[s : s + GEOMETRY.n_positions + 1] for s in starts.tolist()])


def loss_of(config: ModelConfig, weights: dict[str, torch.Tensor], ids: torch.Tensor) -> torch.Tensor:
    autocast = torch.autocast(ids.device.type, dtype=torch.bfloat16)
    with autocast if torch.is_grad_enabled() else nullcontext():
        logits = decoder(EagerVerbs(config, weights), config, ids[:, :-1], every_position=True)
    return F.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten())


@torch.no_grad()
def perplexity(config: ModelConfig, weights: dict[str, torch.Tensor], stream: torch.Tensor) -> float:
    """exp of the mean loss over windows of n_positions tokens laid end to end."""
    width = config.n_positions
    windows = torch.stack([stream[i : i + width + 1] for i in range(0, len(stream) - width - 1, width)])
    losses = [loss_of(config, weights, part).item() * len(part) for part in windows.split(8)]
    return math.exp(sum(losses) / len(windows))


def train(config: ModelConfig, recipe: Recipe, stream: torch.Tensor, valid: torch.Tensor, state: Path, device: str):
    weights = initial_weights(config, recipe.seed, device)
    decayed = [w for w in weights.values() if w.ndim > 1]
    plain = [w for w in weights.values() if w.ndim == 1]
    groups = [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, betas=recipe.betas, fused=True)
    curve: list[tuple[int, float, float]] = []  # step, training loss, held-out loss of a fixed part
    begin, identity = 0, [asdict(recipe), msgspec.to_builtins(config), hashlib.sha256(stream.numpy().tobytes()).hexdigest()]
    if state.exists():
        saved = torch.load(state, map_location=device, weights_only=True)
        if saved["identity"] != identity:
            sys.exit(f"{state} belongs to another recipe, model or text; remove it or name another --state")
        for name, value in saved["weights"].items():
            weights[name].data.copy_(value)
        optimiser.load_state_dict(saved["optimiser"])
        begin, curve = saved["step"], [tuple(point) for point in saved["curve"]]
        print(f"{config.variant}: going on from step {begin}", flush=True)
    since, recent = time.monotonic(), []
    for step in range(begin, recipe.steps):
        for group in optimiser.param_groups:
            group["lr"] = recipe.lr(step)
        loss = loss_of(config, weights, batch_at(stream, recipe, step).to(device))
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(list(weights.values()), recipe.clip)
        optimiser.step()
        recent.append(loss.item())
        if (step + 1) % SAVE_EVERY == 0 or step + 1 == recipe.steps:
            held_out = math.log(perplexity(config, weights, valid[: 24 * config.n_positions + 1]))
            curve.append((step + 1, sum(recent) / len(recent), held_out))
            speed = len(recent) * recipe.batch * config.n_positions / (time.monotonic() - since)
            left = (recipe.steps - step - 1) * recipe.batch * config.n_positions / speed / 60
            print(
                f"{config.variant}: step {step + 1}/{recipe.steps}  loss {curve[-1][1]:.3f}  held-out {held_out:.3f}  "
                f"{speed:,.0f} tokens/s  {left:.0f} min left",
                flush=True,
            )
            progress = {
                "identity": identity,
                "step": step + 1,
                "curve": curve,
                "weights": {name: w.detach() for name, w in weights.items()},
                "optimiser": optimiser.state_dict(),
            }
            torch.save(progress, state.with_suffix(".part"))
            state.with_suffix(".part").rename(state)
            since, recent = time.monotonic(), []
    return {name: w.detach() for name, w in weights.items()}, curve


def loss_picture(variant: str, curve: list[tuple[int, float, float]]) -> bytes:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.2), layout="constrained")
    axes = figure.subplots()
    steps, train_loss, held_out = zip(*curve, strict=True)
    axes.plot(steps, train_loss, label="training")
    axes.plot(steps, held_out, label="held out (first 24 windows)")
    axes.set(xlabel="step", ylabel="loss, nats per token", title=f"{variant}: loss")
    axes.legend()
    axes.grid(alpha=0.3)
    picture = io.BytesIO()
    figure.savefig(picture, format="svg", metadata={"Date": None})
    return picture.getvalue()


def card(
    config: ModelConfig, recipe: Recipe, curve: list, ppl: float, train_tokens: int, held_out: list[str], device: str
) -> str:
    titles, held_out_titles = (", ".join(f"*{title}*" for title in group) for group in (TALES, held_out))
    seen = recipe.steps * recipe.batch * config.n_positions
    legs = ", ".join(f"{steps} steps from {peak}" for steps, peak in recipe.legs)
    points = curve[:: max(1, len(curve) // 10)]
    if points[-1] != curve[-1]:
        points.append(curve[-1])
    rows = "\n".join(f"| {step} | {a:.3f} | {b:.3f} |" for step, a, b in points)
    return f"""# {config.variant}, {parameter_count(config) / 1e6:.2f}M parameters: a small teller of tales

One of three models (QKV, Q-K=V, Q-MQA) that differ in attention alone: same data, order, steps, seed and settings, and the
same initial value for every weight that two of them share. It writes recognisable English in the manner of old children's
books, and no more: it exists so that edgeqkv can be tried and tested on trained weights.

- geometry: {config.n_layer} layers, d_model {config.d_model}, {config.row.heads} heads of {config.attention.head_dim}, \
{config.row.kv_heads} KV heads, {config.n_positions} positions, {config.vocab_size} tokens (byte-level BPE of the same text)
- data: {len(TALES)} public-domain books, {train_tokens:,} tokens: {titles}
- recipe: `models/train.py`, {recipe.steps} steps of {recipe.batch} × {config.n_positions} tokens ({seen / 1e6:.1f}M tokens, \
{seen / train_tokens:.1f} passes), AdamW betas {recipe.betas}, learning rate in legs ({legs}), each with {recipe.warmup} \
steps of warm-up and a cosine to a tenth, weight decay {recipe.weight_decay}, clipping {recipe.clip}, \
seed {recipe.seed}, bf16 autocast on {device}
- **held-out perplexity {ppl:.2f}** per token, on texts that were not trained on \
({held_out_titles}), windows of {config.n_positions} tokens, fp32
- weights are stored in fp16; licence Apache-2.0, the books are in the public domain

![loss](loss.svg)

| step | training loss | held-out loss (first 24 windows) |
|---|---|---|
{rows}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--books", type=Path, required=True, help="training texts, .txt or .txt.xz")
    parser.add_argument("--valid", type=Path, required=True, help="held-out texts, .txt")
    parser.add_argument("--every", action="store_true", help="train on every text of --books, not on the tales alone")
    parser.add_argument("--variant", required=True, help="QKV, Q-K=V, Q-MQA, ...")
    parser.add_argument("--positions", choices=POSITIONS, default="learned", help="rotary-turned: the value is the turned key")
    parser.add_argument("--out", type=Path, required=True, help="model folder to write")
    parser.add_argument("--state", type=Path, default=Path("build/train"), help="where progress is kept")
    parser.add_argument("--steps", type=int, help="stop after one leg of so many steps, for a trial")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()

    refuse_to_replace(options.out)
    torch.set_num_threads(options.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    config = with_positions(with_variant(GEOMETRY, options.variant), options.positions)
    recipe = Recipe() if options.steps is None else Recipe(legs=((options.steps, Recipe.legs[0][1]),))
    texts = read_tales(options.books, options.every)
    tokenizer = train_tokenizer(texts)
    stream = token_stream(tokenizer, texts)
    valid_text = options.valid.read_text(encoding="utf-8")
    valid = token_stream(tokenizer, [valid_text]).to(device)
    options.state.mkdir(parents=True, exist_ok=True)
    state = options.state / f"{options.out.name}.pt"
    print(f"{options.variant}: {parameter_count(config):,} parameters, {len(stream):,} tokens, {device}", flush=True)
    weights, curve = train(config, recipe, stream, valid, state, device)
    stored = {name: w.half() for name, w in weights.items()}
    ppl = perplexity(config, {name: w.float() for name, w in stored.items()}, valid)
    print(f"{options.variant}: held-out perplexity {ppl:.2f}", flush=True)
    text = Text(end_tokens=(tokenizer.token_to_id(END_OF_TEXT),))
    write_model(
        options.out,
        Model(config, {name: w.cpu().numpy() for name, w in stored.items()}, tokenizer.to_str(), text, ""),
        card(config, recipe, curve, ppl, len(stream), titles_of(valid_text), f"{device} ({platform.machine()})"),
        {"loss.svg": loss_picture(options.variant, curve), "loss.json": json.dumps(curve).encode()},
    )


if __name__ == "__main__":
    main()
