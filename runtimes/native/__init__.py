"""libedgeqkv, the C library, from Python."""
