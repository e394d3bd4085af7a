"""The installed library, and bundles opened with it."""

from collections.abc import Callable
from pathlib import Path

import onnxruntime
import pytest

import edgeqkv
from edgeqkv.native import native_file
from edgeqkv.runtimes.native.engine import Libraries, NativeBundle

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="session")
def libraries() -> Libraries:
    return Libraries(
        native_file("runtimes/native/libedgeqkv.so"),
        next(Path(onnxruntime.__file__).parent.glob("capi/libonnxruntime.so*")),
        native_file("runtimes/executorch/libedgeqkv_executorch.so"),
    )


@pytest.fixture
def open_native(libraries: Libraries) -> Callable[..., NativeBundle]:
    """Open a bundle on one thread."""

    def open_bundle(folder: Path, runtime: str | None = None, kernel: str | None = None, **options: object) -> NativeBundle:
        return NativeBundle(folder, libraries, runtime, kernel, **{"threads": 1, **options})

    return open_bundle


@pytest.fixture(scope="session")
def golden_bundle(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A golden checkpoint exported for ONNX Runtime, once for each choice of options. Not to be changed; copy it for that."""
    folder = tmp_path_factory.mktemp("bundles")

    def bundle(name: str = "q_mqa", cache: str = "int8") -> Path:
        path = folder / f"{name}-{cache}"
        if not path.exists():
            edgeqkv.export(ROOT / f"tests/golden/{name}.pt", path, cache=cache, prefill_chunk=4)
        return path

    return bundle
