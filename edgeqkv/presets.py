"""Named geometries, and random weights at a geometry: for memory and latency work, never for quality."""

from pathlib import Path

import numpy as np
from msgspec.structs import replace

from edgeqkv.atomic import refuse_to_replace
from edgeqkv.config import (
    MLP,
    Head,
    LatentAttention,
    Learned,
    ModelConfig,
    Norm,
    Rotary,
    SharedAttention,
    checked,
    with_variant,
)
from edgeqkv.errors import EdgeQKVError
from edgeqkv.model_folder import Model, ReshapedWeights, write_model
from edgeqkv.parameters import initial_std, parameter_count, parameter_shapes
from edgeqkv.text import Text


def gpt2(n_layer: int, d_model: int, n_head: int, n_positions: int, vocab_size: int, token_count: int) -> ModelConfig:
    """The architecture of the paper's models (arXiv 2606.04032), with QKV attention."""
    attention = SharedAttention(
        projections="QKV",
        n_head=n_head,
        n_kv_head=n_head,
        head_dim=d_model // n_head,
        bias=True,
        out_bias=True,
        qk_norm=False,
    )
    return ModelConfig(
        n_layer=n_layer,
        d_model=d_model,
        n_positions=n_positions,
        vocab_size=vocab_size,
        token_count=token_count,
        embedding_scale=1.0,
        residual_scale=1.0,
        positions=Learned(),
        norm=Norm(kind="layer_norm", eps=1e-5),
        attention=attention,
        mlp=MLP(kind="gelu", width=4 * d_model, bias=True),
        head=Head(tied=True, scale=1.0),
    )


def mla(n_layer: int, d_model: int, d_mlp: int, vocab_size: int, positions: Rotary, attention: LatentAttention) -> ModelConfig:
    return ModelConfig(
        n_layer=n_layer,
        d_model=d_model,
        n_positions=32768,
        vocab_size=vocab_size,
        token_count=vocab_size,
        embedding_scale=1.0,
        residual_scale=1.0,
        positions=positions,
        norm=Norm(kind="rms_norm", eps=1e-6),
        attention=attention,
        mlp=MLP(kind="swiglu", width=d_mlp, bias=False),
        head=Head(tied=True, scale=1.0),
    )


def latent(n_head: int, q_rank: int, kv_rank: int, nope_dim: int, rope_dim: int, value_dim: int) -> LatentAttention:
    return LatentAttention(
        form="absorbed",
        n_head=n_head,
        q_rank=q_rank,
        kv_rank=kv_rank,
        nope_dim=nope_dim,
        rope_dim=rope_dim,
        value_dim=value_dim,
        bias=False,
        norm_eps=1e-6,
        softmax_scale=(nope_dim + rope_dim) ** -0.5,
    )


def rotary(theta: float, dim: int) -> Rotary:
    return Rotary(theta=theta, dim=dim, pairs="halves", scaling=None, value="unturned")


# The paper's two sizes (section 4), the smaller one with more positions, what models/ ships, and the attention of two published
# models with latent attention in full width. Fewer layers are enough to measure a layer: --layers.
PRESETS: dict[str, ModelConfig] = {
    "paper-300m": gpt2(20, 1024, 16, 2048, 50304, 50257),
    "paper-300m-8k": gpt2(20, 1024, 16, 8192, 50304, 50257),
    "paper-1.2b": gpt2(22, 2048, 32, 2048, 50304, 50257),
    "tale-4m": gpt2(4, 256, 8, 512, 2048, 2048),
    "youtu-2b": mla(32, 2048, 6144, 128256, rotary(1.6e6, 64), latent(16, 1536, 512, 128, 64, 128)),
    "minicpm3-4b": mla(62, 2560, 6400, 73448, rotary(1e4, 32), latent(40, 768, 256, 64, 32, 64)),
}


def preset(name: str, variant: str | None, layers: int | None = None) -> ModelConfig:
    """The configuration of a named geometry with a variant's attention; ``layers`` in place of its own number."""
    if name not in PRESETS:
        raise EdgeQKVError(f"unknown preset {name!r}; known are {', '.join(PRESETS)}")
    config = PRESETS[name]
    if variant is not None and variant != config.variant:
        config = with_variant(config, variant)
    return config if layers is None else checked(replace(config, n_layer=layers), name)


def random_weights(config: ModelConfig, seed: int) -> ReshapedWeights:
    """GPT-2's initialisation (normal 0.02, residual projections scaled by depth), fp16, each made when it is asked for."""
    # A generator for all, not one each: tensors are made in file order, and a second run gives the same.
    generator = np.random.default_rng(seed)

    def make(name: str, shape: tuple[int, ...]) -> np.ndarray:
        if len(shape) == 1:
            return np.full(shape, 1.0 if name.endswith("weight") else 0.0, np.float16)
        return (generator.standard_normal(shape, dtype=np.float32) * initial_std(config, name)).astype(np.float16)

    return ReshapedWeights({n: lambda n=n, s=s: make(n, s) for n, s in parameter_shapes(config).items()})


def new_model(preset_name: str, variant: str | None, out: Path, seed: int = 0, layers: int | None = None) -> ModelConfig:
    """Write a model folder with random weights and a card that says so."""
    config = preset(preset_name, variant, layers)
    if seed < 0:
        raise EdgeQKVError(f"seed must be 0 or more, found {seed}")
    refuse_to_replace(Path(out))
    command = (
        f"edgeqkv new {preset_name}" + (f" --variant {variant}" if variant else "") + (f" --layers {layers}" if layers else "")
    )
    card = (
        f"# {config.variant} at {preset_name}: random weights\n\n"
        f"{parameter_count(config):,} parameters, seed {seed}, written by `{command}`.\n\n"
        "**The weights are random.** This model measures memory and latency; what it writes, and any quality figure "
        "computed from it, means nothing. It has no tokenizer: drive it by token ids.\n"
    )
    write_model(out, Model(config, random_weights(config, seed), None, Text(), ""), card)
    return config
