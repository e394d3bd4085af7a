"""The published record: its schema, and what is worked out from raw samples."""

import json
from dataclasses import replace
from importlib.resources import files

import jsonschema
import pytest
from records import COLD, MIB, made_record

from edgeqkv.bench.memory import Memory, memory_of_this_process
from edgeqkv.bench.record import Failure, MemorySplit, has_throttled, largest_capacity, split_memory, timing
from edgeqkv.bench.results import append, json_line, read_results
from edgeqkv.bench.schema import record_schema
from edgeqkv.errors import EdgeQKVError

FAILURE = Failure(2, "failure", "run-1", "2026-01-02T03:04:05+00:00", "ssh://board", None, "it is away")


@pytest.fixture
def validator():
    schema = json.loads((files("edgeqkv.bench") / "record.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def test_the_published_schema_is_that_of_the_classes():
    published = json.loads((files("edgeqkv.bench") / "record.schema.json").read_text())
    assert published == record_schema(), "python -m edgeqkv.bench.schema > edgeqkv/bench/record.schema.json"


@pytest.mark.parametrize(
    "line", [made_record(), made_record(first_token=None, memory_split=None, memory={}, throttled=None), FAILURE]
)
def test_lines_follow_the_schema(validator, line):
    validator.validate(json.loads(json_line(line)))


@pytest.mark.parametrize("change", [{"schema": 1}, {"threads": "2"}, {"surprise": 1}, {"load_s": None}, {"kind": "guess"}])
def test_the_schema_refuses_other_lines(validator, change):
    line = json.loads(json_line(made_record())) | change
    with pytest.raises(jsonschema.ValidationError):
        validator.validate(line)


def test_results_come_back_as_they_were_written(tmp_path):
    path = tmp_path / "r.jsonl"
    append(path, [made_record(), FAILURE])
    append(path, [made_record("Q-MQA")])
    assert read_results([path]) == ([made_record(), made_record("Q-MQA")], [FAILURE])


def test_a_later_line_of_the_same_cell_replaces_the_earlier(tmp_path):
    path = tmp_path / "r.jsonl"
    append(path, [made_record(rounds_done=2), made_record("Q-MQA", rounds_done=2)])
    append(path, [made_record(), made_record(run="run-2")])
    records, _ = read_results([path])
    assert [(r.run, r.variant, r.rounds_done) for r in records] == [
        ("run-1", "QKV", 5),
        ("run-1", "Q-MQA", 2),
        ("run-2", "QKV", 5),
    ]


def test_a_line_that_was_cut_off_is_left_out_and_written_over(tmp_path):
    path = tmp_path / "r.jsonl"
    append(path, [made_record(), made_record("Q-MQA")])
    path.write_bytes(path.read_bytes()[:-100])
    assert read_results([path])[0] == [made_record()]
    append(path, [made_record("Q-K=V")])
    assert read_results([path])[0] == [made_record(), made_record("Q-K=V")]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{}\n{}\n", "line 1: expected a record of schema 2, found None; measure again"),
        ('{"schema": 9}\n', "expected a record of schema 2, found 9"),
        ("here\nthere\n", "line 1 is not JSON"),
    ],
)
def test_other_files_are_refused(tmp_path, text, reason):
    (tmp_path / "r.jsonl").write_text(text)
    with pytest.raises(EdgeQKVError, match=reason):
        read_results([tmp_path / "r.jsonl"])


def test_quantiles_are_samples():
    t = timing(0, 2, tuple(float(i) for i in range(1, 11)))
    assert (t.median, t.p50_s, t.p90_s, t.p99_s, t.tokens_per_s) == (5.5, 5.0, 9.0, 10.0, 2 / 5.5)


def test_the_peak_is_split_and_adds_up():
    memory = {"start": Memory(5 * MIB, None, None, None), "end": Memory(100 * MIB, None, None, None)}
    split = split_memory(memory, weights=30 * MIB, cache=40 * MIB, capacity=1000, filled=500)
    assert split == MemorySplit(30 * MIB, 20 * MIB, 50 * MIB)
    small = split_memory(memory, weights=300 * MIB, cache=40 * MIB, capacity=1000, filled=1000)
    assert small == MemorySplit(60 * MIB, 40 * MIB, 0)
    assert split_memory({"end": Memory(None, None, None, None)}, 1, 1, 1, 1) is None


@pytest.mark.parametrize(("budget", "capacity"), [(31, 0), (33, 128), (40, 1024), (1000, 2048)])
def test_the_largest_capacity_that_fits(budget, capacity):
    assert largest_capacity(made_record(), budget * MIB) == capacity


def _vitals(temperature=30_000, limit=2000, busy=2000):
    return replace(COLD, temperatures={"cpu": temperature}, limits_khz=(limit, limit), frequencies_khz=(300, busy))


@pytest.mark.parametrize(
    ("vitals", "throttled"),
    [
        ([_vitals(busy=300), _vitals(), _vitals()], False),  # a core that was idle before the run is not a sign
        ([_vitals(), _vitals(), _vitals(busy=1700)], True),
        ([_vitals(), _vitals(limit=1500), _vitals()], True),
        ([_vitals(), _vitals(), _vitals(temperature=46_000)], True),
        ([_vitals(), _vitals(temperature=40_000)], False),
        ([replace(COLD, temperatures=None)] * 3, None),
        ([_vitals()], None),
    ],
)
def test_throttling(vitals, throttled):
    assert has_throttled(tuple(vitals)) is throttled


def test_memory_follows_an_allocation():
    before = memory_of_this_process().private
    if before is None:
        pytest.skip("this system does not tell a process its memory")
    block = b"x" * (64 * 2**20)
    grown = memory_of_this_process().private - before
    assert 0.9 * len(block) < grown < 1.5 * len(block)
