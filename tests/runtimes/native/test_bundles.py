"""The library's reader of bundles: what export writes opens, what cannot be right is refused with a sentence, as by Python."""

import json
import os
import shutil
import time

import pytest

from edgeqkv.errors import EdgeQKVError, MissingPackage
from edgeqkv.runtimes.native.engine import NativeSession

MANIFEST = "edgeqkv.json"


@pytest.fixture
def folder(golden_bundle, tmp_path):
    shutil.copytree(golden_bundle(), tmp_path / "bundle")
    return tmp_path / "bundle"


def edit(folder, change):
    data = json.loads((folder / MANIFEST).read_text())
    change(data)
    (folder / MANIFEST).write_text(json.dumps(data))


def entry(data):
    return data["artifacts"][0]["entry_points"][0]


def swap_two_layers(data):
    aliases = entry(data)["aliases"]
    aliases["cache.0.k.out"], aliases["cache.1.k.out"] = "cache.1.k", "cache.0.k"


def cache(data):
    return data["artifacts"][0]["cache"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda d: d.update(format=9), "expected format 3 or 4, found 9; update edgeqkv"),
        (lambda d: d.update(format=2), "expected format 3 or 4, found 2; export the bundle again"),
        (lambda d: d.pop("capacity"), "the field 'capacity' is missing"),
        (lambda d: d.update(capacity=0), "capacity is 0, outside 1 to"),
        (lambda d: d.update(capacity=64.0), "'capacity' should be a whole number"),
        (lambda d: d.update(capacity="64"), "'capacity' should be a whole number"),
        (lambda d: d["model"]["config"].update(n_layer=10**9), "n_layer is 1000000000, outside"),
        (lambda d: d["model"]["config"].update(vocab_size=10**9), "vocab_size is 1000000000, outside"),
        (lambda d: d["model"]["config"].update(token_count=0), "token_count is 0, outside"),
        (lambda d: d.update(artifacts=[]), "it has no artifact"),
        (lambda d: d["artifacts"].append(d["artifacts"][0]), "two artifacts are for the same runtime and kernel"),
        (lambda d: d["artifacts"][0].update(files={}), "it has no files or no entry points"),
        (lambda d: d["artifacts"][0].update(files={"../elsewhere/model.onnx": "0" * 64}), "names a file outside the bundle"),
        (lambda d: d["artifacts"][0].update(files={"/etc/passwd": "0" * 64}), "names a file outside the bundle"),
        (lambda d: d["artifacts"][0].update(files={"onnx/model\0.onnx": "0" * 64}), "names a file outside the bundle"),
        (lambda d: d["artifacts"][0].update(files={"onnx/none": "0" * 64}), "onnx/none does not exist"),
        (lambda d: d["artifacts"][0].update(files={"n" * 300: "0" * 64}), "cannot be opened: File name too long"),
        (lambda d: d["artifacts"][0].update(files={"onnx": "0" * 64}), "onnx is not a regular file"),
        (lambda d: d["artifacts"][0]["files"].update({next(iter(d["artifacts"][0]["files"])): "0" * 64}), "its sha256 differs"),
        (
            lambda d: d["artifacts"][0]["files"].update({next(iter(d["artifacts"][0]["files"])): "0"}),
            "the sha256 of .* is none",
        ),
        (lambda d: d["artifacts"][0].update(prefill_chunk=0), "prefill_chunk is 0, outside 1 to"),
        (lambda d: d["artifacts"][0].update(prefill_chunk=10**6), "prefill_chunk is 1000000, outside 1 to"),
        (lambda d: cache(d).update(dtype="int4"), "the unknown dtype 'int4'"),
        (lambda d: cache(d).update(dtype="fp32"), "not of the cache's dtype"),
        (lambda d: cache(d).update(axes="channel"), "the unknown axes 'channel'"),
        (lambda d: cache(d).update(scales="none"), "scales"),
        (lambda d: cache(d).update(bytes=cache(d)["bytes"] + 1), "the bytes of the cache are not those of its buffers"),
        (lambda d: cache(d)["buffers"].pop(0), "other than one buffer for each layer and tensor"),
        (lambda d: cache(d)["buffers"].append(cache(d)["buffers"][0]), "two cache buffers have the name"),
        (lambda d: cache(d)["buffers"][0].update(shape=[1, 1, -4, 8]), "has an impossible shape"),
        (lambda d: cache(d)["buffers"][0].update(shape=[2**40, 2**40, 64, 2**40]), "has an impossible shape"),
        (lambda d: cache(d)["buffers"][0].update(shape=[1, 1, 63, 8]), "holds other than"),
        (lambda d: cache(d)["buffers"][0].update(dtype="int64"), "the unknown dtype 'int64'"),
        (lambda d: entry(d)["aliases"].clear(), "does not say where the program's cache outputs lie"),
        (lambda d: entry(d)["aliases"].update({"cache.0.k.out": "nope"}), "binds cache.0.k.out to nope, which is no buffer"),
        (swap_two_layers, "cache.0.k.out does not succeed cache.1.k"),
        (lambda d: entry(d)["inputs"].append({"name": "more", "dtype": "int8", "shape": [1]}), "inputs that are no buffers"),
        (lambda d: entry(d)["inputs"].pop(0), "does not take ids and a position"),
        (lambda d: entry(d)["outputs"].clear(), "the program gives no logits"),
        (lambda d: d["text"].update(end_tokens=[10**6]), "an end token is no token of the model"),
        (lambda d: d["text"].update(tokenizer={"file": "../x", "sha256": "0" * 64}), "names a file outside the bundle"),
    ],
)
def test_a_manifest_that_cannot_be_right(change, reason, folder, open_native):
    open_native(folder, "onnx")
    edit(folder, change)
    with pytest.raises(EdgeQKVError, match=reason):
        open_native(folder, "onnx")


