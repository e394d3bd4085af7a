"""Sessions of the library: the table of cases, the logits of Python's sessions, and what C alone has."""

import ctypes
import hashlib
import threading
import time

import numpy as np
import pytest
from session_cases import CASES, run_case

import edgeqkv
from edgeqkv.errors import CheckFailed, EdgeQKVError
from edgeqkv.runtimes.native.engine import _ON_TOKEN, NativeSession, _GenerateOptions, _ids, _pointer
from edgeqkv.sampling import Sampler

BUSY, CANCELLED, STOP_LIMIT, STOP_FULL, STOP_CANCELLED = 5, 6, 1, 3, 4


@pytest.fixture(params=["qkv fp32 stock", "qkv int8 fused", "q_mqa int8 fused", "q_gqa fp16 fused", "executorch"])
def folder(request, golden_bundle, executorch_bundle):
    return executorch_bundle("shipped-q-mqa") if request.param == "executorch" else golden_bundle(*request.param.split()[:2])


@pytest.fixture
def bundle(request, folder, open_native):
    return open_native(folder, None, "stock" if "stock" in request.node.callspec.params["folder"] else "fused")


@pytest.fixture
def small(golden_bundle, open_native):
    return open_native(golden_bundle(), "onnx", "fused")


@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
def test_the_rules_of_sessions(case, bundle, tmp_path):
    info = bundle.info
    run_case(case, lambda: NativeSession(bundle), info["prefill_chunk"], info["token_count"], tmp_path)


def test_the_logits_of_python_bit_for_bit(bundle, folder):
    python = edgeqkv.open(folder, bundle.info["runtime"], bundle.info["kernel"], threads=1)
    native = NativeSession(bundle)
    prompt = list(range(1, 10))
    np.testing.assert_array_equal(native.prefill(prompt), python.prefill(prompt))
    np.testing.assert_array_equal(native.step(5), python.step(5))
    assert (native.capacity, native.cache_bytes) == (python.capacity, python.cache_bytes)
    assert native.runtime_version == python.runtime_version


def generate(session, ids, on_token, **options):
    """edgeqkv_session_generate in one call; its code and why it stopped."""
    given, stopped = _ids(ids), ctypes.c_int32()
    how = _GenerateOptions(size=ctypes.sizeof(_GenerateOptions), **options)
    code = session.bundle._library.edgeqkv_session_generate(
        session._handle,
        _pointer(given),
        ctypes.c_size_t(len(given)),
        ctypes.byref(how),
        _ON_TOKEN(on_token),
        None,
        ctypes.byref(stopped),
    )
    return code, stopped.value


def test_one_call_generates_what_single_calls_do(small):
    session, handed = NativeSession(small), []
    how = {"temperature": 1.5, "top_k": 50, "top_p": 0.9, "repetition_penalty": 1.3, "seed": 2**64 - 5}
    one_by_one = list(session.generate([1, 2, 3], Sampler(**how), 20))
    session.reset()
    assert generate(session, [1, 2, 3], lambda u, t, s, n: handed.append(t) or 0, limit=20, **how) == (0, STOP_LIMIT)
    assert handed == one_by_one
    assert len(set(handed)) > 5
    session.reset()
    handed.clear()
    assert generate(session, [1, 2, 3], lambda u, t, s, n: handed.append(t) or 0) == (0, STOP_FULL)
    assert len(handed) == session.capacity - 3 + 1


def reference_choice(logits, held, how, draws):
    """docs/sessions.md, written a second time."""
    scores = logits.astype(np.float64)
    for token in set(held):
        penalty = how["repetition_penalty"]
        scores[token] = scores[token] / penalty if scores[token] > 0 else scores[token] * penalty
    weights = np.exp((scores - scores.max()) / how["temperature"])
    weights[scores < np.sort(scores)[-min(how["top_k"], len(scores))]] = 0
    order = np.lexsort((np.arange(len(weights)), -weights))
    before = np.concatenate([[0], np.cumsum(weights[order])[:-1]])
    weights[order[before >= how["top_p"] * weights.sum()]] = 0
    mask, state = 2**64 - 1, (how["seed"] + (draws + 1) * 0x9E3779B97F4A7C15) % 2**64
    z = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 & mask
    z = (z ^ z >> 27) * 0x94D049BB133111EB & mask
    u = ((z ^ z >> 31) >> 11) * 2.0**-53
    return int(np.argmax(np.cumsum(weights) > u * weights.sum()))


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p", "penalty"), [(1.0, 300, 1.0, 1.0), (2.0, 20, 0.7, 1.5), (0.7, 5, 0.99, 0.8)]
)
def test_sampling_is_what_the_page_says(small, temperature, top_k, top_p, penalty):
    how = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "repetition_penalty": penalty, "seed": 11}
    session = NativeSession(small)
    session.prefill([1, 2, 3])
    found = list(session.generate([], Sampler(**how), 30))
    session.rewind(2)
    logits, expected, held = session.step(3), [], [1, 2, 3]
    for draws in range(30):
        expected.append(reference_choice(logits[: small.info["token_count"]], held, how, draws))
        held.append(expected[-1])
        if draws < 29:
            logits = session.step(expected[-1])
    assert found == expected


