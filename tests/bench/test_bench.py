"""The harness on tiny bundles: what it records is true; how fast they are is nobody's business here."""

import csv
import hashlib
import io
import json
import signal
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import msgspec
import pytest
from conftest import one_sentence
from msgspec.structs import replace
from records import PLAN

import edgeqkv
from edgeqkv.bench.baseline import Bundle
from edgeqkv.bench.device import Device
from edgeqkv.bench.matrix import Matrix, cells_of
from edgeqkv.bench.memory import Memory
from edgeqkv.bench.plan import default_depths
from edgeqkv.bench.program import RUNNER
from edgeqkv.bench.record import Record, bandwidth_share
from edgeqkv.bench.results import read_results
from edgeqkv.bench.running import RunningCell
from edgeqkv.bench.summary import written
from edgeqkv.bench.worker_process import WorkerProcess
from edgeqkv.bundle import read_bundle
from edgeqkv.errors import EdgeQKVError
from edgeqkv.native import native_program

QUICK = ("--depths", "8", "--rounds", 1, "--steps", 2, "--threads", 1, "--cool-down", 0)


@pytest.fixture
def bundles(tiny_model, tmp_path):
    for variant in ("QKV", "Q-MQA"):
        edgeqkv.export(tiny_model(variant), tmp_path / variant)
    return [tmp_path / "QKV", tmp_path / "Q-MQA"]


def test_records_hold_what_was_asked_for(cli, bundles, tmp_path):
    outcome = cli("bench", *bundles, "--depths", "8,32", "--rounds", 2, "--steps", 3, "--threads", 1, "--cool-down", 0,
                  "--results", tmp_path / "r.jsonl", "--json")  # fmt: skip
    assert outcome.code == 0, outcome.err
    records = json.loads(outcome.out)
    assert records == [json.loads(line) for line in (tmp_path / "r.jsonl").read_text().splitlines()]
    for record, bundle in zip(records, bundles, strict=True):
        timings, memory = record["timings"], record["memory"]
        assert memory["cache_bytes"] == memory["cache_bytes_analytic"] == edgeqkv.open(bundle).cache_bytes
        assert [(t["depth"], len(t["seconds"]) % 6) for t in timings["decode"]] == [(8, 0), (32, 0)]
        assert all(seconds > 0 for t in timings["decode"] for seconds in t["seconds"])
        assert len(timings["first_token"]["seconds"]) == 2
        assert [(t["depth"], t["tokens"], len(t["seconds"])) for t in timings["prefill"]] == [(0, 8, 2), (0, 32, 2)]
        assert list(memory["phases"]) == ["start", "loaded", "prefilled", "depth 8", "depth 32", "end"]
        assert sum(memory["split"].values()) == max(m["peak_rss"] for m in memory["phases"].values())
        assert (record["plan"]["rounds"], record["rounds_done"], len(record["vitals"])) == (2, 2, 3)
        assert len(record["greedy_ids"]) == 16
        assert memory["phases"]["end"]["peak_rss"] >= memory["phases"]["loaded"]["rss"] > 0
        assert (record["plan"]["threads"], record["plan"]["filled"]) == (1, "prefill")
        kernel = "stock" if record["subject"]["variant"] == "QKV" else "fused"  # by default, what decodes faster
        assert (record["subject"]["runtime"], record["subject"]["kernel"]) == ("onnx", kernel)
        assert record["environment"]["emulated"] is False
    assert records[0]["memory"]["cache_bytes"] == 8 * records[1]["memory"]["cache_bytes"]


@pytest.mark.parametrize("program", ["edgeqkv-run", "python"])
def test_a_record_holds_what_the_machine_can_do(cli, bundles, program):
    if program == "edgeqkv-run" and native_program(RUNNER) is None:
        pytest.skip("this installation has no native runner")
    runner = ["--runner", "python"] if program == "python" else []
    outcome = cli("bench", *bundles, *QUICK, "--rounds", 2, "--sustain", "1s", *runner, "--json")
    assert outcome.code == 0, outcome.err
    for record in msgspec.json.decode(outcome.out, type=list[Record]):
        assert record.bandwidth.source == {"edgeqkv-run": "edgeqkv-run", "python": "numpy"}[program]
        assert len(record.bandwidth.one_thread) == len(record.bandwidth.threads) == 2
        assert record.bandwidth.best > 1e8, "bytes a second; a machine that reads less does not run this"
        assert bandwidth_share(record, record.timings.decode[0]) > 0
        weights = record.memory.weights_bytes_a_token
        assert 0 < weights < record.memory.weights_bytes
        assert record.bytes_per_token(8) == weights + 8 * record.memory.cache_bytes_per_position
        assert record.sustained[-1].seconds >= 1
        assert [window.depth for window in record.sustained] == [8] * len(record.sustained)
        assert (record.ended, record.plan.precision, record.plan.sustain_s) == ("rounds", None, 1)
        assert (record.plan.visit_s, record.plan.rounds_a_start, len(record.timings.load_s)) == (0.05, 1, 2)


