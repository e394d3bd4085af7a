"""Session files: docs/session-file.md in Python. The C library reads and writes the same."""

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np
from msgspec import Meta

from edgeqkv.atomic import atomic_write
from edgeqkv.cache import Buffer, rows_shape
from edgeqkv.engine import Engine
from edgeqkv.errors import EdgeQKVError
from edgeqkv.limits import HEADER_BYTES
from edgeqkv.manifest import Artifact, Manifest
from edgeqkv.strict import Strict, from_json, parse_json, read_bounded

MAGIC, VERSION = b"EDGEQKVS", 1  # 1: the first
PREFIX = struct.Struct("<8sII")
DIGEST = 32


class Header(Strict, frozen=True):
    """What the file belongs to and holds."""

    checkpoint_sha256: str
    runtime: str
    kernel: str
    files: dict[str, str]
    vocab_size: int
    capacity: int
    cache_dtype: str
    buffers: tuple[Buffer, ...]
    depth: Annotated[int, Meta(ge=0)]
    logits: bool


@dataclass(frozen=True)
class Saved:
    """``rows`` maps each buffer's name to its filled rows."""

    tokens: list[int]
    logits: np.ndarray | None
    rows: dict[str, np.ndarray]


def write_session(
    path: Path, manifest: Manifest, artifact: Artifact, engine: Engine, tokens: Sequence[int], logits: np.ndarray | None
) -> None:
    header = _header(manifest, artifact, len(tokens), logits is not None)
    text = msgspec.json.encode(header)
    parts = [PREFIX.pack(MAGIC, VERSION, len(text)), text, np.array(tokens, "<i4").tobytes()]
    if logits is not None:
        parts.append(logits.astype("<f4").tobytes())
    if tokens:
        parts += [np.ascontiguousarray(engine.read(buffer.name, len(tokens))).tobytes() for buffer in header.buffers]
    data = b"".join(parts)
    atomic_write(path, data + hashlib.sha256(data).digest(), mode=0o600, durable=True)


def read_session(path: Path, manifest: Manifest, artifact: Artifact) -> Saved:
    """Read and check all of a session file."""
    data = read_bounded(path, _largest(manifest, artifact))

    def refuse(why: str) -> EdgeQKVError:
        return EdgeQKVError(f"{path} {why}")

    if len(data) < PREFIX.size + DIGEST or data[:8] != MAGIC:
        raise refuse("is not a session file")
    _, version, length = PREFIX.unpack_from(data)
    if version != VERSION:
        raise refuse(f"is a session file of version {version}, this edgeqkv reads {VERSION}")
    if hashlib.sha256(data[:-DIGEST]).digest() != data[-DIGEST:]:
        raise refuse("is damaged or truncated (its sha256 differs)")
    if length > min(HEADER_BYTES, len(data) - PREFIX.size - DIGEST):
        raise refuse("is not a session file: its header is longer than it")
    header = from_json(Header, parse_json(bytes(data[PREFIX.size : PREFIX.size + length]), str(path)), str(path))
    expected = _header(manifest, artifact, header.depth, header.logits)
    for name in Header.__struct_fields__:
        ours, theirs = getattr(expected, name), getattr(header, name)
        if name == "buffers":
            ours, theirs = sorted(ours, key=lambda b: b.name), sorted(theirs, key=lambda b: b.name)
        if ours != theirs:
            raise refuse(f"belongs to another model, artifact or cache: its {name} differs")
    if header.depth > manifest.capacity or (header.logits and not header.depth):
        raise refuse("cannot be right: its depth or logits do not fit the cache")
    return _parts(memoryview(data)[PREFIX.size + length : -DIGEST], header, manifest, artifact, path)


def _parts(body: memoryview, header: Header, manifest: Manifest, artifact: Artifact, path: Path) -> Saved:
    layout, at = manifest.cache_layout(artifact), 0

    def take(dtype: str, shape: tuple[int, ...]) -> np.ndarray:
        nonlocal at
        count = int(np.prod(shape))
        size = count * np.dtype(dtype).itemsize
        if at + size > len(body):
            raise EdgeQKVError(f"{path} is shorter than its header says")
        array = np.frombuffer(body, dtype, count, at).reshape(shape)
        at += size
        return array

    tokens = take("<i4", (header.depth,)).tolist()
    logits = take("<f4", (header.vocab_size,)).copy() if header.logits else None
    rows = {}
    for buffer in header.buffers if header.depth else ():
        dtype = np.dtype(buffer.dtype).newbyteorder("<").str
        rows[buffer.name] = take(dtype, rows_shape(layout, buffer, header.depth))
    if at != len(body):
        raise EdgeQKVError(f"{path} is longer than its header says")
    known = manifest.model.config.token_count
    if any(not 0 <= token < known for token in tokens):
        raise EdgeQKVError(f"{path} holds a token that is none of the model's, which are 0 to {known - 1}")
    return Saved(tokens, logits, rows)


def _header(manifest: Manifest, artifact: Artifact, depth: int, logits: bool) -> Header:
    return Header(
        checkpoint_sha256=manifest.model.checkpoint_sha256,
        runtime=artifact.runtime,
        kernel=artifact.kernel,
        files=artifact.files,
        vocab_size=manifest.model.config.vocab_size,
        capacity=manifest.capacity,
        cache_dtype=artifact.cache.dtype,
        buffers=artifact.cache.buffers,
        depth=depth,
        logits=logits,
    )


def _largest(manifest: Manifest, artifact: Artifact) -> int:
    """No file of this artifact is larger."""
    logits = 4 * manifest.model.config.vocab_size
    return PREFIX.size + HEADER_BYTES + 4 * manifest.capacity + logits + artifact.cache.bytes + DIGEST
