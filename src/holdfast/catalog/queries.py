"""What can be asked: one `Reader` is one connection with its queries.

Each public method is a single statement or runs in one transaction of its own, and leaves none open behind.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final, cast

import apsw

from holdfast.catalog.rows import ArtifactBlob, ArtifactEntry, BlobRow, Counts, Location, TagEntry
from holdfast.facts import FLAG_BLOB, FLAG_CONDEMNED, KIND_BLOB, KIND_DATA, KIND_MASK

PAGE_ROWS: Final = 1000
"""Rows in a page of an iteration: no statement and no transaction outlives a page."""
BATCH_KEYS: Final = 2000
"""Keys in one batched look-up."""

_DATA: Final = """
SELECT d.hash, d.location, d.stored, ifnull(d.plain, d.stored), d.flags
FROM carray(?) AS keys CROSS JOIN data AS d ON d.hash = keys.value"""

_DATA_ONE: Final = "SELECT hash, location, stored, ifnull(plain, stored), flags FROM data WHERE hash = ?"

_SMALL: Final = f"""
SELECT hash, ifnull(plain, stored) AS size, ifnull(created_ms, 0), location, stored, ifnull(plain, stored), flags, 1
FROM data AS rows WHERE flags & {FLAG_BLOB}"""
_LARGE: Final = f"""
SELECT hash, size, created_ms, location, stored, stored, {KIND_BLOB} | condemned * {FLAG_CONDEMNED}, chunks
FROM blobs AS rows
WHERE NOT EXISTS(SELECT 1 FROM data WHERE data.hash = rows.hash AND data.flags & {FLAG_BLOB})"""
_BLOB: Final = f"{_SMALL} AND hash = ?1 UNION ALL {_LARGE} AND hash = ?1"
_BLOBS_RANGE: Final = f"""
{_SMALL} AND hash BETWEEN ?1 AND ?2 AND hash > ?3
UNION ALL {_LARGE} AND hash BETWEEN ?1 AND ?2 AND hash > ?3 ORDER BY hash LIMIT ?4"""
_EACH: Final = "FROM carray(?1) AS keys CROSS JOIN"
_SMALL_MANY: Final = _SMALL.replace("FROM data AS rows", f"{_EACH} data AS rows ON hash = value")
_LARGE_MANY: Final = _LARGE.replace("FROM blobs AS rows", f"{_EACH} blobs AS rows ON hash = value")
_BLOBS_MANY: Final = f"{_SMALL_MANY} UNION ALL {_LARGE_MANY}"

_ARTIFACT_BLOB: Final = f"""
SELECT a.hash, a.size, d.location, ifnull(d.stored, 0), coalesce(d.plain, d.stored, 0), ifnull(d.flags, 0)
FROM artifacts AS a LEFT JOIN data AS d ON d.hash = a.hash AND d.flags & {FLAG_BLOB}
WHERE a.id = ? AND a.deleted_ms IS NULL"""

_COUNTS: Final = f"""
SELECT
  (SELECT count(*) FROM artifacts WHERE deleted_ms IS NULL),
  (SELECT count(*) FROM artifacts WHERE deleted_ms IS NOT NULL),
  (SELECT count(*) FROM tags WHERE NOT deleted),
  (SELECT count(*) FROM segments),
  (SELECT count(*) FROM quarantine),
  (SELECT ifnull(sum(size), 0) FROM artifacts WHERE deleted_ms IS NULL),
  (SELECT ifnull(sum(stored), 0) FROM copies),
  (SELECT count(*) FROM ({_LARGE}))"""
_DATA_COUNTS: Final = f"""
SELECT
  ifnull(sum(flags & {FLAG_BLOB}), 0),
  count(*) FILTER (WHERE flags & {KIND_MASK} = {KIND_DATA}),
  ifnull(sum(ifnull(plain, stored)) FILTER (WHERE flags & {KIND_MASK} = {KIND_DATA}), 0),
  ifnull(sum(stored) FILTER (WHERE flags & {KIND_MASK} = {KIND_DATA}), 0),
  ifnull(sum(stored) FILTER (WHERE flags & {KIND_MASK} <> {KIND_DATA}), 0)
