"""Weights as a Core ML package holds them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from edgeqkv.errors import EdgeQKVError
from edgeqkv.weights import Formats, Plain, RowInt8, WeightFormat


def weight_formats(scheme: str) -> Formats:
    """int8 has one fp16 scale for each row of a matrix; norms, biases and position embeddings stay fp16."""
    plain, matrix = Plain("float16"), RowInt8("float16") if scheme == "int8" else Plain("float16")
    return lambda name, shape: matrix if len(shape) > 1 and name != "wpe.weight" else plain


@dataclass(frozen=True)
class Stored:
    """A tensor: fp16 ``data``, or int8 with an fp16 ``scale`` for each row. Its ``name`` is what a package knows it by."""

    name: str
    data: np.ndarray
    scale: np.ndarray | None


class StoredWeights:
    """Weights by name, each prepared once: the functions of a package that are given the same array share it."""

    def __init__(self, weights: Mapping[str, np.ndarray], formats: Formats) -> None:
        self._weights, self._formats = weights, formats
        self._stored: dict[str, Stored] = {}
        self._arrays: dict[str, np.ndarray] = {}

    def tensor(self, name: str) -> Stored:
        if name not in self._stored:
            array = half(name, self._weights[name])
            self._stored[name] = _stored(name, array, self._formats(name, array.shape))
        return self._stored[name]

    def parts(self, name: str, cuts: list[tuple[int, int]]) -> list[Stored]:
        """A matrix in runs of rows, ``start`` .. ``end - 1`` each."""
        if len(cuts) == 1:
            return [self.tensor(name)]
        keys = [f"{name}.{start}" for start, _ in cuts]
        if keys[0] not in self._stored:
            array = half(name, self._weights[name])
            kind = self._formats(name, array.shape)
            for key, (start, end) in zip(keys, cuts, strict=True):
                self._stored[key] = _stored(key, array[start:end], kind)
        return [self._stored[key] for key in keys]

    def positions(self, name: str, count: int) -> np.ndarray:
        """The first ``count`` rows of a table of positions, fp16."""
        return self.array(name, lambda: half(name, self._weights[name][:count]))

    def array(self, name: str, make: Callable[[], np.ndarray]) -> np.ndarray:
        """What is not a weight, but as long as one: made for the first function, and shared by the others."""
        if name not in self._arrays:
            self._arrays[name] = make()
        return self._arrays[name]


def _stored(name: str, array: np.ndarray, kind: WeightFormat) -> Stored:
    if isinstance(kind, RowInt8):
        return Stored(name, *kind.quantize(array))
    return Stored(name, array, None)


def half(name: str, array: np.ndarray) -> np.ndarray:
    """In fp16, or refused where that has no number for it."""
    with np.errstate(over="ignore"):
        out = array.astype(np.float16)
    if not np.isfinite(out).all():
        raise EdgeQKVError(
            f"{name} holds values beyond fp16's largest, 65504, and Core ML computes in fp16; export it with --target onnx"
        )
    return out
