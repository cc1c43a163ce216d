"""Repair: damaged and missing pieces brought back from elsewhere, as new records; the old places become nobody's.

It works on the damage that is known: what is in quarantine, segments that are broken or gone, pieces that blobs lack.
First what is derived is put back in place (`framing`). Then each piece is looked for in the store itself, in the
sources by its hash, and as a range of the blobs that it belongs to; verified, and appended together with its repair
record. What describes blobs is computed anew from verified bytes.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Final, NamedTuple

from holdfast import _native
from holdfast.backend.log.commit import Group
from holdfast.backend.log.layout import segment_path
from holdfast.backend.log.payloads import OFFSET_MASK, Place
from holdfast.backend.log.segment import FOREIGN, slice_entries
from holdfast.bao import OutboardBuilder
from holdfast.care.compare import Lack, iter_homeless, iter_missing, read_segment
from holdfast.care.framing import UNKNOWN, Framing, mend_bit
from holdfast.care.origins import Origin, right
from holdfast.care.rows import Row, iter_rows, rows_at
from holdfast.care.wanted import DOCUMENTS, Owner, Wanted, find_owners, find_wanted, lost_segments
from holdfast.compress import compress
from holdfast.core import MENDABLE
from holdfast.errors import BackendError, CorruptSegment, HoldfastError, IntegrityError, NotFound
from holdfast.facts import (
    FLAG_BLOB,
    KIND_BLOB,
    KIND_MASK,
    SEGMENT_OPEN,
    SEGMENT_QUARANTINED,
    SEGMENT_SEALED,
    SEGMENT_SUPERSEDED,
)
from holdfast.log_core import LogCore
from holdfast.recovery import WouldForget
from holdfast.reports import Mended, Problem, RepairReport
from holdfast.types import Hash, Progress, ProgressCallback
from holdfast.wire.document import (
    QuarantineDocument,
    encode_quarantine,
    encode_retired,
    parse_blob,
)
from holdfast.wire.pages import StreamWriter
from holdfast.wire.record import (
    HEADER_BYTES,
    PAYLOAD_KINDS,
    Entry,
    Kind,
    iter_entries,
)

GROUP_BYTES: Final = 2 << 20
MAX_LISTED: Final = 10_000
HERE: Final = "this store"
COMPUTED: Final = "computed"
COPY: Final = "another copy of this store"
CATALOG: Final = "the catalog"


class Torn(NamedTuple):
    """Where something is no record any more, or a commit's bytes are gone."""

    place: int
    what: str


