"""What a token has to read: by hand for small shapes, and never more than a bundle's files hold."""

import pytest
from conftest import tiny_config
from msgspec.structs import replace
from records import changed, made_record

from edgeqkv.bench.record import Bandwidth, bandwidth_share
from edgeqkv.bench.timing import timing
from edgeqkv.bench.traffic import stored_bytes, weights_bytes_a_token
from edgeqkv.parameters import parameter_count, parameter_shapes
from edgeqkv.weights import format_names


@pytest.mark.parametrize(
    ("shape", "stored", "size"),
    [
        ((8, 256), "fp32", 8192),
        ((8, 256), "fp16", 4096),
        ((8, 256), "int8 row", 2048 + 4 * 8),
        ((8, 256), "int8 block 128", 2048 + 4 * 16),
        ((8, 256), "int4 block 32", 1024 + 4 * 64),
        ((8, 256), "ternary", None),
    ],
)
def test_stored_bytes(shape, stored, size):
    assert stored_bytes(shape, stored) == size


def formats_of(config):
    plain = type("Plain", (), {"name": "fp32"})()
    return format_names(lambda name, shape: plain, parameter_shapes(config))


def test_a_table_that_is_only_looked_up_is_read_in_one_row():
    tied = tiny_config("QKV")
    untied = replace(tied, head=replace(tied.head, tied=False))
    positions = (tied.n_positions - 1) * tied.d_model
    assert weights_bytes_a_token(tied, formats_of(tied)) == 4 * (parameter_count(tied) - positions)
    ids = (untied.vocab_size - 1) * untied.d_model
    assert weights_bytes_a_token(untied, formats_of(untied)) == 4 * (parameter_count(untied) - positions - ids)


def test_a_format_that_is_not_known_here():
    config = tiny_config("QKV")
    assert weights_bytes_a_token(config, {}) is None
    assert weights_bytes_a_token(config, formats_of(config) | {"wte.weight": "ternary"}) is None


def test_the_share_of_the_read_bandwidth():
    """2 kB of weights and 100 rows of 10 B in 1 µs are 3 GB/s, of the 6 that the faster number of threads reads."""
    record = changed(made_record(), weights_bytes_a_token=2000, cache_bytes_per_position=10)
    assert record.bytes_per_token(100) == 3000
    found = timing(100, 1, (1e-6,) * 3)
    measured = replace(record, bandwidth=Bandwidth(one_thread=(1e9, 9e9, 5e9), threads=(6e9, 7e9, 2e9), source="numpy"))
    assert bandwidth_share(measured, found) == pytest.approx(0.5)
    assert bandwidth_share(record, found) is None
    assert bandwidth_share(changed(measured, weights_bytes_a_token=None), found) is None
    assert bandwidth_share(replace(measured, bandwidth=Bandwidth(one_thread=(), threads=(), source="")), found) is None
