"""The row that a layer caches, and what a whole cache takes: by the formula, and in buffers that are really there."""

import numpy as np
import pytest
from conftest import tiny_config, tiny_weights
from msgspec.structs import replace

from edgeqkv.cache import BY_POSITION, CacheLayout, cache_layout, position_axis
from edgeqkv.config import Rotary, Row, Slice, baseline
from edgeqkv.eager import EagerModel
from edgeqkv.errors import EdgeQKVError
from edgeqkv.inspection import cache_budgets
from edgeqkv.presets import PRESETS, latent, mla, preset, rotary

VARIANTS = ["QKV", "GQA-2", "MQA", "Q-K=V", "Q-GQA-2", "Q-MQA", "Q=K-V", "Q=K=V"]
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
MLA = mla(2, 64, 96, 320, rotary(1e4, 16), latent(4, 24, 56, 24, 16, 32))


def turned(variant, value, dim=8):
    return replace(tiny_config(variant), positions=Rotary(theta=1e4, dim=dim, pairs="halves", scaling=None, value=value))


def test_the_papers_cache_sizes():
    config = preset("paper-300m", "QKV")
    short = {b.variant: b.bytes / 2**20 for b in cache_budgets(config, 2048, "fp16")}
    long = {b.variant: round(b.bytes / 1e9, 2) for b in cache_budgets(config, 32_000, "fp16")}
    assert {name: (short[name], long[name]) for name in short} == PAPER_300M


def test_the_papers_reductions():
    budgets = {b.variant: b.relative_to_baseline for b in cache_budgets(preset("paper-300m", "QKV"), 2048, "fp16")}
    assert f"{100 * (1 - budgets['Q-MQA']):.1f}" == "96.9"
    assert budgets["Q-K=V"] == 0.5
    large = {b.variant: b.relative_to_baseline for b in cache_budgets(preset("paper-1.2b", "QKV"), 2048, "fp16")}
    assert large["Q-MQA"] == 1 / 64


@pytest.mark.parametrize(("name", "expanded_gib", "absorbed_gib"), [("youtu-2b", 10.0, 0.57), ("minicpm3-4b", 24.2, 0.56)])
def test_latent_attention_at_32768_positions(name, expanded_gib, absorbed_gib):
    """fp16 K and V of every head, as other runtimes cache them, against the latent row in int8 with two scales a row: 8 bytes
    on 576 or 288."""
    config = PRESETS[name]
    expanded, absorbed = cache_layout(baseline(config), 32_768, "fp16"), cache_layout(config, 32_768, "int8")
    assert expanded.bytes / 2**30 == pytest.approx(expanded_gib, abs=0.05)
    assert absorbed.bytes / 2**30 == pytest.approx(absorbed_gib, abs=0.01)
    assert absorbed.bytes_per_position == config.n_layer * (config.row.widths["k"] + 8)


# -- rows ---------------------------------------------------------------------------------------------------------

K, V = "k", "v"
ROWS = {
    "QKV": (tiny_config("QKV"), Row(4, 4, {K: 16, V: 16}, Slice(K, 0, 16), Slice(V, 0, 16), 0.25), 0),
    "GQA-2": (tiny_config("GQA-2"), Row(4, 2, {K: 16, V: 16}, Slice(K, 0, 16), Slice(V, 0, 16), 0.25), 0),
    "Q=K-V": (tiny_config("Q=K-V"), Row(4, 4, {K: 16, V: 16}, Slice(K, 0, 16), Slice(V, 0, 16), 0.25), 0),
    "Q-K=V": (tiny_config("Q-K=V"), Row(4, 4, {K: 16}, Slice(K, 0, 16), Slice(K, 0, 16), 0.25), 0),
    "Q-MQA": (tiny_config("Q-MQA"), Row(4, 1, {K: 16}, Slice(K, 0, 16), Slice(K, 0, 16), 0.25), 0),
    "rotary MQA": (turned("MQA", "unturned"), Row(4, 1, {K: 16, V: 16}, Slice(K, 0, 16), Slice(V, 0, 16), 0.25), 0),
    # turned ‖ plain ‖ unturned, as in Gemma 4's global layers: the key is the first part, the value the last.
    "value before rotation": (
        turned("Q-GQA-2", "unturned"),
        Row(4, 2, {K: 24}, Slice(K, 0, 16), Slice(K, 8, 24), 0.25),
        0,
    ),
    "all channels turned": (
        turned("Q-MQA", "unturned", 16),
        Row(4, 1, {K: 32}, Slice(K, 0, 16), Slice(K, 16, 32), 0.25),
        0,
    ),
    "turned key as value": (turned("Q-MQA", "turned"), Row(4, 1, {K: 16}, Slice(K, 0, 16), Slice(K, 0, 16), 0.25), 0),
    "MLA": (MLA, Row(4, 1, {K: 72}, Slice(K, 0, 72), Slice(K, 0, 56), 40**-0.5), 56),
    "MLA expanded": (baseline(MLA), Row(4, 4, {K: 40, V: 32}, Slice(K, 0, 40), Slice(V, 0, 32), 40**-0.5), 0),
}


