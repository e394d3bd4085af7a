"""The perplexity of a trained model on a text, computed as a training run computes that of its own."""

from importlib.resources import files
from pathlib import Path

import numpy as np
import torch

from edgeqkv.errors import EdgeQKVError
from edgeqkv.model_folder import Model
from edgeqkv.sources import load_model
from edgeqkv.text import load_tokenizer
from edgeqkv.training.corpus import read_texts, token_stream
from edgeqkv.training.log import End
from edgeqkv.training.loss import held_out

WIDEST = 2048  # positions of a window, unless asked for: some models have a hundred thousand


def judged(path: Path, text: Path | None = None, width: int | None = None) -> End:
    """Windows of ``width`` tokens laid end to end; None is all positions of the model, :data:`WIDEST` at most. Without
    ``text``, the public-domain sample that ships with the package."""
    model = load_model(path)
    end = end_token(model, path)
    most = model.config.n_positions
    width = min(most, WIDEST) if width is None else width
    if not 2 <= width <= most:
        raise EdgeQKVError(f"--width {width} is outside 2 to {most}, the positions of {path}")
    texts = [(files("edgeqkv") / "texts" / "held_out.txt").read_text(encoding="utf-8")] if text is None else read_texts(text)
    stream = token_stream(load_tokenizer(model.tokenizer or "", str(path)), end, texts)
    if len(stream.ids) <= width:
        raise EdgeQKVError(
            f"{text or 'the sample'} has {len(stream.ids)} tokens, and one window takes {width + 1}; give more text"
        )
    weights = {name: torch.from_numpy(model.weights[name].astype(np.float32)) for name in model.weights}
    return held_out(model.config, weights, stream.ids, width, stream.bytes / len(stream.ids))


def end_token(model: Model, path: Path) -> int:
    """The id that parts texts; :class:`EdgeQKVError` where the model has none, or no tokenizer."""
    if model.tokenizer is None:
        raise EdgeQKVError(f"{path} has no tokenizer, so that text means nothing to it; edgeqkv import --tokenizer adds one")
    if not model.text.end_tokens:
        raise EdgeQKVError(f"{path} has no end token, which texts are parted by; name one in its text.json")
    return model.text.end_tokens[0]
