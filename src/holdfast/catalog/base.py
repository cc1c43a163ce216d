"""The file behind a catalog and its connections: opening, identity, forks, closing. No queries of its own."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import apsw

from holdfast.catalog import forks
from holdfast.catalog.connection import BUSY_MS, Identity, Pool, SharedPool, connect, identity
from holdfast.catalog.queries import Reader
from holdfast.catalog.schema import Migration, check_identity, create, migrate, read_id
from holdfast.catalog.unusable import MET, CatalogUnusable, translate, translate_os
from holdfast.errors import NeedsReopen, PermissionDenied

CHECKPOINT_PAGES: Final = 4000
"""From this many pages in the log (16 MiB) a commit also moves them into the database, as far as readers allow.

Measured with one small artifact a commit: 1,000 pages stall 9 ms each 250 commits, 4,000 pages 4 to 30 ms each 1,000;
the mean is lower, because a page that changes often is moved once.
"""
RESET_PAGES: Final = 16_000
"""From this many (64 MiB) it waits for readers to let the log start anew: it is bounded under steady reads too."""
RESET_WAIT_MS: Final = 100
"""How long it waits, at most: the next commit tries again."""
LOG_KEPT_BYTES: Final = 32 << 20
"""What a log that starts anew keeps on disk: above its usual size, so that it is not cut and grown each time."""


def companions(path: Path) -> list[Path]:
    """Give the names of the files that SQLite keeps beside a database."""
    return [path.with_name(path.name + suffix) for suffix in ("-wal", "-shm", "-journal")]


def remove_companions(path: Path) -> None:
    """Remove what SQLite kept beside a database that is gone: a log must never meet another database."""
    for companion in companions(path):
        companion.unlink(missing_ok=True)


def _check_some(path: Path) -> None:
    # SQLite takes a file that is shorter than its header for a new database.
    if path.is_file() and path.stat().st_size < 512:
        raise CatalogUnusable("it is empty, or cut short", path=str(path))


class CatalogFile:
    """One catalog file (or memory) with one writing connection under a mutex and a pool of reading ones."""

    def __init__(self, path: Path | None, store_id: bytes) -> None:
        self.path: Final = path
        self._name: Final = None if path is None else str(path)
        self.store_id: Final = store_id
        self.id = b""
        """16 random bytes, new with each catalog that is made."""
        self._mode = "rw"
        self._identity: Identity | None = None
        self._frozen: tuple[int, int] | None = None
        self._pool = Pool(self._open_reader)
        self._writing: Any = threading.RLock()
        self._writer: Reader | None = None
        self._wal_pages = 0
        self._closed = False
        self._quiet = True
        forks.register(self)

    # Opening

    def _start(self, read_only: bool, migrations: Sequence[Migration]) -> None:
        with self._translating():
            if self.path is None:
                reader = Reader(connect(None))
                create(reader.connection, self.store_id, migrations)
                self._share(SharedPool(reader))
                self.id = read_id(reader.connection)
            elif read_only:
                self._start_reading(self.path, migrations)
            else:
                self._start_writing(self.path, migrations)

    def _start_reading(self, path: Path, migrations: Sequence[Migration]) -> None:
        if identity(path) is None:
            raise CatalogUnusable("it is not there", path=str(path))
        _check_some(path)
        wal = path.with_name(path.name + "-wal")
        self._mode = "ro" if wal.exists() and wal.stat().st_size else "immutable"
        stat = path.stat()
        self._identity = (stat.st_dev, stat.st_ino)
        self._frozen = (stat.st_size, stat.st_mtime_ns)
        try:
            reader = self._open_reader(0)
        except (apsw.CantOpenError, apsw.ReadOnlyError) as error:
            raise CatalogUnusable("its write-ahead log cannot be read here", path=str(path)) from error
        try:
            if check_identity(reader.connection, self.store_id, migrations) < len(migrations):
                raise CatalogUnusable("it is older, and must not be migrated here")
            self.id = read_id(reader.connection)
            reader.look_at_ends()
            self._check_length(reader.connection, path)
        finally:
            reader.connection.close()

    def _start_writing(self, path: Path, migrations: Sequence[Migration]) -> None:
        new = identity(path) is None
        if new:
            remove_companions(path)
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        else:
            _check_some(path)
        self._identity = identity(path)
        connection = connect(path)
        try:
            if new:
                create(connection, self.store_id, migrations)
            if check_identity(connection, self.store_id, migrations) < len(migrations):
                migrate(connection, migrations)
            self.id = read_id(connection)
            self._adopt_writer(connection)
            self._check_length(connection, path)
        except BaseException:
            self._writer = None
            connection.close()
            raise

    def _check_length(self, connection: apsw.Connection, path: Path) -> None:
        # With a log, the file may be shorter than its header says: the rest is still in the log.
        wal = path.with_name(path.name + "-wal")
        want = connection.pragma("page_count") * connection.pragma("page_size")
        have = path.stat().st_size
        if have < want and not (wal.exists() and wal.stat().st_size):
            raise CatalogUnusable(f"it is cut short ({have} of {want} bytes)")

    def _share(self, pool: SharedPool) -> None:
        """Use one connection for everything."""
        self._pool, self._writing, self._writer = pool, pool.lock, pool.reader

    def _adopt_writer(self, connection: apsw.Connection) -> Reader:
        connection.execute(
            f"PRAGMA synchronous=NORMAL; PRAGMA journal_size_limit={LOG_KEPT_BYTES}"
        ).fetchall()
        if connection.pragma("journal_mode") != "wal":
            raise CatalogUnusable("it does not use a write-ahead log")
        connection.set_wal_hook(self._on_commit)
        self._writer = Reader(connection)
        self._writer.look_at_ends()
        self._check_same(connection)
        return self._writer

    def _check_same(self, connection: apsw.Connection) -> None:
        # SQLite opens the log by its name, at the first read: were the file replaced between the two opens, an old
        # database would be read through the log of a new one. The id tells apart what got a freed inode number.
        if read_id(connection) != self.id or identity(self._file) != self._identity:
            raise CatalogUnusable("it was replaced", path=str(self.path))

    def _open_reader(self, cache_kib: int) -> Reader:
        self._check_open()
        connection = connect(self._file, mode=self._mode, cache_kib=cache_kib or 1024)
        try:
            connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
            connection.execute("PRAGMA query_only=ON")
            if self.id:
                self._check_same(connection)
        except BaseException:
            connection.close()
            raise
        return Reader(connection)

    def _open_writer(self) -> Reader:
        self._check_open()
        if self._mode != "rw":
            raise PermissionDenied("the catalog is open for reading only", path=str(self.path))
        connection = connect(self._file)
        try:
            return self._adopt_writer(connection)
        except BaseException:
            self._writer = None
            connection.close()
            raise

    @property
    def _file(self) -> Path:
        assert self.path is not None
        return self.path

    def _check_open(self) -> None:
        if self._closed:
            raise NeedsReopen("the catalog is closed, or was carried over a fork")
        if self._identity in forks.tainted:
            raise NeedsReopen("this process was forked while the catalog was in use: it must be started anew")

    # Use

    def is_current(self) -> bool:
        """Say whether the file at the path is still the one that is open: one stat. In memory: always."""
        if self._name is None:
            return True
        try:
            stat = os.stat(self._name)
        except OSError:
            return False
        if (stat.st_dev, stat.st_ino) != self._identity:
            return False
        if self._mode != "immutable":
            return True
        # Opened without locks, because nobody wrote. Whoever writes makes a log first, then changes the file.
        with suppress(OSError):
            if os.stat(f"{self._name}-wal").st_size:
                return False
        return (stat.st_size, stat.st_mtime_ns) == self._frozen

    @contextmanager
    def _translating(self) -> Iterator[None]:
        try:
            yield
        except MET as error:
            raise translate(error, self.path) from error
        except OSError as error:
            raise translate_os(error, self.path) from error

    def _on_commit(self, connection: apsw.Connection, name: str, pages: int) -> int:
        # Only noted here: a checkpoint that fails must not look like a commit that failed.
        self._wal_pages = pages
        return apsw.SQLITE_OK

    def _checkpoint_some(self, writer: Reader) -> None:
        """Keep the log short. A failure is no one's problem now: the rows are committed; the next call tries again."""
        connection, late = writer.connection, self._wal_pages >= RESET_PAGES
        self._wal_pages = 0
        connection.set_busy_timeout(RESET_WAIT_MS)
        with suppress(apsw.Error):
            connection.wal_checkpoint(
                mode=apsw.SQLITE_CHECKPOINT_RESTART if late else apsw.SQLITE_CHECKPOINT_PASSIVE
            )
        connection.set_busy_timeout(BUSY_MS)

    def checkpoint(self) -> None:
        """Move all of the log into the database file, as far as readers allow, and empty it."""
        with self._writing, self._translating():
            writer = self._writer or self._open_writer()
            if not isinstance(self._pool, SharedPool):
                with suppress(apsw.BusyError):
                    writer.connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)

    def close(self) -> None:
        """Close all connections; harmless twice. The last one of all processes removes the log."""
        with self._writing:
            self._closed = True
            self._pool.close()
            if self._writer is not None:
                with suppress(apsw.Error):
                    self._writer.connection.close()
            self._writer = None

    # Forks

    def before_fork(self, deadline: float) -> None:
        """Close all connections: `connection.py` says why. One in memory is only kept still."""
        self._writing.acquire()
        if isinstance(self._pool, SharedPool):
            return
        self._quiet = self._pool.quiesce(deadline)
        if self._writer is not None:
            # No checkpoint now: it would make every fork wait for the disk.
            self._writer.connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
            self._writer.connection.close()
            self._writer = None

    def after_fork_in_parent(self) -> None:
        """Go on; connections are opened as they are needed."""
        if not isinstance(self._pool, SharedPool):
            self._pool.resume()
        self._writing.release()

    def after_fork_in_child(self) -> None:
        """Refuse all use from now on; only opening anew helps."""
        self._closed = True
        if isinstance(self._pool, SharedPool):
            self._pool.refuse()
            self._writer = None
        else:
            if not self._quiet and self._identity is not None:
                forks.tainted.add(self._identity)
            self._pool.resume(forked=True)
        self._writing.release()
