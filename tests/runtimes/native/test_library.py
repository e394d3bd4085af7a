"""The library as C and C++ programs meet it: header, symbols, packages, examples, what it costs to open and to close."""

import ctypes
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock

import edgeqkv
from edgeqkv.errors import EdgeQKVError
from edgeqkv.export.onnx import graph
from edgeqkv.native import native_file
from edgeqkv.runtimes.native.engine import Libraries, NativeBundle, NativeSession

ROOT = Path(__file__).parents[3]
EXAMPLES = ROOT / "examples"
AARCH64 = ROOT / "build/runner-aarch64"
HEADER = ROOT / "runtimes/native/include/edgeqkv.h"
STRICT = ["-pedantic", "-Wall", "-Wextra", "-Werror"]


def run(*command, **options):
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, f"{command}: {done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="session")
def flags(libraries):
    """A compiler's, for the installed library."""
    header, library = native_file("runtimes/native/include/edgeqkv.h").parent, libraries.edgeqkv.parent
    return [f"-I{header}", f"-L{library}", f"-Wl,-rpath,{library}", "-ledgeqkv"]


@pytest.fixture
def environment(libraries):
    names = {"EDGEQKV_ONNXRUNTIME": libraries.onnxruntime, "EDGEQKV_EXECUTORCH": libraries.executorch}
    return os.environ | {name: str(path) for name, path in names.items()}


@pytest.fixture(scope="session")
def shipped(tmp_path_factory):
    """The shipped Q-MQA model, which has a tokenizer, for ONNX Runtime."""
    import edgeqkv

    folder = tmp_path_factory.mktemp("shipped") / "q-mqa"
    edgeqkv.export(ROOT / "models/q-mqa", folder, cache="int8")
    return folder


@pytest.mark.parametrize("compiler", [["cc", "-std=c99"], ["c++", "-std=c++17"]], ids=["C99", "C++17"])
def test_the_header_stands_alone(compiler, tmp_path):
    source = tmp_path / ("one.c" if compiler[0] == "cc" else "one.cc")
    source.write_text('#include "edgeqkv.h"\n#include "edgeqkv.h"\nint main(void) { return edgeqkv_version() == 0; }\n')
    run(*compiler, *STRICT, "-fsyntax-only", f"-I{HEADER.parent}", source)


def test_the_header_goes_with_the_kernel_s(tmp_path):
    source = tmp_path / "both.c"
    source.write_text('#include "edgeqkv.h"\n#include "edgeqkv_attention.h"\nint main(void) { return EDGEQKV_SUCCESS; }\n')
    run("cc", "-std=c99", *STRICT, "-fsyntax-only", f"-I{HEADER.parent}", f"-I{ROOT / 'runtimes/kernels/include'}", source)


def test_it_exports_what_the_header_declares_and_nothing_else(libraries):
    declared = set(re.findall(r"^EDGEQKV_EXPORT .*?\b(edgeqkv_\w+)\(", HEADER.read_text(), re.MULTILINE))
    exported = {line.split()[-1] for line in run("nm", "-D", "--defined-only", libraries.edgeqkv).splitlines()}
    assert exported == declared
    assert len(declared) > 20


def test_what_it_links(libraries):
    dynamic = run("readelf", "-d", libraries.edgeqkv)
    assert "Library soname: [libedgeqkv.so]" in dynamic
    needed = set(re.findall(r"NEEDED.*\[(.*?)\.so", dynamic))
    assert needed <= {"libstdc++", "libm", "libgcc_s", "libc", "ld-linux-x86-64", "ld-linux-aarch64", "libdl", "libpthread"}
    alignments = {
        int(line.split()[-1], 16) for line in run("readelf", "-lW", libraries.edgeqkv).splitlines() if " LOAD " in line
    }
    assert all(alignment >= 16384 for alignment in alignments)


@pytest.mark.parametrize("name", ["native/libedgeqkv", "onnx/libedgeqkv_onnx", "executorch/libedgeqkv_executorch"])
def test_what_registers_operators_is_never_unloaded(name):
    """A runtime keeps pointers to them, and does not say for how long."""
    assert "NODELETE" in run("readelf", "-d", native_file(f"runtimes/{name}.so"))


