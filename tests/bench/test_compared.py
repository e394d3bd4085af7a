"""Statistics on known samples: a slowdown that is there is found, and one that is not there is not."""

import math
import random
import time

import pytest
from msgspec.structs import replace
from records import changed, made_record

from edgeqkv.bench.compared import Baselines, deepest, pairs
from edgeqkv.bench.ratio import Ratio, speed_ratio
from edgeqkv.bench.timing import timing

ROUNDS, STEPS = 5, 8


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


def test_one_round_says_nothing():
    assert speed_ratio(timing(1, 1, (1.0, 1.1)), timing(1, 1, (1.0, 1.1)), 1) is None


def test_a_known_interval():
    """Logarithms of the round ratios 0.1, 0.2, 0.3: mean 0.2, deviation 0.1, t(0.995, 2) = 9.925."""
    ours = timing(1, 1, tuple(math.exp(x) for x in (0.1, 0.2, 0.3)))
    ratio = speed_ratio(ours, timing(1, 1, (1.0, 1.0, 1.0)), 3)
    half = 9.925 * 0.1 / math.sqrt(3)
    assert ratio.value == pytest.approx(math.exp(0.2))
    assert (ratio.low, ratio.high) == pytest.approx((math.exp(0.2 - half), math.exp(0.2 + half)), rel=1e-3)


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
    start = time.monotonic()
    baselines = Baselines(run)
    assert all(baselines.of(record) is run[i - 1] for i, record in enumerate(run) if i % 2)
    assert time.monotonic() - start < 20


def test_decoding_is_compared_where_both_were_measured():
    ours, theirs = made_record("Q-MQA"), made_record()
    assert [timing.depth for timing in deepest(ours, theirs)] == [1000, 1000]
    shallow = changed(theirs, decode=theirs.timings.decode[:1])
    assert [timing.depth for timing in deepest(ours, shallow)] == [128, 128]
    assert deepest(ours, changed(theirs, decode=())) is None


def test_samples_at_the_ends_of_what_a_record_holds():
    """The interval is then as wide as a number can be."""
    ratio = speed_ratio(timing(1, 1, (1e9, 1e-12)), timing(1, 1, (1e-12, 1e9)), 2)
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
