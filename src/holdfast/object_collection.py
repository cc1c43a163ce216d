"""One collection over a bucket: marker, names, deletion, in this order (docs/design.md, "Collection in a bucket").

Nothing is kept between two calls: one that broke off leaves markers, and the next begins anew. The catalog alone
decides nothing: names are listed and read from the bucket after the markers are there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, suppress
from itertools import chain, groupby, islice
from typing import Final, NamedTuple, cast

import apsw

from holdfast.backend.objects.bucket import Meta
from holdfast.backend.objects.collection import PAGE_KEYS, BlobObjects, Turn, delete, iter_blobs, mark
from holdfast.backend.objects.layout import DATA, GONE, OUTBOARD, artifact_key
from holdfast.catalog.collecting import FOREVER_MS, iter_names
from holdfast.catalog.objects import drop_blobs
from holdfast.digests import DigestSet
from holdfast.errors import UnreadableRoot
from holdfast.facts import Facts, LargeBlobRow
from holdfast.object_core import ObjectCore
from holdfast.object_group import stored_bytes
from holdfast.object_partials import iter_held
from holdfast.object_roots import BucketNames, Grave, Root, grave_of
from holdfast.sequences import Sequences, Unreadable
from holdfast.types import Hash, Progress, ProgressCallback, id_text, now_ms

MAX_LISTED: Final = 10_000
BATCH: Final = 1_000
BURIED_AT_ONCE: Final = 1_000


class Enough(Exception):
    """The batches that this call may do are done, or it is to stop."""


class Suspects:
    """The objects of blobs that may have something to go, in a temporary file of SQLite's."""

    def __init__(self) -> None:
        self._db = apsw.Connection("")
        self._db.execute(
            "PRAGMA journal_mode=OFF; CREATE TABLE objects(hash, part, number, size_bytes, modified_ms); BEGIN"
        ).fetchall()

    def clear(self) -> None:
        """Forget all."""
        self._db.execute("DELETE FROM objects").fetchall()

    def add(self, one: BlobObjects) -> None:
        """Take a blob in."""
        rows = [(DATA, number, meta) for number, meta in one.data.items()]
        rows += [(OUTBOARD, number, meta) for number, meta in one.outboards.items()]
        rows += [(GONE, number, Meta("", 0, None, 0)) for number in one.gone]
        self._db.executemany(
            "INSERT INTO objects VALUES(?, ?, ?, ?, ?)",
            [(one.hash, part, number, meta.size_bytes, meta.modified_ms) for part, number, meta in rows],
        )

    def __iter__(self) -> Iterator[BlobObjects]:
        rows = cast(
            "Iterator[tuple[bytes, str, int, int, int]]",
            self._db.execute("SELECT * FROM objects ORDER BY hash"),
        )
        for hash_, group in groupby(rows, lambda row: row[0]):
            parts: dict[str, dict[int, Meta]] = {DATA: {}, OUTBOARD: {}, GONE: {}}
            for _, part, number, size_bytes, modified_ms in group:
                parts[part][number] = Meta("", size_bytes, None, modified_ms)
            yield BlobObjects(hash_, parts[DATA], parts[OUTBOARD], frozenset(parts[GONE]))

    def close(self) -> None:
        """Give the temporary file back."""
        self._db.close()


class Doomed(NamedTuple):
    """What may go of one blob: `numbers` if nothing names it, else `strays`."""

    blob: BlobObjects
    numbers: list[int]
    strays: list[int]


