"""int4 weights: how they are rounded, how each target stores them, and that a runtime computes with what was stored."""

import numpy as np
import pytest
from conftest import MODELS, one_sentence, tiny_config, tiny_weights
from msgspec.structs import replace
from row_models import ROW_MODELS

import edgeqkv
from edgeqkv.bundle import read_bundle
from edgeqkv.config import Head
from edgeqkv.corpus import token_windows
from edgeqkv.eager import EagerModel
from edgeqkv.export.int4 import FACTORS, gptq, searched
from edgeqkv.export.rounding import rounding
from edgeqkv.model_folder import Model, read_model, write_model
from edgeqkv.parameters import parameter_shapes
from edgeqkv.runtimes import open_artifact
from edgeqkv.text import Text
from edgeqkv.weights import BlockInt4, block_int4, format_names, in_int4

torch = pytest.importorskip("torch")


def layer(rows=24, columns=64, tokens=400):
    """A fixed matrix with a few outliers, and inputs that go together, as a model's do."""
    generator = np.random.default_rng(7)
    weight = generator.standard_normal((rows, columns)).astype(np.float32) ** 3
    mixed = generator.standard_normal((tokens, 12)) @ generator.standard_normal((12, columns))
    x = (mixed + 0.3 * generator.standard_normal((tokens, columns))) * np.exp(generator.standard_normal(columns))
    return weight, x.astype(np.float32)


def lost(form, weight, x, made):
    """Of the linear's output, relative."""
    out = x @ weight.T
    return np.square(x @ form.restore(*made).T - out).mean() / np.square(out).mean()


def test_gptq_loses_less_than_searched_scales_and_those_less_than_the_nearest():
    weight, x = layer()
    form = BlockInt4(32)
    products = torch.from_numpy(x.T @ x / len(x))
    nearest, better, best = form.quantize(weight), searched(form, weight), gptq(form, weight, products)
    assert lost(form, weight, x, best) < 0.3 * lost(form, weight, x, better)
    assert lost(form, weight, x, better) < lost(form, weight, x, nearest)


@pytest.mark.parametrize("scale_dtype", ["float32", "float16", "bfloat16"])
def test_searched_scales_are_the_best_of_those_tried(scale_dtype):
    """Against every factor by itself, with the scale that fits its values best."""
    weight, _ = layer(6, 64)
    weight[0, :32] = 0
    form = BlockInt4(32, scale_dtype)
    values, scales = searched(form, weight)
    assert (scales == scales.astype(form._dtype()).astype(np.float32)).all()
    assert (values[0, :32] == 0).all()
    errors = np.square(form.restore(values, scales) - weight).reshape(6, 2, 32).sum(2)
    for row in range(6):
        for block in range(2):
            b = weight[row, 32 * block : 32 * block + 32]
            tried = []
            for factor in FACTORS:
                q = np.clip(np.rint(b / (factor * max(np.abs(b).max(), 1e-9) / 7)), -8, 7)
                tried.append(np.square(b - q * (b @ q / max(q @ q, 1))).sum())
            assert errors[row, block] <= min(tried) * (1.001 if scale_dtype != "bfloat16" else 1.02) + 1e-9


