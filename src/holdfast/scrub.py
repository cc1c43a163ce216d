"""Checking: one artifact or blob on demand (`verify`), everything at rest (`scrub`). Damage is reported, not raised."""

from __future__ import annotations

import threading
import time
from array import array
from bisect import bisect_left
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final

from holdfast import _native
from holdfast.backend.log.backend import LogBackend
from holdfast.backend.log.layout import segment_path
from holdfast.backend.log.payloads import OFFSET_MASK, matches
from holdfast.backend.log.reader import LargeReader
from holdfast.backend.log.segment import SegmentIndex, check_segment_header, read_index, slice_entries
from holdfast.bao import OutboardReader
from holdfast.core import MENDABLE, Core
from holdfast.errors import (
    BackendError,
    CorruptBlob,
    CorruptSegment,
    HoldfastError,
    IntegrityError,
    MissingChunk,
)
from holdfast.reading import Reading
from holdfast.types import BLOCK_BYTES, Hash, Problem, Progress, ProgressCallback, Ref, VerifyReport
from holdfast.wire.record import (
    ENTRY,
    ENTRY_BYTES,
    FLAG_BLOB,
    FLAG_SHA256,
    FLAG_ZSTD,
    HEADER_BYTES,
    MAX_RECORD_BYTES,
    SEGMENT_HEADER_BYTES,
    Entry,
    Kind,
    iter_entries,
)

MAX_PROBLEMS: Final = 10_000
READ_BYTES: Final = 4 << 20


class _Good:
    """What was found in one segment: offsets of good records, rising, and of bad ones, up to `stop`."""

    def __init__(self) -> None:
        self.offsets = array("I")
        self.bad: set[int] = set()
        self.stop = 0

    def has(self, offset: int) -> bool:
        at = bisect_left(self.offsets, offset)
        return at < len(self.offsets) and self.offsets[at] == offset


class Report:
    """Gathers what was checked and found; threads share it."""

    def __init__(self, phase: str, progress: ProgressCallback | None) -> None:
        self._started = time.monotonic()
        self._mutex = threading.Lock()
        self._phase = phase
        self._progress = progress
        self._problems: list[Problem] = []
        self._count = 0
        self.bytes = 0
        self.blobs = 0
        self.records = 0
        self.total_bytes: int | None = None

    def add(self, problem: Problem) -> None:
        with self._mutex:
            self._count += 1
            if len(self._problems) < MAX_PROBLEMS:
                self._problems.append(problem)

    def checked(self, more_bytes: int, records: int = 0, blobs: int = 0) -> None:
        with self._mutex:
            self.bytes += more_bytes
            self.records += records
            self.blobs += blobs
            done = self.bytes
        if self._progress is not None:
            self._progress(Progress(phase=self._phase, done_bytes=done, total_bytes=self.total_bytes))

    def finish(self) -> VerifyReport:
        self._problems.sort(key=lambda p: (p.segment or 0, p.offset_bytes or 0))
        return VerifyReport(
            ok=not self._count,
            problems=tuple(self._problems),
            problem_count=self._count,
            checked_bytes=self.bytes,
            checked_blobs=self.blobs,
            checked_records=self.records,
            seconds=time.monotonic() - self._started,
        )


def problem_of(error: HoldfastError, **more: object) -> Problem:
    """Turn an error into a line of a report."""
    evidence = {**error.evidence, **{key: value for key, value in more.items() if value is not None}}
    hash_ = evidence.get("hash")
    return Problem(
        kind=error.kind,
        message=str(error),
        hash=hash_ if isinstance(hash_, Hash) else None,
        segment=evidence.get("segment"),
        offset_bytes=evidence.get("offset_bytes"),
        path=evidence.get("path"),
    )


def verify(core: Core, ref: Ref, progress: ProgressCallback | None) -> VerifyReport:
    """Read all of a blob against its root, and its outboard; of a tree all its files."""
    with core.backend.operation():
        return _verify(core, ref, Report("verify", progress))


