"""The very files that go to arm64 Android: what their headers promise, and what they compute, under qemu-user.

They are linked for bionic, which there is not here. glibc_as_bionic.c answers in its place: under its names, by calling glibc.
What that cannot show is bionic itself and Android's linker.
"""

import json
import os
import re
import shutil
import socket
import subprocess
from pathlib import Path

import pytest

import edgeqkv
from edgeqkv.files import file_sha256

ROOT = Path(__file__).parents[3]
BIONIC = ROOT / "runtimes/android/bionic"
BUILD = ROOT / "build/android"
DEVICE, DEBIAN_RUN = ROOT / "build/runner-aarch64/root", ROOT / "build/runner-aarch64/run/edgeqkv-run"
QEMU = ["qemu-aarch64", "-cpu", "neoverse-n1", "-L", DEVICE]
JNI, RUN = BUILD / "lib/arm64-v8a/libedgeqkv_jni.so", BUILD / "bin/edgeqkv-run"
ONNXRUNTIME = BUILD / "lib/arm64-v8a/libonnxruntime.so"
MODELS = ("qkv", "q-kv", "q-mqa")
pytestmark = pytest.mark.skipif(
    not (JNI.is_file() and RUN.is_file() and ONNXRUNTIME.is_file()), reason="needs the libraries of make android-native"
)
emulated = pytest.mark.skipif(
    not (shutil.which("qemu-aarch64") and shutil.which("clang-19") and (DEVICE / "libonnxruntime.so").is_file()),
    reason="needs Debian's qemu-user, clang-19 and lld-19, and make runner-aarch64 for ONNX Runtime",
)


def names():
    """Library and symbol of what bionic has; variables end in *."""
    library = ""
    for line in (BIONIC / "names.txt").read_text().splitlines():
        words = line.partition("#")[0].split()
        if words and not line.startswith(" "):
            library = words[0]
        elif words:
            yield from ((library, word) for word in words)


def readelf(path, *options):
    return subprocess.run(["readelf", "--wide", *options, path], capture_output=True, text=True, check=True).stdout


def symbols(path):
    """Fields of readelf's lines: ..., binding, visibility, section, name@version."""
    lines = (line.split() for line in readelf(path, "--dyn-syms").splitlines())
    return [fields for fields in lines if len(fields) >= 8 and fields[0].rstrip(":").isdigit()]


# -- what the files are -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [JNI, RUN], ids=["jni", "run"])
def test_they_ask_for_nothing_that_bionic_lacks_at_api_24(path):
    wanted = {fields[7].partition("@")[::2] for fields in symbols(path) if fields[6] == "UND"}
    allowed = {name.rstrip("*") for _, name in names()}
    assert {name for name, _ in wanted} <= allowed
    assert {version for _, version in wanted} == {"LIBC"}, "the only version that bionic's symbols have at API 24"
    needed = set(re.findall(r"\(NEEDED\).*\[(.*)\]", readelf(path, "--dynamic")))
    assert needed == {"libc.so", "libm.so", "libdl.so"}


@pytest.mark.parametrize("path", [JNI, RUN, ONNXRUNTIME], ids=["jni", "run", "onnxruntime"])
def test_they_load_on_every_android_from_7_on(path):
    headers, dynamic = readelf(path, "--program-headers"), readelf(path, "--dynamic")
    assert "AArch64" in readelf(path, "--file-header")
    assert "DYN" in readelf(path, "--file-header"), "a program too is position independent, or Android does not run it"
    assert " TLS " not in headers, "ELF TLS is there from Android 10 on"
    loads = [line.split() for line in headers.splitlines() if line.split()[:1] == ["LOAD"]]
    assert loads
    for _, offset, address, *rest in loads:
        assert int(rest[-1], 16) >= 16384
        assert int(offset, 16) % 16384 == int(address, 16) % 16384
        assert rest[-2:-1] != ["RWE"]
    assert "TEXTREL" not in dynamic
    stack = next(line for line in headers.splitlines() if "GNU_STACK" in line)
    assert " RW " in stack
    assert "(GNU_HASH)" in dynamic or "(HASH)" in dynamic
    assert "RELR" not in dynamic, "packed relocations are read from Android 9 on"


