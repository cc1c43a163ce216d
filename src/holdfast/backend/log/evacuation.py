"""Copying what counts out of a segment: verified, in groups of its own, with the times and roles that a rebuild needs.

Nothing here changes the catalog. `Evacuation.copy` reads a segment by its own index, asks where the catalog has each
of its records, and appends those that count to an `Outlet`; what became of them stands in `Moves`.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple, Protocol

from holdfast import _native
from holdfast.backend.log.disk import Disk
from holdfast.backend.log.groups import iter_commits
from holdfast.backend.log.layout import segment_path
from holdfast.backend.log.outlet import Outlet
from holdfast.backend.log.payloads import OFFSET_MASK, Payloads, Place, matches
from holdfast.backend.log.replay import location_of
from holdfast.backend.log.segment import check_segment_header, read_index, slice_entries
from holdfast.errors import CorruptBlob, CorruptSegment, HoldfastError, IntegrityError
from holdfast.facts import KIND_SHIFT, DataPlace, Moves
from holdfast.reports import Problem
from holdfast.types import Hash
from holdfast.wire.document import (
    parse_artifact,
    parse_blob_head,
    parse_quarantine,
    parse_retired,
    parse_tag,
    parse_tombstone,
)
from holdfast.wire.record import (
    ENTRY,
    ENTRY_BYTES,
    FLAG_BLOB,
    FLAG_SHA256,
    FLAG_ZSTD,
    FRAMING_KINDS,
    HEADER_BYTES,
    PAYLOAD_KINDS,
    Commit,
    Entry,
    Extent,
    Kind,
    iter_entries,
)
from holdfast.wire.upload import parse_upload

WINDOW_RECORDS: Final = 4096
RUN_BYTES: Final = 4 << 20
GAP_BYTES: Final = 64 << 10
"""What is read along rather than skipped."""
_KIND_BITS: Final = 0x7F
LEFT_BEHIND: Final = FRAMING_KINDS | {int(Kind.TIMES)}
"""What belongs to the old groups: the new ones have their own."""
COPIED_KINDS: Final = (
    PAYLOAD_KINDS
    | LEFT_BEHIND
    | {
        int(kind)
        for kind in (
            Kind.BLOB,
            Kind.ARTIFACT,
            Kind.TAG,
            Kind.TOMBSTONE,
            Kind.UPLOAD,
            Kind.QUARANTINE,
            Kind.REPAIR,
            Kind.RETIRED,
        )
    }
)
"""A segment with records of another kind is left alone: whether they still count is not known here."""


class Places(Protocol):
    """Where the catalog has records, by what they are found by."""

    def data(self, hashes: Sequence[bytes]) -> Mapping[bytes, DataPlace]: ...
    def blobs(self, hashes: Sequence[bytes]) -> Mapping[bytes, tuple[int, int]]: ...
    def copies(self, hashes: Sequence[bytes]) -> set[tuple[bytes, int]]: ...
    def artifacts(self, ids: Sequence[bytes]) -> Mapping[bytes, tuple[int, int]]: ...
    def tombstones(self, ids: Sequence[bytes]) -> Mapping[bytes, tuple[int, int]]: ...
    def tags(self, names: Sequence[str]) -> Mapping[str, tuple[int, int]]: ...
    def uploads(self, tokens: Sequence[bytes]) -> Mapping[bytes, tuple[int, int]]: ...
    def repaired(self, segment: int) -> set[int]: ...
    def is_spilled(self, segment: int) -> bool: ...


class Cannot(HoldfastError):
    """This segment has to stay as it is, and why. Never for users."""

    kind = "cannot"


class Pending(NamedTuple):
    """A tombstone that may be of no use any more: what it is found by, its revision, and its record."""

    table: str
    key: Any
    revision: int
    location: int
    entry: Entry
    payload: bytes


class Source:
    """A segment that is to be emptied, and what was met in it."""

    def __init__(self, segment: int) -> None:
        self.segment = segment
        self.size_bytes = 0
        self.entries = b""
        self.in_doubt = False
        """It ends in records of which no applied commit and no row knows: somebody may be about to commit them."""
        self.problems: list[Problem] = []
        self.pending: list[Pending] = []
        self.retired: list[range] = []
        self.seen = Moves()
        """Keys of the documents in it, with their old places: to be looked up again before it goes."""
        self.copied_bytes = 0
        self.dropped_bytes = 0


class Evacuation:
    """Copies what counts out of segments into one outlet."""

    def __init__(
        self,
        disk: Disk,
        root: str,
        store_id: bytes,
        payloads: Payloads,
        places: Places,
        outlet: Outlet,
        is_here: Callable[[int], bool],
        *,
        drops_tombstones: bool,
    ) -> None:
        self.payloads = payloads
        self.places = places
        self.outlet = outlet
        self.is_here = is_here
        self.drops_tombstones = drops_tombstones
        self.disk = disk
        self.root = root
        self._store_id = store_id

    def copy(self, source: Source, watch: Callable[[int], None]) -> None:
        """Append what counts of a segment to the outlet, and note the moves. `Cannot` says why it must stay.

        Also where that is raised, what was copied before is good, and may be switched to.
        """
        segment = source.segment
        disk = self.disk
        path = segment_path(self.root, segment)
        handle = disk.open(path, "r")
        try:
            problem = check_segment_header(disk, handle, segment, self._store_id, path)
            index = read_index(disk, handle, segment, path)
            source.size_bytes = index.size_bytes
            source.entries = index.entries
            source.problems += [problem] if problem is not None else []
            repaired = self.places.repaired(segment)
            source.problems += [p for p in index.problems if p.offset_bytes not in repaired]
            if source.problems:
                raise Cannot("it is damaged")
            unknown = set(index.entries[::ENTRY_BYTES]) - COPIED_KINDS
            if unknown:
                raise Cannot(f"it has records of kind {min(unknown):#x}")
            committed, elsewhere = self._commits(source, handle, repaired)
            _Copying(self, source, handle, committed, watch).run()
            for commit in elsewhere:
                self._carry(source, commit)
        finally:
            disk.close(handle)

    def _commits(self, source: Source, handle: int, repaired: set[int]) -> tuple[list[Extent], list[Commit]]:
        """Give what commits say of this segment, and those that name others, of which they must go on saying so."""
        committed: list[Extent] = []
        elsewhere: list[Commit] = []
        for commit, at in iter_commits(self.disk, source.entries, handle):
            if commit is None and at in repaired:
                continue  # what it committed is stored anew
            if commit is None:
                self.damaged(source, at, "a commit record is damaged")
                raise Cannot("it is damaged")
            committed += [extent for extent in commit.extents if extent.segment == source.segment]
            others = tuple(
                extent
                for extent in commit.extents
                if extent.segment != source.segment and self.is_here(extent.segment)
            )
            if others:
                elsewhere.append(commit._replace(extents=others))
        return committed, elsewhere

    def _carry(self, source: Source, commit: Commit) -> None:
        """Commit anew what a group has in other segments, which stays there: without a commit it would not exist."""
        disk = self.disk
        parts = []
        for extent in commit.extents:
            path = segment_path(self.root, extent.segment)
            handle = disk.open(path, "r")
            try:
                index = read_index(disk, handle, extent.segment, path)
            finally:
                disk.close(handle)
            part = slice_entries(index.entries, extent.start, extent.stop)
            if index.problems or len(part) != extent.records * ENTRY_BYTES:
                raise Cannot(f"segment {extent.segment}, which a group of it is also in, is damaged")
            parts.append(part)
        records = sum(extent.records for extent in commit.extents)
        digest = _native.blake3(b"".join(parts))
        self.outlet.add_commit(commit._replace(records=records, digest=digest))

    def damaged(self, source: Source, offset: int, why: str, hash_: bytes | None = None) -> None:
        """Note damage."""
        source.problems.append(
            Problem(
                kind=CorruptSegment.kind if hash_ is None else CorruptBlob.kind,
                message=why,
                hash=None if hash_ is None else Hash(hash_),
                segment=source.segment,
                offset_bytes=offset,
                path=segment_path(self.root, source.segment),
            )
        )

    def is_sound(self, location: int, entry: Entry) -> bool:
        """Whether another record of the same payload is good where it lies."""
        if entry.kind in PAYLOAD_KINDS:
            row = self.places.data((entry.hash,)).get(entry.hash)
            if row is None or row.location != location:
                return False
            try:
                self.payloads.read_at(entry.hash, Place(location, row.stored, row.plain, row.flags))
            except (FileNotFoundError, IntegrityError):
                return False
            return True
        try:
            record = self.payloads.handles.read(
                location >> 32, location & OFFSET_MASK, HEADER_BYTES + entry.stored_bytes
            )
        except FileNotFoundError:
            return False
        entries, consumed, _ = _native.scan(record, location >> 32, location & OFFSET_MASK, deep=True)
        payload = record[HEADER_BYTES:]
        return (
            consumed == len(record)
            and entries[ENTRY_BYTES - 32 : ENTRY_BYTES] == entry.hash
            and _native.blake3(payload) == entry.hash
        )


class _Copying:
    """One pass over one segment."""

    def __init__(
        self,
        evacuation: Evacuation,
        source: Source,
        handle: int,
        committed: list[Extent],
        watch: Callable[[int], None],
    ) -> None:
        self._all = evacuation
        self._places = evacuation.places
        self._outlet = evacuation.outlet
        self._moves = evacuation.outlet.moves
        self._source = source
        self._handle = handle
        self._committed = sorted(committed, key=lambda extent: extent.start)
        self._watch = watch
        self._repaired = evacuation.places.repaired(source.segment)
        self._stray = self._strayed = False

    def run(self) -> None:
        source = self._source
        step = WINDOW_RECORDS * ENTRY_BYTES
        for start in range(0, len(source.entries), step):
            window = [
                entry
                for entry in iter_entries(source.entries[start : start + step])
                if entry.kind not in LEFT_BEHIND and entry.offset not in self._repaired
            ]
            self._copy_window(window)
        source.in_doubt = self._stray and not self._strayed and not self._places.is_spilled(source.segment)
        if source.problems:
            raise Cannot("it is damaged")

    def _copy_window(self, window: list[Entry]) -> None:
        segment = self._source.segment
        hashes = [entry.hash for entry in window if entry.kind in PAYLOAD_KINDS]
        rows = self._places.data(hashes)
        copies = {hash_ for hash_, place in self._places.copies(hashes) if place >> 32 == segment}
        wanted = []
        for entry in window:
            location = location_of(segment, entry.offset)
            if entry.kind in PAYLOAD_KINDS:
                row = rows.get(entry.hash)
                is_known = row is not None and (row.location == location or entry.hash in copies)
                self._note_stray(entry, is_known)
                if is_known:
                    wanted.append(entry)
                else:
                    self._source.dropped_bytes += HEADER_BYTES + entry.stored_bytes
            else:
                wanted.append(entry)
        for run in _runs(wanted):
            self._copy_run(run, rows)

    def _note_stray(self, entry: Entry, is_known: bool) -> None:
        """See whether records that no commit of this segment names are known all the same."""
        if not self._is_committed(entry.offset):
            self._stray = True
            self._strayed = self._strayed or is_known

    def _is_committed(self, offset: int) -> bool:
        return any(extent.start <= offset < extent.stop for extent in self._near(offset))

    def _near(self, offset: int) -> list[Extent]:
        at = bisect_right(self._committed, offset, key=lambda extent: extent.start)
        return self._committed[max(0, at - 1) : at]

    def _copy_run(self, run: list[Entry], rows: Mapping[bytes, DataPlace]) -> None:
        start, stop = run[0].offset, run[-1].stop
        data = self._all.disk.pread(self._handle, stop - start, start)
        self._watch(len(data))
        view = memoryview(data)
        bad = self._check(data, run, start)
        documents: list[tuple[Entry, bytes]] = []
        for number, entry in enumerate(run):
            at = entry.offset - start + HEADER_BYTES
            if number in bad:
                self._all.damaged(
                    self._source, entry.offset, f"a record is damaged ({bad[number]})", entry.hash
                )
            elif entry.kind in PAYLOAD_KINDS:
                self._take_payload(entry, view[at : at + entry.stored_bytes], rows[entry.hash])
            else:
                documents.append((entry, data[at : at + entry.stored_bytes]))
        if documents:
            self._take_documents(documents)

    def _check(self, data: bytes, run: list[Entry], start: int) -> dict[int, str]:
        """Say what is wrong with which records; every payload is hashed, decompressed where it has to be."""
        packed = b"".join([ENTRY.pack(*entry) for entry in run])
        bad = {}
        for number, why in _native.check_payloads(data, packed, start):
            if why == "hash" and run[number].flags & FLAG_SHA256:
                at = run[number].offset - start + HEADER_BYTES
                if matches(data[at : at + run[number].stored_bytes], run[number].hash, FLAG_SHA256):
                    continue
            bad[number] = why
        payloads = self._all.payloads
        view = memoryview(data)
        for number, entry in enumerate(run):
            if number not in bad and entry.flags & FLAG_ZSTD:
                at = entry.offset - start + HEADER_BYTES
                try:
                    plain = payloads.decompress(
                        view[at : at + entry.stored_bytes], entry.plain_bytes, entry.hash, 0
                    )
                except IntegrityError:
                    bad[number] = "compression"
                else:
                    if not matches(plain, entry.hash, entry.flags):
                        bad[number] = "hash"
        return bad

    # -- payloads

    def _take_payload(self, entry: Entry, payload: memoryview, row: DataPlace) -> None:
        location = location_of(self._source.segment, entry.offset)
        own = entry.flags & (FLAG_ZSTD | FLAG_SHA256)
        role = row.flags & FLAG_BLOB
        if row.location != location:  # a further copy
            says_role = role and entry.flags & FLAG_BLOB and not self._outlet.wrote(row.location)
            if entry.hash in self._outlet.moved or (
                not says_role and self._all.is_sound(row.location, entry)
            ):
                self._moves.copies.append((entry.hash, location))
                self._source.dropped_bytes += HEADER_BYTES + entry.stored_bytes
                return
            # The one that counts is bad, or it may be this one alone that says since when there is such a blob.
        elif entry.hash in self._outlet.moved:
            return
        plain = None if entry.plain_bytes == entry.stored_bytes else entry.plain_bytes
        kind = (entry.kind & _KIND_BITS) << KIND_SHIFT | own

        def moved(new: int) -> None:
            self._moves.data.append((entry.hash, row.location, new, entry.stored_bytes, plain, kind))
            self._moves.copies.append((entry.hash, location))

        self._outlet.add(entry, own | role, payload, row.created_ms if role else None, moved)
        self._outlet.moved.add(entry.hash)
        self._source.copied_bytes += HEADER_BYTES + entry.stored_bytes

    # -- documents

    def _take_documents(self, documents: list[tuple[Entry, bytes]]) -> None:
        by_kind: dict[int, list[tuple[Entry, bytes, Any]]] = {}
        for entry, payload in documents:
            try:
                key = _parse(entry.kind, payload)
            except HoldfastError as error:
                self._all.damaged(self._source, entry.offset, str(error))
                continue
            by_kind.setdefault(entry.kind, []).append((entry, payload, key))
        for entry, payload, found in self._found(by_kind, Kind.BLOB, self._places.blobs):
            self._take_blob(entry, payload, *found)
        for kind, table, look_up in (
            (Kind.ARTIFACT, "artifacts", self._places.artifacts),
            (Kind.TOMBSTONE, "tombstones", self._places.tombstones),
            (Kind.TAG, "tags", self._places.tags),
            (Kind.UPLOAD, "uploads", self._places.uploads),
        ):
            for entry, payload, found in self._found(by_kind, kind, look_up):
                self._take_named(table, entry, payload, *found)
        for kind in (Kind.QUARANTINE, Kind.REPAIR):
            for entry, payload, named in by_kind.get(kind, ()):
                if self._counts(entry) and self._all.is_here(named):
                    self._keep(entry, payload, None)
        for entry, _, runs in by_kind.get(Kind.RETIRED, ()):
            if self._counts(entry):
                self._source.retired += runs

    def _counts(self, entry: Entry) -> bool:
        """Whether a commit, here or elsewhere, names what no row tells of: else it was never said."""
        self._note_stray(entry, False)
        return self._is_committed(entry.offset) or self._places.is_spilled(self._source.segment)

    @staticmethod
    def _found(
        by_kind: Mapping[int, list[tuple[Entry, bytes, Any]]],
        kind: Kind,
        look_up: Callable[[Sequence[Any]], Mapping[Any, Any]],
    ) -> Iterator[tuple[Entry, bytes, tuple[Any, Any]]]:
        records = by_kind.get(kind, [])
        rows = look_up([key[0] if isinstance(key, tuple) else key for _, _, key in records])
        for entry, payload, key in records:
            yield entry, payload, (key, rows.get(key[0] if isinstance(key, tuple) else key))

    def _keep(
        self, entry: Entry, payload: bytes, time_ms: int | None, moved: Callable[[int], None] | None = None
    ) -> None:
        self._outlet.add(entry, entry.flags, payload, time_ms, moved)
        self._source.copied_bytes += HEADER_BYTES + entry.stored_bytes

    def _take_blob(self, entry: Entry, payload: bytes, hash_: bytes, row: tuple[int, int] | None) -> None:
        location = location_of(self._source.segment, entry.offset)
        is_listed = row is not None and (
            row[0] == location or (hash_, location) in self._places.copies((hash_,))
        )
        self._note_stray(entry, is_listed)
        self._source.seen.blobs.append((hash_, location, 0, 0))
        if row is None or not is_listed or (Kind.BLOB, hash_) in self._outlet.named:
            self._source.dropped_bytes += HEADER_BYTES + entry.stored_bytes
            if is_listed:
                self._moves.copies.append((hash_, location))
            return
        # A further copy takes the place of the one that counts: it may be what says since when there is such a blob.
        old, created_ms = row
        self._outlet.named.add((Kind.BLOB, hash_))

        def moved(new: int) -> None:
            self._moves.blobs.append((hash_, old, new, entry.stored_bytes))
            self._moves.copies.append((hash_, location))

        self._keep(entry, payload, created_ms, moved)

    def _take_named(
        self,
        table: str,
        entry: Entry,
        payload: bytes,
        key: tuple[Any, int, bool],
        row: tuple[int, int] | None,
    ) -> None:
        location = location_of(self._source.segment, entry.offset)
        name, revision, is_deleted = key
        is_known = row is not None and row[0] >= revision
        self._note_stray(entry, is_known)
        if not self._is_committed(entry.offset):  # whoever wrote it may commit it now
            getattr(self._source.seen, table).append((name, location, 0))
        if row is None or row[0] < revision:
            if self._is_committed(entry.offset) and not self._is_forgotten(table, name, revision):
                lacks = "does not know" if row is None else "is behind"
                self._all.damaged(self._source, entry.offset, f"the catalog {lacks} what it says ({table})")
            self._source.dropped_bytes += HEADER_BYTES + entry.stored_bytes
            return
        is_current = row[0] == revision and (row[1] == location or not self._all.is_sound(row[1], entry))
        if not is_current or (table, name) in self._outlet.named:
            self._source.dropped_bytes += HEADER_BYTES + entry.stored_bytes
            return
        old = row[1]
        if is_deleted and self._all.drops_tombstones and self._is_unnamed(table, name):
            self._source.pending.append(Pending(table, name, revision, old, entry, payload))
            return
        self._outlet.named.add((table, name))
        moves: list[tuple[Any, int, int]] = getattr(self._moves, table)
        self._keep(entry, payload, None, lambda new: moves.append((name, old, new)))
        getattr(self._source.seen, table).append((name, location, 0))

    def _is_forgotten(self, table: str, name: Any, revision: int) -> bool:
        """Whether a collection has forgotten a deleted artifact: its tombstone is there, and says more."""
        row = self._places.tombstones((name,)).get(name) if table == "artifacts" else None
        return row is not None and row[0] > revision

    def _is_unnamed(self, table: str, name: Any) -> bool:
        """Whether nothing in the catalog has a use for a tombstone any more."""
        return table == "tags" or name not in self._places.artifacts((name,))


def _parse(kind: int, payload: bytes) -> Any:
    """Give what a document is found by; with revision and whether it is a deletion, for what has a name."""
    if kind == Kind.BLOB:
        return parse_blob_head(payload)[0]
    if kind == Kind.ARTIFACT:
        artifact = parse_artifact(payload)
        return artifact.id, artifact.revision, False
    if kind == Kind.TOMBSTONE:
        tombstone = parse_tombstone(payload)
        return tombstone.id, tombstone.revision, True
    if kind == Kind.TAG:
        tag = parse_tag(payload)
        return tag.name, tag.revision, tag.deleted
    if kind == Kind.UPLOAD:
        upload = parse_upload(payload)
        return upload.token, upload.revision, False
    if kind == Kind.RETIRED:
        return parse_retired(payload)
    return parse_quarantine(payload).segment


def _runs(entries: list[Entry]) -> Iterator[list[Entry]]:
    """Cut entries into runs that are read in one go."""
    run: list[Entry] = []
    for entry in entries:
        if run and (entry.offset > run[-1].stop + GAP_BYTES or entry.stop - run[0].offset > RUN_BYTES):
            yield run
            run = []
        run.append(entry)
    if run:
        yield run
