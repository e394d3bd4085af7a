"""Session files: Python and the library read each other's, and refuse what belongs to others or was changed."""

import hashlib
import json
import os
import stat

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import edgeqkv
from edgeqkv.errors import EdgeQKVError
from edgeqkv.runtimes.native.engine import NativeSession

SHAPES = [("qkv", "fp32", "stock"), ("qkv", "int8", "fused"), ("q_mqa", "int8", "fused"), ("q_gqa", "fp16", "fused")]


@pytest.fixture(params=[*SHAPES, "executorch"], ids=str)
def pair(request, golden_bundle, executorch_bundle, open_native):
    """A session of each language on one bundle."""
    if request.param == "executorch":
        folder, runtime, kernel = executorch_bundle("shipped-q-mqa"), "executorch", "fused"
    else:
        folder, runtime, kernel = golden_bundle(*request.param[:2]), "onnx", request.param[2]
    return edgeqkv.open(folder, runtime, kernel, threads=1), NativeSession(open_native(folder, runtime, kernel))


@pytest.mark.parametrize("writer", ["python", "native"])
def test_each_language_reads_the_other_s(writer, pair, tmp_path):
    saved, restored = pair if writer == "python" else pair[::-1]
    saved.prefill([5, 1, 7, 2, 9, 3, 8])
    saved.save(tmp_path / "one.session")
    restored.prefill([1, 2])
    restored.restore(tmp_path / "one.session")
    assert list(restored.tokens) == list(saved.tokens)
    np.testing.assert_array_equal(restored.logits, saved.logits)
    for token in (4, 6):
        np.testing.assert_array_equal(restored.step(token), saved.step(token))
    saved.rewind(3)  # no logits
    saved.save(tmp_path / "one.session")
    restored.restore(tmp_path / "one.session")
    assert restored.logits is None
    np.testing.assert_array_equal(restored.step(4), saved.step(4))


@pytest.fixture
def saved(golden_bundle, open_native, tmp_path):
    session = NativeSession(open_native(golden_bundle(), "onnx", "fused"))
    session.prefill([1, 2, 3])
    session.save(tmp_path / "one.session")
    return session, tmp_path / "one.session"


def parts(data):
    size = int.from_bytes(data[12:16], "little")
    return json.loads(data[16 : 16 + size]), data[16 + size : -32]


