"""Giving back what nobody needs: which segments are rewritten, in what order, and the steps that lose nothing.

For each batch of segments: copy what counts (`backend.log.evacuation`), make it durable, move the rows to the new
places durably, see that no row points into the old segments, say in the log that they are retired, unlink. A crash
between any two of these leaves copies that nobody needs, or files that the next opener removes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final, NamedTuple

from holdfast import _native
from holdfast.backend.log.collector import collecting
from holdfast.backend.log.evacuation import Cannot, Evacuation, Pending, Source
from holdfast.backend.log.evidence import Evidence
from holdfast.backend.log.layout import SEGMENTS, segment_path
from holdfast.backend.log.outlet import Outlet
from holdfast.backend.log.runs import Runs
from holdfast.backend.log.segment import read_index
from holdfast.catalog import compacting
from holdfast.catalog.compacting import RECORD_BYTES, CatalogPlaces
from holdfast.errors import BackendError, HoldfastError, InvalidInput, NoSpace
from holdfast.facts import (
    SEGMENT_OPEN,
    SEGMENT_QUARANTINED,
    SEGMENT_SEALED,
    SEGMENT_SUPERSEDED,
    Facts,
    Moves,
)
from holdfast.log_core import LogCore
from holdfast.reports import CompactReport, KeptSegment, Problem
from holdfast.room import making_room, shorten_log
from holdfast.types import Progress, ProgressCallback
from holdfast.wire.document import encode_retired
from holdfast.wire.record import DOCUMENT_KINDS, PAYLOAD_KINDS, SEGMENT_HEADER_BYTES, Kind

DEFAULT_MIN_DEAD_SHARE: Final = 1 / 3
"""What a collection compacts on its own: at most two bytes are copied for one that is freed (docs/decisions/013)."""
BATCH_SEGMENTS: Final = 64
BATCH_BYTES: Final = 256 << 20
"""How much is copied before the old segments go: so much more room is needed meanwhile."""
SWITCHED_ROWS: Final = 5_000
"""Rows moved in one transaction, under the store's lock: others write between two."""
NEEDED_BYTES: Final = 4 << 20
"""What moving the rows of one segment takes in the catalog's log, beside the copies."""
MAX_LISTED: Final = 10_000
MIN_TOMBSTONES: Final = 1_000
MAX_TOMBSTONES: Final = 1_000_000
"""How many are looked at in one run."""
ROW_KINDS: Final = (PAYLOAD_KINDS | DOCUMENT_KINDS) - {
    int(Kind.QUARANTINE),
    int(Kind.REPAIR),
    int(Kind.RETIRED),
}
"""Records to which a row points as long as they count."""


class Candidate(NamedTuple):
    """A segment in which something is dead."""

    segment: int
    size_bytes: int
    live_bytes: int
    dead_bytes: int
    state: int


