"""The catalog of a store in a bucket: opened, rebuilt from a listing, brought up to date with what others did.

A listing gives sizes and names without a request for each blob; what names them is read. Others' changes are
found by listing names again: those not seen before, or with another e_tag, are read.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from itertools import groupby
from pathlib import Path
from typing import Final

from holdfast.backend.objects.backend import ObjectBackend
from holdfast.backend.objects.bucket import Meta
from holdfast.backend.objects.layout import (
    ARTIFACTS,
    BLOBS,
    COMMITS,
    DATA,
    GONE,
    OUTBOARD,
    TAGS,
    parse_blob_key,
)
from holdfast.backend.objects.names import Named, facts_of, read_named
from holdfast.catalog import Catalog, CatalogUnusable
from holdfast.errors import IntegrityError
from holdfast.facts import Facts
from holdfast.object_group import stored_bytes
from holdfast.types import BLOCK_BYTES, Problem, Progress, ProgressCallback, RecoveryStats

log = logging.getLogger("holdfast")

BATCH_ROWS: Final = 10_000
FLYING: Final = 64
"""How many objects of documents are on their way at once."""
MAX_PROBLEMS: Final = 10_000
NAMES: Final = (COMMITS, ARTIFACTS, TAGS)


class Tally:
    """What a look through a bucket found."""

    def __init__(self) -> None:
        self.foreign = 0
        """Objects under `blobs/` that are not ours."""
        self.without_outboard: int = 0
        self.problems: list[Problem] = []


class ObjectKeeper:
    """Holds the catalog of an open store over a bucket. `path`: None keeps it in memory."""

    def __init__(self, backend: ObjectBackend, store_id: bytes, path: Path | None) -> None:
        self._backend = backend
        self._store_id = store_id
        self._path = path
        self._catalog: Catalog | None = None
        self._old: list[Catalog] = []
        self._mutex = threading.RLock()
        self.tally = Tally()

    def open(self) -> None:
        """Open the catalog, or rebuild it from the bucket."""
        with self._mutex:
            try:
                self._catalog = self._open_existing()
            except CatalogUnusable as error:
                self._rebuild(str(error), None)

    def current(self) -> Catalog:
        """Give the catalog, after one look that it is still the one at its path."""
        catalog = self._catalog
        if catalog is not None and catalog.is_current():
            return catalog
        with self._mutex:
            if self._catalog is None or not self._catalog.is_current():
                log.warning("the catalog %s was replaced or removed: opening it anew", self._path)
                self._retire()
                self.open()
            assert self._catalog is not None
            return self._catalog

    def replace(self, reason: str) -> None:
        """The catalog proved damaged: rebuild it, unless another thread has."""
        with self._mutex:
            if self._catalog is None or self._catalog.is_current():
                self._rebuild(reason, None)

    def rebuild(self, progress: ProgressCallback | None) -> RecoveryStats:
        """Make the catalog anew from the bucket."""
        with self._mutex:
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

    def _open_existing(self) -> Catalog:
        if self._path is None or not self._path.exists():
            raise CatalogUnusable("it is not there", path=str(self._path))
        catalog = Catalog.open(self._path, self._store_id, read_only=self._backend.read_only)
        if catalog.get_meta(WHOLE) is None:
            catalog.close()
            raise CatalogUnusable("it was never filled to its end", path=str(self._path))
        return catalog

    def _rebuild(self, reason: str | None, progress: ProgressCallback | None) -> RecoveryStats:
        started = time.monotonic()
        backend = self._backend
        requests = backend.bucket.requests.snapshot()
        if reason is not None:
            log.info("the catalog of %s is rebuilt from the bucket: %s", backend.bucket.location, reason)
        self.tally = tally = Tally()
        facts = _watched(read_bucket(backend, tally), progress)
        if self._path is None or backend.read_only:
            fresh = Catalog.open(None, self._store_id)
            for batch in facts:
                fresh.apply(batch)
            self._path = None
        else:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            aside = Catalog.create_aside(self._path, self._store_id)
            try:
                for batch in facts:
                    aside.apply(batch)
                aside.set_meta(WHOLE, 1)
                aside.publish(self._path)
            except BaseException:
                aside.discard()
                raise
            fresh = Catalog.open(self._path, self._store_id)
        self._retire()
        self._catalog = fresh
        counts = fresh.counts()
        for problem in tally.problems[:10]:
            log.warning("%s", problem.message)
        return RecoveryStats(
            complete_blobs=counts.blobs,
            artifacts=counts.artifacts,
            tags=counts.tags,
            damaged=len(tally.problems),
            problems=tuple(tally.problems[:MAX_PROBLEMS]),
            seconds=time.monotonic() - started,
            foreign_objects=tally.foreign,
            missing_outboards=tally.without_outboard,
            requests=backend.bucket.requests.since(requests, backend.bucket.requests.snapshot()),
        )


WHOLE: Final = "whole"
"""In `meta`: the catalog was filled from the bucket to its end, or began with an empty one."""


def read_bucket(backend: ObjectBackend, tally: Tally) -> Iterator[Facts]:
    """Give the facts of all that the bucket holds."""
    yield from _blobs(backend, tally)
    for prefix in NAMES:
        facts = Facts()
        for named in _read_all(backend, backend.bucket.list(prefix), tally):
            facts_of(named.documents, facts)
            if len(facts.artifacts) + len(facts.tags) >= BATCH_ROWS:
                yield facts
                facts = Facts()
        yield facts


def _blobs(backend: ObjectBackend, tally: Tally) -> Iterator[Facts]:
    facts = Facts()
    keyed = ((parse_blob_key(meta.key), meta) for meta in backend.bucket.list(BLOBS))
    for name, group in groupby(keyed, lambda one: one[0].name if one[0] is not None else None):
        if name is None:
            tally.foreign += sum(1 for _ in group)
            continue
        found = {key: meta for key, meta in group if key is not None}
        data = [(key, meta) for key, meta in found.items() if key.part == DATA]
        if not data:
            continue
        gone = {key.generation for key in found if key.part == GONE}
        key, meta = max(data, key=lambda one: (one[0].generation not in gone, one[0].generation))
        if meta.size_bytes > BLOCK_BYTES and (OUTBOARD, key.generation) not in {
            (k.part, k.generation) for k in found
        }:
            tally.without_outboard += 1
        size = meta.size_bytes
        facts.blobs.append((key.hash, size, meta.modified_ms, 0, stored_bytes(size), 1))
        if len(facts.blobs) >= BATCH_ROWS:
            yield facts
            facts = Facts()
    yield facts


def _read_all(backend: ObjectBackend, metas: Iterable[Meta], tally: Tally) -> Iterator[Named]:
    """Read objects of documents, many at a time. One that is damaged is a problem, and the others are taken."""
    flying: list[tuple[str, Future[Named | None]]] = []

    def land() -> Iterator[Named]:
        key, future = flying.pop(0)
        try:
            named = future.result()
        except IntegrityError as error:
            tally.problems.append(Problem(kind=error.kind, message=str(error), path=key))
            return
        if named is not None:
            yield named

    for meta in metas:
        flying.append((meta.key, backend.pool.submit(read_named, backend.bucket, meta.key)))
        if len(flying) >= FLYING:
            yield from land()
    while flying:
        yield from land()


def _watched(batches: Iterator[Facts], progress: ProgressCallback | None) -> Iterator[Facts]:
    done = 0
    for facts in batches:
        yield facts
        done += len(facts.blobs) + len(facts.artifacts)
        if progress is not None:
            progress(Progress(phase="rebuild", done_items=done))
