"""Every block that a decoder may have, as Core ML computes it: against PyTorch, to capacity, by both executors."""

import re
from dataclasses import replace as changed
from pathlib import Path

import numpy as np
import pytest
from coreml_models import BLOCKS, LLAMA, latent, model, shared, turned, variant, weights
from msgspec.structs import replace

import edgeqkv
from edgeqkv.cache import cache_layout
from edgeqkv.config import MLP, LatentAttention, Norm
from edgeqkv.eager import EagerModel
from edgeqkv.model_folder import write_model
from edgeqkv.runtimes.coreml.package import PACKAGE, read_package, require_coremltools
from edgeqkv.runtimes.coreml.target import CoreML
from edgeqkv.targets import Request

require_coremltools()

from edgeqkv.runtimes.coreml.engine import CoremlEngine  # noqa: E402 - coremltools logs less
from edgeqkv.runtimes.coreml.interpreter import CONSTANTS, OPERATIONS, STATE_OPERATIONS  # noqa: E402

README = Path(__file__).parents[2] / "runtimes/coreml/README.md"
CHUNK, CAPACITY = 8, 64
IDS = np.random.default_rng(1).integers(0, 300, CAPACITY)
TOLERANCE = 3e-2  # on logits of size 1, all computed in fp16

pytestmark = pytest.mark.filterwarnings("ignore:Core ML needs macOS")


def package(config, folder, scheme="fp16", head_parts=None, seed=0):
    request = Request(scheme, "fp16", CAPACITY, CHUNK, head_parts=head_parts)
    target = CoreML()
    target.check(config, request)
    (artifact,) = target.write(model(config, seed), request, folder, lambda stage: None)
    assert artifact.attention == "folded"
    return folder / PACKAGE


def engine(config, folder, executor="interpreter", **options):
    return CoremlEngine(package(config, folder, **options), cache_layout(config, CAPACITY, "fp16"), CHUNK, executor)


def assert_same(found, expected):
    known, padding = np.stack(found)[:, :300], np.stack(found)[:, 300:]
    assert np.isneginf(padding).all()
    assert np.abs(known - expected[:, :300]).max() <= TOLERANCE
    best = np.sort(expected[:, :300])
    clear = best[:, -1] - best[:, -2] > TOLERANCE
    assert clear.sum() > len(found) // 2
    assert (known.argmax(1) == expected[:, :300].argmax(1))[clear].all()


@pytest.mark.parametrize("name", BLOCKS)
def test_token_by_token_and_in_chunks_to_capacity(name, tmp_path):
    config = BLOCKS[name]
    reference = EagerModel(config, weights(config)).forward(IDS.tolist())
    runner = engine(config, tmp_path)
    assert runner.cache_bytes == cache_layout(config, CAPACITY, "fp16").bytes
    assert_same([runner.run(IDS[i : i + 1], i) for i in range(CAPACITY)], reference)
    starts = range(0, CAPACITY, CHUNK)
    assert_same([runner.run(IDS[i : i + CHUNK], i) for i in starts], reference[CHUNK - 1 :: CHUNK])


@pytest.mark.parametrize("name", ["llama3", "qwen3 qk_norm untied", "value unturned, partial", "MLA", "MLA expanded"])
def test_apples_value_inference_agrees(name, tmp_path):
    config = BLOCKS[name]
    reference = EagerModel(config, weights(config)).forward(IDS[: CHUNK + 2].tolist())
    runner = engine(config, tmp_path, "value_inference")
    logits = [runner.run(IDS[:CHUNK], 0), *(runner.run(IDS[i : i + 1], i) for i in (CHUNK, CHUNK + 1))]
    assert np.abs(np.stack(logits)[:, :300] - reference[CHUNK - 1 :, :300]).max() <= TOLERANCE


@pytest.mark.parametrize("name", ["MLA", "MLA expanded", "value unturned"])
def test_int8_weights_stay_close(name, tmp_path):
    """Random weights are the hardest case: an eighth of the spread of the logits."""
    config = BLOCKS[name]
    reference = EagerModel(config, weights(config)).forward(IDS.tolist())[:, :300]
    runner = engine(config, tmp_path, scheme="int8")
    error = np.stack([runner.run(IDS[i : i + 1], i) for i in range(CAPACITY)])[:, :300] - reference
    assert 0.002 < np.sqrt(np.mean(error**2)) <= reference.std() / 8


# -- what lies in the package -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BLOCKS)
def test_a_state_is_read_for_key_and_value_as_it_is(name, tmp_path):
    """No slice of it, no copy for several heads: both products take what read_state gives."""
    config, path = BLOCKS[name], package(BLOCKS[name], tmp_path)
    for function in read_package(path).values():
        assert {state: shape for state, (_, shape) in function.states.items()} == {
            f"cache_{layer}_{tensor}": (1, config.row.kv_heads, CAPACITY, width)
            for layer in range(config.n_layer)
            for tensor, width in config.row.widths.items()
        }
        after = {op.inputs["input"][0]: op.outputs[0][0] for op in function.operations if op.kind == "read_state"}
        attended = [op.inputs["y"][0] for op in function.operations if op.kind == "matmul"]
        attended = [name for name in attended if name.startswith("coreml_update_state") or name in after.values()]
        tensors = ["k", "k"] if config.row.k_only else ["k", "v"]
        assert attended == [after[f"cache_{layer}_{t}"] for layer in range(config.n_layer) for t in tensors]
        assert ("tile" in {op.kind for op in function.operations}) == (name == "MLA expanded")


