"""``edgeqkv convert``: what it keeps, where it loses nothing, that it heals and goes on, and what it refuses."""

import numpy as np
import pytest
from conftest import MODELS, one_sentence, tiny_config, tiny_weights
from row_models import ROW_MODELS

import edgeqkv.training.loop
from edgeqkv.config import with_variant
from edgeqkv.eager import EagerModel
from edgeqkv.errors import EdgeQKVError
from edgeqkv.model_folder import Model, read_model
from edgeqkv.text import Text
from edgeqkv.training.convert import converted, converted_config
from edgeqkv.training.judge import judged
from edgeqkv.training.log import read_log

IDS = np.random.default_rng(1).integers(300, size=40).tolist()
RECIPE = """
legs = [{ steps = 6, peak = 1e-3 }]
batch = 2
warmup = 1
save_every = 2
geometry = { n_layer = 1, d_model = 64, n_head = 2, n_positions = 32, vocab_size = 300 }
"""


def tiny(variant="QKV"):
    config = tiny_config(variant)
    return Model(config, tiny_weights(config), None, Text(), "0")


@pytest.mark.parametrize("start", ["mean", "factor", "fit"])
@pytest.mark.parametrize(("variant", "to"), [("QKV", "Q-K=V"), ("GQA-2", "Q-GQA-2"), ("GQA-2", "Q-MQA")])
def test_it_keeps_everything_that_it_does_not_touch(start, variant, to):
    model = tiny(variant)
    student = converted(model, to, start)
    assert student.config == with_variant(model.config, to)
    touched = ("attn.k.", "attn.v.") if start == "mean" else ("attn.",)
    for name in student.weights:
        if not any(part in name for part in touched):
            np.testing.assert_array_equal(student.weights[name], model.weights[name])
    assert EagerModel(student.config, student.weights).forward(IDS).shape == (40, 320)


@pytest.mark.parametrize("start", ["factor", "fit"])
@pytest.mark.parametrize(("variant", "to"), [("QKV", "Q-K=V"), ("GQA-2", "Q-MQA"), ("MQA", "Q-MQA")])
def test_nothing_is_lost_where_one_row_is_enough(start, variant, to):
    """K and V of the heads that share a row are made from as many directions as it has channels, each in its own way."""
    model, generator = tiny(variant), np.random.default_rng(2)
    kv, rows = model.config.attention.n_kv_head, converted_config(model.config, to).attention.n_kv_head
    for layer in range(2):
        base = np.repeat(generator.standard_normal((rows, 16, 64)) * 0.1, kv // rows, axis=0)
        for part in "kv":
            mixed = generator.standard_normal((kv, 16, 16)) @ base / 4
            model.weights[f"h.{layer}.attn.{part}.weight"] = mixed.reshape(-1, 64).astype(np.float32)
    student = converted(model, to, start)
    before, after = (EagerModel(m.config, m.weights).forward(IDS)[:, :300] for m in (model, student))
    np.testing.assert_allclose(after, before, atol=2e-4)
    assert np.abs(EagerModel(student.config, converted(model, to, "mean").weights).forward(IDS)[:, :300] - before).max() > 0.01


def test_the_shipped_model_keeps_most_of_what_it_knows(cli, tmp_path):
    """As docs/quality.md says: 35.52, of 35.37."""
    done = cli("convert", MODELS / "qkv", "--to", "Q-K=V", "--out", tmp_path / "fit")
    assert "Q-K=V by fit, not healed" in done.out
    assert read_model(tmp_path / "fit").config == read_model(MODELS / "q-kv").config
    assert judged(tmp_path / "fit").perplexity == pytest.approx(35.52, rel=3e-3)


def test_healing_brings_it_nearer_to_the_original_and_goes_on_after_an_interrupt(cli, tmp_path, monkeypatch):
    loop = edgeqkv.training.loop
    (tmp_path / "toy.toml").write_text(RECIPE)
    for name, sentence in (("text", "the little mouse looked at the moon "), ("held", "a moon looked at the little mouse ")):
        (tmp_path / f"{name}.txt").write_text(sentence * 120)
    command = ["convert", MODELS / "qkv", "--to", "Q-MQA", "--start", "mean", "--text", tmp_path / "text.txt"]
    command += ["--held-out", tmp_path / "held.txt", "--recipe", tmp_path / "toy.toml", "--threads", 1]
    assert cli(*command, "--out", tmp_path / "whole").code == 0
    log = read_log(tmp_path / "whole/training.jsonl")
    assert log.steps[-1].loss < log.steps[0].loss
    assert log.start.source.endswith(" by mean")
    batch_at = loop.batch_at

    def interrupted(job, step):
        if step == 3:
            raise KeyboardInterrupt
        return batch_at(job, step)

    monkeypatch.setattr(loop, "batch_at", interrupted)
    stopped = cli(*command, "--out", tmp_path / "broken")
    assert stopped.code == 130
    assert "the same command goes on from" in stopped.err
    monkeypatch.setattr(loop, "batch_at", batch_at)
    assert "going on from step 2" in cli(*command, "--out", tmp_path / "broken").err
    whole, broken = (tmp_path / name / "model.safetensors" for name in ("whole", "broken"))
    assert whole.read_bytes() == broken.read_bytes()


def test_what_cannot_be_converted_is_refused_in_a_sentence(cli, tmp_path, tiny_model):
    out = ("--out", tmp_path / "out")
    for arguments, reason in (
        ((MODELS / "q-kv", "--to", "Q-MQA"), "a Q-K=V model cannot be converted"),
        ((MODELS / "qkv", "--to", "MQA"), "--to MQA does not have one cached tensor"),
        ((tiny_model("GQA-2"), "--to", "Q-K=V"), "cannot be gathered"),
        ((MODELS / "qkv", "--to", "Q-K=V", "--start", "best"), "--start 'best' is not one of mean, factor, fit"),
        ((MODELS / "qkv", "--to", "Q-K=V", "--text", tmp_path / "t.txt"), "give both --text and --held-out"),
    ):
        refused = cli("convert", *arguments, *out)
        assert reason in one_sentence(refused)
        assert refused.code == 2
    assert not (tmp_path / "out").exists()


def test_rotary_keys_are_averaged_and_the_turned_key_is_the_value():
    config = ROW_MODELS["GQA"]
    model = Model(config, tiny_weights(config), None, Text(), "0")
    with pytest.raises(EdgeQKVError, match="rotary positions or norms lie between, .* take --start mean"):
        converted(model, "Q-MQA", "fit")
    student = converted(model, "Q-MQA", "mean")
    assert student.config.positions.value == "turned"
    assert student.config.row.widths == {"k": 24}
    assert np.isfinite(EagerModel(student.config, student.weights).forward(IDS[:8])[:, :300]).all()
