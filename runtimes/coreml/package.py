"""A Core ML package (.mlpackage): where its parts lie, and its functions, operations and weights as plain Python and numpy.

The program is Apple's Model.proto; weights lie in one file of 64-byte headers and data (MILBlob's storage format).
"""

import logging
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from edgeqkv.errors import EdgeQKVError, require

PACKAGE = "coreml/model.mlpackage"  # in a bundle
MANIFEST_FILE = "Manifest.json"
SPEC_FILE = "Data/com.apple.CoreML/model.mlmodel"
WEIGHTS_FOLDER = "Data/com.apple.CoreML/weights"
WEIGHT_FILE = f"{WEIGHTS_FOLDER}/weight.bin"
# numpy has no int4: what is that in the package is int8 here.
DTYPES = {
    "FLOAT16": "float16",
    "FLOAT32": "float32",
    "INT32": "int32",
    "INT8": "int8",
    "INT4": "int4",
    "BOOL": "bool",
    "STRING": "object",
}
BLOB_HEADER = struct.Struct("<IIQQ")  # sentinel, kind, size in bytes, where the data begins
BLOB_SENTINEL = 0xDEADBEEF


def require_coremltools() -> ModuleType:
    """coremltools, without what it and torchao, which it imports, log meanwhile where there is no macOS."""
    for name in ("coremltools", "torch.utils._pytree"):
        logging.getLogger(name).setLevel(logging.ERROR)
    return require("coremltools", "coreml")


@dataclass(frozen=True)
class Constant:
    """A value in the package. ``offset`` is where it lies in the weight file, None when it is in the program itself."""

    value: np.ndarray
    offset: int | None


@dataclass(frozen=True)
class Operation:
    """``inputs`` maps a parameter to what it takes: variables' names, or constants. ``outputs`` are names and numpy dtypes."""

    kind: str
    inputs: dict[str, tuple[str | Constant, ...]]
    outputs: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class MilFunction:
    """``inputs`` and ``states`` map names to (numpy dtype, shape). Operations of kind "const" have one input, ``val``."""

    inputs: dict[str, tuple[str, tuple[int, ...]]]
    states: dict[str, tuple[str, tuple[int, ...]]]
    outputs: tuple[str, ...]
    operations: tuple[Operation, ...]


def read_package(package: Path) -> dict[str, MilFunction]:
    """Every function of a package. The weights are mapped, not read."""
    require_coremltools()
    from coremltools.proto import MIL_pb2, Model_pb2
    from google.protobuf.message import DecodeError

    spec = Model_pb2.Model()
    try:
        spec.ParseFromString((package / SPEC_FILE).read_bytes())
        weights = np.memmap(package / WEIGHT_FILE, np.uint8, mode="r")
    except (DecodeError, OSError, ValueError) as error:
        raise EdgeQKVError(f"{package} is not a Core ML package that can be read: {error}") from error
    dtypes = {number: DTYPES.get(name, name) for name, number in MIL_pb2.DataType.items()}

    def constant(value: Any) -> Constant:
        dtype, shape = _tensor_type(value.type, dtypes)
        if value.WhichOneof("value") == "blobFileValue":
            offset = value.blobFileValue.offset
            return Constant(_blob(weights, offset, dtype, shape, package), offset)
        tensor = value.immediateValue.tensor
        values = getattr(tensor, tensor.WhichOneof("value")).values
        if dtype == "int4":
            return Constant(_int4(np.frombuffer(values, np.uint8), shape), None)
        flat = np.frombuffer(values, dtype) if isinstance(values, bytes) else np.array(list(values), dtype)
        return Constant(flat.reshape(shape), None)

    def operation(op: Any) -> Operation:
        inputs = {
            name: tuple(b.name if b.WhichOneof("binding") == "name" else constant(b.value) for b in argument.arguments)
            for name, argument in op.inputs.items()
        }
        if op.type == "const":
            inputs["val"] = (constant(op.attributes["val"]),)
        return Operation(op.type, inputs, tuple((out.name, _tensor_type(out.type, dtypes)[0]) for out in op.outputs))

    def function(proto: Any) -> MilFunction:
        block = proto.block_specializations[proto.opset]
        plain = {i.name: _tensor_type(i.type, dtypes) for i in proto.inputs if i.type.WhichOneof("type") == "tensorType"}
        states = {i.name: _tensor_type(i.type.stateType.wrappedType, dtypes) for i in proto.inputs if i.name not in plain}
        return MilFunction(plain, states, tuple(block.outputs), tuple(operation(op) for op in block.operations))

    return {name: function(proto) for name, proto in spec.mlProgram.functions.items()}


def _tensor_type(kind: Any, dtypes: dict[int, str]) -> tuple[str, tuple[int, ...]]:
    tensor = kind.tensorType
    return dtypes[tensor.dataType], tuple(d.constant.size for d in tensor.dimensions)


def _blob(weights: np.ndarray, offset: int, dtype: str, shape: tuple[int, ...], package: Path) -> np.ndarray:
    header = bytes(weights[offset : offset + BLOB_HEADER.size])
    count = int(np.prod(shape))
    expected = (count + 1) // 2 if dtype == "int4" else np.dtype(dtype).itemsize * count
    if len(header) == BLOB_HEADER.size:
        sentinel, _, size, start = BLOB_HEADER.unpack(header)
        if sentinel == BLOB_SENTINEL and size == expected and start + size <= len(weights):
            data = weights[start : start + size]
            return _int4(data, shape) if dtype == "int4" else data.view(dtype).reshape(shape)
    raise EdgeQKVError(
        f"{package}: the weight file holds no {dtype} tensor of shape {list(shape)} at {offset}; export it again"
    )


def _int4(data: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Two's complement, the first of two values in the low half of a byte, as int8."""
    halves = np.stack([data & 15, data >> 4], axis=-1).astype(np.int8).reshape(-1)
    return ((halves ^ 8) - 8)[: math.prod(shape)].reshape(shape)
