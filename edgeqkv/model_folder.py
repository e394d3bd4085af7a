"""The model folder: config.json, model.safetensors, tokenizer.json and text.json (optional), README.md (the model card).

Weights are read and written tensor by tensor: a model of several billion parameters is never in memory as a whole.
"""

import json
import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from edgeqkv.atomic import atomic_folder
from edgeqkv.config import CONFIG_FORMAT, LatentAttention, ModelConfig, baseline
from edgeqkv.errors import EdgeQKVError, require
from edgeqkv.files import file_sha256
from edgeqkv.parameters import parameter_shapes
from edgeqkv.strict import Strict, from_json, parse_json, read_bounded, read_json, to_json
from edgeqkv.text import TEXT, TOKENIZER, Text, check_tokenizer, default_text, load_tokenizer, read_tokenizer

CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"
# What safetensors calls the dtypes that a model folder may hold; bfloat16 is numpy's by the package ml_dtypes.
STORED = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}


class ConfigFile(Strict, frozen=True):
    """``config.json``."""

    format: int
    model: ModelConfig


@dataclass(frozen=True)
class Model:
    """A model as read: ``weights`` maps the names of :func:`~edgeqkv.parameters.parameter_shapes` to arrays in fp32, fp16 or
    bf16 (numpy's ``bfloat16`` of ml_dtypes), which are read when they are asked for.

    ``tokenizer`` is the text of tokenizer.json or None; ``sha256`` is that of the weight file it came from.
    """

    config: ModelConfig
    weights: Mapping[str, np.ndarray]
    tokenizer: str | None
    text: Text
    sha256: str


class SafetensorsFile(Mapping[str, np.ndarray]):
    """The tensors of one .safetensors file, each read when it is asked for. Nothing in such a file is executed."""

    def __init__(self, path: Path) -> None:
        require("ml_dtypes", "onnx")  # numpy's bfloat16
        if not path.is_file():
            raise EdgeQKVError(f"{path} does not exist" if not path.exists() else f"{path} is not a regular file")
        self.path = path
        safetensors = require("safetensors", "onnx")
        try:
            with self._opened() as file:
                parts = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
                self._entries = {n: (tuple(part.get_shape()), str(part.get_dtype())) for n, part in parts.items()}
        except OSError as error:
            raise EdgeQKVError(f"{path} cannot be read: {error}") from error
        except safetensors.SafetensorError as error:
            raise EdgeQKVError(f"{path} is damaged or truncated ({error}); copy or import it again") from error

    def shape(self, name: str) -> tuple[int, ...]:
        return self._entries[name][0]

    def dtype(self, name: str) -> str:
        """As safetensors calls it: F32, BF16, ..."""
        return self._entries[name][1]

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._entries:
            raise KeyError(name)
        # The file is mapped: one that stayed open would keep in memory all that was ever read of it.
        with self._opened() as file:
            array: np.ndarray = file.get_tensor(name)
        check_finite(name, array, str(self.path))
        return array

    def __contains__(self, name: object) -> bool:  # Mapping's own would read the tensor
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def _opened(self) -> Any:
        return require("safetensors", "onnx").safe_open(self.path, framework="np")


class ReshapedWeights(Mapping[str, np.ndarray]):
    """Weights that are made from others one by one: ``made`` maps each name to what makes it."""

    def __init__(self, made: Mapping[str, Any]) -> None:
        self._made = made

    def __getitem__(self, name: str) -> np.ndarray:
        array: np.ndarray = self._made[name]()
        return array

    def __contains__(self, name: object) -> bool:
        return name in self._made

    def __iter__(self) -> Iterator[str]:
        return iter(self._made)

    def __len__(self) -> int:
        return len(self._made)


