"""A runtime is one folder and one line: a target from another distribution goes through export, open, verify and bench."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

TOY = Path(__file__).parent / "toy"
SCRIPT = """
import json, sys
import edgeqkv
model, bundle = sys.argv[1:3]
edgeqkv.export(model, bundle, targets=["toy"], weights="fp32", capacity=32)
with edgeqkv.open(bundle) as session:
    session.prefill([1, 2, 3]); session.save(bundle + ".session"); here = session.step(4)
    session.restore(bundle + ".session")
    same = bool((session.step(4) == here).all())
results = edgeqkv.verify(bundle, model)
print(json.dumps({"runtime": session.artifact.runtime, "same": same, "failures": [r.failures for r in results]}))
"""


@pytest.fixture
def toy(tmp_path):
    """Python, or one of its modules, as if the toy's distribution were installed."""
    path = os.pathsep.join(filter(None, [str(TOY), os.environ.get("PYTHONPATH")]))

    def run(*arguments):
        environment = os.environ | {"PYTHONPATH": path, "XDG_CACHE_HOME": str(tmp_path / "cache")}
        done = subprocess.run([sys.executable, *map(str, arguments)], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@pytest.mark.parametrize("variant", ["Q-MQA", "QKV"])
def test_export_open_and_verify(toy, tiny_model, tmp_path, variant):
    out = json.loads(toy("-c", SCRIPT, tiny_model(variant), tmp_path / "bundle").splitlines()[-1])
    assert out == {"runtime": "toy", "same": True, "failures": [[]]}


def test_bench(toy, tiny_model, tmp_path):
    for variant in ("QKV", "Q-MQA"):
        export = ["-m", "edgeqkv.cli", "export", tiny_model(variant), "--out", tmp_path / variant, "--target", "toy"]
        toy(*export, "--weights", "fp32")
    bundles = [tmp_path / "QKV", tmp_path / "Q-MQA"]
    options = ["--rounds", 2, "--steps", 2, "--depths", "8,16", "--prompt", 4, "--cool-down", 0, "--output", "md"]
    table = toy("-m", "edgeqkv.cli", "bench", *bundles, *options)
    assert "Toy Runtime 1.0" in table
    assert "Q-MQA" in table
