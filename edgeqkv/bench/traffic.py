"""What decoding one token has to read of the weights: each of them once, of a table that is only looked up in one row.

A target may read more (a graph that unpacks weights to floats first), so that this is the least. Vectors (norms, biases) are
float32 everywhere.
"""

import math
import re
from collections.abc import Mapping

from edgeqkv.config import ModelConfig
from edgeqkv.parameters import parameter_shapes

_FORMAT = re.compile(r"int(\d+) (?:row|block (\d+))")
_PLAIN = {"fp32": 4, "fp16": 2}
_SCALE_BYTES = 4


def weights_bytes_a_token(config: ModelConfig, formats: Mapping[str, str]) -> int | None:
    """``formats`` are the manifest's (:class:`edgeqkv.manifest.WeightsEntry`); None where one of them is not known here."""
    looked_up = ["wpe.weight"] if config.head.tied else ["wpe.weight", "wte.weight"]
    total = 0
    for name, shape in parameter_shapes(config).items():
        parts = name.split(".")
        stored = "fp32" if len(shape) == 1 else formats.get(".".join(["h", "*", *parts[2:]]) if parts[0] == "h" else name)
        size = None if stored is None else stored_bytes((1, shape[-1]) if name in looked_up else shape, stored)
        if size is None:
            return None
        total += size
    return total


def stored_bytes(shape: tuple[int, ...], stored: str) -> int | None:
    """Of a tensor in a format by its name: "fp32", "int8 row", "int4 block 32"; its scales are among them, 4 bytes each."""
    count = math.prod(shape)
    if stored in _PLAIN:
        return count * _PLAIN[stored]
    match = _FORMAT.fullmatch(stored)
    if match is None:
        return None
    return count * int(match[1]) // 8 + _SCALE_BYTES * (count // int(match[2] or shape[-1]))
