"""edgeqkv-run against the Python session: the same ids and bytes, and one sentence for what it cannot do."""

import json
import os
import shutil
import subprocess
from importlib.metadata import distribution
from pathlib import Path

import onnxruntime
import pytest

import edgeqkv

LIBRARY = next(Path(onnxruntime.__file__).parent.glob("capi/libonnxruntime.so*"))


RUNNER = distribution("edgeqkv").locate_file("edgeqkv/runtimes/run/edgeqkv-run")
AARCH64 = Path(__file__).parents[3] / "build/runner-aarch64"
PROMPT = [12, 271, 261, 563, 916]


def run(*arguments, library=LIBRARY, worker_input=None):
    command = [RUNNER, "--library", library, *map(str, arguments)]
    return subprocess.run(command, input=worker_input, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("kernel", ["fused", "stock"])
@pytest.mark.parametrize("cache", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("variant", ["QKV", "Q-GQA-2", "Q-MQA"])
def test_the_ids_and_bytes_of_the_session(variant, cache, kernel, tiny_model, tmp_path):
    edgeqkv.export(tiny_model(variant), tmp_path / "bundle", cache=cache, prefill_chunk=4)
    prompt = [5, 1, 7, 2, 9, 200]  # a whole chunk and a part of one
    done = run(tmp_path / "bundle", "--ids", ",".join(map(str, prompt)), "--tokens", 12, "--kernel", kernel, "--threads", 1)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    session = edgeqkv.open(tmp_path / "bundle", kernel=kernel, threads=1)
    assert said["ids"] == list(session.generate(prompt, limit=12))
    assert said["cache_bytes"] == session.cache_bytes == session.artifact.cache.bytes
    assert (said["variant"], said["kernel"], said["runtime_version"]) == (variant, kernel, session.runtime_version)
    assert len(said["step_s"]) == 11
    assert said["memory"]["rss"] > said["cache_bytes"]
    assert said["memory"]["peak_rss"] > 0.99 * said["memory"]["rss"]  # two accounts of the kernel's, a page or two apart


def edit(bundle, change):
    data = json.loads((bundle / "edgeqkv.json").read_text())
    change(data)
    (bundle / "edgeqkv.json").write_text(json.dumps(data))


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--ids", "1,300"], "token id 300 is out of range: this model knows 0 to 299"),
        (["--ids", "1,two"], "--ids takes whole numbers from 0, found 'two'"),
        (["--ids", ",".join(["1"] * 49)], "49 more tokens do not fit: the cache holds 48 positions and 0 are filled"),
        (["--ids", "1", "--depth", "48"], "1 more tokens do not fit: the cache holds 48 positions and 48 are filled"),
        (["--ids", "1", "--kernel", "quick"], "holds nothing for the runtime 'any' with the kernel 'quick'"),
        (["--ids", "1", "--speed", "9"], "unknown option --speed"),
        (["--ids"], "--ids needs a value"),
        ([], "name a bundle and its prompt with --ids"),
    ],
)
def test_what_it_refuses(arguments, reason, tiny_model, tmp_path):
    edgeqkv.export(tiny_model("Q-MQA"), tmp_path / "bundle")
    done = run(tmp_path / "bundle", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("edgeqkv-run: ")
    assert reason in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda d: d.update(format=9), "expected format 3, found 9"),
        (lambda d: d.pop("capacity"), "the field 'capacity' is missing"),
        (lambda d: d["artifacts"][0].update(files={"../elsewhere/model.onnx": "0"}), "names a file outside the bundle"),
        (lambda d: d["artifacts"][0].update(files={"/etc/passwd": "0"}), "names a file outside the bundle"),
        (lambda d: d["artifacts"][0].update(prefill_chunk=0), "no prefill_chunk"),
        (lambda d: d["artifacts"][0]["entry_points"][0]["aliases"].update({"cache.0.k.out": "nope"}), "which is no input"),
    ],
)
def test_a_manifest_that_cannot_be_right(change, reason, tiny_model, tmp_path):
    edgeqkv.export(tiny_model("Q-MQA"), tmp_path / "bundle")
    edit(tmp_path / "bundle", change)
    done = run(tmp_path / "bundle", "--ids", "1")
    assert (done.returncode, done.stdout) == (2, "")
    assert reason in done.stderr


