"""Blocks of blobs that were verified, kept on this machine: some in memory, more in one file. Bounded.

What is in memory was verified by this process. What comes from the file is verified again by whoever asked: the file
may be damaged, cut off by a power cut, or shared with others, and costs a request at worst. So nothing here is
synced, and no error of it is ever raised: after one the file is thrown away, after a second it is done without.

The file is SQLite, which keeps processes apart. One thread writes, and what comes too fast for it is not kept.
(diskcache would have been at hand; it is not maintained, and its pickles run code.)
"""

from __future__ import annotations

import logging
import os
import threading
import time
from array import array
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, NamedTuple, cast

import apsw

MEMORY_BYTES: Final = 64 << 20
QUEUE_BYTES: Final = 64 << 20
"""What may wait to be written."""
BATCH_BYTES: Final = 8 << 20
LINGER_SECONDS: Final = 0.2
"""How long what is to be written waits for more: a transaction for each read would cost as much as the read."""
PAGE_BYTES: Final = 16 << 10
KEEP_SHARE: Final = 0.9
"""How much of the limit is left after what was used least recently went."""
EVICT_ROWS: Final = 32
BUSY_MS: Final = 1_000
CLOSE_SECONDS: Final = 10.0
APPLICATION_ID: Final = 0x48464243
"""ASCII "HFBC", in the header of the file."""
SCHEMA: Final = 1

_CREATE: Final = """
CREATE TABLE blocks(
  hash BLOB NOT NULL, number INTEGER NOT NULL, used INTEGER NOT NULL, data BLOB NOT NULL, UNIQUE(hash, number)) STRICT;
CREATE INDEX by_use ON blocks(used);
CREATE TABLE total(bytes INTEGER NOT NULL) STRICT;
INSERT INTO total VALUES(0);
"""
_GET: Final = "SELECT number, data FROM blocks WHERE hash = ? AND number IN (SELECT value FROM carray(?))"
_PUT: Final = "INSERT INTO blocks VALUES(?, ?, ?, ?) ON CONFLICT DO NOTHING"
_TOUCH: Final = "UPDATE blocks SET used = ? WHERE hash = ? AND number = ?"
_COUNT: Final = "UPDATE total SET bytes = max(0, bytes + ?)"
_DROP: Final = "DELETE FROM blocks WHERE hash = ? AND number = ? RETURNING length(data)"
_OLDEST: Final = """
DELETE FROM blocks WHERE rowid IN (SELECT rowid FROM blocks ORDER BY used LIMIT ?) RETURNING length(data)"""

log = logging.getLogger("holdfast")
Key = tuple[bytes, int]


class BlockCache:
    """Blocks by hash of the blob and number; parts of outboards have negative numbers. Threads share it."""

    def __init__(self, memory_bytes: int = MEMORY_BYTES, file: BlockFile | None = None) -> None:
        self._limit = memory_bytes
        self._file = file
        self._mutex = threading.Lock()
        self._blocks: OrderedDict[Key, bytes] = OrderedDict()
        self._bytes = 0

    def get(self, hash_: bytes, numbers: Iterable[int]) -> dict[int, bytes]:
        """Give those of the blocks that are in memory: they were verified."""
        found: dict[int, bytes] = {}
        with self._mutex:
            for number in numbers:
                key = (hash_, number)
                block = self._blocks.get(key)
                if block is not None:
                    self._blocks.move_to_end(key)
                    found[number] = block
        return found

    def load(self, hash_: bytes, numbers: Iterable[int]) -> dict[int, bytes]:
        """Give those that are in the file, to be verified."""
        return {} if self._file is None else self._file.get(hash_, list(numbers))

    def put(self, hash_: bytes, blocks: Mapping[int, bytes], *, is_new: bool = True) -> None:
        """Keep verified blocks. `is_new`: they did not come from the file."""
        if is_new and self._file is not None:
            self._file.put(hash_, blocks)
        with self._mutex:
            for number, block in blocks.items():
                if number < 0 or len(block) > self._limit:
                    continue  # whoever verified an outboard keeps what it says
                before = self._blocks.pop((hash_, number), b"")
                self._blocks[hash_, number] = block
                self._bytes += len(block) - len(before)
            while self._bytes > self._limit:
                self._bytes -= len(self._blocks.popitem(last=False)[1])

    def drop(self, hash_: bytes, numbers: Iterable[int]) -> None:
        """Forget what the file has wrong."""
        if self._file is not None:
            self._file.drop(hash_, list(numbers))

    def close(self) -> None:
        """Write what waits, for a bounded time."""
        if self._file is not None:
            self._file.close()