def test_each_head_of_mla_has_its_int8_matrix_with_a_scale_for_each_row(tmp_path):
    config = BLOCKS["MLA"]
    c = config.attention
    assert isinstance(c, LatentAttention)
    for function in read_package(package(config, tmp_path, "int8")).values():
        found = {op.outputs[0][0]: op for op in function.operations if op.kind == "constexpr_blockwise_shift_scale"}
        for part, shape in (("k_b", (4, c.kv_rank, c.nope_dim)), ("v_b", (4, c.value_dim, c.kv_rank))):
            ((data,), (scale,)) = (found[f"h_0_attn_{part}_weight"].inputs[i] for i in ("data", "scale"))
            assert (data.value.shape, str(data.value.dtype)) == (shape, "int8")
            assert (scale.value.shape, str(scale.value.dtype)) == ((*shape[:2], 1), "float16")


def test_an_untied_head_is_a_tensor_of_its_own(tmp_path):
    for parts in (None, 3):
        config = BLOCKS["qwen3 qk_norm untied"]
        path = package(config, tmp_path / str(parts), head_parts=parts)
        for function in read_package(path).values():
            for table, user in (("wte_weight", "gather"), ("head_weight", "linear")):
                users = {op.kind for op in function.operations for p in op.inputs.values() if str(p[0]).startswith(table)}
                assert users == {user}
    reference = EagerModel(config, weights(config)).forward(IDS[:CHUNK].tolist())
    runner = CoremlEngine(path, cache_layout(config, CAPACITY, "fp16"), CHUNK, "interpreter")
    assert np.abs(runner.run(IDS[:CHUNK], 0)[:300] - reference[-1, :300]).max() <= TOLERANCE


def test_cosines_and_sines_are_one_table_for_both_functions(tmp_path):
    offsets = {"cosines": set(), "sines": set()}
    for function in read_package(package(BLOCKS["MLA"], tmp_path)).values():
        for op in function.operations:
            if op.kind == "const" and op.outputs[0][0] in offsets:
                offsets[op.outputs[0][0]].add(op.inputs["val"][0].offset)
                assert op.inputs["val"][0].value.shape == (CAPACITY, 8)
    assert all(len(found) == 1 for found in offsets.values())


# -- fp16 ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [1e-6, 1e-3, 1.0, 300.0, 3e4])
@pytest.mark.parametrize("norm", ["plain", "outlier"])
def test_rms_norm_does_not_leave_fp16(factor, norm, tmp_path):
    """Embeddings so small that their squares are nothing in fp16, or so large that they are infinite."""
    config = replace(LLAMA, n_layer=1, attention=shared("QKV", 2, 1))
    tensors = weights(config)
    row = np.random.default_rng(0).uniform(-1, 1, (320, 72)).astype(np.float32)
    if norm == "outlier":
        row[:, 7] *= 2.0
        row[:, :7] *= 0.01
    # The block adds nothing, so that the logits are those of the last norm alone.
    tensors |= {name: np.zeros_like(array) for name, array in tensors.items() if name.startswith("h.0") and array.ndim == 2}
    tensors["wte.weight"] = (row * factor).astype(np.float16).astype(np.float32)
    config = replace(config, head=replace(config.head, tied=False))
    tensors["head.weight"] = weights(config)["head.weight"]
    reference = EagerModel(config, tensors).forward(IDS[:20].tolist())[:, :300]
    source = changed(model(config), weights=tensors)
    CoreML().write(source, Request("fp16", "fp16", CAPACITY, CHUNK), tmp_path, lambda stage: None)
    runner = CoremlEngine(tmp_path / PACKAGE, cache_layout(config, CAPACITY, "fp16"), CHUNK, "interpreter")
    logits = np.stack([runner.run(IDS[i : i + 1], i) for i in range(20)])[:, :300]
    assert np.abs(logits - reference).max() <= 5e-3 * np.abs(reference).max()


def test_an_activation_beyond_fp16_is_found_by_verify(tmp_path):
    """Every weight fits, what they make of each other does not."""
    config = BLOCKS["llama3"]
    tensors = weights(config)
    tensors["h.1.mlp.fc.weight"] *= 3e3
    tensors["h.1.mlp.gate.weight"] *= 3e3
    write_model(tmp_path / "m", changed(model(config), weights=tensors), "# m\n")
    edgeqkv.export(tmp_path / "m", tmp_path / "b", targets=["coreml"], weights="fp16")
    with pytest.raises(edgeqkv.EdgeQKVError, match="the logits after .* tokens are not finite"):
        edgeqkv.verify(tmp_path / "b", tmp_path / "m", tokens=40)


