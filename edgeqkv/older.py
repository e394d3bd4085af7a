"""Older formats as the present one: what was written before is still read. The history is where each format is defined."""

from typing import Any

from edgeqkv.errors import EdgeQKVError


def config_of_format_1(data: Any, where: str) -> dict[str, Any]:
    """A flat GPT-2 configuration, nested by block."""
    names = {"projections", "n_layer", "n_head", "n_kv_head", "d_model", "d_mlp", "n_positions", "vocab_size", "token_count"}
    names |= {"positions", "layer_norm_eps"}
    if not isinstance(data, dict):
        raise EdgeQKVError(f"{where}: expected an object")
    for name in sorted(data.keys() - names):
        raise EdgeQKVError(f"{where}: unknown field {name!r}; known are {', '.join(sorted(names))}")
    for name in sorted(names - data.keys()):
        raise EdgeQKVError(f"{where}: the field {name!r} is missing")
    if data["positions"] != "learned":
        raise EdgeQKVError(f"{where}: positions {data['positions']!r} is not 'learned', the only value of this older format")
    d_model, n_head = data["d_model"], data["n_head"]
    if type(d_model) is not int or type(n_head) is not int or n_head < 1 or d_model % n_head:
        raise EdgeQKVError(f"{where}: d_model {d_model!r} is not divisible by n_head {n_head!r}")
    return {
        "n_layer": data["n_layer"],
        "d_model": d_model,
        "n_positions": data["n_positions"],
        "vocab_size": data["vocab_size"],
        "token_count": data["token_count"],
        "embedding_scale": 1.0,
        "residual_scale": 1.0,
        "positions": {"kind": "learned"},
        "norm": {"kind": "layer_norm", "eps": data["layer_norm_eps"]},
        "attention": {
            "kind": "shared",
            "projections": data["projections"],
            "n_head": n_head,
            "n_kv_head": data["n_kv_head"],
            "head_dim": d_model // n_head,
            "bias": True,
            "out_bias": True,
            "qk_norm": False,
        },
        "mlp": {"kind": "gelu", "width": data["d_mlp"], "bias": True},
        "head": {"tied": True, "scale": 1.0},
    }


def manifest_of_format_3(data: dict[str, Any], where: str) -> dict[str, Any]:
    """Each buffer spelled out, the row with its slices, the tokenizer under ``text`` (which had no end tokens)."""
    try:
        model = dict(data["model"])
        tokenizer = model.pop("tokenizer_sha256")
        model["config"] = config_of_format_1(model["config"], f"{where}: model.config")
        artifacts = [dict(a, cache=_cache(a["cache"]), weights=_weights(a["weights"])) for a in data["artifacts"]]
    except (KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
        raise EdgeQKVError(f"{where} is not a manifest of format 3 ({error!r}); export the bundle again") from error
    text: dict[str, Any] = {
        "tokenizer": None if tokenizer is None else {"file": "tokenizer.json", "sha256": tokenizer},
        "end_tokens": [],
        "chat_template": None,
        "special_tokens": {},
    }
    return dict(data, format=4, model=model, text=text, artifacts=artifacts)


def _cache(old: dict[str, Any]) -> dict[str, Any]:
    tensors, shape = old["tensors"], old["shape"]
    width = shape[3]
    kv_head = shape[1] if old["layout"] == "batch, kv_head, position, channel" else shape[2]
    dtype = {"fp32": "float32", "fp16": "float16", "int8": "int8"}[old["dtype"]]
    value = "v" if len(tensors) == 2 else "k"
    return {
        "dtype": old["dtype"],
        "axes": old["layout"],
        "n_kv_head": kv_head,
        "row": dict.fromkeys(tensors, width),
        "key": {"tensor": "k", "start": 0, "stop": width},
        "value": {"tensor": value, "start": 0, "stop": width},
        "scales": {"per_token": "per_row"}.get(old["scale_layout"], old["scale_layout"]),
        "scale_split": 0,
        "buffers": [
            *({"name": name, "dtype": dtype, "shape": shape} for name in old["names"]),
            *({"name": name, "dtype": "float32", "shape": old["scale_shape"]} for name in old["scale_names"]),
        ],
        "static_scales": old["scales"],
        "bytes": old["bytes"],
        "bytes_per_position": old["bytes_per_position"],
        "scale_bytes": old["scale_bytes"],
    }


def _weights(old: dict[str, Any]) -> dict[str, Any]:
    return {"scheme": old["scheme"], "formats": {}}
