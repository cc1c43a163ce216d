"""Keeping the catalog equal to storage: opened, caught up, rebuilt when it is lost, replaced when it was replaced.

Everybody who looks something up asks the keeper for the catalog first; one `stat` tells whether the file at
its path is still the one that is open.
"""

from __future__ import annotations

import logging
import time
import weakref
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

import msgspec

from holdfast.backend.log.backend import LogBackend
from holdfast.backend.log.layout import SEGMENTS, segment_path
from holdfast.backend.log.recovery import Recovery
from holdfast.catalog import Catalog, CatalogUnusable, collecting, compacting
from holdfast.catalog.damage import DOUBTFUL
from holdfast.catalog.forgetting import count_forgotten
from holdfast.errors import CorruptSegment, HoldfastError, IntegrityError, Unavailable
from holdfast.facts import SEGMENT_SUPERSEDED, Facts
from holdfast.halves import drop_half_blobs
from holdfast.lost import Lost
from holdfast.reports import Problem, RecoveryStats
from holdfast.types import Progress, ProgressCallback
from holdfast.wire.record import SEGMENT_HEADER_BYTES

log = logging.getLogger("holdfast")

MAX_PROBLEMS = 10_000


class WouldForget(IntegrityError):
    """Storage is damaged, not the catalog, which is kept. Never for users."""


BROUGHT_IN = "brought_in"
"""In `meta`: the ids, 16 bytes each, of commits in segments of living processes that were copied elsewhere. Where they
stand they are never taken in again: what they say may be forgotten, and what they rely on be gone."""
KEPT = "kept_names"
"""In `meta`: how many names this catalog knows, and a rebuild would forget. It goes with the catalog."""
UNREAD = "unread_stretches"
"""In `meta`: places of damage that is older than the catalog, which so never read what stood there."""


