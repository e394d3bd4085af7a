"""A session on a Core ML package: what it says about itself, what it refuses, and how verify judges it."""

import subprocess
import sys
import warnings
from dataclasses import replace

import numpy as np
import pytest
from conftest import one_sentence
from coreml_models import BLOCKS, variant
from coreml_models import model as random_model
from session_cases import CASES, run_case

import edgeqkv
from edgeqkv.bundle import read_bundle
from edgeqkv.cache import cache_layout
from edgeqkv.model_folder import read_model, write_model
from edgeqkv.runtimes.coreml.package import PACKAGE, SPEC_FILE, WEIGHT_FILE, require_coremltools

ct = require_coremltools()
quiet = pytest.mark.filterwarnings("ignore:Core ML needs macOS")


@pytest.fixture
def model(tmp_path):
    def write(name="Q-GQA-2"):
        folder = tmp_path / f"model-{name}"
        if not folder.exists():
            write_model(folder, random_model(variant(name)), "# small\n")
        return folder

    return write


@pytest.fixture
def bundle(model, tmp_path):
    edgeqkv.export(model(), tmp_path / "bundle", targets=["coreml"], prefill_chunk=8)
    return tmp_path / "bundle"


def test_it_says_once_that_this_is_not_core_ml(cli, bundle):
    with pytest.warns(RuntimeWarning, match="Core ML needs macOS 15, so this runs the package in numpy") as caught:
        edgeqkv.open(bundle)
    assert len(caught) == 1
    assert one_sentence_of_note(cli("generate", bundle, "--ids", "1,2,3", "--tokens", 3).err).startswith(
        "edgeqkv: Core ML needs"
    )


def one_sentence_of_note(text):
    (line,) = text.strip().splitlines()
    return line


@quiet
@pytest.mark.parametrize("name", ["QKV", "Q-K=V", "Q-MQA", "Q=K-V"])
def test_real_state_bytes_are_the_analytic_ones(name, model, tmp_path):
    edgeqkv.export(model(name), tmp_path / "bundle", targets=["coreml"], capacity=32)
    session = edgeqkv.open(tmp_path / "bundle", runtime="coreml", kernel="stock")
    config = session.manifest.model.config
    assert session.cache_bytes == session.artifact.cache.bytes == cache_layout(config, 32, "fp16").bytes


@quiet
def test_a_call_writes_its_rows_of_the_same_buffers_and_nothing_else(bundle):
    session = edgeqkv.open(bundle)
    states = session._engine._states
    buffers = dict(states)
    for ids, rows in (([1] * 8, range(8)), ([2], [8]), ([3] * 10, range(9, 19))):
        before = {name: array.copy() for name, array in states.items()}
        session.prefill(ids)
        for name, array in states.items():
            assert array is buffers[name]
            assert array.dtype == np.float16
            changed = np.flatnonzero((array != before[name]).any(axis=(0, 1, 3)))
            assert changed.tolist() == list(rows), name


@quiet
def test_reset_and_two_sessions_at_once(bundle):
    one, two = edgeqkv.open(bundle), edgeqkv.open(bundle)
    expected = [one.prefill(list(range(11))), one.step(5)]
    two.prefill([7] * 20)
    one.reset()
    np.testing.assert_array_equal(one.prefill(list(range(11))), expected[0])
    two.step(9)
    np.testing.assert_array_equal(one.step(5), expected[1])


@pytest.fixture(scope="module")
def latent_bundle(tmp_path_factory):
    folder = tmp_path_factory.mktemp("latent")
    write_model(folder / "model", random_model(BLOCKS["MLA"]), "# small\n")
    edgeqkv.export(folder / "model", folder / "bundle", targets=["coreml"], prefill_chunk=8)
    return folder / "bundle"


@quiet
@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
def test_the_rules_of_sessions(case, latent_bundle, tmp_path):
    """docs/sessions.md, over states; saved rows are fp16 and come back bit for bit."""
    run_case(case, lambda: edgeqkv.open(latent_bundle), 8, 300, tmp_path)


def test_threads_and_bench_are_refused(cli, bundle):
    outcome = cli("generate", bundle, "--ids", "1", "--threads", "2")
    assert outcome.code == 2
    assert "Core ML chooses its threads" in one_sentence(outcome)
    outcome = cli("bench", bundle, "--depths", "4", "--rounds", "1", "--steps", "1")
    assert outcome.code == 2
    assert "bench does not measure Core ML" in one_sentence(outcome)


@pytest.mark.parametrize("command", ["export", "generate", "verify"])
def test_without_coremltools(cli, bundle, model, tmp_path, monkeypatch, command):
    monkeypatch.setitem(sys.modules, "coremltools", None)
    arguments = {
        "export": [model(), "--target", "coreml", "--out", tmp_path / "out"],
        "generate": [bundle, "--ids", "1"],
        "verify": [bundle, "--against", model()],
    }[command]
    outcome = cli(command, *arguments)
    assert outcome.code == 3
    assert 'pip install "edgeqkv[coreml]"' in one_sentence(outcome)
    assert not (tmp_path / "out").exists()


