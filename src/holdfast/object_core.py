"""The core of a store whose blobs are objects in a bucket, and the keeper of its catalog."""

from __future__ import annotations

import logging
import os
import threading
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from itertools import chain
from typing import Final, TypeVar

from holdfast import _native
from holdfast.backend.log.partial_reader import no_blob, not_whole, nothing_here
from holdfast.backend.log.partial_state import PartialState
from holdfast.backend.log.session import LEASE_RAW
from holdfast.backend.objects.backend import MISSING, SHORT, ObjectBackend
from holdfast.backend.objects.claims import LocalClaims
from holdfast.backend.objects.part_reader import PartsReader
from holdfast.backend.objects.reader import LargeObjectReader, SmallObjectReader
from holdfast.catalog import ArtifactBlob, ArtifactEntry, BlobRow, Catalog
from holdfast.catalog.objects import Bad, drop_blobs, note_bad
from holdfast.core import Core, Options
from holdfast.digests import DigestSet
from holdfast.errors import BlobNotFound, CorruptBlob, HoldfastError, MissingChunk
from holdfast.facts import KIND_BLOB, Facts
from holdfast.kept import Kept
from holdfast.object_group import ObjectGroup, Stale, stored_bytes
from holdfast.object_ingest import ObjectIngest
from holdfast.object_recovery import ObjectKeeper
from holdfast.sequences import Sequences
from holdfast.types import BLOCK_BYTES, Durability, Hash, Ref, id_text

log = logging.getLogger("holdfast")

EMPTY: Final = _native.blake3(b"")
TRIES: Final = 20
"""How often a change is begun anew because somebody else was quicker."""

T = TypeVar("T")


