"""``edgeqkv bench --in-app``: the real adb client, a phone that answers as one does (phone.py), and a real worker in it."""

import json
import os
import shutil
import stat
from importlib.metadata import distribution
from pathlib import Path
from xml.etree import ElementTree

import onnxruntime
import pytest
from adbd import Adbd
from conftest import one_sentence
from msgspec.structs import replace
from phone import LAUNCHER, PACKAGE, Phone, make_apk, version
from records import made_record

import edgeqkv
from edgeqkv.bench import android, in_app
from edgeqkv.bench.results import append, read_results
from edgeqkv.bench.running import RunningCell
from edgeqkv.bench.words import notes, runs
from edgeqkv.files import file_sha256

RUNNER = distribution("edgeqkv").locate_file("edgeqkv/runtimes/run/edgeqkv-run")
LIBRARY = next(Path(onnxruntime.__file__).parent.glob("capi/libonnxruntime.so*"))
needs_adb = pytest.mark.skipif(shutil.which("adb") is None, reason="needs Debian's adb")


@pytest.fixture(params=["14", "8"])
def release(request):
    return request.param


@pytest.fixture
def phone(adb_server, tmp_path):
    """Starts a phone; ``phone.serial`` is how adb calls it."""
    started = []

    def start(state="device", **values):
        one = Phone(tmp_path / "phone one", RUNNER, LIBRARY)
        one.set(**values)
        one.adbd = Adbd(state, one.environment)
        one.serial = one.adbd.serial
        started.append(one)
        return one

    yield start
    for one in started:
        for name in one.process_ids():
            one.kill(name, "at the end of a test")
        one.adbd.vanish()


@pytest.fixture
def bundles(tiny_model, tmp_path):
    for variant in ("QKV", "Q-MQA"):
        edgeqkv.export(tiny_model(variant), tmp_path / "my bundles" / variant)
    return [tmp_path / "my bundles" / "QKV", tmp_path / "my bundles" / "Q-MQA"]


@pytest.fixture
def apk(tmp_path):
    return make_apk(tmp_path / "the app.apk", 200)


@pytest.fixture
def bench(cli, bundles, apk, tmp_path):
    """Runs the command on a phone, with more options."""
    folder = tmp_path / "sd card"
    folder.mkdir()

    def run(phone, *more, which=bundles[1:], rounds=1):
        quick = ["--no-baseline", "--depths", "8", "--steps", 2, "--threads", 1, "--cool-down", 0, "--rounds", rounds]
        place = ["--device", f"adb://{phone.serial}", "--folder", folder, "--in-app", "--apk", apk]
        return cli("bench", *which, *quick, *place, *more)

    return run


@needs_adb
def test_an_app_that_is_missing_is_installed_and_measured(bench, phone, bundles, apk, tmp_path, release):
    one = phone(release=release, awake=False)
    outcome = bench(one, "--json", which=bundles, rounds=2)
    assert outcome.code == 0, outcome.err
    assert one.installed.read_bytes() == apk.read_bytes()
    records = json.loads(outcome.out)
    assert len(records) == 2
    for record in records:
        bundle = bundles[0] if record["subject"]["variant"] == "QKV" else bundles[1]
        session = edgeqkv.open(bundle, kernel=record["subject"]["kernel"])
        assert record["greedy_ids"] == list(session.generate([1, 2, 3], limit=16))
        assert (record["program"]["name"], record["rounds_done"], record["interleaving"]) == ("app", 2, "resident")
        assert (record["environment"]["os"], record["environment"]["model"]) == (f"Android {release}", "Test Phone 9")
        app = record["app"]
        assert (app["package"], app["version_name"], app["version_code"]) == (PACKAGE, "0.2.0", 200)
        assert app["apk_sha256"] == file_sha256(apk)
        assert app["memory"]["total_pss"] > 2**20, "of the process itself"
        assert app["memory"]["native_heap"] == (12464 if release == "14" else 46620) * 1024
        assert len(record["vitals"]) == 3
        assert (record["vitals"][0]["screen_on"], record["vitals"][0]["in_front"]) == (False, None)
        for vitals in record["vitals"][1:]:
            assert (vitals["screen_on"], vitals["locked"], vitals["battery_percent"]) == (True, False, 85)
            assert vitals["in_front"] == f"{PACKAGE}/.MeasureActivity1", "the last of the two"
            assert (vitals["battery_status"], vitals["on_mains"]) in (("Charging", True), (vitals["battery_status"], None))
            assert vitals["temperatures"]["battery"] == 28_300
            if release == "14":
                assert (vitals["thermal_status"], vitals["temperatures"]["skin"]) == (0, 33_200)
    assert one.process_ids() == {}, "nothing of it is left"
    fronts = one.get("started")
    assert fronts.count(f"{PACKAGE}/.MeasureActivity0") >= 4, "before each visit it comes to the front again"
    sent = list((tmp_path / "sd card").rglob("model.data"))
    assert len(sent) == 2
    for path in (sent[0], *sent[0].relative_to(tmp_path / "sd card").parents):
        mode = (tmp_path / "sd card" / path).stat().st_mode
        assert mode & stat.S_IROTH, "the app is another user of the phone"
    assert not [script for script in one.adbd.commands if "cat > " in script and ".apk" in script]


