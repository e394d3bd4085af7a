"""The cache is one buffer, and a step touches a row of it: no copy that grows with the capacity."""

import numpy as np
import pytest
from conftest import tiny_config, tiny_weights

import edgeqkv
from edgeqkv.bench.record import memory_of_this_process
from edgeqkv.bundle import read_bundle
from edgeqkv.cache import cache_layout
from edgeqkv.export.onnx import aliases, build_graph, write_graph
from edgeqkv.model_folder import write_model
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


# 4 layers of one [1, heads, 2^18, 32] fp32 buffer each: 128 MiB or more, of which a few steps touch a few kilobytes.
LONG = {"n_layer": 4, "n_positions": 2**18, "d_model": 64, "n_head": 2, "n_kv_head": 2}


def resident() -> int:
    rss = memory_of_this_process().rss
    if rss is None:
        pytest.skip("this system does not tell a process its memory")
    return rss


def long_engine(variant, cache, folder):
    config = tiny_config(variant, **LONG)
    layout = cache_layout(config, config.n_positions, cache)
    scales = {name: np.ones(layout.n_kv_head * layout.head_dim, np.float32) for name in layout.names}
    graph = build_graph(config, tiny_weights(config), layout, True, scales if cache == "int8" else {})
    write_graph(graph, folder)
    return OnnxEngine(folder / "model.onnx", layout, aliases(graph), config.vocab_size, 1), layout


@pytest.mark.parametrize("variant", ["QKV", "Q-K=V", "Q-MQA"])
@pytest.mark.parametrize("cache", ["fp32", "int8"])
def test_steps_do_not_touch_memory_that_grows_with_the_capacity(variant, cache, tmp_path):
    """The buffers are fresh zero pages: copying one, or reading it into another, would make it resident."""
    engine, layout = long_engine(variant, cache, tmp_path)
    engine.run(np.arange(8), 0)
    before = resident()
    for position in range(8, 16):
        engine.run(np.array([1]), position)
    assert resident() - before < layout.bytes / 16


@pytest.mark.parametrize("variant", ["Q-K=V", "Q-MQA"])
def test_that_measure_sees_a_copy(variant, tmp_path):
    """The same steps with outputs that are not bound to the inputs: now whole caches become resident."""
    engine, layout = long_engine(variant, "fp32", tmp_path)
    before = resident()
    feeds = {name: value.numpy() for name, value in engine._caches.items()}
    kept = engine._session.run(None, {"ids": np.array([1]), "position": np.zeros(1, np.int64), **feeds})
    assert resident() - before > layout.bytes / 2
    assert len(kept) > 1


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


def test_unknown_runtime(tiny_model, tmp_path):
    edgeqkv.export(tiny_model("Q-MQA"), tmp_path / "bundle")
    with pytest.raises(edgeqkv.EdgeQKVError, match="nothing for the runtime 'coreml'; it was exported for: onnx"):
        edgeqkv.open(tmp_path / "bundle", runtime="coreml")


def test_the_largest_tiny_model_round_trips_through_disk(tmp_path):
    config = tiny_config("Q-K=V")
    write_model(tmp_path / "m", config, tiny_weights(config), "# m\n")
    edgeqkv.export(tmp_path / "m", tmp_path / "bundle", capacity=1)
    session = edgeqkv.open(tmp_path / "bundle")
    session.step(3)
    with pytest.raises(edgeqkv.CacheFull):
        session.step(3)
