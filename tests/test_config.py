from dataclasses import asdict, replace

import pytest
from conftest import TINY, tiny_config

from edgeqkv.config import ModelConfig, parse_variant, siblings
from edgeqkv.errors import EdgeQKVError
from edgeqkv.parameters import parameter_shapes
from edgeqkv.presets import preset
from edgeqkv.strict import from_json


@pytest.mark.parametrize("name", ["QKV", "GQA-2", "MQA", "Q-K=V", "Q-GQA-2", "Q-MQA", "Q=K-V", "Q=K=V"])
def test_variant_names_are_the_papers_and_come_back(name):
    assert tiny_config(name).variant == name


def test_cached_and_shared_projections():
    has = {name: [key.split(".")[3] for key in parameter_shapes(tiny_config(name)) if "h.0.attn" in key and "weight" in key]
           for name in ("QKV", "Q-K=V", "Q=K-V", "Q=K=V", "Q-MQA")}  # fmt: skip
    assert has == {
        "QKV": ["q", "k", "v", "proj"],
        "Q-K=V": ["q", "k", "proj"],
        "Q=K-V": ["k", "v", "proj"],
        "Q=K=V": ["k", "proj"],
        "Q-MQA": ["q", "k", "proj"],
    }


def test_siblings_are_the_papers_eight():
    names = [c.variant for c in siblings(preset("paper-300m", "Q-MQA"))]
    assert names == ["QKV", "Q-K=V", "Q=K-V", "Q=K=V", "GQA-4", "MQA", "Q-GQA-4", "Q-MQA"]
    assert "Q-GQA-8" in [c.variant for c in siblings(preset("paper-1.2b", "QKV"))]


@pytest.mark.parametrize("name", ["qkv", "Q-V", "GQA-0", "GQA", "Q=K-MQA", ""])
def test_unknown_variant(name):
    with pytest.raises(EdgeQKVError, match="unknown variant"):
        parse_variant(name, 4)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"n_kv_head": 3}, "n_head 4 is not divisible by n_kv_head 3"),
        ({"n_head": 5}, "d_model 64 is not divisible by n_head 5"),
        ({"n_layer": 0}, "n_layer must be at least 1"),
        ({"token_count": 321}, "token_count 321 exceeds vocab_size 320"),
        ({"projections": "Q=K-V", "n_kv_head": 1}, "n_kv_head must equal n_head"),
        ({"projections": "K=V"}, "'K=V' is not one of"),
        ({"layer_norm_eps": 0.0}, "layer_norm_eps"),
    ],
)
def test_impossible_configurations(changes, reason):
    with pytest.raises(EdgeQKVError, match=reason):
        replace(TINY, **changes)


def test_unknown_missing_and_mistyped_fields_are_named():
    good = asdict(TINY)
    with pytest.raises(EdgeQKVError, match="here: unknown field 'rope_theta'"):
        from_json(ModelConfig, good | {"rope_theta": 1e4}, "here")
    with pytest.raises(EdgeQKVError, match="'n_head' is missing"):
        from_json(ModelConfig, {k: v for k, v in good.items() if k != "n_head"}, "here")
    with pytest.raises(EdgeQKVError, match="here: positions: \"rotary\" is not one of 'learned'"):
        from_json(ModelConfig, good | {"positions": "rotary"}, "here")
    for wrong in ("4", 4.0, True, None, [4]):
        with pytest.raises(EdgeQKVError, match="here: n_head: expected int"):
            from_json(ModelConfig, good | {"n_head": wrong}, "here")
    assert from_json(ModelConfig, good, "here") == TINY