@quiet
@pytest.mark.parametrize(
    ("file", "change", "reason"),
    [
        (SPEC_FILE, lambda data: b"\xff" * 40, "is not a Core ML package that can be read"),
        (SPEC_FILE, lambda data: None, "is not a Core ML package that can be read"),
        (WEIGHT_FILE, lambda data: data[: len(data) // 2], "the weight file holds no"),
        (WEIGHT_FILE, lambda data: bytes(len(data)), "the weight file holds no"),
        (WEIGHT_FILE, lambda data: b"", "is not a Core ML package that can be read"),
    ],
)
def test_a_damaged_package(bundle, file, change, reason):
    path = bundle / PACKAGE / file
    data = change(path.read_bytes())
    path.unlink()
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(edgeqkv.EdgeQKVError, match=reason):
        edgeqkv.open(bundle, check=False)
    with pytest.raises(edgeqkv.EdgeQKVError, match="is missing|is not the file that was exported"):
        edgeqkv.open(bundle)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            lambda entry: entry.states.update(other=entry.states.pop("cache_0_k")),
            "does not have the functions prefill and decode",
        ),
        (lambda entry: entry.states.popitem(), "does not keep every cache tensor in a state"),
        (lambda entry: entry.aliases.update(a="cache.0.k"), "does not keep every cache tensor in a state"),
        (lambda entry: entry.states.clear(), "does not take the cache tensors"),
    ],
)
def test_a_manifest_whose_states_are_not_the_cache(bundle, change, reason):
    from edgeqkv.bundle import write_manifest

    manifest = read_bundle(bundle)
    change(manifest.artifacts[0].entry_points[1])
    write_manifest(bundle, manifest)
    with pytest.raises(edgeqkv.EdgeQKVError, match=reason):
        read_bundle(bundle)


def test_verify_asks_both_executors_and_says_what_that_proves(cli, bundle, model):
    outcome = cli("verify", bundle, "--against", model(), "--tokens", 60)
    assert outcome.code == 0
    assert "| coreml (interpreter)     |  stock |     60 |" in outcome.out
    assert "| coreml (value_inference) |  stock |     17 |" in outcome.out
    assert "Proved: the graph, the stored weights, what the states hold. Not proved: that a device loads it" in outcome.out
    records = read_bundle(bundle).parity
    assert [(r.executor, r.greedy_tokens, r.passed) for r in records] == [
        ("interpreter", 64, True),
        ("value_inference", 0, True),
    ]
    assert all(record.mean_kl > 0 for record in records)


@quiet
def test_one_wrong_weight_fails_with_both(bundle, model, tmp_path):
    read = read_model(model())
    changed = {name: array.copy() for name, array in read.weights.items()}
    changed["h.1.attn.k.bias"][5] += 4.0
    write_model(tmp_path / "other", replace(read, weights=changed), "# other\n")
    results = edgeqkv.verify(bundle, tmp_path / "other", tokens=60)
    assert [result.record.passed for result in results] == [False, False]


class AppleModel:
    """Stands for coremltools' MLModel on macOS: computes with the interpreter, and takes what Core ML takes, nothing else."""

    def __init__(self, package, function_name):
        from pathlib import Path

        from edgeqkv.runtimes.coreml.interpreter import Interpreter

        self.function, self.interpreter = function_name, Interpreter(Path(package))

    def make_state(self):
        return self.interpreter.new_states(self.function)

    def predict(self, inputs, state):
        expected = {
            name: (np.dtype(dtype), shape) for name, (dtype, shape) in self.interpreter.functions[self.function].inputs.items()
        }
        assert {name: (array.dtype, array.shape) for name, array in inputs.items()} == expected
        return self.interpreter.run(self.function, inputs, state)


def test_on_macos_both_functions_share_one_state(bundle, monkeypatch):
    """The wiring alone: there is no Core ML here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = edgeqkv.open(bundle).prefill(list(range(19)))
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(ct.models, "MLModel", AppleModel)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        session = edgeqkv.open(bundle)
    np.testing.assert_array_equal(session.prefill(list(range(19))), expected)


def test_on_macos_a_package_that_does_not_load(bundle, monkeypatch):
    def refuse(package, function_name):
        raise RuntimeError("Error compiling model")

    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(ct.models, "MLModel", refuse)
    with pytest.raises(edgeqkv.EdgeQKVError, match=r"Core ML cannot load .*model\.mlpackage: Error compiling model"):
        edgeqkv.open(bundle)


def test_the_import_logs_nothing():
    script = "from edgeqkv.runtimes.coreml.package import require_coremltools; require_coremltools()"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout + run.stderr == ""
