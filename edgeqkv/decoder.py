"""The architecture, written once, over a small set of verbs that every target implements.

Eager PyTorch (:mod:`edgeqkv.eager`) computes with them, the exporters build graphs with them, and :mod:`edgeqkv.parameters`
records with them which weights a model has. A verb that takes weights gets their name in the model folder, so that a target
decides how they are stored.
"""

from typing import Any, Protocol

from edgeqkv.config import LatentAttention, ModelConfig, Rotary, SharedAttention


class Verbs(Protocol):
    """What a target provides. Tensors are the target's own: ``ids`` [1, T], activations [1, T, width].

    Where a verb works on heads, the channels of one head lie side by side: [1, T, n_head * channels].
    """

    def embed(self, name: str, ids: Any) -> Any:
        """Rows of table ``name`` [vocab_size, d_model]: [1, T] -> [1, T, d_model]."""

    def embed_positions(self, name: str, ids: Any) -> Any:
        """Rows of table ``name`` [n_positions, d_model] for the positions that ``ids`` take, which the target knows."""

    def norm(self, x: Any, name: str, eps: float) -> Any:
        """The configuration's norm over the channels: LayerNorm (weight and bias) or RMSNorm (weight)."""

    def head_norm(self, x: Any, name: str, n_head: int, eps: float) -> Any:
        """The same over the channels of each head, with one weight for all heads."""

    def linear(self, x: Any, name: str, width: int, bias: bool) -> Any:
        """x times the transpose of the weight [width, width of x]."""

    def head_linear(self, x: Any, name: str, n_head: int, width: int) -> Any:
        """Each head's channels times the transpose of its own matrix, of the weight [n_head, width, channels]."""

    def gelu(self, x: Any) -> Any:
        """Exact (erf) GELU."""

    def swiglu(self, gate: Any, x: Any) -> Any:
        """silu(gate) * x (Shazeer, arXiv 2002.05202)."""

    def add(self, x: Any, y: Any) -> Any: ...

    def scale(self, x: Any, factor: float) -> Any: ...

    def turn(self, x: Any, n_head: int, back: bool = False) -> Any:
        """Rotary positions: the first ``positions.dim`` channels of each head, by each token's position, or back by it."""

    def channels(self, x: Any, n_head: int, start: int, stop: int) -> Any:
        """Channels ``start`` .. ``stop - 1`` of each head."""

    def join(self, parts: list[Any], n_head: int) -> Any:
        """The channels of each head of all parts, one part behind the other."""

    def repeat(self, x: Any, n_head: int) -> Any:
        """One head's channels for each of ``n_head`` heads."""

    def attend(self, q: Any, k: Any, v: Any | None, layer: int) -> Any:
        """Append k (and v) to the layer's cache, then causal softmax(q Kᵀ * softmax_scale) V over what it holds.

        ``config.row`` says how: q is [1, T, heads * key width], k and v are rows [1, T, kv_heads * width]. Without v the value
        is a slice of the row of k: K-only lives here and in :mod:`edgeqkv.cache`, nowhere else. [1, T, heads * value width].
        """

    def attend_latent(self, q_nope: Any, q_rope: Any, row: Any, name: str, layer: int) -> Any:
        """Latent attention over the cached rows, absorbed: what :func:`absorbed` does, by which a target that has no operator
        for all of it does it. q_nope [1, T, heads * nope_dim], q_rope likewise, row [1, T, kv_rank + rope_dim]; ``name`` is the
        attention's, with its weights k_b and v_b. [1, T, heads * value_dim]."""

    def last_token(self, x: Any) -> Any:
        """[1, T, d_model] -> [1, 1, d_model]."""

    def logits(self, x: Any, name: str) -> Any:
        """x times the transposed table ``name`` [vocab_size, d_model]; ids from ``token_count`` up get -inf."""


def decoder(verbs: Verbs, config: ModelConfig, ids: Any, every_position: bool = False) -> Any:
    """Logits of the last position, [1, 1, vocab_size], or of every position, [1, T, vocab_size]."""
    eps, attend = config.norm.eps, shared_attention if isinstance(config.attention, SharedAttention) else latent_attention
    x = verbs.scale(verbs.embed("wte", ids), config.embedding_scale)
    if not isinstance(config.positions, Rotary):
        x = verbs.add(x, verbs.embed_positions("wpe", ids))
    for layer in range(config.n_layer):
        block = f"h.{layer}"
        attended = attend(verbs, config, verbs.norm(x, f"{block}.ln_1", eps), layer)
        x = verbs.add(x, verbs.scale(attended, config.residual_scale))
        mapped = mlp(verbs, config, verbs.norm(x, f"{block}.ln_2", eps), f"{block}.mlp")
        x = verbs.add(x, verbs.scale(mapped, config.residual_scale))
    x = verbs.norm(x, "ln_f", eps)
    x = verbs.scale(x if every_position else verbs.last_token(x), config.head.scale)
    return verbs.logits(x, "wte" if config.head.tied else "head")


