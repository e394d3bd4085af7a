"""docs/sessions.md on the Python session over ONNX Runtime; tests/session_cases.json is what every implementation runs."""

import threading

import numpy as np
import pytest
from conftest import tiny_config, tiny_weights
from session_cases import CASES, run_case

import edgeqkv
from edgeqkv.eager import EagerModel
from edgeqkv.sampling import Sampler

CAPACITY, CHUNK, KNOWN = 20, 4, 300


@pytest.fixture(scope="module")
def bundles(tmp_path_factory, write_tiny_model):
    """Bundles of a Q-MQA model by the dtype of their cache."""
    folder = tmp_path_factory.mktemp("sessions")
    model = write_tiny_model(folder / "model", "Q-MQA")
    for cache in ("fp32", "int8"):
        edgeqkv.export(model, folder / cache, cache=cache, capacity=CAPACITY, prefill_chunk=CHUNK)
    return {cache: folder / cache for cache in ("fp32", "int8")}


@pytest.fixture
def session(bundles):
    with edgeqkv.open(bundles["fp32"]) as opened:
        yield opened


@pytest.fixture
def runs(session, monkeypatch):
    """(position, ids) of every call of the engine."""
    engine, seen = session._engine, []
    run = engine.run

    def counted(ids, position):
        seen.append((position, ids.tolist()))
        return run(ids, position)

    monkeypatch.setattr(engine, "run", counted)
    return seen