@pytest.mark.parametrize(
    ("attention", "rope", "d_model", "width", "vocab_size"),
    [
        (latent(n_head=16, q_rank=1536, kv_rank=512, nope_dim=128, rope_dim=64, value_dim=128), 64, 2048, 6144, 128256),
        (latent(n_head=40, q_rank=768, kv_rank=256, nope_dim=64, rope_dim=32, value_dim=64), 32, 2560, 6400, 73448),
        (shared("QKV", 32, 8, 64), 64, 2048, 8192, 128256),
    ],
    ids=["Youtu-LLM-2B", "MiniCPM3-4B", "Llama-3.2-1B"],
)
def test_geometries_that_people_have_are_taken(attention, rope, d_model, width, vocab_size):
    sizes = {"d_model": d_model, "vocab_size": vocab_size, "token_count": vocab_size, "n_positions": 131072}
    mlp, positions = MLP(kind="swiglu", width=width, bias=False), turned(dim=rope)
    config = replace(LLAMA, attention=attention, positions=positions, mlp=mlp, **sizes)
    CoreML().check(config, Request("int8", "fp16", 4096, 32))
    if isinstance(attention, LatentAttention):
        CoreML().check(replace(config, attention=replace(attention, form="expanded")), Request("int8", "fp16", 4096, 32))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"embedding_scale": 1e5}, "embedding_scale 100000 is outside 6.1e-05..65504, what fp16 holds"),
        ({"residual_scale": 1e-6}, "residual_scale 1e-06 is outside 6.1e-05..65504"),
        ({"norm": Norm(kind="rms_norm", eps=1e-9)}, "norm.eps 1e-09 is zero in fp16"),
        ({"attention": latent(kv_rank=56)}, "caches (k) have 72 channels, which is not a multiple of 32"),
        ({"attention": latent("expanded", value_dim=40, nope_dim=48)}, "caches (v) have 40 channels"),
        ({"attention": shared("Q-K=V", 4, 1), "positions": turned(dim=8)}, "caches (k) have 40 channels"),
        ({"mlp": MLP(kind="swiglu", width=16416, bias=False)}, "mlp.width 16416 is beyond 16384"),
        ({"attention": latent(n_head=260)}, "the width of all query heads 16640 is beyond 16384"),
    ],
)
def test_what_fp16_and_states_do_not_take_is_refused_by_name(changes, reason):
    positions = {"positions": turned(dim=16)} if isinstance(changes.get("attention"), LatentAttention) else {}
    config = replace(LLAMA, **{"attention": shared("QKV", 4, 2)} | positions | changes)
    with pytest.raises(edgeqkv.EdgeQKVError, match=re.escape(reason)):
        CoreML().check(config, Request("fp16", "fp16", CAPACITY, CHUNK))


# -- rows that are saved ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("executor", ["interpreter", "value_inference"])
def test_rows_that_are_read_and_written_back(executor, tmp_path):
    config = BLOCKS["MLA"]
    first = engine(config, tmp_path, executor)
    first.run(IDS[:CHUNK], 0)
    second = first.fork()
    buffers = cache_layout(config, CAPACITY, "fp16").buffers
    for buffer in buffers:
        rows = first.read(buffer.name, CHUNK)
        assert (rows.shape, rows.dtype) == ((1, 1, CHUNK, 64), np.float16)
        assert np.abs(rows).max() > 0
        assert np.abs(second.read(buffer.name, CAPACITY)).max() == 0
        second.write(buffer.name, rows)
        rows[...] = 0  # a copy
        assert np.abs(first.read(buffer.name, CHUNK)).max() > 0
        assert np.abs(second.read(buffer.name, CAPACITY)[:, :, CHUNK:]).max() == 0
    np.testing.assert_array_equal(first.run(IDS[:1], CHUNK), second.run(IDS[:1], CHUNK))
    second.close()
    assert first.run(IDS[1:2], CHUNK + 1).shape == (320,)


@pytest.mark.parametrize("name", BLOCKS)
def test_operations_are_those_that_the_interpreter_and_the_readme_name(name, tmp_path):
    named = set(re.findall(r"`([a-z_]+)`", README.read_text()))
    for function in read_package(package(BLOCKS[name], tmp_path, head_parts=3)).values():
        kinds = {op.kind for op in function.operations}
        assert kinds <= OPERATIONS.keys() | set(STATE_OPERATIONS) | set(CONSTANTS)
        assert kinds <= named


def test_a_paper_variant_uses_no_operation_of_the_new_blocks(tmp_path):
    new = {"abs", "maximum", "pad", "real_div", "reduce_max", "reduce_mean", "sigmoid", "sqrt", "sub", "tile"}
    for function in read_package(package(variant("Q-GQA-2"), tmp_path)).values():
        assert not new & {op.kind for op in function.operations}
