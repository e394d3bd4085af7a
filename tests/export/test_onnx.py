"""The ONNX graph: the golden logits through ONNX Runtime, and the shape that makes it K-only."""

import numpy as np
import onnx
import pytest
from conftest import tiny_config, tiny_weights
from msgspec.structs import replace

import edgeqkv
from edgeqkv.cache import cache_layout
from edgeqkv.eager import EagerModel
from edgeqkv.export.onnx import graph, verbs
from edgeqkv.export.onnx.attention import attention_form
from edgeqkv.export.onnx.graph import write_graphs
from edgeqkv.export.onnx.write import FILES, build_graph, weight_formats
from edgeqkv.model_folder import Model, write_model
from edgeqkv.native import native_library
from edgeqkv.presets import preset
from edgeqkv.runtimes.onnx.target import LIBRARY
from edgeqkv.text import Text

VARIANTS = ["QKV", "GQA-2", "MQA", "Q-K=V", "Q-GQA-2", "Q-MQA", "Q=K-V", "Q=K=V"]
KERNELS = ["fused", "stock"]
FP32, INT8 = (weight_formats(scheme, products=False) for scheme in ("fp32", "int8"))


def kv_width(config):
    return config.row.kv_heads * config.row.widths["k"]


def exported(golden, tmp_path, kernel, **options):
    edgeqkv.export(golden.checkpoint, tmp_path / "bundle", **options)
    return edgeqkv.open(tmp_path / "bundle", kernel=kernel)


@pytest.mark.parametrize("kernel", KERNELS)
def test_golden_logits_and_greedy_text_token_by_token(golden, tmp_path, kernel):
    session = exported(golden, tmp_path, kernel, weights="fp32")
    logits = [session.step(token) for token in golden.ids]
    assert np.abs(np.stack(logits) - golden.logits).max() <= 1e-4
    session.reset()
    assert list(session.generate(golden.ids, limit=len(golden.greedy))) == golden.greedy


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("chunk", [1, 5, 23, 24])
def test_prefill_in_chunks_of_any_length(golden, tmp_path, chunk, kernel):
    session = exported(golden, tmp_path, kernel, weights="fp32")
    for start in range(0, len(golden.ids), chunk):
        part = golden.ids[start : start + chunk]
        logits = session.prefill(part)
        assert np.abs(logits - golden.logits[start + len(part) - 1]).max() <= 1e-4


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(("weights", "cache"), [("int8", "fp32"), ("fp32", "int8"), ("int8", "int8")])
def test_int8_stays_close(golden, tmp_path, weights, cache, kernel):
    """Random weights are the hardest case; the bound is a tenth of the spread of the logits, real models do far better."""
    session = exported(golden, tmp_path, kernel, weights=weights, cache=cache)
    logits = np.stack([session.step(token) for token in golden.ids])
    error = np.sqrt(np.mean((logits - golden.logits) ** 2))
    assert 0 < error <= 0.1 * golden.logits.std()


@pytest.mark.parametrize("kernel", KERNELS)
def test_an_fp16_cache_rounds_and_no_more(golden, tmp_path, kernel):
    session = exported(golden, tmp_path, kernel, weights="fp32", cache="fp16")
    logits = np.stack([session.step(token) for token in golden.ids])
    assert 0 < np.abs(logits - golden.logits).max() <= 5e-3
    assert session.cache_bytes * 2 == edgeqkv.export(golden.checkpoint, tmp_path / "fp32").artifacts[0].cache.bytes


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("cache", ["fp32", "int8"])
def test_both_stock_forms_of_attention_compute_the_same(variant, cache, tmp_path):
    config = tiny_config(variant)
    weights = tiny_weights(config)
    layout = cache_layout(config, 32, cache, "static")
    generator = np.random.default_rng(3)
    scales = {name: generator.uniform(0.02, 0.04, kv_width(config)).astype(np.float32) for name in layout.names}
    ids = np.arange(20) * 7 % config.token_count
    gqa, folded = (
        run_plain(build_graph(config, weights, layout, FP32, scales, form), layout, ids, tmp_path / form)
        for form in ("gqa", "folded")
    )
    np.testing.assert_allclose(gqa, folded, atol=1e-5)
    expected = EagerModel(config, weights).forward(ids.tolist())[-1]
    np.testing.assert_allclose(folded, expected, atol=1e-5 if cache == "fp32" else 0.1)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("cache", ["fp32", "fp16", "int8"])
