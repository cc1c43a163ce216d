"""What committed groups of records say, as columns that a catalog can take in one go. No I/O, no logic.

A backend turns records into `Facts`, the catalog turns `Facts` into rows, and neither knows the other.
Facts may be applied in any order and more than once: the result is the same.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, NamedTuple, TypeAlias

FLAG_BLOB: Final = 0x01
"""The payload of this data record is also a blob of its own."""
FLAG_ZSTD: Final = 0x02
FLAG_UNNAMED: Final = 0x40
"""The blob role of this payload was found unreachable once; known to the catalog only, never part of a record."""
FLAG_CONDEMNED: Final = 0x80
"""The payload was found unreachable once; known to the catalog only, never part of a record."""

KIND_SHIFT: Final = 8
"""`flags` in a row is the record's kind above its flags: `kind << KIND_SHIFT | flags`."""
KIND_DATA: Final = 1 << KIND_SHIFT
KIND_OUTBOARD: Final = 2 << KIND_SHIFT
KIND_MANIFEST: Final = 3 << KIND_SHIFT
KIND_BLOB: Final = 4 << KIND_SHIFT
KIND_MASK: Final = 0x7F << KIND_SHIFT

SEGMENT_OPEN: Final = 0
SEGMENT_SEALED: Final = 1
SEGMENT_SUPERSEDED: Final = 2
SEGMENT_QUARANTINED: Final = 3


class ArtifactRow(NamedTuple):
    """One state of an artifact. `format`: 0 raw, 1 hash seq; `doc`: JSON of what is not at its default.

    `location` of its record; where several say the same, the lowest counts. So for tombstones and tags.
    """

    id: bytes
    revision: int
    hash: bytes
    size: int
    format: int
    created_ms: int
    modified_ms: int
    chunks: int
    doc: bytes
    location: int = 0


DataRow: TypeAlias = tuple[bytes, int, int, int | None, int, int | None]
"""hash, location, stored, plain (None: as stored), flags with kind, created_ms (only for the BLOB role)"""
LargeBlobRow: TypeAlias = tuple[bytes, int, int, int, int, int]
"""hash, size, created_ms, location, stored, chunks"""
TombstoneRow: TypeAlias = tuple[bytes, int, int, int]
"""id, revision, deleted_ms, location"""
TagRow: TypeAlias = tuple[str, bytes, int, int, int, int, int]
"""name, hash, format, revision, modified_ms, deleted (0 or 1), location"""
QuarantineRow: TypeAlias = tuple[int, bytes, str]
"""location, hash, reason"""
RepairRow: TypeAlias = tuple[int, bytes]
"""location, hash"""
UploadRow: TypeAlias = tuple[bytes, int, int, int, bytes, int]
"""token, revision, state, expires_ms, the document, location"""


@dataclass(slots=True)
class Facts:
    """Rows by kind. A location is `segment << 32 | offset` of the record's header.

    `segments` maps an id to (applied bytes, state); both only grow. `spilled` names segments that end in records
    of a group whose commit stands elsewhere; `retired` has runs (first, stop) of those that were compacted away.
    """

    data: list[DataRow] = field(default_factory=list)
    blobs: list[LargeBlobRow] = field(default_factory=list)
    artifacts: list[ArtifactRow] = field(default_factory=list)
    tombstones: list[TombstoneRow] = field(default_factory=list)
    tags: list[TagRow] = field(default_factory=list)
    quarantine: list[QuarantineRow] = field(default_factory=list)
    repaired: list[RepairRow] = field(default_factory=list)
    uploads: list[UploadRow] = field(default_factory=list)
    segments: dict[int, tuple[int, int]] = field(default_factory=dict)
    spilled: list[int] = field(default_factory=list)
    retired: list[tuple[int, int]] = field(default_factory=list)
    forgotten: list[bytes] = field(default_factory=list)
    """Artifacts of which only the tombstone is left: nothing can be restored of them."""
    seen: list[tuple[str, str]] = field(default_factory=list)
    """Objects of a bucket that were read for these facts: key and e_tag. A hint."""


class DataPlace(NamedTuple):
    """A payload as compaction sees it: where it lies, how, its flags with kind, and (a blob's) when it was stored."""

    location: int
    stored: int
    plain: int
    flags: int
    created_ms: int | None


@dataclass(slots=True)
class Moves:
    """Records that lie elsewhere now, or that nobody needs. A row that is not where it was is left alone.

    `data`: hash, old and new location, stored, plain (None: as stored), flags with kind; `blobs`: hash, old and new
    location, stored; the others: key, old and new location. `copies`: further copies that go (hash, location).
    `drop_tombstones` and `drop_tags`: key and revision of what need not be remembered.
    """

    data: list[tuple[bytes, int, int, int, int | None, int]] = field(default_factory=list)
    blobs: list[tuple[bytes, int, int, int]] = field(default_factory=list)
    artifacts: list[tuple[bytes, int, int]] = field(default_factory=list)
    tombstones: list[tuple[bytes, int, int]] = field(default_factory=list)
    tags: list[tuple[str, int, int]] = field(default_factory=list)
    uploads: list[tuple[bytes, int, int]] = field(default_factory=list)
    copies: list[tuple[bytes, int]] = field(default_factory=list)
    drop_tombstones: list[tuple[bytes, int]] = field(default_factory=list)
    drop_tags: list[tuple[str, int]] = field(default_factory=list)