@pytest.mark.parametrize("kernel", ["fused", "stock"])
@pytest.mark.parametrize("cache", ["fp32", "int8"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_the_table_of_cases(case, cache, kernel, bundles, tmp_path):
    run_case(case, lambda: edgeqkv.open(bundles[cache], kernel=kernel), CHUNK, KNOWN, tmp_path)


# -- tokens in, logits out ----------------------------------------------------------------------------------------


def test_depth_capacity_and_reset(session):
    assert (session.depth, session.capacity, session.tokens, session.logits) == (0, CAPACITY, (), None)
    first = session.prefill([1, 2, 3])
    assert first.dtype == np.float32
    assert (session.depth, session.tokens) == (3, (1, 2, 3))
    np.testing.assert_array_equal(session.logits, first)
    session.step(4)
    session.reset()
    assert (session.depth, session.tokens, session.logits) == (0, (), None)
    np.testing.assert_array_equal(session.prefill([1, 2, 3]), first)


def test_what_a_caller_does_to_logits_stays_with_the_caller(session):
    first = session.prefill([1, 2, 3])
    first[:] = 0
    session.logits[:] = 0
    assert session.logits.any()


def test_a_long_prompt_is_run_in_chunks(session, runs):
    session.prefill(range(1, 11))
    assert runs == [(0, [1, 2, 3, 4]), (4, [5, 6, 7, 8]), (8, [9, 10])]
    runs.clear()
    session.prefill([11])
    assert runs == [(10, [11])]


def test_chunks_bound_memory_and_change_no_more_than_the_last_bits(session):
    chunked = session.prefill(range(1, 20))
    session.reset()
    np.testing.assert_allclose(chunked, [session.step(token) for token in range(1, 20)][-1], atol=1e-5)
    assert session.depth == 19


def test_a_full_cache_raises_and_corrupts_nothing(session):
    expected = session.prefill(list(range(19)))
    session.step(7)
    with pytest.raises(edgeqkv.CacheFull, match="holds 20 positions and 20 are filled"):
        session.step(7)
    assert session.depth == 20
    session.reset()
    with pytest.raises(edgeqkv.CacheFull, match="21 tokens do not fit: the cache holds 20 positions"):
        session.prefill(list(range(21)))
    with pytest.raises(edgeqkv.CacheFull, match="21 tokens do not fit"):
        session.feed(list(range(21)))
    assert session.depth == 0
    np.testing.assert_array_equal(session.prefill(list(range(19))), expected)


@pytest.mark.parametrize("call", ["prefill", "feed", "generate"])
@pytest.mark.parametrize(
    ("ids", "reason"),
    [
        ([-1], "token id -1 is out of range: this model knows 0 to 299"),
        ([300], "token id 300 is out of range"),
        ([5, 319], "token id 319 is out of range"),
        ([10**9], "token id 1000000000 is out of range"),
        ([10**30], "token ids are whole numbers of 64 bits at most"),
        ([[1, 2]], "a flat list of at least one token id"),
        ([[1], [2, 3]], "a flat list of at least one token id"),
        ([1.5], "token ids are whole numbers of 64 bits at most, found 1.5"),
        (["a"], "token ids are whole numbers of 64 bits at most, found 'a'"),
        ([None], "token ids are whole numbers of 64 bits at most, found None"),
        ("hello", "this takes token ids, not text: tokenise it first, with edgeqkv.tokenizer"),
        (b"hello", "this takes token ids, not text: tokenise it first"),
    ],
)
def test_what_is_no_list_of_ids_changes_nothing(session, call, ids, reason):
    session.prefill([1, 2, 3])
    before = session.logits
    with pytest.raises(edgeqkv.EdgeQKVError, match=reason):
        getattr(session, call)(ids)
    assert session.tokens == (1, 2, 3)
    np.testing.assert_array_equal(session.logits, before)


@pytest.mark.parametrize("call", ["prefill", "feed"])
def test_no_ids_are_refused(session, call):
    with pytest.raises(edgeqkv.EdgeQKVError, match="a flat list of at least one token id"):
        getattr(session, call)([])


def test_a_failure_part_way_leaves_the_depth_as_it_was(session, monkeypatch):
    expected = session.prefill([1, 2, 3, 4])
    session.rewind(3)
    engine, run = session._engine, session._engine.run

    def fails_after_7(ids, position):
        if position >= 7:
            raise edgeqkv.CheckFailed("no")
        return run(ids, position)

    monkeypatch.setattr(engine, "run", fails_after_7)
    with pytest.raises(edgeqkv.CheckFailed):
        session.prefill(range(4, 11))
    assert (session.tokens, session.logits) == ((1, 2, 3), None)
    with pytest.raises(edgeqkv.CheckFailed):
        session.feed([1, 2, *range(5, 15)])
    assert (session.tokens, session.logits) == ((1, 2), None)
    with pytest.raises(edgeqkv.EdgeQKVError, match="there are no logits to go on from"):
        session.generate()
    monkeypatch.undo()
    session.step(3)
    np.testing.assert_allclose(session.step(4), expected, atol=1e-5)


# -- back and forth -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["QKV", "Q-MQA"])
@pytest.mark.parametrize("cache", ["fp32", "int8"])
def test_rewind_is_exact(variant, cache, tiny_model, tmp_path):
    """Going on after a rewind gives the very bits of never having been further; so does going on the other way."""
    edgeqkv.export(tiny_model(variant), tmp_path / "b", cache=cache, capacity=CAPACITY)
    session, other = (edgeqkv.open(tmp_path / "b") for _ in range(2))
    session.prefill([1, 2, 3])
    tail = [session.step(token) for token in (4, 5, 6)]
    session.rewind(3)
    assert (session.tokens, session.logits) == ((1, 2, 3), None)
    other.prefill([1, 2, 3])
    for token in (7, 8):
        np.testing.assert_array_equal(session.step(token), other.step(token))
    session.rewind(3)
    for token, logits in zip((4, 5, 6), tail, strict=True):
        np.testing.assert_array_equal(session.step(token), logits)


def test_rewind_to_where_it_is_keeps_the_logits(session):
    logits = session.prefill([1, 2, 3])
    session.rewind(3)
    np.testing.assert_array_equal(session.logits, logits)


@pytest.mark.parametrize("depth", [-1, 4, 10**9])
def test_rewind_goes_back_only(session, depth):
    session.prefill([1, 2, 3])
    with pytest.raises(edgeqkv.EdgeQKVError, match=f"depth {depth} is outside 0..3, the positions that are filled"):
        session.rewind(depth)
    assert session.depth == 3
    assert session.logits is not None


@pytest.mark.parametrize(
    ("held", "fed", "run"),
    [
        ([], [1, 2, 3], [(0, [1, 2, 3])]),
        ([1, 2, 3], [1, 2, 3, 4, 5], [(3, [4, 5])]),
        ([1, 2, 3], [1, 2, 9, 4], [(2, [9, 4])]),
        ([1, 2, 3], [9, 2, 3], [(0, [9, 2, 3])]),
        ([1, 2, 3, 4], [1, 2, 3], [(2, [3])]),  # all is held: the last one again, for its logits
        ([1, 2, 3], [1, 2, 3], [(2, [3])]),
        ([1], [1], [(0, [1])]),
        ([1, 2], [1, 2, *range(3, 12)], [(2, [3, 4, 5, 6]), (6, [7, 8, 9, 10]), (10, [11])]),
        (
            [1, 2, 3],
            list(range(1, 21)),
            [(3, [4, 5, 6, 7]), (7, [8, 9, 10, 11]), (11, [12, 13, 14, 15]), (15, [16, 17, 18, 19]), (19, [20])],
        ),
    ],
)
def test_feed_runs_what_is_not_held_and_nothing_else(session, runs, held, fed, run):
    if held:
        session.prefill(held)
    runs.clear()
    logits = session.feed(fed)
    assert runs == run
    assert session.tokens == tuple(fed)
    session.reset()
    np.testing.assert_allclose(logits, session.prefill(fed), atol=1e-5)


# -- generation ---------------------------------------------------------------------------------------------------


def test_generation_stops_when_the_cache_is_full(session):
    tokens = list(session.generate([1, 2, 3]))
    assert len(tokens) == 18  # 17 free positions, and one more token that needs none
    assert session.tokens == (1, 2, 3, *tokens[:-1])
    session.reset()
    assert list(session.generate([1, 2, 3], limit=5)) == tokens[:5]
    assert session.tokens == (1, 2, 3, *tokens[:4])


def test_greedy_text_is_that_of_the_reference(session):
    config = tiny_config("Q-MQA")
    eager = EagerModel(config, tiny_weights(config), CAPACITY)
    logits, expected = eager.prefill([1, 2, 3]), []
    for _ in range(8):
        expected.append(int(logits[:KNOWN].argmax()))
        logits = eager.step(expected[-1])
    assert list(session.generate([1, 2, 3], limit=8)) == expected


def test_an_end_token_is_neither_handed_out_nor_held(session, bundles):
    tokens = list(session.generate([1, 2, 3], limit=10))
    end = next(token for i, token in enumerate(tokens) if i and token not in tokens[:i])
    place = tokens.index(end)
    session.reset()
    assert list(session.generate([1, 2, 3], limit=10, end_tokens=[end])) == tokens[:place]
    assert session.tokens == (1, 2, 3, *tokens[:place])
    assert session.logits.argmax() == end  # it can be gone on from
    assert list(session.generate(limit=2)) == tokens[place : place + 2]


def test_the_bundles_end_tokens_end_it(tiny_model, tmp_path):
    (tiny_model("Q-MQA") / "text.json").write_text('{"end_tokens": [11, 12]}')
    manifest = edgeqkv.export(tiny_model("Q-MQA"), tmp_path / "b", capacity=CAPACITY)
    assert manifest.text.end_tokens == (11, 12)
    session = edgeqkv.open(tmp_path / "b")

    class Says(Sampler):
        def start(self):
            said = iter([5, 6, 12, 7])
            return lambda logits, tokens: next(said)

    assert list(session.generate([1, 2, 3], Says())) == [5, 6]
    assert session.tokens == (1, 2, 3, 5, 6)


def test_going_on_from_the_logits_gives_one_text(session):
    whole = list(session.generate([1, 2, 3], limit=9))
    session.reset()
    first = list(session.generate([1, 2, 3], limit=4))
    session.step(first[-1])
    assert [*first, *session.generate(limit=5)] == whole


def test_nothing_to_go_on_from(session):
    with pytest.raises(edgeqkv.EdgeQKVError, match="there are no logits to go on from; give at least one token id"):
        session.generate()
    session.prefill([1, 2, 3])
    session.rewind(2)
    with pytest.raises(edgeqkv.EdgeQKVError, match="there are no logits"):
        session.generate()


def test_a_session_that_is_reset_or_closed_before_the_first_token(session):
    stream = session.generate([1, 2, 3])
    session.reset()
    with pytest.raises(edgeqkv.EdgeQKVError, match="rewound or reset while it generated, so that it has no logits"):
        next(stream)
    stream = session.generate([1, 2, 3])
    next(stream)
    session.close()
    with pytest.raises(edgeqkv.EdgeQKVError, match="the session is closed"):
        next(stream)


def test_a_prompt_that_does_not_fit_is_refused_at_once(session):
    with pytest.raises(edgeqkv.CacheFull):
        session.generate(range(21))


def test_logits_that_are_not_finite_are_refused_before_a_token_is_chosen(session, monkeypatch):
    session.prefill([1, 2, 3])
    session._logits[5] = np.nan
    with pytest.raises(edgeqkv.CheckFailed, match="the logits after 3 tokens are not finite"):
        next(session.generate())
    session._logits[5] = 0
    assert np.isneginf(session._logits[KNOWN:]).all()  # padding is not looked at
    next(session.generate())


# -- forks, threads, the end --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", ["fused", "stock"])
@pytest.mark.parametrize("cache", ["fp32", "int8"])
def test_a_fork_goes_its_own_way(cache, kernel, bundles):
    session, apart = (edgeqkv.open(bundles[cache], kernel=kernel) for _ in range(2))
    session.prefill([1, 2, 3])
    other = session.fork()
    assert (other.tokens, other.capacity, other.cache_bytes) == ((1, 2, 3), CAPACITY, session.cache_bytes)
    np.testing.assert_array_equal(other.logits, session.logits)
    mine, theirs = [session.step(token) for token in (4, 5)], [other.step(token) for token in (6, 7)]
    session.close()
    theirs.append(other.step(8))
    for path, found in (((4, 5), mine), ((6, 7, 8), theirs)):
        apart.reset()
        apart.prefill([1, 2, 3])
        for token, logits in zip(path, found, strict=True):
            np.testing.assert_array_equal(apart.step(token), logits)


def test_a_fork_of_nothing(session):
    other = session.fork()
    assert (other.depth, other.logits) == (0, None)
    np.testing.assert_array_equal(other.prefill([1, 2]), session.prefill([1, 2]))


@pytest.mark.parametrize("kernel", ["fused", "stock"])
def test_forks_in_threads_of_their_own(kernel, bundles):
    """Over one loaded model, at once; each gives the bits that it gives alone."""
    session = edgeqkv.open(bundles["int8"], kernel=kernel, threads=1)
    session.prefill([1, 2, 3])
    forks = [session.fork() for _ in range(4)]
    alone = [session.fork().prefill([10 * i + j for j in range(8)]) for i in range(4)]
    found = [None] * 4
    start = threading.Barrier(4)

    def work(i):
        start.wait()
        for _ in range(10):
            forks[i].rewind(3)
            found[i] = forks[i].prefill([10 * i + j for j in range(8)])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for one, other in zip(alone, found, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_second_thread_is_refused_while_the_first_is_inside(session, monkeypatch, tmp_path):
    inside, leave = threading.Event(), threading.Event()
    engine, run = session._engine, session._engine.run

    def waits(ids, position):
        inside.set()
        assert leave.wait(30)
        return run(ids, position)

    monkeypatch.setattr(engine, "run", waits)
    thread = threading.Thread(target=session.prefill, args=([1, 2, 3],))
    thread.start()
    assert inside.wait(30)
    try:
        calls = [
            lambda: session.step(4),
            lambda: session.feed([4]),
            lambda: session.rewind(0),
            session.reset,
            lambda: session.save(tmp_path / "s"),
            lambda: session.restore(tmp_path / "s"),
            session.fork,
            session.close,
        ]
        for call in calls:
            with pytest.raises(edgeqkv.EdgeQKVError, match="in use by another thread; give each thread a session of its own"):
                call()
    finally:
        leave.set()
        thread.join()
    assert session.tokens == (1, 2, 3)


def test_a_closed_session_is_refused(session, tmp_path):
    session.prefill([1, 2, 3])
    session.save(tmp_path / "s")
    session.close()
    session.close()
    calls = [
        lambda: session.prefill([1]),
        lambda: session.step(1),
        lambda: session.feed([1]),
        lambda: session.rewind(0),
        session.reset,
        lambda: session.generate([1]),
        lambda: session.save(tmp_path / "t"),
        lambda: session.restore(tmp_path / "s"),
        session.fork,
        lambda: session.cache_bytes,
        lambda: session.runtime_version,
    ]
    for call in calls:
        with pytest.raises(edgeqkv.EdgeQKVError, match="the session is closed"):
            call()
    assert (session.depth, session.logits) == (0, None)
    assert not (tmp_path / "t").exists()


def test_a_session_closes_at_the_end_of_its_block(bundles):
    with edgeqkv.open(bundles["fp32"]) as session:
        session.step(1)
    with pytest.raises(edgeqkv.EdgeQKVError, match="the session is closed"):
        session.step(1)


def test_rows_of_zeros_to_measure_at_a_depth(session):
    session.skip(10)
    assert (session.tokens, session.logits) == ((0,) * 10, None)
    assert np.isfinite(session.step(1)[:KNOWN]).all()
    session.reset()
    session.prefill([1, 2, 3])
    first = session.step(4)
    rows = session._engine.read("cache.0.k", 4)
    session.skip(5)
    assert (session.tokens, session.logits) == ((1, 2, 3, 4, *(0,) * 5), None)
    np.testing.assert_array_equal(session._engine.read("cache.0.k", 9)[..., :4, :], rows)
    assert not session._engine.read("cache.0.k", 9)[..., 4:, :].any()
    session.rewind(3)
    np.testing.assert_array_equal(session.step(4), first)
    session.skip(0)
    np.testing.assert_array_equal(session.logits, first)
    for count, error in ((17, edgeqkv.CacheFull), (-1, edgeqkv.EdgeQKVError)):
        with pytest.raises(error):
            session.skip(count)
    np.testing.assert_array_equal(session.logits, first)


@pytest.mark.parametrize("threads", [0, -1, 257])
def test_threads_that_no_machine_has(bundles, threads):
    with pytest.raises(edgeqkv.EdgeQKVError, match=f"threads must be 1 to 256, found {threads}"):
        edgeqkv.open(bundles["fp32"], threads=threads)
