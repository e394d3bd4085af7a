"""verify must pass what is the same function, and must not pass what is not."""

import re

import numpy as np
import pytest
from conftest import MODELS, tiny_config, tiny_weights
from msgspec.structs import replace

import edgeqkv
from edgeqkv.bundle import read_bundle
from edgeqkv.model_folder import Model, read_model, write_model
from edgeqkv.parity import failures_of
from edgeqkv.targets import target_of
from edgeqkv.text import Text


def write(folder, config, weights):
    write_model(folder, Model(config, weights, None, Text(), ""), "# other\n")


@pytest.fixture
def pair(tiny_model, tmp_path):
    model = tiny_model("Q-K=V")
    edgeqkv.export(model, tmp_path / "bundle", weights="fp32")
    return model, tmp_path / "bundle"


def test_the_same_function_passes_and_is_recorded(pair):
    model, bundle = pair
    results = edgeqkv.verify(bundle, model, tokens=200)
    assert [result.record.kernel for result in results] == ["fused", "stock"]
    for result in results:
        record = result.record
        assert record.passed
        assert result.failures == ()
        assert record.max_abs_logit <= 1e-3
        assert (record.greedy_identical, record.greedy_tokens) == (48, 48)
        assert record.perplexity == pytest.approx(record.perplexity_reference, rel=1e-5)
        assert record.text == "random token ids"
    assert read_bundle(bundle).parity == tuple(result.record for result in results)
    edgeqkv.verify(bundle, model, tokens=100)
    assert len(read_bundle(bundle).parity) == 2


def test_an_artifact_that_cannot_run_here_is_not_compared_and_that_is_said(cli, pair, no_native):
    model, bundle = pair
    with pytest.warns(RuntimeWarning, match="onnx fused is not compared"):
        (result,) = edgeqkv.verify(bundle, model, tokens=60)
    assert result.record.kernel == "stock"
    outcome = cli("verify", bundle, "--against", model, "--tokens", 60)
    assert outcome.code == 0
    assert "onnx fused is not compared" in outcome.err
    assert "| onnx    |  stock |" in outcome.out


@pytest.mark.parametrize("weights", ["fp32", "int8"])
def test_one_wrong_weight_fails(tiny_model, tmp_path, weights):
    """A bias of the second layer's key is off: close enough to look right, far enough to be another function."""
    model = tiny_model("Q-K=V")
    edgeqkv.export(model, tmp_path / "bundle", weights=weights)
    read = read_model(model)
    changed = {name: array.copy() for name, array in read.weights.items()}
    changed["h.1.attn.k.bias"][5] += 4.0
    write(tmp_path / "other", read.config, changed)
    for result in edgeqkv.verify(tmp_path / "bundle", tmp_path / "other", tokens=200):
        assert not result.record.passed
        assert result.failures
    assert [record.passed for record in read_bundle(tmp_path / "bundle").parity] == [False, False]


def test_perplexity_and_kl_are_those_of_the_definition(pair):
    """Both are recomputed from whole logits, another way."""
    from edgeqkv.corpus import token_windows
    from edgeqkv.eager import EagerModel

    model, bundle = pair
    result, _ = edgeqkv.verify(bundle, model, tokens=96)
    read = read_model(model)
    windows = token_windows(read, "held_out", None, 96, 48)
    losses = []
    for window in windows:
        logits = EagerModel(read.config, read.weights).forward(window)[:, :300].astype(np.float64)
        probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        start = 0 if not losses else len(window) // 4 - 1
        losses += [-np.log(probabilities[i, window[i + 1]]) for i in range(start, len(window) - 1)]
    assert result.record.perplexity_reference == pytest.approx(np.exp(np.mean(losses)))


