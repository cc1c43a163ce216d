"""Records, segment headers, commits and footers as bytes (docs/format.md, "Segments"). Pure: no I/O.

The 64-byte record headers themselves are framed and checked in bulk by `holdfast._native`.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import Final, NamedTuple

from holdfast import _native
from holdfast.errors import FormatError

SEGMENT_MAGIC: Final = b"HFSEG\0\0\1"
SEGMENT_HEADER_BYTES: Final = 64
HEADER_BYTES: Final = 64
ENTRY_BYTES: Final = 46
MAX_RECORD_BYTES: Final = 16 << 20
FORMAT_VERSION: Final = 1

MUST_UNDERSTAND: Final = 0x80
SEGMENT_MUST_UNDERSTAND: Final = 0xFF00
"""The feature bits of a segment that a reader must know; this version knows none. The lower eight may be ignored."""

FLAG_BLOB: Final = 1
"""The payload of this data record is also a blob of its own."""
FLAG_ZSTD: Final = 2
"""The payload is stored compressed."""
FLAG_SHA256: Final = 8
"""The record is named by the SHA-256 of its payload (manifests that came from elsewhere)."""
FLAG_END: Final = 4
"""On a footer record: this is the END record, the last of a sealed segment."""
VALID_FLAGS: Final = bytes(
    (0, FLAG_BLOB, FLAG_ZSTD, FLAG_BLOB | FLAG_ZSTD, FLAG_SHA256, FLAG_SHA256 | FLAG_ZSTD)
)
"""What may stand together on the records of a group: a SHA-256 is no blob's name. Others are a newer version's."""


class Kind(IntEnum):
    """What a record says. Bit 7: a reader that does not know the kind must not go on."""

    DATA = 0x81
    OUTBOARD_PAGE = 0x02
    MANIFEST_PAGE = 0x83
    BLOB = 0x84
    ARTIFACT = 0x85
    TAG = 0x86
    TOMBSTONE = 0x87
    QUARANTINE = 0x88
    REPAIR = 0x89
    UPLOAD = 0x0A
    PARTIAL = 0x0B
    COMMIT = 0x8C
    CLOSE = 0x8D
    FOOTER = 0x8E
    RETIRED = 0x0F
    TIMES = 0x10
    INTENDED_TAG = 0x11


KNOWN_KINDS: Final = frozenset(int(kind) for kind in Kind if kind != Kind.INTENDED_TAG)
"""Those of a log. An intended tag stands in buckets alone (`wire/bundle.py`)."""
PAYLOAD_KINDS: Final = frozenset({int(Kind.DATA), int(Kind.OUTBOARD_PAGE), int(Kind.MANIFEST_PAGE)})
"""Records that are found by the hash of their payload."""
DOCUMENT_KINDS: Final = frozenset(
    {
        int(Kind.BLOB),
        int(Kind.ARTIFACT),
        int(Kind.TAG),
        int(Kind.TOMBSTONE),
        int(Kind.QUARANTINE),
        int(Kind.REPAIR),
        int(Kind.RETIRED),
        int(Kind.UPLOAD),
    }
)
"""Records whose payload states a fact."""
FRAMING_KINDS: Final = frozenset({int(Kind.COMMIT), int(Kind.CLOSE), int(Kind.FOOTER)})

HEADER: Final = struct.Struct("<4sBBBBIIIII32sI")
ENTRY: Final = struct.Struct("<BBIII32s")
_SEGMENT_HEADER: Final = struct.Struct("<8sHHI16sQ20sI")
_COMMIT: Final = struct.Struct("<16sQQ32sI")
_EXTENT: Final = struct.Struct("<IIII")
_END: Final = struct.Struct("<IIII")
_CLOSE: Final = struct.Struct("<16s")
TAIL_BYTES: Final = HEADER_BYTES + 16
"""A close or END record: what the last bytes of a segment are looked at for."""
MAX_EXTENTS: Final = (MAX_RECORD_BYTES - _COMMIT.size) // _EXTENT.size


class SegmentHeader(NamedTuple):
    """The first 64 bytes of a segment file."""

    segment: int
    store_id: bytes
    created_ms: int


def encode_segment_header(header: SegmentHeader) -> bytes:
    """Give the 64 bytes."""
    body = _SEGMENT_HEADER.pack(
        SEGMENT_MAGIC, FORMAT_VERSION, 0, header.segment, header.store_id, header.created_ms, bytes(20), 0
    )[:60]
    return body + _native.crc32c(body).to_bytes(4, "little")


def parse_segment_header(data: bytes) -> SegmentHeader | None:
    """Read the 64 bytes; None when they are damaged, `FormatError` when a newer version wrote them."""
    if len(data) < SEGMENT_HEADER_BYTES or data[:8] != SEGMENT_MAGIC:
        return None
    _, version, flags, segment, store_id, created_ms, _, crc = _SEGMENT_HEADER.unpack(
        data[:SEGMENT_HEADER_BYTES]
    )
    if _native.crc32c(data[:60]) != crc:
        return None
    if version != FORMAT_VERSION:
        raise FormatError(
            f"segment {segment} has format {version}; this version of Holdfast reads {FORMAT_VERSION}: upgrade it",
            segment=segment,
        )
    if flags & SEGMENT_MUST_UNDERSTAND:
        raise FormatError(
            f"segment {segment} has feature bits {flags:#06x}; this version of Holdfast knows none: upgrade it",
            segment=segment,
        )
    return SegmentHeader(segment, store_id, created_ms)


class Entry(NamedTuple):
    """What a segment's index says of one record: 46 bytes."""

    kind: int
    flags: int
    offset: int
    stored_bytes: int
    plain_bytes: int
    hash: bytes

    @property
    def stop(self) -> int:
        """Where the record ends in its segment."""
        return self.offset + HEADER_BYTES + self.stored_bytes


