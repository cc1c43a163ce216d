"""Choosing which segments a compaction rewrites, in what order, and what goes at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any, Final, NamedTuple

from holdfast import _native
from holdfast.backend.log.backend import LogBackend
from holdfast.backend.log.evidence import Evidence
from holdfast.backend.log.layout import segment_path
from holdfast.backend.log.segment import read_index
from holdfast.catalog import compacting
from holdfast.catalog.catalog import Catalog
from holdfast.catalog.compacting import RECORD_BYTES
from holdfast.errors import BackendError, HoldfastError
from holdfast.facts import SEGMENT_OPEN, SEGMENT_QUARANTINED, SEGMENT_SEALED, SEGMENT_SUPERSEDED
from holdfast.wire.record import DOCUMENT_KINDS, PAYLOAD_KINDS, SEGMENT_HEADER_BYTES, Kind

BATCH_SEGMENTS: Final = 64
BATCH_BYTES: Final = 256 << 20
"""How much is copied before the old segments go: so much more room is needed meanwhile."""
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


class Choice:
    """Looks at segments for one compaction; `kept` is told which are left out, and why."""

    def __init__(
        self, backend: LogBackend, catalog: Catalog, min_dead_share: float, kept: dict[int, str]
    ) -> None:
        self._backend = backend
        self._catalog = catalog
        self._share = min_dead_share
        self._kept = kept
        self._disk = backend.disk
        self._root = backend.root

    def list_broken_off(self) -> list[int]:
        """Give the segments that a compaction before left superseded, and into which rows point again."""
        live = compacting.live_bytes(self._catalog)
        return [
            segment
            for segment, (_, state) in self._catalog.segments().items()
            if state == SEGMENT_SUPERSEDED and live.get(segment)
        ]

    def plan(self) -> list[Candidate]:
        """Choose segments, those of which least is to be copied first."""
        catalog = self._catalog
        states, live, contents = (
            catalog.segments(),
            compacting.live_bytes(catalog),
            compacting.contents(catalog),
        )
        chosen: list[Candidate] = []
        measured: dict[int, int] = {}
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
        unsound = self._backend.unsound_segments(states) if chosen else []
        for one in chosen:
            if one.segment in quarantined:
                self._kept[one.segment] = "it holds damaged records that are not repaired yet"
            elif unsound:  # of two copies the one that stays may be the one whose commit is gone
                self._kept[one.segment] = (
                    f"segment {unsound[0][0]} {unsound[0][2]}: repair comes first, and before that, moving away"
                    " what lies there and is not ours"
                )
        return sorted(
            (one for one in chosen if one.segment not in self._kept),
            key=lambda one: (one.live_bytes, one.segment),
        )

    def look_for_tombstones(
        self, candidates: list[Candidate], least: int
    ) -> tuple[set[int], Evidence | None]:
        """Begin to look for what tombstones may hide, if there are enough of them; gives the segments that have some.

        Those come last and each by itself: a lower revision may lie in any segment that goes before.
        """
        counts = compacting.segments_with_tombstones(self._catalog)
        segments = {one.segment for one in candidates if one.segment in counts}
        if not segments or sum(counts[segment] for segment in segments) < least:
            return set(), None
        names: list[tuple[str, Any]] = []
        for segment in sorted(segments):
            names += compacting.useless_tombstones(self._catalog, segment)
            if len(names) > MAX_TOMBSTONES:
                break
        evidence = Evidence(self._disk, self._root, names)
        if any(state == SEGMENT_QUARANTINED for _, state in self._catalog.segments().values()):
            evidence.obstacle = "a segment is in quarantine"
        return segments, evidence

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

    def close_idle(self) -> None:
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

    def forecast(self) -> list[Candidate]:
        """Choose as `plan` does; open segments count as far as nobody writes to them now."""
        live = compacting.live_bytes(self._catalog)
        own = self._backend.committer.writers.own()
        chosen = self.plan()
        for segment, (applied, state) in sorted(self._catalog.segments().items()):
            if state == SEGMENT_OPEN and not self._is_dense(applied, live.get(segment, 0)):
                if segment not in own and not self._is_free(segment):
                    continue
                with suppress(BackendError, OSError):
                    counts = live.get(segment, 0)
                    dead = self._measure(segment) - counts
                    if dead > 0 and dead >= self._share * applied:
                        chosen.append(Candidate(segment, applied, counts, dead, state))
        return chosen

    def _is_free(self, segment: int) -> bool:
        try:
            handle = self._disk.open(segment_path(self._root, segment), "a")
        except (FileNotFoundError, HoldfastError):
            return False
        try:
            return self._disk.lock(handle)
        finally:
            self._disk.close(handle)


def in_batches(candidates: list[Candidate], last: set[int]) -> Iterator[list[Candidate]]:
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
