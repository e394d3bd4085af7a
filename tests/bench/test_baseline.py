"""The baseline that comes along by itself: given, found beside the bundle, or made with random weights."""

import json

import pytest
from conftest import tiny_config, tiny_weights

import edgeqkv
from edgeqkv.bench.baseline import with_baselines
from edgeqkv.model_folder import write_model

QUICK = ("--depths", "8", "--rounds", 1, "--steps", 2, "--threads", 1)


@pytest.fixture
def bundle(tmp_path, monkeypatch):
    """Export a tiny variant; the user's cache folder is an empty one."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def export(variant, name=None, **options):
        config = tiny_config(variant)
        model = tmp_path / "models" / (name or variant)
        write_model(model, config, tiny_weights(config), "# tiny\n")
        edgeqkv.export(model, tmp_path / "b" / (name or variant), **options)
        return tmp_path / "b" / (name or variant)

    return export


def _origins(bundles, wanted=True):
    notes = []
    subjects = with_baselines(bundles, wanted, lambda what: None, notes.append)
    return [
        (s.folder.name if s.baseline != "random weights" else "", s.manifest.model.variant, s.baseline) for s in subjects
    ], notes


def test_a_given_one_is_taken(bundle):
    bundles = [bundle("Q-MQA"), bundle("QKV")]
    assert _origins(bundles) == ([("Q-MQA", "Q-MQA", None), ("QKV", "QKV", "given")], [])


def test_one_in_the_same_folder_is_found_the_most_alike(bundle):
    bundle("QKV", "plain")
    bundle("QKV", "alike", weights="fp32")
    bundle("QKV", "short", weights="fp32", capacity=12)
    ours = bundle("Q-MQA", weights="fp32")
    origins, notes = _origins([ours])
    assert origins == [("alike", "QKV", "found"), ("Q-MQA", "Q-MQA", None)]
    assert "alike, a QKV bundle of the same geometry" in notes[0]


def test_one_is_made_with_random_weights_once(bundle, cli, tmp_path):
    ours = bundle("Q-K=V", capacity=40, cache="fp16")
    records = json.loads(cli("bench", ours, *QUICK, "--json").out)
    assert [(r["variant"], r["baseline"]) for r in records] == [("QKV", "random weights"), ("Q-K=V", None)]
    for name in ("capacity", "cache", "weights"):
        assert records[0][name] == records[1][name]
    assert records[0]["cache_bytes"] == 2 * records[1]["cache_bytes"]
    made = list((tmp_path / "cache" / "edgeqkv" / "baselines").iterdir())
    assert len(made) == 1
    changed = made[0].stat().st_mtime_ns
    outcome = cli("bench", ours, *QUICK)
    assert "note: the QKV baseline has random weights: it shows memory and speed, not quality" in outcome.out
    assert [f.stat().st_mtime_ns for f in made[0].parent.iterdir()] == [changed]


def test_a_user_may_do_without(bundle):
    assert _origins([bundle("Q-MQA")], wanted=False) == ([("Q-MQA", "Q-MQA", None)], [])


def test_a_broken_bundle_beside_is_passed_over(bundle):
    (bundle("QKV") / "onnx" / "model.onnx").write_bytes(b"")
    origins, _ = _origins([bundle("Q-MQA")])
    assert origins == [("", "QKV", "random weights"), ("Q-MQA", "Q-MQA", None)]
