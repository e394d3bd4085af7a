"""A results file keeps what it holds, whatever happens to a line that is appended to it."""

import resource
import subprocess
import sys

import pytest
from records import made_record

from edgeqkv.bench.results import append, check_writable, json_line, read_results
from edgeqkv.errors import EdgeQKVError

APPENDING = """
import sys
from pathlib import Path
from edgeqkv.bench.results import append, read_results
path = Path(sys.argv[1])
append(path, read_results([path])[0])
"""


def test_a_line_that_a_killed_program_left_is_removed(tmp_path):
    path, line = tmp_path / "r.jsonl", json_line(made_record())
    path.write_text(line + "\n" + line[:100])
    append(path, [made_record(cell="another")])
    assert [record.cell for record in read_results([path])[0]] == ["QKV", "another"]


def test_a_full_disk_keeps_the_records_before(tmp_path):
    """A limit on file size stands in for it."""
    path = tmp_path / "r.jsonl"
    append(path, [made_record()])
    before, limit = path.read_bytes(), path.stat().st_size + 1000
    run = subprocess.run(
        [sys.executable, "-c", APPENDING, path],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert "r.jsonl: File too large; the records before are kept" in run.stderr
    assert path.read_bytes() == before


@pytest.mark.parametrize(("held", "refused"), [("", False), ("{", False), ("my notes", True)])
def test_only_a_results_file_is_appended_to(tmp_path, held, refused):
    path = tmp_path / "notes.txt"
    path.write_text(held)
    if refused:
        with pytest.raises(EdgeQKVError, match="holds something else than records"):
            check_writable(path)
    else:
        check_writable(path)
    assert path.read_text() == held
