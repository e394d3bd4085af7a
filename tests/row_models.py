"""Tiny models of every kind of cached row, by name: what a target is tried with beside the paper's variants."""

from edgeqkv.config import (
    MLP,
    Head,
    LatentAttention,
    Llama3Scaling,
    ModelConfig,
    Norm,
    Rotary,
    SharedAttention,
)


def _model(
    attention: SharedAttention | LatentAttention, positions: Rotary, tied: bool = True, scale: float = 1.0
) -> ModelConfig:
    return ModelConfig(
        n_layer=2,
        d_model=64,
        n_positions=64,
        vocab_size=320,
        token_count=300,
        embedding_scale=2 * scale,
        residual_scale=0.5 * scale,
        positions=positions,
        norm=Norm(kind="rms_norm", eps=1e-5),
        attention=attention,
        mlp=MLP(kind="swiglu", width=160, bias=False),
        head=Head(tied=tied, scale=scale),
    )


def _latent(form: str) -> LatentAttention:
    return LatentAttention(
        form=form,  # type: ignore[arg-type]
        n_head=4,
        q_rank=48,
        kv_rank=64,
        nope_dim=32,
        rope_dim=16,
        value_dim=32,
        bias=False,
        norm_eps=1e-6,
        softmax_scale=48**-0.5,
    )


def _shared(projections: str, n_head: int, n_kv_head: int, head_dim: int, qk_norm: bool = False) -> SharedAttention:
    return SharedAttention(
        projections=projections,  # type: ignore[arg-type]
        n_head=n_head,
        n_kv_head=n_kv_head,
        head_dim=head_dim,
        bias=qk_norm,
        out_bias=False,
        qk_norm=qk_norm,
    )


def _rotary(dim: int, pairs: str = "halves", value: str = "unturned", scaling: Llama3Scaling | None = None) -> Rotary:
    return Rotary(theta=1e4, dim=dim, pairs=pairs, scaling=scaling, value=value)  # type: ignore[arg-type]


ROW_MODELS = {
    # One row, of which the value is the first part; interleaved pairs, scales of embedding, residuals and logits.
    "MLA": _model(_latent("absorbed"), _rotary(16, "interleaved"), scale=0.5),
    # Two tensors of different widths.
    "MLA expanded": _model(_latent("expanded"), _rotary(16)),
    # Two tensors; 7 heads on 1 whose width is not d_model / heads, norms of q and k, biases, an untied head, llama3's scaling.
    "GQA": _model(
        _shared("QKV", 7, 1, 24, qk_norm=True),
        _rotary(24, scaling=Llama3Scaling(factor=8.0, low=1.0, high=4.0, original_positions=16)),
        tied=False,
    ),
    # turned | plain | unturned: the value is the last part.
    "Q-K=V unturned": _model(_shared("Q-K=V", 4, 2, 32), _rotary(8, "interleaved")),
    # The turned key is the value, and the output is turned back.
    "Q-K=V turned": _model(_shared("Q-K=V", 4, 1, 16), _rotary(16, value="turned")),
}
