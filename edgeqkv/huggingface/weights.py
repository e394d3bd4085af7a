"""Where each weight lies in a Hugging Face folder's safetensors, and what is taken of it. Tensors are read when asked for."""

import hashlib
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from edgeqkv.config import LatentAttention, ModelConfig
from edgeqkv.errors import EdgeQKVError
from edgeqkv.files import file_sha256
from edgeqkv.model_folder import STORED, ReshapedWeights, SafetensorsFile
from edgeqkv.parameters import Shapes, parameter_shapes
from edgeqkv.strict import read_json

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
# Our module names and theirs, inside a block and outside.
OUTSIDE = {"wte": "model.embed_tokens", "ln_f": "model.norm", "head": "lm_head"}
BLOCK = {
    "ln_1": "input_layernorm",
    "ln_2": "post_attention_layernorm",
    "mlp.fc": "mlp.up_proj",
    "mlp.gate": "mlp.gate_proj",
    "mlp.proj": "mlp.down_proj",
    "attn.proj": "self_attn.o_proj",
}
SHARED = {f"attn.{part}": f"self_attn.{part}_proj" for part in "qkv"} | {
    "attn.q_norm": "self_attn.q_norm",
    "attn.k_norm": "self_attn.k_norm",
}
LATENT = {
    "attn.q_a": "self_attn.q_a_proj",
    "attn.q_norm": "self_attn.q_a_layernorm",
    "attn.kv_norm": "self_attn.kv_a_layernorm",
}


@dataclass(frozen=True)
class Cut:
    """A module of theirs that holds several of ours: its output channels are ``heads`` heads, and of each of them ours are the
    channels ``start`` .. ``stop - 1``."""

    module: str
    heads: int
    start: int
    stop: int


def cuts(c: LatentAttention) -> dict[str, Cut]:
    """W_q (of the latent of the query, where it has one) is nope ‖ rope for each head, W_kv_a the latent ‖ rope, W_kv_b
    W_K ‖ W_V for each head."""
    query = "self_attn.q_proj" if c.q_rank is None else "self_attn.q_b_proj"
    first, second = "self_attn.kv_a_proj_with_mqa", "self_attn.kv_b_proj"
    return {
        "attn.q_nope": Cut(query, c.n_head, 0, c.nope_dim),
        "attn.q_rope": Cut(query, c.n_head, c.nope_dim, c.nope_dim + c.rope_dim),
        "attn.kv_a": Cut(first, 1, 0, c.kv_rank),
        "attn.k_rope": Cut(first, 1, c.kv_rank, c.kv_rank + c.rope_dim),
        "attn.k_b": Cut(second, c.n_head, 0, c.nope_dim),
        "attn.v_b": Cut(second, c.n_head, c.nope_dim, c.nope_dim + c.value_dim),
    }


def read_weights(folder: Path, config: ModelConfig, interleaved: bool) -> tuple[Mapping[str, np.ndarray], str]:
    """The weights by our names, and the sha256 of their file, or of the shards' hashes in the order of their names.

    ``interleaved`` says that rotary positions turn channels with their neighbours. The rows that make the rotary part of
    queries and keys are then put in the order even ‖ odd, in which halves are turned: a score is a sum over these channels and
    does not see their order, so that this is exact, and no target needs a second way to turn.
    """
    files, sha256 = open_files(folder)
    shapes = parameter_shapes(config)
    latent = isinstance(config.attention, LatentAttention)
    parts = cuts(config.attention) if isinstance(config.attention, LatentAttention) else {}
    modules = OUTSIDE | BLOCK | (LATENT if latent else SHARED) | {ours: cut.module for ours, cut in parts.items()}
    places = {name: _place(name, modules) for name in shapes}
    _check(folder, files, _their_shapes(shapes, places, parts), config.head.tied)
    made = {}
    for name, (module, tensor) in places.items():
        read: Callable[[], np.ndarray] = partial(files[tensor].__getitem__, tensor)
        if module in parts:
            in_halves, transposed = interleaved and module.endswith("rope"), module == "attn.k_b"
            read = partial(_cut, read, parts[module], in_halves, transposed, shapes[name])
        made[name] = read
    return ReshapedWeights(made), sha256


def _cut(read: Callable[[], np.ndarray], cut: Cut, interleaved: bool, transposed: bool, shape: tuple[int, ...]) -> np.ndarray:
    """Our weight of ``shape`` out of a weight [channels, in] or a bias [channels]."""
    array = read()
    heads = array.reshape(cut.heads, -1, *array.shape[1:])[:, cut.start : cut.stop]
    if interleaved:
        heads = np.concatenate((heads[:, 0::2], heads[:, 1::2]), axis=1)
    return (heads.swapaxes(1, 2) if transposed else heads).reshape(shape)


