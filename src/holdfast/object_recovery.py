"""The catalog of a store in a bucket: opened, rebuilt from a listing, brought up to date with what others did."""

from __future__ import annotations

import fcntl
import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Final

import msgspec

from holdfast.backend.objects.backend import ObjectBackend
from holdfast.backend.objects.bucket import Meta
from holdfast.backend.objects.ends import list_whole, make_ends
from holdfast.backend.objects.layout import IDENTITY_KEY, MAX_IDENTITY_BYTES, parse_identity
from holdfast.backend.objects.names import Named, facts_of
from holdfast.catalog import Catalog, CatalogUnusable
from holdfast.catalog.objects import HIDDEN_COUNT, Bad, iter_seen, known_bad, note_bad
from holdfast.catalog.unusable import translate_os
from holdfast.errors import NeedsReopen, StoreNotFound, Unavailable
from holdfast.facts import Facts
from holdfast.object_listing import MAX_PROBLEMS, NAMES, TRIES, Tally, blob_facts, name_facts
from holdfast.object_refresh import LISTED, MAX_LOOKS, Listing, Refresh, changed, read_names, settle, watched
from holdfast.reports import RecoveryStats, RefreshStats
from holdfast.types import ProgressCallback

log = logging.getLogger("holdfast")

WHOLE: Final = "whole"
"""In `meta`: the catalog was filled from the bucket to its end, or began with an empty one."""
CONDITIONS: Final = "conditions"
"""In `meta`: the bucket was seen to honour conditional writes."""
KEPT: Final = (CONDITIONS, "scrub_position", "scrub_done", "collected_ms")
"""What a rebuild takes over from the catalog that it replaces, where that can still be read: hints."""


