"""The configuration: nested by block, every field named when it is wrong."""

import copy

import msgspec
import pytest
from conftest import tiny_config
from msgspec.structs import replace

from edgeqkv.config import FactorScaling, LatentAttention, ModelConfig, Rotary, baseline, parse_variant, siblings, with_variant
from edgeqkv.errors import EdgeQKVError
from edgeqkv.presets import PRESETS, gpt2, latent, mla, preset, rotary
from edgeqkv.strict import from_json, schema, to_json

GOOD = tiny_config("QKV")
MLA = mla(2, 64, 96, 320, rotary(1e4, 16), latent(4, 24, 56, 24, 16, 32))


def plain(config):
    return msgspec.to_builtins(config)


def changed(config, path, value):
    """The plain values of a configuration with the one at a path ("attention.n_head") changed, added, or removed (None)."""
    data = copy.deepcopy(plain(config))
    *blocks, name = path.split(".")
    block = data
    for part in blocks:
        block = block[part]
    if value is None:
        del block[name]
    else:
        block[name] = value
    return data


@pytest.mark.parametrize("name", ["QKV", "GQA-2", "MQA", "Q-K=V", "Q-GQA-2", "Q-MQA", "Q=K-V", "Q=K=V"])
def test_variant_names_are_the_papers_and_come_back(name):
    assert tiny_config(name).variant == name
    assert with_variant(tiny_config("MQA"), name) == tiny_config(name)


@pytest.mark.parametrize("config", [GOOD, MLA, *PRESETS.values()])
def test_what_is_written_reads_back(config):
    assert from_json(ModelConfig, msgspec.json.decode(to_json(config)), "here") == config


def test_siblings_are_the_papers_eight():
    names = [c.variant for c in siblings(preset("paper-300m", "Q-MQA"))]
    assert names == ["QKV", "Q-K=V", "Q=K-V", "Q=K=V", "GQA-4", "MQA", "Q-GQA-4", "Q-MQA"]
    assert "Q-GQA-8" in [c.variant for c in siblings(preset("paper-1.2b", "QKV"))]


@pytest.mark.parametrize(
    ("n_head", "groups"), [(1, []), (2, ["MQA", "Q-MQA"]), (7, ["MQA", "Q-MQA"]), (6, ["GQA-2", "MQA", "Q-GQA-2", "Q-MQA"])]
)
def test_siblings_of_odd_head_counts(n_head, groups):
    names = [c.variant for c in siblings(gpt2(1, 8 * n_head, n_head, 8, 16, 16))]
    assert names == ["QKV", "Q-K=V", "Q=K-V", "Q=K=V", *groups]


def test_latent_attention_has_two_forms_and_no_variants():
    assert [c.variant for c in siblings(MLA)] == ["MLA expanded", "MLA"]
    assert baseline(MLA).attention == replace(MLA.attention, form="expanded")
    assert baseline(tiny_config("Q-MQA")) == tiny_config("QKV")
    with pytest.raises(EdgeQKVError, match="a MLA model has no variant Q-MQA"):
        with_variant(MLA, "Q-MQA")


@pytest.mark.parametrize("name", ["qkv", "Q-V", "GQA-0", "GQA", "Q=K-MQA", "", "GQA-9999999999", "GQA-2 "])
def test_unknown_variant(name):
    with pytest.raises(EdgeQKVError, match="unknown variant"):
        parse_variant(name, 4)


INT = "attention.n_head: Expected int, got"


