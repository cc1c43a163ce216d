"""A large group, written as it comes: it takes segments of its own, so groups never interleave within one."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import Executor, Future

from holdfast import _native
from holdfast.backend.log.records import Records, frame_records
from holdfast.backend.log.segment import SegmentWriter
from holdfast.backend.log.writers import Writers
from holdfast.errors import HoldfastError, NoSpace, Unavailable
from holdfast.facts import SEGMENT_SEALED
from holdfast.wire.record import (
    HEADER_BYTES,
    MAX_EXTENTS,
    SEGMENT_HEADER_BYTES,
    Commit,
    Extent,
    Kind,
    encode_commit,
    frame_one,
)


class Stream:
    """A large group on its way into segments of its own.

    `sync` makes a segment durable, where durability is wanted; `background` seals those that are full.
    """

    def __init__(
        self, writers: Writers, room_bytes: int, sync: Callable[[SegmentWriter], None], background: Executor
    ) -> None:
        self._writers = writers
        self._room_bytes = room_bytes
        self._sync = sync
        self._background = background
        self.writer: SegmentWriter | None = writers.checkout(room_bytes)
        self._start = self.writer.offset
        self._count = 0
        self._digest = _native.BlobHasher()
        self._sealing: Future[None] | None = None
        self.finished = False
        """Committed or aborted: from then on nothing is cut off."""
        self.extents: list[Extent] = []
        self.sealed: dict[int, tuple[int, int]] = {}

    def write(self, records: Records) -> None:
        """Append records, moving on to a new segment where one is full."""
        first = 0
        total = len(records.plain)
        sizes = [HEADER_BYTES + len(payload) for payload in records.payloads]
        while first < total:
            writer = self._open_writer()
            last, room = first, self._writers.segment_bytes - writer.offset
            while last < total and (room >= sizes[last] or (last == first and self._is_fresh(writer))):
                room -= sizes[last]
                last += 1
            if last > first:
                part = Records(
                    records.kinds[first:last],
                    records.flags[first:last],
                    records.hashes[32 * first : 32 * last],
                    records.plain[first:last],
                    records.payloads[first:last],
                )
                buffers, entries, length = frame_records(writer.segment, writer.offset, part)
                writer.append(buffers, entries, length)
                self._digest.update(entries)
                self._count += last - first
                first = last
            if first < total:
                self._fill_up()

    def finish(self, time_ms: int) -> Commit:
        """Append the commit record and make everything durable, in this order: filled segments first."""
        writer = self._open_writer()
        self._close_extent(writer)
        self._wait_for_seal()
        digest, _ = self._digest.finish()
        commit = Commit(
            os.urandom(16), time_ms, sum(e.records for e in self.extents), digest, tuple(self.extents)
        )
        if len(self.extents) > MAX_EXTENTS:
            raise NoSpace(
                f"one put may fill {MAX_EXTENTS} segments; use larger segments", extents=len(self.extents)
            )
        record, entry = frame_one(writer.segment, writer.offset, Kind.COMMIT, encode_commit(commit))
        writer.append([record], entry, len(record))
        self._sync(writer)
        return commit

    def abort(self) -> None:
        """Cut off what was streamed; segments that hold nothing else go. Without a commit nothing of it exists."""
        if self.finished:
            return
        self.finished = True
        writer, self.writer = self.writer, None
        try:
            self._wait_for_seal()
        except HoldfastError:
            pass
        if writer is not None:
            if not writer.given_up:
                try:
                    writer.truncate(self._start)
                except HoldfastError:
                    pass
            self._writers.checkin(writer)
        whole = {extent.segment for extent in self.extents if extent.start == SEGMENT_HEADER_BYTES}
        for segment, (size, state) in self.sealed.items():
            if segment in whole:
                self._writers.discard(segment, size)
            else:
                self._writers.note(segment, size, state)

    def release(self) -> None:
        """Give the writer back after the commit was applied."""
        writer, self.writer = self.writer, None
        if writer is not None:
            self._writers.checkin(writer)

    def _open_writer(self) -> SegmentWriter:
        if self.writer is None:
            self.writer = self._writers.checkout(self._room_bytes)
            self._start = self.writer.offset
        return self.writer

    def _is_fresh(self, writer: SegmentWriter) -> bool:
        return self._writers.has_room(writer, self._writers.segment_bytes)

    def _close_extent(self, writer: SegmentWriter) -> None:
        if self._count:
            self.extents.append(Extent(writer.segment, self._start, writer.offset, self._count))
            self._count = 0

    def _fill_up(self) -> None:
        """Seal the full segment in the background while the next one fills."""
        writer = self._open_writer()
        self._close_extent(writer)
        self.writer = None
        self._wait_for_seal()
        self._sealing = self._background.submit(self._seal, writer)

    def _seal(self, writer: SegmentWriter) -> None:
        try:
            size = writer.seal()
        except HoldfastError as error:
            self._writers.forget(writer)
            raise Unavailable(
                f"segment {writer.segment} could not be made durable, and what went there cannot be asked for again:"
                f" {error}. Nothing was stored; try again",
                segment=writer.segment,
            ) from error
        self.sealed[writer.segment] = (size, SEGMENT_SEALED)
        self._writers.release_sealed(writer)

    def _wait_for_seal(self) -> None:
        sealing, self._sealing = self._sealing, None
        if sealing is not None:
            sealing.result()
