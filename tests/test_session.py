import numpy as np
import pytest

import edgeqkv


@pytest.fixture
def session(tiny_model, tmp_path):
    edgeqkv.export(tiny_model("Q-MQA"), tmp_path / "bundle", capacity=20)
    return edgeqkv.open(tmp_path / "bundle")


def test_depth_capacity_and_reset(session):
    assert (session.depth, session.capacity) == (0, 20)
    first = session.prefill([1, 2, 3])
    assert first.dtype == np.float32
    assert session.depth == 3
    session.step(4)
    session.reset()
    assert session.depth == 0
    np.testing.assert_array_equal(session.prefill([1, 2, 3]), first)


def test_long_prompts_are_fed_in_chunks_that_bound_memory(session):
    whole = session.prefill(range(1, 20))
    session.reset()
    object.__setattr__(session.artifact, "prefill_chunk", 4)
    np.testing.assert_allclose(session.prefill(range(1, 20)), whole, atol=1e-5)
    assert session.depth == 19


def test_a_full_cache_raises_and_corrupts_nothing(session):
    expected = session.prefill(list(range(19)))
    session.step(7)
    with pytest.raises(edgeqkv.CacheFull, match="holds 20 positions and 20 are filled"):
        session.step(7)
    assert session.depth == 20
    session.reset()
    with pytest.raises(edgeqkv.CacheFull, match="21 more tokens do not fit"):
        session.prefill(list(range(21)))
    assert session.depth == 0
    np.testing.assert_array_equal(session.prefill(list(range(19))), expected)


@pytest.mark.parametrize("ids", [[-1], [300], [5, 319], [10**9]])
def test_ids_out_of_range_change_nothing(session, ids):
    with pytest.raises(edgeqkv.EdgeQKVError, match=r"out of range: this model knows 0 to 299"):
        session.prefill(ids)
    assert session.depth == 0


@pytest.mark.parametrize("ids", [[], [[1, 2]], [1.5], ["a"]])
def test_what_is_no_list_of_ids(session, ids):
    with pytest.raises(edgeqkv.EdgeQKVError):
        session.prefill(ids)


def test_generation_stops_when_the_cache_is_full(session):
    tokens = list(session.generate([1, 2, 3]))
    assert len(tokens) == 18  # 17 free positions, and one more token that needs none
    session.reset()
    assert list(session.generate([1, 2, 3], limit=5)) == tokens[:5]
    assert session.depth == 7


def test_ragged_lists(session):
    with pytest.raises(edgeqkv.EdgeQKVError, match="flat list"):
        session.prefill([[1], [2, 3]])
