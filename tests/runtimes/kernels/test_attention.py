"""The attention kernel, through its C interface, against float64 numpy over random shapes, depths and values.

Bounds: those of runtimes/kernels/tests/attention_test.cc, where they are derived. fp32 holds 1e-5 while entries are of size 1.
A score is a float32 sum of n = key_dim products, off by up to (n + 3) 2^-24 sum |q k| / sqrt(n) in any order of adding
(Higham, Accuracy and Stability of Numerical Algorithms, section 3.1). That grows with the square of the entries: larger ones
are held to it.
"""

import ctypes
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

SOURCE = Path(__file__).parents[3] / "runtimes" / "kernels"
DTYPES = [np.float32, np.float16, np.int8]  # in the order of the C enumeration
OK, PAST_CAPACITY = 0, 2
SCALAR = 1


class Args(ctypes.Structure):
    _fields_ = (
        [("size", ctypes.c_uint32)]
        + [(name, ctypes.c_int32) for name in ["n_head", "n_kv_head"]]
        + [(name, ctypes.c_int32) for name in ["row_dim", "key_dim", "value_start", "value_dim", "scale_split"]]
        + [(name, ctypes.c_int32) for name in ["capacity", "position", "n_token", "dtype", "isa"]]
        + [("scale", ctypes.c_float)]
        + [(name, ctypes.c_void_p) for name in ["q", "k", "v", "k_cache", "v_cache", "k_scale", "v_scale", "out"]]
    )


class Row(NamedTuple):
    """What a layer caches for a token and KV head: see the header."""

    row_dim: int
    key_dim: int
    value_start: int
    value_dim: int
    scale_split: int
    separate_v: bool

    def slices(self) -> list[slice]:
        """The channels of a row of k that have one int8 scale."""
        split = self.scale_split or self.row_dim
        return [slice(0, split), *([slice(split, self.row_dim)] if split < self.row_dim else [])]