def write(file, header, rest, magic=b"EDGEQKVS", version=1, length=None):
    """A session file with a sha256 that is right."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    data = magic + version.to_bytes(4, "little") + (len(text) if length is None else length).to_bytes(4, "little") + text + rest
    file.write_bytes(data + hashlib.sha256(data).digest())


def test_what_the_page_says_is_in_it(saved):
    session, file = saved
    header, rest = parts(file.read_bytes())
    assert header["depth"] == 3
    assert header["logits"] is True
    info = session.bundle.info
    assert np.frombuffer(rest[:12], "<i4").tolist() == [1, 2, 3]
    logits = np.frombuffer(rest[12 : 12 + 4 * info["vocab_size"]], "<f4")
    np.testing.assert_array_equal(logits, session.logits)
    sizes = {"int8": 1, "float16": 2, "float32": 4}
    rows = sum(sizes[b["dtype"]] * int(np.prod(b["shape"])) * 3 // info["capacity"] for b in header["buffers"])
    assert len(rest) == 12 + logits.nbytes + rows
    assert stat.S_IMODE(file.stat().st_mode) == 0o600  # a conversation is private


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda h: h.update(checkpoint_sha256="0" * 64), "saved with another model"),
        (lambda h: h.update(runtime="executorch"), "saved with another runtime: 'executorch', and this session has 'onnx'"),
        (lambda h: h.update(kernel="stock"), "saved with another kernel"),
        (lambda h: h.update(cache_dtype="fp16"), "saved with another cache dtype"),
        (lambda h: h.update(capacity=65), "saved with another capacity"),
        (lambda h: h.update(vocab_size=1), "saved with another vocabulary size"),
        (lambda h: h["files"].update(more="0" * 64), "saved with another export of the model"),
        (lambda h: h["files"].update({next(iter(h["files"])): "0" * 64}), "saved with another export of the model"),
        (lambda h: h["buffers"].pop(), "does not hold every buffer"),
        (lambda h: h["buffers"].append(h["buffers"][0]), "does not hold every buffer"),
        (lambda h: h["buffers"][0].update(name="more"), "saved with another cache"),
        (lambda h: h["buffers"][0].update(shape=[1]), "saved with another cache"),
        (lambda h: h["buffers"][0].update(dtype="float32"), "saved with another cache"),
        (lambda h: h.update(depth=2), "truncated, or longer than it says"),
        (lambda h: h.update(depth=-1), "its depth is -1"),
        (lambda h: h.update(depth=10**9), "its depth is 1000000000"),
        (lambda h: h.update(depth=3.0), "whole number"),
        (lambda h: h.update(depth=0), "logits and no tokens"),
        (lambda h: h.update(logits=False), "truncated, or longer than it says"),
        (lambda h: h.update(logits=1), "'logits' should be"),
        (lambda h: h.update(more=1), "other fields than this version knows"),
        (lambda h: h.pop("depth"), "other fields than this version knows"),
    ],
)
def test_a_header_that_does_not_fit(change, reason, saved):
    session, file = saved
    header, rest = parts(file.read_bytes())
    change(header)
    write(file, header, rest)
    session.step(4)
    with pytest.raises(EdgeQKVError, match=reason):
        session.restore(file)
    assert session.tokens == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("written", "reason"),
    [
        ({"magic": b"EDGEQKVX"}, "it is no session file"),
        ({"version": 2}, "its version is 2, and this library reads 1"),
        ({"length": 2**32 - 1}, "truncated, or longer"),
        ({"length": 10}, "not JSON"),
    ],
)
def test_a_frame_that_does_not_fit(written, reason, saved):
    session, file = saved
    write(file, *parts(file.read_bytes()), **written)
    with pytest.raises(EdgeQKVError, match=reason):
        session.restore(file)


def test_tokens_that_the_model_does_not_know(saved):
    session, file = saved
    header, rest = parts(file.read_bytes())
    for token in (-1, session.bundle.info["token_count"]):
        write(file, header, token.to_bytes(4, "little", signed=True) + rest[4:])
        with pytest.raises(EdgeQKVError, match="a token that this model does not know"):
            session.restore(file)


def test_the_order_of_buffers_is_free(saved):
    session, file = saved
    header, rest = parts(file.read_bytes())
    step, start = session.step(4), 12 + 4 * session.bundle.info["vocab_size"]
    rows = []
    for b in header["buffers"]:
        size = {"int8": 1, "float16": 2, "float32": 4}[b["dtype"]] * int(np.prod(b["shape"])) * 3 // session.capacity
        rows.append(rest[start : start + size])
        start += size
    header["buffers"].reverse()
    write(file, header, rest[: start - sum(map(len, rows))] + b"".join(rows[::-1]))
    session.restore(file)
    np.testing.assert_array_equal(session.step(4), step)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_damage_is_noticed(saved, data):
    session, file = saved
    good = file.read_bytes()
    bad = bytearray(good)
    if data.draw(st.booleans()):
        bad[data.draw(st.integers(0, len(bad) - 1))] ^= data.draw(st.integers(1, 255))
    else:
        del bad[data.draw(st.integers(0, len(bad) - 1)) :]
    file.write_bytes(bad)
    with pytest.raises(EdgeQKVError):
        session.restore(file)
    file.write_bytes(good)
    session.restore(file)


def test_places_that_cannot_be_written(saved, tmp_path):
    session, file = saved
    with pytest.raises(EdgeQKVError, match="cannot be written: No such file or directory"):
        session.save(tmp_path / "none/one.session")
    with pytest.raises(EdgeQKVError, match="is there and is not a regular file"):
        session.save(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    for call in (session.save, session.restore):
        with pytest.raises(EdgeQKVError, match="not a regular file"):
            call(tmp_path / "pipe")
    long = tmp_path / ("n" * 250)
    session.save(long)
    session.restore(long)
    assert {path.name for path in tmp_path.iterdir() if path.is_file()} == {file.name, long.name}  # nothing half-made


def test_a_full_disk_leaves_the_old_file(saved, tmp_path):
    import resource
    import signal

    session, file = saved
    before, limit = file.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    session.step(4)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limit[1]))
    try:
        with pytest.raises(EdgeQKVError, match="cannot be written: File too large"):
            session.save(file)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert file.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == [file.name]
