"""Checkpoints of the paper: what its own code computed is what we compute."""

import contextlib
import os

import numpy as np
import pytest
import torch
from conftest import GOLDEN, one_sentence

from edgeqkv.checkpoint import read_checkpoint
from edgeqkv.eager import EagerModel
from edgeqkv.errors import EdgeQKVError
from edgeqkv.model_folder import read_model
from edgeqkv.sources import import_model


def saved(name="q_kv"):
    return torch.load(GOLDEN / f"{name}.pt", weights_only=True)


def test_full_forward_gives_the_golden_logits(golden):
    model = read_checkpoint(golden.checkpoint)
    assert model.config.variant == golden.variant
    logits = EagerModel(model.config, model.weights).forward(golden.ids)
    assert np.abs(logits - golden.logits).max() <= 1e-4


def test_token_by_token_gives_the_golden_logits_and_greedy_text(golden):
    model = read_checkpoint(golden.checkpoint)
    eager = EagerModel(model.config, model.weights)
    logits = [eager.step(token) for token in golden.ids]
    assert np.abs(np.stack(logits) - golden.logits).max() <= 1e-4
    greedy, last = [], logits[-1]
    for _ in golden.greedy:
        greedy.append(int(last.argmax()))
        last = eager.step(greedy[-1])
    assert greedy == golden.greedy


def test_full_forward_gives_the_golden_greedy_text(golden):
    model = read_checkpoint(golden.checkpoint)
    eager, ids = EagerModel(model.config, model.weights), list(golden.ids)
    for _ in golden.greedy:
        ids.append(int(eager.forward(ids)[-1].argmax()))
    assert ids[len(golden.ids) :] == golden.greedy


def test_import_writes_a_model_folder_that_reads_back(golden, tmp_path):
    import_model(golden.checkpoint, tmp_path / "model")
    direct, folder = read_checkpoint(golden.checkpoint), read_model(tmp_path / "model")
    assert direct.config == folder.config
    for name, array in direct.weights.items():
        np.testing.assert_array_equal(array, folder.weights[name])
    assert direct.sha256 in (tmp_path / "model" / "README.md").read_text()


def test_keys_without_the_ddp_prefix(tmp_path):
    data = saved()
    data["model_state_dict"] = {key.removeprefix("module."): value for key, value in data["model_state_dict"].items()}
    torch.save(data, tmp_path / "plain.pt")
    for name, array in read_checkpoint(tmp_path / "plain.pt").weights.items():
        np.testing.assert_array_equal(array, read_checkpoint(GOLDEN / "q_kv.pt").weights[name])


def test_parameters_that_still_want_gradients(tmp_path):
    data = saved()
    data["model_state_dict"] = {key: torch.nn.Parameter(value) for key, value in data["model_state_dict"].items()}
    torch.save(data, tmp_path / "parameters.pt")
    assert read_checkpoint(tmp_path / "parameters.pt").config.variant == "Q-K=V"


@pytest.mark.parametrize("zipped", [True, False])
def test_flipped_bits_never_give_a_traceback(tmp_path, zipped):
    """200 files with one bit changed, in the zip format of torch and in its old one: read, or refused with our sentence."""
    torch.save(saved("q_mqa"), tmp_path / "good.pt", _use_new_zipfile_serialization=zipped)
    good, generator = (tmp_path / "good.pt").read_bytes(), np.random.default_rng(5)
    for where in generator.integers(0, min(len(good), 20_000), 200):
        data = bytearray(good)
        data[where] ^= 1 << int(generator.integers(8))
        (tmp_path / "flipped.pt").write_bytes(data)
        with contextlib.suppress(EdgeQKVError):
            read_checkpoint(tmp_path / "flipped.pt")


def test_gpt2_padding_is_never_sampled(tmp_path):
    data = saved()
    state = {}
    for key, value in data["model_state_dict"].items():
        state[key] = torch.zeros(50304, 128) if key == "module.wte.weight" else value
    data["model_state_dict"], data["model_config"]["vocab_size"] = state, 50304
    torch.save(data, tmp_path / "padded.pt")
    model = read_checkpoint(tmp_path / "padded.pt")
    assert (model.config.vocab_size, model.config.token_count) == (50304, 50257)
    logits = EagerModel(model.config, model.weights).prefill([1, 2])
    assert np.isneginf(logits[50257:]).all()
    assert np.isfinite(logits[:50257]).all()


def test_missing_checkpoint(cli, tmp_path):
    outcome = cli("import", tmp_path / "none.pt", "--out", tmp_path / "out")
    assert "none.pt does not exist" in one_sentence(outcome)
    assert outcome.code == 2


