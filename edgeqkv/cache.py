"""What the cache is: the static layout that every runtime allocates, and the one function that counts its bytes.

Each layer has one tensor (``k``) when the value is the key, else two (``k``, ``v``), each [1, n_kv_head, capacity, head_dim],
contiguous: the positions of one KV head lie side by side. (Only ExecuTorch's own operators want [1, capacity, n_kv_head,
head_dim].) ``capacity`` never changes; ``depth`` positions of it are filled.
An int8 tensor may have its scales beside it, one float32 for each KV head and position, written with the row they belong to.
"""

import math
from dataclasses import dataclass
from typing import Literal

from edgeqkv.config import ModelConfig
from edgeqkv.errors import EdgeQKVError

CacheDtype = Literal["fp32", "fp16", "int8"]
ScaleLayout = Literal["none", "static", "per_token"]
Axes = Literal["batch, kv_head, position, channel", "batch, position, kv_head, channel"]
BY_HEAD: Axes = "batch, kv_head, position, channel"
BY_POSITION: Axes = "batch, position, kv_head, channel"
DTYPE_BYTES: dict[str, int] = {"fp32": 4, "fp16": 2, "int8": 1}
NUMPY_NAMES: dict[str, str] = {"fp32": "float32", "fp16": "float16", "int8": "int8"}


@dataclass(frozen=True)
class CacheLayout:
    """Shape, dtype and size of a model's whole cache.

    ``scales`` says how int8 values are scaled, always symmetric (value = scale * int8) and in fp32:

    ========= ======================================================================================================
    none      floating point
    per_token one scale for each KV head and position, max|row| / 127, set when the row is written: what a fused kernel does
    static    one scale for each KV head and channel, fixed at export by calibration: what the runtimes' own operators can do
    ========= ======================================================================================================
    """

    n_layer: int
    tensors: tuple[str, ...]
    n_kv_head: int
    capacity: int
    head_dim: int
    dtype: CacheDtype
    scales: ScaleLayout
    axes: Axes = BY_HEAD

    @property
    def shape(self) -> tuple[int, int, int, int]:
        if self.axes == BY_POSITION:
            return (1, self.capacity, self.n_kv_head, self.head_dim)
        return (1, self.n_kv_head, self.capacity, self.head_dim)

    @property
    def names(self) -> list[str]:
        """Name of every cache tensor, layer by layer: cache.0.k, cache.0.v, cache.1.k, ..."""
        return [cache_name(layer, tensor) for layer in range(self.n_layer) for tensor in self.tensors]

    @property
    def scale_names(self) -> list[str]:
        """Name of every buffer of scales (per_token only): cache.0.k.scale, ..."""
        return [f"{name}.scale" for name in self.names] if self.scales == "per_token" else []

    @property
    def scale_shape(self) -> tuple[int, ...]:
        """Of each tensor's scales, float32; empty when there are none."""
        shapes: dict[ScaleLayout, tuple[int, ...]] = {
            "none": (),
            "static": (self.n_kv_head * self.head_dim,),
            "per_token": (1, self.n_kv_head, self.capacity),
        }
        return shapes[self.scales]

    @property
    def buffers(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """All that a runtime allocates and keeps between steps: name -> (numpy's dtype name, shape)."""
        tensors: dict[str, tuple[str, tuple[int, ...]]] = dict.fromkeys(self.names, (NUMPY_NAMES[self.dtype], self.shape))
        return tensors | dict.fromkeys(self.scale_names, ("float32", self.scale_shape))

    @property
    def scale_bytes(self) -> int:
        if self.scales == "none":
            return 0
        return self.n_layer * len(self.tensors) * math.prod(self.scale_shape) * 4

    @property
    def bytes(self) -> int:
        """Everything the cache takes in memory, scales included."""
        return self.n_layer * len(self.tensors) * math.prod(self.shape) * DTYPE_BYTES[self.dtype] + self.scale_bytes

    @property
    def bytes_per_position(self) -> int:
        """What one more position of capacity takes, its scales included."""
        scales = 4 if self.scales == "per_token" else 0
        return self.n_layer * len(self.tensors) * self.n_kv_head * (self.head_dim * DTYPE_BYTES[self.dtype] + scales)


def cache_name(layer: int, tensor: str) -> str:
    return f"cache.{layer}.{tensor}"


def identifier(name: str) -> str:
    """A weight or cache tensor where names have no dots, in MIL and as ExecuTorch's buffers: cache_0_k for cache.0.k."""
    return name.replace(".", "_")


def cache_layout(
    config: ModelConfig, capacity: int, dtype: CacheDtype, int8_scales: Literal["static", "per_token"] = "per_token"
) -> CacheLayout:
    """The cache of a model that decodes up to ``capacity`` positions; ``int8_scales`` says how an int8 one is scaled."""
    if not 1 <= capacity <= config.n_positions:
        raise EdgeQKVError(
            f"capacity {capacity} is outside 1..{config.n_positions}: the model was trained with {config.n_positions} "
            "learned positions and has no embedding beyond them"
        )
    return CacheLayout(
        n_layer=config.n_layer,
        tensors=("k",) if config.v_is_k else ("k", "v"),
        n_kv_head=config.n_kv_head,
        capacity=capacity,
        head_dim=config.head_dim,
        dtype=dtype,
        scales=int8_scales if dtype == "int8" else "none",
    )
