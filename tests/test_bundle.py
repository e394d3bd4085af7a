"""The manifest is a contract: what is written reads back, and what was tampered with is refused."""

import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import one_sentence

import edgeqkv
from edgeqkv.bundle import check_files, read_bundle
from edgeqkv.cache import Buffer
from edgeqkv.config import Slice
from edgeqkv.files import file_sha256


@pytest.fixture(scope="module")
def exported(tmp_path_factory, write_tiny_model, letters):
    folder = tmp_path_factory.mktemp("exported")
    model = write_tiny_model(folder / "model", "Q-MQA", letters, token_count=256)
    edgeqkv.export(model, folder / "bundle", cache="int8", capacity=32)
    return folder / "bundle"


@pytest.fixture
def bundle(exported, tmp_path):
    return Path(shutil.copytree(exported, tmp_path / "bundle"))


def edit(bundle, change):
    data = json.loads((bundle / "edgeqkv.json").read_text())
    change(data)
    (bundle / "edgeqkv.json").write_text(json.dumps(data))


def fused(data):
    return data["artifacts"][0]


def stock(data):
    return data["artifacts"][1]


def entry(data):
    return fused(data)["entry_points"][0]


def test_the_manifest_says_what_a_runtime_needs(bundle):
    manifest = read_bundle(bundle)
    assert manifest.model.variant == "Q-MQA"
    fused, stock = manifest.artifacts
    assert (fused.kernel, fused.operators, stock.kernel, stock.operators) == (
        "fused",
        ("edgeqkv::CachedAttention",),
        "stock",
        (),
    )
    tensors = [Buffer(f"cache.{i}.k", "int8", (1, 1, 32, 16)) for i in range(2)]
    scales = [Buffer(f"cache.{i}.k.scale", "float32", (1, 1, 32)) for i in range(2)]
    for artifact, buffers in ((fused, [*tensors, *scales]), (stock, tensors)):
        cache = artifact.cache
        assert (cache.row, cache.key, cache.value) == ({"k": 16}, Slice("k", 0, 16), Slice("k", 0, 16))
        assert (cache.dtype, cache.n_kv_head, cache.scale_split, list(cache.buffers)) == ("int8", 1, 0, buffers)
        entry = artifact.entry_points[0]
        assert [port.name for port in entry.inputs] == ["ids", "position", *(buffer.name for buffer in buffers)]
        assert [port.name for port in entry.outputs] == ["logits", *entry.aliases]
        assert set(entry.aliases.values()) == {buffer.name for buffer in buffers}
        assert artifact.weights.scheme == "int8"
        assert artifact.weights.formats["h.*.attn.q.weight"] == "int8 block 64"
        for name, digest in artifact.files.items():
            assert file_sha256(bundle / name) == digest
    assert (stock.cache.bytes, stock.cache.scales) == (2 * (32 * 16 + 16 * 4), "static")
    assert {name: len(scale) for name, scale in stock.cache.static_scales.items()} == {"cache.0.k": 16, "cache.1.k": 16}
    assert (fused.cache.bytes, fused.cache.bytes_per_position) == (2 * 32 * (16 + 4), 2 * (16 + 4))
    assert (fused.cache.scales, fused.cache.static_scales) == ("per_row", {})
    assert manifest.text.end_tokens == ()
    assert manifest.text.tokenizer.sha256 == file_sha256(bundle / "tokenizer.json")


def test_both_graphs_read_one_weight_file(bundle):
    fused, stock = read_bundle(bundle).artifacts
    assert list(fused.files) == ["onnx/model.fused.onnx", "onnx/model.data"]
    assert list(stock.files) == ["onnx/model.onnx", "onnx/model.data"]
    assert sorted(path.name for path in (bundle / "onnx").iterdir()) == ["model.data", "model.fused.onnx", "model.onnx"]


@pytest.mark.parametrize("content", [None, b"\xff\xfe", b"{}"])
def test_a_damaged_tokenizer(cli, bundle, content):
    if content is None:
        (bundle / "tokenizer.json").unlink()
    else:
        (bundle / "tokenizer.json").write_bytes(content)
    outcome = cli("generate", bundle, "--prompt", "ab")
    assert outcome.code == 2
    assert "tokenizer.json" in one_sentence(outcome)


