"""ExecuTorch bundles through our session: the golden numbers, the cache, and files that are not what they should be."""

import importlib.util
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import executorch.exir as exir
import numpy as np
import pytest
import torch
from conftest import EXECUTORCH_CHUNK, load_golden
from msgspec.structs import replace
from session_cases import CASES, run_case

import edgeqkv
from edgeqkv.bundle import read_bundle, write_manifest
from edgeqkv.checkpoint import read_checkpoint
from edgeqkv.eager import EagerModel
from edgeqkv.runtimes.executorch.target import session_library

CHUNK = EXECUTORCH_CHUNK


def opened(bundle, name):
    return edgeqkv.open(bundle(name), runtime="executorch")


def test_golden_logits_and_greedy_text_token_by_token(golden, executorch_bundle):
    session = opened(executorch_bundle, golden.checkpoint.stem)
    logits = [session.step(token) for token in golden.ids]
    assert np.abs(np.stack(logits) - golden.logits).max() <= 1e-4
    session.reset()
    assert list(session.generate(golden.ids, limit=len(golden.greedy))) == golden.greedy


@pytest.mark.parametrize("name", ["q_mqa", "qkv-int8", "q_gqa-stock"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_the_table_of_cases(case, name, executorch_bundle, tmp_path):
    run_case(case, lambda: opened(executorch_bundle, name), CHUNK, 320, tmp_path)


@pytest.mark.parametrize("length", [1, CHUNK - 1, CHUNK, CHUNK + 1])
def test_prefill_of_any_length_then_decode_to_capacity(golden, executorch_bundle, length):
    session = opened(executorch_bundle, golden.checkpoint.stem)
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


def test_a_prefill_that_ends_at_capacity_writes_nothing_behind_it(executorch_bundle):
    golden = load_golden("q_mqa")
    session = opened(executorch_bundle, "q_mqa")
    ids = [(i * 37 + 5) % 320 for i in range(session.capacity)]
    model = read_checkpoint(golden.checkpoint)
    expected = EagerModel(model.config, model.weights).forward(ids)[-1]
    session.prefill(ids[: -CHUNK // 2])
    assert np.abs(session.prefill(ids[-CHUNK // 2 :]) - expected).max() <= 1e-4


def test_the_stock_program(executorch_bundle):
    """Its operators write padding, so that a chunk that does not fit any more goes token by token."""
    golden, session = load_golden("q_gqa"), opened(executorch_bundle, "q_gqa-stock")
    logits = np.stack([session.step(token) for token in golden.ids])
    assert np.abs(logits - golden.logits).max() <= 1e-4
    ids = [(i * 37 + 5) % 320 for i in range(session.capacity)]
    model = read_checkpoint(golden.checkpoint)
    expected = EagerModel(model.config, model.weights).forward(ids)
    for length in (1, CHUNK - 1, CHUNK + 1, session.capacity - 3, session.capacity):
        session.reset()
        found = [session.prefill(ids[:length])] + [session.step(token) for token in ids[length:]]
        assert np.abs(np.stack(found) - expected[length - 1 :]).max() <= 1e-4
    artifact = read_bundle(executorch_bundle("q_gqa-stock")).artifacts[0]
    assert artifact.operators == ("llama::custom_sdpa.out", "llama::update_cache.out")
    attention = model.config.attention
    shapes = {buffer.shape for buffer in artifact.cache.buffers}
    assert shapes == {(1, session.capacity, attention.n_kv_head, attention.head_dim)}
    assert (artifact.cache.row, session.cache_bytes) == ({"k": attention.head_dim}, artifact.cache.bytes)


def test_the_stock_program_needs_torch(executorch_bundle, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(edgeqkv.EdgeQKVError, match="this needs the package 'torch'") as error:
        opened(executorch_bundle, "q_gqa-stock")
    assert error.value.exit_code == 3


def test_two_sessions_on_two_threads_do_not_disturb_each_other(executorch_bundle):
    names = ("qkv", "q_mqa")
    expected, found = {}, {}
    for name in names:
        golden = load_golden(name)
        expected[name] = [opened(executorch_bundle, name).prefill(golden.ids), golden.logits[-1]]
    sessions = {name: opened(executorch_bundle, name) for name in names}

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


def test_a_second_thread_on_a_session_is_refused(executorch_bundle):
    """By the engine as well, below the session's own lock: inside one call, no other runs, reads, writes or closes."""
    golden, session = load_golden("q_mqa"), opened(executorch_bundle, "q_mqa")
    engine, refused, wrong = session._engine, [], []

    def work():
        for _ in range(50):
            try:
                logits = engine.run(np.array(golden.ids[:CHUNK]), 0)
                if np.abs(logits - golden.logits[CHUNK - 1]).max() > 1e-4:
                    wrong.append(logits)
            except edgeqkv.EdgeQKVError as error:
                refused.append(str(error))

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert set(refused) <= {"the session is in use by another thread; give each thread a session of its own"}
    with engine._alone():
        for call in (lambda: engine.run(np.array([1]), 0), lambda: engine.read("cache.0.k", 1), engine.close):
            with pytest.raises(edgeqkv.EdgeQKVError, match="in use by another thread"):
                call()


@pytest.mark.parametrize("name", ["q_mqa", "qkv-int8", "q_gqa-stock"])
def test_saved_rows_go_on_bit_for_bit(executorch_bundle, tmp_path, name):
    golden = load_golden(name.partition("-")[0])
    first = opened(executorch_bundle, name)
    first.prefill(golden.ids[:-1])
    first.save(tmp_path / "chat.session")
    rows = {buffer.name: first._engine.read(buffer.name, first.depth) for buffer in first.artifact.cache.buffers}
    assert all(np.abs(array).max(axis=-1).all() for array in rows.values())
    second = opened(executorch_bundle, name)
    second.prefill(golden.ids[::-1])  # rows that must not be left
    second.restore(tmp_path / "chat.session")
    other = first.fork()
    expected = first.step(golden.ids[-1])
    np.testing.assert_array_equal(second.step(golden.ids[-1]), expected)
    first.step(golden.ids[0])
    np.testing.assert_array_equal(other.step(golden.ids[-1]), expected)
    first.close()
    other.rewind(len(golden.ids) - 1)
    np.testing.assert_array_equal(other.step(golden.ids[-1]), expected)


def test_sessions_on_one_program_share_its_weights_and_nothing_else(executorch_bundle):
    golden = load_golden("q_mqa")
    first, second = opened(executorch_bundle, "q_mqa"), opened(executorch_bundle, "q_mqa")
    first.prefill(golden.ids[:-1])
    second.prefill(golden.ids[1:])
    del second
    assert np.abs(first.step(golden.ids[-1]) - golden.logits[-1]).max() <= 1e-4


def test_the_number_of_threads_is_that_of_the_process(executorch_bundle):
    """ExecuTorch's pool cannot change its size below a session that runs on it. In a process of its own, which has no other."""
    program = (
        "import sys, edgeqkv; open = lambda n: edgeqkv.open(sys.argv[1], runtime='executorch', threads=n)\n"
        "first = open(2); same = open(2); before = list(first.generate([1, 2, 3], limit=8))\n"
        "try: open(1)\n"
        "except edgeqkv.EdgeQKVError as error: print(error.exit_code, error)\n"
        "first.reset(); assert list(first.generate([1, 2, 3], limit=8)) == before\n"
        "del first, same; one = open(1); assert list(one.generate([1, 2, 3], limit=8)) == before\n"
        "try: edgeqkv.open(sys.argv[1], runtime='executorch', threads=1000)\n"
        "except edgeqkv.EdgeQKVError as error: print(error.exit_code, error)\n"
    )
    command = [sys.executable, "-c", program, executorch_bundle("q_mqa")]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (run.returncode, run.stderr) == (0, "")
    refused, too_many = run.stdout.splitlines()
    assert refused.startswith("2 ExecuTorch has one pool of threads, and sessions that run on 2")
    assert too_many == "2 threads must be 1 to 256, found 1000"


def test_what_the_session_refuses_of_a_host_that_does_not_check(executorch_bundle):
    session = opened(executorch_bundle, "q_mqa")
    engine = session._engine
    with pytest.raises(edgeqkv.EdgeQKVError, match="token id 320 is outside 0 to 319"):
        engine.run(np.array([320]), 0)
    with pytest.raises(edgeqkv.EdgeQKVError, match="the program takes 1 to 16 tokens at once"):
        engine.run(np.zeros(17, np.int64), 0)
    with pytest.raises(edgeqkv.EdgeQKVError, match="position -1 is before the first"):
        engine.run(np.array([1, 2]), -1)
    for position in (session.capacity, session.capacity - 1):
        with pytest.raises(edgeqkv.EdgeQKVError, match=f"2 tokens at position {position} do not fit a cache of 64") as error:
            engine.run(np.array([1, 2]), position)
        assert error.value.exit_code == 1
    golden = load_golden("q_mqa")
    assert np.abs(session.prefill(golden.ids) - golden.logits[-1]).max() <= 1e-4  # and goes on


@pytest.mark.parametrize(("name", "bound"), [("q_mqa-fp16", 1e-3), ("qkv-int8", 0.1)])
def test_a_cache_of_fewer_bits_stays_close(executorch_bundle, name, bound):
    golden = load_golden(name.partition("-")[0])
    session = opened(executorch_bundle, name)
    logits = np.stack([session.step(token) for token in golden.ids])
    assert 0 < np.sqrt(np.mean((logits - golden.logits) ** 2)) <= bound * golden.logits.std()


def test_a_run_is_stopped_and_the_next_is_not(executorch_bundle):
    golden, session = load_golden("q_mqa"), opened(executorch_bundle, "q_mqa")
    engine = session._engine
    session.prefill(golden.ids[:-1])
    engine._library.edgeqkv_executorch_stop(engine._session, 1)
    for ids in (golden.ids[-1:], golden.ids[:3]):
        with pytest.raises(edgeqkv.CheckFailed, match="the run was stopped"):
            session.prefill(ids)
        assert session.tokens == tuple(golden.ids[:-1])
    engine._library.edgeqkv_executorch_stop(engine._session, 0)
    assert np.abs(session.step(golden.ids[-1]) - golden.logits[-1]).max() <= 1e-4


def test_cache_bytes_and_arenas_are_the_manifests(golden, executorch_bundle):
    name = golden.checkpoint.stem
    artifact = read_bundle(executorch_bundle(name)).artifacts[0]
    assert opened(executorch_bundle, name).cache_bytes == artifact.cache.bytes
    arenas = {entry.name: entry.arena_bytes for entry in artifact.entry_points}
    assert artifact.cache.bytes <= arenas["decode"] <= artifact.cache.bytes + 64 * 1024
    assert (len(artifact.cache.row) == 1) == (golden.variant.startswith("Q-") or golden.variant == "Q=K=V")


def test_a_board_needs_no_torch(executorch_bundle):
    program = (
        "import sys, edgeqkv; s = edgeqkv.open(sys.argv[1], runtime='executorch', threads=1); s.prefill([1, 2]); s.step(3); "
        "assert 'torch' not in sys.modules"
    )
    run = subprocess.run(
        [sys.executable, "-c", program, executorch_bundle("q_mqa")], capture_output=True, text=True, check=False
    )
    assert (run.returncode, run.stderr) == (0, "")


def damaged(bundle, tmp_path, change):
    """A copy of a bundle whose program was changed; opened without the sha256 check, which would see it first."""
    shutil.copytree(bundle("q_mqa"), tmp_path / "bundle")
    path = tmp_path / "bundle/executorch/model.pte"
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(edgeqkv.EdgeQKVError) as error:
        edgeqkv.open(tmp_path / "bundle", runtime="executorch", check=False)
    assert "\n" not in str(error.value)
    return error.value


@pytest.mark.parametrize("kept", [0, 40, 100, 0.05, 0.5, 0.999])
def test_a_truncated_program(executorch_bundle, tmp_path, kept, capfd):
    error = damaged(executorch_bundle, tmp_path, lambda data: data[: kept if kept > 1 or kept == 0 else int(len(data) * kept)])
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
def test_a_program_that_cannot_run_here(executorch_bundle, tmp_path, change, reason, code, capfd):
    error = damaged(executorch_bundle, tmp_path, change)
    assert reason in str(error)
    assert error.exit_code == code
    assert capfd.readouterr().err == ""


def test_the_program_of_another_version(executorch_bundle, tmp_path):
    shutil.copytree(executorch_bundle("q_mqa"), tmp_path / "bundle")
    manifest = tmp_path / "bundle/edgeqkv.json"
    manifest.write_text(manifest.read_text().replace('"runtime_version": "1.5.1"', '"runtime_version": "1.4.0"'))
    (tmp_path / "bundle/executorch/model.pte").write_bytes(b"what 1.4.0 wrote, which is not looked at")
    with pytest.raises(edgeqkv.EdgeQKVError, match="was made by ExecuTorch 1.4.0, and this is 1.5.1; export it again") as error:
        edgeqkv.open(tmp_path / "bundle", runtime="executorch", check=False)
    assert error.value.exit_code == 2


def test_a_program_that_an_older_edgeqkv_exported(executorch_bundle, tmp_path):
    """Its attention operator had the same name and fewer arguments."""
    shutil.copytree(executorch_bundle("q_mqa"), tmp_path / "bundle")
    manifest = read_bundle(tmp_path / "bundle")
    (artifact,) = manifest.artifacts
    old = replace(artifact, weights=replace(artifact.weights, formats={}))  # as a manifest of format 3 is read
    write_manifest(tmp_path / "bundle", replace(manifest, artifacts=(old,)))
    with pytest.raises(edgeqkv.EdgeQKVError, match="exported by an edgeqkv before 0.2, .*; export the bundle again") as error:
        edgeqkv.open(tmp_path / "bundle", runtime="executorch")
    assert error.value.exit_code == 2


@pytest.mark.parametrize("other", ["qkv", "shipped-q-mqa", "q_mqa-fp16"])
def test_the_program_of_another_bundle(executorch_bundle, tmp_path, other):
    data = (executorch_bundle(other) / "executorch/model.pte").read_bytes()
    error = damaged(executorch_bundle, tmp_path, lambda _: data)
    assert "another program than the manifest describes" in str(error)


def zeros(*shape, dtype=torch.int64):
    return torch.zeros(shape, dtype=dtype)


@pytest.mark.parametrize(
    ("ids", "position", "reason"),
    [
        (zeros(1, 16, dtype=torch.int32), zeros(1), "prefill takes other than int64 tensors"),
        (zeros(16), zeros(1), "prefill takes tensors of other shapes"),
        (zeros(1, 16), zeros(2), "prefill takes tensors of other shapes"),
        (zeros(1, 16), zeros(1), "prefill returns something other than logits"),
        (zeros(1, 16), None, "prefill has other inputs or outputs"),
    ],
)
def test_a_program_of_another_shape_or_dtype(executorch_bundle, tmp_path, ids, position, reason):
    """Somebody's own program in the bundle's place."""

    class Sum(torch.nn.Module):
        def forward(self, *inputs):
            return sum(x.float().sum() for x in inputs)

    inputs = (ids,) if position is None else (ids, position, torch.ones(1, dtype=torch.int64))
    program = exir.to_edge({"prefill": torch.export.export(Sum(), inputs)}).to_executorch()
    error = damaged(executorch_bundle, tmp_path, lambda _: bytes(program.buffer))
    assert "model.pte is not a program that edgeqkv exported" in str(error)
    assert reason in str(error)
    assert error.exit_code == 2


def test_two_copies_of_our_library(executorch_bundle, tmp_path):
    """In one process, which ExecuTorch would end when an operator is registered twice."""
    program = (
        "import shutil, sys; from pathlib import Path; import edgeqkv; from edgeqkv.runtimes.executorch import target\n"
        "open = lambda: edgeqkv.open(sys.argv[1], runtime='executorch', threads=1)\n"
        "first = open(); copy = Path(sys.argv[2]); shutil.copy(target.session_library(), copy)\n"
        "target.session_library = lambda: copy; second = open()\n"
        "assert second._engine._library._name == str(copy)\n"
        "texts = [list(session.generate([1, 2, 3], limit=8)) for session in (first, second)]\n"
        "assert texts[0] == texts[1]; del first; second.reset(); assert list(second.generate([1, 2, 3], limit=8)) == texts[0]\n"
    )
    command = [sys.executable, "-c", program, executorch_bundle("q_mqa"), tmp_path / "copy.so"]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (run.returncode, run.stderr) == (0, "")


def test_the_log_of_a_host_that_listens_before_and_after_us(executorch_bundle):
    """Each listener passes on to the one before it, and the message arrives once at each."""
    program = """
import ctypes, sys
import edgeqkv
from edgeqkv.targets import targets

listener = ctypes.CFUNCTYPE(
    None, ctypes.c_uint64, ctypes.c_int, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_char_p, ctypes.c_size_t
)
find_table = ctypes.CDLL(targets()["executorch"].runner_libraries()[1])._ZN10executorch7runtime12get_pal_implEv
find_table.restype = ctypes.POINTER(ctypes.c_void_p * 5)
table, heard = find_table().contents, []

def listen(name):
    before = ctypes.cast(table[4], listener)
    def hear(*message):
        heard.append(name)
        if name == "after":
            before(*message)
    made = listener(hear)
    table[4] = ctypes.cast(made, ctypes.c_void_p)
    return made

first = listen("before")
sessions = [edgeqkv.open(sys.argv[1], runtime="executorch", threads=1)]
second = listen("after")
sessions.append(edgeqkv.open(sys.argv[1], runtime="executorch", threads=1))
heard.clear()
ctypes.cast(table[4], listener)(0, ord("E"), b"file", b"function", 1, b"message", 7)
print(*heard)
"""
    command = [sys.executable, "-c", program, executorch_bundle("q_mqa")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "after before\n", "")


@pytest.mark.skipif(shutil.which("c++") is None, reason="needs a C++ compiler")
def test_a_host_hears_what_to_do_with_an_older_program(tmp_path):
    """ExecuTorch's own API with the operator as a program of 0.1 calls it: nine tensors, and out twice."""
    package = Path(importlib.util.find_spec("executorch").submodule_search_locations[0])
    (tmp_path / "host.cc").write_text(
        "#include <executorch/runtime/kernel/kernel_runtime_context.h>\n"
        "#include <executorch/runtime/kernel/operator_registry.h>\n"
        "#include <executorch/runtime/platform/runtime.h>\n"
        "using namespace executorch::runtime;\n"
        "int main() {\n"
        "  runtime_init();\n"
        "  EValue none;\n"
        "  EValue* arguments[11];\n"
        "  for (EValue*& argument : arguments) argument = &none;\n"
        "  KernelRuntimeContext context;\n"
        '  (*get_op_function_from_registry("edgeqkv::cached_attention.out"))(context, Span<EValue*>(arguments, 11));\n'
        "  return context.failure_state() == Error::InvalidProgram ? 0 : 1;\n"
        "}\n"
    )
    ours, theirs = session_library(), package / "lib"
    includes = [f"-I{package / folder}" for folder in ("include", "include/executorch/runtime/core/portable_type/c10")]
    paths = [f"-Wl,-rpath,{folder}" for folder in (ours.parent, theirs)]
    libraries = ["-Wl,--no-as-needed", ours, theirs / "libexecutorch.so", f"-Wl,-rpath-link,{theirs}"]
    command = ["c++", "-std=c++17", "-DC10_USING_CUSTOM_GENERATED_MACROS", "-DET_EVENT_TRACER_ENABLED", *includes]
    subprocess.run([*command, tmp_path / "host.cc", *libraries, *paths, "-o", tmp_path / "host"], check=True)
    run = subprocess.run([tmp_path / "host"], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert "edgeqkv::cached_attention: the program was exported by an edgeqkv before 0.2; export it again" in run.stderr
