"""Exporting into a bundle adds a target or replaces it, and never deletes what it did not make."""

import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from msgspec.structs import replace

import edgeqkv
from edgeqkv import targets as registry
from edgeqkv.bundle import check_files, read_bundle
from edgeqkv.files import file_sha256
from edgeqkv.manifest import MANIFEST
from edgeqkv.runtimes.onnx.target import Onnx


class Second(Onnx):
    """A second target that costs nothing: ONNX Runtime under another name, in fp16 alone."""

    name = "second"
    caches = ("fp16",)
    options = frozenset()

    def write(self, source, request, folder, progress):
        artifacts = super().write(source, request, folder, progress)
        os.rename(folder / "onnx", folder / "second")
        moved = lambda files: {name.replace("onnx/", "second/", 1): digest for name, digest in files.items()}  # noqa: E731
        return tuple(replace(artifact, runtime="second", files=moved(artifact.files)) for artifact in artifacts)


@pytest.fixture(autouse=True)
def second(monkeypatch):
    """The registry with one target more."""
    monkeypatch.setitem(registry.targets(), "second", Second())


@pytest.fixture
def model(tiny_model, letters):
    return tiny_model("Q-MQA", letters, token_count=256)


@pytest.fixture
def bundle(model, tmp_path):
    edgeqkv.export(model, tmp_path / "b", cache="int8", capacity=32)
    return tmp_path / "b"


def state(folder):
    return {str(path.relative_to(folder)): file_sha256(path) for path in folder.rglob("*") if path.is_file()}


def names(manifest):
    return [artifact.name for artifact in manifest.artifacts]


def test_another_target_is_added_and_the_first_is_kept(bundle, model):
    edgeqkv.verify(bundle, model, tokens=40)
    before, files = read_bundle(bundle), state(bundle)
    ids = list(edgeqkv.open(bundle, runtime="onnx").generate([1, 2, 3], limit=5))
    manifest = edgeqkv.export(model, bundle, targets=["second"], capacity=32)
    assert names(manifest) == ["onnx fused", "onnx stock", "second fused", "second stock"]
    assert manifest.artifacts[:2] == before.artifacts
    assert manifest.parity == before.parity != ()
    assert [artifact.cache.dtype for artifact in manifest.artifacts] == ["int8", "int8", "fp16", "fp16"]
    assert manifest.capacity == 32
    after = state(bundle)
    assert {name: after[name] for name in files if name != MANIFEST} == {n: d for n, d in files.items() if n != MANIFEST}
    assert read_bundle(bundle) == manifest
    check_files(bundle, manifest)
    assert list(edgeqkv.open(bundle, runtime="onnx").generate([1, 2, 3], limit=5)) == ids
    assert edgeqkv.open(bundle, runtime="second").artifact.cache.dtype == "fp16"


def test_the_same_target_is_replaced_with_its_parity_and_the_other_stays(bundle, model):
    edgeqkv.verify(bundle, model, tokens=40)
    edgeqkv.export(model, bundle, targets=["second"], capacity=32)
    manifest = edgeqkv.export(model, bundle, weights="fp32", cache="fp32", capacity=32)
    assert sorted(names(manifest)) == ["onnx fused", "onnx stock", "second fused", "second stock"]
    kinds = {artifact.name: (artifact.weights.scheme, artifact.cache.dtype) for artifact in manifest.artifacts}
    assert kinds["onnx fused"] == ("fp32", "fp32")
    assert kinds["second fused"] == ("int8", "fp16")
    assert manifest.parity == ()
    check_files(bundle, manifest)


def test_a_target_alone_is_replaced_whatever_it_was_of(bundle, tiny_model):
    manifest = edgeqkv.export(tiny_model("Q-K=V"), bundle, capacity=16)
    assert (manifest.model.variant, manifest.capacity, manifest.text.tokenizer) == ("Q-K=V", 16, None)
    assert not (bundle / "tokenizer.json").exists()


