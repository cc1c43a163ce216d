"""Where compaction writes: groups of records that come from elsewhere, each wholly in one segment and synced by itself.

A group is durable before the next one is begun: so a tail never has a broken group before a whole one.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import Executor, Future
from contextlib import suppress
from typing import Any, Final

from holdfast import _native
from holdfast.backend.log.payloads import OFFSET_MASK
from holdfast.backend.log.records import Records, frame_records
from holdfast.backend.log.segment import SegmentWriter
from holdfast.backend.log.writers import Writers
from holdfast.errors import HoldfastError
from holdfast.facts import SEGMENT_OPEN, SEGMENT_SEALED, Moves
from holdfast.types import BytesLike, now_ms
from holdfast.wire.document import encode_times
from holdfast.wire.record import (
    HEADER_BYTES,
    SEGMENT_HEADER_BYTES,
    Commit,
    Entry,
    Extent,
    Kind,
    encode_commit,
    frame_one,
)

GROUP_BYTES: Final = 8 << 20
"""How much is written and synced at a time, while what comes next is read and verified."""
COMMIT_BYTES: Final = HEADER_BYTES + 84
TIME_BYTES: Final = 12
"""What a record of times takes for each run of blobs of the same time."""

Moved = Callable[[int], None]
"""Hears the new location of a record."""


class Outlet:
    """Appends groups to segments of its own choice, never to one that is being emptied. One thread at a time.

    The catalog learns of them by `take_moves` and `positions`, once `sync` has returned.
    """

    def __init__(self, writers: Writers, background: Executor) -> None:
        self.moves = Moves()
        """Where what was appended and flushed was before, and is now."""
        self.moved: set[bytes] = set()
        self.named: set[tuple[Any, Any]] = set()
        """Payloads, and (what, key) of documents, that were appended since the catalog was last told."""
        self.appended_bytes = 0
        self._writers = writers
        self._background = background
        self._group_bytes = min(GROUP_BYTES, writers.segment_bytes // 4)
        self._writer: SegmentWriter | None = None
        self._records = Records.empty()
        self._moved: list[Moved | None] = []
        self._times: list[tuple[int, int]] = []
        self._bytes = 0
        self._starts: dict[int, int] = {}
        self._told: dict[int, int] = {}
        self._sealed: dict[int, tuple[int, int]] = {}
        self._relied_on: set[int] = set()
        """Those of them to which rows may point."""
        self._writing: Future[None] | None = None

    def add(
        self, entry: Entry, flags: int, payload: BytesLike, time_ms: int | None, moved: Moved | None
    ) -> None:
        """Append a record with other flags; `time_ms` is when a blob was stored, None for what has no such time."""
        records = self._records
        records.kinds.append(entry.kind)
        records.flags.append(flags)
        records.hashes.extend(entry.hash)
        records.plain.append(entry.plain_bytes)
        records.payloads.append(payload)
        self._moved.append(moved)
        self._bytes += HEADER_BYTES + len(payload)
        if time_ms is not None:
            if self._times and self._times[-1][1] == time_ms:
                self._times[-1] = (self._times[-1][0] + 1, time_ms)
            else:
                self._times.append((1, time_ms))
                self._bytes += TIME_BYTES
        if self._bytes >= self._group_bytes:
            self.flush()

    def add_document(self, kind: Kind, payload: bytes) -> None:
        """Append a record that is found by nothing."""
        entry = Entry(kind, 0, 0, len(payload), len(payload), _native.blake3(payload))
        self.add(entry, 0, payload, None, None)

    def add_commit(self, commit: Commit) -> None:
        """Append a commit of records that lie elsewhere."""
        self.flush()
        payload = encode_commit(commit._replace(id=os.urandom(16)))
        writer = self._open(HEADER_BYTES + len(payload))
        record, entry = frame_one(writer.segment, writer.offset, Kind.COMMIT, payload)
        self._write(writer, [record], entry, len(record))

    def flush(self) -> None:
        """Write and sync what waits in memory, in the background."""
        records, self._records = self._records, Records.empty()
        moved, self._moved = self._moved, []
        times, self._times = self._times, []
        size, self._bytes = self._bytes, 0
        if not records.plain:
            return
        if times:
            payload = encode_times(times)
            records.kinds.insert(0, Kind.TIMES)
            records.flags.insert(0, 0)
            records.hashes[:0] = _native.blake3(payload)
            records.plain.insert(0, len(payload))
            records.payloads.insert(0, payload)
            moved.insert(0, None)
        writer = self._open(size + HEADER_BYTES + COMMIT_BYTES)
        start = writer.offset
        buffers, entries, length = frame_records(writer.segment, start, records)
        extent = Extent(writer.segment, start, start + length, len(records.plain))
        commit = Commit(os.urandom(16), now_ms(), extent.records, _native.blake3(entries), (extent,))
        record, entry = frame_one(writer.segment, start + length, Kind.COMMIT, encode_commit(commit))
        self._write(writer, [*buffers, record], entries + entry, length + len(record))
        at = writer.segment << 32 | start
        for payload_, hear in zip(records.payloads, moved, strict=True):
            if hear is not None:
                hear(at)
            at += HEADER_BYTES + len(payload_)

    def _write(self, writer: SegmentWriter, buffers: list[BytesLike], entries: bytes, length: int) -> None:
        self.appended_bytes += length
        self._writing = self._background.submit(self._append, writer, buffers, entries, length)

    @staticmethod
    def _append(writer: SegmentWriter, buffers: list[BytesLike], entries: bytes, length: int) -> None:
        writer.append(buffers, entries, length)
        writer.fsync()

    def sync(self) -> None:
        """See that all that was appended is durable."""
        self.flush()
        self._wait()

    def take_moves(self) -> Moves:
        """Give the moves since the last call; the catalog is told of them next."""
        moves, self.moves = self.moves, Moves()
        self.moved.clear()
        self.named.clear()
        return moves

    def told(self) -> None:
        """The catalog is told now of all that was synced: it is not to be cut off any more, even if that fails."""
        self._relied_on.update(self._sealed)
        if self._writer is not None:
            self._told[self._writer.segment] = self._writer.cut_to = self._writer.offset

    def positions(self) -> dict[int, tuple[int, int]]:
        """Give how far segments are that were written; after `sync`."""
        positions = dict(self._sealed)
        if self._writer is not None:
            positions[self._writer.segment] = (self._writer.offset, SEGMENT_OPEN)
        return positions

    def wrote(self, location: int) -> bool:
        """Whether a record at a place was appended here."""
        start = self._starts.get(location >> 32)
        return start is not None and (location & OFFSET_MASK) >= start

    def rise(self) -> None:
        """Go on in a segment with an id above all others, so that any of those may go: ids never come again."""
        self.flush()
        self._fill_up()
        self._wait()
        self._take(self._writers.fresh())

    def release(self) -> None:
        """Give the writer back; the catalog has been told of all that was appended."""
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.cut_to = None
            self._writers.checkin(writer)

    def abort(self) -> None:
        """Forget what the catalog has not been told of. Where it cannot be cut off, it is a copy that nobody needs."""
        self._records, self._moved, self._times, self._bytes = Records.empty(), [], [], 0
        self.take_moves()
        with suppress(HoldfastError):
            self._wait()
        writer, self._writer = self._writer, None
        if writer is not None:
            if not writer.given_up:
                with suppress(HoldfastError):
                    writer.truncate(self._told[writer.segment])
                writer.cut_to = None
            self._writers.checkin(writer)
        for segment, (size, state) in self._sealed.items():
            if segment in self._relied_on or self._starts[segment] > SEGMENT_HEADER_BYTES:
                self._writers.note(segment, size, state)
            else:
                with suppress(HoldfastError):
                    self._writers.drop_copies(segment, size)

    def _open(self, size_bytes: int) -> SegmentWriter:
        """Give the writer for the next group, with nothing under way."""
        self._wait()
        if self._writer is not None and not self._writers.has_room(self._writer, size_bytes):
            self._fill_up()
            self._wait()
        return self._writer or self._take(self._writers.checkout(size_bytes))

    def _take(self, writer: SegmentWriter) -> SegmentWriter:
        self._writer = writer
        self._starts[writer.segment] = self._told[writer.segment] = writer.cut_to = writer.offset
        return writer

    def _fill_up(self) -> None:
        """Seal the segment that is open, in the background."""
        self._wait()
        writer, self._writer = self._writer, None
        if writer is not None:
            self._writing = self._background.submit(self._seal, writer)

    def _seal(self, writer: SegmentWriter) -> None:
        try:
            size = writer.seal()
        except HoldfastError:
            self._writers.forget(writer)
            raise
        self._sealed[writer.segment] = (size, SEGMENT_SEALED)
        self._writers.release_sealed(writer)

    def _wait(self) -> None:
        """Wait for what is under way; raises what went wrong there."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()
