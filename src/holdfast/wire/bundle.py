"""Documents as objects in a bucket: what one acknowledgement says, or the newest state of one name. Pure.

Layout (docs/format.md, "Objects"), little-endian: the magic `HFOB`, version u16, count u32; then each document as
kind u8, length u32, payload (those of `wire/document.py`); then the BLAKE3 of all before it.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final

from holdfast import _native
from holdfast.errors import FormatError
from holdfast.types import HASH_BYTES
from holdfast.wire.record import Kind

MAGIC: Final = b"HFOB"
VERSION: Final = 1
MAX_BUNDLE_BYTES: Final = 1 << 30
"""What a reader takes at most; 100,000 artifacts are some 30 MB."""
KINDS: Final = frozenset({Kind.ARTIFACT, Kind.TAG, Kind.TOMBSTONE})
_HEAD: Final = struct.Struct("<4sHI")
_ITEM: Final = struct.Struct("<BI")

Document = tuple[Kind, bytes]


def encode_bundle(documents: Sequence[Document]) -> bytes:
    """Give the bytes of an object that holds these documents."""
    parts = [_HEAD.pack(MAGIC, VERSION, len(documents))]
    for kind, payload in documents:
        parts += (_ITEM.pack(kind, len(payload)), payload)
    body = b"".join(parts)
    return body + _native.blake3(body)


def parse_bundle(data: bytes) -> list[Document]:
    """Read an object of documents; `FormatError` where it is none, is damaged, or is of a newer version."""
    if len(data) < _HEAD.size + HASH_BYTES or data[:4] != MAGIC:
        raise FormatError("an object that should hold documents holds something else")
    body, checksum = data[:-HASH_BYTES], data[-HASH_BYTES:]
    if _native.blake3(body) != checksum:
        raise FormatError("an object of documents is damaged: its checksum does not match")
    _, version, count = _HEAD.unpack_from(body)
    if version != VERSION:
        raise FormatError(f"an object of documents has version {version}; this Holdfast reads {VERSION}")
    documents: list[Document] = []
    at = _HEAD.size
    for _ in range(count):
        if at + _ITEM.size > len(body):
            raise FormatError("an object of documents ends too early")
        kind, length = _ITEM.unpack_from(body, at)
        at += _ITEM.size
        if kind not in KINDS or at + length > len(body):
            raise FormatError(
                f"an object of documents has one of kind {kind} and {length} bytes, which cannot be"
            )
        documents.append((Kind(kind), body[at : at + length]))
        at += length
    if at != len(body):
        raise FormatError("an object of documents goes on behind its last one")
    return documents