def compact(
    core: LogCore,
    min_dead_share: float = 0.0,
    progress: ProgressCallback | None = None,
    *,
    dry_run: bool = False,
) -> CompactReport:
    """Rewrite segments of which at least this share is dead; `Locked` while somebody else collects or compacts."""
    core.backend.committer  # noqa: B018  # refuses a store that was opened to read
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
        self._catalog = self._core.catalog
        if dry_run:
            return self._forecast()
        self._close_idle()
        candidates = self._plan()
        self._total_bytes = sum(one.live_bytes for one in candidates)
        last = self._with_tombstones(candidates)
        try:
            self._empty_all(list(_batches(candidates, last)))
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

    # -- choosing

    def _plan(self) -> list[Candidate]:
        """Choose segments, those of which least is to be copied first."""
        catalog = self._catalog
        states, live, contents = (
            catalog.segments(),
            compacting.live_bytes(catalog),
            compacting.contents(catalog),
        )
        chosen: list[Candidate] = []
        measured: dict[int, int] = {}
        self._reinstate(  # where one broke off before it did so itself
            [
                segment
                for segment, (_, state) in states.items()
                if state == SEGMENT_SUPERSEDED and live.get(segment)
            ]
        )
        for segment in self._backend.segment_ids():
            _, state = states.get(segment, (0, SEGMENT_OPEN))
            found = self._disk.stat(segment_path(self._root, segment))
            if found is None or state == SEGMENT_OPEN:
                continue
            counts = live.get(segment, 0)
            if self._is_dense(found.size_bytes, counts):
                continue
            if state == SEGMENT_QUARANTINED:
                self._kept[segment] = "it is in quarantine"
                continue
            content = contents.get(segment)
            if content is None:
                try:
                    content = self._measure(segment)
                except (BackendError, OSError) as error:
                    self._kept[segment] = f"it cannot be read ({error})"
                    continue
                if state == SEGMENT_SEALED:
                    measured[segment] = content
            dead = max(0, content - counts)
            if state == SEGMENT_SUPERSEDED and not counts:
                dead = found.size_bytes
            if dead and dead >= self._share * found.size_bytes:
                chosen.append(Candidate(segment, found.size_bytes, counts, dead, state))
        if measured:
            compacting.set_contents(catalog, measured)
        quarantined = compacting.quarantined(catalog)
        for one in chosen:
            if one.segment in quarantined:
                self._kept[one.segment] = "it holds damaged records that are not repaired yet"
        return sorted(
            (one for one in chosen if one.segment not in self._kept),
            key=lambda one: (one.live_bytes, one.segment),
        )

    def _with_tombstones(self, candidates: list[Candidate]) -> set[int]:
        """Begin to look for what tombstones may hide, if there are enough of them; gives the segments that have some.

        Those come last and each by itself: a lower revision may lie in any segment that goes before.
        """
        counts = compacting.segments_with_tombstones(self._catalog)
        segments = {one.segment for one in candidates if one.segment in counts}
        lost = self._backend.lost_segments(self._catalog.segments())
        if not segments or lost or sum(counts[segment] for segment in segments) < self._min_tombstones:
            return set()
        names: list[tuple[str, Any]] = []
        for segment in sorted(segments):
            names += compacting.useless_tombstones(self._catalog, segment)
            if len(names) > MAX_TOMBSTONES:
                break
        self._evidence = Evidence(self._disk, self._root, names)
        if any(state == SEGMENT_QUARANTINED for _, state in self._catalog.segments().values()):
            self._evidence.obstacle = "a segment is in quarantine"
        return segments

    def _is_dense(self, size_bytes: int, live_bytes: int) -> bool:
        """Whether too little can be dead, whatever the segment is made of."""
        most = size_bytes - live_bytes
        return most <= 0 or most < self._share * size_bytes

    def _measure(self, segment: int) -> int:
        """Give how many bytes of records a segment holds to which rows may point."""
        path = segment_path(self._root, segment)
        handle = self._disk.open(path, "r")
        try:
            return _content(read_index(self._disk, handle, segment, path).entries)
        finally:
            self._disk.close(handle)

    def _close_idle(self) -> None:
        """Seal segments that nobody writes to, ours and those that others left, where that pays."""
        live = compacting.live_bytes(self._catalog)
        writers = self._backend.committer.writers
        sealed = False
        for segment, (applied, state) in sorted(self._catalog.segments().items()):
            counts = live.get(segment, 0)
            if state != SEGMENT_OPEN or applied <= SEGMENT_HEADER_BYTES or self._is_dense(applied, counts):
                continue
            try:
                writer = writers.take_closed(segment, applied)
                if writer is None:
                    continue
                dead = _content(writer.entries(SEGMENT_HEADER_BYTES, writer.offset)) - counts
                if dead > 0 and dead >= self._share * writer.offset:
                    writers.seal(writer)
                    sealed = True
                else:
                    writers.checkin(writer)
            except OSError:
                continue
        if sealed:
            self._backend.committer.apply()

    def _forecast(self) -> CompactReport:
        """Say what would be done; open segments count as far as nobody writes to them now."""
        catalog = self._catalog
        live = compacting.live_bytes(catalog)
        own = self._backend.committer.writers.own()
        chosen = self._plan()
        for segment, (applied, state) in sorted(catalog.segments().items()):
            if state == SEGMENT_OPEN and not self._is_dense(applied, live.get(segment, 0)):
                if segment not in own and not self._is_free(segment):
                    continue
                with suppress(BackendError, OSError):
                    counts = live.get(segment, 0)
                    dead = self._measure(segment) - counts
                    if dead > 0 and dead >= self._share * applied:
                        chosen.append(Candidate(segment, applied, counts, dead, state))
        return CompactReport(
            dry_run=True,
            segments=tuple(one.segment for one in chosen)[:MAX_LISTED],
            size_bytes=sum(one.size_bytes for one in chosen),
            copied_bytes=sum(one.live_bytes for one in chosen),
            freed_bytes=sum(one.dead_bytes for one in chosen),
            kept=self._list_kept(),
            seconds=time.monotonic() - self._started,
        )

    def _is_free(self, segment: int) -> bool:
        try:
            handle = self._disk.open(segment_path(self._root, segment), "a")
        except (FileNotFoundError, HoldfastError):
            return False
        try:
            return self._disk.lock(handle)
        finally:
            self._disk.close(handle)

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
                        lambda new, m=moves, o=one: m.append((o.key, o.location, new)),  # type: ignore[misc]
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


def _batches(candidates: list[Candidate], last: set[int]) -> Iterator[list[Candidate]]:
    """Put together what is emptied at a time; what has tombstones comes `last`, the oldest first, each by itself."""
    batch: list[Candidate] = []
    size = 0
    for one in candidates:
        if one.segment in last:
            continue
        if batch and (len(batch) == BATCH_SEGMENTS or size + one.live_bytes > BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(one)
        size += one.live_bytes
    if batch:
        yield batch
    yield from ([one] for one in sorted(candidates) if one.segment in last)


def _content(entries: bytes) -> int:
    kinds, _, _, stored, _, _ = _native.entry_columns(entries)
    return sum(length + RECORD_BYTES for kind, length in zip(kinds, stored, strict=True) if kind in ROW_KINDS)


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
