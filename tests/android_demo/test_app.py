"""The demo app's sources: their tests on this machine's JVM, and what only its files can say. No test shows a screen."""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from xml.etree import ElementTree

import pytest

from edgeqkv.bench.compared import deepest
from edgeqkv.bench.ratio import FEWEST, speed_ratio
from edgeqkv.bench.results import read_results
from edgeqkv.bench.timing import timing
from edgeqkv.bench.words import notes, runs
from edgeqkv.report.content import content
from edgeqkv.report.page import page
from edgeqkv.tables import mib

ROOT = Path(__file__).parents[2]
APP = ROOT / "android_demo/app"
MAIN = APP / "src/main"
LIBRARY = ROOT / "runtimes/android"
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
CLASSES = set(re.findall(r"^class (\w+Test)\b", "".join(p.read_text() for p in APP.glob("src/test/**/*.kt")), re.MULTILINE))
PROGRAMS = ("javac", "mvn", "cmake", "aapt2")
ANDROID = "{http://schemas.android.com/apk/res/android}"
MEASURED = {
    "exported": "true",
    "launchMode": "singleTask",
    "excludeFromRecents": "true",
    "configChanges": "orientation|screenSize|screenLayout|smallestScreenSize|keyboard|keyboardHidden|uiMode|density",
}


@pytest.mark.skipif(
    not all(map(shutil.which, PROGRAMS)),
    reason="needs Debian's openjdk-17-jdk-headless, maven, cmake, aapt and android-framework-res",
)
def test_the_app_on_the_jvm():
    """One run for all of it: make android-app-test. What each class covers is said there."""
    build = ROOT / "build/android/app-jvm"
    run = subprocess.run(
        ["sh", APP / "jvm.sh", build, sys.executable], capture_output=True, text=True, timeout=900, check=False
    )
    output = run.stdout + run.stderr
    if run.returncode == 3:
        pytest.skip(run.stderr.strip())
    assert run.returncode == 0, output[-8000:]
    suites = [ElementTree.parse(path).getroot() for path in build.glob("app/surefire-reports/TEST-*.xml")]
    assert {suite.get("name", "").rpartition(".")[2] for suite in suites} == CLASSES
    for suite in suites:
        assert int(suite.get("tests", 0)) > 0
        assert [suite.get(kind) for kind in ("failures", "errors", "skipped")] == ["0", "0", "0"]
    check_records(build / "app-results")


def check_records(folder):
    """What the app measured, with edgeqkv-run in the place of a phone's processes, is read and reported like any other."""
    whole, failures = read_results([folder / "resident.jsonl"])
    assert not failures
    assert [(record.subject.variant, record.subject.baseline) for record in whole] == [
        ("QKV", "given"),
        ("Q-K=V", None),
        ("Q-MQA", None),
    ]
    for record in whole:
        assert record.program.name == "app"
        assert (record.program.edgeqkv, record.app.package) == (VERSION, "io.github.edgeqkv.demo")
        assert record.rounds_done == record.plan.rounds == FEWEST
        for one in (record.timings.first_token, *record.timings.prefill, *record.timings.decode):
            assert one == timing(one.depth, one.tokens, one.seconds)
        assert record.memory.peak == max(memory.peak_rss for memory in record.memory.phases.values())
        assert record.memory.cache_bytes == record.memory.cache_bytes_analytic
    assert notes(whole) == []
    said = (folder / "resident.txt").read_text().splitlines()
    ours = [numbers(record, whole[0]) for record in whole[1:]]
    assert [decimals(sentence) for sentence in said] == [found for found, _ in ours]
    assert ["no difference" in sentence for sentence in said] == [not differs for _, differs in ours]

    reloaded, _ = read_results([folder / "reloaded.jsonl"])
    assert [(record.interleaving, len(record.timings.load_s)) for record in reloaded] == [("reloaded", FEWEST)] * 3
    cancelled, _ = read_results([folder / "cancelled.jsonl"])
    assert notes(cancelled) == ["interrupted after 1 of 1000 rounds; --resume goes on"]
    kept, failed = read_results([folder / "failed.jsonl"])
    assert ([record.subject.variant for record in kept], [f.bundle for f in failed]) == (["QKV", "Q-MQA"], ["q-kv"])

    everything, failures = read_results(sorted(folder.glob("*.jsonl")))
    assert len(runs(everything)) == 4
    told = content(everything, failures)
    html = page(told)
    assert "in the app (measured by itself)" in html
    drawn = ["Peak memory", "Speed over depth", "Positions that fit in RAM"]
    assert [[plot.title for plot in section.plots if plot.wide] for section in told.sections] == [drawn] * 4
    assert html.count("<svg") == sum(
        (plot.wide is not None) + (plot.narrow is not None) for s in told.sections for plot in s.plots
    )


def numbers(record, base):
    """What a sentence of the app's has to say, as `edgeqkv report` finds it: MiB of memory and cache, the ratio of speeds
    with its interval, and whether they differ."""
    ratio = speed_ratio(*deepest(base, record), record.rounds_done)
    value, low, high = ratio.value, ratio.low, ratio.high
    if ratio.differs and value < 1:
        value, low, high = 1 / value, 1 / high, 1 / low
    saved = base.memory.peak - record.memory.peak, base.memory.cache_bytes - record.memory.cache_bytes
    return [*(mib(abs(size)) for size in saved), *(f"{one:.2f}" for one in (value, low, high))], ratio.differs


