"""Every target computes the same function: models of transformers' own classes, and random configurations.

fp32 weights and cache agree within 1e-3 on logits of size 5 to 10, with the same greedy ids. Core ML computes in fp16.
"""

import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_models import (
    N_POSITIONS,
    CASES,
    assert_same_function,
    greedy,
    random_ids,
    reference_greedy,
    reference_logits,
    write_case,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import edgeqkv
from edgeqkv.cache import CacheLayout
from edgeqkv.config import (
    MLP,
    FactorScaling,
    Head,
    LatentAttention,
    Learned,
    Llama3Scaling,
    ModelConfig,
    Norm,
    Rotary,
    Row,
    SharedAttention,
    Slice,
)
from edgeqkv.eager import EagerModel, EagerVerbs
from edgeqkv.errors import EdgeQKVError
from edgeqkv.model_folder import Model, write_model
from edgeqkv.parameters import parameter_shapes
from edgeqkv.sources import load_model
from edgeqkv.text import Text

TOLERANCE, COREML_TOLERANCE = 1e-3, 3e-2


@dataclass(frozen=True)
class Reference:
    """A Hugging Face folder, and what transformers says of it."""

    folder: Path
    ids: list[int]
    logits: np.ndarray
    greedy: list[int]  # what follows the first 16 of ids


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Reference]:
    made: dict[str, Reference] = {}

    def make(name: str, **changes: Any) -> Reference:
        key = f"{name} {changes}"
        if key not in made:
            folder = write_case(tmp_path_factory.mktemp("hf") / name, name, **changes)
            ids = random_ids()
            made[key] = Reference(folder, ids, reference_logits(folder, ids), reference_greedy(folder, ids[:16], N_POSITIONS))
        return made[key]

    return make


def check(session: Any, reference: Reference) -> None:
    assert_same_function(session, reference.ids, reference.logits, TOLERANCE)
    assert greedy(session, reference.ids[:16]) == reference.greedy


@pytest.mark.parametrize("name", CASES)
def test_onnx(tmp_path, reference, name):
    expected = reference(name)
    edgeqkv.export(expected.folder, tmp_path / "b", ["onnx"], weights="fp32", cache="fp32", prefill_chunk=16)
    for kernel in ("fused", "stock"):
        check(edgeqkv.open(tmp_path / "b", "onnx", kernel, threads=1), expected)


@pytest.mark.parametrize("name", ["youtu", "minicpm3-longrope"])
def test_onnx_of_the_expanded_form(tmp_path, reference, name):
    expected = reference(name)
    edgeqkv.export(expected.folder, tmp_path / "b", weights="fp32", cache="fp32", prefill_chunk=16, mla="expanded")
    for kernel in ("fused", "stock"):
        check(edgeqkv.open(tmp_path / "b", "onnx", kernel, threads=1), expected)


# An export for ExecuTorch takes many seconds: cases that have everything between them.
@pytest.mark.parametrize("name", ["llama-mqa", "qwen3", "youtu-halves-bf16", "youtu-plain-query", "minicpm3"])
def test_executorch(tmp_path, reference, name):
    expected = reference(name)
    edgeqkv.export(expected.folder, tmp_path / "b", ["executorch"], weights="fp32", cache="fp32", prefill_chunk=16)
    check(edgeqkv.open(tmp_path / "b", "executorch", threads=1), expected)
