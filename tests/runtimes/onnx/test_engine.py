"""The cache is one buffer, and a step touches a row of it: no copy that grows with the capacity."""

import concurrent.futures
import ctypes
import multiprocessing
import re
from pathlib import Path

import numpy as np
import pytest
from conftest import tiny_config, tiny_weights
from msgspec.structs import replace

import edgeqkv
from edgeqkv.bundle import read_bundle
from edgeqkv.cache import cache_layout, position_axis
from edgeqkv.config import Rotary, baseline
from edgeqkv.export.onnx import write
from edgeqkv.export.onnx.attention import attention_form
from edgeqkv.export.onnx.graph import write_graphs
from edgeqkv.export.onnx.verbs import OnnxVerbs
from edgeqkv.model_folder import Model, write_model
from edgeqkv.native import native_library
from edgeqkv.presets import latent, mla, rotary
from edgeqkv.runtimes.onnx.engine import OnnxEngine
from edgeqkv.runtimes.onnx.target import LIBRARY
from edgeqkv.text import Text

VARIANTS = ["QKV", "Q-K=V", "Q=K=V", "GQA-2", "Q-GQA-2", "MQA", "Q-MQA"]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("cache", ["fp32", "fp16", "int8"])
def test_real_cache_bytes_are_the_analytic_ones(variant, cache, tiny_model, tmp_path):
    edgeqkv.export(tiny_model(variant), tmp_path / "bundle", cache=cache, capacity=40)
    config = read_bundle(tmp_path / "bundle").model.config
    for kernel, scales in (("fused", "per_row"), ("stock", "static")):
        session = edgeqkv.open(tmp_path / "bundle", kernel=kernel)
        entry = session.artifact.cache
        assert session.cache_bytes == entry.bytes == cache_layout(config, 40, cache, scales).bytes
        buffers = session._engine._caches
        assert len({value.data_ptr() for value in buffers.values()}) == len(buffers) == len(entry.buffers)


TURNED = Rotary(theta=1e4, dim=8, pairs="halves", scaling=None, value="turned")
MLA = replace(mla(2, 64, 96, 320, rotary(1e4, 16), latent(4, 32, 64, 32, 16, 32)), n_positions=48)
FAMILIES = {
    "value before rotation": replace(tiny_config("Q-GQA-2"), positions=replace(TURNED, value="unturned")),
    "turned key as value": replace(tiny_config("Q-MQA"), positions=TURNED),
    "rotary GQA": replace(tiny_config("GQA-2"), positions=TURNED),
    "MLA": MLA,
    "MLA expanded": baseline(MLA),
}


