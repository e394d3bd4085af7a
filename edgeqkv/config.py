"""What a model is: a configuration nested by block (attention, positions, norm, MLP, head), every field explicit.

Variant names are the paper's (arXiv 2606.04032). Projection sharing says which of q, k and v come from one matrix; the dash
separates, it is not a minus. Head sharing says how many KV heads there are. The two are independent and multiply.
"""

import re
from dataclasses import dataclass
from typing import Annotated, Literal, NoReturn, get_args

from msgspec import Meta, to_builtins
from msgspec.structs import replace

from edgeqkv import limits
from edgeqkv.errors import EdgeQKVError
from edgeqkv.strict import Strict, from_json

# The format of config.json.
#   1  flat, GPT-2's architecture alone; without the field "format". Read by edgeqkv.older.
#   2  nested by block: free head_dim, biases, rotary positions, RMSNorm, SwiGLU, untied heads, scales, latent attention.
CONFIG_FORMAT = 2

Projections = Literal["QKV", "Q-K=V", "Q=K-V", "Q=K=V"]
Size = Annotated[int, Meta(ge=1, le=2**31 - 1)]
Layers = Annotated[int, Meta(ge=1, le=limits.LAYERS)]
Positions = Annotated[int, Meta(ge=1, le=limits.POSITIONS)]
Ids = Annotated[int, Meta(ge=1, le=limits.IDS)]
Epsilon = Annotated[float, Meta(gt=0, lt=1)]
Factor = Annotated[float, Meta(gt=0, lt=1e30)]


class Block(Strict, frozen=True, kw_only=True):
    """One part of a configuration. Where there is a choice, ``kind`` says which."""


