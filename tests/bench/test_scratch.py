"""What a killed program leaves in /tmp is removed by the next one, and nothing else is."""

import subprocess
import sys
import tempfile

from edgeqkv.bench.scratch import LOCK, scratch_folder

KILLED = """
import os, signal
from edgeqkv.bench.scratch import scratch_folder
with scratch_folder() as folder:
    print(folder, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_program_left_is_removed(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    left = subprocess.run([sys.executable, "-c", KILLED], capture_output=True, text=True).stdout.strip()
    assert [str(path) for path in tmp_path.iterdir()] == [left]
    (tmp_path / "edgeqkv-mine").mkdir()  # of a name like ours, without a lock
    with scratch_folder() as held:
        assert {path.name for path in tmp_path.iterdir()} == {held.name, "edgeqkv-mine"}
        with scratch_folder() as second:
            assert held.is_dir(), "another one that lives is left alone"
            assert (second / LOCK).is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["edgeqkv-mine"]
