"""Reading Hugging Face folders: against transformers' own classes, and what is refused."""

import json
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import one_sentence
from huggingface_models import (
    CASES,
    N_POSITIONS,
    assert_same_function,
    greedy,
    random_ids,
    reference_greedy,
    reference_logits,
    write_case,
)
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from edgeqkv.config import FactorScaling, LatentAttention, Llama3Scaling, Rotary
from edgeqkv.eager import EagerModel
from edgeqkv.errors import EdgeQKVError
from edgeqkv.huggingface import find_folder, read_huggingface, tokenizer_from_gpt2
from edgeqkv.model_folder import expanded, read_model, write_model
from edgeqkv.text import Text, load_tokenizer

TOLERANCE = 1e-4  # on logits of size 5 to 10


def read(folder: Path) -> EagerModel:
    model = read_huggingface(folder)
    return EagerModel(model.config, model.weights)


@pytest.mark.parametrize("name", CASES)
def test_logits_are_those_of_transformers(tmp_path, name):
    folder = write_case(tmp_path / "m", name)
    ids = random_ids()
    reference = reference_logits(folder, ids)
    session = read(folder)
    assert np.abs(session.forward(ids) - reference).max() <= TOLERANCE
    assert_same_function(session, ids, reference, TOLERANCE)
    assert greedy(session, ids[:16]) == reference_greedy(folder, ids[:16], N_POSITIONS)


@pytest.mark.parametrize("name", ["youtu", "minicpm3-longrope"])
def test_the_expanded_form_computes_the_same(tmp_path, name):
    folder = write_case(tmp_path / "m", name)
    ids = random_ids()
    model = expanded(read_huggingface(folder))
    session = EagerModel(model.config, model.weights)
    assert model.config.row.kv_heads == model.config.row.heads
    assert_same_function(session, ids, reference_logits(folder, ids), TOLERANCE)


def test_a_model_folder_keeps_all_of_it(tmp_path):
    folder = write_case(tmp_path / "m", "youtu-halves-bf16")
    model = read_huggingface(folder)
    assert len(list(folder.glob("*.safetensors"))) > 1
    write_model(tmp_path / "ours", model, "# card\n")
    ours = read_model(tmp_path / "ours")
    assert ours.config == model.config
    assert ours.text == Text(end_tokens=(2,))
    for name in model.weights:
        assert str(ours.weights[name].dtype) == "bfloat16"
        assert (ours.weights[name] == model.weights[name]).all()


# -- config.json --------------------------------------------------------------------------------------------------


def edit(path: Path, remove: tuple[str, ...] = (), **changes: Any) -> None:
    data = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({name: value for name, value in data.items() if name not in remove}))


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    return write_case(tmp_path / "llama", "llama-3")


LLAMA3_OLD = {
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 24,
    "rope_type": "llama3",
}


@pytest.mark.parametrize(
    ("fields", "theta", "scaling"),
    [
        ({}, 10000.0, None),
        ({"rope_theta": 500000, "rope_scaling": None}, 500000.0, None),
        ({"rope_theta": 500000.0, "rope_scaling": LLAMA3_OLD}, 500000.0, Llama3Scaling(4.0, 1.0, 4.0, 24)),
        ({"rope_parameters": {"rope_theta": 7.5, "rope_type": "default", "partial_rotary_factor": 1.0}}, 7.5, None),
    ],
)
def test_rope_of_older_files(llama, fields, theta, scaling):
    edit(llama / "config.json", remove=("rope_parameters",) if "rope_parameters" not in fields else (), **fields)
    assert read_huggingface(llama).config.positions == Rotary(theta, 16, "halves", scaling, "unturned")


def longrope(short: list[float], long: list[float], original: int, **more: float) -> dict[str, Any]:
    return {
        "type": "longrope",
        "short_factor": short,
        "long_factor": long,
        "original_max_position_embeddings": original,
        **more,
    }


ONES, TWOS = [1.0] * 8, [2.0] * 8


