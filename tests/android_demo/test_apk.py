"""The demo app's APK as make apk builds it, read by the standard tools. Nothing here runs it: there is no Android."""

import importlib.util
import re
import shutil
import struct
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from xml.etree import ElementTree

import pytest
from filelock import FileLock

import edgeqkv

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "build/android"
APK_FOLDER = ROOT / "android_demo/apk"
PACKAGE = "io.github.edgeqkv.demo"
EDGEQKV = Path(sys.executable).with_name("edgeqkv")
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]

spec = importlib.util.spec_from_file_location("apk_build", APK_FOLDER / "build.py")
build = importlib.util.module_from_spec(spec)
spec.loader.exec_module(build)

pytestmark = pytest.mark.skipif(
    not all(map(shutil.which, ("java", "mvn", "aapt2", "apksigner", "dexdump"))),
    reason="needs Debian's openjdk-17-jdk-headless, maven, aapt, apksigner and dexdump",
)


def run(*command):
    return subprocess.run(command, capture_output=True, text=True, check=False)


def said(*command):
    done = run(*command)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="session")
def apk():
    """build/android/edgeqkv-demo.apk, up to date. One worker of a test run builds it."""
    BUILD.mkdir(parents=True, exist_ok=True)
    commands = [[sys.executable, APK_FOLDER / "build.py", BUILD, EDGEQKV]]
    with FileLock(BUILD / "apk.lock"):
        if not all((BUILD / "lib/arm64-v8a" / name).is_file() for name in build.NATIVE):
            commands.insert(0, ["sh", ROOT / "runtimes/android/bionic/build.sh", BUILD])
        for command in commands:
            done = run(*command)
            if done.returncode == 3:
                pytest.skip(done.stderr.strip())
            assert done.returncode == 0, done.stdout + done.stderr
    return BUILD / "edgeqkv-demo.apk"


@pytest.fixture(scope="session")
def manifest(apk):
    """Every element as (name, attributes), in their order; attributes without namespaces and types."""
    elements = []
    for line in said("aapt2", "dump", "xmltree", "--file", "AndroidManifest.xml", apk).splitlines():
        if element := re.match(r" *E: (\S+)", line):
            elements.append((element[1], {}))
        elif attribute := re.match(r' *A: (?:\S+[:/])?(\w+)(?:\(0x\w+\))?=(?:"(.*?)"|(\S+))', line):
            elements[-1][1][attribute[1]] = attribute[2] if attribute[3] is None else attribute[3]
    return elements


@pytest.fixture(scope="session")
def classes(apk):
    lines = said("dexdump", apk).splitlines()
    return [line.partition("'L")[2].rstrip("';") for line in lines if "Class descriptor" in line]


def test_it_is_signed_by_both_schemes_that_android_7_and_later_ask_for(apk):
    answer = said("apksigner", "verify", "--verbose", "--print-certs", apk)
    schemes = dict(re.findall(r"Verified using (v\d) scheme .*: (true|false)", answer))
    assert {name for name, used in schemes.items() if used == "true"} == {"v2", "v3"}
    assert "CN=Android Debug" in answer
    certificate = re.search(r"certificate SHA-256 digest: (\w+)", answer)[1]
    key = said("keytool", "-list", "-keystore", BUILD / "debug.keystore", "-storepass", "android")
    assert certificate.upper() in key.replace(":", ""), "the key of the build before"


@pytest.mark.parametrize("where", ["resources.arsc", "classes.dex", "lib/arm64-v8a/libonnxruntime.so"])
def test_a_changed_byte_is_noticed(apk, tmp_path, where):
    changed = tmp_path / "changed.apk"
    data = bytearray(apk.read_bytes())
    with zipfile.ZipFile(apk) as archive:
        data[content(apk, archive.getinfo(where)) + 9] ^= 1
    changed.write_bytes(data)
    done = run("apksigner", "verify", changed)
    assert done.returncode != 0
    assert "DOES NOT VERIFY" in done.stdout + done.stderr


def test_versions_and_processors(apk):
    answer = said("aapt2", "dump", "badging", apk)
    package = dict(re.findall(r"(\w+)='([^']*)'", answer.splitlines()[0]))
    major, minor, patch = map(int, VERSION.split("."))
    assert (package["name"], package["versionName"]) == (PACKAGE, VERSION)
    assert int(package["versionCode"]) == major * 10000 + minor * 100 + patch
    assert (package["compileSdkVersion"], build.MIN_SDK, build.TARGET_SDK) == ("35", 24, 35)
    assert {"sdkVersion:'24'", "targetSdkVersion:'35'", "native-code: 'arm64-v8a'"} <= set(answer.splitlines())
    assert f"launchable-activity: name='{PACKAGE}.MainActivity'" in answer