def test_splitmix64_against_published_numbers(small):
    # Vigna's splitmix64.c with the seed 1234567 gives these first; u is their upper 53 bits.
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    session = NativeSession(small)
    session.prefill([1])
    how = Sampler(temperature=1e9, seed=1234567)  # all ids of a weight
    count = small.info["token_count"]
    assert list(session.generate([], how, 3)) == [int((x >> 11) * 2.0**-53 * count) for x in published]


def test_a_callback_cancels_and_the_session_goes_on(small):
    session, handed = NativeSession(small), []
    expected = list(session.generate([1, 2, 3], limit=6))
    session.reset()

    def stop_at_the_third(user, token, text, n):
        handed.append(token)
        return len(handed) == 3

    assert generate(session, [1, 2, 3], stop_at_the_third) == (0, STOP_CANCELLED)
    assert handed == expected[:3]
    assert session.tokens == [1, 2, 3, *expected[:2]]
    assert list(session.generate([expected[2]], limit=3)) == expected[3:]


def test_calls_from_inside_a_callback_are_refused(small):
    session, seen = NativeSession(small), []
    library = small._library

    def meddle(user, token, text, n):
        codes = library.edgeqkv_session_reset(session._handle), library.edgeqkv_session_close(session._handle)
        seen.append((*codes, session.depth))
        return 1

    assert generate(session, [1, 2, 3], meddle) == (0, STOP_CANCELLED)
    assert seen == [(BUSY, BUSY, 3)]
    assert session.depth == 3


def test_another_thread_cancels_a_generation(bundle):
    session, handed = NativeSession(bundle), []

    def slow(user, token, text, n):
        handed.append(token)
        time.sleep(0.02)
        return 0

    thread = threading.Thread(target=lambda: handed.append(generate(session, [1, 2, 3], slow)))
    thread.start()
    while not handed:
        time.sleep(0.001)
    with pytest.raises(EdgeQKVError, match="the session is in use"):
        session.step(1)
    session.cancel()
    thread.join()
    *handed, result = handed
    assert result == (0, STOP_CANCELLED)
    assert session.depth == 3 + len(handed) - 1
    session.cancel()  # nothing runs, nothing happens
    session.step(handed[-1])


@pytest.mark.parametrize("chunk", [384, 48])
def test_another_thread_cancels_in_mid_token(chunk, write_tiny_model, tmp_path, open_native):
    """A prompt of one piece, within which nothing else could stop it, and one of many: all of it is held, or none."""
    count = 384
    model = write_tiny_model(tmp_path / "model", n_layer=8, d_model=512, n_head=8, d_mlp=2048, n_positions=400)
    edgeqkv.export(model, tmp_path / "bundle", prefill_chunk=chunk)
    bundle = open_native(tmp_path / "bundle", "onnx")
    session, prompt, result = NativeSession(bundle), [i % 300 for i in range(count)], []
    start = time.perf_counter()
    whole = NativeSession(bundle).prefill(prompt)
    full = time.perf_counter() - start
    session.prefill([1, 2, 3])

    def work():
        ids = _ids(prompt)
        result.append(bundle._library.edgeqkv_session_prefill(session._handle, _pointer(ids), ctypes.c_size_t(count), None))
        result.append(time.perf_counter())

    thread = threading.Thread(target=work)
    thread.start()
    time.sleep(full / 3)
    session.cancel()
    cancelled = time.perf_counter()
    thread.join()
    code, end = result
    assert code == CANCELLED
    assert end - cancelled < full / 2
    assert session.tokens == [1, 2, 3]
    assert session.logits is None
    session.reset()
    np.testing.assert_array_equal(session.prefill(prompt), whole)


def test_threads_with_sessions_of_their_own(bundle):
    prompts = [list(range(start, start + 9)) for start in (1, 50, 100)]
    alone = [list(NativeSession(bundle).generate(prompt, limit=20)) for prompt in prompts]
    found = [None] * len(prompts)

    def work(place):
        session = NativeSession(bundle)
        for _ in range(3):
            session.reset()
            found[place] = list(session.generate(prompts[place], limit=20))

    threads = [threading.Thread(target=work, args=(place,)) for place in range(len(prompts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == alone


def test_logits_that_are_not_finite_are_refused(small, tmp_path):
    session, file = NativeSession(small), tmp_path / "one.session"
    session.prefill([1, 2, 3])
    session.save(file)
    data = file.read_bytes()[:-32]
    logits = 16 + int.from_bytes(data[12:16], "little") + 3 * 4
    data = data[:logits] + np.float32(np.nan).tobytes() + data[logits + 4 :]
    file.write_bytes(data + hashlib.sha256(data).digest())
    session.restore(file)
    with pytest.raises(CheckFailed, match="the logits after 3 tokens are not finite"):
        next(session.generate([]))
    assert np.isfinite(session.step(4)[: small.info["token_count"]]).all()


def test_skipped_rows_are_written(small):
    session = NativeSession(small)
    session.skip(20)
    assert session.tokens == [0] * 20
    assert session.logits is None
    assert np.isfinite(session.step(1)[: small.info["token_count"]]).all()
    with pytest.raises(edgeqkv.CacheFull):
        session.skip(session.capacity)


@pytest.mark.parametrize("ids", ["hello", [[1, 2]], [1.5], [2**63], [None]])
def test_what_is_no_list_of_ids(small, ids):
    session = NativeSession(small)
    with pytest.raises(EdgeQKVError):
        session.prefill(ids)
    assert session.depth == 0
