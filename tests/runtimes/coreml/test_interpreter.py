"""The interpreter against Apple's value_inference, operation by operation, and what states mean."""

import numpy as np
import pytest

import edgeqkv
from edgeqkv.runtimes.coreml.package import require_coremltools

ct = require_coremltools()

from coremltools.converters.mil.mil import Builder as mb  # noqa: E402 - after coremltools was told to log less
from coremltools.converters.mil.mil import Function, Program, types  # noqa: E402

from edgeqkv.export.coreml.program import write_package  # noqa: E402
from edgeqkv.runtimes.coreml.interpreter import OPERATIONS, Interpreter  # noqa: E402
from edgeqkv.runtimes.coreml.value_inference import ValueInference  # noqa: E402

X = np.random.default_rng(0).standard_normal((1, 4, 6)).astype(np.float32)
W = np.random.default_rng(1).standard_normal((6, 6)).astype(np.float16)
ROW = W[0]
IDS = np.array([[0, 5, 3, 2]], np.int32)
INT8 = np.array([[-127, 0, 3, 5, 127, 1]] * 6, np.int8)
SCALES = np.array([[0.5], [0.25], [1e-3], [3.0], [0.1], [7e-5]], np.float16)


def program(body, states=()):
    """One function ``decode`` of ``x``, fp16 [1, 4, 6], ``ids``, int32 [1, 4], and states alike ``x``."""
    inputs = {"x": mb.TensorSpec((1, 4, 6), types.fp16), "ids": mb.TensorSpec((1, 4), types.int32)}
    inputs |= {name: mb.StateTensorSpec((1, 4, 6), types.fp16) for name in states}
    with Function(inputs, opset_version=ct.target.iOS18) as function:
        mb.const(val=W, name="weights")  # a package has a weight file
        outputs = body(*function.inputs.values())
        function.set_outputs(list(outputs) if isinstance(outputs, (list, tuple)) else [outputs])
    whole = Program()
    whole.add_function("decode", function)
    whole.default_function_name, whole.export_as_multifunction, whole.skip_all_passes = "decode", True, True
    return whole


OPS = {
    "abs": lambda x, ids: mb.abs(x=x),
    "add": lambda x, ids: mb.add(x=x, y=ROW),
    "cast": lambda x, ids: mb.cast(x=x, dtype="fp32"),
    "concat": lambda x, ids: mb.concat(values=[x, x, W[None]], axis=1),
    "equal": lambda x, ids: mb.cast(x=mb.equal(x=ids, y=np.int32(5)), dtype="int32"),
    "expand_dims": lambda x, ids: mb.expand_dims(x=x, axes=[1, 3]),
    "floor_div": lambda x, ids: mb.floor_div(x=ids, y=np.int32(3)),
    "gather": lambda x, ids: mb.gather(x=W, indices=ids, axis=0),
    "gelu": lambda x, ids: mb.gelu(x=x, mode="EXACT"),
    "layer_norm": lambda x, ids: mb.layer_norm(x=x, axes=[-1], gamma=ROW, beta=W[1], epsilon=np.float16(1e-5)),
    "less_equal": lambda x, ids: mb.cast(x=mb.less_equal(x=ids, y=np.int32(3)), dtype="int32"),
    "linear": lambda x, ids: mb.linear(x=x, weight=W[:5], bias=ROW[:5]),
    "matmul": lambda x, ids: mb.matmul(x=mb.matmul(x=x, y=x, transpose_y=True), y=x),
    "maximum": lambda x, ids: mb.maximum(x=x, y=np.float16(0.1)),
    "minimum": lambda x, ids: mb.minimum(x=ids, y=np.int32(2)),
    "mod": lambda x, ids: mb.mod(x=ids, y=np.int32(3)),
    "mul": lambda x, ids: mb.mul(x=x, y=np.float16(0.3)),
    "pad": lambda x, ids: mb.pad(x=x, pad=[1, 0, 0, 3], mode="constant", constant_val=np.float16(0.5)),
    "real_div": lambda x, ids: mb.real_div(x=x, y=ROW),
    "reduce_max": lambda x, ids: mb.reduce_max(x=x, axes=[-1], keep_dims=True),
    "reduce_mean": lambda x, ids: mb.reduce_mean(x=x, axes=[1, 2], keep_dims=False),
    "reshape": lambda x, ids: mb.reshape(x=x, shape=[2, 12]),
    "select": lambda x, ids: mb.select(
        cond=mb.expand_dims(x=mb.equal(x=ids, y=np.int32(5)), axes=[2]), a=x, b=np.float16(-4e4)
    ),
    "sigmoid": lambda x, ids: mb.sigmoid(x=mb.mul(x=x, y=np.float16(9))),
    "slice_by_index": lambda x, ids: mb.slice_by_index(
        x=x, begin=[0, 1, 0], end=[1, 3, 4], begin_mask=[True, False, False], end_mask=[False, False, True]
    ),
    "slice_update": lambda x, ids: mb.slice_update(
        x=x, update=W[None, :2, :], begin=[0, 1, 0], end=[0, 3, 0], begin_mask=[True, False, True], end_mask=[True, False, True]
    ),
    "softmax": lambda x, ids: mb.softmax(x=mb.mul(x=x, y=np.float16(100)), axis=-1),
    "split": lambda x, ids: mb.split(x=x, num_splits=3, axis=2),
    "split by sizes": lambda x, ids: mb.split(x=x, split_sizes=[1, 5], axis=2),
    "sqrt": lambda x, ids: mb.sqrt(x=mb.abs(x=x)),
    "stack": lambda x, ids: mb.stack(values=[x, x], axis=1),
    "sub": lambda x, ids: mb.sub(x=x, y=ROW),
    "tile": lambda x, ids: mb.tile(x=x, reps=[1, 2, 3]),
    "transpose": lambda x, ids: mb.transpose(x=x, perm=[2, 0, 1]),
    "constexpr_blockwise_shift_scale": lambda x, ids: mb.linear(
        x=x, weight=mb.constexpr_blockwise_shift_scale(data=INT8, scale=SCALES)
    ),
}


