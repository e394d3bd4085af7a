"""What importing costs, what it offers, and that no part of the core knows a runtime by its name."""

import ast
import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import edgeqkv

ROOT = Path(edgeqkv.__file__).parent
RUNTIME = re.compile(r"onnx|executorch|core_?ml", re.IGNORECASE)
# Where the core's code may name a runtime: the registry's lines, the default of export, and texts for people.
NAMED = {
    "targets.py": [r"edgeqkv\.runtimes\.\w+\.target:\w+"],
    "api.py": ["onnx"],  # export's default target
    "cli.py": ["onnx", r".* .*"],  # the same, and help texts
    "generate_cli.py": [r".* .*"],
    "bench/cli.py": [r".* .*"],
}
# Extras of pip, which a missing package is answered with.
EXTRA = re.compile(r"onnx|onnx-runtime|executorch-runtime|coreml")


def core_files():
    return [path for path in sorted(ROOT.rglob("*.py")) if path.relative_to(ROOT).parts[0] not in ("export", "runtimes")]


def module_of(path):
    return ".".join(["edgeqkv", *path.relative_to(ROOT).with_suffix("").parts]).removesuffix(".__init__")


def python(code, *arguments):
    return subprocess.run([sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, check=True).stdout


def test_importing_edgeqkv_costs_numpy_and_the_standard_library():
    code = (
        "import sys; before = set(sys.modules)\n"
        "import edgeqkv\n"
        "loaded = {name.partition('.')[0] for name in set(sys.modules) - before}\n"
        "print(*sorted(loaded - set(sys.stdlib_module_names)))\n"
    )
    assert set(python(code).split()) <= {"edgeqkv", "numpy"}


def test_opening_a_bundle_loads_what_its_runtime_needs():
    bundle = Path(__file__).parent / "formats/bundle-3"
    code = "import sys, edgeqkv; edgeqkv.open(sys.argv[1]).step(1); print(*sys.modules)"
    heavy = {
        "torch",
        "onnx",
        "onnx_ir",
        "executorch",
        "coremltools",
        "safetensors",
        "tokenizers",
        "typer",
        "jinja2",
        "transformers",
    }
    assert heavy & set(python(code, bundle).split()) == set()


def test_export_is_a_function_and_a_package():
    from edgeqkv.export.onnx import write

    assert inspect.isfunction(edgeqkv.export)
    assert write.build_graph.__module__ == "edgeqkv.export.onnx.write"
    code = "import edgeqkv.export.onnx.write, edgeqkv; print(callable(edgeqkv.export))"
    assert python(code) == "True\n"
    assert python("from edgeqkv.export.to_bundle import Options; import edgeqkv; print(callable(edgeqkv.export))") == "True\n"


def test_help_shows_the_functions_and_what_they_take():
    shown = python("import edgeqkv; help(edgeqkv)")
    for signature in (
        "open(bundle: str | pathlib.Path, runtime: str | None = None, kernel: str | None = None",
        "export(model: str | pathlib.Path, out: str | pathlib.Path, targets: collections.abc.Sequence[str] = ('onnx',)",
        "verify(bundle: str | pathlib.Path, against: str | pathlib.Path",
    ):
        assert re.search(re.sub(r"\\ ", r"\\s+", re.escape(signature)).replace("pathlib\\.Path", r"[\w.]*Path"), shown), (
            signature
        )
    assert set(edgeqkv.__all__) <= set(dir(edgeqkv))


@pytest.mark.parametrize("module", [module_of(path) for path in core_files()])
def test_each_module_can_be_the_first_to_be_imported(module):
    """No cycle that only works in one order."""
    fresh = {name: sys.modules.pop(name) for name in list(sys.modules) if name == "edgeqkv" or name.startswith("edgeqkv.")}
    try:
        importlib.import_module(module)
    finally:
        for name in [name for name in sys.modules if name == "edgeqkv" or name.startswith("edgeqkv.")]:
            del sys.modules[name]
        sys.modules.update(fresh)


def strings(tree):
    """Every string constant that is no docstring, and the names that code has for things."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, documented) and node.body and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            yield node, node.value
        elif isinstance(node, ast.Name | ast.Attribute | ast.FunctionDef | ast.ClassDef | ast.alias):
            yield node, getattr(node, "id", None) or getattr(node, "attr", None) or node.name
        if isinstance(node, ast.ImportFrom):
            yield node, node.module or ""


def required(tree):
    """Constants that name an extra: the second argument of require("package", "extra")."""
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "require"]
    return {
        id(call.args[1]) for call in calls if isinstance(call.args[1], ast.Constant) and EXTRA.fullmatch(call.args[1].value)
    }


def runtime_names(path, source):
    tree = ast.parse(source)
    allowed, extras = NAMED.get(path, []), required(tree)
    return [
        f"{path}:{node.lineno}: {text}"
        for node, text in strings(tree)
        if RUNTIME.search(text) and id(node) not in extras and not any(re.fullmatch(pattern, text) for pattern in allowed)
    ]


def test_no_part_of_the_core_knows_a_runtime_by_name():
    """A runtime is its own folder and one line of the registry."""
    found = [name for path in core_files() for name in runtime_names(str(path.relative_to(ROOT)), path.read_text())]
    assert found == []


@pytest.mark.parametrize(
    "source",
    [
        'if artifact.runtime == "onnx": pass',
        'NAMES = {"executorch": "ExecuTorch"}',
        "from edgeqkv.runtimes.onnx.engine import OnnxEngine",
        "import onnxruntime",
        "def open_coreml(): pass",
        'def f():\n    """Text."""\n    return "coreml"',
        'require("onnxruntime", "onnx-runtime")',
    ],
)
def test_that_look_sees_a_name(source):
    assert runtime_names("session.py", source)


def test_runtimes_and_exporters_can_be_imported_where_their_packages_are():
    for package in ("edgeqkv.runtimes", "edgeqkv.export"):
        for found in pkgutil.iter_modules(importlib.import_module(package).__path__):
            importlib.import_module(f"{package}.{found.name}")