class CatalogKeeper:
    """Holds the catalog of a store that is open.

    A catalog that was replaced is dropped and not closed: another thread may be asking it something. Its connections
    close with the last of them, or when the store is closed.
    """

    def __init__(self, backend: LogBackend, path: Path | None) -> None:
        self._backend = backend
        self._path = path
        self._catalog: Catalog | None = None
        self._irreplaceable = b""
        self._opened: weakref.WeakSet[Catalog] = weakref.WeakSet()
        self.problems: tuple[Problem, ...] = ()
        """Damage that the last look at storage found."""
        self._lost: Lost | None = None

    @property
    def lost(self) -> Lost:
        """Segments that nothing new is to rely on: looked for by the first put, and by the next after some were met."""
        lost = self._lost
        if lost is None or lost.is_over:
            lost = self._lost = Lost(self._backend, self.current())
        return lost

    def look_again(self) -> None:
        """Have the next put look for lost segments."""
        self._lost = None

    def open(self) -> None:
        """Open the catalog, or rebuild it, and catch up with storage."""
        with self._backend.lock():
            try:
                self._take(self._open_existing())
                self._catch_up()
                return
            except CatalogUnusable as error:
                reason = str(error)
            except Unavailable:
                if not self._is_removed():
                    raise
                reason = "it was removed while it was opened"
            if self._backend.read_only:
                self._rebuild_in_memory(reason)
            else:
                self._rebuild(reason, None)

    def current(self) -> Catalog:
        """Give the catalog, after one look that it is still the one at its path."""
        catalog = self._catalog
        if catalog is not None and catalog.is_current():
            return catalog
        return self._renew()

    def known_segments(self) -> dict[int, tuple[int, int]]:
        """Give how far segments are applied; nothing while the catalog is being made, or is to be."""
        try:
            return self.current().segments() if self._catalog is not None else {}
        except CatalogUnusable:
            return {}

    def apply(self, batches: Iterable[Facts]) -> None:
        """Bring facts into the catalog in one transaction. The caller holds the store's lock.

        Facts are derived from what is durable, so where the catalog proves unusable a rebuild brings them in.
        """
        try:
            self.current().apply_all(batches)
        except CatalogUnusable as error:
            self._rebuild(str(error), None)

    def catch_up(self) -> None:
        """Apply what is durable and not applied yet, ours and that of processes that died. The caller holds the lock.

        Whoever gives a revision must know the highest: one that comes to light later would undo the change.
        """
        self.current()
        self._backend.committer.apply()
        self._catch_up()

    def rebuild(self, progress: ProgressCallback | None) -> RecoveryStats:
        """Throw the catalog away and make it anew from storage."""
        with self._backend.lock():
            if self._catalog is not None and self._catalog.is_current():
                self._refuse_to_forget()
            return self._rebuild(None, progress)

    def has_lost_segments(self) -> bool:
        """Whether segments that the catalog knows are gone, or shorter than what was stored in them."""
        try:
            lost = self._backend.lost_segments(self.current().segments())
        except CatalogUnusable:
            return False
        if lost and self._path is None and self._backend.read_only:
            # What storage was read into has grown old: others may have compacted it since.
            recovery = self._backend.recovery({}, rebuilding=True)
            try:
                recovery.prepare()
                lost = [one for one in lost if not recovery.is_retired(one[0])]
            finally:
                recovery.close()
            if not lost:
                self._backend.payloads.trust_again()
        if lost:
            self.look_again()
        return bool(lost)

    def _refuse_to_forget(self) -> None:
        try:
            known = self.current().segments()
        except CatalogUnusable:
            return
        lost = self._backend.lost_segments(known)
        for segment in self._backend.foreign_segments():
            applied, state = known.get(segment, (0, SEGMENT_SUPERSEDED))
            if state != SEGMENT_SUPERSEDED and applied > SEGMENT_HEADER_BYTES:
                lost.append(
                    (segment, segment_path(self._backend.root, segment), "was replaced by another one")
                )
        if not lost and (kept := self.kept_names()):
            raise CorruptSegment(
                f"a rebuild would forget {kept} names that no record says any more: `holdfast repair` stores them anew,"
                " and from a SOURCE what they name; `repair --give-up` lets go of what is left",
                path=f"{self._backend.root}/{SEGMENTS}",
            )
        if lost:
            segment, path, why = lost[0]
            raise CorruptSegment(
                f"{path} {why}: a rebuild would forget what was stored there ({len(lost)} such segments)."
                " Bring it back, or repair from another store. Deleting catalog.db goes on with what is left: the"
                " store then forgets, for good and without a list, what only these segments held, and that anything"
                " is missing; what was deleted there may come back",
                segment=segment,
                path=path,
            )

    def replace(self, reason: str, *, is_mended: bool = False, forget: bool = False) -> None:
        """The catalog proved damaged: rebuild it, unless another thread or process has done so meanwhile.

        `WouldForget` where storage is what is damaged: names that the catalog knows are in no record any more. Then
        the catalog stays, for a repair to go by; `is_mended` says that storage is another one since the last time,
        `forget` that such names are to go.
        """
        with self._backend.lock():
            if is_mended:
                self._irreplaceable = b""
            if self._catalog is None or self._catalog.is_current():
                if self._backend.read_only:
                    self._rebuild_in_memory(reason)
                else:
                    self._rebuild(reason, None, keep=None if forget else self._catalog)
            else:
                self._renew()

    def kept_names(self) -> int:
        """Give how many names the catalog knew, when it was last to be made anew, that no record says any more."""
        return int(self.current().get_meta(KEPT) or 0)

    def unread(self) -> set[int]:
        """Give the places of damage of which the catalog never knew what it was."""
        raw = self.current().get_meta(UNREAD)
        return set(msgspec.json.decode(raw, type=list[int])) if isinstance(raw, bytes) else set()

    def close(self) -> None:
        """Close the catalog, and those that it took the place of: nobody asks any more."""
        self._catalog = None
        for catalog in list(self._opened):
            catalog.close()

    def _take(self, catalog: Catalog) -> Catalog:
        self._catalog, self._lost = catalog, None
        self._opened.add(catalog)
        return catalog

    def _renew(self) -> Catalog:
        """The file at the path is another one, or none: take it, or rebuild it; one process does, others wait."""
        with self._backend.lock():
            if self._catalog is None or not self._catalog.is_current():
                self._backend.check_same_store()
                log.warning("the catalog %s was replaced or removed: opening it anew", self._path)
                self._catalog = None
                self.open()
            assert self._catalog is not None
            return self._catalog

    def _open_existing(self) -> Catalog:
        backend = self._backend
        missing = self._path is not None and not self._path.exists()
        if missing and (backend.read_only or backend.segment_ids()):
            raise CatalogUnusable("it is missing", path=str(self._path))
        return Catalog.open(self._path, backend.store.id, read_only=backend.read_only)

    def _is_removed(self) -> bool:
        catalog = self._catalog
        is_other = catalog is not None and not catalog.is_current()
        return is_other or (self._path is not None and not self._path.exists())

    def _catch_up(self) -> None:
        catalog = self._catalog
        assert catalog is not None
        recovery = self._backend.recovery(
            catalog.segments(),
            rebuilding=False,
            retired=compacting.retired(catalog),
            brought_in=lambda: catalog.get_meta(BROUGHT_IN) or b"",
        )
        try:
            recovery.prepare()
            if recovery.lost:
                self.look_again()
            if recovery.is_outdated:
                raise CatalogUnusable("it is older than a compaction", path=str(self._path))
            if recovery.problems:
                self._note(recovery)
            if recovery.has_work:
                if self._backend.read_only:
                    self._rebuild_in_memory("it is behind storage")
                    return
                collecting.go_back(catalog)
                catalog.apply_all(recovery.facts(), recovery.newly_retired(), lambda: _notes(recovery))
                self._note_unread(recovery)
                self._note(recovery)
                recovery.finish()
        finally:
            recovery.close()

    def _rebuild(
        self, reason: str | None, progress: ProgressCallback | None, *, keep: Catalog | None = None
    ) -> RecoveryStats:
        """`keep`: the catalog whose names the new one must have."""
        if keep is not None and keep.id == self._irreplaceable:
            raise WouldForget("a rebuild would forget what damaged records held")
        started = time.monotonic()
        backend = self._backend
        if reason is not None:
            log.warning("the catalog is rebuilt from storage: %s", reason)
        recovery = backend.recovery({}, rebuilding=True)
        try:
            recovery.prepare()
            if self._path is None:
                fresh = Catalog.open(None, backend.store.id)
                for facts in _watched(recovery.facts(), progress):
                    fresh.apply(facts)
                _drop_half(fresh, backend, recovery)
                catalog = self._take(fresh)
            else:
                aside = Catalog.create_aside(self._path, backend.store.id)
                try:
                    for facts in _watched(recovery.facts(), progress):
                        aside.apply(facts)
                    _drop_half(aside, backend, recovery)
                    if keep is not None and (lost := count_forgotten(keep, aside)):
                        self._irreplaceable = keep.id
                        with suppress(HoldfastError):  # the disk is full, or the catalog is damaged as well
                            keep.set_meta(KEPT, lost)
                        log.warning("the catalog is kept: a rebuild would forget %s names", lost)
                        raise WouldForget(f"a rebuild would forget {lost} names that damaged records held")
                    aside.publish(self._path)
                except BaseException:
                    aside.discard()
                    raise
                catalog = self._take(Catalog.open(self._path, backend.store.id))
            self._note_unread(recovery)
            self._note(recovery)
            recovery.finish()
        finally:
            recovery.close()
        counts = catalog.counts()
        return RecoveryStats(
            complete_blobs=counts.blobs,
            partial_blobs=sum(catalog.find_blob(hash_) is None for hash_ in backend.partials.hashes()),
            chunks=counts.chunks,
            artifacts=counts.artifacts,
            tags=counts.tags,
            segments=recovery.segments,
            damaged=len(self.problems),
            copied_bytes=recovery.copied_bytes,
            problems=self.problems,
            seconds=time.monotonic() - started,
        )

    def _rebuild_in_memory(self, reason: str) -> None:
        """A store that is opened to read cannot mend its catalog: read storage into one in memory."""
        log.warning("the catalog cannot be used read-only (%s): reading storage into memory", reason)
        self._path = None
        catalog = self._take(Catalog.open(None, self._backend.store.id))
        recovery = self._backend.recovery({}, rebuilding=True)
        try:
            recovery.prepare()
            for facts in recovery.facts():
                catalog.apply(facts)
            _drop_half(catalog, self._backend, recovery)
            self._note(recovery)
        finally:
            recovery.close()

    def _note_unread(self, recovery: Recovery) -> None:
        """Keep where damage hides what was never read."""
        places = {
            problem.segment << 32 | problem.offset_bytes
            for problem in recovery.problems
            if problem.segment is not None and problem.offset_bytes is not None
        }
        known = self.unread()
        if self._catalog is not None and not self._backend.read_only and places - known:
            self._catalog.set_meta(UNREAD, msgspec.json.encode(sorted(places | known)[:MAX_PROBLEMS]))

    def _note(self, recovery: Recovery) -> None:
        known = set(self.problems)
        for problem in [one for one in recovery.problems if one not in known][:10]:
            log.warning(
                "damage in segment %s at offset %s: %s",
                problem.segment,
                problem.offset_bytes,
                problem.message,
            )
        self.problems = tuple(recovery.problems[:MAX_PROBLEMS])


def _drop_half(catalog: Catalog, backend: LogBackend, recovery: Recovery) -> None:
    """Give up what is not whole in a catalog that was just made; say in it that storage is damaged, if it is."""
    recovery.problems.extend(drop_half_blobs(catalog, backend, is_damaged=bool(recovery.problems)))
    for key, value in _notes(recovery).items():
        catalog.set_meta(key, value)


def _notes(recovery: Recovery) -> dict[str, bytes | int]:
    """Give what a catalog that learned from storage is to keep in `meta`."""
    notes: dict[str, bytes | int] = {DOUBTFUL: 1} if recovery.problems else {}
    if copied := recovery.copied_from_living():
        notes[BROUGHT_IN] = b"".join(sorted(copied))
    return notes


def _watched(batches: Iterator[Facts], progress: ProgressCallback | None) -> Iterator[Facts]:
    done = 0
    for facts in batches:
        yield facts
        done += len(facts.data) + len(facts.blobs) + len(facts.artifacts)
        if progress is not None:
            progress(Progress(phase="rebuild", done_items=done))
