"""int8 weights: symmetric, one scale for each block of a row (ONNX's MatMulNBits) or for each row (Core ML, XNNPACK)."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from edgeqkv.errors import EdgeQKVError

BLOCK_SIZES = (128, 64, 32, 16)


@dataclass(frozen=True)
class BlockInt8:
    """``values`` uint8 [rows, blocks, block] around the zero point 128, ``scales`` float32 [rows, blocks]."""

    values: np.ndarray
    scales: np.ndarray
    block: int


def block_size(columns: int) -> int:
    """The largest block up to 128 that divides a row: large blocks are smaller and faster, and lose little accuracy."""
    for block in BLOCK_SIZES:
        if columns % block == 0:
            return block
    raise EdgeQKVError(f"int8 weights need widths that are a multiple of 16, found {columns}; export with --weights fp32")


def quantize_rows(weight: np.ndarray) -> BlockInt8:
    """Round [rows, columns] to int8 with scale max|block| / 127, so that the largest value of a block is kept exactly."""
    rows, columns = weight.shape
    block = block_size(columns)
    blocks = weight.astype(np.float32).reshape(rows, columns // block, block)
    scales = np.abs(blocks).max(axis=2) / 127.0
    safe = np.where(scales == 0, np.float32(1), scales)
    values = np.rint(blocks / safe[:, :, None]).astype(np.int16) + 128
    return BlockInt8(values.astype(np.uint8), scales.astype(np.float32), block)


@dataclass(frozen=True)
class ChannelInt8:
    """``values`` int8 [rows, columns] and ``scales`` float [rows, 1]: scale * value."""

    values: np.ndarray
    scales: np.ndarray


def quantize_channels(weight: np.ndarray, scale_dtype: type[np.floating[Any]] = np.float32) -> ChannelInt8:
    """Round [rows, columns] to int8, symmetric, with one scale max|row| / 127 for each row.

    ``scale_dtype`` is what the target holds scales in; the values are rounded against the scale as that holds it.
    """
    rows = weight.astype(np.float32)
    scales = (np.abs(rows).max(axis=1, keepdims=True) / 127.0).astype(scale_dtype)
    scales = np.where(scales == 0, scale_dtype(1), scales)
    values = np.clip(np.rint(rows / scales.astype(np.float32)), -127, 127)
    return ChannelInt8(values.astype(np.int8), scales)
