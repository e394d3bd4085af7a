"""Angles of rotary positions: one table of cosines and sines, which every target turns with.

All in float32 and in the order of operations of the published models' code: at position 100,000 the last bit of a frequency is
worth 0.006 radians, so that a more exact table would be another model's.
"""

import math

import numpy as np

from edgeqkv.config import FactorScaling, Llama3Scaling, Rotary


def frequencies(positions: Rotary) -> np.ndarray:
    """Radians per position of each pair of channels, float32 [dim / 2]: theta^(-2 i / dim), changed by the scaling."""
    exponents = np.arange(0, positions.dim, 2, dtype=np.float32) / np.float32(positions.dim)
    powers = (positions.theta ** exponents.astype(np.float64)).astype(np.float32)  # numpy's float32 power is not rounded well
    scaling = positions.scaling
    if isinstance(scaling, FactorScaling):
        stretched: np.ndarray = 1 / (np.array(scaling.factors, np.float32) * powers)
        return stretched
    plain: np.ndarray = 1 / powers
    if isinstance(scaling, Llama3Scaling):
        # Llama 3.1: how far a wavelength lies between original / high (0: kept) and original / low (1: stretched).
        turns = scaling.original_positions / (2 * math.pi / plain)
        smooth = np.clip((turns - scaling.low) / (scaling.high - scaling.low), 0, 1)
        mixed: np.ndarray = (1 - smooth) * plain / scaling.factor + smooth * plain
        return mixed
    return plain


def turns(positions: Rotary, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and sines for the positions 0 .. ``count - 1``: float32 [count, dim / 2] each."""
    angles = np.arange(count, dtype=np.float32)[:, None] * frequencies(positions)[None]
    return np.cos(angles), np.sin(angles)
