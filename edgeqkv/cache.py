"""What the cache is: the static layout that every runtime allocates, and the one function that counts its bytes.

Each layer has one tensor (``k``) when the value is the key, else two (``k``, ``v``), each [1, n_kv_head, capacity, head_dim],
contiguous: the positions of one KV head lie side by side. ``capacity`` never changes; ``depth`` positions of it are filled.
"""

from dataclasses import dataclass
from typing import Literal

from edgeqkv.config import ModelConfig
from edgeqkv.errors import EdgeQKVError

CacheDtype = Literal["fp32", "fp16", "int8"]
DTYPE_BYTES: dict[str, int] = {"fp32": 4, "fp16": 2, "int8": 1}


@dataclass(frozen=True)
class CacheLayout:
    """Shape, dtype and size of a model's whole cache.

    ``scales`` says how int8 values are scaled: "none" for floating point, "static" for one fp32 scale for each layer, tensor,
    KV head and channel, fixed at export (symmetric: value = scale * int8).
    """

    n_layer: int
    tensors: tuple[str, ...]
    n_kv_head: int
    capacity: int
    head_dim: int
    dtype: CacheDtype
    scales: Literal["none", "static"]

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return (1, self.n_kv_head, self.capacity, self.head_dim)

    @property
    def names(self) -> list[str]:
        """Name of every cache tensor, layer by layer: cache.0.k, cache.0.v, cache.1.k, ..."""
        return [cache_name(layer, tensor) for layer in range(self.n_layer) for tensor in self.tensors]

    @property
    def bytes_per_position(self) -> int:
        return self.n_layer * len(self.tensors) * self.n_kv_head * self.head_dim * DTYPE_BYTES[self.dtype]

    @property
    def scale_bytes(self) -> int:
        per_tensor = {"none": 0, "static": self.n_kv_head * self.head_dim * 4}[self.scales]
        return self.n_layer * len(self.tensors) * per_tensor

    @property
    def bytes(self) -> int:
        """Everything the cache takes in memory, scales included."""
        return self.capacity * self.bytes_per_position + self.scale_bytes


def cache_name(layer: int, tensor: str) -> str:
    return f"cache.{layer}.{tensor}"


def cache_layout(config: ModelConfig, capacity: int, dtype: CacheDtype) -> CacheLayout:
    """The cache of a model that decodes up to ``capacity`` positions."""
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
        scales="static" if dtype == "int8" else "none",
    )
