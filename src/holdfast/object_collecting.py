"""What a store in a bucket uses of the collection: `gc`, its dry run, `compact`, `why`, `forecast`."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from itertools import chain, islice
from typing import Final

from holdfast.backend.objects.bucket import Requests
from holdfast.backend.objects.collection import Turn
from holdfast.backend.objects.layout import commit_key
from holdfast.backend.objects.names import facts_of, read_named
from holdfast.backend.objects.pieces import Pieces
from holdfast.backend.objects.probe import PROBE, is_try
from holdfast.catalog.collecting import COLLECTED, iter_names, names_of, required_by
from holdfast.catalog.objects import forget_seen
from holdfast.digests import BUCKETS, DigestSet
from holdfast.errors import BackendError, BlobNotFound, InvalidConfig, InvalidInput, StoreNotFound
from holdfast.facts import Facts
from holdfast.gc.roots import named_text
from holdfast.object_collection import BucketCollection, reached
from holdfast.object_core import ObjectCore
from holdfast.object_partials import expire_partials
from holdfast.object_roots import Commit
from holdfast.object_uploads import expire_uploads
from holdfast.reports import Chain, CompactReport, Forecast, GcReport
from holdfast.sequences import Sequences
from holdfast.types import Artifact, Hash, Progress, ProgressCallback, new_ids, now_ms, parse_id
from holdfast.wire.bundle import Document, encode_bundle
from holdfast.wire.document import parse_artifact
from holdfast.wire.part import COMMITTING

log = logging.getLogger("holdfast")

MAX_CHAINS: Final = 100
GATHERED_BYTES: Final = 4 << 20
"""About how large an object of gathered names becomes."""
GATHERED_OBJECTS: Final = 1_000
"""How many of them it takes the place of at most."""
SMALL_BYTES: Final = 1 << 20
"""Smaller objects of names are gathered, when somebody asks for it."""
MIN_STALE_SECONDS: Final = 86_400
"""Uploads in parts are aborted when they are older than this, and than partial blobs may become."""
WORTH: Final = 0.5
"""A collection rewrites objects of names of which this share is dead."""


def _never() -> bool:
    return False


class BucketCollector:
    """The room of collection."""

    def __init__(self, core: ObjectCore) -> None:
        self._core = core

    def gc(
        self,
        *,
        dry: bool,
        min_age_seconds: float | None,
        max_batches: int | None,
        progress: ProgressCallback | None,
        stop: Callable[[], bool] = _never,
    ) -> GcReport:
        """Collect, or (`dry`) say what would go. `stop` is asked between two steps."""
        core = self._core
        age = core.options.min_age_seconds if min_age_seconds is None else min_age_seconds
        if not 0 <= age <= 1 << 40:
            raise InvalidInput(f"min_age_seconds is {age}; 0 and more are allowed")
        if max_batches is not None and max_batches < 1:
            raise InvalidInput(f"max_batches is {max_batches}; 1 and more are allowed")
        if not dry:
            core.check_writable()
        started, before = time.monotonic(), core.backend.bucket.requests.snapshot()
        compacted: CompactReport | None = None
        aborted = 0
        with self._collecting(
            None if dry else "a collection", age=age, max_batches=max_batches, progress=progress, stop=stop
        ) as collection:
            if dry:
                collection.foresee()
            else:
                expire_partials(core, collection.time_ms)
                expire_uploads(core, collection.time_ms)
                aborted = self._abort_stale(collection.time_ms)
                self._remove_tries(collection.time_ms)
                collection.run()
                if collection.complete:
                    core.catalog.set_meta(COLLECTED, now_ms())
                if collection.complete and not stop():
                    compacted = self._gather(collection, WORTH, 0, dry=False)
        return GcReport(
            complete=collection.complete,
            dry_run=dry,
            forgotten_artifacts=collection.artifacts,
            dropped_blobs=collection.blobs,
            dropped_payloads=collection.blobs,
            freed_bytes=collection.freed_bytes,
            condemned=collection.marked,
            pardoned=collection.pardoned,
            blobs=tuple(collection.hashes),
            reasons=collection.reasons,
            compacted=compacted,
            aborted_uploads=aborted,
            price=collection.requests,
            requests=Requests.since(before, core.backend.bucket.requests.snapshot()),
            seconds=time.monotonic() - started,
        )

    def _abort_stale(self, time_ms: int) -> int:
        """Abort what killed processes left of uploads in parts. It is no part of a collection, so it fails alone."""
        core = self._core
        age_seconds = max(core.options.partial_age_seconds, MIN_STALE_SECONDS)
        try:
            return core.backend.bucket.abort_stale(time_ms - int(age_seconds * 1000)) or 0
        except (BackendError, InvalidConfig, StoreNotFound) as error:
            log.warning("uploads in parts that were broken off are not looked for: %s", error)
            return 0

    def _remove_tries(self, time_ms: int) -> None:
        """Remove what somebody tried a bucket with, who was killed before it was removed."""
        bucket, before_ms = self._core.backend.bucket, time_ms - MIN_STALE_SECONDS * 1000
        tries = (meta for meta in bucket.list(PROBE) if is_try(meta.key) and meta.modified_ms < before_ms)
        while batch := [meta.key for meta in islice(tries, GATHERED_OBJECTS)]:
            bucket.delete(batch)

    @contextmanager
    def _collecting(
        self,
        doing: str | None,
        *,
        age: float,
        max_batches: int | None = None,
        progress: ProgressCallback | None = None,
        stop: Callable[[], bool] = _never,
    ) -> Iterator[BucketCollection]:
        turn = None if doing is None else Turn(self._core.backend.bucket, doing)
        try:
            with closing(
                BucketCollection(
                    self._core,
                    turn,
                    min_age_seconds=age,
                    max_batches=max_batches,
                    progress=progress,
                    stop=stop,
                )
            ) as collection:
                yield collection
        finally:
            if turn is not None:
                turn.end()

    def gc_if_changed(self, stop: Callable[[], bool]) -> GcReport | None:
        """Collect. What others did cannot be known without asking, and that is most of the price."""
        return self.gc(dry=False, min_age_seconds=None, max_batches=None, progress=None, stop=stop)

    # -- names that are gathered

    def compact(
        self, min_dead_share: float, progress: ProgressCallback | None, *, dry_run: bool
    ) -> CompactReport:
        """Gather small objects of names, and leave out what `artifacts/` says better; data is never moved."""
        core = self._core
        bucket = core.backend.bucket
        started, before = time.monotonic(), bucket.requests.snapshot()
        if not dry_run:
            core.check_writable()
        with self._collecting(
            None if dry_run else "gathering names", age=core.options.min_age_seconds, progress=progress
        ) as collection:
            collection.names.read()
            report = self._gather(
                collection, max(min_dead_share, 1e-9), SMALL_BYTES, dry=dry_run, progress=progress
            )
        return CompactReport(
            dry_run=dry_run,
            size_bytes=report.size_bytes,
            copied_bytes=report.copied_bytes,
            freed_bytes=report.freed_bytes,
            names_gathered=report.names_gathered,
            seconds=time.monotonic() - started,
            requests=bucket.requests.since(before, bucket.requests.snapshot()),
        )

    def _gather(
        self,
        collection: BucketCollection,
        dead_share: float,
        small_bytes: int,
        *,
        dry: bool,
        progress: ProgressCallback | None = None,
    ) -> CompactReport:
        """Rewrite objects of new artifacts: those of which enough is dead, and small ones.

        First the new object, under a key behind all those that it takes the place of, then these go: whoever lists
        meanwhile finds one or the other, or misses one and lists again.
        """
        gathered = size = copied = 0
        group: list[Commit] = []
        weight = 0

        def finish() -> None:
            nonlocal gathered, size, copied, group, weight
            if len(group) > 1 or any(one.dead for one in group):
                size += sum(one.size_bytes for one in group)
                gathered += len(group)
                copied += sum(_live_bytes(one) for one in group) if dry else self._rewrite(collection, group)
                if progress is not None:
                    progress(Progress(phase="gather", done_items=gathered))
            group, weight = [], 0

        promised = promised_commits(self._core)
        commits = iter(()) if promised is None else collection.names.iter_commits()
        for one in commits:
            if not one.documents or one.key in (
                promised or ()
            ):  # an upload may ask for it, or must not make it
                continue
            share = one.dead / max(one.documents, 1)
            if not (one.dead and share >= dead_share) and one.size_bytes >= small_bytes:
                continue
            group.append(one)
            weight += _live_bytes(one)
            if weight >= GATHERED_BYTES or len(group) >= GATHERED_OBJECTS:
                finish()
        finish()
        return CompactReport(
            dry_run=dry,
            size_bytes=size,
            copied_bytes=copied,
            freed_bytes=size - copied,
            names_gathered=gathered,
        )

    def _rewrite(self, collection: BucketCollection, group: list[Commit]) -> int:
        """Put what counts of some objects into one, and remove them; gives its bytes."""
        backend = self._core.backend
        documents: dict[bytes, Document] = {}
        for named in backend.pool.map(lambda one: read_named(backend.bucket, one.key), group):
            for document in () if named is None else named.documents:
                id_ = parse_artifact(document[1]).id
                if not collection.names.is_changed(id_):
                    documents[id_] = document
        keys = [one.key for one in group]
        size = 0
        facts = Facts()
        if documents:
            last = parse_id(keys[-1].rpartition("/")[2])
            (id_,) = new_ids(1, max(now_ms(), (int.from_bytes(last[:6]) + 1)))
            key = commit_key(id_)
            data = encode_bundle(list(documents.values()), key)
            made = backend.bucket.create(key, data)
            assert made is not None, "no two random numbers are the same"
            size = len(data)
            facts_of(list(documents.values()), facts, key)
            facts.seen.append((key, made.e_tag or ""))
        backend.bucket.delete(keys)
        self._core.catalog.apply(facts)
        forget_seen(self._core.catalog, keys)
        return size

    # -- looking ahead and back

    def forecast(self, refs: Iterable[Artifact | str]) -> Forecast:
        """Say what deleting artifacts would give back, as far as this catalog knows."""
        core = self._core
        catalog = core.catalog
        entries = {entry.id: entry for entry in map(core.artifact, refs)}
        roots = [(entry.hash, entry.format) for entry in entries.values()]
        roots += [(hash_, 0) for hash_ in required_by(catalog, entries)]
        others = chain(iter_names(catalog, without=entries), core.held())
        with closing(reached(core, roots)) as doomed, closing(reached(core, others)) as kept:
            freed, shared = _split(core, doomed, kept)
        return Forecast(
            artifacts=len(entries),
            freed_bytes=freed,
            shared_bytes=shared,
            min_age_seconds=core.options.min_age_seconds,
        )

    def why(self, hash: Hash) -> tuple[Chain, ...]:
        """Give up to 100 chains from a root to a blob, as far as this catalog knows; `BlobNotFound`: it is not here."""
        core = self._core
        target = hash.digest
        if core.partial(target) is None:
            try:
                core.blob(target)
            except BlobNotFound:
                raise BlobNotFound(f"there is no blob {hash}", hash=hash) from None
        return tuple(_chains(core, _parents(core, target), target))


def promised_commits(core: ObjectCore) -> set[str] | None:
    """Give the keys of commits that uploads may still ask for; None when an upload cannot be read."""
    promised = set()
    pieces = Pieces(core.backend.bucket, core.backend.pool)
    for _, metas in pieces.iter_all():
        last = pieces.try_read(metas[-1])
        if last is None:
            return None
        if last.head.state == COMMITTING:
            promised.add(commit_key(last.head.commit))
    return promised


def _live_bytes(one: Commit) -> int:
    return one.size_bytes * (one.documents - one.dead) // max(one.documents, 1)


def _split(core: ObjectCore, doomed: DigestSet, kept: DigestSet) -> tuple[int, int]:
    """Give the stored bytes of what only the doomed reach, and of what others reach too."""
    freed = shared = 0
    for number in range(BUCKETS):
        others = kept.bucket(number)
        for hash_, row in core.catalog.find_blobs(list(doomed.bucket(number))).items():
            if hash_ in others:
                shared += row.stored
            else:
                freed += row.stored
    return freed, shared


def _parents(core: ObjectCore, target: bytes) -> dict[bytes, set[bytes]]:
    """Give, for the target and all hash seqs that lead to it, the hash seqs that list it."""
    parents: dict[bytes, set[bytes]] = {target: set()}
    above: dict[bytes, set[bytes]] = {}
    sequences = DigestSet()
    sequences.add(hash_ for hash_, format_ in chain(iter_names(core.catalog), core.held()) if format_)
    every: set[bytes] = set()
    followed = Sequences(lambda: core.catalog, core.open_row, as_far_as_possible=True)
    for hash_, _ in followed.follow(sequences):
        every.add(hash_)
    for hash_, words in followed.follow(sequences):
        for word in words:
            if word == target or word in every:
                above.setdefault(word, set()).add(hash_)
    sequences.close()
    found = [target]
    while found:
        word = found.pop()
        for hash_ in above.get(word, ()):
            parents[word].add(hash_)
            if hash_ not in parents:
                parents[hash_] = set()
                found.append(hash_)
    return parents


def _chains(core: ObjectCore, parents: dict[bytes, set[bytes]], target: bytes) -> Iterator[Chain]:
    """Walk up from the target; shortest chains first. A hash seq counts as a parent only where it is followed."""
    waiting: list[tuple[bytes, ...]] = [(target,)]
    given = 0
    held = list(core.held())
    while waiting:
        path = waiting.pop(0)
        roots = [named_text(named) for named in names_of(core.catalog, path[0])]
        roots += ["the lease of this process" for hash_, _ in held if hash_ == path[0]]
        for root in roots:
            if given == MAX_CHAINS:
                return
            given += 1
            yield Chain(root=root, path=tuple(map(Hash, path)))
        if len(waiting) < MAX_CHAINS:
            waiting += [(up, *path) for up in sorted(parents[path[0]]) if up not in path]
