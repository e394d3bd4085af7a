"""The wheels that are published: what is in them, what they ask of a system, and that they run where there is no compiler."""

import json
import os
import re
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile
from elftools.elf.gnuversions import GNUVerNeedSection

import edgeqkv

ROOT = Path(__file__).parents[2]
AARCH64 = ROOT / "build/runner-aarch64"
HEADER = "edgeqkv/runtimes/native/include/edgeqkv.h"
RUNNER = "edgeqkv/runtimes/run/edgeqkv-run"
COMPILED = {
    "edgeqkv/runtimes/onnx/libedgeqkv_onnx.so",
    "edgeqkv/runtimes/executorch/libedgeqkv_executorch.so",
    "edgeqkv/runtimes/native/libedgeqkv.so",
    RUNNER,
}
# What manylinux_2_28 promises: https://github.com/pypa/auditwheel/blob/main/src/auditwheel/policy/manylinux-policy.json
PROMISED = {"GLIBC": (2, 28), "GLIBCXX": (3, 4, 24), "CXXABI": (1, 3, 11), "GCC": (8,)}
PROMPT = [5, 1, 7, 2, 9, 200]
USE_IT = """
import json, sys, warnings
import edgeqkv, edgeqkv.cli
warnings.simplefilter("error")
with edgeqkv.open(sys.argv[1], threads=1) as session:
    ids = list(session.generate(json.loads(sys.argv[2]), limit=8))
print(json.dumps({"from": edgeqkv.__file__, "kernel": session.artifact.kernel, "ids": ids}))
"""


@pytest.fixture
def bundle(tiny_model, tmp_path):
    # fp32: int8 weights round activations as each CPU's own kernels do.
    edgeqkv.export(tiny_model("Q-MQA"), tmp_path / "bundle", weights="fp32", cache="int8")
    return tmp_path / "bundle"


def expected(bundle):
    with edgeqkv.open(bundle, threads=1) as session:
        return list(session.generate(PROMPT, limit=8))


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_what_is_in_it(machine, wheel):
    assert re.fullmatch(rf"edgeqkv-[\d.]+-py3-none-manylinux_2_28_{machine}\.whl", wheel(machine).name)
    with zipfile.ZipFile(wheel(machine)) as archive:
        names = set(archive.namelist())
        modes = {info.filename: info.external_attr >> 16 for info in archive.infolist()}
    assert names >= COMPILED
    assert modes[RUNNER] & 0o111
    assert {name for name in names if name.endswith((".cc", ".h", ".swift", ".kt", ".sh", "CMakeLists.txt"))} == {HEADER}
    # Tied to no CPython: nothing in it is an extension module.
    assert not [name for name in names if "cpython" in name or name.endswith(".abi3.so")]
    assert "edgeqkv/py.typed" in names


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_what_it_asks_of_a_system(machine, wheel, tmp_path):
    with zipfile.ZipFile(wheel(machine)) as archive:
        for name in COMPILED:
            archive.extract(name, tmp_path)
    for name in COMPILED:
        with (tmp_path / name).open("rb") as file:
            elf = ELFFile(file)
            assert elf["e_machine"] == {"x86_64": "EM_X86_64", "aarch64": "EM_AARCH64"}[machine]
            asked = [section for section in elf.iter_sections() if isinstance(section, GNUVerNeedSection)]
            needed = [version for section in asked for _, versions in section.iter_versions() for version in versions]
            assert needed
            for version in needed:
                family, number = version.name.split("_", 1)
                assert tuple(map(int, number.split("."))) <= PROMISED[family], f"{name} needs {version.name}"
            libraries = {tag.needed for tag in elf.get_section_by_name(".dynamic").iter_tags("DT_NEEDED")}
        allowed = r"lib(stdc\+\+|gcc_s|c|m|dl|pthread|rt)\.so\.\d+|ld-linux.*"
        allowed += r"|libexecutorch\w*\.so" if "executorch" in name else ""
        assert [library for library in libraries if not re.fullmatch(allowed, library)] == []