def test_the_structs_of_ctypes_are_those_of_the_header(tmp_path, flags):
    from edgeqkv.runtimes.native import engine

    lines, expected = [], []
    for name, struct in (("edgeqkv_open_options", engine._OpenOptions), ("edgeqkv_generate_options", engine._GenerateOptions)):
        lines.append(f'printf("%zu ", sizeof({name}));')
        expected.append(ctypes.sizeof(struct))
        for field, *_ in struct._fields_:
            lines.append(f'printf("%zu ", offsetof({name}, {field}));')
            expected.append(getattr(struct, field).offset)
    (tmp_path / "sizes.c").write_text(
        f"#include <edgeqkv.h>\n#include <stdio.h>\nint main(void) {{ {' '.join(lines)} return 0; }}\n"
    )
    run("cc", tmp_path / "sizes.c", *flags, "-o", tmp_path / "sizes")
    assert list(map(int, run(tmp_path / "sizes").split())) == expected


def test_generate_in_c(tmp_path, flags, shipped, libraries, environment):
    run("cc", "-std=c99", *STRICT, EXAMPLES / "generate.c", *flags, "-o", tmp_path / "generate")
    text = run(tmp_path / "generate", shipped, "Once upon a time", 40, env=environment)
    bundle = NativeBundle(shipped, libraries)
    from edgeqkv.sampling import Sampler

    ids = list(NativeSession(bundle).generate(bundle.encode("Once upon a time"), Sampler(0.6, 40, seed=7), 40))
    assert text == bundle.decode(ids) + "\n"
    failed = subprocess.run(
        [tmp_path / "generate", tmp_path, "x"], capture_output=True, text=True, env=environment, check=False
    )
    assert (failed.returncode, "is not a bundle" in failed.stderr) == (2, True)


def test_resume_in_c(tmp_path, flags, shipped, environment):
    run("cc", "-std=c99", *STRICT, EXAMPLES / "resume.c", *flags, "-o", tmp_path / "resume")

    def story(file, *words):
        return run(tmp_path / "resume", shipped, tmp_path / file, *words, env=environment).removesuffix("\n")

    whole = story("whole", "Once upon a time", 12)
    assert story("parts", "Once upon a time", 5) + story("parts", "", 7) == whole
    assert (tmp_path / "parts").read_bytes() == (tmp_path / "whole").read_bytes()
    (tmp_path / "parts").write_bytes(b"no session")
    refused = [tmp_path / "resume", shipped, tmp_path / "parts", "and"]
    done = subprocess.run(refused, capture_output=True, text=True, env=environment, check=False)
    assert (done.returncode, "is no session file" in done.stderr) == (2, True)


def test_chat_in_cpp(tmp_path, flags, shipped, environment):
    run("c++", "-std=c++17", *STRICT, EXAMPLES / "chat.cc", *flags, "-o", tmp_path / "chat")
    said = ["Once upon a time", "/save a.session", "Then she", "/reset", "/load a.session", "Then she", "/load none", "/quit"]
    done = subprocess.run(
        [tmp_path / "chat", shipped],
        input="\n".join(said),
        capture_output=True,
        text=True,
        env=environment,
        cwd=tmp_path,
        check=True,
    )
    _, first, after_save, second, _, _, again, *_ = done.stdout.split("> ")
    assert first.strip()
    assert after_save == ""
    assert second == again  # the loaded conversation goes on as the one that was saved
    assert done.stderr == "none does not exist\n"


def built(name, *options, targets=("all",)):
    """runtimes/ as CMake builds it with these options, in build/, where the next run finds it."""
    build = ROOT / f"build/native-{name}"
    build.mkdir(parents=True, exist_ok=True)
    with FileLock(build / "lock"):
        run("cmake", "-S", ROOT / "runtimes", "-B", build, *options)
        run("cmake", "--build", build, "--parallel", 2, "--target", *targets)
    return build


