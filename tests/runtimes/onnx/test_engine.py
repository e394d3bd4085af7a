"""The cache is one buffer, and a step touches a row of it: no copy that grows with the capacity."""

import concurrent.futures
import ctypes
import multiprocessing

import numpy as np
import pytest
from conftest import tiny_config, tiny_weights

import edgeqkv
from edgeqkv.bench.record import memory_of_this_process
from edgeqkv.bundle import read_bundle
from edgeqkv.cache import cache_layout
from edgeqkv.decoder import decoder
from edgeqkv.export.onnx import OnnxVerbs, aliases, attention_form, write_graph
from edgeqkv.runtimes.onnx.engine import OnnxEngine

VARIANTS = ["QKV", "Q-K=V", "Q=K=V", "GQA-2", "Q-GQA-2", "MQA", "Q-MQA"]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("cache", ["fp32", "int8"])
def test_real_cache_bytes_are_the_analytic_ones(variant, cache, tiny_model, tmp_path):
    edgeqkv.export(tiny_model(variant), tmp_path / "bundle", cache=cache, capacity=40)
    session = edgeqkv.open(tmp_path / "bundle")
    manifest = read_bundle(tmp_path / "bundle")
    assert session.cache_bytes == manifest.cache.bytes == cache_layout(manifest.model.config, 40, cache).bytes
    buffers = session._engine._caches
    assert len({value.data_ptr() for value in buffers.values()}) == len(buffers) == len(manifest.cache.names)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_step_writes_its_row_of_the_same_buffer_and_nothing_else(variant, tiny_model, tmp_path):
    edgeqkv.export(tiny_model(variant), tmp_path / "bundle", weights="fp32")
    session = edgeqkv.open(tmp_path / "bundle")
    session.prefill(list(range(10)))
    buffers = {name: value.numpy() for name, value in session._engine._caches.items()}
    before = {name: array.copy() for name, array in buffers.items()}
    session.step(11)
    for name, array in buffers.items():
        changed = np.flatnonzero((array != before[name]).any(axis=(0, 1, 3)))
        assert changed.tolist() == [10], name


# 4 layers, 8 query heads of 32, 2^16 positions: caches of 8 MiB (Q-MQA, int8) to 512 MiB, of which a few steps need kilobytes.
LONG = {"n_layer": 4, "n_positions": 2**16, "d_model": 256, "n_head": 8, "n_kv_head": 8}
CASES = [(variant, cache) for variant in ("QKV", "Q-K=V", "Q-MQA") for cache in ("fp32", "int8")]


