"""The lowered graphs: what is delegated, what is left, and that one buffer is key and value."""

import re
from pathlib import Path

import numpy as np
import pytest
from conftest import MODELS, load_golden, tiny_config, tiny_weights
from msgspec.structs import replace
from row_models import ROW_MODELS

import edgeqkv
from edgeqkv.cache import cache_layout
from edgeqkv.checkpoint import read_checkpoint
from edgeqkv.errors import CheckFailed
from edgeqkv.model_folder import Model, read_model, write_model
from edgeqkv.runtimes.executorch.target import VERSION
from edgeqkv.text import Text
from edgeqkv.weights import RowInt8

ALLOWED = {
    # positions, the last token and the means of norms stay with ExecuTorch's own kernels; attention and MLA's products are ours
    "aten.arange.start_step",
    "aten.add.Tensor",
    "aten.sub.Tensor",
    "aten.clamp.default",
    "aten.embedding.default",
    "aten.index_select.default",
    "aten.mean.dim",
    "aten.native_layer_norm.default",
    "aten.view_copy.default",
    "edgeqkv.head_linear.default",
    "quantized_decomposed.embedding_byte.default",
}


LARGE = {"vocab_size": 30_000, "token_count": 29_990}  # logits that are larger than what decode may plan beside the cache


@pytest.fixture(scope="module", params=["Q-MQA", "QKV", "MLA"])
def lowered(request):
    from edgeqkv.export.executorch.lowering import lower, weight_formats

    if request.param == "MLA":
        config = replace(ROW_MODELS["MLA"], n_layer=1, **LARGE)
    else:
        config = tiny_config(request.param, n_layer=1, **LARGE)
    layout = cache_layout(config, 32, "int8")
    return config, layout, lower(config, tiny_weights(config), layout, weight_formats("int8"), 16, "fused")


def test_linears_are_delegated_and_nothing_copies_the_cache(lowered):
    config, layout, programs = lowered
    for method in ("prefill", "decode"):
        program = programs.exported_program(method)
        calls = [node for node in program.graph.nodes if node.op == "call_function"]
        names = [getattr(node.target, "__name__", str(node.target)) for node in calls]
        left = {name for name in names if name not in ("getitem", "executorch_call_delegate", "auto_functionalized_v2")}
        assert left <= ALLOWED
        assert names.count("edgeqkv.head_linear.default") == (2 * config.n_layer if config.variant == "MLA" else 0)
        assert names.count("auto_functionalized_v2") == config.n_layer
        for node in calls:
            # What getitem takes from our operator is the buffer itself, named once more.
            if "getitem" not in str(node.target) and hasattr(node.meta.get("val"), "shape"):
                shape = tuple(node.meta["val"].shape)
                assert shape not in {buffer.shape for buffer in layout.buffers}, f"{node} is a copy of the cache"


def test_one_buffer_is_key_and_value(lowered):
    config, layout, programs = lowered
    for method in ("prefill", "decode"):
        program = programs.exported_program(method)
        mutated = set(program.graph_signature.buffers_to_mutate.values())
        assert mutated == {buffer.name.replace(".", "_") for buffer in layout.buffers}
        attention = next(node for node in program.graph.nodes if "auto_functionalized_v2" in str(node.target))
        assert "cached_attention" in str(attention.args[0])
        assert (attention.kwargs["v"] is None) == config.row.k_only


class Lowered:
    """ExecuTorch turns a lowered graph into a program once; this hands the same one out again."""

    def __init__(self, programs):
        self.programs, self.program = programs, None

    def to_executorch(self, config):
        self.program = self.program or self.programs.to_executorch(config)
        return self.program


def test_the_plan_is_the_cache_and_little_more(lowered):
    from edgeqkv.export.executorch.lowering import arena_room, to_program

    config, layout, programs = lowered
    once = Lowered(programs)
    program = to_program(once, layout, arena_room(config))
    assert layout.bytes <= program.arenas["decode"] <= layout.bytes + 64 * 1024
    ours = ["edgeqkv::cached_attention.out", *(["edgeqkv::head_linear.out"] if config.variant == "MLA" else [])]
    assert list(program.operators) == ours
    for plan in once.program.executorch_program.execution_plan:
        assert not [operator.name for operator in plan.operators if "copy" in operator.name]
    with pytest.raises(CheckFailed, match="the cache is not updated in place"):
        to_program(once, layout, 16)


