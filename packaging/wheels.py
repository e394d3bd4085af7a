"""Builds the wheels for Linux on x86-64 and aarch64, both on whichever of them this is: python packaging/wheels.py OUT.

zig.cmake says how. glibc 2.28 is what the wheels of ONNX Runtime and ExecuTorch ask for too.
"""

import importlib.util
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from edgeqkv.runtimes.executorch.target import VERSION as EXECUTORCH

HERE = Path(__file__).resolve().parent
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_28_aarch64")


def main() -> None:
    out = Path(sys.argv[1]).resolve()
    zig = find_zig()
    require_gcc()
    out.mkdir(parents=True, exist_ok=True)
    for old in out.glob("*.whl"):
        old.unlink()
    for platform in PLATFORMS:
        build(platform, zig, executorch(platform, out), out)
    for wheel in sorted(out.glob("*.whl")):
        print(f"{wheel}  {wheel.stat().st_size / 2**20:.1f} MiB")


def build(platform: str, zig: Path, executorch: Path, out: Path) -> None:
    """Puts the wheel for ``platform`` into ``out``. The build folder stays, so that a second time compiles what has changed."""
    defines = {
        "CMAKE_TOOLCHAIN_FILE": HERE / "zig.cmake",
        "EDGEQKV_ZIG": zig,
        "EDGEQKV_PLATFORM": platform,
        "EDGEQKV_EXECUTORCH": "ON",
        "EXECUTORCH_DIR": executorch,
    }
    settings = {
        "build-dir": out / "build" / platform,
        "install.strip": "false",
        "wheel.tags": f"py3-none-{platform}",
    } | {f"cmake.define.{name}": value for name, value in defines.items()}
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", out, HERE.parent]
    for name, value in settings.items():
        command += ["--config-settings", f"{name}={value}"]
    # With EDGEQKV_EXECUTORCH in the environment too, a failure to compile is one, and gives no pure Python wheel.
    subprocess.run(["env", "EDGEQKV_EXECUTORCH=ON", *command], check=True)


def find_zig() -> Path:
    spec = importlib.util.find_spec("ziglang")
    if spec is None or spec.origin is None:
        raise SystemExit('the wheels are compiled by zig: pip install "edgeqkv[wheels]"')
    return Path(spec.origin).parent / "zig"


def require_gcc() -> None:
    """Ends with exit status 3, and what to install, where GCC's C++ library for a platform is missing."""
    machines = [platform.removeprefix("manylinux_2_28_") for platform in PLATFORMS]
    missing = [f"g++-{name.replace('_', '-')}-linux-gnu" for name in machines if not shutil.which(f"{name}-linux-gnu-g++")]
    if missing:
        print(
            f"the wheels need the Debian packages {' and '.join(missing)}: apt-get install {' '.join(missing)}", file=sys.stderr
        )
        raise SystemExit(3)


def executorch(platform: str, out: Path) -> Path:
    """The folder executorch of the wheel for ``platform``. Its C++ parts are the same for every Python."""
    folder = out / "build" / f"executorch-{EXECUTORCH}-{platform}"
    if not folder.is_dir():
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out) as temporary:
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
            subprocess.run(
                [*command, "--platform", platform, "--dest", temporary, f"executorch=={EXECUTORCH}"],
                check=True,
            )
            (wheel,) = Path(temporary).glob("*.whl")
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(Path(temporary) / "unpacked")
            folder.parent.mkdir(exist_ok=True)
            (Path(temporary) / "unpacked").rename(folder)
    return folder / "executorch"


if __name__ == "__main__":
    main()
