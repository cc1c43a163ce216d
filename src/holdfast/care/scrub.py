"""Checking everything at rest: each record of each segment, in bounded pieces, from where the last call ended.

A *pass* goes through the segments by id, then holds the catalog against them (`compare`). How far it is stands in the
catalog as a hint: lost, the next pass begins anew. What is damaged goes into quarantine as it is found.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Final, TypeVar

import msgspec

from holdfast.backend.log.backend import LogBackend
from holdfast.backend.log.layout import segment_path
from holdfast.backend.log.segment import SegmentIndex, check_segment_header, read_index, slice_entries
from holdfast.care.compare import compare
from holdfast.care.report import Report
from holdfast.care.stretches import Stretch, check_stretch, iter_stretches
from holdfast.catalog import CatalogUnusable
from holdfast.errors import BackendError, CorruptBlob, CorruptSegment
from holdfast.facts import SEGMENT_OPEN, SEGMENT_QUARANTINED, SEGMENT_SUPERSEDED
from holdfast.log_core import LogCore
from holdfast.recovery import WouldForget
from holdfast.reports import Problem, ScrubReport
from holdfast.types import Hash, Progress, ProgressCallback, now_ms
from holdfast.wire.record import (
    DOCUMENT_KINDS,
    ENTRY_BYTES,
    FLAG_BLOB,
    PAYLOAD_KINDS,
    SEGMENT_HEADER_BYTES,
    Kind,
)

AHEAD: Final = 3
"""Stretches that are read and checked at the same time: two threads, and one that is waited for."""
NAP_SECONDS: Final = 0.1
PASS_EVERY_MS: Final = 30 * 86_400_000
STEP_BYTES_PER_SECOND: Final = 32 << 20
KEPT: Final = (PAYLOAD_KINDS | DOCUMENT_KINDS) - {int(Kind.TIMES)}
"""What goes into quarantine: the rest is derived from these, and is put back in place."""
_BLOB: Final = int(Kind.BLOB)
_DATA: Final = int(Kind.DATA)
POSITION: Final = "scrub_position"
DONE: Final = "scrub_done"
T = TypeVar("T", bound=msgspec.Struct)


class Position(msgspec.Struct):
    """How far a pass is: all before `offset` of `segment` was checked."""

    segment: int = 0
    offset: int = 0
    bytes: int = 0
    problems: int = 0
    started_ms: int = 0


class Done(msgspec.Struct):
    """What the last whole pass found."""

    finished_ms: int = 0
    problems: int = 0
    bytes: int = 0


class Pace:
    """How much may be read in all, and how fast. None: no limit."""

    def __init__(self, max_bytes: int | None, bytes_per_second: float | None) -> None:
        self._left = max_bytes
        self._rate = bytes_per_second
        self._started = time.monotonic()
        self._read = 0

    @property
    def is_spent(self) -> bool:
        return self._left is not None and self._read >= self._left

    def took(self, more_bytes: int) -> Iterator[None]:
        """Count bytes; as long as they came too fast, sleep and give, so that the caller can be asked to stop."""
        self._read += more_bytes
        while self._rate:
            late = self._read / self._rate - (time.monotonic() - self._started)
            if late <= 0:
                return
            time.sleep(min(late, NAP_SECONDS))
            yield


class Scrub:
    """One call: a pass, or a part of one."""

    def __init__(self, core: LogCore, report: Report, pace: Pace, *, drop_cache: bool) -> None:
        self._core = core
        self._backend: LogBackend = core.backend
        self._report = report
        self._pace = pace
        self._drop_cache = drop_cache
        self.position = Position(started_ms=now_ms())
        self.quarantined = 0
        self.rebuilt = False

    def run(self) -> bool:
        """Go on from the position; False when the budget was spent before the pass was through."""
        report, position = self._report, self.position
        report.total_bytes = self._backend.disk_bytes()
        report.bytes_before = position.bytes
        with ThreadPoolExecutor(2, thread_name_prefix="holdfast-scrub") as pool:
            for segment in self._backend.segment_ids():
                if segment < position.segment:
                    continue
                if segment > position.segment:
                    position.segment, position.offset = segment, 0
                if self._pace.is_spent:
                    return False
                with self._backend.operation():
                    whole = self._scrub_segment(segment, pool)
                self._write_down()
                if not whole:
                    return False
                position.segment, position.offset = segment + 1, 0
        for attempt in range(2):
            try:
                self._core.catalog.check()
                found = compare(self._core, report)
                self._core.keeper.look_again()
            except CatalogUnusable as error:
                if attempt:
                    raise
                found = str(error)
            if found is None:
                break
            try:
                self._core.keeper.replace(found)
            except WouldForget as error:
                report.add(Problem(kind=error.kind, message=f"the catalog is kept: {found}; {error}"))
                break
            self.rebuilt = True
        self._write_down()
        return True

    def _write_down(self) -> None:
        self.quarantined += self._core.write_down_damage()

    def _scrub_segment(self, segment: int, pool: ThreadPoolExecutor) -> bool:
        """Check one segment from the position on; False when the budget was spent on the way."""
        backend, disk = self._backend, self._backend.disk
        applied, state = self._core.catalog.segments().get(segment, (0, SEGMENT_OPEN))
        if state == SEGMENT_SUPERSEDED and applied <= SEGMENT_HEADER_BYTES:
            return True  # nothing there is to be read
        path = segment_path(backend.root, segment)
        try:
            handle = disk.open(path, "r")
        except FileNotFoundError:
            return True  # compacted away meanwhile, or missing: the catalog's places tell
        try:
            if self._drop_cache:
                disk.drop_cache(handle)
            if disk.size(handle) <= SEGMENT_HEADER_BYTES and not applied:
                return True  # made a moment ago, or by somebody who died before it held anything
            repaired = self._core.catalog.repaired(segment)
            problem = check_segment_header(disk, handle, segment, backend.store.id, path)
            index = read_index(disk, handle, segment, path)
            # Beyond what is applied, an open segment may end in what somebody is writing right now.
            clean = index.sealed or index.closed
            found = [p for p in index.problems if clean or (p.offset_bytes or 0) < applied]
            found += [problem] if problem is not None and not index.holds_nothing else []
            if index.sealed and not index.problems:
                found += self._gaps(index, path)
            found = [p for p in found if not p.offset_bytes or p.offset_bytes not in repaired]
            if self.position.offset == 0:
                for one in found:
                    self._report.add(one)
            entries = index.entries if clean else slice_entries(index.entries, 0, applied)
            broken = bool(found)
            whole = True
            for run, bad in self._check_all(handle, index, entries, pool):
                self.position.offset = run.stop  # first: counting it tells the caller, who may raise
                broken |= self._take(segment, run, bad, repaired, path)
                for _ in self._pace.took(run.stop - run.start):
                    self._report.checked(0)
                if self._pace.is_spent:
                    whole = run.packed[-ENTRY_BYTES:] == entries[-ENTRY_BYTES:]
                    break
            if broken:
                self._give_up(segment, state, whole=clean or index.size_bytes <= applied)
            return whole
        except OSError as error:
            if isinstance(error, BackendError):
                raise
            self._report.add(
                Problem(
                    kind=CorruptSegment.kind,
                    message=f"cannot be read: {error}",
                    segment=segment,
                    path=path,
                )
            )
            return True
        finally:
            disk.close(handle)

    def _gaps(self, index: SegmentIndex, path: str) -> list[Problem]:
        """Find what the index of a sealed segment leaves out: it was sealed when damage hid a record."""
        gaps = []
        at = SEGMENT_HEADER_BYTES
        for run in iter_stretches(index.entries):
            if run.start != at:
                gaps.append(at)
            at = run.stop
        return [
            Problem(
                kind=CorruptSegment.kind,
                message="the index leaves out what lies here",
                segment=index.segment,
                offset_bytes=gap,
                path=path,
            )
            for gap in ([*gaps, at] if at != index.records_stop else gaps)
        ]

    def _check_all(
        self, handle: int, index: SegmentIndex, entries: bytes, pool: ThreadPoolExecutor
    ) -> Iterator[tuple[Stretch, dict[int, str]]]:
        """Give stretches in order, with what is wrong by the number of the entry; a few are worked on at a time."""
        start = self.position.offset
        runs = iter_stretches(slice_entries(entries, start, 1 << 32))
        waiting: deque[tuple[Stretch, Future[dict[int, str]]]] = deque()
        try:
            for run in runs:
                waiting.append((run, pool.submit(check_stretch, self._backend, handle, index.segment, run)))
                if len(waiting) >= AHEAD:
                    taken, future = waiting.popleft()
                    yield taken, future.result()
            while waiting:
                taken, future = waiting.popleft()
                yield taken, future.result()
        finally:
            for _, future in waiting:
                if not future.cancel():
                    future.exception()  # the handle is closed after this

    def _take(self, segment: int, run: Stretch, bad: dict[int, str], repaired: set[int], path: str) -> bool:
        """Count a stretch and report what is wrong in it; True when the structure is broken."""
        broken = False
        blobs = sum(
            number not in bad and (kind == _BLOB or (kind == _DATA and bool(flags & FLAG_BLOB)))
            for number, (kind, flags) in enumerate(zip(run.kinds, run.flags, strict=True))
        )
        for number, why in sorted(bad.items()):
            entry = run.entry(number)
            if entry.offset in repaired:
                continue  # nobody's: where there is no index that tells what it was, a gap is met here
            broken |= why == "header" or entry.kind not in KEPT
            if entry.kind in KEPT:
                self._backend.payloads.note(segment << 32 | entry.offset, entry.hash, f"scrub: {why}")
            self._report.add(
                Problem(
                    kind=CorruptBlob.kind,
                    message=f"a record is damaged ({why})",
                    hash=Hash(entry.hash),
                    segment=segment,
                    offset_bytes=entry.offset,
                    path=path,
                )
            )
        self._report.checked(run.stop - run.start, run.records, blobs)
        return broken

    def _give_up(self, segment: int, state: int, *, whole: bool) -> None:
        """Note that the structure of a segment is broken: nobody appends there. Not while somebody writes it."""
        backend = self._backend
        if backend.read_only or state == SEGMENT_QUARANTINED or not whole:
            return
        with suppress(FileNotFoundError):
            handle = backend.disk.open(segment_path(backend.root, segment), "a")
            try:
                if backend.disk.lock(handle):
                    self._core.catalog.set_segment_state(segment, SEGMENT_QUARANTINED)
            finally:
                backend.disk.close(handle)


def scrub(
    core: LogCore,
    progress: ProgressCallback | None,
    *,
    drop_cache: bool = False,
    resume: bool = False,
    max_bytes: int | None = None,
    bytes_per_second: float | None = None,
) -> ScrubReport:
    """Check what is at rest: a whole pass, or with a budget a part of one; `resume` goes on where the last call ended.

    Memory: a few read buffers, and the index of one segment.
    """
    report = Report("scrub", None if progress is None else core.called_back(progress))
    work = Scrub(core, report, Pace(max_bytes, bytes_per_second), drop_cache=drop_cache)
    if resume and (kept := read_hint(core, POSITION, Position)) is not None:
        work.position = kept
    whole = False
    try:
        whole = work.run()
    finally:  # interrupted: the next call goes on here
        _keep(core, work, report, whole=whole)
    position = work.position
    return ScrubReport(
        ok=not position.problems + report.count,
        **report.fields(),
        complete=whole,
        pass_bytes=position.bytes + report.bytes,
        pass_problems=position.problems + report.count,
        total_bytes=report.total_bytes or 0,
        quarantined=work.quarantined,
        catalog_rebuilt=work.rebuilt,
    )


def scrub_step(core: LogCore, max_bytes: int, stop: Callable[[], bool]) -> None:
    """Scrub a little, for the background: slowly, from where the last step ended, a pass a month."""

    def progress(_: Progress) -> None:
        if stop():
            raise StopScrubbing

    done = read_hint(core, DONE, Done)
    under_way = read_hint(core, POSITION, Position) is not None
    if under_way or done is None or now_ms() - done.finished_ms > PASS_EVERY_MS:
        with suppress(StopScrubbing):
            scrub(core, progress, resume=True, max_bytes=max_bytes, bytes_per_second=STEP_BYTES_PER_SECOND)


class StopScrubbing(Exception):
    """The store is closing, or maintenance is to end."""


def _keep(core: LogCore, work: Scrub, report: Report, *, whole: bool) -> None:
    if core.backend.read_only:
        return
    at = work.position
    problems, total = at.problems + report.count, at.bytes + report.bytes
    if whole:
        done = Done(finished_ms=now_ms(), problems=problems, bytes=total)
        core.catalog.set_meta(DONE, msgspec.json.encode(done))
        core.catalog.set_meta(POSITION, None)
    else:
        kept = Position(at.segment, at.offset, total, problems, at.started_ms)
        core.catalog.set_meta(POSITION, msgspec.json.encode(kept))


def read_hint(core: LogCore, key: str, kind: type[T]) -> T | None:
    """Give what an earlier call kept in the catalog; None when there is nothing, or nothing that can be read."""
    raw = core.catalog.get_meta(key)
    if not isinstance(raw, bytes):
        return None
    try:
        return msgspec.json.decode(raw, type=kind)
    except msgspec.MsgspecError:
        return None
