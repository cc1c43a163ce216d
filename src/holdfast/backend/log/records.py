"""Records on their way into a segment: in columns, and framed for a place."""

from __future__ import annotations

from typing import Final, NamedTuple

from holdfast import _native
from holdfast.types import BytesLike
from holdfast.wire.record import HEADER_BYTES

JOIN_BYTES: Final = 16 << 10
"""Payloads below this on average are copied into one buffer; larger ones are written from where they lie."""


class Records(NamedTuple):
    """Records of one group in columns, not yet in any segment."""

    kinds: bytearray
    flags: bytearray
    hashes: bytearray
    plain: list[int]
    payloads: list[BytesLike]

    @classmethod
    def empty(cls) -> Records:
        return cls(bytearray(), bytearray(), bytearray(), [], [])

    def clear(self) -> None:
        for column in self:
            column.clear()


def frame_records(segment: int, offset: int, records: Records) -> tuple[list[BytesLike], bytes, int]:
    """Frame records for a place: (buffers to write, index entries, total length)."""
    kinds, flags, hashes = bytes(records.kinds), bytes(records.flags), records.hashes
    size = sum(map(len, records.payloads))
    if size < JOIN_BYTES * len(records.payloads):
        joined, entries = _native.frame_joined(
            segment, offset, kinds, flags, hashes, records.plain, records.payloads
        )
        return [joined], entries, len(joined)
    headers, entries = _native.frame(segment, offset, kinds, flags, hashes, records.plain, records.payloads)
    view = memoryview(headers)
    buffers: list[BytesLike] = []
    for i, payload in enumerate(records.payloads):
        buffers += (view[i * HEADER_BYTES : (i + 1) * HEADER_BYTES], payload)
    return buffers, entries, size + len(headers)
