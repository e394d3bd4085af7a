"""What ExecuTorch stores twice in a .pte file is stored once: the table that is both the embedding and the head.

The embedding is a constant of the program, the head a blob that XNNPACK reads by name. ExecuTorch writes both, byte for byte
the same. A blob is a segment, which the file's directory places by offset and size, so it may as well lie inside the constants.
The file: a flatbuffer, whose table Program lists the segments, then the segments (exir/_serialize/program.fbs of ExecuTorch).
"""

import struct

from executorch.exir._serialize._flatbuffer_program import _flatbuffer_to_program
from flatbuffers import encode, number_types, packer
from flatbuffers.table import Table

from edgeqkv.errors import CheckFailed

PROGRAM_SIZE, SEGMENTS_AT, SEGMENTS_SIZE = 16, 24, 32  # 64-bit numbers of the extended header
SEGMENTS_SLOT, OFFSET_SLOT = 12, 4  # in the tables Program and DataSegment
SMALLEST = 4096  # bytes; below it, padding eats what would be saved


def store_once(file: bytes) -> bytes:
    """The same program, where each blob that equals a constant lies where the constant does.

    Raises :class:`CheckFailed` should any segment of it not be what it was.
    """
    size, start = (struct.unpack_from("<Q", file, at)[0] for at in (PROGRAM_SIZE, SEGMENTS_AT))
    head, segments = bytearray(file[:size]), memoryview(file)[start:]
    program = _flatbuffer_to_program(file[:size])
    constants = program.constant_segment
    place = program.segments[constants.segment_index]
    starts = sorted({place.offset + offset for offset in constants.offsets[1:]})
    named = {data.segment_index for data in program.named_data or []}

    kept, offsets, cut = bytearray(), [], 0
    for i, segment in enumerate(program.segments):
        end = program.segments[i + 1].offset if i + 1 < len(program.segments) else len(segments)
        blob, last = segments[segment.offset : segment.offset + segment.size], place.offset + place.size - segment.size
        twin = None
        if i in named and segment.size >= SMALLEST and segment.offset > place.offset:
            twin = next((at for at in starts if at <= last and segments[at : at + segment.size] == blob), None)
        if twin is not None:
            offsets.append(twin)
            cut += end - segment.offset
        else:
            offsets.append(segment.offset - cut)
            kept += segments[segment.offset : end]
    _set_offsets(head, offsets)
    struct.pack_into("<Q", head, SEGMENTS_SIZE, len(kept))
    for before, after in zip(program.segments, _flatbuffer_to_program(bytes(head)).segments, strict=True):
        old, new = (data[at : at + before.size] for data, at in ((segments, before.offset), (kept, after.offset)))
        if after.size != before.size or old != new:
            raise CheckFailed("a segment of the ExecuTorch program was lost with its copies; this is a fault of ours")
    return bytes(head) + file[size:start] + bytes(kept)


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