def test_it_asks_for_no_permission_and_starts_no_telemetry(manifest, classes):
    assert not [element for element, _ in manifest if "permission" in element]
    names = [attributes.get("name", "") for _, attributes in manifest]
    assert not [name for name in names if "onnxruntime" in name or "telemetry" in name.lower()]
    assert not [name for name in classes if name.startswith("ai/onnxruntime")]


def test_only_what_must_be_is_exported(manifest):
    components = [
        (kind, at) for kind, at in manifest if kind in ("activity", "activity-alias", "service", "receiver", "provider")
    ]
    assert all("exported" in attributes for _, attributes in components)
    exported = {attributes["name"] for _, attributes in components if attributes["exported"] == "true"}
    assert exported == {f"{PACKAGE}.MainActivity", *(f"{PACKAGE}.MeasureActivity{number}" for number in range(8))}
    application = next(attributes for kind, attributes in manifest if kind == "application")
    assert "debuggable" not in application, "Android runs debuggable apps slower"
    assert (application["extractNativeLibs"], application["allowBackup"]) == ("false", "false")


def test_the_measured_processes_are_as_the_harness_wants_them(manifest):
    """runtimes/android/in-app.md"""
    activities = {attributes["name"]: attributes for kind, attributes in manifest if kind == "activity"}
    measured = [activities[f"{PACKAGE}.MeasureActivity{number}"] for number in range(8)]
    assert [activity["process"] for activity in measured] == [f":measure{number}" for number in range(8)]
    assert len({activity["taskAffinity"] for activity in measured}) == 8
    for activity in measured:
        assert int(activity["launchMode"], 16) == 2, "singleTask"
        assert activity["excludeFromRecents"] == "true"


def test_every_class_of_the_manifest_is_there(manifest, classes):
    kinds = ("application", "activity", "service", "receiver", "provider")
    named = [attributes["name"].replace(".", "/") for kind, attributes in manifest if kind in kinds and "name" in attributes]
    assert len(named) > 8
    assert set(named) <= set(classes)


def test_the_classes_are_those_of_the_library_the_app_and_kotlin(classes):
    assert len(classes) == len(set(classes))
    # The last one is of kotlinx-coroutines.
    assert {name.split("/")[0] for name in classes} == {"io", "kotlin", "kotlinx", "_COROUTINE"}
    assert not [name for name in classes if name.startswith("io/") and not name.startswith("io/github/edgeqkv/")]
    for jar in ("edgeqkv.jar", "app.jar"):
        with zipfile.ZipFile(BUILD / "apk" / jar) as archive:
            compiled = {name.removesuffix(".class") for name in archive.namelist() if name.endswith(".class")}
        assert compiled
        assert compiled <= set(classes)


def content(apk, info):
    """Where a file's bytes begin in the APK, by its local header."""
    with apk.open("rb") as file:
        file.seek(info.header_offset)
        header = file.read(30)
    assert header[:4] == b"PK\3\4"
    return info.header_offset + 30 + sum(struct.unpack("<HH", header[26:]))


def test_libraries_are_mapped_from_the_apk_on_pages_of_16_kib(apk):
    with zipfile.ZipFile(apk) as archive:
        assert archive.testzip() is None
        libraries = [info for info in archive.infolist() if info.filename.endswith(".so")]
        assert {info.filename for info in libraries} == {f"lib/arm64-v8a/{name}" for name in build.NATIVE}
        for info in libraries:
            assert info.compress_type == zipfile.ZIP_STORED
            assert content(apk, info) % 16384 == 0
            assert archive.read(info) == (BUILD / info.filename).read_bytes()
        table = archive.getinfo("resources.arsc")
        assert table.compress_type == zipfile.ZIP_STORED, "which Android asks for since API 30"
        assert content(apk, table) % 4 == 0


def test_its_size(apk, record_property):
    with zipfile.ZipFile(apk) as archive:
        sizes = {"apk": apk.stat().st_size}
        for info in archive.infolist():
            kind = info.filename.split("/")[0]
            sizes[kind] = sizes.get(kind, 0) + info.compress_size
    record_property("bytes", sizes)
    print(sizes)
    assert sizes["apk"] < 45_000_000