def test_the_embedding_and_the_head_are_stored_once(executorch_bundle):
    data = (executorch_bundle("shipped-q-mqa") / "executorch/model.pte").read_bytes()
    table = RowInt8().quantize(read_model(MODELS / "q-mqa").weights["wte.weight"])[0].tobytes()
    assert data.count(table) == 1
    data = (executorch_bundle("q_kv") / "executorch/model.pte").read_bytes()
    table = read_checkpoint(load_golden("q_kv").checkpoint).weights["wte.weight"].astype(np.float32).tobytes()
    assert data.count(table) == 1


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"weights": "fp16"}, "weights 'fp16' are not possible for executorch, which can do int8, int4, int4-all, fp32"),
        ({"capacity": 1}, "ExecuTorch needs a capacity of at least 2"),
        ({"prefill_chunk": 1}, "prefill chunk 1 is outside 2.."),
        ({"kernel": "quick"}, "kernel 'quick' is not possible; this version can do fused, stock"),
        ({"kernel": "stock", "cache": "int8"}, "ExecuTorch's own operators, --kernel stock, take an fp32 cache, not int8"),
    ],
)
def test_what_the_target_cannot_do(tiny_model, tmp_path, options, reason):
    with pytest.raises(edgeqkv.EdgeQKVError, match=reason):
        edgeqkv.export(tiny_model("Q-MQA"), tmp_path / "bundle", targets=["executorch"], **options)
    assert not (tmp_path / "bundle").exists()


def test_a_kernel_is_for_executorch(tiny_model, tmp_path):
    with pytest.raises(edgeqkv.EdgeQKVError, match="--kernel is for the target executorch, which this export does not have"):
        edgeqkv.export(tiny_model("Q-MQA"), tmp_path / "bundle", kernel="stock")


def test_a_head_dim_that_our_operator_does_not_take(tiny_model, tmp_path):
    model = tiny_model("Q-MQA", d_model=48)
    with pytest.raises(
        edgeqkv.EdgeQKVError, match="k rows of 12 channels.*: our operator takes multiples of 8 .* --kernel stock"
    ):
        edgeqkv.export(model, tmp_path / "bundle", targets=["executorch"])


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("MLA", "k rows of 80 channels, key 0..79, value 0..63"),
        ("MLA expanded", "k rows of 48 and v rows of 32 channels"),
        ("Q-K=V unturned", "k rows of 40 channels, key 0..31, value 8..39"),
    ],
)
def test_rows_that_the_stock_operators_do_not_take(tmp_path, name, sizes):
    config = ROW_MODELS[name]
    write_model(tmp_path / "model", Model(config, tiny_weights(config), None, Text(), ""), "# tiny\n")
    reason = "--kernel stock, read whole rows of one width as key and value, and this model has " + sizes
    with pytest.raises(edgeqkv.EdgeQKVError, match=reason):
        edgeqkv.export(tmp_path / "model", tmp_path / "bundle", targets=["executorch"], cache="fp32", kernel="stock")


def test_each_weight_has_a_format_of_its_own():
    from edgeqkv.export.executorch.lowering import stored_weights, weight_formats
    from edgeqkv.export.executorch.verbs import Int8Rows

    formats, config = weight_formats("int8"), replace(ROW_MODELS["MLA"], n_layer=1)
    narrow = replace(config, attention=replace(config.attention, nope_dim=24))  # which our head_linear does not take
    assert formats("h.0.attn.k_b.weight", (4, 64, 32)) == RowInt8()
    assert formats("h.0.attn.k_b.weight", (4, 64, 24)).name == "fp32"
    assert [formats(name, (8, 16)).name for name in ("wte.weight", "wpe.weight")] == ["int8 row", "fp32"]
    weights = tiny_weights(narrow)
    stored = stored_weights(narrow, weights, formats, 16)
    plain, product = stored["h.0.attn.k_b.weight"], stored["h.0.attn.v_b.weight"]
    np.testing.assert_array_equal(plain.numpy(), weights["h.0.attn.k_b.weight"].transpose(0, 2, 1))
    assert isinstance(product, Int8Rows)
    assert (product.values.shape, product.scale.shape) == ((4, 32, 64), (4, 32, 1))


def test_the_version_is_the_one_that_is_installed():
    """pyproject.toml and the Makefile repeat it, for pip."""
    root = Path(__file__).parents[2]
    for file in ("pyproject.toml", "Makefile"):
        assert set(re.findall(r"executorch==([\d.]+)", (root / file).read_text())) == {VERSION}
