"""What the rooms of a store share: the backend, the catalog, the options; no API of its own."""

from __future__ import annotations

import functools
import logging
import os
import threading
import time
import warnings
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from itertools import islice
from typing import Concatenate, Final, NamedTuple, ParamSpec, Protocol, TypeVar

from holdfast.arguments import check_callable
from holdfast.backend.log.backend import LogBackend
from holdfast.backend.log.commit import Group
from holdfast.backend.log.partial_reader import PartialReader
from holdfast.backend.log.payloads import StaleIndex
from holdfast.backend.log.reader import BlobReader
from holdfast.catalog import ArtifactEntry, BlobRow, Catalog, CatalogUnusable, Reusable
from holdfast.errors import (
    ArtifactNotFound,
    BlobNotFound,
    HoldfastError,
    InvalidInput,
    MissingChunk,
    NeedsReopen,
    RangeNotAvailable,
    TooLarge,
    Unavailable,
)
from holdfast.ingest import Ingest
from holdfast.recovery import CatalogKeeper, WouldForget
from holdfast.sources import source_size
from holdfast.types import Artifact, Hash, Progress, ProgressCallback, Ref, Source, id_text, parse_id

log = logging.getLogger("holdfast")

MENDABLE: Final = (CatalogUnusable, StaleIndex)
"""What a rebuild of the catalog may put right."""


DAY_SECONDS: Final = 86_400.0
MAX_KEPT: Final = 10_000
"""Blobs that streams completed and that wait for a name; the oldest of more are let go."""


class Options(NamedTuple):
    """Limits and defaults of one open store."""

    max_artifact_bytes: int | None = None
    max_artifacts: int | None = None
    default_content_type: str | None = None
    allow_empty: bool = False
    checksum: str = "none"
    partial_age_seconds: float = DAY_SECONDS * 7
    """How long a partial blob to which nothing is added is kept."""
    upload_expiry_seconds: float = DAY_SECONDS * 7
    """How long an upload that nobody goes on with can be gone on with."""
    min_age_seconds: float = 86_400
    """The undo window of what was deleted."""
    gc_batch_size: int = 10_000
    gc_interval_seconds: float = 3_600
    gc_enabled: bool = True


