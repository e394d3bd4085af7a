"""What goes with a Hugging Face tokenizer: ids that end a text, the chat template, the special tokens that it may name."""

from pathlib import Path
from typing import Any

from edgeqkv.errors import EdgeQKVError, require
from edgeqkv.strict import parse_json, read_json
from edgeqkv.text import TOKENIZER, Text, check_tokenizer, default_text, load_tokenizer, read_tokenizer
from edgeqkv.text_file import read_text

SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
GPT2_END = "<|endoftext|>"


def read_text_files(folder: Path, vocab_size: int) -> tuple[str | None, Text, int]:
    """The text of tokenizer.json or None, what goes with it, and how many ids there are that may be sampled.

    These are the model's ``vocab_size``, or fewer where the tokenizer makes fewer: rows above its highest id (and above the
    highest end token) are padding.
    """
    settings = _object(folder / "tokenizer_config.json")
    ends = _end_tokens(folder)
    tokenizer, count = None, vocab_size
    if (folder / TOKENIZER).exists():
        tokenizer, where = read_tokenizer(folder / TOKENIZER), str(folder / TOKENIZER)
        loaded = load_tokenizer(tokenizer, where)
        check_tokenizer(loaded, vocab_size, where)
        if ends is None:
            ends = default_text(loaded).end_tokens
        highest = max((*loaded.get_vocab(with_added_tokens=True).values(), *ends), default=vocab_size - 1)
        count = min(vocab_size, highest + 1)
    special = _special_tokens(_object(folder / "special_tokens_map.json") | settings)
    return tokenizer, Text(ends or (), _chat_template(folder, settings), special), count


def _end_tokens(folder: Path) -> tuple[int, ...] | None:
    """eos_token_id of generation_config.json, else of config.json: a number or a list of them. None where neither has one."""
    for name in ("generation_config.json", "config.json"):
        found = _object(folder / name).get("eos_token_id")
        if found is None:
            continue
        ends = found if isinstance(found, list) else [found]
        if not all(type(token) is int for token in ends):
            raise EdgeQKVError(f"{folder / name}: eos_token_id {found!r} is neither a token id nor a list of them")
        return tuple(dict.fromkeys(ends))
    return None


def _chat_template(folder: Path, settings: dict[str, Any]) -> str | None:
    """chat_template.jinja, else the chat_template of tokenizer_config.json: one, or a list of named ones with a "default"."""
    if (folder / "chat_template.jinja").exists():
        return read_text(folder / "chat_template.jinja")
    found = settings.get("chat_template")
    if isinstance(found, list):
        named = {entry.get("name"): entry.get("template") for entry in found if isinstance(entry, dict)}
        found = named.get("default")
    if found is not None and not isinstance(found, str):
        raise EdgeQKVError(f"{folder / 'tokenizer_config.json'}: chat_template is not a text")
    return found


def _special_tokens(settings: dict[str, Any]) -> dict[str, str]:
    """Each is its text, or an object that has it as "content"."""
    found = {name: settings[name] for name in SPECIAL if name in settings}
    texts = {name: token.get("content") if isinstance(token, dict) else token for name, token in found.items()}
    return {name: text for name, text in texts.items() if isinstance(text, str)}


def _object(path: Path) -> dict[str, Any]:
    """A JSON object, empty where there is no such file."""
    if not path.exists():
        return {}
    data = read_json(path)
    if not isinstance(data, dict):
        raise EdgeQKVError(f"{path}: expected an object")
    return data


def tokenizer_from_gpt2(folder: Path) -> str:
    """The text of a tokenizer.json from GPT-2's own files: vocab.json (token to id) and merges.txt (a pair a line, best first).

    It splits and decodes as GPT-2 does: bytes written as letters, no space put before a text, <|endoftext|> special.
    """
    tokenizers = require("tokenizers", "onnx-runtime")
    vocab = parse_json(read_text(folder / "vocab.json"), str(folder / "vocab.json"))
    if not isinstance(vocab, dict) or not all(type(id_) is int and 0 <= id_ < 2**31 for id_ in vocab.values()):
        raise EdgeQKVError(f"{folder / 'vocab.json'}: expected an object from tokens to ids")
    lines = read_text(folder / "merges.txt").splitlines()
    merges = [tuple(line.split(" ")) for line in lines if line and not line.startswith("#version")]
    if wrong := [pair for pair in merges if len(pair) != 2]:
        raise EdgeQKVError(f"{folder / 'merges.txt'}: {' '.join(wrong[0])!r} is not a pair of tokens")
    try:
        tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocab, merges=merges))
    except Exception as error:  # tokenizers raises bare Exception
        raise EdgeQKVError(f"{folder / 'merges.txt'} does not fit vocab.json: {error}") from error
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = tokenizers.processors.ByteLevel(trim_offsets=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    if GPT2_END in vocab:
        tokenizer.add_special_tokens([GPT2_END])
    return str(tokenizer.to_str(pretty=True))