@pytest.mark.parametrize(
    "text",
    [
        *(b"", b"{", b'{"format": 4,}', b'{"format": 4, "format": 4}', b'{"a": "\\uzzzz"}', b"[" * 100_000, b'{"format": 0x2}'),
        *(b"{}\0", b'{"format": ' + b"4" * 5000 + b"}", b'{"format": 1e400}', b'{"a": "\\ud800"}', b'{"a": "\xff"}'),
    ],
)
def test_a_manifest_that_is_no_json(text, folder, open_native):
    (folder / MANIFEST).write_bytes(text)
    with pytest.raises(EdgeQKVError, match=r"edgeqkv\.json: "):
        open_native(folder)


def test_a_folder_that_is_no_bundle(tmp_path, open_native):
    with pytest.raises(EdgeQKVError, match="does not exist"):
        open_native(tmp_path / "none")
    with pytest.raises(EdgeQKVError, match="is not a bundle: it has no edgeqkv.json"):
        open_native(tmp_path)


def pipe(path):
    os.mkfifo(path)


def device(path):
    path.symlink_to("/dev/zero")


def large(path):
    with path.open("wb") as file:
        file.truncate(65 << 20)


@pytest.mark.parametrize(
    ("name", "make", "reason"),
    [
        (MANIFEST, pipe, "is not a regular file"),
        (MANIFEST, device, "is a link out of the bundle"),
        (MANIFEST, large, "has 68157440 bytes, and at most 67108864 can be right"),
        ("onnx", lambda path: path.symlink_to("../other"), "is a link out of the bundle"),
        (None, pipe, "is not a regular file"),
        (None, device, "is a link out of the bundle"),
    ],
)
def test_files_of_other_kinds(name, make, reason, folder, open_native):
    path = folder / (name or next(iter(json.loads((folder / MANIFEST).read_text())["artifacts"][0]["files"])))
    path.rename(folder.parent / "other")
    make(path)
    with pytest.raises(EdgeQKVError, match=reason):
        open_native(folder)


def test_a_link_within_the_bundle_is_fine(folder, open_native):
    (folder / "onnx").rename(folder / "elsewhere")
    (folder / "onnx").symlink_to("elsewhere")
    open_native(folder, "onnx")


def test_a_digest_is_computed_once_a_file_and_change(folder, open_native):
    name = next(iter(json.loads((folder / MANIFEST).read_text())["artifacts"][0]["files"]))
    file = folder / name
    time.sleep(2.1)  # what has just changed is read again each time

    def bytes_read():
        with open("/proc/thread-self/io") as account:
            before = int(account.readline().split()[1])
        bundle = open_native(folder, "onnx")
        with open("/proc/thread-self/io") as account:
            return bundle, int(account.readline().split()[1]) - before

    _, first = bytes_read()
    _, second = bytes_read()
    assert first - second > 0.9 * file.stat().st_size
    old = file.stat()
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    os.utime(file, ns=(old.st_atime_ns, old.st_mtime_ns))  # size and time of modification are as before
    with pytest.raises(EdgeQKVError, match="its sha256 differs"):
        open_native(folder, "onnx")


