"""What a text says of a model: the largest values that its cache takes, and the inputs of its linears, for rounding them."""

from collections.abc import Callable, Iterator, Mapping
from itertools import groupby
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from edgeqkv.cache import CacheLayout, cache_name
from edgeqkv.config import ModelConfig
from edgeqkv.corpus import token_windows
from edgeqkv.decoder import decoder
from edgeqkv.eager import EagerVerbs
from edgeqkv.export.int4 import gptq, searched
from edgeqkv.model_folder import Model
from edgeqkv.weights import BlockInt4, Formats, Plain

CALIBRATION_TOKENS = 2048
BATCH = 64  # windows that go through the model together, so that its weights are read as seldom as may be
ROUNDING_TOKENS, ROUNDING_WINDOW = 8192, 512  # of the text that matrices are rounded by, all at once
HEADROOM = 1.05  # a value that calibration did not meet is clipped; a little room costs a twentieth of a step


class _Tensors(Mapping[str, Tensor]):
    """fp32 tensors, each read when it is asked for: the model may be larger than memory is."""

    def __init__(self, weights: Mapping[str, np.ndarray]) -> None:
        self._weights = weights

    def __getitem__(self, name: str) -> Tensor:
        return torch.from_numpy(self._weights[name].astype(np.float32))

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights)

    def __len__(self) -> int:
        return len(self._weights)


class _Observer(EagerVerbs):
    """Eager verbs that remember the largest magnitude of every channel that is cached."""

    def __init__(self, config: ModelConfig, weights: Mapping[str, Tensor], largest: dict[str, Tensor]) -> None:
        super().__init__(config, weights)
        self.largest = largest

    def _append(self, x: Tensor, layer: int, tensor: str) -> Tensor:
        name, magnitude = cache_name(layer, tensor), x.abs().flatten(0, 1).amax(0)
        self.largest[name] = torch.maximum(self.largest.get(name, magnitude), magnitude)
        return super()._append(x, layer, tensor)


@torch.inference_mode()
def cache_scales(model: Model, layout: CacheLayout, text: Path | None) -> dict[str, np.ndarray]:
    """float32 [kv_heads * width] for each cache tensor. A model without a tokenizer is calibrated on random ids."""
    weights = _Tensors(model.weights)
    largest: dict[str, Tensor] = {}
    windows = token_windows(model, "calibration", text, CALIBRATION_TOKENS, layout.capacity)
    for _, group in groupby(windows, len):
        alike = list(group)
        for start in range(0, len(alike), BATCH):
            batch = torch.tensor(alike[start : start + BATCH])
            decoder(_Observer(model.config, weights, largest), model.config, batch)
    floor = torch.finfo(torch.float32).tiny
    return {name: (largest[name] * HEADROOM / 127).clamp_min(floor).numpy() for name in layout.names}


Keep = Callable[[str, np.ndarray, np.ndarray], None]


class _RoundingVerbs(EagerVerbs):
    """Eager verbs that round each matrix when it is first used, by the inputs that it has then, and go on with what it became:
    so that later matrices see, and make good, what earlier ones lost. Each tensor is read once, used and let go."""

    def __init__(self, config: ModelConfig, weights: Mapping[str, Tensor], formats: Formats, keep: Keep) -> None:
        super().__init__(config, weights)
        self.formats, self.keep = formats, keep
        self.last: tuple[Tensor, Tensor] | None = None  # an input and its products: q, k and v share one

    def embed(self, name: str, ids: Tensor) -> Tensor:
        """A table that is the head too is rounded there, by the head's inputs: the head is what its error harms."""
        tied = self.config.head.tied
        return F.embedding(ids, self.weights[f"{name}.weight"] if tied else self._rounded(f"{name}.weight", None))

    def linear(self, x: Tensor, name: str, width: int, bias: bool) -> Tensor:
        return F.linear(x, self._rounded(f"{name}.weight", x), self.weights[f"{name}.bias"] if bias else None)

    def logits(self, x: Tensor, name: str) -> Tensor:
        self._rounded(f"{name}.weight", x)
        return x.new_empty(0)  # nobody asks for them

    def _rounded(self, name: str, x: Tensor | None) -> Tensor:
        """The matrix as it will be stored. A table that is only looked up has no inputs: its scales are searched."""
        tensor = self.weights[name]
        form = self.formats(name, tuple(tensor.shape))
        if isinstance(form, Plain):
            return tensor
        weight = tensor.numpy()
        if not isinstance(form, BlockInt4):
            return torch.from_numpy(form.restore(*form.quantize(weight)))
        values, scales = searched(form, weight) if x is None else gptq(form, weight, self._products(x))
        self.keep(name, values, scales)
        return torch.from_numpy(form.restore(values, scales))

    def _products(self, x: Tensor) -> Tensor:
        if self.last is None or self.last[0] is not x:
            flat = x.flatten(0, -2)
            self.last = (x, flat.T @ flat / len(flat))
        return self.last[1]


@torch.inference_mode()
def round_matrices(model: Model, formats: Formats, text: Path | None, keep: Keep) -> None:
    """Calls ``keep`` with name, values and scales of every int4 matrix that the decoder multiplies by or looks up.

    All of the text goes through the model together: a matrix is rounded by all of its inputs at once.
    """
    width = min(ROUNDING_WINDOW, model.config.n_positions)
    windows = token_windows(model, "calibration", text, ROUNDING_TOKENS, width)
    whole = [window for window in windows if len(window) == len(windows[0])]  # the last may be shorter
    decoder(_RoundingVerbs(model.config, _Tensors(model.weights), formats, keep), model.config, torch.tensor(whole), True)
