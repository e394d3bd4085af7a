"""Building an ONNX graph node by node, and writing several graphs over one weight file.

The graph is built, not traced: a tracer turns cache writes into copies of the whole cache.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx_ir as ir
from onnx_ir.tape import Tape

from edgeqkv.errors import EdgeQKVError

CONTRIB = "com.microsoft"
OURS = "edgeqkv"
DATA_FILE = "model.data"
INLINE_BYTES = 256  # smaller tensors (shapes, axes) stay in the graph, where shape inference can read them
TYPES = {
    "float32": ir.DataType.FLOAT,
    "float16": ir.DataType.FLOAT16,
    "int8": ir.DataType.INT8,
    "uint8": ir.DataType.UINT8,
    "int64": ir.DataType.INT64,
}
Tensors = dict[str, ir.TensorProtocol]


class GraphBuilder:
    """Nodes and constants of one graph. ``tensors`` holds the constants made so far, by name: graphs that are given the same
    one share them."""

    def __init__(self, tensors: Tensors) -> None:
        self.tensors = tensors
        self.tape = Tape()
        self.initializers: dict[str, ir.Value] = {}

    def op(self, kind: str, *inputs: ir.Value | None, domain: str = "", **attributes: object) -> ir.Value:
        return self.tape.op(kind, list(inputs), attributes=attributes, domain=domain)  # type: ignore[arg-type]

    def ops(self, kind: str, outputs: int, *inputs: ir.Value | None, domain: str, **attributes: object) -> Sequence[ir.Value]:
        """A node with several outputs."""
        attrs: dict[str, object] = dict(attributes)
        return self.tape.op_multi_out(kind, list(inputs), attributes=attrs, domain=domain, num_outputs=outputs)  # type: ignore[arg-type]

    def constant(self, name: str, array: np.ndarray) -> ir.Value:
        if name not in self.tensors:
            self.tensors[name] = ir.Tensor(np.ascontiguousarray(array), name=name)
        return self._initializer(name)

    def lazy(self, name: str, dtype: str, shape: Sequence[int], make: Callable[[], np.ndarray]) -> ir.Value:
        """A constant that is computed when it is written, so that a large model is never in memory as a whole."""
        if name not in self.tensors:

            def tensor() -> ir.TensorProtocol:
                return ir.Tensor(np.ascontiguousarray(make()), name=name)

            self.tensors[name] = ir.LazyTensor(tensor, dtype=TYPES[dtype], shape=ir.Shape(shape), name=name)
        return self._initializer(name)

    def _initializer(self, name: str) -> ir.Value:
        if name not in self.initializers:
            self.initializers[name] = self.tape.initializer(self.tensors[name])
        return self.initializers[name]

    def ints(self, name: str, values: Sequence[int]) -> ir.Value:
        return self.constant(name, np.array(values, np.int64))

    def reshape(self, x: ir.Value, *shape: int) -> ir.Value:
        return self.op("Reshape", x, self.ints("shape." + "x".join(map(str, shape)), shape))

    def slice(self, x: ir.Value, start: int, stop: int, axis: int) -> ir.Value:
        bounds = [self.ints(f"int.{bound}", [bound]) for bound in (start, stop, axis)]
        return self.op("Slice", x, *bounds)

    def model(self, name: str, inputs: Sequence[ir.Value], outputs: Sequence[ir.Value], opsets: Mapping[str, int]) -> ir.Model:
        graph = ir.Graph(
            inputs,
            outputs,
            nodes=self.tape.nodes,
            initializers=list(self.initializers.values()),
            opset_imports=dict(opsets),
            name=name,
        )
        return ir.Model(graph, ir_version=IR_VERSIONS[opsets[""]], producer_name="edgeqkv")


# Each opset has the IR version that came with it: a runtime refuses newer ones.
IR_VERSIONS = {21: 10, 24: 11}


def value(name: str, dtype: str, shape: Sequence[int | str]) -> ir.Value:
    return ir.Value(name=name, type=ir.TensorType(TYPES[dtype]), shape=ir.Shape(shape))


def name_output(output: ir.Value, name: str, dtype: str, shape: Sequence[int | str]) -> None:
    output.name, output.type, output.shape = name, ir.TensorType(TYPES[dtype]), ir.Shape(shape)


def write_graphs(models: Mapping[str, ir.Model], folder: Path) -> None:
    """Each model under its file name, and the weights of all once in model.data beside them, which the runtime maps."""
    folder.mkdir(parents=True, exist_ok=True)
    initializers = [value for model in models.values() for value in model.graph.initializers.values()]
    tensors = {value.name: value.const_value for value in initializers}
    large = [tensor for tensor in tensors.values() if tensor is not None and tensor.nbytes >= INLINE_BYTES]
    with _our_errors():
        external = ir.external_data.convert_tensors_to_external(large, folder, DATA_FILE) if large else []
        stored: dict[str | None, ir.TensorProtocol | None] = {tensor.name: tensor for tensor in external}
        for initializer in initializers:
            initializer.const_value = stored.get(initializer.name, initializer.const_value)
        for file, model in models.items():
            ir.save(model, folder / file)


@contextmanager
def _our_errors() -> Iterator[None]:
    """What a weight that is read while it is written raises (it may be damaged), out of what onnx_ir wraps it in."""
    try:
        yield
    except Exception as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, EdgeQKVError | OSError):
            cause = cause.__cause__ or cause.__context__
        raise cause or error from error