def test_end_tokens_of_the_bundle_end_generations(folder, open_native):
    session = NativeSession(open_native(folder, "onnx"))
    free = list(session.generate([1, 2, 3], limit=8))
    edit(folder, lambda d: d["text"].update(end_tokens=[free[4]]))
    session = NativeSession(open_native(folder, "onnx"))
    assert list(session.generate([1, 2, 3], limit=8)) == free[: free.index(free[4])]
    assert session.bundle.info["end_tokens"] == [free[4]]
    session.reset()
    assert list(session.generate([1, 2, 3], limit=8, end_tokens=[])) == free


def test_a_description_quotes_what_a_bundle_says(folder, open_native):
    text = 'a "name" of\n\\\u001f ü \U0001f600'
    edit(folder, lambda d: d["model"].update(variant=text))
    edit(folder, lambda d: d["text"].update(chat_template=text, special_tokens={"bos_token": text, text: ""}))
    info = open_native(folder, "onnx").info
    assert (info["variant"], info["chat_template"]) == (text, text)
    assert info["special_tokens"] == {"bos_token": text, text: ""}


def as_format_3(data):
    """The older form of a manifest, as far as a reader needs it."""
    tokenizer = data.pop("text")["tokenizer"]
    data["format"] = 3
    data["model"]["tokenizer_sha256"] = tokenizer and tokenizer["sha256"]
    for artifact in data["artifacts"]:
        new = artifact["cache"]
        rows = [b for b in new["buffers"] if not b["name"].endswith(".scale")]
        scales = [b for b in new["buffers"] if b["name"].endswith(".scale")]
        artifact["cache"] = {key: new[key] for key in ("dtype", "bytes", "bytes_per_position", "scale_bytes")} | {
            "tensors": list(new["row"]),
            "names": [b["name"] for b in rows],
            "shape": rows[0]["shape"],
            "layout": new["axes"],
            "scale_layout": {"per_row": "per_token"}.get(new["scales"], new["scales"]),
            "scale_names": [b["name"] for b in scales],
            "scale_shape": scales[0]["shape"] if scales else [],
            "capacity": data["capacity"],
        }


@pytest.mark.parametrize("options", [("q_mqa", "int8"), ("qkv", "fp32"), ("qkv", "int8")])
@pytest.mark.parametrize("kernel", ["fused", "stock"])
def test_format_3_is_read_too(options, kernel, golden_bundle, tmp_path, open_native):
    shutil.copytree(golden_bundle(*options), tmp_path / "old")
    edit(tmp_path / "old", as_format_3)
    old, new = (NativeSession(open_native(path, "onnx", kernel)) for path in (tmp_path / "old", golden_bundle(*options)))
    new.prefill([1, 2, 3])
    new.save(tmp_path / "one.session")
    old.restore(tmp_path / "one.session")
    assert (old.tokens, old.cache_bytes) == (new.tokens, new.cache_bytes)
    assert old.step(4).tobytes() == new.step(4).tobytes()


@pytest.mark.parametrize("threads", [257, 100_000, 2**31])
def test_threads_beyond_reason(threads, folder, open_native):
    with pytest.raises(EdgeQKVError, match="threads"):
        open_native(folder, threads=threads)


def test_what_is_not_in_the_bundle(folder, open_native):
    with pytest.raises(
        EdgeQKVError, match=r"holds nothing for the runtime 'coreml' with the kernel 'any'; it was exported for: onnx"
    ):
        open_native(folder, "coreml")


def test_a_runtime_that_is_not_there(folder, libraries, tmp_path):
    from dataclasses import replace

    from edgeqkv.runtimes.native.engine import NativeBundle

    with pytest.raises(MissingPackage, match=r"ONNX Runtime cannot be loaded \(.*none\.so"):
        NativeBundle(folder, replace(libraries, onnxruntime=tmp_path / "none.so"))
