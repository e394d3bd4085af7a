"""Weight formats: what quantising loses, and which format a target chooses for a tensor."""

import numpy as np
import pytest
from conftest import tiny_config
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from edgeqkv.errors import EdgeQKVError
from edgeqkv.export.onnx.write import weight_formats
from edgeqkv.parameters import parameter_shapes
from edgeqkv.presets import latent, mla, rotary
from edgeqkv.weights import BlockInt8, Plain, RowInt8, block_int8, format_names

floats = st.floats(-1e4, 1e4, width=32)


@given(arrays(np.float32, st.tuples(st.integers(1, 5), st.sampled_from([16, 32, 96, 128, 256])), elements=floats))
def test_error_of_a_block_is_at_most_half_a_step(weight):
    values, scales = block_int8(weight.shape[1]).quantize(weight)
    back = (values.astype(np.float32) - 128) * scales[:, :, None]
    blocks = weight.reshape(back.shape)
    step = np.abs(blocks).max(axis=2, keepdims=True) / 127
    assert (np.abs(back - blocks) <= step / 2 * (1 + 1e-5) + 1e-30).all()


@pytest.mark.parametrize(("scale_dtype", "slack"), [("float32", 1e-5), ("float16", 0.1)])
@given(weight=arrays(np.float32, st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 9)), elements=floats))
def test_error_of_a_row_is_at_most_half_a_step(scale_dtype, slack, weight):
    """With an fp16 scale the largest values of a row may be clipped by its rounding, 127 * 2^-11 of a step."""
    weight = weight / 1e3  # 1e4 / 127 and its steps fit fp16 well
    values, scales = RowInt8(scale_dtype).quantize(weight)
    assert (values.dtype, values.shape, scales.shape) == (np.int8, weight.shape, (*weight.shape[:2], 1))
    assert scales.dtype == scale_dtype
    step = scales.astype(np.float32)
    normal = step >= np.finfo(scale_dtype).tiny  # below, an fp16 scale has few bits of its own
    wrong = np.abs(values * step - weight) > step * (0.5 + slack)
    assert not (wrong & normal).any()


def test_zero_blocks_stay_zero_and_the_largest_value_is_kept():
    weight = np.zeros((1, 256), np.float32)
    weight[0, 130] = -3.5
    form = block_int8(256)
    values, scales = form.quantize(weight)
    assert form == BlockInt8(128)
    assert (values[0, 0] == 128).all()
    assert values[0, 1, 2] == 1
    assert scales[0, 1] * -127 == pytest.approx(-3.5)
    values, scales = RowInt8().quantize(weight)
    assert (values[0, 130], scales[0, 0] * -127) == (-127, pytest.approx(-3.5))
    assert np.count_nonzero(values) == 1


def test_block_sizes():
    assert [block_int8(n).block for n in (1024, 192, 96, 48)] == [128, 64, 32, 16]
    with pytest.raises(EdgeQKVError, match="multiple of 16, found 40"):
        block_int8(40)


def test_which_tensors_are_int8():
    """Matrices that something is multiplied by; not positions, which are added, nor vectors. MLA's products of each head are
    int8 where our operator reads them."""
    config = mla(1, 64, 96, 320, rotary(1e4, 16), latent(4, 32, 64, 32, 16, 32))
    shapes = parameter_shapes(config) | parameter_shapes(tiny_config("QKV", n_layer=1))
    names = {kernel: format_names(weight_formats("int8", products=kernel == "fused"), shapes) for kernel in ("fused", "stock")}
    assert names["fused"]["wpe.weight"] == "fp32"
    assert names["fused"]["wte.weight"] == names["fused"]["h.*.attn.q.weight"] == "int8 block 64"
    assert (names["fused"]["h.*.attn.k_b.weight"], names["stock"]["h.*.attn.k_b.weight"]) == ("int8 row", "fp32")
    assert "h.*.ln_1.weight" not in names["fused"]
    assert set(format_names(weight_formats("fp32", products=True), shapes).values()) == {"fp32"}
    assert weight_formats("int8", products=True)("ln_f.weight", (64,)) == Plain("float32")
