"""Giving back what nobody needs: segments are rewritten, in steps that lose nothing.

`candidates` says which. For each batch: copy what counts (`backend.log.evacuation`), make it durable, move the rows
to the new places durably, see that no row points into the old segments, say in the log that they are retired, unlink.
A crash between any two of these leaves copies that nobody needs, or files that the next opener removes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Final

from holdfast import _native
from holdfast.backend.log.collector import collecting
from holdfast.backend.log.evacuation import Cannot, Evacuation, Pending, Source
from holdfast.backend.log.evidence import Evidence
from holdfast.backend.log.layout import SEGMENTS, segment_path
from holdfast.backend.log.outlet import Outlet
from holdfast.backend.log.runs import Runs
from holdfast.candidates import Candidate, Choice, in_batches
from holdfast.catalog import compacting
from holdfast.catalog.compacting import CatalogPlaces
from holdfast.errors import HoldfastError, InvalidInput, NoSpace
from holdfast.facts import SEGMENT_SUPERSEDED, Facts, Moves
from holdfast.log_core import LogCore
from holdfast.reports import CompactReport, KeptSegment, Problem
from holdfast.room import making_room, shorten_log
from holdfast.types import Progress, ProgressCallback
from holdfast.wire.document import encode_retired
from holdfast.wire.record import PAYLOAD_KINDS, Kind

DEFAULT_MIN_DEAD_SHARE: Final = 1 / 3
"""What a collection compacts on its own: at most two bytes are copied for one that is freed (docs/decisions/013)."""
SWITCHED_ROWS: Final = 5_000
"""Rows moved in one transaction, under the store's lock: others write between two."""
NEEDED_BYTES: Final = 4 << 20
"""What moving the rows of one segment takes in the catalog's log, beside the copies."""
MAX_LISTED: Final = 10_000
MIN_TOMBSTONES: Final = 1_000


def compact(
    core: LogCore,
    min_dead_share: float = 0.0,
    progress: ProgressCallback | None = None,
    *,
    dry_run: bool = False,
) -> CompactReport:
    """Rewrite segments of which at least this share is dead; `Locked` while somebody else collects or compacts."""
    core.backend.require_writing()
    if not 0 <= min_dead_share <= 1:
        raise InvalidInput(f"min_dead_share is {min_dead_share}; 0 to 1 is allowed")

    def work() -> CompactReport:
        with collecting(core.backend.disk, core.backend.root, "compact"):
            return compact_segments(core, min_dead_share, progress, dry_run=dry_run, min_tombstones=1)

    return work() if dry_run else making_room(core, work)


def compact_segments(
    core: LogCore,
    min_dead_share: float = DEFAULT_MIN_DEAD_SHARE,
    progress: ProgressCallback | None = None,
    *,
    dry_run: bool = False,
    min_tombstones: int = MIN_TOMBSTONES,
    stop: Callable[[], bool] = lambda: False,
) -> CompactReport:
    """The same, for who holds the collector's lock already. It pins nothing, and waits for nobody.

    `stop` is asked often, and ends it (so does closing the store): what was rewritten by then is done.
    `min_tombstones`: from how many on it looks whether tombstones may go, for which it reads documents of all segments.
    """
    return _Compaction(core, min_dead_share, progress, min_tombstones, stop).run(dry_run)


class _Replaced(Exception):
    """The catalog is another one now: what was looked up counts no longer."""


class _Stopped(Exception):
    """Somebody wants it to end."""


