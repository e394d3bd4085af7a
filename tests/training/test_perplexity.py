"""``edgeqkv perplexity``, and that the shipped models have the perplexity that their cards state."""

import json
import re

import pytest
from conftest import MODELS, one_sentence

from edgeqkv.training.judge import judged


@pytest.mark.parametrize("name", ["qkv", "q-kv", "q-mqa"])
def test_each_shipped_model_has_the_perplexity_of_its_card(name):
    """On the sample that ships with the package: the card's figure on whole books takes minutes, and the books are not here."""
    stated = re.search(r"by `edgeqkv perplexity` .*: \*\*([\d.]+)\*\*", (MODELS / name / "README.md").read_text())
    assert stated is not None
    assert judged(MODELS / name).perplexity == pytest.approx(float(stated[1]), rel=1e-3)


def test_it_is_printed_by_position(cli):
    found = judged(MODELS / "q-mqa", width=64)
    shown = cli("perplexity", MODELS / "q-mqa", "--width", 64).out
    assert f"perplexity {found.perplexity:.2f}, {found.bits_per_byte:.3f} bits per byte, on {found.tokens:,} tokens" in shown
    assert [(s.start, s.stop) for s in found.by_position] == [(0, 16), (16, 32), (32, 64)]
    assert json.loads(cli("perplexity", MODELS / "q-mqa", "--width", 64, "--json").out)["perplexity"] == found.perplexity


def test_what_cannot_be_judged_is_refused_in_a_sentence(cli, tiny_model, tmp_path):
    (tmp_path / "short.txt").write_text("short")
    for arguments, reason in (
        ((tiny_model(),), "has no tokenizer"),
        ((MODELS / "qkv", "--width", 513), "--width 513 is outside 2 to 512"),
        ((MODELS / "qkv", "--text", tmp_path / "short.txt"), "give more text"),
        ((MODELS / "qkv", "--text", tmp_path / "none.txt"), "does not exist"),
    ):
        refused = cli("perplexity", *arguments)
        assert reason in one_sentence(refused)
        assert refused.code == 2
