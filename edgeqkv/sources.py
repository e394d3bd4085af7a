"""Where a model comes from: a model folder, a Hugging Face folder, or a checkpoint of the paper."""

from dataclasses import replace
from pathlib import Path

from msgspec.structs import replace as with_fields

from edgeqkv.atomic import refuse_to_replace
from edgeqkv.checkpoint import read_checkpoint
from edgeqkv.config import ModelConfig, checked
from edgeqkv.errors import EdgeQKVError
from edgeqkv.huggingface import find_folder, read_huggingface
from edgeqkv.model_folder import CONFIG, Model, is_model_folder, read_model, write_model
from edgeqkv.parameters import parameter_count
from edgeqkv.text import TOKENIZER, check_tokenizer, default_text, load_tokenizer, read_tokenizer


def load_model(path: Path) -> Model:
    """A model from any source; a name like "org/model" is looked for in Hugging Face's local cache."""
    path = Path(path)
    if (path / CONFIG).exists() and is_model_folder(path):
        return read_model(path)
    folder = find_folder(path)
    if folder is not None:
        return read_huggingface(folder)
    if path.is_dir():
        return read_model(path)  # says what it lacks
    if not path.exists():
        raise EdgeQKVError(f"{path} does not exist; name a model folder, a Hugging Face folder or a checkpoint")
    return read_checkpoint(path)


def import_model(source: Path, out: Path, tokenizer: Path | None = None, token_count: int | None = None) -> ModelConfig:
    """Write a model from any source as a model folder.

    ``tokenizer`` is a tokenizer.json, or a folder with GPT-2's vocab.json and merges.txt; its vocabulary sets ``token_count``,
    how many ids may be sampled, unless that is given.
    """
    refuse_to_replace(out)
    model = load_model(source)
    if tokenizer is not None:
        text = _tokenizer_text(tokenizer)
        loaded = load_tokenizer(text, str(tokenizer))
        if token_count is None:
            token_count = max(loaded.get_vocab(with_added_tokens=True).values(), default=-1) + 1
        check_tokenizer(loaded, model.config.vocab_size, str(tokenizer))
        model = replace(model, tokenizer=text, text=default_text(loaded))
    if token_count is not None:
        model = replace(model, config=checked(with_fields(model.config, token_count=token_count), str(source)))
    card = (
        f"# {model.config.variant}, imported\n\n{parameter_count(model.config):,} parameters, from `{Path(source).name}` "
        f"(sha256 {model.sha256}) by `edgeqkv import`.\n"
    )
    write_model(out, model, card)
    return model.config


def _tokenizer_text(path: Path) -> str:
    if path.is_dir() and not (path / TOKENIZER).exists():
        from edgeqkv.huggingface import tokenizer_from_gpt2

        return tokenizer_from_gpt2(path)
    return read_tokenizer(path / TOKENIZER if path.is_dir() else path)
