"""Facts into rows: statements that give the same rows in whatever order, and however often, facts arrive.

Every rule here is a maximum or a minimum (highest revision, lowest location, earliest time, OR of roles), with
the remaining columns as a tie-break, so that nothing depends on which of two equals came first.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, cast

import apsw

from holdfast.catalog import damage, labels
from holdfast.facts import (
    FLAG_BLOB,
    FLAG_CONDEMNED,
    FLAG_UNNAMED,
    KIND_BLOB,
    ArtifactRow,
    DataRow,
    Facts,
    LargeBlobRow,
    TombstoneRow,
)

MERGE_ROWS: Final = 1000
"""Rows are inserted in batches of this size; only a batch that met a known hash is merged row by row."""

_OWN_FLAGS: Final = ~(FLAG_BLOB | FLAG_UNNAMED | FLAG_CONDEMNED)
"""Of a further copy: role and condemnation belong to the payload, so only its `data` row has them."""

_INSERT_DATA: Final = "INSERT INTO data VALUES(?, ?, ?, ?, ?, ?) ON CONFLICT(hash) DO NOTHING"
_DEMOTE_DATA: Final = f"""
INSERT INTO copies SELECT hash, location, stored, plain, flags & {_OWN_FLAGS} FROM data
WHERE hash = ?1 AND location > ?2 ON CONFLICT DO NOTHING"""
_LOWER_DATA: Final = f"""
UPDATE data SET location = ?2, stored = ?3, plain = ?4, flags = ?5 | (flags & {FLAG_BLOB | FLAG_UNNAMED})
WHERE hash = ?1 AND location > ?2"""
_COPY_DATA: Final = f"""
INSERT INTO copies SELECT ?1, ?2, ?3, ?4, ?5 & {_OWN_FLAGS}
WHERE EXISTS(SELECT 1 FROM data WHERE hash = ?1 AND location < ?2) ON CONFLICT DO NOTHING"""
_ROLE_DATA: Final = f"""
UPDATE data SET flags = flags | (?2 & {FLAG_BLOB}), created_ms = min(ifnull(created_ms, ?3), ifnull(?3, created_ms))
WHERE hash = ?1
  AND (flags | (?2 & {FLAG_BLOB}) <> flags OR ?3 < created_ms OR (created_ms IS NULL AND ?3 IS NOT NULL))"""
_PARDON_DATA: Final = f"""
UPDATE data SET flags = flags & ~({FLAG_CONDEMNED} | ((?2 & {FLAG_BLOB}) * {FLAG_UNNAMED // FLAG_BLOB}))
WHERE hash = ?1 AND flags & {FLAG_CONDEMNED | FLAG_UNNAMED}"""
"""Whoever brings condemned bytes again makes them live; the blob role only if they came as a blob."""

STAGED_DATA: Final = f"""
INSERT INTO main.data SELECT hash, location, stored, plain, flags, created_ms FROM stage.new_data
WHERE true ORDER BY hash, location
ON CONFLICT(hash) DO UPDATE SET flags = flags | (excluded.flags & {FLAG_BLOB}),
  created_ms = min(ifnull(created_ms, excluded.created_ms), ifnull(excluded.created_ms, created_ms))"""
"""Ascending, so that the first of equal hashes is the lowest location, and each page is written once."""
STAGED_DATA_COPIES: Final = f"""
INSERT INTO main.copies SELECT s.hash, s.location, s.stored, s.plain, s.flags & {_OWN_FLAGS}
FROM (SELECT * FROM stage.new_data ORDER BY hash) AS s CROSS JOIN main.data AS d
WHERE d.hash = s.hash AND d.location <> s.location ON CONFLICT DO NOTHING"""

_BLOB_COLUMNS: Final = "hash, size, created_ms, location, stored, chunks"
_INSERT_BLOB: Final = (
    f"INSERT INTO blobs({_BLOB_COLUMNS}) VALUES(?, ?, ?, ?, ?, ?) ON CONFLICT(hash) DO NOTHING"
)
_DEMOTE_BLOB: Final = f"""
INSERT INTO copies SELECT hash, location, stored, chunks, {KIND_BLOB} FROM blobs
WHERE hash = ?1 AND location > ?2 ON CONFLICT DO NOTHING"""
_LOWER_BLOB: Final = """
UPDATE blobs SET size = ?2, location = ?3, stored = ?4, chunks = ?5 WHERE hash = ?1 AND location > ?3"""
_COPY_BLOB: Final = f"""
INSERT INTO copies SELECT ?1, ?2, ?3, ?4, {KIND_BLOB}
WHERE EXISTS(SELECT 1 FROM blobs WHERE hash = ?1 AND location < ?2) ON CONFLICT DO NOTHING"""
_TIME_BLOB: Final = "UPDATE blobs SET created_ms = ?2 WHERE hash = ?1 AND created_ms > ?2"
_PARDON_BLOB: Final = "UPDATE blobs SET condemned = 0 WHERE hash = ? AND condemned"

STAGED_BLOBS: Final = f"""
INSERT INTO main.blobs({_BLOB_COLUMNS}) SELECT hash, size, created_ms, location, stored, chunks FROM stage.new_blobs
WHERE true ORDER BY hash, location
ON CONFLICT(hash) DO UPDATE SET created_ms = min(created_ms, excluded.created_ms)"""
STAGED_BLOB_COPIES: Final = f"""
INSERT INTO main.copies SELECT s.hash, s.location, s.stored, s.chunks, {KIND_BLOB}
FROM (SELECT * FROM stage.new_blobs ORDER BY hash) AS s CROSS JOIN main.blobs AS d
WHERE d.hash = s.hash AND d.location <> s.location ON CONFLICT DO NOTHING"""

_ARTIFACT_COLUMNS: Final = ", ".join(ArtifactRow._fields)
_ARTIFACT_ORDER: Final = "revision, modified_ms, hash, size, format, created_ms, chunks, doc"
_ARTIFACT: Final = f"""
INSERT INTO artifacts({_ARTIFACT_COLUMNS}, deleted_ms) VALUES(?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10,
  (SELECT deleted_ms FROM tombstones WHERE id = ?1 AND revision > ?2))
ON CONFLICT(id) DO UPDATE SET revision = excluded.revision, hash = excluded.hash, size = excluded.size,
  format = excluded.format, created_ms = excluded.created_ms, modified_ms = excluded.modified_ms,
  chunks = excluded.chunks, doc = excluded.doc, location = excluded.location, deleted_ms = excluded.deleted_ms
WHERE ({", ".join("excluded." + column for column in _ARTIFACT_ORDER.split(", "))}, -excluded.location)
  > ({", ".join("artifacts." + column for column in _ARTIFACT_ORDER.split(", "))}, -artifacts.location)"""
_TOMBSTONE: Final = """
INSERT INTO tombstones VALUES(?, ?, ?, ?)
ON CONFLICT(id) DO UPDATE SET revision = excluded.revision, deleted_ms = excluded.deleted_ms,
  location = excluded.location
WHERE (excluded.revision, excluded.deleted_ms, -excluded.location)
  > (tombstones.revision, tombstones.deleted_ms, -tombstones.location)"""
_FORGOTTEN: Final = """
SELECT id, revision FROM tombstones
WHERE id IN (SELECT value FROM carray(?)) AND id NOT IN (SELECT id FROM artifacts)"""
_BURY: Final = """
UPDATE artifacts SET deleted_ms = (SELECT deleted_ms FROM tombstones WHERE id = ?1)
WHERE id = ?1 AND revision < (SELECT revision FROM tombstones WHERE id = ?1)"""
_TAG: Final = """
INSERT INTO tags VALUES(?, ?, ?, ?, ?, ?, ?)
ON CONFLICT(name) DO UPDATE SET hash = excluded.hash, format = excluded.format, revision = excluded.revision,
  modified_ms = excluded.modified_ms, deleted = excluded.deleted, location = excluded.location
WHERE (excluded.revision, excluded.modified_ms, excluded.deleted, excluded.hash, excluded.format, -excluded.location)
  > (tags.revision, tags.modified_ms, tags.deleted, tags.hash, tags.format, -tags.location)"""
_UPLOAD: Final = """
INSERT INTO uploads VALUES(?, ?, ?, ?, ?, ?)
ON CONFLICT(token) DO UPDATE SET revision = excluded.revision, state = excluded.state,
  expires_ms = excluded.expires_ms, doc = excluded.doc, location = excluded.location
WHERE (excluded.revision, excluded.state, excluded.expires_ms, excluded.doc, -excluded.location)
  > (uploads.revision, uploads.state, uploads.expires_ms, uploads.doc, -uploads.location)"""
_SEGMENT: Final = """
INSERT INTO segments(id, applied, state) SELECT ?1, ?2, ?3
WHERE NOT EXISTS(SELECT 1 FROM retired WHERE first <= ?1 AND stop > ?1)
ON CONFLICT(id) DO UPDATE SET applied = max(applied, excluded.applied), state = max(state, excluded.state)"""
_SPILLED: Final = """
INSERT INTO spilled SELECT ?1 WHERE NOT EXISTS(SELECT 1 FROM retired WHERE first <= ?1 AND stop > ?1)
ON CONFLICT DO NOTHING"""
_SEEN: Final = "INSERT INTO seen VALUES(?, ?) ON CONFLICT(key) DO UPDATE SET e_tag = excluded.e_tag"
_NO_QUARANTINE: Final = """
DELETE FROM quarantine
WHERE EXISTS(SELECT 1 FROM retired WHERE first <= location >> 32 AND stop > location >> 32) RETURNING location"""
_OVERLAPPING: Final = "SELECT min(first), max(stop) FROM retired WHERE first <= ? AND stop >= ?"
_NO_OVERLAPPING: Final = "DELETE FROM retired WHERE first <= ? AND stop >= ?"


@contextmanager
def without_places_in(cursor: apsw.Cursor, retired: Sequence[range]) -> Iterator[None]:
    """Let rows that point into retired segments lose against a copy elsewhere, whatever is applied meanwhile.

    A compaction that was killed after the log had said what it retires, and before the catalog heard of it, leaves rows
    of tombstones there: those that stay were copied with that word, of the others no record is left.
    """
    tables = ("artifacts", "tombstones", "tags", "uploads") if retired else ()
    for table in tables:
        sql = (
            f"UPDATE {table} SET location = location + {damage.NOWHERE} WHERE location >= ? AND location < ?"
        )
        cursor.executemany(sql, [(run.start << 32, run.stop << 32) for run in retired])
    yield
    if tables:
        cursor.execute(f"DELETE FROM tombstones WHERE location >= {damage.NOWHERE}")
        cursor.execute(f"DELETE FROM tags WHERE location >= {damage.NOWHERE} AND deleted")
    for table in tables:  # nothing that counts is left there; if it were, it would be missed
        cursor.execute(
            f"UPDATE {table} SET location = location - {damage.NOWHERE} WHERE location >= {damage.NOWHERE}"
        )


def apply_facts(cursor: apsw.Cursor, facts: Facts) -> None:
    """Write all of `facts` within the transaction that is open on the cursor's connection."""
    if facts.data:
        rows = damage.without_repaired(cursor, facts.data, 1)
        _apply_batches(cursor, _INSERT_DATA, rows, _merge_data)
    if facts.blobs:
        blobs = damage.without_repaired(cursor, facts.blobs, 3)
        _apply_batches(cursor, _INSERT_BLOB, blobs, _merge_blobs)
    freed = apply_names(cursor, facts)
    damage.settle(
        cursor,
        (row[0] for rows in (facts.data, facts.blobs) for row in rows),
        [*freed, *(row[0] for rows in (facts.quarantine, facts.repaired) for row in rows)],
    )


def apply_names(cursor: apsw.Cursor, facts: Facts) -> list[int]:
    """Write what has a name or a number: everything but payloads. Gives the places that are no damage any more."""
    if facts.quarantine or facts.repaired:
        damage.apply_damage(cursor, facts.quarantine, facts.repaired)
    artifacts = damage.without_repaired(cursor, facts.artifacts, 9)
    for start in range(0, len(artifacts), MERGE_ROWS):
        some = artifacts[start : start + MERGE_ROWS]
        if rows := _without_forgotten(cursor, some) if facts.seen else some:
            _apply_artifacts(cursor, rows)
    tombstones = damage.without_repaired(cursor, facts.tombstones, 3)
    for start in range(0, len(tombstones), MERGE_ROWS):
        _apply_tombstones(cursor, tombstones[start : start + MERGE_ROWS])
    if facts.forgotten:
        forget_deleted(cursor, facts.forgotten)
    if facts.tags:
        cursor.executemany(_TAG, damage.without_repaired(cursor, facts.tags, 6))
    if facts.uploads:
        cursor.executemany(_UPLOAD, damage.without_repaired(cursor, facts.uploads, 5))
    if facts.seen:
        cursor.executemany(_SEEN, facts.seen)
    if facts.segments:
        cursor.executemany(_SEGMENT, [(id, *row) for id, row in facts.segments.items()])
    if facts.spilled:
        cursor.executemany(_SPILLED, [(segment,) for segment in facts.spilled])
    if facts.retired:
        _apply_retired(cursor, facts.retired)
    if facts.retired or facts.quarantine:  # what stood in a segment that is gone is nobody's damage
        freed = cast("list[tuple[int]]", cursor.execute(_NO_QUARANTINE).fetchall())
        return [location for (location,) in freed]
    return []


def _apply_retired(cursor: apsw.Cursor, runs: Sequence[tuple[int, int]]) -> None:
    """Forget what is known of retired segments, and keep their ids as runs that do not touch."""
    for first, stop in runs:
        ((low, high),) = cursor.execute(_OVERLAPPING, (stop, first)).fetchall()
        cursor.execute(_NO_OVERLAPPING, (stop, first))
        run = (first if low is None else min(first, low), stop if high is None else max(stop, high))
        cursor.execute("INSERT INTO retired VALUES(?, ?)", run)
        cursor.execute("DELETE FROM segments WHERE id >= ? AND id < ?", (first, stop))
        cursor.execute("DELETE FROM spilled WHERE segment >= ? AND segment < ?", (first, stop))


def _apply_artifacts(cursor: apsw.Cursor, rows: Sequence[ArtifactRow]) -> None:
    ids = [row[0] for row in rows]
    if labels.are_new(cursor, ids):
        cursor.executemany(_ARTIFACT, rows)
        labels.add_new(cursor, rows)
        return
    old = labels.find_states(cursor, ids)
    cursor.executemany(_ARTIFACT, rows)
    labels.follow(cursor, old, labels.find_states(cursor, ids))


def _without_forgotten(cursor: apsw.Cursor, rows: Sequence[ArtifactRow]) -> Sequence[ArtifactRow]:
    """Leave out what a bucket's older objects still say of artifacts of which it has a tombstone alone."""
    ids = apsw.carray(tuple(row.id for row in rows))
    forgotten = dict(cast("list[tuple[bytes, int]]", cursor.execute(_FORGOTTEN, (ids,)).fetchall()))
    return [row for row in rows if row.revision > forgotten.get(row.id, 0)] if forgotten else rows


def _apply_tombstones(cursor: apsw.Cursor, rows: Sequence[TombstoneRow]) -> None:
    ids = [row[0] for row in rows]
    old = labels.find_states(cursor, ids)
    cursor.executemany(_TOMBSTONE, rows)
    cursor.executemany(_BURY, [(id,) for id in ids])
    labels.follow(cursor, old, labels.find_states(cursor, ids))


def forget_deleted(cursor: apsw.Cursor, ids: Sequence[bytes]) -> int:
    """Forget those of the artifacts that are deleted; gives how many were still known."""
    states = labels.find_states(cursor, ids)
    gone = {id_: state for id_, state in states.items() if state[1] is not None}
    labels.follow(cursor, gone, {})
    cursor.executemany("DELETE FROM artifacts WHERE id = ?", [(id_,) for id_ in gone])
    return len(gone)


def _apply_batches(cursor: apsw.Cursor, insert: str, rows: Sequence[Any], merge: Any) -> None:
    connection = cursor.connection
    if len(rows) > MERGE_ROWS:
        rows = sorted(rows)  # neighbours in the B-tree follow each other: fewer pages are touched at a time
    for start in range(0, len(rows), MERGE_ROWS):
        batch = rows[start : start + MERGE_ROWS]
        before = connection.total_changes()
        cursor.executemany(insert, batch)
        if connection.total_changes() - before != len(batch):
            merge(cursor, batch)


def _merge_data(cursor: apsw.Cursor, rows: Sequence[DataRow]) -> None:
    places = [row[:2] for row in rows]
    columns = [row[:5] for row in rows]
    cursor.executemany(_DEMOTE_DATA, places)
    cursor.executemany(_LOWER_DATA, columns)
    cursor.executemany(_COPY_DATA, columns)
    cursor.executemany(_ROLE_DATA, [(row[0], row[4], row[5]) for row in rows])
    cursor.executemany(_PARDON_DATA, [(row[0], row[4]) for row in rows])


def _merge_blobs(cursor: apsw.Cursor, rows: Sequence[LargeBlobRow]) -> None:
    cursor.executemany(_DEMOTE_BLOB, [(row[0], row[3]) for row in rows])
    cursor.executemany(_LOWER_BLOB, [(row[0], row[1], row[3], row[4], row[5]) for row in rows])
    cursor.executemany(_COPY_BLOB, [(row[0], *row[3:]) for row in rows])
    cursor.executemany(_TIME_BLOB, [(row[0], row[2]) for row in rows])
    cursor.executemany(_PARDON_BLOB, [(row[0],) for row in rows])