@pytest.mark.skipif(shutil.which("cmake") is None, reason="needs cmake")
def test_the_installed_packages(tmp_path, shipped, environment):
    prefix = tmp_path / "prefix"
    build = built("package", "-DCMAKE_INSTALL_LIBDIR=lib")
    run("cmake", "--install", build, "--prefix", prefix)
    assert {path.name for path in prefix.iterdir()} == {"bin", "include", "lib"}
    assert run(prefix / "bin/edgeqkv-run", "--help").startswith("usage: edgeqkv-run")
    user = tmp_path / "user"
    user.mkdir()
    (user / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.18)\nproject(user LANGUAGES C)\nfind_package(edgeqkv REQUIRED)\n"
        f"add_executable(generate {EXAMPLES / 'generate.c'})\ntarget_link_libraries(generate PRIVATE edgeqkv::edgeqkv)\n"
    )
    run("cmake", "-S", user, "-B", user / "build", f"-DCMAKE_PREFIX_PATH={prefix}")
    run("cmake", "--build", user / "build")
    text = run(user / "build/generate", shipped, "Once", 5, env=environment)
    assert len(text) > 5
    if shutil.which("pkg-config"):
        found = run(
            "pkg-config", "--cflags", "--libs", "edgeqkv", env=os.environ | {"PKG_CONFIG_PATH": str(prefix / "lib/pkgconfig")}
        )
        run("cc", EXAMPLES / "generate.c", *found.split(), f"-Wl,-rpath,{prefix / 'lib'}", "-o", tmp_path / "generate")
        assert run(tmp_path / "generate", shipped, "Once", 5, env=environment) == text
    links = sorted(path.name for path in (prefix / "lib").glob("libedgeqkv*"))
    assert len(links) == 3, links  # the file, its soname, and the name that linkers look for


def counts():
    status = Path("/proc/self/status").read_text()
    numbers = {name: int(re.search(rf"{name}:\s+(\d+)", status)[1]) for name in ("VmRSS", "Threads")}
    return numbers["VmRSS"], numbers["Threads"], len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize("runtime", ["onnx", "executorch"])
def test_thousands_of_sessions(runtime, golden_bundle, executorch_bundle, open_native):
    # A session of ExecuTorch loads the program again, and takes a hundred times as long.
    bundle = open_native(golden_bundle() if runtime == "onnx" else executorch_bundle("q_mqa"), runtime)
    times, warm_up = (10_000, 500) if runtime == "onnx" else (200, 50)

    def open_and_close(n):
        for _ in range(n):
            session = NativeSession(bundle)
            session.step(1)
            session.close()

    open_and_close(warm_up)
    rss, threads, files = counts()
    open_and_close(times)
    after = counts()
    assert after[1:] == (threads, files)
    assert after[0] - rss < 1024, "KiB"  # of 10,000 caches, logits and bindings


@pytest.mark.parametrize("runtime", ["onnx", "executorch"])
def test_bundles_are_opened_and_closed_without_growth(runtime, golden_bundle, executorch_bundle, open_native):
    """A thousand with ONNX Runtime, half as many with ExecuTorch, or as many as EDGEQKV_OPENED_BUNDLES says; 20 ms each."""
    folder = golden_bundle() if runtime == "onnx" else executorch_bundle("q_mqa")
    times = int(os.environ.get("EDGEQKV_OPENED_BUNDLES", "1000" if runtime == "onnx" else "500"))
    threads = 2 if runtime == "onnx" else 1  # ExecuTorch's pool is the process's, and of one size

    def open_and_close(n):
        for _ in range(n):
            NativeSession(open_native(folder, runtime, threads=threads)).step(1)

    open_and_close(100)
    rss, *others = counts()
    open_and_close(times)
    after = counts()
    print(f"{runtime}: {after[0] - rss} KiB more after {times} bundles, {1024 * (after[0] - rss) / times:.0f} bytes each")
    assert list(after[1:]) == others
    assert after[0] - rss < 4096, "KiB"


def test_what_does_not_open_leaves_nothing(golden_bundle, tmp_path, open_native):
    """Its program is loaded when it turns out that the manifest does not fit it."""
    shutil.copytree(golden_bundle(), tmp_path / "bundle")
    manifest = tmp_path / "bundle/edgeqkv.json"
    manifest.write_text(manifest.read_text().replace("cache.0.k", "cache.7.k"))

    def try_to_open(n):
        for _ in range(n):
            with pytest.raises(EdgeQKVError, match="refuses what the manifest describes"):
                NativeSession(open_native(tmp_path / "bundle", "onnx", "fused"))

    try_to_open(100)
    rss, *others = counts()
    try_to_open(400)
    after = counts()
    assert list(after[1:]) == others
    assert after[0] - rss < 1024, "KiB"


