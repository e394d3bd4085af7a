"""The Kotlin library on this machine's JVM: its own tests, over the real JNI library and ONNX Runtime."""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).parents[3]
LIBRARY = ROOT / "runtimes/android"
CLASSES = {path.stem for path in LIBRARY.glob("src/test/*/**/*Test.*")}
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


@pytest.mark.skipif(not (shutil.which("javac") and shutil.which("mvn")), reason="there is no Java compiler or no Maven here")
def test_the_library_on_the_jvm():
    """One run for all of it: make android-jvm. What each class covers is said there."""
    build = ROOT / "build/android/jvm"  # where make android-jvm compiles it too
    run = subprocess.run(
        ["sh", LIBRARY / "jvm.sh", build, sys.executable], capture_output=True, text=True, timeout=900, check=False
    )
    output = run.stdout + run.stderr
    assert run.returncode == 0, output[-8000:]
    suites = [ElementTree.parse(path).getroot() for path in build.glob("maven/surefire-reports/TEST-*.xml")]
    assert {suite.get("name", "").rpartition(".")[2] for suite in suites} == CLASSES
    for suite in suites:
        assert int(suite.get("tests", 0)) > 0
        assert [suite.get(kind) for kind in ("failures", "errors", "skipped")] == ["0", "0", "0"]
    assert list((build / "home").iterdir()) == []
    names = subprocess.run(
        ["nm", "-D", "--defined-only", build / "jni/libedgeqkv_jni.so"], capture_output=True, text=True, check=True
    )
    assert [line.split()[2] for line in names.stdout.splitlines()] == ["JNI_OnLoad"]


def test_one_version_and_one_set_of_dependencies():
    pom = ElementTree.parse(LIBRARY / "pom.xml").getroot()
    space = re.match(r"\{.*\}", pom.tag)[0]
    assert pom.findtext(f"{space}version") == VERSION
    gradle = (LIBRARY / "build.gradle.kts").read_text()
    assert VERSION not in gradle, "which reads it from pyproject.toml"
    coroutines = pom.findtext(f"{space}properties/{space}coroutines.version")
    assert f"kotlinx-coroutines-core:{coroutines}" in gradle


def test_what_r8_has_to_keep_is_what_jni_looks_up():
    """Classes that jni.cc names, and nothing else, keep their names."""
    source = (LIBRARY / "src/main/cpp/jni.cc").read_text()
    looked_up = {name.replace("/", ".") for name in re.findall(r'FindClass\("(io/[\w/]+)"\)', source)}
    rules = (LIBRARY / "consumer-rules.pro").read_text()
    assert set(re.findall(r"^-keep\S* class ([\w.]+)", rules, re.MULTILINE)) == looked_up