@needs_adb
@pytest.mark.parametrize(("there", "installs"), [(199, True), (200, False)])
def test_another_build_is_replaced_and_the_same_is_kept(bench, phone, apk, there, installs):
    one = phone()
    one.installed.parent.mkdir()
    if there == 200:
        shutil.copy(apk, one.installed)
    else:
        make_apk(one.installed, there)
    assert bench(one).code == 0
    assert version(one.installed)["code"] == 200
    assert bool([script for script in one.adbd.commands if "pm install" in script]) == installs


@needs_adb
@pytest.mark.parametrize(
    ("there", "refuses", "reason"),
    [
        (201, "", "the device has a newer version of it; name that, or remove it: adb uninstall"),
        (None, "INSTALL_FAILED_INSUFFICIENT_STORAGE: Failed to override location", "free some space on the device"),
        (199, "INSTALL_FAILED_UPDATE_INCOMPATIBLE: Existing package signatures do not match", "signed with another key"),
        (None, "INSTALL_FAILED_USER_RESTRICTED: Install canceled by user", "allow installing over USB"),
    ],
)
def test_an_app_that_cannot_be_installed(bench, phone, there, refuses, reason):
    one = phone(install=refuses)
    if there:
        one.installed.parent.mkdir()
        make_apk(one.installed, there)
    outcome = bench(one)
    assert outcome.code == 2
    assert "the app.apk cannot be installed: Failure [INSTALL_FAILED_" in (sentence := one_sentence(outcome))
    assert reason in sentence


@needs_adb
def test_a_phone_without_room_for_the_bundles(bench, phone):
    one = phone()
    df = one.folder / "bin" / "df"
    df.write_text("#!/bin/sh\nprintf 'Filesystem 1K-blocks Used Available Use%% Mounted on\\n/dev/f 99 96 3 99%% /data\\n'\n")
    df.chmod(0o755)
    outcome = bench(one)
    assert outcome.code == 2
    assert "MiB have to be sent and 0.0 MiB are free; free some space" in one_sentence(outcome)


@needs_adb
@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"locked": True}, "it is locked; unlock it"),
        ({"awake": False, "wakes": False}, "its screen stays off; switch it on"),
    ],
)
def test_a_phone_that_nobody_could_look_at(bench, phone, monkeypatch, values, reason):
    monkeypatch.setattr(in_app, "SECONDS_TO_START", 0.2)
    outcome = bench(phone(**values))
    assert outcome.code == 2
    assert reason in one_sentence(outcome)


@needs_adb
def test_a_phone_that_does_not_let_us_in(bench, phone):
    outcome = bench(phone(state="unauthorized"))
    assert outcome.code == 2
    assert "unlock it and allow USB debugging for this computer" in one_sentence(outcome)


@needs_adb
@pytest.mark.parametrize(
    ("release", "reason"),
    [
        ("14", "ended during 'fill': Android ended it for want of memory; measure fewer bundles at once, or smaller ones"),
        ("8", "ended during 'fill': Android does not say why"),
    ],
)
def test_an_app_that_is_killed_half_way_costs_one_cell(bench, phone, bundles, tmp_path, monkeypatch, release, reason):
    one, before, seen = phone(release=release), RunningCell.at_depth, []

    def is_killed(self, depth):
        if not seen:
            one.kill("measure0", "3 (LOW_MEMORY)")
        seen.append(depth)
        before(self, depth)

    monkeypatch.setattr(RunningCell, "at_depth", is_killed)
    outcome = bench(one, "--results", tmp_path / "r.jsonl", which=bundles)
    assert outcome.code == 1
    records, failures = read_results([tmp_path / "r.jsonl"])
    assert [(r.subject.variant, r.rounds_done) for r in records] == [("Q-MQA", 1)]
    assert [f.bundle for f in failures] == ["QKV"]
    assert reason in failures[0].message