class CopiesTheCache(OnnxVerbs):
    """What must not happen: every step reads the whole cache into another tensor, which is gone after the step."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.caches = {name: self.op("Neg", self.op("Neg", value)) for name, value in self.caches.items()}


def growth(variant, cache, capacity, folder, verbs):
    """Bytes that become resident from the first run of a fresh engine to a few steps later, and the bytes of its cache."""
    # No transparent huge pages: with them, one new row makes 2 MiB resident.
    prctl, set_thp_disable = getattr(ctypes.CDLL(None), "prctl", None), 41
    if prctl is None or prctl(set_thp_disable, 1, 0, 0, 0) or memory_of_this_process().rss is None:
        return None
    config = tiny_config(variant, **LONG)
    layout = cache_layout(config, capacity, cache)
    scales = {name: np.ones(config.kv_dim, np.float32) for name in layout.names} if cache == "int8" else {}
    weights = tiny_weights(config) | {"wpe.weight": np.zeros((config.n_positions, config.d_model), np.float32)}
    form = attention_form(config, cache)
    assert form == ("folded" if variant == "Q-MQA" else "gqa")
    built = verbs(config, weights, layout, True, scales, form)
    model = built.model(decoder(built, config, built.ids))
    write_graph(model, folder)
    engine = OnnxEngine(folder / "model.onnx", layout, aliases(model), config.vocab_size, 1)
    before = memory_of_this_process().rss
    engine.run(np.arange(8), 0)
    for position in range(8, 16):
        engine.run(np.array([1]), position)
    return memory_of_this_process().rss - before, layout.bytes


def share_that_grows_with_capacity(variant, cache, folder, verbs):
    """Resident growth at full capacity less that at 64 positions, over the cache's bytes; each in a process of its own,
    where no memory that was freed before can be used again unseen."""
    fresh = {"max_workers": 1, "max_tasks_per_child": 1, "mp_context": multiprocessing.get_context("spawn")}
    with concurrent.futures.ProcessPoolExecutor(**fresh) as processes:
        short = processes.submit(growth, variant, cache, 64, folder / "short", verbs).result()
        long = processes.submit(growth, variant, cache, LONG["n_positions"], folder / "long", verbs).result()
    if short is None or long is None:
        pytest.skip("this system does not tell a process its memory, or cannot turn huge pages off")
    return (long[0] - short[0]) / long[1]


@pytest.mark.parametrize(("variant", "cache"), CASES)
def test_steps_do_not_touch_memory_that_grows_with_the_capacity(variant, cache, tmp_path):
    """The buffers are fresh zero pages: copying one, or reading it into another, would make that resident."""
    assert share_that_grows_with_capacity(variant, cache, tmp_path, OnnxVerbs) < 1 / 16


@pytest.mark.parametrize(("variant", "cache"), [case for case in CASES if case[0] != "QKV"])
def test_that_measure_sees_a_copy(variant, cache, tmp_path):
    assert share_that_grows_with_capacity(variant, cache, tmp_path, CopiesTheCache) > 1 / 2


def test_two_sessions_at_once_do_not_disturb_each_other(tiny_model, tmp_path):
    edgeqkv.export(tiny_model("Q-MQA"), tmp_path / "bundle")
    one, two = edgeqkv.open(tmp_path / "bundle"), edgeqkv.open(tmp_path / "bundle")
    expected = [one.step(token).copy() for token in (5, 6, 7)]
    one.reset()
    for token, logits in zip((5, 6, 7), expected, strict=True):
        two.step(token + 40)
        np.testing.assert_array_equal(one.step(token), logits)


def test_a_bundle_written_by_hand_with_a_broken_graph(tiny_model, tmp_path):
    edgeqkv.export(tiny_model("Q-MQA"), tmp_path / "bundle")
    (tmp_path / "bundle/onnx/model.onnx").write_bytes(b"not a graph")
    with pytest.raises(edgeqkv.EdgeQKVError, match=r"onnxruntime .* cannot load .*model\.onnx"):
        edgeqkv.open(tmp_path / "bundle", check=False)


def test_unknown_runtime_and_kernel(tiny_model, tmp_path):
    edgeqkv.export(tiny_model("Q-MQA"), tmp_path / "bundle")
    with pytest.raises(edgeqkv.EdgeQKVError, match="nothing for the runtime 'coreml'; it was exported for: onnx"):
        edgeqkv.open(tmp_path / "bundle", runtime="coreml")
    with pytest.raises(edgeqkv.EdgeQKVError, match="with the kernel 'fused'; it was exported for: onnx \\(stock kernel\\)"):
        edgeqkv.open(tmp_path / "bundle", kernel="fused")
    assert edgeqkv.open(tmp_path / "bundle", runtime="onnx", kernel="stock").depth == 0


@pytest.mark.parametrize("cache", ["fp32", "int8"])
def test_a_cache_of_one_position(tiny_model, tmp_path, cache):
    edgeqkv.export(tiny_model("Q-K=V"), tmp_path / "bundle", capacity=1, cache=cache)
    session = edgeqkv.open(tmp_path / "bundle")
    session.step(3)
    with pytest.raises(edgeqkv.CacheFull):
        session.step(3)
