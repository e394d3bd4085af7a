"""The attention kernel, through its C interface, against float64 numpy over random shapes, depths and values.

Bounds: those of runtimes/kernels/tests/attention_test.cc, where they are derived. fp32 holds 1e-5 while entries are of size 1.
A score is a float32 sum of n = head_dim products, off by up to (n + 3) 2^-24 sum |q k| / sqrt(n) in any order of adding
(Higham, Accuracy and Stability of Numerical Algorithms, section 3.1). That grows with the square of the entries: larger ones
are held to it.
"""

import ctypes
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

SOURCE = Path(__file__).parents[3] / "runtimes" / "kernels"
DTYPES = [np.float32, np.float16, np.int8]  # in the order of the C enumeration
OK, PAST_CAPACITY = 0, 2
SCALAR, AVX512 = 1, 3


class Args(ctypes.Structure):
    _fields_ = (
        [
            (name, ctypes.c_int32)
            for name in ["n_head", "n_kv_head", "head_dim", "capacity", "position", "n_token", "dtype", "isa"]
        ]
        + [("scale", ctypes.c_float)]
        + [(name, ctypes.c_void_p) for name in ["q", "k", "v", "k_cache", "v_cache", "k_scale", "v_scale", "out"]]
    )


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    if not (shutil.which("cmake") and (shutil.which("c++") or shutil.which("g++"))):
        pytest.skip("needs cmake and a C++ compiler")
    build = tmp_path_factory.mktemp("kernels")
    subprocess.run(["cmake", "-S", SOURCE, "-B", build], check=True, capture_output=True)
    target = ["--target", "edgeqkv_attention_shared", "--parallel", "2"]
    subprocess.run(["cmake", "--build", build, *target], check=True, capture_output=True)
    library = ctypes.CDLL(str(next(build.glob("libedgeqkv_attention_shared.*"))))
    library.edgeqkv_attention.argtypes = [ctypes.POINTER(Args), ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int32]
    return library


def stored(rows: np.ndarray, dtype: type) -> tuple[np.ndarray, np.ndarray]:
    """What the cache holds for float32 rows [..., head_dim], and the scale of each row [...] (ones but for int8)."""
    if dtype is not np.int8:
        return rows.astype(dtype), np.ones(rows.shape[:-1], np.float32)
    scale = np.abs(rows).max(-1) / np.float32(127)
    divisor = np.where(scale > 0, scale, np.float32(np.inf))[..., None]
    return np.clip(np.rint(rows / divisor), -127, 127).astype(np.int8), scale


def attention(q: np.ndarray, k: np.ndarray, v: np.ndarray, depth: int) -> np.ndarray:
    """softmax(q k / sqrt(head_dim)) v for q [n_token, n_head, head_dim] and k, v [depth + n_token, n_kv_head, head_dim]."""
    group = q.shape[1] // k.shape[1]
    scores = np.einsum("thd,jhd->thj", q, np.repeat(k, group, 1)) / np.sqrt(q.shape[2])
    hidden = np.arange(len(k)) > depth + np.arange(len(q))[:, None]
    scores = np.where(hidden[:, None], -np.inf, scores)
    p = np.exp(scores - scores.max(-1, keepdims=True))
    return np.einsum("thj,jhd->thd", p / p.sum(-1, keepdims=True), np.repeat(v, group, 1))


def slack_of(delta: float) -> float:
    return float(np.expm1(2 * delta))


