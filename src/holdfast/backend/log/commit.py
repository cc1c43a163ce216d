"""Groups: records that exist together or not at all, and the committer that shares one fsync among threads.

A small group waits in memory and is written in one piece; a large one streams (`stream`). Order of an
acknowledgement: append, fsync, apply, answer.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from copy import copy
from typing import Final, NamedTuple

from holdfast import _native
from holdfast.backend.log.lock import StoreLock
from holdfast.backend.log.records import Records, frame_records
from holdfast.backend.log.replay import Payloads, from_memory, iter_facts, windowed
from holdfast.backend.log.segment import SegmentWriter
from holdfast.backend.log.stream import Stream
from holdfast.backend.log.writers import Writers
from holdfast.errors import BackendError, HoldfastError, NoSpace, PermissionDenied, Unavailable
from holdfast.facts import SEGMENT_OPEN, SEGMENT_SEALED, SEGMENT_SUPERSEDED, Facts
from holdfast.types import BytesLike, Durability, now_ms
from holdfast.wire.record import (
    HEADER_BYTES,
    MAX_RECORD_BYTES,
    Commit,
    Extent,
    Kind,
    encode_commit,
    frame_one,
)

BUFFER_BYTES: Final = 4 << 20
"""A group above this streams."""
COMMIT_BYTES: Final = len(encode_commit(Commit(bytes(16), 0, 0, bytes(32), (Extent(0, 64, 64, 0),))))

Apply = Callable[[Iterable[Facts]], None]
ReadEntries = Callable[[Extent], bytes]
ReadAt = Callable[[int, int, int], bytes]
"""(segment, offset, length) -> bytes"""


class Committed(NamedTuple):
    """A group that is durable in the log."""

    commit: Commit
    facts: Callable[[], Iterator[Facts]]


class Group:
    """Collects records; `commit` makes them durable and visible, `abort` forgets them. One thread at a time.

    `time_ms`: when it is said to be committed; 0: now. What is stored anew keeps its time.
    """

    def __init__(self, committer: Committer, time_ms: int = 0) -> None:
        self._committer = committer
        self._records = Records.empty()
        self._bytes = 0
        self._stream: Stream | None = None
        self.done = False
        self.error: BaseException | None = None
        self._id = b""
        self._time_ms = time_ms

    def add(
        self, kinds: bytes, flags: bytes, hashes: bytes, plain: Sequence[int], payloads: Sequence[BytesLike]
    ) -> None:
        """Append records: columns of equal length, hashes packed (32 bytes each), payloads as they are to be stored."""
        records = self._records
        records.kinds.extend(kinds)
        records.flags.extend(flags)
        records.hashes.extend(hashes)
        records.plain.extend(plain)
        records.payloads.extend(payloads)
        self._bytes += sum(map(len, payloads)) + HEADER_BYTES * len(payloads)
        if self._bytes > self._committer.buffer_bytes:
            if self._stream is None:
                self._stream = self._committer.stream()
            self._stream.write(records)
            records.clear()
            self._bytes = 0

    def add_one(self, kind: Kind, payload: bytes, *, flags: int = 0) -> bytes:
        """Append one record that is stored as it is; gives the hash of its payload."""
        if len(payload) > MAX_RECORD_BYTES:
            raise ValueError(f"a record holds at most {MAX_RECORD_BYTES} bytes, got {len(payload)}")
        hash_ = _native.blake3(payload)
        self.add(bytes((kind,)), bytes((flags,)), hash_, (len(payload),), (payload,))
        return hash_

    def add_documents(self, kind: Kind, documents: list[bytes]) -> None:
        """Append documents, hashed in one call."""
        count = len(documents)
        self.add(
            bytes((kind,)) * count,
            bytes(count),
            _native.blake3_list(documents),
            [len(document) for document in documents],
            documents,
        )

    @property
    def is_empty(self) -> bool:
        return self._stream is None and not self._records.plain

    @property
    def is_streaming(self) -> bool:
        """Whether it became too large to wait in memory."""
        return self._stream is not None

    @property
    def size_bytes(self) -> int:
        """What the group takes in a segment, its commit included; only while it waits in memory."""
        return self._bytes + HEADER_BYTES + COMMIT_BYTES

    def commit(self, *, alone: bool = False) -> Durability:
        """Make the group durable, then visible. `alone`: by a caller that holds the store's lock.

        On an error nothing of the group is visible, unless it says that it is durable and not applied yet.
        """
        if self._stream is not None:
            self._stream.write(self._records)
            self._committer.finish_stream(self._stream, self._time_ms)
        elif alone:
            self._committer.commit_now([self])
        else:
            self._committer.commit_queued(self)
        return self._committer.durability

    def abort(self) -> None:
        """Forget the group. What it had streamed is cut off again."""
        if self._stream is not None:
            self._stream.abort()
            self._committer.tell()
        self._records = Records.empty()  # the old ones may be durable, and wait to be applied

    def frame(self, segment: int, offset: int) -> tuple[list[BytesLike], bytes, int, Committed]:
        """Give (buffers, index entries, length, the group as committed) for this place, commit record included."""
        records = self._records
        if not self._id:  # one that is written again, elsewhere, is the same
            self._id, self._time_ms = os.urandom(16), self._time_ms or now_ms()
        buffers, entries, length = frame_records(segment, offset, records)
        commit = Commit(
            self._id,
            self._time_ms,
            len(records.plain),
            _native.blake3(entries),
            (Extent(segment, offset, offset + length, len(records.plain)),),
        )
        record, entry = frame_one(segment, offset + length, Kind.COMMIT, encode_commit(commit))
        buffers.append(record)
        payloads = from_memory(records.payloads)
        committed = Committed(commit, lambda: iter_facts(segment, entries, commit.time_ms, payloads))
        return buffers, entries + entry, length + len(record), committed


class Committer:
    """Commits groups; those that come while an fsync runs share the next one."""

    def __init__(
        self,
        writers: Writers,
        lock: StoreLock,
        apply: Apply,
        read_entries: ReadEntries,
        read: ReadAt,
        *,
        fsync: bool,
    ) -> None:
        self.writers = writers
        self.buffer_bytes = min(BUFFER_BYTES, writers.segment_bytes // 4)
        self.durability = Durability.FSYNCED if fsync else Durability.BUFFERED
        self.background = ThreadPoolExecutor(1, thread_name_prefix="holdfast-seal")
        self._lock = lock
        self._apply = apply
        self._read_entries = read_entries
        self._read = read
        self._fsync = fsync
        self._condition = threading.Condition()
        self._queue: list[Group] = []
        self._leading = False
        self._failed_before = False
        """What waits to be applied could not be once: others may have brought it in."""
        self._unapplied: deque[tuple[Committed, dict[int, tuple[int, int]]]] = deque()
        self._applying = False
        self.when_applied: Callable[[], None] = lambda: None
        """Called after each `apply` that worked."""

    @property
    def has_unapplied(self) -> bool:
        """Whether there are durable groups that the catalog does not know yet."""
        # Twice: those that could not be applied come back between the first look and the second.
        return bool(self._unapplied) or self._applying or bool(self._unapplied)

    def group(self, time_ms: int = 0) -> Group:
        """Begin a group."""
        return Group(self, time_ms)

    def stream(self) -> Stream:
        """Begin to write a group that is too large to wait in memory."""
        return Stream(self.writers, self.buffer_bytes, self.sync, self.background)

    def sync(self, writer: SegmentWriter) -> None:
        """Make a segment durable, where durability is wanted."""
        if self._fsync:
            writer.fsync()
        else:
            writer.synced = writer.offset

    def commit_queued(self, group: Group) -> None:
        """Commit together with whatever other threads bring meanwhile."""
        batch: list[Group] = []
        leads = False
        try:
            with self._condition:
                self._queue.append(group)
                while self._leading and not group.done:
                    self._condition.wait()
                if not group.done:
                    leads = self._leading = True
                    batch, self._queue = self._queue, []
            if leads:
                self.commit_now(batch)
        except BaseException as error:  # noqa: BLE001  # raised below; the others of the batch must hear of it
            group.error = error
            for one in batch:
                if one is not group:
                    one.error = _for_another(error)
        finally:
            with self._condition:
                if not group.done and group in self._queue:  # interrupted while it waited
                    self._queue.remove(group)
                if leads:
                    self._leading = False
                    for one in batch:
                        one.done = True
                    self._condition.notify_all()
        if group.error is not None:
            raise group.error

    def commit_now(self, groups: list[Group]) -> None:
        """Write groups, make them durable, apply them; an error is that of all of them."""
        used: list[SegmentWriter] = []
        try:
            try:
                self._write(groups, used)
            except (NoSpace, PermissionDenied):
                raise
            except BackendError:  # the bytes are still in memory: they go to a new segment, once
                self._write(groups, used)
            self._bring_in()
        finally:
            for writer in used:
                self.writers.checkin(writer)
            if any(writer.given_up for writer in used):
                self.tell()

    def finish_stream(self, stream: Stream, time_ms: int = 0) -> None:
        """Commit a streamed group."""
        try:
            commit = stream.finish(time_ms or now_ms())
            writer = stream.writer
            assert writer is not None
            positions = {**stream.sealed, writer.segment: (writer.offset, SEGMENT_OPEN)}
            stream.finished = True  # first: what is to be applied must not be cut off
            self._unapplied.append((Committed(commit, lambda: self.replay(commit)), positions))
        except BaseException:
            stream.abort()
            raise
        try:
            self._bring_in()
        finally:
            stream.release()

    def replay(self, commit: Commit) -> Iterator[Facts]:
        """Give the facts of a group that lies in segments, the last of which has its commit."""
        for extent in commit.extents:
            segment = extent.segment
            yield from iter_facts(
                segment, self._read_entries(extent), commit.time_ms, self._payloads(segment)
            )
        yield Facts(spilled=[extent.segment for extent in commit.extents[:-1]])

    def _payloads(self, segment: int) -> Payloads:
        return windowed(lambda length, offset: self._read(segment, offset, length))

    def apply(self) -> None:
        """Bring all durable groups into the catalog, under the store's lock.

        What cannot be applied now is durable all the same, and goes first with the next call.
        """
        with self._lock.held():
            self.writers.remove_hollow()
            positions = self.writers.take_news()  # first: it may speak of what a group on its way has filled
            waiting = []
            self._applying = True
            try:
                while self._unapplied:
                    waiting.append(self._unapplied.popleft())
                if self._failed_before:
                    waiting = self._still_ours(waiting)
                for _, ends in waiting:
                    merge_positions(positions, ends)
                if positions:
                    self._apply(self._all_facts(waiting, positions))
            except BaseException:
                self._unapplied.extendleft(reversed(waiting))
                self._failed_before = True
                for segment, (applied, state) in positions.items():
                    self.writers.note(segment, applied, state)
                raise
            else:
                self._failed_before = False
            finally:
                self._applying = False
        self.when_applied()

    def _still_ours(
        self, waiting: list[tuple[Committed, dict[int, tuple[int, int]]]]
    ) -> list[tuple[Committed, dict[int, tuple[int, int]]]]:
        """Leave out groups that somebody else has brought in from segments that are cut, superseded or gone since.

        Their places count no longer: a row that were led back there would point at nothing.
        """
        known = self.writers.known()

        def is_gone(extent: Extent) -> bool:
            applied, state = known.get(extent.segment, (0, SEGMENT_OPEN))
            cut = state == SEGMENT_SEALED and extent.stop > applied
            return cut or state == SEGMENT_SUPERSEDED or not self.writers.is_here(extent.segment)

        return [(one, ends) for one, ends in waiting if not any(map(is_gone, one.commit.extents))]

    def _bring_in(self) -> None:
        """Apply what has just become durable; an error says that it is."""
        try:
            self.apply()
        except HoldfastError as error:
            raise type(error)(
                f"{error}. What was to be stored is durable all the same, and will be found once the catalog has it:"
                " with the next change, or when the store is opened next. Do not store it again",
                **{**error.evidence, "durable": True},
            ) from error

    def tell(self) -> None:
        """Let the catalog know at once which segments were given up, where that works: nobody is to adopt them."""
        with suppress(HoldfastError):
            self.apply()

    @staticmethod
    def _all_facts(
        waiting: list[tuple[Committed, dict[int, tuple[int, int]]]], positions: dict[int, tuple[int, int]]
    ) -> Iterator[Facts]:
        for one, _ in waiting:
            yield from one.facts()
        yield Facts(segments=positions)

    def _write(self, groups: list[Group], used: list[SegmentWriter]) -> None:
        """Append groups, each with its commit, fsync once, and note them as durable but not applied yet.

        The writers in `used` are to be checked in after the apply: until then nobody may say how far they are.
        """
        positions: dict[int, tuple[int, int]] = {}
        writer = self.writers.checkout(groups[0].size_bytes)
        used.append(writer)
        starts = [(writer, writer.offset)]
        pending: list[BytesLike] = []
        entries = bytearray()
        length = 0
        committed = []
        try:
            for group in groups:
                if not self.writers.has_room(writer, length + group.size_bytes) and length:
                    writer.append(pending, bytes(entries), length)
                    self.sync(writer)
                    positions[writer.segment] = (writer.offset, SEGMENT_OPEN)
                    writer = self.writers.checkout(group.size_bytes)
                    used.append(writer)
                    starts.append((writer, writer.offset))
                    pending, entries, length = [], bytearray(), 0
                buffers, more, size, one = group.frame(writer.segment, writer.offset + length)
                pending += buffers
                entries += more
                length += size
                committed.append(one)
            writer.append(pending, bytes(entries), length)
            self.sync(writer)
            positions[writer.segment] = (writer.offset, SEGMENT_OPEN)
        except BaseException:
            # All of them have failed: what is durable already must not be found by a rebuild.
            for other, start in starts:
                if not other.given_up:
                    with suppress(BackendError):
                        other.truncate(start)
            raise
        # In one step: `positions` may not be applied without all of them.
        self._unapplied.extend([(one, positions) for one in committed])

    def close(self) -> None:
        """Wait for what is being sealed."""
        self.background.shutdown()


def _for_another(error: BaseException) -> BaseException:
    """Give the error for another thread whose group shared the fate of one that failed."""
    if isinstance(error, HoldfastError):
        return copy(error)
    return Unavailable("another thread's commit, which this one was part of, was interrupted")


def merge_positions(into: dict[int, tuple[int, int]], ends: dict[int, tuple[int, int]]) -> None:
    """Take over how far segments are: both numbers only grow."""
    for segment, (applied, state) in ends.items():
        before = into.get(segment, (0, 0))
        into[segment] = (max(applied, before[0]), max(state, before[1]))
