"""The operator alone, in a graph of one node: every dtype and shape it takes against numpy, and what it has to refuse."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper

from edgeqkv.native import native_library
from edgeqkv.runtimes.onnx.target import LIBRARY

N_HEAD, N_KV_HEAD, HEAD_DIM, CAPACITY = 6, 2, 16, 12
TYPES = {"float32": onnx.TensorProto.FLOAT, "float16": onnx.TensorProto.FLOAT16, "int8": onnx.TensorProto.INT8}


def session(dtype="float32", with_v=False, threads=1, n_kv_head=N_KV_HEAD, with_scales=None, leave_out=None):
    """The node with its inputs of free shape, as q, k, v, position, k_cache, k_scale, v_cache, v_scale."""
    scaled = dtype == "int8" if with_scales is None else with_scales
    present = {"k_cache": True, "k_scale": scaled, "v_cache": with_v, "v_scale": with_v and scaled}
    inputs = ["q", "k", "v" if with_v else "", "position", *(name if there else "" for name, there in present.items())]
    outputs = ["out", *(f"{name}.out" if there else "" for name, there in present.items())]
    outputs = ["" if name == leave_out else name for name in outputs]
    floats, positions = onnx.TensorProto.FLOAT, onnx.TensorProto.INT64
    kinds = {"q": floats, "k": floats, "v": floats, "position": positions, "k_scale": floats, "v_scale": floats, "out": floats}
    kind = lambda name: kinds.get(name.removesuffix(".out"), TYPES[dtype])  # noqa: E731
    node = helper.make_node("CachedAttention", inputs, outputs, domain="edgeqkv", n_head=N_HEAD, n_kv_head=n_kv_head)
    ports = [[helper.make_tensor_value_info(n, kind(n), None) for n in names if n] for names in (inputs, outputs)]
    graph = helper.make_graph([node], "one", *ports)
    opsets = [helper.make_opsetid("", 24), helper.make_opsetid("edgeqkv", 1)]
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    options.add_session_config_entry("edgeqkv.threads", str(threads))
    options.register_custom_ops_library(str(native_library(LIBRARY)))
    model = helper.make_model(graph, opset_imports=opsets, ir_version=11)
    return onnxruntime.InferenceSession(model.SerializeToString(), options)


def feeds(dtype="float32", with_v=False, tokens=3, position=4, capacity=CAPACITY):
    random = np.random.default_rng(0)
    normal = lambda *shape: random.standard_normal(shape).astype(np.float32)  # noqa: E731
    made = {"q": normal(tokens, N_HEAD * HEAD_DIM), "k": normal(tokens, N_KV_HEAD * HEAD_DIM), "position": np.array([position])}
    if with_v:
        made["v"] = normal(tokens, N_KV_HEAD * HEAD_DIM)
    for tensor in "kv" if with_v else "k":
        rows = normal(1, N_KV_HEAD, capacity, HEAD_DIM)
        if dtype == "int8":
            made[f"{tensor}_scale"] = np.abs(rows).max(-1) / np.float32(127)
            rows = np.rint(rows / made[f"{tensor}_scale"][..., None])
        made[f"{tensor}_cache"] = rows.astype(dtype)
    return made


def expected(given, dtype, position):
    """Causal attention in float64 over the rows as they would be stored."""
    tokens, with_v = len(given["q"]), "v" in given
    rows = {}
    for tensor in "kv" if with_v else "k":
        held = given[f"{tensor}_cache"][0].astype(np.float64)
        if dtype == "int8":
            held = held * given[f"{tensor}_scale"][0][..., None]
        new = given[tensor].reshape(tokens, N_KV_HEAD, HEAD_DIM).swapaxes(0, 1)
        if dtype == "int8":
            scale = np.abs(new).max(-1, keepdims=True) / np.float32(127)
            new = np.rint(new / scale) * scale.astype(np.float64)
        rows[tensor] = np.concatenate([held[:, :position], new.astype(dtype if dtype == "float16" else np.float64)], axis=1)
    q = given["q"].reshape(tokens, N_HEAD, HEAD_DIM).astype(np.float64)
    out = np.empty_like(q)
    for t in range(tokens):
        for h in range(N_HEAD):
            k = rows["k"][h * N_KV_HEAD // N_HEAD, : position + t + 1].astype(np.float64)
            v = rows.get("v", rows["k"])[h * N_KV_HEAD // N_HEAD, : position + t + 1]
            scores = k @ q[t, h] / np.sqrt(HEAD_DIM)
            weights = np.exp(scores - scores.max())
            out[t, h] = weights @ v / weights.sum()
    return out.reshape(tokens, -1)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("with_v", [False, True])
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(("tokens", "position"), [(1, 0), (1, CAPACITY - 1), (5, 0), (3, 4), (CAPACITY, 0)])
def test_it_is_attention_over_the_cache(tokens, position, dtype, with_v, threads):
    given = feeds(dtype, with_v, tokens, position)
    runtime = session(dtype, with_v, threads)
    after = dict(zip([output.name for output in runtime.get_outputs()], runtime.run(None, given), strict=True))
    np.testing.assert_allclose(after["out"], expected(given, dtype, position), atol=1e-3 if dtype == "int8" else 1e-5)
    written = slice(position, position + tokens)
    for tensor in "kv" if with_v else "k":
        rows = given[tensor].reshape(tokens, N_KV_HEAD, HEAD_DIM).swapaxes(0, 1)[None]
        if dtype == "int8":
            scales = np.abs(rows).max(-1) / np.float32(127)
            rows = np.rint(rows / scales[..., None])
            held = given[f"{tensor}_scale"].copy()
            held[:, :, written] = scales
            np.testing.assert_array_equal(after[f"{tensor}_scale.out"], held)
        cache = given[f"{tensor}_cache"].copy()
        cache[:, :, written] = rows
        np.testing.assert_array_equal(after[f"{tensor}_cache.out"], cache)


def test_no_tokens_are_no_work():
    given = feeds(tokens=0)
    out, cache = session().run(["out", "k_cache.out"], given)
    assert out.shape == (0, N_HEAD * HEAD_DIM)
    np.testing.assert_array_equal(cache, given["k_cache"])


@pytest.mark.parametrize(
    ("dtype", "change", "reason"),
    [
        ("float32", {"position": np.array([CAPACITY - 2])}, "the tokens do not fit the cache"),
        ("float32", {"position": np.array([-1])}, "the tokens do not fit the cache"),
        ("float32", {"position": np.array([2**63 - 1])}, "the tokens do not fit the cache"),
        ("float32", {"position": np.zeros(0, np.int64)}, "position has a wrong shape"),
        ("float32", {"q": np.zeros((3, 7), np.float32)}, "q or k_cache has a wrong shape"),
        ("float32", {"q": np.zeros((3, 0), np.float32)}, "q or k_cache has a wrong shape"),
        ("float32", {"q": np.zeros((3, 4, 24), np.float32)}, "q or k_cache has a wrong shape"),
        ("float32", {"q": np.zeros((2, N_HEAD * HEAD_DIM), np.float32)}, "k or v has a wrong shape"),
        ("float32", {"k": np.zeros((3, 16), np.float32)}, "k or v has a wrong shape"),
        ("float32", {"k_cache": np.zeros((N_KV_HEAD, CAPACITY, HEAD_DIM), np.float32)}, "q or k_cache has a wrong shape"),
        ("float32", {"k_cache": np.zeros((1, 3, CAPACITY, HEAD_DIM), np.float32)}, "a cache has a wrong shape"),
        ("int8", {"k_scale": np.zeros((1, N_KV_HEAD, CAPACITY - 1), np.float32)}, "a cache has a wrong shape"),
    ],
)
def test_what_does_not_fit_is_an_error_and_no_crash(dtype, change, reason):
    with pytest.raises(Exception, match=f"CachedAttention: {reason}"):
        session(dtype).run(["out"], feeds(dtype) | change)


def test_caches_that_do_not_fit_the_dtype():
    with pytest.raises(Exception, match="CachedAttention: the caches do not fit the dtype and v"):
        session("float32", with_scales=True).run(["out"], feeds("float32") | {"k_scale": feeds("int8")["k_scale"]})


def test_a_head_dim_that_the_kernel_does_not_take():
    given = feeds() | {name: np.zeros(shape, np.float32) for name, shape in (("q", (3, 6 * 12)), ("k", (3, 2 * 12)))}
    with pytest.raises(Exception, match="CachedAttention: the kernel does not take these shapes"):
        session().run(["out"], given | {"k_cache": np.zeros((1, N_KV_HEAD, CAPACITY, 12), np.float32)})


@pytest.mark.parametrize("with_v", [False, True])
def test_an_output_that_is_left_out(with_v):
    runtime = session("int8", with_v, leave_out="v_scale.out" if with_v else "k_scale.out")
    with pytest.raises(Exception, match="CachedAttention: an output of the cache is missing"):
        runtime.run(["out"], feeds("int8", with_v))


@pytest.mark.parametrize("threads", ["abc", "", "-1", "0", "2x", "99999999999", "1" * 17])
def test_a_number_of_threads_that_is_none(threads):
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("edgeqkv.threads", threads)
    with pytest.raises(Exception, match="edgeqkv.threads is a number of threads, 1 to 1024"):
        options.register_custom_ops_library(str(native_library(LIBRARY)))


@pytest.mark.parametrize("n_kv_head", [0, 4, -2])
def test_heads_that_cannot_be_shared(n_kv_head):
    with pytest.raises(Exception, match="n_head is not a multiple of n_kv_head"):
        session(n_kv_head=n_kv_head)