@needs_adb
def test_a_run_goes_on_where_it_stood_and_never_from_the_shells(bench, cli, phone, bundles, tmp_path):
    one, results = phone(), ["--results", tmp_path / "r.jsonl", "--resume"]
    shell = ["--no-baseline", "--depths", "8", "--steps", 2, "--threads", 1, "--cool-down", 0, "--rounds", 1, *results]
    named = ["--device", f"adb://{one.serial}", "--folder", tmp_path / "sd card", "--runner", RUNNER, "--library", LIBRARY]
    assert cli("bench", bundles[1], *shell, *named).code == 0
    assert bench(one, *results).code == 0
    assert bench(one, *results).code == 0
    records, _ = read_results([tmp_path / "r.jsonl"])
    assert [r.program.name for r in records] == ["edgeqkv-run", "app"]
    assert len({r.run for r in records}) == len({r.cell for r in records}) == 2
    assert len((tmp_path / "r.jsonl").read_text().splitlines()) == 2, "the second run in the app had nothing to do"


@needs_adb
def test_the_app_behind_another_one_is_told_of(bench, phone, tmp_path, monkeypatch):
    one, before = phone(), RunningCell.end_round

    def is_left(self):
        before(self)
        one.set(front=LAUNCHER)

    monkeypatch.setattr(RunningCell, "end_round", is_left)
    outcome = bench(one, "--results", tmp_path / "r.jsonl")
    assert "the app was not in front all the time" in outcome.out
    records, _ = read_results([tmp_path / "r.jsonl"])
    assert [v.in_front for v in records[0].vitals[1:]] == [LAUNCHER]


@needs_adb
def test_more_cells_than_the_app_has_processes(bench, phone, bundles, monkeypatch):
    monkeypatch.setattr(in_app.App, "most_cells", 1)
    outcome = bench(phone(), which=bundles)
    assert outcome.code == 2
    assert "the app measures 1 bundles and kernels in one run at most, and there are 2" in one_sentence(outcome)


@needs_adb
def test_an_app_for_another_processor(bench, phone, apk):
    make_apk(apk, 200, abi="arm64-v8a")
    outcome = bench(phone())
    assert outcome.code == 3
    assert f"is {os.uname().machine}, and the app.apk has libraries for arm64-v8a" in one_sentence(outcome)


def test_options_that_do_not_go_together(cli, bundles, apk, tmp_path):
    common = ["bench", bundles[1], "--no-baseline", "--depths", "8", "--threads", 1]
    assert "--apk names the app for --in-app" in one_sentence(cli(*common, "--apk", apk))
    assert "--in-app measures the app" in one_sentence(cli(*common, "--in-app", "--apk", apk, "--runner", "python"))
    assert "build it with make apk" in one_sentence(cli(*common, "--in-app", "--apk", tmp_path / "none.apk"))
    assert "--in-app measures on Android, by adb://SERIAL; local is not" in one_sentence(cli(*common, "--in-app", "--apk", apk))


@needs_adb
def test_the_shell_of_a_phone_runs_what_an_app_ships(cli, phone, bundles, tmp_path, monkeypatch):
    """Built for Android it does not run here; the program of this machine stands in its place."""
    built = tmp_path / "build"
    for source, name in ((RUNNER, "bin/edgeqkv-run"), (LIBRARY, "lib/arm64-v8a/libonnxruntime.so")):
        (built / name).parent.mkdir(parents=True)
        shutil.copy(source, built / name)
    monkeypatch.setattr("edgeqkv.bench.program.ANDROID", built)
    one = phone()
    quick = ["--no-baseline", "--depths", "8", "--steps", 2, "--threads", 1, "--rounds", 1, "--cool-down", 0]
    place = ["--device", f"adb://{one.serial}", "--folder", tmp_path]
    outcome = cli("bench", bundles[1], *quick, *place, "--json")
    assert outcome.code == 0, outcome.err
    record = json.loads(outcome.out)[0]
    assert (record["program"]["name"], record["app"]) == ("edgeqkv-run", None)
    sent = tmp_path / "edgeqkv-bench" / f"runner-{os.uname().machine}"
    assert {path.name for path in sent.iterdir()} == {"edgeqkv-run", "libonnxruntime.so"}
    assert record["vitals"][0]["thermal_status"] == 0, "Android is asked in the shell too"


