"""Building an ONNX graph node by node, and writing several graphs over one weight file.

The graph is built, not traced: a tracer turns cache writes into copies of the whole cache.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import numpy as np
import onnx_ir as ir
from onnx_ir.tape import Tape

from edgeqkv.errors import EdgeQKVError

CONTRIB = "com.microsoft"
OURS = "edgeqkv"
DATA_FILE = "model.data"
# Large tables that are only gathered from have a file of their own: libedgeqkv gives their pages back after each call.
TABLES_FILE = "tables.data"
TABLE_BYTES = 4 * 2**20
# What reads single rows of its first input, where the runtime has it mapped.
GATHERING = ("Gather", "GatherBlockQuantized", "Slice")
INLINE_BYTES = 256  # smaller tensors (shapes, axes) stay in the graph, where shape inference can read them
TYPES = {
    "float32": ir.DataType.FLOAT,
    "float16": ir.DataType.FLOAT16,
    "int8": ir.DataType.INT8,
    "uint8": ir.DataType.UINT8,
    "int64": ir.DataType.INT64,
}
Tensors = dict[str, ir.TensorProtocol]


class Rows(ir.LazyTensor):
    """Rows ``first`` to ``last`` of another constant, which is stored in the data file."""

    def __init__(self, whole: ir.TensorProtocol, first: int, last: int, name: str) -> None:
        def tensor() -> ir.TensorProtocol:
            return ir.Tensor(whole.numpy()[first:last], name=name)

        self.row_bytes = whole.nbytes // whole.shape.numpy()[0]
        shape = ir.Shape((last - first, *whole.shape.numpy()[1:]))
        super().__init__(tensor, dtype=whole.dtype, shape=shape, name=name)
        self.whole, self.first = whole, first

    def stored(self, whole: ir.ExternalTensor) -> ir.ExternalTensor:
        """Where the rows lie in the file that holds the whole."""
        offset = (whole.offset or 0) + self.first * self.row_bytes
        return ir.ExternalTensor(
            whole.location, offset, self.nbytes, self.dtype, shape=self.shape, name=str(self.name), base_dir=whole.base_dir
        )


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

    def rows(self, base: ir.Value, first: int, last: int) -> ir.Value:
        """Rows ``first`` to ``last`` of a large constant as a constant of their own, over the same bytes of the file."""
        whole = self.tensors[str(base.name)]
        name = f"{base.name}.{first}"
        if name not in self.tensors:
            self.tensors[name] = Rows(whole, first, last, name)
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
            # A matrix that is used in pieces is none itself.
            initializers=[value for value in self.initializers.values() if value.uses()],
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
    """Each model under its file name, and the weights of all once beside them, in files that the runtime maps."""
    folder.mkdir(parents=True, exist_ok=True)
    initializers = [value for model in models.values() for value in model.graph.initializers.values()]
    tensors = {value.name: value.const_value for value in initializers}
    views = [tensor for tensor in tensors.values() if isinstance(tensor, Rows)]
    tensors |= {view.whole.name: view.whole for view in views}
    large = [t for t in tensors.values() if t is not None and t.nbytes >= INLINE_BYTES and not isinstance(t, Rows)]
    tables = _tables(initializers)
    stored: dict[str | None, ir.TensorProtocol | None] = {}
    with _our_errors():
        for file in (DATA_FILE, TABLES_FILE):
            held = [tensor for tensor in large if (tensor.name in tables) == (file == TABLES_FILE)]
            if held:
                external = ir.external_data.convert_tensors_to_external(held, folder, file)
                stored |= {tensor.name: tensor for tensor in external}
        stored |= {view.name: view.stored(cast(ir.ExternalTensor, stored[view.whole.name])) for view in views}
        for initializer in initializers:
            initializer.const_value = stored.get(initializer.name, initializer.const_value)
        for file, model in models.items():
            ir.save(model, folder / file)


def _tables(initializers: Sequence[ir.Value]) -> set[str | None]:
    """Names of the large tensors that every graph only gathers from."""
    found: dict[str | None, bool] = {}
    for value in initializers:
        large = value.const_value is not None and value.const_value.nbytes >= TABLE_BYTES
        gathered = all(use.node.op_type in GATHERING and use.idx == 0 for use in value.uses())
        found[value.name] = found.get(value.name, True) and large and gathered
    return {name for name, gathered in found.items() if gathered}


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
