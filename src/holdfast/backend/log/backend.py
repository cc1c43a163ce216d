"""The log backend: a local directory of segments. Knows records and places, neither artifacts nor SQL."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from typing import Protocol

from holdfast.backend.log.claims import Claims
from holdfast.backend.log.commit import Apply, Committer, Group
from holdfast.backend.log.disk import Disk
from holdfast.backend.log.layout import (
    StoreFile,
    check_writable,
    list_segments,
    read_store_file,
    segment_path,
)
from holdfast.backend.log.lock import StoreLock
from holdfast.backend.log.partial import Partials
from holdfast.backend.log.payloads import OFFSET_MASK, Index, Payloads, Place
from holdfast.backend.log.reader import BlobReader, LargeReader, SmallReader
from holdfast.backend.log.recovery import Recovery
from holdfast.backend.log.reserve import Reserve
from holdfast.backend.log.segment import is_foreign, read_index, slice_entries
from holdfast.backend.log.session import Session, SessionState, read_sessions
from holdfast.backend.log.writers import Writers
from holdfast.chunking import Chunking
from holdfast.errors import (
    CorruptSegment,
    FormatError,
    HoldfastError,
    NeedsReopen,
    PermissionDenied,
    StoreNotFound,
)
from holdfast.facts import KIND_DATA, KIND_MASK, SEGMENT_SUPERSEDED
from holdfast.types import Durability, now_ms
from holdfast.wire.document import QuarantineDocument, encode_quarantine
from holdfast.wire.record import SEGMENT_HEADER_BYTES, Extent, Kind


class Row(Protocol):
    """What the catalog says of a blob (its `BlobRow`)."""

    @property
    def hash(self) -> bytes: ...
    @property
    def location(self) -> int: ...
    @property
    def stored(self) -> int: ...
    @property
    def plain(self) -> int: ...
    @property
    def flags(self) -> int: ...


class CatalogPort(Index, Protocol):
    """What the log needs of whoever keeps the catalog."""

    id: bytes

    @property
    def epoch(self) -> int: ...


class LogBackend:
    """One process's access to a store's directory. `attach` gives it the catalog; until then it only recovers."""

    def __init__(
        self,
        disk: Disk,
        root: str,
        store: StoreFile,
        *,
        read_only: bool,
        segment_bytes: int,
        reserve: Reserve,
        fsync: bool,
        lock_timeout_seconds: float,
    ) -> None:
        if not read_only:
            check_writable(store, root)
        self.disk = disk
        self.root = root
        self.store = store
        self.chunking = Chunking.from_dict(store.chunking)
        self.compression = store.compression
        self.read_only = read_only
        self.pid = os.getpid()
        self.segment_bytes = segment_bytes
        self._fsync = fsync
        self._catalog: Callable[[], CatalogPort] | None = None
        self.reserve = reserve
        self._lock = None if read_only else StoreLock(disk, root, lock_timeout_seconds)
        self._session: Session | None = None
        self._late_pins: list[tuple[bytes, int]] = []
        self._committer: Committer | None = None
        self.claims = Claims(disk, root)
        self._pool = ThreadPoolExecutor(2, thread_name_prefix="holdfast-read")
        self.payloads = Payloads(disk, root, self._require_catalog)
        self.partials = Partials(disk, root, self.lock, lock_timeout_seconds)

    def attach(
        self,
        catalog: Callable[[], CatalogPort],
        known: Callable[[], dict[int, tuple[int, int]]],
        apply: Apply,
    ) -> None:
        """Say where look-ups go and how facts are applied; begins the session of a store that may be written."""
        self._catalog = catalog
        if self._lock is None:
            return
        writers = Writers(
            self.disk, self.root, self.store.id, self.segment_bytes, self._lock, known, self.reserve.make
        )
        self._committer = Committer(
            writers, self._lock, apply, self._entries, self.payloads.handles.read, fsync=self._fsync
        )
        self._committer.when_applied = self.end_pins
        with self._lock.held():
            read_sessions(self.disk, self.root)  # tidies up after dead processes
            if len(self.segment_ids()) > 1:
                self.reserve.make()
            self._session = Session(self.disk, self.root, now_ms())

    # -- writing

    def lock(self) -> AbstractContextManager[None]:
        """Hold the store-wide lock."""
        return nullcontext() if self._lock is None else self._lock.held()

    def group(self, time_ms: int = 0) -> Group:
        """Begin a group of records; `time_ms`: when it is said to be committed (0: now)."""
        return self.committer.group(time_ms)

    def commit_all(self, groups: Sequence[Group]) -> None:
        """Commit groups with one fsync, as far as they fit into memory; each is whole or absent."""
        for group in groups:
            if group.is_streaming:
                group.commit()
        small = [group for group in groups if not group.is_streaming]
        if small:
            self.committer.commit_now(small)

    @property
    def committer(self) -> Committer:
        """The way to write; `PermissionDenied` for a store that was opened to read."""
        if self._committer is None:
            raise PermissionDenied(f"the store at {self.root} was opened read-only", path=self.root)
        return self._committer

    def require_writing(self) -> None:
        """Refuse a store that was opened to read."""
        _ = self.committer

    def operation(self) -> AbstractContextManager[None]:
        """Pin what the catalog says from here on until the operation ends. A store opened to read has no session."""
        session = self._session
        if session is None:
            return nullcontext()
        catalog = self._require_catalog()
        return self._pinned(session, catalog.id, catalog.epoch)

    @contextmanager
    def _pinned(self, session: Session, catalog_id: bytes, epoch: int) -> Iterator[None]:
        key = session.begin(catalog_id, epoch)
        try:
            yield
        finally:
            self._late_pins.append(key)
            self.end_pins()

    def end_pins(self) -> None:
        """End the pins of operations that are over; a group that is not applied yet relies on its look-ups still."""
        while self._session is not None and self._late_pins:
            over: list[tuple[bytes, int]] = []
            with suppress(IndexError):  # another thread may take the last one
                while self._late_pins:
                    over.append(self._late_pins.pop())
            try:
                # Taken first, looked at then: an operation that ends from here on may leave a group that waits.
                while over and not self.committer.has_unapplied:
                    self._session.end(over.pop())
            finally:
                self._late_pins.extend(over)
            if self.committer.has_unapplied:
                return  # whoever applies it comes here again

    def sessions(self, *, leases: bool = False) -> list[SessionState]:
        """Give the sessions of living processes, our own included."""
        with self.lock():
            return read_sessions(self.disk, self.root, leases=leases, read_only=self.read_only)

    @property
    def session(self) -> Session:
        """This process's session."""
        if self._session is None:
            raise PermissionDenied(f"the store at {self.root} was opened read-only", path=self.root)
        return self._session

    # -- reading

    def reader(self, row: Row) -> BlobReader:
        """Open a blob that the catalog has."""
        if row.flags & KIND_MASK == KIND_DATA:
            return SmallReader(self.payloads, row.hash, Place(row.location, row.stored, row.plain, row.flags))
        return self.large_reader(row)

    def large_reader(self, row: Row) -> LargeReader:
        """Open a blob that has a manifest."""
        document = self.payloads.read_document(row.hash, row.location, row.stored)
        return LargeReader(self.payloads, self._require_catalog, self._pool, document, row.hash)

    @property
    def durability(self) -> Durability:
        """What an acknowledgement means here."""
        return Durability.FSYNCED if self._fsync else Durability.BUFFERED

    def quarantine(self, found: Mapping[int, tuple[bytes, str]], known: Collection[int]) -> int:
        """Write down which places (hash of the record and reason of each) are damaged, but for those that are known."""
        group = self.group()
        new = [(place, *what) for place, what in sorted(found.items()) if place not in known]
        for place, hash_, reason in new:
            document = QuarantineDocument(place >> 32, place & OFFSET_MASK, hash_, reason)
            group.add_one(Kind.QUARANTINE, encode_quarantine(document))
        if new:
            group.commit()
        return len(new)

    def failed_segments(self) -> list[int]:
        """Give the segments that this process gave up because they could not be written or made durable."""
        return sorted(self._committer.writers.failed()) if self._committer is not None else []

    # -- recovery

    def recovery(
        self,
        known: Mapping[int, tuple[int, int]],
        *,
        rebuilding: bool,
        retired: Iterable[range] = (),
        brought_in: Callable[[], bytes] = bytes,
    ) -> Recovery:
        """Look for what the catalog has not seen; `retired` it knows as compacted away. The caller holds the lock.

        `brought_in`: ids of commits that were copied from living processes' segments.
        """
        return Recovery(
            self.disk,
            self.root,
            self.store.id,
            known,
            self._committer,
            rebuilding=rebuilding,
            retired=retired,
            brought_in=brought_in,
        )

    def check_same_store(self) -> None:
        """Raise `NeedsReopen` when the directory was removed, or is another store's, since it was opened."""
        try:
            same = read_store_file(self.disk, self.root).store_id == self.store.store_id
        except (StoreNotFound, FormatError) as error:
            raise NeedsReopen(
                f"the store at {self.root} was removed while it was open", path=self.root
            ) from error
        if not same:
            raise NeedsReopen(
                f"the store at {self.root} was replaced by another one while it was open", path=self.root
            )

    def segment_ids(self) -> list[int]:
        """Give the ids of the segments that are there, in order."""
        return list_segments(self.disk, self.root)

    def lost_segments(self, known: Mapping[int, tuple[int, int]]) -> list[tuple[int, str, str]]:
        """Give (id, path, what is wrong) of segments that are gone, or shorter than what was stored in them."""
        lost = []
        for segment, (applied, state) in sorted(known.items()):
            if state == SEGMENT_SUPERSEDED or applied <= SEGMENT_HEADER_BYTES:
                continue  # nothing of it was ever to be read
            path = segment_path(self.root, segment)
            found = self.disk.stat(path)
            if found is None:
                lost.append((segment, path, "is missing"))
            elif found.size_bytes < applied:
                lost.append((segment, path, f"has {found.size_bytes} of {applied} bytes"))
        return lost

    def unsound_segments(self, known: Mapping[int, tuple[int, int]]) -> list[tuple[int, str, str]]:
        """Give what `lost_segments` gives, and those that are replaced by ones of another length, or cannot be read."""
        unsound = []
        for segment, (applied, state) in sorted(known.items()):
            if state != SEGMENT_SUPERSEDED and applied > SEGMENT_HEADER_BYTES:
                path = segment_path(self.root, segment)
                why = self._unsound(path, segment, applied)
                if why is not None:
                    unsound.append((segment, path, why))
        return unsound

    def _unsound(self, path: str, segment: int, applied: int) -> str | None:
        try:
            found = self.disk.stat(path)
        except (HoldfastError, OSError) as error:
            return f"cannot be looked at ({error})"
        if found is None:
            return "is missing"
        if found.size_bytes == applied:
            return None
        if not self.is_ours(segment):
            return "was replaced by another one, or cannot be read"
        return f"has {found.size_bytes} of {applied} bytes" if found.size_bytes < applied else None

    def is_ours(self, segment: int) -> bool:
        """Whether a segment is there, can be read, and says nothing else of itself."""
        try:
            handle = self.disk.open(segment_path(self.root, segment), "r")
            try:
                return not is_foreign(self.disk, handle, segment, self.store.id)
            finally:
                self.disk.close(handle)
        except (HoldfastError, OSError):
            return False

    def foreign_segments(self) -> list[int]:
        """Give the segments that say of themselves that they are of another store, or have another id."""
        foreign = []
        for segment in self.segment_ids():
            try:
                handle = self.disk.open(segment_path(self.root, segment), "r")
            except FileNotFoundError:
                continue  # compacted away meanwhile
            try:
                if is_foreign(self.disk, handle, segment, self.store.id):
                    foreign.append(segment)
            finally:
                self.disk.close(handle)
        return foreign

    def disk_bytes(self) -> int:
        """Give the room that all segments take."""
        return sum(self.segment_sizes().values())

    def segment_sizes(self) -> dict[int, int]:
        """Give how long each segment is, in the order of their ids."""
        found = (
            (segment, self.disk.stat(segment_path(self.root, segment))) for segment in self.segment_ids()
        )
        return {segment: one.size_bytes for segment, one in found if one is not None}

    def sync(self) -> None:
        """Make durable what was written with `fsync` off, and apply what could not be applied before."""
        self.committer.writers.sync()
        self.committer.apply()

    def close(self) -> None:
        """End cleanly: segments closed for others to adopt, the session gone."""
        try:
            if self._committer is not None:
                self._committer.close()
                self._committer.apply()
                self._committer.writers.close()
                self._committer.apply()  # which segments were given up just now
        finally:
            self.abandon()

    def abandon(self) -> None:
        """Let go of everything as a killed process would: no close records, nothing applied.

        Each step is taken whatever became of those before it: a lock that stayed would outlive the store.
        """
        with ExitStack() as last_first:
            if self._lock is not None:
                last_first.callback(self._lock.close)
            if self._session is not None:
                last_first.callback(self._session.close)
            last_first.callback(self.claims.close)
            last_first.callback(self.payloads.handles.close)
            last_first.callback(self._pool.shutdown)
            if self._committer is not None:
                last_first.callback(self._committer.writers.abandon)
                last_first.callback(self._committer.close)

    def abandon_in_child(self) -> None:
        """In a forked child: close what came along, unlocking nothing, so that no lock outlives the parent."""
        writers = self._committer.writers.own_in_child().values() if self._committer is not None else ()
        handles = [writer.handle for writer in writers]
        handles += [self._session.handle] if self._session is not None else []
        handles += [self._lock.handle] if self._lock is not None else []
        for handle in (*handles, *self.partials.opened):
            if handle >= 0:
                self.disk.close(handle)
        self.claims.close()

    def _require_catalog(self) -> CatalogPort:
        assert self._catalog is not None, "attach comes first"
        return self._catalog()

    def _entries(self, extent: Extent) -> bytes:
        """Give the index entries of a stretch of records, from memory where we are writing it."""
        writer = self.committer.writers.own().get(extent.segment)
        if writer is not None:
            return writer.entries(extent.start, extent.stop)
        return slice_entries(self._read_entries(extent.segment), extent.start, extent.stop)

    def _read_entries(self, segment: int) -> bytes:
        path = segment_path(self.root, segment)
        try:
            handle = self.disk.open(path, "r")
        except FileNotFoundError as error:
            raise CorruptSegment(
                f"{path} is gone, and what is to be applied lies in it", segment=segment, path=path
            ) from error
        try:
            return read_index(self.disk, handle, segment, path).entries
        finally:
            self.disk.close(handle)
