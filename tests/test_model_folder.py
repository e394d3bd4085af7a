import json

import numpy as np
import pytest
from conftest import one_sentence, tiny_config, tiny_weights

from edgeqkv.errors import EdgeQKVError
from edgeqkv.model_folder import read_model, write_model


def test_round_trip_in_fp16(tmp_path):
    config = tiny_config("Q=K-V")
    weights = {name: array.astype(np.float16) for name, array in tiny_weights(config).items()}
    write_model(tmp_path / "m", config, weights, "# card\n", extra_files={"loss.svg": b"<svg/>"})
    model = read_model(tmp_path / "m")
    assert model.config == config
    assert model.tokenizer is None
    for name, array in weights.items():
        np.testing.assert_array_equal(model.weights[name], array)
    assert (tmp_path / "m/loss.svg").read_bytes() == b"<svg/>"


def edit_config(folder, **changes):
    data = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(data))


def damage(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def nan(folder):
    model = read_model(folder)
    weights = {name: array.copy() for name, array in model.weights.items()}
    weights["h.1.attn.k.bias"][2] = np.nan
    from safetensors.numpy import save_file

    save_file(weights, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (lambda f: edit_config(f, rope=True), "unknown field 'rope'"),
        (lambda f: edit_config(f, positions="rotary"), "positions: \"rotary\" is not one of 'learned'"),
        (lambda f: edit_config(f, n_kv_head=3), "n_head 4 is not divisible by n_kv_head 3"),
        (lambda f: edit_config(f, projections="QKV"), "does not hold a MQA model: it lacks h.0.attn.v"),
        (lambda f: edit_config(f, n_kv_head=2), "h.0.attn.k.weight has shape [16, 64], the configuration needs [32, 64]"),
        (lambda f: (f / "config.json").unlink(), "is not a model folder: it has no config.json"),
        (lambda f: (f / "model.safetensors").unlink(), "is not a model folder: it has no model.safetensors"),
        (damage, "model.safetensors is damaged or truncated"),
        (nan, "h.1.attn.k.bias holds NaN"),
    ],
)
def test_damaged_model_folders(cli, tiny_model, tmp_path, harm, reason):
    folder = tiny_model("Q-MQA")
    harm(folder)
    outcome = cli("export", folder, "--out", tmp_path / "bundle")
    assert outcome.code == 2
    assert reason in one_sentence(outcome)
    assert not (tmp_path / "bundle").exists()


def test_weights_that_do_not_fit_are_not_written(tmp_path):
    config = tiny_config("QKV")
    weights = tiny_weights(config)
    weights["ln_f.bias"] = weights["ln_f.bias"].astype(np.float64)
    with pytest.raises(EdgeQKVError, match=r"ln_f\.bias has dtype float64"):
        write_model(tmp_path / "m", config, weights, "# card\n")
    assert not (tmp_path / "m").exists()