@pytest.mark.parametrize(
    ("rope", "n_positions"),
    [
        (longrope(ONES, ONES, 96), 96),
        (longrope(ONES, TWOS, 96), 96),
        (longrope(ONES, TWOS, 48, attention_factor=1.0), 48),
        (longrope(ONES, TWOS, 48, factor=1.0), 48),
        (longrope(ONES, ONES, 48, factor=1.0), 96),
    ],
)
def test_longrope_within_the_original_context(tmp_path, rope, n_positions):
    folder = write_case(tmp_path / "m", "minicpm3")
    edit(folder / "config.json", remove=("rope_parameters",), rope_scaling=rope)
    config = read_huggingface(folder).config
    assert isinstance(config.positions, Rotary)
    assert config.positions.scaling == FactorScaling(tuple(ONES))
    assert config.positions.theta == 10000.0
    assert config.n_positions == n_positions


def test_positions_beyond_the_original_context_are_where_longrope_ends(tmp_path):
    """What the limit is for: behind it transformers turns every position by other angles."""
    rope = longrope(ONES, TWOS, 48, attention_factor=1.0)
    folder = write_case(tmp_path / "m", "minicpm3", rope_parameters=rope | {"rope_theta": 10000.0, "rope_type": "longrope"})
    ids = random_ids()
    session = read(folder)
    assert session.capacity == 48
    assert_same_function(session, ids[:48], reference_logits(folder, ids[:48]), TOLERANCE)
    assert np.abs(reference_logits(folder, ids)[47] - session.forward(ids[:48])[47]).max() > 10 * TOLERANCE


def test_minicpm3_as_it_is_published(tmp_path):
    """The fields of openbmb/MiniCPM3-4B, which leaves v_head_dim, rope_theta and tie_word_embeddings to its class."""
    folder = write_case(tmp_path / "m", "minicpm3", v_head_dim=16)
    gone = ("v_head_dim", "tie_word_embeddings", "rope_parameters", "head_dim", "qk_head_dim", "dtype")
    edit(
        folder / "config.json", remove=gone, rope_scaling=longrope(ONES, ONES, 96), torch_dtype="bfloat16", auto_map={"a": "b"}
    )
    config = read_huggingface(folder).config
    assert isinstance(config.attention, LatentAttention)
    assert config.attention.value_dim == 16
    assert config.attention.norm_eps == 1e-6
    assert config.attention.softmax_scale == 40**-0.5
    assert config.head.tied
    assert config.head.scale == 16 / 64
    assert config.embedding_scale == 12
    assert config.residual_scale == pytest.approx(1.4 / 3**0.5)
    reference = reference_logits(folder, random_ids(20))
    assert np.abs(read(folder).forward(random_ids(20)) - reference).max() <= TOLERANCE


@pytest.mark.parametrize(("name", "tied"), [("llama-3", False), ("qwen2", False), ("qwen3-bias", False), ("youtu", True)])
def test_what_is_absent_has_the_default_of_transformers_class(tmp_path, name, tied):
    folder = write_case(tmp_path / "m", name, tie_word_embeddings=tied)
    before = read_huggingface(folder)
    edit(folder / "config.json", remove=("tie_word_embeddings", "rms_norm_eps", "rope_interleave"))
    after = read_huggingface(folder)
    assert after.config == before.config
    assert after.config.head.tied == tied
    for weight in before.weights:  # rope_interleave is in their order alone
        np.testing.assert_array_equal(after.weights[weight], before.weights[weight])
    assert AutoConfig.from_pretrained(folder).tie_word_embeddings == tied


def test_fields_that_change_nothing(llama):
    before = read_huggingface(llama).config
    edit(
        llama / "config.json",
        transformers_version="4.40.1",
        torch_dtype="bfloat16",
        _name_or_path="x",
        auto_map={"AutoModel": "code.Model"},
        pretraining_tp=2,
        hidden_act="swish",
        rope_interleaved=False,
        is_llama_config=True,
        quantization_config=None,
        temperature=0.6,
        layer_types=["full_attention"] * 3,
    )
    assert read_huggingface(llama).config == before


