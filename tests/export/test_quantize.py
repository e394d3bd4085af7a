import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from edgeqkv.errors import EdgeQKVError
from edgeqkv.export.quantize import block_size, quantize_rows

floats = st.floats(-1e4, 1e4, width=32)


@given(arrays(np.float32, st.tuples(st.integers(1, 5), st.sampled_from([16, 32, 96, 128, 256])), elements=floats))
def test_error_is_at_most_half_a_step(weight):
    quantized = quantize_rows(weight)
    back = (quantized.values.astype(np.float32) - 128) * quantized.scales[:, :, None]
    blocks = weight.reshape(back.shape)
    step = np.abs(blocks).max(axis=2, keepdims=True) / 127
    assert (np.abs(back - blocks) <= step / 2 * (1 + 1e-5) + 1e-30).all()


def test_zero_blocks_stay_zero_and_the_largest_value_is_kept():
    weight = np.zeros((1, 256), np.float32)
    weight[0, 130] = -3.5
    quantized = quantize_rows(weight)
    assert quantized.block == 128
    assert (quantized.values[0, 0] == 128).all()
    assert quantized.values[0, 1, 2] == 1
    assert quantized.scales[0, 1] * -127 == pytest.approx(-3.5)


def test_block_sizes():
    assert [block_size(n) for n in (1024, 192, 96, 48)] == [128, 64, 32, 16]
    with pytest.raises(EdgeQKVError, match="multiple of 16"):
        block_size(40)
