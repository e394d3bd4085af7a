"""Rotary positions as config.json says them: ``rope_parameters`` (transformers 5), or ``rope_theta`` and ``rope_scaling``."""

import math
from typing import Annotated, Any

from msgspec import Meta

from edgeqkv.config import Factor, FactorScaling, Llama3Scaling, Rotary, Size, refuse
from edgeqkv.strict import Strict, from_json

DEFAULT_THETA = 10_000.0  # where nothing says it


class Default(Strict, frozen=True, kw_only=True):
    """What all types may say. A ``partial_rotary_factor`` other than 1 is in none of the model types that are read."""

    rope_theta: Factor = DEFAULT_THETA
    partial_rotary_factor: Annotated[float, Meta(ge=1, le=1)] | None = None

    def positions(self, dim: int, n_positions: int) -> tuple[Rotary, int]:
        """How ``dim`` channels are turned, and for how many of ``n_positions``."""
        return self.rotary(dim, None), n_positions

    def rotary(self, dim: int, scaling: Llama3Scaling | FactorScaling | None) -> Rotary:
        return Rotary(theta=self.rope_theta, dim=dim, pairs="halves", scaling=scaling, value="unturned")


class Llama3(Default, frozen=True, kw_only=True):
    factor: Factor
    low_freq_factor: Factor
    high_freq_factor: Factor
    original_max_position_embeddings: Size | None = None

    def positions(self, dim: int, n_positions: int) -> tuple[Rotary, int]:
        if self.high_freq_factor <= self.low_freq_factor:
            refuse(f"high_freq_factor {self.high_freq_factor} does not exceed low_freq_factor {self.low_freq_factor}")
        scaling = Llama3Scaling(
            factor=self.factor,
            low=self.low_freq_factor,
            high=self.high_freq_factor,
            original_positions=self.original_max_position_embeddings or n_positions,
        )
        return self.rotary(dim, scaling), n_positions


class LongRope(Default, frozen=True, kw_only=True):
    """LongRoPE (Ding et al., arXiv 2402.13753): a divisor for each frequency, with other divisors for a text that is longer
    than the original context, and an attention factor on cosines and sines, which grows with the context."""

    short_factor: tuple[Factor, ...]
    long_factor: tuple[Factor, ...]
    original_max_position_embeddings: Annotated[int, Meta(ge=2, le=2**31 - 1)]
    factor: Factor | None = None
    attention_factor: Factor | None = None

    def positions(self, dim: int, n_positions: int) -> tuple[Rotary, int]:
        original = self.original_max_position_embeddings
        stretched = max(1.0, self.factor or n_positions / original)
        on_attention = self.attention_factor or math.sqrt(1 + math.log(stretched) / math.log(original))
        if on_attention != 1:
            refuse(f"longrope with an attention factor of {on_attention:.6g} is not supported, only 1")
        if self.short_factor != self.long_factor:
            # Beyond the original context every position would be turned anew, those in the cache too.
            n_positions = min(n_positions, original)
        return self.rotary(dim, FactorScaling(factors=self.short_factor)), n_positions


ROPE_TYPES: dict[str, type[Default]] = {"default": Default, "llama3": Llama3, "longrope": LongRope}


def positions_of(
    parameters: dict[str, Any] | None, scaling: dict[str, Any] | None, theta: float | None, dim: int, n_positions: int
) -> tuple[Rotary, int]:
    """The positions that ``rope_parameters``, ``rope_scaling`` and ``rope_theta`` say together, of ``dim`` channels."""
    if parameters and scaling and parameters != scaling:
        refuse("rope_parameters and rope_scaling contradict each other")
    name = "rope_parameters" if parameters else "rope_scaling"
    found = {key: value for key, value in (parameters or scaling or {}).items() if value is not None}
    kinds = {found.pop(key) for key in ("rope_type", "type") if isinstance(found.get(key), str)}  # "type" is the older name
    if len(kinds) > 1:
        refuse(f"{name}: rope_type and type contradict each other")
    kind = kinds.pop() if kinds else "default"
    if kind not in ROPE_TYPES:
        refuse(f"{name}: rope_type {kind!r} is not supported, only {', '.join(ROPE_TYPES)}")
    if theta is not None and found.setdefault("rope_theta", theta) != theta:
        refuse(f"rope_theta {theta} and {name}.rope_theta {found['rope_theta']} contradict each other")
    return from_json(ROPE_TYPES[kind], found, name).positions(dim, n_positions)