class Repair:
    """One call."""

    def __init__(self, core: LogCore, origins: Sequence[Origin], progress: ProgressCallback | None) -> None:
        self._core = core
        self._backend = core.backend
        self._origins = origins
        self._progress = progress
        self._groups: dict[int, Group] = {}
        self._pending = 0
        self._mended: list[Mended] = []
        self._missing: list[Problem] = []
        self._fetched = 0
        self._documents: dict[bytes, tuple[bytes, str]] | None = None
        self._owners: dict[bytes, list[Owner]] = {}
        self._torn: list[Torn] = []

    def run(self, *, give_up: bool) -> RepairReport:
        started = time.monotonic()
        self._backend.require_writing()
        self._core.write_down_damage()
        with self._backend.operation():
            self._mend_framing()
            lost = lost_segments(self._core)
            wanted = find_wanted(self._core, lost, {one.place >> 32 for one in self._torn})
            self._owners = find_owners(self._core, {one.hash for one in wanted})
            left = [one for one in wanted if not self._bring_back(one)]
            self._commit()
            left = [one for one in left if not self._describe_again(one)]
            if not left or give_up:
                self._say_again()
            told = {one.row.key for one in left if one.row is not None} | {one.hash for one in left}
            for lack in list(iter_missing(self._core)):
                if lack.blob not in told and lack.piece not in told:
                    self._supply(lack)
            self._commit()
            for one in left:
                self._say_missing(one)
            if give_up:
                for one in left:
                    if one.place is not None:
                        self._release(self._group(0), one, "given up")
            self._settle(left, give_up)
            kept = {one.place >> 32 for one in left if one.place is not None} if not give_up else set()
            gone = [segment for segment in lost if segment not in kept]
            if gone:
                self._group(0).add_one(Kind.RETIRED, encode_retired(_runs(gone)))
            self._commit()
            if not self._missing or give_up:
                self._let_names_go(give_up=give_up)
        if not self._missing:
            self._core.keeper.problems = ()
        return RepairReport(
            ok=not self._missing,
            repaired=tuple(self._mended[:MAX_LISTED]),
            repaired_count=len(self._mended),
            missing=tuple(self._missing[:MAX_LISTED]),
            missing_count=len(self._missing),
            fetched_bytes=self._fetched,
            seconds=time.monotonic() - started,
        )

    # -- what there is to do

    def _mend_framing(self) -> None:
        """Put back what is derived, in segments whose structure is broken or that hold something in quarantine."""
        catalog = self._core.catalog
        known = catalog.segments()
        doubtful = {place >> 32 for place, _, _ in catalog.quarantined()}
        doubtful |= {segment for segment, (_, state) in known.items() if state == SEGMENT_QUARANTINED}
        doubtful |= {problem.segment or 0 for problem in self._core.keeper.problems}
        foreign = {segment for segment in self._backend.foreign_segments() if not self._is_ours(segment)}
        for segment in sorted(foreign):
            self._missing.append(
                Problem(
                    kind=CorruptSegment.kind,
                    message=FOREIGN,
                    segment=segment,
                    offset_bytes=0,
                    path=segment_path(self._backend.root, segment),
                )
            )
        restored = False
        for segment in sorted(doubtful & set(self._backend.segment_ids()) - foreign):
            applied, state = known.get(segment, (0, SEGMENT_OPEN))
            framing = Framing(self._backend, segment, applied, self._copy_of)
            try:
                found = framing.mend()
            finally:
                framing.close()
            for offset, what in found.done:
                self._note(what, None, segment, offset, COPY if what == "stretch" else COMPUTED)
            repaired = catalog.repaired(segment)
            left = [(offset, what) for offset, what in found.left if offset not in repaired]
            self._torn += [Torn(segment << 32 | offset, what) for offset, what in left]
            if not left and state == SEGMENT_QUARANTINED:
                catalog.set_segment_state(segment, SEGMENT_SEALED if found.sealed else SEGMENT_OPEN)
            restored |= found.has_facts or (bool(found.done) and state == SEGMENT_SUPERSEDED)
        if restored:  # what a rebuild had to leave out is there again
            with suppress(WouldForget):  # others are still missing
                self._core.keeper.replace("records were put back", is_mended=True)

    def _say_again(self) -> None:
        """Store documents anew that the catalog alone knows: another segment lies where their records were."""
        keeper = self._core.keeper
        for is_last in (False, True):
            if not keeper.kept_names():
                return
            with suppress(WouldForget):
                keeper.replace("what was damaged is stored anew", is_mended=True)
                return
            for row, entry in [] if is_last else list(iter_homeless(self._core)):
                document = row.document
                if document is not None and not self._may_be(row, entry):
                    one = Wanted(None, _native.blake3(document), DOCUMENTS[row.table], 0, 0, row, "")
                    self._append_document(one, document, CATALOG)
            self._commit()

    def _may_be(self, row: Row, entry: Entry | None) -> bool:
        """Whether what lies at the place of a row is its record, damaged, or says something else of the same name.

        Then the log knows better, or nobody does: a catalog is no source for what it says otherwise.
        """
        if entry is None or entry.kind != DOCUMENTS[row.table]:
            return False
        handles = self._backend.payloads.handles
        payload = handles.read(row.location >> 32, entry.offset + HEADER_BYTES, entry.stored_bytes)
        return _native.blake3(payload) != entry.hash or row.key in payload

    def _let_names_go(self, *, give_up: bool) -> None:
        """See that no name is known to the catalog alone any more."""
        if not self._core.keeper.kept_names():
            return
        try:
            self._core.keeper.replace("what was damaged is stored anew", is_mended=True, forget=give_up)
        except WouldForget as error:
            self._missing.append(Problem(kind=CorruptSegment.kind, message=str(error)))

    def _is_ours(self, segment: int) -> bool:
        """Whether a segment that says it belongs elsewhere is just what the catalog knows: its header is wrong then."""
        rows = rows_at(self._core.catalog, (), [segment])
        index = read_segment(self._core, segment)
        applied, _ = self._core.catalog.segments().get(segment, (0, SEGMENT_OPEN))
        if not rows or index is None or index.size_bytes != applied:
            return False
        found = {entry.offset: entry for entry in iter_entries(index.entries)}
        entries = ((row, found.get(row.location & OFFSET_MASK)) for row in rows)
        return all(entry is not None and row.matches(entry) for row, entry in entries)

    def _copy_of(self, segment: int, start: int, stop: int, later: bytes) -> bytes | None:
        """Give a stretch of a segment from another copy of this very store; not one that was let go of."""
        if start in self._core.catalog.repaired(segment):
            return None
        for origin in self._origins:
            data = origin.stretch(segment, start, stop, later)
            if data is not None:
                self._fetched += len(data)
                return data
        return None

    def _settle(self, left: Sequence[Wanted], give_up: bool) -> None:
        """Let go of stretches in which no record is, once all that stood there and counts is stored anew.

        A catalog that was made after the damage does not know what that was: then they stay, until they are given up.
        """
        waiting = {one.place >> 32 for one in left if one.place is not None}
        unread = self._core.keeper.unread()
        kept: set[int] = set()
        for torn in self._torn:
            segment = torn.place >> 32
            if give_up or not (segment in waiting or (torn.what == UNKNOWN and torn.place in unread)):
                reason = "given up" if give_up else "nothing there counts any more"
                self._release(self._group(0), Wanted(torn.place, b"", 0, 0, 0, None, ""), reason)
                if not give_up:
                    self._note("stretch", None, segment, torn.place & OFFSET_MASK, HERE)
                continue
            kept.add(segment)
            self._missing.append(
                Problem(
                    kind="corrupt_segment",
                    message=torn.what,
                    segment=segment,
                    offset_bytes=torn.place & OFFSET_MASK,
                    path=segment_path(self._backend.root, segment),
                )
            )
        self._commit()
        known = self._core.catalog.segments()
        for segment in {torn.place >> 32 for torn in self._torn} - kept:
            if known.get(segment, (0, SEGMENT_OPEN))[1] == SEGMENT_QUARANTINED:
                self._core.catalog.set_segment_state(segment, SEGMENT_SEALED)  # nobody appends there again

    # -- bringing back

    def _bring_back(self, one: Wanted) -> bool:
        self._tell()
        if one.kind in PAYLOAD_KINDS:
            if one.row is None:  # nothing names it: garbage, or stored anew since
                self._release(self._group(0), one, "nothing needs it")
                return True
            found = self._payload(one)
            if found is None:
                return False
            self._append_payload(one, *found)
            return True
        document = self._document(one) if one.kind else None
        if document is None:
            if one.row is None and not one.kind and one.place not in self._core.keeper.unread():
                self._release(self._group(0), one, "nothing needs it")  # it was told anew since
                return True
            return False
        self._append_document(one, *document)
        return True

    def _payload(self, one: Wanted) -> tuple[bytes, str] | None:
        assert one.row is not None
        payloads = self._backend.payloads
        try:
            _, stored, plain, flags = one.row.columns
            data: bytes | None = payloads.read(one.hash, Place(one.row.location, stored, plain, flags))
        except (HoldfastError, FileNotFoundError):
            data = None
        if data is not None:
            return data, HERE
        for origin in self._origins:
            data = right(origin.payload(one.hash, one.flags), one.hash, one.flags)
            if data is not None:
                self._fetched += len(data)
                return data, origin.name
        for owner in self._owners.get(one.hash, ()):
            found = self._from_owner(one, owner)
            if found is not None:
                return found
        if one.flags & FLAG_BLOB:
            return self._range(one, one.hash, one.row.columns[2], 0, one.row.columns[2])
        return None

    def _from_owner(self, one: Wanted, owner: Owner) -> tuple[bytes, str] | None:
        assert one.row is not None
        if owner.offset is not None:
            return self._range(one, owner.blob, owner.size, owner.offset, one.row.columns[2])
        if owner.kind == Kind.OUTBOARD_PAGE:
            for page in self._outboard_pages(owner.blob):
                if _native.blake3(page) == one.hash:
                    return page, COMPUTED
        return None

    def _range(
        self, one: Wanted, blob: bytes, size: int, offset: int, length: int
    ) -> tuple[bytes, str] | None:
        for origin in self._origins:
            for part in origin.ranges(blob, size, offset, length):
                data = right(part, one.hash, one.flags)
                if data is not None:
                    self._fetched += len(data)
                    return data, origin.name
        return None

    def _outboard_pages(self, blob: bytes) -> Iterator[bytes]:
        """Compute the outboard of a blob from its data, and give its pages, inner ones too."""
        core = self._core
        pages: list[bytes] = []

        def emit(page: bytes) -> bytes:
            pages.append(page)
            return _native.blake3(page)

        try:
            reader = core.backend.reader(core.blob(blob))
            hasher = _native.BlobHasher()
            writer = StreamWriter(emit)
            with OutboardBuilder() as builder:
                for piece in reader.iter_bytes(0, reader.size_bytes):
                    hasher.update(piece)
                    builder.feed(hasher.take_groups())
                root, rest = hasher.finish()
                builder.feed(rest)
                for part in builder.finish(reader.size_bytes):
                    writer.write(part)
                    yield from _drain(pages)
                writer.finish()
            if root == blob:
                yield from _drain(pages)
        except (HoldfastError, *MENDABLE):
            return

    def _document(self, one: Wanted) -> tuple[bytes, str] | None:
        """Give the document of a record: what its row says, its own bytes but for one bit, or another store's."""
        known = None if one.row is None else one.row.document
        if known is not None and (not one.hash or _native.blake3(known) == one.hash):
            return known, CATALOG
        raw = self._raw(one)
        if raw is not None and one.hash:
            if _native.blake3(raw) == one.hash:
                return raw, HERE
            mended = mend_bit(raw, lambda trial: _native.blake3(trial) == one.hash)
            if mended is not None:
                return mended, COMPUTED
        if one.kind == Kind.BLOB and one.row is not None:
            if not one.hash:  # not damaged, but the end of its segment, or its commit, is gone
                return self._description(one.row)
            for origin in self._origins:
                document = origin.blob_document(one.row.key)
                if document is not None and _native.blake3(document) == one.hash:
                    return document, origin.name
            return None
        return self._all_documents().get(one.hash) or self._from_copy(one)

    def _description(self, row: Row) -> tuple[bytes, str] | None:
        """Give what describes a blob as it lies here, if that is sound."""
        stored = row.columns[2 if row.table == "blobs" else 1]
        try:
            document = self._backend.payloads.read_document(row.key, row.location, stored)
            return (document, HERE) if parse_blob(document).hash == row.key else None
        except (HoldfastError, *MENDABLE):
            return None

    def _from_copy(self, one: Wanted) -> tuple[bytes, str] | None:
        """Give a payload as another copy of this very store has it at the same place."""
        index = None if one.place is None else read_segment(self._core, one.place >> 32)
        if one.place is None or index is None:
            return None
        start = one.place & OFFSET_MASK
        for entry in iter_entries(slice_entries(index.entries, start, start + 1)):
            later = slice_entries(index.entries, start, 1 << 32)
            record = self._copy_of(one.place >> 32, start, entry.stop, later)
            if record is not None and _native.blake3(record[HEADER_BYTES:]) == one.hash:
                return record[HEADER_BYTES:], COPY
        return None

    def _raw(self, one: Wanted) -> bytes | None:
        """Read a damaged payload as it lies."""
        if one.place is None:
            return None
        index = read_segment(self._core, one.place >> 32)
        offset = one.place & OFFSET_MASK
        for entry in iter_entries(index.entries) if index is not None else ():
            if entry.offset == offset:
                try:
                    return self._backend.payloads.handles.read(
                        one.place >> 32, offset + HEADER_BYTES, entry.stored_bytes
                    )
                except (BackendError, OSError):
                    return None
        return None

    def _all_documents(self) -> dict[bytes, tuple[bytes, str]]:
        """Give, by hash, the documents that this catalog or another store has: looked for once, when one is needed."""
        if self._documents is None:
            wanted = {hash_ for _, hash_, _ in self._core.catalog.quarantined()}
            found: dict[bytes, tuple[bytes, str]] = {}
            places: Iterable[tuple[str, Iterable[Row]]] = [
                (CATALOG, iter_rows(self._core.catalog)),
                *((origin.name, origin.rows()) for origin in self._origins),
            ]
            for name, rows in places:
                for row in rows:
                    document = row.document
                    if document is not None and (hash_ := _native.blake3(document)) in wanted:
                        found.setdefault(hash_, (document, name))
            self._documents = found
        return self._documents

    # -- describing anew, and what is nowhere

    def _describe_again(self, one: Wanted) -> bool:
        """Store a whole blob once more, from verified bytes, where what describes it cannot be had as it was."""
        if one.kind == Kind.BLOB and one.row is not None:
            blobs = [one.row.key]
        elif one.kind == Kind.MANIFEST_PAGE:
            blobs = list(dict.fromkeys(owner.blob for owner in self._owners.get(one.hash, ())))
        else:
            return False
        done = bool(blobs)
        for blob in blobs:
            rows = rows_at(self._core.catalog, [one.place] if one.place is not None else [], ())
            is_there = self._core.catalog.find_blob(blob)
            if is_there is None or (one.kind == Kind.BLOB and not any(row.key == blob for row in rows)):
                continue  # brought back by another of its pieces
            done &= self._store_again(blob, is_there.size, is_there.created_ms, one, is_there.location)
        return done

    def _store_again(
        self, blob: bytes, size: int | None, time_ms: int, one: Wanted | None, described: int | None
    ) -> bool:
        for origin in self._origins:
            for pieces in origin.blobs(blob, size):
                if self._ingest(blob, pieces, time_ms, one, described):
                    self._note(
                        "blob" if one is None else _name(one.kind),
                        blob,
                        None if one is None or one.place is None else one.place >> 32,
                        None if one is None or one.place is None else one.place & OFFSET_MASK,
                        origin.name,
                    )
                    return True
        return False

    def _ingest(
        self, blob: bytes, pieces: Iterator[bytes], time_ms: int, one: Wanted | None, described: int | None
    ) -> bool:
        with self._core.adding(time_ms=time_ms) as (group, ingest):
            try:
                stored = ingest.add(pieces)
            except BackendError:
                raise
            except (IntegrityError, NotFound, OSError):  # the source is no better
                group.abort()
                return False
            if stored.hash != blob:
                group.abort()
                return False
            if one is not None:
                self._release(group, one, "stored anew")
                if described is not None and one.place != described:  # what names the old pages
                    old = Wanted(described, blob, Kind.BLOB, 0, 0, None, "")
                    self._release(group, old, "described anew")
            self._fetched += stored.size_bytes
            group.commit()
        return True

    def _supply(self, lack: Lack) -> None:
        """Bring what a blob lacks and no place is known for."""
        one = Wanted(None, lack.piece, Kind.DATA, 0, 0, None, "")
        row = self._core.catalog.find_blob(lack.blob)
        if lack.piece != lack.blob and row is not None:
            for origin in self._origins:
                data = right(origin.payload(lack.piece, 0), lack.piece, 0)
                found = (data, origin.name) if data is not None else None
                if found is None and lack.offset is not None and lack.length is not None:
                    found = self._range(one, lack.blob, row.size, lack.offset, lack.length)
                if found is not None:
                    kind = Kind.DATA if lack.offset is not None else lack.kind
                    self._append_payload(one._replace(kind=kind), *found)
                    return
            if lack.kind == Kind.OUTBOARD_PAGE:
                for page in self._outboard_pages(lack.blob):
                    if _native.blake3(page) == lack.piece:
                        self._append_payload(one._replace(kind=lack.kind), page, COMPUTED)
                        return
            if lack.kind == Kind.MANIFEST_PAGE:
                old = Wanted(row.location, lack.blob, Kind.BLOB, 0, 0, None, "")
                if self._store_again(lack.blob, row.size, row.created_ms, old, row.location):
                    return
        elif lack.piece == lack.blob and row is None:
            size = self._size_of(lack.blob)
            if self._store_again(lack.blob, size, 0, None, None):
                return
        elif row is not None and row.flags & KIND_MASK == KIND_BLOB:
            old = Wanted(row.location, lack.blob, Kind.BLOB, 0, 0, None, "")
            if self._store_again(lack.blob, row.size, row.created_ms, old, row.location):
                return
        self._missing.append(lack.problem)

    def _size_of(self, blob: bytes) -> int | None:
        sql = "SELECT size FROM artifacts WHERE hash = ? AND format = 0 LIMIT 1"
        rows = self._core.catalog.ask(sql, (blob,))
        return int(rows[0][0]) if rows else None

    # -- writing

    def _append_payload(self, one: Wanted, data: bytes, source: str) -> None:
        group = self._group(one.time_ms)
        if one.place is not None:
            self._release(group, one, f"from {source}")
        stored, packed = [data], bytes((0,))
        if self._backend.compression == "zstd" and one.kind == Kind.DATA:
            out, marks = compress([data])
            stored, packed = [bytes(out[0])], bytes(marks)
        group.add(bytes((one.kind,)), bytes((packed[0] | one.flags,)), one.hash, [len(data)], stored)
        self._took(len(data))
        self._note_one(one, source)

    def _append_document(self, one: Wanted, document: bytes, source: str) -> None:
        group = self._group(one.time_ms)
        if one.place is not None:
            self._release(group, one, f"from {source}")
        group.add_one(Kind(one.kind), document)
        self._took(len(document))
        self._note_one(one, source)

    def _release(self, group: Group, one: Wanted, reason: str) -> None:
        """Say that what stood at a place is stored anew (or given up): the place is nobody's."""
        assert one.place is not None
        document = QuarantineDocument(one.place >> 32, one.place & OFFSET_MASK, one.hash or bytes(32), reason)
        group.add_one(Kind.REPAIR, encode_quarantine(document))

    def _group(self, time_ms: int) -> Group:
        group = self._groups.get(time_ms)
        if group is None:
            group = self._groups[time_ms] = self._backend.group(time_ms=time_ms)
        return group

    def _took(self, more_bytes: int) -> None:
        self._pending += more_bytes + 3 * HEADER_BYTES
        if self._pending > GROUP_BYTES:
            self._commit()

    def _commit(self) -> None:
        groups = [group for group in self._groups.values() if not group.is_empty]
        self._groups, self._pending = {}, 0
        if groups:
            self._backend.commit_all(groups)

    # -- telling

    def _note_one(self, one: Wanted, source: str) -> None:
        place = one.place
        self._note(
            _name(one.kind),
            one.hash,
            None if place is None else place >> 32,
            None if place is None else place & OFFSET_MASK,
            source,
        )

    def _note(
        self, what: str, hash_: bytes | None, segment: int | None, offset: int | None, source: str
    ) -> None:
        self._mended.append(
            Mended(
                what=what,
                hash=Hash(hash_) if hash_ else None,
                segment=segment,
                offset_bytes=offset,
                source=source,
            )
        )

    def _say_missing(self, one: Wanted) -> None:
        place = one.place
        self._missing.append(
            Problem(
                kind="missing_chunk",
                message=f"no source has this {_name(one.kind)} ({one.reason})",
                hash=Hash(one.hash) if one.hash else None,
                segment=None if place is None else place >> 32,
                offset_bytes=None if place is None else place & OFFSET_MASK,
                path=None if place is None else segment_path(self._backend.root, place >> 32),
            )
        )

    def _tell(self) -> None:
        if self._progress is not None:
            self._progress(Progress(phase="repair", done_bytes=self._fetched, done_items=len(self._mended)))


def _drain(pages: list[bytes]) -> Iterator[bytes]:
    while pages:
        yield pages.pop(0)


def _runs(segments: Sequence[int]) -> list[range]:
    runs: list[range] = []
    for segment in sorted(segments):
        if runs and runs[-1].stop == segment:
            runs[-1] = range(runs[-1].start, segment + 1)
        else:
            runs.append(range(segment, segment + 1))
    return runs


def _name(kind: int) -> str:
    if kind == Kind.DATA:
        return "chunk"
    try:
        return Kind(kind).name.lower().replace("_", " ")
    except ValueError:
        return "record"


def repair(
    core: LogCore, origins: Sequence[Origin], progress: ProgressCallback | None, *, give_up: bool = False
) -> RepairReport:
    """Bring back what is damaged or missing, as far as the origins have it."""
    return Repair(core, origins, progress).run(give_up=give_up)