def _verify(core: Core, ref: Ref, report: Report) -> VerifyReport:
    hashes = [core.resolve(ref, claim=True).hash]
    if not isinstance(ref, Hash):
        entry = core.artifact(ref)
        if entry.format:
            core.claim(entry.hash, entry.format)
            try:
                children = dict.fromkeys(hash_ for _, hash_ in Reading(core).iter_collection(entry.hash))
                hashes += [child for child in children if child != entry.hash]
            except MENDABLE:
                raise
            except HoldfastError as error:
                report.add(problem_of(error))
    for hash_ in hashes:
        try:
            _verify_blob(core, hash_, report)
        except (BackendError, *MENDABLE):
            raise
        except HoldfastError as error:
            report.add(problem_of(error, hash=Hash(hash_)))
        report.blobs += 1
    return report.finish()


def _verify_blob(core: Core, hash_: bytes, report: Report) -> None:
    reader = core.backend.reader(core.blob(hash_))
    hasher = _native.BlobHasher()
    groups = bytearray()
    for piece in reader.iter_bytes(0, reader.size_bytes):
        hasher.update(piece)
        groups += hasher.take_groups()
        report.checked(len(piece))
    root, rest = hasher.finish()
    if root != hash_:
        raise CorruptBlob(
            f"blob {hash_.hex()} does not match its hash, though its chunks match theirs", hash=Hash(hash_)
        )
    if isinstance(reader, LargeReader):
        groups += rest
        outboard = OutboardReader(reader.size_bytes, hash_, reader.outboard_stream.read)
        step = 4_096
        blocks = -(-reader.size_bytes // BLOCK_BYTES)
        for first in range(0, blocks, step):
            count = min(step, blocks - first)
            if outboard.cvs(first, count) != groups[32 * first : 32 * (first + count)]:
                raise CorruptBlob(f"the outboard of blob {hash_.hex()} is of another blob", hash=Hash(hash_))


def scrub(core: Core, progress: ProgressCallback | None, *, drop_cache: bool = False) -> VerifyReport:
    """Read every record of every segment, then see that what the catalog names is there.

    Memory: two read buffers, and four bytes for each record of the store.
    """
    report = Report("scrub", progress)
    backend = core.backend
    with backend.operation():
        segments = backend.segment_ids()
        report.total_bytes = backend.disk_bytes()
        known = core.catalog.segments()
        good: dict[int, _Good] = {}
        with ThreadPoolExecutor(2, thread_name_prefix="holdfast-scrub") as pool:
            futures: list[tuple[int, Future[_Good]]] = []
            try:
                for segment in segments:
                    limit = known.get(segment, (0, 0))[0]
                    job = pool.submit(_scrub_segment, backend, segment, limit, report, drop_cache)
                    futures.append((segment, job))
                for segment, future in futures:
                    good[segment] = future.result()
            except BaseException:
                for _, future in futures:
                    future.cancel()
                raise
        _check_places(core, good, report)
    return report.finish()


def _scrub_segment(
    backend: LogBackend, segment: int, applied: int, report: Report, drop_cache: bool
) -> _Good:
    """Check one segment; gives the offsets of its good records, rising."""
    path = segment_path(backend.root, segment)
    good = _Good()
    try:
        handle = backend.disk.open(path, "r")
    except FileNotFoundError:
        return good  # compacted away meanwhile, or missing: the catalog's places tell
    try:
        if drop_cache:
            backend.disk.drop_cache(handle)
        if backend.disk.size(handle) <= SEGMENT_HEADER_BYTES and not applied:
            return good  # made a moment ago, or by somebody who died before it held anything
        problem = check_segment_header(backend.disk, handle, segment, backend.store.id, path)
        if problem is not None:
            report.add(problem)
        index = read_index(backend.disk, handle, segment, path)
        for found in index.problems:
            # Beyond what is applied, an open segment may end in what somebody is writing right now.
            if index.sealed or index.closed or (found.offset_bytes or 0) < applied:
                report.add(found)
        good.stop = index.records_stop
        step = 4_096 * ENTRY_BYTES
        entries = index.entries
        if not (index.sealed or index.closed):  # what follows is being written, or was refused
            good.stop = applied
            entries = slice_entries(entries, 0, applied)
        for start in range(0, len(entries), step):
            for stretch in _stretches(iter_entries(entries[start : start + step])):
                _check_stretch(backend, handle, index, stretch, report, good)
    except OSError as error:
        report.add(
            Problem(kind=CorruptSegment.kind, message=f"cannot be read: {error}", segment=segment, path=path)
        )
    finally:
        backend.disk.close(handle)
    return good


def _stretches(entries: list[Entry]) -> Iterator[list[Entry]]:
    """Cut entries into runs that lie side by side and are read in one go."""
    run: list[Entry] = []
    for entry in entries:
        if run and (entry.offset != run[-1].stop or entry.stop - run[0].offset > READ_BYTES):
            yield run
            run = []
        run.append(entry)
    if run:
        yield run


def _check_stretch(
    backend: LogBackend, handle: int, index: SegmentIndex, run: list[Entry], report: Report, good: _Good
) -> None:
    segment = index.segment
    start, stop = run[0].offset, run[-1].stop
    if stop - start > MAX_RECORD_BYTES + READ_BYTES + HEADER_BYTES:
        report.add(
            Problem(
                kind=CorruptSegment.kind,
                message="the index names a record longer than any can be",
                segment=segment,
                offset_bytes=start,
            )
        )
        return
    data = backend.disk.pread(handle, stop - start, start)
    bad: dict[int, str] = {}
    blobs = 0
    packed = b"".join(_pack(entry) for entry in run)
    for number, why in _native.check_payloads(data, packed, start):
        if why == "hash" and run[number].flags & FLAG_SHA256 and _is_sha256(data, run[number], start):
            continue
        bad[number] = why
    for number, entry in enumerate(run):
        if number not in bad and entry.flags & FLAG_ZSTD:
            why_not = _check_packed(backend, data, entry, start, segment)
            if why_not:
                bad[number] = why_not
        if number in bad:
            good.bad.add(entry.offset)
            report.add(
                Problem(
                    kind=CorruptBlob.kind,
                    message=f"a record is damaged ({bad[number]})",
                    hash=Hash(entry.hash),
                    segment=segment,
                    offset_bytes=entry.offset,
                    path=segment_path(backend.root, segment),
                )
            )
        else:
            good.offsets.append(entry.offset)
            blobs += entry.kind == Kind.BLOB or (entry.kind == Kind.DATA and bool(entry.flags & FLAG_BLOB))
    report.checked(len(data), len(run), blobs)


def _pack(entry: Entry) -> bytes:
    return ENTRY.pack(*entry)


def _is_sha256(data: bytes, entry: Entry, start: int) -> bool:
    import hashlib

    at = entry.offset - start + HEADER_BYTES
    return hashlib.sha256(data[at : at + entry.stored_bytes]).digest() == entry.hash


def _check_packed(backend: LogBackend, data: bytes, entry: Entry, start: int, segment: int) -> str | None:
    at = entry.offset - start + HEADER_BYTES
    location = segment << 32 | entry.offset
    try:
        plain = backend.payloads.decompress(
            memoryview(data)[at : at + entry.stored_bytes], entry.plain_bytes, entry.hash, location
        )
    except IntegrityError:
        return "compression"
    return None if matches(plain, entry.hash, entry.flags) else "hash"


def _check_places(core: Core, good: dict[int, _Good], report: Report) -> None:
    """See that every place that the catalog names holds a good record, or that another copy does.

    What was appended after its segment was read is not judged.
    """
    catalog = core.catalog
    for hash_, location in catalog.iter_places():
        segment, offset = location >> 32, location & OFFSET_MASK
        scanned = good.get(segment)
        path = segment_path(core.backend.root, segment)
        if scanned is None:
            if core.backend.disk.stat(path) is not None:
                continue
        elif offset >= scanned.stop or scanned.has(offset) or offset in scanned.bad:
            continue
        copies = ((place[0] >> 32, place[0] & OFFSET_MASK) for place in catalog.copies(hash_))
        if not any(number in good and good[number].has(at) for number, at in copies):
            report.add(
                Problem(
                    kind=MissingChunk.kind,
                    message="the catalog names a record that is not there",
                    hash=Hash(hash_),
                    segment=segment,
                    offset_bytes=offset,
                    path=path,
                )
            )
