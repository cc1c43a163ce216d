"""Connections to a catalog file, and the pool that lends them.

A pool, not thread-locals: the number of connections follows how many threads ask at the same time, not how
many there are, and none is left behind by a thread that ended.

Forks. SQLite keeps one table of locks for the process, which a child inherits without the locks themselves: a
catalog that the child opens anew would then be used without any lock (measured), because SQLite believes that
it has them. Nothing that runs in the child can put that right. So all connections are closed *before* a fork,
and the parent opens them again when it needs them; a child finds none that it could touch.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Final, TypeAlias
from urllib.parse import quote

import apsw

from holdfast.catalog.queries import Reader
from holdfast.errors import NeedsReopen, Unavailable

BUSY_MS: Final = 60_000
"""How long to wait for another process's transaction. Ours are short; the longest is a large replay."""
WRITER_CACHE_KIB: Final = 16_384
READER_CACHE_KIB: Final = (8_192, 4_096, 2_048)
"""Page cache of the first reader, the second, each further one."""
IDLE_READERS: Final = 8
"""Kept for reuse: with the writer's, 40 MiB of page cache at most."""

Identity: TypeAlias = tuple[int, int]
"""st_dev, st_ino"""


def identity(path: Path) -> Identity | None:
    """Say which file is at the path now."""
    try:
        stat = os.stat(path)
    except FileNotFoundError:
        return None
    return stat.st_dev, stat.st_ino


@cache
def checking_vfs() -> str | None:
    """Register SQLite's checksum VFS, which verifies each page that it reads; None where apsw comes without it.

    It stands beside the usual one, for our files alone, and sums the pages of files that keep
    8 bytes for it (`schema.create`).
    """
    try:
        from apsw import sqlite_extra

        usual = apsw.vfs_names()[0]
        loader = apsw.Connection(":memory:")
        try:
            loader.enable_load_extension(True)
            sqlite_extra.load(loader, "cksumvfs")
        finally:
            loader.close()
            apsw.set_default_vfs(usual)
    except (ImportError, LookupError, OSError, apsw.Error):
        return None
    return "cksmvfs"


def connect(path: Path | None, *, mode: str = "rw", cache_kib: int = WRITER_CACHE_KIB) -> apsw.Connection:
    """Open one connection. `mode`: "rw", "rwc" (create), "ro", or "immutable" (read-only, and nobody writes)."""
    if path is None:
        name = ":memory:"
    else:
        query = "mode=ro&immutable=1" if mode == "immutable" else f"mode={mode}"
        name = f"file:{quote(os.fsencode(path.absolute()))}?{query}"
    flags = apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE | apsw.SQLITE_OPEN_URI
    vfs = None if path is None else checking_vfs()
    connection = apsw.Connection(name, flags=flags, vfs=vfs, statementcachesize=64)
    connection.set_busy_timeout(BUSY_MS)
    # Without it, this build plans a query anew for each new value that is bound: 10 µs a look-up (measured).
    connection.config(apsw.SQLITE_DBCONFIG_ENABLE_QPSG, 1)
    connection.execute(
        f"PRAGMA mmap_size=0; PRAGMA cache_size=-{cache_kib}; PRAGMA foreign_keys=ON; PRAGMA trusted_schema=OFF;"
        "PRAGMA temp_store=FILE"  # a large sort goes to a file: memory stays bounded
    ).fetchall()
    return connection


class Pool:
    """Lends readers of one file; opens them through `open_reader` as they are needed."""

    def __init__(self, open_reader: Callable[[int], Reader]) -> None:
        self._open_reader = open_reader
        self._idle: list[Reader] = []
        self._all: weakref.WeakSet[Reader] = weakref.WeakSet()
        self._opening = threading.Lock()
        self._closed = False

    def take(self) -> Reader:
        """Borrow a reader; `give` it back."""
        try:
            return self._idle.pop()
        except IndexError:
            pass
        with self._opening:
            if self._closed:
                raise NeedsReopen("the catalog is closed")
            rank = min(len(self._all), len(READER_CACHE_KIB) - 1)
            reader = self._open_reader(READER_CACHE_KIB[rank])
            self._all.add(reader)
            return reader

    def give(self, reader: Reader) -> None:
        """Return a reader."""
        if self._closed or len(self._idle) >= IDLE_READERS:
            self._drop(reader)
        else:
            self._idle.append(reader)

    def close(self) -> None:
        """Close what is idle; what is lent is closed when it comes back."""
        self._closed = True
        while self._idle:
            self._drop(self._idle.pop())

    def quiesce(self, deadline: float) -> bool:
        """Let nobody open, wait until nothing is lent, close all; True when none is left. `resume` must follow."""
        self._opening.acquire()
        while True:
            while self._idle:
                self._drop(self._idle.pop())
            # A reader that got lost (an exception just after `take`) has left the weak set: it is waited for by nobody.
            if not len(self._all):
                return True
            if time.monotonic() > deadline:
                return False
            time.sleep(0.0005)

    def resume(self, *, forked: bool = False) -> None:
        """Go on after `quiesce`; in a forked child: refuse from now on."""
        self._closed = self._closed or forked
        self._opening.release()

    def _drop(self, reader: Reader) -> None:
        self._all.discard(reader)
        reader.connection.close()


class SharedPool(Pool):
    """Lends the one connection of a catalog in memory or aside, to one borrower at a time."""

    def __init__(self, reader: Reader) -> None:
        super().__init__(lambda _: reader)
        self.reader = reader
        self.lock = threading.RLock()

    def take(self) -> Reader:
        """Borrow the reader, or wait for it."""
        if not self.lock.acquire(timeout=BUSY_MS / 1000):
            raise Unavailable("another thread holds the catalog")
        if self._closed:
            self.lock.release()
            raise NeedsReopen("the catalog is closed")
        return self.reader

    def give(self, reader: Reader) -> None:
        """Return it."""
        self.lock.release()

    def close(self) -> None:
        """Close the connection."""
        with self.lock:
            if not self._closed:
                self._closed = True
                self.reader.connection.close()

    def refuse(self) -> None:
        """Lend no more, and leave the connection alone."""
        self._closed = True
