"""The two functions of a package as one program, and the package on disk."""

import errno
import json
import uuid
from collections.abc import Mapping
from pathlib import Path

import coremltools as ct
import numpy as np
from coremltools.converters.mil.backend.mil.load import load as to_proto
from coremltools.converters.mil.mil import Builder as mb
from coremltools.converters.mil.mil import Function, Program, types

from edgeqkv.cache import CacheLayout, identifier
from edgeqkv.config import ModelConfig
from edgeqkv.decoder import decoder
from edgeqkv.export.coreml.stored import StoredWeights
from edgeqkv.export.coreml.verbs import CoremlVerbs
from edgeqkv.runtimes.coreml.package import MANIFEST_FILE, SPEC_FILE, WEIGHTS_FOLDER
from edgeqkv.weights import Formats, Quantized

TARGET = ct.target.iOS18  # and macOS 15: the first with states and with more than one function in a package


def build_program(
    config: ModelConfig,
    weights: Mapping[str, np.ndarray],
    layout: CacheLayout,
    formats: Formats,
    prefill_chunk: int,
    head_parts: int | None,
    quantized: Quantized | None = None,
) -> Program:
    """The functions ``prefill`` and ``decode`` over one set of weights. ``quantized`` gives what is int4, by default each
    matrix rounded by itself."""
    program, stored = Program(), StoredWeights(weights, formats, quantized)
    mb.name_count.clear()
    for name, tokens in (("prefill", prefill_chunk), ("decode", 1)):
        inputs = {"ids": mb.TensorSpec((1, tokens), types.int32), "position": mb.TensorSpec((1,), types.int32)}
        inputs |= {identifier(b.name): mb.StateTensorSpec(b.shape, types.fp16) for b in layout.buffers}
        with Function(inputs, opset_version=TARGET) as function:
            verbs = CoremlVerbs(config, layout, stored, head_parts, function, tokens)
            function.set_outputs([decoder(verbs, config, verbs.ids)])
        program.add_function(name, function)
    program.default_function_name = "decode"
    program.export_as_multifunction = True
    program.skip_all_passes = True  # it is built as it shall be, and a pass would fold weights into copies
    return program


def write_package(program: Program, package: Path, description: str) -> None:
    """Save a program as ``package``, the same bytes for the same program.

    Only the backend of coremltools runs: what it would do before and after (passes, temporary copies, loading) is not needed,
    and it would put the date and random ids into the package.
    """
    (package / WEIGHTS_FOLDER).mkdir(parents=True)
    try:
        spec = to_proto(program, str(package / WEIGHTS_FOLDER), specification_version=TARGET.value)
    except RuntimeError as error:
        if "FileWriter" not in str(error):
            raise
        raise OSError(errno.EIO, "coremltools could not write all of the weights") from error  # its words for a full disk
    metadata = spec.description.metadata
    metadata.shortDescription, metadata.author = description, "edgeqkv"
    metadata.userDefined["com.github.apple.coremltools.version"] = ct.__version__
    (package / SPEC_FILE).write_bytes(spec.SerializeToString(deterministic=True))
    items = {name: uuid.uuid5(uuid.NAMESPACE_URL, name) for name in ("model.mlmodel", "weights")}
    entries = {
        str(items[name]).upper(): {
            "author": "com.apple.CoreML",
            "description": f"CoreML Model {what}",
            "name": name,
            "path": f"com.apple.CoreML/{name}",
        }
        for name, what in (("model.mlmodel", "Specification"), ("weights", "Weights"))
    }
    root = str(items["model.mlmodel"]).upper()
    manifest = {"fileFormatVersion": "1.0.0", "itemInfoEntries": entries, "rootModelIdentifier": root}
    (package / MANIFEST_FILE).write_text(json.dumps(manifest, indent=4) + "\n", encoding="utf-8")
