"""The core of a store on the log backend: pins, the store's lock, what streams left, what is put right."""

from __future__ import annotations

import logging
import os
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Final

from holdfast.backend.log.backend import LogBackend
from holdfast.backend.log.commit import Group
from holdfast.backend.log.partial_reader import PartialReader, no_blob, not_whole, nothing_here
from holdfast.backend.log.partial_state import PartialState
from holdfast.backend.log.payloads import Place, StaleIndex
from holdfast.backend.log.pieces import is_whole
from holdfast.backend.log.reader import BlobReader, LargeReader
from holdfast.catalog import ArtifactBlob, ArtifactEntry, BlobRow, Catalog, Reusable
from holdfast.core import MENDABLE, Core, Options
from holdfast.errors import BlobNotFound, HoldfastError, MissingChunk
from holdfast.facts import KIND_DATA, KIND_MASK
from holdfast.ingest import Ingest
from holdfast.kept import Kept
from holdfast.recovery import CatalogKeeper, WouldForget
from holdfast.room import deleting
from holdfast.types import Durability, Hash, Ref, id_text

log = logging.getLogger("holdfast")

LEAP: Final = 1 << 16
"""More than the states of one name that damage is likely to hide (those of a very long upload may be more)."""
MAX_LEAPING: Final = 1 << 31
"""From here on revisions go by one again: they have 32 bits."""


