"""Holding the catalog against the segments: each row names a record that is there and says what it says.

What differs is either damage of a segment, which is reported, or a fault of the catalog, which is a cache and made
anew. Then it is seen that nothing which is named lacks a piece. Memory: the index of one segment.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, groupby
from typing import Any, NamedTuple

from holdfast.backend.log.layout import segment_path
from holdfast.backend.log.payloads import OFFSET_MASK
from holdfast.backend.log.segment import SegmentIndex, read_index
from holdfast.care.report import Report, problem_of
from holdfast.care.rows import Row, is_still_there, iter_rows
from holdfast.catalog.damage import DOUBTFUL
from holdfast.core import MENDABLE
from holdfast.errors import HoldfastError, MissingChunk
from holdfast.log_core import LogCore
from holdfast.reading import Reading
from holdfast.reports import Problem
from holdfast.types import HASH_BYTES, Hash
from holdfast.wire.record import ENTRY_BYTES, Entry, Kind, iter_entries


def compare(core: LogCore, report: Report) -> str | None:
    """Report what is damaged or missing; give why the catalog is to be made anew, or None when it is right."""
    for segment, rows in groupby(iter_rows(core.catalog), lambda row: row.location >> 32):
        wrong = _compare_segment(core, segment, list(rows), report)
        if wrong is not None:
            return wrong
    lacks = False
    for lack in iter_missing(core):
        report.add(lack.problem)
        lacks = True
    if lacks and not core.read_only:
        core.catalog.set_meta(DOUBTFUL, 1)  # who puts such a blob again brings what it lacks
    return None


def _compare_segment(core: LogCore, segment: int, rows: list[Row], report: Report) -> str | None:
    path = segment_path(core.backend.root, segment)
    index = read_segment(core, segment)
    reported: set[int] = set()
    broken = {problem.offset_bytes for problem in index.problems} if index is not None else set()
    cuts = broken_stretches(index) if index is not None else []
    for row, entry in _with_entries(rows, b"" if index is None else index.entries):
        if entry is not None and row.matches(entry):
            continue
        if not is_still_there(core.catalog, row):
            continue  # moved or changed since
        offset = row.location & OFFSET_MASK
        gone = index is None or offset >= index.size_bytes
        if gone or offset in broken or any(start <= offset < stop for start, stop in cuts):
            if offset not in reported:
                reported.add(offset)
                if not gone:
                    core.backend.payloads.note(row.location, row.record_hash or row.key, "scrub: header")
                report.add(
                    Problem(
                        kind=MissingChunk.kind,
                        message="the catalog names a record that is not there",
                        hash=Hash(row.key) if len(row.key) == HASH_BYTES else None,
                        segment=segment,
                        offset_bytes=offset,
                        path=path,
                    )
                )
            continue
        return f"it says of segment {segment}, offset {offset}, what is not there"
    return None


def iter_homeless(core: LogCore) -> Iterator[tuple[Row, Entry | None]]:
    """Give the rows at whose place there is no such record, and what is there in its stead."""
    for segment, rows in groupby(iter_rows(core.catalog), lambda row: row.location >> 32):
        index = read_segment(core, segment)
        for row, entry in _with_entries(list(rows), b"" if index is None else index.entries):
            if entry is None or not row.matches(entry):
                yield row, entry


def read_segment(core: LogCore, segment: int) -> SegmentIndex | None:
    """Give the index of a segment; None when the file is not there."""
    disk = core.backend.disk
    path = segment_path(core.backend.root, segment)
    try:
        handle = disk.open(path, "r")
    except FileNotFoundError:
        return None
    try:
        return read_index(disk, handle, segment, path)
    finally:
        disk.close(handle)


def broken_stretches(index: SegmentIndex) -> list[tuple[int, int]]:
    """Give the runs of bytes, from where a record should begin, in which no record is."""
    stretches = []
    entries = iter_entries(index.entries)
    starts = [entry.offset for entry in entries]
    for problem in index.problems:
        start = problem.offset_bytes or 0
        stretches.append((start, next((at for at in starts if at > start), index.size_bytes)))
    return stretches


def _with_entries(rows: list[Row], entries: bytes) -> Iterator[tuple[Row, Entry | None]]:
    """Give each row with the entry at its place; both come in the order of places."""
    step = 4_096 * ENTRY_BYTES
    parts = (iter_entries(entries[first : first + step]) for first in range(0, len(entries), step))
    left = chain.from_iterable(parts)
    entry = next(left, None)
    for row in rows:
        offset = row.location & OFFSET_MASK
        while entry is not None and entry.offset < offset:
            entry = next(left, None)
        yield row, entry if entry is not None and entry.offset == offset else None


class Lack(NamedTuple):
    """A piece that something names and that is not here: of which blob (its hash), and where in it.

    `offset` and `length` are None for what is no stretch of the blob: a page, or the blob as a whole.
    """

    blob: bytes
    piece: bytes
    offset: int | None
    length: int | None
    kind: int
    problem: Problem


def iter_missing(core: LogCore) -> Iterator[Lack]:
    """Give what named blobs lack: the blobs themselves, pages, chunks. Blobs that nothing names are garbage."""
    catalog = core.catalog
    for blob in _named(core):
        row = catalog.find_blob(blob)
        if row is None:
            problem = Problem(
                kind=MissingChunk.kind,
                message=f"the blob {blob.hex()} is named and not here",
                hash=Hash(blob),
            )
            yield Lack(blob, blob, None, None, Kind.BLOB, problem)
        elif row.flags >> 8 == Kind.BLOB & 0x7F:
            yield from _lacks(core, blob)


def _named(core: LogCore) -> Iterator[bytes]:
    """Give each blob that an artifact, a tag, or something required names, children of sequences included."""
    catalog = core.catalog
    sequences: set[bytes] = set()
    for hash_, format_ in catalog.iter_named():
        yield hash_
        if format_:
            sequences.add(hash_)
    seen: set[bytes] = set()
    while sequences:
        hash_ = sequences.pop()
        seen.add(hash_)
        try:
            data = Reading(core).read(Hash(hash_), 0, None)
        except MENDABLE:
            raise
        except HoldfastError:
            continue  # damaged: said by the scrub itself, or not here
        for at in range(0, len(data) - len(data) % HASH_BYTES, HASH_BYTES):
            yield data[at : at + HASH_BYTES]


def _lacks(core: LogCore, blob: bytes) -> Iterator[Lack]:
    catalog = core.catalog
    try:
        reader = core.backend.large_reader(core.blob(blob))
        trees = ((Kind.MANIFEST_PAGE, reader.manifest), (Kind.OUTBOARD_PAGE, reader.outboard_stream))
        for kind, tree in trees:
            pages = [hash_ for hash_, _ in tree.iter_pages()]
            found = catalog.find_data(pages)
            for page in pages:
                if page not in found:
                    yield _lack(blob, page, None, None, kind)
        for leaf in reader.manifest.iter_leaves():
            found = catalog.find_data([entry[2] for entry in leaf.entries])
            for at, (_, length, digest) in zip(leaf.starts, leaf.entries, strict=False):
                if digest not in found:
                    yield _lack(blob, digest, at, length, Kind.DATA)
    except MENDABLE as error:
        fault: Any = getattr(error, "fault", None)
        if fault is None:
            raise
        yield Lack(blob, blob, None, None, Kind.BLOB, problem_of(fault, hash=Hash(blob)))
    except HoldfastError as error:
        yield Lack(blob, blob, None, None, Kind.BLOB, problem_of(error, hash=Hash(blob)))


def _lack(blob: bytes, piece: bytes, offset: int | None, length: int | None, kind: int) -> Lack:
    where = "" if offset is None else f" at offset {offset}"
    problem = Problem(
        kind=MissingChunk.kind,
        message=f"a piece of blob {blob.hex()}{where} is not here",
        hash=Hash(blob),
        offset_bytes=offset,
    )
    return Lack(blob, piece, offset, length, kind, problem)