def test_pip_installs_it_on_a_board_without_a_compiler(bundle, wheel, tmp_path):
    """In a clean environment, with nothing but its own programs on PATH."""
    site = tmp_path / "venv"
    venv.create(site, with_pip=True)
    programs = site / "bin"
    install = [programs / "python", "-m", "pip", "install", "--quiet", f"edgeqkv[onnx-runtime] @ {wheel('x86_64').as_uri()}"]
    alone = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "EDGEQKV"))}
    alone |= {"PATH": str(programs), "HOME": str(tmp_path)}
    subprocess.run(install, check=True, env=alone | {"HOME": os.environ["HOME"]})
    assert not [name for name in ("cc", "c++", "gcc", "g++", "clang", "cmake") if shutil.which(name, path=alone["PATH"])]

    def run(*command):
        return subprocess.run([*map(str, command)], check=True, env=alone, cwd=tmp_path, capture_output=True, text=True).stdout

    ids = expected(bundle)
    prompt = ",".join(map(str, PROMPT))
    ran = json.loads(run("edgeqkv-run", bundle, "--ids", prompt, "--tokens", 8, "--threads", 1))
    assert (ran["ids"], ran["kernel"], ran["runtime"]) == (ids, "fused", "onnx")
    used = json.loads(run(programs / "python", "-c", USE_IT, bundle, json.dumps(PROMPT)))
    assert (used["ids"], used["kernel"]) == (ids, "fused")
    assert used["from"].startswith(str(site))
    written = run("edgeqkv", "generate", bundle, "--ids", prompt, "--tokens", 8)
    assert [int(word) for word in re.findall(r"\d+", written)] == ids


@pytest.mark.skipif(
    not ((AARCH64 / "root/libonnxruntime.so").is_file() and shutil.which("qemu-aarch64")),
    reason="needs ONNX Runtime for arm64 (make runner-aarch64) and Debian's qemu-user",
)
def test_the_aarch64_wheel_runs_the_fused_kernel(bundle, wheel, tmp_path):
    with zipfile.ZipFile(wheel("aarch64")) as archive:
        archive.extract(RUNNER, tmp_path)
    (tmp_path / RUNNER).chmod(0o755)
    command = [
        "qemu-aarch64",
        "-L",
        AARCH64 / "root",
        tmp_path / RUNNER,
        bundle,
        "--library",
        AARCH64 / "root/libonnxruntime.so",
    ]
    command += ["--ids", ",".join(map(str, PROMPT)), "--tokens", "8", "--threads", "1"]
    ran = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert (ran["ids"], ran["kernel"]) == (expected(bundle), "fused")


@pytest.mark.parametrize(
    "environment",
    [{"EDGEQKV_NO_NATIVE": "1"}, {"CXX": "/nonexistent/c++"}],
    ids=["EDGEQKV_NO_NATIVE", "no compiler"],
)
def test_without_a_compiler_the_sources_give_a_wheel_that_says_so(environment, bundle, tmp_path):
    done = build(tmp_path, environment)
    assert done.returncode == 0, done.stderr
    (pure,) = (tmp_path / "dist").glob("*-py3-none-any.whl")
    with zipfile.ZipFile(pure) as archive:
        assert COMPILED.isdisjoint(archive.namelist())
        archive.extractall(tmp_path / "site")
    # -P -S: nothing but this wheel and the packages that it needs, which come after it.
    path = os.pathsep.join([str(tmp_path / "site"), *(p for p in sys.path if "site-packages" in p)])
    opened = "import sys, edgeqkv; print(edgeqkv.__file__, edgeqkv.open(sys.argv[1]).artifact.kernel)"
    used = subprocess.run(
        [sys.executable, "-P", "-S", "-c", opened, bundle],
        check=True,
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert used.stdout.split() == [str(tmp_path / "site/edgeqkv/__init__.py"), "stock"]
    assert used.stderr.count("running the stock graph, which is slower") == 1


def test_the_executorch_session_is_built_when_it_is_asked_for(tmp_path):
    """And not because the package lies in site-packages, as it does here."""

    def configure(build, *options):
        command = ["cmake", "-S", ROOT / "runtimes", "-B", tmp_path / build, f"-DPython_EXECUTABLE={sys.executable}", *options]
        done = subprocess.run(command, capture_output=True, text=True)
        listed = subprocess.run(["cmake", "--build", tmp_path / build, "--target", "help"], capture_output=True, text=True)
        return done, "edgeqkv_executorch" in listed.stdout

    done, has = configure("default")
    assert (done.returncode, has) == (0, False)
    done, has = configure("on", "-DEDGEQKV_EXECUTORCH=ON")
    assert (done.returncode, has) == (0, True), done.stderr
    done, _ = configure("nowhere", "-DEDGEQKV_EXECUTORCH=ON", f"-DEXECUTORCH_DIR={tmp_path}")
    assert done.returncode != 0
    assert "install executorch==" in done.stderr


def test_a_session_that_was_asked_for_and_cannot_be_built_is_an_error(tmp_path):
    done = build(tmp_path, {"EDGEQKV_EXECUTORCH": "ON", "EXECUTORCH_DIR": str(tmp_path)})
    assert done.returncode != 0
    assert "install executorch==" in done.stderr + done.stdout
    assert not list((tmp_path / "dist").glob("*.whl"))


def build(tmp_path, environment):
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", tmp_path / "dist", ROOT]
    command += ["--config-settings", f"build-dir={tmp_path / 'build'}"]  # the working tree stays as it is
    return subprocess.run(command, env=os.environ | environment, capture_output=True, text=True)
