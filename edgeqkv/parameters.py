"""Which weights a model has: derived by running the decoder with verbs that record, never listed a second time."""

import math
from typing import Any, cast

from msgspec.structs import replace

from edgeqkv.config import ModelConfig
from edgeqkv.decoder import absorbed, decoder

Shapes = dict[str, tuple[int, ...]]


class RecordingVerbs:
    """Tensors are their widths; ``shapes`` gathers name and shape of every weight in the order of use."""

    def __init__(self, config: ModelConfig) -> None:
        self.config = config
        self.shapes: Shapes = {}

    def embed(self, name: str, ids: Any) -> int:
        self.shapes[f"{name}.weight"] = (self.config.vocab_size, self.config.d_model)
        return self.config.d_model

    def embed_positions(self, name: str, ids: Any) -> int:
        self.shapes[f"{name}.weight"] = (self.config.n_positions, self.config.d_model)
        return self.config.d_model

    def norm(self, x: int, name: str, eps: float) -> int:
        self.shapes[f"{name}.weight"] = (x,)
        if self.config.norm.kind == "layer_norm":
            self.shapes[f"{name}.bias"] = (x,)
        return x

    def head_norm(self, x: int, name: str, n_head: int, eps: float) -> int:
        self.norm(x // n_head, name, eps)
        return x

    def linear(self, x: int, name: str, width: int, bias: bool) -> int:
        self.shapes[f"{name}.weight"] = (width, x)
        if bias:
            self.shapes[f"{name}.bias"] = (width,)
        return width

    def head_linear(self, x: int, name: str, n_head: int, width: int) -> int:
        self.shapes[f"{name}.weight"] = (n_head, width, x // n_head)
        return n_head * width

    def gelu(self, x: int) -> int:
        return x

    def swiglu(self, gate: int, x: int) -> int:
        return x

    def add(self, x: int, y: int) -> int:
        return x

    def scale(self, x: int, factor: float) -> int:
        return x

    def turn(self, x: int, n_head: int, back: bool = False) -> int:
        return x

    def channels(self, x: int, n_head: int, start: int, stop: int) -> int:
        return n_head * (stop - start)

    def join(self, parts: list[int], n_head: int) -> int:
        return sum(parts)

    def repeat(self, x: int, n_head: int) -> int:
        return n_head * x

    def attend(self, q: int, k: int, v: int | None, layer: int) -> int:
        return self.config.row.heads * self.config.row.value.width

    def attend_latent(self, q_nope: int, q_rope: int, row: int, name: str, layer: int) -> int:
        return cast(int, absorbed(self, self.config, q_nope, q_rope, row, name, layer))

    def last_token(self, x: int) -> int:
        return x

    def logits(self, x: int, name: str) -> int:
        self.shapes.setdefault(f"{name}.weight", (self.config.vocab_size, self.config.d_model))
        return self.config.vocab_size


def parameter_shapes(config: ModelConfig) -> Shapes:
    """Name and shape of every weight that a model folder holds, in file order.

    Linears are ``[out, in]``, the per-head products of MLA ``[n_head, out, in]``. A projection that another one stands in for
    is not there: Q-K=V has no ``attn.v``, Q=K-V no ``attn.q``. A tied output head is ``wte.weight``.
    """
    verbs = RecordingVerbs(config)
    decoder(verbs, config, None)
    return verbs.shapes


def parameter_count(config: ModelConfig) -> int:
    """Of all weights together. One layer is recorded and multiplied: ``n_layer`` may come from a stranger's file."""
    one = sum(map(math.prod, parameter_shapes(replace(config, n_layer=1)).values()))
    two = sum(map(math.prod, parameter_shapes(replace(config, n_layer=2)).values()))
    return one + (config.n_layer - 1) * (two - one)


def initial_std(config: ModelConfig, name: str) -> float:
    """Standard deviation of a matrix in GPT-2's initialisation: 0.02, and less by depth for what is added to the residual."""
    return 0.02 / math.sqrt(2 * config.n_layer) if name.endswith("proj.weight") else 0.02
