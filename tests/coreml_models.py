"""Small random models whose rows Core ML's states take: the paper's variants, and one of each block that a decoder may have."""

from typing import Any

import numpy as np
from msgspec.structs import replace

from edgeqkv.config import (
    MLP,
    FactorScaling,
    Head,
    LatentAttention,
    Learned,
    Llama3Scaling,
    ModelConfig,
    Norm,
    Rotary,
    SharedAttention,
    with_variant,
)
from edgeqkv.model_folder import Model
from edgeqkv.parameters import parameter_shapes
from edgeqkv.text import Text

PAPER = ModelConfig(
    n_layer=2,
    d_model=128,
    n_positions=64,
    vocab_size=320,
    token_count=300,
    embedding_scale=1.0,
    residual_scale=1.0,
    positions=Learned(),
    norm=Norm(kind="layer_norm", eps=1e-5),
    attention=SharedAttention(projections="QKV", n_head=4, n_kv_head=4, head_dim=32, bias=True, out_bias=True, qk_norm=False),
    mlp=MLP(kind="gelu", width=128, bias=True),
    head=Head(tied=True, scale=1.0),
)
LLAMA = replace(
    PAPER,
    d_model=72,
    norm=Norm(kind="rms_norm", eps=1e-6),
    mlp=MLP(kind="swiglu", width=136, bias=False),
    positions=Rotary(theta=1e4, dim=32, pairs="halves", scaling=None, value="unturned"),
)


def variant(name: str, **changes: Any) -> ModelConfig:
    return replace(with_variant(PAPER, name), **changes)


def shared(projections: str, n_head: int, n_kv_head: int, head_dim: int = 32, **changes: Any) -> SharedAttention:
    fields = {"bias": False, "out_bias": False, "qk_norm": False} | changes
    return SharedAttention(projections=projections, n_head=n_head, n_kv_head=n_kv_head, head_dim=head_dim, **fields)


def turned(**changes: Any) -> Rotary:
    return replace(LLAMA.positions, **changes)


def latent(form: str = "absorbed", **changes: Any) -> LatentAttention:
    sizes = {"n_head": 4, "q_rank": 40, "kv_rank": 48, "nope_dim": 24, "rope_dim": 16, "value_dim": 32, "bias": False} | changes
    return LatentAttention(form=form, norm_eps=1e-6, softmax_scale=(sizes["nope_dim"] + sizes["rope_dim"]) ** -0.5, **sizes)


LLAMA3 = Llama3Scaling(factor=8.0, low=1.0, high=4.0, original_positions=32)
FACTORS = FactorScaling(factors=tuple(1 + i / 10 for i in range(16)))
# By what is special about it; odd sizes wherever a state does not ask for a multiple of 32.
BLOCKS: dict[str, ModelConfig] = {
    "llama3": replace(LLAMA, attention=shared("QKV", 6, 2), positions=turned(scaling=LLAMA3)),
    "qwen2 bias": replace(LLAMA, attention=shared("QKV", 4, 2, bias=True)),
    "qwen3 qk_norm untied": replace(LLAMA, attention=shared("QKV", 5, 1, qk_norm=True), head=Head(tied=False, scale=1.0)),
    "layer_norm on heads": replace(PAPER, attention=shared("QKV", 5, 1, qk_norm=True), positions=turned()),
    "partial interleaved": replace(LLAMA, attention=shared("QKV", 4, 2), positions=turned(dim=20, pairs="interleaved")),
    "value unturned": replace(LLAMA, attention=shared("Q-K=V", 4, 2)),
    "value unturned, partial": replace(
        LLAMA, attention=shared("Q-K=V", 7, 1, 48), positions=turned(dim=16, pairs="interleaved")
    ),
    "value turned": replace(LLAMA, attention=shared("Q-K=V", 7, 1), positions=turned(value="turned")),
    "value turned, partial": replace(
        LLAMA, attention=shared("Q-K=V", 4, 4, 64), positions=turned(value="turned", pairs="interleaved")
    ),
    "one matrix": replace(LLAMA, attention=shared("Q=K=V", 4, 4), positions=turned(value="turned")),
    "MLA": replace(LLAMA, attention=latent(), positions=turned(dim=16, pairs="interleaved")),
    "MLA bias untied": replace(LLAMA, attention=latent(bias=True), positions=turned(dim=16), head=Head(tied=False, scale=1.0)),
    "MLA scales": replace(
        LLAMA,
        attention=latent(n_head=7, q_rank=None, kv_rank=64, rope_dim=32, nope_dim=16),
        positions=turned(scaling=FACTORS),
        embedding_scale=12.0,
        residual_scale=1.4 * 62**-0.5,
        head=Head(tied=True, scale=0.1),
    ),
    "MLA expanded": replace(
        LLAMA,
        attention=latent("expanded", kv_rank=56, nope_dim=48, rope_dim=16),
        positions=turned(dim=16, pairs="interleaved"),
    ),
}


def weights(config: ModelConfig, seed: int = 0) -> dict[str, np.ndarray]:
    """Matrices that keep the size of what they multiply, norms around 1."""
    generator = np.random.default_rng(seed)

    def made(name: str, shape: tuple[int, ...]) -> np.ndarray:
        drawn = generator.standard_normal(shape)
        if len(shape) > 1:
            return drawn * shape[-1] ** -0.5
        return drawn * 0.1 + (1 if name.endswith("weight") else 0)

    return {name: made(name, shape).astype(np.float32) for name, shape in parameter_shapes(config).items()}


def model(config: ModelConfig, seed: int = 0) -> Model:
    return Model(config=config, weights=weights(config, seed), tokenizer=None, text=Text(), sha256="0" * 64)
