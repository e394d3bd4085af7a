"""The report says what the records say, and nothing that a record holds can become markup."""

import random
import re
from html.parser import HTMLParser

import pytest
from conftest import one_sentence
from msgspec.structs import replace
from records import COLD, ENVIRONMENT, MIB, NOT_TIMED, made_record

from edgeqkv.bench.record import Bandwidth, Failure, MemorySplit, ProgramEntry
from edgeqkv.bench.results import append
from edgeqkv.bench.timing import timing
from edgeqkv.manifest import ParityRecord
from edgeqkv.report.content import content
from edgeqkv.report.markdown import markdown
from edgeqkv.report.page import page

NBSP = "\N{NO-BREAK SPACE}"
PARITY = ParityRecord(
    "onnx", "fused", "runtime", "1.31.1", "0" * 64, "sample", 100, 0.1, 1e-4, 0.99, 10, 10, 30.0, 30.3, {}, True
)


def pair(**changes):
    return [made_record(kernel="stock"), made_record("Q-MQA", milliseconds=5.0, cache_mib=1, **changes)]


def verdict(records):
    return content(records, []).verdict


def section(records, **options):
    return content(records, [], **options).sections[0]


def test_the_first_sentence_is_the_gain():
    assert verdict(pair()) == (
        "At 1,000 positions, Q-MQA needs 18 % less memory than QKV as it runs today and decodes 2.0 times as fast."
    )


def test_what_is_compared_is_named_below():
    said = section(pair(cache="int8")).compared
    assert said == (
        "Q-MQA (int8 cache, fused kernel) against QKV (fp32 cache, stock kernel); both int8 weights, ONNX Runtime, 4 threads. "
        "Measured on Acme One."
    )


@pytest.mark.parametrize(
    ("base", "ours", "said"),
    [
        ({}, {"milliseconds": 10.0}, "18 % less memory than QKV as it runs today; no difference in speed was shown."),
        (
            {},
            {"milliseconds": 20.0, "cache_mib": 9},
            "needs 2 % more memory than QKV as it runs today and decodes 50 % slower.",
        ),
        ({"rounds_done": 1}, {"rounds_done": 1}, "; its speed was not compared."),
        ({"split": None}, {}, "Q-MQA has no measured memory against QKV as it runs today and decodes 2.0 times as fast."),
        ({"kernel": "fused"}, {}, "18 % less memory than QKV and decodes"),
        (
            {},
            {"decode": (timing(1000, 1, (0.005,) * 20, waited=(0.5, 0.0, 0.0, 0.0, 0.0)),)},
            "18 % less memory than QKV as it runs today; its speed was not compared, as other programs ran.",
        ),
        ({"decode": ()}, {}, "Q-MQA needs 18 % less memory than QKV as it runs today; its speed was not compared."),
    ],
)
def test_the_first_sentence_when_things_are_otherwise(base, ours, said):
    found = verdict(
        [made_record(**{"kernel": "stock", **base}), made_record("Q-MQA", **{"milliseconds": 5.0, "cache_mib": 1, **ours})]
    )
    assert said in found
    assert len(found.split()) < 25


def test_the_three_numbers():
    memory, speed, positions = section(pair(), budget=36 * MIB).numbers
    assert (memory.value, memory.sentence) == ("\N{MINUS SIGN}18 %", "33 MiB instead of 40 MiB with QKV as it runs today.")
    assert (speed.value, speed.sentence[:59]) == ("2.00×", "200 tokens a second instead of 100 with QKV as it runs toda")
    # 32 MiB without the cache: 4 MiB are left, for rows of 8 KiB or of 1 KiB.
    assert (positions.value, positions.sentence) == (
        "2,048",
        "In 36 MiB of RAM (all that the model has), instead of 512 with QKV as it runs today.",
    )
    assert "Like for like (same kernel and cache): not measured." in memory.alike


def test_like_for_like_stands_beside_each_number():
    alike = made_record(cell="alike", milliseconds=8.0, cache_mib=4)
    memory, speed, positions = section([*pair(), alike], budget=36 * MIB).numbers
    assert memory.alike == "Like for like (QKV, fp32 cache, fused kernel): \N{MINUS SIGN}8 %."
    assert speed.alike == "Like for like (QKV, fp32 cache, fused kernel): 1.60× (1.60 to 1.60)."
    assert positions.alike == "Like for like (QKV, fp32 cache, fused kernel): 1,024."