def test_what_c_may_get_wrong(golden_bundle, open_native):
    bundle = open_native(golden_bundle(), "onnx")
    library, session = bundle._library, ctypes.c_void_p()
    library.edgeqkv_version.restype = ctypes.c_char_p
    assert re.fullmatch(rb"\d+\.\d+\.\d+", library.edgeqkv_version())
    none = ctypes.c_void_p()
    for name in ("session_reset", "session_save", "session_restore", "session_fork", "session_logits"):
        with pytest.raises(EdgeQKVError, match="session is NULL"):
            bundle.call(name, none, none)
    for name, arguments in (("bundle_open", (none, none, none)), ("bundle_describe", (none, none)), ("memory", (none,))):
        with pytest.raises(EdgeQKVError, match="is NULL"):
            bundle.call(name, *arguments)
    assert library.edgeqkv_session_close(none) == 0
    library.edgeqkv_bundle_close(none)
    bundle.call("session_open", bundle.handle, ctypes.byref(session))
    with pytest.raises(EdgeQKVError, match="ids is NULL"):
        bundle.call("session_prefill", session, none, ctypes.c_size_t(3), none)
    with pytest.raises(EdgeQKVError, match="on_token is NULL"):
        bundle.call("session_generate", session, none, ctypes.c_size_t(0), none, none, none, none)
    bundle.call("session_close", session)


def test_options_of_other_versions(golden_bundle, open_native):
    bundle = open_native(golden_bundle(), "onnx")
    opened, folder = ctypes.c_void_p(), os.fsencode(golden_bundle())
    words = (ctypes.c_uint64 * 16)()  # an edgeqkv_open_options, and more than this version knows

    def open_with(size, beyond=0):
        words[0], words[15] = size, beyond
        bundle.call("bundle_open", folder, words, ctypes.byref(opened))
        bundle._library.edgeqkv_bundle_close(opened)

    open_with(8)  # a version that knew no option
    open_with(128)  # a later one, which leaves its own options alone
    with pytest.raises(EdgeQKVError, match="asks for what this version of libedgeqkv does not know"):
        open_with(128, beyond=1)
    for size in (0, 4, 10**6):
        with pytest.raises(EdgeQKVError, match="size is not the size of the struct"):
            open_with(size)


def test_bundle_and_sessions_close_in_any_order(golden_bundle, open_native):
    bundle = open_native(golden_bundle(), "onnx")
    library, session = bundle._library, ctypes.c_void_p()
    bundle.call("session_open", bundle.handle, ctypes.byref(session))
    library.edgeqkv_bundle_close(bundle._handle)
    bundle._handle = ctypes.c_void_p()
    assert library.edgeqkv_session_step(session, ctypes.c_int64(1), None) == 0
    assert library.edgeqkv_session_close(session) == 0


def test_the_description_is_json(shipped, open_native):
    info = open_native(shipped).info
    assert (info["variant"], info["runtime"], info["text"]) == ("Q-MQA", "onnx", True)
    manifest = json.loads((shipped / "edgeqkv.json").read_text())
    assert info["special_tokens"] == manifest["text"]["special_tokens"]
    assert info["chat_template"] == manifest["text"]["chat_template"]


@pytest.mark.skipif(shutil.which("strace") is None, reason="needs Debian's strace")
def test_no_file_and_no_socket(golden_bundle, libraries, tmp_path):
    """ONNX Runtime would leave files in the user's home, and talk to its makers."""
    home, calls = tmp_path / "home", tmp_path / "calls"
    home.mkdir()
    program = native_file("runtimes/run/edgeqkv-run")
    command = [program, golden_bundle(), "--ids", "1,2,3", "--runtime", "onnx", "--library", libraries.onnxruntime]
    environment = {"HOME": str(home), "PATH": os.environ["PATH"]}
    run("strace", "-f", "-e", "trace=network,openat,open,creat,mkdir,mkdirat", "-o", calls, *command, env=environment)
    seen = calls.read_text()
    assert "libonnxruntime" in seen
    assert not re.search(r"socket\(|connect\(", seen)
    assert "O_CREAT" not in seen
    assert "mkdir" not in seen
    assert list(home.iterdir()) == []


