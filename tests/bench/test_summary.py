"""Records as text, whatever they hold: what is missing is said, and nothing is a command to a terminal or a spreadsheet."""

import csv
import io

import pytest
from msgspec.structs import replace
from records import ENVIRONMENT, NOT_TIMED, changed, made_record

from edgeqkv.bench.printable import printable
from edgeqkv.bench.record import Bandwidth
from edgeqkv.bench.summary import FORMATS, written
from edgeqkv.bench.timing import timing
from edgeqkv.report.content import content
from edgeqkv.report.markdown import markdown
from edgeqkv.report.page import page

LACKING = [
    {"phases": {}, "split": None},
    {"decode": ()},
    {"decode": (), "prefill": (), "first_token": None, "load_s": ()},
    {"vitals": ()},
    {"throttled": None, "rounds_done": 1},
]


@pytest.mark.parametrize("missing", LACKING)
def test_what_was_not_measured_is_said(missing):
    run = [made_record(), made_record("Q-MQA", **missing)]
    for records in (run, run[::-1], run[1:]):
        for form in FORMATS:
            written(records, form, budget=2**30)
        found = content(records, [], budget=2**30)
        assert markdown(found)
        assert page(found)
    if "decode" in missing:
        assert "not measured" in written(run, "md")


def test_depths_may_differ_within_a_run():
    ours, theirs = made_record("Q-MQA"), made_record()
    run = [changed(theirs, decode=theirs.timings.decode[:1]), changed(ours, decode=ours.timings.decode[1:])]
    text = written(run, "md")
    assert "ms/token at 128: p50 p90 p99 | ms/token at 1,000: p50 p90 p99" in text
    assert page(content(run, []))
    assert "its speed was not compared" in content(run, []).verdict


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1"])
def test_a_cell_is_no_formula(text):
    record = changed(made_record(), bundle=text, weights=text)
    rows = list(csv.DictReader(io.StringIO(written([record], "csv"), newline="")))
    assert [(row["bundle"], row["weights"]) for row in rows] == [(f"'{printable(text)}",) * 2] * 2
    assert float(rows[0]["decode_p50_s"]) > 0


def test_a_record_cannot_speak_to_the_terminal():
    said = "one\x1b[2Jtwo\x9b31m\u202ethree\nfour"
    record = changed(made_record(), weights=said, kernel=said, runtime=said, device=said)
    emulated = changed(record, environment=replace(ENVIRONMENT, emulated=True), **NOT_TIMED)
    for text in (written([record, record], "md"), written([emulated], "md")):
        assert all(character.isprintable() or character == "\n" for character in text)
        assert "four" in text


def test_every_runtime_that_was_measured_is_named():
    run = [made_record(), made_record("Q-MQA", runtime="another", runtime_version="2.0")]
    program = dict(content(run, []).method.rows)["program"]
    assert program.startswith("edgeqkv-run with ONNX Runtime 1.31.1, another 2.0; edgeqkv 0.2.0, commit abc")
    assert "ONNX Runtime 1.31.1, another 2.0 in edgeqkv-run" in written(run, "md")


def test_rows_of_zeros_are_said():
    assert "note: depths were filled with rows of zeros" in written([made_record(filled="zeros")], "md")


def test_the_share_of_the_read_bandwidth_with_its_spread():
    read = Bandwidth(one_thread=(20e9, 21e9, 19e9), threads=(41e9, 39e9, 40e9), source="edgeqkv-run")
    seconds = (8e-3, 10e-3, 10e-3, 16e-3)
    record = made_record(bandwidth=read, weights_bytes_a_token=160_000_000, cache_bytes_per_position=40_000)
    record = changed(record, decode=(timing(1000, 1, seconds),))
    text = written([record], "md")
    assert "read at 40.0 GB/s (39.0 to 41.0) in order | MB a token at 1,000 | share of that at 1,000: p50 (p90 to p10)" in text
    assert "200.0 | " in text
    assert "50% (31% to 62%)" in text  # 200 MB in 10 ms are 20 GB/s
    assert "GB/s" not in written([changed(record, bandwidth=None)], "md")
    assert "in order" in written([record, changed(record, weights_bytes_a_token=None)], "md")