def test_a_slowed_baseline_is_never_like_for_like():
    slowed = made_record(cell="alike", milliseconds=80.0, cache_mib=4)
    speed = section([*pair(), slowed]).numbers[1]
    assert speed.alike == "Like for like (QKV, fp32 cache, stock kernel, which is faster for it): 2.00× (2.00 to 2.00)."


def test_a_size_of_ram_is_chosen_in_which_the_baseline_fits_fewer():
    positions = section(pair()).numbers[2]
    assert positions.sentence.startswith("In 40 MiB of RAM"), "32 MiB hold neither, 48 MiB hold all of both"
    assert positions.value == "2,048"
    same = section([made_record(kernel="stock"), made_record("Q-MQA")]).numbers[2]
    assert same.sentence == "In 64 MiB of RAM (all that the model has), instead of 2,048 with QKV as it runs today."


def test_only_records_of_one_run_are_compared():
    apart = [made_record(), made_record("Q-MQA", run="run-2")]
    assert verdict(apart).startswith("No variant was measured beside a baseline")


def test_a_throttled_run_says_so():
    said = section([made_record(throttled=True), made_record("Q-MQA", cache_mib=1)])
    assert said.compared.endswith("The machine throttled during this run.")
    assert any("throttled" in note for note in said.notes)


def test_nothing_but_failures():
    failure = Failure(3, "", "now", "adb://A1", None, "it is offline")
    found = content([], [failure])
    assert found.verdict == "Nothing could be measured; why is told below."
    assert "it is offline" in page(found)
    assert "it is offline" in markdown(found)


def test_emulated_records_give_no_times():
    emulated = replace(ENVIRONMENT, emulated=True)
    quiet = {"environment": emulated, **NOT_TIMED}
    found = content([made_record(**quiet), made_record("Q-MQA", **quiet)], [])
    assert found.verdict.startswith("No variant was measured")
    text = page(found)
    assert "5 6 7" in text
    assert "<svg" not in text
    assert "emulated: the ids" in markdown(found)


class Cells(HTMLParser):
    """All text of the table cells of a page, and its tags."""

    def __init__(self, text):
        super().__init__()
        self.cells, self.tags, self._in = [], [], False
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self._in = tag in ("td", "th")
        if self._in:
            self.cells.append("")

    def handle_endtag(self, tag):
        self._in = False

    def handle_data(self, data):
        if self._in:
            self.cells[-1] += data


def test_the_numbers_on_the_page_are_those_of_the_records():
    records = [made_record(), made_record("Q-MQA", milliseconds=7.77, cache_mib=3, parity=PARITY)]
    text = page(content(records, [], budget=40 * MIB))
    cells = Cells(text).cells
    for record in records:
        row = cells.index(record.subject.variant, cells.index("memory, MiB"))
        split = record.memory.split
        assert cells[row + 1 : row + 5] == [
            f"{x / MIB:,.1f}" for x in (split.weights, split.cache, split.rest, (32 * MIB + split.cache))
        ]
        for one in record.timings.decode:
            assert f"{one.p50_s * 1e3:.2f} {one.p90_s * 1e3:.2f} {one.p99_s * 1e3:.2f}" in cells
            assert f"{one.p50_s:.6g}" in cells, "in the table of every number"
    assert f"30.30 (+1.00{NBSP}%), passed" in cells
    assert "1,024" in cells, "the capacity that fits in the budget"
    assert "2,048 (all it has)" in cells
    for svg_number in ("40 MiB", "35 MiB (−12 %)"):  # the totals beside the bars, without a line break
        assert f">{svg_number.replace(' MiB', NBSP + 'MiB').replace(' %', NBSP + '%')}</text>" in text


def test_records_at_the_ends_of_what_they_may_hold_make_a_report():
    """Whatever a results file of the schema holds: no time, no memory, no common depth, numbers beyond any machine."""
    chance = random.Random(0)
    sizes = (0, 1, 2**40, 2**62)
    for _ in range(20):
        run = []
        for variant in ("QKV", "QKV", "Q-K=V", "Q-MQA"):
            depths = sorted(chance.sample([0, 1, 10, 2**31], chance.randrange(4)))
            decode = tuple(timing(d, 1, (chance.choice((1e-12, 1e-3, 1e9)),) * chance.choice((1, 5))) for d in depths)
            memory = chance.choice((None, MemorySplit(*(chance.choice(sizes) for _ in range(3)))))
            facts = {"kernel": chance.choice(("fused", "stock")), "cache": chance.choice(("fp32", "int8", "x"))}
            facts |= {
                "cache_bytes_per_position": chance.choice((1, 2**62)),
                "weights_bytes_a_token": chance.choice((None, 2**62)),
            }
            speed = Bandwidth(one_thread=chance.choice(((), (1e-9,), (1e30,))), threads=(), source="numpy")
            run.append(made_record(variant, decode=decode, split=memory, bandwidth=speed, **facts))
        found = content(run, [], chance.choice((None, 1, 2**62)))
        assert "</html>" in page(found)
        assert found.verdict in " ".join(markdown(found).replace("\\", "").split())