class LogCore(Core):
    """One open store whose blobs lie in segments, as its rooms see it."""

    def __init__(self, backend: LogBackend, keeper: CatalogKeeper, options: Options) -> None:
        super().__init__(options)
        self.backend = backend
        self.keeper = keeper
        self.directory = backend.root
        self.kept = Kept(self.lease, self.release, options.partial_age_seconds)
        self._let_go = weakref.finalize(self, _let_go, backend, keeper, self.pool)
        self._let_go.atexit = False  # the end of the process lets go of everything anyway

    def leave(self) -> None:
        """The call is over. What it met of damage is written down, now that it holds no lock."""
        if self.backend.payloads.found and not self._closed and os.getpid() == self._pid:
            self.write_down_damage()
        self._leave()

    def close(self) -> None:
        """Let no further call in, and wait for those that run."""
        super().close()
        self._let_go.detach()

    def write_down_damage(self) -> int:
        """Put the damage that reads and scrubs have met into quarantine, durably; gives how many places.

        A failure is nobody's error: the next scrub finds it again. Nothing is written for a store opened to read.
        """
        payloads = self.backend.payloads
        found, payloads.found = payloads.found, {}
        if self.backend.read_only or not found:
            return 0
        try:
            return self.backend.quarantine(found, self.catalog.known_damage(sorted(found)))
        except (HoldfastError, *MENDABLE) as error:
            log.warning("%d damaged places could not be put into quarantine: %s", len(found), error)
            return 0

    def abandon_in_child(self) -> None:
        """In a forked child: give back what was inherited, once."""
        self._let_go.detach()
        self.backend.abandon_in_child()

    @property
    def catalog(self) -> Catalog:
        return self.keeper.current()

    @property
    def read_only(self) -> bool:
        return self.backend.read_only

    @property
    def durability(self) -> Durability:
        return self.backend.durability

    def operation(self) -> AbstractContextManager[None]:
        return self.backend.operation()

    def lock(self) -> AbstractContextManager[None]:
        return self.backend.lock()

    def deleting(self, work: Callable[[], None]) -> None:
        """Do what lets room be freed later; on a full disk it borrows from the reserve."""
        deleting(self, work)

    def let_go(self, digest: bytes) -> None:
        self.kept.let_go(digest)

    def check_writable(self) -> None:
        self.backend.require_writing()

    def lease(self, digests: Sequence[bytes], kind: int) -> list[int]:
        return self.backend.session.lease(digests, kind)

    def release(self, slot: int) -> None:
        self.backend.session.release(slot)

    def keep(self, digest: bytes, kind: int) -> None:
        self.kept.keep(digest, kind)

    def partial(self, digest: bytes) -> PartialState | None:
        return self.backend.partials.find(digest)

    def partial_hashes(self) -> Iterable[bytes]:
        return self.backend.partials.hashes()

    def tree_reader(self, row: BlobRow) -> LargeReader:
        return self.backend.large_reader(row)

    def block_reader(self, row: BlobRow) -> BlobReader:
        return self.backend.reader(row)

    def stored_bytes(self, row: BlobRow) -> int:
        """Add up the payloads of a blob as they lie in the log."""
        if row.flags & KIND_MASK == KIND_DATA:
            return row.stored
        total = row.stored
        for leaf in self.backend.large_reader(row).manifest.iter_leaves():
            digests = {entry[2] for entry in leaf.entries}
            total += sum(found[1] for found in self.catalog.find_data(list(digests)).values())
        return total

    def read_small(self, hash: bytes, found: ArtifactBlob) -> bytes:
        place = Place(found.location or 0, found.stored, found.plain, found.flags)
        return self.backend.payloads.read(hash, place)

    def reusable(self) -> Reusable:
        """Give what may be relied on without bringing it. The caller has pinned."""
        return Reusable(self.catalog, self.keeper.lost)

    def is_whole(self, row: BlobRow) -> bool:
        """Whether all pieces of a blob are here, as far as is known. Where nothing is damaged that takes no look."""
        reusable = self.reusable()
        if not reusable.may_lack:
            return True
        if row.flags & KIND_MASK == KIND_DATA:
            return bool(reusable.find_here((row.hash,)))
        return is_whole(self.backend.payloads, row.hash, row.location, row.stored, reusable.find_here)

    def lacking(self, row: BlobRow) -> PartialState | None:
        state = self.partial(row.hash)
        return None if state is None or self.is_whole(row) else state

    @contextmanager
    def adding(self, *, checksum: bool = False, time_ms: int = 0) -> Iterator[tuple[Group, Ingest]]:
        """Pin, begin a group, and forget it on an error. The body commits.

        `checksum`: blobs get the further checksum that the options ask for. `time_ms`: see `Group`.
        """
        backend = self.backend
        with backend.operation():
            group = backend.group(time_ms)
            ingest = Ingest(
                group,
                self.reusable,
                backend.chunking,
                self.pool,
                compression=backend.compression,
                max_bytes=self.options.max_artifact_bytes,
                sha256=checksum and self.options.checksum == "sha256",
            )
            try:
                yield group, ingest
            except BaseException:
                group.abort()
                raise

    @contextmanager
    def changing(self) -> Iterator[Group]:
        """Hold the store's lock and a pin for a change to what has a name: read, check, append, fsync, apply."""
        backend = self.backend
        backend.require_writing()
        with backend.lock(), backend.operation():
            self.keeper.catch_up()
            group = backend.group()
            try:
                yield group
                if not group.is_empty:
                    group.commit(alone=True)
            except BaseException:
                group.abort()
                raise

    def next_revision(self, revision: int) -> int:
        """Where damaged records may hold later states of the name, leap over them: they may be repaired."""
        leaps = self.catalog.is_doubtful and revision < MAX_LEAPING
        return revision + (LEAP if leaps else 1)

    def claim(self, hash: Hash | bytes, format: int = 0) -> BlobRow:
        """Give the blob of a hash for an operation that relies on its staying, or `BlobNotFound`.

        The caller has pinned (`backend.operation`). `format` 1: its children as a hash seq are relied on too.
        """
        if self.backend.read_only:
            return self.blob(hash)
        digest = hash.digest if isinstance(hash, Hash) else hash
        row = self.catalog.claim(digest, format)
        if row is None:
            raise self.missing_blob(digest)
        return row

    def missing_blob(self, digest: bytes) -> BlobNotFound:
        """Give the error for a blob that is not complete; of a partial one it says what is here."""
        state = self.backend.partials.find(digest)
        return no_blob(digest) if state is None else not_whole(digest, state)

    def dangling(self, entry: ArtifactEntry, error: BlobNotFound) -> HoldfastError:
        missing = MissingChunk(
            f"artifact {id_text(entry.id)} names blob {entry.hash.hex()}, which is not here",
            hash=Hash(entry.hash),
        )
        return self.backend.payloads.suspect(entry.hash, missing)

    def mend(self, error: HoldfastError) -> None:
        """Rebuild a catalog that is damaged or says what storage does not."""
        if isinstance(error, StaleIndex) and self.keeper.has_lost_segments():
            # Storage is not what it was: a rebuild would only forget what is missing.
            raise error.fault from error
        try:
            self.keeper.replace(str(error))
        except WouldForget:
            if isinstance(error, StaleIndex):
                raise error.fault from error
            raise

    def reader(self, ref: Ref) -> BlobReader:
        """Open the blob that a reference names; by its hash, also one that is partial. The caller has pinned."""
        try:
            return self.backend.reader(self.resolve(ref, claim=True))
        except BlobNotFound:
            if not isinstance(ref, Hash):
                raise
            partial = self.partial_reader(ref.digest)
        # It may have been completed between two looks.
        return partial or self.backend.reader(self.resolve(ref, claim=True))

    def partial_reader(self, digest: bytes) -> PartialReader | None:
        """Open a partial blob; None if there is none."""

        def whole() -> BlobReader | None:
            row = self.catalog.claim(digest) if not self.backend.read_only else self.catalog.find_blob(digest)
            return None if row is None else self.backend.reader(row)

        backend = self.backend
        state = backend.partials.find(digest)
        if state is None:
            return None
        if (
            not state.size_bytes
        ):  # no blob of no bytes is ever partial: it was begun, and nothing of it has come
            raise nothing_here(digest)
        return PartialReader(backend.partials, backend.payloads, digest, state, whole)


def _let_go(backend: LogBackend, keeper: CatalogKeeper, pool: ThreadPoolExecutor) -> None:
    """A store that nobody has any more was not closed: warn, and let go of all it holds, as a killed process would."""
    if os.getpid() != backend.pid:
        return  # a forked child: the parent has it
    try:
        pool.shutdown(wait=False)
        keeper.close()
        with suppress(RuntimeError):  # one of its own threads came to collect it, and cannot wait for itself
            backend.abandon()
    finally:
        warnings.warn(
            f"unclosed store {backend.root}: close it, or use `with`", ResourceWarning, stacklevel=2
        )
