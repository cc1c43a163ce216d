"""Ranges as iroh-blobs sends them: a count, then the differences between boundaries, all postcard varints. Pure.

`00` is nothing, `01 00` everything; `02 10 30` are the leaves 16..64.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Final

from holdfast.errors import RemoteProtocolError
from holdfast.ranges import MAX_LEAF, ChunkRanges
from holdfast.wire.collection import encode_varint

_VARINT_BYTES: Final = 10


def encode_ranges(ranges: ChunkRanges) -> bytes:
    """Write the ranges of one blob."""
    numbers = (0, *ranges.boundaries)
    return b"".join(map(encode_varint, (len(numbers) - 1, *(b - a for a, b in pairwise(numbers)))))


def parse_ranges(data: bytes, offset_bytes: int = 0) -> tuple[ChunkRanges, int]:
    """Read the ranges at `offset_bytes`, and where they end.

    RemoteProtocolError with `offset_bytes` when they are cut off, do not rise, or exceed 64 bits. Memory and time are
    those of the bytes that are there, whatever they claim.
    """
    count, at = _varint(data, offset_bytes)
    if count > len(data) - at:
        raise RemoteProtocolError(f"ranges of {count} boundaries are cut off", offset_bytes=at)
    boundaries = []
    last = 0
    for index in range(count):
        step, after = _varint(data, at)
        last += step
        if (step == 0 and index > 0) or last > MAX_LEAF:
            raise RemoteProtocolError("the boundaries of ranges do not rise, or too far", offset_bytes=at)
        boundaries.append(last)
        at = after
    return ChunkRanges(boundaries), at


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for index, byte in enumerate(data[at : at + _VARINT_BYTES]):
        value |= (byte & 0x7F) << 7 * index
        if byte < 0x80:
            if value > MAX_LEAF:
                break
            return value, at + index + 1
    raise RemoteProtocolError("a number is cut off or too long", offset_bytes=at)
