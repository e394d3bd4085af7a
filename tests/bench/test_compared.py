"""Statistics on known samples: a slowdown that is there is found, and one that is not there is not."""

import math
import random
import statistics
import time

import numpy as np
import pytest
from msgspec.structs import replace
from records import changed, made_record

from edgeqkv.bench.compared import Baselines, deepest, pairs
from edgeqkv.bench.plan import rounds_a_start
from edgeqkv.bench.ratio import ALPHA, EFFECT_VARIANCE, Ratio, largest_t, observations, speed_ratio
from edgeqkv.bench.timing import timing

ROUNDS, STEPS = 12, 8


def samples(random_, drift, slowdown=1.0, bias=0.0):
    """A run's samples: 10 ms a token, the machine's drift by round, a visit's own luck, 5 % of scatter, and rare hiccups."""
    out = []
    for round_ in drift:
        visit = math.exp(random_.gauss(0, 0.01))
        for _ in range(STEPS):
            hiccup = 3.0 if random_.random() < 0.03 else 1.0
            out.append(0.010 * round_ * visit * slowdown * (1 + bias) * hiccup * math.exp(random_.gauss(0, 0.05)))
    return timing(100, 1, tuple(out))


def run(seed, slowdown=1.0, bias=0.0):
    random_ = random.Random(seed)
    drift = [math.exp(random_.gauss(0, 0.15)) for _ in range(ROUNDS)]  # another program comes and goes
    return speed_ratio(samples(random_, drift), samples(random_, drift, slowdown, bias), ROUNDS)


def test_a_slowdown_of_a_fifth_is_found():
    found = [run(seed, slowdown=1.2) for seed in range(200)]
    assert sum(ratio.differs and ratio.value < 1 for ratio in found) >= 190
    assert sum(ratio.low <= 1 / 1.2 <= ratio.high for ratio in found) >= 190, "the interval holds the truth"


def test_two_identical_bundles_are_not_called_different():
    assert sum(run(seed).differs for seed in range(1000)) <= 10  # a 99 % interval, beyond 3 %


def test_a_difference_too_small_to_matter_is_not_called_one():
    assert sum(run(seed, bias=0.02).differs for seed in range(200)) <= 4


@pytest.mark.parametrize("rounds", [1, 4])
def test_few_rounds_say_nothing(rounds):
    assert speed_ratio(timing(1, 1, (1.0,) * rounds), timing(1, 1, (1.0,) * rounds), rounds) is None


def test_a_known_interval():
    """Of ten logarithms of which the outer ones, 0.0 and 9.0, count as their neighbours 0.1 and 0.6: kept are 0.1 ... 0.6."""
    logs = (0.3, 9.0, 0.1, 0.5, 0.2, 0.6, 0.0, 0.4, 0.35, 0.35)
    ratio = speed_ratio(timing(1, 1, tuple(map(math.exp, logs))), timing(1, 1, (1.0,) * 10), 10)
    winsorised = (0.1, 0.1, 0.2, 0.3, 0.35, 0.35, 0.4, 0.5, 0.6, 0.6)
    error = math.sqrt(9 * statistics.variance(winsorised) / (8 * 7))
    assert ratio.value == pytest.approx(math.exp(0.35))
    assert (ratio.low, ratio.high) == pytest.approx(tuple(math.exp(0.35 + side * largest_t(8) * error) for side in (-1, 1)))
    assert math.exp(0.35) * (1 + ratio.half_width) == pytest.approx(ratio.high)


@pytest.mark.parametrize("count", [5, 20, 200])
def test_the_largest_t_is_where_the_bayes_factor_is_a_hundred(count):
    """By integrals: over effects ~ N(0, v) times the deviation s, and over s with the prior 1 / s, of data with that t."""
    mean, squares = largest_t(count) / math.sqrt(count), count - 1  # about the mean, so that their deviation is 1
    s = np.geomspace(0.02, 50, 4000)

    def likelihood(effect):
        return np.trapezoid(np.exp(-count * np.log(s) - (squares + count * (mean - effect * s) ** 2) / (2 * s * s)) / s, s)

    effects = np.random.default_rng(0).normal(0, math.sqrt(EFFECT_VARIANCE), 4000)
    assert np.mean([likelihood(effect) for effect in effects]) / likelihood(0.0) == pytest.approx(1 / ALPHA, rel=0.1)


def test_two_starts_make_an_observation():
    assert observations([0.1, 0.3, 0.2, 0.6, 9.0], 2) == [pytest.approx(0.3)]
    assert observations([0.1, None, None, 0.5, None, None, None, None], 2) == [pytest.approx(0.3)]
    assert observations([0.1, None, 0.3], 1) == [0.1, 0.3]