@pytest.mark.parametrize("text", ["", "{", '{"format": 3,}', '{"a": "\\uzzzz"}', "[" * 100, '{"format": 0x2}', "{}\0"])
def test_a_manifest_that_is_no_json(text, tiny_model, tmp_path):
    (tmp_path / "edgeqkv.json").write_text(text)
    done = run(tmp_path, "--ids", "1")
    assert done.returncode == 2
    assert "edgeqkv.json: " in done.stderr


def test_a_runtime_that_is_not_there(tiny_model, tmp_path):
    edgeqkv.export(tiny_model("Q-MQA"), tmp_path / "bundle")
    done = run(tmp_path / "bundle", "--ids", "1", library=tmp_path / "libonnxruntime.none.so")
    assert done.returncode == 3
    assert "ONNX Runtime cannot be loaded" in done.stderr


def test_the_worker_answers_as_the_one_in_python(tiny_model, tmp_path):
    bundle = tmp_path / "bündle"
    edgeqkv.export(tiny_model("Q-K=V"), bundle)
    requests = [
        {"do": "load", "bundle": str(bundle), "runtime": "onnx", "kernel": "fused", "threads": 1},
        {"do": "first_token", "tokens": 8},
        {"do": "fill", "depth": 32},
        {"do": "prefill", "depth": 16, "tokens": 16},
        {"do": "decode", "depth": 32, "warm_up": 2, "steps": 3},
        {"do": "memory"},
        {"do": "fill", "depth": 10**9},
        {"do": "dance"},
    ]
    done = run("--worker", worker_input="".join(json.dumps(request) + "\n" for request in requests))
    loaded, first, filled, prefilled, decoded, memory, too_deep, unknown = map(json.loads, done.stdout.splitlines())
    assert (loaded["kernel"], loaded["cache_bytes"]) == ("fused", edgeqkv.open(bundle).cache_bytes)
    assert first["seconds"] > 0
    assert filled == {}
    assert prefilled["seconds"] > 0
    assert len(decoded["seconds"]) == 3
    assert memory["peak_rss"] > 0
    assert (too_deep["exit_code"], unknown["exit_code"]) == (2, 2)
    assert "do not fit" in too_deep["error"]


def greedy(bundle, runner, *arguments):
    command = [*runner, bundle, "--ids", ",".join(map(str, PROMPT)), "--tokens", "20", "--threads", "1", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"QEMU_CPU": "neoverse-n1"}, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)


def test_the_ids_of_the_session_on_executorch(executorch_bundle):
    bundle = executorch_bundle("shipped-q-mqa")
    session = edgeqkv.open(bundle)
    said = greedy(bundle, [RUNNER])
    assert said["ids"] == list(session.generate(PROMPT, limit=20))
    assert (said["runtime"], said["cache_bytes"]) == ("executorch", session.cache_bytes)


def test_each_engine_takes_its_own_library(executorch_bundle):
    bundle = executorch_bundle("shipped-q-mqa")
    session = RUNNER.parents[1] / "executorch/libedgeqkv_executorch.so"
    assert greedy(bundle, [RUNNER], "--library", LIBRARY, "--library", session)["runtime"] == "executorch"


def test_the_stock_executorch_program_is_refused(executorch_bundle):
    done = run(executorch_bundle("q_gqa-stock"), "--ids", "1")
    assert (done.returncode, done.stdout) == (3, "")
    assert "needs an operator that this library does not have" in done.stderr
    assert "llama::update_cache.out" in done.stderr


@pytest.mark.skipif(
    not ((AARCH64 / "run/edgeqkv-run").is_file() and shutil.which("qemu-aarch64")),
    reason="needs the runner for arm64 (make runner-aarch64) and Debian's qemu-user",
)
@pytest.mark.parametrize("runtime", ["onnx", "executorch"])
def test_the_aarch64_runner_writes_the_same_ids(executorch_bundle, runtime, tmp_path):
    if runtime == "executorch":
        bundle = executorch_bundle("shipped-q-mqa")
    else:
        bundle = tmp_path / "onnx"
        # fp32: int8 weights round activations as each CPU's own kernels do, and greedy text may then part.
        edgeqkv.export(Path(__file__).parents[3] / "models/q-mqa", bundle, weights="fp32", cache="int8", capacity=64)
    libraries = {"onnx": AARCH64 / "root/libonnxruntime.so", "executorch": AARCH64 / "executorch/libedgeqkv_executorch.so"}
    emulated = ["qemu-aarch64", "-L", AARCH64 / "root", AARCH64 / "run/edgeqkv-run"]
    assert greedy(bundle, emulated, "--library", libraries[runtime])["ids"] == greedy(bundle, [RUNNER])["ids"]
