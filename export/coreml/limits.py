"""What a device takes, as far as it is known without one: sizes of states and tensors, and numbers that fp16 holds."""

import math
from collections.abc import Iterator

from edgeqkv.config import LatentAttention, ModelConfig
from edgeqkv.errors import EdgeQKVError

STATE_MULTIPLE = 32  # the Neural Engine fails on states of other sizes (coremltools issue 2631)
WIDEST = 16384  # a tensor that is longer in one dimension may leave the Neural Engine
LONGEST_CHUNK = 64  # writes of 128 tokens into a state fail on the Neural Engine, 16 and 32 work (coremltools issue 2553)
LEAST_NORMAL, LARGEST = 2.0**-14, 65504.0  # of fp16; below the first it loses digits
LEAST_EPS = 2.0**-24  # the smallest that fp16 holds: with less a norm divides by zero


def head_rows(vocab_size: int, parts: int | None) -> int:
    """Rows of each part of an embedding or head but the last; by default as few parts as keep to :data:`WIDEST`."""
    return math.ceil(vocab_size / (parts or math.ceil(vocab_size / WIDEST)))


def check_sizes(config: ModelConfig, capacity: int, prefill_chunk: int, head_parts: int | None) -> None:
    """Refuse what would not load, or not run, on a device."""
    if capacity % STATE_MULTIPLE:
        fits = capacity // STATE_MULTIPLE * STATE_MULTIPLE or STATE_MULTIPLE
        raise EdgeQKVError(
            f"capacity {capacity} is not a multiple of {STATE_MULTIPLE}, which Core ML states need; use --capacity {fits}"
        )
    for tensor, width in config.row.widths.items():
        if width % STATE_MULTIPLE:
            raise EdgeQKVError(
                f"the rows that this {config.variant} model caches ({tensor}) have {width} channels, which is not a multiple "
                f"of {STATE_MULTIPLE}, which Core ML states need; use --target onnx"
            )
    for name, size in _sizes(config, capacity):
        if size > WIDEST:
            raise EdgeQKVError(f"{name} {size} is beyond {WIDEST}, the longest dimension that the Neural Engine takes")
    if not 2 <= prefill_chunk <= min(LONGEST_CHUNK, capacity):
        raise EdgeQKVError(
            f"prefill chunk {prefill_chunk} is outside 2..{min(LONGEST_CHUNK, capacity)}, what a Core ML state takes at once"
        )
    if head_parts is not None and not 1 <= head_parts <= config.vocab_size:
        raise EdgeQKVError(f"head parts {head_parts} is outside 1..{config.vocab_size}")


def check_numbers(config: ModelConfig) -> None:
    """Refuse factors that fp16, in which everything is computed, rounds to nothing, to infinity or too coarsely."""
    factors = {
        "embedding_scale": config.embedding_scale,
        "residual_scale": config.residual_scale,
        "head.scale": config.head.scale,
        "the softmax scale": config.row.softmax_scale,
    }
    for name, factor in factors.items():
        if not LEAST_NORMAL <= factor <= LARGEST:
            raise EdgeQKVError(
                f"{name} {factor:g} is outside {LEAST_NORMAL:.1e}..{LARGEST:.0f}, what fp16 holds, and Core ML computes in "
                "fp16; use --target onnx"
            )
    norms = {"norm.eps": config.norm.eps}
    if isinstance(config.attention, LatentAttention):
        norms["attention.norm_eps"] = config.attention.norm_eps
    for name, eps in norms.items():
        if eps < LEAST_EPS:
            raise EdgeQKVError(f"{name} {eps:g} is zero in fp16, in which Core ML computes; use --target onnx")


def _sizes(config: ModelConfig, capacity: int) -> Iterator[tuple[str, int]]:
    """The longest dimensions but the vocabulary's, which is cut."""
    row = config.row
    yield "capacity", capacity
    yield "d_model", config.d_model
    yield "mlp.width", config.mlp.width
    yield "the width of all query heads", row.heads * row.key.width
    yield "the width of all heads' outputs", row.heads * row.value.width
