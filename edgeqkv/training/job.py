"""A run before it begins: recipe, model, text and first weights, all of them checked."""

import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from msgspec import to_builtins
from msgspec.structs import replace
from torch import Tensor

from edgeqkv.config import ModelConfig, with_variant
from edgeqkv.errors import EdgeQKVError
from edgeqkv.model_folder import Model
from edgeqkv.parameters import initial_std, parameter_shapes
from edgeqkv.sources import load_model
from edgeqkv.text import Text, load_tokenizer
from edgeqkv.training.corpus import END_OF_TEXT, Stream, chosen_texts, read_texts, token_stream, train_tokenizer
from edgeqkv.training.judge import end_token
from edgeqkv.training.recipe import Named, Positions, Recipe, base_config, with_positions


@dataclass(frozen=True)
class Job:
    """``width`` tokens are in a window. ``first`` gives the weights to begin with, ``source`` is the sha256 of the file they
    are from, or None where they are random. With a ``teacher`` the model learns its probabilities in place of the text."""

    name: str
    recipe: Recipe
    config: ModelConfig
    width: int
    tokenizer: str
    text: Text
    train: Stream
    held_out: Stream
    first: Mapping[str, np.ndarray] | None
    source: str | None
    teacher: Model | None = None


def new_job(
    named: Named, text: Path, held_out: Path, variant: str, positions: Positions, seed: int | None, every: bool = False
) -> Job:
    """A model of the recipe's geometry from random weights. The tokenizer is made of the text that is trained on, so that it is
    the same for all variants."""
    recipe = named.recipe if seed is None else replace(named.recipe, seed=seed)
    config = with_positions(with_variant(base_config(recipe), variant), positions)
    texts = _training_texts(recipe, text, every)
    tokenizer = train_tokenizer(texts, config.token_count)
    config = replace(config, token_count=min(config.token_count, tokenizer.get_vocab_size()))
    end = tokenizer.token_to_id(END_OF_TEXT)
    streams = token_stream(tokenizer, end, texts), token_stream(tokenizer, end, read_texts(held_out))
    about = Text(end_tokens=(end,))
    return _checked(Job(named.name, recipe, config, config.n_positions, tokenizer.to_str(), about, *streams, None, None), text)


def tuning_job(named: Named, text: Path, held_out: Path, source: Path, seed: int | None, every: bool = False) -> Job:
    """A trained model goes on on another text: its own configuration and tokenizer, windows of the recipe's length."""
    recipe = named.recipe if seed is None else replace(named.recipe, seed=seed)
    model = load_model(source)
    end, content = end_token(model, source), model.tokenizer or ""
    tokenizer = load_tokenizer(content, str(source))
    width = min(model.config.n_positions, base_config(recipe).n_positions)
    texts = _training_texts(recipe, text, every)
    streams = token_stream(tokenizer, end, texts), token_stream(tokenizer, end, read_texts(held_out))
    job = Job(named.name, recipe, model.config, width, content, model.text, *streams, model.weights, model.sha256)
    return _checked(job, text)


def healing_job(named: Named, text: Path, held_out: Path, student: Model, teacher: Model, start: str, where: Path) -> Job:
    """``student`` is ``teacher`` after :func:`edgeqkv.training.convert.converted`; ``where`` is the teacher's place."""
    end, content = end_token(teacher, where), teacher.tokenizer or ""
    tokenizer, width = (
        load_tokenizer(content, str(where)),
        min(teacher.config.n_positions, base_config(named.recipe).n_positions),
    )
    texts = _training_texts(named.recipe, text, every=False)
    streams = token_stream(tokenizer, end, texts), token_stream(tokenizer, end, read_texts(held_out))
    source = f"{teacher.sha256} by {start}"
    first = student.weights
    job = Job(named.name, named.recipe, student.config, width, content, teacher.text, *streams, first, source, teacher)
    return _checked(job, text)


def _training_texts(recipe: Recipe, path: Path, every: bool) -> list[str]:
    texts = read_texts(path)
    return chosen_texts(texts, recipe.titles, path) if recipe.titles and not every else texts


def _checked(job: Job, path: Path) -> Job:
    for stream, what in ((job.train, str(path)), (job.held_out, "the held-out text")):
        if len(stream.ids) <= job.width + 1:
            raise EdgeQKVError(f"{what} has {len(stream.ids)} tokens, and one window takes {job.width + 1}; give a longer text")
    shared = set(job.train.titles) & set(job.held_out.titles)
    if shared or job.train.sha256 == job.held_out.sha256:
        what = f"{min(shared)!r}" if shared else "the same text"
        raise EdgeQKVError(f"{what} is both learned and held out, so that nothing could be judged by it; hold out another text")
    return job


def first_weights(job: Job, device: str) -> dict[str, Tensor]:
    """fp32. Random ones are GPT-2's initialisation; each weight has a generator of its own, so that variants start alike where
    they share one."""
    weights = {}
    for name, shape in parameter_shapes(job.config).items():
        if job.first is not None:
            value = torch.from_numpy(job.first[name].astype(np.float32))
        elif len(shape) == 1:
            value = torch.ones(shape) if re.search(r"(ln_\w+|norm)\.weight$", name) else torch.zeros(shape)
        else:
            generator = torch.Generator().manual_seed(job.recipe.seed ^ zlib.crc32(name.encode()))
            value = torch.randn(shape, generator=generator) * initial_std(job.config, name)
        weights[name] = value.to(device).requires_grad_()
    return weights


def batch_at(job: Job, step: int) -> Tensor:
    """[batch, width + 1] ids, a function of the seed and the step alone: variants see the same, and a run that goes on needs no
    generator's state."""
    generator = torch.Generator().manual_seed(job.recipe.seed * 1_000_003 + step)
    starts = torch.randint(len(job.train.ids) - job.width - 1, (job.recipe.batch,), generator=generator)
    rows = [job.train.ids[start : start + job.width + 1].astype(np.int64) for start in starts.tolist()]
    return torch.from_numpy(np.stack(rows))


def identity(job: Job) -> dict[str, Any]:
    """What decides the weights that come out; a progress file belongs to a run with the same."""
    recipe = to_builtins(replace(job.recipe, runs=(), titles=(), save_every=1))
    config = to_builtins(job.config)
    return {"recipe": recipe, "model": config, "text": job.train.sha256, "source": job.source, "width": job.width}
