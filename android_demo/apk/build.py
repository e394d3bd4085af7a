#!/usr/bin/env python3
"""python3 android_demo/apk/build.py BUILD EDGEQKV: the demo app as BUILD/edgeqkv-demo.apk, without Google's SDK.

BUILD/lib/arm64-v8a has the native libraries (make android-native), and the command EDGEQKV exports the models that the app
brings. README.md explains the steps, in their order here.
"""

import hashlib
import os
import platform
import re
import shutil
import struct
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NoReturn
from xml.etree import ElementTree

HERE = Path(__file__).resolve().parent
APP = HERE.parent / "app/src/main"
ROOT = HERE.parents[1]
LIBRARY = ROOT / "runtimes/android/src/main/kotlin"

PACKAGE = "io.github.edgeqkv.demo"
MIN_SDK, TARGET_SDK = 24, 35
# Of models/, in the APK. app/build.gradle.kts has the same.
BUNDLES = ("q-mqa", "qkv")
NATIVE = ("libedgeqkv_jni.so", "libonnxruntime.so")
# The jars of tools.sha256 that go into the APK.
RUNTIME = ("kotlin-stdlib", "kotlinx-coroutines-core-jvm")
EXPORTER = [
    *sorted((ROOT / "export").rglob("*.py")),
    *(ROOT / "edgeqkv" / name for name in ("decoder.py", "cache.py", "manifest.py")),
]
PROGRAMS = {"javac": "openjdk-17-jdk-headless", "mvn": "maven", "apksigner": "apksigner"}
# Android 7 knows v2, Android 9 v3.
SCHEMES = {"v1": "false", "v2": "true", "v3": "true", "v4": "false"}
ANDROID = "http://schemas.android.com/apk/res/android"
TOOLS_XML = "http://schemas.android.com/tools"


def main() -> None:
    if len(sys.argv) != 3:
        stop(2, str(__doc__).strip())
    build, edgeqkv = Path(sys.argv[1]).resolve(), Path(sys.argv[2]).absolute()
    check_machine()
    natives = [build / "lib/arm64-v8a" / name for name in NATIVE]
    for native in natives:
        if not native.is_file():
            stop(1, f"{native} is missing: make android-native")
    work = build / "apk"
    work.mkdir(parents=True, exist_ok=True)
    tools = Tools(build / "tools")

    bundles = {f"assets/bundles/{name}": work / "bundles" / name for name in BUNDLES}
    for bundle in bundles.values():
        export(ROOT / "models" / bundle.name, bundle, edgeqkv)
    resources, r_java = work / "resources.zip", work / "r"
    described = [APP / "AndroidManifest.xml", APP / "res", ROOT / "pyproject.toml"]
    made(resources, described, lambda: link_resources(tools, work, resources, r_java))
    library, app = work / "edgeqkv.jar", work / "app.jar"
    runtime = [tools.jar(name) for name in RUNTIME]
    made(library, [LIBRARY], lambda: compile_kotlin(tools, library, "edgeqkv", [LIBRARY], runtime))
    made(app, [APP / "kotlin", r_java, library], lambda: compile_app(tools, app, r_java, [*runtime, library]))
    dex = work / "dex.zip"
    made(dex, [library, app], lambda: compile_dex(tools, dex, [library, app, *runtime]))
    unsigned, key, apk = work / "unsigned.apk", build / "debug.keystore", build / "edgeqkv-demo.apk"
    made(unsigned, [resources, dex, *bundles.values(), *natives], lambda: pack(unsigned, [resources, dex], bundles, natives))
    if not key.exists():
        make_key(key)
    made(apk, [unsigned, key], lambda: sign(unsigned, apk, key))
    print(f"{apk}: {apk.stat().st_size / 2**20:.1f} MiB")


# -- what is needed ---------------------------------------------------------------------------------------------------


def check_machine() -> None:
    packages = [package for program, package in PROGRAMS.items() if not shutil.which(program)]
    if packages:
        names = " ".join(packages)
        stop(3, f"the APK needs the Debian packages {names}: apt-get install {names}")
    release = java_home() / "release"
    if not release.is_file() or 'JAVA_VERSION="17.' not in release.read_text():
        stop(3, "the APK needs a JDK 17 (D8 reads no newer one): apt-get install openjdk-17-jdk-headless, and set JAVA_HOME")
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        stop(3, "the APK is built on Linux on x86-64, which is what aapt2 is there for")