class Slice(Strict, frozen=True):
    """Channels ``start`` .. ``stop - 1`` of a cached row of ``tensor``."""

    tensor: str
    start: int
    stop: int

    @property
    def width(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class Row:
    """What a layer caches for one token and KV head, and how attention reads it.

    ``widths`` maps each cached tensor to the channels of its rows: one tensor where the value is read from the key's row, else
    ``k`` and ``v``. ``key`` begins at channel 0. ``heads`` query heads share the rows of ``kv_heads``. Scores are scaled by
    ``softmax_scale``.
    """

    heads: int
    kv_heads: int
    widths: dict[str, int]
    key: Slice
    value: Slice
    softmax_scale: float

    @property
    def group(self) -> int:
        """Query heads that read one KV head."""
        return self.heads // self.kv_heads

    @property
    def k_only(self) -> bool:
        """One cached tensor serves as key and value."""
        return self.key.tensor == self.value.tensor

    @property
    def scale_split(self) -> int:
        """The channel at which a row is cut into two parts that may have an int8 scale each, 0 where it is one part: channels
        behind the value's end (MLA's rotary part) are of another size than the value."""
        return self.value.stop if self.k_only and self.value.stop < self.widths["k"] else 0


def _one_tensor(width: int, key: int, value_start: int, value: int) -> tuple[dict[str, int], Slice, Slice]:
    return {"k": width}, Slice("k", 0, key), Slice("k", value_start, value_start + value)


def _two_tensors(key: int, value: int) -> tuple[dict[str, int], Slice, Slice]:
    return {"k": key, "v": value}, Slice("k", 0, key), Slice("v", 0, value)


# -- positions ----------------------------------------------------------------------------------------------------


class Learned(Block, frozen=True, tag="learned", tag_field="kind"):
    """A trained embedding for each of ``n_positions`` positions, added to the token's."""


class Llama3Scaling(Block, frozen=True, tag="llama3", tag_field="kind"):
    """Llama 3.1's change of the frequencies: wavelengths beyond ``original_positions / low`` are stretched by ``factor``, those
    below ``original_positions / high`` stay, and between them it is interpolated."""

    factor: Factor
    low: Factor
    high: Factor
    original_positions: Size


class FactorScaling(Block, frozen=True, tag="factors", tag_field="kind"):
    """Each frequency divided by its factor (LongRoPE within one range of lengths)."""

    factors: tuple[Factor, ...]


class Rotary(Block, frozen=True, tag="rotary", tag_field="kind"):
    """Rotary position embedding (Su et al., arXiv 2104.09864) of the first ``dim`` channels of each head.

    ``pairs``: channel i is turned with i + dim / 2 ("halves") or with its neighbour ("interleaved"). ``value`` matters where
    key and value come from one matrix: "unturned" is the value before rotation, so that a row holds both parts of what is
    turned (turned ‖ plain ‖ unturned; the value reads its channels in the order plain ‖ unturned); "turned" takes the turned
    key as value and turns the output back by the query's position.
    """

    theta: Factor
    dim: Size
    pairs: Literal["halves", "interleaved"]
    scaling: Llama3Scaling | FactorScaling | None
    value: Literal["unturned", "turned"]

    def __post_init__(self) -> None:
        if self.dim % 2:
            refuse(f"positions.dim {self.dim} is odd; rotary positions turn pairs of channels")
        if isinstance(self.scaling, FactorScaling) and len(self.scaling.factors) != self.dim // 2:
            refuse(f"positions.scaling has {len(self.scaling.factors)} factors for {self.dim // 2} pairs of channels")


# -- attention ----------------------------------------------------------------------------------------------------


class SharedAttention(Block, frozen=True, tag="shared", tag_field="kind"):
    """Multi-head attention whose projections and heads may be shared: QKV, GQA, MQA, Q-K=V and their relatives.

    ``bias`` is of q, k and v, ``out_bias`` of the output projection. ``qk_norm`` is a norm over the channels of each head of q
    and k, before they are turned (Qwen 3).
    """

    projections: Projections
    n_head: Size
    n_kv_head: Size
    head_dim: Size
    bias: bool
    out_bias: bool
    qk_norm: bool

    def __post_init__(self) -> None:
        if self.n_head % self.n_kv_head:
            refuse(f"n_head {self.n_head} is not divisible by n_kv_head {self.n_kv_head}")
        if self.q_is_k and self.n_kv_head != self.n_head:
            refuse(f"{self.projections} shares q and k, so n_kv_head must equal n_head {self.n_head}")

    @property
    def q_is_k(self) -> bool:
        return self.projections in ("Q=K-V", "Q=K=V")

    @property
    def v_is_k(self) -> bool:
        """True when one matrix makes key and value."""
        return self.projections in ("Q-K=V", "Q=K=V")

    @property
    def variant(self) -> str:
        """The name as the paper prints it: QKV, GQA-4, MQA, Q-K=V, Q-GQA-4, Q-MQA, Q=K-V, Q=K=V."""
        if self.n_kv_head == self.n_head:
            return self.projections
        prefix = "Q-" if self.v_is_k else ""
        return f"{prefix}MQA" if self.n_kv_head == 1 else f"{prefix}GQA-{self.n_kv_head}"

    def row(self, positions: Learned | Rotary) -> Row:
        dim = self.head_dim
        if not self.v_is_k:
            tensors = _two_tensors(dim, dim)
        elif isinstance(positions, Rotary) and positions.value == "unturned":
            tensors = _one_tensor(dim + positions.dim, dim, positions.dim, dim)
        else:
            tensors = _one_tensor(dim, dim, 0, dim)
        return Row(self.n_head, self.n_kv_head, *tensors, softmax_scale=dim**-0.5)


class LatentAttention(Block, frozen=True, tag="latent", tag_field="kind"):
    """Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434).

    Keys and values of all heads are products of one latent of ``kv_rank`` channels; ``rope_dim`` more channels carry the
    position. "absorbed" caches that row alone, with W_K moved to the query and W_V to the output; "expanded" caches K and V of
    every head, as other runtimes do: the baseline. ``q_rank`` is the rank of the query's product, null where it is one matrix.
    ``bias`` is of the first products and of the output; ``norm_eps`` of the norms of the latents.
    """

    form: Literal["absorbed", "expanded"]
    n_head: Size
    q_rank: Size | None
    kv_rank: Size
    nope_dim: Size
    rope_dim: Size
    value_dim: Size
    bias: bool
    norm_eps: Epsilon
    softmax_scale: Factor

    @property
    def variant(self) -> str:
        return "MLA" if self.form == "absorbed" else "MLA expanded"

    def row(self, positions: Learned | Rotary) -> Row:
        if self.form == "absorbed":
            tensors = _one_tensor(self.kv_rank + self.rope_dim, self.kv_rank + self.rope_dim, 0, self.kv_rank)
            return Row(self.n_head, 1, *tensors, softmax_scale=self.softmax_scale)
        tensors = _two_tensors(self.nope_dim + self.rope_dim, self.value_dim)
        return Row(self.n_head, self.n_head, *tensors, softmax_scale=self.softmax_scale)


# -- the other blocks ---------------------------------------------------------------------------------------------


class Norm(Block, frozen=True):
    """``layer_norm`` has a bias, ``rms_norm`` has none."""

    kind: Literal["layer_norm", "rms_norm"]
    eps: Epsilon


class MLP(Block, frozen=True):
    """``gelu``: down(gelu(up(x))), exact (erf). ``swiglu``: down(silu(gate(x)) * up(x))."""

    kind: Literal["gelu", "swiglu"]
    width: Size
    bias: bool


class Head(Block, frozen=True):
    """``tied`` uses the token embedding's table. The hidden state is multiplied by ``scale`` first."""

    tied: bool
    scale: Factor


class ModelConfig(Block, frozen=True):
    """A decoder-only language model: pre-norm blocks of attention and MLP.

    ``vocab_size`` is the number of embedding rows; ids from ``token_count`` up are padding and are never sampled (the paper
    pads GPT-2's 50257 ids to 50304 rows). ``n_positions`` is the trained context length. Embeddings are multiplied by
    ``embedding_scale``, what each block adds to the residual stream by ``residual_scale``.
    """

    n_layer: Layers
    d_model: Size
    n_positions: Positions
    vocab_size: Ids
    token_count: Ids
    embedding_scale: Factor
    residual_scale: Factor
    positions: Learned | Rotary
    norm: Norm
    attention: SharedAttention | LatentAttention
    mlp: MLP
    head: Head

    def __post_init__(self) -> None:
        if self.token_count > self.vocab_size:
            refuse(f"token_count {self.token_count} exceeds vocab_size {self.vocab_size}")
        if isinstance(self.attention, LatentAttention):
            if not isinstance(self.positions, Rotary) or self.positions.dim != self.attention.rope_dim:
                refuse(f"latent attention needs rotary positions of rope_dim {self.attention.rope_dim} channels")
        elif isinstance(self.positions, Rotary) and self.positions.dim > self.attention.head_dim:
            refuse(f"positions.dim {self.positions.dim} exceeds head_dim {self.attention.head_dim}")

    @property
    def variant(self) -> str:
        """The attention's name: QKV, GQA-4, Q-MQA, ..., MLA, MLA expanded."""
        return self.attention.variant

    @property
    def row(self) -> Row:
        return self.attention.row(self.positions)


def checked(config: ModelConfig, where: str) -> ModelConfig:
    """The same, if every number is within its bounds: msgspec looks at those of what it reads, not of what is put together."""
    return from_json(ModelConfig, to_builtins(config), where)


def refuse(reason: str) -> NoReturn:
    raise EdgeQKVError(reason)


# -- variants -----------------------------------------------------------------------------------------------------


def parse_variant(name: str, n_head: int) -> tuple[Projections, int]:
    """The projection sharing and the number of KV heads behind a variant name ("Q-GQA-4" -> ("Q-K=V", 4))."""
    for projections in get_args(Projections):
        if name == projections:
            return projections, n_head
    match = re.fullmatch(r"(Q-)?(?:MQA|GQA-([1-9]\d{0,8}))", name)
    if match is None:
        refuse(f"unknown variant {name!r}; known are QKV, GQA-g, MQA, Q-K=V, Q-GQA-g, Q-MQA, Q=K-V, Q=K=V")
    return "Q-K=V" if match[1] else "QKV", int(match[2] or 1)


def with_variant(config: ModelConfig, name: str) -> ModelConfig:
    """The same geometry with the attention that a variant name stands for."""
    if not isinstance(config.attention, SharedAttention):
        refuse(f"a {config.variant} model has no variant {name}")
    projections, n_kv_head = parse_variant(name, config.attention.n_head)
    attention = replace(config.attention, projections=projections, n_kv_head=n_kv_head)
    return replace(config, attention=attention)


def baseline(config: ModelConfig) -> ModelConfig:
    """The standard model of the same geometry, which caches K and V of every head: QKV, or MLA expanded."""
    if isinstance(config.attention, LatentAttention):
        return replace(config, attention=replace(config.attention, form="expanded"))
    return with_variant(config, "QKV")


def siblings(config: ModelConfig) -> list[ModelConfig]:
    """The variants at this geometry, the baseline first: those of the paper in its order, or both forms of MLA.

    GQA has 4 KV heads up to 16 heads and 8 above, as in the paper, or as many as divide n_head; with too few heads for
    that, or for MQA, those variants are left out.
    """
    if isinstance(config.attention, LatentAttention):
        absorbed = replace(config.attention, form="absorbed")
        return [baseline(config), replace(config, attention=absorbed)]
    n_head = config.attention.n_head
    groups = 8 if n_head > 16 else 4
    while n_head % groups or groups >= n_head:
        groups //= 2
        if groups <= 1:
            break
    names = ["QKV", "Q-K=V", "Q=K-V", "Q=K=V"]
    if groups > 1:
        names += [f"GQA-{groups}", "MQA", f"Q-GQA-{groups}", "Q-MQA"]
    elif n_head > 1:
        names += ["MQA", "Q-MQA"]
    return [with_variant(config, name) for name in names]