def decimals(sentence):
    return re.findall(r"\d+\.\d+", sentence)


def test_its_colours_are_the_reports():
    css = "".join((ROOT / "edgeqkv/report" / name).read_text() for name in ("drawing.css", "page.css"))
    rule = r"@media \(prefers-color-scheme: dark\) \{\s*:root \{([^}]*)\}"
    dark, light = "".join(re.findall(rule, css)), "".join(re.findall(r"^:root \{([^}]*)\}", css, re.MULTILINE))
    assert "--series-0" in dark
    for text, folder in ((light, "values"), (dark, "values-night")):
        ours = {e.get("name").replace("_", "-"): e.text for e in ElementTree.parse(MAIN / f"res/{folder}/colors.xml").getroot()}
        theirs = {name: long(colour) for name, colour in re.findall(r"--([\w-]+): (#[0-9a-f]{3,6});", text)}
        shared = set(ours) - {"icon-back"}
        assert {name for name in theirs if name.startswith("series")} <= shared
        assert {name: ours[name] for name in shared} == {name: theirs[name] for name in shared}


def long(colour):
    return colour if len(colour) == 7 else "#" + "".join(2 * digit for digit in colour[1:])


def test_one_version_and_one_compiler():
    space = "{http://maven.apache.org/POM/4.0.0}"
    app, library = (ElementTree.parse(path / "pom.xml").getroot() for path in (APP, LIBRARY))
    assert app.findtext(f"{space}version") == VERSION
    for name in ("kotlin.version", "maven.compiler.release"):
        assert app.findtext(f"{space}properties/{space}{name}") == library.findtext(f"{space}properties/{space}{name}")


def test_the_manifest_asks_for_nothing_and_says_what_the_host_expects():
    manifest = ElementTree.parse(MAIN / "AndroidManifest.xml").getroot()
    assert [child.tag for child in manifest] == ["application"], "no permission, no library, no feature"
    components = [c for c in manifest[0] if c.get("{http://schemas.android.com/tools}node") != "remove"]
    measured = [c for c in components if ".MeasureActivity" in c.get(f"{ANDROID}name")]
    for number, activity in enumerate(measured):
        assert activity.get(f"{ANDROID}name") == f"io.github.edgeqkv.demo.MeasureActivity{number}"
        assert activity.get(f"{ANDROID}process") == f":measure{number}"
        assert {name: activity.get(ANDROID + name) for name in MEASURED} == MEASURED
    assert len(measured) == len({activity.get(f"{ANDROID}taskAffinity") for activity in measured}) == 8
    exported = [c.get(f"{ANDROID}name").rpartition(".")[2] for c in components if c.get(f"{ANDROID}exported") == "true"]
    assert exported == ["MainActivity", *(f"MeasureActivity{number}" for number in range(8))]
    services = [c for c in components if c.tag == "service"]
    assert len({service.get(f"{ANDROID}process") for service in services}) == len(services) == 4
    assert f"const val MOST = {len(services)}" in source("CompareModel")
    named = {c.get(f"{ANDROID}name").rpartition(".")[2] for c in components}
    everything = "".join(path.read_text() for path in MAIN.glob("kotlin/**/*.kt"))
    assert named <= set(re.findall(r"^class (\w+)", everything, re.MULTILINE))


def source(name):
    return (MAIN / f"kotlin/io/github/edgeqkv/demo/{name}.kt").read_text()


def test_layouts_are_for_everybody():
    """All words are strings of their own, everything that is touched is 48 dp high, every field and progress has a name."""
    strings = {e.get("name") for e in ElementTree.parse(MAIN / "res/values/strings.xml").getroot()}
    styles = {
        e.get("name"): {i.get("name"): i.text for i in e} for e in ElementTree.parse(MAIN / "res/values/styles.xml").getroot()
    }
    code = "".join(path.read_text() for path in MAIN.glob("kotlin/**/*.kt"))
    layouts = [ElementTree.parse(path).getroot() for path in sorted(MAIN.glob("res/layout/*.xml"))]
    views = [view for layout in layouts for view in layout.iter()]
    manifest = (MAIN / "AndroidManifest.xml").read_text()
    used = set(re.findall(r"R\.string\.(\w+)", code)) | set(re.findall(r"@string/(\w+)", manifest))
    labelled = {view.get(f"{ANDROID}labelFor", "").rpartition("/")[2] for view in views}
    for view in views:
        style = styles.get(view.get("style", "").removeprefix("@style/"), {})
        for attribute in ("text", "hint", "contentDescription"):
            value = view.get(ANDROID + attribute, "")
            used |= set(re.findall(r"^@string/(\w+)$", value))
            assert not value or value.startswith("@string/") or re.fullmatch(r"[\d.]+", value), value
        if view.tag in ("Button", "EditText", "Spinner"):
            assert (view.get(f"{ANDROID}minHeight") or style.get("android:minHeight")) == "48dp"
            assert (view.get(f"{ANDROID}layout_height") or style.get("android:layout_height")) == "wrap_content"
        if view.tag == "EditText":
            assert view.get(f"{ANDROID}hint") or view.get(f"{ANDROID}id").rpartition("/")[2] in labelled
        if view.tag in ("ProgressBar", "Spinner"):
            assert view.get(f"{ANDROID}contentDescription")
        size = view.get(f"{ANDROID}textSize", "sp")
        assert size.endswith("sp"), "as large as the user has it"
    assert used == strings
