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


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--ids", "1,300"], "token id 300 is out of range: this model knows 0 to 299"),
        (["--ids", "1,two"], "--ids takes whole numbers from 0, found 'two'"),
        (["--ids", "1,+2"], "--ids takes whole numbers from 0, found '+2'"),
        (["--ids", "1", "--threads", "100000"], "threads must be 0 (the runtime's choice) to 256, found 100000"),
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


def test_a_bundle_that_cannot_be_right(tiny_model, tmp_path):
    # tests/runtimes/native/test_bundles.py has what the library refuses.
    edgeqkv.export(tiny_model("Q-MQA"), tmp_path / "bundle")
    (tmp_path / "bundle/edgeqkv.json").write_text('{"format": 9}')
    done = run(tmp_path / "bundle", "--ids", "1")
    assert (done.returncode, done.stdout) == (2, "")
    assert "edgeqkv.json: expected format 3 or 4, found 9" in done.stderr


def test_a_depth_is_made_of_rows_that_are_written(tiny_model, tmp_path):
    # A page that was never written is the kernel's one page of zeros: it takes no memory and comes from the first cache.
    edgeqkv.export(tiny_model("QKV", n_positions=65536), tmp_path / "bundle")
    near, far = (json.loads(run(tmp_path / "bundle", "--ids", "1", "--tokens", 1, "--depth", d).stdout) for d in (0, 65000))
    assert far["memory"]["rss"] - near["memory"]["rss"] > 0.9 * far["cache_bytes"] > 2**25


def test_an_end_token_ends_the_text(tiny_model, tmp_path):
    edgeqkv.export(tiny_model("Q-MQA"), tmp_path / "bundle")
    arguments = tmp_path / "bundle", "--ids", "1,2,3", "--tokens", 12
    free = json.loads(run(*arguments).stdout)["ids"]
    manifest = json.loads((tmp_path / "bundle/edgeqkv.json").read_text())
    manifest["text"]["end_tokens"] = [free[3]]
    (tmp_path / "bundle/edgeqkv.json").write_text(json.dumps(manifest))
    assert json.loads(run(*arguments).stdout)["ids"] == free[: free.index(free[3])]


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


def test_the_worker_refuses_what_cannot_be_and_goes_on(tiny_model, tmp_path):
    bundle = tmp_path / "bundle"
    edgeqkv.export(tiny_model("Q-K=V"), bundle)
    load = {"do": "load", "bundle": str(bundle), "kernel": None, "threads": 1}
    requests = [
        {"do": "greedy", "ids": [1], "tokens": 2},
        load,
        {"do": "decode", "depth": 8, "warm_up": 2, "steps": -1},
        {"do": "decode", "depth": 1, "warm_up": 2, "steps": 1},
        {"do": "prefill", "depth": 46, "tokens": 8},
        {"do": "decode", "depth": 40, "warm_up": 2, "steps": 2},  # nobody has filled it
        {"do": "greedy", "ids": [1], "tokens": 2},
        load | {"bundle": str(tmp_path / "none")},
        {"do": "greedy", "ids": [1], "tokens": 2},
        load | {"threads": 2**32 + 1},
        load | {"threads": 1000},
        [],
    ]
    done = run("--worker", worker_input="".join(json.dumps(request) + "\n" for request in requests))
    assert done.returncode == 0
    early, _, steps, shallow, full, decoded, ids, none, gone, truncated, threads, no_object = map(
        json.loads, done.stdout.splitlines()
    )
    assert early["error"] == gone["error"] == "no bundle is loaded"  # a load that fails leaves none, and not the one before
    assert steps["error"] == "steps is -1, which it cannot be"
    assert "from depth 2 on" in shallow["error"]
    assert "do not fit" in full["error"]
    assert len(decoded["seconds"]) == 2
    assert len(ids["ids"]) == 2
    assert "does not exist" in none["error"]
    assert "threads is 4294967297" in truncated["error"]
    assert "threads must be 0" in threads["error"]
    assert "an object" in no_object["error"]


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
