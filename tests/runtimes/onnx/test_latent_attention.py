"""edgeqkv::LatentAttention by itself in ONNX Runtime, against its definition in float64, and in a model."""

import numpy as np
import pytest
from onnx import TensorProto, helper
from test_architectures import random_model, whole_config

import edgeqkv
from edgeqkv.bundle import read_bundle
from edgeqkv.config import MLP, LatentAttention, Rotary
from edgeqkv.model_folder import write_model
from edgeqkv.native import native_library
from edgeqkv.runtimes.onnx.library import onnxruntime
from edgeqkv.runtimes.onnx.target import LIBRARY

HEADS, NOPE, ROPE, LATENT, VALUE, CAPACITY = 3, 32, 16, 48, 24, 320
ROW, SCALE = LATENT + ROPE, 0.2
WIDE = MLP(kind="swiglu", width=48, bias=False)  # int8 weights take multiples of 16
TYPES = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16, "int8": TensorProto.INT8}
INPUTS = {
    "q_nope": ("float32", ["t", HEADS * NOPE]),
    "q_rope": ("float32", ["t", HEADS * ROPE]),
    "row": ("float32", ["t", ROW]),
    "position": ("int64", [1]),
    "w_k": ("int8", [HEADS, LATENT, NOPE]),
    "w_k_scale": ("float32", [HEADS, LATENT, 1]),
    "w_v": ("int8", [HEADS, VALUE, LATENT]),
    "w_v_scale": ("float32", [HEADS, VALUE, 1]),
}