@pytest.mark.parametrize("file", ["onnx/model.onnx", "onnx/model.fused.onnx", "onnx/model.data", "tokenizer.json"])
def test_a_changed_byte(cli, bundle, file):
    data = bytearray((bundle / file).read_bytes())
    data[len(data) // 2] ^= 1
    (bundle / file).write_bytes(data)
    outcome = cli("generate", bundle, "--prompt", "ab")
    assert outcome.code == 2
    assert f"{file} is not the file that was exported (its sha256 differs)" in one_sentence(outcome)


def test_a_missing_file(bundle):
    (bundle / "onnx/model.data").unlink()
    with pytest.raises(edgeqkv.EdgeQKVError, match=r"the file onnx/model\.data is missing"):
        edgeqkv.open(bundle)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda d: d.update(format=5), "has format 5, this edgeqkv reads up to 4: update edgeqkv, or export the bundle again"),
        (lambda d: d.update(format=1), "expected format 4, found 1; export the bundle again"),
        (lambda d: d.update(format="4"), "expected format 4, found '4'"),
        (lambda d: d.update(format=True), "expected format 4, found True"),
        (lambda d: d.pop("format"), "expected format 4, found None"),
        (lambda d: d.update(licence="x"), "unknown field 'licence'"),
        (lambda d: fused(d)["cache"].pop("bytes"), "cache: the field 'bytes' is missing"),
        (lambda d: fused(d)["cache"].update(bytes=7), "does not agree with the model's geometry"),
        (lambda d: fused(d)["cache"].update(bytes=1e3), "cache.bytes: Expected int, got float"),
        (lambda d: d["model"].update(variant="QKV"), "variant or parameters do not agree"),
        (lambda d: d["model"].update(parameters=7), "variant or parameters do not agree"),
        (lambda d: d["model"]["config"].update(n_layer=4097), "model.config.n_layer is 4097, outside 1 to 4096"),
        (lambda d: d["model"]["config"].update(n_layer=4096), "variant or parameters do not agree"),
        (
            lambda d: stock(d)["cache"]["static_scales"].update({"cache.0.k": [1.0]}),
            "scales of the onnx stock artifact do not belong",
        ),
        (
            lambda d: fused(d)["cache"]["static_scales"].update({"cache.0.k": [1.0] * 16}),
            "scales of the onnx fused artifact do not",
        ),
        (lambda d: stock(d)["cache"].update(static_scales={}), "scales of the onnx stock artifact do not belong"),
        (lambda d: fused(d)["cache"].update(scales="static"), "cache of the onnx fused artifact does not agree"),
        (lambda d: fused(d)["cache"].update(scales="per_slice"), "cache of the onnx fused artifact does not agree"),
        (lambda d: fused(d)["cache"].update(scales="per_token"), "'per_token' is not one of 'none', 'per_row', 'per_slice'"),
        (lambda d: fused(d)["cache"]["row"].update(k=24), "cache of the onnx fused artifact does not agree"),
        (lambda d: fused(d)["cache"]["row"].update(v=16), "cache of the onnx fused artifact does not agree"),
        (lambda d: fused(d)["cache"]["value"].update(start=8), "cache of the onnx fused artifact does not agree"),
        (lambda d: fused(d)["cache"].update(scale_split=8), "cache of the onnx fused artifact does not agree"),
        (lambda d: fused(d)["cache"].update(n_kv_head=2), "cache of the onnx fused artifact does not agree"),
        (lambda d: fused(d)["cache"]["buffers"].pop(), "cache of the onnx fused artifact does not agree"),
        (
            lambda d: fused(d)["cache"]["buffers"][0].update(shape=[1, 1, 33, 16]),
            "cache of the onnx fused artifact does not agree",
        ),
        (lambda d: fused(d)["cache"]["buffers"].reverse(), "cache of the onnx fused artifact does not agree"),
        (lambda d: d.update(artifacts=[]), "it has no artifact"),
        (lambda d: stock(d).update(kernel="fused"), "two artifacts are for the same runtime and kernel"),
        (lambda d: d.update(capacity=64), "capacity is 64, outside 1 to 48"),
        (lambda d: d.update(capacity=0), "capacity is 0, outside 1 to 48"),
        (lambda d: d.update(capacity=33), "does not agree with the model's geometry"),
        (lambda d: fused(d).update(files={}), "no files or no entry points"),
        (lambda d: fused(d).update(entry_points=[]), "no files or no entry points"),
        (lambda d: fused(d).update(files={"../x": "0"}), "names files outside the bundle"),
        (lambda d: fused(d).update(files={"onnx/../../x": "0"}), "names files outside the bundle"),
        (lambda d: fused(d).update(files={"/etc/x": "0"}), "names files outside the bundle"),
        (lambda d: fused(d).update(files={"": "0"}), "names files outside the bundle"),
        (lambda d: fused(d).update(prefill_chunk=0), "prefill_chunk is 0, outside 1 to 32"),
        (lambda d: fused(d).update(prefill_chunk=33), "prefill_chunk is 33, outside 1 to 32"),
        (lambda d: fused(d).update(prefill_chunk="4"), "prefill_chunk: Expected int"),
        (lambda d: fused(d).update(operators=[]), "the onnx fused artifact does not say what attends"),
        (lambda d: fused(d).update(operators=["foo::Bar"]), "the onnx fused artifact does not say what attends"),
        (lambda d: fused(d).update(attention="gqa"), "the onnx fused artifact does not say what attends"),
        (
            lambda d: stock(d).update(operators=["edgeqkv::CachedAttention"]),
            "the onnx stock artifact does not say what attends",
        ),
        (lambda d: entry(d)["inputs"].pop(0), "does not take ids and a position"),
        (lambda d: entry(d)["outputs"].pop(0), "gives no logits"),
        (lambda d: entry(d)["inputs"][2].update(dtype="float32"), "does not take the cache tensors as they are"),
        (lambda d: entry(d)["inputs"][2].update(shape=[1, 1, 33, 16]), "does not take the cache tensors as they are"),
        (lambda d: entry(d)["outputs"][1].update(shape=[1, 1, 33, 16]), "does not update each cache tensor in its own place"),
        (
            lambda d: entry(d)["aliases"].update({"cache.0.k.out": "cache.1.k", "cache.1.k.out": "cache.0.k"}),
            "does not update each cache tensor in its own place",
        ),
        (lambda d: entry(d).update(aliases={}), "does not say where its cache outputs lie"),
        (lambda d: entry(d)["aliases"].update({"cache.0.k.out": "nope"}), "does not update every cache tensor"),
        (lambda d: entry(d)["inputs"].pop(), "does not take the cache tensors as they are"),
        (lambda d: fused(d)["cache"].update(dtype="int4"), "cache.dtype: 'int4' is not one of 'fp16', 'fp32', 'int8'"),
        (lambda d: d["model"]["config"]["attention"].update(n_kv_head=3), "n_head 4 is not divisible by n_kv_head 3"),
        (lambda d: d["text"].update(end_tokens=[256]), "an end token is none of the model's"),
        (lambda d: d["text"].update(end_tokens=[-1]), "an end token is none of the model's"),
        (lambda d: d["text"]["tokenizer"].update(file="onnx/model.data"), "its tokenizer is not tokenizer.json"),
    ],
)
def test_a_manifest_that_cannot_be_trusted(bundle, change, reason):
    edit(bundle, change)
    with pytest.raises(edgeqkv.EdgeQKVError, match=reason):
        edgeqkv.open(bundle)


