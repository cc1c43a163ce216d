"""One segment file: writing it, sealing it, and reading its index back.

A `SegmentWriter` belongs to one process (by `flock`) and to one thread at a time. After one failed write,
fsync or close it is *given up*: nothing is appended to it again, and nobody trusts its tail in place.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from holdfast import _native
from holdfast.backend.log.disk import Disk
from holdfast.backend.log.layout import SEGMENTS, segment_path
from holdfast.errors import CorruptSegment, HoldfastError, NoSpace, Unavailable
from holdfast.reports import Problem
from holdfast.types import BytesLike
from holdfast.wire.record import (
    ENTRY_BYTES,
    FLAG_END,
    HEADER_BYTES,
    MAX_RECORD_BYTES,
    SEGMENT_HEADER_BYTES,
    TAIL_BYTES,
    Kind,
    SegmentHeader,
    Tail,
    encode_close,
    encode_footer,
    encode_segment_header,
    iter_entries,
    parse_segment_header,
    parse_tail,
)

SCAN_BYTES: Final = 4 << 20
FOREIGN: Final = (
    "the segment belongs to another store, or under another name: nothing in it is taken in, move it away"
)


class SegmentWriter:
    """An open segment that this process appends to."""

    def __init__(self, disk: Disk, root: str, segment: int, handle: int, size_bytes: int) -> None:
        self.segment = segment
        self.offset = size_bytes
        self.synced = size_bytes
        """How far all bytes are durable."""
        self.given_up = False
        self.was_full = False
        """Given up for want of room: that is no fault of the disk."""
        self.cut_to: int | None = None
        """What was appended after it, durable or not, is nobody's: it is cut off when the segment is given up."""
        self.was_cut = False
        """Given up, and what was not durable is gone from it."""
        self.doubtful = False
        """To be given up by whoever uses it now: an fsync by another thread failed."""
        found = disk.fstat(handle)
        self._file = (found.dev, found.ino)
        self._is_lost = False
        self._disk = disk
        self._root = root
        self.handle = handle
        # A rebuild, or the apply of another thread, asks for entries meanwhile.
        self._index = threading.Lock()
        self._entries_from = size_bytes
        self._entries = bytearray()

    @classmethod
    def create(cls, disk: Disk, root: str, segment: int, store_id: bytes, now_ms: int) -> SegmentWriter:
        """Make a new segment; header and name are durable. `FileExistsError` when another process took the id."""
        path = segment_path(root, segment)
        handle = disk.open(path, "x")
        try:
            if not disk.lock(handle):
                raise FileExistsError(path)
            header = encode_segment_header(SegmentHeader(segment, store_id, now_ms))
            disk.pwrite(handle, [header], 0)
            disk.fsync(handle)
            disk.fsync_dir(f"{root}/{SEGMENTS}")
            return cls(disk, root, segment, handle, SEGMENT_HEADER_BYTES)
        except BaseException:
            # An empty file may stay: `Writers.remove_hollow`, or the next opener, tidies it up.
            disk.close(handle)
            raise

    @classmethod
    def adopt(cls, disk: Disk, root: str, segment: int, store_id: bytes) -> SegmentWriter | None:
        """Take over a segment that was closed cleanly; None when it is in use, sealed, unclean, foreign or gone.

        Its close record is written again: if the fsync behind it failed, the page cache shows what the disk never
        got, and without this nobody would ever write it.
        """
        try:
            handle = disk.open(segment_path(root, segment), "a")
        except FileNotFoundError:
            return None
        try:
            if disk.lock(handle) and not is_foreign(disk, handle, segment, store_id):
                size = disk.size(handle)
                if read_tail(disk, handle, segment, size).closed:
                    start = size - TAIL_BYTES
                    disk.pwrite(handle, [disk.pread(handle, TAIL_BYTES, start)], start)
                    return cls(disk, root, segment, handle, size)
        except BaseException:
            disk.close(handle)
            raise
        disk.close(handle)
        return None

    def only_closes_after(self, applied: int) -> bool:
        """Whether nothing but close records follows `applied`: then the catalog knows all of this segment."""
        if self.offset < applied:
            return False
        for found in scan_records(
            self._disk, self.handle, self.segment, max(applied, SEGMENT_HEADER_BYTES), self.offset
        ):
            if found.trouble or any(entry.kind != Kind.CLOSE for entry in iter_entries(found.entries)):
                return False
        return True

    def append(self, buffers: Sequence[BytesLike], entries: bytes, length: int) -> int:
        """Write framed records at the end; gives their offset. Any failure gives the segment up."""
        start = self.offset
        try:
            self._disk.pwrite(self.handle, buffers, start)
        except BaseException as error:
            self.was_full = isinstance(error, NoSpace)
            self.give_up()
            raise
        self.offset = start + length
        with self._index:
            self._entries += entries
        return start

    def fsync(self) -> None:
        """Make all that was appended durable. A failure is final: the segment is given up.

        So is a file that is no longer the one at its path: what it holds ends with this process.
        """
        offset = self.offset
        try:
            self._disk.fsync(self.handle)
            self._check_path()
        except BaseException as error:
            self.was_full = isinstance(error, NoSpace)
            self.give_up()
            raise
        self.synced = offset

    def _check_path(self) -> None:
        path = segment_path(self._root, self.segment)
        found = self._disk.stat(path)
        if found is None or (found.dev, found.ino) != self._file:
            self._is_lost = True
            raise Unavailable(
                f"{path} was removed or replaced while it was open: what was appended there is lost",
                path=path,
                segment=self.segment,
            )

    def entries(self, start: int, stop: int) -> bytes:
        """Give the packed index entries of the records in `[start, stop)`."""
        with self._index:
            if start < self._entries_from:
                self._load_entries()
            return slice_entries(self._entries, start, stop)

    def truncate(self, length: int) -> None:
        """Forget what was appended after `length` and never committed."""
        try:
            self._disk.truncate(self.handle, length)
        except BaseException:
            self.give_up()
            raise
        with self._index:
            self._entries[:] = slice_entries(self._entries, 0, length)
        self.offset = length
        self.synced = min(self.synced, length)

    def seal(self) -> int:
        """Write the index footer, make the segment durable, let it go; gives its final size.

        The END record says that all before the footer was durable first. A failure gives the segment up; its
        committed records stay where they are, durable.
        """
        if self.synced != self.offset:
            self.fsync()
        footer = encode_footer(self.segment, self.offset, self.entries(0, self.offset))
        self.append([footer], b"", len(footer))
        self.fsync()
        size = self.offset
        self._release()
        return size

    def close(self) -> int:
        """Write the close record, so that another process may adopt the segment; gives the size.

        Only after a successful fsync of all before it. A segment without records is closed as well.
        """
        if self.synced != self.offset or self.offset == SEGMENT_HEADER_BYTES:
            self.fsync()
        record, entry = encode_close(self.segment, self.offset)
        self.append([record], entry, len(record))
        self.fsync()
        size = self.offset
        self._release()
        return size

    def give_up(self) -> None:
        """Never write here again. What is not durable is cut off where that works, so that no rebuild finds it.

        Then the lock goes, so that the tail can be taken over like a dead process's.
        """
        if not self.given_up:
            self.given_up = True
            if self.cut_to is not None:
                self.synced = min(self.synced, self.cut_to)
            try:
                if not self._is_lost:
                    self._disk.truncate(self.handle, self.synced)
                    self.was_cut = True
            except HoldfastError:
                pass
            finally:
                self._release()

    def _release(self) -> None:
        handle, self.handle = self.handle, -1
        if handle >= 0:
            self._disk.close(handle)

    def _load_entries(self) -> None:
        """Read the index of what stood here before we adopted the segment."""
        if self._entries_from > SEGMENT_HEADER_BYTES:
            before = bytearray()
            for found in scan_records(
                self._disk, self.handle, self.segment, SEGMENT_HEADER_BYTES, self._entries_from
            ):
                before += found.entries
            self._entries[:0] = before
            self._entries_from = SEGMENT_HEADER_BYTES


