"""The demo: its commands, what it keeps of an earlier one, and the whole of it in small."""

import os
from collections import namedtuple

import pytest
from conftest import MODELS, one_sentence

from edgeqkv.bench import device
from edgeqkv.demo import kept, script
from edgeqkv.demo.cli import demo
from edgeqkv.demo.running import Pace, in_words
from edgeqkv.demo.script import Command, gain, stories
from edgeqkv.errors import EdgeQKVError


def test_what_a_team_has_today_is_measured_with_every_change_on_the_way_to_ours(tmp_path):
    (measuring,) = (command for command in gain(tmp_path, 6) if command.arguments[0] == "bench")
    named = [
        name.removeprefix(f"{tmp_path}/") for name in measuring.arguments if name.startswith(str(tmp_path)) and ":" in name
    ]
    assert named == [
        "qkv-fp32:stock", "qkv-fp32:fused", "qkv-fp16:stock", "qkv-int8:fused", "q-kv-int8:fused", "q-mqa-int8:fused",
    ]  # fmt: skip


def test_a_model_is_made_for_missing_exports_alone_and_removed_after_the_last(tmp_path):
    for name in ("qkv-fp32", "qkv-fp16", "q-kv-int8"):
        (tmp_path / name).mkdir()
    commands = [command for command in gain(tmp_path, 6) if command.arguments[0] in ("new", "export")]
    wanted = [command for command in commands if not command.makes.exists()]
    assert [(command.arguments[0], command.makes.name) for command in wanted] == [
        ("new", "qkv"), ("export", "qkv-int8"), ("new", "q-mqa"), ("export", "q-mqa-int8"),
    ]  # fmt: skip
    assert [command.removes and command.removes.name for command in wanted] == [None, "qkv", None, "q-mqa"]


def test_every_trained_model_is_exported_verified_and_heard(tmp_path):
    models = [MODELS / "qkv", MODELS / "q-mqa"]
    assert [command.arguments[0] for command in stories(models, tmp_path)] == ["export"] * 2 + ["verify"] * 2 + ["generate"] * 2


def test_the_time_that_is_left_goes_by_how_fast_this_machine_is():
    commands = [Command(("a",), 60.0), Command(("b",), 60.0), Command(("c",), 120.0)]
    pace = Pace()
    assert pace.left(commands) == 240.0
    pace.took(commands[0], 150.0)  # twice as slow, with the half minute that comes first
    assert pace.left(commands[1:]) == 360.0
    assert (in_words(5.2), in_words(89.0), in_words(200.0)) == ("about 5 s", "about 89 s", "about 3 min")


def test_exports_are_kept_until_the_exporters_change(tmp_path, monkeypatch):
    kept.forget_old(tmp_path)
    (tmp_path / "bundle").mkdir()
    kept.forget_old(tmp_path)
    assert (tmp_path / "bundle").exists()
    monkeypatch.setattr(kept, "exporters", lambda: "another version")
    kept.forget_old(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [kept.STAMP]


def test_the_exporters_are_their_source():
    assert kept.exporters() == kept.exporters()
    assert len(kept.exporters().split()[1]) == 16


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--rounds", "4"], "--rounds is from 5, for an interval to mean anything, to 9, found 4"),
        (["missing"], "missing is no model folder: it holds no config.json"),
        (["--out", "mine"], "mine/300m holds files that are not a demo's; name another folder with --out"),
        (["--out", "full"], "MiB free, and the demo needs 3,072; name another with --out"),
    ],
)
def test_bad_input(cli, tmp_path, monkeypatch, arguments, reason):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine" / "300m").mkdir(parents=True)
    (tmp_path / "mine" / "300m" / "notes.txt").write_text("mine")
    if "full" in arguments:
        monkeypatch.setattr(kept.shutil, "disk_usage", lambda path: namedtuple("Usage", "free")(2**30))
    outcome = cli("demo", *arguments)
    assert outcome.code == 2
    assert reason in one_sentence(outcome)
    assert (tmp_path / "mine" / "300m" / "notes.txt").exists()


def test_an_adb_that_hangs_is_no_error_at_the_end(tmp_path, monkeypatch):
    (tmp_path / "adb").write_text("#!/bin/sh\nexec sleep 30\n")
    (tmp_path / "adb").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(device, "SECONDS_TO_ANSWER", 0.2)
    with pytest.raises(EdgeQKVError, match="adb devices did not answer in 0.2 seconds; end its server with: adb kill-server"):
        device.attached()
    assert "adb://SERIAL" in script.closing(tmp_path)


def test_the_whole_demo_in_small(tmp_path, monkeypatch, capfd):
    """A small geometry, and the ends of the way alone."""
    monkeypatch.setattr(script, "PRESET", "tale-4m")
    monkeypatch.setattr(script, "DEPTHS", "32,400")
    monkeypatch.setattr(script, "VARIANTS", {"qkv": ("QKV", {"fp32": ("stock",)}), "q-mqa": ("Q-MQA", {"int8": ("fused",)})})
    monkeypatch.setattr(script, "attached", lambda: [("adb://A1", "device")])
    demo([], tmp_path / "demo", 5)
    said = capfd.readouterr().out
    folder = tmp_path / "demo" / "300m"
    assert f"{folder / 'report.html'}: At 400 positions, Q-MQA needs" in said
    assert "left] edgeqkv new tale-4m --variant QKV" in said
    assert "adb://A1" in said.splitlines()[-1]
    page = (folder / "report.html").read_text()
    assert "The weights are random" in page
    assert "<svg" in page
    assert not list((folder / "models").iterdir())