def test_the_fused_graph_without_our_engine_copies_its_cache_and_computes_the_same(variant, cache, tmp_path):
    import onnxruntime

    config = tiny_config(variant)
    weights, layout = tiny_weights(config), cache_layout(config, 32, cache)
    options = onnxruntime.SessionOptions()
    options.register_custom_ops_library(str(native_library(LIBRARY)))
    ids = np.arange(20) * 7 % config.token_count
    graph = build_graph(config, weights, layout, FP32, {}, "fused")
    logits = run_plain(graph, layout, ids, tmp_path, options)
    expected = EagerModel(config, weights).forward(ids.tolist())[-1]
    np.testing.assert_allclose(logits, expected, atol={"fp32": 1e-5, "fp16": 5e-3, "int8": 0.1}[cache])


def run_plain(graph, layout, ids, folder, options=None):
    """Without our engine: any ONNX Runtime user can feed the graph, if slowly."""
    import onnxruntime

    write_graphs({"model.onnx": graph}, folder)
    session = onnxruntime.InferenceSession(folder / "model.onnx", options)
    feeds = {buffer.name: np.zeros(buffer.shape, buffer.dtype) for buffer in layout.buffers}
    return session.run(["logits"], {"ids": ids, "position": np.zeros(1, np.int64), **feeds})[0]


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_graph_has_one_cache_tensor_a_layer_when_v_is_k(variant, tmp_path):
    config = tiny_config(variant)
    layout, stock = cache_layout(config, 32, "fp32"), attention_form(config.row, "fp32")
    forms = {form: build_graph(config, tiny_weights(config), layout, INT8, {}, form) for form in ("fused", stock)}
    write_graphs({f"{form}.onnx": graph for form, graph in forms.items()}, tmp_path)
    for form in forms:
        graph = onnx.load(tmp_path / f"{form}.onnx", load_external_data=False).graph
        caches = [value.name for value in graph.input if value.name.startswith("cache.")]
        assert len(caches) == config.n_layer * (1 if config.row.k_only else 2)
        for node in graph.node:
            if node.op_type == "GroupQueryAttention":
                assert (node.input[3] == node.input[4]) == config.row.k_only
            if node.op_type == "CachedAttention":
                assert (node.input[2] == "") == config.row.k_only
        appended = [node.input[0] for node in graph.node if node.op_type == "TensorScatter"]
        fused = [name for node in graph.node if node.op_type == "CachedAttention" for name in node.input[4:] if name]
        assert (len(fused) > 0) == (form == "fused")
        assert len(appended + fused) == len(set(appended + fused))
        assert set(appended + fused) in (set(), set(caches))


def test_embedding_and_head_are_one_int8_tensor(tmp_path):
    config = tiny_config("Q-MQA")
    built = build_graph(config, tiny_weights(config), cache_layout(config, 32, "fp32"), INT8, {}, "fused")
    write_graphs({"model.onnx": built}, tmp_path)
    graph = onnx.load(tmp_path / "model.onnx", load_external_data=False).graph
    users = {node.op_type for node in graph.node if "wte.weight.int8" in node.input}
    assert users == {"MatMulNBits", "GatherBlockQuantized"}
    assert not [t.name for t in graph.initializer if t.data_type == onnx.TensorProto.FLOAT and list(t.dims) == [320, 64]]
    matmuls = [node for node in graph.node if node.op_type == "MatMulNBits"]
    assert len(matmuls) == 1 + 5 * config.n_layer
    assert all({a.name: a.i for a in node.attribute}["accuracy_level"] == 4 for node in matmuls)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kernel", KERNELS)