@pytest.mark.parametrize("cache", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("family", FAMILIES)
def test_real_cache_bytes_of_every_family_of_rows(family, cache, tmp_path):
    """Rows with slices, of two widths, with one scale or two: the buffers are the manifest's; a step fills one row of each."""
    config = FAMILIES[family]
    write_model(tmp_path / "model", Model(config, tiny_weights(config), None, Text(), ""), "# tiny\n")
    manifest = edgeqkv.export(tmp_path / "model", tmp_path / "bundle", cache=cache, capacity=40)
    assert [artifact.kernel for artifact in manifest.artifacts] == ["fused", "stock"]
    for artifact in manifest.artifacts:
        session = edgeqkv.open(tmp_path / "bundle", kernel=artifact.kernel)
        entry = artifact.cache
        static = entry.scale_bytes if entry.scales == "static" else 0
        buffers = {name: value.numpy() for name, value in session._engine._caches.items()}
        assert {name: (str(array.dtype), array.shape) for name, array in buffers.items()} == {
            buffer.name: (buffer.dtype, buffer.shape) for buffer in entry.buffers
        }
        assert sum(array.nbytes for array in buffers.values()) + static == entry.bytes == session.cache_bytes
        session.prefill([1, 2, 3])
        before = {name: array.copy() for name, array in buffers.items()}
        session.step(4)
        for name, array in buffers.items():
            axis = position_axis(manifest.cache_layout(artifact), name)
            changed = (array != before[name]).any(axis=tuple(i for i in range(array.ndim) if i != axis))
            assert np.flatnonzero(changed).tolist() == [3], name


@pytest.mark.parametrize("kernel", ["fused", "stock"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_step_writes_its_row_of_the_same_buffer_and_nothing_else(variant, kernel, tiny_model, tmp_path):
    edgeqkv.export(tiny_model(variant), tmp_path / "bundle", weights="fp32")
    session = edgeqkv.open(tmp_path / "bundle", kernel=kernel)
    session.prefill(list(range(10)))
    buffers = {name: value.numpy() for name, value in session._engine._caches.items()}
    before = {name: array.copy() for name, array in buffers.items()}
    session.step(11)
    for name, array in buffers.items():
        changed = np.flatnonzero((array != before[name]).any(axis=(0, 1, 3)))
        assert changed.tolist() == [10], name


# 4 layers, 8 query heads of 32, 2^16 positions: caches of 8 MiB (Q-MQA, int8) to 512 MiB, of which a few steps need kilobytes.
LONG = {"n_layer": 4, "n_positions": 2**16, "d_model": 256, "n_head": 8}
CASES = [
    (variant, cache, kernel)
    for variant in ("QKV", "Q-K=V", "Q-MQA")
    for cache in ("fp32", "int8")
    for kernel in ("fused", "stock")
]


class CopiesTheCache(OnnxVerbs):
    """What must not happen: every step reads the whole cache into another tensor, which is gone after the step."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.caches = CopiedOnUse(self)


class CopiedOnUse(dict):
    """The graph's inputs, by whose names one gets copies of them."""

    def __init__(self, verbs):
        super().__init__(verbs.caches)
        self.copies = {name: verbs.op("Neg", verbs.op("Neg", value)) for name, value in verbs.caches.items()}

    def __getitem__(self, name):
        return self.copies[name]


def anonymous():
    """Bytes of this process that are no file's; None where the system does not tell."""
    found = re.search(r"^RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    return None if found is None else int(found[1]) * 1024


def growth(variant, cache, kernel, capacity, folder, verbs):
    """Anonymous bytes that become resident from a fresh engine's first run to a few steps later, and the bytes of its cache.

    Pages of the mapped weights do not count: one row of the position table may bring 2 MiB of the file with it.
    """
    # No transparent huge pages: with them, one new row makes 2 MiB resident.
    prctl, set_thp_disable = getattr(ctypes.CDLL(None), "prctl", None), 41
    if prctl is None or prctl(set_thp_disable, 1, 0, 0, 0) or anonymous() is None:
        return None
    config = tiny_config(variant, **LONG)
    layout = cache_layout(config, capacity, cache, "per_row" if kernel == "fused" else "static")
    scales = {name: np.ones(width, np.float32) for name, width in layout.static_widths.items()}
    weights = tiny_weights(config) | {"wpe.weight": np.zeros((config.n_positions, config.d_model), np.float32)}
    form = "fused" if kernel == "fused" else attention_form(config.row, cache)
    assert form == ("fused" if kernel == "fused" else "folded" if variant == "Q-MQA" else "gqa")
    write.OnnxVerbs = verbs  # this process is for one measurement
    model = write.build_graph(config, weights, layout, write.weight_formats("int8", products=False), scales, form)
    write_graphs({"model.onnx": model}, folder)
    operators = native_library(LIBRARY) if kernel == "fused" else None
    engine = OnnxEngine(folder / "model.onnx", layout, write.aliases(model), config.vocab_size, 1, operators)
    before = anonymous()
    engine.run(np.arange(8), 0)
    for position in range(8, 16):
        engine.run(np.array([1]), position)
    return anonymous() - before, layout.bytes


def share_that_grows_with_capacity(variant, cache, kernel, folder, verbs):
    """Resident growth at full capacity less that at 64 positions, over the cache's bytes; each in a process of its own,
    where no memory that was freed before can be used again unseen."""
    fresh = {"max_workers": 1, "max_tasks_per_child": 1, "mp_context": multiprocessing.get_context("spawn")}
    with concurrent.futures.ProcessPoolExecutor(**fresh) as processes:
        short = processes.submit(growth, variant, cache, kernel, 64, folder / "short", verbs).result()
        long = processes.submit(growth, variant, cache, kernel, LONG["n_positions"], folder / "long", verbs).result()
    if short is None or long is None:
        pytest.skip("this system does not tell a process its memory, or cannot turn huge pages off")
    return (long[0] - short[0]) / long[1]


@pytest.mark.parametrize(("variant", "cache", "kernel"), CASES)
def test_steps_do_not_touch_memory_that_grows_with_the_capacity(variant, cache, kernel, tmp_path):
    """The buffers are fresh zero pages: copying one, or reading it into another, would make that resident."""
    assert share_that_grows_with_capacity(variant, cache, kernel, tmp_path, OnnxVerbs) < 1 / 16


@pytest.mark.parametrize(("variant", "cache", "kernel"), [case for case in CASES if case[0] != "QKV"])
def test_that_measure_sees_a_copy(variant, cache, kernel, tmp_path):
    assert share_that_grows_with_capacity(variant, cache, kernel, tmp_path, CopiesTheCache) > 1 / 2


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
    for kernel, file in (("stock", "model.onnx"), ("fused", "model.fused.onnx")):
        (tmp_path / "bundle/onnx" / file).write_bytes(b"not a graph")
        with pytest.raises(edgeqkv.EdgeQKVError, match=rf"onnxruntime .* cannot load .*{file}"):
            edgeqkv.open(tmp_path / "bundle", kernel=kernel, check=False)


def test_unknown_runtime_and_kernel(tiny_model, tmp_path):
    edgeqkv.export(tiny_model("Q-MQA"), tmp_path / "bundle")
    with pytest.raises(edgeqkv.EdgeQKVError, match="nothing for the runtime 'coreml'; it was exported for: onnx"):
        edgeqkv.open(tmp_path / "bundle", runtime="coreml")
    with pytest.raises(edgeqkv.EdgeQKVError, match="kernel 'quick'; it was exported for: onnx \\(fused kernel\\), onnx"):
        edgeqkv.open(tmp_path / "bundle", kernel="quick")
    assert edgeqkv.open(tmp_path / "bundle", runtime="onnx", kernel="stock").depth == 0


@pytest.mark.parametrize("cache", ["fp32", "int8"])
def test_a_cache_of_one_position(tiny_model, tmp_path, cache):
    edgeqkv.export(tiny_model("Q-K=V"), tmp_path / "bundle", capacity=1, cache=cache)
    session = edgeqkv.open(tmp_path / "bundle")
    session.step(3)
    with pytest.raises(edgeqkv.CacheFull):
        session.step(3)


@pytest.mark.parametrize("cache", ["fp32", "int8"])
def test_threads_do_not_change_the_result(tiny_model, tmp_path, cache):
    """With few KV heads and many positions the fused kernel cuts the sequence; the parts are merged in the same order."""
    model = tiny_model("Q-MQA", n_positions=2048)
    edgeqkv.export(model, tmp_path / "bundle", cache=cache)
    ids = np.random.default_rng(0).integers(0, 300, 1500)
    one, four = (edgeqkv.open(tmp_path / "bundle", kernel="fused", threads=n).prefill(ids)[:300] for n in (1, 4))
    np.testing.assert_allclose(one, four, atol=1e-4)


def test_the_fused_graph_is_taken_where_it_can_be_loaded(tiny_model, tmp_path):
    edgeqkv.export(tiny_model("Q-MQA"), tmp_path / "bundle")
    assert edgeqkv.open(tmp_path / "bundle").artifact.kernel == "fused"


@pytest.mark.parametrize(
    ("variant", "cache", "kernel"),
    [
        *(("QKV", "fp32", "stock"), ("QKV", "fp16", "fused"), ("QKV", "int8", "fused")),
        *(("MQA", "fp32", "fused"), ("Q-K=V", "fp32", "fused"), ("Q-MQA", "fp32", "fused")),
    ],
)
def test_the_default_is_what_decodes_faster(variant, cache, kernel, tiny_model, tmp_path):
    """As docs/benchmarks.md measured it: a baseline is not to be slowed by our kernel."""
    edgeqkv.export(tiny_model(variant), tmp_path / "bundle", cache=cache)
    first, second = read_bundle(tmp_path / "bundle").artifacts
    assert {first.kernel, second.kernel} == {"stock", "fused"}
    assert edgeqkv.open(tmp_path / "bundle").artifact.kernel == first.kernel == kernel


def test_it_is_missed_aloud_where_it_cannot(tiny_model, tmp_path, cli, no_native):
    edgeqkv.export(tiny_model("Q-MQA"), tmp_path / "bundle")
    with pytest.warns(RuntimeWarning, match="running the stock graph, which is slower: this edgeqkv was installed without"):
        assert edgeqkv.open(tmp_path / "bundle").artifact.kernel == "stock"
    with pytest.raises(edgeqkv.MissingPackage, match="cannot run here: this edgeqkv was installed without its compiled kernel"):
        edgeqkv.open(tmp_path / "bundle", kernel="fused")
    assert cli("generate", tmp_path / "bundle", "--ids", "1", "--kernel", "fused").code == 3


@pytest.mark.parametrize("variant", ["QKV", "Q-MQA"])
def test_heads_that_the_fused_kernel_does_not_take_have_the_stock_graph_alone(variant, tiny_model, tmp_path):
    model = tiny_model(variant, d_model=48)  # 4 heads of 12
    edgeqkv.export(model, tmp_path / "bundle", weights="fp32")
    (result,) = edgeqkv.verify(tmp_path / "bundle", model, tokens=60)
    assert (result.record.kernel, result.failures) == ("stock", ())


def test_what_the_runtime_refuses_is_one_of_our_errors(tiny_model, tmp_path):
    edgeqkv.export(tiny_model("Q-K=V"), tmp_path / "bundle", capacity=16)
    session = edgeqkv.open(tmp_path / "bundle")
    with pytest.raises(edgeqkv.EdgeQKVError, match="onnxruntime .* stopped at position 16"):
        session._engine.run(np.array([1]), 16)  # the session itself would not ask
