"""The model folder: config.json, model.safetensors, tokenizer.json (optional) and README.md (the model card)."""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgeqkv.atomic import atomic_folder
from edgeqkv.config import ModelConfig, parameter_shapes
from edgeqkv.errors import EdgeQKVError, require
from edgeqkv.strict import from_json, read_json, to_json
from edgeqkv.text_file import read_text
from edgeqkv.tokenizer import load_tokenizer

CONFIG, WEIGHTS, TOKENIZER, CARD = "config.json", "model.safetensors", "tokenizer.json", "README.md"


@dataclass(frozen=True)
class Model:
    """A model as read: ``weights`` maps the names of :func:`~edgeqkv.config.parameter_shapes` to fp16 or fp32 arrays.

    ``tokenizer`` is the text of tokenizer.json or None; ``sha256`` is that of the weight file it came from.
    """

    config: ModelConfig
    weights: Mapping[str, np.ndarray]
    tokenizer: str | None
    sha256: str


def read_model(folder: Path) -> Model:
    """Read and check a model folder; every problem is an :class:`EdgeQKVError` that names the file."""
    folder = Path(folder)
    if not folder.is_dir():
        raise EdgeQKVError(f"{folder} is not a folder")
    if not (folder / CONFIG).is_file():
        raise EdgeQKVError(f"{folder} is not a model folder: it has no {CONFIG}")
    config = read_config(folder)
    path = folder / WEIGHTS
    safetensors = require("safetensors", "onnx")
    load_file = require("safetensors.numpy", "onnx").load_file
    try:
        weights = load_file(path)
    except FileNotFoundError as error:
        raise EdgeQKVError(f"{folder} is not a model folder: it has no {WEIGHTS}") from error
    except OSError as error:
        raise EdgeQKVError(f"{path} cannot be read: {error}") from error
    except safetensors.SafetensorError as error:
        raise EdgeQKVError(f"{path} is damaged or truncated ({error}); copy or import it again") from error
    check_weights(config, weights, str(path))
    tokenizer = None
    if (folder / TOKENIZER).exists():
        tokenizer = read_text(folder / TOKENIZER)
        load_tokenizer(tokenizer, str(folder / TOKENIZER))  # refuse it now rather than on the device
    return Model(
        config=config,
        weights={name: weights[name] for name in parameter_shapes(config)},
        tokenizer=tokenizer,
        sha256=file_sha256(path),
    )


def load_model(path: Path) -> Model:
    """A model from a model folder, or from a checkpoint of the paper."""
    path = Path(path)
    if path.is_dir():
        return read_model(path)
    if not path.exists():
        raise EdgeQKVError(f"{path} does not exist; name a model folder or a checkpoint")
    from edgeqkv.checkpoint import read_checkpoint

    return read_checkpoint(path)


def read_config(folder: Path) -> ModelConfig:
    return from_json(ModelConfig, read_json(Path(folder) / CONFIG), str(Path(folder) / CONFIG))


def check_weights(config: ModelConfig, weights: Mapping[str, np.ndarray], where: str) -> None:
    """Refuse weights whose names, shapes, dtypes or values do not fit the configuration."""
    shapes = parameter_shapes(config)
    missing, unknown = sorted(shapes.keys() - weights.keys()), sorted(weights.keys() - shapes.keys())
    if missing or unknown:
        parts = [f"lacks {_some(missing)}"] if missing else []
        parts += [f"has unexpected {_some(unknown)}"] if unknown else []
        raise EdgeQKVError(f"{where} does not hold a {config.variant} model: it {' and '.join(parts)}")
    for name, shape in shapes.items():
        array = weights[name]
        if array.shape != shape:
            raise EdgeQKVError(f"{where}: {name} has shape {list(array.shape)}, the configuration needs {list(shape)}")
        if array.dtype not in (np.float16, np.float32):
            raise EdgeQKVError(f"{where}: {name} has dtype {array.dtype}; float16 and float32 are supported")
        if not math.isfinite(float(np.sum(array, dtype=np.float64))) and not np.isfinite(array).all():
            raise EdgeQKVError(f"{where}: {name} holds NaN or infinite values; the training run that made it diverged")


def write_model(
    folder: Path,
    config: ModelConfig,
    weights: Mapping[str, np.ndarray],
    card: str,
    tokenizer: str | None = None,
    extra_files: Mapping[str, bytes] | None = None,
) -> None:
    """Write a new model folder, whole or not at all. ``extra_files`` are put beside the card (a loss curve, say)."""
    check_weights(config, weights, str(folder))
    safetensors = require("safetensors", "onnx")
    save_file = require("safetensors.numpy", "onnx").save_file
    ordered = {name: np.ascontiguousarray(weights[name]) for name in parameter_shapes(config)}
    with atomic_folder(folder) as scratch:
        (scratch / CONFIG).write_text(to_json(config), encoding="utf-8")
        try:
            save_file(ordered, scratch / WEIGHTS)
        except safetensors.SafetensorError as error:  # its words for a full disk
            raise EdgeQKVError(f"cannot write {folder}: {error}; nothing was left behind") from error
        (scratch / WEIGHTS).chmod(0o644)
        (scratch / CARD).write_text(card, encoding="utf-8")
        if tokenizer is not None:
            (scratch / TOKENIZER).write_text(tokenizer, encoding="utf-8")
        for name, data in (extra_files or {}).items():
            (scratch / name).write_bytes(data)


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
