"""How a weight is stored: one object for each format, chosen by a target tensor by tensor."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from edgeqkv.errors import EdgeQKVError

BLOCK_SIZES = (128, 64, 32, 16)


@dataclass(frozen=True)
class Plain:
    """Floating point as it is; ``dtype`` is numpy's name."""

    dtype: str

    @property
    def name(self) -> str:
        return {"float32": "fp32", "float16": "fp16"}[self.dtype]


@dataclass(frozen=True)
class BlockInt8:
    """int8 with a scale for each ``block`` values of a row, as uint8 around the zero point 128 (ONNX's MatMulNBits)."""

    block: int

    @property
    def name(self) -> str:
        return f"int8 block {self.block}"

    def quantize(self, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """[rows, columns] to uint8 [rows, blocks, block] and scales float32 [rows, blocks].

        The scale is max|block| / 127, so that the largest value of a block is kept exactly.
        """
        rows, columns = weight.shape
        blocks = weight.astype(np.float32).reshape(rows, columns // self.block, self.block)
        scales = np.abs(blocks).max(axis=2) / 127.0
        safe = np.where(scales == 0, np.float32(1), scales)
        values = np.rint(blocks / safe[:, :, None]).astype(np.int16) + 128
        return values.astype(np.uint8), scales.astype(np.float32)


@dataclass(frozen=True)
class RowInt8:
    """int8 with one scale for each row; ``scale_dtype`` is numpy's name of what the target holds scales in."""

    scale_dtype: str = "float32"
    name = "int8 row"

    def quantize(self, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """[..., rows, columns] to int8 of that shape and scales [..., rows, 1].

        The scale is max|row| / 127; values are rounded against the scale as the target holds it.
        """
        rows = weight.astype(np.float32)
        scales = (np.abs(rows).max(axis=-1, keepdims=True) / 127.0).astype(self.scale_dtype)
        scales = np.where(scales == 0, np.ones((), self.scale_dtype), scales)
        values = np.clip(np.rint(rows / scales.astype(np.float32)), -127, 127)
        return values.astype(np.int8), scales


WeightFormat = Plain | BlockInt8 | RowInt8
# The format of a weight by its name and shape.
Formats = Callable[[str, tuple[int, ...]], WeightFormat]


def block_int8(columns: int) -> BlockInt8:
    """With the largest block up to 128 that divides a row: large blocks are smaller and faster, and lose little accuracy."""
    for block in BLOCK_SIZES:
        if columns % block == 0:
            return BlockInt8(block)
    raise EdgeQKVError(f"int8 weights need widths that are a multiple of 16, found {columns}; export with --weights fp32")


def format_names(formats: Formats, shapes: dict[str, tuple[int, ...]]) -> dict[str, str]:
    """For people: the format of each matrix, layers folded into one ("h.*.attn.q.weight" -> "int8 block 128")."""
    out: dict[str, str] = {}
    for name, shape in shapes.items():
        if len(shape) > 1:
            parts = name.split(".")
            out[".".join(["h", "*", *parts[2:]]) if parts[0] == "h" else name] = formats(name, shape).name
    return out
