"""Groups as they stand in segments: their commits, their index entries, their facts; and the damage met there."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from functools import lru_cache
from typing import Final

from holdfast import _native
from holdfast.backend.log.disk import Disk
from holdfast.backend.log.layout import segment_path
from holdfast.backend.log.replay import iter_facts, windowed
from holdfast.backend.log.runs import Runs
from holdfast.backend.log.segment import SegmentWriter, is_foreign, read_index, slice_entries
from holdfast.errors import CorruptSegment, FormatError
from holdfast.facts import Facts
from holdfast.reports import Problem
from holdfast.wire.document import parse_retired
from holdfast.wire.record import (
    ENTRY,
    ENTRY_BYTES,
    HEADER_BYTES,
    SEGMENT_HEADER_BYTES,
    Commit,
    Entry,
    Extent,
    Kind,
    iter_entries,
    parse_commit,
)

MERGE_ROWS: Final = 20_000


class Groups:
    """Reads groups for one recovery. `own` gives the segments whose durable entries are in memory."""

    def __init__(
        self,
        disk: Disk,
        root: str,
        store_id: bytes,
        own: Callable[[], Mapping[int, SegmentWriter]],
        *,
        rebuilding: bool,
    ) -> None:
        self.problems: list[Problem] = []
        self.partly: dict[Problem, tuple[Extent, ...]] = {}
        """Groups of which something is gone, by what is said of it."""
        self.named: dict[int, int] = {}
        """How far commits of which facts were given name each segment."""
        self.scanned: dict[int, bytes] = {}
        """All entries of segments that were read already."""
        self.retired = Runs()
        """Compacted away: what such a segment holds, if it is still there, lies elsewhere or is nobody's."""
        self.claimed = Runs()
        """The same, as records say of which it is not known whether they were committed: enough where one is gone."""
        self.entries_of = lru_cache(4)(self._load_entries)
        self._disk = disk
        self._root = root
        self._store_id = store_id
        self._own = own
        self._rebuilding = rebuilding

    def segment_facts(
        self, segment: int, start: int, stop: int, without: Collection[bytes] = ()
    ) -> Iterator[Facts]:
        """Give the facts of the groups that end in a clean segment, from `start` on, but for commits `without`."""
        path = segment_path(self._root, segment)
        handle = self._disk.open(path, "r")
        try:
            entries = slice_entries(self.entries_of(segment), start, stop)
            group_start = start
            for commit, at in self.new_commits(entries, segment, handle):
                if commit is None:
                    self.damage("a commit record is damaged; its records are taken as they are", segment, at)
                    yield from self.extent_facts(Extent(segment, group_start, at, 0), 0)
                elif commit.id not in without:
                    yield from self.commit_facts(commit, segment)
                group_start = at + HEADER_BYTES
        finally:
            self._disk.close(handle)

    def commit_facts(self, commit: Commit, holder: int) -> Iterator[Facts]:
        """Give the facts of one group, whose commit stands in `holder`; what is left of it where it is damaged."""
        extents = [extent for extent in commit.extents if not self.is_retired(extent.segment)]
        for extent in extents:
            self.named[extent.segment] = max(extent.stop, self.named.get(extent.segment, 0))
        parts = [slice_entries(self.entries_of(e.segment), e.start, e.stop) for e in extents]
        whole = b"".join(parts)
        has_all = len(extents) == len(commit.extents) and _native.blake3(whole) == commit.digest
        if len(whole) != sum(e.records for e in extents) * ENTRY_BYTES or not (
            has_all or len(extents) < len(commit.extents)
        ):
            first = commit.extents[0] if commit.extents else Extent(0, 0, 0, 0)
            self.damage(
                "a committed group is damaged; what is left of it is taken", first.segment, first.start
            )
            self.partly[self.problems[-1]] = commit.extents
        for extent in extents:
            yield from self.extent_facts(extent, commit.time_ms)
        spilled = [extent.segment for extent in extents if extent.segment != holder]
        if spilled:
            yield Facts(spilled=spilled)

    def is_retired(self, segment: int) -> bool:
        """Whether a segment was compacted away: a commit that names it has nothing there any more."""
        return segment in self.retired or (
            segment in self.claimed and self._disk.stat(segment_path(self._root, segment)) is None
        )

    def note_retired(self, entries: bytes, handle: int, into: Runs) -> None:
        """Add to `into` the segments that records among these say were compacted away."""
        if int(Kind.RETIRED) not in entries[::ENTRY_BYTES]:
            return
        payloads = windowed(lambda length, offset: self._disk.pread(handle, length, offset))
        for entry in iter_entries(entries):
            if entry.kind == Kind.RETIRED:
                payload = payloads(0, entry.offset + HEADER_BYTES, entry.stored_bytes)
                with suppress(FormatError):  # one that is damaged is reported with the facts
                    if _native.blake3(payload) == entry.hash:
                        into.add(parse_retired(payload))

    def extent_facts(self, extent: Extent, time_ms: int) -> Iterator[Facts]:
        """Give the facts of a stretch of records."""
        part = slice_entries(self.entries_of(extent.segment), extent.start, extent.stop)
        if not part:
            return
        handle = self._disk.open(segment_path(self._root, extent.segment), "r")
        try:
            payloads = windowed(lambda length, offset: self._disk.pread(handle, length, offset))
            yield from iter_facts(extent.segment, part, time_ms, payloads, self.problems)
        finally:
            self._disk.close(handle)

    def new_commits(self, entries: bytes, segment: int, handle: int) -> Iterator[tuple[Commit | None, int]]:
        """Give each commit record (None: damaged) that says something new, and its offset.

        One that names nothing in its own segment was written anew by a compaction. What it names a catalog has known
        since long before, and may have forgotten: only a rebuild needs it.
        """
        for commit, at in iter_commits(self._disk, entries, handle):
            if commit is None or self._rebuilding or any(e.segment == segment for e in commit.extents):
                yield commit, at

    def _load_entries(self, segment: int) -> bytes:
        """Give all entries of a segment, or those of a tail that was scanned already."""
        scanned = self.scanned.get(segment)
        if scanned is not None:
            return scanned
        writer = self._own().get(segment)
        if writer is not None:
            return writer.entries(SEGMENT_HEADER_BYTES, writer.synced)
        path = segment_path(self._root, segment)
        try:
            handle = self._disk.open(path, "r")
        except FileNotFoundError:
            self.damage("a segment that a commit names is missing", segment, 0)
            return b""
        try:
            if is_foreign(self._disk, handle, segment, self._store_id):
                self.damage("a segment that a commit names was replaced by another one", segment, 0)
                return b""
            return read_index(self._disk, handle, segment, path).entries
        finally:
            self._disk.close(handle)

    def damage(self, message: str, segment: int, offset: int) -> None:
        """Add a problem."""
        self.problems.append(
            Problem(
                kind=CorruptSegment.kind,
                message=message,
                segment=segment,
                offset_bytes=offset,
                path=segment_path(self._root, segment),
            )
        )