def iter_entries(entries: bytes | memoryview) -> list[Entry]:
    """Read packed index entries one by one (for few of them; `_native.entry_columns` reads many)."""
    return [Entry._make(fields) for fields in ENTRY.iter_unpack(entries)]


class Extent(NamedTuple):
    """A run of so many records in one segment: bytes `start` to `stop`."""

    segment: int
    start: int
    stop: int
    records: int


class Commit(NamedTuple):
    """What ends a group: its records are all there, or none counts. `digest` is the BLAKE3 of their index entries."""

    id: bytes
    time_ms: int
    records: int
    digest: bytes
    extents: tuple[Extent, ...]


def encode_commit(commit: Commit) -> bytes:
    """Give the payload of a commit record."""
    head = _COMMIT.pack(commit.id, commit.time_ms, commit.records, commit.digest, len(commit.extents))
    return head + b"".join(_EXTENT.pack(*extent) for extent in commit.extents)


def parse_commit(payload: bytes) -> Commit | None:
    """Read a commit's payload; None when it is malformed."""
    if len(payload) < _COMMIT.size:
        return None
    commit_id, time_ms, records, digest, extent_count = _COMMIT.unpack_from(payload)
    if len(payload) != _COMMIT.size + extent_count * _EXTENT.size:
        return None
    extents = tuple(Extent._make(fields) for fields in _EXTENT.iter_unpack(payload[_COMMIT.size :]))
    if any(e.start < SEGMENT_HEADER_BYTES or e.stop < e.start for e in extents):
        return None
    if sum(e.records for e in extents) != records:
        return None
    return Commit(commit_id, time_ms, records, digest, extents)


class End(NamedTuple):
    """The END record of a sealed segment: where its index lies."""

    footer_start: int
    page_count: int
    entry_count: int
    records_stop: int


def frame_one(
    segment: int, offset: int, kind: Kind, payload: bytes, *, flags: int = 0
) -> tuple[bytes, bytes]:
    """Give (record, index entry) of one record stored as it is."""
    return _native.frame_joined(
        segment, offset, bytes((kind,)), bytes((flags,)), _native.blake3(payload), [len(payload)], [payload]
    )


def encode_close(segment: int, offset: int) -> tuple[bytes, bytes]:
    """Give the record that says: all before it was made durable before this was written."""
    return frame_one(segment, offset, Kind.CLOSE, _CLOSE.pack(bytes(16)))


def encode_footer(segment: int, offset: int, entries: bytes) -> bytes:
    """Give the footer records and the END record that seal a segment at `offset`."""
    page = MAX_RECORD_BYTES // 2 // ENTRY_BYTES * ENTRY_BYTES
    records = []
    at = offset
    for start in range(0, len(entries), page):
        record, _ = frame_one(segment, at, Kind.FOOTER, entries[start : start + page])
        records.append(record)
        at += len(record)
    end = _END.pack(offset, len(records), len(entries) // ENTRY_BYTES, offset)
    record, _ = frame_one(segment, at, Kind.FOOTER, end, flags=FLAG_END)
    return b"".join((*records, record))


class Tail(NamedTuple):
    """What the last bytes of a segment say: `closed`, sealed (with `end`), or neither."""

    closed: bool = False
    end: End | None = None


def parse_tail(data: bytes, segment: int, size_bytes: int) -> Tail:
    """Look at the last `TAIL_BYTES` of a segment file."""
    if len(data) != TAIL_BYTES:
        return Tail()
    entries, consumed, _ = _native.scan(data, segment, size_bytes - TAIL_BYTES, deep=True)
    if consumed != TAIL_BYTES:
        return Tail()
    entry = Entry._make(ENTRY.unpack(entries[:ENTRY_BYTES]))
    if entry.kind == Kind.CLOSE:
        return Tail(closed=True)
    if entry.kind == Kind.FOOTER and entry.flags & FLAG_END:
        end = End._make(_END.unpack(data[HEADER_BYTES:]))
        if SEGMENT_HEADER_BYTES <= end.records_stop <= end.footer_start <= size_bytes - TAIL_BYTES:
            return Tail(end=end)
    return Tail()