class Tools:
    """The jars of pom.xml, each as tools.sha256 has it, and the aapt2 that one of them carries."""

    def __init__(self, folder: Path) -> None:
        pins = (line.split() for line in (HERE / "tools.sha256").read_text().splitlines())
        self._digests = {name: digest for digest, name in pins}
        self._folder = folder
        if wrong := self._wrong():
            for name in wrong:
                (folder / name).unlink(missing_ok=True)
            maven = ["mvn", "--batch-mode", "--no-transfer-progress", "--quiet", "--file", HERE / "pom.xml"]
            run(*maven, "dependency:copy-dependencies", f"-DoutputDirectory={folder}")
        if wrong := self._wrong():
            stop(1, f"{', '.join(wrong)}: not what tools.sha256 says; nothing is built with it")
        self.aapt2 = folder / "aapt2"
        with zipfile.ZipFile(self.jar("apktool-lib")) as archive:
            self.aapt2.write_bytes(archive.read("prebuilt/linux/aapt2_64"))
        self.aapt2.chmod(0o755)

    def jar(self, artifact: str) -> Path:
        (name,) = (name for name in self._digests if re.match(rf"{artifact}-\d", name))
        return self._folder / name

    def jars(self) -> list[Path]:
        return [self._folder / name for name in self._digests]

    def _wrong(self) -> list[str]:
        return [name for name, digest in self._digests.items() if sha256(self._folder / name) != digest]


# -- the steps --------------------------------------------------------------------------------------------------------


def export(model: Path, bundle: Path, edgeqkv: Path) -> None:
    def anew() -> None:
        shutil.rmtree(bundle, ignore_errors=True)
        run(edgeqkv, "export", model, "--out", bundle, "--weights", "int8", "--cache", "int8")

    made(bundle, [model, *EXPORTER], anew)


def link_resources(tools: Tools, work: Path, resources: Path, r_java: Path) -> None:
    """The manifest and the resources, compiled, as ``resources``; R.java in ``r_java``."""
    manifest, flat = work / "AndroidManifest.xml", work / "flat.zip"
    complete_manifest(APP / "AndroidManifest.xml", manifest)
    run(tools.aapt2, "compile", "--dir", APP / "res", "-o", flat)
    shutil.rmtree(r_java, ignore_errors=True)
    code, name = version()
    run(
        *(tools.aapt2, "link", "-I", tools.jar("android-all"), "--manifest", manifest, "-o", resources),
        *("--java", r_java, "--min-sdk-version", MIN_SDK, "--target-sdk-version", TARGET_SDK),
        *("--version-code", code, "--version-name", name, flat),
    )


def complete_manifest(source: Path, target: Path) -> None:
    """What the Gradle plugin adds to the app's manifest. The library's own is empty."""
    ElementTree.register_namespace("android", ANDROID)
    tree = ElementTree.parse(source)
    manifest = tree.getroot()
    manifest.set("package", PACKAGE)
    for application in manifest.findall("application"):
        # The libraries are loaded from within the APK.
        application.set(f"{{{ANDROID}}}extractNativeLibs", "false")
        for element in application.findall(f"*[@{{{TOOLS_XML}}}node='remove']"):
            application.remove(element)
    tree.write(target, encoding="utf-8", xml_declaration=True)


def version() -> tuple[int, str]:
    """Of pyproject.toml: 0.2.0 is the 200th."""
    name = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    major, minor, patch = map(int, name.split("."))
    return major * 10000 + minor * 100 + patch, name


def compile_app(tools: Tools, target: Path, r_java: Path, classpath: list[Path]) -> None:
    compile_kotlin(tools, target, "app", [APP / "kotlin", r_java], classpath)
    classes = target.with_name("r-classes")
    shutil.rmtree(classes, ignore_errors=True)
    run(java("javac"), "--release", "11", "-d", classes, *r_java.rglob("*.java"))
    with zipfile.ZipFile(target, "a") as archive:
        for path in sorted(classes.rglob("*.class")):
            archive.write(path, path.relative_to(classes))


def compile_kotlin(tools: Tools, target: Path, module: str, sources: list[Path], classpath: list[Path]) -> None:
    options = ["-no-stdlib", "-no-reflect", "-jvm-target", "11", "-Xjdk-release=11", "-Werror", "-module-name", module]
    compiler = [tool for tool in tools.jars() if tool.name.startswith(("kotlin", "annotations"))]
    run(
        *(java(), "-Xmx1g", "-cp", joined(compiler), "org.jetbrains.kotlin.cli.jvm.K2JVMCompiler", *options),
        *("-classpath", joined([tools.jar("android-all"), *classpath]), "-d", target, *sources),
    )