def _place(name: str, modules: Mapping[str, str]) -> tuple[str, str]:
    """For h.3.attn.q.weight: attn.q, and the tensor model.layers.3.self_attn.q_proj.weight."""
    block = ""
    if name.startswith("h."):
        _, layer, name = name.split(".", 2)
        block = f"model.layers.{layer}."
    module, _, kind = name.rpartition(".")
    return module, f"{block}{modules[module]}.{kind}"


def _their_shapes(shapes: Shapes, places: Mapping[str, tuple[str, str]], parts: Mapping[str, Cut]) -> Shapes:
    """Name and shape of every tensor that a folder has to hold. One that is cut has the rows of all its parts."""
    found: Shapes = {}
    sizes: dict[str, int] = {}
    for name, (module, tensor) in places.items():
        sizes[tensor] = sizes.get(tensor, 0) + math.prod(shapes[name])
        if module in parts:
            # Parts of one tensor come in the order of their channels: the last one ends with the head.
            rows = parts[module].heads * parts[module].stop
            found[tensor] = (rows,) if tensor.endswith(".bias") else (rows, sizes[tensor] // rows)
        else:
            found[tensor] = shapes[name]
    return found


def open_files(folder: Path) -> tuple[dict[str, SafetensorsFile], str]:
    """The file that holds each tensor, by the tensor's name, and the sha256 of them all."""
    if (folder / SINGLE).exists():
        file = SafetensorsFile(folder / SINGLE)
        return dict.fromkeys(file, file), file_sha256(folder / SINGLE)
    if (folder / INDEX).exists():
        return _open_shards(folder)
    if pickles := sorted(path.name for path in folder.glob("pytorch_model*.bin")):
        raise EdgeQKVError(
            f"{folder} has its weights in {pickles[0]}, a format that can carry code: only safetensors are read; "
            "transformers' save_pretrained writes them"
        )
    raise EdgeQKVError(f"{folder} has no weights: neither {SINGLE} nor {INDEX}")


def _open_shards(folder: Path) -> tuple[dict[str, SafetensorsFile], str]:
    where = str(folder / INDEX)
    data = read_json(folder / INDEX)
    index = data.get("weight_map") if isinstance(data, dict) else None
    if not isinstance(index, dict) or not index or not all(isinstance(shard, str) for shard in index.values()):
        raise EdgeQKVError(f"{where}: expected an object with a weight_map from tensors to files")
    files: dict[str, SafetensorsFile] = {}
    digest = hashlib.sha256()
    for shard in sorted(set(index.values())):
        if re.fullmatch(r"[\w-][\w.-]*\.safetensors", shard) is None:
            raise EdgeQKVError(f"{where} names {shard!r}, which is not a safetensors file of the same folder")
        file = SafetensorsFile(folder / shard)
        placed = {tensor for tensor, name in index.items() if name == shard}
        if wrong := sorted(placed ^ set(file)):
            raise EdgeQKVError(f"{where} and {shard} do not agree on whether it holds {wrong[0]}")
        files |= dict.fromkeys(placed, file)
        digest.update(file_sha256(folder / shard).encode())
    return files, digest.hexdigest()


def _check(folder: Path, files: Mapping[str, SafetensorsFile], shapes: Shapes, tied: bool) -> None:
    """Refuse tensors that are missing, left over, or of another shape or dtype than config.json says. No tensor is read but a
    head that is tied and stored all the same."""
    # Older versions saved the table of rotary frequencies, which follows from config.json.
    known = shapes.keys() | {name for name in files if name.endswith(".rotary_emb.inv_freq")}
    if tied and HEAD in files:
        known |= {HEAD}
    for problem, names in (("lacks", shapes.keys() - files.keys()), ("has the unexpected", files.keys() - known)):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise EdgeQKVError(f"{folder} does not hold what its config.json says: it {problem} {min(names)}{more}")
    for name, shape in shapes.items():
        found, dtype, path = files[name].shape(name), files[name].dtype(name), files[name].path
        if found != shape:
            raise EdgeQKVError(f"{path}: {name} has shape {list(found)}, config.json needs {list(shape)}")
        if dtype not in STORED.values():
            raise EdgeQKVError(f"{path}: {name} has dtype {dtype}; {', '.join(STORED.values())} are supported")
    if HEAD in files and tied and not np.array_equal(files[HEAD][HEAD], files[EMBEDDING][EMBEDDING]):
        raise EdgeQKVError(f"{folder}: config.json ties {HEAD} to {EMBEDDING}, but they differ; is tie_word_embeddings false?")