class ObjectCore(Core):
    """One open store over a bucket, as its rooms see it.

    There is no session: what is relied on is looked at when it is named. A lease holds within this process alone,
    for its own collections; naming says `BlobNotFound` when it came too late.
    """

    is_far = True

    def __init__(
        self,
        backend: ObjectBackend,
        keeper: ObjectKeeper,
        options: Options,
        durability: Durability,
        directory: str | None,
    ) -> None:
        super().__init__(options)
        self.backend = backend
        self.keeper = keeper
        self.directory = directory
        self.claims = LocalClaims()
        self.importing: list[bytes] = []
        """Hashes of blobs of which this process is taking in streams."""
        self._durability = durability
        self._changes = threading.RLock()
        self._here = threading.local()
        self._leases: dict[int, tuple[bytes, int]] = {}
        self._running: dict[int, set[bytes]] = {}
        """What each operation that runs has looked up, by its number."""
        self._groups: list[ObjectGroup] = []
        self._next_lease = 1
        self.doomed: frozenset[bytes] = frozenset()
        """What a collection of this process is about to delete: a look at the bucket does not make it known again."""
        self._kept = Kept(self.lease, self.release, options.partial_age_seconds)
        self._let_go = weakref.finalize(self, _let_go, backend, keeper, self.pool, self._pid)
        self._let_go.atexit = False  # the end of the process lets go of everything anyway

    def close(self) -> None:
        """Let no further call in, and wait for those that run."""
        super().close()
        self._let_go.detach()

    def abandon_in_child(self) -> None:
        """In a forked child nothing is to be given back: the threads and connections are the parent's."""
        self._let_go.detach()

    @property
    def catalog(self) -> Catalog:
        return self.keeper.current()

    @property
    def read_only(self) -> bool:
        return self.backend.read_only

    @property
    def durability(self) -> Durability:
        return self._durability

    def check_writable(self) -> None:
        self.backend.check_writable()

    @contextmanager
    def operation(self) -> Iterator[None]:
        """Keep what is looked up from collections of this process; others are not held up by anybody."""
        looked_up: set[bytes] = set()
        stack: list[set[bytes]] = self._here.__dict__.setdefault("operations", [])
        with self._gate:
            number, self._next_lease = self._next_lease, self._next_lease + 1
            self._running[number] = looked_up
        stack.append(looked_up)
        try:
            yield
        finally:  # maybe in another thread
            with self._gate:
                self._running.pop(number, None)
            stack[:] = [one for one in stack if one is not looked_up]

    def lock(self) -> AbstractContextManager[None]:
        """Keep other threads of this process from changing names; other machines are met by conditions."""
        return self._held()

    @contextmanager
    def _held(self) -> Iterator[None]:
        with self._changes:
            yield

    # -- changing

    @contextmanager
    def adding(
        self, *, checksum: bool = False, time_ms: int = 0
    ) -> Iterator[tuple[ObjectGroup, ObjectIngest]]:
        group = ObjectGroup(self.backend, lambda: self.catalog, self._durability, time_ms)
        ingest = ObjectIngest(
            group,
            lambda: self.catalog,
            self.pool,
            max_bytes=self.options.max_artifact_bytes,
            sha256=checksum and self.options.checksum == "sha256",
            spool_bytes=self.options.max_spool_bytes,
            expiry_ms=int(self.options.upload_expiry_seconds * 1000),
            claims=self.claims,
        )
        with self._within(group):
            yield group, ingest

    @contextmanager
    def changing(self) -> Iterator[ObjectGroup]:
        self.check_writable()
        with self._changes:
            group = ObjectGroup(self.backend, lambda: self.catalog, self._durability)
            with self._within(group):
                yield group
                if not group.is_empty:
                    group.commit(alone=True)

    @contextmanager
    def _within(self, group: ObjectGroup) -> Iterator[None]:
        """What this thread claims meanwhile is relied on by the group."""
        before = getattr(self._here, "group", None)
        self._here.group = group
        with self._gate:
            self._groups.append(group)
        try:
            yield
        except BaseException:
            group.abort()
            raise
        finally:
            self._here.group = before
            with self._gate:
                self._groups.remove(group)
            group.close()

    def repeat(self, work: Callable[[], T]) -> T:
        """Do a change again while others are quicker; what they did is known by then."""
        for _ in range(TRIES - 1):
            try:
                return work()
            except Stale as error:
                log.info("%s", error)
        return work()

    def deleting(self, work: Callable[[], None]) -> None:
        self.repeat(work)

    # -- blobs

    def blob(self, hash: Hash | bytes) -> BlobRow:
        """Give the complete blob of a hash; one that the catalog does not know is looked for in the bucket."""
        digest = hash.digest if isinstance(hash, Hash) else hash
        operations = self._here.__dict__.get("operations")
        if operations:
            operations[-1].add(digest)
        row = self.find_row(digest)
        if row is None:
            raise self.missing_blob(digest)
        return row

    def find_row(self, digest: bytes) -> BlobRow | None:
        return self.catalog.find_blob(digest) or self._find_in_bucket(digest)

    def _find_in_bucket(self, digest: bytes) -> BlobRow | None:
        found = self.backend.find(digest)
        if found.best is None:
            return None
        size = found.data[found.best]
        row = (digest, size, found.modified_ms, 0, stored_bytes(size), 1)
        if not self.read_only and digest not in self.doomed:
            self.catalog.apply(Facts(blobs=[row]))
        return BlobRow(digest, size, found.modified_ms, 0, row[4], row[4], KIND_BLOB, 1)

    def claim(self, hash: Hash | bytes, format: int = 0) -> BlobRow:
        row = self.blob(hash)
        group: ObjectGroup | None = getattr(self._here, "group", None)
        if group is not None:
            group.relied_on[row.hash] = row.size
            if format and not group.is_done:  # what was put to be leased keeps nothing from others
                group.relied_on.update(self._children(row.hash))
        return row

    def _children(self, digest: bytes) -> Iterator[tuple[bytes, int]]:
        """Give what a hash seq lists with its sizes, nested ones too, as far as it is here."""
        sequences = Sequences(lambda: self.catalog, self.open_row, as_far_as_possible=True)
        roots = DigestSet()
        roots.add([digest])
        for _, words in sequences.follow(roots):
            rows = list(self.catalog.find_blobs(words).values())
            missing = {*words}.difference(row.hash for row in rows)
            rows += filter(None, self.backend.pool.map(self._find_in_bucket, missing))
            yield from ((row.hash, row.size) for row in rows)

    def open_row(self, row: BlobRow) -> SmallObjectReader | LargeObjectReader:
        """Open a blob that the catalog has. Of one without bytes nothing is read, so its hash is checked here."""
        if not row.size and row.hash != EMPTY:
            self.backend.note_damage(self.backend.data_key(row.hash), row.hash, SHORT)
            raise CorruptBlob(
                f"the object of blob {row.hash.hex()} has no bytes", hash=Hash(row.hash), offset_bytes=0
            )
        return self.backend.reader(row.hash, row.size)

    def reader(self, ref: Ref) -> SmallObjectReader | LargeObjectReader | PartsReader:
        """Open the blob that a reference names; by its hash, also one that is partial."""
        try:
            return self.open_row(self.resolve(ref))
        except BlobNotFound:
            if not isinstance(ref, Hash):
                raise
            partial = self.partial_reader(ref.digest)
        # It may have been completed between two looks.
        return partial or self.open_row(self.resolve(ref))

    def tree_reader(self, row: BlobRow) -> LargeObjectReader:
        assert row.size > BLOCK_BYTES, "a blob of one block has no tree"
        return LargeObjectReader(self.backend, row.hash, row.size)

    def block_reader(self, row: BlobRow) -> SmallObjectReader | LargeObjectReader:
        return self.open_row(row)

    def stored_bytes(self, row: BlobRow) -> int:
        return row.stored

    def read_small(self, hash: bytes, found: ArtifactBlob) -> bytes:
        raise AssertionError("no blob of a bucket has a place in a log")

    def missing_blob(self, digest: bytes) -> BlobNotFound:
        state = self.partial(digest)
        return no_blob(digest) if state is None else not_whole(digest, state)

    def dangling(self, entry: ArtifactEntry, error: BlobNotFound) -> HoldfastError:
        return MissingChunk(
            f"artifact {id_text(entry.id)} names blob {entry.hash.hex()}, which is not in the bucket",
            hash=Hash(entry.hash),
        )

    # -- leases, and blobs that are not wholly here

    def lease(self, digests: Sequence[bytes], kind: int) -> list[int]:
        with self._gate:
            first = self._next_lease
            self._next_lease += len(digests)
            self._leases.update({first + i: (digest, kind) for i, digest in enumerate(digests)})
        return list(range(first, first + len(digests)))

    def release(self, slot: int) -> None:
        with self._gate:
            self._leases.pop(slot, None)

    def held(self) -> Iterable[tuple[bytes, int]]:
        """Give what this process holds, leases and what is read or put: (hash, 1 to follow it as a hash seq)."""
        with self._gate:
            found = [(digest, kind - LEASE_RAW) for digest, kind in self._leases.values()]
            used = [list(looked_up) for looked_up in self._running.values()]
            used += (group.hashes() for group in self._groups)
        return chain(found, ((digest, 0) for digests in used for digest in digests))

    def keep(self, digest: bytes, kind: int) -> None:
        self._kept.keep(digest, kind)

    def let_go(self, digest: bytes) -> None:
        self._kept.let_go(digest)

    def partial(self, digest: bytes) -> PartialState | None:
        here = self.backend.parts.find(digest)
        return None if here is None else here.state

    def partial_hashes(self) -> Iterable[bytes]:
        return (digest for digest, _ in self.backend.parts.iter_all())

    def partial_reader(self, digest: bytes) -> PartsReader | None:
        def whole() -> SmallObjectReader | LargeObjectReader | None:
            row = self.find_row(digest)
            return None if row is None else self.open_row(row)

        here = self.backend.parts.find(digest)
        if here is None:
            return None
        if not here.state.size_bytes:
            raise nothing_here(digest)
        return PartsReader(self.backend.parts, here, whole)

    def mend(self, error: HoldfastError) -> None:
        self.keeper.replace(str(error))

    def write_down_damage(self) -> int:
        """Remember in the catalog the damage that reading has met; gives how much of it was new."""
        if self.read_only:
            return 0
        found = self.backend.take_damage()
        if not found:
            return 0  # also where no catalog can be had any more: closing is to go through
        drop_blobs(self.catalog, [hash_ for hash_, reason in found.values() if reason == MISSING])
        bad = (Bad(key, *what) for key, what in found.items() if what[1] != MISSING)
        return note_bad(self.catalog, bad)


def _let_go(backend: ObjectBackend, keeper: ObjectKeeper, pool: ThreadPoolExecutor, pid: int) -> None:
    """A store that nobody has any more was not closed: warn, and let go of all it holds."""
    if os.getpid() != pid:
        return  # a forked child: the parent has it
    try:
        pool.shutdown(wait=False)
        keeper.close()
        backend.pool.shutdown(wait=False)
    finally:
        warnings.warn(
            f"unclosed store {backend.bucket.location}: close it, or use `with`",
            ResourceWarning,
            stacklevel=2,
        )