class _Compaction:
    """One run."""

    def __init__(
        self,
        core: LogCore,
        min_dead_share: float,
        progress: ProgressCallback | None,
        min_tombstones: int,
        stop: Callable[[], bool],
    ) -> None:
        self._core = core
        self._backend = core.backend
        self._disk = core.backend.disk
        self._root = core.backend.root
        self._share = min_dead_share
        self._progress = progress
        self._min_tombstones = min_tombstones
        self._stop = stop
        self._evidence: Evidence | None = None
        self._started = time.monotonic()
        self._gone: list[int] = []
        self._kept: dict[int, str] = {}
        self._problems: list[Problem] = []
        self._size_bytes = self._copied_bytes = self._appended_bytes = 0
        self._dropped = 0
        self._reserve_used = core.backend.reserve.given_up
        self._done_bytes = 0
        self._total_bytes = 0

    def run(self, dry_run: bool) -> CompactReport:
        with self._backend.lock():
            self._core.keeper.catch_up()
        self._catalog = catalog = self._core.catalog
        choice = Choice(self._backend, catalog, self._share, self._kept)
        self._reinstate(choice.list_broken_off())
        if dry_run:
            return self._forecast(choice.forecast())
        choice.close_idle()
        candidates = choice.plan()
        self._total_bytes = sum(one.live_bytes for one in candidates)
        last, self._evidence = choice.look_for_tombstones(candidates, self._min_tombstones)
        try:
            self._empty_all(list(in_batches(candidates, last)))
        except _Stopped:
            pass
        except _Replaced:
            for one in candidates:
                if one.segment not in self._gone:
                    self._kept.setdefault(one.segment, "the catalog was replaced meanwhile")
        finally:
            if self._reserve_used or len(self._backend.segment_ids()) > 1:
                with suppress(HoldfastError):  # as far as there is room: `health` says what is missing
                    self._backend.reserve.fill()
        return self._report()

    # -- emptying

    def _empty_all(self, batches: list[list[Candidate]]) -> None:
        """Empty all batches; where the disk is full, with the help of the reserve, and one segment at a time."""
        for number, batch in enumerate(batches):
            try:
                if len(batch) > 1 and not self._has_room(batch):
                    shorten_log(self._core)
                    for one in sorted(batch, key=lambda one: one.live_bytes):
                        self._empty([one])
                else:
                    self._empty(batch)
            except NoSpace:
                left = [one for rest in batches[number:] for one in rest]
                self._empty_in_reserve(left)
                break

    def _has_room(self, batch: list[Candidate]) -> bool:
        """Whether all of a batch can be copied before anything of it goes."""
        need = sum(one.live_bytes for one in batch) + self._backend.segment_bytes + NEEDED_BYTES
        return self._disk.free_bytes(self._root) >= need

    def _empty_in_reserve(self, candidates: list[Candidate]) -> None:
        """Go on where the disk is full: what frees most with least comes first, and makes room for the next."""
        held = self._backend.reserve.release()
        self._reserve_used = True
        before = len(self._gone)
        shorten_log(self._core)
        for one in sorted(candidates, key=lambda one: one.live_bytes):
            if one.segment in self._gone or one.segment in self._kept:
                continue
            try:
                self._empty([one])
                shorten_log(self._core)  # it takes room as well
            except NoSpace as error:
                need = one.live_bytes + NEEDED_BYTES
                free = self._disk.free_bytes(self._root)
                if len(self._gone) == before:
                    raise NoSpace(
                        f"compaction needs about {need:,} bytes to begin with, and {free:,} are free, the reserve of"
                        f" {held:,} included: make room elsewhere on this disk, {max(0, need - free):,} bytes or more",
                        path=self._root,
                        needed_bytes=need,
                        free_bytes=free,
                        reserve_bytes=held,
                    ) from error
                self._kept[one.segment] = (
                    f"the disk is full: about {need:,} bytes are needed, {free:,} are free"
                )

    def _empty(self, batch: list[Candidate]) -> None:
        """Rewrite some segments: copy, sync, switch, look again, retire, unlink."""
        places = CatalogPlaces(self._catalog)
        outlet = Outlet(self._backend.committer.writers, self._backend.committer.background)
        evacuation = Evacuation(
            self._disk,
            self._root,
            self._backend.store.id,
            self._backend.payloads,
            places,
            outlet,
            self._is_here,
            drops_tombstones=self._evidence is not None,
        )
        try:
            sources = list(self._copy(evacuation, batch))
            sources = self._without_doubtful(sources)
            outlet.sync()
            self._switch(outlet, sources)
            empty = [source for source in sources if self._is_empty(places, source)]
            self._reinstate([source.segment for source in sources if source not in empty])
            gone = self._retire(outlet, empty)
        except BaseException:
            outlet.abort()
            raise
        outlet.release()
        self._appended_bytes += outlet.appended_bytes
        self._unlink(gone)

    def _copy(self, evacuation: Evacuation, batch: Iterable[Candidate]) -> Iterator[Source]:
        for one in batch:
            source = Source(one.segment)
            try:
                evacuation.copy(source, self._watch)
            except Cannot as reason:
                self._kept[one.segment] = str(reason)
            except FileNotFoundError:
                continue
            else:
                yield source
            finally:
                self._problems += source.problems
                self._copied_bytes += source.copied_bytes

    def _without_doubtful(self, sources: list[Source]) -> list[Source]:
        """Leave out what somebody may be about to commit: operations that began before are not waited for here."""
        if not any(source.in_doubt for source in sources):
            return sources
        busy = self._busy()
        if not busy:
            return sources
        for source in sources:
            if source.in_doubt:
                self._kept[source.segment] = (
                    f"process {busy[0]} may be about to commit records in it: try again later"
                )
        return [source for source in sources if not source.in_doubt]

    def _busy(self) -> list[int]:
        """Give the processes in which an operation runs that began before now."""
        epoch = compacting.advance_epoch(self._catalog)
        return [
            state.pid
            for state in self._backend.sessions()
            if state.pinned and (state.catalog_id != self._catalog.id or state.epoch < epoch)
        ]

    def _switch(self, outlet: Outlet, sources: list[Source]) -> None:
        """Move rows to the new places, durably. The segments are superseded then: nothing is applied there any more.

        Others write between two transactions. From the first one on rows point to what was appended, so that counts as
        applied, and is not cut off again, whatever becomes of the rest.
        """
        parts = list(_split(outlet.take_moves()))
        segments = outlet.positions()
        for number, moves in enumerate(parts, 1):
            if number == len(parts):
                segments |= {source.segment: (0, SEGMENT_SUPERSEDED) for source in sources}
            with self._backend.lock():
                self._check_catalog()
                outlet.told()  # first: an interrupt may come when the transaction has ended
                compacting.switch(self._catalog, moves, Facts(segments=segments))

    def _is_empty(self, places: CatalogPlaces, source: Source) -> bool:
        """Look again, by the segment's own index: whether no row points into it."""
        segment = source.segment
        hashes, seen = _hashes(source.entries), source.seen
        named: tuple[tuple[Callable[[Sequence[Any]], Mapping[Any, tuple[int, int]]], Sequence[Any]], ...] = (
            (places.artifacts, seen.artifacts),
            (places.tombstones, seen.tombstones),
            (places.tags, seen.tags),
            (places.uploads, seen.uploads),
        )
        left = (
            any(row.location >> 32 == segment for row in places.data(hashes).values())
            or any(place >> 32 == segment for _, place in places.copies(hashes))
            or any(row[0] >> 32 == segment for row in places.blobs([b[0] for b in seen.blobs]).values())
            or any(
                row[1] >> 32 == segment
                for look_up, rows in named
                for row in look_up([key for key, _, _ in rows]).values()
            )
        )
        if left:
            self._kept[segment] = "the catalog still points into it"
        return not left

    def _reinstate(self, segments: list[int]) -> None:
        """Let segments count again that were superseded, and into which rows point: their loss must be noticed."""
        if segments:
            with self._backend.lock():
                self._check_catalog()
                compacting.reinstate(self._catalog, segments)

    def _retire(self, outlet: Outlet, sources: list[Source]) -> list[Source]:
        """Say in the log, and then in the catalog, that segments are of no use any more: from then on they may go."""
        if not sources:
            return []
        segments = [source.segment for source in sources]
        evidence = self._evidence if any(source.pending for source in sources) else None
        if evidence is not None:
            evidence.look()  # most of it before the lock is held
        with self._backend.lock():
            self._check_catalog()
            if max(self._backend.segment_ids()) in segments:
                outlet.rise()
            if evidence is not None:
                evidence.look()
            for source in sources:
                for one in source.pending:
                    if evidence is not None and evidence.allows((one.table, one.key), source.segment):
                        self._drop(outlet.moves, one)
                        continue
                    moves: list[tuple[object, int, int]] = getattr(outlet.moves, one.table)
                    outlet.add(
                        one.entry,
                        one.entry.flags,
                        one.payload,
                        None,
                        partial(_move, moves, one),
                    )
            gone = Runs(range(segment, segment + 1) for segment in segments)
            gone.add(run for source in sources for run in source.retired)
            outlet.add_document(Kind.RETIRED, encode_retired(gone))
            outlet.sync()
            facts = Facts(segments=outlet.positions(), retired=[(run.start, run.stop) for run in gone])
            outlet.told()
            compacting.switch(self._catalog, outlet.take_moves(), facts)
        return sources

    def _drop(self, moves: Moves, tombstone: Pending) -> None:
        """Forget a tombstone: nothing is left that it hides."""
        self._dropped += 1
        dropped: list[tuple[Any, int]] = (
            moves.drop_tags if tombstone.table == "tags" else moves.drop_tombstones
        )
        dropped.append((tombstone.key, tombstone.revision))

    def _unlink(self, gone: list[Source]) -> None:
        """Remove what is retired, one at a time: others write between two. It counts once the directory is synced.

        Whichever catalog there is by now, it knows that nothing lies there any more: the log says so.
        """
        if gone:
            for source in gone:
                with self._backend.lock(), suppress(FileNotFoundError):
                    self._disk.unlink(segment_path(self._root, source.segment))
            self._disk.fsync_dir(f"{self._root}/{SEGMENTS}")
            self._backend.payloads.handles.compacted()
            self._gone += [source.segment for source in gone]
            self._size_bytes += sum(source.size_bytes for source in gone)

    def _check_catalog(self) -> None:
        if self._core.keeper.current() is not self._catalog:
            raise _Replaced

    def _is_here(self, segment: int) -> bool:
        retired = compacting.retired(self._catalog)
        return not any(segment in run for run in retired) and (
            self._disk.stat(segment_path(self._root, segment)) is not None
        )

    # -- telling

    def _forecast(self, chosen: list[Candidate]) -> CompactReport:
        return CompactReport(
            dry_run=True,
            segments=tuple(one.segment for one in chosen)[:MAX_LISTED],
            size_bytes=sum(one.size_bytes for one in chosen),
            copied_bytes=sum(one.live_bytes for one in chosen),
            freed_bytes=sum(one.dead_bytes for one in chosen),
            kept=self._list_kept(),
            seconds=time.monotonic() - self._started,
        )

    def _watch(self, more_bytes: int) -> None:
        if self._stop() or self._core.was_closed:
            raise _Stopped
        self._done_bytes += more_bytes
        if self._progress is not None:
            total = max(self._total_bytes, self._done_bytes)
            self._progress(Progress(phase="compact", done_bytes=self._done_bytes, total_bytes=total))

    def _list_kept(self) -> tuple[KeptSegment, ...]:
        kept = sorted(self._kept.items())[:MAX_LISTED]
        return tuple(KeptSegment(segment=segment, reason=reason) for segment, reason in kept)

    def _report(self) -> CompactReport:
        return CompactReport(
            segments=tuple(sorted(self._gone)[:MAX_LISTED]),
            size_bytes=self._size_bytes,
            copied_bytes=self._copied_bytes,
            freed_bytes=max(0, self._size_bytes - self._appended_bytes),
            tombstones_dropped=self._dropped,
            kept=self._list_kept(),
            problems=tuple(self._problems[:MAX_LISTED]),
            reserve_used=self._reserve_used,
            seconds=time.monotonic() - self._started,
        )


def _move(moves: list[tuple[object, int, int]], tombstone: Pending, location: int) -> None:
    moves.append((tombstone.key, tombstone.location, location))


def _hashes(entries: bytes) -> list[bytes]:
    kinds, _, _, _, _, hashes = _native.entry_columns(entries)
    return [hash_ for kind, hash_ in zip(kinds, hashes, strict=True) if kind in PAYLOAD_KINDS]


def _split(moves: Moves) -> Iterator[Moves]:
    """Cut moves into transactions; the last one may be empty."""
    while len(moves.data) > SWITCHED_ROWS or len(moves.copies) > 2 * SWITCHED_ROWS:
        part = Moves(data=moves.data[:SWITCHED_ROWS], copies=moves.copies[: 2 * SWITCHED_ROWS])
        del moves.data[:SWITCHED_ROWS], moves.copies[: 2 * SWITCHED_ROWS]
        yield part
    yield moves
