"""Where compaction writes: groups of records that come from elsewhere, each wholly in one segment, always synced."""

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
from holdfast.wire.record import HEADER_BYTES, Commit, Entry, Extent, Kind, encode_commit, frame_one

BUFFER_BYTES: Final = 4 << 20
GROUP_BYTES: Final = HEADER_BYTES + 84
"""What a group takes beside its records: its commit."""

Moved = Callable[[int], None]
"""Hears the new location of a record."""


class _Group:
    """Records that are committed together; `time_ms` is that of the blobs among them, None while there is none."""

    def __init__(self, time_ms: int | None, commit: Commit | None = None) -> None:
        self.time_ms = time_ms
        self.commit = commit
        self.records = Records.empty()
        self.moved: list[Moved | None] = []


class Outlet:
    """Appends groups to segments of its own choice, never to one that is being emptied. One thread at a time.

    The catalog learns of them by `moves` and `positions`, once `sync` has returned.
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
        self._buffer_bytes = min(BUFFER_BYTES, writers.segment_bytes // 4)
        self._writer: SegmentWriter | None = None
        self._groups: list[_Group] = []
        self._bytes = 0
        self._starts: dict[int, int] = {}
        self._told: dict[int, int] = {}
        self._sealed: dict[int, tuple[int, int]] = {}
        self._sealing: Future[None] | None = None

    def add(
        self, entry: Entry, flags: int, payload: BytesLike, time_ms: int | None, moved: Moved | None
    ) -> None:
        """Append a record with other flags; `time_ms` is when a blob was stored, None for what has no such time."""
        group = self._groups[-1] if self._groups else None
        if (
            group is None
            or group.commit is not None
            or (time_ms is not None and group.time_ms not in (None, time_ms))
        ):
            group = self._begin(_Group(time_ms))
        if time_ms is not None:
            group.time_ms = time_ms
        records = group.records
        records.kinds.append(entry.kind)
        records.flags.append(flags)
        records.hashes.extend(entry.hash)
        records.plain.append(entry.plain_bytes)
        records.payloads.append(payload)
        group.moved.append(moved)
        self._bytes += HEADER_BYTES + len(payload)
        if self._bytes >= self._buffer_bytes:
            self.flush()

    def add_document(self, kind: Kind, payload: bytes) -> None:
        """Append a record that is found by nothing."""
        entry = Entry(kind, 0, 0, len(payload), len(payload), _native.blake3(payload))
        self.add(entry, 0, payload, None, None)

    def add_commit(self, commit: Commit) -> None:
        """Append a commit of records that lie elsewhere."""
        group = self._begin(_Group(commit.time_ms, commit))
        self._bytes += len(encode_commit(commit)) - len(group.moved)

    def _begin(self, group: _Group) -> _Group:
        self._groups.append(group)
        self._bytes += GROUP_BYTES
        return group

    def flush(self) -> None:
        """Write what waits in memory."""
        groups, self._groups = self._groups, []
        size, self._bytes = self._bytes, 0
        if not groups:
            return
        writer = self._open(size)
        buffers: list[BytesLike] = []
        entries = bytearray()
        offset = writer.offset
        for group in groups:
            more, framed, length = self._frame(writer.segment, offset, group)
            buffers += more
            entries += framed
            offset += length
        length = offset - writer.offset
        writer.append(buffers, bytes(entries), length)
        self.appended_bytes += length
        offset -= length
        for group in groups:
            for payload, moved in zip(group.records.payloads, group.moved, strict=True):
                if moved is not None:
                    moved(writer.segment << 32 | offset)
                offset += HEADER_BYTES + len(payload)
            offset += GROUP_BYTES

    @staticmethod
    def _frame(segment: int, offset: int, group: _Group) -> tuple[list[BytesLike], bytes, int]:
        if group.commit is not None:
            commit = group.commit._replace(id=os.urandom(16))
            record, entry = frame_one(segment, offset, Kind.COMMIT, encode_commit(commit))
            return [record], entry, len(record)
        buffers, entries, length = frame_records(segment, offset, group.records)
        time_ms = now_ms() if group.time_ms is None else group.time_ms
        extent = Extent(segment, offset, offset + length, len(group.records.plain))
        commit = Commit(os.urandom(16), time_ms, extent.records, _native.blake3(entries), (extent,))
        record, entry = frame_one(segment, offset + length, Kind.COMMIT, encode_commit(commit))
        return [*buffers, record], entries + entry, length + len(record)

    def sync(self) -> None:
        """Make durable all that was appended."""
        self.flush()
        self._wait_for_seal()
        if self._writer is not None:
            self._writer.fsync()

    def take_moves(self) -> Moves:
        """Give the moves since the last call; the catalog is told of them next."""
        moves, self.moves = self.moves, Moves()
        self.moved.clear()
        self.named.clear()
        return moves

    def told(self) -> None:
        """The catalog has been told of all that was synced: it is not to be cut off any more."""
        if self._writer is not None:
            self._told[self._writer.segment] = self._writer.offset

    def positions(self) -> dict[int, tuple[int, int]]:
        """Give how far segments are that were written."""
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
        if self._writer is not None:
            self._fill_up()
        self._take(self._writers.fresh())

    def release(self) -> None:
        """Give the writer back; the catalog has been told of all that was appended."""
        writer, self._writer = self._writer, None
        with suppress(HoldfastError):
            self._wait_for_seal()
        if writer is not None:
            self._writers.checkin(writer)

    def abort(self) -> None:
        """Forget what the catalog has not been told of. Where it cannot be cut off, it is a copy that nobody needs."""
        self._groups.clear()
        self._bytes = 0
        self.take_moves()
        with suppress(HoldfastError):
            self._wait_for_seal()
        writer, self._writer = self._writer, None
        if writer is not None:
            if not writer.given_up:
                with suppress(HoldfastError):
                    writer.truncate(self._told[writer.segment])
            self._writers.checkin(writer)
        for segment, (size, state) in self._sealed.items():
            self._writers.note(segment, size, state)

    def _open(self, size_bytes: int) -> SegmentWriter:
        writer = self._writer
        if writer is not None and not self._writers.has_room(writer, size_bytes):
            self._fill_up()
            writer = None
        if writer is None:
            writer = self._take(self._writers.checkout(size_bytes))
        return writer

    def _take(self, writer: SegmentWriter) -> SegmentWriter:
        self._writer = writer
        self._starts[writer.segment] = self._told[writer.segment] = writer.offset
        return writer

    def _fill_up(self) -> None:
        """Seal the full segment in the background while the next one fills."""
        writer, self._writer = self._writer, None
        assert writer is not None
        self._wait_for_seal()
        self._sealing = self._background.submit(self._seal, writer)

    def _seal(self, writer: SegmentWriter) -> None:
        try:
            size = writer.seal()
        except HoldfastError:
            self._writers.forget(writer)
            raise
        self._sealed[writer.segment] = (size, SEGMENT_SEALED)
        self._writers.release_sealed(writer)

    def _wait_for_seal(self) -> None:
        sealing, self._sealing = self._sealing, None
        if sealing is not None:
            sealing.result()
