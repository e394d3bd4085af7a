"""Weights as a Core ML package holds them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from edgeqkv.errors import EdgeQKVError
from edgeqkv.export.rounding import nearest
from edgeqkv.weights import BlockInt4, Formats, Plain, Quantized, RowInt8, WeightFormat, block_int4, in_int4

INT4_BLOCK = 32  # Apple's own default for int4


def weight_formats(scheme: str) -> Formats:
    """int8 has one fp16 scale for each row of a matrix, int4 one for each block; norms, biases and position embeddings stay
    fp16, and with int4 MLA's products of each head stay int8."""

    def choose(name: str, shape: tuple[int, ...]) -> WeightFormat:
        if scheme == "fp16" or len(shape) < 2 or name == "wpe.weight":
            return Plain("float16")
        if len(shape) == 2 and in_int4(scheme, name, shape):
            return block_int4(shape[-1], INT4_BLOCK, 16, "float16")
        return RowInt8("float16")

    return choose


@dataclass(frozen=True)
class Stored:
    """A tensor: fp16 ``data``, or int8 with an fp16 ``scale`` for each row, or for each block where it is ``int4``. Its
    ``name`` is what a package knows it by."""

    name: str
    data: np.ndarray
    scale: np.ndarray | None
    int4: bool = False


class StoredWeights:
    """Weights by name, each prepared once: the functions of a package that are given the same array share it."""

    def __init__(self, weights: Mapping[str, np.ndarray], formats: Formats, quantized: Quantized | None = None) -> None:
        self._weights, self._formats, self._quantized = weights, formats, quantized or nearest(weights)
        self._stored: dict[str, Stored] = {}
        self._arrays: dict[str, np.ndarray] = {}

    def tensor(self, name: str) -> Stored:
        if name not in self._stored:
            array = half(name, self._weights[name])
            self._stored[name] = self._store(name, array, self._formats(name, array.shape))
        return self._stored[name]

    def parts(self, name: str, cuts: list[tuple[int, int]]) -> list[Stored]:
        """A matrix in runs of rows, ``start`` .. ``end - 1`` each."""
        if len(cuts) == 1:
            return [self.tensor(name)]
        keys = [f"{name}.{start}" for start, _ in cuts]
        if keys[0] not in self._stored:
            array = half(name, self._weights[name])
            kind = self._formats(name, array.shape)
            whole = self._store(name, array, kind)
            for key, (start, end) in zip(keys, cuts, strict=True):
                scale = None if whole.scale is None else whole.scale[start:end]
                self._stored[key] = Stored(key, whole.data[start:end], scale, whole.int4)
        return [self._stored[key] for key in keys]

    def positions(self, name: str, count: int) -> np.ndarray:
        """The first ``count`` rows of a table of positions, fp16."""
        return self.array(name, lambda: half(name, self._weights[name][:count]))

    def _store(self, name: str, array: np.ndarray, kind: WeightFormat) -> Stored:
        if isinstance(kind, BlockInt4):
            values, scales = self._quantized(name, kind)
            return Stored(name, values, scales.astype(kind.scale_dtype), int4=True)
        if isinstance(kind, RowInt8):
            return Stored(name, *kind.quantize(array))
        return Stored(name, array, None)

    def array(self, name: str, make: Callable[[], np.ndarray]) -> np.ndarray:
        """What is not a weight, but as long as one: made for the first function, and shared by the others."""
        if name not in self._arrays:
            self._arrays[name] = make()
        return self._arrays[name]


def half(name: str, array: np.ndarray) -> np.ndarray:
    """In fp16, or refused where that has no number for it."""
    with np.errstate(over="ignore"):
        out = array.astype(np.float16)
    if not np.isfinite(out).all():
        raise EdgeQKVError(
            f"{name} holds values beyond fp16's largest, 65504, and Core ML computes in fp16; export it with --target onnx"
        )
    return out
