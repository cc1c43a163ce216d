"""What a catalog file looks like: tables, numbered migrations, and the marks that say whose it is.

Hash-keyed tables are `WITHOUT ROWID`: one B-tree, no second copy of the key. Columns that are mostly absent
stand last or are NULL, which SQLite stores in no byte at all.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final, TypeAlias

import apsw

from holdfast.catalog import damage
from holdfast.catalog.labels import migrate_labels
from holdfast.catalog.unusable import CatalogUnusable

CHECKSUM_BYTES: Final = 8
"""Kept free at the end of each page for the sum that the checksum VFS (`connection.py`) writes and verifies."""
APPLICATION_ID: Final = 0x48464341
"""ASCII "HFCA", in the header of the file."""

PAGE_BYTES: Final = 4096
"""Larger pages save under 2 % of space and double what a small commit writes to the WAL (measured)."""

DATA_COLUMNS: Final = """
  hash BLOB PRIMARY KEY NOT NULL, location INTEGER NOT NULL, stored INTEGER NOT NULL, plain INTEGER,
  flags INTEGER NOT NULL, created_ms INTEGER"""
BLOB_COLUMNS: Final = """
  hash BLOB PRIMARY KEY NOT NULL, size INTEGER NOT NULL, created_ms INTEGER NOT NULL, location INTEGER NOT NULL,
  stored INTEGER NOT NULL, chunks INTEGER NOT NULL"""

_FIRST: Final = f"""
CREATE TABLE meta(key TEXT PRIMARY KEY NOT NULL, value ANY) STRICT, WITHOUT ROWID;
CREATE TABLE segments(id INTEGER PRIMARY KEY, applied INTEGER NOT NULL, state INTEGER NOT NULL) STRICT;
CREATE TABLE data({DATA_COLUMNS}) STRICT, WITHOUT ROWID;
CREATE TABLE copies(
  hash BLOB NOT NULL, location INTEGER NOT NULL, stored INTEGER NOT NULL, plain INTEGER, flags INTEGER NOT NULL,
  PRIMARY KEY(hash, location)) STRICT, WITHOUT ROWID;
CREATE TABLE blobs({BLOB_COLUMNS}) STRICT, WITHOUT ROWID;
CREATE TABLE artifacts(
  id BLOB PRIMARY KEY NOT NULL, revision INTEGER NOT NULL, hash BLOB NOT NULL, size INTEGER NOT NULL,
  format INTEGER NOT NULL, created_ms INTEGER NOT NULL, modified_ms INTEGER NOT NULL, chunks INTEGER NOT NULL,
  doc BLOB NOT NULL, deleted_ms INTEGER) STRICT, WITHOUT ROWID;
