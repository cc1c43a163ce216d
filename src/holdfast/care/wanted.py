"""What repair has to do: the records that are to be stored anew, and the blobs that they belong to."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Iterator, Sequence
from typing import Any, Final, NamedTuple

from holdfast import _native
from holdfast.backend.log.payloads import OFFSET_MASK
from holdfast.care.compare import read_segment
from holdfast.care.rows import Row, iter_rows, rows_at
from holdfast.catalog.damage import NOWHERE
from holdfast.core import MENDABLE
from holdfast.errors import HoldfastError
from holdfast.facts import FLAG_BLOB, KIND_BLOB, KIND_MASK, KIND_SHIFT
from holdfast.log_core import LogCore
from holdfast.wire.record import FLAG_SHA256, HEADER_BYTES, Kind, iter_entries, parse_commit

_MUST: Final = {1: Kind.DATA, 2: Kind.OUTBOARD_PAGE, 3: Kind.MANIFEST_PAGE, 4: Kind.BLOB}
GONE: Final = "its segment, or the one with its commit, is gone"


class Wanted(NamedTuple):
    """One record that is to be stored anew. `place` is None for what is nowhere."""

    place: int | None
    hash: bytes
    """Of the record: what its payload must hash to."""
    kind: int
    flags: int
    time_ms: int
    """When its group was committed, where that is a fact; else 0."""
    row: Row | None
    reason: str


DOCUMENTS: Final = {
    "artifacts": int(Kind.ARTIFACT),
    "tombstones": int(Kind.TOMBSTONE),
    "tags": int(Kind.TAG),
    "uploads": int(Kind.UPLOAD),
}
"""The kind of the record that a row of each of these tables comes from."""


class Owner(NamedTuple):
    """A stretch of a blob that a chunk is; or a page of what describes the blob (offset None)."""

    blob: bytes
    size: int
    offset: int | None
    kind: int


def lost_segments(core: LogCore) -> list[int]:
    """Give the segments that are gone, or shorter than what was stored in them."""
    known = core.catalog.segments()
    return [segment for segment, _, _ in core.backend.lost_segments(known)]


def find_wanted(core: LogCore, lost: Sequence[int], torn: Collection[int]) -> list[Wanted]:
    """Give what is to be stored anew; what stood in lost segments goes into quarantine first.

    So does what stood in stretches of `torn` segments that are no records any more, and what was committed there.
    """
    catalog = core.catalog
    homeless = [*rows_at(catalog, (), lost), *_torn_rows(core, torn)]
    homeless += _uncommitted(core, lost) if lost or torn else []
    gone = {row.location: (row.record_hash or bytes(32), GONE) for row in homeless}
    core.backend.quarantine(gone, catalog.known_damage(sorted(gone)))  # so that nothing relies on it
    bad = {place: (hash_, reason) for place, hash_, reason in catalog.quarantined()}
    wanted: list[Wanted] = []
    seen: set[int] = set()
    for row in [*rows_at(catalog, list(bad), ()), *homeless]:
        hash_, reason = bad.get(row.location, (row.record_hash or b"", GONE))
        if row.location in seen:
            continue
        seen.add(row.location)
        wanted.append(_wanted_row(core, row, hash_ if hash_ != bytes(32) else b"", reason))
    for place, (hash_, reason) in bad.items():
        if place not in seen:
            kind, flags, time_ms = _record_at(core, place)
            wanted.append(Wanted(place, hash_, kind, flags, time_ms, None, reason))
    return wanted


def _uncommitted(core: LogCore, lost: Sequence[int]) -> list[Row]:
    """Give the rows of records whose commit stood in a segment that is gone: a rebuild would not have them."""
    extents: dict[int, list[tuple[int, int]]] = {}
    for segment in set(core.backend.segment_ids()) - set(lost):
        index = read_segment(core, segment)
        for entry in iter_entries(index.entries) if index is not None else ():
            if entry.kind == Kind.COMMIT:
                handles = core.backend.payloads.handles
                payload = handles.read(segment, entry.offset + HEADER_BYTES, entry.stored_bytes)
                commit = parse_commit(payload) if _native.blake3(payload) == entry.hash else None
                for extent in commit.extents if commit is not None else ():
                    extents.setdefault(extent.segment, []).append((extent.start, extent.stop))
    for runs in extents.values():
        runs.sort()

    def is_named(place: int) -> bool:
        offset, runs = place & OFFSET_MASK, extents.get(place >> 32, [])
        at = bisect_right(runs, (offset, 1 << 32)) - 1
        return at >= 0 and offset < runs[at][1]

    rows = iter_rows(core.catalog)
    return [
        row
        for row in rows
        if row.location >> 32 not in lost and row.location != NOWHERE and not is_named(row.location)
    ]


def _torn_rows(core: LogCore, torn: Collection[int]) -> list[Row]:
    """Give the rows in some segments at whose places no record is."""
    rows: list[Row] = []
    for segment in torn:
        index = read_segment(core, segment)
        if index is not None:
            starts = {entry.offset for entry in iter_entries(index.entries)}
            there = rows_at(core.catalog, (), [segment])
            rows += [row for row in there if row.location & OFFSET_MASK not in starts]
    return rows


def _wanted_row(core: LogCore, row: Row, hash_: bytes, reason: str) -> Wanted:
    catalog = core.catalog
    if row.table in ("data", "copies"):
        flags = row.columns[3]
        if flags & KIND_MASK != KIND_BLOB:
            kind = _MUST[flags >> KIND_SHIFT & 0x7F]
            ((whole, created_ms),) = catalog.ask(
                "SELECT flags, ifnull(created_ms, 0) FROM data WHERE hash = ?", (row.columns[0],)
            ) or ((0, 0),)
            role = whole & FLAG_BLOB
            own = flags & FLAG_SHA256 | role
            return Wanted(row.location, row.key, kind, own, created_ms if role else 0, row, reason)
    if row.table in ("blobs", "copies"):
        found = catalog.ask("SELECT created_ms FROM blobs WHERE hash = ?", (row.columns[0],))
        return Wanted(row.location, hash_, Kind.BLOB, 0, found[0][0] if found else 0, row, reason)
    return Wanted(row.location, hash_, DOCUMENTS[row.table], 0, 0, row, reason)


def _record_at(core: LogCore, place: int) -> tuple[int, int, int]:
    """Give kind, flags and time of a record that no row of the catalog names; 0 where the segment has nothing."""
    index = read_segment(core, place >> 32)
    offset = place & OFFSET_MASK
    kind, flags = 0, 0
    for entry in iter_entries(index.entries) if index is not None else ():
        if entry.offset == offset:
            kind, flags = entry.kind, entry.flags & FLAG_SHA256
        elif kind and entry.kind == Kind.COMMIT:
            handles = core.backend.payloads.handles
            commit = parse_commit(handles.read(place >> 32, entry.offset + HEADER_BYTES, entry.stored_bytes))
            return kind, flags, 0 if commit is None else commit.time_ms
    return kind, flags, 0


def find_owners(core: LogCore, wanted: set[bytes]) -> dict[bytes, list[Owner]]:
    """See which blobs the wanted pieces belong to, and where in them."""
    owners: dict[bytes, list[Owner]] = {}
    if not wanted:
        return owners
    for row in list(core.catalog.iter_blobs()):
        if row.flags & KIND_MASK != KIND_BLOB:
            continue
        try:
            reader = core.backend.large_reader(row)
        except (HoldfastError, *MENDABLE):
            continue
        for kind, pages in (
            (Kind.MANIFEST_PAGE, reader.manifest.iter_pages()),
            (Kind.OUTBOARD_PAGE, reader.outboard_stream.iter_pages()),
        ):
            _own(owners, row, kind, wanted, pages)
        try:
            for start, _, _, digest in reader.manifest.iter_chunks():
                if digest in wanted:
                    owner = Owner(row.hash, row.size, start, Kind.DATA)
                    owners.setdefault(digest, []).append(owner)
        except (HoldfastError, *MENDABLE):
            continue
    return owners


def _own(
    owners: dict[bytes, list[Owner]],
    row: Any,
    kind: int,
    wanted: set[bytes],
    pages: Iterator[tuple[bytes, Any]],
) -> None:
    try:
        for hash_, _ in pages:
            if hash_ in wanted:
                owners.setdefault(hash_, []).append(Owner(row.hash, row.size, None, kind))
    except (HoldfastError, *MENDABLE):
        return