def test_a_visit_times_fifty_milliseconds(cli, bundles):
    """By its fastest token: as many samples in each round, and not one series more."""
    record = json.loads(cli("bench", bundles[0], *QUICK, "--rounds", 2, "--json").out)[0]
    seconds = record["timings"]["decode"][0]["seconds"]
    assert len(seconds) % (2 * 2) == 0
    assert min(sum(seconds[: len(seconds) // 2]), sum(seconds[len(seconds) // 2 :])) > 0.04


def test_a_run_ends_when_it_is_precise_or_its_time_is_up(cli, bundles, monkeypatch):
    common = ("bench", *bundles, "--depths", "8", "--threads", 1, "--steps", 2, "--json")
    widths = iter((0.5, 0.5, 0.5, 0.5, 0.5, 0.02))
    with monkeypatch.context() as patched:
        patched.setattr("edgeqkv.bench.stopping.widest_interval", lambda run: next(widths))
        outcome = cli(*common)
    assert outcome.code == 0, outcome.err
    records = json.loads(outcome.out)
    assert [(r["ended"], r["plan"]["precision"], r["plan"]["time_s"]) for r in records] == [("precision", 0.03, 300.0)] * 2
    assert [r["rounds_done"] for r in records] == [6, 6]
    assert len(records[0]["timings"]["load_s"]) == 2, "a start for every four rounds"
    assert len(records[0]["timings"]["first_token"]["seconds"]) == 5
    records = json.loads(cli(*common, "--precision", "0.0001%", "--time", "1s").out)
    assert [r["ended"] for r in records] == ["time"] * 2


def test_every_second_start_and_round_goes_backwards(cli, bundles, monkeypatch):
    seen = []
    monkeypatch.setattr(RunningCell, "load", recording(RunningCell.load, seen))
    monkeypatch.setattr(RunningCell, "at_depth", recording(RunningCell.at_depth, seen))
    monkeypatch.setattr("edgeqkv.bench.cli.rounds_a_start", lambda rounds: 2)
    assert cli("bench", *bundles, "--depths", "8", "--steps", 2, "--rounds", 6).code == 0
    order = "".join("AB"[number] for what, number in seen if what == "at_depth")
    assert order == "ABBABAABABBA", "two rounds a start: AB BA, then BA AB"
    starts = [number for what, number in seen if what == "load"]
    assert "".join("AB"[number] for number in starts) == order, "a bundle that is loaded stays so"


def recording(method, seen):
    def call(self, *arguments):
        seen.append((method.__name__, self.cell.number))
        return method(self, *arguments)

    return call


def test_the_table_compares_with_the_first_bundle(cli, bundles):
    outcome = cli("bench", *bundles, "--depths", "8", "--rounds", 1, "--steps", 2)
    assert "| relative to QKV, int8 / fp32, onnx stock | cache |" in outcome.out
    assert "| Q-MQA, int8 / fp32, onnx fused           | 0.125 |" in outcome.out
    first = outcome.out.split("\n\n")[1]
    for column in ("cache MiB", "peak RSS MiB", "private MiB", "ms/token at 8", "tokens/s"):
        assert column in first


def test_the_table_compares_a_model_with_itself_at_the_first_depth(cli, bundles):
    outcome = cli("bench", *bundles, "--depths", "8,32", "--rounds", 1, "--steps", 2, "--prompt", 4)
    assert "| its own 32 / 8 |" in outcome.out
    assert "prefill tokens/s to 8 | prefill tokens/s to 32" in outcome.out
    assert "first token ms, 4 prompt tokens" in outcome.out


def test_a_kernel_that_only_one_of_the_runtimes_has(bundles):
    manifest = read_bundle(bundles[0])
    fused = next(artifact for artifact in manifest.artifacts if artifact.kernel == "fused")
    program = replace(fused, runtime="executorch")
    both = Bundle(bundles[0], replace(manifest, artifacts=(*manifest.artifacts, program)), None)
    found = cells_of(Matrix(PLAN, ("onnx", "executorch"), ("stock", "fused")), [both])
    assert [(cell.runtime, cell.kernel) for cell in found] == [("onnx", "stock"), ("onnx", "fused"), ("executorch", "fused")]
    with pytest.raises(EdgeQKVError, match="holds nothing for the runtime 'executorch' with the kernel 'stock'"):
        cells_of(Matrix(PLAN, ("onnx", "executorch"), ("stock",)), [both])


def test_a_runtime_that_is_not_measured(bundles):
    manifest = read_bundle(bundles[0])
    package = replace(manifest.artifacts[0], runtime="coreml")
    bundle = Bundle(bundles[0], replace(manifest, artifacts=(*manifest.artifacts, package)), None)
    assert "coreml" not in {artifact.runtime for cell in cells_of(Matrix(PLAN), [bundle]) for artifact in cell.artifacts}
    with pytest.raises(EdgeQKVError, match="bench does not measure Core ML"):
        cells_of(Matrix(PLAN, ("onnx", "coreml")), [bundle])


def test_both_kernels_of_a_bundle_in_one_run(cli, bundles):
    outcome = cli("bench", bundles[0], "--kernels", "stock,fused", "--depths", "8", "--rounds", 1, "--steps", 2, "--json")
    assert [record["subject"]["kernel"] for record in json.loads(outcome.out)] == ["stock", "fused"]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--kernels", "stock,quick"], "--kernels takes fused and stock separated by commas, found 'stock,quick'"),
        (["--kernels", "stock,"], "--kernels takes fused and stock separated by commas, found 'stock,'"),
        (["--results", "/nonexistent/r.jsonl"], "cannot write /nonexistent/r.jsonl: the folder /nonexistent does not exist"),
        (["--device", "telnet://board"], "unknown device 'telnet://board'; use local, ssh://user@host"),
        (["--device", "ssh://-oProxyCommand=reboot"], "is not a device; write ssh://user@host"),
        (["--device", "adb://-H"], "is not a device; write adb://SERIAL"),
        (["--resume"], "--resume needs --results"),
        (["--output", "xml"], "--output 'xml' is not one of md, csv, json, jsonl"),
        (["--folder", "here"], "--folder 'here' is not an absolute path"),
        (["--runner", "/nonexistent"], "--runner /nonexistent does not exist"),
        (["--cool-down", "-1"], "the cool-down is between 0 and 3600 seconds"),
        (["--depths", "46"], "depth 46 and 8 measured steps do not fit a cache of 48 positions"),
        (["--depths", "1"], "depth 1 is too small"),
        (["--depths", "1,two"], "--depths takes whole numbers"),
        (["--rounds", "3", "--time", "1m"], "--rounds says how often to measure; leave it out for --precision and --time"),
        (["--precision", "much"], "--precision takes a share like 3% or 0.03, found 'much'"),
        (["--precision", "0"], "the precision is above 0 % and at most 100 %, found 0"),
        (["--time", "soon"], "--time takes a time like 90s, 5m or 1h, found 'soon'"),
        (["--sustain", "99h"], "a time is above 0 and at most 24 hours, found 356400 s"),
        (["--rounds", "0"], "rounds, steps and prompt must be at least 1"),
        (["--threads", "0"], "threads must be at least 1"),
        (["--results", "/proc/version"], "cannot write /proc/version"),
    ],
)
def test_bad_input(cli, bundles, arguments, reason):
    outcome = cli("bench", bundles[0], *arguments)
    assert outcome.code == 2
    assert reason in one_sentence(outcome)


def test_a_folder_of_the_same_name_does_not_stand_in_for_the_package(cli, bundles, tmp_path, monkeypatch):
    (tmp_path / "edgeqkv").mkdir()
    (tmp_path / "edgeqkv/__init__.py").write_text("raise ImportError")
    monkeypatch.chdir(tmp_path)
    assert cli("bench", bundles[0], *QUICK, "--runner", "python").code == 0


def test_what_is_passed_over_is_said_once(cli, bundles, tmp_path):
    python = tmp_path / "python without the operator"
    python.write_text(
        f"""#!{sys.executable} -P
from edgeqkv.errors import MissingPackage
from edgeqkv.targets import targets

def missing(artifact):
    if artifact.operators:
        raise MissingPackage("there is no operator")

targets()["onnx"].missing = missing
from edgeqkv.bench.worker import main
main()
"""
    )
    python.chmod(0o755)
    outcome = cli("bench", *bundles, *QUICK, "--runner", "python", "--python", python, "--json")
    assert [record["subject"]["kernel"] for record in json.loads(outcome.out)] == ["stock", "stock"]
    assert outcome.err.count("running the stock graph, which is slower") == 1


def test_a_worker_that_dies_is_reported():
    with closing(WorkerProcess(Device("local", ("sh", "-c"), None), "cat >/dev/null & exec sleep 60", "q-mqa")) as worker:
        worker.kill()
        with pytest.raises(EdgeQKVError, match="q-mqa ended during 'memory': it was killed, probably for want of memory"):
            worker.ask(Memory, "memory")


def test_a_worker_that_says_why_it_dies_is_quoted():
    with (
        closing(WorkerProcess(Device("local", ("sh", "-c"), None), "echo no such library >&2; exit 3", "q-mqa")) as worker,
        pytest.raises(EdgeQKVError, match="q-mqa ended during 'memory': no such library"),
    ):
        worker.ask(Memory, "memory")


def test_default_depths_fit():
    assert default_depths(512, 8) == (120, 248, 504)
    assert default_depths(12, 1) == (2, 5, 11)


def test_rows_of_zeros_reach_a_depth(cli, bundles, tmp_path):
    outcome = cli("bench", *bundles, "--depths", "8,32", *QUICK[2:], "--fill", "zeros", "--runner", "python", "--json")
    assert outcome.code == 0, outcome.err
    for record in json.loads(outcome.out):
        assert record["plan"]["filled"] == "zeros"
        assert [t["depth"] for t in record["timings"]["decode"]] == [8, 32]


def test_the_matrix_is_measured(cli, bundles, tmp_path):
    outcome = cli("bench", *bundles, *QUICK, "--depths", "4-16*2", "--threads", "1,2", "--kernels", "stock,fused", "--json")
    records = json.loads(outcome.out)
    assert {(r["subject"]["variant"], r["subject"]["kernel"], r["plan"]["threads"]) for r in records} == {
        (variant, kernel, threads) for variant in ("QKV", "Q-MQA") for kernel in ("stock", "fused") for threads in (1, 2)
    }
    assert len({r["run"] for r in records}) == 2, "one interleaved run for each number of threads"
    assert [t["depth"] for t in records[0]["timings"]["decode"]] == [4, 8, 16]


def test_every_format_says_the_same(cli, bundles, tmp_path):
    assert cli("bench", bundles[0], *QUICK, "--results", tmp_path / "r.jsonl").code == 0
    records, _ = read_results([tmp_path / "r.jsonl"])
    rows = list(csv.DictReader(io.StringIO(written(records, "csv"))))
    assert [float(row["decode_p50_s"]) for row in rows] == [t.p50_s for t in records[0].timings.decode]
    assert json.loads(written(records, "json")) == [json.loads(line) for line in written(records, "jsonl").splitlines()]
    assert f"{records[0].timings.decode[-1].median * 1e3:.2f}" in written(records, "md")


def test_both_programs_continue_with_the_same_ids(cli, bundles):
    if native_program(RUNNER) is None:
        pytest.skip("this installation has no native runner, so there is one program only")
    records = [json.loads(cli("bench", bundles[1], *QUICK, "--no-baseline", "--json", *more).out)[0] for more in
               ([], ["--runner", "python"])]  # fmt: skip
    assert [r["program"]["name"] for r in records] == ["edgeqkv-run", "python"]
    assert records[0]["greedy_ids"] == records[1]["greedy_ids"]
    assert records[0]["memory"]["cache_bytes"] == records[1]["memory"]["cache_bytes"]
    assert records[1]["program"]["packages"]["onnxruntime"] == records[1]["subject"]["runtime_version"]


def test_an_interrupted_run_is_kept_and_resumed(cli, bundles, tmp_path, monkeypatch):
    path, before = tmp_path / "r.jsonl", RunningCell.at_depth
    seen = []

    def interrupted(self, depth):
        seen.append(depth)
        if len(seen) == 6:  # in the second round of two bundles at two depths, which begins with the second bundle
            raise EdgeQKVError("the connection is gone")
        before(self, depth)

    common = ("bench", *bundles, "--depths", "8,16", "--rounds", 3, "--steps", 2, "--cool-down", 0, "--results", path)
    monkeypatch.setattr(RunningCell, "at_depth", interrupted)
    assert cli(*common).code == 1
    first, failures = read_results([path])
    assert [(r.subject.variant, r.rounds_done) for r in first] == [("QKV", 1), ("Q-MQA", 3)]
    assert [f.message for f in failures] == ["the connection is gone"]
    monkeypatch.setattr(RunningCell, "at_depth", before)
    # Rounds that one bundle has missed cannot be made up for: the whole run is measured again.
    assert cli(*common, "--resume").code == 0
    last = read_results([path])[0][2:]
    assert [(r.subject.variant, r.rounds_done) for r in last] == [("QKV", 3), ("Q-MQA", 3)]
    lines = path.read_text()
    assert cli(*common, "--resume").code == 0
    assert path.read_text() == lines, "what is complete is not measured again"


def test_ctrl_c_keeps_whole_rounds_and_resume_goes_on(cli, bundles, tmp_path):
    path = tmp_path / "r.jsonl"
    common = ("bench", *map(str, bundles), "--depths", "8", "--rounds", "100", "--steps", "2", "--cool-down", "0.3")
    common += ("--results", str(path))
    process = subprocess.Popen(
        [sys.executable, "-m", "edgeqkv.cli", *common],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a job in the background would ignore it
    )
    deadline = time.monotonic() + 60
    while not children_of(process.pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(3)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert (out, f"what was measured is in {path}; the same command with --resume goes on" in err.decode()) == (b"", True)
    first, failures = read_results([path])
    assert failures == []
    assert {r.rounds_done for r in first} == {first[0].rounds_done}
    assert 0 < first[0].rounds_done < 100
    more = [str(first[0].rounds_done + 2) if word == "100" else word for word in common]
    assert cli(*more, "--resume").code == 0
    last, _ = read_results([path])
    assert [(r.run, r.cell) for r in last] == [(r.run, r.cell) for r in first]
    for early, late in zip(first, last, strict=True):
        assert late.rounds_done == early.rounds_done + 2
        assert late.timings.decode[0].seconds[: len(early.timings.decode[0].seconds)] == early.timings.decode[0].seconds
        assert (
            len(late.timings.decode[0].seconds) / late.rounds_done == len(early.timings.decode[0].seconds) / early.rounds_done
        )


def children_of(pid):
    """Started by any of its threads."""
    return "".join(path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/children"))


def test_a_device_without_the_memory_loads_one_bundle_at_a_time(cli, bundles, monkeypatch):
    monkeypatch.setattr("edgeqkv.bench.measure.fits", lambda bench, cells: False)
    records = json.loads(cli("bench", *bundles, *QUICK, "--rounds", 2, "--json").out)
    assert [(r["interleaving"], len(r["timings"]["load_s"]), r["rounds_done"]) for r in records] == [("reloaded", 2, 2)] * 2


def test_one_bundle_that_fails_does_not_stop_the_other(cli, bundles, tmp_path):
    (bundles[0] / "onnx" / "model.onnx").write_bytes(b"broken")
    manifest = (bundles[0] / "edgeqkv.json").read_text()
    old = json.loads(manifest)["artifacts"][0]["files"]["onnx/model.onnx"]
    new = hashlib.sha256(b"broken").hexdigest()
    (bundles[0] / "edgeqkv.json").write_text(manifest.replace(old, new))
    outcome = cli("bench", *bundles, *QUICK, "--results", tmp_path / "r.jsonl", "--json")
    assert outcome.code == 1
    assert [r["subject"]["variant"] for r in json.loads(outcome.out)] == ["Q-MQA"]
    _, failures = read_results([tmp_path / "r.jsonl"])
    assert [f.bundle for f in failures] == ["QKV"]
