"""The catalog of a store in a bucket: opened, rebuilt from a listing, brought up to date with what others did."""

from __future__ import annotations

import fcntl
import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import groupby
from pathlib import Path
from typing import Final

import msgspec

from holdfast.backend.objects.backend import ObjectBackend
from holdfast.backend.objects.bucket import Meta
from holdfast.backend.objects.ends import list_whole, make_ends
from holdfast.backend.objects.layout import IDENTITY_KEY, MAX_IDENTITY_BYTES, parse_identity
from holdfast.backend.objects.names import Named, facts_of
from holdfast.catalog import Catalog, CatalogUnusable
from holdfast.catalog.objects import (
    HIDDEN_COUNT,
    SIZES,
    Bad,
    drop_blobs,
    hide,
    iter_lacking,
    iter_seen,
    known_bad,
    note_bad,
    set_size,
    show_again,
)
from holdfast.catalog.unusable import translate_os
from holdfast.errors import CorruptBlob, NeedsReopen, StoreNotFound, Unavailable
from holdfast.facts import Facts
from holdfast.object_group import stored_bytes
from holdfast.object_listing import (
    BATCH_ROWS,
    MAX_PROBLEMS,
    NAMES,
    TRIES,
    Listed,
    Tally,
    blob_facts,
    iter_blobs,
    name_facts,
)
from holdfast.reports import Problem, RecoveryStats, RefreshStats
from holdfast.types import Hash, Progress, ProgressCallback, now_ms

log = logging.getLogger("holdfast")

WHOLE: Final = "whole"
"""In `meta`: the catalog was filled from the bucket to its end, or began with an empty one."""
CONDITIONS: Final = "conditions"
"""In `meta`: the bucket was seen to honour conditional writes."""
LISTED: Final = "listed"
"""In `meta`: what the last whole listing found beside the facts (`Listing`)."""
KEPT: Final = (CONDITIONS, "scrub_position", "scrub_done", "collected_ms")
"""What a rebuild takes over from the catalog that it replaces, where that can still be read: hints."""
MAX_LOOKS: Final = 1_000


