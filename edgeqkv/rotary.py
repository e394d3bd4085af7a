"""Angles of rotary positions: one table of cosines and sines, which every target turns with."""

import math

import numpy as np

from edgeqkv.config import FactorScaling, Llama3Scaling, Rotary


def frequencies(positions: Rotary) -> np.ndarray:
    """Radians per position of each pair of channels, float64 [dim / 2]: theta^(-2 i / dim), changed by the scaling."""
    plain: np.ndarray = positions.theta ** (-np.arange(0, positions.dim, 2, dtype=np.float64) / positions.dim)
    scaling = positions.scaling
    if isinstance(scaling, FactorScaling):
        return plain / np.array(scaling.factors)
    if isinstance(scaling, Llama3Scaling):
        # Llama 3.1: how far a wavelength lies between original / high (0: kept) and original / low (1: stretched).
        turns = scaling.original_positions * plain / (2 * math.pi)
        smooth = np.clip((turns - scaling.low) / (scaling.high - scaling.low), 0.0, 1.0)
        return (1 - smooth) * plain / scaling.factor + smooth * plain
    return plain


def turns(positions: Rotary, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and sines for the positions 0 .. ``count - 1``: float32 [count, dim / 2] each."""
    # The published models take the angle in float32: position times frequency, both rounded to it.
    angles = np.arange(count, dtype=np.float32)[:, None] * frequencies(positions).astype(np.float32)[None]
    return np.cos(angles), np.sin(angles)