class _Work(NamedTuple):
    """What is to be written, or dropped. `used`: when, by the clock."""

    hash: bytes
    blocks: Mapping[int, bytes]
    dropped: list[int]
    used: int

    @property
    def size_bytes(self) -> int:
        return sum(map(len, self.blocks.values()))


class BlockFile:
    """The file: `max_bytes` of blocks, those that were used least recently go first."""

    def __init__(self, path: Path, max_bytes: int) -> None:
        self._path = path
        self._max_bytes = max_bytes
        self._local = threading.local()
        self._mutex = threading.Lock()
        self._waiting: list[_Work] = []
        self._waiting_bytes = 0
        self._is_some = threading.Event()
        self._is_due = threading.Event()
        self._touched: dict[Key, int] = {}
        self._generation = 0
        self._failures = 0
        self._thread: threading.Thread | None = None
        self._closed = False

    def get(self, hash_: bytes, numbers: list[int]) -> dict[int, bytes]:
        """Give what is there of some blocks."""
        if self._failures > 1 or not numbers:
            return {}
        generation = self._generation
        try:
            rows = self._connection().execute(_GET, (hash_, apsw.carray(array("q", numbers)))).fetchall()
        except (apsw.Error, OSError) as error:
            self._failed(generation, error)
            return {}
        found = {cast("int", number): cast("bytes", data) for number, data in rows}
        with self._mutex:
            self._touched.update(dict.fromkeys(((hash_, number) for number in found), time.time_ns()))
        return found

    def put(self, hash_: bytes, blocks: Mapping[int, bytes]) -> None:
        """Keep blocks, unless too many wait already."""
        size = sum(map(len, blocks.values()))
        with self._mutex:
            if self._failures > 1 or self._closed or self._waiting_bytes + size > QUEUE_BYTES:
                return
            self._wait(_Work(hash_, blocks, [], time.time_ns()), size)

    def drop(self, hash_: bytes, numbers: list[int]) -> None:
        """Forget blocks."""
        with self._mutex:
            if self._failures > 1 or self._closed:
                return
            self._wait(_Work(hash_, {}, numbers, time.time_ns()), 0)

    def close(self) -> None:
        """Write what waits; give up after some seconds."""
        with self._mutex:
            self._closed = True
            thread = self._thread
        if thread is not None:
            self._is_due.set()
            self._is_some.set()
            thread.join(CLOSE_SECONDS)

    def _wait(self, work: _Work, size_bytes: int) -> None:
        self._waiting_bytes += size_bytes
        self._waiting.append(work)
        if len(self._waiting) == 1:
            self._is_some.set()
        if self._waiting_bytes >= BATCH_BYTES:
            self._is_due.set()
        if self._thread is None:
            self._thread = threading.Thread(target=self._write_all, name="holdfast-cache", daemon=True)
            self._thread.start()

    def _write_all(self) -> None:
        ended = False
        while not ended:
            self._is_some.wait()
            self._is_due.wait(LINGER_SECONDS)
            with self._mutex:
                ended = self._closed
                waiting, self._waiting = self._waiting, []
                if not ended:
                    self._is_some.clear()
                    self._is_due.clear()
            for work in self._batches(waiting):
                generation = self._generation
                try:
                    if self._failures <= 1:
                        self._write(work)
                except (apsw.Error, OSError) as error:
                    self._failed(generation, error)
                with self._mutex:
                    self._waiting_bytes -= sum(one.size_bytes for one in work)
        connection = getattr(self._local, "connection", None)
        if connection is not None:
            with suppress(apsw.Error):
                connection.close()

    def _batches(self, waiting: list[_Work]) -> Iterator[list[_Work]]:
        """Give what one transaction takes at a time: not so much that nothing else finds room in the file."""
        batch: list[_Work] = []
        size = 0
        for work in waiting:
            batch.append(work)
            size += work.size_bytes
            if size >= min(BATCH_BYTES, self._max_bytes // 4):
                yield batch
                batch, size = [], 0
        if batch:
            yield batch

    def _write(self, work: list[_Work]) -> None:
        connection = self._connection()
        with self._mutex:
            touched, self._touched = self._touched, {}
        cursor = connection.cursor()
        cursor.execute("BEGIN IMMEDIATE")
        try:
            cursor.executemany(_TOUCH, [(used, *key) for key, used in touched.items()])
            added = sum(one.size_bytes for one in work)
            total = _sum(cursor.execute("SELECT bytes FROM total").fetchall())
            if total + added > self._max_bytes:  # before: the file does not shrink
                self._evict(cursor, total + added)
            added = 0
            for hash_, blocks, dropped, used in work:
                for number in dropped:
                    added -= _sum(cursor.execute(_DROP, (hash_, number)).fetchall())
                for number, data in blocks.items():
                    cursor.execute(_PUT, (hash_, number, used, data))
                    added += len(data) if connection.changes() else 0
            cursor.execute(_COUNT, (added,))
            cursor.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                cursor.execute("ROLLBACK")
            raise

    def _evict(self, cursor: apsw.Cursor, total: int) -> None:
        freed = 0
        while total - freed > self._max_bytes * KEEP_SHARE:
            gone = _sum(cursor.execute(_OLDEST, (EVICT_ROWS,)).fetchall())
            if not gone:
                break
            freed += gone
        cursor.execute(_COUNT, (-freed,))

    def _connection(self) -> apsw.Connection:
        """Give the connection of this thread."""
        found = getattr(self._local, "connection", None)
        if found is None or self._local.generation != self._generation:
            with self._mutex:
                self._local.generation = self._generation
                found = self._local.connection = self._open()
        assert isinstance(found, apsw.Connection)
        return found

    def _open(self) -> apsw.Connection:
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        connection = apsw.Connection(str(self._path))
        try:
            connection.set_busy_timeout(BUSY_MS)
            connection.execute(
                f"PRAGMA page_size={PAGE_BYTES}; PRAGMA journal_mode=WAL; PRAGMA synchronous=OFF;"
                " PRAGMA cache_size=-2048"
            ).fetchall()
            mine = (connection.pragma("application_id"), connection.pragma("user_version"))
            if mine != (APPLICATION_ID, SCHEMA):
                self._create(connection)
            return connection
        except BaseException:
            connection.close()
            raise

    def _create(self, connection: apsw.Connection) -> None:
        connection.execute("BEGIN IMMEDIATE")
        try:
            mine = (connection.pragma("application_id"), connection.pragma("user_version"))
            if mine != (APPLICATION_ID, SCHEMA):  # nobody was quicker
                if connection.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchall():
                    raise apsw.NotADBError("another version's, or another program's")
                connection.execute(_CREATE).fetchall()
                connection.pragma("application_id", APPLICATION_ID)
                connection.pragma("user_version", SCHEMA)
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise

    def _failed(self, generation: int, error: Exception) -> None:
        """Throw the file away, once; then do without. A busy one is left alone."""
        if isinstance(error, apsw.BusyError):
            return
        with self._mutex:
            if generation != self._generation:
                return
            self._generation += 1
            self._failures += 1
            for suffix in ("", "-wal", "-shm"):
                with suppress(OSError):
                    self._path.with_name(self._path.name + suffix).unlink()
        log.warning("the cache %s cannot be used and is thrown away: %s", self._path, error)


def _sum(rows: Iterable[tuple[Any, ...]]) -> int:
    return sum(row[0] for row in rows)