def test_gptq_is_what_its_paper_says():
    """Against the plain form: one column at a time, over an explicit inverse from which each column done is eliminated."""
    weight, x = layer(5, 48)
    form = BlockInt4(16)
    products = torch.from_numpy(x.T @ x / len(x))
    values, scales = gptq(form, weight, products)
    hessian = products.double().numpy()
    order = np.argsort(-np.diag(hessian), kind="stable")
    inverse = np.linalg.inv(hessian + 0.01 * np.diag(hessian).mean() * np.eye(48))
    left, expected = weight.astype(np.float64), np.zeros(weight.shape)
    for i in order:
        step = scales[:, i // 16]
        expected[:, i] = np.clip(np.rint(left[:, i] / step), -8, 7)
        left -= np.outer((left[:, i] - expected[:, i] * step) / inverse[i, i], inverse[i])
        inverse -= np.outer(inverse[:, i], inverse[i]) / inverse[i, i]
    assert (values == expected).mean() > 0.99  # a tie may round either way in fp32


def test_products_that_say_nothing_leave_the_nearest_values():
    weight, _ = layer(70, 64)
    form = BlockInt4(64)
    for products in (torch.eye(64), torch.zeros(64, 64)):
        values, scales = gptq(form, weight, products)
        assert (values == searched(form, weight)[0]).all()
        assert np.allclose(scales, searched(form, weight)[1])


def test_which_tensors_are_int4():
    from edgeqkv.export.onnx.write import weight_formats

    shapes = parameter_shapes(tiny_config("Q-MQA"))
    names = format_names(weight_formats("int4", products=True), shapes, "GPTQ")
    assert (names["wte.weight"], names["wpe.weight"]) == ("int8 block 64", "fp32")
    assert names["h.*.attn.q.weight"] == "int4 block 64, GPTQ"
    assert format_names(weight_formats("int4-all", products=True), shapes)["wte.weight"] == "int4 block 64"
    mixed = format_names(lambda name, shape: BlockInt4(16 if name.startswith("h.1.mlp.fc") else 32), shapes)
    assert (mixed["h.*.mlp.fc.weight"], mixed["h.1.mlp.fc.weight"]) in [
        ("int4 block 32", "int4 block 16"),
        ("int4 block 16", "int4 block 16"),
    ]
    assert not in_int4("int8", "h.0.attn.q.weight", (64, 64))
    # The row that all heads of Q-MQA read stays int8: it is small, and all of them see its error.
    assert names["h.*.attn.k.weight"] == "int8 block 64"
    assert in_int4("int4", "h.0.attn.k.weight", (64, 64))
    assert not in_int4("int4-all", "h.0.attn.k.weight", (16, 64))
    with pytest.raises(edgeqkv.EdgeQKVError, match="multiple of 32, found 48; export with --weights int8 or fp32"):
        block_int4(48, 32, 32)


@pytest.fixture(scope="module")
def models(tmp_path_factory, letters):
    """A shipped model, and a copy of it that has no tokenizer; and an untied tiny one."""
    shipped = read_model(MODELS / "q-mqa")
    config = replace(tiny_config("Q-K=V", vocab_size=320), head=Head(tied=False, scale=1.0))
    generator = np.random.default_rng(3)
    weights = {n: (generator.standard_normal(s) * 0.2).astype(np.float32) for n, s in parameter_shapes(config).items()}
    return {
        "shipped": shipped,
        "no text": Model(shipped.config, shipped.weights, None, Text(), ""),
        "untied": Model(config, weights, letters, Text(), ""),
    }


def restored(model, formats, text, folder):
    """The weights that an export stands for."""
    made = rounding(model, formats, text, folder, lambda stage: None)
    out = {}
    for name, shape in parameter_shapes(model.config).items():
        form = formats(name, shape)
        quantised = hasattr(form, "restore")
        out[name] = form.restore(*made.quantized(name, form)) if quantised else model.weights[name].astype(form.dtype)
    return out, made.int4_method


def loss_of(model, weights, tokens=600):
    """Mean KL in nats to the model, on held-out text."""
    (window, *_) = token_windows(model, "held_out", None, min(tokens, model.config.n_positions), model.config.n_positions)
    a, b = (EagerModel(model.config, w).forward(window).astype(np.float64) for w in (model.weights, weights))
    a, b = (x - np.log(np.exp(x - x.max(1, keepdims=True)).sum(1, keepdims=True)) - x.max(1, keepdims=True) for x in (a, b))
    return float((np.exp(a) * (a - b)).sum(1).mean())


def test_a_model_is_rounded_by_a_text_and_one_without_by_search(models, tmp_path):
    from edgeqkv.export.onnx.write import weight_formats

    formats = weight_formats("int4-all", products=False)
    calibrated, method = restored(models["shipped"], formats, None, tmp_path)
    plain, other = restored(models["no text"], formats, None, tmp_path)
    assert (method, other) == ("GPTQ", "scales searched without a text")
    assert loss_of(models["shipped"], calibrated) < 0.8 * loss_of(models["shipped"], plain)
    assert not list(tmp_path.iterdir())  # what a calibration keeps has no name
    untied, _ = restored(models["untied"], formats, None, tmp_path)
    assert set(untied) == set(parameter_shapes(models["untied"].config))


def closeness(session, model, weights, tokens):
    """The largest difference to eager PyTorch over the stored weights, in standard deviations of the logits."""
    (window, *_) = token_windows(model, "held_out", None, tokens, tokens)
    expected = EagerModel(model.config, weights).forward(window)
    ours = np.stack([session.prefill(window[: tokens // 2]), *(session.step(token) for token in window[tokens // 2 :])])
    known = model.config.token_count
    return np.abs(ours - expected[tokens // 2 - 1 :])[:, :known].max() / expected[:, :known].std()


@pytest.mark.parametrize("scheme", ["int4", "int4-all"])
def test_onnx_computes_with_what_is_stored_and_so_does_the_c_library(models, scheme, tmp_path, cli):
    from edgeqkv.export.onnx.write import weight_formats

    edgeqkv.export(MODELS / "q-mqa", tmp_path / "b", weights=scheme)
    weights, _ = restored(models["shipped"], weight_formats(scheme, products=False), None, tmp_path)
    manifest = read_bundle(tmp_path / "b")
    for artifact in manifest.artifacts:
        assert artifact.weights.scheme == scheme
        assert artifact.weights.formats["h.*.mlp.fc.weight"] == "int4 block 128, GPTQ"
        # Inputs are rounded to int8 in each product; a nibble out of its place would be off by whole deviations.
        assert closeness(open_artifact(tmp_path / "b", manifest, artifact), models["shipped"], weights, 32) < 0.12
    table = "int8 block 128" if scheme == "int4" else "int4 block 128, GPTQ"
    outcome = cli("inspect", tmp_path / "b")
    assert f"onnx {manifest.artifacts[0].runtime_version}): {scheme} weights" in outcome.out
    assert "  int4 block 128, GPTQ: " in outcome.out
    assert any(line.startswith(f"  {table}: ") and "wte" in line for line in outcome.out.splitlines())
    with edgeqkv.open(tmp_path / "b", runtime="native") as native, edgeqkv.open(tmp_path / "b") as python:
        assert np.array_equal(native.prefill([5, 6, 7]), python.prefill([5, 6, 7]))


def test_latent_attention_keeps_its_products_in_int8(tmp_path, letters):
    from edgeqkv.export.onnx.write import weight_formats

    config = ROW_MODELS["MLA"]
    model = Model(config, tiny_weights(config), letters, Text(), "")
    write_model(tmp_path / "model", model, "# small\n")
    edgeqkv.export(tmp_path / "model", tmp_path / "b", weights="int4")
    weights, _ = restored(model, weight_formats("int4", products=True), None, tmp_path)
    manifest = read_bundle(tmp_path / "b")
    fused = next(artifact for artifact in manifest.artifacts if artifact.kernel == "fused")
    formats = fused.weights.formats
    assert formats["h.*.attn.k_b.weight"] == formats["h.*.attn.v_b.weight"] == "int8 row"
    assert formats["h.*.attn.k_rope.weight"] == "int8 block 64"
    assert formats["h.*.mlp.gate.weight"] == "int4 block 64, GPTQ"
    assert closeness(open_artifact(tmp_path / "b", manifest, fused), model, weights, 32) < 0.12


def test_executorch_computes_with_what_is_stored_and_stores_the_table_once(models, tmp_path):
    pytest.importorskip("executorch")
    from edgeqkv.export.executorch.lowering import weight_formats
    from edgeqkv.export.onnx.verbs import two_in_a_byte

    shipped = models["shipped"]
    config = replace(shipped.config, n_layer=1)
    model = Model(config, {name: shipped.weights[name] for name in parameter_shapes(config)}, shipped.tokenizer, Text(), "")
    write_model(tmp_path / "model", model, "# the first layer\n")
    edgeqkv.export(tmp_path / "model", tmp_path / "b", weights="int4-all", targets=["executorch"])
    formats = weight_formats("int4-all")
    weights, _ = restored(model, formats, None, tmp_path)
    assert closeness(edgeqkv.open(tmp_path / "b"), model, weights, 32) < 0.12
    made = rounding(model, formats, None, tmp_path, lambda stage: None)
    table = made.quantized("wte.weight", formats("wte.weight", weights["wte.weight"].shape))[0]
    assert (tmp_path / "b/executorch/model.pte").read_bytes().count(two_in_a_byte(table).tobytes()) == 1


@pytest.mark.filterwarnings("ignore:Core ML needs macOS")
def test_coreml_computes_with_what_is_stored_in_both_executors(models, tmp_path):
    pytest.importorskip("coremltools")
    from edgeqkv.export.coreml.stored import weight_formats

    edgeqkv.export(MODELS / "q-mqa", tmp_path / "b", weights="int4-all", targets=["coreml"], capacity=64, head_parts=2)
    weights, _ = restored(models["shipped"], weight_formats("int4-all"), None, tmp_path)
    manifest = read_bundle(tmp_path / "b")
    (artifact,) = manifest.artifacts
    assert artifact.weights.formats["wte.weight"] == "int4 block 32, GPTQ"
    for executor, tokens in (("interpreter", 32), ("value_inference", 4)):
        session = open_artifact(tmp_path / "b", manifest, artifact, executor=executor)
        assert closeness(session, models["shipped"], weights, tokens) < 0.03


def test_what_cannot_be_asked(tiny_model, tmp_path, cli):
    model = tiny_model("Q-MQA")
    said = one_sentence(cli("export", model, "--out", tmp_path / "b", "--weights", "int3"))
    assert "weights 'int3' is not possible; this version can do int8, int4, int4-all, fp32, fp16" in said
    said = one_sentence(cli("export", model, "--out", tmp_path / "b", "--weights", "int8", "--calibration", model))
    assert "calibration text is for int4 weights or an int8 cache" in said


def test_verify_has_a_bound_for_int4(tmp_path):
    edgeqkv.export(MODELS / "q-mqa", tmp_path / "b", weights="int4", cache="int8")
    for result in edgeqkv.verify(tmp_path / "b", MODELS / "q-mqa", tokens=600):
        assert result.record.thresholds == {"mean_kl": pytest.approx(0.012), "perplexity_percent": 2.0}
        assert result.record.passed
        assert result.record.mean_kl > 2e-3  # int8 would not need this bound
