"""The Swift package without a compiler: a grammar of Swift reads every file, and its table of sampling is Python's."""

import json
from pathlib import Path

import numpy as np
import pytest

from edgeqkv.sampling import Sampler

PACKAGE = Path(__file__).parents[3] / "runtimes/coreml/swift/EdgeQKV"
FILES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.swift") if ".build" not in path.parts)
CASES = json.loads((PACKAGE / "Tests/EdgeQKVTests/sampling_cases.json").read_text())


def wrong_lines(source):
    """Where tree-sitter's grammar of Swift had to skip something, or to add what is not there."""
    tree_sitter = pytest.importorskip("tree_sitter")
    grammar = pytest.importorskip("tree_sitter_swift")
    tree = tree_sitter.Parser(tree_sitter.Language(grammar.language())).parse(source)
    found, nodes = [], [tree.root_node]
    while nodes:
        node = nodes.pop()
        if node.is_error or node.is_missing:
            found.append(node.start_point[0] + 1)
        nodes += node.children
    return sorted(found)


def test_there_are_files():
    assert {"Package.swift", "Sources/EdgeQKV/Session.swift", "Tests/EdgeQKVTests/SessionTests.swift"} <= set(FILES)


@pytest.mark.parametrize("file", FILES)
def test_every_file_is_swift(file):
    assert wrong_lines((PACKAGE / file).read_bytes()) == []


def test_what_is_not_swift_is_found():
    source = (PACKAGE / "Sources/EdgeQKV/Session.swift").read_bytes()
    assert wrong_lines(source.replace(b"guard !running else", b"guard !running els"))


@pytest.mark.parametrize("case", CASES["cases"])
def test_the_table_of_sampling_is_pythons(case):
    options = {name: value for name, value in case.items() if name != "chosen"}
    choose, held = Sampler(**options).start(), list(CASES["held"])
    for _ in case["chosen"]:
        held.append(choose(np.array(CASES["logits"], np.float32), held))
    assert held[len(CASES["held"]) :] == case["chosen"]


def test_the_generator_is_splitmix64():
    """Equal weights: the id that is drawn is the upper bits of the number."""
    choose = Sampler(temperature=1.0, seed=CASES["uniform"]["seed"]).start()
    drawn = [choose(np.zeros(4096, np.float32), []) for _ in CASES["uniform"]["values"]]
    assert drawn == [int(value * 4096) for value in CASES["uniform"]["values"]]
