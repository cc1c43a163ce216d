"""The documents that records carry: artifacts, tombstones, tags, blobs, quarantine (docs/format.md, "Documents").

Pure. Each has a fixed little-endian part and, for artifacts, a JSON object with what differs from the defaults.
A decoder gets bytes whose hash was verified, but from whoever wrote the store: lengths and enums are checked.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Final, NamedTuple

import msgspec

from holdfast.errors import FormatError, InvalidInput
from holdfast.types import MAX_BLOB_BYTES, Scalar
from holdfast.wire.pages import TreeRoot

DOCUMENT_VERSION: Final = 1
MAX_DOCUMENT_BYTES: Final = 1 << 20
"""An artifact's own words (names, tags, links, metadata) fit in 1 MiB."""

_ARTIFACT: Final = struct.Struct("<BBI16s32sQqqQ")
_TOMBSTONE: Final = struct.Struct("<BBI16sq")
_TAG: Final = struct.Struct("<BBBI32sqH")
_BLOB: Final = struct.Struct("<BBH32sQQ")
_QUARANTINE: Final = struct.Struct("<BBII32sH")
_RETIRED: Final = struct.Struct("<B3s")
_RUN: Final = struct.Struct("<II")
_TIME: Final = struct.Struct("<Iq")


class Details(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """What people said about an artifact, beyond what it points to. Unknown fields are kept out, not an error."""

    filename: str | None = None
    content_type: str | None = None
    checksum: str | None = None
    created_by: str | None = None
    tags: tuple[str, ...] = ()
    links: tuple[str, ...] = ()
    requires: tuple[str, ...] = ()
    metadata: Mapping[str, Scalar] = {}


_encode_json: Final = msgspec.json.Encoder().encode
_decode_details: Final = msgspec.json.Decoder(Details).decode


def encode_details(details: Details) -> bytes:
    """Give the JSON of an artifact's details; `InvalidInput` above `MAX_DOCUMENT_BYTES`."""
    try:
        data = _encode_json(details)
    except UnicodeEncodeError:
        raise InvalidInput("a name, tag, link or metadata value is not valid UTF-8") from None
    if len(data) > MAX_DOCUMENT_BYTES:
        raise InvalidInput(
            f"names, tags, links and metadata of an artifact take {len(data)} bytes; {MAX_DOCUMENT_BYTES} are allowed"
        )
    return data


def parse_details(data: bytes) -> Details:
    """Read the JSON of an artifact's details."""
    try:
        return _decode_details(data)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise FormatError(f"an artifact's details cannot be read: {error}") from error


class ArtifactDocument(NamedTuple):
    """One state of an artifact. `details` is JSON, not looked into here."""

    id: bytes
    revision: int
    hash: bytes
    size_bytes: int
    format: int
    created_ms: int
    modified_ms: int
    chunk_count: int
    details: bytes


def encode_artifact(document: ArtifactDocument) -> bytes:
    """Give the payload of an artifact record."""
    d = document
    return (
        _ARTIFACT.pack(
            DOCUMENT_VERSION,
            d.format,
            d.revision,
            d.id,
            d.hash,
            d.size_bytes,
            d.created_ms,
            d.modified_ms,
            d.chunk_count,
        )
        + d.details
    )


def parse_artifact(payload: bytes) -> ArtifactDocument:
    """Read the payload of an artifact record."""
    _check(payload, _ARTIFACT, "artifact")
    _, format_, revision, id_, hash_, size, created, modified, chunks = _ARTIFACT.unpack_from(payload)
    _check_values("artifact", format_, max(size, chunks))
    return ArtifactDocument(
        id_, revision, hash_, size, format_, created, modified, chunks, bytes(payload[_ARTIFACT.size :])
    )


def revision_of(payload: bytes) -> int:
    """Give the revision of an artifact record without reading the rest; 0 for one that is cut off."""
    return int.from_bytes(payload[2:6], "little")


class Tombstone(NamedTuple):
    """The state of an artifact that was deleted."""

    id: bytes
    revision: int
    deleted_ms: int


def encode_tombstone(tombstone: Tombstone) -> bytes:
    """Give the payload of a tombstone record (of an artifact; tags carry theirs in the tag record)."""
    return _TOMBSTONE.pack(DOCUMENT_VERSION, 0, tombstone.revision, tombstone.id, tombstone.deleted_ms)


def parse_tombstone(payload: bytes) -> Tombstone:
    """Read the payload of a tombstone record."""
    _check(payload, _TOMBSTONE, "tombstone")
    _, _, revision, id_, deleted = _TOMBSTONE.unpack_from(payload)
    return Tombstone(id_, revision, deleted)


class TagDocument(NamedTuple):
    """One state of a tag of the blob layer."""

    name: str
    hash: bytes
    format: int
    revision: int
    modified_ms: int
    deleted: bool


def encode_tag(document: TagDocument) -> bytes:
    """Give the payload of a tag record."""
    name = document.name.encode()
    return (
        _TAG.pack(
            DOCUMENT_VERSION,
            document.format,
            document.deleted,
            document.revision,
            document.hash,
            document.modified_ms,
            len(name),
        )
        + name
    )


def parse_tag(payload: bytes) -> TagDocument:
    """Read the payload of a tag record."""
    _check(payload, _TAG, "tag")
    _, format_, deleted, revision, hash_, modified, length = _TAG.unpack_from(payload)
    _check_values("tag", format_, 0)
    raw = bytes(payload[_TAG.size :])
    if len(raw) != length:
        raise FormatError("a tag record has a name of another length than it says")
    try:
        name = raw.decode()
    except UnicodeDecodeError:
        raise FormatError(f"a tag has a name that is not UTF-8: {raw!r:.100}") from None
    return TagDocument(name, hash_, format_, revision, modified, bool(deleted))


class BlobDocument(NamedTuple):
    """A blob above one block: where its chunks and its outboard are listed."""

    hash: bytes
    size_bytes: int
    chunk_count: int
    manifest: TreeRoot
    outboard: TreeRoot


def encode_blob(document: BlobDocument) -> bytes:
    """Give the payload of a blob record: fixed part, then the roots of manifest and outboard."""
    d = document
    head = _BLOB.pack(DOCUMENT_VERSION, 0, 0, d.hash, d.size_bytes, d.chunk_count)
    return head + d.manifest.encode() + d.outboard.encode()


def parse_blob(payload: bytes) -> BlobDocument:
    """Read the payload of a blob record."""
    _check(payload, _BLOB, "blob")
    _, _, _, hash_, size, chunks = _BLOB.unpack_from(payload)
    manifest, at = TreeRoot.parse(payload, _BLOB.size)
    outboard, at = TreeRoot.parse(payload, at)
    if at != len(payload):
        raise FormatError("a blob record has another length than it says", hash=hash_.hex())
    return BlobDocument(hash_, size, chunks, manifest, outboard)


def parse_blob_head(payload: bytes) -> tuple[bytes, int, int]:
    """Read (hash, size, chunk count) of a blob record alone: what a catalog keeps."""
    _check(payload, _BLOB, "blob")
    _, _, _, hash_, size, chunks = _BLOB.unpack_from(payload)
    _check_values("blob", 0, max(size, chunks))
    return hash_, size, chunks


class QuarantineDocument(NamedTuple):
    """A record that was found damaged: nothing reads it until it is repaired."""

    segment: int
    offset: int
    hash: bytes
    reason: str


def encode_quarantine(document: QuarantineDocument) -> bytes:
    """Give the payload of a quarantine (or repair) record."""
    reason = document.reason.encode()[:1000]
    return (
        _QUARANTINE.pack(DOCUMENT_VERSION, 0, document.segment, document.offset, document.hash, len(reason))
        + reason
    )


def parse_quarantine(payload: bytes) -> QuarantineDocument:
    """Read the payload of a quarantine (or repair) record."""
    _check(payload, _QUARANTINE, "quarantine")
    _, _, segment, offset, hash_, length = _QUARANTINE.unpack_from(payload)
    reason = bytes(payload[_QUARANTINE.size :])
    if len(reason) != length:
        raise FormatError("a quarantine record has another length than it says")
    return QuarantineDocument(segment, offset, hash_, reason.decode(errors="replace"))


def encode_retired(runs: Iterable[range]) -> bytes:
    """Give the payload of a record that names segments which were compacted away; the runs rise, and do not touch."""
    return _RETIRED.pack(DOCUMENT_VERSION, bytes(3)) + b"".join(
        _RUN.pack(run.start, run.stop) for run in runs
    )


def parse_retired(payload: bytes) -> list[range]:
    """Read the runs of segments that a record says were compacted away."""
    _check(payload, _RETIRED, "retired")
    rest = payload[_RETIRED.size :]
    if len(rest) % _RUN.size:
        raise FormatError("a record of retired segments has another length than it can have")
    runs = [range(first, stop) for first, stop in _RUN.iter_unpack(rest)]
    if any(run.start >= run.stop for run in runs) or any(a.stop > b.start for a, b in pairwise(runs)):
        raise FormatError("a record of retired segments has runs that do not rise")
    return runs


def encode_times(runs: Iterable[tuple[int, int]]) -> bytes:
    """Give the payload of a record that says of so many blobs of its group, in turn, when they were stored."""
    return _RETIRED.pack(DOCUMENT_VERSION, bytes(3)) + b"".join(_TIME.pack(*run) for run in runs)


def parse_times(payload: bytes) -> list[tuple[int, int]]:
    """Read (how many blobs, time_ms) in turn."""
    _check(payload, _RETIRED, "times")
    rest = payload[_RETIRED.size :]
    if len(rest) % _TIME.size:
        raise FormatError("a record of times has another length than it can have")
    return list(_TIME.iter_unpack(rest))


def _check(payload: bytes, layout: struct.Struct, what: str) -> None:
    if len(payload) < layout.size:
        raise FormatError(f"a document of kind {what} is too short: {len(payload)} bytes")
    if payload[0] != DOCUMENT_VERSION:
        raise FormatError(
            f"a document of kind {what} has version {payload[0]}; this version of Holdfast reads {DOCUMENT_VERSION}"
        )


def _check_values(what: str, format_: int, size_bytes: int) -> None:
    if format_ > 1:
        raise FormatError(f"a document of kind {what} has the unknown blob format {format_}")
    if size_bytes > MAX_BLOB_BYTES:
        raise FormatError(
            f"a document of kind {what} names a blob of {size_bytes} bytes or pieces, at most {MAX_BLOB_BYTES}"
        )