@pytest.mark.parametrize("family", ROWS)
def test_rows_and_their_slices(family):
    config, row, split = ROWS[family]
    assert config.row == row
    assert (config.row.k_only, config.row.scale_split) == (len(row.widths) == 1, split)


def test_the_scale_split_of_published_geometries():
    assert [PRESETS[name].row.scale_split for name in ("youtu-2b", "minicpm3-4b", "paper-300m")] == [512, 256, 0]


# -- bytes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ROWS)
def test_analytic_bytes_are_those_of_the_eager_buffers(family):
    config = ROWS[family][0]
    assert (
        EagerModel(config, tiny_weights(replace(config, n_positions=48)), 40).cache_bytes
        == cache_layout(config, 40, "fp32").bytes
    )


def test_int8_bytes_count_the_scales():
    config = tiny_config("Q-GQA-2")
    values = 2 * 1 * 2 * 40 * 16  # layers, tensors, KV heads, positions, head_dim
    layout = cache_layout(config, 40, "int8", "static")
    scales = 2 * 1 * 2 * 16 * 4
    assert (layout.bytes, layout.scale_bytes, layout.bytes_per_position) == (values + scales, scales, values // 40)
    layout = cache_layout(config, 40, "int8")
    scales = 2 * 1 * 2 * 40 * 4
    assert (layout.bytes, layout.scale_bytes, layout.bytes_per_position) == (values + scales, scales, (values + scales) // 40)


def test_a_row_of_two_parts_has_two_scales():
    layout = cache_layout(MLA, 40, "int8")
    assert (layout.scales, layout.scale_split, layout.scale_shape) == ("per_slice", 56, (1, 1, 2, 40))
    assert (layout.bytes, layout.scale_bytes) == (2 * 40 * (72 + 8), 2 * 40 * 8)
    one = cache_layout(MLA, 40, "int8", "per_row")
    assert (one.scale_split, one.scale_shape, one.bytes) == (0, (1, 1, 40), 2 * 40 * (72 + 4))
    assert cache_layout(MLA, 40, "fp16").scale_split == 0
    assert cache_layout(baseline(MLA), 40, "int8").scales == "per_row"


def test_names_and_shapes_of_the_buffers():
    found = {b.name: (b.dtype, b.shape) for b in cache_layout(baseline(MLA), 40, "int8").buffers}
    assert list(found) == [
        *("cache.0.k", "cache.0.v", "cache.1.k", "cache.1.v"),
        *("cache.0.k.scale", "cache.0.v.scale", "cache.1.k.scale", "cache.1.v.scale"),
    ]
    assert found["cache.0.k"] == ("int8", (1, 4, 40, 40))
    assert found["cache.1.v"] == ("int8", (1, 4, 40, 32))
    assert found["cache.1.v.scale"] == ("float32", (1, 4, 40))
    static = cache_layout(baseline(MLA), 40, "int8", "static")
    assert static.static_widths == {"cache.0.k": 160, "cache.0.v": 128, "cache.1.k": 160, "cache.1.v": 128}


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("scales", ["static", "per_row", "per_slice"])
@pytest.mark.parametrize("family", ROWS)
def test_the_buffers_add_up_to_the_bytes(family, scales, dtype):
    config = ROWS[family][0]
    layout, longer = (cache_layout(config, capacity, dtype, scales) for capacity in (40, 41))
    held = sum(np.zeros(buffer.shape, buffer.dtype).nbytes for buffer in layout.buffers)
    assert held == sum(buffer.bytes for buffer in layout.buffers)
    assert held == layout.bytes - (layout.scale_bytes if layout.scales == "static" else 0)
    assert longer.bytes - layout.bytes == layout.bytes_per_position
    if layout.scales == "static":
        assert layout.scale_bytes == 4 * sum(layout.static_widths.values())
    else:
        assert layout.scale_bytes == sum(b.bytes for b in layout.buffers if b.name.endswith(".scale"))


@pytest.mark.parametrize("scales", ["none", "per_row", "per_slice"])
def test_where_a_buffers_positions_lie(scales):
    """The axis that grows with the capacity, whatever the layout."""
    for axes in ("batch, kv_head, position, channel", BY_POSITION):
        dtype = "fp32" if scales == "none" else "int8"
        short, long = (CacheLayout(2, MLA.row, n, dtype, scales, axes) for n in (40, 41))
        for one, other in zip(short.buffers, long.buffers, strict=True):
            axis = position_axis(short, one.name)
            assert [i for i, (a, b) in enumerate(zip(one.shape, other.shape, strict=True)) if a != b] == [axis]


@pytest.mark.parametrize("capacity", [0, -1, 49])
def test_capacity_outside_the_trained_positions(capacity):
    with pytest.raises(EdgeQKVError, match=f"capacity {capacity} is outside 1..48: .* has no embedding beyond them"):
        cache_layout(tiny_config("QKV"), capacity, "fp32")
    with pytest.raises(EdgeQKVError, match="was trained with 48 positions$"):
        cache_layout(turned("QKV", "turned"), 49, "fp32")
