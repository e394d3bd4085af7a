"""``edgeqkv train`` at a size that takes seconds: it learns, goes on after a kill, and refuses what cannot be right."""

import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import one_sentence

import edgeqkv
import edgeqkv.training.loop
from edgeqkv.eager import EagerModel
from edgeqkv.model_folder import read_model
from edgeqkv.text import load_tokenizer
from edgeqkv.training.job import first_weights, identity, new_job
from edgeqkv.training.log import read_log
from edgeqkv.training.loss import losses
from edgeqkv.training.recipe import read_recipe

WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "looked", "at", "moon", "while", "mouse", "ran", "by"]
RECIPE = """
legs = [{ steps = 12, peak = 3e-3 }]
batch = 4
warmup = 2
save_every = 3
geometry = { n_layer = 1, d_model = 64, n_head = 2, n_positions = 32, vocab_size = 300 }
"""


@pytest.fixture
def given(tmp_path):
    """A recipe, a text and a held-out text; what is called with options gives the arguments of a training command."""
    generator = np.random.default_rng(0)
    (tmp_path / "toy.toml").write_text(RECIPE)
    for name, title, words in (("text", "A Cat", 3000), ("held", "Another", 700)):
        said = " ".join(generator.choice(WORDS, words))
        (tmp_path / f"{name}.txt").write_text(f"Title: {title}\n\nAuthor: Nobody\n\n{said}")

    def arguments(out="m", *more, recipe=None, text=None):
        command = ["train", recipe or tmp_path / "toy.toml", "--text", text or tmp_path / "text.txt"]
        return [*command, "--held-out", tmp_path / "held.txt", "--out", tmp_path / out, "--threads", "1", *more]

    return arguments


def test_the_loss_falls_and_the_folder_is_complete(cli, given, tmp_path):
    done = cli(*given("m", "--variant", "Q-K=V"))
    assert done.code == 0
    assert "12/12" in done.err
    assert "min left" in done.err
    model, log = read_model(tmp_path / "m"), read_log(tmp_path / "m/training.jsonl")
    assert model.config.variant == log.start.variant == "Q-K=V"
    assert {array.dtype for array in model.weights.values()} == {np.dtype(np.float16)}
    assert [step.step for step in log.steps] == [3, 6, 9, 12]
    assert log.steps[-1].loss < log.steps[0].loss - 0.3
    assert log.steps[-1].held_out < log.steps[0].held_out - 0.3
    assert f"held-out perplexity {log.end.perplexity:.2f}" in done.out
    card = (tmp_path / "m/README.md").read_text()
    assert f"**held-out perplexity {log.end.perplexity:.2f}**" in card
    assert "*A Cat*" in card
    assert (tmp_path / "m/loss.svg").read_text().lstrip().startswith("<svg")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["held.txt", "m", "text.txt", "toy.toml"]


def test_the_perplexity_is_that_of_the_stored_weights(cli, given, tmp_path):
    """Computed a second time by the reference's own forward pass, window by window."""
    cli(*given())
    model, end = read_model(tmp_path / "m"), read_log(tmp_path / "m/training.jsonl").end
    ids = [0, *load_tokenizer(model.tokenizer, "m").encode((tmp_path / "held.txt").read_text()).ids]
    eager = EagerModel(model.config, model.weights)
    nats = []
    for begin in range(0, len(ids) - 32, 32):
        window = np.array(ids[begin : begin + 33])
        logits = eager.forward(window[:-1].tolist()).astype(np.float64)
        nats.append(np.log(np.exp(logits).sum(1)) - logits[np.arange(32), window[1:]])
    assert end.tokens == np.size(nats)
    assert end.perplexity == pytest.approx(np.exp(np.mean(nats)), rel=1e-5)
    assert [(s.start, s.stop) for s in end.by_position] == [(0, 16), (16, 32)]
    assert end.by_position[1].perplexity == pytest.approx(np.exp(np.mean([w[16:] for w in nats])), rel=1e-5)


def test_a_killed_run_goes_on_and_ends_with_the_same_weights_bit_for_bit(cli, given, tmp_path):
    """SIGKILL at a moment of its own choosing, in a process of its own; on one thread."""
    assert cli(*given("whole")).code == 0
    (tmp_path / "toy.toml").write_text(RECIPE.replace("save_every = 3", "save_every = 1"))
    command = [sys.executable, "-m", "edgeqkv.cli", *map(str, given("broken"))]
    first = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    for line in first.stderr:
        if "step 2/12" in line:
            break
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    first.stderr.close()
    assert (tmp_path / "broken.progress").exists()
    assert not (tmp_path / "broken").exists()
    again = cli(*given("broken"))
    assert "going on from step" in again.err
    assert not (tmp_path / "broken.progress").exists()
    for name in ("model.safetensors", "tokenizer.json", "config.json"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "broken" / name).read_bytes()


def test_a_batch_in_parts_is_the_same_step(cli, given, tmp_path):
    """But for rounding, which bf16 would hide."""
    for name, at_once in (("whole", 0), ("parts", 1)):
        (tmp_path / "toy.toml").write_text(f"at_once = {at_once}\nprecision = 'fp32'\n" + RECIPE)
        cli(*given(name))
    whole, parts = (read_log(tmp_path / name / "training.jsonl") for name in ("whole", "parts"))
    assert [step.loss for step in parts.steps] == pytest.approx([step.loss for step in whole.steps], rel=1e-4)
    assert parts.end.perplexity == pytest.approx(whole.end.perplexity, rel=1e-3)


