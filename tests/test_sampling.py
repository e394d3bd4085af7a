import numpy as np
import pytest

from edgeqkv.errors import EdgeQKVError
from edgeqkv.sampling import Sampler

LOGITS = np.array([0.0, 2.0, 1.0, -np.inf], np.float32)


def test_greedy():
    assert Sampler()(LOGITS) == 1


def test_frequencies_follow_the_softmax_and_padding_is_never_chosen():
    sampler = Sampler(temperature=2.0, seed=1)
    counts = np.bincount([sampler(LOGITS) for _ in range(20_000)], minlength=4) / 20_000
    weights = np.exp(LOGITS / 2.0)
    np.testing.assert_allclose(counts, weights / weights.sum(), atol=0.015)
    assert counts[3] == 0


def test_top_k_and_seed():
    assert {Sampler(5.0, top_k=2, seed=s)(LOGITS) for s in range(50)} == {1, 2}
    draws = [[Sampler(1.0, seed=9)(LOGITS) for _ in range(3)] for _ in range(2)]
    assert draws[0] == draws[1]


@pytest.mark.parametrize("wrong", [{"temperature": -1.0}, {"temperature": float("nan")}, {"top_k": 0}])
def test_settings_that_mean_nothing(wrong):
    with pytest.raises(EdgeQKVError):
        Sampler(**wrong)
