"""What compaction asks of the catalog, and how rows are moved to the new places of their records.

Places are looked up by hash, id or name, never by segment: a segment's own index says what it holds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, Literal, cast

import apsw

from holdfast.catalog.apply import apply_facts
from holdfast.catalog.catalog import Catalog
from holdfast.catalog.queries import BATCH_KEYS, Reader
from holdfast.facts import (
    FLAG_BLOB,
    FLAG_CONDEMNED,
    FLAG_UNNAMED,
    SEGMENT_SEALED,
    SEGMENT_SUPERSEDED,
    DataPlace,
    Facts,
    Moves,
)
from holdfast.wire.record import ENTRY_BYTES, HEADER_BYTES

RECORD_BYTES: Final = HEADER_BYTES + ENTRY_BYTES
"""What a record takes beside its payload: its header, and its entry in the index of its segment."""
ARTIFACT_BYTES: Final = 86
TOMBSTONE_BYTES: Final = 30
TAG_BYTES: Final = 49
"""The fixed parts of documents (`wire.document`)."""

_EACH: Final = "FROM carray(?1) AS keys CROSS JOIN"
_DATA: Final = f"""
SELECT hash, location, stored, ifnull(plain, stored), flags, created_ms {_EACH} data ON hash = value"""
_BLOBS: Final = f"SELECT hash, location, created_ms {_EACH} blobs ON hash = value"
_COPIES: Final = f"SELECT hash, location {_EACH} copies ON hash = value"
_NAMED: Final = {
    "artifacts": f"SELECT id, revision, location {_EACH} artifacts ON id = value",
    "tombstones": f"SELECT id, revision, location {_EACH} tombstones ON id = value",
    "tags": f"SELECT name, revision, location {_EACH} tags ON name = value",
    "uploads": f"SELECT token, revision, location {_EACH} uploads ON token = value",
}
Table = Literal["artifacts", "tombstones", "tags", "uploads"]

_OF_ROW: Final = FLAG_BLOB | FLAG_UNNAMED | FLAG_CONDEMNED
"""Flags that a payload has whatever record of it is read."""
_MOVE_DATA: Final = f"""
UPDATE data SET location = ?3, stored = ?4, plain = ?5, flags = ?6 | (flags & {_OF_ROW})
WHERE hash = ?1 AND location = ?2"""
_MOVE_BLOB: Final = "UPDATE blobs SET location = ?3, stored = ?4 WHERE hash = ?1 AND location = ?2"
_MOVE_NAMED: Final = {
    "artifacts": "UPDATE artifacts SET location = ?3 WHERE id = ?1 AND location = ?2",
    "tombstones": "UPDATE tombstones SET location = ?3 WHERE id = ?1 AND location = ?2",
    "tags": "UPDATE tags SET location = ?3 WHERE name = ?1 AND location = ?2",
    "uploads": "UPDATE uploads SET location = ?3 WHERE token = ?1 AND location = ?2",
}
_DROP_COPY: Final = "DELETE FROM copies WHERE hash = ? AND location = ?"
_DROP_TOMBSTONE: Final = """
DELETE FROM tombstones WHERE id = ?1 AND revision = ?2 AND NOT EXISTS(SELECT 1 FROM artifacts WHERE id = ?1)"""
_DROP_TAG: Final = "DELETE FROM tags WHERE name = ? AND revision = ? AND deleted"

_FORGOTTEN: Final = "NOT EXISTS(SELECT 1 FROM artifacts WHERE artifacts.id = tombstones.id)"
_WITHIN: Final = "location >= ?1 AND location < ?2"
_LIVE: Final = f"""
SELECT segment, sum(bytes) FROM (
  SELECT location >> 32 AS segment, sum(stored + {RECORD_BYTES}) AS bytes FROM data GROUP BY 1
  UNION ALL SELECT location >> 32, sum(stored + {RECORD_BYTES}) FROM blobs GROUP BY 1
  UNION ALL SELECT location >> 32, sum({ARTIFACT_BYTES + RECORD_BYTES} + length(doc)) FROM artifacts GROUP BY 1
  UNION ALL SELECT location >> 32, sum({TOMBSTONE_BYTES + RECORD_BYTES}) FROM tombstones GROUP BY 1
  UNION ALL SELECT location >> 32, sum({TAG_BYTES + RECORD_BYTES} + octet_length(name)) FROM tags GROUP BY 1
  UNION ALL SELECT location >> 32, sum({RECORD_BYTES} + length(doc)) FROM uploads GROUP BY 1
) GROUP BY segment"""


class CatalogPlaces:
    """Look-ups over one catalog: the side of the catalog in what `backend.log.compaction` asks."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog

    def data(self, hashes: Sequence[bytes]) -> dict[bytes, DataPlace]:
        """Give where payloads are that are known."""
        return {row[0]: DataPlace._make(row[1:]) for row in self._rows(_DATA, hashes)}

    def blobs(self, hashes: Sequence[bytes]) -> dict[bytes, tuple[int, int]]:
        """Give (location, created_ms) of the records of large blobs that are known."""
        return {row[0]: row[1:] for row in self._rows(_BLOBS, hashes)}

    def copies(self, hashes: Sequence[bytes]) -> set[tuple[bytes, int]]:
        """Give (hash, location) of all further copies of these payloads and records."""
        return cast("set[tuple[bytes, int]]", set(self._rows(_COPIES, hashes)))

    def artifacts(self, ids: Sequence[bytes]) -> dict[bytes, tuple[int, int]]:
        """Give (revision, location) of artifacts, deleted ones too."""
        return self._named("artifacts", ids)

    def tombstones(self, ids: Sequence[bytes]) -> dict[bytes, tuple[int, int]]:
        """Give (revision, location) of tombstones."""
        return self._named("tombstones", ids)

    def tags(self, names: Sequence[str]) -> dict[str, tuple[int, int]]:
        """Give (revision, location) of tags of the blob layer, deleted ones too."""
        return self._named("tags", names)

    def uploads(self, tokens: Sequence[bytes]) -> dict[bytes, tuple[int, int]]:
        """Give (revision, location) of uploads, those that have ended too."""
        return self._named("uploads", tokens)

    def repaired(self, segment: int) -> set[int]:
        """Give the offsets in a segment at which what was damaged is stored anew elsewhere."""
        return self._catalog.repaired(segment)

    def is_spilled(self, segment: int) -> bool:
        """Whether a commit elsewhere, which is applied, names what the segment ends in."""
        sql = "SELECT 1 FROM spilled WHERE segment = ?"
        return bool(self._catalog._read(lambda reader: reader.all(sql, (segment,))))

    def _named(self, table: Table, keys: Sequence[Any]) -> dict[Any, tuple[int, int]]:
        return {row[0]: row[1:] for row in self._rows(_NAMED[table], keys)}

    def _rows(self, sql: str, keys: Iterable[Any]) -> list[tuple[Any, ...]]:
        ordered = sorted(set(keys))  # neighbours in the B-tree follow each other
        rows: list[tuple[Any, ...]] = []
        for start in range(0, len(ordered), BATCH_KEYS):
            packed = apsw.carray(tuple(ordered[start : start + BATCH_KEYS]))
            rows += self._catalog._read(Reader.all, sql, (packed,))
        return rows


