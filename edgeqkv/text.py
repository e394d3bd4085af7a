"""Text to token ids and back, and what of a model's text goes beyond its tokenizer: end tokens and the chat template."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from edgeqkv.errors import EdgeQKVError, require
from edgeqkv.limits import TOKENIZER_BYTES
from edgeqkv.strict import Strict
from edgeqkv.text_file import read_text

TOKENIZER, TEXT = "tokenizer.json", "text.json"
# Names that special tokens have where a text ends, when nothing says so explicitly.
END_NAMES = ("<|endoftext|>", "</s>", "<|end_of_text|>", "<eos>")


class Text(Strict, frozen=True):
    """``text.json`` of a model folder: ids that end a generation, the chat template (Jinja, as Hugging Face renders it), and
    the special tokens that the template may name (``bos_token``, ...)."""

    end_tokens: tuple[int, ...] = ()
    chat_template: str | None = None
    special_tokens: dict[str, str] = msgspec.field(default_factory=dict)


class FileEntry(Strict, frozen=True):
    file: str
    sha256: str


class TextEntry(Strict, frozen=True):
    """The same in a bundle's manifest, with the tokenizer's file; None: the model is driven by ids."""

    tokenizer: FileEntry | None
    end_tokens: tuple[int, ...]
    chat_template: str | None
    special_tokens: dict[str, str]


def read_tokenizer(path: Path) -> str:
    """The content of a tokenizer.json."""
    return read_text(path, TOKENIZER_BYTES)


def load_tokenizer(text: str, where: str) -> Any:
    """A ``tokenizers.Tokenizer`` from the content of a tokenizer.json."""
    tokenizers = require("tokenizers", "onnx-runtime")
    try:
        return tokenizers.Tokenizer.from_str(text)
    except Exception as error:  # tokenizers raises bare Exception
        raise EdgeQKVError(f"{where} is not a tokenizer.json: {error}") from error


def check_tokenizer(tokenizer: Any, token_count: int, where: str) -> None:
    """Refuse a tokenizer that makes ids which the model does not have."""
    highest = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)
    if highest >= token_count:
        raise EdgeQKVError(
            f"{where} has token ids up to {highest}, the model knows 0 to {token_count - 1}: it is another model's tokenizer"
        )


def default_text(tokenizer: Any) -> Text:
    """What a tokenizer alone says: its special token of one of :data:`END_NAMES` ends a text."""
    special = {id_ for id_, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    ends = [tokenizer.token_to_id(name) for name in END_NAMES]
    return Text(end_tokens=tuple(id_ for id_ in ends if id_ in special))


def stream_text(tokenizer: Any, prompt: list[int], ids: Iterable[int]) -> Iterator[str]:
    """Text of ids as they come after ``prompt``; a character spread over several ids comes out when it is whole."""
    # A prompt may end within a character (a session that was saved there): the stream begins before it.
    whole = len(prompt)
    while whole > max(0, len(prompt) - 4) and tokenizer.decode(prompt[max(0, whole - 8) : whole]).endswith("\ufffd"):
        whole -= 1
    stream = require("tokenizers.decoders", "onnx-runtime").DecodeStream(ids=prompt[:whole], skip_special_tokens=True)
    for token in prompt[whole:]:
        stream.step(tokenizer, token)
    for token in ids:
        piece = stream.step(tokenizer, token)
        if piece:
            yield piece