def test_every_operation_of_the_interpreter_is_here():
    assert OPERATIONS.keys() <= OPS.keys()


@pytest.mark.parametrize("kind", OPS)
def test_an_operation_is_apples(kind, tmp_path):
    write_package(program(OPS[kind]), tmp_path / "one.mlpackage", kind)
    inputs = {"x": X.astype(np.float16).astype(np.float32), "ids": IDS}
    ours = Interpreter(tmp_path / "one.mlpackage").run("decode", inputs, {})
    theirs = ValueInference(tmp_path / "one.mlpackage").run("decode", inputs, {})
    assert ours.keys() == theirs.keys()
    for name, expected in theirs.items():
        assert ours[name].shape == expected.shape
        np.testing.assert_allclose(ours[name], expected.astype(np.float64), rtol=1e-3, atol=1e-6)
        if expected.dtype == np.float16:
            np.testing.assert_array_equal(ours[name], ours[name].astype(np.float16))  # rounded to what the package declares


def updated(state, x):
    whole = {"begin": [0, 1, 0], "end": [0, 2, 0], "begin_mask": [True, False, True], "end_mask": [True, False, True]}
    row = mb.slice_by_index(x=x, begin=[0, 0, 0], end=[1, 1, 6])
    old = mb.read_state(input=state)
    return old, mb.slice_update(x=old, update=row, **whole)


def test_a_value_read_before_a_write_keeps_what_it_was(tmp_path):
    """In place is only for a buffer that nobody looks at: here the old value is an output."""

    def body(x, ids, state):
        old, new = updated(state, x)
        after = mb.coreml_update_state(state=state, value=new)
        return mb.add(x=old, y=np.float16(0), name="old"), mb.add(x=after, y=np.float16(0), name="after")

    write_package(program(body, ["s"]), tmp_path / "p.mlpackage", "p")
    for executor in (Interpreter(tmp_path / "p.mlpackage"), ValueInference(tmp_path / "p.mlpackage")):
        states = executor.new_states("decode")
        x = np.ones((1, 4, 6), np.float32)
        out = executor.run("decode", {"x": x, "ids": IDS}, states)
        assert np.abs(out["old"]).max() == 0
        np.testing.assert_array_equal(out["after"][0, 1], np.ones(6))
        np.testing.assert_array_equal(out["after"], states["s"])
        assert np.count_nonzero(states["s"]) == 6


def test_an_update_that_goes_to_another_state_leaves_the_first_alone(tmp_path):
    def body(x, ids, one, two):
        _, new = updated(one, x)
        return mb.add(x=mb.coreml_update_state(state=two, value=new), y=np.float16(0), name="out")

    write_package(program(body, ["one", "two"]), tmp_path / "p.mlpackage", "p")
    executor = Interpreter(tmp_path / "p.mlpackage")
    states = executor.new_states("decode")
    executor.run("decode", {"x": np.ones((1, 4, 6), np.float32), "ids": IDS}, states)
    assert (np.count_nonzero(states["one"]), np.count_nonzero(states["two"])) == (0, 6)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (lambda x, ids: mb.tanh(x=x), "the operation tanh is not one that the interpreter knows"),
        (lambda x, ids: mb.gelu(x=x, mode="TANH_APPROXIMATION"), "gelu in mode TANH_APPROXIMATION is not one"),
        (lambda x, ids: mb.pad(x=x, pad=[0, 1], mode="reflect"), "pad in mode reflect is not one"),
        (lambda x, ids: mb.concat(values=[x, x], axis=1, interleave=True), "concat that interleaves is not one"),
        (
            lambda x, ids: mb.linear(
                x=x, weight=mb.constexpr_blockwise_shift_scale(data=INT8, scale=SCALES, offset=np.ones((6, 1), np.int8))
            ),
            "constexpr_blockwise_shift_scale with an offset is not one",
        ),
    ],
)
def test_what_it_does_not_know_is_refused_and_not_guessed(body, reason, tmp_path):
    write_package(program(body), tmp_path / "p.mlpackage", "p")
    with pytest.raises(edgeqkv.EdgeQKVError, match=reason):
        Interpreter(tmp_path / "p.mlpackage").run("decode", {"x": X, "ids": IDS}, {})
