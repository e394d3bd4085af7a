"""The forms of attention in the ONNX graph against each other: ``python experiments/attention_forms.py``.

Six layers of the paper's 300M attention (16 query heads of 64) with a tiny MLP and vocabulary, so that attention is most of a
step; every form and number of KV heads in one process, in turn. This is what ``attention_form`` was chosen from.
"""

import statistics
import tempfile
import time
from collections import defaultdict
from itertools import product
from pathlib import Path
from typing import get_args

import numpy as np
from msgspec.structs import replace

from edgeqkv.cache import CacheDtype, cache_layout
from edgeqkv.config import ModelConfig, SharedAttention
from edgeqkv.export.onnx.attention import Attention
from edgeqkv.export.onnx.graph import write_graphs
from edgeqkv.export.onnx.write import aliases, build_graph, weight_formats
from edgeqkv.native import native_library
from edgeqkv.presets import preset, random_weights
from edgeqkv.runtimes.onnx.engine import OnnxEngine
from edgeqkv.runtimes.onnx.target import LIBRARY
from edgeqkv.tables import table

FORMS: tuple[Attention, ...] = get_args(Attention)
CELLS = ((1, 128), (1, 1024), (1, 2000), (64, 1936))  # tokens, depth: decode, and a chunk of a long prompt
KV_HEADS = (16, 8, 4, 2, 1)
CAPACITY, CHUNK = 2048, 64
ROUNDS, STEPS, THREADS = 15, 4, 2

Case = tuple[int, Attention]  # KV heads and form
Samples = dict[tuple[Case, tuple[int, int]], list[float]]  # seconds by case and cell


def geometry(n_kv_head: int) -> ModelConfig:
    base = preset("paper-300m", "Q-K=V")
    assert isinstance(base.attention, SharedAttention)
    attention, mlp = replace(base.attention, n_kv_head=n_kv_head), replace(base.mlp, width=16)
    return replace(base, n_layer=6, vocab_size=16, token_count=16, attention=attention, mlp=mlp)


def build(case: Case, cache: CacheDtype, folder: Path) -> OnnxEngine:
    n_kv_head, form = case
    config, fused = geometry(n_kv_head), form == "fused"
    layout = cache_layout(config, CAPACITY, cache, "per_row" if fused else "static")
    scales = {name: np.full(width, 0.02, np.float32) for name, width in layout.static_widths.items()}
    formats = weight_formats("int8", "fused" if fused else "stock")
    graph = build_graph(config, random_weights(config, 0), layout, formats, scales, form)
    write_graphs({"model.onnx": graph}, folder)
    operators = native_library(LIBRARY) if fused else None
    return OnnxEngine(folder / "model.onnx", layout, aliases(graph), config.vocab_size, THREADS, operators)


def fill(engine: OnnxEngine) -> None:
    """Real rows everywhere, as after a long prompt."""
    for start in range(0, CAPACITY, CHUNK):
        engine.run(np.ones(CHUNK, np.int64), start)


def measure(engines: dict[Case, OnnxEngine]) -> Samples:
    samples: Samples = defaultdict(list)
    for _, cell in product(range(ROUNDS), CELLS):
        for case, engine in engines.items():
            samples[case, cell] += steps(engine, *cell)
    return samples


def steps(engine: OnnxEngine, tokens: int, depth: int) -> list[float]:
    """Seconds of each of some steps, after one that is not counted."""
    ids, seconds = np.ones(tokens, np.int64), []
    for _ in range(1 + STEPS):
        start = time.perf_counter()
        engine.run(ids, depth)
        seconds.append(time.perf_counter() - start)
    return seconds[1:]


def main() -> None:
    caches: tuple[CacheDtype, ...] = ("fp32", "int8")
    for cache in caches:
        with tempfile.TemporaryDirectory() as folder:
            engines = {case: build(case, cache, Path(folder) / f"{case[0]}-{case[1]}") for case in product(KV_HEADS, FORMS)}
        for engine in engines.values():
            fill(engine)
        samples = measure(engines)
        cells = list(product(CELLS, FORMS))
        header = ["KV heads", *(f"{form}, {tokens} at {depth}" for (tokens, depth), form in cells)]
        rows = [[n, *(shown(samples[(n, form), cell]) for cell, form in cells)] for n in KV_HEADS]
        print(f"{cache} cache, 6 layers, {THREADS} threads, ms for so many tokens at a depth: min median of {ROUNDS * STEPS}\n")
        print(table(header, rows) + "\n")


def shown(seconds: list[float]) -> str:
    return f"{1e3 * min(seconds):.2f} {1e3 * statistics.median(seconds):.2f}"


if __name__ == "__main__":
    main()
