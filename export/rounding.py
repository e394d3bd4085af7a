"""Rounding the matrices of a model for an export: one by one as they are asked for, or, to int4, all in one pass of a text."""

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

import numpy as np

from edgeqkv.errors import require
from edgeqkv.export.int4 import searched
from edgeqkv.model_folder import Model
from edgeqkv.parameters import parameter_shapes
from edgeqkv.weights import BlockInt4, Formats, Quantized, QuantizedFormat

CALIBRATED, SEARCHED = "GPTQ", "scales searched without a text"


@dataclass(frozen=True)
class Rounding:
    """``quantized`` gives each matrix in its format; ``int4_method`` says how those in int4 were made, "" without any."""

    quantized: Quantized
    int4_method: str


def nearest(weights: Mapping[str, np.ndarray]) -> Quantized:
    """Each by itself: int8 to the nearest value, int4 under searched scales."""

    def quantized(name: str, form: QuantizedFormat) -> tuple[np.ndarray, np.ndarray]:
        weight = weights[name]
        return searched(form, weight.astype(np.float32)) if isinstance(form, BlockInt4) else form.quantize(weight)

    # A matrix's scales are asked for right after its values.
    return lru_cache(maxsize=1)(quantized)


def rounding(model: Model, formats: Formats, text: Path | None, folder: Path, progress: Callable[[str], None]) -> Rounding:
    """How the matrices of ``model`` become int8 and int4.

    int4 is calibrated on ``text``, by default a sample that ships with the package. A model without a tokenizer has no text;
    its random ids would say nothing of the inputs that it will meet, so that its scales are only searched. What a calibration
    has made lies in an unnamed file in ``folder`` until it is written: memory holds one matrix at a time.
    """
    shapes = parameter_shapes(model.config)
    if not any(isinstance(formats(name, shape), BlockInt4) for name, shape in shapes.items()):
        return Rounding(nearest(model.weights), "")
    if model.tokenizer is None:
        return Rounding(nearest(model.weights), SEARCHED)
    require("torch", "torch")
    from edgeqkv.export.calibrate import round_matrices

    progress("calibrating the int4 weights")
    kept = Kept(folder)
    round_matrices(model, formats, text, kept.add)
    return Rounding(kept.or_else(nearest(model.weights)), CALIBRATED)


class Kept:
    """Pairs of arrays by name, in a file that nobody sees and that goes away by itself."""

    def __init__(self, folder: Path) -> None:
        self._file: BinaryIO = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - it lives as long as this
        self._places: dict[str, list[tuple[int, np.dtype, tuple[int, ...]]]] = {}

    def add(self, name: str, *arrays: np.ndarray) -> None:
        self._places[name] = []
        for array in arrays:
            self._places[name].append((self._file.seek(0, 2), array.dtype, array.shape))
            self._file.write(np.ascontiguousarray(array).data)

    def or_else(self, other: Quantized) -> Quantized:
        """What is kept here, and what ``other`` makes of the rest."""

        def quantized(name: str, form: QuantizedFormat) -> tuple[np.ndarray, np.ndarray]:
            if name not in self._places:
                return other(name, form)
            values, scales = (self._read(*place) for place in self._places[name])
            return values, scales

        return quantized

    def _read(self, offset: int, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
        self._file.seek(offset)
        array = np.empty(shape, dtype)
        self._file.readinto(array.data.cast("B"))  # type: ignore[attr-defined]
        return array