def test_a_large_head_in_pieces_over_the_bytes_of_its_table(tied, kernel, tmp_path, monkeypatch):
    config = tiny_config("Q-MQA")
    config = replace(config, head=replace(config.head, tied=tied))
    write_model(tmp_path / "model", Model(config, tiny_weights(config), None, Text(), ""), "# tiny\n")
    edgeqkv.export(tmp_path / "model", tmp_path / "whole")
    monkeypatch.setattr(verbs, "HEAD_BYTES", 8000)
    monkeypatch.setattr(graph, "TABLE_BYTES", 4000)
    edgeqkv.export(tmp_path / "model", tmp_path / "pieces")
    whole, pieces = (edgeqkv.open(tmp_path / name, kernel=kernel).prefill([1, 2, 3]) for name in ("whole", "pieces"))
    np.testing.assert_allclose(pieces, whole, rtol=0, atol=1e-6)  # sums in another order at the ends of pieces

    nodes = onnx.load(tmp_path / f"pieces/onnx/{FILES[kernel]}", load_external_data=False).graph.node
    assert len([node for node in nodes if node.op_type == "MatMulNBits"]) == 3 + 5 * config.n_layer  # 320 x 64 bytes
    files = {name: [path.stat().st_size for path in (tmp_path / name / "onnx").glob("*.data")] for name in ("whole", "pieces")}
    assert [len(files["whole"]), len(files["pieces"])] == [1, 2]
    assert sum(files["pieces"]) <= sum(files["whole"]) + 4096, "nothing is stored twice"


def test_only_tables_that_rows_are_gathered_from_have_a_file_of_their_own(tmp_path, monkeypatch):
    """A matrix that is read as a whole must stay mapped: here the tied embedding, which is the head too."""
    monkeypatch.setattr(graph, "TABLE_BYTES", 4000)
    config = tiny_config("Q-MQA")
    for scheme, formats in {"fp32": FP32, "int8": INT8}.items():
        built = build_graph(config, tiny_weights(config), cache_layout(config, 32, "fp32"), formats, {}, "fused")
        write_graphs({"model.onnx": built}, tmp_path / scheme)
        stored = onnx.load(tmp_path / scheme / "model.onnx", load_external_data=False).graph.initializer
        found = {t.name for t in stored if {e.key: e.value for e in t.external_data}.get("location") == graph.TABLES_FILE}
        assert found == {"wpe.weight"}


def test_padding_rows_are_minus_infinity(tiny_model, tmp_path):
    folder = tiny_model("Q-K=V")
    edgeqkv.export(folder, tmp_path / "bundle")
    logits = edgeqkv.open(tmp_path / "bundle").prefill([1, 2, 3])
    assert logits.shape == (320,)
    assert np.isneginf(logits[300:]).all()
    assert np.isfinite(logits[:300]).all()


def test_folded_attention_where_enough_query_heads_share_a_kv_head():
    def folded(dtype):
        names = ("QKV", "Q-K=V", "Q-GQA-8", "Q-GQA-4", "Q-GQA-2", "Q-MQA")
        return [name for name in names if attention_form(preset("paper-300m", name).row, dtype) == "folded"]

    assert folded("fp32") == ["Q-GQA-4", "Q-GQA-2", "Q-MQA"]
    assert folded("int8") == ["Q-GQA-2", "Q-MQA"]


def test_widths_that_int8_blocks_do_not_divide(tmp_path):
    config = tiny_config("Q-MQA", d_model=40, d_mlp=128)
    write_model(tmp_path / "odd", Model(config, tiny_weights(config), None, Text(), ""), "# odd\n")
    with pytest.raises(edgeqkv.EdgeQKVError, match="multiple of 16, found 40"):
        edgeqkv.export(tmp_path / "odd", tmp_path / "bundle")
    edgeqkv.export(tmp_path / "odd", tmp_path / "bundle", weights="fp32")


@pytest.mark.parametrize("variant", ["Q-K=V", "Q-MQA"])
def test_the_scales_of_an_int8_cache_are_in_the_graph_once(variant, tmp_path):
    config = tiny_config(variant, n_head=8)
    layout = cache_layout(config, 32, "int8", "static")
    scales = {name: np.full(kv_width(config), 0.1 + i, np.float32) for i, name in enumerate(layout.names)}
    built = build_graph(config, tiny_weights(config), layout, INT8, scales, attention_form(config.row, "int8"))
    write_graphs({"model.onnx": built}, tmp_path)
    graph = onnx.load(tmp_path / "model.onnx").graph
    held = [tensor for tensor in graph.initializer if tensor.name.startswith("cache.")]
    assert sum(onnx.numpy_helper.to_array(tensor).nbytes for tensor in held) == layout.scale_bytes
