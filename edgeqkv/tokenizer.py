"""Text to token ids and back, by Hugging Face ``tokenizers``; a model without a tokenizer is driven by ids."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from edgeqkv.errors import EdgeQKVError, require


def read_tokenizer(path: Path) -> Any:
    """A ``tokenizers.Tokenizer`` from a tokenizer.json file."""
    try:
        return load_tokenizer(path.read_text(encoding="utf-8"), str(path))
    except FileNotFoundError as error:
        raise EdgeQKVError(f"{path} does not exist") from error
    except (OSError, UnicodeDecodeError) as error:
        raise EdgeQKVError(f"{path} is not a readable tokenizer.json: {error}") from error


def load_tokenizer(text: str, where: str) -> Any:
    """A ``tokenizers.Tokenizer`` from the content of a tokenizer.json."""
    tokenizers = require("tokenizers", "onnx-runtime")
    try:
        return tokenizers.Tokenizer.from_str(text)
    except Exception as error:  # tokenizers raises bare Exception
        raise EdgeQKVError(f"{where} is not a tokenizer.json: {error}") from error


def stream_text(tokenizer: Any, prompt: list[int], ids: Iterable[int]) -> Iterator[str]:
    """Text of ids as they come after ``prompt``; a character spread over several ids comes out when it is whole."""
    stream = require("tokenizers.decoders", "onnx-runtime").DecodeStream(ids=prompt, skip_special_tokens=True)
    for token in ids:
        piece = stream.step(tokenizer, token)
        if piece:
            yield piece