def test_pages_of_tables_are_given_back_after_each_call(tmp_path, write_tiny_model, monkeypatch, open_native):
    monkeypatch.setattr(graph, "TABLE_BYTES", 4096)
    edgeqkv.export(write_tiny_model(tmp_path / "model"), tmp_path / "bundle")
    session = NativeSession(open_native(tmp_path / "bundle", "onnx"))

    def resident():
        maps = re.split(r"^(?=[0-9a-f]+-[0-9a-f]+ )", Path("/proc/self/smaps").read_text(), flags=re.MULTILINE)
        held = [mapping for mapping in maps if mapping.partition("\n")[0].endswith(str(tmp_path / "bundle/onnx/tables.data"))]
        return [int(re.search(r"^Rss: +(\d+) kB", mapping, re.MULTILINE)[1]) for mapping in held]

    assert resident()
    first = session.prefill([1, 2, 3])
    assert set(resident()) == {0}
    session.step(7)
    assert set(resident()) == {0}
    session.reset()
    assert np.array_equal(session.prefill([1, 2, 3]), first), "they come back from the file"


@pytest.mark.parametrize("sanitizer", ["address", "thread"])
@pytest.mark.skipif(shutil.which("cmake") is None, reason="needs cmake")
@pytest.mark.skipif(sys.platform != "linux", reason="tried on Linux")
def test_the_rules_of_sessions_under_sanitizers(sanitizer, golden_bundle, libraries, tmp_path):
    """Two threads run the whole table at the same time."""
    kind = "-DEDGEQKV_SANITIZE=ON" if sanitizer == "address" else "-DCMAKE_CXX_FLAGS=-fsanitize=thread -g -O1"
    build = built(sanitizer, "-DEDGEQKV_NATIVE_TESTS=ON", kind, targets=["session_cases"])
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    cases = ROOT / "tests/session_cases.json"
    said = run(build / "native/session_cases", golden_bundle(), "onnx", "fused", cases, tmp_path, libraries.onnxruntime)
    assert said.endswith(" 0 failed\n")


@pytest.mark.skipif(
    not ((AARCH64 / "native/session_cases").is_file() and shutil.which("qemu-aarch64")),
    reason="needs the programs for arm64 (make runner-aarch64) and Debian's qemu-user",
)
@pytest.mark.parametrize("runtime", ["onnx", "executorch"])
def test_the_rules_of_sessions_on_aarch64(runtime, golden_bundle, executorch_bundle, tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    bundle = golden_bundle() if runtime == "onnx" else executorch_bundle("q_mqa")
    library = {"onnx": AARCH64 / "root/libonnxruntime.so", "executorch": AARCH64 / "executorch/libedgeqkv_executorch.so"}[
        runtime
    ]
    emulated = ["qemu-aarch64", "-L", AARCH64 / "root", AARCH64 / "native/session_cases"]
    cases = ROOT / "tests/session_cases.json"
    environment = os.environ | {"QEMU_CPU": "neoverse-n1"}
    assert run(*emulated, bundle, runtime, "fused", cases, tmp_path, library, env=environment).endswith(" 0 failed\n")


@pytest.mark.skipif(
    "EDGEQKV_OLDEST_ONNXRUNTIME" not in os.environ, reason="EDGEQKV_OLDEST_ONNXRUNTIME names libonnxruntime.so 1.23"
)
@pytest.mark.parametrize(("name", "cache"), [("q_mqa", "int8"), ("q_kv", "fp16"), ("q_gqa", "fp32"), ("qkv", "fp32")])
def test_the_oldest_runtime(name, cache, golden_bundle, libraries):
    """Both in one process, which their operators are not to be mixed up in."""
    oldest = Libraries(libraries.edgeqkv, Path(os.environ["EDGEQKV_OLDEST_ONNXRUNTIME"]))
    bundle = golden_bundle(name, cache)
    sessions = [NativeSession(NativeBundle(bundle, each, "onnx", "fused", 1)) for each in (oldest, libraries)]
    assert sessions[0].runtime_version.startswith("1.23.")
    old, new = (list(session.generate([1, 2, 3], limit=20)) for session in sessions)
    assert old == new