@pytest.mark.parametrize(
    ("config", "path", "value", "reason"),
    [
        (GOOD, "rope_theta", 1e4, "unknown field 'rope_theta'"),
        (GOOD, "attention.window", 128, "attention: unknown field 'window'"),
        (GOOD, "positions.theta", 1e4, "positions: unknown field 'theta'"),
        (GOOD, "n_layer", None, "the field 'n_layer' is missing"),
        (GOOD, "attention.bias", None, "attention: the field 'bias' is missing"),
        (GOOD, "attention.kind", None, "attention: the field 'kind' is missing"),
        (GOOD, "attention.kind", "linear", "attention.kind: 'linear' is not one of 'latent', 'shared'"),
        (GOOD, "attention", "shared", "attention: Expected object, got str"),
        (GOOD, "positions", "learned", "positions: Expected object, got str"),
        (GOOD, "positions.kind", "alibi", "positions.kind: 'alibi' is not one of 'learned', 'rotary'"),
        (GOOD, "attention.projections", "K=V", "attention.projections: 'K=V' is not one of 'Q-K=V', 'Q=K-V', 'Q=K=V', 'QKV'"),
        (GOOD, "norm.kind", "batch_norm", "norm.kind: 'batch_norm' is not one of 'layer_norm', 'rms_norm'"),
        (GOOD, "mlp.kind", "relu", "mlp.kind: 'relu' is not one of 'gelu', 'swiglu'"),
        *[(GOOD, "attention.n_head", wrong, f"{INT} {kind}") for wrong, kind in (("4", "str"), (4.0, "float"), (True, "bool"))],
        (GOOD, "attention.n_head", [4], f"{INT} array"),
        (GOOD, "attention.n_kv_head", 3, "n_head 4 is not divisible by n_kv_head 3"),
        (GOOD, "attention.n_head", 0, "attention.n_head is 0, outside 1 to 2147483647"),
        (GOOD, "attention.head_dim", 2**31, "attention.head_dim is 2147483648, outside 1 to 2147483647"),
        (GOOD, "n_layer", 0, "n_layer is 0, outside 1 to 4096"),
        (GOOD, "n_layer", 10**9, "n_layer is 1000000000, outside 1 to 4096"),
        (GOOD, "token_count", 321, "token_count 321 exceeds vocab_size 320"),
        (GOOD, "norm.eps", 0.0, "norm.eps: Expected float > 0.0"),
        (GOOD, "embedding_scale", 1e300, "embedding_scale: Expected float < 1e+30"),
        (tiny_config("Q=K-V"), "attention.n_kv_head", 1, "Q=K-V shares q and k, so n_kv_head must equal n_head 4"),
        (MLA, "attention.form", "folded", "attention.form: 'folded' is not one of 'absorbed', 'expanded'"),
        (MLA, "positions", {"kind": "learned"}, "latent attention needs rotary positions of rope_dim 16 channels"),
        (MLA, "positions.dim", 8, "latent attention needs rotary positions of rope_dim 16 channels"),
        (MLA, "positions.dim", 15, "positions.dim 15 is odd; rotary positions turn pairs of channels"),
        (MLA, "positions.pairs", "thirds", "positions.pairs: 'thirds' is not one of 'halves', 'interleaved'"),
        (MLA, "positions.scaling", {"kind": "yarn"}, "positions.scaling.kind: 'yarn' is not one of 'factors', 'llama3'"),
        (MLA, "positions.scaling", {"kind": "factors", "factors": [1.0]}, "positions.scaling has 1 factors for 8 pairs"),
        (MLA, "positions.theta", float("nan"), "positions.theta: Expected float"),
    ],
)
def test_what_is_wrong_is_named(config, path, value, reason):
    with pytest.raises(EdgeQKVError) as error:
        from_json(ModelConfig, changed(config, path, value), "here")
    assert str(error.value).startswith(f"here: {reason}")


def test_rotary_positions_wider_than_a_head():
    with pytest.raises(EdgeQKVError, match="positions.dim 18 exceeds head_dim 16"):
        replace(GOOD, positions=rotary(1e4, 18))
    assert replace(GOOD, positions=rotary(1e4, 16)).row.key.width == 16


def test_replacing_a_field_checks_too():
    """msgspec's replace does not look at types, but at what has to fit together."""
    with pytest.raises(EdgeQKVError, match="not divisible"):
        replace(GOOD.attention, n_kv_head=3)
    with pytest.raises(EdgeQKVError, match="factors"):
        replace(rotary(1e4, 16), scaling=FactorScaling(factors=(1.0,)))


def test_softmax_scale_of_a_published_geometry_is_that_of_all_key_channels():
    """(nope + rope)^-0.5, never that of the wider absorbed key."""
    config = PRESETS["youtu-2b"]
    assert isinstance(config.attention, LatentAttention)
    assert config.row.softmax_scale == pytest.approx((128 + 64) ** -0.5)
    assert config.row.key.width == 512 + 64


def test_the_schema_knows_every_block():
    import jsonschema

    made = schema(ModelConfig, "a model's configuration")
    validator = jsonschema.Draft202012Validator(made)
    for config in (GOOD, MLA, replace(GOOD, positions=Rotary(theta=1e4, dim=8, pairs="halves", scaling=None, value="turned"))):
        validator.validate(plain(config))
    for path, value in (("rope", 1), ("attention.n_head", "4"), ("attention.kind", "linear"), ("n_layer", 10**9)):
        assert not validator.is_valid(changed(GOOD, path, value)), path