@pytest.mark.parametrize(
    ("weights", "cache", "limits"),
    [
        ("fp32", "fp32", [{"max_abs_logit": 1e-3, "greedy_identical": 1.0}] * 2),
        ("int8", "fp32", [{"mean_kl": 2e-3, "perplexity_percent": 0.5}] * 2),
        ("fp32", "fp16", [{"mean_kl": 1e-5, "perplexity_percent": 0.1}] * 2),
        ("int8", "fp16", [{"mean_kl": 2e-3, "perplexity_percent": 0.5}] * 2),
        ("int8", "int8", [{"perplexity_percent": 1.0}] * 2),
        ("fp32", "int8", [{"perplexity_percent": 0.5}, {"perplexity_percent": 1.0}]),
    ],
)
def test_the_limits(tiny_model, tmp_path, weights, cache, limits):
    manifest = edgeqkv.export(tiny_model(), tmp_path / "b", weights=weights, cache=cache)
    assert [target_of(artifact).tolerances(artifact) for artifact in manifest.artifacts] == limits


@pytest.mark.parametrize(
    ("limit", "change"),
    [
        ({"max_abs_logit": 1e-3}, {"max_abs_logit": 1.01e-3}),
        ({"mean_kl": 2e-3}, {"mean_kl": 2.01e-3}),
        ({"mean_kl": 2e-3}, {"mean_kl": float("nan")}),
        ({"greedy_identical": 48.0}, {"greedy_identical": 47}),
        ({"perplexity_percent": 0.5}, {"perplexity_reference": 100.0, "perplexity": 100.51}),
        ({"perplexity_percent": 0.5}, {"perplexity_reference": 100.0, "perplexity": 99.49}),
    ],
)
def test_each_limit_alone(pair, limit, change):
    model, bundle = pair
    result, _ = edgeqkv.verify(bundle, model, tokens=60)
    assert failures_of(replace(result.record, thresholds=limit)) == ()
    assert len(failures_of(replace(result.record, thresholds=limit, **change))) == 1


def test_a_cache_of_one_position_has_nothing_to_compare(cli, tiny_model, tmp_path):
    model = tiny_model("Q-MQA")
    edgeqkv.export(model, tmp_path / "one", capacity=1, cache="int8")
    outcome = cli("verify", tmp_path / "one", "--against", model)
    assert outcome.code == 2
    assert "holds one position" in outcome.err


def test_logits_that_are_not_finite_fail(cli, pair, monkeypatch):
    model, bundle = pair
    monkeypatch.setattr("edgeqkv.session.Session.step", lambda self, token: np.full(320, np.nan, np.float32))
    outcome = cli("verify", bundle, "--against", model, "--tokens", 60)
    assert outcome.code == 1
    assert "not finite" in outcome.err


def test_verify_against_another_configuration(cli, pair, tmp_path):
    _, bundle = pair
    config = tiny_config("Q-MQA")
    write(tmp_path / "mqa", config, tiny_weights(config))
    outcome = cli("verify", bundle, "--against", tmp_path / "mqa")
    assert outcome.code == 2
    assert "holds a Q-K=V model" in outcome.err


def test_the_command_exits_1_when_a_check_fails(cli, pair, tmp_path):
    model, bundle = pair
    ok = cli("verify", bundle, "--against", model, "--tokens", 60)
    assert (ok.code, ok.err) == (0, "")
    assert "| passed |" in ok.out
    read, other = read_model(model), tmp_path / "other"
    write(other, read.config, dict(read.weights) | {"ln_f.bias": np.ones(64, np.float32)})
    failed = cli("verify", bundle, "--against", other, "--tokens", 60)
    assert failed.code == 1
    assert "| FAILED |" in failed.out
    assert "edgeqkv: onnx fused: max_abs_logit" in failed.err


def test_a_short_text_and_one_that_the_model_does_not_know_are_remarked(cli, tmp_path):
    model, text = MODELS / "q-mqa", tmp_path / "bytes.txt"
    edgeqkv.export(model, tmp_path / "bundle", weights="fp32")
    text.write_bytes("".join(chr(0x4E00 + 97 * i % 4000) for i in range(100)).encode())
    outcome = cli("verify", tmp_path / "bundle", "--against", model, "--text", text)
    assert outcome.code == 0
    assert re.search(r"bytes.txt: \d{3} tokens, fewer than the 4096 that were asked for", outcome.err)
    assert "q-mqa predicts this text no better than a guess among its 2048 tokens" in outcome.err
    known = cli("verify", tmp_path / "bundle", "--against", model, "--tokens", 600)
    assert known.err == ""
    assert "tokens: how many logits were compared" in known.out
