"""adb devices: the real adb client and server, against a daemon of ours that runs commands on this machine."""

import json
import os
import shutil
import subprocess
import sys

import pytest
from adbd import Adbd
from conftest import one_sentence

import edgeqkv
from edgeqkv.bench.results import read_results
from edgeqkv.bench.running import RunningCell

pytestmark = pytest.mark.skipif(shutil.which("adb") is None, reason="needs Debian's adb")


@pytest.fixture
def adb(adb_server):
    """Starts a device."""
    started = []

    def start(state="device", **environment):
        started.append(Adbd(state, environment))
        return started[-1]

    yield start
    for one in started:
        one.vanish()


@pytest.fixture
def bundle(tiny_model, tmp_path):
    edgeqkv.export(tiny_model("Q-MQA"), tmp_path / "q-mqa")
    return tmp_path / "q-mqa"


@pytest.fixture
def options(tmp_path):
    folder = tmp_path / "sd card; `touch hacked` $(touch hacked)"
    folder.mkdir()
    quick = ["--no-baseline", "--depths", "8", "--steps", 2, "--threads", 1, "--cool-down", 0, "--rounds", 2]
    return [*quick, "--runner", "python", "--folder", folder, "--python", sys.executable]


def test_a_bundle_is_sent_and_measured_in_a_path_with_spaces(cli, adb, bundle, options, tmp_path):
    phone = adb()
    outcome = cli("bench", bundle, "--device", f"adb://{phone.serial}", *options, "--json")
    assert outcome.code == 0, outcome.err
    record = json.loads(outcome.out)[0]
    assert (record["device"], record["rounds_done"]) == (f"adb://{phone.serial}", 2)
    assert record["greedy_ids"] == list(edgeqkv.open(bundle, kernel=record["subject"]["kernel"]).generate([1, 2, 3], limit=16))
    ours = tmp_path / "sd card; `touch hacked` $(touch hacked)" / "edgeqkv-bench"
    sent = [path for path in ours.rglob("model.data") if path.read_bytes() == (bundle / "onnx" / "model.data").read_bytes()]
    assert len(sent) == 1, "the file is identical on the device"
    assert cli("bench", bundle, "--device", f"adb://{phone.serial}", *options, "--clean").code == 0
    assert not ours.exists()
    assert not [script for script in phone.commands if "cat > " in script and "model.data" in script][1:], "sent once only"
    assert list(tmp_path.rglob("hacked")) == []


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        ("unauthorized", "unlock it and allow USB debugging for this computer"),
        ("offline", "offline"),
    ],
)
def test_a_device_that_does_not_let_us_in(cli, adb, bundle, options, state, reason):
    phone = adb(state)
    outcome = cli("bench", bundle, "--device", f"adb://{phone.serial}", *options)
    assert outcome.code == 2
    assert reason in one_sentence(outcome)


def test_a_device_that_is_not_there(cli, adb, bundle, options):
    outcome = cli("bench", bundle, "--device", "adb://R58M", *options)
    assert outcome.code == 2
    assert "adb://R58M: connecting failed" in (sentence := one_sentence(outcome))
    assert "not found; see edgeqkv devices for what is connected" in sentence


def test_a_device_that_vanishes_keeps_what_was_measured(cli, adb, bundle, options, tmp_path, monkeypatch):
    phone, before, seen = adb(), RunningCell.at_depth, []

    def vanishes(self, depth):
        seen.append(depth)
        if len(seen) == 2:
            phone.vanish()
        before(self, depth)

    monkeypatch.setattr(RunningCell, "at_depth", vanishes)
    outcome = cli("bench", bundle, "--device", f"adb://{phone.serial}", *options, "--results", tmp_path / "r.jsonl")
    assert outcome.code == 1
    records, failures = read_results([tmp_path / "r.jsonl"])
    assert [(r.rounds_done, r.plan.rounds) for r in records] == [(1, 2)]
    assert "ended during" in failures[0].message


def test_a_hostile_serial_is_an_argument(cli, adb, bundle, options, tmp_path):
    outcome = cli("bench", bundle, "--device", f"adb://x; touch {tmp_path}/hacked", *options)
    assert outcome.code == 2
    assert not (tmp_path / "hacked").exists()


def test_devices_lists_what_adb_sees(cli, adb):
    phone = adb()
    subprocess.run(["adb", "connect", phone.serial], check=True, capture_output=True)
    found = {entry["device"]: entry for entry in json.loads(cli("devices", "--json").out)}
    assert found[f"adb://{phone.serial}"]["environment"]["cores"] == os.cpu_count()
