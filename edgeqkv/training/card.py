"""What is written beside the weights of a trained model: its card, its loss curve, its log."""

import platform
from pathlib import Path

import numpy as np

from edgeqkv.model_folder import Model, write_model
from edgeqkv.report.drawing import Axis, Series, lines
from edgeqkv.report.page import svg
from edgeqkv.training.job import Job
from edgeqkv.training.log import LOG, Log, log_text

WIDTH = 920.0
ROWS = 10  # of the card's table of losses


def write_trained(out: Path, job: Job, weights: dict[str, np.ndarray], log: Log) -> None:
    """The model folder, whole or not at all."""
    files = {LOG: log_text([log.start, *log.steps, log.end]).encode(), "loss.svg": loss_picture(log)}
    write_model(out, Model(job.config, weights, job.tokenizer, job.text, ""), card(job, log), files)


def loss_picture(log: Log) -> bytes:
    """An SVG."""
    drawn = {
        "training": [(s.step, s.loss) for s in log.steps],
        "held out, first windows": [(s.step, s.held_out) for s in log.steps],
    }
    series = [
        Series(name, i, tuple((float(x), y, f"{y:.3f} after step {x}") for x, y in points))
        for i, (name, points) in enumerate(drawn.items())
    ]
    low = 0.9 * min(y for points in drawn.values() for _, y in points)
    title = f"{log.start.variant}: loss"
    return svg(lines(title, series, Axis("step"), Axis("nats a token", low=low), WIDTH)).encode()


def card(job: Job, log: Log) -> str:
    start, end, recipe, config = log.start, log.end, job.recipe, job.config
    seen = start.steps * start.tokens_a_step
    legs = ", ".join(f"{leg.steps} steps from {leg.peak}" for leg in recipe.legs)
    points = list(log.steps[:: max(1, len(log.steps) // ROWS)])
    points += [] if points[-1] is log.steps[-1] else [log.steps[-1]]
    rows = "\n".join(f"| {p.step} | {p.loss:.3f} | {p.held_out:.3f} |" for p in points)
    stretches = ", ".join(f"{s.start} to {s.stop - 1}: {s.perplexity:.2f}" for s in end.by_position)
    began = "" if start.source is None else f"\n- fine-tuned from weights of sha256 {start.source}"
    return f"""# {config.variant}, {start.parameters / 1e6:.2f}M parameters, trained by the recipe {job.name}
{began}
- geometry: {config.n_layer} layers, d_model {config.d_model}, {config.row.heads} heads of {config.row.key.width}, \
{config.row.kv_heads} KV heads, {config.n_positions} positions, {config.token_count} tokens
- data: {start.text_tokens:,} tokens{_titles(job.train.titles)}
- recipe: `edgeqkv train {job.name}`, {start.steps} steps of {recipe.batch} × {job.width} tokens ({seen / 1e6:.1f}M tokens, \
{seen / start.text_tokens:.1f} passes), AdamW betas {recipe.betas}, learning rate in legs ({legs}), each with {recipe.warmup} \
steps of warm-up and a cosine to a tenth, weight decay {recipe.weight_decay}, clipping {recipe.clip}, seed {recipe.seed}, \
{recipe.precision} on {start.device} ({platform.machine()})
- **held-out perplexity {end.perplexity:.2f}** per token, {end.bits_per_byte:.3f} bits per byte, on {end.tokens:,} tokens that \
were not trained on{_titles(start.held_out_titles)}, in windows of {job.width}, fp32
- by position in the window: {stretches}
- weights are stored in fp16

![loss](loss.svg)

| step | training loss | held-out loss (first windows) |
|---|---|---|
{rows}
"""


def _titles(titles: tuple[str, ...]) -> str:
    return f" ({', '.join(f'*{title}*' for title in titles)})" if titles else ""