@pytest.mark.parametrize("name", ["llama-mqa", "qwen2", "qwen3-bias", "youtu", "minicpm3"])
def test_every_field_that_transformers_writes_is_known(tmp_path, name):
    folder = write_case(tmp_path / "m", name)
    before = read_huggingface(folder).config
    AutoConfig.from_pretrained(folder).to_json_file(folder / "config.json", use_diff=False)
    assert read_huggingface(folder).config == before


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("llama-3", {"model_type": "mixtral"}, "model_type 'mixtral' is not supported, only llama, qwen2, qwen3, minicpm3, youtu"),
    ("llama-3", {"hidden_act": "gelu"}, 'hidden_act "gelu" is not supported for llama, only "silu"'),
    ("llama-3", {"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5 is not supported"),
    ("llama-3", {"quantization_config": {"quant_method": "gptq"}}, "says that the checkpoint is quantised"),
    ("llama-3", {"sliding_window": 64}, "sliding_window 64 is not supported for llama, only null"),
    ("llama-3", {"rope_interleaved": True}, "rope_interleaved true is not supported"),
    ("llama-3", {"rope_interleave": True}, "the field 'rope_interleave' is not known for llama"),
    ("llama-3", {"logits_scaling": 8.0}, "the field 'logits_scaling' is not known for llama and may change"),
    ("llama-3", {"layer_types": ["sliding_attention"] * 3}, "layer_types: only full_attention"),
    ("llama-3", {"num_hidden_layers": 0}, "num_hidden_layers is 0, outside 1 to 4096"),
    ("llama-3", {"num_key_value_heads": 3}, "n_head 4 is not divisible by n_kv_head 3"),
    ("llama-3", {"rms_norm_eps": 0}, "rms_norm_eps: Expected float > 0"),
    ("llama-3", {"hidden_size": "64"}, "hidden_size: Expected int, got str"),
    ("llama-3", {"rope_theta": 3.0}, "rope_theta 3.0 and rope_parameters.rope_theta 10000.0 contradict each other"),
    ("llama-3", {"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_parameters and rope_scaling contradict"),
    ("llama-3", {"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}, "rope_type 'yarn' is not supported, only default, "),
    ("llama-3", {"rope_parameters": {"rope_type": "dynamic", "factor": 4.0}}, "rope_type 'dynamic' is not supported"),
    ("llama-3", {"rope_parameters": {"rope_type": "linear", "factor": 4.0}}, "rope_type 'linear' is not supported"),
    ("llama-3", {"rope_parameters": {"rope_type": "default", "type": "llama3"}}, "rope_type and type contradict each other"),
    ("llama-3", {"rope_parameters": {"rope_type": "default", "factor": 2.0}}, "rope_parameters: unknown field 'factor'"),
    ("llama-3", {"rope_parameters": LLAMA3_OLD | {"high_freq_factor": 1.0}}, "high_freq_factor 1.0 does not exceed"),
    ("llama-3", {"rope_parameters": LLAMA3_OLD | {"partial_rotary_factor": 0.5}}, "partial_rotary_factor: Expected float >= 1"),
    ("llama-3", {"rope_parameters": {"full_attention": {"rope_type": "default"}}}, "unknown field 'full_attention'"),
    ("qwen2", {"use_sliding_window": True}, "use_sliding_window true is not supported for qwen2, only false"),
    ("qwen2", {"attention_bias": False}, "attention_bias false is not supported for qwen2, only true"),
    ("qwen3", {"mlp_bias": True}, "mlp_bias true is not supported for qwen3, only false"),
    ("youtu", {"num_key_value_heads": 1}, "num_key_value_heads 1 to be num_attention_heads"),
    ("youtu", {"head_dim": 40}, "head_dim and qk_head_dim contradict"),
    ("youtu", {"scale_emb": 12}, "the field 'scale_emb' is not known for youtu"),
    (
        "minicpm3",
        {"rope_parameters": longrope(ONES, TWOS, 48)},
        "longrope with an attention factor of 1.08584 is not supported",
    ),
    ("minicpm3", {"rope_parameters": longrope(ONES[:7], ONES[:7], 96)}, "positions.scaling has 7 factors for 8 pairs"),
    ("minicpm3", {"scale_depth": 0}, "scale_depth: Expected float > 0"),
]


@pytest.mark.parametrize(("name", "changes", "reason"), REFUSED)
def test_what_config_json_may_not_say(tmp_path, name, changes, reason):
    folder = write_case(tmp_path / "m", name)
    edit(folder / "config.json", **changes)
    with pytest.raises(EdgeQKVError) as refused:
        read_huggingface(folder)
    assert str(refused.value).startswith(f"{folder / 'config.json'}: ")
    assert reason in str(refused.value)


# -- weights ------------------------------------------------------------------------------------------------------


def change_index(folder: Path, tensor: str, shard: Any) -> None:
    path = folder / "model.safetensors.index.json"
    data = json.loads(path.read_text())
    data["weight_map"][tensor] = shard
    path.write_text(json.dumps(data))


def change_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


NORM, EMBEDDING = "model.norm.weight", "model.embed_tokens.weight"
INDEX_HARM: list[tuple[Callable[[Path], Any], str]] = [
    (lambda f: change_index(f, NORM, "../model.safetensors"), "names '../model.safetensors', which is not a safetensors file"),
    (lambda f: change_index(f, NORM, "/etc/model.safetensors"), "names '/etc/model.safetensors', which is not"),
    (lambda f: change_index(f, NORM, "..\\model.safetensors"), "which is not a safetensors file of the same folder"),
    (lambda f: change_index(f, "a", "model.bin"), "names 'model.bin', which is not"),
    (lambda f: change_index(f, NORM, "model-00001-of-00004.safetensors"), "do not agree on whether it holds model.norm.weight"),
    (lambda f: change_index(f, "model.extra.weight", "model-9.safetensors"), "model-9.safetensors does not exist"),
    (lambda f: change_index(f, NORM, 3), "expected an object with a weight_map"),
    (lambda f: change_index(f, "model.extra.weight", "model-00001-of-00004.safetensors"), "do not agree on whether it holds"),
    (lambda f: (f / "model.safetensors.index.json").write_text("{}"), "expected an object with a weight_map"),
    (lambda f: (f / "model.safetensors.index.json").write_text("{"), "is not a JSON file"),
    (lambda f: (f / "model.safetensors.index.json").unlink(), "has no weights: neither model.safetensors nor"),
    (lambda f: (f / "model-00002-of-00004.safetensors").unlink(), "model-00002-of-00004.safetensors does not exist"),
    (lambda f: (f / "model-00002-of-00004.safetensors").write_bytes(b"x" * 100), "is damaged or truncated"),
]


@pytest.mark.parametrize(("harm", "reason"), INDEX_HARM)
def test_damaged_shards(tmp_path, harm, reason):
    folder = write_case(tmp_path / "m", "llama-bf16")
    read_huggingface(folder)
    harm(folder)
    with pytest.raises(EdgeQKVError, match=reason.replace("\\", "\\\\").replace("(", "\\(")):
        read_huggingface(folder)


TENSOR_HARM: list[tuple[Callable[[dict[str, torch.Tensor]], Any], str]] = [
    (lambda t: t.pop(NORM), "it lacks model.norm.weight"),
    (lambda t: t.update(extra=torch.zeros(1)), "it has the unexpected extra"),
    (lambda t: t.update({NORM: torch.ones(3)}), r"model.norm.weight has shape \[3\], config.json needs \[64\]"),
    (lambda t: t.update({NORM: t[NORM].to(torch.float8_e4m3fn)}), "has dtype F8_E4M3; F32, F16, BF16 are supported"),
    (lambda t: t.update({NORM: t[NORM].to(torch.int8)}), "has dtype I8;"),
    (lambda t: t.update({NORM: t[NORM].double()}), "has dtype F64;"),
    (
        lambda t: t.update({"lm_head.weight": t[EMBEDDING] + 1}),
        "ties lm_head.weight to model.embed_tokens.weight, but they differ",
    ),
]


@pytest.mark.parametrize(("harm", "reason"), TENSOR_HARM)
def test_tensors_that_do_not_fit(llama, harm, reason):
    change_tensors(llama, harm)
    with pytest.raises(EdgeQKVError, match=reason):
        read_huggingface(llama)


@pytest.mark.parametrize(
    ("tensor", "shape"),
    [("q_b_proj", [200, 24]), ("kv_a_proj_with_mqa", [72, 64]), ("kv_b_proj", [320, 56])],
)
def test_a_tensor_that_is_cut_has_the_rows_of_all_its_parts(tmp_path, tensor, shape):
    folder = write_case(tmp_path / "m", "youtu")
    name = f"model.layers.1.self_attn.{tensor}.weight"
    change_tensors(folder, lambda t: t.update({name: t[name][:-1].clone()}))
    with pytest.raises(
        EdgeQKVError, match=rf"has shape \[{shape[0] - 1}, {shape[1]}\], config.json needs \[{shape[0]}, {shape[1]}\]"
    ):
        read_huggingface(folder)


def test_tensors_that_say_nothing_new(llama):
    before = read_huggingface(llama)
    change_tensors(
        llama,
        lambda t: t.update(
            {"lm_head.weight": t[EMBEDDING].clone(), "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}
        ),
    )
    after = read_huggingface(llama)
    assert after.weights.keys() == before.weights.keys()
    assert after.sha256 != before.sha256


def test_pickles_are_refused(llama):
    (llama / "model.safetensors").rename(llama / "pytorch_model.bin")
    with pytest.raises(EdgeQKVError, match="pytorch_model.bin, a format that can carry code: only safetensors are read"):
        read_huggingface(llama)


def test_the_sha256_of_shards_is_that_of_what_they_hold(tmp_path):
    one = write_case(tmp_path / "a", "llama-bf16")
    assert read_huggingface(one).sha256 == read_huggingface(write_case(tmp_path / "b", "llama-bf16")).sha256
    shard = one / "model-00003-of-00004.safetensors"
    tensors = load_file(shard)
    save_file({name: tensor + 1 for name, tensor in tensors.items()}, shard)
    assert read_huggingface(one).sha256 != read_huggingface(tmp_path / "b").sha256


# -- text ---------------------------------------------------------------------------------------------------------


def words(count: int) -> str:
    """A tokenizer.json of ``count`` words."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({f"w{i}": i for i in range(count)}, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer.to_str()


def write_json(path: Path, data: Any) -> None:
    path.write_text(json.dumps(data))


@pytest.mark.parametrize(
    ("generation", "config", "ends"),
    [
        ({"eos_token_id": [5, 6, 5]}, 3, (5, 6)),
        ({"eos_token_id": 7}, 3, (7,)),
        ({"eos_token_id": None}, 3, (3,)),
        (None, [3, 4], (3, 4)),
        (None, None, ()),
    ],
)
def test_end_tokens(llama, generation, config, ends):
    (llama / "generation_config.json").unlink(missing_ok=True)
    if generation is not None:
        write_json(llama / "generation_config.json", generation)
    edit(llama / "config.json", eos_token_id=config)
    assert read_huggingface(llama).text.end_tokens == ends


@pytest.mark.parametrize("eos", [131, -1, "2", [2, None], 2.0, True])
def test_end_tokens_that_are_none(llama, eos):
    write_json(llama / "generation_config.json", {"eos_token_id": eos})
    with pytest.raises(EdgeQKVError, match="eos_token_id|end token"):
        read_huggingface(llama)


def test_chat_template_and_special_tokens(llama):
    write_json(llama / "special_tokens_map.json", {"unk_token": "<unk>", "bos_token": "<old>"})
    settings = {"bos_token": {"content": "<s>", "lstrip": False}, "eos_token": "</s>", "pad_token": None, "model_max_length": 5}
    write_json(llama / "tokenizer_config.json", settings | {"chat_template": "{{ bos_token }}"})
    text = read_huggingface(llama).text
    assert text.special_tokens == {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    assert text.chat_template == "{{ bos_token }}"
    named = [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]
    write_json(llama / "tokenizer_config.json", settings | {"chat_template": named})
    assert read_huggingface(llama).text.chat_template == "d"
    (llama / "chat_template.jinja").write_text("j")
    assert read_huggingface(llama).text.chat_template == "j"
    (llama / "chat_template.jinja").unlink()
    write_json(llama / "tokenizer_config.json", {"chat_template": 3})
    with pytest.raises(EdgeQKVError, match="chat_template is not a text"):
        read_huggingface(llama)


@pytest.mark.parametrize(("ids", "end", "token_count"), [(131, 2, 131), (100, 2, 100), (100, 120, 121)])
def test_rows_without_a_token_are_never_sampled(llama, ids, end, token_count):
    (llama / "tokenizer.json").write_text(words(ids))
    write_json(llama / "generation_config.json", {"eos_token_id": end})
    model = read_huggingface(llama)
    assert model.config.vocab_size == 131
    assert model.config.token_count == token_count
    logits = EagerModel(model.config, model.weights).prefill([1, 2])
    assert np.isfinite(logits).sum() == token_count


def test_another_models_tokenizer(llama):
    (llama / "tokenizer.json").write_text(words(132))
    with pytest.raises(EdgeQKVError, match="has token ids up to 131, the model knows 0 to 130"):
        read_huggingface(llama)


def test_the_text_goes_into_the_model_folder(llama, tmp_path):
    (llama / "tokenizer.json").write_text(words(100))
    write_json(llama / "tokenizer_config.json", {"chat_template": "{{ x }}", "eos_token": "w2"})
    model = read_huggingface(llama)
    write_model(tmp_path / "ours", model, "# card\n")
    ours = read_model(tmp_path / "ours")
    assert ours.text == model.text == Text((2,), "{{ x }}", {"eos_token": "w2"})
    assert ours.tokenizer == model.tokenizer


def test_gpt2s_own_tokenizer_files(tmp_path):
    letters = ["l", "o", "w", "e", "r", "Ġ", "n", "Ã", "©", "!", "lo", "low", "Ġn", "er", "Ġlow", "<|endoftext|>"]
    write_json(tmp_path / "vocab.json", {letter: i for i, letter in enumerate(letters)})
    (tmp_path / "merges.txt").write_text("#version: 0.2\nl o\nlo w\nĠ n\ne r\nĠ low\n")
    tokenizer = load_tokenizer(tokenizer_from_gpt2(tmp_path), "gpt2")
    text = "low er new é!<|endoftext|> lower"
    ids = tokenizer.encode(text).ids
    assert [letters[i] for i in ids] == ["low", "Ġ", "er", "Ġn", "e", "w", "Ġ", "Ã", "©", "!", "<|endoftext|>", "Ġlow", "er"]
    assert tokenizer.decode(ids, skip_special_tokens=False) == text
    assert tokenizer.decode(ids) == text.replace("<|endoftext|>", "")

    (tmp_path / "merges.txt").write_text("l o\nlo w x\n")
    with pytest.raises(EdgeQKVError, match=r"merges.txt: 'lo w x' is not a pair of tokens"):
        tokenizer_from_gpt2(tmp_path)
    (tmp_path / "merges.txt").write_text("l zz\n")
    with pytest.raises(EdgeQKVError, match=r"merges.txt does not fit vocab.json"):
        tokenizer_from_gpt2(tmp_path)
    write_json(tmp_path / "vocab.json", {"a": "b"})
    with pytest.raises(EdgeQKVError, match=r"vocab.json: expected an object from tokens to ids"):
        tokenizer_from_gpt2(tmp_path)


# -- where it lies ------------------------------------------------------------------------------------------------


def test_folders_and_names_of_the_local_cache(tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    monkeypatch.setenv("HF_HUB_CACHE", str(cache))
    monkeypatch.chdir(tmp_path)
    snapshot = cache / "models--org--tiny.v1" / "snapshots" / "abc123"
    write_case(snapshot, "qwen2")
    assert find_folder(snapshot) == snapshot
    assert find_folder(Path("org/tiny.v1")) is None  # without refs/main it was not downloaded by name
    (cache / "models--org--tiny.v1" / "refs").mkdir()
    (cache / "models--org--tiny.v1" / "refs" / "main").write_text("abc123")
    assert find_folder(Path("org/tiny.v1")) == snapshot
    for name in ("org/other", "tiny.v1", "../org/tiny.v1", "org/..", str(tmp_path / "org/tiny.v1")):
        assert find_folder(Path(name)) is None
    write_case(cache / "elsewhere", "qwen2")
    (cache / "models--org--tiny.v1" / "refs" / "main").write_text("../../elsewhere")
    assert find_folder(snapshot / "../../../elsewhere") is not None  # a model, but not one of this name
    assert find_folder(Path("org/tiny.v1")) is None

    Path("org/tiny.v1").mkdir(parents=True)  # a path comes before a name
    assert find_folder(Path("org/tiny.v1")) is None


@pytest.mark.parametrize(
    ("variables", "place"),
    [
        ({"HF_HUB_CACHE": "a", "HF_HOME": "b"}, "a"),
        ({"HF_HOME": "b", "XDG_CACHE_HOME": "c"}, "b/hub"),
        ({"XDG_CACHE_HOME": "c"}, "c/huggingface/hub"),
        ({"HOME": "d"}, "d/.cache/huggingface/hub"),
    ],
)
def test_the_cache_is_where_the_hubs_package_has_it(tmp_path, monkeypatch, variables, place):
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, str(tmp_path / value))
    snapshot = tmp_path / place / "models--o--n" / "snapshots" / "1"
    snapshot.mkdir(parents=True)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("1\n")
    write_json(snapshot / "config.json", {"model_type": "llama"})
    assert find_folder(Path("o/n")) == snapshot


def test_our_own_folders_are_not_taken_for_theirs(tmp_path, llama):
    write_model(tmp_path / "ours", read_huggingface(llama), "# card\n")
    assert find_folder(tmp_path / "ours") is None
    assert find_folder(tmp_path / "nothing") is None
    assert find_folder(tmp_path) is None


def test_the_commands_take_a_folder_or_a_name_of_the_local_cache(cli, tmp_path, monkeypatch):
    snapshot = tmp_path / "hub" / "models--org--tiny" / "snapshots" / "1"
    write_case(snapshot, "youtu")
    (tmp_path / "hub/models--org--tiny/refs").mkdir()
    (tmp_path / "hub/models--org--tiny/refs/main").write_text("1")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    assert (
        cli("import", snapshot, "--out", tmp_path / "ours").out
        == f"{tmp_path / 'ours'}: MLA, 3 layers, d_model 64, 131 tokens\n"
    )
    exported = cli("export", "org/tiny", "--out", tmp_path / "b", "--weights", "fp32", "--cache", "fp32", "--target", "onnx")
    assert exported.code == 0, exported.err
    assert cli("verify", tmp_path / "b", "--against", "org/tiny", "--tokens", 50).code == 0
    assert json.loads(cli("inspect", "org/tiny", "--json").out)["variant"] == "MLA"
    missing = cli("import", "org/other", "--out", tmp_path / "x")
    assert missing.code == 2
    assert "org/other does not exist" in one_sentence(missing)


# -- memory -------------------------------------------------------------------------------------------------------

COPY = """
import re, sys
from pathlib import Path
from edgeqkv.huggingface import read_huggingface
from edgeqkv.model_folder import write_model
write_model(Path(sys.argv[2]), read_huggingface(Path(sys.argv[1])), "# card\\n")
# Not ru_maxrss: a process starts with that of the one which started it.
print(re.search(r"VmHWM:\\s*(\\d+) kB", Path("/proc/self/status").read_text())[1])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_large_model_is_never_in_memory_as_a_whole(tmp_path):
    size = write_large(tmp_path / "large")
    assert size > 1.4e9
    command = [sys.executable, "-c", COPY, tmp_path / "large", tmp_path / "ours"]
    peak = 1024 * int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    written = tmp_path / "ours" / "model.safetensors"
    assert written.stat().st_size >= size
    written.unlink()  # pytest keeps the folders of the last runs
    assert peak < 0.5e9


def write_large(folder: Path) -> int:
    """A Youtu model of 13 layers in two bf16 shards, all zeros: files with holes, which take no space. Returns their bytes."""
    config = AutoConfig.for_model("youtu", vocab_size=32000, num_hidden_layers=13, eos_token_id=2)
    with torch.device("meta"):
        tensors = AutoModelForCausalLM.from_config(config).state_dict()
    tensors.pop("lm_head.weight")  # tied
    config.save_pretrained(folder)
    names = sorted(tensors)
    index, total = {}, 0
    for shard, part in (("model-1.safetensors", names[::2]), ("model-2.safetensors", names[1::2])):
        header, end = {}, 0
        for name in part:
            start, end = end, end + 2 * tensors[name].numel()
            header[name] = {"dtype": "BF16", "shape": list(tensors[name].shape), "data_offsets": [start, end]}
        text = json.dumps(header).encode()
        with (folder / shard).open("wb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            file.truncate(8 + len(text) + end)
        index |= dict.fromkeys(part, shard)
        total += end
    write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": index})
    return total