# -- records of app and shell -----------------------------------------------------------------------------------------


def in_app_record(**values):
    record = made_record(**values)
    return replace(record, program=replace(record.program, name="app"))


def test_app_and_shell_are_never_one_run(cli, tmp_path):
    """Not even where a file says that they were."""
    shell, app = made_record(variant="QKV"), in_app_record(variant="Q-MQA")
    assert [len(run) for run in runs([shell, app])] == [1, 1]
    append(tmp_path / "r.jsonl", [shell, app])
    assert cli("report", tmp_path / "r.jsonl", "--out", tmp_path / "r.md").code == 0
    page = (tmp_path / "r.md").read_text()
    assert "No variant was measured beside a baseline in the same run" in page
    assert " in the app (" in page, "the two stand apart under names of their own"


def test_a_record_outside_an_app_has_no_notes_about_screens():
    assert not [note for note in notes([made_record()]) if "in front" in note]


# -- what Android says ------------------------------------------------------------------------------------------------


def test_the_reason_of_an_end_is_that_of_the_process():
    text = """  package: io.github.edgeqkv.demo
    Historical Process Exit for uid=10197
        ApplicationExitInfo #0:
          timestamp=2026-10-08 22:49:31.375 pid=8297 realUid=10197 packageUid=10197 definingUid=10197 user=0
          process=io.github.edgeqkv.demo:measure0 reason=10 (USER REQUESTED) subreason=21 (FORCE STOP) status=0
        ApplicationExitInfo #1:
          timestamp=2026-10-08 22:49:23.372 pid=829 realUid=10197 packageUid=10197 definingUid=10197 user=0
          process=io.github.edgeqkv.demo:measure0 reason=5 (APP CRASH(NATIVE)) subreason=0 (UNKNOWN) status=11
"""
    assert android.reason_of_end(text, "8297") == "USER REQUESTED"
    assert android.reason_of_end(text, "829") == "APP CRASH(NATIVE)"
    assert android.reason_of_end(text, "82") is None


@pytest.mark.parametrize(
    ("lines", "found"),
    [
        ([], android.Screen(None, None, None)),
        (["mWakefulness=Dozing", "showing=true"], android.Screen(False, True, None)),
        (["mWakefulness=Awake", "mKeyguardShowing=false", "topResumedActivity=null"], android.Screen(True, False, "")),
        (
            ["topResumedActivity=ActivityRecord{1 u0 a.b/.C t1}", "ResumedActivity: ActivityRecord{2 u0 d.e/.F t2}"],
            android.Screen(None, None, "a.b/.C"),
        ),
        (["mResumedActivity: ActivityRecord{1 u0 a.b/.C t1}"], android.Screen(None, None, "a.b/.C")),
        (["ResumedActivity: ActivityRecord{1a u0 a.b/c.D}"], android.Screen(None, None, "a.b/c.D")),
    ],
)
def test_the_screen(lines, found):
    assert android.screen(lines) == found


@pytest.mark.parametrize("fields", [{}, {"level": "x"}, {"level": "50", "scale": "0"}])
def test_a_battery_that_says_nothing(fields):
    assert (android.battery_percent(fields), android.battery_temperature(fields), android.on_mains(fields)) == (None, {}, None)


# -- the app ----------------------------------------------------------------------------------------------------------


def test_the_app_declares_the_processes_that_the_host_starts():
    """And no permission: what it measures stays on the phone."""
    manifest = ElementTree.parse(Path(__file__).parents[2] / "android_demo/app/src/main/AndroidManifest.xml").getroot()
    namespace = "{http://schemas.android.com/apk/res/android}"
    declared = {node.get(f"{namespace}name"): node for node in manifest.iter("activity")}
    affinities = set()
    for number in range(in_app.PROCESSES):
        package, name = in_app.activity(number).split("/")
        node = declared[package + name]
        assert node.get(f"{namespace}process") == f":measure{number}"
        assert (node.get(f"{namespace}exported"), node.get(f"{namespace}launchMode")) == ("true", "singleTask")
        affinities.add(node.get(f"{namespace}taskAffinity"))
    assert len(affinities) == in_app.PROCESSES, "in one task they would come to the front together"
    assert list(manifest.iter("uses-permission")) == []
