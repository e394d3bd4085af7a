"""What CMake makes of Apple's systems, as far as clang and an empty SDK on Linux show it: nothing is compiled."""

import shutil
import subprocess
from pathlib import Path

import pytest

RUNTIMES = Path(__file__).parents[3] / "runtimes"

pytestmark = pytest.mark.skipif(
    not (shutil.which("cmake") and shutil.which("clang++-19")), reason="needs Debian's cmake and clang-19"
)


@pytest.fixture
def configure(tmp_path):
    """CMake's exit code and words for a system, its triple and more options."""

    def run(system, triple, *options):
        sdk = tmp_path / "iPhoneOS.sdk"
        sdk.mkdir(exist_ok=True)
        settings = {
            "CMAKE_SYSTEM_NAME": system,
            "CMAKE_OSX_SYSROOT": sdk,
            "CMAKE_CXX_COMPILER": "clang++-19",
            "CMAKE_CXX_COMPILER_TARGET": triple,
            "CMAKE_TRY_COMPILE_TARGET_TYPE": "STATIC_LIBRARY",  # there is nothing to link with
            "CMAKE_INSTALL_NAME_TOOL": "/bin/true",
        }
        given = [f"-D{name}={value}" for name, value in settings.items()]
        command = ["cmake", "-S", RUNTIMES, "-B", tmp_path / "build", *given, *options]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return done.returncode, " ".join((done.stdout + done.stderr).split())

    return run


@pytest.mark.parametrize(("system", "triple"), [("iOS", "arm64-apple-ios16"), ("Darwin", "arm64-apple-macos14")])
def test_it_configures_with_its_vector_code(system, triple, configure):
    """An iOS program is a bundle, which has an installation rule of its own."""
    code, words = configure(system, triple)
    assert code == 0, words
    assert "EDGEQKV_IS_ARM64 - Success" in words
    assert "no vector code" not in words


def test_two_processors_at_once_are_refused(configure):
    """Both checks of the processor would fail, and the kernel silently be the slow one. Asked as on Linux: here is no lipo."""
    code, words = configure("Linux", "x86_64-linux-gnu", "-DCMAKE_OSX_ARCHITECTURES=arm64;x86_64")
    assert code == 1
    assert "CMAKE_OSX_ARCHITECTURES names arm64;x86_64; build once for each and join the libraries with lipo -create" in words


def test_the_session_on_executorch_is_for_linux(configure):
    code, words = configure("Darwin", "arm64-apple-macos14", "-DEDGEQKV_EXECUTORCH=ON")
    assert code == 1
    assert "leave it off for Darwin" in words
