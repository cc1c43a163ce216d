"""What the catalog has not seen yet: clean segments are read in place, unclean tails are copied, never trusted.

One scan serves an ordinary start (what is beyond each segment's applied position) and a rebuild (everything).
The caller holds the store's lock. Order: copy whole commits of unclean tails, fsync, give the facts, and only
after they are applied cut what is left of the tails (`finish`).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Final, NamedTuple

from holdfast import _native
from holdfast.backend.log.collector import is_collecting
from holdfast.backend.log.commit import Committer
from holdfast.backend.log.disk import Disk
from holdfast.backend.log.groups import Groups, merged
from holdfast.backend.log.layout import list_segments, segment_path
from holdfast.backend.log.payloads import OFFSET_MASK
from holdfast.backend.log.records import Records, frame_records
from holdfast.backend.log.replay import windowed
from holdfast.backend.log.runs import Runs
from holdfast.backend.log.segment import (
    FOREIGN,
    SegmentIndex,
    SegmentWriter,
    check_segment_header,
    is_foreign,
    read_index,
    read_tail,
    scan_records,
    slice_entries,
)
from holdfast.backend.log.tidy import close_quiet, remove_retired, retire, seal_again
from holdfast.errors import BackendError
from holdfast.facts import SEGMENT_OPEN, SEGMENT_QUARANTINED, SEGMENT_SEALED, SEGMENT_SUPERSEDED, Facts
from holdfast.reports import Problem
from holdfast.wire.document import revision_of
from holdfast.wire.record import (
    ENTRY,
    ENTRY_BYTES,
    HEADER_BYTES,
    MAX_RECORD_BYTES,
    SEGMENT_HEADER_BYTES,
    TAIL_BYTES,
    Commit,
    Entry,
    Extent,
    Kind,
    encode_commit,
    frame_one,
    iter_entries,
)

COPY_BYTES: Final = 4 << 20
MERGE_ROWS: Final = 20_000


class _Tail(NamedTuple):
    """An unclean segment: its records from `applied` on are to be copied; `dead` when nobody holds its lock."""

    found: SegmentIndex
    applied: int
    dead: bool
    handle: int


def last_close(entries: bytes) -> int:
    """Give where the last close record ends; 0: there is none."""
    kind = int(Kind.CLOSE)
    for at in range(len(entries) - ENTRY_BYTES, -1, -ENTRY_BYTES):
        if entries[at] == kind:
            return Entry._make(ENTRY.unpack(entries[at : at + ENTRY_BYTES])).stop
    return 0


class Recovery:
    """One catching up with storage. Use: `prepare`, apply `facts`, `finish`; `close` in any case."""

    def __init__(
        self,
        disk: Disk,
        root: str,
        store_id: bytes,
        known: Mapping[int, tuple[int, int]],
        committer: Committer | None,
        *,
        rebuilding: bool,
        retired: Iterable[range] = (),
        brought_in: Callable[[], bytes] = bytes,
    ) -> None:
        self.copied_bytes = 0
        self.segments = 0
        self._disk = disk
        self._root = root
        self._store_id = store_id
        self._known = known
        self._committer = committer
        self._rebuilding = rebuilding
        self._clean: list[tuple[int, int]] = []
        self._tails: list[_Tail] = []
        self._kept: set[int] = set()
        self._copied_before: set[bytes] = set()
        self._brought_in = brought_in
        self._brought_in_before: set[bytes] = set()
        self._quiet: list[int] = []
        self._reseal: list[tuple[int, int]] = []
        self._copied: list[tuple[Commit, int]] = []
        """Groups of tails, each with the segment in which its commit stands."""
        self._doomed: list[int] = []
        self.lost: set[int] = set()
        """Segments that the catalog knows and that are gone, or shorter than what was stored in them."""
        self.is_outdated = False
        """Segments were compacted away that the catalog relies on, or never heard of: it is an older copy."""
        self._positions: dict[int, tuple[int, int]] = {}
        self._writer: SegmentWriter | None = None
        self._groups = Groups(disk, root, store_id, self._own_entries, rebuilding=rebuilding)
        self._known_retired = Runs(retired)
        self._groups.retired.add(self._known_retired)

    @property
    def problems(self) -> list[Problem]:
        """The damage met so far."""
        return self._groups.problems

    @property
    def has_work(self) -> bool:
        """Whether there is anything that the catalog does not know."""
        is_untidy = bool(self._doomed) and self._committer is not None
        return bool(self._clean or self._tails or self._positions or self._quiet or is_untidy)

    def prepare(self) -> None:
        """Look at every segment that the catalog does not know wholly; copy the whole commits of unclean tails."""
        segments = list_segments(self._disk, self._root)
        self.segments = len(segments)
        own = self._committer.writers.own() if self._committer else {}
        for segment in segments:
            applied, state = self._known.get(segment, (0, SEGMENT_OPEN))
            if state == SEGMENT_OPEN and segment not in self._groups.retired:
                writer = own.get(segment)
                if writer is None:
                    self._look_at(segment, applied)
                elif self._rebuilding:
                    self._look_at_own(writer)
        self._leave_out_retired(segments)
        if self._clean or self._tails:
            ids = self._brought_in()
            self._brought_in_before.update(ids[at : at + 16] for at in range(0, len(ids), 16))
        self._find_copies()
        try:
            for tail in self._tails:
                self._copy_tail(tail)
            if self._writer is not None and self._committer is not None:
                self._committer.sync(self._writer)
        finally:
            self._give_writer_back()
        self._groups.entries_of.cache_clear()
        self._look_for_lost(set(segments))

    def _leave_out_retired(self, segments: list[int]) -> None:
        """Take nothing from segments that were compacted away and are still there: a crash came before the unlink."""
        retired = self._groups.retired
        doomed = [segment for segment in segments if segment in retired]
        if doomed and not is_collecting(self._disk, self._root):  # who compacts now is about to remove them
            self._doomed = doomed
        self._clean = [(segment, start) for segment, start in self._clean if segment not in retired]
        for segment in doomed:
            self._positions.pop(segment, None)
        for tail in [tail for tail in self._tails if tail.found.segment in retired]:
            self._tails.remove(tail)
            self._disk.close(tail.handle)

    def _look_for_lost(self, present: set[int]) -> None:
        for segment, (applied, state) in sorted(self._known.items()):
            held = applied > SEGMENT_HEADER_BYTES and state in (SEGMENT_OPEN, SEGMENT_SEALED)
            if held and self._groups.is_retired(segment):
                self.is_outdated = True  # rows may still point there
            elif held and segment not in present:
                self.lost.add(segment)
                self._groups.damage("a segment that the catalog knows is missing", segment, 0)
        # A catalog that has seen it knows each segment before that is retired. What lay there may be missing elsewhere.
        self.is_outdated |= any(run.start not in self._known for run in self.newly_retired())

    def is_retired(self, segment: int) -> bool:
        """Whether a segment was compacted away, as far as `prepare` has seen."""
        return self._groups.is_retired(segment)

    def newly_retired(self) -> list[range]:
        """Give the segments that were compacted away without the catalog's knowledge, as far as `prepare` has seen."""
        if list(self._groups.retired) == list(self._known_retired):
            return []
        every = (segment for run in self._groups.retired for segment in run)
        return [range(segment, segment + 1) for segment in every if segment not in self._known_retired]

    def copied_from_living(self) -> set[bytes]:
        """Give the ids of commits that were copied now or before, if any stand in a living process's segment."""
        if all(tail.dead for tail in self._tails):
            return set()
        copied = {commit.id for commit, _ in self._copied}
        return copied | self._copied_before | self._brought_in_before

    def facts(self) -> Iterator[Facts]:
        """Give what the catalog is to learn, in batches; the positions last."""
        repaired: set[int] = set()
        for facts in merged(self._all_facts()):
            repaired.update(place for place, _ in facts.repaired)
            yield facts
        if repaired:  # what stands there is damaged, and is nobody's
            problems = self._groups.problems
            problems[:] = [p for p in problems if not self._is_repaired(p, repaired)]
            left = {p.segment for p in problems}
            for segment, (applied, state) in self._positions.items():
                if state == SEGMENT_QUARANTINED and segment not in left:
                    self._positions[segment] = (applied, SEGMENT_SEALED)  # nobody appends there again
        if self._committer is not None:
            self._keep_named()
            self._leave_open()
        yield Facts(segments=dict(self._positions))

    def _is_repaired(self, problem: Problem, repaired: set[int]) -> bool:
        """Whether what is damaged is nobody's: its place, or one in the group of which something is gone."""
        if (problem.segment or 0) << 32 | (problem.offset_bytes or 0) in repaired:
            return True
        for extent in self._groups.partly.get(problem, ()):
            entries = self._groups.entries_of(extent.segment)
            for offset in (place & OFFSET_MASK for place in repaired if place >> 32 == extent.segment):
                begins_before = offset <= extent.start and not slice_entries(
                    entries, offset, extent.start + 1
                )
                if begins_before or extent.start <= offset < extent.stop:
                    return True
        return False

    def _keep_named(self) -> None:
        """Keep what commits elsewhere name: that was sealed once, and only its end is damaged."""
        for tail in self._tails:
            segment = tail.found.segment
            if tail.dead and self._groups.named.get(segment, 0) > tail.applied:
                self._groups.damage("the end of a sealed segment is damaged", segment, tail.found.size_bytes)
                self._kept.add(segment)

    def _leave_open(self) -> None:
        """Have the next opener look at what `finish` is to seal: a power cut may tear the index that it writes."""
        for tail in self._tails:
            segment = tail.found.segment
            if tail.dead and tail.applied > SEGMENT_HEADER_BYTES and segment not in self._kept:
                self._positions[segment] = (tail.applied, SEGMENT_OPEN)

    def finish(self) -> None:
        """Cut what was copied or never whole off the tails of dead writers, and seal what is left of them.

        All of this is tidying up: what fails here is met again by the next opener, and copying twice is harmless.
        """
        if self._committer is None:
            return
        for tail in self._tails:
            if tail.dead and tail.found.segment not in self._kept:
                with suppress(BackendError, FileNotFoundError):  # who lives may have removed it meanwhile
                    retire(
                        self._disk, self._root, self._store_id, tail.found.segment, tail.handle, tail.applied
                    )
        for segment in self._quiet:
            with suppress(BackendError, FileNotFoundError):
                close_quiet(self._disk, self._root, segment)
        for segment, records_stop in self._reseal:
            with suppress(BackendError, FileNotFoundError):
                seal_again(self._disk, self._root, segment, records_stop)
        with suppress(BackendError, FileNotFoundError):
            remove_retired(self._disk, self._root, self._doomed)

    def close(self) -> None:
        """Give files and locks back."""
        while self._tails:
            tail = self._tails.pop()
            with suppress(BackendError):  # what counts was synced before; the others are to be closed too
                self._disk.close(tail.handle)

    # -- looking

    def _look_at(self, segment: int, applied: int) -> None:
        path = segment_path(self._root, segment)
        try:
            handle = self._disk.open(path, "a" if self._committer else "r")
        except FileNotFoundError:
            return
        keep = False
        try:
            dead = self._committer is None or self._disk.lock(handle)
            size = self._disk.size(handle)
            if not dead and not self._rebuilding and not self._has_changes(handle, segment, applied, size):
                return
            if is_foreign(self._disk, handle, segment, self._store_id):
                self._groups.damage(FOREIGN, segment, 0)
                return
            if size < applied:
                self.lost.add(segment)
                self._groups.damage("the segment is shorter than what was stored in it", segment, size)
                self._positions[segment] = (applied, SEGMENT_QUARANTINED)
                return
            if size <= max(applied, SEGMENT_HEADER_BYTES):
                if dead and self._committer is not None:
                    # Its writer died with nothing under way, or before it wrote anything.
                    self._quiet.append(segment)
                return
            problem = check_segment_header(self._disk, handle, segment, self._store_id, path)
            start = max(applied, SEGMENT_HEADER_BYTES)
            tail = read_tail(self._disk, handle, segment, size)
            unclean = tail.end is None and not tail.closed
            index = read_index(self._disk, handle, segment, path, start=start, deep=unclean)
            if index.closed and all(entry.kind == Kind.CLOSE for entry in iter_entries(index.entries)):
                return  # nothing new; whoever adopts it writes its end again
            if dead and (index.sealed or index.closed):
                self._confirm(handle, index)
                self._groups.note_retired(index.entries, handle, self._groups.retired)
                problem = None if index.holds_nothing else problem
                broken = problem is not None
                if index.sealed and index.problems and self._is_whole(handle, segment, path, index):
                    self._reseal.append((segment, index.records_stop))
                else:
                    self._groups.problems.extend(index.problems)
                    broken |= bool(index.problems)
                self._groups.problems.extend([problem] if problem is not None else [])
                self._clean.append((segment, start))
                state = SEGMENT_SEALED if index.sealed else SEGMENT_OPEN
                self._positions[segment] = (index.size_bytes, SEGMENT_QUARANTINED if broken else state)
            else:
                if not unclean:  # it was closed a moment ago, and somebody has adopted it
                    index = read_index(self._disk, handle, segment, path, start=start, deep=True)
                closed_at = last_close(index.entries)
                if closed_at > start:
                    self._take_closed_part(handle, segment, path, start, closed_at)
                    start = closed_at
                    index = index._replace(entries=slice_entries(index.entries, closed_at, 1 << 32))
                self._groups.note_retired(index.entries, handle, self._groups.claimed)
                self._tails.append(_Tail(index, start, dead, handle))
                if start <= SEGMENT_HEADER_BYTES:
                    self._groups.scanned[segment] = index.entries
                keep = True
        finally:
            if not keep:
                self._disk.close(handle)

    def _take_closed_part(self, handle: int, segment: int, path: str, start: int, stop: int) -> None:
        """Take what lies before a close record in place, damaged or not: it was durable before that was written."""
        index = read_index(self._disk, handle, segment, path, start=start)
        self._groups.problems.extend(p for p in index.problems if (p.offset_bytes or 0) < stop)
        self._groups.note_retired(slice_entries(index.entries, start, stop), handle, self._groups.retired)
        self._clean.append((segment, start))
        self._positions[segment] = (stop, SEGMENT_OPEN)

    def _has_changes(self, handle: int, segment: int, applied: int, size: int) -> bool:
        """Whether a living process's tail holds a change to a name.

        It was made under the lock that our caller holds, and could not be applied. A later change must be told its
        revision, so it is brought in; what is merely on its way is left to its writer.
        """
        payloads = windowed(lambda length, offset: self._disk.pread(handle, length, offset))
        start = max(applied, SEGMENT_HEADER_BYTES)
        for found in scan_records(self._disk, handle, segment, start, size):
            kinds, _, offsets, stored, _, _ = _native.entry_columns(found.entries)
            for i, kind in enumerate(kinds):
                if kind in (Kind.TOMBSTONE, Kind.TAG):
                    return True
                if (
                    kind == Kind.ARTIFACT
                    and revision_of(payloads(i, offsets[i] + HEADER_BYTES, stored[i])) > 1
                ):
                    return True
        return False

    def _confirm(self, handle: int, index: SegmentIndex) -> None:
        """Write the end of a segment again, durably: its writer may have died, or failed, before its fsync."""
        if self._committer is not None:
            start = min(index.records_stop, index.size_bytes - TAIL_BYTES)
            self._disk.pwrite(handle, [self._disk.pread(handle, index.size_bytes - start, start)], start)
            self._disk.fsync(handle)

    def _is_whole(self, handle: int, segment: int, path: str, index: SegmentIndex) -> bool:
        """Whether only the index of a sealed segment is damaged (a power cut may tear it): it can be made again."""
        stretches = scan_records(
            self._disk, handle, segment, SEGMENT_HEADER_BYTES, index.records_stop, deep=True
        )
        return not any(found.trouble for found in stretches)

    def _own_entries(self) -> Mapping[int, SegmentWriter]:
        if self._committer is None or self._rebuilding:
            return {}
        return self._committer.writers.own()

    def _look_at_own(self, writer: SegmentWriter) -> None:
        """Take a segment that we are writing as far as its last commit that we know to be durable."""
        segment, stop = writer.segment, SEGMENT_HEADER_BYTES
        for fields in ENTRY.iter_unpack(writer.entries(SEGMENT_HEADER_BYTES, writer.synced)):
            entry = Entry._make(fields)
            if entry.kind == Kind.COMMIT:
                stop = entry.stop
        durable = writer.entries(SEGMENT_HEADER_BYTES, stop)
        self._groups.note_retired(durable, writer.handle, self._groups.retired)
        self._clean.append((segment, SEGMENT_HEADER_BYTES))
        self._positions[segment] = (stop, SEGMENT_OPEN)

    # -- unclean tails

    def _find_copies(self) -> None:
        """See which groups of the tails an earlier rebuild has copied already: a clean segment has their commit."""
        wanted: set[bytes] = set()
        for tail in self._tails:
            commits = self._groups.new_commits(tail.found.entries, tail.found.segment, tail.handle)
            wanted.update(commit.id for commit, _ in commits if commit is not None)
        if self._committer is not None and not self._rebuilding:
            self._copied_before.update(wanted & self._brought_in_before)
        if not wanted:
            return
        for segment, start in self._clean:
            handle = self._disk.open(segment_path(self._root, segment), "r")
            try:
                stop = self._positions[segment][0]
                entries = slice_entries(self._groups.entries_of(segment), start, stop)
                for commit, _ in self._groups.new_commits(entries, segment, handle):
                    if commit is not None and commit.id in wanted:
                        self._copied_before.add(commit.id)
            finally:
                self._disk.close(handle)

    def _copy_tail(self, tail: _Tail) -> None:
        """Copy each group that is wholly there; those without a whole commit never existed."""
        segment = tail.found.segment
        whole_after_broken = broken = False
        for commit, _ in self._groups.new_commits(tail.found.entries, segment, tail.handle):
            if commit is not None and commit.extents and self._is_all_retired(commit):
                continue  # nothing of it is left here, and what counts of it was copied before that went
            parts = None if commit is None else self._members(commit, tail)
            if commit is None or parts is None:
                broken = True
                continue
            whole_after_broken |= broken
            if commit.id in self._copied_before:
                continue
            if self._committer is None:
                self._copied.append((commit, segment))
            else:
                self._copied.append(self._copy(commit, tail, parts))
            for extent, part in zip(commit.extents, parts, strict=True):
                if extent.segment == segment and part is not None:
                    self._groups.note_retired(part, tail.handle, self._groups.retired)
        if whole_after_broken and tail.dead:
            self._groups.damage(
                "a group does not match its commit, and a later one does: kept for a look",
                segment,
                tail.applied,
            )
            self._kept.add(segment)
        if tail.dead:  # what was applied in place stays there, and is to be scrubbed, missed and compacted
            holds = tail.applied > SEGMENT_HEADER_BYTES
            self._positions[segment] = (tail.applied, SEGMENT_SEALED if holds else SEGMENT_SUPERSEDED)

    def _is_all_retired(self, commit: Commit) -> bool:
        return all(self._groups.is_retired(extent.segment) for extent in commit.extents)

    def _members(self, commit: Commit, tail: _Tail) -> list[bytes | None] | None:
        """Give the entries of each extent if the group is whole, as its digest says.

        What was compacted away (None) was whole and applied before that; of the rest only the count can be seen.
        """
        parts: list[bytes | None] = []
        for extent in commit.extents:
            if self._groups.is_retired(extent.segment):
                parts.append(None)
                continue
            if extent.segment == tail.found.segment:
                part = slice_entries(tail.found.entries, extent.start, extent.stop)
                if extent.start < tail.applied:
                    return None
            else:
                part = slice_entries(self._groups.entries_of(extent.segment), extent.start, extent.stop)
            if len(part) != extent.records * ENTRY_BYTES:
                return None
            parts.append(part)
        here = [part for part in parts if part is not None]
        if len(here) < len(parts) and here:
            return parts
        return parts if _native.blake3(b"".join(here)) == commit.digest else None

    def _copy(self, commit: Commit, tail: _Tail, parts: list[bytes | None]) -> tuple[Commit, int]:
        """Append a group's records from the tail to a segment of ours; what lies in sealed segments stays there."""
        assert self._committer is not None
        extents: list[Extent] = []
        moved: list[bytes] = []
        length = sum(
            extent.stop - extent.start for extent in commit.extents if extent.segment == tail.found.segment
        )
        writer = self._writer_for(self._committer, length + HEADER_BYTES + MAX_RECORD_BYTES // 64)
        for extent, part in zip(commit.extents, parts, strict=True):
            if part is None:
                continue
            if extent.segment != tail.found.segment:
                extents.append(extent)
                moved.append(part)
                continue
            start = writer.offset
            entries = self._copy_records(tail, part, writer)
            extents.append(Extent(writer.segment, start, writer.offset, extent.records))
            moved.append(entries)
        copy = commit._replace(
            records=sum(extent.records for extent in extents),
            digest=_native.blake3(b"".join(moved)),
            extents=tuple(extents),
        )
        record, entry = frame_one(writer.segment, writer.offset, Kind.COMMIT, encode_commit(copy))
        writer.append([record], entry, len(record))
        self._positions[writer.segment] = (writer.offset, SEGMENT_OPEN)
        self.copied_bytes += length
        return copy, writer.segment

    def _writer_for(self, committer: Committer, room_bytes: int) -> SegmentWriter:
        """Give one writer for all that is copied: it is synced when it is full, and when all is there."""
        if self._writer is not None and not committer.writers.has_room(self._writer, room_bytes):
            try:
                committer.sync(self._writer)
            finally:
                self._give_writer_back()
        if self._writer is None:
            self._writer = committer.writers.checkout(room_bytes)
        return self._writer

    def _give_writer_back(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None and self._committer is not None:
            self._committer.writers.checkin(writer)

    def _copy_records(self, tail: _Tail, part: bytes, writer: SegmentWriter) -> bytes:
        kinds, flags, offsets, stored, plain, hashes = _native.entry_columns(part)
        entries = bytearray()
        first = 0
        while first < len(offsets):
            start = offsets[first]
            last = max(first + 1, bisect_left(offsets, start + COPY_BYTES, first))
            stop = offsets[last - 1] + HEADER_BYTES + stored[last - 1]
            data = memoryview(self._disk.pread(tail.handle, stop - start, start))
            begins = [offset + HEADER_BYTES - start for offset in offsets[first:last]]
            records = Records(
                bytearray(kinds[first:last]),
                bytearray(flags[first:last]),
                bytearray().join(hashes[first:last]),
                list(plain[first:last]),
                [data[at : at + length] for at, length in zip(begins, stored[first:last], strict=True)],
            )
            buffers, framed, length = frame_records(writer.segment, writer.offset, records)
            writer.append(buffers, framed, length)
            entries += framed
            first = last
        return bytes(entries)

    # -- facts

    def _all_facts(self) -> Iterator[Facts]:
        for segment, start in self._clean:
            stop = self._positions[segment][0]
            yield from self._groups.segment_facts(segment, start, stop, self._brought_in_before)
        for commit, holder in self._copied:
            yield from self._groups.commit_facts(commit, holder)
