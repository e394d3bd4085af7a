"""ExecuTorch bundles through our session: the golden numbers, the cache, and files that are not what they should be."""

import shutil
import subprocess
import sys
import threading

import numpy as np
import pytest
from conftest import EXECUTORCH_CHUNK, load_golden

import edgeqkv
from edgeqkv.bundle import read_bundle
from edgeqkv.checkpoint import read_checkpoint
from edgeqkv.eager import EagerModel

CHUNK = EXECUTORCH_CHUNK


def opened(folder, name, **options):
    return edgeqkv.open(folder / name, runtime="executorch", **options)


def test_golden_logits_and_greedy_text_token_by_token(golden, executorch_bundles):
    session = opened(executorch_bundles, golden.checkpoint.stem)
    logits = [session.step(token) for token in golden.ids]
    assert np.abs(np.stack(logits) - golden.logits).max() <= 1e-4
    session.reset()
    assert list(session.generate(golden.ids, limit=len(golden.greedy))) == golden.greedy


@pytest.mark.parametrize("length", [1, CHUNK - 1, CHUNK, CHUNK + 1])
def test_prefill_of_any_length_then_decode_to_capacity(golden, executorch_bundles, length):
    session = opened(executorch_bundles, golden.checkpoint.stem)
    ids = [(i * 37 + 5) % 320 for i in range(session.capacity)]
    model = read_checkpoint(golden.checkpoint)
    expected = EagerModel(model.config, model.weights).forward(ids)

    def run():
        out = [session.prefill(ids[:length])] + [session.step(token) for token in ids[length:]]
        return np.stack(out)

    first = run()
    assert np.abs(first - expected[length - 1 :]).max() <= 1e-4
    with pytest.raises(edgeqkv.CacheFull):
        session.step(1)
    session.reset()
    np.testing.assert_array_equal(run(), first)


def test_a_prefill_that_ends_at_capacity_writes_nothing_behind_it(executorch_bundles):
    golden = load_golden("q_mqa")
    session = opened(executorch_bundles, "q_mqa")
    ids = [(i * 37 + 5) % 320 for i in range(session.capacity)]
    model = read_checkpoint(golden.checkpoint)
    expected = EagerModel(model.config, model.weights).forward(ids)[-1]
    session.prefill(ids[: -CHUNK // 2])
    assert np.abs(session.prefill(ids[-CHUNK // 2 :]) - expected).max() <= 1e-4


def test_two_sessions_on_two_threads_do_not_disturb_each_other(executorch_bundles):
    names = ("qkv", "q_mqa")
    expected, found = {}, {}
    for name in names:
        golden = load_golden(name)
        expected[name] = [opened(executorch_bundles, name).prefill(golden.ids), golden.logits[-1]]
    sessions = {name: opened(executorch_bundles, name) for name in names}

    def work(name):
        ids = load_golden(name).ids
        for _ in range(20):
            sessions[name].reset()
            found.setdefault(name, []).append(sessions[name].prefill(ids))

    threads = [threading.Thread(target=work, args=[name]) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for name in names:
        for logits in found[name]:
            np.testing.assert_allclose(logits, expected[name][1], atol=1e-4)


def test_int8_weights_and_cache_stay_close(executorch_bundles):
    for name, golden in (("q_kv-int8", load_golden("q_kv")), ("qkv-int8-cache", load_golden("qkv"))):
        session = opened(executorch_bundles, name)
        logits = np.stack([session.step(token) for token in golden.ids])
        assert 0 < np.sqrt(np.mean((logits - golden.logits) ** 2)) <= 0.1 * golden.logits.std()


def test_cache_bytes_and_arenas_are_the_manifests(golden, executorch_bundles):
    name = golden.checkpoint.stem
    artifact = read_bundle(executorch_bundles / name).artifacts[0]
    assert opened(executorch_bundles, name).cache_bytes == artifact.cache.bytes
    arenas = {entry.name: entry.arena_bytes for entry in artifact.entry_points}
    assert artifact.cache.bytes <= arenas["decode"] <= artifact.cache.bytes + 64 * 1024
    assert (len(artifact.cache.tensors) == 1) == (golden.variant.startswith("Q-") or golden.variant == "Q=K=V")


def test_a_board_needs_no_torch(executorch_bundles):
    program = (
        "import sys, edgeqkv; s = edgeqkv.open(sys.argv[1], runtime='executorch', threads=1); s.prefill([1, 2]); s.step(3); "
        "assert 'torch' not in sys.modules"
    )
    run = subprocess.run(
        [sys.executable, "-c", program, executorch_bundles / "q_mqa"], capture_output=True, text=True, check=False
    )
    assert (run.returncode, run.stderr) == (0, "")


def damaged(folder, tmp_path, change):
    """A copy of a bundle whose program was changed; opened without the sha256 check, which would see it first."""
    shutil.copytree(folder / "q_mqa", tmp_path / "bundle")
    path = tmp_path / "bundle/executorch/model.pte"
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(edgeqkv.EdgeQKVError) as error:
        edgeqkv.open(tmp_path / "bundle", runtime="executorch", check=False)
    assert "\n" not in str(error.value)
    return error.value


@pytest.mark.parametrize("kept", [0, 40, 100, 0.05, 0.5, 0.999])
def test_a_truncated_program(executorch_bundles, tmp_path, kept, capfd):
    error = damaged(executorch_bundles, tmp_path, lambda data: data[: kept if kept > 1 or kept == 0 else int(len(data) * kept)])
    assert "truncated" in str(error)
    assert error.exit_code == 2
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("change", "reason", "code"),
    [
        (lambda data: b"no program" * 1000, "it has no ExecuTorch header", 2),
        (lambda data: data.replace(b"ET12", b"ET11", 1), "made for another version of ExecuTorch", 2),
        (lambda data: data.replace(b"edgeqkv::cached_attention", b"edgeqkv::cached_attentioX"), "needs an operator", 3),
        (lambda data: data.replace(b"prefill\0", b"prefilX\0"), "it has no method prefill", 2),
    ],
)
def test_a_program_that_cannot_run_here(executorch_bundles, tmp_path, change, reason, code, capfd):
    error = damaged(executorch_bundles, tmp_path, change)
    assert reason in str(error)
    assert error.exit_code == code
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("other", ["qkv", "shipped", "qkv-int8-cache"])
def test_the_program_of_another_bundle(executorch_bundles, tmp_path, other):
    data = (executorch_bundles / other / "executorch/model.pte").read_bytes()
    error = damaged(executorch_bundles, tmp_path, lambda _: data)
    assert "another program than the manifest describes" in str(error)