class BucketCollection:
    """One call's part of a collection. `turn`: None looks only."""

    def __init__(
        self,
        core: ObjectCore,
        turn: Turn | None,
        *,
        min_age_seconds: float,
        max_batches: int | None,
        progress: ProgressCallback | None,
        stop: Callable[[], bool],
    ) -> None:
        self.artifacts = self.blobs = self.freed_bytes = self.marked = self.pardoned = 0
        self.objects = 0
        """How many objects of blobs there were."""
        self.hashes: list[Hash] = []
        self.reasons: dict[str, str] = {}
        self.requests: dict[str, int] = {}
        """What the rest of it takes, said before anything is changed."""
        self.complete = False
        self._core = core
        self._turn = turn
        self._batches = max_batches
        self._batch_rows = core.options.gc_batch_size
        self._progress = progress
        self._stop = stop
        self._done_items = 0
        self._held = (DigestSet(), DigestSet())
        """What is held, and of it what is followed as hash seqs."""
        age_ms = int(min_age_seconds * 1000)
        # without a window all is old enough, whatever the clocks say
        self.time_ms = now_ms() if turn is None else turn.time_ms
        # when a name was deleted stands there by the clock of who did it: of two clocks the one that keeps longer
        self._until_ms = min(now_ms(), self.time_ms) - age_ms if age_ms else FOREVER_MS
        self._blobs_until_ms = self.time_ms - age_ms if age_ms else FOREVER_MS
        self._suspects = Suspects()
        self.names = BucketNames(core.backend, self._tell, lambda count: self._watch("names", count))

    def close(self) -> None:
        """Give temporary files back."""
        self._suspects.close()
        self._let_go()
        self.names.close()

    def run(self) -> None:
        """Do it: to its end, or `max_batches`."""
        with suppress(Enough):
            self.names.read()
            with closing(self._live()) as live:
                self._foresee(live)
                self._watch_price()
                while self._bury(self.names.expired(self._until_ms, min(self._batch_rows, BURIED_AT_ONCE))):
                    pass
                doomed = self._doomed(live)
                while batch := list(islice(doomed, self._batch_rows)):
                    self._collect(batch)
            self.complete = True

    def foresee(self) -> None:
        """Say what would go, why, and what that would cost."""
        self.names.read()
        self.artifacts = self.names.count_expired(self._until_ms)
        with closing(self._live()) as live:
            self._foresee(live)
            for one in self._doomed(live):
                self._count(one, is_named=one.blob.hash in live.bucket(one.blob.hash[0]))
        wanted = {hash_.digest for hash_ in self.hashes}
        self.reasons = {hash_.hex(): "nothing names it" for hash_ in wanted}
        for hash_, name in self.names.iter_deleted_tags():
            if hash_ in wanted:
                self.reasons[hash_.hex()] = f"tag {name!r} was deleted"
        for hash_, id_ in self.names.iter_deleted():
            if hash_ in wanted:
                self.reasons[hash_.hex()] = (
                    f"artifact {id_text(id_)} was deleted, and its undo window is over"
                )
        self.complete = True

    # -- what is told while it goes

    def _tell(self, facts: Facts) -> None:
        """Let the catalog know of names that were read."""
        if not self._core.read_only:
            self._core.catalog.apply(facts)

    def _watch(self, phase: str, count: int) -> None:
        self._done_items += count
        if self._turn is not None:
            self._turn.beat()
        if self._core.was_closed or self._stop():
            raise Enough
        if self._progress is not None:
            self._progress(Progress(phase=phase, done_items=self._done_items))

    def _watch_price(self) -> None:
        if self._progress is not None:
            asked = {name: count for name, count in self.requests.items() if count}
            self._progress(Progress(phase="price", total_items=sum(asked.values()), requests=asked))

    def _spend(self, phase: str, count: int) -> None:
        self._watch(phase, count)
        if self._batches is not None:
            self._batches -= 1
            if not self._batches:
                raise Enough

    def _foresee(self, live: DigestSet) -> None:
        """Say what the changes take: a marker for each generation, the names once more for each batch, deletions."""
        blobs = puts = keys = 0
        for one in self._doomed(live):
            blobs += 1
            puts += sum(number not in one.blob.gone for number in one.numbers)
            keys += 2 * len(one.numbers or one.strays)
        graves = self.names.count_expired(self._until_ms)
        batches = -(-blobs // self._batch_rows)
        lists = self.names.objects // PAGE_KEYS + 5  # three prefixes of names, partial blobs, uploads
        if self.names.has_sequences:
            lists += self.objects // PAGE_KEYS + 1
        self.requests = {
            "list": batches * lists,
            "get": 0,
            "head": 0,
            "put": puts + graves,
            "delete": -(-keys // PAGE_KEYS) + batches - 1 if batches else 0,
        }

    # -- what was deleted long ago

    def _bury(self, graves: list[Grave]) -> bool:
        """Leave of artifacts their tombstones alone, if each is still as it was read. False where none was."""
        core = self._core
        if not graves:
            return False

        def replace(grave: Grave) -> str | None:
            data = grave_of(grave.id, grave.revision, grave.deleted_ms)
            made = core.backend.bucket.replace(artifact_key(grave.id), data, grave.e_tag)
            return None if made is None else made.e_tag or ""

        facts = Facts()
        for grave, e_tag in zip(graves, core.backend.pool.map(replace, graves), strict=True):
            if e_tag is not None:
                self.names.forget(grave.id, e_tag)
                facts.forgotten.append(grave.id)
                facts.seen.append((artifact_key(grave.id), e_tag))
        core.catalog.apply(facts)
        self.artifacts += len(facts.forgotten)
        if len(facts.forgotten) < len(graves):  # restored meanwhile, or another collector was here
            self.names.read()
        self._spend("forget", len(graves))
        return bool(facts.forgotten)

    # -- what is named

    def _roots(self) -> Iterator[Root]:
        """Give what the bucket names, what the catalog knows besides (a listing may lack something), what is held."""
        yield from self.names.iter_roots(self._until_ms)
        yield from iter_names(self._core.catalog, self._until_ms)
        for format_, held in enumerate(self._held):
            for _, hashes in held.buckets():
                yield from ((hash_, format_) for hash_ in hashes)

    def _hold(self) -> None:
        """See what is held without a name: leases and readers of this process, partial blobs, uploads."""
        self._let_go()
        self._held = (DigestSet(), DigestSet())
        roots = chain(self._core.held(), ((hash_, 0) for hash_ in iter_held(self._core)))
        while batch := list(islice(roots, BATCH)):
            for format_, held in enumerate(self._held):
                held.add(hash_ for hash_, one in batch if bool(one) == bool(format_))

    def _let_go(self) -> None:
        for held in self._held:
            held.close()

    def _live(self) -> DigestSet:
        """List the blobs, so that all are known; then give what is kept."""
        direct = DigestSet()
        self._hold()
        try:
            direct.add(hash_ for hash_, _ in self._roots())
            self._list_blobs(direct)
        finally:
            direct.close()
        return self._reached(self._roots())

    def _list_blobs(self, direct: DigestSet) -> None:
        """Tell the catalog of blobs that it does not know; remember those that no name names, and odd ones."""
        self._suspects.clear()
        self.objects = 0
        named: set[bytes] = set()
        blobs = iter_blobs(self._core.backend)
        while batch := list(islice(blobs, BATCH)):
            for first, group in groupby(batch, lambda one: one.hash[0]):
                named = direct.bucket(first)
                for one in group:
                    self.objects += len(one.data) + len(one.outboards) + len(one.gone)
                    if one.hash not in named or one.strays:
                        self._suspects.add(one)
            know(self._core, batch)
            self._watch("blobs", len(batch))

    def _reached(self, roots: Iterable[Root]) -> DigestSet:
        return reached(self._core, roots, lambda count: self._watch("mark", count))

    def _doomed(self, live: DigestSet) -> Iterator[Doomed]:
        """Give what may go, in the order of hashes: what is not named and old enough, and what nobody has a use for."""
        for first, group in groupby(self._suspects, lambda one: one.hash[0]):
            named = live.bucket(first)
            for one in group:
                objects = [*one.data.values(), *one.outboards.values()]  # an outboard may have lost its data
                is_old = all(meta.modified_ms <= self._blobs_until_ms for meta in objects)
                numbers = sorted({*one.data, *one.outboards}) if one.hash not in named and is_old else []
                if numbers or one.strays:
                    yield Doomed(one, numbers, one.strays)

    # -- what goes

    def _collect(self, batch: list[Doomed]) -> None:
        """Mark, read the names, delete. What this process knows of it goes first: who brings it again puts it again."""
        core = self._core
        core.doomed = frozenset(one.blob.hash for one in batch if one.numbers)
        try:
            fresh = [
                (one.blob.hash, number)
                for one in batch
                for number in one.numbers
                if number not in one.blob.gone
            ]
            mark(core.backend, fresh)
            self.marked += len(fresh)
            drop_blobs(core.catalog, core.doomed)
            self._hold()
            self.names.read()
            if self.names.has_sequences:  # what these list may have come since
                for blobs in _batches(iter_blobs(core.backend)):
                    know(core, [one for one in blobs if one.hash not in core.doomed])
            with closing(self._reached(self._roots())) as live:
                going: list[tuple[bytes, int]] = []
                for first, group in groupby(batch, lambda one: one.blob.hash[0]):
                    named = live.bucket(first)
                    for one in group:
                        is_named = one.blob.hash in named
                        going += ((one.blob.hash, number) for number in self._count(one, is_named=is_named))
                        if is_named and one.numbers:
                            self.pardoned += 1
                            know(core, [one.blob])
            delete(core.backend, going)
        finally:
            core.doomed = frozenset()
        self._spend("delete", len(batch))

    def _count(self, one: Doomed, *, is_named: bool) -> list[int]:
        """Give the generations that go, and count them."""
        numbers = one.strays if is_named or not one.numbers else sorted({*one.numbers, *one.strays})
        self.freed_bytes += one.blob.bytes_of(numbers)
        if one.numbers and not is_named:
            self.blobs += 1
            if len(self.hashes) < MAX_LISTED:
                self.hashes.append(Hash(one.blob.hash))
        return numbers


def _batches(blobs: Iterator[BlobObjects]) -> Iterator[list[BlobObjects]]:
    while batch := list(islice(blobs, BATCH)):
        yield batch


def know(core: ObjectCore, blobs: Iterable[BlobObjects]) -> None:
    """Tell the catalog of blobs that are in the bucket, those that it does not know."""
    if core.read_only:
        return
    there = [one for one in blobs if one.data]
    known = core.catalog.find_blobs([one.hash for one in there])
    rows: list[LargeBlobRow] = []
    for one in there:
        if one.hash not in known:
            meta = one.data[max(one.data) if one.unmarked is None else one.unmarked]
            rows.append((one.hash, meta.size_bytes, meta.modified_ms, 0, stored_bytes(meta.size_bytes), 1))
    if rows:
        core.catalog.apply(Facts(blobs=rows))


def reached(
    core: ObjectCore, roots: Iterable[Root], watch: Callable[[int], None] = lambda _: None
) -> DigestSet:
    """Give all that the roots keep: themselves, and what hash seqs among them list; `UnreadableRoot`."""
    live, sequences = DigestSet(), DigestSet()
    try:
        items = iter(roots)
        while batch := list(islice(items, BATCH)):
            live.add(hash_ for hash_, _ in batch)
            sequences.add(hash_ for hash_, format_ in batch if format_ and _is_here(core, hash_))
        for _, words in Sequences(lambda: core.catalog, core.open_row).follow(sequences):
            live.add(words)
            watch(len(words))
    except Unreadable as error:
        live.close()
        raise UnreadableRoot(
            f"nothing is collected: the hash seq {error.hash.hex()} cannot be read, so nobody knows what it keeps"
            f" ({error.cause}). Repair it, or delete on purpose what names it",
            **{**error.cause.evidence, "hash": Hash(error.hash), "root": f"blob {error.hash.hex()}"},
        ) from error.cause
    except BaseException:
        live.close()
        raise
    finally:
        sequences.close()
    return live


def _is_here(core: ObjectCore, hash_: bytes) -> bool:
    """Whether a hash seq is there to be followed. One that was collected before it was named keeps nothing."""
    if core.catalog.find_blob(hash_) is not None:
        return True
    found = core.backend.look(hash_)
    if found.best is None:
        return not found.was_collected
    size = found.data[found.best]
    if not core.read_only:
        core.catalog.apply(Facts(blobs=[(hash_, size, found.modified_ms, 0, stored_bytes(size), 1)]))
    return True
