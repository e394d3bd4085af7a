"""docs/session-file.md in Python: bit for bit what was saved, and nothing touched by a file that is not right."""

import hashlib
import json
import os
import stat
import struct
import subprocess
import sys

import numpy as np
import pytest
from msgspec.structs import replace

import edgeqkv
from edgeqkv.model_folder import Model, write_model
from edgeqkv.presets import latent, mla, rotary
from edgeqkv.session_file import read_session
from edgeqkv.text import Text

CAPACITY, CHUNK, KNOWN = 20, 4, 300


@pytest.fixture(scope="module")
def bundles(tmp_path_factory, write_tiny_model):
    """By variant and dtype of the cache, "Q-MQA int8"; two of another model and of another capacity."""
    folder, made = tmp_path_factory.mktemp("files"), {}
    for variant in ("Q-MQA", "QKV"):
        model = write_tiny_model(folder / variant, variant)
        for cache in ("fp32", "fp16", "int8"):
            made[f"{variant} {cache}"] = folder / f"{variant}-{cache}"
            edgeqkv.export(model, folder / f"{variant}-{cache}", cache=cache, capacity=CAPACITY, prefill_chunk=CHUNK)
    other = write_tiny_model(folder / "other", "Q-MQA", n_positions=47)  # other weights of the same cache
    for name, model, capacity in (("other model", other, CAPACITY), ("other capacity", folder / "Q-MQA", 19)):
        made[name] = folder / name.replace(" ", "-")
        edgeqkv.export(model, made[name], cache="int8", capacity=capacity)
    return made


@pytest.fixture
def saved(bundles, tmp_path):
    """A session that holds six tokens, and its file."""
    session = edgeqkv.open(bundles["Q-MQA int8"])
    session.prefill([1, 2, 3, 4, 5, 6])
    session.save(tmp_path / "chat.session")
    return session, tmp_path / "chat.session"


def header_of(data):
    (length,) = struct.unpack_from("<I", data, 12)
    return json.loads(data[16 : 16 + length])


def signed(data):
    return data + hashlib.sha256(data).digest()


def with_header(data, **changes):
    """The file with another header, and a sha256 that fits it."""
    (length,) = struct.unpack_from("<I", data, 12)
    header = {name: value for name, value in (header_of(data) | changes).items() if value is not ...}
    text = json.dumps(header).encode()
    return signed(data[:12] + struct.pack("<I", len(text)) + text + data[16 + length : -32])