@pytest.mark.parametrize("keep", [0, 10, 5000, 500_000])
def test_truncated_checkpoint(cli, tmp_path, keep):
    (tmp_path / "cut.pt").write_bytes((GOLDEN / "qkv.pt").read_bytes()[:keep])
    outcome = cli("import", tmp_path / "cut.pt", "--out", tmp_path / "out")
    assert "cut.pt is not a torch checkpoint, or is truncated" in one_sentence(outcome)
    assert outcome.code == 2
    assert os.listdir(tmp_path) == ["cut.pt"]


class RunsCode:
    def __reduce__(self):
        return os.system, ("touch was_here",)


def test_a_pickle_that_carries_code_is_refused_and_not_run(cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(saved() | {"train_config": RunsCode()}, tmp_path / "evil.pt")
    outcome = cli("import", tmp_path / "evil.pt", "--out", tmp_path / "out")
    assert "evil.pt is refused: it carries code" in one_sentence(outcome)
    assert outcome.code == 2
    assert os.listdir(tmp_path) == ["evil.pt"]


def change(data, **model_config):
    data["model_config"] |= model_config
    return data


def with_tensor(data, key, tensor):
    data["model_state_dict"][key] = tensor
    return data


def without(data, key):
    data["model_state_dict"].pop(key)
    return data


def poisoned(data, value):
    data["model_state_dict"]["module.h.1.mlp.c_fc.weight"][3, 3] = value
    return data


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (lambda: {"weights": 1}, "expected a dictionary with model_state_dict and model_config"),
        (lambda: change(saved("gqa"), n_kv_groups=4), "fit no known variant"),
        (lambda: change(saved("q_mqa"), n_kv_groups=2), "fit no known variant"),
        (lambda: change(saved("gqa"), n_kv_groups=3), "fit no known variant"),
        (lambda: change(saved("qkv"), n_head=5), "fit no known variant|not divisible"),
        (lambda: change(saved("qkv"), n_layer=3), "lacks h.2.attn.k"),
        (lambda: change(saved("qkv"), n_layer=1), "has unexpected h.1."),
        (lambda: change(saved("qkv"), n_inner="256"), "model_config.n_inner must be a whole number from 1, found '256'"),
        (lambda: change(saved("qkv"), use_bias=False), "use_bias = False is not supported"),
        (lambda: change(saved("qkv"), n_layer=2.0), "model_config.n_layer must be a whole number"),
        (lambda: change(saved("qkv"), n_head=0), "model_config.n_head must be a whole number"),
        (lambda: change(saved("gqa"), n_kv_groups="2"), "model_config.n_kv_groups must be a whole number"),
        (lambda: change(saved("q_kv"), n_kv_groups=0), "model_config.n_kv_groups must be a whole number"),
        (lambda: change(saved("qkv"), layer_norm_epsilon=float("inf")), "odd.pt: model_config: norm.eps: Expected float < 1.0"),
        (lambda: change(saved("qkv"), layer_norm_epsilon=None), "layer_norm_epsilon must be a number"),
        (lambda: saved("qkv") | {"model_config": [1]}, "model_config is not a dictionary"),
        (lambda: saved("qkv") | {"model_state_dict": [1]}, "model_state_dict is not a dictionary"),
        (lambda: saved("qkv") | {"model_state_dict": {1: torch.ones(1)}}, "is not a named dense tensor"),
        (lambda: saved("qkv") | {"model_state_dict": {"a": torch.eye(2).to_sparse()}}, "is not a named dense tensor"),
        (lambda: with_tensor(saved("qkv"), "module.h.0.attn.c_attn.weight", torch.tensor(1.0)), "fit no known variant"),
        (lambda: with_tensor(saved("qkv"), "module.h.1.attn.c_attn.bias", torch.tensor(1.0)), "has shape \\[\\]"),
        (lambda: without(saved("qkv"), "module.ln_f.bias"), "lacks ln_f.bias"),
        (lambda: without(saved("q_kv"), "module.h.0.attn.c_k.weight"), "fit no known variant"),
        (lambda: poisoned(saved(), float("nan")), "h.1.mlp.fc.weight holds NaN"),
        (lambda: poisoned(saved(), float("inf")), "h.1.mlp.fc.weight holds NaN or infinite"),
    ],
)
def test_checkpoints_that_do_not_fit(tmp_path, data, reason):
    torch.save(data(), tmp_path / "odd.pt")
    with pytest.raises(EdgeQKVError, match=reason):
        read_checkpoint(tmp_path / "odd.pt")