def slice_entries(entries: bytes | bytearray, start: int, stop: int) -> bytes:
    """Give the entries (sorted by offset, as they always are) whose records start in `[start, stop)`."""

    def position(offset: int) -> int:
        low, high = 0, len(entries) // ENTRY_BYTES
        while low < high:
            middle = (low + high) // 2
            at = middle * ENTRY_BYTES + 2
            if int.from_bytes(entries[at : at + 4], "little") < offset:
                low = middle + 1
            else:
                high = middle
        return low * ENTRY_BYTES

    return bytes(entries[position(start) : position(stop)])


def read_tail(disk: Disk, handle: int, segment: int, size_bytes: int) -> Tail:
    """Look at how a segment ends."""
    if size_bytes < SEGMENT_HEADER_BYTES + TAIL_BYTES:
        return Tail()
    return parse_tail(disk.pread(handle, TAIL_BYTES, size_bytes - TAIL_BYTES), segment, size_bytes)


class Found(NamedTuple):
    """A stretch of good records, and what came after it: "" (the end), or why the next bytes are no record."""

    start: int
    stop: int
    entries: bytes
    trouble: str


def scan_records(
    disk: Disk, handle: int, segment: int, start: int, stop: int, *, deep: bool = False
) -> Iterator[Found]:
    """Walk the records in `[start, stop)`, going on behind damage at the next header that is good in every way.

    `deep` checks payload CRCs too; without it payloads are skipped unread. Memory is one record and 4 MiB.
    """
    at = start
    want = SCAN_BYTES
    while at < stop:
        data = disk.pread(handle, min(want, stop - at), at)
        entries, consumed, reason = _native.scan(data, segment, at, deep=deep)
        at += consumed
        if reason == "short" and at - consumed + len(data) < stop:
            if consumed:
                want = SCAN_BYTES
                yield Found(at - consumed, at, entries, "")
            elif want < MAX_RECORD_BYTES + HEADER_BYTES:
                want = MAX_RECORD_BYTES + HEADER_BYTES
            else:  # a whole record would have fitted: the length is a lie that its checksum covers
                yield Found(at, at, b"", "length")
                at = _resync(disk, handle, segment, at + 1, stop)
            continue
        want = SCAN_BYTES
        trouble = "" if reason == "end" else reason
        yield Found(at - consumed, at, entries, trouble)
        if trouble:
            at = _resync(disk, handle, segment, at + 1, stop)


