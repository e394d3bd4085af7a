"""What export and the runtimes both know of a Core ML package: where its parts lie."""

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
