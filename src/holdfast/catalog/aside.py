"""A catalog that a rebuild fills beside the old one, and then puts in its place.

Payload rows come in the order of the log, which is random by hash. They are first appended to tables without any
index (in a file of its own, so that the catalog is not left full of holes), then sorted by SQLite's external
sorter and written in one ascending pass: sequential at any size, in bounded memory.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

import apsw

from holdfast.catalog import apply, damage
from holdfast.catalog.base import remove_companions
from holdfast.catalog.catalog import Catalog
from holdfast.catalog.connection import SharedPool, connect, identity
from holdfast.catalog.queries import Reader
from holdfast.catalog.schema import create, read_id
from holdfast.catalog.unusable import CatalogUnusable
from holdfast.facts import Facts

CACHE_KIB: Final = 32_768
"""Page cache, and the size of the runs that the sorter writes."""


class AsideCatalog(Catalog):
    """Filled by `apply`, readable at any time, put in place by `publish`. One process, under the store's lock.

    No journal and no fsync until `publish`: after an error or a crash the file is rubbish, and the next
    `create` removes it.
    """

    _staging = False
    _broken = False

    @classmethod
    def create(cls, path: Path, store_id: bytes) -> AsideCatalog:
        """Make an empty one, in the place of any that an earlier rebuild left."""
        file = path.with_name(path.name + ".rebuild")
        self = cls(file, store_id)
        with self._translating():
            for name in (file, self._stage):
                name.unlink(missing_ok=True)
                remove_companions(name)
                os.close(os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
            connection = connect(file, cache_kib=CACHE_KIB)
            try:
                create(connection, store_id)
                connection.execute(
                    "PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF; PRAGMA locking_mode=EXCLUSIVE;"
                    "PRAGMA threads=1"  # one thread beside ours sorts
                ).fetchall()
                connection.execute("ATTACH ? AS stage", (str(self._stage),))
                connection.execute(
                    "PRAGMA stage.journal_mode=OFF; PRAGMA stage.synchronous=OFF; PRAGMA stage.cache_size=-1024;"
                    "CREATE TABLE stage.new_data(hash, location, stored, plain, flags, created_ms);"
                    "CREATE TABLE stage.new_blobs(hash, size, created_ms, location, stored, chunks)"
                ).fetchall()
                self.id = read_id(connection)
                self._identity = identity(file)
            except BaseException:
                connection.close()
                raise
        self._share(_SettlingPool(Reader(connection), self.settle))
        self._staging = True
        return self

    @property
    def _stage(self) -> Path:
        return self._file.with_name(self._file.name + ".stage")

    def apply(self, facts: Facts) -> None:
        """Take facts in, as `Catalog.apply` does; payloads are only put aside until somebody asks for them."""
        if self._staging:
            self._write(lambda cursor: _stage(cursor, facts))
        else:
            super().apply(facts)

    def settle(self) -> None:
        """Sort in what was put aside. Any read and `publish` do it; from then on `apply` is direct (and slower)."""
        with self._writing:
            if not self._staging or self._closed:
                return
            self._staging = False
            self._write(_sort_in)
            assert self._writer is not None
            self._writer.connection.execute("DETACH stage")
            self._stage.unlink(missing_ok=True)

    def _write(self, change: Callable[[apsw.Cursor], object], *, durable: bool = False) -> None:
        self._check_open()
        if self._broken:
            raise CatalogUnusable("an earlier error left it unfinished", path=str(self.path))
        try:
            super()._write(change, durable=durable)
        except BaseException:
            self._broken = True  # without a journal nothing can be undone
            raise

    def publish(self, path: Path) -> None:
        """Put it in the place of the catalog at `path`, durably, and close it; `is_current` of the old one turns False.

        The old database goes first, then its log, then the new one takes the name. After a crash in between there is
        no catalog at the path, or no log that could be taken for its own: it is rebuilt again.
        """
        self.settle()
        with self._writing, self._translating():
            if self._broken or self._writer is None:
                raise CatalogUnusable("an earlier error left it unfinished", path=str(self.path))
            self.close()
            connection = connect(self._file)
            mode = connection.pragma("journal_mode", "wal")
            connection.close()
            if mode != "wal":
                raise CatalogUnusable("it has no write-ahead log", path=str(self.path))
            _fsync(self._file)
            path.unlink(missing_ok=True)
            _fsync(path.parent)
            remove_companions(path)
            _fsync(path.parent)
            os.rename(self._file, path)
            _fsync(path.parent)

    def close(self) -> None:
        """Close the connection; `discard` also removes the files."""
        super().close()
        with suppress(OSError):
            self._stage.unlink(missing_ok=True)

    def discard(self) -> None:
        """Give the rebuild up: close, and remove what it made."""
        self.close()
        with self._translating():
            self._file.unlink(missing_ok=True)


class _SettlingPool(SharedPool):
    """Sorts in what was put aside before anybody reads."""

    def __init__(self, reader: Reader, settle: Callable[[], None]) -> None:
        super().__init__(reader)
        self._settle = settle

    def take(self) -> Reader:
        self._settle()
        return super().take()


def _stage(cursor: apsw.Cursor, facts: Facts) -> None:
    if facts.data:
        cursor.executemany("INSERT INTO stage.new_data VALUES(?, ?, ?, ?, ?, ?)", facts.data)
    if facts.blobs:
        cursor.executemany("INSERT INTO stage.new_blobs VALUES(?, ?, ?, ?, ?, ?)", facts.blobs)
    apply.apply_names(cursor, facts)


def _sort_in(cursor: apsw.Cursor) -> None:
    for staged, table, insert, copies in (
        ("new_data", "data", apply.STAGED_DATA, apply.STAGED_DATA_COPIES),
        ("new_blobs", "blobs", apply.STAGED_BLOBS, apply.STAGED_BLOB_COPIES),
    ):
        damage.drop_staged(cursor, f"stage.{staged}")
        cursor.execute(insert)
        (counts,) = cursor.execute(
            f"SELECT (SELECT count(*) FROM stage.{staged}), (SELECT count(*) FROM main.{table})"
        )
        if counts[0] != counts[1]:
            cursor.execute(copies)
    damage.settle_all(cursor)


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
