"""The harness on tiny bundles: what it records is true; how fast they are is nobody's business here."""

import json

import pytest
from conftest import one_sentence, tiny_config, tiny_weights

import edgeqkv
from edgeqkv.bench.measure import make_plan
from edgeqkv.bench.record import Timing, memory_of_this_process
from edgeqkv.model_folder import write_model


@pytest.fixture
def bundles(tmp_path):
    out = []
    for variant in ("QKV", "Q-MQA"):
        config = tiny_config(variant)
        write_model(tmp_path / "m" / variant, config, tiny_weights(config), "# tiny\n")
        edgeqkv.export(tmp_path / "m" / variant, tmp_path / variant)
        out.append(tmp_path / variant)
    return out


def test_records_hold_what_was_asked_for(cli, bundles, tmp_path):
    outcome = cli("bench", *bundles, "--depths", "8,32", "--rounds", 2, "--steps", 3, "--threads", 1,
                  "--results", tmp_path / "r.jsonl", "--json")  # fmt: skip
    assert outcome.code == 0, outcome.err
    records = json.loads(outcome.out)
    assert records == [json.loads(line) for line in (tmp_path / "r.jsonl").read_text().splitlines()]
    for record, bundle in zip(records, bundles, strict=True):
        assert record["cache_bytes"] == record["cache_bytes_analytic"] == edgeqkv.open(bundle).cache_bytes
        assert [(t["depth"], len(t["seconds"])) for t in record["decode"]] == [(8, 6), (32, 6)]
        assert all(seconds > 0 for t in record["decode"] for seconds in t["seconds"])
        assert len(record["first_token"]["seconds"]) == 2
        assert [(t["depth"], t["tokens"], len(t["seconds"])) for t in record["prefill"]] == [(0, 8, 2), (0, 32, 2)]
        assert list(record["memory"]) == ["start", "loaded", "depth 8", "depth 32", "end"]
        assert record["memory"]["end"]["peak_rss"] >= record["memory"]["loaded"]["rss"] > 0
        assert (record["threads"], record["runtime"], record["kernel"]) == (1, "onnx", "fused")
        assert record["environment"]["emulated"] is False
    assert records[0]["cache_bytes"] == 8 * records[1]["cache_bytes"]


def test_the_table_compares_with_the_first_bundle(cli, bundles):
    outcome = cli("bench", *bundles, "--depths", "8", "--rounds", 1, "--steps", 2)
    assert "| relative to QKV, int8 / fp32, fused | cache |" in outcome.out
    assert "| Q-MQA, int8 / fp32, fused           | 0.125 |" in outcome.out
    first = outcome.out.split("\n\n")[1]
    for column in ("cache MiB", "peak RSS MiB", "private MiB", "ms/token at 8", "tokens/s"):
        assert column in first


def test_the_table_compares_a_model_with_itself_at_the_first_depth(cli, bundles):
    outcome = cli("bench", *bundles, "--depths", "8,32", "--rounds", 1, "--steps", 2, "--prompt", 4)
    assert "| its own 32 / 8 |" in outcome.out
    assert "prefill tokens/s from 4 | prefill tokens/s from 28" in outcome.out


def test_both_kernels_of_a_bundle_in_one_run(cli, bundles):
    outcome = cli("bench", bundles[0], "--kernels", "stock,fused", "--depths", "8", "--rounds", 1, "--steps", 2, "--json")
    assert [record["kernel"] for record in json.loads(outcome.out)] == ["stock", "fused"]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--kernels", "stock,quick"], "--kernels takes fused and stock separated by commas, found 'stock,quick'"),
        (["--kernels", "stock,"], "--kernels takes fused and stock separated by commas, found 'stock,'"),
        (["--results", "/nonexistent/r.jsonl"], "cannot write /nonexistent/r.jsonl: the folder /nonexistent does not exist"),
        (["--device", "ssh://board"], "unknown device 'ssh://board'; this version measures on: local"),
        (["--depths", "46"], "depth 46 and 8 measured steps do not fit a cache of 48 positions"),
        (["--depths", "1"], "depth 1 is too small"),
        (["--depths", "1,two"], "--depths takes whole numbers"),
        (["--rounds", "0"], "rounds, steps and prompt must be at least 1"),
        (["--threads", "0"], "threads must be at least 1"),
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
    assert cli("bench", bundles[0], "--depths", "8", "--rounds", 1, "--steps", 1).code == 0


def test_what_is_passed_over_is_said_once(cli, bundles, no_native):
    outcome = cli("bench", *bundles, "--depths", "8", "--rounds", 1, "--steps", 1, "--json")
    assert [record["kernel"] for record in json.loads(outcome.out)] == ["stock", "stock"]
    assert outcome.err.count("running the stock graph") == 1


def test_a_worker_that_dies_is_reported(bundles, monkeypatch):
    from edgeqkv.bench.device import start_worker

    with start_worker("local", bundles[0]) as worker:
        worker._process.kill()
        with pytest.raises(edgeqkv.EdgeQKVError, match="ended during 'memory': it was killed, probably for want of memory"):
            worker.ask("memory")


def test_default_depths_fit():
    plan = make_plan(None, 2, 512, 5, 8)
    assert plan.depths == (120, 248, 504)
    assert make_plan(None, None, 12, 1, 1).depths[-1] + 1 <= 12


def test_quantiles_are_samples():
    timing = Timing(0, 1, tuple(float(i) for i in range(1, 11)))
    assert (timing.median, timing.quantile(90), timing.quantile(99), timing.quantile(1)) == (5.5, 9.0, 10.0, 1.0)


def test_memory_follows_an_allocation():
    before = memory_of_this_process().private
    if before is None:
        pytest.skip("this system does not tell a process its memory")
    block = b"x" * (64 * 2**20)
    grown = memory_of_this_process().private - before
    assert 0.9 * len(block) < grown < 1.5 * len(block)
