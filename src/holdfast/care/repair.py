"""Repair: damaged and missing pieces brought back from elsewhere, as new records; the old places become nobody's.

It works on the damage that is known: what is in quarantine, segments that are broken or gone, pieces that blobs lack.
First what is derived is put back in place (`framing`). Then each piece is looked for in the store itself, in the
sources by its hash, and as a range of the blobs that it belongs to; verified, and appended together with its repair
record. What describes blobs is computed anew from verified bytes.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Final, NamedTuple

from holdfast import _native
from holdfast.backend.log.layout import segment_path
from holdfast.backend.log.payloads import OFFSET_MASK
from holdfast.backend.log.segment import FOREIGN
from holdfast.care.compare import Lack, iter_homeless, iter_missing, read_segment
from holdfast.care.finder import CATALOG, COMPUTED, COPY, HERE, Finder
from holdfast.care.framing import UNKNOWN, Framing
from holdfast.care.mending import Mending, name_of
from holdfast.care.origins import Origin, right
from holdfast.care.rows import Row, rows_at
from holdfast.care.wanted import DOCUMENTS, Wanted, find_owners, find_wanted, lost_segments
from holdfast.catalog.damage import DOUBTFUL
from holdfast.errors import BackendError, CorruptSegment, IntegrityError, NotFound
from holdfast.facts import (
    KIND_BLOB,
    KIND_MASK,
    SEGMENT_OPEN,
    SEGMENT_QUARANTINED,
    SEGMENT_SEALED,
    SEGMENT_SUPERSEDED,
)
from holdfast.log_core import LogCore
from holdfast.recovery import WouldForget
from holdfast.reports import Problem, RepairReport
from holdfast.types import Progress, ProgressCallback
from holdfast.wire.document import encode_retired
from holdfast.wire.record import (
    HEADER_BYTES,
    PAYLOAD_KINDS,
    Entry,
    Kind,
    iter_entries,
)

MAX_LISTED: Final = 10_000


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
        self._finder = Finder(core, origins)
        self._mending = Mending(core)
        self._torn: list[Torn] = []
        self._foreign: set[int] = set()
        """Segments of others that lie in the place of ours: they are left where they are."""

    def run(self, *, give_up: bool) -> RepairReport:
        started = time.monotonic()
        self._backend.require_writing()
        self._core.write_down_damage()
        with self._backend.operation():
            self._mend_framing()
            lost = lost_segments(self._core)
            wanted = find_wanted(self._core, lost, {one.place >> 32 for one in self._torn})
            self._finder.owners = find_owners(self._core, {one.hash for one in wanted})
            left = [one for one in wanted if not self._bring_back(one)]
            self._mending.commit()
            left = [one for one in left if not self._describe_again(one)]
            if not left or give_up:
                self._say_again()
            told = {one.row.key for one in left if one.row is not None} | {one.hash for one in left}
            for lack in list(iter_missing(self._core)):
                if lack.blob not in told and lack.piece not in told:
                    self._supply(lack)
            self._mending.commit()
            for one in left:
                self._mending.say_missing(one)
            if give_up and (left or self._torn):
                self._core.catalog.set_meta(DOUBTFUL, 1)  # blobs lack these pieces from here on
            if give_up:
                for one in left:
                    if one.place is not None:
                        self._mending.let_go(one, "given up")
            self._settle(left, give_up)
            kept = {one.place >> 32 for one in left if one.place is not None} if not give_up else set()
            gone = [segment for segment in lost if segment not in kept | self._foreign]
            if gone:
                self._mending.group(0).add_one(Kind.RETIRED, encode_retired(_runs(gone)))
            self._mending.commit()
            if not self._mending.missing or give_up:
                self._let_names_go(give_up=give_up)
        if not self._mending.missing:
            self._core.keeper.problems = ()
        return RepairReport(
            ok=not self._mending.missing,
            repaired=tuple(self._mending.mended[:MAX_LISTED]),
            repaired_count=len(self._mending.mended),
            missing=tuple(self._mending.missing[:MAX_LISTED]),
            missing_count=len(self._mending.missing),
            fetched_bytes=self._finder.fetched_bytes,
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
        self._foreign = foreign
        for segment in sorted(foreign):
            self._mending.missing.append(
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
            framing = Framing(self._backend, segment, applied, self._finder.copy_of)
            try:
                found = framing.mend()
            finally:
                framing.close()
            for offset, what in found.done:
                source = COPY if what == "stretch" else COMPUTED
                self._mending.note(what, None, segment << 32 | offset, source)
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
                    self._mending.append_document(one, document, CATALOG)
            self._mending.commit()

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
            self._mending.missing.append(Problem(kind=CorruptSegment.kind, message=str(error)))

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
                self._mending.let_go(Wanted(torn.place, b"", 0, 0, 0, None, ""), reason)
                if not give_up:
                    self._mending.note("stretch", None, torn.place, HERE)
                continue
            kept.add(segment)
            self._mending.missing.append(
                Problem(
                    kind="corrupt_segment",
                    message=torn.what,
                    segment=segment,
                    offset_bytes=torn.place & OFFSET_MASK,
                    path=segment_path(self._backend.root, segment),
                )
            )
        self._mending.commit()
        known = self._core.catalog.segments()
        for segment in {torn.place >> 32 for torn in self._torn} - kept:
            if known.get(segment, (0, SEGMENT_OPEN))[1] == SEGMENT_QUARANTINED:
                self._core.catalog.set_segment_state(segment, SEGMENT_SEALED)  # nobody appends there again

    # -- bringing back

    def _bring_back(self, one: Wanted) -> bool:
        self._tell()
        if one.kind in PAYLOAD_KINDS:
            if one.row is None:  # nothing names it: garbage, or stored anew since
                self._mending.let_go(one, "nothing needs it")
                return True
            found = self._finder.payload(one)
            if found is None:
                return False
            self._mending.append_payload(one, *found)
            return True
        document = self._finder.document(one) if one.kind else None
        if document is None:
            if one.row is None and not one.kind and one.place not in self._core.keeper.unread():
                self._mending.let_go(one, "nothing needs it")  # it was told anew since
                return True
            return False
        self._mending.append_document(one, *document)
        return True

    # -- describing anew, and what is nowhere

    def _describe_again(self, one: Wanted) -> bool:
        """Store a whole blob once more, from verified bytes, where what describes it cannot be had as it was."""
        if one.kind == Kind.BLOB and one.row is not None:
            blobs = [one.row.key]
        elif one.kind == Kind.MANIFEST_PAGE:
            blobs = list(dict.fromkeys(owner.blob for owner in self._finder.owners.get(one.hash, ())))
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
                    what, place = ("blob", None) if one is None else (name_of(one.kind), one.place)
                    self._mending.note(what, blob, place, origin.name)
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
                self._mending.release(group, one, "stored anew")
                if described is not None and one.place != described:  # what names the old pages
                    old = Wanted(described, blob, Kind.BLOB, 0, 0, None, "")
                    self._mending.release(group, old, "described anew")
            self._finder.fetched_bytes += stored.size_bytes
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
                    found = self._finder.range(one, lack.blob, row.size, lack.offset, lack.length)
                if found is not None:
                    kind = Kind.DATA if lack.offset is not None else lack.kind
                    self._mending.append_payload(one._replace(kind=kind), *found)
                    return
            if lack.kind == Kind.OUTBOARD_PAGE:
                for page in self._finder.outboard_pages(lack.blob):
                    if _native.blake3(page) == lack.piece:
                        self._mending.append_payload(one._replace(kind=lack.kind), page, COMPUTED)
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
        self._mending.missing.append(lack.problem)

    def _size_of(self, blob: bytes) -> int | None:
        sql = "SELECT size FROM artifacts WHERE hash = ? AND format = 0 LIMIT 1"
        rows = self._core.catalog.ask(sql, (blob,))
        return int(rows[0][0]) if rows else None

    def _tell(self) -> None:
        if self._progress is not None:
            done = len(self._mending.mended)
            self._progress(Progress(phase="repair", done_bytes=self._finder.fetched_bytes, done_items=done))


def _runs(segments: Sequence[int]) -> list[range]:
    runs: list[range] = []
    for segment in sorted(segments):
        if runs and runs[-1].stop == segment:
            runs[-1] = range(runs[-1].start, segment + 1)
        else:
            runs.append(range(segment, segment + 1))
    return runs


def repair(
    core: LogCore, origins: Sequence[Origin], progress: ProgressCallback | None, *, give_up: bool = False
) -> RepairReport:
    """Bring back what is damaged or missing, as far as the origins have it."""
    return Repair(core, origins, progress).run(give_up=give_up)
