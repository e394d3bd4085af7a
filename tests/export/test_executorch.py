"""The lowered graphs: what is delegated, what is left, and that one buffer is key and value."""

import numpy as np
import pytest
from conftest import MODELS, load_golden, tiny_config, tiny_weights

import edgeqkv
from edgeqkv.cache import cache_layout
from edgeqkv.checkpoint import read_checkpoint
from edgeqkv.errors import CheckFailed
from edgeqkv.export.quantize import quantize_channels
from edgeqkv.model_folder import read_model

ALLOWED = {
    # positions, the last token and layer norms stay with ExecuTorch's own kernels; attention is ours
    "aten.arange.start_step",
    "aten.add.Tensor",
    "aten.sub.Tensor",
    "aten.clamp.default",
    "aten.embedding.default",
    "aten.index_select.default",
    "aten.native_layer_norm.default",
    "aten.view_copy.default",
    "quantized_decomposed.embedding_byte.default",
}


@pytest.fixture(scope="module", params=["Q-MQA", "QKV"])
def lowered(request):
    """With a vocabulary whose logits are larger than what decode may plan beside the cache."""
    from edgeqkv.export.executorch import lower

    config = tiny_config(request.param, n_layer=1, vocab_size=20_000, token_count=19_990)
    layout = cache_layout(config, 32, "int8")
    return config, layout, lower(config, tiny_weights(config), layout, True, 16, "fused")


def test_linears_are_delegated_and_nothing_copies_the_cache(lowered):
    config, layout, programs = lowered
    for method in ("prefill", "decode"):
        program = programs.exported_program(method)
        calls = [node for node in program.graph.nodes if node.op == "call_function"]
        names = [getattr(node.target, "__name__", str(node.target)) for node in calls]
        left = {name for name in names if name not in ("getitem", "executorch_call_delegate", "auto_functionalized_v2")}
        assert left <= ALLOWED
        assert names.count("auto_functionalized_v2") == config.n_layer
        for node in calls:
            # What getitem takes from our operator is the buffer itself, named once more.
            if "getitem" not in str(node.target) and hasattr(node.meta.get("val"), "shape"):
                assert tuple(node.meta["val"].shape) not in (layout.shape, layout.scale_shape), f"{node} is a copy of the cache"


def test_one_buffer_is_key_and_value(lowered):
    config, layout, programs = lowered
    for method in ("prefill", "decode"):
        program = programs.exported_program(method)
        mutated = set(program.graph_signature.buffers_to_mutate.values())
        assert mutated == {name.replace(".", "_") for name in layout.buffers}
        attention = next(node for node in program.graph.nodes if "auto_functionalized_v2" in str(node.target))
        assert "cached_attention" in str(attention.args[0])
        assert (attention.kwargs["v"] is None) == config.v_is_k


class Lowered:
    """ExecuTorch turns a lowered graph into a program once; this hands the same one out again."""

    def __init__(self, programs):
        self.programs, self.program = programs, None

    def to_executorch(self, config):
        self.program = self.program or self.programs.to_executorch(config)
        return self.program


def test_the_plan_is_the_cache_and_little_more(lowered, monkeypatch):
    from edgeqkv.export.executorch import to_program

    _, layout, programs = lowered
    once = Lowered(programs)
    _, arenas = to_program(once, layout)
    assert layout.bytes <= arenas["decode"] <= layout.bytes + 64 * 1024
    for plan in once.program.executorch_program.execution_plan:
        assert not [operator.name for operator in plan.operators if "copy" in operator.name]
    monkeypatch.setattr("edgeqkv.export.executorch.ARENA_ROOM", 16)
    with pytest.raises(CheckFailed, match="the cache is not updated in place"):
        to_program(once, layout)


def test_the_embedding_and_the_head_are_stored_once(executorch_bundle):
    data = (executorch_bundle("shipped-q-mqa") / "executorch/model.pte").read_bytes()
    table = quantize_channels(read_model(MODELS / "q-mqa").weights["wte.weight"]).values.tobytes()
    assert data.count(table) == 1
    data = (executorch_bundle("q_kv") / "executorch/model.pte").read_bytes()
    table = read_checkpoint(load_golden("q_kv").checkpoint).weights["wte.weight"].astype(np.float32).tobytes()
    assert data.count(table) == 1


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"weights": "fp16"}, "weights 'fp16' are not possible for executorch, which can do int8, fp32"),
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
    with pytest.raises(edgeqkv.EdgeQKVError, match="a kernel is chosen for the target executorch alone"):
        edgeqkv.export(tiny_model("Q-MQA"), tmp_path / "bundle", kernel="stock")


def test_a_head_dim_that_our_operator_does_not_take(tiny_model, tmp_path):
    model = tiny_model("Q-MQA", d_model=48)
    with pytest.raises(edgeqkv.EdgeQKVError, match="head_dim is 12, and our operator takes multiples of 8 .* --kernel stock"):
        edgeqkv.export(model, tmp_path / "bundle", targets=["executorch"])
