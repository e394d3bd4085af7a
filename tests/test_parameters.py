"""Which weights a model has, derived from the decoder: against lists that were written by hand."""

import math
import time

import pytest
from conftest import tiny_config
from msgspec.structs import replace

from edgeqkv import limits
from edgeqkv.config import MLP, Head, Norm, Rotary
from edgeqkv.model_folder import Model, expanded
from edgeqkv.parameters import parameter_count, parameter_shapes
from edgeqkv.presets import PRESETS, latent, mla, preset, rotary
from edgeqkv.text import Text

VARIANTS = ["QKV", "GQA-2", "MQA", "Q-K=V", "Q-GQA-2", "Q-MQA", "Q=K-V", "Q=K=V"]


def listed(config):
    """GPT-2's architecture as a list: what model folders were written by before there were blocks."""
    c, d = config.attention, config.d_model
    kv = c.n_kv_head * c.head_dim
    shapes = {"wte.weight": (config.vocab_size, d), "wpe.weight": (config.n_positions, d)}

    def linear(name, rows, columns):
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (rows, columns), (rows,)

    def layer_norm(name):
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (d,), (d,)

    for i in range(config.n_layer):
        layer_norm(f"h.{i}.ln_1")
        if not c.q_is_k:
            linear(f"h.{i}.attn.q", d, d)
        linear(f"h.{i}.attn.k", kv, d)
        if not c.v_is_k:
            linear(f"h.{i}.attn.v", kv, d)
        linear(f"h.{i}.attn.proj", d, d)
        layer_norm(f"h.{i}.ln_2")
        linear(f"h.{i}.mlp.fc", config.mlp.width, d)
        linear(f"h.{i}.mlp.proj", d, config.mlp.width)
    layer_norm("ln_f")
    return shapes


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_eight_variants_have_what_they_always_had_in_the_same_order(variant):
    config = tiny_config(variant, n_layer=3)
    assert list(parameter_shapes(config).items()) == list(listed(config).items())


def test_a_llama_has_no_biases_and_an_untied_head():
    """head_dim that is not d_model / n_head, norms of q and k, a gate, no positions to look up."""
    config = tiny_config("GQA-2", n_layer=1, head_dim=24)
    config = replace(
        config,
        positions=rotary(1e4, 24),
        norm=Norm(kind="rms_norm", eps=1e-6),
        attention=replace(config.attention, bias=False, out_bias=False, qk_norm=True),
        mlp=MLP(kind="swiglu", width=96, bias=False),
        head=Head(tied=False, scale=1.0),
    )
    assert parameter_shapes(config) == {
        "wte.weight": (320, 64),
        "h.0.ln_1.weight": (64,),
        "h.0.attn.q.weight": (96, 64),
        "h.0.attn.k.weight": (48, 64),
        "h.0.attn.v.weight": (48, 64),
        "h.0.attn.q_norm.weight": (24,),
        "h.0.attn.k_norm.weight": (24,),
        "h.0.attn.proj.weight": (64, 96),
        "h.0.ln_2.weight": (64,),
        "h.0.mlp.fc.weight": (96, 64),
        "h.0.mlp.gate.weight": (96, 64),
        "h.0.mlp.proj.weight": (64, 96),
        "ln_f.weight": (64,),
        "head.weight": (320, 64),
    }


@pytest.mark.parametrize("q_rank", [24, None])
@pytest.mark.parametrize("form", ["absorbed", "expanded"])
def test_latent_attention(form, q_rank):
    """One latent of 40 channels, 8 with the position, 4 heads of 16 + 8 for the key and 12 for the value."""
    attention = replace(latent(4, 24, 40, 16, 8, 12), form=form, q_rank=q_rank)
    config = mla(1, 64, 96, 320, rotary(1e4, 8), attention)
    per_head = form == "absorbed"
    q = {"q_a.weight": (24, 64), "q_norm.weight": (24,)} if q_rank else {}
    found = {n.removeprefix("h.0.attn."): s for n, s in parameter_shapes(config).items() if n.startswith("h.0.attn.")}
    assert found == {
        "kv_a.weight": (40, 64),
        "kv_norm.weight": (40,),
        "k_rope.weight": (8, 64),
        **q,
        "q_nope.weight": (64, q_rank or 64),
        "q_rope.weight": (32, q_rank or 64),
        "k_b.weight": (4, 40, 16) if per_head else (64, 40),
        "v_b.weight": (4, 12, 40) if per_head else (48, 40),
        "proj.weight": (64, 48),
    }


def test_the_expanded_form_has_the_weights_that_its_configuration_says():
    from conftest import tiny_weights

    config = mla(2, 64, 96, 320, rotary(1e4, 8), latent(4, 24, 40, 16, 8, 12))
    made = expanded(Model(config, tiny_weights(config), None, Text(), ""))
    assert {name: array.shape for name, array in made.weights.items()} == parameter_shapes(made.config)


@pytest.mark.parametrize("name", PRESETS)
def test_the_count_is_the_sum_of_the_shapes(name):
    config = preset(name, None, layers=3)
    assert parameter_count(config) == sum(map(math.prod, parameter_shapes(config).values()))


@pytest.mark.parametrize(
    ("name", "variant", "millions"),
    [("paper-300m", "QKV", 305.5), ("paper-300m", "Q-MQA", 264.9), ("youtu-2b", None, 1961.6), ("minicpm3-4b", None, 4073.9)],
)
def test_published_sizes(name, variant, millions):
    """Youtu-LLM-2B is said to have 1.96 billion parameters, MiniCPM3-4B 4.07."""
    assert parameter_count(preset(name, variant)) / 1e6 == pytest.approx(millions, abs=0.05)


def test_the_value_before_rotation_costs_no_weights():
    config = tiny_config("Q-MQA")
    turned, unturned = (
        replace(config, positions=Rotary(theta=1e4, dim=8, pairs="halves", scaling=None, value=value))
        for value in ("turned", "unturned")
    )
    assert parameter_shapes(turned) == parameter_shapes(unturned)


def test_the_most_layers_that_a_file_may_claim_are_counted_in_no_time():
    config = replace(PRESETS["youtu-2b"], n_layer=limits.LAYERS)
    start = time.perf_counter()
    assert parameter_count(config) > 2e11
    assert len(parameter_shapes(config)) > 40_000
    assert time.perf_counter() - start < 5  # a busy machine's; a fraction of a second
