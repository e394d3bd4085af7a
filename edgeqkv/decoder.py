"""The architecture, written once, over a small set of verbs that every target implements.

Eager PyTorch (:mod:`edgeqkv.eager`) computes with them, :mod:`edgeqkv.export.onnx` builds graph nodes with them. A verb that
takes weights gets their name in the model folder, so that a target decides how they are stored.
"""

from typing import Any, Protocol

from edgeqkv.config import ModelConfig


class Verbs(Protocol):
    """What a target provides. Tensors are the target's own: ``ids`` [1, T], activations [1, T, width]."""

    def embed(self, name: str, ids: Any) -> Any:
        """Rows of table ``name``: [1, T] -> [1, T, d_model]."""

    def embed_positions(self, name: str, ids: Any) -> Any:
        """Rows of table ``name`` for the positions that ``ids`` take, which the target knows."""

    def layer_norm(self, x: Any, name: str) -> Any: ...

    def linear(self, x: Any, name: str) -> Any: ...

    def gelu(self, x: Any) -> Any:
        """Exact (erf) GELU."""

    def add(self, x: Any, y: Any) -> Any: ...

    def attend(self, q: Any, k: Any, v: Any, layer: int) -> Any:
        """Append k and v to the layer's cache, then causal softmax(q kᵀ / sqrt(head_dim)) v over what it holds.

        q is [1, T, d_model]; k and v are [1, T, kv_dim]. When ``v is k`` the cache is one tensor, read as both: K-only
        lives here and in :mod:`edgeqkv.cache`, nowhere else.
        """

    def last_token(self, x: Any) -> Any:
        """[1, T, d_model] -> [1, 1, d_model]."""

    def logits(self, x: Any, name: str) -> Any:
        """x times the transposed table ``name`` (the tied head); ids from ``token_count`` up get -inf."""


def decoder(verbs: Verbs, config: ModelConfig, ids: Any, every_position: bool = False) -> Any:
    """Logits of the last position, [1, 1, vocab_size], or of every position, [1, T, vocab_size]."""
    x = verbs.add(verbs.embed("wte", ids), verbs.embed_positions("wpe", ids))
    for layer in range(config.n_layer):
        block = f"h.{layer}"
        a = verbs.layer_norm(x, f"{block}.ln_1")
        k = verbs.linear(a, f"{block}.attn.k")
        q = k if config.q_is_k else verbs.linear(a, f"{block}.attn.q")
        v = k if config.v_is_k else verbs.linear(a, f"{block}.attn.v")
        x = verbs.add(x, verbs.linear(verbs.attend(q, k, v, layer), f"{block}.attn.proj"))
        m = verbs.linear(verbs.layer_norm(x, f"{block}.ln_2"), f"{block}.mlp.fc")
        x = verbs.add(x, verbs.linear(verbs.gelu(m), f"{block}.mlp.proj"))
    x = verbs.layer_norm(x, "ln_f")
    return verbs.logits(x if every_position else verbs.last_token(x), "wte")