def test_the_built_in_models_run(apk, tmp_path):
    with zipfile.ZipFile(apk) as archive:
        archive.extractall(tmp_path, [name for name in archive.namelist() if name.startswith("assets/")])
    folders = sorted((tmp_path / "assets/bundles").iterdir())
    assert [folder.name for folder in folders] == sorted(build.BUNDLES)
    for folder in folders:
        assert len(list(edgeqkv.open(folder, threads=1).generate([1, 2, 3], limit=8))) == 8


def test_what_has_not_changed_is_not_built_again(apk):
    before = apk.stat().st_mtime_ns, (BUILD / "apk/dex.zip").stat().st_mtime_ns
    with FileLock(BUILD / "apk.lock"):
        said(sys.executable, APK_FOLDER / "build.py", BUILD, EDGEQKV)
    assert (apk.stat().st_mtime_ns, (BUILD / "apk/dex.zip").stat().st_mtime_ns) == before


def test_a_tool_that_is_not_the_one_that_was_pinned_is_not_used(apk, tmp_path):
    """The same build with another digest for one jar."""
    folder = tmp_path / "android_demo/apk"
    shutil.copytree(APK_FOLDER, folder)
    pins = folder / "tools.sha256"
    pins.write_text(re.sub(r"^\w{64}(?=  annotations-)", "0" * 64, pins.read_text(), flags=re.MULTILINE))
    (tmp_path / "build/tools").mkdir(parents=True)
    (tmp_path / "build/lib").symlink_to(BUILD / "lib")
    for jar in (BUILD / "tools").glob("*.jar"):
        (tmp_path / "build/tools" / jar.name).symlink_to(jar)
    done = run(sys.executable, folder / "build.py", tmp_path / "build", EDGEQKV)
    assert done.returncode == 1
    assert re.fullmatch(r"annotations-[\d.]+jar: not what tools.sha256 says; nothing is built with it\n", done.stderr)
    assert sorted(path.name for path in (tmp_path / "build/apk").iterdir()) == []


@pytest.mark.parametrize("missing", ["javac", "mvn", "apksigner"])
def test_a_missing_program_is_named_with_its_package(missing, tmp_path):
    for program in {"javac", "mvn", "apksigner"} - {missing}:
        (tmp_path / program).symlink_to(shutil.which(program))
    done = subprocess.run(
        [sys.executable, APK_FOLDER / "build.py", tmp_path, EDGEQKV],
        capture_output=True,
        text=True,
        env={"PATH": str(tmp_path)},
    )
    package = build.PROGRAMS[missing]
    assert (done.returncode, done.stderr) == (3, f"the APK needs the Debian packages {package}: apt-get install {package}\n")


def test_the_builds_agree():
    """Versions, SDK levels and models: of the script, of the pom.xml files, and of Gradle's files."""
    properties, versions, frameworks = zip(
        *map(read_pom, (APK_FOLDER / "pom.xml", ROOT / "runtimes/android/pom.xml", ROOT / "android_demo/app/pom.xml")),
        strict=True,
    )
    assert {name: properties[1][name] for name in properties[0]} == properties[0]
    assert properties[2]["kotlin.version"] == properties[0]["kotlin.version"]
    assert versions[1:] == (VERSION, VERSION)
    assert frameworks[0] == frameworks[2]
    app, module = (
        (ROOT / "android_demo/app/build.gradle.kts").read_text(),
        (ROOT / "runtimes/android/build.gradle.kts").read_text(),
    )
    for gradle in (app, module):
        assert re.findall(r"(?:minSdk|compileSdk) = (\d+)", gradle) == [str(build.TARGET_SDK), str(build.MIN_SDK)]
    assert f"targetSdk = {build.TARGET_SDK}" in app
    assert f'applicationId = "{PACKAGE}"' in app
    assert tuple(re.findall(r'"([\w-]+)"', re.search(r"val bundles = listOf\((.*)\)", app)[1])) == build.BUNDLES
    assert VERSION not in app, "which reads it from pyproject.toml"


def read_pom(path):
    """Its properties, its version, and the version of android-all that it asks for."""
    space = {"": "http://maven.apache.org/POM/4.0.0"}
    pom = ElementTree.parse(path).getroot()
    properties = {entry.tag.partition("}")[2]: entry.text for entry in pom.find("properties", space)}
    framework = pom.findtext("dependencies/dependency[artifactId='android-all']/version", None, space)
    return properties, pom.findtext("version", None, space), framework