@settings(max_examples=150, deadline=None)
@given(
    isa=st.integers(1, 5),
    dtype=st.sampled_from(DTYPES),
    n_kv_head=st.integers(1, 5),
    group=st.integers(1, 20),
    head_dim=st.integers(1, 20).map(lambda n: 8 * n),
    depth=st.integers(0, 200),
    n_token=st.integers(1, 40),
    spare=st.integers(0, 3),
    separate_v=st.booleans(),
    size=st.sampled_from([1e-3, 1.0, 3.0]),
    seed=st.integers(0, 2**32 - 1),
)
def test_kernel_is_attention(
    library: ctypes.CDLL,
    isa: int,
    dtype: type,
    n_kv_head: int,
    group: int,
    head_dim: int,
    depth: int,
    n_token: int,
    spare: int,
    separate_v: bool,
    size: float,
    seed: int,
) -> None:
    if library.edgeqkv_attention_isa(isa) != isa:
        return  # not on this machine
    random = np.random.default_rng(seed)
    normal: Callable[..., np.ndarray] = lambda *shape: (size * random.standard_normal(shape)).astype(np.float32)  # noqa: E731
    capacity, positions = depth + n_token + spare, depth + n_token
    q = normal(n_token, n_kv_head * group, head_dim)
    tensors = [normal(positions, n_kv_head, head_dim) for _ in range(1 + separate_v)]
    caches, scales = [], []
    for rows in tensors:
        values, scale = stored(rows[:depth], dtype)
        cache = np.full((n_kv_head, capacity, head_dim), 99, dtype)
        cache[:, :depth] = values.swapaxes(0, 1)
        row_scales = np.full((n_kv_head, capacity), 99, np.float32)
        row_scales[:, :depth] = scale.T
        caches.append(cache)
        scales.append(row_scales)
    out = np.empty_like(q)
    args = Args(n_kv_head * group, n_kv_head, head_dim, capacity, depth, n_token, DTYPES.index(dtype), isa, 0.0)
    args.q, args.out = q.ctypes.data, out.ctypes.data
    args.k, args.k_cache, args.k_scale = tensors[0][depth:].ctypes.data, caches[0].ctypes.data, scales[0].ctypes.data
    if separate_v:
        args.v, args.v_cache, args.v_scale = tensors[1][depth:].ctypes.data, caches[1].ctypes.data, scales[1].ctypes.data
    assert library.edgeqkv_attention(args, None, None, 0) == OK

    for rows, cache, row_scales in zip(tensors, caches, scales, strict=True):
        values, scale = stored(rows, dtype)
        np.testing.assert_array_equal(cache[:, :positions], values.swapaxes(0, 1))
        assert (cache[:, positions:] == 99).all()
        if dtype is np.int8:
            np.testing.assert_array_equal(row_scales[:, :positions], scale.T)

    exact = [rows.astype(np.float64) for rows in tensors]
    held = [values.astype(np.float64) * scale[..., None] for values, scale in (stored(rows, dtype) for rows in tensors)]
    wanted = attention(q.astype(np.float64), held[0], held[-1], depth)
    size_of_sum = attention(q.astype(np.float64), held[0], np.abs(held[-1]), depth)
    products = np.einsum("thd,jhd->thj", np.abs(q), np.repeat(np.abs(held[0]), group, 1)).max() / np.sqrt(head_dim)
    arithmetic = 1e-5 if size <= 1 else 1e-5 + slack_of((head_dim + 3) * 2.0**-24 * products)
    bound = arithmetic * size_of_sum
    q_sum, q_max = np.abs(q).sum(-1).max() / np.sqrt(head_dim), np.abs(q).max() / np.sqrt(head_dim)
    if dtype is np.int8 and isa != SCALAR:
        # Query and weights in 16 bits; the weights of a block of rows are off by a share of its largest.
        integer_error = slack_of(np.abs(held[0]).sum(-1).max() * q_max / 65024)
        bound = bound + integer_error * size_of_sum + np.abs(held[-1]).max() * positions / (131070 if isa == AVX512 else 65024)
    assert (np.abs(out - wanted) <= bound).all()

    wanted = attention(q.astype(np.float64), exact[0], exact[-1], depth)
    if dtype is np.float32 and size <= 1:
        assert (np.abs(out - wanted) <= 1e-5 * np.abs(wanted).max(-1, keepdims=True)).all()
    elif dtype is np.int8:
        size_of_sum = attention(q.astype(np.float64), exact[0], np.abs(exact[-1]), depth)
        rounding = slack_of(q_sum * np.abs(exact[0]).max() / 254) * size_of_sum + np.abs(exact[-1]).max() / 254
        assert (np.abs(out - wanted) <= rounding + bound).all()


def test_past_capacity_is_an_error(library: ctypes.CDLL) -> None:
    data = np.zeros(8, np.float32).ctypes.data
    args = Args(1, 1, 8, 4, 4, 1, 0, 0, 0.0, data, data, None, data, None, None, None, data)
    assert library.edgeqkv_attention(args, None, None, 0) == PAST_CAPACITY