def _resync(disk: Disk, handle: int, segment: int, at: int, stop: int) -> int:
    """Give the offset of the next good header at or after `at`, or `stop`."""
    while at < stop:
        data = disk.pread(handle, min(SCAN_BYTES, stop - at), at)
        if not data:
            break
        position = _native.find_header(data, segment, at, 0)
        if position >= 0:
            return at + position
        if at + len(data) >= stop:
            break
        at += max(1, len(data) - HEADER_BYTES + 1)
    return stop


class SegmentIndex(NamedTuple):
    """What a segment holds: its state, the entries of its records in order, and the damage met on the way."""

    segment: int
    size_bytes: int
    sealed: bool
    closed: bool
    entries: bytes
    records_stop: int
    problems: tuple[Problem, ...]

    @property
    def holds_nothing(self) -> bool:
        """Whether it was sealed without a record: what is damaged of it then is nobody's loss."""
        return self.sealed and not self.problems and self.records_stop <= SEGMENT_HEADER_BYTES


def read_index(
    disk: Disk, handle: int, segment: int, path: str, *, start: int = SEGMENT_HEADER_BYTES, deep: bool = False
) -> SegmentIndex:
    """Read the index of a segment: from its footer if it is sealed, else record by record from `start` on.

    A damaged footer is a problem and falls back to the walk. Records before `start` are left out.
    """
    size = disk.size(handle)
    tail = read_tail(disk, handle, segment, size)
    problems: list[Problem] = []
    if tail.end is not None:
        entries = _read_footer(disk, handle, segment, size, tail)
        if entries is not None:
            stop = tail.end.records_stop
            return SegmentIndex(segment, size, True, False, slice_entries(entries, start, stop), stop, ())
        problems.append(
            _problem("the index of a sealed segment is damaged", segment, tail.end.footer_start, path)
        )
    stop = size
    found_entries = bytearray()
    records_stop = start
    for found in scan_records(disk, handle, segment, start, stop, deep=deep):
        found_entries += found.entries
        if found.entries:
            records_stop = found.stop
        if found.trouble:
            problems.append(_problem(f"no valid record ({found.trouble})", segment, found.stop, path))
    if tail.end is not None:  # footers are no records of their own
        found_entries[:] = slice_entries(found_entries, start, tail.end.records_stop)
        records_stop = tail.end.records_stop
    return SegmentIndex(
        segment, size, tail.end is not None, tail.closed, bytes(found_entries), records_stop, tuple(problems)
    )


def _read_footer(disk: Disk, handle: int, segment: int, size: int, tail: Tail) -> bytes | None:
    end = tail.end
    assert end is not None
    data = disk.pread(handle, size - end.footer_start, end.footer_start)
    listed, consumed, _ = _native.scan(data, segment, end.footer_start, deep=True)
    if consumed != len(data) or len(listed) // ENTRY_BYTES != end.page_count + 1:
        return None
    kinds, flags, offsets, stored, _, hashes = _native.entry_columns(listed)
    pages = []
    for kind, flag, offset, length, hash_ in zip(kinds, flags, offsets, stored, hashes, strict=True):
        if kind != Kind.FOOTER:
            return None
        if not flag & FLAG_END:
            at = offset - end.footer_start + HEADER_BYTES
            page = data[at : at + length]
            if _native.blake3(page) != hash_ or length % ENTRY_BYTES:
                return None
            pages.append(page)
    entries = b"".join(pages)
    return entries if len(entries) == end.entry_count * ENTRY_BYTES else None


def is_foreign(disk: Disk, handle: int, segment: int, store_id: bytes) -> bool:
    """Whether a segment says, in a header that is whole, that it belongs to another store or is another segment."""
    header = parse_segment_header(disk.pread(handle, SEGMENT_HEADER_BYTES, 0))
    return header is not None and (header.segment != segment or header.store_id != store_id)


def check_segment_header(disk: Disk, handle: int, segment: int, store_id: bytes, path: str) -> Problem | None:
    """Say what is wrong with the first 64 bytes, if anything is; `FormatError` for a newer version's."""
    header = parse_segment_header(disk.pread(handle, SEGMENT_HEADER_BYTES, 0))
    if header is None:
        return _problem("the header of the segment is damaged", segment, 0, path)
    if header.segment != segment or header.store_id != store_id:
        return _problem("the segment belongs elsewhere (another id or another store)", segment, 0, path)
    return None


def _problem(message: str, segment: int, offset: int, path: str) -> Problem:
    return Problem(kind=CorruptSegment.kind, message=message, segment=segment, offset_bytes=offset, path=path)
