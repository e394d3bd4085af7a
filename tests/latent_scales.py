"""One int8 scale for a whole latent row, or one for each slice? ``python tests/latent_scales.py`` prints the comparison.

A row is a latent, which a norm has brought to one size, and a rotary part, which nothing has. Weights are random, scaled so
that activations have the size that trained ones have; ``ratio`` is how much larger the rotary part is. Without a trained
model this bounds what int8 costs, no more.
"""

import tempfile
from pathlib import Path

import numpy as np

from edgeqkv.cache import cache_layout
from edgeqkv.config import MLP, Head, ModelConfig, Norm
from edgeqkv.eager import EagerModel
from edgeqkv.export.onnx.graph import write_graphs
from edgeqkv.export.onnx.write import aliases, build_graph, weight_formats
from edgeqkv.native import native_library
from edgeqkv.parameters import parameter_shapes
from edgeqkv.presets import latent, rotary
from edgeqkv.runtimes.onnx.engine import OnnxEngine
from edgeqkv.runtimes.onnx.target import LIBRARY
from edgeqkv.tables import table

TOKENS = 256
RATIOS = (0.25, 1.0, 4.0, 16.0)
CONFIG = ModelConfig(
    n_layer=4,
    d_model=256,
    n_positions=TOKENS,
    vocab_size=512,
    token_count=512,
    embedding_scale=1.0,
    residual_scale=1.0,
    positions=rotary(1e4, 64),
    norm=Norm(kind="rms_norm", eps=1e-6),
    attention=latent(n_head=8, q_rank=128, kv_rank=512, nope_dim=32, rope_dim=64, value_dim=32),
    mlp=MLP(kind="swiglu", width=512, bias=False),
    head=Head(tied=True, scale=1.0),
)


def weights_like_trained(ratio: float) -> dict[str, np.ndarray]:
    """Matrices keep the size of what they multiply; logits have a standard deviation of about 3."""
    generator = np.random.default_rng(0)
    weights = {}
    for name, shape in parameter_shapes(CONFIG).items():
        if len(shape) == 1:
            weights[name] = np.exp(0.3 * generator.standard_normal(shape)).astype(np.float32)
        else:
            weights[name] = (generator.standard_normal(shape) / np.sqrt(shape[-1])).astype(np.float32)
        if "k_rope" in name:
            weights[name] *= ratio
        if "q_rope" in name:
            weights[name] /= ratio  # scores of the size that training keeps
    weights["wte.weight"] *= 3
    return weights


def logits_of(weights: dict[str, np.ndarray], ids: np.ndarray, scales: str | None) -> np.ndarray:
    """Of every position after the first, by the fused graph; ``scales`` None is the fp32 cache."""
    layout = cache_layout(CONFIG, TOKENS, "int8" if scales else "fp32", scales)
    graph = build_graph(CONFIG, weights, layout, weight_formats("fp32", products=False), {}, "fused")
    with tempfile.TemporaryDirectory() as folder:
        write_graphs({"model.onnx": graph}, Path(folder))
        engine = OnnxEngine(Path(folder) / "model.onnx", layout, aliases(graph), 512, 1, native_library(LIBRARY))
        return np.stack([engine.run(ids[i : i + 1], i) for i in range(len(ids))])


def compare(ratio: float) -> dict[str, tuple[float, float]]:
    """Largest logit error and mean KL in nats against the fp32 cache, for each layout of scales."""
    weights, ids = weights_like_trained(ratio), np.random.default_rng(1).integers(0, 512, TOKENS)
    exact = logits_of(weights, ids, None)
    assert np.abs(exact - EagerModel(CONFIG, weights).forward(ids.tolist())).max() < 1e-2
    out = {}
    for scales in ("per_row", "per_slice"):
        rounded = logits_of(weights, ids, scales)
        log_p, log_q = (x - np.log(np.exp(x).sum(-1, keepdims=True)) for x in (exact.astype(float), rounded.astype(float)))
        out[scales] = float(np.abs(exact - rounded).max()), float((np.exp(log_p) * (log_p - log_q)).sum(-1).mean())
    return out


def main() -> None:
    rows = []
    for ratio in RATIOS:
        found = compare(ratio)
        rows.append([f"{ratio:g}", *(f"{value:.1e}" for scales in ("per_row", "per_slice") for value in found[scales])])
    row = CONFIG.row.widths["k"]
    print(f"int8 latent row of {row} channels against fp32, {CONFIG.n_layer} layers, {TOKENS} tokens, random weights\n")
    header = ["rotary part / latent", "one scale: max |Δlogit|", "KL nats", "one a slice: max |Δlogit|", "KL nats"]
    print(table(header, rows))


if __name__ == "__main__":
    main()
