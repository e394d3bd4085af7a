"""The forms of attention in the ONNX graph against each other: ``python -m edgeqkv.bench.attention``.

Six layers of the paper's 300M attention (16 query heads of 64) with a tiny MLP and vocabulary, so that attention is most of a
step; every form and number of KV heads in one process, in turn. This is what ``attention_form`` was chosen from.
"""

import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np

from edgeqkv.cache import CacheDtype, cache_layout
from edgeqkv.export.onnx import Attention, aliases, build_graph, write_graphs
from edgeqkv.native import native_library
from edgeqkv.presets import preset, random_weights
from edgeqkv.runtimes import OPERATORS
from edgeqkv.runtimes.onnx.engine import OnnxEngine
from edgeqkv.tables import table

CELLS = ((1, 128), (1, 1024), (1, 2000), (64, 1936))  # tokens, depth: decode, and a chunk of a long prompt
KV_HEADS = (16, 8, 4, 2, 1)
ROUNDS, STEPS, THREADS = 15, 4, 2
CAPACITY = 2048


def build(n_kv_head: int, form: Attention, cache: CacheDtype, folder: Path) -> OnnxEngine:
    base = preset("paper-300m", "Q-K=V")
    config = replace(base, n_kv_head=n_kv_head, n_layer=6, d_mlp=16, vocab_size=16, token_count=16)
    layout = cache_layout(config, CAPACITY, cache, "per_token" if form == "fused" else "static")
    scales = {name: np.full(config.kv_dim, 0.02, np.float32) for name in layout.names}
    graph = build_graph(config, random_weights(config, 0), layout, True, scales, form)
    write_graphs({"model.onnx": graph}, folder)
    operators = native_library(OPERATORS["onnx"]) if form == "fused" else None
    return OnnxEngine(folder / "model.onnx", layout, aliases(graph), config.vocab_size, THREADS, operators)


def _cell(seconds: list[float]) -> str:
    return f"{1e3 * min(seconds):.2f} {1e3 * statistics.median(seconds):.2f}"


def main() -> None:
    forms = get_args(Attention)
    for cache in ("fp32", "int8"):
        samples: dict[tuple[int, str, int, int], list[float]] = {}
        with tempfile.TemporaryDirectory() as folder:
            engines = {(n, f): build(n, f, cache, Path(folder) / f"{n}-{f}") for n in KV_HEADS for f in forms}
            for engine in engines.values():  # real rows everywhere, as after a long prompt
                for start in range(0, CAPACITY, 64):
                    engine.run(np.ones(64, np.int64), start)
            for _ in range(ROUNDS):
                for tokens, depth in CELLS:
                    ids = np.ones(tokens, np.int64)
                    for (n, form), engine in engines.items():
                        for step in range(-1, STEPS):  # the first is a warm-up
                            start_time = time.perf_counter()
                            engine.run(ids, depth)
                            if step >= 0:
                                samples.setdefault((n, form, tokens, depth), []).append(time.perf_counter() - start_time)
        header = ["KV heads", *(f"{form}, {tokens} at {depth}" for tokens, depth in CELLS for form in forms)]
        rows = [[n, *(_cell(samples[n, form, *cell]) for cell in CELLS for form in forms)] for n in KV_HEADS]
        print(f"{cache} cache, 6 layers, {THREADS} threads, ms for so many tokens at a depth: min median of {ROUNDS * STEPS}\n")
        print(table(header, rows) + "\n")


if __name__ == "__main__":
    main()
