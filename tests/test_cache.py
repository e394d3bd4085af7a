import numpy as np
import pytest
from conftest import tiny_config, tiny_weights

from edgeqkv.cache import cache_layout
from edgeqkv.eager import EagerModel
from edgeqkv.errors import EdgeQKVError
from edgeqkv.inspection import cache_budgets
from edgeqkv.presets import preset

# The paper's table (arXiv 2606.04032), 300M: MiB at 2048 positions and GB (10^9 bytes) at 32,000, both fp16.
PAPER_300M = {
    "QKV": (160, 2.62),
    "Q-K=V": (80, 1.31),
    "Q=K-V": (160, 2.62),
    "Q=K=V": (80, 1.31),
    "GQA-4": (40, 0.66),
    "MQA": (10, 0.16),
    "Q-GQA-4": (20, 0.33),
    "Q-MQA": (5, 0.08),
}


def test_the_papers_cache_sizes():
    config = preset("paper-300m", "QKV")
    short = {b.variant: b.bytes / 2**20 for b in cache_budgets(config, 2048, "fp16")}
    long = {b.variant: round(b.bytes / 1e9, 2) for b in cache_budgets(config, 32_000, "fp16")}
    assert {name: (short[name], long[name]) for name in short} == PAPER_300M


def test_the_papers_reductions():
    budgets = {b.variant: b.relative_to_qkv for b in cache_budgets(preset("paper-300m", "QKV"), 2048, "fp16")}
    assert f"{100 * (1 - budgets['Q-MQA']):.1f}" == "96.9"
    assert budgets["Q-K=V"] == 0.5
    large = {b.variant: b.relative_to_qkv for b in cache_budgets(preset("paper-1.2b", "QKV"), 2048, "fp16")}
    assert large["Q-MQA"] == 1 / 64


@pytest.mark.parametrize("variant", ["QKV", "GQA-2", "MQA", "Q-K=V", "Q-GQA-2", "Q-MQA", "Q=K-V", "Q=K=V"])
def test_analytic_bytes_are_those_of_the_eager_buffers(variant):
    config = tiny_config(variant)
    assert EagerModel(config, tiny_weights(config), 40).cache_bytes == cache_layout(config, 40, "fp32").bytes


def test_int8_bytes_count_the_scales():
    config = tiny_config("Q-GQA-2")
    values = 2 * 1 * 2 * 40 * 16  # layers, tensors, KV heads, positions, head_dim
    layout = cache_layout(config, 40, "int8", "static")
    scales = 2 * 1 * 2 * 16 * 4
    assert (layout.bytes, layout.scale_bytes, layout.bytes_per_position) == (values + scales, scales, values // 40)
    layout = cache_layout(config, 40, "int8")
    scales = 2 * 1 * 2 * 40 * 4
    assert (layout.bytes, layout.scale_bytes, layout.bytes_per_position) == (values + scales, scales, (values + scales) // 40)


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("scales", ["static", "per_token"])
@pytest.mark.parametrize("variant", ["QKV", "Q-GQA-2"])
def test_the_buffers_add_up_to_the_bytes(variant, scales, dtype):
    layout = cache_layout(tiny_config(variant), 40, dtype, scales)
    held = sum(np.zeros(shape, name).nbytes for name, shape in layout.buffers.values())
    assert held == layout.bytes - (layout.scale_bytes if layout.scales == "static" else 0)
    longer = cache_layout(tiny_config(variant), 41, dtype, scales)
    assert longer.bytes - layout.bytes == layout.bytes_per_position


@pytest.mark.parametrize("capacity", [0, -1, 49])
def test_capacity_outside_the_trained_positions(capacity):
    with pytest.raises(EdgeQKVError, match=f"capacity {capacity} is outside 1..48"):
        cache_layout(tiny_config("QKV"), capacity, "fp32")
