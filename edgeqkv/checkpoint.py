"""The paper's training checkpoints (``torch.save`` files) into a model.

The attention keys differ by variant, and shapes alone are ambiguous: names are read together with ``model_config``.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgeqkv.config import MLP, Head, Learned, ModelConfig, Norm, Projections, SharedAttention, checked
from edgeqkv.errors import EdgeQKVError, require
from edgeqkv.files import file_sha256
from edgeqkv.model_folder import Model, check_weights
from edgeqkv.text import Text

GPT2_ROWS, GPT2_TOKENS = 50304, 50257


@dataclass(frozen=True)
class _Attention:
    """How one family of variants stores its projections: the keys it has and what each of them holds, in order.

    ``kv_heads`` gives the number of KV heads from n_head and n_kv_groups (None when model_config has none).
    """

    projections: Projections
    parts: dict[str, tuple[str, ...]]
    kv_heads: Callable[[int, int | None], int | None]


def _all_heads(n_head: int, groups: int | None) -> int | None:
    return n_head if groups in (None, n_head) else None


def _grouped(n_head: int, groups: int | None) -> int | None:
    return groups


# The class that the paper calls GPT_KV is Q=K-V: its c_kv holds k, then v, and q is k.
_FAMILIES = [
    _Attention("QKV", {"c_attn": ("q", "k", "v")}, _all_heads),
    _Attention("Q-K=V", {"c_q": ("q",), "c_k": ("k",)}, lambda n_head, groups: n_head if groups is None else groups),
    _Attention("Q=K-V", {"c_kv": ("k", "v")}, _all_heads),
    _Attention("Q=K=V", {"c_k": ("k",)}, _all_heads),
    _Attention("QKV", {"c_q": ("q",), "c_kv": ("k", "v")}, _grouped),
    _Attention("Q-K=V", {"c_q": ("q",), "c_kv": ("k",)}, lambda n_head, groups: 1 if groups == 1 else None),  # Q-MQA
]


def read_checkpoint(path: Path, token_count: int | None = None) -> Model:
    """Read a checkpoint with torch's ``weights_only`` loader; a file that carries code is refused.

    ``token_count`` is the number of ids that may be sampled; by default all rows, or 50257 of GPT-2's padded 50304.
    """
    torch = require("torch", "torch")
    path = Path(path)
    if not path.is_file():
        raise EdgeQKVError(f"{path} does not exist" if not path.exists() else f"{path} is not a file")
    import pickle

    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can fail anywhere in the unpickler, with any exception
        if isinstance(error, pickle.UnpicklingError) and re.search("unsupported|global", str(error), re.IGNORECASE):
            raise EdgeQKVError(
                f"{path} is refused: it carries code or objects besides tensors, which could run on this machine; save "
                "the state dict, model_config and plain values alone"
            ) from error
        raise EdgeQKVError(f"{path} is not a torch checkpoint, or is truncated ({_first_line(error)})") from error
    if not isinstance(saved, dict) or not {"model_state_dict", "model_config"} <= saved.keys():
        raise EdgeQKVError(f"{path}: expected a dictionary with model_state_dict and model_config")
    if not isinstance(saved["model_state_dict"], dict):
        raise EdgeQKVError(f"{path}: model_state_dict is not a dictionary")
    state = {}
    for key, value in saved["model_state_dict"].items():
        if not isinstance(key, str) or not isinstance(value, torch.Tensor) or value.layout != torch.strided:
            raise EdgeQKVError(f"{path}: model_state_dict[{key!r}] is not a named dense tensor")
        name = key.removeprefix("module.")
        if not name.endswith(".attn.bias"):  # the causal mask, hundreds of MB over all layers
            state[name] = value.detach()
    try:
        config, kind = _config(saved["model_config"], state, token_count)
        config = checked(config, "model_config")
    except EdgeQKVError as error:
        raise EdgeQKVError(f"{path}: {error}") from error
    weights = _weights(config, kind, state, str(path))
    check_weights(config, weights, str(path))
    return Model(config, weights, None, Text(), file_sha256(path))


def _config(saved: Any, state: dict[str, Any], token_count: int | None) -> tuple[ModelConfig, _Attention]:
    if not isinstance(saved, dict):
        raise EdgeQKVError("model_config is not a dictionary")

    def field(name: str) -> int:
        value = saved.get(name)
        if type(value) is not int or value < 1:
            raise EdgeQKVError(f"model_config.{name} must be a whole number from 1, found {value!r}")
        return value

    for name, supported in (("use_bias", True), ("tie_word_embeddings", True)):
        if saved.get(name, supported) != supported:
            raise EdgeQKVError(f"model_config.{name} = {saved[name]} is not supported, only {supported}")
    keys = {m[1] for name in state if (m := re.fullmatch(r"h\.0\.attn\.(\w+)\.weight", name))} - {"c_proj"}
    n_head, groups = field("n_head"), field("n_kv_groups") if "n_kv_groups" in saved else None
    for kind in _FAMILIES:
        n_kv_head = kind.kv_heads(n_head, groups) if kind.parts.keys() == keys else None
        if n_kv_head is None or not _rows_fit(kind, n_kv_head, field("n_embd") // n_head, field("n_embd"), state):
            continue
        vocab_size = field("vocab_size")
        tokens = GPT2_TOKENS if vocab_size == GPT2_ROWS else vocab_size
        eps = saved.get("layer_norm_epsilon")
        if not isinstance(eps, float):
            raise EdgeQKVError(f"model_config.layer_norm_epsilon must be a number, found {eps!r}")
        d_model = field("n_embd")
        if d_model % n_head:
            raise EdgeQKVError(f"model_config.n_embd {d_model} is not divisible by n_head {n_head}")
        attention = SharedAttention(
            projections=kind.projections,
            n_head=n_head,
            n_kv_head=n_kv_head,
            head_dim=d_model // n_head,
            bias=True,
            out_bias=True,
            qk_norm=False,
        )
        config = ModelConfig(
            n_layer=field("n_layer"),
            d_model=d_model,
            n_positions=field("n_positions"),
            vocab_size=vocab_size,
            token_count=tokens if token_count is None else token_count,
            embedding_scale=1.0,
            residual_scale=1.0,
            positions=Learned(),
            norm=Norm(kind="layer_norm", eps=eps),
            attention=attention,
            mlp=MLP(kind="gelu", width=field("n_inner"), bias=True),
            head=Head(tied=True, scale=1.0),
        )
        return config, kind
    found = ", ".join(f"{key} {list(state[f'h.0.attn.{key}.weight'].shape)}" for key in sorted(keys)) or "none"
    raise EdgeQKVError(f"the attention keys ({found}) with n_head {n_head} and n_kv_groups {groups} fit no known variant")


def _rows_fit(kind: _Attention, n_kv_head: int, head_dim: int, d_model: int, state: dict[str, Any]) -> bool:
    rows = {"q": d_model, "k": n_kv_head * head_dim, "v": n_kv_head * head_dim}
    return all(
        list(state[f"h.0.attn.{key}.weight"].shape) == [sum(rows[part] for part in parts), d_model]
        for key, parts in kind.parts.items()
    )


def _weights(config: ModelConfig, kind: _Attention, state: dict[str, Any], where: str) -> dict[str, np.ndarray]:
    """Our names: fused projections are cut apart, c_fc and c_proj lose their prefix."""
    row = config.row
    rows = {"q": row.heads * row.key.width} | dict.fromkeys(("k", "v"), row.kv_heads * row.key.width)
    weights: dict[str, np.ndarray] = {}
    for name, tensor in state.items():
        array = tensor.float().numpy()
        fused = re.fullmatch(r"(h\.\d+\.attn)\.(\w+)\.(weight|bias)", name)
        if fused and fused[2] in kind.parts:
            parts = kind.parts[fused[2]]
            if array.ndim == 0 or array.shape[0] != sum(rows[part] for part in parts):
                raise EdgeQKVError(f"{where}: {name} has shape {list(array.shape)}, a {config.variant} model needs another")
            cuts = np.cumsum([rows[part] for part in parts])[:-1]
            for part, piece in zip(parts, np.split(array, cuts), strict=True):
                weights[f"{fused[1]}.{part}.{fused[3]}"] = piece
        else:
            weights[re.sub(r"\.c_(fc|proj)\.", r".\1.", name)] = array
    return weights


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:160] or type(error).__name__