class Core:
    """One open store, as its rooms see it."""

    def __init__(self, backend: LogBackend, keeper: CatalogKeeper, options: Options) -> None:
        self.backend = backend
        self.keeper = keeper
        self.options = options
        self.pool = ThreadPoolExecutor(2, thread_name_prefix="holdfast-ingest")
        self.kept = Kept(backend, options.partial_age_seconds)
        self._pid = os.getpid()
        self._closed = False
        self._callers: dict[int, int] = {}
        """How many calls, one within the other, each thread has under way."""
        # Not the condition around it: an interrupt could leave that one locked. Reentrant: for signal handlers.
        self._gate = threading.RLock()
        self._calls = threading.Condition(self._gate)
        self._let_go = weakref.finalize(self, _let_go, backend, keeper, self.pool)
        self._let_go.atexit = False  # the end of the process lets go of everything anyway

    @property
    def closed(self) -> bool:
        """Whether the store was closed, or is another process's."""
        return self._closed or os.getpid() != self._pid

    @property
    def was_closed(self) -> bool:
        """Whether `close` was called, here or in the process that this one was forked from."""
        return self._closed

    def check(self) -> Core:
        """Give itself, or `NeedsReopen` after a close or in a forked child."""
        if self._closed:
            raise NeedsReopen("the store was closed: open it anew")
        if os.getpid() != self._pid:
            raise NeedsReopen(
                "this process was forked from the one that opened the store: open the store anew here"
            )
        return self

    def enter(self) -> None:
        """Begin a call; `close` waits until it has left."""
        thread = threading.get_ident()
        with self._gate:
            self.check()
            self._callers[thread] = self._callers.get(thread, 0) + 1

    def leave(self) -> None:
        """The call is over. What it met of damage is written down, now that it holds no lock."""
        if self.backend.payloads.found and not self._closed and os.getpid() == self._pid:
            self.write_down_damage()
        self._leave()

    def _leave(self) -> None:
        thread = threading.get_ident()
        with self._gate:
            self._callers[thread] -= 1
            if not self._callers[thread]:
                del self._callers[thread]
                if self._closed and not self._callers:
                    self._calls.notify_all()

    def called_back(self, callback: ProgressCallback) -> ProgressCallback:
        """Give a callback for threads of our own: what it calls counts as within the call that waits for them."""

        def call(progress: Progress) -> None:
            thread = threading.get_ident()
            with self._gate:
                self._callers[thread] = self._callers.get(thread, 0) + 1
            try:
                callback(progress)
            finally:
                self._leave()

        return call

    def refuse_within_call(self) -> None:
        """Raise `InvalidInput` in a thread that has a call under way: a close there would wait for itself."""
        if threading.get_ident() in self._callers:
            raise InvalidInput(
                "close() was called from within a call of the same store (by a callback, an iterator that is being"
                " stored, or a signal handler), which would wait for itself: close it when the call has returned"
            )

    def close(self) -> None:
        """Let no further call in, and wait for those that run."""
        with self._calls:
            self.refuse_within_call()
            self._closed = True
            self._let_go.detach()
            while self._callers:
                self._calls.wait()
        self.pool.shutdown()

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
        """The catalog of this moment; ask anew for each look-up."""
        return self.keeper.current()

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
                lambda: Reusable(self.catalog),
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
        backend.committer  # noqa: B018  # refuses a store that was opened to read before anything is waited for
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

    def artifact(self, ref: Artifact | str, *, deleted: bool = False) -> ArtifactEntry:
        """Give the live artifact (`deleted`: the deleted one) that a reference names, or `ArtifactNotFound`."""
        text = id_of(ref)
        entry = self.catalog.find_artifact(parse_id(text))
        if entry is None or (entry.deleted_ms is None) == deleted:
            state = "deleted artifact" if deleted else "artifact"
            raise ArtifactNotFound(f"there is no {state} {text}", id=text)
        return entry

    def check_room(self, more: int) -> None:
        """Refuse what would make more artifacts than `max_artifacts`; exact for who holds the store's lock."""
        limit = self.options.max_artifacts
        if limit is not None and (have := self.catalog.live_artifacts()) + more > limit:
            raise TooLarge(
                f"the store has {have} artifacts; with {more} more there would be more than the {limit} that"
                " max_artifacts allows",
                artifacts=have,
                limit=limit,
            )

    def blob(self, hash: Hash | bytes) -> BlobRow:
        """Give the complete blob of a hash, or `BlobNotFound`."""
        digest = hash.digest if isinstance(hash, Hash) else hash
        row = self.catalog.find_blob(digest)
        if row is None:
            raise self._no_blob(digest)
        return row

    def claim(self, hash: Hash | bytes, format: int = 0) -> BlobRow:
        """Give the blob of a hash for an operation that relies on its staying, or `BlobNotFound`.

        The caller has pinned (`backend.operation`). `format` 1: its children as a hash seq are relied on too.
        """
        if self.backend.read_only:
            return self.blob(hash)
        digest = hash.digest if isinstance(hash, Hash) else hash
        row = self.catalog.claim(digest, format)
        if row is None:
            raise self._no_blob(digest)
        return row

    def _no_blob(self, digest: bytes) -> BlobNotFound:
        """Give the error for a blob that is not complete; of a partial one it says what is here."""
        hex_ = digest.hex()
        state = self.backend.partials.find(digest)
        if state is None:
            return BlobNotFound(f"there is no blob {hex_}", hash=Hash(digest))
        return BlobNotFound(
            f"blob {hex_} is partial, and all of it is needed: of its {state.size_bytes} bytes these leaves (of 1,024"
            f" bytes) are here: {str(state.ranges) or 'none':.100}; `blobs.missing_ranges` says what to ask for",
            hash=Hash(digest),
            here=state.ranges,
            size_bytes=state.size_bytes,
        )

    def resolve(self, ref: Ref, *, claim: bool = False) -> BlobRow:
        """Give the blob that a reference names: a hash, an artifact or its id. `claim`: as that method does."""
        find = self.claim if claim else self.blob
        if isinstance(ref, Hash):
            return find(ref)
        entry = self.artifact(ref)
        try:
            return find(entry.hash)
        except BlobNotFound as error:
            missing = MissingChunk(
                f"artifact {id_text(entry.id)} names blob {entry.hash.hex()}, which is not here",
                hash=Hash(entry.hash),
            )
            raise self.backend.payloads.suspect(entry.hash, missing) from error

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
            raise RangeNotAvailable(
                f"of the partial blob {digest.hex()} nothing is here yet, not even its size",
                hash=Hash(digest),
                here=state.ranges,
                size_bytes=0,
            )
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


