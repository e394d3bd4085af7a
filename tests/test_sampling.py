"""The rules of docs/sessions.md, step by step: penalty, temperature, top-k, top-p, draw."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeqkv.errors import EdgeQKVError
from edgeqkv.sampling import Sampler

LOGITS = np.array([0.0, 2.0, 1.0, -3.0], np.float32)


def draws(sampler, count, logits=LOGITS, tokens=()):
    choose = sampler.start()
    return [choose(logits, tokens) for _ in range(count)]


def splitmix(seed):
    """SplitMix64 as published, a number in [0, 1) a call."""
    state = seed
    while True:
        state = (state + 0x9E3779B97F4A7C15) % 2**64
        z = state
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
        yield ((z ^ (z >> 31)) >> 11) / 2**53


def by_the_page(logits, tokens, u, temperature, top_k, top_p, penalty):
    """One choice in plain Python, with a sum that rounds once."""
    scores = [float(x) for x in logits]
    for token in set(tokens):
        scores[token] = scores[token] / penalty if scores[token] > 0 else scores[token] * penalty
    weights = [math.exp((score - max(scores)) / temperature) for score in scores]
    if top_k is not None and top_k < len(scores):
        least = sorted(scores, reverse=True)[top_k - 1]
        weights = [weight if score >= least else 0.0 for weight, score in zip(weights, scores, strict=True)]
    if top_p < 1:
        order = sorted(range(len(weights)), key=lambda i: (-weights[i], i))
        kept, total = set(), 0.0
        for i in order:
            kept.add(i)
            total += weights[i]
            if total >= top_p * math.fsum(weights):
                break
        weights = [weight if i in kept else 0.0 for i, weight in enumerate(weights)]
    edge, running = u * math.fsum(weights), 0.0
    for i, weight in enumerate(weights):
        running += weight
        if running > edge:
            return i
    raise AssertionError("no choice")


def test_greedy():
    assert draws(Sampler(), 3) == [1, 1, 1]
    assert draws(Sampler(), 1, np.array([1.0, 5.0, 5.0], np.float32)) == [1]  # the lowest id among equals


def test_the_generators_known_values():
    """The first outputs of SplitMix64 from 0, as its authors' C code gives them (and as Java's SplittableRandom does)."""
    numbers = splitmix(0)
    assert [int(next(numbers) * 2**53) for _ in range(3)] == [
        0xE220A8397B1DCDAF >> 11,
        0x6E789E6AA1B965F4 >> 11,
        0x06C45D188009454F >> 11,
    ]


@pytest.mark.parametrize("seed", [0, 1, 9, 2**64 - 1])
def test_draws_are_those_of_the_generator(seed):
    """Of a thousand equally likely ids the one at u * 1000."""
    numbers = splitmix(seed)
    assert draws(Sampler(1.0, seed=seed), 20, np.zeros(1024, np.float32)) == [int(next(numbers) * 1024) for _ in range(20)]


@given(
    logits=st.lists(st.floats(-20, 20, width=32), min_size=1, max_size=12),
    tokens=st.lists(st.integers(0, 11), max_size=6),
    seed=st.integers(0, 2**64 - 1),
    temperature=st.sampled_from([0.3, 1.0, 2.5]),
    top_k=st.sampled_from([None, 1, 2, 5, 12]),
    top_p=st.sampled_from([1.0, 0.9, 0.5, 0.05]),
    penalty=st.sampled_from([1.0, 1.3, 0.8]),
)
def test_it_chooses_what_the_page_says(logits, tokens, seed, temperature, top_k, top_p, penalty):
    held = [token for token in tokens if token < len(logits)]
    choose, numbers = Sampler(temperature, top_k, top_p, penalty, seed).start(), splitmix(seed)
    for _ in range(3):
        wanted = by_the_page(np.array(logits, np.float32), held, next(numbers), temperature, top_k, top_p, penalty)
        assert choose(np.array(logits, np.float32), held) == wanted


def test_frequencies_follow_the_softmax():
    counts = np.bincount(draws(Sampler(temperature=2.0, seed=1), 20_000), minlength=4) / 20_000
    weights = np.exp(LOGITS / 2.0)
    np.testing.assert_allclose(counts, weights / weights.sum(), atol=0.015)


def test_frequencies_of_the_nucleus():
    """0.665, 0.245, 0.090: the first two are needed for 0.7, and share what the third gave up."""
    counts = np.bincount(draws(Sampler(1.0, top_p=0.7, seed=2), 20_000), minlength=4) / 20_000
    np.testing.assert_allclose(counts, [0, 1 / (1 + math.exp(-1)), 1 / (1 + math.exp(1)), 0], atol=0.015)


def test_top_k_keeps_equals():
    logits = np.array([1.0, 3.0, 3.0, 3.0, 0.0], np.float32)
    assert set(draws(Sampler(5.0, top_k=2, seed=1), 200, logits)) == {1, 2, 3}
    assert set(draws(Sampler(5.0, top_k=9, seed=1), 500, logits)) == {0, 1, 2, 3, 4}


def test_top_p_keeps_the_lower_id_among_equals():
    logits = np.zeros(4, np.float32)
    assert set(draws(Sampler(1.0, top_p=0.5, seed=1), 200, logits)) == {0, 1}
    assert set(draws(Sampler(1.0, top_p=1e-9, seed=1), 50, logits)) == {0}


def test_the_repetition_penalty_counts_an_id_once():
    logits = np.array([2.0, 1.9, -1.0], np.float32)
    assert draws(Sampler(repetition_penalty=1.1), 1, logits, [0, 0, 0]) == [1]  # 1.82 against 1.9
    assert draws(Sampler(repetition_penalty=1.1), 1, logits, [0, 1, 1]) == [0]
    assert draws(Sampler(repetition_penalty=1.1), 1, np.array([-1.0, -1.05], np.float32), [0]) == [1]  # multiplied below 0
    np.testing.assert_array_equal(logits, np.array([2.0, 1.9, -1.0], np.float32))  # the caller's


def test_a_seed_begins_anew_with_every_start():
    sampler = Sampler(1.0, seed=9)
    assert draws(sampler, 20) == draws(sampler, 20)
    assert draws(sampler, 20) != draws(Sampler(1.0, seed=10), 20)


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"temperature": -1.0}, "temperature must be 0"),
        ({"temperature": float("nan")}, "temperature must be 0"),
        ({"temperature": float("inf")}, "temperature must be 0"),
        ({"top_k": 0}, "top-k must be at least 1"),
        ({"top_p": 0.0}, "top-p must lie between 0 and 1"),
        ({"top_p": 1.1}, "top-p must lie between 0 and 1"),
        ({"top_p": float("nan")}, "top-p must lie between 0 and 1"),
        ({"repetition_penalty": 0.0}, "repetition penalty must be a positive number"),
        ({"repetition_penalty": float("inf")}, "repetition penalty must be a positive number"),
        ({"seed": -1}, "seed must be 0 or more and fit 64 bits"),
        ({"seed": 2**64}, "seed must be 0 or more and fit 64 bits"),
    ],
)
def test_settings_that_mean_nothing(wrong, reason):
    with pytest.raises(EdgeQKVError, match=reason):
        Sampler(**wrong)
