"""Models in Hugging Face folders (config.json, safetensors, tokenizer.json): read, never executed, never downloaded.

:mod:`~edgeqkv.huggingface.fields` says which config.json is understood, :mod:`~edgeqkv.huggingface.weights` where each weight
lies, :mod:`~edgeqkv.huggingface.text` what goes with a tokenizer.
"""

from pathlib import Path

from msgspec.structs import replace

from edgeqkv.huggingface.fields import read_fields
from edgeqkv.huggingface.hub import CONFIG, find_folder
from edgeqkv.huggingface.text import read_text_files, tokenizer_from_gpt2
from edgeqkv.huggingface.weights import read_weights
from edgeqkv.model_folder import Model, check_text

__all__ = ["find_folder", "read_huggingface", "tokenizer_from_gpt2"]


def read_huggingface(folder: Path) -> Model:
    """The model in a Hugging Face folder; every problem is an :class:`~edgeqkv.errors.EdgeQKVError` that names the file.

    Weights keep their dtype (bf16, fp16 or fp32) and are read one by one when they are asked for. ``token_count`` is the number
    of embedding rows, or less where the tokenizer makes fewer ids: the rows above are padding, which is never sampled.
    """
    folder = Path(folder)
    config, interleaved = read_fields(folder / CONFIG)
    weights, sha256 = read_weights(folder, config, interleaved)
    tokenizer, text, token_count = read_text_files(folder, config.vocab_size)
    config = replace(config, token_count=token_count)
    check_text(text, config, str(folder))
    return Model(config=config, weights=weights, tokenizer=tokenizer, text=text, sha256=sha256)
