"""Every target computes the same function: models of transformers' own classes, and random configurations.

fp32 weights and cache agree within 1e-3 on logits of size 5 to 10, with the same greedy ids. Core ML computes in fp16.
"""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_models import (
    CASES,
    N_POSITIONS,
    assert_same_function,
    greedy,
    random_ids,
    randomize,
    reference_greedy,
    reference_logits,
    write_case,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from transformers.models.gemma4.configuration_gemma4 import Gemma4TextConfig
from transformers.models.gemma4.modeling_gemma4 import (
    Gemma4TextAttention,
    Gemma4TextRotaryEmbedding,
    apply_rotary_pos_emb,
)

import edgeqkv
from edgeqkv.bundle import read_bundle
from edgeqkv.cache import CacheLayout
from edgeqkv.config import (
    MLP,
    FactorScaling,
    Head,
    LatentAttention,
    Learned,
    Llama3Scaling,
    ModelConfig,
    Norm,
    Rotary,
    Row,
    SharedAttention,
    Slice,
)
from edgeqkv.eager import EagerModel, EagerVerbs
from edgeqkv.errors import EdgeQKVError
from edgeqkv.model_folder import Model, write_model
from edgeqkv.parameters import parameter_shapes
from edgeqkv.text import Text

TOLERANCE, COREML_TOLERANCE = 1e-3, 3e-2


@dataclass(frozen=True)
class Reference:
    """A Hugging Face folder, and what transformers says of it."""

    folder: Path
    ids: list[int]
    logits: np.ndarray
    greedy: list[int]  # what follows the first 16 of ids


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Reference]:
    made: dict[str, Reference] = {}

    def make(name: str, **changes: Any) -> Reference:
        key = f"{name} {changes}"
        if key not in made:
            folder = write_case(tmp_path_factory.mktemp("hf") / name, name, **changes)
            ids = random_ids()
            made[key] = Reference(folder, ids, reference_logits(folder, ids), reference_greedy(folder, ids[:16], N_POSITIONS))
        return made[key]

    return make


def check(session: Any, reference: Reference) -> None:
    assert_same_function(session, reference.ids, reference.logits, TOLERANCE)
    assert greedy(session, reference.ids[:16]) == reference.greedy


@pytest.mark.parametrize("name", CASES)
def test_onnx(tmp_path, reference, name):
    expected = reference(name)
    edgeqkv.export(expected.folder, tmp_path / "b", ["onnx"], weights="fp32", cache="fp32", prefill_chunk=16)
    for kernel in ("fused", "stock"):
        check(edgeqkv.open(tmp_path / "b", "onnx", kernel, threads=1), expected)


@pytest.mark.parametrize("name", ["youtu", "minicpm3-longrope"])
def test_onnx_of_the_expanded_form(tmp_path, reference, name):
    expected = reference(name)
    edgeqkv.export(expected.folder, tmp_path / "b", weights="fp32", cache="fp32", prefill_chunk=16, mla="expanded")
    for kernel in ("fused", "stock"):
        check(edgeqkv.open(tmp_path / "b", "onnx", kernel, threads=1), expected)


# An export for ExecuTorch takes many seconds: cases that have everything between them.
@pytest.mark.parametrize("name", ["llama-mqa", "qwen3", "youtu-halves-bf16", "youtu-plain-query", "minicpm3"])
def test_executorch(tmp_path, reference, name):
    expected = reference(name)
    edgeqkv.export(expected.folder, tmp_path / "b", ["executorch"], weights="fp32", cache="fp32", prefill_chunk=16)
    check(edgeqkv.open(tmp_path / "b", "executorch", threads=1), expected)


# Rows of a multiple of 32 channels, as Core ML's states need.
COREML_CASES: dict[str, dict[str, Any]] = {
    "llama-mqa": {"head_dim": 32},
    "llama-3": {"head_dim": 32},
    "llama-bf16": {"head_dim": 32},
    "qwen2": {"head_dim": 32},
    "qwen3": {"head_dim": 32},
    "qwen3-bias": {"head_dim": 32},
    "youtu": {"kv_lora_rank": 48},
    "youtu-plain-query": {"kv_lora_rank": 48},
    "youtu-halves-bf16": {"kv_lora_rank": 48},
    "minicpm3": {"kv_lora_rank": 48},
    "minicpm3-longrope": {"kv_lora_rank": 48},
}


