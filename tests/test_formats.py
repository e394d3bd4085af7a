"""What earlier versions wrote is still read: config.json of format 1, edgeqkv.json of format 3. tests/formats/ has their
files."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import tiny_config

import edgeqkv
from edgeqkv.bundle import bundle_files, check_files, read_bundle
from edgeqkv.cache import cache_layout
from edgeqkv.model_folder import read_model
from edgeqkv.strict import to_json

FORMATS = Path(__file__).parent / "formats"
CONFIG = tiny_config("Q-MQA", n_layer=1, d_model=32, n_head=4, d_mlp=32, n_positions=32, vocab_size=272, token_count=256)


@pytest.fixture
def bundle(tmp_path):
    return Path(shutil.copytree(FORMATS / "bundle-3", tmp_path / "bundle"))


def edited(folder, file, change):
    data = json.loads((folder / file).read_text())
    change(data)
    (folder / file).write_text(json.dumps(data))


# -- config.json --------------------------------------------------------------------------------------------------


def test_a_model_folder_of_format_1():
    model = read_model(FORMATS / "model-1")
    assert model.config == CONFIG
    assert {array.dtype for array in model.weights.values()} == {np.dtype(np.float16)}
    assert model.text.end_tokens == ()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda d: d.update(rope=1), "config.json: unknown field 'rope'; known are d_mlp, "),
        (lambda d: d.pop("n_head"), "config.json: the field 'n_head' is missing"),
        (lambda d: d.update(positions="rotary"), "positions 'rotary' is not 'learned', the only value of this older format"),
        (lambda d: d.update(n_head=5), "d_model 32 is not divisible by n_head 5"),
        (lambda d: d.update(n_head=0), "d_model 32 is not divisible by n_head 0"),
        (lambda d: d.update(n_head="4"), "d_model 32 is not divisible by n_head '4'"),
        (lambda d: d.update(n_kv_head=3), "n_head 4 is not divisible by n_kv_head 3"),
        (lambda d: d.update(d_mlp="32"), "mlp.width: Expected int, got str"),
        (lambda d: d.update(n_layer=10**9), "n_layer is 1000000000, outside 1 to 4096"),
        (lambda d: d.update(format=3), "has format 3, this edgeqkv reads up to 2: update edgeqkv"),
    ],
)
def test_a_damaged_config_of_format_1(tmp_path, change, reason):
    folder = Path(shutil.copytree(FORMATS / "model-1", tmp_path / "model"))
    edited(folder, "config.json", change)
    with pytest.raises(edgeqkv.EdgeQKVError, match=reason):
        read_model(folder)


# -- edgeqkv.json -------------------------------------------------------------------------------------------------


def test_a_bundle_of_format_3_reads_as_one_of_today(bundle):
    manifest = read_bundle(bundle)
    assert manifest.model.config == CONFIG
    assert (manifest.format, manifest.capacity, manifest.text.end_tokens) == (4, 24, ())
    fused, stock = manifest.artifacts
    assert (fused.cache.scales, stock.cache.scales) == ("per_row", "static")
    assert fused.cache.buffers == cache_layout(CONFIG, 24, "int8").buffers
    assert list(stock.cache.static_scales) == ["cache.0.k"]
    assert [record.kernel for record in manifest.parity] == ["fused", "stock"]
    check_files(bundle, manifest)


@pytest.mark.parametrize("kernel", ["fused", "stock"])
def test_a_bundle_of_format_3_says_the_same_ids_as_then(bundle, kernel):
    then = json.loads((FORMATS / "bundle-3.ids.json").read_text())
    session = edgeqkv.open(bundle, kernel=kernel)
    assert [int(np.argmax(session.step(token)[:256])) for token in then["fed"]] == then[kernel]
    assert len(set(then[kernel])) > 8  # ids of some variety


def test_text_goes_through_a_bundle_of_format_3(cli, bundle):
    outcome = cli("generate", bundle, "--prompt", "ab", "--tokens", 3)
    assert outcome.code == 0
    assert outcome.out.startswith("ab")


def test_verify_finds_what_it_found_then_and_writes_a_manifest_of_today(bundle):
    then = read_bundle(bundle).parity
    for result, old in zip(edgeqkv.verify(bundle, FORMATS / "model-1", tokens=24), then, strict=True):
        assert (result.record.kernel, result.record.passed, result.record.tokens) == (old.kernel, old.passed, old.tokens)
        assert result.record.perplexity == pytest.approx(old.perplexity, rel=1e-5)
        assert result.record.perplexity_reference == pytest.approx(old.perplexity_reference, rel=1e-5)
        assert result.record.mean_kl == pytest.approx(old.mean_kl, rel=1e-3)
    assert json.loads((bundle / "edgeqkv.json").read_text())["format"] == 4
    assert len(read_bundle(bundle).parity) == 2
    assert edgeqkv.open(bundle).artifact.kernel == "fused"


def test_the_model_of_then_exports_to_the_cache_of_then(tmp_path):
    """Bytes of the cache, names and shapes of its buffers have not changed with the format."""
    manifest = edgeqkv.export(FORMATS / "model-1", tmp_path / "b", cache="int8", capacity=24, prefill_chunk=8)
    before = read_bundle(FORMATS / "bundle-3")
    for now, then in zip(manifest.artifacts, before.artifacts, strict=True):
        assert now.cache.buffers == then.cache.buffers
        assert (now.cache.bytes, now.cache.bytes_per_position, now.operators) == (
            then.cache.bytes,
            then.cache.bytes_per_position,
            then.operators,
        )
        assert now.entry_points == then.entry_points


@pytest.mark.parametrize(
    ("name", "artifacts", "tensors"),
    [
        ("two-tensors.format-3.json", ["onnx fused", "onnx stock"], ("k", "v")),
        ("executorch.format-3.json", ["onnx fused", "onnx stock", "executorch fused"], ("k",)),
    ],
)
def test_other_manifests_of_format_3(tmp_path, name, artifacts, tensors):
    shutil.copy(FORMATS / name, tmp_path / "edgeqkv.json")
    manifest = read_bundle(tmp_path)
    assert sorted(artifact.name for artifact in manifest.artifacts) == sorted(artifacts)
    for artifact in manifest.artifacts:
        assert tuple(artifact.cache.row) == tensors
        assert artifact.cache.value.tensor == tensors[-1]
    assert "tokenizer.json" in bundle_files(manifest)
    (tmp_path / "edgeqkv.json").write_text(to_json(manifest))  # as the present format
    assert read_bundle(tmp_path) == manifest


def fused(data):
    return data["artifacts"][0]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda d: d.update(licence="x"), "unknown field 'licence'"),
        (lambda d: d.pop("capacity"), "the field 'capacity' is missing"),
        (
            lambda d: d["model"].pop("config"),
            "is not a manifest of format 3 \\(KeyError\\('config'\\)\\); export the bundle again",
        ),
        (lambda d: d["model"].update(config=[]), "model.config: expected an object"),
        (lambda d: d["model"]["config"].update(rope=1), "model.config: unknown field 'rope'"),
        (lambda d: d.update(model=None), "is not a manifest of format 3"),
        (lambda d: d.update(artifacts=None), "is not a manifest of format 3"),
        (lambda d: d.update(artifacts=[1]), "is not a manifest of format 3"),
        (lambda d: fused(d)["cache"].update(shape=[1]), "is not a manifest of format 3"),
        (lambda d: fused(d)["cache"].update(dtype="int4"), "is not a manifest of format 3"),
        (lambda d: fused(d)["cache"].update(bytes=7), "does not agree with the model's geometry"),
        (lambda d: fused(d)["cache"].update(shape=[1, 1, 25, 8]), "does not agree with the model's geometry"),
        (lambda d: fused(d)["cache"].update(names=["cache.1.k"]), "does not agree with the model's geometry"),
        (lambda d: fused(d)["cache"].update(scale_layout="none"), "does not agree with the model's geometry"),
        (lambda d: fused(d)["weights"].pop("scheme"), "is not a manifest of format 3"),
        (lambda d: d.update(format=2), "expected format 4, found 2; export the bundle again"),
    ],
)
def test_a_damaged_manifest_of_format_3(bundle, change, reason):
    edited(bundle, "edgeqkv.json", change)
    with pytest.raises(edgeqkv.EdgeQKVError, match=reason):
        edgeqkv.open(bundle)
