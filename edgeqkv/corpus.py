"""Real text for calibration and verification: the user's file, or the public-domain sample that ships with the package."""

from importlib.resources import files
from pathlib import Path
from typing import Literal

import numpy as np

from edgeqkv.errors import EdgeQKVError
from edgeqkv.model_folder import Model
from edgeqkv.text import load_tokenizer
from edgeqkv.text_file import read_text

Purpose = Literal["calibration", "held_out"]


def token_windows(model: Model, purpose: Purpose, text: Path | None, tokens: int, width: int) -> list[list[int]]:
    """Up to ``tokens`` token ids, cut into windows of at most ``width``.

    A model without a tokenizer gets seeded random ids: they exercise the arithmetic and say nothing about quality.
    """
    if model.tokenizer is None:
        if text is not None:
            raise EdgeQKVError(f"{text} cannot be used: this model has no tokenizer, so that text means nothing to it")
        seed = {"calibration": 1, "held_out": 2}[purpose]
        ids = np.random.default_rng(seed).integers(model.config.token_count, size=tokens).tolist()
    else:
        ids = load_tokenizer(model.tokenizer, "tokenizer.json").encode(_text(purpose, text)).ids[:tokens]
    if len(ids) < 2:
        raise EdgeQKVError(f"{text or 'the sample'} holds {len(ids)} tokens; at least 2 are needed")
    return [ids[i : i + width] for i in range(0, len(ids), width)]


def _text(purpose: Purpose, text: Path | None) -> str:
    if text is None:
        return (files("edgeqkv") / "texts" / f"{purpose}.txt").read_text(encoding="utf-8")
    return read_text(text)
