"""Places that are not to be read: in quarantine (damaged, and kept), or repaired (stored anew elsewhere).

Whatever the order in which records come, the outcome is the same: what lies at a place that was repaired counts for
nothing (the new copy has its role and its time), and of the others a payload is read at the lowest that is not in
quarantine, or else at the lowest.

`quarantine` holds the damage that is not repaired; its rows are facts. `repaired` holds places alone, for good: a
segment that was compacted away may lie there for a while, and be scrubbed, and what stands in it is nobody's.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any, Final, TypeVar

import apsw

from holdfast.catalog.queries import Reader
from holdfast.facts import (
    FLAG_BLOB,
    FLAG_CONDEMNED,
    FLAG_UNNAMED,
    KIND_BLOB,
    KIND_MASK,
    QuarantineRow,
    RepairRow,
)

DOUBTFUL: Final = "doubtful"
"""In `meta`, as long as the catalog lives: it learned from damaged storage, or blobs lack pieces. So it may know an
older state of a name than a damaged record has, and blobs that lack pieces."""
TABLE: Final = """
CREATE TABLE repaired(location INTEGER PRIMARY KEY, hash BLOB NOT NULL) STRICT;
"""
ROLE: Final = FLAG_BLOB | FLAG_UNNAMED | FLAG_CONDEMNED
"""What belongs to a payload wherever it lies."""

_QUARANTINE: Final = """
INSERT INTO quarantine SELECT ?1, ?2, ?3
WHERE NOT EXISTS(SELECT 1 FROM repaired WHERE location = ?1)
ON CONFLICT(location) DO UPDATE SET hash = excluded.hash, reason = excluded.reason
WHERE (excluded.hash, excluded.reason) < (quarantine.hash, quarantine.reason)"""
_REPAIRED: Final = "INSERT INTO repaired VALUES(?, ?) ON CONFLICT DO NOTHING"
_RELEASE: Final = "DELETE FROM quarantine WHERE location = ?"

_ANY: Final = "SELECT EXISTS(SELECT 1 FROM quarantine) OR EXISTS(SELECT 1 FROM repaired)"
_IS_BAD: Final = """
(EXISTS(SELECT 1 FROM quarantine AS q WHERE q.location = {0}.location)
 OR EXISTS(SELECT 1 FROM repaired AS r WHERE r.location = {0}.location))"""
_AMONG: Final = "\nUNION ".join(
    f"SELECT t.hash FROM carray(?1) AS keys CROSS JOIN {table} AS t ON t.hash = keys.value WHERE {_IS_BAD.format('t')}"
    for table in ("data", "blobs", "copies")
)
_ALL: Final = "\nUNION ".join(
    f"SELECT t.hash FROM {table} AS t WHERE {_IS_BAD.format('t')}" for table in ("data", "blobs", "copies")
)
_AT: Final = "\nUNION ".join(
    f"SELECT hash FROM {table} WHERE location IN (SELECT value FROM carray(?1))"
    for table in ("data", "blobs", "copies")
)
"""Looks through all rows: damage is rare, and an index by place would cost each put."""
_REPAIRED_AMONG: Final = """
SELECT value FROM carray(?1)
WHERE EXISTS(SELECT 1 FROM repaired WHERE location = value)"""
NOWHERE: Final = 1 << 62
"""Above all places. That of a document whose own is gone, until the new one is applied, in the same transaction."""
_UPROOT: Final = "UPDATE {} SET location = ? WHERE location IN (SELECT value FROM carray(?))"
_KEYS: Final = 2_000
Row = TypeVar("Row", bound="tuple[Any, ...]")


def apply_damage(
    cursor: apsw.Cursor, quarantine: Sequence[QuarantineRow], repaired: Sequence[RepairRow]
) -> None:
    """Write which places are damaged and which are repaired; `settle` must follow once the payloads are there."""
    cursor.executemany(_REPAIRED, repaired)
    cursor.executemany(_RELEASE, [row[:1] for row in repaired])
    if repaired:
        places = array("q", [row[0] for row in repaired])
        for table in ("artifacts", "tombstones", "tags", "uploads"):
            cursor.execute(_UPROOT.format(table), (NOWHERE, apsw.carray(places)))
    cursor.executemany(_QUARANTINE, quarantine)


def without_repaired(cursor: apsw.Cursor, rows: Sequence[Row], column: int) -> Sequence[Row]:
    """Leave out the rows whose place, in `column`, was repaired."""
    if not rows or not _one(cursor, "SELECT EXISTS(SELECT 1 FROM repaired)", ()):
        return rows
    gone: set[int] = set()
    places = iter({row[column] for row in rows})
    while some := array("q", islice(places, _KEYS)):
        gone.update(row[0] for row in _rows(cursor, _REPAIRED_AMONG, (apsw.carray(some),)))
    return [row for row in rows if row[column] not in gone] if gone else rows


def drop_staged(cursor: apsw.Cursor, table: str) -> None:
    """Leave out of what a rebuild has put aside what lies at repaired places."""
    if _one(cursor, "SELECT EXISTS(SELECT 1 FROM main.repaired)", ()):
        cursor.execute(f"DELETE FROM {table} WHERE location IN (SELECT location FROM main.repaired)")


def settle(cursor: apsw.Cursor, hashes: Iterable[bytes] = (), places: Sequence[int] = ()) -> None:
    """Choose anew where payloads are read, of those that were just written and of those at new places of damage."""
    if not places and not _one(cursor, _ANY, ()):
        return
    wanted: set[bytes] = set()
    keys = iter(hashes)
    while some := tuple(islice(keys, _KEYS)):
        wanted.update(_column(cursor, _AMONG, (apsw.carray(some),)))
    if places:
        wanted.update(_column(cursor, _AT, (apsw.carray(array("q", places)),)))
    for hash_ in wanted:
        _choose(cursor, hash_)


def settle_all(cursor: apsw.Cursor) -> None:
    """Choose anew for everything, at the end of a rebuild."""
    if _one(cursor, _ANY, ()):
        for hash_ in _column(cursor, _ALL, ()):
            _choose(cursor, hash_)


def damaged_among(reader: Reader, places: Sequence[int], *, repaired: bool = False) -> set[int]:
    """Give those of the places that are in quarantine, or (`repaired`) were."""
    if not places:
        return set()
    found: set[int] = set()
    for table in ("quarantine", "repaired") if repaired else ("quarantine",):
        sql = f"SELECT location FROM {table} WHERE location IN (SELECT value FROM carray(?))"
        found.update(row[0] for row in reader.all(sql, (apsw.carray(array("q", places)),)))
    return found


def _choose(cursor: apsw.Cursor, hash_: bytes) -> None:
    """Give a payload, and a blob record of the same hash, the best of their places."""
    copies = _rows(cursor, "SELECT location, stored, plain, flags FROM copies WHERE hash = ?", (hash_,))
    data = _rows(
        cursor, "SELECT location, stored, plain, flags, created_ms FROM data WHERE hash = ?", (hash_,)
    )
    if data:
        role, created_ms = data[0][3] & ROLE, data[0][4]
        places = [row[:4] for row in data] + [row for row in copies if row[3] & KIND_MASK != KIND_BLOB]
        best = _rank(cursor, places)
        cursor.execute("DELETE FROM data WHERE hash = ?", (hash_,))
        cursor.execute(f"DELETE FROM copies WHERE hash = ? AND flags & {KIND_MASK} <> {KIND_BLOB}", (hash_,))
        if best:
            location, stored, plain, flags = best[0]
            cursor.execute(
                "INSERT INTO data VALUES(?, ?, ?, ?, ?, ?)",
                (hash_, location, stored, plain, flags & ~ROLE | role, created_ms),
            )
            cursor.executemany(
                "INSERT INTO copies VALUES(?, ?, ?, ?, ?)",
                [(hash_, place, size, whole, mark & ~ROLE) for place, size, whole, mark in best[1:]],
            )
    blob = _rows(cursor, "SELECT location, stored, chunks FROM blobs WHERE hash = ?", (hash_,))
    if blob:
        places = [(*row, KIND_BLOB) for row in blob]  # further copies keep the count of chunks as `plain`
        best = _rank(cursor, places + [row for row in copies if row[3] & KIND_MASK == KIND_BLOB])
        cursor.execute(f"DELETE FROM copies WHERE hash = ? AND flags & {KIND_MASK} = {KIND_BLOB}", (hash_,))
        if not best:
            cursor.execute("DELETE FROM blobs WHERE hash = ?", (hash_,))
            return
        cursor.execute(
            "UPDATE blobs SET location = ?, stored = ?, chunks = ifnull(?, chunks) WHERE hash = ?",
            (*best[0][:3], hash_),
        )
        cursor.executemany("INSERT INTO copies VALUES(?, ?, ?, ?, ?)", [(hash_, *row) for row in best[1:]])


def _rank(cursor: apsw.Cursor, places: Sequence[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """Put places that are still somebody's in the order in which they are to be read."""
    ranked = []
    for location, row in {row[0]: row for row in places}.items():  # one that came again may be there twice
        if not _one(cursor, "SELECT EXISTS(SELECT 1 FROM repaired WHERE location = ?)", (location,)):
            bad = _one(cursor, "SELECT EXISTS(SELECT 1 FROM quarantine WHERE location = ?)", (location,))
            ranked.append((bad, location, row))
    return [row for _, _, row in sorted(ranked, key=lambda item: item[:2])]


def _rows(cursor: apsw.Cursor, sql: str, bindings: Sequence[Any]) -> list[tuple[Any, ...]]:
    return list(cursor.execute(sql, bindings))


def _column(cursor: apsw.Cursor, sql: str, bindings: Sequence[Any]) -> list[bytes]:
    return [row[0] for row in _rows(cursor, sql, bindings)]


def _one(cursor: apsw.Cursor, sql: str, bindings: Sequence[Any]) -> Any:
    return _rows(cursor, sql, bindings)[0][0]