def test_a_round_in_which_one_had_to_wait_does_not_count():
    quiet, busy = (1.0,) * 6, (1.0, 1.0, 1.0, 1.0, 1.0, 7.0)
    waited = (0.0,) * 5 + (0.5,)
    one = timing(1, 1, quiet)
    assert speed_ratio(one, timing(1, 1, busy, waited), 6) == Ratio(1.0, 1.0, 1.0)
    assert speed_ratio(timing(1, 1, busy, waited), one, 6) == Ratio(1.0, 1.0, 1.0)
    assert speed_ratio(one, timing(1, 1, busy, (0.5,) * 6), 6) is None


@pytest.mark.parametrize(
    ("ratio", "differs"),
    [((1.2, 1.1, 1.3), True), ((0.8, 0.7, 0.9), True), ((1.05, 1.02, 1.08), False), ((1.5, 0.9, 2), False)],
)
def test_what_a_difference_is(ratio, differs):
    assert Ratio(*ratio).differs is differs


def baseline_of(record, run):
    return Baselines(run).of(record)


def test_the_baseline_is_the_one_most_alike():
    ours = made_record("Q-MQA", cache="int8", kernel="stock")
    plain, alike = made_record(), made_record(cell="other", cache="int8", kernel="stock")
    longer = made_record(cell="longer", cache="int8", kernel="stock", capacity=2048)
    assert baseline_of(ours, [plain, longer, alike, ours]) is alike
    assert baseline_of(plain, [plain, alike]) is None
    other = replace(ours.subject.model, n_layer=7)
    assert baseline_of(changed(ours, model=other), [plain, alike]) is None


def test_of_two_that_are_as_alike_the_first_is_the_baseline():
    ours = made_record("Q-MQA", cache="int8")
    first, second = made_record(weights="fp32", cache="int8"), made_record(weights="fp16", cache="int8")
    assert baseline_of(ours, [first, second]) is first
    assert baseline_of(ours, [second, first]) is second


def test_ten_thousand_records_of_a_run_are_paired_in_seconds():
    plain, ours = made_record(), made_record("Q-MQA", cache="int8")
    run = [one for i in range(5000) for one in (changed(plain, kernel=f"k{i}"), changed(ours, kernel=f"k{i}"))]
    start = time.process_time()
    baselines = Baselines(run)
    assert all(baselines.of(record) is run[i - 1] for i, record in enumerate(run) if i % 2)
    assert time.process_time() - start < 20


def test_decoding_is_compared_where_both_were_measured():
    ours, theirs = made_record("Q-MQA"), made_record()
    assert [timing.depth for timing in deepest(ours, theirs)] == [1000, 1000]
    shallow = changed(theirs, decode=theirs.timings.decode[:1])
    assert [timing.depth for timing in deepest(ours, shallow)] == [128, 128]
    assert deepest(ours, changed(theirs, decode=())) is None


def test_samples_at_the_ends_of_what_a_record_holds():
    """The interval is then as wide as a number can be."""
    ratio = speed_ratio(timing(1, 1, (1e9, 1e-12) * 4), timing(1, 1, (1e-12, 1e9) * 4), 8)
    assert not ratio.differs


def test_what_a_team_has_today():
    """The runtime's own attention with a cache of floats, on the same runtime with the same weights."""
    today = made_record(kernel="stock", cache="fp32")
    half, ours = made_record(kernel="stock", cache="fp16"), made_record(kernel="fused", cache="int8")
    other_weights, other_runtime = changed(today, weights="fp32"), changed(today, runtime="executorch")
    record = made_record("Q-MQA", kernel="fused", cache="int8")
    run = [ours, other_weights, other_runtime, half, today, record]
    baselines = Baselines(run)
    assert baselines.today(record) is baselines.today(ours) is baselines.today(today) is today
    assert baselines.today(changed(record, runtime="executorch")) is other_runtime
    assert Baselines([ours, half, record]).today(record) is half
    assert Baselines([record]).today(record) is None
    named = [(run.index(one), run.index(base)) for one, base in pairs(run)]
    assert named == [(0, 4), (3, 4), (5, 4), (5, 0)]


@pytest.mark.parametrize("rounds", [5, 9, 10, 12, 19, 20, 39, 40, 41, 200])
def test_any_number_of_rounds_from_five_on_has_observations_enough(rounds):
    assert len(observations([0.0] * rounds, rounds_a_start(rounds))) >= 5
