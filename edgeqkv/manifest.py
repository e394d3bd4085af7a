"""The manifest, ``edgeqkv.json``: the contract between export and every runtime. Its fields are these classes."""

from typing import Literal

from edgeqkv.cache import Axes, Buffer, CacheDtype, CacheLayout, Scales
from edgeqkv.config import ModelConfig, Slice
from edgeqkv.strict import Strict
from edgeqkv.text import TextEntry

# The format of edgeqkv.json.
#   1  one cache for all artifacts. Not read any more.
#   2  each artifact has its own cache and weights. Not read any more.
#   3  arena_bytes; the axes of a cache. Read by edgeqkv.older.
#   4  the row with its slices, buffers one by one, weights by format; configuration by block; text: end tokens, chat template.
FORMAT = 4
MANIFEST = "edgeqkv.json"
Kernel = Literal["fused", "stock"]
Executor = Literal["runtime", "interpreter", "value_inference"]


class ModelEntry(Strict, frozen=True):
    """``checkpoint_sha256`` is that of the weight file the bundle was exported from."""

    variant: str
    config: ModelConfig
    parameters: int
    checkpoint_sha256: str


class CacheEntry(Strict, frozen=True):
    """The cache in words that a runtime in any language can allocate from.

    ``row`` maps each tensor of a layer to the width of its rows, of which ``key`` and ``value`` are slices. ``buffers`` is all
    that is kept between steps, in the order of a graph's inputs. ``scales`` is explained by
    :class:`edgeqkv.cache.CacheLayout`; with "static" ``static_scales`` maps a tensor's name to its constant scales
    [n_kv_head * width]. ``bytes`` includes all scales.
    """

    dtype: CacheDtype
    axes: Axes
    n_kv_head: int
    row: dict[str, int]
    key: Slice
    value: Slice
    scales: Scales
    scale_split: int
    buffers: tuple[Buffer, ...]
    static_scales: dict[str, tuple[float, ...]]
    bytes: int
    bytes_per_position: int
    scale_bytes: int


class WeightsEntry(Strict, frozen=True):
    """``scheme`` is what was asked for, ``formats`` what each kind of tensor is stored as ("fp32", "int8 block 128", ...), by
    the part of the name that is the same in all layers."""

    scheme: str
    formats: dict[str, str]


class Port(Strict, frozen=True):
    """An input or output.

    ``dtype`` is numpy's name ("float32", "int8", "int64"); a shape entry is a number or the name of a size that is free.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]


class EntryPoint(Strict, frozen=True):
    """``aliases`` maps each output that must share memory with an input to that input. Where the runtime keeps the cache itself
    (Core ML's states, ExecuTorch's mutable buffers) nothing of it is an input or output, and ``states`` maps each state to the
    cache buffer it holds. ``arena_bytes`` is what the runtime reserves for a call, the cache among it, where export plans that
    (ExecuTorch); None where the runtime decides."""

    name: str
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    aliases: dict[str, str]
    states: dict[str, str]
    arena_bytes: int | None


class Artifact(Strict, frozen=True):
    """One runtime's files: paths relative to the bundle, each with its sha256; the first is the one to load (for Core ML the
    ``Manifest.json`` at the top of the package, whose folder is loaded).

    Artifacts may share files. ``kernel`` is "stock" when the runtime's own operators attend and "fused" when ours do;
    ``operators`` are those that the runtime does not bring, by domain::name. ``cache`` is what this artifact keeps between
    steps. ``prefill_chunk`` is how many tokens a runtime should feed at once: it bounds the memory that prefill takes.
    """

    runtime: str
    kernel: Kernel
    attention: str
    operators: tuple[str, ...]
    weights: WeightsEntry
    cache: CacheEntry
    files: dict[str, str]
    runtime_version: str
    prefill_chunk: int
    entry_points: tuple[EntryPoint, ...]

    @property
    def name(self) -> str:
        return f"{self.runtime} {self.kernel}"


class ParityRecord(Strict, frozen=True):
    """What ``edgeqkv verify`` found for one artifact. Perplexities are per token on ``text``; KL is in nats.

    ``executor`` is "runtime", or what computed the artifact where its runtime cannot run, or beside it as a second opinion.
    ``greedy_tokens`` is 0 where no greedy text was compared.
    """

    runtime: str
    kernel: str
    executor: Executor
    runtime_version: str
    against_sha256: str
    text: str
    tokens: int
    max_abs_logit: float
    mean_kl: float
    top1_agreement: float
    greedy_tokens: int
    greedy_identical: int
    perplexity_reference: float
    perplexity: float
    thresholds: dict[str, float]
    passed: bool


class Manifest(Strict, frozen=True):
    """``artifacts`` are in the order of preference; all have one ``capacity``."""

    format: int
    edgeqkv: str
    model: ModelEntry
    text: TextEntry
    capacity: int
    artifacts: tuple[Artifact, ...]
    parity: tuple[ParityRecord, ...]

    def cache_layout(self, artifact: Artifact) -> CacheLayout:
        config, cache = self.model.config, artifact.cache
        return CacheLayout(config.n_layer, config.row, self.capacity, cache.dtype, cache.scales, cache.axes)


def cache_entry(layout: CacheLayout, static_scales: dict[str, tuple[float, ...]]) -> CacheEntry:
    return CacheEntry(
        dtype=layout.dtype,
        axes=layout.axes,
        n_kv_head=layout.row.kv_heads,
        row=layout.row.widths,
        key=layout.row.key,
        value=layout.row.value,
        scales=layout.scales,
        scale_split=layout.scale_split,
        buffers=layout.buffers,
        static_scales=static_scales,
        bytes=layout.bytes,
        bytes_per_position=layout.bytes_per_position,
        scale_bytes=layout.scale_bytes,
    )
