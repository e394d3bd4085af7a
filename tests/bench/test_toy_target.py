"""A target that is no part of this package: one folder and one entry point take it through export, open, verify and bench."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

import edgeqkv
from edgeqkv.targets import targets

TOY = Path(__file__).parent / "toy"


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """Installed as pip would do it: the module, and beside it the metadata that names its entry point."""
    installed = tmp_path / "installed"
    shutil.copytree(TOY, installed, ignore=shutil.ignore_patterns("__pycache__"))
    metadata = installed / "edgeqkv_toy-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: edgeqkv-toy\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[edgeqkv.targets]\ntoy = edgeqkv_toy:Toy\n")
    monkeypatch.syspath_prepend(installed)
    others = [path for path in [os.environ.get("PYTHONPATH")] if path]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(installed), *others]))  # for the process that is measured
    targets.cache_clear()
    yield
    targets.cache_clear()


def test_a_target_of_another_distribution(toy, cli, tiny_model, tmp_path):
    model, bundle = tiny_model("Q-GQA-2"), tmp_path / "toy"
    edgeqkv.export(model, bundle, targets=["toy"], weights="fp32")
    session = edgeqkv.open(bundle)
    assert (session.artifact.runtime, session.runtime_version) == ("toy", "1.0")
    chunks = session.prefill([1, 2, 3, 4, 5, 6, 7, 8, 9])
    session.reset()
    steps = [session.step(token) for token in range(1, 10)]
    np.testing.assert_allclose(chunks, steps[-1], atol=1e-4)
    assert all(parity.record.passed for parity in edgeqkv.verify(bundle, model))

    outcome = cli("bench", bundle, "--depths", "8,32", "--rounds", 2, "--steps", 2, "--threads", 1, "--cool-down", 0,
                  "--runtimes", "toy", "--no-baseline", "--results", tmp_path / "r.jsonl")  # fmt: skip
    assert outcome.code == 0, outcome.err
    assert "Toy runtime 1.0 in python" in outcome.out
    assert "Q-GQA-2, fp32 / fp32, toy stock" in outcome.out
    record = json.loads((tmp_path / "r.jsonl").read_text())
    assert record["subject"]["parity"]["passed"]
    assert record["memory"]["cache_bytes"] == record["memory"]["cache_bytes_analytic"]
    assert record["program"]["packages"]["numpy"] == np.__version__
    assert cli("report", tmp_path / "r.jsonl", "--out", tmp_path / "r.md").code == 0
    assert "python with Toy runtime 1.0" in (tmp_path / "r.md").read_text()


def test_its_baseline_is_made_by_it(toy, cli, tiny_model, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    edgeqkv.export(tiny_model("Q-MQA"), tmp_path / "b" / "q-mqa", targets=["toy"], weights="fp32")
    outcome = cli("bench", tmp_path / "b" / "q-mqa", "--depths", "8", "--rounds", 1, "--steps", 2, "--threads", 1, "--json")
    subjects = [record["subject"] for record in json.loads(outcome.out)]
    assert [(s["variant"], s["runtime"], s["baseline"]) for s in subjects] == [
        ("QKV", "toy", "random weights"),
        ("Q-MQA", "toy", None),
    ]
