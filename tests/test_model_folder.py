"""Model folders: what is written reads back, tensor by tensor and in its dtype, and what is damaged is named."""

import json

import ml_dtypes
import numpy as np
import pytest
from conftest import one_sentence, tiny_config, tiny_weights
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from edgeqkv.errors import EdgeQKVError
from edgeqkv.files import file_sha256
from edgeqkv.model_folder import Model, ReshapedWeights, read_model, write_model
from edgeqkv.parameters import parameter_shapes
from edgeqkv.text import Text


def model_of(config, weights, tokenizer=None, text=None):
    return Model(config, weights, tokenizer, text or Text(), "")


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_every_dtype_comes_back_unchanged(tmp_path, dtype):
    config = tiny_config("Q=K-V")
    weights = {name: array.astype(dtype) for name, array in tiny_weights(config).items()}
    write_model(tmp_path / "m", model_of(config, weights), "# card\n", extra_files={"loss.svg": b"<svg/>"})
    model = read_model(tmp_path / "m")
    assert (model.config, model.tokenizer, model.text) == (config, None, Text())
    assert model.sha256 == file_sha256(tmp_path / "m/model.safetensors")
    assert model.weights.keys() == weights.keys()
    for name, array in weights.items():
        assert model.weights[name].dtype == dtype
        np.testing.assert_array_equal(model.weights[name], array)
    assert (tmp_path / "m/loss.svg").read_bytes() == b"<svg/>"


def test_dtypes_may_be_mixed_and_the_file_is_one_of_safetensors(tmp_path):
    """What is written tensor by tensor, its header last, is what the package itself reads."""
    config = tiny_config("Q-MQA")
    kinds = [np.float32, np.float16, ml_dtypes.bfloat16]
    weights = {name: array.astype(kinds[i % 3]) for i, (name, array) in enumerate(tiny_weights(config).items())}
    write_model(tmp_path / "m", model_of(config, weights), "# card\n")
    loaded = load_file(tmp_path / "m/model.safetensors")
    assert loaded.keys() == weights.keys()
    for name, array in weights.items():
        assert loaded[name].dtype == array.dtype
        np.testing.assert_array_equal(loaded[name], array)
    with safe_open(tmp_path / "m/model.safetensors", framework="pt") as file:
        assert {str(file.get_tensor(name).dtype) for name in weights} == {"torch.float32", "torch.float16", "torch.bfloat16"}


def test_each_tensor_is_asked_for_once_and_never_two_at_a_time(tmp_path):
    config, asked = tiny_config("Q-K=V"), []
    weights = tiny_weights(config)
    made = ReshapedWeights({n: lambda n=n: asked.append(n) or weights[n] for n in weights})
    write_model(tmp_path / "m", model_of(config, made), "# card\n")
    assert asked == list(parameter_shapes(config))


def test_text_goes_with_the_model(tmp_path, letters):
    text = Text(end_tokens=(3, 7), chat_template="{{ messages }}", special_tokens={"bos_token": "<s>"})
    config = tiny_config("Q-MQA", token_count=256)
    write_model(tmp_path / "m", model_of(config, tiny_weights(config), letters, text), "# card\n")
    model = read_model(tmp_path / "m")
    assert (model.tokenizer, model.text) == (letters, text)
    assert json.loads((tmp_path / "m/text.json").read_text())["end_tokens"] == [3, 7]
    with pytest.raises(EdgeQKVError, match="the end token 256 is none of the model's, which are 0 to 255"):
        write_model(tmp_path / "n", model_of(config, tiny_weights(config), letters, Text(end_tokens=(256,))), "# card\n")
    assert not (tmp_path / "n").exists()


def edit_config(folder, path, value):
    data = json.loads((folder / "config.json").read_text())
    block = data
    *blocks, name = path.split(".")
    for part in blocks:
        block = block[part]
    block[name] = value
    (folder / "config.json").write_text(json.dumps(data))


