"""What a model is: one configuration for every way of sharing attention projections and heads.

The names are the paper's (arXiv 2606.04032). Projection sharing says which of q, k and v come from one matrix; the dash
separates, it is not a minus. Head sharing says how many KV heads there are. The two are independent and multiply.
"""

import re
from dataclasses import dataclass, replace
from typing import Literal, get_args

from edgeqkv.errors import EdgeQKVError

Projections = Literal["QKV", "Q-K=V", "Q=K-V", "Q=K=V"]


@dataclass(frozen=True)
class ModelConfig:
    """A decoder-only GPT-2 style language model (pre-LayerNorm, exact GELU, biases, tied head).

    ``vocab_size`` is the number of embedding rows; ids from ``token_count`` up are padding and are never sampled
    (the paper pads GPT-2's 50257 ids to 50304 rows). ``n_positions`` is the trained context length.
    """

    projections: Projections
    n_layer: int
    n_head: int
    n_kv_head: int
    d_model: int
    d_mlp: int
    n_positions: int
    vocab_size: int
    token_count: int
    positions: Literal["learned"]
    layer_norm_eps: float

    def __post_init__(self) -> None:
        def refuse(reason: str) -> None:
            raise EdgeQKVError(reason)

        for name in ("n_layer", "n_head", "n_kv_head", "d_model", "d_mlp", "n_positions", "vocab_size", "token_count"):
            if getattr(self, name) < 1:
                refuse(f"{name} must be at least 1, found {getattr(self, name)}")
        if self.projections not in get_args(Projections):
            refuse(f"projections {self.projections!r} is not one of {', '.join(get_args(Projections))}")
        if self.d_model % self.n_head:
            refuse(f"d_model {self.d_model} is not divisible by n_head {self.n_head}")
        if self.n_head % self.n_kv_head:
            refuse(f"n_head {self.n_head} is not divisible by n_kv_head {self.n_kv_head}")
        if self.q_is_k and self.n_kv_head != self.n_head:
            refuse(f"{self.projections} shares q and k, so n_kv_head must equal n_head {self.n_head}")
        if self.token_count > self.vocab_size:
            refuse(f"token_count {self.token_count} exceeds vocab_size {self.vocab_size}")
        if not 0 < self.layer_norm_eps < 1:
            refuse(f"layer_norm_eps must lie between 0 and 1, found {self.layer_norm_eps}")

    @property
    def q_is_k(self) -> bool:
        return self.projections in ("Q=K-V", "Q=K=V")

    @property
    def v_is_k(self) -> bool:
        """True when one cached tensor serves as key and value."""
        return self.projections in ("Q-K=V", "Q=K=V")

    @property
    def head_dim(self) -> int:
        return self.d_model // self.n_head

    @property
    def kv_dim(self) -> int:
        return self.n_kv_head * self.head_dim

    @property
    def variant(self) -> str:
        """The name as the paper prints it: QKV, GQA-4, MQA, Q-K=V, Q-GQA-4, Q-MQA, Q=K-V, Q=K=V."""
        if self.n_kv_head == self.n_head:
            return self.projections
        prefix = "Q-" if self.v_is_k else ""
        return f"{prefix}MQA" if self.n_kv_head == 1 else f"{prefix}GQA-{self.n_kv_head}"


def parse_variant(name: str, n_head: int) -> tuple[Projections, int]:
    """The projection sharing and the number of KV heads behind a variant name ("Q-GQA-4" -> ("Q-K=V", 4))."""
    if name in get_args(Projections):
        return name, n_head  # type: ignore[return-value]
    match = re.fullmatch(r"(Q-)?(?:MQA|GQA-([1-9]\d*))", name)
    if match is None:
        raise EdgeQKVError(f"unknown variant {name!r}; known are QKV, GQA-g, MQA, Q-K=V, Q-GQA-g, Q-MQA, Q=K-V, Q=K=V")
    return "Q-K=V" if match[1] else "QKV", int(match[2] or 1)


def parameter_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every weight that a model folder holds, in file order.

    Linears are ``[out, in]``. A projection that another one stands in for is not there: Q-K=V has no ``attn.v``, Q=K-V no
    ``attn.q``. The output head is ``wte.weight``.
    """
    d = config.d_model
    shapes: dict[str, tuple[int, ...]] = {"wte.weight": (config.vocab_size, d), "wpe.weight": (config.n_positions, d)}

    def linear(name: str, rows: int, columns: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (rows, columns), (rows,)

    def layer_norm(name: str) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (d,), (d,)

    for i in range(config.n_layer):
        layer_norm(f"h.{i}.ln_1")
        if not config.q_is_k:
            linear(f"h.{i}.attn.q", d, d)
        linear(f"h.{i}.attn.k", config.kv_dim, d)
        if not config.v_is_k:
            linear(f"h.{i}.attn.v", config.kv_dim, d)
        linear(f"h.{i}.attn.proj", d, d)
        layer_norm(f"h.{i}.ln_2")
        linear(f"h.{i}.mlp.fc", config.d_mlp, d)
        linear(f"h.{i}.mlp.proj", d, config.d_mlp)
    layer_norm("ln_f")
    return shapes


def parameter_count(config: ModelConfig) -> int:
    total = 0
    for shape in parameter_shapes(config).values():
        total += shape[0] * (shape[1] if len(shape) == 2 else 1)
    return total


def siblings(config: ModelConfig) -> list[ModelConfig]:
    """The variants of the paper at this geometry, in its order.

    GQA has 4 KV heads up to 16 heads and 8 above, as in the paper, or as many as divide n_head; with too few heads for
    that, or for MQA, those variants are left out.
    """
    groups = 8 if config.n_head > 16 else 4
    while config.n_head % groups or groups >= config.n_head:
        groups //= 2
        if groups <= 1:
            break
    names = ["QKV", "Q-K=V", "Q=K-V", "Q=K=V"]
    if groups > 1:
        names += [f"GQA-{groups}", "MQA", f"Q-GQA-{groups}", "Q-MQA"]
    elif config.n_head > 1:
        names += ["MQA", "Q-MQA"]
    out = []
    for name in names:
        projections, n_kv_head = parse_variant(name, config.n_head)
        out.append(replace(config, projections=projections, n_kv_head=n_kv_head))
    return out
