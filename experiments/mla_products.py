"""MLA's products of each head, W_K and W_V, against a linear of as many bytes, alone in ONNX Runtime, for one token.

    python experiments/mla_products.py

Youtu-LLM-2B's widths: 16 heads, each with int8 matrices of 512 x 128 and 128 x 512. Three graphs of 32 layers, whose weights
together are larger than caches are: one 8-bit linear of the same bytes a layer; our operator, which does the products and
attends over a cache that is empty but for the token; and a linear for each head and matrix, 32 nodes a layer. One thread, then
two, all graphs in one process, in turn. Microseconds a layer: minimum, median, maximum of the rounds; GB/s by the median.
"""

import statistics
import time

import numpy as np
import onnx
import onnxruntime
from onnx import NodeProto, TensorProto, helper, numpy_helper

from edgeqkv.native import native_library
from edgeqkv.progress import progress_bar
from edgeqkv.runtimes.onnx.target import LIBRARY
from edgeqkv.tables import table

LAYERS, THREADS, ROUNDS, CALLS = 32, (1, 2), 15, 10
HEADS, LATENT, ROPE, WIDTH, CAPACITY, BLOCK = 16, 512, 64, 128, 16, 128
BYTES = 2 * HEADS * LATENT * WIDTH  # of the weights of a layer

random = np.random.default_rng(0)


class Graph:
    """Nodes whose inputs are the graph's and whose outputs all are."""

    def __init__(self) -> None:
        self.nodes: list[NodeProto] = []
        self.constants: list[TensorProto] = []
        self.feeds: dict[str, np.ndarray] = {}

    def feed(self, name: str, value: np.ndarray) -> str:
        self.feeds[name] = value
        return name

    def constant(self, value: np.ndarray) -> str:
        self.constants.append(numpy_helper.from_array(value, f"constant{len(self.constants)}"))
        return self.constants[-1].name

    def node(self, kind: str, inputs: list[str], outputs: int, domain: str, **attributes: float) -> None:
        names = [f"out{len(self.nodes)}.{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(kind, inputs, names, domain=domain, **attributes))

    def linear(self, columns: int, rows: int) -> None:
        x = self.feed(f"x{columns}", random.standard_normal((1, columns), dtype=np.float32))
        values = self.constant(random.integers(0, 256, (rows, columns // BLOCK, BLOCK), dtype=np.uint8))
        scales = self.constant(random.random((rows, columns // BLOCK), dtype=np.float32))
        shape = {"bits": 8, "block_size": BLOCK, "N": rows, "K": columns, "accuracy_level": 4}
        self.node("MatMulNBits", [x, values, scales], 1, "com.microsoft", **shape)

    def latent(self) -> None:
        widths = {"q_nope": HEADS * WIDTH, "q_rope": HEADS * ROPE, "row": LATENT + ROPE}
        given = [self.feed(name, random.standard_normal((1, n), dtype=np.float32)) for name, n in widths.items()]
        given.append(self.feed("position", np.zeros(1, np.int64)))
        for shape in ((HEADS, LATENT, WIDTH), (HEADS, WIDTH, LATENT)):
            given.append(self.constant(random.integers(-127, 128, shape, dtype=np.int8)))
            given.append(self.constant(random.random((*shape[:2], 1), dtype=np.float32) / 1000))
        given.append(self.feed("cache", np.zeros((1, 1, CAPACITY, LATENT + ROPE), np.int8)))
        given.append(self.feed("cache_scale", np.zeros((1, 1, 2, CAPACITY), np.float32)))
        self.node("LatentAttention", given, 3, "edgeqkv", softmax_scale=0.07, scale_split=LATENT)

    def session(self, threads: int) -> onnxruntime.InferenceSession:
        inputs = [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
            for name, value in self.feeds.items()
        ]
        kinds = {1: TensorProto.INT8}  # the cache of our operator; all else is float
        outputs = [
            helper.make_tensor_value_info(name, kinds.get(i, TensorProto.FLOAT), None)
            for node in self.nodes
            for i, name in enumerate(node.output)
        ]
        graph = helper.make_graph(self.nodes, "products", inputs, outputs, self.constants)
        opsets = [helper.make_opsetid(name, version) for name, version in (("", 21), ("com.microsoft", 1), ("edgeqkv", 1))]
        model: onnx.ModelProto = helper.make_model(graph, opset_imports=opsets, ir_version=10)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.add_session_config_entry("edgeqkv.threads", str(threads))
        options.register_custom_ops_library(str(native_library(LIBRARY)))
        return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def main() -> None:
    linear, ours, heads = Graph(), Graph(), Graph()
    for _ in range(LAYERS):
        linear.linear(1024, BYTES // 1024)
        ours.latent()
        for _ in range(HEADS):
            heads.linear(WIDTH, LATENT)
            heads.linear(LATENT, WIDTH)
    graphs = {"one linear, 1024 to 2048": linear, "our operator": ours, "32 linears, two a head": heads}
    sessions = {(name, threads): graph.session(threads) for threads in THREADS for name, graph in graphs.items()}
    seconds = {cell: list[float]() for cell in sessions}
    with progress_bar("rounds") as update:
        for number in range(ROUNDS):
            update("MLA's products", number, ROUNDS)
            for (name, threads), session in sessions.items():
                session.run(None, graphs[name].feeds)
                start = time.perf_counter()
                for _ in range(CALLS):
                    session.run(None, graphs[name].feeds)
                seconds[name, threads].append((time.perf_counter() - start) / CALLS / LAYERS)
    rows = []
    for (name, threads), found in seconds.items():
        median = statistics.median(found)
        spread = (f"{1e6 * x:.0f}" for x in (min(found), median, max(found)))
        rows.append([name, str(threads), *spread, f"{1e-9 * BYTES / median:.1f}"])
    print(table([f"{BYTES / 2**20:.0f} MiB of weights a layer", "threads", "min µs", "median", "max", "GB/s"], rows))


if __name__ == "__main__":
    main()