def test_the_page_needs_nothing_but_itself():
    text = page(content(pair(), []))
    tags = Cells(text).tags
    assert not {tag for tag, _ in tags} & {"script", "link", "iframe", "img", "object", "embed", "base", "form"}
    for _, attributes in tags:
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in ("src", "href", "xlink:href", "srcset"):
                assert value.startswith("#")
    assert "url(http" not in text
    assert "@import" not in text
    ids = [attributes["id"] for _, attributes in tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    used = re.findall(r'href="#([^"]+)"', text) + re.findall(r"url\(#([^)]+)\)", text)
    assert used
    assert set(used) <= set(ids), "every reference inside the drawings leads somewhere"


HOSTILE = "</style></text><script>alert(1)</script>\"'><img src=x onerror=alert(2)> $x^2$ | `rm`\n# [a](javascript:b)"


def hostile_records():
    environment = replace(
        ENVIRONMENT, model=HOSTILE, soc=HOSTILE, os=HOSTILE, os_kernel=HOSTILE, affinity=HOSTILE, governors=(HOSTILE,)
    )
    vitals = (replace(COLD, battery_status=HOSTILE, temperatures={HOSTILE: 30_000}),) * 2
    words = {"environment": environment, "vitals": vitals, "device": HOSTILE, "bundle": HOSTILE, "runtime_version": HOSTILE}
    words |= {
        "kernel": HOSTILE,
        "cache": HOSTILE,
        "weights": HOSTILE,
        "program": ProgramEntry(HOSTILE, HOSTILE, HOSTILE, {}),
        "time": HOSTILE,
    }
    return [made_record(**words), made_record("Q-MQA", milliseconds=5.0, **words)]


def test_a_hostile_device_cannot_inject_into_the_page():
    failure = Failure(3, HOSTILE, HOSTILE, HOSTILE, HOSTILE, HOSTILE)
    text = page(content(hostile_records(), [failure]))
    tags = Cells(text).tags
    assert not {tag for tag, _ in tags} & {"script", "img", "a"}
    assert text.count("</style>") - text.count("<style") == 0
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert "default-src 'none'" in text


def test_a_hostile_device_cannot_inject_into_markdown():
    text = markdown(content(hostile_records(), []))
    assert "<" not in text.replace("\\<", "")
    assert not re.search(r"(?<!\\)[`\[\]]", text)
    rows = [line for line in text.splitlines() if line.startswith("|")]
    columns = {len(re.findall(r"(?<!\\)\|", row)) for row in rows}
    assert len(columns) <= 4, "no cell opens another column"


def test_the_command_writes_both_kinds(cli, tmp_path):
    append(tmp_path / "r.jsonl", pair())
    for kind in ("html", "md", "svg"):
        outcome = cli("report", tmp_path / "r.jsonl", "--out", tmp_path / f"r.{kind}", "--ram-budget", "64MiB")
        assert outcome.code == 0, outcome.err
        assert "decodes 2.0 times as fast" in outcome.out
        assert "decodes 2.0 times as fast" in (tmp_path / f"r.{kind}").read_text()


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["r.jsonl", "--out", "r.pdf"], "ends in neither .html nor .md nor .svg"),
        (["r.jsonl", "--out", "nowhere/r.html"], "the folder nowhere does not exist"),
        (["missing.jsonl", "--out", "r.html"], "missing.jsonl does not exist"),
        (["empty.jsonl", "--out", "r.html"], "there are no records; edgeqkv bench --results writes them"),
        (["old.jsonl", "--out", "r.html"], "expected a record of schema 3, found 2; measure again"),
    ],
)
def test_bad_input(cli, tmp_path, monkeypatch, arguments, reason):
    monkeypatch.chdir(tmp_path)
    append(tmp_path / "r.jsonl", pair())
    (tmp_path / "empty.jsonl").write_text("\n")
    (tmp_path / "old.jsonl").write_text('{"schema": 2}\n')
    outcome = cli("report", *arguments)
    assert outcome.code == 2
    assert reason in one_sentence(outcome)
    assert not (tmp_path / "r.html").exists()
