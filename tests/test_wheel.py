"""What pip makes of the project: a wheel with the compiled kernel, and without a compiler one that works and says so."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import edgeqkv

ROOT = Path(__file__).parents[1]
LIBRARY = "edgeqkv/runtimes/onnx/libedgeqkv_onnx.so"
HEADER = "edgeqkv/runtimes/native/include/edgeqkv.h"
USE_IT = """
import sys, edgeqkv
assert edgeqkv.__file__.startswith(sys.argv[2]), edgeqkv.__file__
for _ in range(2):
    print(edgeqkv.open(sys.argv[1]).artifact.kernel)
"""


@pytest.mark.parametrize(
    ("environment", "tag", "kernel"),
    [
        ({}, "py3-none-linux", "fused"),
        ({"EDGEQKV_NO_NATIVE": "1"}, "py3-none-any", "stock"),
        ({"CXX": "/nonexistent/c++"}, "py3-none-any", "stock"),
    ],
    ids=["compiler", "EDGEQKV_NO_NATIVE", "no compiler"],
)
def test_wheel(environment, tag, kernel, tiny_model, tmp_path):
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", tmp_path / "dist", ROOT]
    command += ["--config-settings", f"build-dir={tmp_path / 'build'}"]  # the working tree stays as it is
    subprocess.run(command, check=True, env=os.environ | environment)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    assert tag in wheel.name
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        archive.extractall(tmp_path / "site")
    assert (LIBRARY in names) == (kernel == "fused")
    sources = {name for name in names if name.endswith((".cc", ".h", ".swift", ".kt", ".sh", "CMakeLists.txt"))}
    compiled = {HEADER, "edgeqkv/runtimes/native/libedgeqkv.so", "edgeqkv/runtimes/run/edgeqkv-run"}
    assert sources <= {HEADER}  # what an app's compiler needs
    assert (compiled <= names) == (kernel == "fused")

    edgeqkv.export(tiny_model("Q-MQA"), tmp_path / "bundle")
    # -P -S: nothing but this wheel and the packages that it needs, which come after it.
    path = os.pathsep.join([str(tmp_path / "site"), *(p for p in sys.path if "site-packages" in p)])
    run = [sys.executable, "-P", "-S", "-c", USE_IT, tmp_path / "bundle", tmp_path / "site"]
    used = subprocess.run(run, check=True, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True)
    assert used.stdout.split() == [kernel, kernel]
    assert used.stderr.count("running the stock graph, which is slower") == (kernel == "stock")