@pytest.mark.filterwarnings("ignore:Core ML needs macOS")
@pytest.mark.parametrize("name", COREML_CASES)
def test_coreml(tmp_path, reference, name):
    """In fp16, whose rounding these layers of random weights add up: smaller weights than elsewhere keep it below the bound, as
    they keep transformers' own fp16 below it (with those of the other tests both are off by up to 0.1)."""
    expected = reference(name, gain=0.7, **COREML_CASES[name])
    edgeqkv.export(expected.folder, tmp_path / "b", ["coreml"], weights="fp16", cache="fp16", prefill_chunk=16)
    session = edgeqkv.open(tmp_path / "b", "coreml")
    assert_same_function(session, expected.ids, expected.logits, COREML_TOLERANCE, ties=True)


def test_coreml_refuses_rows_that_its_states_cannot_hold(tmp_path, reference):
    with pytest.raises(EdgeQKVError, match="this MLA model caches .k. have 72 channels, which is not a multiple of 32"):
        edgeqkv.export(reference("youtu").folder, tmp_path / "b", ["coreml"], weights="fp16", prefill_chunk=16)


# -- random configurations ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sizes:
    """What random configurations are made of."""

    positions: int
    head: tuple[int, ...]
    turned: tuple[int, ...]  # of a head, beside all of it
    kv_rank: tuple[int, ...]
    nope: tuple[int, ...]
    rope: tuple[int, ...]
    value: tuple[int, ...]
    factors: tuple[float, ...]


# The fused kernel takes multiples of 8: 6 and 2 are for the others.
ANY = Sizes(24, (8, 16, 24, 40, 6), (2, 8), (8, 24, 40), (8, 24), (8, 16, 2), (8, 16, 24), (1.0, 0.3, 2.5))
# Core ML's states take multiples of 32, and fp16 wants logits that are not large.
COREML = Sizes(32, (32,), (32,), (24, 56), (24,), (8,), (32,), (1.0, 0.5))


