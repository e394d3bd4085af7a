"""What ExecuTorch stores twice in a .pte file is stored once: the table that is both the embedding and the head.

The embedding is a constant of the program, the head a blob that XNNPACK reads by name. ExecuTorch writes both, byte for byte
the same. A blob is a segment, which the file's directory places by offset and size, so it may as well lie inside the constants.
The file: a flatbuffer, whose table Program lists the segments, then the segments (exir/_serialize/program.fbs of ExecuTorch).
"""

import hashlib
import mmap
import struct
from pathlib import Path
from typing import Any

from executorch.exir._serialize._flatbuffer_program import _flatbuffer_to_program
from flatbuffers import encode, number_types, packer
from flatbuffers.table import Table

from edgeqkv.errors import CheckFailed

PROGRAM_SIZE, SEGMENTS_AT, SEGMENTS_SIZE = 16, 24, 32  # 64-bit numbers of the extended header
SEGMENTS_SLOT, OFFSET_SLOT = 12, 4  # in the tables Program and DataSegment
SMALLEST = 4096  # bytes; below it, padding eats what would be saved


def store_once(source: Path, target: Path) -> None:
    """Write the program ``source`` as ``target``, where each blob that equals a constant lies where the constant does. Neither
    is read into memory as a whole.

    Raises :class:`CheckFailed` should any segment of it not be what it was.
    """
    with source.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as file:
        size, start = (struct.unpack_from("<Q", file, at)[0] for at in (PROGRAM_SIZE, SEGMENTS_AT))
        head = bytearray(file[:size])
        program = _flatbuffer_to_program(bytes(head))
        offsets, kept = _places(program, file, start)
        _set_offsets(head, offsets)
        struct.pack_into("<Q", head, SEGMENTS_SIZE, sum(end - begin for begin, end in kept))
        with memoryview(file) as view, target.open("wb") as out:
            out.write(head)
            out.write(view[size:start])
            for begin, end in kept:
                out.write(view[start + begin : start + end])
            before = [_digest(view, start + segment.offset, segment.size) for segment in program.segments]
    with target.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as file, memoryview(file) as view:
        segments = _flatbuffer_to_program(file[:size]).segments
        if [_digest(view, start + segment.offset, segment.size) for segment in segments] != before:
            raise CheckFailed("a segment of the ExecuTorch program was lost with its copies; this is a fault of ours")


def _places(program: Any, file: mmap.mmap, start: int) -> tuple[list[int], list[tuple[int, int]]]:
    """The new offset of each segment, and which ranges of the segments stay, counted from where the first one begins."""
    constants = program.constant_segment
    place = program.segments[constants.segment_index]
    starts = sorted({place.offset + offset for offset in constants.offsets[1:]})
    named = {data.segment_index for data in program.named_data or []}

    def twin(i: int) -> int | None:
        """Where a constant begins with what segment i, a blob behind the constants, holds."""
        segment = program.segments[i]
        if i not in named or segment.size < SMALLEST or segment.offset <= place.offset:
            return None
        fit = (at for at in starts if at + segment.size <= place.offset + place.size)
        return next((at for at in fit if _same(file, start + at, start + segment.offset, segment.size)), None)

    offsets, kept, cut = list[int](), list[tuple[int, int]](), 0
    for i, segment in enumerate(program.segments):
        end = program.segments[i + 1].offset if i + 1 < len(program.segments) else len(file) - start
        at = twin(i)
        if at is None:
            offsets.append(segment.offset - cut)
            kept.append((segment.offset, end))
        else:
            offsets.append(at)
            cut += end - segment.offset
    return offsets, kept


def _same(file: mmap.mmap, one: int, other: int, size: int) -> bool:
    if file[one : one + SMALLEST] != file[other : other + SMALLEST]:
        return False
    with memoryview(file) as view:
        return _digest(view, one, size) == _digest(view, other, size)


def _digest(view: memoryview, start: int, size: int) -> bytes:
    return hashlib.sha256(view[start : start + size]).digest()


def _set_offsets(head: bytearray, offsets: list[int]) -> None:
    """Write the segments' offsets where the flatbuffer has them. An offset of 0 is not stored, and stays."""
    program = Table(head, encode.Get(packer.uoffset, head, 0))
    vector = program.Vector(program.Offset(SEGMENTS_SLOT))
    for i, offset in enumerate(offsets):
        segment = Table(head, program.Indirect(vector + number_types.UOffsetTFlags.bytewidth * i))
        field = segment.Offset(OFFSET_SLOT)
        if field:
            struct.pack_into("<Q", head, segment.Pos + field, offset)
        elif offset:
            raise ValueError("a segment at the start of the file has moved")
