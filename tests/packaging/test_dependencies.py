"""Every package that the code imports is declared, where an installation has it that runs the code."""

import ast
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# Modules whose package has another name.
PACKAGES = {
    "elftools": "pyelftools",
    "griffe": "griffelib",
    "google": "protobuf",
    "llama_cpp": "llama-cpp-python",
    "ml_dtypes": "ml-dtypes",
    "onnx_ir": "onnx-ir",
    "tree_sitter_swift": "tree-sitter-swift",
    "tree_sitter": "tree-sitter",
    "yaml": "pyyaml",
}
# Modules that come with a package that is declared, and with nothing else.
BROUGHT = {"flatbuffers": "executorch", "protobuf": "coremltools"}


def declared(extra=None):
    """Names of the packages that ``edgeqkv[extra]`` asks for, through its other extras too."""
    listed = PROJECT["dependencies"] if extra is None else PROJECT["optional-dependencies"][extra]
    found = set() if extra is None else declared()
    for requirement in map(Requirement, listed):
        found |= (
            {name for part in requirement.extras for name in declared(part)}
            if requirement.name == "edgeqkv"
            else {requirement.name}
        )
    return found


def imported(path, source=None, everywhere=True):
    """Top-level packages that a file imports; without ``everywhere`` only those that importing the file itself needs."""
    tree = ast.parse(path.read_text() if source is None else source)
    nodes = ast.walk(tree) if everywhere else at_import(tree)
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add((node.module or "").partition(".")[0])
    found -= set(sys.stdlib_module_names) | {"__future__"}
    return {PACKAGES.get(name, name) for name in found}


def at_import(node):
    for child in ast.iter_child_nodes(node):
        typing = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
        if not typing and not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield child
            yield from at_import(child)


def undeclared(files, known):
    own = {"edgeqkv"} | {path.stem for path in files} | {path.parent.name for path in files}
    found = {}
    for path in files:
        lacking = imported(path) - known - own
        lacking -= {name for name in lacking if BROUGHT.get(name) in known}
        if lacking:
            found[str(path.relative_to(ROOT))] = sorted(lacking)
    return found


def python_files(*folders):
    return [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]


@pytest.mark.parametrize(
    ("folders", "extra"),
    [
        (["edgeqkv", "export", "runtimes"], "all"),
        (["edgeqkv/training"], "train"),
        (["tests", "packaging", "docs", "android_demo"], "dev"),
    ],
    ids=["the package", "training", "development"],
)
def test_what_is_imported_is_declared(folders, extra):
    assert undeclared(python_files(*folders), declared(extra)) == {}


def test_what_the_experiments_import_is_declared():
    assert undeclared(python_files("experiments"), declared("dev") | declared("peers")) == {}


def test_what_is_imported_at_once_is_installed_always():
    """The command line and the core import nothing of an extra before they are asked for what needs it."""
    core = [
        path for path in python_files("edgeqkv") if path.relative_to(ROOT / "edgeqkv").parts[0] not in ("export", "runtimes")
    ]
    found = {str(path.relative_to(ROOT)): imported(path, everywhere=False) - declared() - {"edgeqkv"} for path in core}
    assert {path: names for path, names in found.items() if names} == ALLOWED


# Modules that are imported only once their extra has been asked for.
ALLOWED = {
    "edgeqkv/eager.py": {"torch"},
    **{f"edgeqkv/training/{name}.py": {"torch"} for name in ("convert", "job", "judge", "loop", "loss")},
}


def test_what_require_names_is_in_the_extra_that_it_names():
    """``require("onnx_ir", "onnx")`` answers where the package is missing: pip install "edgeqkv[onnx]"."""
    asked = set()
    for path in python_files("edgeqkv", "export", "runtimes"):
        for node in ast.walk(ast.parse(path.read_text())):
            calls = isinstance(node, ast.Call) and getattr(node.func, "id", "") == "require"
            if calls and all(isinstance(argument, ast.Constant) for argument in node.args):
                asked.add(tuple(argument.value for argument in node.args))
    assert len(asked) > 3
    top = {(name.partition(".")[0], extra) for name, extra in asked}
    assert {(name, extra) for name, extra in top if PACKAGES.get(name, name) not in declared(extra)} == set()


def test_an_import_that_nothing_declares_is_seen():
    assert imported(Path("x.py"), "def f():\n    import requests.sessions\n") - declared("all") == {"requests"}
    assert imported(Path("x.py"), "def f():\n    import requests\n", everywhere=False) == set()
