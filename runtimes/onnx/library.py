"""The package onnxruntime, imported in one place."""

import os
from types import ModuleType

from edgeqkv.errors import require


def onnxruntime(extra: str = "onnx-runtime") -> ModuleType:
    """Import it without its telemetry.

    1.29 and newer write an id under the home folder and look for a host of their maker's when they are loaded, unless the
    environment says this before. A program that has imported it earlier has to say so itself.
    """
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    return require("onnxruntime", extra)
