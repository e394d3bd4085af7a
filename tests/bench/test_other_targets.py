"""A runtime of another distribution is measured and reported like ours: bench and report know no runtime by name."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

import edgeqkv
from edgeqkv.targets import targets

TOY = Path(__file__).parents[1] / "toy"
QUICK = ("--depths", "8", "--rounds", 2, "--steps", 2, "--threads", 1, "--cool-down", 0)


@pytest.fixture
def toy(monkeypatch):
    """As if its distribution were installed, for this process and for the one that is measured."""
    monkeypatch.syspath_prepend(TOY)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(TOY), os.environ.get("PYTHONPATH")])))
    targets.cache_clear()
    yield
    targets.cache_clear()


@pytest.fixture
def bundle(toy, tiny_model, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    edgeqkv.export(tiny_model("Q-GQA-2"), tmp_path / "b" / "toy", targets=["toy"], weights="fp32")
    return tmp_path / "b" / "toy"


def test_it_is_measured_and_reported(bundle, cli, tmp_path):
    results = tmp_path / "r.jsonl"
    outcome = cli("bench", bundle, *QUICK, "--runtimes", "toy", "--no-baseline", "--results", results)
    assert outcome.code == 0, outcome.err
    assert "Toy Runtime 1.0 in python" in outcome.out
    assert "Q-GQA-2, fp32 / fp32, toy stock" in outcome.out
    record = json.loads(results.read_text())
    assert record["memory"]["cache_bytes"] == record["memory"]["cache_bytes_analytic"]
    assert record["program"]["packages"]["numpy"] == np.__version__
    assert cli("report", results, "--out", tmp_path / "r.md").code == 0
    assert "python with Toy Runtime 1.0" in (tmp_path / "r.md").read_text()


def test_its_baseline_is_made_by_it(bundle, cli):
    outcome = cli("bench", bundle, *QUICK, "--json")
    subjects = [record["subject"] for record in json.loads(outcome.out)]
    assert [(s["variant"], s["runtime"], s["baseline"]) for s in subjects] == [
        ("QKV", "toy", "random weights"),
        ("Q-GQA-2", "toy", None),
    ]


def test_rows_of_zeros_reach_a_depth(bundle, cli):
    outcome = cli("bench", bundle, *QUICK, "--depths", "8,40", "--no-baseline", "--fill", "zeros", "--json")
    record = json.loads(outcome.out)[0]
    assert record["plan"]["filled"] == "zeros"
    assert [timing["depth"] for timing in record["timings"]["decode"]] == [8, 40]
