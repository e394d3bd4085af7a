"""The aarch64 runner under qemu-user as a device: the same ids as here, and neither a time nor a size of memory from it."""

import json
import shutil
from pathlib import Path

import pytest
from adbd import Adbd
from conftest import one_sentence

import edgeqkv

BUILD = Path(__file__).parents[2] / "build" / "runner-aarch64"
RUNNER, ROOT = BUILD / "run" / "edgeqkv-run", BUILD / "root"
pytestmark = pytest.mark.skipif(
    not (RUNNER.is_file() and (ROOT / "libonnxruntime.so").is_file() and shutil.which("qemu-aarch64")),
    reason="needs the runner for arm64 (make runner-aarch64) and Debian's qemu-user",
)


@pytest.fixture
def bundles(tiny_model, tmp_path):
    for variant in ("QKV", "Q-MQA"):
        edgeqkv.export(tiny_model(variant), tmp_path / variant)
    return [tmp_path / "QKV", tmp_path / "Q-MQA"]


@pytest.fixture
def options():
    emulator = f"qemu-aarch64 -cpu neoverse-n1 -L {ROOT}"
    return ["--runner", RUNNER, "--library", ROOT / "libonnxruntime.so", "--emulator", emulator, "--threads", 1, "--depths", 8]


def test_the_same_ids_and_nothing_timed(cli, bundles, options):
    outcome = cli("bench", *bundles, *options, "--kernels", "stock,fused", "--json")
    assert outcome.code == 0, outcome.err
    records = json.loads(outcome.out)
    assert len(records) == 4
    for record in records:
        bundle = bundles[0] if record["subject"]["variant"] == "QKV" else bundles[1]
        session = edgeqkv.open(bundle, kernel=record["subject"]["kernel"])
        assert record["greedy_ids"] == list(session.generate([1, 2, 3], limit=16))
        assert record["memory"]["cache_bytes"] == record["memory"]["cache_bytes_analytic"] == session.cache_bytes
        environment = record["environment"]
        assert (environment["emulated"], environment["machine"], environment["cpu_features"]) == (True, "aarch64", None)
        assert record["timings"] == {"load_s": [], "first_token": None, "prefill": [], "decode": []}
        assert (record["memory"]["phases"], record["memory"]["split"]) == ({}, None)


def test_the_summary_and_the_report_give_no_times(cli, bundles, options, tmp_path):
    outcome = cli("bench", *bundles, *options, "--results", tmp_path / "r.jsonl")
    assert "emulated, so nothing is timed" in outcome.out
    assert "ms" not in outcome.out
    assert cli("report", tmp_path / "r.jsonl", "--out", tmp_path / "r.md").code == 0
    assert "No variant was measured" in (tmp_path / "r.md").read_text()
    assert "ms/token" not in (tmp_path / "r.md").read_text()


@pytest.mark.skipif(shutil.which("adb") is None, reason="needs Debian's adb")
def test_over_adb(cli, bundles, options, tmp_path, adb_server):
    phone = Adbd()
    device = ["--device", f"adb://{phone.serial}", "--folder", tmp_path]
    outcome = cli("bench", bundles[1], "--no-baseline", *options, *device, "--json")
    assert outcome.code == 0, outcome.err
    record = json.loads(outcome.out)[0]
    assert record["greedy_ids"] == list(
        edgeqkv.open(bundles[1], kernel=record["subject"]["kernel"]).generate([1, 2, 3], limit=16)
    )
    assert (tmp_path / "edgeqkv-bench" / "runner-aarch64" / "edgeqkv-run").read_bytes() == RUNNER.read_bytes()
    phone.vanish()


def test_a_runner_for_another_processor_is_refused(cli, bundles):
    outcome = cli("bench", *bundles, "--runner", RUNNER, "--threads", 1, "--depths", 8)
    assert outcome.code == 2
    assert "no --runner is for that; name one more, or python" in one_sentence(outcome)
