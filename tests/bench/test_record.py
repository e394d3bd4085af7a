"""The published record: its schema, what it refuses to hold, and what is worked out from raw samples."""

import json
from importlib.resources import files

import jsonschema
import pytest
from msgspec.structs import replace
from records import COLD, MIB, NOT_TIMED, changed, made_record

from edgeqkv.bench.machine import has_throttled
from edgeqkv.bench.memory import Memory, memory_of_this_process
from edgeqkv.bench.record import Failure, MemorySplit, largest_capacity, split_memory
from edgeqkv.bench.results import append, json_line, read_results
from edgeqkv.bench.schema import record_schema
from edgeqkv.bench.timing import timing
from edgeqkv.errors import EdgeQKVError

FAILURE = Failure(3, "run-1", "2026-01-02T03:04:05+00:00", "ssh://board", None, "it is away")


@pytest.fixture
def validator():
    schema = json.loads((files("edgeqkv.bench") / "record.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def test_the_published_schema_is_that_of_the_classes():
    published = json.loads((files("edgeqkv.bench") / "record.schema.json").read_text())
    assert published == record_schema(), "python -m edgeqkv.bench.schema > edgeqkv/bench/record.schema.json"


@pytest.mark.parametrize("line", [made_record(), made_record(**NOT_TIMED, throttled=None), FAILURE])
def test_lines_follow_the_schema(validator, line):
    validator.validate(json.loads(json_line(line)))


def with_value(record, path, value):
    """The plain values of a record's line, one of them replaced; ``path`` is "memory.split.rest"."""
    data = json.loads(json_line(record))
    *outer, last = path.split(".")
    inside = data
    for name in outer:
        inside = inside[int(name)] if isinstance(inside, list) else inside[name]
    inside[last] = value
    return data


SENSELESS = [
    ("schema", 2),
    ("kind", "guess"),
    ("surprise", 1),
    ("plan.threads", "2"),
    ("plan.rounds", 0),
    ("rounds_done", 0),
    ("timings.load_s", None),
    ("timings.load_s", [0.0]),
    ("timings.decode.0.seconds", []),
    ("timings.decode.0.seconds", [0.01, -0.01]),
    ("timings.decode.1.p99_s", 0),
    ("timings.decode.1.tokens_per_s", -1.0),
    ("timings.prefill.0.tokens", 0),
    ("memory.cache_bytes_per_position", 0),
    ("memory.cache_bytes", 0),
    ("memory.split.rest", -1),
    ("memory.phases.end.rss", 2**63),
    ("subject.capacity", 0),
    ("environment.cores", 0),
]


@pytest.mark.parametrize(("path", "value"), SENSELESS)
def test_values_that_make_no_sense_are_refused(validator, tmp_path, path, value):
    data = with_value(made_record(), path, value)
    with pytest.raises(jsonschema.ValidationError):
        validator.validate(data)
    (tmp_path / "r.jsonl").write_text(json.dumps(data) + "\n")
    with pytest.raises(EdgeQKVError, match="line 1: "):
        read_results([tmp_path / "r.jsonl"])


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e400", "9" * 5000])
def test_numbers_that_are_none_are_refused(tmp_path, number):
    line = json_line(made_record()).replace('"load_s":[0.25]', f'"load_s":[{number}]')
    assert number in line
    (tmp_path / "r.jsonl").write_text(line + "\n")
    with pytest.raises(EdgeQKVError, match="line 1"):
        read_results([tmp_path / "r.jsonl"])


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
    assert [(r.run, r.subject.variant, r.rounds_done) for r in records] == [
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
        ("{}\n{}\n", "line 1: expected a record of schema 3, found None; measure again"),
        ('{"schema": 2}\n', "expected a record of schema 3, found 2; measure again"),
        ('{"schema": 9}\n', "expected a record of schema 3, found 9"),
        ("here\nthere\n", "line 1 is not a JSON file.*; edgeqkv bench --results writes such files"),
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
    phases = {"start": Memory(5 * MIB, None, None, None), "end": Memory(100 * MIB, None, None, None)}
    split = split_memory(phases, weights=30 * MIB, cache=40 * MIB, share=0.5)
    assert (split, split.peak) == (MemorySplit(30 * MIB, 20 * MIB, 50 * MIB), 100 * MIB)
    small = split_memory(phases, weights=300 * MIB, cache=40 * MIB, share=1.1)
    assert small == MemorySplit(60 * MIB, 40 * MIB, 0)
    assert split_memory({"end": Memory(None, None, None, None)}, 1, 1, 1.0) is None


@pytest.mark.parametrize(("budget", "capacity"), [(31, 0), (33, 128), (40, 1024), (1000, 2048)])
def test_the_largest_capacity_that_fits(budget, capacity):
    assert largest_capacity(made_record(), budget * MIB) == capacity


def test_a_moment_that_was_not_asked_is_unknown():
    assert changed(made_record(), phases={}).memory.at("end") == Memory(None, None, None, None)


def _vitals(temperature=30_000, limit=2000, busy=2000, status=None):
    moved = replace(COLD, temperatures={"cpu": temperature}, limits_khz=(limit, limit), frequencies_khz=(300, busy))
    return replace(moved, thermal_status=status)


@pytest.mark.parametrize(
    ("vitals", "throttled"),
    [
        ([_vitals(busy=300), _vitals(), _vitals()], False),  # a core that was idle before the run is not a sign
        ([_vitals(), _vitals(), _vitals(busy=1700)], True),
        ([_vitals(), _vitals(limit=1500), _vitals()], True),
        ([_vitals(), _vitals(), _vitals(temperature=46_000)], True),
        ([_vitals(), _vitals(temperature=40_000)], False),
        ([_vitals(status=0), _vitals(status=0)], False),
        ([_vitals(status=0), _vitals(status=1), _vitals(status=0)], True),  # Android's first step is light throttling
        ([replace(COLD, temperatures=None, thermal_status=0)] * 2, False),
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
