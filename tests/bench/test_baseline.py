"""The baseline that comes along by itself: given, found beside the bundle, or made with random weights."""

import json

import pytest
from conftest import tiny_config, tiny_weights

import edgeqkv
from edgeqkv.bench.baseline import with_baselines
from edgeqkv.bench.baseline_folder import KEPT
from edgeqkv.model_folder import Model, write_model
from edgeqkv.text import Text

QUICK = ("--depths", "8", "--rounds", 1, "--steps", 2, "--threads", 1)
QKV_CACHE = 48 * 2**10  # bytes: 2 layers of 2 tensors, 48 positions of 64 channels, 4 bytes each


@pytest.fixture
def bundle(tmp_path, monkeypatch):
    """Export a tiny variant; the user's cache folder is an empty one."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def export(variant, name=None, **options):
        config = tiny_config(variant)
        model = tmp_path / "models" / (name or variant)
        write_model(model, Model(config, tiny_weights(config), None, Text(), ""), "# tiny\n")
        edgeqkv.export(model, tmp_path / "b" / (name or variant), **options)
        return tmp_path / "b" / (name or variant)

    return export


@pytest.fixture
def kept(tmp_path):
    return tmp_path / "cache" / "edgeqkv" / "baselines"


def origins(bundles, available=None):
    notes = []
    found = with_baselines(bundles, available, lambda what: None, notes.append)
    return [
        (b.folder.name if b.baseline != "random weights" else "", b.manifest.model.variant, b.baseline) for b in found
    ], notes


def test_a_given_one_is_taken(bundle):
    bundles = [bundle("Q-MQA"), bundle("QKV")]
    assert origins(bundles) == ([("Q-MQA", "Q-MQA", None), ("QKV", "QKV", "given")], [])


def test_one_in_the_same_folder_is_found_the_most_alike(bundle):
    bundle("QKV", "plain")
    bundle("QKV", "alike", weights="fp32")
    bundle("QKV", "short", weights="fp32", capacity=12)
    found, notes = origins([bundle("Q-MQA", weights="fp32")])
    assert found == [("alike", "QKV", "found"), ("Q-MQA", "Q-MQA", None)]
    assert "alike, a QKV bundle of the same geometry" in notes[0]


def test_one_with_the_default_cache_is_preferred(bundle):
    """So that what an int8 cache saves is seen."""
    bundle("QKV", "a-int8", cache="int8")
    bundle("QKV", "b-fp32")
    assert origins([bundle("Q-MQA", cache="int8")])[0][0] == ("b-fp32", "QKV", "found")


def test_one_is_made_with_random_weights_once(bundle, cli, kept):
    ours = bundle("Q-K=V", capacity=40, cache="int8")
    outcome = cli("bench", ours, *QUICK, "--json")
    subjects = [record["subject"] for record in json.loads(outcome.out)]
    assert [(s["variant"], s["baseline"], s["cache"]) for s in subjects] == [
        ("QKV", "random weights", "fp32"),
        ("Q-K=V", None, "int8"),
    ]
    assert "is QKV with a cache of fp32, at the same geometry with random weights" in outcome.err
    for name in ("capacity", "weights"):
        assert subjects[0][name] == subjects[1][name]
    made = list(kept.iterdir())
    assert len(made) == 1
    written = (made[0] / "edgeqkv.json").stat().st_mtime_ns
    outcome = cli("bench", ours, *QUICK)
    assert "note: the baseline has random weights: it shows memory and speed, not quality" in outcome.out
    assert [(folder / "edgeqkv.json").stat().st_mtime_ns for folder in kept.iterdir()] == [written]


def test_those_used_last_are_kept(bundle, kept):
    first = bundle("Q-MQA", "0", capacity=20)
    for i in range(1, KEPT + 1):
        origins([first])
        origins([bundle("Q-MQA", str(i), capacity=20 + i)])
    capacities = {json.loads((folder / "edgeqkv.json").read_text())["capacity"] for folder in kept.iterdir()}
    assert capacities == {20, *range(22, 21 + KEPT)}


def test_one_whose_cache_would_take_most_of_the_memory_is_not_made(bundle):
    ours = bundle("Q-MQA")
    found, notes = origins([ours], available=2 * QKV_CACHE - 1)
    assert found == [("Q-MQA", "Q-MQA", None)]
    assert "has no baseline: QKV with a cache of fp32 would take" in notes[0]
    assert origins([ours], available=2 * QKV_CACHE)[0][0] == ("", "QKV", "random weights")


def test_one_that_lies_beside_is_left_out_on_a_device_without_the_memory(bundle, cli, monkeypatch):
    bundle("QKV")
    monkeypatch.setattr("edgeqkv.bench.fleet.too_large", lambda size, available: size == QKV_CACHE)
    outcome = cli("bench", bundle("Q-MQA"), *QUICK, "--json")
    assert [record["subject"]["variant"] for record in json.loads(outcome.out)] == ["Q-MQA"]
    assert "local: the baseline QKV (onnx stock) is left out: its cache takes" in outcome.err


def test_a_user_may_do_without(bundle, cli):
    outcome = cli("bench", bundle("Q-MQA"), *QUICK, "--no-baseline", "--json")
    assert [record["subject"]["variant"] for record in json.loads(outcome.out)] == ["Q-MQA"]


def test_a_broken_bundle_beside_is_passed_over(bundle):
    (bundle("QKV") / "onnx" / "model.onnx").write_bytes(b"")
    found, _ = origins([bundle("Q-MQA")])
    assert found == [("", "QKV", "random weights"), ("Q-MQA", "Q-MQA", None)]


def test_one_that_came_by_itself_is_measured_as_a_team_has_it(bundle, cli):
    """With the runtime's own attention; where the user says which kernels, with those."""
    bundle("QKV")
    ours = bundle("Q-MQA")

    def kernels(*options):
        records = json.loads(cli("bench", ours, *QUICK, *options, "--json").out)
        return [(record["subject"]["variant"], record["subject"]["kernel"]) for record in records]

    assert kernels() == [("QKV", "stock"), ("Q-MQA", "fused")]
    assert kernels("--kernels", "fused") == [("QKV", "fused"), ("Q-MQA", "fused")]


def test_a_bundle_may_be_named_with_a_kernel(bundle, cli):
    base, ours = bundle("QKV"), bundle("Q-MQA")
    outcome = cli("bench", f"{base}:stock", f"{base}:fused", ours, *QUICK, "--json")
    found = [(record["subject"]["bundle"], record["subject"]["kernel"]) for record in json.loads(outcome.out)]
    assert found == [("QKV", "stock"), ("QKV", "fused"), ("Q-MQA", "fused")]
