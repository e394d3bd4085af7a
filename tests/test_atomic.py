"""A target is absent, old or complete, whatever happens to its writer; and nothing is left lying about."""

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import edgeqkv.atomic
from edgeqkv.atomic import atomic_folder, atomic_write
from edgeqkv.errors import EdgeQKVError

FILES, SIZE = 20, 1_000_000
WRITER = f"""
import sys
from pathlib import Path
from edgeqkv.atomic import atomic_folder, atomic_write
target = Path(sys.argv[1])
print("ready", flush=True)
for version in range(10**9):
    with atomic_folder(target / "folder", ours=("0",) + tuple(map(str, range(1, {FILES})))) as scratch:
        for i in range({FILES}):
            (scratch / str(i)).write_text(str(version))
    atomic_write(target / "file", bytes({SIZE}))
"""


def write(target, version):
    with atomic_folder(target, ours=tuple(map(str, range(FILES)))) as scratch:
        for i in range(FILES):
            (scratch / str(i)).write_text(version)


def versions(folder):
    return {(folder / str(i)).read_text() for i in range(FILES)}


def test_a_writer_that_is_killed_leaves_old_or_new_and_the_next_one_tidies_up(tmp_path):
    left, states = 0, set()
    for moment in range(15):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, tmp_path], stdout=subprocess.PIPE, text=True)
        assert writer.stdout.readline() == "ready\n"
        time.sleep(0.006 * moment)
        writer.send_signal(signal.SIGKILL)
        writer.communicate()
        if (tmp_path / "folder").exists():
            assert len(versions(tmp_path / "folder")) == 1
            states |= versions(tmp_path / "folder")
        if (tmp_path / "file").exists():
            assert (tmp_path / "file").stat().st_size == SIZE
        left += sum(name.endswith(".part") for name in os.listdir(tmp_path))
        write(tmp_path / "folder", "mine")
        atomic_write(tmp_path / "file", bytes(SIZE))
        assert sorted(os.listdir(tmp_path)) == ["file", "folder"]
        assert versions(tmp_path / "folder") == {"mine"}
    assert left, "no writer was killed in the midst of its work, which is what this is about"
    assert len(states) > 2


def test_the_target_is_there_all_the_time(tmp_path):
    target = tmp_path / "folder"
    write(target, "0")
    absent, over = [], threading.Event()

    def look():
        while not over.is_set():
            absent.extend([True] if not os.path.exists(target / "0") else [])

    reader = threading.Thread(target=look)
    reader.start()
    for version in range(200):
        write(target, str(version))
    over.set()
    reader.join()
    assert absent == []


def test_without_an_exchange_two_names_are_changed(tmp_path, monkeypatch):
    monkeypatch.setattr(edgeqkv.atomic, "_exchange", lambda one, other: False)
    for version in ("old", "new"):
        write(tmp_path / "folder", version)
    assert (os.listdir(tmp_path), versions(tmp_path / "folder")) == (["folder"], {"new"})


def test_many_writers_of_one_target(tmp_path):
    """The last one wins, and none of them fails."""
    failed = []

    def several(name):
        try:
            for _ in range(20):
                write(tmp_path / "folder", name)
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=several, args=(str(i),)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert os.listdir(tmp_path) == ["folder"]
    assert len(versions(tmp_path / "folder")) == 1


def test_what_came_meanwhile_and_is_not_ours_is_kept(tmp_path):
    target = tmp_path / "folder"

    def write_beside_another():
        with atomic_folder(target):
            target.mkdir()
            (target / "thesis.tex").write_text("work")

    with pytest.raises(EdgeQKVError, match="holds thesis.tex, so it is not replaced"):
        write_beside_another()
    assert (os.listdir(tmp_path), os.listdir(target)) == (["folder"], ["thesis.tex"])


def test_a_listing_of_what_was_exchanged_meanwhile_does_not_count(tmp_path, monkeypatch):
    """Half emptied by the writer that put another in its place, the old folder looks like one that is not ours."""
    write(tmp_path / "folder", "old")
    really = os.listdir

    def listing(opened):
        monkeypatch.setattr(os, "listdir", really)
        write(tmp_path / "folder", "new")
        return ["1"]

    monkeypatch.setattr(os, "listdir", listing)
    write(tmp_path / "folder", "newest")
    assert versions(tmp_path / "folder") == {"newest"}


def test_a_writer_at_work_is_not_tidied_away(tmp_path):
    with atomic_folder(tmp_path / "folder") as first:
        (first / "a").write_text("first")
        with pytest.raises(RuntimeError), atomic_folder(tmp_path / "folder"):
            raise RuntimeError
        assert (first / "a").exists()
    assert (tmp_path / "folder/a").read_text() == "first"


def test_only_what_is_of_the_same_target_is_tidied_away(tmp_path):
    names = [".file.mine", ".other.abc.part", "file.part", ".filed.abc.part"]
    for name in names:
        (tmp_path / name).write_text("kept")
    (tmp_path / ".file.abc.part").write_text("left by a killed writer")
    atomic_write(tmp_path / "file", b"x")
    assert sorted(os.listdir(tmp_path)) == sorted([*names, "file"])


def test_a_write_that_is_cut_short_without_a_number_is_a_full_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(edgeqkv.atomic, "_is_full", lambda folder: True)
    with (
        pytest.raises(EdgeQKVError, match=f"cannot write .*folder: {os.strerror(errno.ENOSPC)}; nothing was left behind"),
        atomic_folder(tmp_path / "folder"),
    ):
        raise OSError("4096 requested and 2944 written")
    assert not Path(tmp_path / "folder").exists()
