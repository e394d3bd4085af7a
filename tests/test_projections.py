"""``edgeqkv inspect --attention``: similarity and effective rank where they are known, and what is refused."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from conftest import GOLDEN, MODELS, one_sentence, tiny_config, tiny_weights
from huggingface_models import write_case
from row_models import ROW_MODELS

from edgeqkv.errors import EdgeQKVError
from edgeqkv.model_folder import Model
from edgeqkv.projections import cka, cosine, effective_rank, projections
from edgeqkv.text import Text

FORMATS = Path(__file__).parent / "formats"
GENERATOR = np.random.default_rng(0)
A, B = GENERATOR.standard_normal((2, 24, 40))
TURN = np.linalg.qr(GENERATOR.standard_normal((24, 24)))[0]


def test_effective_rank_is_exp_of_the_entropy_of_singular_values():
    turn = np.linalg.qr(GENERATOR.standard_normal((40, 40)))[0]
    assert effective_rank(TURN @ np.eye(24, 40) @ turn) == pytest.approx(24)  # all directions alike
    assert effective_rank(np.outer(A[0], B[0])) == pytest.approx(1)
    shares = np.array([0.5, 0.25, 0.25])
    assert effective_rank(np.diag([2.0, 1.0, 1.0])) == pytest.approx(math.exp(-(shares * np.log(shares)).sum()))


def test_cosine_and_cka_of_known_pairs():
    assert cosine(A, 3 * A) == pytest.approx(1)
    assert cosine(A, -A) == pytest.approx(-1)
    assert cka(A, A) == pytest.approx(1)
    assert cka(A, TURN @ A) == pytest.approx(1)  # what cosine does not see
    assert abs(cosine(A, TURN @ A)) < 0.5
    assert cka(A[:12] * 0 + np.eye(12, 40), np.eye(40)[12:24]) == pytest.approx(0)  # no direction in common
    inputs = GENERATOR.standard_normal((200_000, 40))  # unit covariance
    a, b = inputs @ A.T, inputs @ B.T
    measured = np.linalg.norm(a.T @ b) ** 2 / (np.linalg.norm(a.T @ a) * np.linalg.norm(b.T @ b))
    assert cka(A, B) == pytest.approx(measured, rel=0.02)


def test_shared_heads_are_compared_with_the_head_that_they_read():
    config = tiny_config("GQA-2", head_dim=16)
    weights = tiny_weights(config)
    k = weights["h.0.attn.k.weight"].reshape(2, 16, -1)
    weights["h.0.attn.q.weight"] = k[[0, 0, 1, 1]].reshape(64, -1)
    first, second = projections(Model(config, weights, None, Text(), ""))
    assert first.cosine_qk == pytest.approx(1)
    assert abs(second.cosine_qk) < 0.2


@pytest.mark.parametrize(
    ("variant", "same"), [("QKV", set()), ("Q-K=V", {"v"}), ("Q-MQA", {"v"}), ("Q=K-V", {"q"}), ("Q=K=V", {"q", "v"})]
)
def test_a_pair_that_is_one_matrix_has_no_similarity(variant, same):
    config = tiny_config(variant)
    for layer in projections(Model(config, tiny_weights(config), None, Text(), "")):
        assert {name for name, rank in layer.rank.items() if rank is None} == same
        assert (layer.cosine_kv is None, layer.cka_kv is None) == ("v" in same, "v" in same)
        assert (layer.cosine_qk is None, layer.cka_qk is None) == ("q" in same, "q" in same)


def test_it_is_printed_and_drawn(cli, tmp_path, tiny_model):
    shown = cli("inspect", tiny_model("Q-MQA"), "--attention", "--plot", tmp_path / "a.svg")
    assert shown.code == 0
    assert "| mean  |              same |" in shown.out
    assert " of 16 | same |" in shown.out
    assert (tmp_path / "a.svg").read_text().lstrip().startswith("<svg")
    found = json.loads(cli("inspect", tiny_model("QKV"), "--attention", "--json").out)
    assert [layer["widest"] for layer in found] == [{"q": 64, "k": 64, "v": 64}] * 2


def test_a_hugging_face_folder_and_a_checkpoint_of_the_paper_are_read(cli, tmp_path):
    write_case(tmp_path / "llama", "llama-fp16", gain=0.3)
    for path in (tmp_path / "llama", GOLDEN / "gqa.pt"):
        assert json.loads(cli("inspect", path, "--attention", "--json").out)[0]["cka_kv"] > 0


def test_what_has_no_projections_is_refused(cli, tmp_path):
    with pytest.raises(EdgeQKVError, match="a MLA model has no projections q, k and v"):
        projections(Model(ROW_MODELS["MLA"], {}, None, Text(), ""))
    for path, reason in ((FORMATS / "bundle-3", "is a bundle"), (MODELS / "none", "does not exist")):
        refused = cli("inspect", path, "--attention")
        assert reason in one_sentence(refused)
        assert refused.code == 2
    assert "is no .svg file" in one_sentence(cli("inspect", MODELS / "qkv", "--plot", tmp_path / "a.png"))
