"""The Python example runs; those in C and C++ are in tests/runtimes/native/test_library.py."""

import subprocess
import sys
from pathlib import Path

import edgeqkv

ROOT = Path(__file__).parents[1]


def test_sessions(tmp_path):
    edgeqkv.export(ROOT / "models/q-mqa", tmp_path / "bundle", cache="int8")
    command = [sys.executable, ROOT / "examples/sessions.py", tmp_path / "bundle", "Once upon a time"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert " bytes saved\none: " in done.stdout
    assert "\nheld: Once upon a time" in done.stdout