CREATE TABLE tombstones(
  id BLOB PRIMARY KEY NOT NULL, revision INTEGER NOT NULL, deleted_ms INTEGER NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE tags(
  name TEXT PRIMARY KEY NOT NULL, hash BLOB NOT NULL, format INTEGER NOT NULL, revision INTEGER NOT NULL,
  modified_ms INTEGER NOT NULL, deleted INTEGER NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE quarantine(location INTEGER PRIMARY KEY, hash BLOB NOT NULL, reason TEXT NOT NULL) STRICT;
"""

_COLLECTING: Final = """
ALTER TABLE blobs ADD COLUMN condemned INTEGER NOT NULL DEFAULT 0;
CREATE TABLE holds(owner BLOB NOT NULL, hash BLOB NOT NULL, PRIMARY KEY(owner, hash)) STRICT, WITHOUT ROWID;
CREATE TABLE touched(hash BLOB NOT NULL, format INTEGER NOT NULL, PRIMARY KEY(hash, format)) STRICT, WITHOUT ROWID;
CREATE INDEX deleted_artifacts ON artifacts(deleted_ms) WHERE deleted_ms IS NOT NULL;
"""
"""What a collection needs: see docs/design.md, "Collection"."""

_UPLOADS: Final = """
CREATE TABLE uploads(
  token BLOB PRIMARY KEY NOT NULL, revision INTEGER NOT NULL, state INTEGER NOT NULL, expires_ms INTEGER NOT NULL,
  doc BLOB NOT NULL, location INTEGER NOT NULL) STRICT, WITHOUT ROWID;
"""

_NO_HOLDS: Final = "DROP TABLE IF EXISTS holds"
"""Nothing ever wrote one: partial blobs and uploads say themselves what they keep."""

_OBJECTS: Final = """
CREATE TABLE seen(key TEXT PRIMARY KEY NOT NULL, e_tag TEXT NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE bad(key TEXT PRIMARY KEY NOT NULL, hash BLOB NOT NULL, reason TEXT NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE hidden_artifacts(
  id BLOB PRIMARY KEY NOT NULL, revision INTEGER NOT NULL, hash BLOB NOT NULL, size INTEGER NOT NULL,
  format INTEGER NOT NULL, created_ms INTEGER NOT NULL, modified_ms INTEGER NOT NULL, chunks INTEGER NOT NULL,
  doc BLOB NOT NULL, location INTEGER NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE hidden_tags(
  name TEXT PRIMARY KEY NOT NULL, hash BLOB NOT NULL, format INTEGER NOT NULL, revision INTEGER NOT NULL,
  modified_ms INTEGER NOT NULL, deleted INTEGER NOT NULL, location INTEGER NOT NULL) STRICT, WITHOUT ROWID;
"""
"""Hints of a store in a bucket: see `objects.py`."""

Migration: TypeAlias = "str | Callable[[apsw.Connection], None]"


def _migrate_places(connection: apsw.Connection) -> None:
    """Let rows of documents say where their records lie, and segments how much of them counts: for compaction.

    A catalog that has rows without a place is of no use for that: it is rebuilt.
    """
    for table in ("artifacts", "tombstones", "tags"):
        if connection.execute(f"SELECT 1 FROM {table} LIMIT 1").fetchall():
            raise CatalogUnusable("it is older, and does not say where documents lie")
        connection.execute(f"ALTER TABLE {table} ADD COLUMN location INTEGER NOT NULL DEFAULT 0").fetchall()
    connection.execute(
        "ALTER TABLE segments ADD COLUMN content INTEGER;"
        "CREATE TABLE spilled(segment INTEGER PRIMARY KEY) STRICT;"
        "CREATE TABLE retired(first INTEGER PRIMARY KEY, stop INTEGER NOT NULL) STRICT"
    ).fetchall()


def _migrate_numbers(connection: apsw.Connection) -> None:
    """Rows of a store in a bucket have other numbers for the objects that they were read from: it is rebuilt."""
    if connection.execute("SELECT 1 FROM seen LIMIT 1").fetchall():
        raise CatalogUnusable("it is older, and does not say by which of two objects a name is known")


MIGRATIONS: Final[tuple[Migration, ...]] = (
    _FIRST,
    migrate_labels,
    _COLLECTING,
    _UPLOADS,
    _migrate_places,
    damage.TABLE,
    _NO_HOLDS,
    _OBJECTS,
    _migrate_numbers,
)
"""Number n (from 1) takes a catalog of schema n - 1 to schema n. Never edited once released, only added to."""


def create(
    connection: apsw.Connection, store_id: bytes, migrations: Sequence[Migration] = MIGRATIONS
) -> None:
    """Turn an empty file into an empty catalog with an identity of its own."""
    connection.reserve_bytes("main", CHECKSUM_BYTES)
    connection.pragma("page_size", PAGE_BYTES)
    connection.pragma("journal_mode", "wal")
    with transaction(connection):
        _run(connection, migrations[0])
        connection.pragma("application_id", APPLICATION_ID)
        connection.pragma("user_version", 1)
        connection.executemany(
            "INSERT INTO meta VALUES(?, ?)",
            [("catalog_id", os.urandom(16)), ("store_id", store_id), ("epoch", 1), ("collecting", 0)],
        )
    migrate(connection, migrations)


def migrate(connection: apsw.Connection, migrations: Sequence[Migration]) -> None:
    """Bring an older catalog to the last schema, in one transaction."""
    with transaction(connection):
        have = int(connection.pragma("user_version"))
        for script in migrations[have:]:
            _run(connection, script)
        if have < len(migrations):
            connection.pragma("user_version", len(migrations))


def _run(connection: apsw.Connection, migration: Migration) -> None:
    if isinstance(migration, str):
        connection.execute(migration).fetchall()
    else:
        migration(connection)


def read_id(connection: apsw.Connection) -> bytes:
    """Give the catalog's own id."""
    rows = connection.execute("SELECT value FROM meta WHERE key = 'catalog_id'").fetchall()
    if not rows or not isinstance(rows[0][0], bytes):
        raise CatalogUnusable("it has no id")
    return rows[0][0]


@contextmanager
def transaction(connection: apsw.Connection) -> Iterator[None]:
    """Run a writing transaction: wholly done, or wholly undone."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def check_identity(connection: apsw.Connection, store_id: bytes, migrations: Sequence[Migration]) -> int:
    """Give the schema number of the catalog, or say by `CatalogUnusable` why it is not one of ours to use."""
    if connection.pragma("application_id") != APPLICATION_ID:
        raise CatalogUnusable("it is not a Holdfast catalog")
    version = int(connection.pragma("user_version"))
    if version > len(migrations):
        raise CatalogUnusable(
            f"it is newer (schema {version}) than this version of Holdfast ({len(migrations)})"
        )
    if version < 1:
        raise CatalogUnusable("it has no schema")
    owner = connection.execute("SELECT value FROM meta WHERE key = 'store_id'").fetchall()
    if owner != [(store_id,)]:
        raise CatalogUnusable("it belongs to another store")
    return version
