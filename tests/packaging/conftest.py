"""The wheels of `make wheels`, built when the sources are newer."""

import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock

ROOT = Path(__file__).parents[2]
OUT = ROOT / "build/wheels"


@pytest.fixture(scope="session")
def wheel():
    """A function from a machine to its wheel."""
    OUT.mkdir(parents=True, exist_ok=True)
    with FileLock(OUT / "lock"):
        wheels = list(OUT.glob("*.whl"))
        if len(wheels) < 2 or min(path.stat().st_mtime for path in wheels) < newest_source():
            done = subprocess.run([sys.executable, ROOT / "packaging/wheels.py", OUT], capture_output=True, text=True)
            if done.returncode == 3:
                pytest.skip(done.stderr.strip())
            assert done.returncode == 0, done.stdout + done.stderr

    def of(machine: str) -> Path:
        (found,) = OUT.glob(f"*_{machine}.whl")
        return found

    return of


def newest_source() -> float:
    listed = subprocess.run(
        ["git", "ls-files", "-z", "edgeqkv", "export", "runtimes", "packaging", "pyproject.toml"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    return max(path.stat().st_mtime for name in listed.stdout.split("\0") if name and (path := ROOT / name).is_file())