def session(dtype):
    shapes = INPUTS | {"cache": (dtype, [1, 1, CAPACITY, ROW])}
    if dtype == "int8":
        shapes["cache_scale"] = ("float32", [1, 1, 2, CAPACITY])
    attributes = {"softmax_scale": SCALE} | ({"scale_split": LATENT} if dtype == "int8" else {})
    caches = [name for name in shapes if name.startswith("cache")]
    outputs = {"out": ("float32", ["t", HEADS * VALUE])} | {f"{name}.out": shapes[name] for name in caches}
    node = helper.make_node("LatentAttention", list(shapes), list(outputs), domain="edgeqkv", **attributes)
    # Of any shape, so that the operator is what refuses.
    types = TYPES | {"int64": TensorProto.INT64}
    graph = helper.make_graph(
        [node],
        "latent",
        *(
            [helper.make_tensor_value_info(name, types[kind], None) for name, (kind, _) in ports.items()]
            for ports in (shapes, outputs)
        ),
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("edgeqkv", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    ort = onnxruntime()
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.register_custom_ops_library(str(native_library(LIBRARY)))
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def stored(rows, dtype):
    """Rows as the cache holds them, and the scales of their slices."""
    if dtype != "int8":
        return rows.astype(dtype), None
    scales = np.stack([np.abs(part).max(-1) / np.float32(127) for part in (rows[:, :LATENT], rows[:, LATENT:])])
    widths = np.repeat(scales, [LATENT, ROPE], axis=0).T
    return np.rint(rows / widths).astype(np.int8), scales


def widened(cache, scales):
    return (
        cache.astype(np.float64) if scales is None else cache * np.repeat(scales, [LATENT, ROPE], axis=0).T.astype(np.float64)
    )


def feeds(dtype, tokens, position, seed=0):
    random = np.random.default_rng(seed)

    def normal(*shape):
        return random.standard_normal(shape).astype(np.float32)

    given = {
        "q_nope": normal(tokens, HEADS * NOPE),
        "q_rope": normal(tokens, HEADS * ROPE),
        "row": normal(tokens, ROW) * np.repeat(np.float32([1, 4]), [LATENT, ROPE]),
        "position": np.array([position]),
        "w_k": random.integers(-127, 128, (HEADS, LATENT, NOPE), np.int8),
        "w_k_scale": np.abs(normal(HEADS, LATENT, 1)) / 500,
        "w_v": random.integers(-127, 128, (HEADS, VALUE, LATENT), np.int8),
        "w_v_scale": np.abs(normal(HEADS, VALUE, 1)) / 500,
    }
    cache, scales = stored(normal(CAPACITY, ROW), dtype)
    given["cache"] = cache[None, None]
    if scales is not None:
        given["cache_scale"] = scales[None, None]
    return given


def expected(given, dtype, position):
    """The output in float64, and the cache after the step."""
    tokens = len(given["row"])
    cache, scales = given["cache"][0, 0].copy(), given["cache_scale"][0, 0].copy() if dtype == "int8" else None
    new, new_scales = stored(given["row"], dtype)
    cache[position : position + tokens] = new
    if scales is not None:
        scales[:, position : position + tokens] = new_scales
    rows = widened(cache, scales)[: position + tokens]
    w_k, w_v = (given[name] * given[f"{name}_scale"].astype(np.float64) for name in ("w_k", "w_v"))
    out = np.empty((tokens, HEADS, VALUE))
    for h in range(HEADS):
        keys = np.concatenate([rows[:, :LATENT] @ w_k[h], rows[:, LATENT:]], axis=1)
        values = rows[:, :LATENT] @ w_v[h].T
        for t in range(tokens):
            query = np.concatenate([given[name].reshape(tokens, HEADS, -1)[t, h] for name in ("q_nope", "q_rope")])
            scores = keys[: position + t + 1] @ query * SCALE
            weights = np.exp(scores - scores.max())
            out[t, h] = weights @ values[: position + t + 1] / weights.sum()
    return out.reshape(tokens, -1), cache, scales


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(("tokens", "position"), [(1, 0), (1, CAPACITY - 1), (7, 30), (CAPACITY, 0), (160, 160)])
def test_it_is_attention_over_latents(tokens, position, dtype):
    """From the first position to the last, in the absorbed form and, of a long prompt, in the expanded one."""
    given = feeds(dtype, tokens, position)
    out, cache, scales = expected(given, dtype, position)
    found = session(dtype).run(None, given)
    np.testing.assert_allclose(found[0], out, atol=1e-3 * np.abs(out).max())
    np.testing.assert_array_equal(found[1][0, 0], cache)
    if scales is not None:
        np.testing.assert_array_equal(found[2][0, 0], scales)


def test_no_tokens_are_no_work():
    given = feeds("float32", 0, 5)
    out, cache = session("float32").run(None, given)
    assert out.shape == (0, HEADS * VALUE)
    np.testing.assert_array_equal(cache, given["cache"])


@pytest.mark.parametrize(
    ("dtype", "change", "reason"),
    [
        ("float32", {"position": np.array([CAPACITY - 2])}, "the tokens do not fit the cache"),
        ("float32", {"position": np.array([-1])}, "the tokens do not fit the cache"),
        ("float32", {"position": np.zeros(2, np.int64)}, "position has a wrong shape"),
        ("float32", {"q_nope": np.zeros((3, 7), np.float32)}, "q_nope, q_rope or row has a wrong shape"),
        ("float32", {"row": np.zeros((2, ROW), np.float32)}, "q_nope, q_rope or row has a wrong shape"),
        ("float32", {"w_k": np.zeros((HEADS, LATENT), np.int8)}, "q_nope, q_rope, w_k, w_v or cache has a wrong shape"),
        ("float32", {"w_v": np.zeros((HEADS, VALUE, 16), np.int8)}, "w_v, w_k_scale or w_v_scale has a wrong shape"),
        ("float32", {"w_k_scale": np.zeros((HEADS, 1, 1), np.float32)}, "w_v, w_k_scale or w_v_scale has a wrong shape"),
        ("float32", {"cache": np.zeros((1, 2, CAPACITY, ROW), np.float32)}, "cache has a wrong shape"),
        ("float32", {"cache": np.zeros((1, 1, CAPACITY, LATENT), np.float32)}, "q_nope, q_rope or row has a wrong shape"),
        ("int8", {"cache_scale": np.zeros((1, 1, CAPACITY), np.float32)}, "cache_scale has a wrong shape"),
    ],
)
def test_what_does_not_fit_is_an_error_and_no_crash(dtype, change, reason):
    with pytest.raises(Exception, match=f"LatentAttention: {reason}"):
        session(dtype).run(None, feeds(dtype, 3, 0) | change)


@pytest.mark.parametrize("cache", ["fp32", "fp16", "int8"])
def test_a_prompt_at_once_is_the_prompt_token_by_token(tmp_path, cache):
    """Both forms over one cache, in a model with int8 weights."""
    attention = LatentAttention("absorbed", 4, 32, 64, 32, 16, 24, bias=True, norm_eps=1e-6, softmax_scale=0.2)
    config = whole_config(attention, Rotary(1e4, 16, "halves", None, "unturned"), n_positions=300, mlp=WIDE)
    write_model(tmp_path / "m", random_model(config, 0), "# random\n")
    edgeqkv.export(tmp_path / "m", tmp_path / "b", weights="int8", cache=cache, prefill_chunk=300)
    fused = read_bundle(tmp_path / "b").artifacts[0]
    assert fused.operators == ("edgeqkv::LatentAttention",)
    ids = np.random.default_rng(1).integers(0, config.token_count, 300).tolist()
    at_once, by_token = (edgeqkv.open(tmp_path / "b", "onnx", "fused", threads=2) for _ in range(2))
    for start, end in ((0, 170), (170, 171), (171, 300)):
        logits = at_once.prefill(ids[start:end])[: config.token_count]
        for token in ids[start:end]:
            expected = by_token.step(token)[: config.token_count]
        np.testing.assert_allclose(logits, expected, atol=0.02 * expected.std())


def test_where_the_operator_does_not_take_the_products_they_are_floats(tmp_path):
    attention = LatentAttention("absorbed", 3, None, 48, 24, 8, 16, bias=False, norm_eps=1e-6, softmax_scale=0.2)
    config = whole_config(attention, Rotary(1e4, 8, "halves", None, "unturned"), mlp=WIDE)
    write_model(tmp_path / "m", random_model(config, 0), "# random\n")
    edgeqkv.export(tmp_path / "m", tmp_path / "b", weights="int8", cache="int8")
    fused = read_bundle(tmp_path / "b").artifacts[0]
    assert (fused.kernel, fused.operators) == ("fused", ("edgeqkv::CachedAttention",))
    assert fused.weights.formats["h.*.attn.k_b.weight"] == "fp32"
    assert np.isfinite(edgeqkv.open(tmp_path / "b", "onnx", "fused").prefill([1, 2, 3])[: config.token_count]).all()