def test_the_library_shows_one_function_and_both_are_stripped():
    assert [fields[7].partition("@")[0] for fields in symbols(JNI) if fields[6] != "UND"] == ["JNI_OnLoad"]
    assert "/system/bin/linker64" in readelf(RUN, "--program-headers")
    for path in (JNI, RUN):
        sections = readelf(path, "--section-headers")
        assert ".symtab" not in sections
        assert ".debug" not in sections


def test_they_are_small(record_property):
    sizes = {path.name: path.stat().st_size for path in (JNI, RUN)}
    record_property("bytes", sizes)
    print(sizes)
    assert max(sizes.values()) < 1_000_000


def test_onnx_runtime_is_the_one_that_is_pinned():
    pinned = re.search(r"ort_sha256=([0-9a-f]{64})", (BIONIC / "build.sh").read_text())
    assert file_sha256(ONNXRUNTIME) == pinned[1]


def test_a_function_that_bionic_lacks_fails_the_build_by_name(tmp_path):
    if not shutil.which("clang++-19"):
        pytest.skip("needs Debian's clang-19 and lld-19")
    (tmp_path / "late.cc").write_text('extern "C" void* aligned_alloc_at_28(); void* f() { return aligned_alloc_at_28(); }')
    (tmp_path / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.18)\nproject(late LANGUAGES CXX)\nadd_library(late SHARED late.cc)\n"
    )
    configure = ["cmake", "-S", tmp_path, "-B", tmp_path / "build", f"-DCMAKE_TOOLCHAIN_FILE={BIONIC}/toolchain.cmake"]
    subprocess.run([*configure, f"-DEDGEQKV_BIONIC={BUILD}"], check=True, capture_output=True)
    done = subprocess.run(["cmake", "--build", tmp_path / "build"], capture_output=True, text=True)
    assert done.returncode != 0
    assert "undefined symbol: aligned_alloc_at_28" in done.stdout + done.stderr


# -- what they compute ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundles")
    for name in MODELS:
        for dtype in ("fp32", "int8"):
            edgeqkv.export(ROOT / "models" / name, folder / f"{name}-{dtype}", weights=dtype, cache=dtype)
    return folder


@pytest.fixture(scope="module")
def bionic(tmp_path_factory):
    """A folder with libc.so, libm.so and libdl.so for glibc's dynamic linker, and ONNX Runtime by its name on Android."""
    folder = tmp_path_factory.mktemp("bionic")
    own = {"__errno", "__gnu_strerror_r", "sysconf", "__libc_init"}
    where = {"libc.so": "libc.so.6", "libdl.so": "libc.so.6", "libm.so": "libm.so.6"}
    functions = [f'F("{where[library]}", {name})\n' for library, name in names() if not name.endswith("*") and name not in own]
    (folder / "functions.h").write_text("".join(functions))
    (folder / "LIBC.map").write_text("LIBC { global: *; };\n")
    _compile(
        folder / "libc.so",
        Path(__file__).with_name("glibc_as_bionic.c"),
        *("-shared", "-fPIC", "-fno-builtin", f'-DFUNCTIONS="{folder}/functions.h"'),
        *("-Wl,-soname,libc.so", f"-Wl,--version-script={folder}/LIBC.map"),
    )
    for name in ("libm.so", "libdl.so"):
        (folder / name).symlink_to("libc.so")
    (folder / "libonnxruntime.so").symlink_to(DEVICE / "libonnxruntime.so")
    return folder


@pytest.fixture(scope="module")
def virtual_machine(tmp_path_factory):
    """A program that calls the JNI library as a Java virtual machine does."""
    if not shutil.which("javac"):
        pytest.skip("needs Debian's openjdk-17-jdk-headless, for jni.h")
    include = Path(shutil.which("javac")).resolve().parents[1] / "include"
    program = tmp_path_factory.mktemp("jni") / "serve_by_jni"
    _compile(program, Path(__file__).with_name("serve_by_jni.c"), f"-I{include}", f"-I{include / 'linux'}")
    return program