def switch(catalog: Catalog, moves: Moves, facts: Facts) -> None:
    """Move rows to the new places of their records, and take in `facts`, in one transaction that is durable."""

    def change(cursor: apsw.Cursor) -> None:
        _move(cursor, moves)
        apply_facts(cursor, facts)

    catalog._write(change, durable=True)


def _move(cursor: apsw.Cursor, moves: Moves) -> None:
    named: tuple[tuple[str, Sequence[Any]], ...] = (
        (_MOVE_DATA, moves.data),
        (_MOVE_BLOB, moves.blobs),
        (_MOVE_NAMED["artifacts"], moves.artifacts),
        (_MOVE_NAMED["tombstones"], moves.tombstones),
        (_MOVE_NAMED["tags"], moves.tags),
        (_MOVE_NAMED["uploads"], moves.uploads),
        # A catalog that was rebuilt meanwhile has both places: the old one goes, the new one is the row's.
        (_DROP_COPY, [(row[0], place) for row in (*moves.data, *moves.blobs) for place in row[1:3]]),
        (_DROP_COPY, moves.copies),
        (_DROP_TOMBSTONE, moves.drop_tombstones),
        (_DROP_TAG, moves.drop_tags),
    )
    for sql, rows in named:
        if rows:
            cursor.executemany(sql, sorted(rows))


