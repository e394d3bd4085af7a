"""What our attention operator takes, on every runtime: runtimes/kernels/include/edgeqkv_attention.h."""

from edgeqkv.config import LatentAttention, Row

WIDEST_ROW = 2048  # channels, in multiples of 8
PRODUCT_WIDTH = 16  # what MLA's products of each head, W_K and W_V, take is a multiple of it


def operator_takes(row: Row) -> bool:
    sizes = (*row.widths.values(), row.key.width, row.value.start, row.value.width, row.scale_split)
    return all(size % 8 == 0 for size in sizes) and max(row.widths.values()) <= WIDEST_ROW


def operator_takes_products(attention: LatentAttention) -> bool:
    """Whether our operators take W_K and W_V in int8."""
    return attention.nope_dim % PRODUCT_WIDTH == 0 and attention.kv_rank % PRODUCT_WIDTH == 0
