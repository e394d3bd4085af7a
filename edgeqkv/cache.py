"""What the cache is: the static layout that every runtime allocates, and the one function that counts its bytes.

A layer caches a row for each token and KV head (:class:`edgeqkv.config.Row`): one tensor ``k`` where the value is a slice of
the key's row, else ``k`` and ``v``. Each is [1, kv_heads, capacity, width], contiguous: the positions of one KV head lie side
by side. (Only ExecuTorch's own operators want [1, capacity, kv_heads, width].) ``capacity`` never changes; ``depth``
positions of it are filled. An int8 tensor may have its scales beside it, float32, written with the row that they belong to.
"""

import math
from dataclasses import dataclass
from typing import Literal, get_args

from edgeqkv.config import Learned, ModelConfig, Row
from edgeqkv.errors import EdgeQKVError
from edgeqkv.limits import CACHE_BYTES
from edgeqkv.strict import Strict

CacheDtype = Literal["fp32", "fp16", "int8"]
Scales = Literal["none", "static", "per_row", "per_slice"]
Axes = Literal["batch, kv_head, position, channel", "batch, position, kv_head, channel"]
BY_HEAD: Axes = "batch, kv_head, position, channel"
BY_POSITION: Axes = "batch, position, kv_head, channel"
DTYPE_BYTES: dict[str, int] = {"fp32": 4, "fp16": 2, "int8": 1}
NUMPY_NAMES: dict[str, str] = {"fp32": "float32", "fp16": "float16", "int8": "int8"}
DTYPES: tuple[CacheDtype, ...] = get_args(CacheDtype)


class Buffer(Strict, frozen=True):
    """One array that a runtime allocates and keeps between steps; ``dtype`` is numpy's name."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * {"float32": 4, "float16": 2, "int8": 1}[self.dtype]


@dataclass(frozen=True)
class CacheLayout:
    """Shape, dtype and size of a model's whole cache.

    ``scales`` says how int8 values are scaled, always symmetric (value = scale * int8) and in fp32:

    ========= ======================================================================================================
    none      floating point
    per_row   one scale for each KV head and position, max|row| / 127, set when the row is written: what our kernel does
    per_slice the same with two scales: the row is cut at :attr:`~edgeqkv.config.Row.scale_split`
    static    one scale for each KV head and channel, fixed at export by calibration: what the runtimes' own operators can do
    ========= ======================================================================================================
    """

    n_layer: int
    row: Row
    capacity: int
    dtype: CacheDtype
    scales: Scales
    axes: Axes = BY_HEAD

    @property
    def tensors(self) -> tuple[str, ...]:
        return tuple(self.row.widths)

    def shape(self, tensor: str) -> tuple[int, int, int, int]:
        heads, width = self.row.kv_heads, self.row.widths[tensor]
        return (1, self.capacity, heads, width) if self.axes == BY_POSITION else (1, heads, self.capacity, width)

    @property
    def scale_split(self) -> int:
        """The channel where a row's second scale begins; 0: it has one or none."""
        return self.row.scale_split if self.scales == "per_slice" else 0

    @property
    def scale_shape(self) -> tuple[int, ...] | None:
        """Of the scales that are written beside each tensor, or None."""
        if self.scales == "per_row":
            return (1, self.row.kv_heads, self.capacity)
        return (1, self.row.kv_heads, 2, self.capacity) if self.scales == "per_slice" else None

    @property
    def names(self) -> list[str]:
        """Name of every cache tensor, layer by layer: cache.0.k, cache.0.v, cache.1.k, ..."""
        return [cache_name(layer, tensor) for layer in range(self.n_layer) for tensor in self.tensors]

    @property
    def buffers(self) -> tuple[Buffer, ...]:
        """All that a runtime allocates and keeps between steps: the tensors, then cache.0.k.scale, ..."""
        tensors = [
            Buffer(cache_name(layer, tensor), NUMPY_NAMES[self.dtype], self.shape(tensor))
            for layer in range(self.n_layer)
            for tensor in self.tensors
        ]
        scales = [] if self.scale_shape is None else [Buffer(scale_name(t.name), "float32", self.scale_shape) for t in tensors]
        return (*tensors, *scales)

    @property
    def static_widths(self) -> dict[str, int]:
        """For each cache tensor, how many constant scales it has; empty unless they are static."""
        if self.scales != "static":
            return {}
        return {
            cache_name(i, t): self.row.kv_heads * width for i in range(self.n_layer) for t, width in self.row.widths.items()
        }

    @property
    def scale_bytes(self) -> int:
        if self.scales == "static":
            return 4 * sum(self.static_widths.values())
        return self.n_layer * len(self.tensors) * math.prod(self.scale_shape or (0,)) * 4

    @property
    def bytes(self) -> int:
        """Everything the cache takes in memory, scales included."""
        static = self.scale_bytes if self.scales == "static" else 0
        return self.capacity * self.bytes_per_position + static

    @property
    def bytes_per_position(self) -> int:
        """What one more position of capacity takes, its scales included."""
        scales = {"per_row": 4, "per_slice": 8}.get(self.scales, 0)
        each = [width * DTYPE_BYTES[self.dtype] + scales for width in self.row.widths.values()]
        return self.n_layer * self.row.kv_heads * sum(each)


def cache_name(layer: int, tensor: str) -> str:
    return f"cache.{layer}.{tensor}"


def scale_name(name: str) -> str:
    """Of the scales that belong to a cache tensor."""
    return f"{name}.scale"


def position_axis(layout: CacheLayout, buffer: str) -> int:
    """The axis of a buffer's positions: the last one of scales, and the tensors' by the layout's axes."""
    if buffer in layout.names:
        return 1 if layout.axes == BY_POSITION else 2
    return len(layout.scale_shape or ()) - 1


def rows_shape(layout: CacheLayout, buffer: Buffer, count: int) -> tuple[int, ...]:
    """Of ``count`` positions of a buffer."""
    axis = position_axis(layout, buffer.name)
    return (*buffer.shape[:axis], count, *buffer.shape[axis + 1 :])


def identifier(name: str) -> str:
    """A weight or cache tensor where names have no dots, in MIL and as ExecuTorch's buffers: cache_0_k for cache.0.k."""
    return name.replace(".", "_")


def check_capacity(config: ModelConfig, capacity: int) -> None:
    """Refuse more positions than the model was trained with, or none."""
    if 1 <= capacity <= config.n_positions:
        return
    why = "learned positions and has no embedding beyond them" if isinstance(config.positions, Learned) else "positions"
    raise EdgeQKVError(
        f"capacity {capacity} is outside 1..{config.n_positions}: the model was trained with {config.n_positions} {why}"
    )


def cache_layout(config: ModelConfig, capacity: int, dtype: CacheDtype, int8_scales: Scales | None = None) -> CacheLayout:
    """The cache of a model that decodes up to ``capacity`` positions.

    ``int8_scales`` says how an int8 one is scaled, by default as our kernel does: with a scale for each slice of the row where
    its parts differ in size (MLA), else with one for each row.
    """
    check_capacity(config, capacity)
    scales = int8_scales or ("per_slice" if config.row.scale_split else "per_row")
    layout = CacheLayout(config.n_layer, config.row, capacity, dtype, scales if dtype == "int8" else "none")
    if layout.bytes > CACHE_BYTES:
        raise EdgeQKVError(f"a cache of {layout.bytes} bytes is more than the most, {CACHE_BYTES}; take a smaller --capacity")
    return layout