def test_a_folder_that_is_no_bundle(cli, tmp_path):
    outcome = cli("generate", tmp_path, "--ids", "1")
    assert "is not a bundle: it has no edgeqkv.json" in one_sentence(outcome)
    assert outcome.code == 2
    assert "does not exist" in one_sentence(cli("verify", tmp_path / "none", "--against", tmp_path))


def test_a_manifest_that_is_no_json(bundle):
    (bundle / "edgeqkv.json").write_text("{")
    with pytest.raises(edgeqkv.EdgeQKVError, match="is not a JSON file"):
        edgeqkv.open(bundle)


def test_a_key_that_stands_twice(bundle):
    text = (bundle / "edgeqkv.json").read_text()
    (bundle / "edgeqkv.json").write_text(text.replace('"format": 4,', '"format": 4, "format": 4,', 1))
    with pytest.raises(edgeqkv.EdgeQKVError, match="edgeqkv.json.*the field 'format' stands there twice"):
        edgeqkv.open(bundle)


def test_a_link_that_leads_out_of_the_bundle(bundle, tmp_path):
    os.rename(bundle / "onnx/model.data", tmp_path / "elsewhere.data")
    os.symlink(tmp_path / "elsewhere.data", bundle / "onnx/model.data")
    with pytest.raises(edgeqkv.EdgeQKVError, match="model.data is a link that leads out of the bundle; copy the file into it"):
        edgeqkv.open(bundle)


