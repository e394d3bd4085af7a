"""The library's JSON reader against Python's: the same values, and nothing that a strict reader refuses."""

import json
from contextlib import closing

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from native_probe import Probe, built


@pytest.fixture(scope="module")
def probe(tmp_path_factory):
    with closing(Probe(built(tmp_path_factory))) as probe:
        yield probe


def strictly(text):
    """What Python makes of a text, strict as the library is: no key twice, no half of a surrogate pair, no NaN."""

    def unique(pairs):
        assert len(dict(pairs)) == len(pairs)
        return dict(pairs)

    def no_constant(name):
        raise ValueError(name)

    value = json.loads(text.decode(), object_pairs_hook=unique, parse_constant=no_constant, parse_float=str)
    json.dumps(value, ensure_ascii=False).encode()
    return value


@pytest.mark.parametrize(
    "text",
    [
        *("", " ", "{", "}", "[1,]", "[,1]", '{"a":1,}', '{"a" 1}', "{a:1}", "'a'", '"a', "01", "+1", "-", "1.", ".5", "1e"),
        *("0x1", "nul", "True", "NaN", "-Infinity", "1 2", "[1 2]", '"\\x"', '"\\u12"', '"\\u+123"', '"a\nb"', "{}\0"),
        *("\ufeff{}", "//", '{"a":1,"b":2,"\\u0061":3}', '"\\ud800"', '"\\udc00"', '"\\ud800\\u0041"'),
        *('"\\udc00\\ud800"', '"\\ud800\\ud800"', '"\\ud800\\ue000"', '"\x1f"', "[\f1]"),
        *(b'"\xff"', b'"\xed\xa0\x80"', b'"\xc0\x80"', b'"\xf4\x90\x80\x80"', b'"\xe4\xbd"'),
    ],
)
def test_what_is_no_json(text, probe):
    text = text if isinstance(text, bytes) else text.encode()
    with pytest.raises((ValueError, AssertionError)):
        strictly(text)
    with pytest.raises(ValueError, match="not JSON from byte|the key 'a' stands twice"):
        probe.ask("J", text)


def test_json_is_read_as_in_python(probe):
    values = st.recursive(
        st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )

    @settings(max_examples=300, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow])
    @given(values, st.booleans(), st.sampled_from([None, 1]), st.integers(0), st.binary(max_size=2))
    def run(value, escaped, indent, place, noise):
        text = json.dumps(value, ensure_ascii=escaped, indent=indent).encode()
        assert json.loads(probe.ask("J", text)) == value
        damaged = text[: place % len(text)] + noise + text[place % len(text) + 1 :]
        try:
            expected = strictly(damaged)
        except (ValueError, AssertionError):
            with pytest.raises(ValueError, match="."):
                probe.ask("J", damaged)
        else:
            assert strictly(probe.ask("J", damaged)) == expected

    run()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[" * 66 + "]" * 66, "nested too deep"),
        ("[" + "0," * 2**16 + "0]", "too many values"),
    ],
)
def test_json_beyond_the_limits(text, reason, probe):
    with pytest.raises(ValueError, match=reason):
        probe.ask("J", text.encode())


def test_whole_numbers_are_whole_and_fit(probe):
    for number in (0, -1, 2**63 - 1, -(2**63)):
        assert int(probe.ask("i", str(number).encode())) == number
    for text in ("64.0", "1e3", str(2**63), "-" + "9" * 5000, '"64"', "true", "null"):
        with pytest.raises(ValueError, match="'the number' should be a whole number of 64 bits"):
            probe.ask("i", text.encode())


def test_numbers_are_finite(probe):
    assert [float(probe.ask("r", text)) for text in (b"-1.5e-1", b"12", b"1e-400")] == [-0.15, 12, 0]
    for text in (b"1e400", b'"1"', b"[]"):
        with pytest.raises(ValueError, match="'the number' should be a finite number"):
            probe.ask("r", text)
