"""edgeqkv-run writes the ids that Python writes, answers the bench's requests, and says in a sentence what is wrong."""

import json
import os
import subprocess
from pathlib import Path

import pytest

import edgeqkv
from edgeqkv.bench.device import RUNNER, start_worker
from edgeqkv.native import native_file

PROMPT = [12, 271, 261, 563, 916]
AARCH64 = Path(__file__).parents[3] / "build/aarch64"


def run(*arguments, program=None, **options):
    command = [*(program or [native_file(RUNNER)]), *arguments]
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, **options)


def ids_of(bundle, *arguments, **options):
    outcome = run(bundle, "--ids", ",".join(map(str, PROMPT)), "--tokens", 20, *arguments, **options)
    assert outcome.returncode == 0, outcome.stderr
    assert outcome.stderr == ""
    return json.loads(outcome.stdout)


@pytest.fixture(scope="module")
def onnx_bundle(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "onnx"
    # fp32 weights: ONNX Runtime rounds activations for int8 ones, and on aarch64 not to the same values.
    edgeqkv.export(Path(__file__).parents[3] / "models/q-mqa", folder, weights="fp32", cache="int8", capacity=64)
    return folder


@pytest.mark.parametrize("kernel", ["fused", "stock"])
def test_the_ids_are_those_of_python_on_onnx(onnx_bundle, kernel):
    session = edgeqkv.open(onnx_bundle, kernel=kernel)
    answer = ids_of(onnx_bundle, "--kernel", kernel)
    assert answer["ids"] == list(session.generate(PROMPT, limit=20))
    assert (answer["runtime"], answer["kernel"], answer["cache"]) == ("onnx", kernel, "int8")
    assert answer["cache_bytes"] in (session.cache_bytes, session.cache_bytes - session.artifact.cache.scale_bytes)
    assert len(answer["step_s"]) == 19
    assert answer["memory"]["peak_rss"] > answer["memory"]["private"] > answer["cache_bytes"]


def test_the_ids_are_those_of_python_on_executorch(executorch_bundles):
    session = edgeqkv.open(executorch_bundles / "shipped")
    answer = ids_of(executorch_bundles / "shipped")
    assert answer["ids"] == list(session.generate(PROMPT, limit=20))
    assert (answer["runtime"], answer["cache_bytes"]) == ("executorch", session.cache_bytes)


def test_the_worker_answers_what_the_bench_asks(onnx_bundle):
    with start_worker("local", onnx_bundle, native=True) as worker:
        loaded = worker.ask("load", bundle=str(onnx_bundle), runtime="onnx", kernel="fused", threads=1)
        assert loaded["kernel"] == "fused"
        worker.ask("fill", depth=20)
        assert worker.ask("first_token", tokens=8)["seconds"] > 0
        assert worker.ask("prefill", depth=10, tokens=8)["seconds"] > 0
        assert len(worker.ask("decode", depth=20, steps=3)["seconds"]) == 3
        assert worker.ask("memory")["rss"] > 0
        with pytest.raises(edgeqkv.EdgeQKVError, match="do not fit: the cache holds 64 positions and 60 are filled"):
            worker.ask("prefill", depth=60, tokens=8)


@pytest.mark.parametrize(
    ("arguments", "code", "reason"),
    [
        ([], 2, "name a bundle and its prompt"),
        (["B", "--ids", "1,x"], 2, "--ids takes whole numbers from 0, found 'x'"),
        (["B", "--ids", "-1"], 2, "--ids takes whole numbers from 0, found '-1'"),
        (["B", "--ids", "99999"], 2, "token id 99999 is out of range"),
        (["B", "--ids", "1", "--depth", "64"], 2, "do not fit: the cache holds 64 positions"),
        (["B", "--ids", "1", "--tokens", "0"], 2, "--tokens takes whole numbers from 1"),
        (["B", "--ids", "1", "--runtime", "tflite"], 2, "holds nothing for the runtime 'tflite'"),
        (["B", "--ids", "1", "--speed", "2"], 2, "unknown option --speed"),
        (["B", "--ids", "1", "--library", "/nowhere.so"], 3, "ONNX Runtime cannot be loaded"),
        (["nowhere", "--ids", "1"], 2, "is not a bundle"),
    ],
)
def test_mistakes_are_one_sentence(onnx_bundle, arguments, code, reason):
    outcome = run(*[onnx_bundle if argument == "B" else argument for argument in arguments])
    assert outcome.returncode == code
    assert outcome.stdout == ""
    assert len(outcome.stderr.splitlines()) == 1
    assert reason in outcome.stderr


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"format": 2}', '{"format": 99}', '{"a": "\\u00"}', "[" * 1000])
def test_a_manifest_that_cannot_be_read(tmp_path, text):
    (tmp_path / "edgeqkv.json").write_text(text)
    outcome = run(tmp_path, "--ids", "1")
    assert (outcome.returncode, len(outcome.stderr.splitlines())) == (2, 1)


@pytest.mark.skipif(not (AARCH64 / "ready").exists(), reason="the aarch64 runner is not built: make runner-aarch64")
@pytest.mark.parametrize("runtime", ["onnx", "executorch"])
def test_the_aarch64_runner_writes_the_same_ids(onnx_bundle, executorch_bundles, runtime):
    libraries = {"onnx": AARCH64 / "root/libonnxruntime.so", "executorch": AARCH64 / "executorch/libedgeqkv_executorch.so"}
    bundle = onnx_bundle if runtime == "onnx" else executorch_bundles / "shipped"
    qemu = ["qemu-aarch64", "-L", AARCH64 / "root", AARCH64 / "run/edgeqkv-run"]
    environment = os.environ | {"QEMU_CPU": "neoverse-n1"}
    arm = ids_of(bundle, "--threads", 1, "--library", libraries[runtime], program=qemu, env=environment)
    assert arm["ids"] == ids_of(bundle, "--threads", 1)["ids"]
