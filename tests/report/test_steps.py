"""Where a gain comes from, one measured change at a time."""

from records import changed, made_record

from edgeqkv.report.content import content
from edgeqkv.report.pairs import Pair, pairs
from edgeqkv.report.steps import steps

TODAY = made_record(cell="a", kernel="stock", milliseconds=20.0)
KERNEL = made_record(cell="b", milliseconds=18.0)
INT8 = made_record(cell="c", cache="int8", milliseconds=15.0, cache_mib=4)
K_ONLY = made_record("Q-K=V", cell="d", cache="int8", milliseconds=10.0, cache_mib=2)
ONE_HEAD = made_record("Q-MQA", cell="e", cache="int8", milliseconds=8.0, cache_mib=1)
GAIN = Pair(ONE_HEAD, TODAY, INT8)


def taken(*run):
    return [(step.change, step.record) for step in steps(run, GAIN)]


def test_every_change_is_a_step_of_its_own():
    assert taken(ONE_HEAD, K_ONLY, INT8, KERNEL, TODAY) == [
        ("", TODAY),
        ("our kernel", KERNEL),
        ("int8 cache", INT8),
        ("one tensor for K and V (Q-K=V)", K_ONLY),
        ("one KV head (Q-MQA)", ONE_HEAD),
    ]


def test_changes_that_were_not_measured_apart_are_told_together():
    assert taken(TODAY, K_ONLY, ONE_HEAD) == [
        ("", TODAY),
        ("our kernel and int8 cache and one tensor for K and V (Q-K=V)", K_ONLY),
        ("one KV head (Q-MQA)", ONE_HEAD),
    ]


def test_other_capacities_and_geometries_are_no_steps():
    longer = changed(K_ONLY, capacity=2048)
    assert len(taken(TODAY, longer, ONE_HEAD)) == 2


def test_a_record_of_the_standard_models_heads_has_no_step_for_heads():
    pair = Pair(K_ONLY, TODAY, INT8)
    assert [step.change for step in steps([TODAY, INT8, K_ONLY], pair)] == [
        "",
        "our kernel and int8 cache",
        "one tensor for K and V (Q-K=V)",
    ]


def test_the_steps_are_drawn_and_told():
    found = content([TODAY, KERNEL, INT8, K_ONLY, ONE_HEAD], []).sections[0]
    assert [plot.title for plot in found.plots][:2] == ["Where the memory goes", "Where the time goes"]
    assert [row[0] for row in found.steps.rows] == [
        "QKV, the baseline",
        "+ our kernel",
        "+ int8 cache",
        "+ one tensor for K and V (Q-K=V)",
        "+ one KV head (Q-MQA)",
    ]
    assert found.steps.rows[2][4] == "1.20 × (1.20 to 1.20)"
    assert "Where the time goes" not in [plot.title for plot in content([TODAY, ONE_HEAD], []).sections[0].plots]


def test_what_gains_most_is_what_the_report_speaks_of():
    found = pairs([TODAY, KERNEL, INT8, K_ONLY, ONE_HEAD])
    assert [(pair.record, pair.today, pair.alike) for pair in found] == [(K_ONLY, TODAY, INT8), (ONE_HEAD, TODAY, INT8)]
    assert found[1].gain > found[0].gain