class Kept:
    """Blobs that streams have completed, leased until somebody names them, as their partial blobs were kept."""

    def __init__(self, backend: LogBackend, age_seconds: float) -> None:
        self._backend = backend
        self._age_seconds = age_seconds
        self._mutex = threading.Lock()
        self._slots: OrderedDict[bytes, tuple[float, list[int]]] = OrderedDict()

    def keep(self, digest: bytes, kind: int) -> None:
        """Lease a blob; the oldest that are kept so are let go. The caller has pinned, and the blob is here."""
        now = time.monotonic()
        slots = self._backend.session.lease([digest], kind)
        with self._mutex:
            slots += self._slots.pop(digest, (now, []))[1]
            self._slots[digest] = (now, slots)
            old = [
                name
                for name, (since, _) in islice(self._slots.items(), 2)
                if now - since > self._age_seconds or len(self._slots) > MAX_KEPT
            ]
        for name in old:
            self.let_go(name)

    def let_go(self, digest: bytes) -> None:
        """Keep a blob no longer: it was named. Harmless where none is kept."""
        with self._mutex:
            _, slots = self._slots.pop(digest, (0.0, []))
        for slot in slots:
            self._backend.session.release(slot)


def id_of(ref: Artifact | str) -> str:
    """Give the id that a reference names."""
    text = ref.id if isinstance(ref, Artifact) else ref
    if not isinstance(text, str):
        raise InvalidInput(f"an artifact or its id is needed, not {type(ref).__name__}")
    return text


CALLBACKS: Final = ("progress", "on_report")


class _Room(Protocol):
    """Something that works on an open store."""

    @property
    def _core(self) -> Core: ...


P = ParamSpec("P")
R = TypeVar("R", bound=_Room)
T = TypeVar("T")


def entered(method: Callable[Concatenate[R, P], T]) -> Callable[Concatenate[R, P], T]:
    """Make a method of the API of one: `close` waits for it, and it survives a catalog that proves damaged.

    A store that was closed or carried over a fork is refused. What only reads, or can be asked twice, is asked
    again after the rebuild.
    """

    @functools.wraps(method)
    def call(self: R, /, *args: P.args, **kwargs: P.kwargs) -> T:
        core = self._core
        if kwargs:
            for name in CALLBACKS:
                check_callable(name, kwargs.get(name))
        core.enter()
        try:
            return method(self, *args, **kwargs)
        except MENDABLE as error:
            core.mend(error)
            if method.__name__ in _REPEATABLE:
                return method(self, *args, **kwargs)
            raise Unavailable(
                "the catalog was damaged and has been rebuilt from storage: try again"
            ) from error
        finally:
            core.leave()

    return call


_REPEATABLE: Final = frozenset(
    {
        "info",
        "exists",
        "read",
        "iter_bytes",
        "open",
        "export",
        "get_metadata",
        "find",
        "count",
        "tags_in_use",
        "links_in_use",
        "delete",
        "restore",
        "verify",
        "scrub",
        "_stats",
        "_artifact_stats",
        "health",
        "status",
        "bitfield",
        "missing_ranges",
        "encode",
        "children",
        "encode_seq",
        "missing_seq",
        "seq_info",
        "uploads",
        "get",
        "gc",
        "_forecast",
        "why",
    }
)


class Watch:
    """Turns bytes read into progress reports."""

    def __init__(self, callback: ProgressCallback | None, phase: str, source: Source | None = None) -> None:
        self._callback = callback
        self._phase = phase
        self._done = 0
        self._total = source_size(source) if callback is not None and source is not None else None

    def __call__(self, more_bytes: int) -> None:
        self._done += more_bytes
        if self._callback is not None:
            self._callback(Progress(phase=self._phase, done_bytes=self._done, total_bytes=self._total))
