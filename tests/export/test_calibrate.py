import numpy as np
import pytest

import edgeqkv
from edgeqkv.eager import EagerModel
from edgeqkv.export.calibrate import HEADROOM


@pytest.fixture
def text_model(tiny_model, letters):
    return tiny_model("Q-GQA-2", letters, token_count=256)


def test_scales_cover_what_the_text_puts_into_the_cache(text_model, tmp_path):
    text = tmp_path / "words.txt"
    text.write_text("the quick brown fox jumps over the lazy dog")
    manifest = edgeqkv.export(text_model, tmp_path / "bundle", cache="int8", calibration=text)
    from edgeqkv.model_folder import read_model
    from edgeqkv.text import load_tokenizer

    model = read_model(text_model)
    eager = EagerModel(model.config, model.weights)
    ids = load_tokenizer(model.tokenizer, "").encode(text.read_text()).ids
    eager.prefill(ids)
    for layer in range(2):
        rows = eager._cache[layer, "k"][0, :, : len(ids)].numpy()  # [n_kv_head, depth, head_dim]
        expected = np.abs(rows).max(axis=1).reshape(-1) * HEADROOM / 127
        np.testing.assert_allclose(manifest.artifacts[1].cache.static_scales[f"cache.{layer}.k"], expected, rtol=1e-5)


def test_another_text_gives_other_scales(text_model, tmp_path):
    (tmp_path / "a.txt").write_text("aaaa")
    a = edgeqkv.export(text_model, tmp_path / "a", cache="int8", calibration=tmp_path / "a.txt").artifacts[1]
    b = edgeqkv.export(text_model, tmp_path / "b", cache="int8").artifacts[1]
    assert a.kernel == "stock"
    assert a.cache.static_scales != b.cache.static_scales


def test_calibration_text_that_cannot_be_used(text_model, tiny_model, tmp_path):
    with pytest.raises(edgeqkv.EdgeQKVError, match=r"none\.txt does not exist"):
        edgeqkv.export(text_model, tmp_path / "b", cache="int8", calibration=tmp_path / "none.txt")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9 au lait")
    with pytest.raises(edgeqkv.EdgeQKVError, match="is not UTF-8 text"):
        edgeqkv.export(text_model, tmp_path / "b", cache="int8", calibration=tmp_path / "latin.txt")
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(edgeqkv.EdgeQKVError, match="holds 0 tokens"):
        edgeqkv.export(text_model, tmp_path / "b", cache="int8", calibration=tmp_path / "empty.txt")
    with pytest.raises(edgeqkv.EdgeQKVError, match="calibration text is for int4 weights or an int8 cache"):
        edgeqkv.export(text_model, tmp_path / "b", calibration=tmp_path / "latin.txt")
    with pytest.raises(edgeqkv.EdgeQKVError, match="has no tokenizer"):
        edgeqkv.export(tiny_model("Q-MQA"), tmp_path / "b", cache="int8", calibration=tmp_path / "latin.txt")


def test_windows_go_through_together_and_give_the_scales_of_one_by_one(text_model, tmp_path, monkeypatch):
    from edgeqkv.export import calibrate

    text = tmp_path / "words.txt"
    text.write_text("the quick brown fox jumps over the lazy dog")
    options = {"cache": "int8", "calibration": text, "capacity": 5}  # eight windows of 5 and one of 3
    passes, decoder = [], calibrate.decoder
    monkeypatch.setattr(calibrate, "decoder", lambda *arguments: passes.append(arguments[2].shape) or decoder(*arguments))
    together = edgeqkv.export(text_model, tmp_path / "a", **options).artifacts[1].cache.static_scales
    assert [tuple(shape) for shape in passes] == [(8, 5), (1, 3)]
    monkeypatch.setattr(calibrate, "BATCH", 1)
    apart = edgeqkv.export(text_model, tmp_path / "b", **options).artifacts[1].cache.static_scales
    assert len(passes) == 2 + 9
    for name, scale in together.items():
        np.testing.assert_allclose(scale, apart[name], rtol=1e-5)
