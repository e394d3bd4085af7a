"""Bench's rule on recorded noise of a virtual machine (``noise/*.json`` say of which, and beside what)."""

import importlib.util
from pathlib import Path

import pytest

HERE = Path(__file__).parent
NOISE = sorted((HERE / "noise").glob("*.json"))
RUNS = 150


@pytest.fixture(scope="module")
def bench_noise():
    spec = importlib.util.spec_from_file_location("bench_noise", HERE.parents[1] / "experiments" / "bench_noise.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", NOISE, ids=lambda path: path.stem)
def test_two_identical_bundles_are_not_called_different(bench_noise, path):
    assert bench_noise.simulated(bench_noise.read_noise(path), 1.0, RUNS, seed=0).anywhere <= 0.01


@pytest.mark.parametrize("path", [path for path in NOISE if "crowded" not in path.stem], ids=lambda path: path.stem)
def test_a_tenth_is_found(bench_noise, path):
    assert bench_noise.simulated(bench_noise.read_noise(path), 1.1, RUNS, seed=1).said >= 0.95


def test_beside_three_other_programs_nothing_is_said(bench_noise):
    """Every round has to wait for a processor, and the scheduler prefers one process to its twin."""
    noise = bench_noise.read_noise(HERE / "noise" / "crowded-300m.json")
    assert bench_noise.simulated(noise, 1.1, RUNS, seed=1).said == 0