def damage(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def with_weights(folder, change):
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors")


def nan(weights):
    weights["h.1.attn.k.bias"][2] = np.nan


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (lambda f: edit_config(f, "rope", True), "config.json: unknown field 'rope'"),
        (lambda f: edit_config(f, "model.rope", True), "config.json: model: unknown field 'rope'"),
        (lambda f: edit_config(f, "model.positions", "rotary"), "model.positions: Expected object, got str"),
        (lambda f: edit_config(f, "model.attention.n_kv_head", 3), "n_head 4 is not divisible by n_kv_head 3"),
        (lambda f: edit_config(f, "model.attention.projections", "QKV"), "does not hold a MQA model: it lacks h.0.attn.v"),
        (
            lambda f: edit_config(f, "model.attention.n_kv_head", 2),
            "h.0.attn.k.weight has shape [16, 64], the configuration needs [32, 64]",
        ),
        (lambda f: edit_config(f, "model.n_layer", 10**9), "model.n_layer is 1000000000, outside 1 to 4096"),
        (lambda f: edit_config(f, "format", 3), "config.json has format 3, this edgeqkv reads up to 2: update edgeqkv"),
        (lambda f: edit_config(f, "format", "2"), "config.json has format '2', this edgeqkv reads up to 2"),
        (lambda f: (f / "config.json").write_text('{"format": 2, "format": 2}'), "the field 'format' stands there twice"),
        (lambda f: (f / "config.json").write_text("[2]"), "config.json: expected an object"),
        (lambda f: (f / "config.json").unlink(), "config.json"),
        (lambda f: (f / "model.safetensors").unlink(), "is not a model folder: it has no model.safetensors"),
        (damage, "model.safetensors is damaged or truncated"),
        (lambda f: with_weights(f, nan), "h.1.attn.k.bias holds NaN"),
        (lambda f: with_weights(f, lambda w: w.pop("ln_f.bias")), "does not hold a Q-MQA model: it lacks ln_f.bias"),
        (
            lambda f: with_weights(f, lambda w: w.update(extra=np.zeros(3, np.float32))),
            "does not hold a Q-MQA model: it has unexpected extra",
        ),
        (
            lambda f: with_weights(f, lambda w: w.update({"ln_f.bias": np.zeros(64, np.int64)})),
            "ln_f.bias has dtype I64; float32, float16 and bfloat16 are supported",
        ),
        (lambda f: (f / "text.json").write_text('{"end_tokens": [300]}'), "the end token 300 is none of the model's"),
        (lambda f: (f / "text.json").write_text('{"eos": [3]}'), "text.json: unknown field 'eos'"),
        (lambda f: (f / "tokenizer.json").write_text("{}"), "tokenizer.json is not a tokenizer.json"),
    ],
)
def test_damaged_model_folders(cli, tiny_model, tmp_path, harm, reason):
    folder = tiny_model("Q-MQA")
    harm(folder)
    outcome = cli("export", folder, "--out", tmp_path / "bundle")
    assert outcome.code == 2
    assert reason in one_sentence(outcome)
    assert not (tmp_path / "bundle").exists()


def test_another_models_tokenizer_is_refused(cli, tiny_model, letters, tmp_path):
    """256 byte tokens do not fit a model of 200 ids: text would become ids that the model does not have."""
    folder = tiny_model("Q-MQA", token_count=200)
    (folder / "tokenizer.json").write_text(letters)
    outcome = cli("export", folder, "--out", tmp_path / "bundle")
    assert outcome.code == 2
    assert "tokenizer.json has token ids up to 255, the model knows 0 to 199: it is another model's tokenizer" in one_sentence(
        outcome
    )


def test_weights_that_do_not_fit_are_not_written(tmp_path):
    config = tiny_config("QKV")
    weights = tiny_weights(config)
    weights["ln_f.bias"] = weights["ln_f.bias"].astype(np.float64)
    with pytest.raises(EdgeQKVError, match=r"ln_f\.bias has dtype float64"):
        write_model(tmp_path / "m", model_of(config, weights), "# card\n")
    assert not (tmp_path / "m").exists()