@st.composite
def rows(draw: st.DrawFn) -> Row:
    """Widths in eights; up to 160 channels, now and then up to 1100, which are more than one integer sum holds."""
    most = draw(st.sampled_from([20, 20, 20, 138]))
    eights = lambda low, high: 8 * draw(st.integers(low, high))  # noqa: E731
    row_dim = eights(1, most)
    if draw(st.booleans()):
        return Row(row_dim, row_dim, 0, row_dim, 0, draw(st.booleans()))  # one head_dim
    if draw(st.booleans()):
        return Row(row_dim, row_dim, 0, eights(1, most), 0, True)
    value_start = eights(0, row_dim // 8 - 1)
    key_dim, value_dim = eights(1, row_dim // 8), eights(1, (row_dim - value_start) // 8)
    return Row(row_dim, key_dim, value_start, value_dim, eights(0, row_dim // 8 - 1), False)


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


def stored(rows: np.ndarray, dtype: type, slices: list[slice]) -> tuple[np.ndarray, np.ndarray]:
    """What the cache holds for float32 rows [..., dim], and the scale of each slice of each row [..., n_slice] (ones but for
    int8)."""
    if dtype is not np.int8:
        return rows.astype(dtype), np.ones((*rows.shape[:-1], len(slices)), np.float32)
    scale = np.stack([np.abs(rows[..., part]).max(-1) / np.float32(127) for part in slices], -1)
    divisor = spread(np.where(scale > 0, scale, np.float32(np.inf)), slices)
    return np.clip(np.rint(rows / divisor), -127, 127).astype(np.int8), scale


def spread(scale: np.ndarray, slices: list[slice]) -> np.ndarray:
    """Scales [..., n_slice] to each channel [..., dim]."""
    return np.repeat(scale, [part.stop - part.start for part in slices], -1)


def attention(q: np.ndarray, k: np.ndarray, v: np.ndarray, depth: int, scale: float) -> np.ndarray:
    """softmax(scale q k) v for q [n_token, n_head, key_dim] and k, v [depth + n_token, n_kv_head, key_dim or value_dim]."""
    group = q.shape[1] // k.shape[1]
    scores = np.einsum("thd,jhd->thj", q, np.repeat(k, group, 1)) * scale
    hidden = np.arange(len(k)) > depth + np.arange(len(q))[:, None]
    scores = np.where(hidden[:, None], -np.inf, scores)
    p = np.exp(scores - scores.max(-1, keepdims=True))
    return np.einsum("thj,jhd->thd", p / p.sum(-1, keepdims=True), np.repeat(v, group, 1))


def slack_of(delta: float) -> float:
    return float(np.expm1(2 * delta))


@settings(max_examples=150, deadline=None)
@given(
    isa=st.integers(1, 7),
    dtype=st.sampled_from(DTYPES),
    n_kv_head=st.integers(1, 5),
    group=st.integers(1, 20),
    row=rows(),
    softmax_scale=st.sampled_from([0.0, 0.07]),
    depth=st.integers(0, 200),
    n_token=st.integers(1, 40),
    spare=st.integers(0, 3),
    size=st.sampled_from([1e-3, 1.0, 3.0]),
    seed=st.integers(0, 2**32 - 1),
)
def test_kernel_is_attention(
    library: ctypes.CDLL,
    isa: int,
    dtype: type,
    n_kv_head: int,
    group: int,
    row: Row,
    softmax_scale: float,
    depth: int,
    n_token: int,
    spare: int,
    size: float,
    seed: int,
) -> None:
    if library.edgeqkv_attention_isa(isa) != isa:
        return  # not on this machine
    random = np.random.default_rng(seed)
    normal: Callable[..., np.ndarray] = lambda *shape: (size * random.standard_normal(shape)).astype(np.float32)  # noqa: E731
    capacity, positions = depth + n_token + spare, depth + n_token
    n_head, scale = n_kv_head * group, softmax_scale or row.key_dim**-0.5
    q = normal(n_token, n_head, row.key_dim)
    out = np.empty((n_token, n_head, row.value_dim), np.float32)
    slices = [row.slices(), [slice(0, row.value_dim)]][: 1 + row.separate_v]  # of k's rows, and of v's
    tensors = [normal(positions, n_kv_head, parts[-1].stop) for parts in slices]
    caches, scales = [], []
    for x, parts in zip(tensors, slices, strict=True):
        values, row_scale = stored(x[:depth], dtype, parts)
        cache = np.full((n_kv_head, capacity, x.shape[-1]), 99, dtype)
        cache[:, :depth] = values.swapaxes(0, 1)
        row_scales = np.full((n_kv_head, len(parts), capacity), 99, np.float32)
        row_scales[..., :depth] = row_scale.transpose(1, 2, 0)
        caches.append(cache)
        scales.append(row_scales)
    args = Args(
        ctypes.sizeof(Args), n_head, n_kv_head, *row[:5], capacity, depth, n_token, DTYPES.index(dtype), isa, softmax_scale
    )
    args.q, args.out = q.ctypes.data, out.ctypes.data
    args.k, args.k_cache, args.k_scale = tensors[0][depth:].ctypes.data, caches[0].ctypes.data, scales[0].ctypes.data
    if row.separate_v:
        args.v, args.v_cache, args.v_scale = tensors[1][depth:].ctypes.data, caches[1].ctypes.data, scales[1].ctypes.data
    assert library.edgeqkv_attention(args, None, None, 0) == OK

    held, steps = [], []  # what attention reads, and the int8 scale of each channel
    for x, parts, cache, row_scales in zip(tensors, slices, caches, scales, strict=True):
        values, row_scale = stored(x, dtype, parts)
        np.testing.assert_array_equal(cache[:, :positions], values.swapaxes(0, 1))
        assert (cache[:, positions:] == 99).all()
        if dtype is np.int8:
            np.testing.assert_array_equal(row_scales[..., :positions], row_scale.transpose(1, 2, 0))
        steps.append(spread(row_scale.astype(np.float64), parts))
        held.append(values.astype(np.float64) * steps[-1])

    def key(of: list[np.ndarray]) -> np.ndarray:
        return of[0][..., : row.key_dim]

    def value(of: list[np.ndarray]) -> np.ndarray:
        return of[-1][..., row.value_start : row.value_start + row.value_dim]

    exact, queries = [x.astype(np.float64) for x in tensors], q.astype(np.float64)
    wanted = attention(queries, key(held), value(held), depth, scale)
    size_of_sum = attention(queries, key(held), np.abs(value(held)), depth, scale)
    products = np.einsum("thd,jhd->thj", np.abs(q), np.repeat(np.abs(key(held)), group, 1)).max() * scale
    arithmetic = 1e-5 if size <= 1 else 1e-5 + slack_of((row.key_dim + 3) * 2.0**-24 * products)
    bound = arithmetic * size_of_sum
    if dtype is np.int8 and isa != SCALAR:
        # Query and weights in 16 bits; the weights of a block of rows are off by a share of its largest.
        integer_error = slack_of(np.abs(key(held)).sum(-1).max() * np.abs(q).max() * scale / 65024)
        largest = 127 * value(steps).max()
        bound = bound + integer_error * size_of_sum + largest * positions / 65024
    assert (np.abs(out - wanted) <= bound).all()

    wanted = attention(queries, key(exact), value(exact), depth, scale)
    if dtype is np.float32 and size <= 1:
        assert (np.abs(out - wanted) <= 1e-5 * np.abs(wanted).max(-1, keepdims=True)).all()
    elif dtype is np.int8:
        size_of_sum = attention(queries, key(exact), np.abs(value(exact)), depth, scale)
        moved = np.abs(q).sum(-1).max() * scale * key(steps).max() / 2
        rounding = slack_of(moved) * size_of_sum + value(steps).max() / 2
        assert (np.abs(out - wanted) <= rounding + bound).all()


def test_past_capacity_is_an_error(library: ctypes.CDLL) -> None:
    data = np.zeros(8, np.float32).ctypes.data
    args = Args(ctypes.sizeof(Args), 1, 1, 8, 8, 0, 8, 0, 4, 4, 1, 0, 0, 0.0, data, data, None, data, None, None, None, data)
    assert library.edgeqkv_attention(args, None, None, 0) == PAST_CAPACITY