def reinstate(catalog: Catalog, segments: Iterable[int]) -> None:
    """Take superseded segments for sealed again, durably: rows point into them."""
    rows = [(SEGMENT_SEALED, segment, SEGMENT_SUPERSEDED) for segment in segments]
    sql = "UPDATE segments SET state = ? WHERE id = ? AND state = ?"
    catalog._write(lambda cursor: cursor.executemany(sql, rows), durable=True)


def live_bytes(catalog: Catalog) -> dict[int, int]:
    """Give how much of each segment counts: records that rows point to. Scans the catalog: 0.3 s for a million rows."""
    return dict(cast("list[tuple[int, int]]", catalog._read(lambda reader: reader.all(_LIVE))))


def contents(catalog: Catalog) -> dict[int, int]:
    """Give how many bytes of records there are in segments that were looked at before (`live_bytes` is of these)."""
    sql = "SELECT id, content FROM segments WHERE content IS NOT NULL"
    return dict(cast("list[tuple[int, int]]", catalog._read(lambda reader: reader.all(sql))))


def set_contents(catalog: Catalog, found: Mapping[int, int]) -> None:
    """Keep, as a hint, how many bytes of records there are in sealed segments."""
    rows = [(content, segment) for segment, content in found.items()]
    catalog._write(lambda cursor: cursor.executemany("UPDATE segments SET content = ? WHERE id = ?", rows))


def useless_tombstones(catalog: Catalog, segment: int) -> list[tuple[str, bytes | str]]:
    """Give the tombstones in a segment that nothing in the catalog needs: ("tombstones", id) or ("tags", name)."""
    low, high = segment << 32, (segment + 1) << 32
    sql = f"""SELECT 'tombstones', id FROM tombstones WHERE {_WITHIN} AND {_FORGOTTEN}
    UNION ALL SELECT 'tags', name FROM tags WHERE {_WITHIN} AND deleted"""
    return cast("list[tuple[str, bytes | str]]", catalog._read(lambda reader: reader.all(sql, (low, high))))


def segments_with_tombstones(catalog: Catalog) -> dict[int, int]:
    """Give how many tombstones that nothing in the catalog needs lie in which segments."""
    sql = f"""SELECT segment, count(*) FROM (SELECT location >> 32 AS segment FROM tombstones WHERE {_FORGOTTEN}
    UNION ALL SELECT location >> 32 FROM tags WHERE deleted) GROUP BY segment"""
    return dict(cast("list[tuple[int, int]]", catalog._read(lambda reader: reader.all(sql))))


def advance_epoch(catalog: Catalog) -> int:
    """Tell apart what pins from here on; gives the new epoch."""
    catalog._write(lambda cursor: cursor.execute("UPDATE meta SET value = value + 1 WHERE key = 'epoch'"))
    return catalog.epoch


def quarantined(catalog: Catalog) -> set[int]:
    """Give the segments that hold records in quarantine."""
    rows = catalog._read(lambda reader: reader.all("SELECT DISTINCT location >> 32 FROM quarantine"))
    return {segment for (segment,) in rows}


def retired(catalog: Catalog) -> list[range]:
    """Give the ids of segments that were compacted away, as runs."""
    rows = catalog._read(lambda reader: reader.all("SELECT first, stop FROM retired ORDER BY first"))
    return [range(first, stop) for first, stop in rows]


def spilled_below(catalog: Catalog, segment: int) -> frozenset[int]:
    """Give the segments below one in which groups are whose commits stand in later segments."""
    found = catalog.ask("SELECT segment FROM spilled WHERE segment < ?", (segment,))
    return frozenset(row[0] for row in found)
