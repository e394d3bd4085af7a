"""Nothing leaves the machine, and nothing is left in the home folder: ONNX Runtime's telemetry stays off.

It is off where its library is loaded by us. A program that has imported onnxruntime before it opens a bundle has loaded it with
telemetry, which can only be stopped by that program: ORT_DISABLE_TELEMETRY=1 before its import.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

FORMATS = Path(__file__).parent / "formats"
WORK = {
    "open": "session = edgeqkv.open(sys.argv[1]); session.prefill([1, 2, 3]); session.save('s'); session.fork().restore('s')",
    "export": "edgeqkv.export(sys.argv[2], 'bundle', cache='int8')",
    "verify": "import shutil; shutil.copytree(sys.argv[1], 'b'); edgeqkv.verify('b', sys.argv[2], tokens=24)",
    "command line": "sys.argv = ['edgeqkv', 'generate', sys.argv[1], '--prompt', 'ab', '--tokens', '3']; edgeqkv.cli.main()",
}


@pytest.mark.parametrize("work", WORK)
def test_a_fresh_home_stays_empty_and_no_socket_is_opened(work, tmp_path):
    """Under strace where there is one; a few seconds, most of them strace's, for what nothing else would find."""
    home, place, trace = tmp_path / "home", tmp_path / "place", tmp_path / "trace"
    home.mkdir()
    place.mkdir()
    code = f"import sys, edgeqkv, edgeqkv.cli\n{WORK[work]}\n"
    command = [sys.executable, "-c", code, FORMATS / "bundle-3", FORMATS / "model-1"]
    strace = shutil.which("strace")
    if strace:
        command = [strace, "-f", "-qq", "-e", "trace=network", "-o", trace, *command]
    environment = {k: v for k, v in os.environ.items() if k != "ORT_DISABLE_TELEMETRY" and not k.startswith("XDG_")}
    subprocess.run(command, check=True, env=environment | {"HOME": str(home)}, cwd=place, capture_output=True)
    assert [str(path.relative_to(home)) for path in home.rglob("*")] == []
    if strace:
        assert re.findall(r"^.*\b(?:socket|connect|sendto)\(.*$", trace.read_text(), re.MULTILINE) == []


@pytest.mark.parametrize("before", ["", "os.environ['ORT_DISABLE_TELEMETRY'] = '0'\n"])
def test_the_environment_says_so_before_onnxruntime_is_imported(before):
    """Whatever it said; an import hook looks when the package is asked for."""
    code = (
        f"import os, sys\n{before}"
        "class Hook:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'onnxruntime': print(os.environ.get('ORT_DISABLE_TELEMETRY'))\n"
        "sys.meta_path.insert(0, Hook())\n"
        "import edgeqkv\n"
        "edgeqkv.open(sys.argv[1])\n"
    )
    environment = {k: v for k, v in os.environ.items() if k != "ORT_DISABLE_TELEMETRY"}
    run = subprocess.run(
        [sys.executable, "-c", code, FORMATS / "bundle-3"], env=environment, capture_output=True, text=True, check=True
    )
    assert run.stdout.split() == ["1"]
