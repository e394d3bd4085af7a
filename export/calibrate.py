"""Static scales of an int8 cache: the largest value that each channel takes over a text, divided by 127."""

from collections.abc import Iterator, Mapping
from itertools import groupby
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from edgeqkv.cache import CacheLayout, cache_name
from edgeqkv.config import ModelConfig
from edgeqkv.corpus import token_windows
from edgeqkv.decoder import decoder
from edgeqkv.eager import EagerVerbs
from edgeqkv.model_folder import Model

CALIBRATION_TOKENS = 2048
BATCH = 64  # windows that go through the model together, so that its weights are read as seldom as may be
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
