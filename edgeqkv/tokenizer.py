"""Text to token ids and back, by Hugging Face ``tokenizers``; a model without a tokenizer is driven by ids."""

from collections.abc import Iterable, Iterator
from typing import Any

from edgeqkv.errors import EdgeQKVError, require


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
