"""What several tests need: the golden checkpoints, tiny random models, and the command line as a function."""

import multiprocessing
import socket
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeqkv.config import ModelConfig, parameter_shapes, parse_variant
from edgeqkv.errors import MissingPackage
from edgeqkv.model_folder import write_model

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
# (model, name, weights, cache, capacity); golden Q-MQA has two layers, so that it is the quickest to export once more.
EXECUTORCH_CHUNK = 16
EXECUTORCH_MORE: list[tuple[str, str, str, str, int | None]] = [
    (str(MODELS / "q-mqa"), "shipped", "int8", "int8", 256),
    (str(GOLDEN / "q_kv.pt"), "q_kv-int8", "int8", "int8", None),
    (str(GOLDEN / "qkv.pt"), "qkv-int8-cache", "fp32", "int8", None),
]
TINY = ModelConfig("QKV", 2, 4, 4, 64, 128, 48, 320, 300, "learned", 1e-5)


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


def tiny_config(variant: str, **changes: int) -> ModelConfig:
    base = replace(TINY, **changes)
    projections, n_kv_head = parse_variant(variant, base.n_head)
    return replace(base, projections=projections, n_kv_head=n_kv_head)


def tiny_weights(config: ModelConfig, seed: int = 0) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    return {
        name: (generator.standard_normal(shape) * 0.1).astype(np.float32) for name, shape in parameter_shapes(config).items()
    }


@pytest.fixture
def tiny_model(tmp_path: Path) -> Callable[..., Path]:
    """Write a tiny random model folder for a variant, once; returns its path."""

    def write(variant: str = "Q-MQA", tokenizer: str | None = None, **changes: int) -> Path:
        folder = tmp_path / f"model-{variant}"
        if folder.exists():
            return folder
        config = tiny_config(variant, **changes)
        write_model(folder, config, tiny_weights(config), "# tiny\n", tokenizer)
        return folder

    return write


@pytest.fixture(scope="session")
def executorch_bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of ExecuTorch bundles: fp32 for every golden checkpoint by its name, and what EXECUTORCH_MORE adds. ExecuTorch
    takes half a minute for each, so that they are made once, two at a time, and in processes that end: it keeps much memory."""
    folder = tmp_path_factory.mktemp("executorch")
    wanted = [(str(GOLDEN / f"{name}.pt"), name, "fp32", "fp32", None) for name in GOLDEN_VARIANTS] + EXECUTORCH_MORE
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        list(pool.map(export_executorch, wanted, [str(folder)] * len(wanted)))
    return folder


def export_executorch(what: tuple[str, str, str, str, int | None], folder: str) -> None:
    import edgeqkv

    model, name, weights, cache, capacity = what
    options: dict[str, Any] = {"targets": ["executorch"], "weights": weights, "cache": cache, "capacity": capacity}
    options["prefill_chunk"] = None if name == "shipped" else EXECUTORCH_CHUNK
    edgeqkv.export(model, Path(folder) / name, **options)


@pytest.fixture
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
    """As if this edgeqkv had been installed without its compiled kernel."""
    import edgeqkv.runtimes

    def missing(name: str) -> Path:
        raise MissingPackage("this edgeqkv was installed without its compiled kernel")

    monkeypatch.setattr(edgeqkv.runtimes, "native_library", missing)
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