def test_variants_start_from_the_same_values_and_see_the_same_data(given, tmp_path):
    def job(variant):
        return new_job(
            read_recipe(str(tmp_path / "toy.toml")), tmp_path / "text.txt", tmp_path / "held.txt", variant, "learned", 7
        )

    first, second = job("QKV"), job("Q-K=V")
    a, b = first_weights(first, "cpu"), first_weights(second, "cpu")
    assert a.keys() - b.keys() == {"h.0.attn.v.weight", "h.0.attn.v.bias"}
    assert all(torch.equal(a[name], b[name]) for name in b)
    assert first.train.sha256 == second.train.sha256
    assert first.tokenizer == second.tokenizer


def test_fine_tuning_keeps_the_model_and_its_tokenizer(cli, given, tmp_path):
    cli(*given("first", "--variant", "Q-MQA"))
    other = tmp_path / "other.txt"
    other.write_text("Title: A Dog\n\n" + "a dog ran to the moon " * 300)
    tuned = cli(*given("tuned", "--from", tmp_path / "first", text=other))
    assert tuned.code == 0
    first, second = read_model(tmp_path / "first"), read_model(tmp_path / "tuned")
    assert (first.config, first.tokenizer, first.text) == (second.config, second.tokenizer, second.text)
    assert read_log(tmp_path / "tuned/training.jsonl").start.source == first.sha256
    before, after = (read_log(tmp_path / name / "training.jsonl").steps[0].loss for name in ("first", "tuned"))
    assert after < before
    refused = cli(*given("more", "--from", tmp_path / "first", "--variant", "QKV"))
    assert "--from takes variant and positions from the model" in one_sentence(refused)


@pytest.mark.parametrize("positions", ["rotary", "rotary-turned"])
def test_rotary_positions_train_export_and_verify(cli, given, tmp_path, positions):
    """Both ways in which a turned key and its value can share a row."""
    assert cli(*given("m", "--variant", "Q-K=V", "--positions", positions)).code == 0
    row = read_model(tmp_path / "m").config.row
    assert row.widths == {"k": 40 if positions == "rotary" else 32}  # a quarter wider
    edgeqkv.export(tmp_path / "m", tmp_path / "bundle", weights="fp32", cache="fp32")
    assert [result.failures for result in edgeqkv.verify(tmp_path / "bundle", tmp_path / "m", tokens=64)] == [(), ()]


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("batch = 4", "batch = 4\nbatsch = 5", "unknown field 'batsch'"),
        ("batch = 4", "batch = 0", "batch"),
        ("batch = 4", "batch =", "not a TOML file"),
        ("batch = 4", "batch = 4\nprecision = 'fp8'", "'fp8' is not one of 'bf16', 'fp32'"),
        ("n_head = 2", "n_head = 3", "64 is not divisible by n_head 3"),
        ("vocab_size = 300", "vocab_size = 100", "vocab_size 100 is too small"),
        ("batch = 4", "batch = 4\ntitles = ['A Dog']", "lacks texts that the recipe names (A Dog)"),
        ("n_positions = 32", "n_positions = 9000", "give a longer text"),
    ],
)
def test_a_wrong_recipe_is_refused_in_a_sentence(cli, given, tmp_path, old, new, reason):
    (tmp_path / "toy.toml").write_text(RECIPE.replace(old, new))
    refused = cli(*given())
    assert reason in one_sentence(refused)
    assert refused.code == 2
    assert not (tmp_path / "m").exists()


def test_a_wrong_text_is_refused_in_a_sentence(cli, given, tmp_path):
    empty, binary, damaged = tmp_path / "empty.txt", tmp_path / "binary.txt", tmp_path / "damaged.txt.xz"
    empty.write_text(" \n")
    binary.write_bytes(b"\xff\xfe\x00")
    damaged.write_bytes(b"not xz")
    for text, reason in (
        (empty, "holds no text"),
        (binary, "is not UTF-8 text"),
        (damaged, "does not hold UTF-8 text in .xz"),
        (tmp_path / "none.txt", "does not exist"),
        (tmp_path / "held.txt", "both learned and held out"),
    ):
        refused = cli(*given(text=text))
        assert reason in one_sentence(refused)
        assert refused.code == 2
    assert "unknown recipe 'stories'; known are heal, paper-300m, study, tales" in one_sentence(cli(*given(recipe="stories")))
    assert "cannot write to" in one_sentence(cli(*given("text.txt/inside/m")))
    assert "--positions 'turned'" in one_sentence(cli(*given("m", "--positions", "turned")))


def test_progress_of_another_run_and_damaged_progress_are_refused(cli, given, tmp_path):
    progress = tmp_path / "m.progress"
    progress.write_bytes(b"PK nothing")
    assert "is damaged, or no progress of edgeqkv train" in cli(*given()).err
    progress.unlink()
    named = read_recipe(str(tmp_path / "toy.toml"))
    job = new_job(named, tmp_path / "text.txt", tmp_path / "held.txt", "QKV", "learned", None)
    torch.save({"identity": {**identity(job), "text": "0"}, "steps": [], "step": 3, "weights": {}, "optimiser": {}}, progress)
    before = progress.read_bytes()
    refused = cli(*given())
    assert "is the progress of another run: its text differs" in refused.err
    assert refused.code == 2
    assert progress.read_bytes() == before


def test_a_loss_that_is_no_number_ends_the_run(cli, given, tmp_path, monkeypatch):
    """Its progress is not kept: nothing could come of it."""
    monkeypatch.setattr(edgeqkv.training.loop, "losses", lambda *given: losses(*given) * float("nan"))
    failed = cli(*given())
    assert failed.code == 1
    assert "the loss became nan before step 3" in failed.err
    assert not list(tmp_path.glob("m*"))
