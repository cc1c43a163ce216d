"""Documents as objects in a bucket: what one acknowledgement says, or the newest state of one name. Pure.

Layout (docs/format.md, "Objects"), little-endian: the magic `HFOB`, version u16, count u32; then each document as
kind u8, length u32, payload (those of `wire/document.py`); then the BLAKE3 of all before it and of the object's key,
so that the answer to another question is not taken for this one's.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final, NamedTuple

from holdfast import _native
from holdfast.errors import CorruptObject, FormatError, TooLarge
from holdfast.types import HASH_BYTES
from holdfast.wire.record import Kind

MAGIC: Final = b"HFOB"
VERSION: Final = 1
MAX_BUNDLE_BYTES: Final = 1 << 28
"""What an object of documents may have; 100,000 artifacts are some 30 MB."""
KINDS: Final = frozenset({Kind.ARTIFACT, Kind.TAG, Kind.TOMBSTONE, Kind.INTENDED_TAG})
MUST_UNDERSTAND: Final = 0x80
"""Bit of a kind: who does not know it must not go on."""
_HEAD: Final = struct.Struct("<4sHI")
_ITEM: Final = struct.Struct("<BI")

Document = tuple[Kind, bytes]


class Bundle(NamedTuple):
    """What an object of documents holds. `skipped`: documents of kinds that need not be understood."""

    documents: list[Document]
    skipped: int


def encode_bundle(documents: Sequence[Document], key: str) -> bytes:
    """Give the bytes of the object at `key` that holds these documents; `TooLarge` above `MAX_BUNDLE_BYTES`."""
    parts = [_HEAD.pack(MAGIC, VERSION, len(documents))]
    for kind, payload in documents:
        parts += (_ITEM.pack(kind, len(payload)), payload)
    body = b"".join(parts)
    if len(body) + HASH_BYTES > MAX_BUNDLE_BYTES:
        raise TooLarge(
            f"names, tags, links and metadata of one call take {len(body)} bytes; {MAX_BUNDLE_BYTES} are allowed:"
            " put fewer artifacts at once",
            limit_bytes=MAX_BUNDLE_BYTES,
        )
    return body + _native.blake3(body + key.encode())


def parse_bundle(data: bytes, key: str) -> Bundle:
    """Read the object of documents at `key`.

    `CorruptObject` where it is damaged, or is another object's; `FormatError` where it is a newer version's.
    """
    if len(data) < _HEAD.size + HASH_BYTES or data[:4] != MAGIC:
        raise CorruptObject(f"{key} should hold documents, and holds something else", path=key)
    body, checksum = data[:-HASH_BYTES], data[-HASH_BYTES:]
    if _native.blake3(body + key.encode()) != checksum:
        raise CorruptObject(f"{key} is damaged: its checksum does not match", path=key)
    _, version, count = _HEAD.unpack_from(body)
    if version != VERSION:
        raise _newer(key, f"version {version}; this one reads {VERSION}")
    documents: list[Document] = []
    at, skipped = _HEAD.size, 0
    for _ in range(count):
        if at + _ITEM.size > len(body):
            raise CorruptObject(f"{key} ends too early", path=key)
        kind, length = _ITEM.unpack_from(body, at)
        at += _ITEM.size
        if at + length > len(body):
            raise CorruptObject(f"{key} ends too early", path=key)
        if kind in KINDS:
            documents.append((Kind(kind), body[at : at + length]))
        elif kind & MUST_UNDERSTAND:
            raise _newer(key, f"a document of kind {kind:#x}")
        else:
            skipped += 1
        at += length
    if at != len(body):
        raise CorruptObject(f"{key} goes on behind its last document", path=key)
    return Bundle(documents, skipped)


def _newer(key: str, what: str) -> FormatError:
    return FormatError(
        f"{key} has {what}: it was made by a newer version of Holdfast, use that one", path=key
    )