class Listing(msgspec.Struct):
    """What a listing found beside the facts."""

    listed_ms: int = 0
    foreign: int = 0
    without_outboard: int = 0
    base32: int = 0


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
            handle = os.open(name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
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
            refresh = Refresh(self._backend, catalog, progress)
            if not refresh.run():
                log.info(
                    "objects of names are gone from %s: all are read anew", self._backend.bucket.location
                )
                self._rebuild(None, progress)
            return refresh.report()

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
        facts = _watched(read_bucket(backend, tally), progress)
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
                for batch in name_facts(backend, _changed(backend, fresh, prefix, []), Tally()):
                    fresh.apply(batch)
            for batch in name_facts(backend, _unlisted(self._old[-1], fresh), Tally()):
                fresh.apply(batch)
        _settle(backend, fresh, tally)
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


def _changed(backend: ObjectBackend, catalog: Catalog, prefix: str, gone: list[str]) -> Iterator[Meta]:
    """Give what is listed and was not seen like that; `gone` gets what was seen and is not listed."""
    seen = iter_seen(catalog, prefix)
    known = next(seen, None)
    for meta in list_whole(backend.bucket, prefix):
        while known is not None and known[0] < meta.key:
            gone.append(known[0])
            known = next(seen, None)
        if known is None or known[0] != meta.key:
            yield meta
            continue
        if known[1] != meta.e_tag or not meta.e_tag:
            yield meta
        known = next(seen, None)
    if known is not None:
        gone += [known[0], *(key for key, _ in seen)]


def _settle(backend: ObjectBackend, catalog: Catalog, tally: Tally) -> None:
    """See to what the listings do not say by themselves, once all of it is in the catalog."""
    lacking: list[bytes] = []
    unacknowledged: list[bytes] = []
    for first, hashes in groupby(iter_lacking(catalog), key=lambda hash_: hash_[0]):
        collected = tally.collected.bucket(first)
        for hash_ in hashes:
            if hash_ in collected:
                unacknowledged.append(hash_)
            elif len(lacking) < MAX_LOOKS:
                lacking.append(hash_)
    found, lost = Facts(), list[bytes]()
    looked_at = lacking + unacknowledged
    for hash_, there in zip(looked_at, backend.pool.map(backend.look, looked_at), strict=True):
        if there.best is not None:  # it was put while we listed
            found.blobs.append(Listed(hash_, there, "").row())
        elif there.gone:
            lost.append(hash_)
    catalog.apply(found)
    hide(catalog, lost)
    show_again(catalog)
    for hash_, said, size in catalog.ask(SIZES):
        message = f"the object of blob {hash_.hex()} has {size} bytes, and {said} were stored"
        tally.problems.append(Problem(kind=CorruptBlob.kind, message=message, hash=Hash(hash_)))
        tally.bad.append(Bad(backend.data_key(hash_), hash_, message))
        set_size(catalog, hash_, said, stored_bytes(said))  # so that no reading ends early and says nothing
    listing = Listing(now_ms(), tally.foreign, tally.without_outboard, tally.base32)
    catalog.set_meta(LISTED, msgspec.json.encode(listing))
    tally.collected.close()


class Refresh:
    """Compares what the bucket lists with what the catalog has seen, and reads what is new."""

    def __init__(self, backend: ObjectBackend, catalog: Catalog, progress: ProgressCallback | None) -> None:
        self._backend = backend
        self._catalog = catalog
        self._progress = progress
        self._started = time.monotonic()
        self._requests = backend.bucket.requests.snapshot()
        self._tally = Tally()
        self._new_blobs = self._gone_blobs = 0
        self._is_rebuilt = False

    def run(self) -> bool:
        """Do it; False when objects of names are gone, so that only reading all of them tells what is left."""
        catalog, backend, tally = self._catalog, self._backend, self._tally
        gone: list[str] = []
        for prefix in NAMES:
            for facts in _watched(
                name_facts(backend, _changed(backend, catalog, prefix, gone), tally), self._progress
            ):
                catalog.apply(facts)
        for facts in _watched(self._blobs(), self._progress):
            catalog.apply(facts)
        _settle(backend, catalog, tally)
        note_bad(catalog, tally.bad)
        # one that was made here while we listed is not gone
        self._is_rebuilt = any(one is None for one in backend.pool.map(backend.bucket.head, gone[:MAX_LOOKS]))
        self._is_rebuilt |= len(gone) > MAX_LOOKS or tally.vanished > 0
        return not self._is_rebuilt

    def report(self) -> RefreshStats:
        requests = self._backend.bucket.requests
        return RefreshStats(
            names_read=self._tally.names,
            blobs_found=self._new_blobs,
            blobs_gone=self._gone_blobs,
            is_rebuilt=self._is_rebuilt,
            damaged=len(self._tally.problems),
            problems=tuple(self._tally.problems[:MAX_PROBLEMS]),
            requests=requests.since(self._requests, requests.snapshot()),
            seconds=time.monotonic() - self._started,
        )

    def _blobs(self) -> Iterator[Facts]:
        """Give the rows that are new or other ones, and forget those of which there is nothing any more."""
        catalog = self._catalog
        rows = catalog.iter_blobs()
        known = next(rows, None)
        facts, gone = Facts(), list[bytes]()
        odd: set[bytes] = set()
        for listed in iter_blobs(self._backend, self._tally):
            if listed.found.name:  # base32 sorts in another order
                odd.add(listed.hash)
                facts.blobs.append(listed.row())
                continue
            while known is not None and known.hash < listed.hash:
                gone.append(known.hash)
                known = next(rows, None)
            is_known = known is not None and known.hash == listed.hash
            if not is_known:
                self._new_blobs += 1
                facts.blobs.append(listed.row())
            elif known is not None and known.size != listed.size_bytes:
                set_size(catalog, listed.hash, listed.size_bytes, listed.row()[4])
            if is_known:
                known = next(rows, None)
            if len(facts.blobs) >= BATCH_ROWS:
                yield facts
                facts = Facts()
        while known is not None:
            gone.append(known.hash)
            known = next(rows, None)
        gone = [hash_ for hash_ in gone if hash_ not in odd]
        self._gone_blobs = len(gone)
        drop_blobs(catalog, gone)
        yield facts


def _watched(batches: Iterator[Facts], progress: ProgressCallback | None) -> Iterator[Facts]:
    done = 0
    for facts in batches:
        yield facts
        done += len(facts.blobs) + len(facts.artifacts)
        if progress is not None:
            progress(Progress(phase="rebuild", done_items=done))
