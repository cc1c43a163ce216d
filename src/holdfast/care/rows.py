"""Rows of the catalog as the records that they come from: where each lies, and what its index entry must say."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

import apsw

from holdfast import _native
from holdfast.catalog import Catalog
from holdfast.facts import FLAG_CONDEMNED, FLAG_UNNAMED, KIND_MASK, KIND_SHIFT
from holdfast.wire.document import (
    ArtifactDocument,
    TagDocument,
    Tombstone,
    encode_artifact,
    encode_tag,
    encode_tombstone,
)
from holdfast.wire.record import Entry, Kind

_KIND_BITS: Final = 0x7F
_BLOB: Final = int(Kind.BLOB) & _KIND_BITS
_OWN: Final = 0xFF & ~(FLAG_CONDEMNED | FLAG_UNNAMED)

_PLACE: Final = ("hash", "stored", "ifnull(plain, stored)", "flags")
TABLES: Final[dict[str, tuple[str, ...]]] = {
    "data": _PLACE,
    "copies": _PLACE,
    "blobs": ("hash", "size", "stored", "chunks"),
    "artifacts": ("id", "revision", "hash", "size", "format", "created_ms", "modified_ms", "chunks", "doc"),
    "tombstones": ("id", "revision", "deleted_ms"),
    "tags": ("name", "hash", "format", "revision", "modified_ms", "deleted"),
    "uploads": ("token", "doc"),
}
"""The columns of each, the key first, that a record tells, beside the place."""


class Row(NamedTuple):
    """A row: its table, its place, and the columns of `TABLES`."""

    table: str
    location: int
    columns: tuple[Any, ...]

    @property
    def key(self) -> bytes:
        """What the row is found by."""
        key = self.columns[0]
        return key.encode() if isinstance(key, str) else bytes(key)

    @property
    def document(self) -> bytes | None:
        """The payload of the record that says this; None for payloads and blobs, whose rows do not have all of it."""
        if self.table == "artifacts":
            return encode_artifact(ArtifactDocument._make(self.columns))
        if self.table == "tombstones":
            return encode_tombstone(Tombstone._make(self.columns))
        if self.table == "tags":
            name, hash_, format_, revision, modified_ms, deleted = self.columns
            return encode_tag(TagDocument(name, hash_, format_, revision, modified_ms, bool(deleted)))
        return bytes(self.columns[1]) if self.table == "uploads" else None

    @property
    def record_hash(self) -> bytes | None:
        """The hash of the record, where the row tells it."""
        if self.table in ("data", "copies"):
            return None if self.columns[3] & KIND_MASK == _BLOB << KIND_SHIFT else self.key
        document = self.document
        return None if document is None else _native.blake3(document)

    def matches(self, entry: Entry) -> bool:
        """Whether a record of this entry is the one that the row comes from."""
        if self.table in ("data", "copies"):
            hash_, stored, plain, flags = self.columns
            kind, flags = flags >> KIND_SHIFT, flags & _OWN
            if stored != entry.stored_bytes or kind != entry.kind & _KIND_BITS:
                return False
            if kind == _BLOB:
                return True
            differ = (flags ^ entry.flags) & ~1  # a row has the roles of all of its copies
            return hash_ == entry.hash and plain == entry.plain_bytes and not differ
        if self.table == "blobs":
            return entry.kind == Kind.BLOB and entry.stored_bytes == self.columns[2]
        kinds = {
            "artifacts": Kind.ARTIFACT,
            "tombstones": Kind.TOMBSTONE,
            "tags": Kind.TAG,
            "uploads": Kind.UPLOAD,
        }
        return entry.kind == kinds[self.table] and entry.hash == self.record_hash


def iter_rows(catalog: Catalog) -> Iterator[Row]:
    """Give all rows that come from records, in the order of their places, from one view of the catalog."""
    width = max(map(len, TABLES.values()))
    selects = [
        f"SELECT {number}, location, {', '.join(columns + ('NULL',) * (width - len(columns)))} FROM {table}"
        for number, (table, columns) in enumerate(TABLES.items())
    ]
    names = list(TABLES.items())
    for number, location, *values in catalog.iter_sorted(" UNION ALL ".join(selects) + " ORDER BY 2"):
        table, columns = names[number]
        yield Row(table, location, tuple(values[: len(columns)]))


def rows_at(catalog: Catalog, places: Sequence[int], segments: Sequence[int]) -> list[Row]:
    """Give the rows at these places and in these segments. Looks through all rows."""
    found: list[Row] = []
    if places or segments:
        where = (
            "location IN (SELECT value FROM carray(?1)) OR location >> 32 IN (SELECT value FROM carray(?2))"
        )
        for table, columns in TABLES.items():
            sql = f"SELECT location, {', '.join(columns)} FROM {table} WHERE {where}"
            keys = (apsw.carray(array("q", places or (-1,))), apsw.carray(array("q", segments or (-1,))))
            found += [Row(table, row[0], tuple(row[1:])) for row in catalog.ask(sql, keys)]
    return found


def is_still_there(catalog: Catalog, row: Row) -> bool:
    """Whether the catalog says the same now."""
    columns = TABLES[row.table]
    sql = f"SELECT {', '.join(columns)} FROM {row.table} WHERE {columns[0]} = ? AND location = ?"
    return catalog.ask(sql, (row.columns[0], row.location)) == [row.columns]