@st.composite
def scalings(draw: st.DrawFn, dim: int) -> Llama3Scaling | FactorScaling | None:
    kind = draw(st.sampled_from(["none", "llama3", "factors"]))
    if kind == "llama3":
        low = draw(st.floats(0.5, 2))
        return Llama3Scaling(factor=draw(st.floats(1, 32)), low=low, high=low + draw(st.floats(0.5, 4)), original_positions=8)
    if kind == "factors":
        return FactorScaling(factors=tuple(draw(st.lists(st.floats(0.5, 8), min_size=dim // 2, max_size=dim // 2))))
    return None


@st.composite
def rotary(draw: st.DrawFn, dims: st.SearchStrategy[int]) -> Rotary:
    dim = draw(dims)
    return Rotary(
        theta=draw(st.sampled_from([10.0, 1e4, 1e6])),
        dim=dim,
        pairs=draw(st.sampled_from(["halves", "interleaved"])),
        scaling=draw(scalings(dim)),
        value=draw(st.sampled_from(["unturned", "turned"])),
    )


@st.composite
def shared(draw: st.DrawFn, sizes: Sizes) -> tuple[SharedAttention, Learned | Rotary]:
    projections = draw(st.sampled_from(["QKV", "Q-K=V", "Q=K-V", "Q=K=V"]))
    n_head = draw(st.sampled_from([1, 3, 4, 6, 7]))
    divisors = [n for n in range(1, n_head + 1) if n_head % n == 0]
    head_dim = draw(st.sampled_from(sizes.head))
    attention = SharedAttention(
        projections=projections,
        n_head=n_head,
        n_kv_head=n_head if projections.startswith("Q=K") else draw(st.sampled_from(divisors)),
        head_dim=head_dim,
        bias=draw(st.booleans()),
        out_bias=draw(st.booleans()),
        qk_norm=draw(st.booleans()),
    )
    whole_or_part = st.sampled_from([head_dim, *sizes.turned]).filter(lambda dim: dim <= head_dim)
    return attention, draw(st.just(Learned()) | rotary(whole_or_part))


@st.composite
def latent(draw: st.DrawFn, sizes: Sizes) -> tuple[LatentAttention, Rotary]:
    rope_dim = draw(st.sampled_from(sizes.rope))
    attention = LatentAttention(
        form=draw(st.sampled_from(["absorbed", "expanded"])),
        n_head=draw(st.sampled_from([1, 2, 5])),
        q_rank=draw(st.sampled_from([None, 8, 20])),
        kv_rank=draw(st.sampled_from(sizes.kv_rank)),
        nope_dim=draw(st.sampled_from(sizes.nope)),
        rope_dim=rope_dim,
        value_dim=draw(st.sampled_from(sizes.value)),
        bias=draw(st.booleans()),
        norm_eps=1e-6,
        softmax_scale=draw(st.floats(0.1, 0.5)),
    )
    return attention, draw(rotary(st.just(rope_dim)))


@st.composite
def configurations(draw: st.DrawFn, sizes: Sizes) -> ModelConfig:
    attention, positions = draw(shared(sizes) | latent(sizes))
    vocab_size = draw(st.sampled_from([32, 50]))
    factor = st.sampled_from(sizes.factors)
    return ModelConfig(
        n_layer=draw(st.sampled_from([1, 2])),
        d_model=draw(st.sampled_from([24, 32])),
        n_positions=sizes.positions,
        vocab_size=vocab_size,
        token_count=vocab_size - draw(st.sampled_from([0, 3])),
        embedding_scale=draw(factor),
        residual_scale=draw(factor),
        positions=positions,
        norm=Norm(kind=draw(st.sampled_from(["layer_norm", "rms_norm"])), eps=draw(st.sampled_from([1e-6, 1e-5]))),
        attention=attention,
        mlp=MLP(kind=draw(st.sampled_from(["gelu", "swiglu"])), width=40, bias=draw(st.booleans())),
        head=Head(tied=draw(st.booleans()), scale=draw(factor)),
    )


def random_model(config: ModelConfig, seed: int) -> Model:
    """Weights of the size that keeps activations near 1; no norm is 1 and no bias 0."""
    generator = np.random.default_rng(seed)
    weights = {}
    for name, shape in parameter_shapes(config).items():
        values = generator.standard_normal(shape)
        if len(shape) > 1:
            values *= 0.5 if name.startswith(("wte", "wpe")) else shape[-1] ** -0.5
        else:
            values = 0.3 * values + (name.endswith("weight"))
        weights[name] = values.astype(np.float32)
    return Model(config, weights, None, Text(), "")


@contextmanager
def exported(model: Model, folder: Path, **options: Any) -> Iterator[Path]:
    """A bundle of ``model``, as long as it is used: every example has the same folder."""
    try:
        write_model(folder / "m", model, "# random\n")
        edgeqkv.export(folder / "m", folder / "b", **options)
        yield folder / "b"
    finally:
        for name in ("m", "b"):
            shutil.rmtree(folder / name, ignore_errors=True)


@st.composite
def cuts(draw: st.DrawFn, length: int) -> list[tuple[int, int]]:
    """Where a prompt is cut into pieces: from and to."""
    ends = sorted({*draw(st.lists(st.integers(1, length - 1), max_size=5)), length})
    return list(zip([0, *ends], ends, strict=False))


def assert_agree(
    session: Any, ids: list[int], pieces: list[tuple[int, int]], whole: np.ndarray, atol: float = 1e-4, rtol: float = 1e-4
) -> None:
    """``whole`` is what another implementation says of every position; ids that are never sampled are -inf in both."""
    for start, end in pieces:
        np.testing.assert_allclose(session.prefill(ids[start:end]), whole[end - 1], atol=atol, rtol=rtol)
    session.reset()


def random_example(config: ModelConfig, seed: int) -> tuple[Model, list[int], EagerModel, np.ndarray]:
    model = random_model(config, seed)
    ids = np.random.default_rng(seed).integers(0, config.token_count, config.n_positions).tolist()
    eager = EagerModel(config, model.weights)
    whole = eager.forward(ids)
    assert np.isneginf(whole[:, config.token_count :]).all()
    assert np.isfinite(whole[:, : config.token_count]).all()
    return model, ids, eager, whole


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(config=configurations(ANY), seed=st.integers(0, 99), chunk=st.integers(1, 9), pieces=cuts(ANY.positions))
def test_eager_and_onnx_agree(tmp_path, config, seed, chunk, pieces):
    model, ids, eager, whole = random_example(config, seed)
    assert_agree(eager, ids, pieces, whole)
    row = config.row
    fused_fits = all(size % 8 == 0 for size in (*row.widths.values(), row.key.width, row.value.start, row.value.width))
    with exported(model, tmp_path, weights="fp32", cache="fp32", prefill_chunk=chunk) as bundle:
        kernels = [artifact.kernel for artifact in read_bundle(bundle).artifacts]
        assert sorted(kernels) == (["fused", "stock"] if fused_fits else ["stock"])
        for kernel in kernels:
            assert_agree(edgeqkv.open(bundle, "onnx", kernel, threads=1), ids, pieces, whole)


@pytest.mark.filterwarnings("ignore:Core ML needs macOS")
@settings(max_examples=8, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(config=configurations(COREML), seed=st.integers(0, 99), chunk=st.integers(2, 9), pieces=cuts(COREML.positions))
def test_eager_and_coreml_agree(tmp_path, config, seed, chunk, pieces):
    """fp16 rounds by size, so that the bound is for logits of standard deviation 1, and grows with theirs."""
    model, ids, _, whole = random_example(config, seed)
    bound = COREML_TOLERANCE * max(1.0, float(whole[:, : config.token_count].std()))
    with exported(model, tmp_path, targets=["coreml"], weights="fp16", cache="fp16", prefill_chunk=chunk) as bundle:
        assert_agree(edgeqkv.open(bundle, "coreml"), ids, pieces, whole, bound, rtol=0)


def whole_config(attention: SharedAttention | LatentAttention, positions: Learned | Rotary, **changes: Any) -> ModelConfig:
    config = ModelConfig(
        n_layer=2,
        d_model=32,
        n_positions=ANY.positions,
        vocab_size=50,
        token_count=47,
        embedding_scale=2.5,
        residual_scale=0.3,
        positions=positions,
        norm=Norm(kind="rms_norm", eps=1e-6),
        attention=attention,
        mlp=MLP(kind="swiglu", width=40, bias=False),
        head=Head(tied=True, scale=2.5),
    )
    return replace(config, **changes)


# What no model of transformers' has, and random configurations have too seldom for a target whose exports take many seconds.
EXECUTORCH_CONFIGS = {
    "unturned value": whole_config(
        SharedAttention("Q-K=V", 4, 2, 24, bias=True, out_bias=True, qk_norm=True),
        Rotary(1e4, 8, "interleaved", Llama3Scaling(4.0, 1.0, 4.0, 8), "unturned"),
        norm=Norm(kind="layer_norm", eps=1e-5),
        mlp=MLP(kind="gelu", width=40, bias=True),
    ),
    "turned value": whole_config(
        SharedAttention("Q-K=V", 6, 1, 16, bias=False, out_bias=True, qk_norm=False),
        Rotary(1e4, 16, "halves", None, "turned"),
        head=Head(tied=False, scale=1.0),
    ),
    "expanded latent": whole_config(
        LatentAttention("expanded", 5, 20, 24, 24, 8, 16, bias=True, norm_eps=1e-6, softmax_scale=0.2),
        Rotary(1e4, 8, "interleaved", FactorScaling((1.0, 1.5, 2.0, 4.0)), "unturned"),
    ),
}


@pytest.mark.parametrize("name", EXECUTORCH_CONFIGS)
def test_eager_and_executorch_agree(tmp_path, name):
    model, ids, _, whole = random_example(EXECUTORCH_CONFIGS[name], 0)
    with exported(model, tmp_path, targets=["executorch"], weights="fp32", cache="fp32", prefill_chunk=5) as bundle:
        session = edgeqkv.open(bundle, "executorch", threads=1)
        for pieces in ([(0, len(ids))], [(0, 1), (1, 12), (12, 14), (14, len(ids))], [(i, i + 1) for i in range(len(ids))]):
            assert_agree(session, ids, pieces, whole)


# -- the row ------------------------------------------------------------------------------------------------------


@torch.inference_mode()
def test_gemma_4s_row():
    """Global layers of Gemma 4 (``attention_k_eq_v``) normalise one projection, u, for key and value; the key is u with weights
    (k_norm), a part of it turned. So a row is turned key ‖ u not turned ‖ u of what is turned: the key is its first part, the
    value its last, and the weights of the key's channels that are not turned go into the query."""
    heads, kv_heads, dim, turned, length = 8, 2, 32, 8, 20
    config = Gemma4TextConfig(
        hidden_size=48,
        num_hidden_layers=1,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        num_global_key_value_heads=kv_heads,
        global_head_dim=dim,
        layer_types=["full_attention"],
        attention_k_eq_v=True,
        rope_parameters={
            "full_attention": {"rope_type": "proportional", "partial_rotary_factor": turned / dim, "rope_theta": 1e4}
        },
        attn_implementation="eager",
    )
    theirs = Gemma4TextAttention(config, 0).eval()
    randomize(theirs, 1.0)
    x = torch.randn(1, length, 48, generator=torch.Generator().manual_seed(1))
    angles = Gemma4TextRotaryEmbedding(config)(x, torch.arange(length)[None], "full_attention")
    mask = torch.full((length, length), -torch.inf).triu(1)[None, None]
    expected = theirs(x, angles, mask, {})[0]

    row = Row(heads, kv_heads, {"k": dim + turned}, Slice("k", 0, dim), Slice("k", turned, dim + turned), softmax_scale=1.0)
    layout = CacheLayout(1, row, length, "fp32", "none")
    assert row.k_only
    assert layout.shape("k") == (1, kv_heads, length, 40)
    assert layout.bytes == length * kv_heads * 40 * 4  # K and V of their own would take 64 channels
    # Pairs are halves: channels i and i + dim / 2, of which the first few are turned.
    first = torch.cat((torch.arange(turned // 2), dim // 2 + torch.arange(turned // 2)))
    rest = torch.tensor([i for i in range(dim) if i not in first.tolist()])
    projected = theirs.k_proj(x).unflatten(-1, (kv_heads, dim))
    u, key = theirs.v_norm(projected), apply_rotary_pos_emb(theirs.k_norm(projected), *angles, unsqueeze_dim=2)
    query = apply_rotary_pos_emb(theirs.q_norm(theirs.q_proj(x).unflatten(-1, (heads, dim))), *angles, unsqueeze_dim=2)
    rows = torch.cat((key[..., first], u[..., rest], u[..., first]), -1).flatten(2)
    query = torch.cat((query[..., first], query[..., rest] * theirs.k_norm.weight[rest]), -1).flatten(2)

    cache, outs = {(0, "k"): torch.zeros(layout.shape("k"))}, []
    for start, end in ((0, 7), (7, 8), (8, length)):
        verbs = EagerVerbs(SimpleNamespace(row=row), {}, cache, start)
        outs.append(verbs.attend(query[:, start:end], rows[:, start:end], None, 0))
    values = torch.cat(outs, 1).unflatten(-1, (heads, dim))
    ours = theirs.o_proj(values[..., torch.cat((rest, first)).argsort()].flatten(2))
    assert (ours - expected).abs().max() < 1e-5
    assert expected.abs().max() > 0.5
