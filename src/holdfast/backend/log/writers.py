"""The segments that this process writes: adopted before made, one user at a time, sealed when full."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from holdfast.backend.log.disk import Disk
from holdfast.backend.log.layout import SEGMENTS, list_segments, segment_path
from holdfast.backend.log.lock import StoreLock
from holdfast.backend.log.segment import SegmentWriter
from holdfast.backend.log.tidy import remove_empty
from holdfast.errors import BackendError, CorruptSegment, HoldfastError
from holdfast.facts import SEGMENT_OPEN, SEGMENT_SEALED, SEGMENT_SUPERSEDED
from holdfast.types import now_ms
from holdfast.wire.record import SEGMENT_HEADER_BYTES

MAX_IDLE: Final = 8
"""Segments kept open for the next group; those beyond are closed, to be adopted again."""


class Writers:
    """A pool of segment writers."""

    def __init__(
        self,
        disk: Disk,
        root: str,
        store_id: bytes,
        segment_bytes: int,
        lock: StoreLock,
        known: Callable[[], dict[int, tuple[int, int]]],
        before_more: Callable[[], None] = lambda: None,
    ) -> None:
        """`before_more` is called before a store gets a further segment than its first."""
        self._disk = disk
        self._root = root
        self._store_id = store_id
        self.segment_bytes = segment_bytes
        self._lock = lock
        self._known = known
        self._before_more = before_more
        self._mutex = threading.Lock()
        self._idle: list[SegmentWriter] = []
        self._busy: dict[int, SegmentWriter] = {}
        self._news: dict[int, tuple[int, int]] = {}
        self._failed: set[int] = set()
        """Given up by this process: never to be adopted by it again, whatever the catalog says so far."""
        self._full: set[int] = set()
        """Those of them for which there was no room: the disk itself is sound."""
        self._hollow: set[int] = set()
        """Segments that were never finished, or given up before they held anything."""

    def checkout(self, room_bytes: int) -> SegmentWriter:
        """Give a writer for one user, with room for so many bytes unless it is a fresh segment."""
        while True:
            with self._mutex:
                writer = self._idle.pop() if self._idle else None
                if writer is not None:
                    self._busy[writer.segment] = writer
            if writer is None:
                writer = self._adopt() or self._create()
                with self._mutex:
                    self._busy[writer.segment] = writer
            if self.has_room(writer, room_bytes):
                return writer
            self.seal(writer)

    def known(self) -> dict[int, tuple[int, int]]:
        """Give how far the catalog has applied segments, and their states."""
        return self._known()

    def is_here(self, segment: int) -> bool:
        """Whether there is a file of this segment."""
        return self._disk.stat(segment_path(self._root, segment)) is not None

    def fresh(self) -> SegmentWriter:
        """Give a writer of a new segment."""
        writer = self._create()
        with self._mutex:
            self._busy[writer.segment] = writer
        return writer

    def take_closed(self, segment: int, applied: int) -> SegmentWriter | None:
        """Take a segment that nobody uses and the catalog knows wholly: one of ours that is idle, or a closed one."""
        with self._mutex:
            writer = next((one for one in self._idle if one.segment == segment), None)
            if writer is not None:
                self._idle.remove(writer)
                self._busy[segment] = writer
                return writer
            if segment in self._busy or segment in self._failed:
                return None
        with self._lock.held():
            writer = SegmentWriter.adopt(self._disk, self._root, segment, self._store_id)
            if writer is None:
                return None
            if not writer.only_closes_after(applied):
                writer.give_up()
                return None
        with self._mutex:
            self._busy[segment] = writer
        return writer

    def has_room(self, writer: SegmentWriter, room_bytes: int) -> bool:
        """Whether so many bytes still fit; anything fits into a fresh segment."""
        return writer.offset <= SEGMENT_HEADER_BYTES or writer.offset + room_bytes <= self.segment_bytes

    def checkin(self, writer: SegmentWriter) -> None:
        """Take a writer back; one that was given up is forgotten, a full one is sealed."""
        if writer.doubtful:
            writer.give_up()
        if writer.given_up:
            self.forget(writer)
        elif writer.offset >= self.segment_bytes:
            self.seal(writer)
        else:
            with self._mutex:
                del self._busy[writer.segment]
                if len(self._idle) < MAX_IDLE:
                    self._idle.append(writer)
                    return
            self._close(writer)

    def seal(self, writer: SegmentWriter) -> None:
        """Seal a full segment. A failure gives it up and is nobody's error: what is committed in it is durable."""
        try:
            size = writer.seal()
        except HoldfastError:
            self.forget(writer)
        else:
            self.note(writer.segment, size, SEGMENT_SEALED)
            with self._mutex:
                del self._busy[writer.segment]

    def release_sealed(self, writer: SegmentWriter) -> None:
        """Forget a writer that somebody else sealed."""
        with self._mutex:
            self._busy.pop(writer.segment, None)

    def discard(self, segment: int, size_bytes: int) -> None:
        """Remove a sealed segment in which nothing was ever committed. The highest id stays: ids never come again."""
        if segment < max(list_segments(self._disk, self._root)):
            self._disk.unlink(segment_path(self._root, segment))
            self._disk.fsync_dir(f"{self._root}/{SEGMENTS}")
            self.note(segment, size_bytes, SEGMENT_SUPERSEDED)
        else:
            self.note(segment, size_bytes, SEGMENT_SEALED)

    def forget(self, writer: SegmentWriter) -> None:
        """Drop a segment that was given up: nobody takes it up again, unless what was refused is still in it."""
        if writer.was_cut:
            holds = writer.synced > SEGMENT_HEADER_BYTES
            self.note(writer.segment, writer.synced, SEGMENT_SEALED if holds else SEGMENT_SUPERSEDED)
        with self._mutex:
            self._failed.add(writer.segment)
            if writer.was_full:
                self._full.add(writer.segment)
            self._busy.pop(writer.segment, None)
            if writer.was_cut and writer.synced <= SEGMENT_HEADER_BYTES:
                self._hollow.add(writer.segment)

    def remove_hollow(self) -> None:
        """Remove segments that were given up before they held anything: a full disk makes one with each attempt.

        The caller holds the store's lock. The highest stays until another is made.
        """
        with self._mutex:
            hollow = sorted(self._hollow)
        if not hollow:
            return
        with suppress(HoldfastError):
            there = list_segments(self._disk, self._root)
            for segment in hollow:
                if segment in there[:-1]:
                    remove_empty(self._disk, self._root, segment)
                if segment not in there[-1:]:
                    with self._mutex:
                        self._hollow.discard(segment)

    def failed(self) -> set[int]:
        """Give the segments that this process gave up because the disk failed, not for want of room."""
        with self._mutex:
            return self._failed - self._full

    def drop_copies(self, segment: int, size_bytes: int) -> None:
        """Remove a sealed segment with nothing but copies of which the catalog has not heard; else it stays."""
        with self._lock.held():
            if segment in self._known():
                self.note(segment, size_bytes, SEGMENT_SEALED)
            else:
                self.discard(segment, size_bytes)

    def note(self, segment: int, applied: int, state: int) -> None:
        """Keep what the catalog is to learn about a segment with the next transaction."""
        with self._mutex:
            self._news[segment] = (applied, state)

    def take_news(self) -> dict[int, tuple[int, int]]:
        """Give and forget what `note` collected."""
        with self._mutex:
            news, self._news = self._news, {}
            return news

    def own(self) -> dict[int, SegmentWriter]:
        """Give the segments that this process holds now."""
        with self._mutex:
            return self.own_in_child()

    def sync(self) -> None:
        """Make durable what lies in our segments, also in those that others of our threads are appending to.

        By handles of its own, so that no writer's is used by two at once. A failure gives the segment up.
        """
        for segment, writer in self.own().items():
            try:
                handle = self._disk.open(segment_path(self._root, segment), "a")
            except FileNotFoundError:
                if segment in self.own():
                    raise CorruptSegment(
                        f"segment {segment} was removed while it was written to: what was not durable is lost",
                        segment=segment,
                        path=segment_path(self._root, segment),
                    ) from None
                continue  # sealed meanwhile, and nothing was in it
            try:
                self._disk.fsync(handle)
            except BaseException:
                self._distrust(writer)
                raise
            finally:
                self._disk.close(handle)

    def _distrust(self, writer: SegmentWriter) -> None:
        """Give a segment up: at once if it is idle, else when its user gives it back."""
        writer.doubtful = True
        with self._mutex:
            idle = writer in self._idle
            if idle:
                self._idle.remove(writer)
        if idle:
            writer.give_up()
            self.forget(writer)

    def close(self) -> None:
        """Close idle segments cleanly. A failure leaves an unclean tail, which the next opener copies."""
        with self._mutex:
            idle, self._idle = self._idle, []
        for writer in idle:
            self._close(writer)
        self.abandon()

    def abandon(self) -> None:
        """Let go of everything as a killed process would."""
        for writer in self.own().values():
            with suppress(HoldfastError):  # a close that failed has closed all the same
                writer.give_up()

    def own_in_child(self) -> dict[int, SegmentWriter]:
        """The same in a forked child, where a thread that is not here may hold the mutex for ever."""
        return {**self._busy, **{writer.segment: writer for writer in self._idle}}

    def _close(self, writer: SegmentWriter) -> None:
        try:
            writer.close()
        except HoldfastError:
            self.forget(writer)

    def _adopt(self) -> SegmentWriter | None:
        with self._lock.held():
            own = self.own()
            for segment, (applied, state) in sorted(self._known().items()):
                if state != SEGMENT_OPEN or segment in own or segment in self._failed:
                    continue
                if applied >= self.segment_bytes:
                    continue
                writer = None
                try:
                    writer = SegmentWriter.adopt(self._disk, self._root, segment, self._store_id)
                    if writer is None:
                        continue
                    if writer.offset < self.segment_bytes and writer.only_closes_after(applied):
                        return writer
                except (BackendError, OSError):  # its end cannot be read or written: somebody else's trouble
                    self._failed.add(segment)
                if writer is not None:
                    writer.give_up()
        return None

    def _create(self) -> SegmentWriter:
        with self._lock.held():
            segment = max((0, *list_segments(self._disk, self._root), *self._known()))
            if segment:
                self._before_more()
            while True:
                segment += 1
                try:
                    return SegmentWriter.create(self._disk, self._root, segment, self._store_id, now_ms())
                except FileExistsError:
                    continue
                except HoldfastError:
                    with self._mutex:
                        self._hollow.add(segment)
                    self.remove_hollow()
                    raise
