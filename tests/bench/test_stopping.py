"""When a run ends, by the clock and by what its records say."""

import math

from msgspec.structs import replace
from records import PLAN, changed, made_record

from edgeqkv.bench.stopping import Stopping, widest_interval
from edgeqkv.bench.timing import timing
from edgeqkv.bench.words import notes

OPEN = replace(PLAN, rounds=5, precision=0.03, time_s=100.0)


class Clock:
    now = 50.0

    def __call__(self):
        return self.now


def run_of(rounds, scatter):
    """A baseline and a variant, whose rounds differ by ``scatter``."""

    def decode(sign):
        return (timing(128, 1, tuple(math.exp(sign * scatter * (-1) ** i) for i in range(rounds))),)

    ours, theirs = made_record("Q-MQA", rounds_done=rounds), made_record(rounds_done=rounds)
    return [changed(theirs, decode=decode(1)), changed(ours, decode=decode(-1))]


def test_the_widest_interval_is_that_of_any_ratio_at_any_depth():
    wide, narrow = run_of(20, 0.1)[1], run_of(20, 0.01)[1]
    base = run_of(20, 0.0)[0]
    assert widest_interval([base, narrow, replace(wide, cell="wide")]) == widest_interval([base, wide]) > 0.1
    both = changed(narrow, decode=(*narrow.timings.decode, replace(wide.timings.decode[0], depth=512)))
    deep = changed(base, decode=(*base.timings.decode, replace(base.timings.decode[0], depth=512)))
    assert widest_interval([deep, both]) == widest_interval([base, wide])
    assert widest_interval([base]) is None
    assert widest_interval(run_of(2, 0.01)) == math.inf


def test_a_run_goes_on_until_every_ratio_is_precise():
    stopping, run = Stopping(OPEN, Clock()), run_of(20, 0.1)
    assert stopping.why(20, run) is None
    assert stopping.state() == f"the widest interval is ±{widest_interval(run):.1%}, wanted is ±3.0%"
    assert stopping.why(21, run_of(21, 0.001)) == "precision"


def test_five_rounds_are_the_fewest():
    assert Stopping(OPEN, Clock()).why(4, run_of(20, 0.0)) is None


def test_its_time_is_up():
    clock = Clock()
    stopping = Stopping(OPEN, clock)
    clock.now += 99
    assert stopping.why(20, run_of(20, 0.1)) is None
    clock.now += 1
    assert stopping.why(21, run_of(21, 0.1)) == "time"
    assert stopping.why(21, run_of(21, 0.0)) == "precision", "the better reason, where both are there"


def test_one_round_is_too_few_whatever_the_time():
    clock = Clock()
    stopping = Stopping(OPEN, clock)
    clock.now += 1000
    assert stopping.why(1, run_of(1, 0.1)) is None
    assert stopping.why(2, run_of(2, 0.1)) == "time"


def test_fixed_rounds_ask_for_nothing_else():
    stopping = Stopping(PLAN, Clock())
    assert [stopping.why(rounds, run_of(20, 0.0)) for rounds in (4, 5)] == [None, "rounds"]
    assert (stopping.state(), stopping.progress()) == ("", None)


def test_what_compares_nothing_has_five_rounds():
    stopping = Stopping(OPEN, Clock())
    assert [stopping.why(rounds, run_of(20, 0.1)[:1]) for rounds in (4, 5)] == [None, "rounds"]


def test_the_time_left_is_told_by_how_precise_it_is():
    """It gets narrower with the root of the rounds: twice as wide as wanted after 10 s needs 40 s in all."""
    clock, run = Clock(), run_of(20, 0.01)
    stopping = Stopping(replace(OPEN, precision=widest_interval(run) / 2), clock)
    assert stopping.progress() == (0, 100)
    assert "not known yet" in stopping.state()
    for _ in range(20):
        clock.now += 0.5
        assert stopping.why(20, run) is None
    assert stopping.progress() == (10, 40)
    clock.now += 35
    assert stopping.progress() == (45, 46)


def test_why_a_run_ended_is_said():
    def said(**changes):
        return [note for note in notes([changed(record, **changes) for record in run_of(20, 0.1)]) if "random" not in note]

    assert said(plan=OPEN, ended="precision") == []
    assert said(plan=replace(PLAN, rounds=20), ended="rounds") == []
    (time_up,) = said(plan=OPEN, ended="time")
    assert time_up.startswith("the time was up before every ratio was known to ±3.0%: the widest interval of a ratio is ±")
    assert said(plan=OPEN) == ["interrupted after 20 rounds; --resume goes on"]
    assert said(plan=replace(PLAN, rounds=30)) == ["interrupted after 20 of 30 rounds; --resume goes on"]


def test_a_busy_machine_is_said():
    base, ours = run_of(20, 0.0)
    busy = changed(ours, decode=(replace(ours.timings.decode[0], waited=(0.5,) * 6 + (0.0,) * 14),))
    (said,) = notes([changed(record, plan=OPEN, ended="precision") for record in (base, busy)])
    assert said.startswith("other programs had the processors in 6 of 20 rounds, which do not count for ratios")
