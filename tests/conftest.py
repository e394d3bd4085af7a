"""What several tests need: the golden checkpoints, tiny random models, and the command line as a function."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from filelock import FileLock
from msgspec.structs import replace

from edgeqkv import export
from edgeqkv.bundle import is_bundle
from edgeqkv.config import ModelConfig, with_variant
from edgeqkv.errors import MissingPackage
from edgeqkv.model_folder import Model, write_model
from edgeqkv.parameters import parameter_shapes
from edgeqkv.presets import gpt2
from edgeqkv.text import Text

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # there is one process a core already

GOLDEN = Path(__file__).parent / "golden"
GOLDEN_VARIANTS = {
    "qkv": "QKV",
    "q_kv": "Q-K=V",
    "qk_v": "Q=K-V",
    "qkv_one": "Q=K=V",
    "gqa": "GQA-2",
    "mqa": "MQA",
    "q_gqa": "Q-GQA-2",
    "q_mqa": "Q-MQA",
}
MODELS = Path(__file__).parents[1] / "models"
EXECUTORCH_CHUNK = 16
# Exports for ExecuTorch by name; each takes ten to forty seconds, so that they are made when a test asks for one, and once.
EXECUTORCH: dict[str, tuple[Path, dict[str, Any]]] = {
    **{name: (GOLDEN / f"{name}.pt", {"weights": "fp32", "prefill_chunk": EXECUTORCH_CHUNK}) for name in GOLDEN_VARIANTS},
    "q_mqa-fp16": (GOLDEN / "q_mqa.pt", {"weights": "fp32", "cache": "fp16", "prefill_chunk": EXECUTORCH_CHUNK}),
    "qkv-int8": (GOLDEN / "qkv.pt", {"weights": "fp32", "cache": "int8", "prefill_chunk": EXECUTORCH_CHUNK}),
    "q_gqa-stock": (GOLDEN / "q_gqa.pt", {"weights": "fp32", "kernel": "stock", "prefill_chunk": EXECUTORCH_CHUNK}),
    **{f"shipped-{name}": (MODELS / name, {"cache": "int8"}) for name in ("q-kv", "q-mqa")},
}


@dataclass(frozen=True)
class Golden:
    """Reference output of the paper's own code for one checkpoint."""

    checkpoint: Path
    variant: str
    ids: list[int]
    logits: np.ndarray
    greedy: list[int]


def load_golden(name: str) -> Golden:
    data = np.load(GOLDEN / f"{name}.golden.npz")
    ids, greedy = data["input_ids"][0].tolist(), data["greedy"].reshape(-1).tolist()
    return Golden(GOLDEN / f"{name}.pt", GOLDEN_VARIANTS[name], ids, data["logits"], greedy)


@pytest.fixture(params=GOLDEN_VARIANTS)
def golden(request: pytest.FixtureRequest) -> Golden:
    return load_golden(request.param)


def tiny_config(
    variant: str,
    *,
    n_layer: int = 2,
    d_model: int = 64,
    n_head: int = 4,
    head_dim: int | None = None,
    d_mlp: int = 128,
    n_positions: int = 48,
    vocab_size: int = 320,
    token_count: int = 300,
) -> ModelConfig:
    """The paper's architecture in small. ``head_dim`` is d_model / n_head unless it is given."""
    config = gpt2(n_layer, d_model, n_head, n_positions, vocab_size, token_count)
    attention = replace(config.attention, head_dim=head_dim or d_model // n_head)
    return with_variant(replace(config, attention=attention, mlp=replace(config.mlp, width=d_mlp)), variant)


def tiny_weights(config: ModelConfig, seed: int = 0) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    return {
        name: (generator.standard_normal(shape) * 0.1).astype(np.float32) for name, shape in parameter_shapes(config).items()
    }


@pytest.fixture(scope="session")
def write_tiny_model() -> Callable[..., Path]:
    """Write a tiny random model folder: (folder, variant, tokenizer, **changes of the configuration) -> folder."""

    def write(folder: Path, variant: str = "Q-MQA", tokenizer: str | None = None, **changes: int) -> Path:
        config = tiny_config(variant, **changes)
        write_model(folder, Model(config, tiny_weights(config), tokenizer, Text(), ""), "# tiny\n")
        return folder

    return write


@pytest.fixture
def tiny_model(tmp_path: Path, write_tiny_model: Callable[..., Path]) -> Callable[..., Path]:
    """A tiny random model folder for a variant, written once; returns its path."""

    def write(variant: str = "Q-MQA", tokenizer: str | None = None, **changes: int) -> Path:
        folder = tmp_path / f"model-{variant}"
        return folder if folder.exists() else write_tiny_model(folder, variant, tokenizer, **changes)

    return write


@pytest.fixture(scope="session")
def executorch_bundle(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The bundle of a name in EXECUTORCH, the same for all processes of pytest-xdist."""
    folder = tmp_path_factory.getbasetemp()
    folder = (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "executorch"
    folder.mkdir(exist_ok=True)

    def bundle(name: str) -> Path:
        model, options = EXECUTORCH[name]
        with FileLock(folder / f"{name}.lock"):
            if not is_bundle(folder / name):
                export(model, folder / name, targets=["executorch"], **options)
        return folder / name

    return bundle


@pytest.fixture(scope="session")
def letters() -> str:
    """A tokenizer.json with one token for each byte, so that any text has ids below 256."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer.to_str()


@pytest.fixture
def no_native(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if this edgeqkv had been installed without anything compiled."""
    import edgeqkv.native
    import edgeqkv.runtimes
    from edgeqkv.targets import targets

    def missing(name: str) -> Path:
        raise MissingPackage("this edgeqkv was installed without its compiled kernel")

    targets()  # every target's module is there
    present = edgeqkv.native.native_library
    for name, module in list(sys.modules.items()):  # wherever it was imported to
        if name.startswith("edgeqkv.") and getattr(module, "native_library", None) is present:
            monkeypatch.setattr(module, "native_library", missing)
    # Python has said it once may mean: in an earlier test.
    getattr(edgeqkv.runtimes, "__warningregistry__", {}).clear()


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Run ``edgeqkv ARGUMENTS`` as the installed command does, in this process."""
    from edgeqkv.cli import main

    def run(*arguments: object) -> Outcome:
        monkeypatch.setattr("sys.argv", ["edgeqkv", *map(str, arguments)])
        try:
            main()
            code = 0
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
        seen = capsys.readouterr()
        return Outcome(code, seen.out, seen.err)

    return run


def one_sentence(outcome: Outcome) -> str:
    """The error as a user sees it: one line on stderr, no traceback, nothing on stdout."""
    assert outcome.out == ""
    assert "Traceback" not in outcome.err
    lines = outcome.err.strip().splitlines()
    assert len(lines) == 1, outcome.err
    assert lines[0].startswith("edgeqkv: ")
    return lines[0]


@pytest.fixture
def adb_server(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An adb server of the test's own, on a port of its own and with keys of its own."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    monkeypatch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
    monkeypatch.setenv("ANDROID_ADB_SERVER_PORT", str(port))
    subprocess.run(["adb", "start-server"], check=True, capture_output=True)
    yield
    subprocess.run(["adb", "kill-server"], check=True, capture_output=True)
