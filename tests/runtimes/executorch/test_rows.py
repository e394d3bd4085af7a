"""Every kind of cached row through an ExecuTorch program: the logits of eager PyTorch, in chunks and token by token."""

import numpy as np
import pytest
from conftest import tiny_weights
from row_models import ROW_MODELS

import edgeqkv
from edgeqkv.eager import EagerModel
from edgeqkv.model_folder import Model, write_model
from edgeqkv.text import Text

CHUNK = 16


def exported(tmp_path, name, **options):
    """A session on the program, the token ids that fill it, and the logits that eager PyTorch gives for them."""
    config = ROW_MODELS[name]
    # As wide as trained weights: a row of 64 channels of 0.1 gives outputs of the size of its input.
    weights = {name: array + ("norm" in name or "ln_" in name) for name, array in tiny_weights(config).items()}
    write_model(tmp_path / "model", Model(config, weights, None, Text(), ""), "# tiny\n")
    edgeqkv.export(tmp_path / "model", tmp_path / "bundle", targets=["executorch"], prefill_chunk=CHUNK, **options)
    session = edgeqkv.open(tmp_path / "bundle", runtime="executorch")
    ids = [(i * 37 + 5) % config.token_count for i in range(session.capacity)]
    return session, ids, EagerModel(config, weights).forward(ids)


def runs(session, ids, first):
    """Logits from position ``first`` - 1 on: what comes before is prefilled in chunks, the rest stepped."""
    session.reset()
    return np.stack([session.prefill(ids[:first])] + [session.step(token) for token in ids[first:]])


@pytest.mark.parametrize("name", ROW_MODELS)
def test_fp32_to_capacity(tmp_path, name):
    session, ids, expected = exported(tmp_path, name, weights="fp32", cache="fp32")
    known = ROW_MODELS[name].token_count
    for first in (1, CHUNK - 1, CHUNK + 1, len(ids)):
        found = runs(session, ids, first)
        assert np.abs(found[:, :known] - expected[first - 1 :, :known]).max() <= 1e-4
        assert np.isneginf(found[:, known:]).all()
    assert session.cache_bytes == session.artifact.cache.bytes


def test_int8_weights_and_an_int8_row_with_a_scale_for_each_slice(tmp_path):
    session, ids, expected = exported(tmp_path, "MLA", weights="int8", cache="int8")
    artifact, known = session.artifact, ROW_MODELS["MLA"].token_count
    assert artifact.operators == ("edgeqkv::cached_attention.out", "edgeqkv::head_linear.out")
    assert (artifact.cache.scales, artifact.cache.scale_split) == ("per_slice", 64)
    assert artifact.weights.formats["h.*.attn.k_b.weight"] == "int8 row"
    for first in (1, CHUNK + 1):
        error = runs(session, ids, first)[:, :known] - expected[first - 1 :, :known]
        assert 0 < np.sqrt(np.mean(error**2)) <= 0.05 * expected[:, :known].std()


def test_the_stock_program_of_two_tensors(tmp_path):
    session, ids, expected = exported(tmp_path, "GQA", weights="fp32", cache="fp32", kernel="stock")
    known = ROW_MODELS["GQA"].token_count
    assert session.artifact.cache.axes == "batch, position, kv_head, channel"
    for first in (1, CHUNK + 1, len(ids)):
        assert np.abs(runs(session, ids, first)[:, :known] - expected[first - 1 :, :known]).max() <= 1e-4
