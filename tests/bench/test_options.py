"""Comma lists, ranges and sizes."""

import pytest

from edgeqkv.bench.options import numbers, parse_percent, parse_size, parse_time
from edgeqkv.errors import EdgeQKVError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1,2,4", [1, 2, 4]),
        ("4,1, 4", [4, 1]),
        ("1-4", [1, 2, 3, 4]),
        ("0-1000+250", [0, 250, 500, 750, 1000]),
        ("128-2048*2,2000", [128, 256, 512, 1024, 2048, 2000]),
        ("64-1000*4", [64, 256, 1000]),
        ("0-1000+300", [0, 300, 600, 900, 1000]),
        ("7-7", [7]),
    ],
)
def test_numbers(text, expected):
    assert numbers(text, "--depths") == expected


@pytest.mark.parametrize("text", ["", "1,two", "1,,2", "-1", "1.5", "4-1", "1-8*1", "0-8*2", "1-8+0", "1-999999"])
def test_other_words_are_refused(text):
    with pytest.raises(EdgeQKVError, match="--depths"):
        numbers(text, "--depths")


@pytest.mark.parametrize(("text", "size"), [("512MiB", 2**29), ("1.5 GiB", 3 * 2**29), ("1MB", 10**6), ("1000", 1000)])
def test_sizes(text, size):
    assert parse_size(text, "--ram-budget") == size


@pytest.mark.parametrize("text", ["", "much", "-1MiB", "0", "1XiB"])
def test_other_sizes_are_refused(text):
    with pytest.raises(EdgeQKVError, match="--ram-budget takes a size like 512MiB or 2GiB"):
        parse_size(text, "--ram-budget")


@pytest.mark.parametrize(("text", "share"), [("3%", 0.03), ("0.5 %", 0.005), ("0.03", 0.03), (".1", 0.1)])
def test_shares(text, share):
    assert parse_percent(text, "--precision") == pytest.approx(share)


@pytest.mark.parametrize(("text", "seconds"), [("90", 90), ("90s", 90), ("5m", 300), ("1.5h", 5400)])
def test_times(text, seconds):
    assert parse_time(text, "--time") == seconds


@pytest.mark.parametrize("text", ["", "-1", "3%%", "5 minutes", "1e3", "nan"])
def test_other_shares_and_times_are_refused(text):
    with pytest.raises(EdgeQKVError, match="--precision takes a share like"):
        parse_percent(text, "--precision")
    with pytest.raises(EdgeQKVError, match="--time takes a time like"):
        parse_time(text, "--time")