class ObjectKeeper:
    """Holds the catalog of an open store over a bucket. `path`: None keeps it in memory.

    `read_only`: the catalog is not written either; a bucket that may only be read can have one that is.
    """

    def __init__(
        self, backend: ObjectBackend, store_id: bytes, path: Path | None, *, read_only: bool
    ) -> None:
        self._backend = backend
        self._read_only = read_only
        self.store_id = store_id
        self._path = path
        self._catalog: Catalog | None = None
        self._old: list[Catalog] = []
        self._mutex = threading.RLock()
        self._was_open = False

    def open(self) -> None:
        """Open the catalog, or rebuild it from the bucket."""
        with self._mutex, self._alone():
            self._open()
            self._was_open = True

    def _open(self) -> None:
        try:
            self._catalog = self._open_existing()
        except CatalogUnusable as error:
            self._rebuild(str(error), None)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep other processes from making the same catalog: whoever waited finds one that is whole."""
        if self._path is None or self._read_only:
            yield
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            name = self._path.with_name(self._path.name + ".lock")
            handle = os.open(name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise translate_os(error, self._path) from error
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)

    def current(self) -> Catalog:
        """Give the catalog, after one look that it is still the one at its path."""
        catalog = self._catalog
        if catalog is not None and catalog.is_current():
            return catalog
        with self._mutex:
            if self._catalog is None or not self._catalog.is_current():
                log.warning("the catalog %s was replaced or removed: opening it anew", self._path)
                self._retire()
                with self._alone():
                    self._open()
            assert self._catalog is not None
            return self._catalog

    def replace(self, reason: str) -> None:
        """The catalog proved damaged: rebuild it, unless another thread has."""
        with self._mutex, self._alone():
            if self._catalog is None or self._catalog.is_current():
                self._rebuild(reason, None)

    def rebuild(self, progress: ProgressCallback | None) -> RecoveryStats:
        """Make the catalog anew from the bucket."""
        with self._mutex, self._alone():
            return self._rebuild(None, progress)

    def close(self) -> None:
        """Close the catalog, and those that it took the place of."""
        self._retire()
        for catalog in self._old:
            catalog.close()
        self._old.clear()

    def _retire(self) -> None:
        if self._catalog is not None:
            self._old.append(self._catalog)  # another thread may be asking it something
        self._catalog = None

    def refresh(self, progress: ProgressCallback | None) -> RefreshStats:
        """Bring the catalog up to date with what others did; a store that was opened to read gets it in memory."""
        with self._mutex:
            catalog = self.current()
            if self._read_only and self._path is not None:
                self._path = None
                stats = self._rebuild("a store opened read-only is read anew", progress)
                return RefreshStats(is_rebuilt=True, requests=stats.requests, seconds=stats.seconds)
            self._check_identity()
            with closing(Refresh(self._backend, catalog, progress)) as refresh:
                if not refresh.run():
                    where = self._backend.bucket.location
                    log.info("names are gone from %s that nothing else says: all are read anew", where)
                    refresh.remember()
                    self._rebuild(None, progress)
                    refresh.compare(self.current())
                return refresh.report()

    def read_names(self) -> None:
        """Read the names that are new, for who lists the blobs next; `Unavailable` where that cannot be done wholly."""
        with self._mutex:
            if not read_names(self._backend, self.current(), Tally()):
                raise Unavailable(
                    "the names of this bucket are rewritten faster than they can be read: try again"
                )

    def take_named(self, named: Named) -> None:
        """Take in what an object of names says."""
        facts = Facts(seen=[(named.key, named.e_tag)])
        facts_of(named.documents, facts, named.key)
        self.current().apply(facts)

    def listing(self) -> Listing:
        """Give what the last whole listing found beside the facts."""
        raw = self.current().get_meta(LISTED)
        return msgspec.json.decode(raw, type=Listing) if isinstance(raw, bytes) else Listing()

    def _open_existing(self) -> Catalog:
        if self._path is None or not self._path.exists():
            raise CatalogUnusable("it is not there", path=str(self._path))
        catalog = Catalog.open(self._path, self.store_id, read_only=self._read_only)
        if catalog.get_meta(WHOLE) is None:
            catalog.close()
            raise CatalogUnusable("it was never filled to its end", path=str(self._path))
        raw = catalog.get_meta(LISTED)
        if isinstance(raw, bytes):
            self._backend.has_base32 = bool(msgspec.json.decode(raw, type=Listing).base32)
        return catalog

    def _rebuild(self, reason: str | None, progress: ProgressCallback | None) -> RecoveryStats:
        started = time.monotonic()
        backend = self._backend
        requests = backend.bucket.requests.snapshot()
        if self._was_open:
            self._check_identity()
        if not backend.read_only:
            make_ends(backend.bucket)  # where somebody removed them
        if reason is not None:
            log.info("the catalog of %s is rebuilt from the bucket: %s", backend.bucket.location, reason)
        tally = Tally()
        hints, known = self._hints()
        facts = watched(read_bucket(backend, tally), progress)
        if self._path is None or self._read_only:
            fresh = Catalog.open(None, self.store_id)
            for batch in facts:
                fresh.apply(batch)
            self._path = None
        else:
            aside = Catalog.create_aside(self._path, self.store_id)
            try:
                for batch in facts:
                    aside.apply(batch)
                aside.publish(self._path)
            except BaseException:
                aside.discard()
                raise
            fresh = Catalog.open(self._path, self.store_id)
        is_replaced = self._catalog is not None
        self._retire()
        self._catalog = fresh
        for key, value in hints.items():
            fresh.set_meta(key, value)
        if is_replaced:  # what was named while we listed was told to the one before
            for prefix in NAMES:
                for batch in name_facts(backend, changed(backend, fresh, prefix), Tally()):
                    fresh.apply(batch)
            for batch in name_facts(backend, _unlisted(self._old[-1], fresh), Tally()):
                fresh.apply(batch)
        settle(backend, fresh, tally)
        fresh.set_meta(WHOLE, 1)
        note_bad(fresh, [*known, *tally.bad])
        counts = fresh.counts()
        for problem in tally.problems[:10]:
            log.warning("%s", problem.message)
        return RecoveryStats(
            complete_blobs=counts.blobs,
            partial_blobs=sum(fresh.find_blob(hash_) is None for hash_, _ in backend.parts.iter_all()),
            artifacts=counts.artifacts,
            tags=counts.tags,
            damaged=len(tally.problems),
            problems=tuple(tally.problems[:MAX_PROBLEMS]),
            seconds=time.monotonic() - started,
            foreign_objects=tally.foreign,
            missing_outboards=tally.without_outboard,
            unacknowledged=fresh.ask(HIDDEN_COUNT)[0][0],
            requests=backend.bucket.requests.since(requests, backend.bucket.requests.snapshot()),
        )

    def _check_identity(self) -> None:
        """See that the store is still there before what is known of it is thrown away: a disk may be unmounted."""
        bucket = self._backend.bucket
        found = bucket.get(IDENTITY_KEY, max_bytes=MAX_IDENTITY_BYTES)
        if found is None:
            raise StoreNotFound(
                f"the store at {bucket.location} is gone, or its disk is: there is no {IDENTITY_KEY} any more; its"
                " catalog is kept",
                path=bucket.location,
            )
        if parse_identity(found[0], bucket.location).id != self.store_id:
            raise NeedsReopen(
                f"there is another store at {bucket.location} by now: open it anew", path=bucket.location
            )

    def _hints(self) -> tuple[dict[str, int | bytes], list[Bad]]:
        """Give what the catalog that is replaced says and storage does not."""
        if self._catalog is None:
            return {}, []
        try:
            values = {key: self._catalog.get_meta(key) for key in KEPT}
            return {key: value for key, value in values.items() if value is not None}, known_bad(
                self._catalog
            )
        except (CatalogUnusable, Unavailable):
            return {}, []


def _unlisted(old: Catalog, fresh: Catalog) -> Iterator[Meta]:
    """Give up to 1,000 objects of names that were known and not listed now: gone, or missed by the listing."""
    with suppress(CatalogUnusable, Unavailable):
        left = MAX_LOOKS
        for prefix in NAMES:
            listed = iter_seen(fresh, prefix)
            at = next(listed, None)
            for key, e_tag in iter_seen(old, prefix):
                while at is not None and at[0] < key:
                    at = next(listed, None)
                if at is None or at[0] != key:
                    if not left:
                        return
                    left -= 1
                    yield Meta(key, 0, e_tag, 0)


def read_bucket(backend: ObjectBackend, tally: Tally) -> Iterator[Facts]:
    """Give the facts of all that the bucket holds."""
    for prefix in NAMES:
        for _ in range(TRIES):
            vanished = tally.vanished
            yield from name_facts(backend, list_whole(backend.bucket, prefix), tally)
            if tally.vanished == vanished:
                break
    yield from blob_facts(backend, tally)