def test_two_targets_in_one_export_have_caches_of_their_own(model, tmp_path):
    manifest = edgeqkv.export(model, tmp_path / "b", targets=["onnx", "second"])
    assert [a.cache.dtype for a in manifest.artifacts] == ["fp32", "fp32", "fp16", "fp16"]
    with pytest.raises(edgeqkv.EdgeQKVError, match="cache 'int8' is not possible for second: it can do fp16"):
        edgeqkv.export(model, tmp_path / "c", targets=["onnx", "second"], cache="int8")
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize("what", ["model", "weights", "capacity"])
def test_another_model_or_capacity_is_refused(bundle, tiny_model, write_tiny_model, letters, tmp_path, what):
    other = {
        "model": lambda: tiny_model("Q-K=V"),
        "weights": lambda: reweighted(tiny_model("Q-MQA"), tmp_path / "reweighted"),
        "capacity": lambda: tiny_model("Q-MQA"),
    }[what]()
    before = state(bundle)
    capacity = 31 if what == "capacity" else 32
    with pytest.raises(
        edgeqkv.EdgeQKVError, match="holds a bundle of another model or capacity .Q-MQA, 32 positions. for onnx"
    ):
        edgeqkv.export(other, bundle, targets=["second"], capacity=capacity)
    assert state(bundle) == before


def reweighted(folder, out):
    """The same configuration with other weights."""
    from dataclasses import replace as with_fields

    from edgeqkv.model_folder import read_model, write_model

    read = read_model(folder)
    weights = {name: np.array(array) for name, array in read.weights.items()}
    weights["ln_f.bias"] = weights["ln_f.bias"] + 1
    write_model(out, with_fields(read, weights=weights), "# other\n")
    return out


def test_a_damaged_bundle_is_not_added_to(bundle, model):
    data = bytearray((bundle / "onnx/model.data").read_bytes())
    data[100] ^= 1
    (bundle / "onnx/model.data").write_bytes(data)
    with pytest.raises(edgeqkv.EdgeQKVError, match="model.data is not the file that was exported"):
        edgeqkv.export(model, bundle, targets=["second"], capacity=32)


def test_a_bundle_that_cannot_be_read_is_named_as_in_the_way(bundle, model):
    (bundle / MANIFEST).write_text('{"format": 2}')
    with pytest.raises(edgeqkv.EdgeQKVError, match="expected format 4, found 2.*remove it or name another folder"):
        edgeqkv.export(model, bundle, capacity=32)
    assert (bundle / MANIFEST).read_text() == '{"format": 2}'


def test_a_killed_export_leaves_the_old_bundle(bundle, model):
    """Killed while it writes the new graphs, so that no line of ours runs afterwards."""
    before = state(bundle)
    code = (
        "import sys, time, edgeqkv\n"
        "from edgeqkv.export.onnx import write\n"
        "original = write.write_graphs\n"
        "def slow(models, folder):\n"
        "    original(models, folder); print('written', flush=True); time.sleep(60)\n"
        "write.write_graphs = slow\n"
        "edgeqkv.export(sys.argv[1], sys.argv[2], weights='fp32', capacity=32)\n"
    )
    run = subprocess.Popen([sys.executable, "-c", code, model, bundle], stdout=subprocess.PIPE, text=True)
    assert run.stdout.readline() == "written\n"
    run.send_signal(signal.SIGKILL)
    run.wait()
    run.stdout.close()
    assert state(bundle) == before
    assert edgeqkv.open(bundle).manifest.artifacts[0].weights.scheme == "int8"
    edgeqkv.export(model, bundle, weights="fp32", capacity=32)  # what was left beside it is in nobody's way
    assert edgeqkv.open(bundle).manifest.artifacts[0].weights.scheme == "fp32"


def test_options_of_a_target_that_is_not_there(model, tmp_path):
    for option, value in (("kernel", "stock"), ("head_parts", 2)):
        name = option.replace("_", "-")
        with pytest.raises(edgeqkv.EdgeQKVError, match=f"--{name} is for the target .*, which this export does not have"):
            edgeqkv.export(model, tmp_path / "b", **{option: value})


@pytest.mark.parametrize("targets", [[], "onnx", ()])
def test_targets_that_are_no_list(model, tmp_path, targets):
    with pytest.raises(edgeqkv.EdgeQKVError, match="targets is a list of at least one of onnx, "):
        edgeqkv.export(model, tmp_path / "b", targets=targets)


def test_mla_forms_are_for_latent_attention(model, tmp_path):
    with pytest.raises(edgeqkv.EdgeQKVError, match="a Q-MQA model has no expanded form"):
        edgeqkv.export(model, tmp_path / "b", mla="expanded")
    with pytest.raises(edgeqkv.EdgeQKVError, match="mla 'latent' is not possible; this version can do absorbed, expanded"):
        edgeqkv.export(model, tmp_path / "b", mla="latent")
