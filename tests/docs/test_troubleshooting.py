"""Each message on the page of troubles is one that the sources print."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/troubleshooting.md"
MESSAGES = re.findall(r"^> (.+)$", PAGE.read_text(), re.MULTILINE)
GAP = "\0"


def texts(path):
    """The strings of a file, with GAP for what is put in; strings that stand side by side are one."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.JoinedStr):
            yield "".join(part.value if isinstance(part, ast.Constant) else GAP for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


@pytest.fixture(scope="module")
def printed():
    folders = [ROOT / "edgeqkv", ROOT / "export", ROOT / "runtimes"]
    return {text for folder in folders for path in folder.rglob("*.py") for text in texts(path)}


@pytest.mark.parametrize("message", MESSAGES)
def test_the_sources_have_it(message, printed):
    pattern = re.compile(".*".join(re.escape(part.strip()) for part in message.split("…")), re.DOTALL)
    assert any(pattern.search(text) for text in printed), f"nothing prints: {message}"


def test_there_are_messages():
    assert len(MESSAGES) > 30
    assert len(set(MESSAGES)) == len(MESSAGES)
    assert all(len(re.findall(r"\w+", message)) > 2 for message in MESSAGES)