def test_a_runtime_that_this_edgeqkv_does_not_know(bundle):
    """Another distribution's, say. It is passed over where it need not be, and named where it is asked for."""
    edit(bundle, lambda d: fused(d).update(runtime="tflite"))
    check_files(bundle, read_bundle(bundle))
    assert edgeqkv.open(bundle, runtime="onnx").artifact.kernel == "stock"
    with pytest.warns(RuntimeWarning, match="has no target 'tflite'"):
        assert edgeqkv.open(bundle).artifact.kernel == "stock"
    with pytest.raises(edgeqkv.MissingPackage, match="this edgeqkv has no target 'tflite'; known are onnx"):
        edgeqkv.open(bundle, runtime="tflite")


def test_an_older_bundle_is_replaced_and_other_folders_are_not(bundle, tiny_model, tmp_path):
    edgeqkv.export(tiny_model("Q-K=V"), bundle)
    assert read_bundle(bundle).model.variant == "Q-K=V"
    assert not (bundle / "tokenizer.json").exists()
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious/thesis.tex").write_text("work")
    with pytest.raises(edgeqkv.EdgeQKVError, match="exists and holds thesis.tex, so it is not replaced"):
        edgeqkv.export(tiny_model("Q-K=V"), tmp_path / "precious")
    assert os.listdir(tmp_path / "precious") == ["thesis.tex"]
    (bundle / "notes.txt").write_text("mine")
    with pytest.raises(edgeqkv.EdgeQKVError, match="so it is not replaced; remove it or name another folder"):
        edgeqkv.export(tiny_model("Q-MQA"), bundle)
    assert (bundle / "notes.txt").exists()


def test_output_that_is_a_file_or_below_one(tiny_model, tmp_path):
    (tmp_path / "file").write_text("x")
    for out in (tmp_path / "file", tmp_path / "file/below"):
        with pytest.raises(edgeqkv.EdgeQKVError, match="cannot write .*file is a file; name a folder"):
            edgeqkv.export(tiny_model("Q-MQA"), out)
    assert (tmp_path / "file").read_text() == "x"


def test_no_permission_at_the_output(tiny_model, tmp_path, monkeypatch):
    model = tiny_model("Q-MQA")

    def refuse(*arguments, **options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.mkdtemp", refuse)  # root may write anywhere, so the refusal is played
    with pytest.raises(edgeqkv.EdgeQKVError, match="cannot write .*bundle: Permission denied; nothing was left behind"):
        edgeqkv.export(model, tmp_path / "bundle")


@pytest.mark.parametrize("command", ["export", "export to Core ML", "new"])
def test_no_space_at_the_output_leaves_nothing_and_keeps_what_was_there(command, bundle, tiny_model, tmp_path):
    """A limit on file size stands in for a full disk: the write fails half-way in the same place."""
    model, wide = tiny_model("Q-K=V"), tiny_model("QKV", d_model=128, n_positions=64)
    before = sorted(os.listdir(tmp_path)), file_sha256(bundle / "edgeqkv.json")
    limit = 40_000
    arguments = {
        "export": [model, "--out", bundle],
        "export to Core ML": [wide, "--target", "coreml", "--out", tmp_path / "new"],
        "new": ["tale-4m", "--variant", "Q-MQA", "--out", tmp_path / "new"],
    }[command]
    run = subprocess.run(
        [sys.executable, "-m", "edgeqkv.cli", command.split()[0], *arguments],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 2, run.stderr
    assert "cannot write" in run.stderr
    assert "Traceback" not in run.stderr
    assert (sorted(os.listdir(tmp_path)), file_sha256(bundle / "edgeqkv.json")) == before