@pytest.mark.parametrize("kernel", ["fused", "stock"])
@pytest.mark.parametrize("cache", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("variant", ["QKV", "Q-MQA"])
def test_a_restored_session_goes_on_bit_for_bit(variant, cache, kernel, bundles, tmp_path):
    bundle = bundles[f"{variant} {cache}"]
    session = edgeqkv.open(bundle, kernel=kernel)
    logits = session.prefill([1, 2, 3, 4, 5, 6])
    session.save(tmp_path / "s")
    expected = [session.step(token) for token in (7, 8, 9)]
    other = edgeqkv.open(bundle, kernel=kernel)
    other.prefill(range(50, 62))  # what is there is written over
    other.restore(tmp_path / "s")
    assert other.tokens == (1, 2, 3, 4, 5, 6)
    np.testing.assert_array_equal(other.logits, logits)
    for token, wanted in zip((7, 8, 9), expected, strict=True):
        np.testing.assert_array_equal(other.step(token), wanted)


def test_latent_rows_with_two_scales_are_saved_too(tmp_path):
    from conftest import tiny_weights

    config = replace(mla(2, 64, 96, 320, rotary(1e4, 16), latent(4, 32, 64, 32, 16, 32)), n_positions=48)
    write_model(tmp_path / "m", Model(config, tiny_weights(config), None, Text(), ""), "# tiny\n")
    edgeqkv.export(tmp_path / "m", tmp_path / "b", cache="int8", capacity=CAPACITY)
    session, other = (edgeqkv.open(tmp_path / "b") for _ in range(2))
    assert (session.artifact.kernel, session.artifact.cache.scales) == ("fused", "per_slice")
    session.prefill([1, 2, 3])
    session.save(tmp_path / "s")
    shapes = {b["name"]: b["shape"] for b in header_of((tmp_path / "s").read_bytes())["buffers"]}
    assert shapes["cache.1.k.scale"] == [1, 1, 2, CAPACITY]
    other.restore(tmp_path / "s")
    fork = other.fork()
    expected = session.step(4)
    np.testing.assert_array_equal(other.step(4), expected)
    np.testing.assert_array_equal(fork.step(4), expected)


def test_the_file_is_what_the_page_says(saved, bundles):
    """Read by hand, byte after byte."""
    session, path = saved
    data = path.read_bytes()
    assert data[:8] == b"EDGEQKVS"
    version, length = struct.unpack_from("<II", data, 8)
    assert version == 1
    header, at = json.loads(data[16 : 16 + length]), 16 + length
    manifest, artifact = session.manifest, session.artifact
    assert header == {
        "checkpoint_sha256": manifest.model.checkpoint_sha256,
        "runtime": "onnx",
        "kernel": "fused",
        "files": artifact.files,
        "vocab_size": 320,
        "capacity": CAPACITY,
        "cache_dtype": "int8",
        "buffers": [{"name": b.name, "dtype": b.dtype, "shape": list(b.shape)} for b in artifact.cache.buffers],
        "depth": 6,
        "logits": True,
    }
    assert np.frombuffer(data, "<i4", 6, at).tolist() == [1, 2, 3, 4, 5, 6]
    np.testing.assert_array_equal(np.frombuffer(data, "<f4", 320, at + 24), session.logits)
    at += 24 + 4 * 320
    for buffer in header["buffers"]:
        scale = buffer["name"].endswith(".scale")
        shape = (1, 1, 6) if scale else (1, 1, 6, 16)
        rows = np.frombuffer(data, "<f4" if scale else "i1", int(np.prod(shape)), at).reshape(shape)
        held = session._engine._caches[buffer["name"]].numpy()
        np.testing.assert_array_equal(rows, held[:, :, :6])
        at += rows.nbytes
    assert data[at:] == hashlib.sha256(data[:at]).digest()


@pytest.mark.parametrize("state", ["empty", "rewound", "full"])
def test_every_state_of_a_session(bundles, tmp_path, state):
    session, other = (edgeqkv.open(bundles["Q-MQA int8"]) for _ in range(2))
    if state != "empty":
        session.prefill(range(1, 21))
    if state == "rewound":
        session.rewind(7)
    session.save(tmp_path / "s")
    other.prefill([9, 9])
    other.restore(tmp_path / "s")
    assert other.tokens == session.tokens
    assert (other.logits is None) == (state != "full")
    if state != "full":
        np.testing.assert_array_equal(other.step(8), session.step(8))


def test_buffers_may_stand_in_any_order(saved, bundles):
    session, path = saved
    data, header = path.read_bytes(), header_of(path.read_bytes())
    buffers = header["buffers"]
    sizes = [6 * 4 if b["name"].endswith("scale") else 6 * 16 for b in buffers]
    rows, at = [], len(data) - 32 - sum(sizes)
    for size in sizes:
        rows.append(data[at : at + size])
        at += size
    whole = data[: len(data) - 32 - sum(sizes)] + b"".join(reversed(rows))
    path.write_bytes(with_header(signed(whole), buffers=buffers[::-1]))
    other = edgeqkv.open(bundles["Q-MQA int8"])
    other.restore(path)
    np.testing.assert_array_equal(other.step(7), session.step(7))


def flip(at):
    def change(data):
        data = bytearray(data)
        data[at] ^= 1
        return bytes(data)

    return change


def tokens_changed(data, ids):
    (length,) = struct.unpack_from("<I", data, 12)
    return signed(data[: 16 + length] + np.array(ids, "<i4").tobytes() + data[16 + length + 24 : -32])


def long_header(data):
    return signed(data[:12] + struct.pack("<I", 2**32 - 1) + data[16:-32])


DAMAGE = {
    "empty": (lambda d: b"", "is not a session file"),
    "a few bytes": (lambda d: d[:20], "is not a session file"),
    "another kind of file": (lambda d: b"PK\x03\x04" + d[4:], "is not a session file"),
    "newer": (
        lambda d: signed(d[:8] + struct.pack("<I", 2) + d[12:-32]),
        "is a session file of version 2, this edgeqkv reads 1",
    ),
    "cut by a byte": (lambda d: d[:-1], "is damaged or truncated"),
    "cut in half": (lambda d: d[: len(d) // 2], "is damaged or truncated"),
    "longer": (lambda d: d + b"\0", "is damaged or truncated"),
    "a bit of the header": (flip(40), "is damaged or truncated"),
    "a bit of the rows": (flip(-60), "is damaged or truncated"),
    "a bit of the sha256": (flip(-1), "is damaged or truncated"),
    "header longer than the file": (long_header, "its header is longer than it"),
    "header that is no JSON": (lambda d: signed(d[:16] + b"!" + d[17:-32]), "is not a JSON file"),
    "unknown field": (lambda d: with_header(d, licence="x"), "unknown field 'licence'"),
    "missing field": (lambda d: with_header(d, depth=...), "the field 'depth' is missing"),
    "another model": (lambda d: with_header(d, checkpoint_sha256="0" * 64), "its checkpoint_sha256 differs"),
    "another runtime": (lambda d: with_header(d, runtime="executorch"), "its runtime differs"),
    "another kernel": (lambda d: with_header(d, kernel="stock"), "its kernel differs"),
    "another graph": (lambda d: with_header(d, files={"onnx/model.onnx": "0"}), "its files differs"),
    "another vocabulary": (lambda d: with_header(d, vocab_size=321), "its vocab_size differs"),
    "another capacity": (lambda d: with_header(d, capacity=21), "its capacity differs"),
    "another dtype": (lambda d: with_header(d, cache_dtype="fp16"), "its cache_dtype differs"),
    "a buffer less": (lambda d: with_header(d, buffers=header_of(d)["buffers"][1:]), "its buffers differs"),
    "a buffer twice": (lambda d: with_header(d, buffers=[header_of(d)["buffers"][0]] * 4), "its buffers differs"),
    "depth beyond the rows": (
        lambda d: with_header(d, depth=7),
        "is shorter than its header says|is longer than its header says",
    ),
    "depth below the rows": (lambda d: with_header(d, depth=5), "is longer than its header says"),
    "depth beyond the capacity": (lambda d: with_header(d, depth=21), "its depth or logits do not fit the cache"),
    "a huge depth": (lambda d: with_header(d, depth=2**62), "its depth or logits do not fit the cache"),
    "a negative depth": (lambda d: with_header(d, depth=-1), "depth: Expected int >= 0"),
    "a depth that is no number": (lambda d: with_header(d, depth="6"), "depth: Expected int"),
    "logits of nothing": (lambda d: with_header(d, depth=0), "its depth or logits do not fit the cache"),
    "no logits where there are some": (lambda d: with_header(d, logits=False), "is longer than its header says"),
    "a token of no model": (lambda d: tokens_changed(d, [1, 2, 300, 4, 5, 6]), "holds a token that is none of the model's"),
    "a negative token": (lambda d: tokens_changed(d, [1, 2, -3, 4, 5, 6]), "holds a token that is none of the model's"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_file_that_is_not_right_changes_nothing(saved, bundles, damage):
    _, path = saved
    change, reason = DAMAGE[damage]
    path.write_bytes(change(path.read_bytes()))
    refused_and_untouched(edgeqkv.open(bundles["Q-MQA int8"]), path, reason)


def refused_and_untouched(session, path, reason):
    session.reset()
    logits = session.prefill([7, 8, 9])
    with pytest.raises(edgeqkv.EdgeQKVError, match=reason) as error:
        session.restore(path)
    assert str(path) in str(error.value)
    assert session.tokens == (7, 8, 9)
    np.testing.assert_array_equal(session.logits, logits)
    after = session.step(10)
    session.reset()
    session.prefill([7, 8, 9])
    np.testing.assert_array_equal(session.step(10), after)


@pytest.mark.parametrize(
    ("other", "kernel", "what"),
    [
        ("Q-MQA fp32", "fused", "files"),
        ("Q-MQA int8", "stock", "kernel"),
        ("QKV int8", "fused", "checkpoint_sha256"),
        ("other model", "fused", "checkpoint_sha256"),
        ("other capacity", "fused", "files"),
    ],
)
def test_a_file_of_another_bundle(saved, bundles, other, kernel, what):
    _, path = saved
    session = edgeqkv.open(bundles[other], kernel=kernel)
    refused_and_untouched(session, path, f"belongs to another model, artifact or cache: its {what} differs")


def test_no_regular_file(bundles, tmp_path):
    session = edgeqkv.open(bundles["Q-MQA int8"])
    refused_and_untouched(session, tmp_path / "none", "does not exist")
    refused_and_untouched(session, tmp_path, "is not a regular file")
    os.mkfifo(tmp_path / "pipe")
    refused_and_untouched(session, tmp_path / "pipe", "is not a regular file")
    with (tmp_path / "huge").open("wb") as file:
        file.truncate(2**34)
    refused_and_untouched(session, tmp_path / "huge", "can be right")


# -- writing ------------------------------------------------------------------------------------------------------


def test_it_is_its_owners_alone_and_replaces_an_older_one(saved, bundles):
    session, path = saved
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.chmod(0o644)
    session.step(7)
    session.save(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert len(read_session(path, session.manifest, session.artifact).tokens) == 7
    assert os.listdir(path.parent) == [path.name]


def test_where_it_cannot_be_written(saved, tmp_path):
    session, _ = saved
    with pytest.raises(edgeqkv.EdgeQKVError, match="cannot write .*none/s: No such file or directory"):
        session.save(tmp_path / "none" / "s")
    (tmp_path / "folder").mkdir()
    with pytest.raises(edgeqkv.EdgeQKVError, match="cannot write .*folder: Is a directory"):
        session.save(tmp_path / "folder")
    assert session.depth == 6


def test_a_full_disk_keeps_the_old_file(saved, bundles):
    """A limit on file size stands in for a full disk."""
    _, path = saved
    before = path.read_bytes()
    code = (
        "import sys, edgeqkv, resource\n"
        "session = edgeqkv.open(sys.argv[1]); session.prefill(range(15))\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "try: session.save(sys.argv[2])\n"
        "except edgeqkv.EdgeQKVError as error: print(error)\n"
    )
    run = subprocess.run([sys.executable, "-c", code, bundles["Q-MQA int8"], path], capture_output=True, text=True, check=True)
    assert f"cannot write {path}: File too large" in run.stdout
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]
