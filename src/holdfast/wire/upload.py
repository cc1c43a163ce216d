"""The document of an upload: what of a put of unknown length and hash is durable (docs/format.md, "Upload"). Pure.

Each state is written anew and is complete: the chunks so far as a manifest, the chaining values of the blocks so far,
and the pieces of the chunk that is still open. A decoder gets bytes whose hash was verified, but from whoever wrote
the store: lengths are checked.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import Final, NamedTuple

from holdfast.errors import FormatError
from holdfast.types import BLOCK_BYTES, HASH_BYTES, MAX_BLOB_BYTES
from holdfast.wire.document import DOCUMENT_VERSION
from holdfast.wire.pages import TreeRoot

TOKEN_BYTES: Final = 16
MAX_TAIL_PIECES: Final = 1_024
_HEAD: Final = struct.Struct("<BBHI16s16sQQqqqHH")
_PIECE: Final = struct.Struct("<I32s")
_EMPTY: Final = TreeRoot(0, b"")


class UploadState(IntEnum):
    """What became of an upload. All but the first are final."""

    OPEN = 0
    COMMITTED = 1
    ABORTED = 2
    EXPIRED = 3


class UploadDocument(NamedTuple):
    """One state of an upload."""

    token: bytes
    revision: int
    state: int
    created_ms: int
    modified_ms: int
    expires_ms: int
    offset_bytes: int = 0
    """How much is durable: what the manifest covers, then the pieces of `tail`."""
    artifact: bytes = bytes(16)
    """The id of what it became; zero unless it was committed."""
    manifest: TreeRoot = _EMPTY
    groups: TreeRoot = _EMPTY
    """A stream of the chaining values of all whole blocks, 32 bytes each; none before a byte after the first block."""
    tail: tuple[tuple[int, bytes], ...] = ()
    """(length, hash) of the data records that make up the beginning of the chunk that is still open."""
    details: bytes = b""
    """The words of the artifact to be, as in its own document."""

    @property
    def cut_bytes(self) -> int:
        """How much the manifest covers."""
        return self.offset_bytes - sum(length for length, _ in self.tail)

    @property
    def groups_bytes(self) -> int:
        """The length of the stream of chaining values."""
        return groups_bytes(self.offset_bytes)


def groups_bytes(offset_bytes: int) -> int:
    """How many bytes of chaining values a hasher has given after so many bytes."""
    return offset_bytes // BLOCK_BYTES * HASH_BYTES if offset_bytes > BLOCK_BYTES else 0


def encode_upload(document: UploadDocument) -> bytes:
    """Give the payload of an upload record."""
    d = document
    head = _HEAD.pack(
        DOCUMENT_VERSION,
        d.state,
        0,
        d.revision,
        d.token,
        d.artifact,
        d.offset_bytes,
        d.cut_bytes,
        d.created_ms,
        d.modified_ms,
        d.expires_ms,
        len(d.tail),
        0,
    )
    pieces = b"".join([_PIECE.pack(length, hash_) for length, hash_ in d.tail])
    return head + d.manifest.encode() + d.groups.encode() + pieces + d.details


def parse_upload(payload: bytes) -> UploadDocument:
    """Read the payload of an upload record; `FormatError`, or `CorruptBlob` for its roots, where it is none."""
    if len(payload) < _HEAD.size:
        raise FormatError(f"a document of kind upload is too short: {len(payload)} bytes")
    if payload[0] != DOCUMENT_VERSION:
        raise FormatError(
            f"a document of kind upload has version {payload[0]}; this version of Holdfast reads {DOCUMENT_VERSION}"
        )
    _, state, _, revision, token, artifact, offset, cut, created, modified, expires, count, _ = (
        _HEAD.unpack_from(payload)
    )
    if state > UploadState.EXPIRED:
        raise FormatError(f"a document of kind upload has the unknown state {state}")
    if offset > MAX_BLOB_BYTES or count > MAX_TAIL_PIECES:
        raise FormatError(f"a document of kind upload speaks of {offset} bytes, and {count} open pieces")
    manifest, at = TreeRoot.parse(payload, _HEAD.size)
    groups, at = TreeRoot.parse(payload, at)
    stop = at + count * _PIECE.size
    if stop > len(payload):
        raise FormatError("a document of kind upload is cut off")
    tail = tuple(_PIECE.iter_unpack(payload[at:stop]))
    if cut + sum(length for length, _ in tail) != offset:
        raise FormatError(f"the pieces of an upload do not add up to its {offset} bytes")
    return UploadDocument(
        token,
        revision,
        state,
        created,
        modified,
        expires,
        offset,
        artifact,
        manifest,
        groups,
        tail,
        bytes(payload[stop:]),
    )