def iter_commits(disk: Disk, entries: bytes, handle: int) -> Iterator[tuple[Commit | None, int]]:
    """Give each commit record (None: damaged) among entries, and its offset."""
    payloads = windowed(lambda length, offset: disk.pread(handle, length, offset))
    kind = int(Kind.COMMIT)
    for at in range(0, len(entries), ENTRY_BYTES):
        if entries[at] == kind:
            entry = Entry._make(ENTRY.unpack(entries[at : at + ENTRY_BYTES]))
            payload = payloads(0, entry.offset + HEADER_BYTES, entry.stored_bytes)
            good = len(payload) == entry.stored_bytes and _native.blake3(payload) == entry.hash
            yield (parse_commit(payload) if good else None), entry.offset


def merged(batches: Iterator[Facts]) -> Iterator[Facts]:
    """Put small batches together, so that a million commits are not a million statements."""
    whole = Facts()
    rows = 0
    for facts in batches:
        for name in (
            "data",
            "blobs",
            "artifacts",
            "tombstones",
            "tags",
            "quarantine",
            "repaired",
            "uploads",
            "spilled",
            "retired",
        ):
            more = getattr(facts, name)
            if more:
                getattr(whole, name).extend(more)
                rows += len(more)
        whole.segments.update(facts.segments)
        if rows >= MERGE_ROWS:
            yield whole
            whole, rows = Facts(), 0
    if rows or whole.segments:
        yield whole