def read_model(folder: Path) -> Model:
    """Read and check a model folder; every problem is an :class:`EdgeQKVError` that names the file."""
    folder = Path(folder)
    if not folder.is_dir():
        raise EdgeQKVError(f"{folder} is not a folder")
    if not (folder / CONFIG).exists():
        raise EdgeQKVError(f"{folder} is not a model folder: it has no {CONFIG}")
    config = read_config(folder)
    path = folder / WEIGHTS
    if not path.exists():
        raise EdgeQKVError(f"{folder} is not a model folder: it has no {WEIGHTS}")
    weights = SafetensorsFile(path)
    check_stored(config, weights)
    tokenizer, text = None, Text()
    if (folder / TOKENIZER).exists():
        tokenizer = read_tokenizer(folder / TOKENIZER)
        loaded = load_tokenizer(tokenizer, str(folder / TOKENIZER))  # refuse it now rather than on the device
        check_tokenizer(loaded, config.token_count, str(folder / TOKENIZER))
        text = default_text(loaded)
    if (folder / TEXT).exists():
        text = from_json(Text, read_json(folder / TEXT), str(folder / TEXT))
    check_text(text, config, str(folder / TEXT))
    return Model(config=config, weights=weights, tokenizer=tokenizer, text=text, sha256=file_sha256(path))


def is_model_folder(folder: Path) -> bool:
    """Whether config.json is ours: those of Hugging Face name a ``model_type``."""
    data = read_json(folder / CONFIG)
    return not (isinstance(data, dict) and "model_type" in data)


def read_config(folder: Path) -> ModelConfig:
    where = str(Path(folder) / CONFIG)
    data = parse_json(read_bounded(Path(folder) / CONFIG), where)
    version = data.get("format", 1) if isinstance(data, dict) else 1
    if version == 1:
        from edgeqkv.older import config_of_format_1

        return from_json(ModelConfig, config_of_format_1(data, where), where)
    if version != CONFIG_FORMAT:
        raise EdgeQKVError(f"{where} has format {version!r}, this edgeqkv reads up to {CONFIG_FORMAT}: update edgeqkv")
    return from_json(ConfigFile, data, where).model


def check_text(text: Text, config: ModelConfig, where: str) -> None:
    wrong = [token for token in text.end_tokens if not 0 <= token < config.token_count]
    if wrong:
        raise EdgeQKVError(f"{where}: the end token {wrong[0]} is none of the model's, which are 0 to {config.token_count - 1}")


def check_stored(config: ModelConfig, weights: SafetensorsFile) -> None:
    """Refuse a weight file whose names, shapes or dtypes do not fit the configuration; no tensor is read."""
    shapes = parameter_shapes(config)
    _check_names(config, shapes, weights, str(weights.path))
    for name, shape in shapes.items():
        _check_tensor(name, shape, weights.shape(name), weights.dtype(name), str(weights.path))


def check_weights(config: ModelConfig, weights: Mapping[str, np.ndarray], where: str) -> None:
    """Refuse weights whose names, shapes, dtypes or values do not fit the configuration."""
    shapes = parameter_shapes(config)
    _check_names(config, shapes, weights, where)
    for name, shape in shapes.items():
        array = weights[name]
        _check_tensor(name, shape, array.shape, STORED.get(str(array.dtype), str(array.dtype)), where)
        check_finite(name, array, where)


def check_finite(name: str, array: np.ndarray, where: str) -> None:
    if not math.isfinite(float(np.sum(array, dtype=np.float64))) and not np.isfinite(array.astype(np.float32)).all():
        raise EdgeQKVError(f"{where}: {name} holds NaN or infinite values; the training run that made it diverged")


def _check_names(config: ModelConfig, shapes: Mapping[str, Any], weights: Mapping[str, Any], where: str) -> None:
    missing, unknown = sorted(shapes.keys() - weights.keys()), sorted(weights.keys() - shapes.keys())
    if missing or unknown:
        parts = [f"lacks {_some(missing)}"] if missing else []
        parts += [f"has unexpected {_some(unknown)}"] if unknown else []
        raise EdgeQKVError(f"{where} does not hold a {config.variant} model: it {' and '.join(parts)}")


def _check_tensor(name: str, shape: tuple[int, ...], found: tuple[int, ...], dtype: str, where: str) -> None:
    if found != shape:
        raise EdgeQKVError(f"{where}: {name} has shape {list(found)}, the configuration needs {list(shape)}")
    if dtype not in STORED.values():
        raise EdgeQKVError(f"{where}: {name} has dtype {dtype}; float32, float16 and bfloat16 are supported")