def shared_attention(verbs: Verbs, config: ModelConfig, x: Any, layer: int) -> Any:
    """QKV and its relatives: which projections exist is the variant."""
    c, positions, name = config.attention, config.positions, f"h.{layer}.attn"
    assert isinstance(c, SharedAttention)
    q = None if c.q_is_k else verbs.linear(x, f"{name}.q", c.n_head * c.head_dim, c.bias)
    k = verbs.linear(x, f"{name}.k", c.n_kv_head * c.head_dim, c.bias)
    v = None if c.v_is_k else verbs.linear(x, f"{name}.v", c.n_kv_head * c.head_dim, c.bias)
    if c.qk_norm:
        q = None if q is None else verbs.head_norm(q, f"{name}.q_norm", c.n_head, config.norm.eps)
        k = verbs.head_norm(k, f"{name}.k_norm", c.n_kv_head, config.norm.eps)
    turned_value = False
    if isinstance(positions, Rotary):
        turned, turned_value = verbs.turn(k, c.n_kv_head), c.v_is_k and positions.value == "turned"
        q = turned if q is None else verbs.turn(q, c.n_head)
        if c.v_is_k and not turned_value:
            turned = verbs.join([turned, verbs.channels(k, c.n_kv_head, 0, positions.dim)], c.n_kv_head)
        k = turned
    out = verbs.attend(k if q is None else q, k, v, layer)
    if turned_value:
        out = verbs.turn(out, c.n_head, back=True)
    return verbs.linear(out, f"{name}.proj", config.d_model, c.out_bias)


def latent_attention(verbs: Verbs, config: ModelConfig, x: Any, layer: int) -> Any:
    """MLA (DeepSeek-V2, arXiv 2405.04434, appendix C): over the latent row, or over K and V of every head."""
    c, heads, name = config.attention, config.row.heads, f"h.{layer}.attn"
    assert isinstance(c, LatentAttention)
    latent = verbs.norm(verbs.linear(x, f"{name}.kv_a", c.kv_rank, c.bias), f"{name}.kv_norm", c.norm_eps)
    k_rope = verbs.turn(verbs.linear(x, f"{name}.k_rope", c.rope_dim, c.bias), 1)
    if c.q_rank is not None:
        x = verbs.norm(verbs.linear(x, f"{name}.q_a", c.q_rank, c.bias), f"{name}.q_norm", c.norm_eps)
    q_nope = verbs.linear(x, f"{name}.q_nope", heads * c.nope_dim, bias=False)
    q_rope = verbs.turn(verbs.linear(x, f"{name}.q_rope", heads * c.rope_dim, bias=False), heads)
    if c.form == "absorbed":
        out = verbs.attend_latent(q_nope, q_rope, verbs.join([latent, k_rope], 1), name, layer)
    else:
        k_nope = verbs.linear(latent, f"{name}.k_b", heads * c.nope_dim, bias=False)
        k = verbs.join([k_nope, verbs.repeat(k_rope, heads)], heads)
        v = verbs.linear(latent, f"{name}.v_b", heads * c.value_dim, bias=False)
        out = verbs.attend(verbs.join([q_nope, q_rope], heads), k, v, layer)
    return verbs.linear(out, f"{name}.proj", config.d_model, c.bias)


def absorbed(verbs: Verbs, config: ModelConfig, q_nope: Any, q_rope: Any, row: Any, name: str, layer: int) -> Any:
    """Latent attention of one row for all heads: W_K turns their queries into queries of latents, W_V latents into values."""
    c, heads = config.attention, config.row.heads
    assert isinstance(c, LatentAttention)
    q = verbs.join([verbs.head_linear(q_nope, f"{name}.k_b", heads, c.kv_rank), q_rope], heads)
    return verbs.head_linear(verbs.attend(q, row, None, layer), f"{name}.v_b", heads, c.value_dim)


def mlp(verbs: Verbs, config: ModelConfig, x: Any, name: str) -> Any:
    c = config.mlp
    hidden = verbs.linear(x, f"{name}.fc", c.width, c.bias)
    gated = c.kind == "swiglu"
    hidden = verbs.swiglu(verbs.linear(x, f"{name}.gate", c.width, c.bias), hidden) if gated else verbs.gelu(hidden)
    return verbs.linear(hidden, f"{name}.proj", config.d_model, c.bias)