def compile_dex(tools: Tools, target: Path, jars: list[Path]) -> None:
    d8 = [java(), "-Xmx1g", "-cp", tools.jar("bundletool"), "shadow.bundletool.com.android.tools.r8.D8"]
    libraries = ["--lib", tools.jar("android-all"), "--lib", java_home()]
    run(*d8, "--release", "--min-api", MIN_SDK, *libraries, "--output", target, *jars)


def pack(target: Path, archives: list[Path], folders: dict[str, Path], natives: list[Path]) -> None:
    """Libraries uncompressed and on pages of 16 KiB, where Android maps them; resources.arsc uncompressed and on 4 bytes."""
    with zipfile.ZipFile(target, "w") as apk:
        for path in archives:
            with zipfile.ZipFile(path) as archive:
                for name in archive.namelist():
                    add(apk, name, archive.read(name), 4 if name == "resources.arsc" else None)
        for prefix, folder in folders.items():
            for path in files([folder]):
                add(apk, f"{prefix}/{path.relative_to(folder).as_posix()}", path.read_bytes(), None)
        for path in natives:
            add(apk, f"lib/arm64-v8a/{path.name}", path.read_bytes(), 16384)


def add(apk: zipfile.ZipFile, name: str, data: bytes, alignment: int | None) -> None:
    """A file, compressed, or from ``alignment`` on as it is. Its time is the same always, and so is the APK."""
    info = zipfile.ZipInfo(name, (1981, 1, 1, 1, 1, 2))
    info.create_system = 0
    info.compress_type = zipfile.ZIP_DEFLATED
    if alignment is not None:
        info.compress_type = zipfile.ZIP_STORED
        # Padding as zipalign and apksigner write it: a field 0xd935 with the alignment, after which the data begins.
        begin = apk.start_dir + 30 + len(name.encode()) + 6
        padding = -begin % alignment
        info.extra = struct.pack("<HHH", 0xD935, 2 + padding, alignment) + b"\0" * padding
    apk.writestr(info, data, compresslevel=9)


def make_key(key: Path) -> None:
    """A key as Android Studio makes one for debugging: its password is known to all, and the APK is for no store."""
    run(
        *(
            java("keytool"),
            "-genkeypair",
            "-keystore",
            key,
            "-storepass",
            "android",
            "-alias",
            "androiddebugkey",
            "-keyalg",
            "RSA",
        ),
        *("-keysize", "2048", "-validity", "10000", "-dname", "CN=Android Debug,O=Android,C=US"),
    )


def sign(unsigned: Path, apk: Path, key: Path) -> None:
    schemes = [f"--{scheme}-signing-enabled={wanted}" for scheme, wanted in SCHEMES.items()]
    run("apksigner", "sign", "--ks", key, "--ks-pass", "pass:android", *schemes, "--out", apk, unsigned)


# -- helpers ----------------------------------------------------------------------------------------------------------


def made(target: Path, inputs: Iterable[Path], make: Callable[[], object]) -> None:
    """Calls ``make`` unless ``target`` is there and was made of the same inputs by this very script."""
    total = hashlib.sha256(Path(__file__).read_bytes() + (HERE / "tools.sha256").read_bytes())
    for path in files(inputs):
        total.update(f"{path.relative_to(ROOT) if path.is_relative_to(ROOT) else path}\n{sha256(path)}\n".encode())
    stamp = target.with_name(f".{target.name}.made-of")
    if target.exists() and stamp.exists() and stamp.read_text() == total.hexdigest():
        return
    stamp.unlink(missing_ok=True)
    make()
    stamp.write_text(total.hexdigest())


def files(paths: Iterable[Path]) -> Iterator[Path]:
    for path in paths:
        yield from sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]


def sha256(path: Path) -> str | None:
    if not path.is_file():
        return None
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def java_home() -> Path:
    return Path(os.environ.get("JAVA_HOME") or Path(shutil.which("javac") or "").resolve().parents[1])


def java(program: str = "java") -> Path:
    return java_home() / "bin" / program


def joined(paths: Iterable[Path]) -> str:
    return os.pathsep.join(map(str, paths))


def run(*command: object) -> None:
    """A program of the build. What it says is shown when it fails."""
    words = [str(word) for word in command]
    done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        stop(1, f"{done.stdout.strip()}\n{words[0]} failed: {' '.join(words)}")


def stop(code: int, sentence: str) -> NoReturn:
    print(sentence, file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()
