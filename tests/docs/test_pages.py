"""The guides do what they say: the code blocks of a page run in order, in a folder of their own."""

import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from code_blocks import NOT_CODE, Block, blocks, matches, run
from conftest import GOLDEN
from tree_sitter import Language, Parser
from tree_sitter_swift import language

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
EXPORT = "edgeqkv export models/q-mqa --out build/q-mqa --cache int8\n"
ENVIRONMENT = os.environ | {
    "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
    "COLUMNS": "200",
}
# An editable installation finds its modules before any path does.
NOT_THE_INSTALLED = """import sys
sys.meta_path[:] = [finder for finder in sys.meta_path if type(finder).__name__ != "ScikitBuildRedirectingFinder"]
"""
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]


@pytest.fixture
def folder(tmp_path, request):
    """What a reader has: the repository's folders, a checkpoint and a Hugging Face folder where the page speaks of one."""
    for name in ("models", "examples", "runtimes", "tests", "docs"):
        (tmp_path / name).symlink_to(ROOT / name)
    text = request.getfixturevalue("page").read_text()
    if "```diff" in text:  # the page changes the sources: a copy, in place of the installed ones
        for name in ("edgeqkv", "export", "runtimes"):
            (tmp_path / name).unlink(missing_ok=True)
            shutil.copytree(
                ROOT / name, tmp_path / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__", "android")
            )
        (tmp_path / "sitecustomize.py").write_text(NOT_THE_INSTALLED)
    if "my.pt" in text:
        shutil.copyfile(GOLDEN / "q_mqa.pt", tmp_path / "my.pt")
    if "my-llama" in text:
        from huggingface_models import write_case

        write_case(tmp_path / "my-llama", "llama-fp16", gain=0.3)
    return tmp_path


@pytest.fixture(scope="session")
def exported(tmp_path_factory):
    """The bundle that most pages begin with, which takes seconds: exported once, by the command as the pages have it."""
    folder = tmp_path_factory.mktemp("exported")
    (folder / "models").symlink_to(ROOT / "models")
    subprocess.run(EXPORT, shell=True, cwd=folder, env=ENVIRONMENT, check=True, capture_output=True)
    return folder / "build"


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_blocks(page, folder, request):
    steps = blocks(page, str(page.relative_to(ROOT)))
    if any(EXPORT in block.code for block in steps):
        shutil.copytree(request.getfixturevalue("exported"), folder / "build")
        steps = [replace(block, code=block.code.replace(EXPORT, "true\n")) for block in steps]
    for block in steps:
        run(block, folder, ENVIRONMENT | {"XDG_CACHE_HOME": str(folder / ".cache"), "PYTHONPATH": str(folder)})


def with_note(*notes):
    return [block for page in PAGES for block in blocks(page, page.name) if block.note and block.note[0] in notes]


@pytest.mark.parametrize("block", with_note("Tested in"), ids=lambda block: f"{block.page}:{block.line}")
def test_what_is_tested_elsewhere_stands_there(block):
    source = (ROOT / block.note[1]).read_text()
    assert re.sub(r"\s+", " ", block.body).strip() in re.sub(r"\s+", " ", source)


@pytest.mark.parametrize("block", with_note("Not compiled"), ids=lambda block: f"{block.page}:{block.line}")
def test_what_is_not_compiled_is_swift(block):
    assert block.language == "swift"
    assert not Parser(Language(language())).parse(block.body.encode()).root_node.has_error


def test_what_is_not_run_says_why():
    assert all(len(block.note[1].split()) > 3 for block in with_note("Not run in the tests"))


def test_output_is_compared():
    assert matches("a  b\nc 12\nd\n", "a b\n...\nd")
    assert matches("| a | b |\n|---|:--|\n| 1 | 2 |", "| a | b |\n|-----|--|\n| ... | 2 |")
    assert not matches("a b\nc\n", "a b\nd\n")
    assert not matches("a b\nc\n", "a b\n")


def test_a_block_that_nothing_runs_is_refused(tmp_path):
    with pytest.raises(AssertionError, match="say in it why"):
        run(Block("page.md", 1, "ruby", "puts 1\n"), tmp_path, {})
    with pytest.raises(AssertionError, match="ended with 1"):
        run(Block("page.md", 1, "bash", "false\n"), tmp_path, dict(os.environ))
    assert {"text", "json"} == NOT_CODE
