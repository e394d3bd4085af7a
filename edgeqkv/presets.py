"""Named geometries, and random weights at a geometry: for memory and latency work, never for quality."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np

from edgeqkv.atomic import refuse_to_replace
from edgeqkv.config import ModelConfig, parameter_count, parameter_shapes, parse_variant
from edgeqkv.errors import EdgeQKVError
from edgeqkv.model_folder import write_model


def _gpt2(n_layer: int, d_model: int, n_head: int, n_positions: int, vocab_size: int, token_count: int) -> ModelConfig:
    return ModelConfig(
        projections="QKV",
        n_layer=n_layer,
        n_head=n_head,
        n_kv_head=n_head,
        d_model=d_model,
        d_mlp=4 * d_model,
        n_positions=n_positions,
        vocab_size=vocab_size,
        token_count=token_count,
        positions="learned",
        layer_norm_eps=1e-5,
    )


# The paper's two sizes (arXiv 2606.04032, section 4), the smaller one with more positions, and what models/ ships.
PRESETS: dict[str, ModelConfig] = {
    "paper-300m": _gpt2(20, 1024, 16, 2048, 50304, 50257),
    "paper-300m-8k": _gpt2(20, 1024, 16, 8192, 50304, 50257),
    "paper-1.2b": _gpt2(22, 2048, 32, 2048, 50304, 50257),
    "tale-4m": _gpt2(4, 256, 8, 512, 2048, 2048),
}


def preset(name: str, variant: str) -> ModelConfig:
    """The configuration of a named geometry with a variant's attention."""
    if name not in PRESETS:
        raise EdgeQKVError(f"unknown preset {name!r}; known are {', '.join(PRESETS)}")
    base = PRESETS[name]
    projections, n_kv_head = parse_variant(variant, base.n_head)
    return replace(base, projections=projections, n_kv_head=n_kv_head)


def random_weights(config: ModelConfig, seed: int) -> dict[str, np.ndarray]:
    """GPT-2's initialisation (normal 0.02, residual projections scaled by depth), fp16."""
    generator = np.random.default_rng(seed)
    weights = {}
    for name, shape in parameter_shapes(config).items():
        if len(shape) == 1:
            is_gain = name.endswith("weight")
            weights[name] = np.full(shape, 1.0 if is_gain else 0.0, np.float16)
        else:
            std = 0.02 / math.sqrt(2 * config.n_layer) if name.endswith("proj.weight") else 0.02
            weights[name] = (generator.standard_normal(shape, dtype=np.float32) * std).astype(np.float16)
    return weights


def new_model(preset_name: str, variant: str, out: Path, seed: int = 0) -> ModelConfig:
    """Write a model folder with random weights and a card that says so."""
    config = preset(preset_name, variant)
    if seed < 0:
        raise EdgeQKVError(f"seed must be 0 or more, found {seed}")
    refuse_to_replace(Path(out))
    card = (
        f"# {config.variant} at {preset_name}: random weights\n\n"
        f"{parameter_count(config):,} parameters, seed {seed}, written by `edgeqkv new {preset_name} --variant {variant}`.\n\n"
        "**The weights are random.** This model measures memory and latency; what it writes, and any quality figure "
        "computed from it, means nothing. It has no tokenizer: drive it by token ids.\n"
    )
    write_model(out, config, random_weights(config, seed), card)
    return config
