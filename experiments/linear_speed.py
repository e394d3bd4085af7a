"""What ONNX Runtime's MatMulNBits takes alone, by the number of tokens, the block of a scale and the bits of a weight.

    python experiments/linear_speed.py

The two shapes of the 300M geometry's MLP, random weights, two threads, all in one process, in turn. Medians of milliseconds,
and 10^9 operations a second (a product and a sum are two).
"""

import statistics
import time

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from edgeqkv.progress import progress_bar
from edgeqkv.tables import table

SHAPES = ((1024, 4096), (4096, 1024))
FORMS = ((8, 32), (8, 128), (8, 256), (4, 32), (4, 128))
TOKENS = (1, 64, 128, 256)
ROUNDS, THREADS, SECONDS = 7, 2, 0.02


def session(columns: int, rows: int, bits: int, block: int) -> onnxruntime.InferenceSession:
    random = np.random.default_rng(0)
    values = random.integers(0, 256, (rows, columns // block, block * bits // 8), dtype=np.uint8)
    scales = random.random((rows, columns // block), dtype=np.float32)
    attributes = {"bits": bits, "block_size": block, "N": rows, "K": columns, "accuracy_level": 4}
    node = helper.make_node("MatMulNBits", ["x", "values", "scales"], ["y"], domain="com.microsoft", **attributes)
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["tokens", n]) for name, n in (("x", columns), ("y", rows))]
    constants = [numpy_helper.from_array(values, "values"), numpy_helper.from_array(scales, "scales")]
    graph = helper.make_graph([node], "linear", ends[:1], ends[1:], constants)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = THREADS
    model: onnx.ModelProto = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def visit(linear: onnxruntime.InferenceSession, x: np.ndarray) -> float:
    """Seconds of a call, over as many as take ``SECONDS``."""
    linear.run(None, {"x": x})
    calls, start = 0, time.perf_counter()
    while (passed := time.perf_counter() - start) < SECONDS:
        linear.run(None, {"x": x})
        calls += 1
    return passed / calls


def main() -> None:
    cells = {(shape, form): session(*shape, *form) for shape in SHAPES for form in FORMS}
    seconds = {(cell, tokens): list[float]() for cell in cells for tokens in TOKENS}
    with progress_bar("rounds") as update:
        for number in range(ROUNDS):
            update("MatMulNBits", number, ROUNDS)
            for (cell, tokens), found in seconds.items():
                x = np.random.default_rng(1).standard_normal((tokens, cell[0][0]), dtype=np.float32)
                found.append(visit(cells[cell], x))
    rows = []
    for (columns, out), (bits, block) in cells:
        row = [f"{columns} to {out}, int{bits}, block {block}"]
        for tokens in TOKENS:
            median = statistics.median(seconds[((columns, out), (bits, block)), tokens])
            row.append(f"{1e3 * median:.3f} ({2e-9 * tokens * columns * out / median:.0f})")
        rows.append(row)
    print(table(["ms (10^9 operations a second)", *(f"{tokens} tokens" for tokens in TOKENS)], rows))


if __name__ == "__main__":
    main()