def _compile(target, source, *options):
    clang = ["clang-19", "--target=aarch64-linux-gnu", "-fuse-ld=lld-19", "-O1", "-Wall", "-Wextra", "-Werror"]
    subprocess.run([*clang, "-fvisibility=hidden", *options, "-o", target, source], check=True)


def command(bionic, program, *arguments, page=4096):
    """glibc's dynamic linker runs an Android program, under qemu-user with pages of that size."""
    linker = [DEVICE / "lib/ld-linux-aarch64.so.1", "--library-path", f"{bionic}:{DEVICE / 'lib'}"]
    return [*QEMU, "-p", str(page), *linker, program, *arguments]


def answer(words):
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def wanted_ids(bundle, kernel):
    return list(edgeqkv.open(bundle, kernel=kernel, threads=1).generate([1, 2, 3], limit=16))


ASKED = ["--ids", "1,2,3", "--tokens", "16", "--threads", "2"]


@emulated
@pytest.mark.parametrize("kernel", ["stock", "fused"])
@pytest.mark.parametrize(("name", "page"), [*((name, 4096) for name in MODELS), ("q-mqa", 16384)])
def test_the_program_gives_the_same_ids_as_here(name, kernel, page, bundles, bionic):
    bundle = bundles / f"{name}-fp32"
    said = answer(command(bionic, RUN, bundle, *ASKED, "--kernel", kernel, page=page))
    assert (said["kernel"], said["ids"]) == (kernel, wanted_ids(bundle, kernel))


@emulated
@pytest.mark.skipif(not DEBIAN_RUN.is_file(), reason="needs make runner-aarch64")
@pytest.mark.parametrize("kernel", ["stock", "fused"])
@pytest.mark.parametrize("name", MODELS)
def test_in_8_bits_it_gives_the_same_ids_as_debian_on_arm64(name, kernel, bundles, bionic):
    """Which of two equal logits wins in 8 bits is the processor's to say: x86 sums in another order."""
    asked = [bundles / f"{name}-int8", *ASKED, "--kernel", kernel]
    debian = [*QEMU, DEBIAN_RUN, *asked, "--library", DEVICE / "libonnxruntime.so"]
    assert answer(command(bionic, RUN, *asked))["ids"] == answer(debian)["ids"]


@emulated
def test_an_error_of_the_program_is_a_sentence(bionic, tmp_path):
    done = subprocess.run(command(bionic, RUN, tmp_path / "none", "--ids", "1"), capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"edgeqkv-run: .*none does not exist\n", done.stderr), "an exception was thrown and caught"


@emulated
def test_the_jni_library_gives_the_same_ids_as_here(bundles, bionic, virtual_machine, tmp_path):
    ours, theirs = socket.socketpair()
    with ours, ours.makefile("rw") as lines:
        process = subprocess.Popen(
            command(bionic, virtual_machine, JNI, page=16384), stdin=theirs, env=os.environ | {"HOME": str(tmp_path)}
        )
        theirs.close()

        def ask(do, **arguments):
            lines.write(json.dumps({"do": do, **arguments}) + "\n")
            lines.flush()
            return json.loads(lines.readline())

        assert "none does not exist" in ask("load", bundle="/none", runtime="onnx", kernel=None, threads=1)["error"]
        for name in MODELS:
            for kernel in ("stock", "fused"):
                bundle = bundles / f"{name}-fp32"
                loaded = ask("load", bundle=str(bundle), runtime="onnx", kernel=kernel, threads=2)
                assert loaded["kernel"] == kernel, loaded
                assert ask("greedy", ids=[1, 2, 3], tokens=16)["ids"] == wanted_ids(bundle, kernel)
        ours.shutdown(socket.SHUT_RDWR)
    assert process.wait(timeout=30) == 0, "serving ends with the connection"
    assert list(tmp_path.iterdir()) == [], "nothing is written into the home folder"
