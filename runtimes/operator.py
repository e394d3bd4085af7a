"""What our attention operator takes, on every runtime: runtimes/kernels/include/edgeqkv_attention.h."""

from edgeqkv.config import Row

WIDEST_ROW = 2048  # channels, in multiples of 8


def operator_takes(row: Row) -> bool:
    sizes = (*row.widths.values(), row.key.width, row.value.start, row.value.width, row.scale_split)
    return all(size % 8 == 0 for size in sizes) and max(row.widths.values()) <= WIDEST_ROW
