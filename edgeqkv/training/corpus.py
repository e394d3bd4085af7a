"""The text that a model learns from: files to texts, a tokenizer of them, and one stream of token ids."""

import hashlib
import lzma
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgeqkv.errors import EdgeQKVError, require
from edgeqkv.strict import read_bounded
from edgeqkv.text_file import read_text

END_OF_TEXT = "<|endoftext|>"
LARGEST = 2**34  # bytes of a text
HEADING = re.compile(r"(?m)^(?=Title: )")


@dataclass(frozen=True)
class Stream:
    """Token ids, int32, each text behind an end token; ``bytes`` of UTF-8 that they stand for."""

    ids: np.ndarray
    bytes: int
    titles: tuple[str, ...]

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.ids.astype("<i4").tobytes()).hexdigest()


def read_texts(path: Path) -> list[str]:
    """The texts of a UTF-8 file (or of one in .xz), which begin with lines "Title: ..."; without such lines it is one text."""
    if path.suffix == ".xz":
        try:
            raw = lzma.decompress(read_bounded(path, LARGEST)).decode("utf-8")
        except (lzma.LZMAError, EOFError, UnicodeDecodeError) as error:
            raise EdgeQKVError(f"{path} does not hold UTF-8 text in .xz: {error}") from error
    else:
        raw = read_text(path, LARGEST)
    texts = [text for text in HEADING.split(raw) if text.strip()]
    if not texts:
        raise EdgeQKVError(f"{path} holds no text")
    return texts


def title_of(text: str) -> str | None:
    found = re.match(r"Title: (.*)", text)
    return found[1].strip() if found else None


def chosen_texts(texts: Sequence[str], titles: Sequence[str], where: Path) -> list[str]:
    """Those with the ``titles``, in that order."""
    by_title = {title_of(text): text for text in texts}
    missing = [title for title in titles if title not in by_title]
    if missing:
        shown = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
        raise EdgeQKVError(f"{where} lacks texts that the recipe names ({shown}); --every trains on the texts that it has")
    return [by_title[title] for title in titles]


def train_tokenizer(texts: Sequence[str], vocab_size: int) -> Any:
    """Byte-level BPE (a ``tokenizers.Tokenizer``), so that every text can be encoded."""
    tokenizers = require("tokenizers", "train")
    if vocab_size < 257:
        raise EdgeQKVError(f"vocab_size {vocab_size} is too small: 256 bytes and the end of a text need 257 tokens")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def token_stream(tokenizer: Any, end: int, texts: Sequence[str]) -> Stream:
    """Every text is encoded and put into an array before the next: a list of Python's numbers takes ten times as much."""
    parts = [np.array([end, *tokenizer.encode(text, add_special_tokens=False).ids], np.int32) for text in texts]
    titles = tuple(title for title in map(title_of, texts) if title is not None)
    return Stream(np.concatenate(parts), sum(len(text.encode()) for text in texts), titles)