FROM data"""

_COPIES: Final = f"""
SELECT location, stored, iif(flags & {KIND_MASK} = {KIND_BLOB}, stored, ifnull(plain, stored)), flags
FROM copies WHERE hash = ? ORDER BY location"""
"""A further record of a large blob keeps the count of its chunks as `plain`."""

_ARTIFACT_COLUMNS: Final = ", ".join(ArtifactEntry._fields)
_TAG_COLUMNS: Final = ", ".join(TagEntry._fields)
_KEYS: Final = {
    "meta": "key",
    "segments": "id",
    "data": "hash",
    "copies": "hash",
    "blobs": "hash",
    "artifacts": "id",
    "tombstones": "id",
    "tags": "name",
    "labels": "kind",
    "requires": "name",
    "quarantine": "location",
    "repaired": "location",
    "touched": "hash",
    "spilled": "segment",
    "retired": "first",
    "uploads": "token",
    "seen": "key",
    "bad": "key",
    "hidden_artifacts": "id",
    "hidden_tags": "name",
}

LOWEST: Final = b""
HIGHEST: Final = b"\xff" * 33
"""Above every id and every hash."""


class Reader:
    """Queries over one connection. Not for two threads at a time: `pool.py` sees to that."""

    __slots__ = ("__weakref__", "connection", "cursor")

    def __init__(self, connection: apsw.Connection) -> None:
        self.connection = connection
        self.cursor = connection.cursor()

    def all(self, sql: str, bindings: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Run one statement to its end."""
        return cast("list[tuple[Any, ...]]", self.cursor.execute(sql, bindings).fetchall())

    def data(self, hashes: Sequence[bytes]) -> dict[bytes, Location]:
        """Give the rows of the hashes that are known."""
        if len(hashes) == 1:
            rows = self.cursor.execute(_DATA_ONE, hashes).fetchall()
            return {cast("bytes", row[0]): cast("Location", row[1:]) for row in rows}
        found: dict[bytes, Location] = {}
        hashes = sorted(hashes)  # neighbours in the B-tree follow each other
        for start in range(0, len(hashes), BATCH_KEYS):
            keys = apsw.carray(tuple(hashes[start : start + BATCH_KEYS]))
            found.update([(row[0], row[1:]) for row in self.all(_DATA, (keys,))])
        return found

    def blob(self, hash: bytes) -> BlobRow | None:
        """Give the blob, small or large."""
        rows = self.all(_BLOB, (hash,))
        return BlobRow._make(rows[0]) if rows else None

    def blobs(self, hashes: Sequence[bytes]) -> dict[bytes, BlobRow]:
        """Give those of the blobs that are known."""
        found: dict[bytes, BlobRow] = {}
        for start in range(0, len(hashes), BATCH_KEYS):
            keys = apsw.carray(tuple(hashes[start : start + BATCH_KEYS]))
            for row in self.cursor.execute(_BLOBS_MANY, (keys,)):
                found[cast("bytes", row[0])] = BlobRow._make(row)
        return found

    def is_collecting(self) -> bool:
        """Say whether rows may be condemned."""
        return bool(self.all("SELECT value FROM meta WHERE key = 'collecting'")[0][0])

    def is_touched(self, hash: bytes, format: int) -> bool:
        """Say whether the running collection has been told that somebody relies on a blob."""
        return bool(self.all("SELECT 1 FROM touched WHERE hash = ? AND format = ?", (hash, format)))

    def blobs_range(self, low: bytes, high: bytes, after: bytes, limit: int) -> list[BlobRow]:
        """Give blobs in the order of their hashes, low and high included, above `after`."""
        return [BlobRow._make(row) for row in self.all(_BLOBS_RANGE, (low, high, after, limit))]

    def artifact(self, id: bytes) -> ArtifactEntry | None:
        """Give the artifact, deleted or not."""
        rows = self.all(f"SELECT {_ARTIFACT_COLUMNS} FROM artifacts WHERE id = ?", (id,))
        return ArtifactEntry._make(rows[0]) if rows else None

    def tombstone(self, id: bytes) -> int:
        """Give the revision at which an artifact was deleted last; 0: never."""
        rows = self.all("SELECT revision FROM tombstones WHERE id = ?", (id,))
        return int(rows[0][0]) if rows else 0

    def artifact_blob(self, id: bytes) -> ArtifactBlob | None:
        """Give a live artifact's blob with its place when it is small."""
        row: Any = self.cursor.execute(_ARTIFACT_BLOB, (id,)).get  # the one row, or None
        return ArtifactBlob._make(row) if row else None

    def artifacts_before(self, before: bytes, deleted: bool | None, limit: int) -> list[ArtifactEntry]:
        """Give a page of artifacts below an id, descending; deleted ones, live ones, or (None) both."""
        which = {None: "", True: "AND deleted_ms IS NOT NULL", False: "AND deleted_ms IS NULL"}[deleted]
        sql = f"SELECT {_ARTIFACT_COLUMNS} FROM artifacts WHERE id < ? {which} ORDER BY id DESC LIMIT ?"
        return [ArtifactEntry._make(row) for row in self.all(sql, (before, limit))]

    def counts(self) -> Counts:
        """Count everything, in one view of the catalog. Scans: milliseconds for each 10,000 rows."""
        self.cursor.execute("BEGIN")
        try:
            artifacts, deleted, tags, segments, quarantined, logical, copies, large = self.all(_COUNTS)[0]
            small, chunks, unique, stored, tree = self.all(_DATA_COUNTS)[0]
            pages = self.connection.pragma("page_count") * self.connection.pragma("page_size")
        finally:
            self.end_view()
        return Counts(
            artifacts=artifacts,
            deleted_artifacts=deleted,
            blobs=small + large,
            chunks=chunks,
            tags=tags,
            segments=segments,
            quarantined=quarantined,
            logical_bytes=logical,
            unique_bytes=unique,
            stored_bytes=stored,
            tree_bytes=tree,
            copy_bytes=copies,
            catalog_bytes=pages,
        )

    def copies(self, hash: bytes) -> list[Location]:
        """Give the further copies of a payload, lowest location first."""
        return cast("list[Location]", self.all(_COPIES, (hash,)))

    def tag(self, name: str) -> TagEntry | None:
        """Give a tag, deleted or not."""
        rows = self.all(f"SELECT {_TAG_COLUMNS} FROM tags WHERE name = ?", (name,))
        return TagEntry._make(rows[0]) if rows else None

    def tags_after(self, after: str | None, limit: int) -> list[TagEntry]:
        """Give a page of tags above a name, deleted ones included."""
        where = "?1 IS NULL" if after is None else "name > ?1"
        rows = self.all(
            f"SELECT {_TAG_COLUMNS} FROM tags WHERE {where} ORDER BY name LIMIT ?2", (after, limit)
        )
        return [TagEntry._make(row) for row in rows]

    def tags_range(self, sign: str, after: str, end: str | None, limit: int) -> list[TagEntry]:
        """Give a page of live tags above a name (`>`, or `>=`) and below `end`."""
        below, values = ("", (after, limit)) if end is None else ("AND name < ?3", (after, limit, end))
        where = f"name {sign} ?1 AND NOT deleted {below}"
        sql = f"SELECT {_TAG_COLUMNS} FROM tags WHERE {where} ORDER BY name LIMIT ?2"
        return [TagEntry._make(row) for row in self.all(sql, values)]

    def look_at_ends(self) -> None:
        """Read the first and the last row of each table: finds a cut file and most kinds of rubbish, cheaply."""
        there = {name for (name,) in self.all("SELECT name FROM sqlite_master WHERE type = 'table'")}
        for table, key in _KEYS.items():
            if table not in there:  # of an older schema
                continue
            for order in ("", "DESC"):
                self.all(f"SELECT * FROM {table} ORDER BY {key} {order} LIMIT 1")

    def end_view(self) -> None:
        """End a transaction that only reads; a page that cannot be read has ended it already."""
        if self.connection.in_transaction:
            self.cursor.execute("COMMIT")

    def rows(self, sql: str) -> Iterator[tuple[Any, ...]]:
        """Stream the rows of one statement; the cursor is busy until the end."""
        return cast("Iterator[tuple[Any, ...]]", self.cursor.execute(sql))
