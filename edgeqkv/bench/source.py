"""Which source measured: the git commit of the checkout that this package is imported from."""

import functools
import subprocess
from pathlib import Path


@functools.cache
def git_commit() -> str | None:
    """Its hash, with "+" when files differ from it; None for an installed package, or without git."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    try:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, timeout=10)
        changed = subprocess.run(["git", "diff", "--quiet", "HEAD"], cwd=root, capture_output=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return commit.stdout.strip() + ("+" if changed.returncode else "") if commit.returncode == 0 else None
