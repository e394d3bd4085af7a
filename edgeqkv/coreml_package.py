"""What export and the runtimes both know of a Core ML package: where its parts lie and what its states are called."""

import logging
from types import ModuleType

from edgeqkv.errors import require

PACKAGE = "coreml/model.mlpackage"  # in a bundle
MANIFEST_FILE = "Manifest.json"
SPEC_FILE = "Data/com.apple.CoreML/model.mlmodel"
WEIGHTS_FOLDER = "Data/com.apple.CoreML/weights"
WEIGHT_FILE = f"{WEIGHTS_FOLDER}/weight.bin"


def require_coremltools() -> ModuleType:
    """coremltools, without what it logs while it is imported where there is no macOS."""
    logging.getLogger("coremltools").setLevel(logging.ERROR)
    return require("coremltools", "coreml")


def state_name(cache: str) -> str:
    """What the state that holds a cache tensor is called in the package: cache_0_k for cache.0.k."""
    return identifier(cache)


def identifier(name: str) -> str:
    """MIL takes no dots in names."""
    return name.replace(".", "_")
