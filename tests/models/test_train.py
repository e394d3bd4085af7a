"""The training recipe at a size that takes seconds: it resumes exactly, and its variants differ in attention alone."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

import edgeqkv
from edgeqkv.config import with_variant
from edgeqkv.model_folder import read_model
from edgeqkv.presets import gpt2

MODELS = Path(__file__).parents[2] / "models"
WORDS = "the cat sat on the mat and looked at the moon while a mouse ran by "


@pytest.fixture
def train(monkeypatch):
    spec = importlib.util.spec_from_file_location("train", MODELS / "train.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(__import__("sys").modules, "train", module)
    spec.loader.exec_module(module)
    small = gpt2(n_layer=1, d_model=64, n_head=2, n_positions=32, vocab_size=300, token_count=300)
    monkeypatch.setattr(module, "GEOMETRY", small)
    monkeypatch.setattr(module, "TALES", ["A Cat"])
    monkeypatch.setattr(module, "SAVE_EVERY", 2)
    return module


def run(train, monkeypatch, folder, variant="Q-K=V", steps=6, positions="learned"):
    books, valid = folder / "books.txt", folder / "valid.txt"
    books.write_text("Title: Another\n\nno\n\nTitle: A Cat\n\nAuthor: Nobody\n\n" + WORDS * 40)
    valid.write_text(WORDS * 60)
    arguments = ["--books", books, "--valid", valid, "--variant", variant, "--out", folder / "out" / "m"]
    arguments += ["--positions", positions, "--state", folder / "state", "--steps", steps, "--threads", 1]
    monkeypatch.setattr("sys.argv", ["train.py", *map(str, arguments)])
    train.main()
    return read_model(folder / "out" / "m")


def test_a_killed_run_goes_on_and_ends_where_an_unbroken_one_does(train, monkeypatch, tmp_path):
    (tmp_path / "whole").mkdir()
    (tmp_path / "broken").mkdir()
    whole = run(train, monkeypatch, tmp_path / "whole")
    batch_at, seen = train.batch_at, []

    def dies_at_step_5(stream, recipe, step):
        seen.append(step)
        if step == 5 and seen.count(5) == 1:
            raise KeyboardInterrupt
        return batch_at(stream, recipe, step)

    monkeypatch.setattr(train, "batch_at", dies_at_step_5)
    with pytest.raises(KeyboardInterrupt):
        run(train, monkeypatch, tmp_path / "broken")
    assert not (tmp_path / "broken/out").exists()
    broken = run(train, monkeypatch, tmp_path / "broken")
    assert seen == [0, 1, 2, 3, 4, 5, 4, 5]
    for name, array in whole.weights.items():
        np.testing.assert_array_equal(array, broken.weights[name])


def test_the_model_folder_is_complete(train, monkeypatch, tmp_path):
    model = run(train, monkeypatch, tmp_path)
    assert model.config.variant == "Q-K=V"
    assert {array.dtype for array in model.weights.values()} == {np.dtype(np.float16)}
    assert json.loads(model.tokenizer)["model"]["type"] == "BPE"
    card = (tmp_path / "out/m/README.md").read_text()
    assert "held-out perplexity" in card
    assert "*A Cat*" in card
    assert (tmp_path / "out/m/loss.svg").read_bytes().lstrip().startswith(b"<?xml")


def test_variants_start_from_the_same_values_and_see_the_same_data(train):
    def start(variant):
        return train.initial_weights(with_variant(train.GEOMETRY, variant), 1, "cpu")

    first, second = start("QKV"), start("Q-K=V")
    assert first.keys() - second.keys() == {"h.0.attn.v.weight", "h.0.attn.v.bias"}
    assert all((first[name] == second[name]).all() for name in second)


def test_learning_rate_warms_up_and_falls_in_each_leg(train):
    recipe = train.Recipe(legs=((1000, 1.0), (500, 0.5)), warmup=100)
    assert recipe.steps == 1500
    rates = [recipe.lr(step) for step in range(recipe.steps)]
    assert rates[99] == 1.0
    assert rates[999] == pytest.approx(0.1, rel=1e-3)
    assert rates[1099] == 0.5
    assert rates[1499] == pytest.approx(0.05, rel=1e-3)
    assert rates[99:1000] == sorted(rates[99:1000], reverse=True)


def test_missing_books_are_named(train, monkeypatch, tmp_path):
    monkeypatch.setattr(train, "TALES", ["A Cat", "A Dog"])
    with pytest.raises(SystemExit, match="lacks A Dog"):
        run(train, monkeypatch, tmp_path)


@pytest.mark.parametrize("positions", ["rotary", "rotary-turned"])
def test_rotary_positions_train_export_and_verify(train, monkeypatch, tmp_path, positions):
    """Both ways in which a turned key and its value can share a row."""
    model = run(train, monkeypatch, tmp_path, positions=positions, steps=4)
    assert model.config.positions.value == train.POSITIONS[positions]
    edgeqkv.export(tmp_path / "out/m", tmp_path / "bundle", weights="fp32", cache="fp32")
    assert [result.failures for result in edgeqkv.verify(tmp_path / "bundle", tmp_path / "out/m", tokens=64)] == [(), ()]