def write_model(folder: Path, model: Model, card: str, extra_files: Mapping[str, bytes] | None = None) -> None:
    """Write a new model folder, whole or not at all. ``extra_files`` are put beside the card (a loss curve, say).

    ``model.sha256`` is not looked at: it becomes that of the file written. Each tensor is asked for once, checked and written.
    """
    check_text(model.text, model.config, str(folder))
    if model.tokenizer is not None:
        where = str(folder / TOKENIZER)
        check_tokenizer(load_tokenizer(model.tokenizer, where), model.config.token_count, where)
    with atomic_folder(folder) as scratch:
        (scratch / CONFIG).write_text(to_json(ConfigFile(CONFIG_FORMAT, model.config)), encoding="utf-8")
        write_weights(scratch / WEIGHTS, model.config, model.weights, str(folder))
        (scratch / CARD).write_text(card, encoding="utf-8")
        if model.tokenizer is not None:
            (scratch / TOKENIZER).write_text(model.tokenizer, encoding="utf-8")
        if model.text != Text():
            (scratch / TEXT).write_text(to_json(model.text), encoding="utf-8")
        for name, data in (extra_files or {}).items():
            (scratch / name).write_bytes(data)


def write_weights(path: Path, config: ModelConfig, weights: Mapping[str, np.ndarray], where: str) -> None:
    """A safetensors file, tensor by tensor. (The package writes only what is in memory as a whole. The format is eight bytes of
    length, a JSON header of names, dtypes, shapes and offsets that may end in spaces, and the data.)"""
    shapes = parameter_shapes(config)
    _check_names(config, shapes, weights, where)

    def header(dtypes: Mapping[str, str], offsets: Mapping[str, list[int]]) -> bytes:
        entries = {n: {"dtype": dtypes[n], "shape": list(shape), "data_offsets": offsets[n]} for n, shape in shapes.items()}
        return json.dumps(entries, separators=(",", ":")).encode()

    # The dtypes are known when the tensors are: room is left for the longest header that there can be.
    longest = 4 * sum(map(math.prod, shapes.values()))
    room = len(header(dict.fromkeys(shapes, "BF16"), {name: [longest, longest] for name in shapes})) // 8 * 8 + 8
    dtypes, offsets, end = dict[str, str](), dict[str, list[int]](), 0
    with path.open("wb") as file:
        file.seek(8 + room)
        for name, shape in shapes.items():
            array = weights[name]
            dtypes[name] = STORED.get(str(array.dtype), str(array.dtype))
            _check_tensor(name, shape, array.shape, dtypes[name], where)
            check_finite(name, array, where)
            offsets[name] = [end, end := end + array.nbytes]
            file.write(np.ascontiguousarray(array).data if dtypes[name] != "BF16" else array.tobytes())
        file.seek(0)
        file.write(struct.pack("<Q", room) + header(dtypes, offsets).ljust(room))
    path.chmod(0o644)


def expanded(model: Model) -> Model:
    """The same MLA model with K and V of every head as cached tensors: the form that other runtimes run."""
    c = model.config.attention
    if not isinstance(c, LatentAttention):
        raise EdgeQKVError(f"a {model.config.variant} model has no expanded form; that is one of latent attention (MLA)")
    if c.form == "expanded":
        return model
    made: dict[str, Any] = {name: lambda n=name: model.weights[n] for name in model.weights}
    for layer in range(model.config.n_layer):
        k_b, v_b = (f"h.{layer}.attn.{part}.weight" for part in ("k_b", "v_b"))
        made[k_b] = lambda n=k_b: model.weights[n].transpose(0, 2, 1).reshape(c.n_head * c.nope_dim, c.kv_rank)
        made[v_b] = lambda n=v_b: model.weights[n].reshape(c.n_head * c.value_dim, c.kv_rank)
    return replace(model, config=baseline(model.config), weights=ReshapedWeights(made))


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
