"""The code blocks of a page, and how each is run.

A page is a sequence of steps in one folder: bash and Python blocks are run, console blocks ("$ command" and what it prints) are
run and compared, and a block whose first line names a file ("# File: story.c") becomes that file. A block that is not run says
so, and why, where the reader sees it: in its first line.
"""

import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

FENCE = re.compile(
    r"^(?P<indent> *)(?P<mark>```+)(?P<language>\w*)[^\n]*\n(?P<code>.*?)^ *(?P=mark) *$", re.MULTILINE | re.DOTALL
)
FIRST_LINE = re.compile(r"(?:#|//|/\*) (?P<what>File|Tested in|Not run in the tests|Not compiled): (?P<text>.+?)(?: \*/)?$")
NOT_CODE = {"text", "json"}
SECONDS = 600  # other jobs of the machine may hold a step up


@dataclass(frozen=True)
class Block:
    page: str
    line: int
    language: str
    code: str

    @property
    def note(self) -> tuple[str, str] | None:
        """What the first line says of the block: ("File", "story.c")."""
        match = FIRST_LINE.match(self.code.partition("\n")[0].strip())
        return (match["what"], match["text"]) if match else None

    @property
    def body(self) -> str:
        return self.code.partition("\n")[2] if self.note else self.code


def blocks(page: Path, name: str) -> list[Block]:
    text = page.read_text()
    found = []
    for fence in FENCE.finditer(text):
        code = re.sub(f"^{fence['indent']}", "", fence["code"], flags=re.MULTILINE)
        found.append(Block(name, text.count("\n", 0, fence.start()) + 1, fence["language"], code))
    return found


def run(block: Block, folder: Path, environment: dict[str, str]) -> None:
    what, text = block.note or ("", "")
    if what == "File":
        (folder / text).parent.mkdir(parents=True, exist_ok=True)
        (folder / text).write_text(block.body)
    elif what or block.language in NOT_CODE:
        return
    elif block.language == "bash":
        _done(block, ["bash", "-euo", "pipefail", "-c", block.code], folder, environment)
    elif block.language == "python":
        _done(block, [sys.executable, "-c", block.code], folder, environment)
    elif block.language == "console":
        for command, expected in commands(block.code):
            out = _done(block, ["bash", "-euo", "pipefail", "-c", command], folder, environment)
            assert matches(out, expected), f"{block.page}:{block.line}: {command} prints\n{out}\nand the page has\n{expected}"
    elif block.language == "diff":
        _done(block, ["patch", "--strip=1", "--fuzz=0"], folder, environment, block.code)
    else:
        raise AssertionError(f"{block.page}:{block.line}: nothing runs a {block.language or 'plain'} block; say in it why")


def commands(code: str) -> list[tuple[str, str]]:
    """Each "$ command" of a console block with what the page says that it prints."""
    parts = re.split(r"^\$ ", code, flags=re.MULTILINE)[1:]
    return [tuple(part.split("\n", 1)) for part in parts]  # type: ignore[misc]


def matches(out: str, expected: str) -> bool:
    """Whether a text is what the page says: "..." stands for anything, and widths of columns do not matter."""

    def plain(text: str) -> str:
        return re.sub(r"[ \t]+", " ", re.sub(r":?-{2,}:?", "-", text)).strip()

    parts = re.sub(r"\n?\.\.\.\n?", "...", plain(expected)).split("...")
    pattern = ".*".join(map(re.escape, parts))
    return re.fullmatch(pattern, plain(out), re.DOTALL) is not None


def _done(block: Block, command: list[str], folder: Path, environment: dict[str, str], text: str = "") -> str:
    done = subprocess.run(
        command, cwd=folder, env=environment, input=text, capture_output=True, text=True, timeout=SECONDS, check=False
    )
    assert done.returncode == 0, f"{block.page}:{block.line} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
    return done.stdout
