"""How a weight is stored: one object for each format, chosen by a target tensor by tensor.

A quantised matrix is ``values`` and ``scales``, two arrays whose shapes are the format's; ``quantize`` makes them by rounding
to the nearest, ``restore`` gives back the matrix that they stand for. Better ways to round to int4 are in
:mod:`edgeqkv.export.int4`.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import numpy as np

from edgeqkv.errors import EdgeQKVError

# The schemes with int4, and what an export in them may lose, as Target.tolerances says it. Embedding and head, which int4 harms
# most, are in int8 unless it is for all (docs/weights.md).
INT4: dict[str, dict[str, float]] = {
    "int4": {"mean_kl": 1e-2, "perplexity_percent": 1.5},
    "int4-all": {"mean_kl": 4e-2, "perplexity_percent": 4.0},
}
CACHED = (".attn.k.weight", ".attn.v.weight", ".attn.kv_a.weight", ".attn.k_rope.weight")
TABLES = ("wte.weight", "head.weight")
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

    def restore(self, values: np.ndarray, scales: np.ndarray) -> np.ndarray:
        out: np.ndarray = (values.astype(np.float32) - 128) * scales[:, :, None]
        return out.reshape(len(values), -1)


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

    def restore(self, values: np.ndarray, scales: np.ndarray) -> np.ndarray:
        out: np.ndarray = values.astype(np.float32) * scales.astype(np.float32)
        return out


@dataclass(frozen=True)
class BlockInt4:
    """int4, -8 to 7, with a scale for each ``block`` values of a row and no zero point, which is what all three runtimes have.

    ``scale_dtype`` is numpy's name of what the target holds scales in (ml_dtypes' "bfloat16" too); values are rounded against
    the scale as it is held, and scales are handed on in fp32.
    """

    block: int
    scale_dtype: str = "float32"

    LOW, HIGH = -8, 7

    @property
    def name(self) -> str:
        return f"int4 block {self.block}"

    def quantize(self, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """[rows, columns] to int8 of that shape and scales float32 [rows, blocks]. The scale is max|block| / 7."""
        return self.rounded(weight, np.abs(self.blocks(weight)).max(axis=2) / self.HIGH)

    def rounded(self, weight: np.ndarray, scales: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """To the nearest value under given scales [rows, blocks], which become what the target holds."""
        scales = self.held(scales)
        values = np.clip(np.rint(self.blocks(weight) / scales[:, :, None]), self.LOW, self.HIGH)
        return values.astype(np.int8).reshape(weight.shape), scales

    def held(self, scales: np.ndarray) -> np.ndarray:
        """As the target holds them, in fp32; one that is nothing there is 1, since what it stands for are zeros."""
        with np.errstate(over="ignore"):
            near: np.ndarray = scales.astype(self._dtype()).astype(np.float32)
        return np.where(near == 0, np.float32(1), near)

    def restore(self, values: np.ndarray, scales: np.ndarray) -> np.ndarray:
        out: np.ndarray = self.blocks(values) * scales[:, :, None]
        return out.reshape(values.shape)

    def blocks(self, weight: np.ndarray) -> np.ndarray:
        """[rows, columns] as float32 [rows, blocks, block]."""
        return weight.astype(np.float32, copy=False).reshape(len(weight), -1, self.block)

    def _dtype(self) -> np.dtype:
        if self.scale_dtype == "bfloat16":
            from ml_dtypes import bfloat16  # what reads a model folder needs it too

            return cast(np.dtype, np.dtype(bfloat16))
        return np.dtype(self.scale_dtype)


QuantizedFormat = BlockInt8 | RowInt8 | BlockInt4
WeightFormat = Plain | QuantizedFormat
# The format of a weight by its name and shape.
Formats = Callable[[str, tuple[int, ...]], WeightFormat]
# Values and scales of a weight by its name, in a format: what a target asks for. ``QuantizedFormat.quantize`` of the weight, or
# what edgeqkv.export.rounding has made of it.
Quantized = Callable[[str, QuantizedFormat], tuple[np.ndarray, np.ndarray]]


def block_int8(columns: int) -> BlockInt8:
    """With the largest block up to 128 that divides a row: large blocks are smaller and faster, and lose little accuracy."""
    return BlockInt8(_block("int8", columns, 128, 16))


def block_int4(columns: int, largest: int, smallest: int, scale_dtype: str = "float32") -> BlockInt4:
    """With the largest block of ``smallest`` to ``largest`` values that divides a row."""
    return BlockInt4(_block("int4", columns, largest, smallest), scale_dtype)


def with_int8_cache(limits: dict[str, float], held: bool) -> dict[str, float]:
    """The bounds of a scheme with int4 for an export whose cache may be int8: of perplexity 0.5 % more, of KL 2e-3."""
    return {name: limit + {"mean_kl": 2e-3, "perplexity_percent": 0.5}[name] * held for name, limit in limits.items()}


def in_int4(scheme: str, name: str, shape: tuple[int, ...]) -> bool:
    """Whether a scheme puts a matrix [rows, columns] that can be int4 into it.

    Not what makes a cached row that many query heads read, a quarter as wide as its input or less: there int4 costs much and
    saves next to nothing (docs/weights.md).
    """
    shared = name.endswith(CACHED) and 4 * shape[0] <= shape[1]
    return scheme in INT4 and not shared and (scheme == "int4-all" or name not in TABLES)


def _block(scheme: str, columns: int, largest: int, smallest: int) -> int:
    for block in BLOCK_SIZES:
        if smallest <= block <= largest and columns % block == 0:
            return block
    others = "--weights int8 or fp32" if scheme == "int4" and columns % 16 == 0 else "--weights fp32"
    raise EdgeQKVError(f"{scheme} weights need widths that are a multiple of {smallest}, found {columns}; export with {others}")


def format_names(formats: Formats, shapes: dict[str, tuple[int, ...]], int4_method: str = "") -> dict[str, str]:
    """For people: the format of each matrix, layers folded into one ("h.*.attn.q.weight" -> "int8 block 128"). Of layers that
    differ, most are folded and the others stand there one by one. ``int4_method`` says how what is int4 was rounded."""
    kinds: dict[str, dict[str, str]] = {}
    for name, shape in shapes.items():
        if len(shape) > 1:
            parts, form = name.split("."), formats(name, shape)
            text = f"{form.name}, {int4_method}" if isinstance(form, BlockInt4) and int4_method else form.name
            kinds.setdefault(".".join(["h", "*", *parts[2:]]) if parts[0] == "h" else name, {})[name] = text
    out: dict[str, str] = {}
    for kind, texts in kinds.items():
        out[kind] = Counter(texts.values()).most_common(1)[0][0]
        out |= {name: text for name, text in texts.items() if text != out[kind]}
    return out
