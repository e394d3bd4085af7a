"""The site: what its pages are made from, that none is forgotten, and that it loads nothing from elsewhere."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from edgeqkv.cli import app

ROOT = Path(__file__).parents[2]
HEADER = ROOT / "runtimes/native/include/edgeqkv.h"


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """The repository with a docs/ of the test's own, and the pages that docs/generate makes of it."""
    folder = tmp_path_factory.mktemp("site")
    for path in ROOT.iterdir():
        if path.name not in ("docs", "build", ".cache", ".git", ".venv"):
            (folder / path.name).symlink_to(path)
    shutil.copytree(ROOT / "docs", folder / "docs")
    done = generate(folder)
    assert done.returncode == 0, done.stderr
    return folder


def generate(folder):
    command = [sys.executable, "docs/generate", "build/docs"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


def links(place):
    if isinstance(place, str):
        return [place]
    return [link for value in (place.values() if isinstance(place, dict) else place) for link in links(value)]


def test_every_page_is_in_the_navigation(tree):
    listed = links(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])
    guides = {str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md")}
    references = {f"reference/{path.name}" for path in (tree / "build/docs/reference").glob("*.md")}
    assert guides | references <= set(listed)
    assert len(set(listed)) == len(listed)
    assert all((tree / "build/docs" / link).is_file() for link in listed)


def test_the_command_line_is_complete(tree):
    page = (tree / "build/docs/reference/cli.md").read_text()
    names = [command.name or command.callback.__name__ for command in app.registered_commands]
    assert re.findall(r"^## (\S+)$", page, re.MULTILINE) == names
    for name in names:
        done = subprocess.run(
            [sys.executable, "-m", "edgeqkv.cli", name, "--help"],
            env=os.environ | {"COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"}, capture_output=True, text=True, check=True,
        )  # fmt: skip
        section = page.partition(f"\n## {name}\n")[2].partition("\n## ")[0]
        options = set(re.findall(r"(?<![\w-])--[\w-]+", done.stdout)) - {"--help"}
        assert {option for option in options if option not in section} == set(), name


def test_the_c_reference_is_complete(tree):
    page = (tree / "build/docs/reference/c.md").read_text()
    declared = re.findall(r"^EDGEQKV_EXPORT .*?\b(edgeqkv_\w+)\(", HEADER.read_text(), re.MULTILINE)
    assert {name for name in declared if f"### {name}\n" not in page} == set()
    assert "EDGEQKV_BUSY = 5" in page


def test_a_link_to_nothing_is_refused(tree, tmp_path):
    page = tree / "docs/index.md"
    text = page.read_text()
    try:
        page.write_text(f"{text}\n[gone](../runtimes/gone.md)\n")
        done = generate(tree)
    finally:
        page.write_text(text)
    assert done.returncode != 0
    assert "docs/index.md links to runtimes/gone.md, which is not there" in done.stderr


@pytest.mark.skipif(importlib.util.find_spec("zensical") is None, reason="the extra docs is not installed")
def test_the_site_builds_and_loads_nothing_from_elsewhere(tree):
    assert generate(tree).returncode == 0
    command = [sys.executable, "-m", "zensical", "build", "--clean", "--strict", "--config-file", "mkdocs.yml"]
    (tree / "mkdocs.yml").unlink()
    shutil.copy(ROOT / "mkdocs.yml", tree)
    done = subprocess.run(command, cwd=tree, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    pages = list((tree / "build/site").rglob("*.html"))
    assert len(pages) > 40
    loaded = re.compile(r"<(?:script|link|img|iframe|source)\b[^>]*?\b(?:src|href)=\"?(?:https?:)?//[^\s\">]*")
    assert {hit for page in pages for hit in loaded.findall(page.read_text())} == set()
