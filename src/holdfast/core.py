"""What the rooms of a store share, whatever its backend: calls, the catalog, the options; no API of its own."""

from __future__ import annotations

import functools
import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Concatenate, Final, NamedTuple, ParamSpec, Protocol, Self, TypeGuard, TypeVar

from holdfast.arguments import check_callable
from holdfast.backend.log.payloads import StaleIndex
from holdfast.catalog import ArtifactBlob, ArtifactEntry, BlobRow, Catalog, CatalogUnusable
from holdfast.errors import (
    ArtifactNotFound,
    BlobNotFound,
    HoldfastError,
    InvalidInput,
    NeedsReopen,
    TooLarge,
    Unavailable,
)
from holdfast.ingest import Stored
from holdfast.ranges import ChunkRanges
from holdfast.sources import source_size
from holdfast.types import (
    Artifact,
    BytesLike,
    Durability,
    Hash,
    Progress,
    ProgressCallback,
    Ref,
    Source,
    parse_id,
)
from holdfast.wire.record import Kind

MENDABLE: Final = (CatalogUnusable, StaleIndex)
"""What a rebuild of the catalog may put right."""

DAY_SECONDS: Final = 86_400.0


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
    max_spool_bytes: int = 4 << 30
    """How much of what is put into a bucket may wait on this machine."""


class Reader(Protocol):
    """Reads one blob. Threads may share it."""

    size_bytes: int

    def read_at(self, offset_bytes: int, length_bytes: int) -> bytes:
        """Give exactly that range, verified; it lies within the blob."""

    def iter_bytes(self, start: int, stop: int) -> Iterator[bytes]:
        """Give a range in verified pieces of about 1 MiB."""


class TreeReader(Reader, Protocol):
    """Reads a blob that has an outboard, also as it lies there: for who verifies it."""

    def read_data(self, offset: int, length: int) -> BytesLike: ...
    def read_pairs(self, offset: int, length: int) -> BytesLike: ...


class Partial(Protocol):
    """A blob of which not all is here."""

    @property
    def size_bytes(self) -> int: ...
    @property
    def is_size_proven(self) -> bool: ...
    @property
    def created_ms(self) -> int: ...
    @property
    def ranges(self) -> ChunkRanges: ...
    @property
    def missing(self) -> ChunkRanges: ...


class PartialTreeReader(TreeReader, Protocol):
    """Reads what is here of a partial blob."""

    def require(self, ranges: ChunkRanges) -> None:
        """Raise `RangeNotAvailable` where not all of these is here."""


def has_tree(reader: Reader) -> TypeGuard[TreeReader]:
    """Whether a reader gives pairs of an outboard. (`isinstance` with a protocol takes 20 µs.)"""
    return hasattr(reader, "read_pairs")


def is_partial(reader: Reader) -> TypeGuard[PartialTreeReader]:
    """Whether a reader is of a blob of which not all is here."""
    return hasattr(reader, "require")


class Stream(Protocol):
    """One blob that comes in windows."""

    size_bytes: int

    def push(self, window: BytesLike) -> None: ...
    def finish(self) -> Stored: ...
    def close(self) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None: ...


class Ingesting(Protocol):
    """Adds blobs to one group. One thread at a time."""

    def check_size(self, size_bytes: int) -> None: ...
    def add(self, windows: Iterator[BytesLike], watch: Callable[[int], None] | None = None) -> Stored: ...
    def add_many(self, items: Sequence[BytesLike]) -> list[Stored]: ...
    def stream(self) -> Stream: ...


class Grouping(Protocol):
    """What is acknowledged together: documents, beside the blobs that were ingested for it."""

    @property
    def is_empty(self) -> bool: ...
    def add_one(self, kind: Kind, payload: bytes) -> object: ...
    def add_documents(self, kind: Kind, documents: list[bytes]) -> None: ...
    def commit(self, *, alone: bool = False) -> Durability: ...


class Core(ABC):
    """One open store, as its rooms see it. `directory`: where it lies, if that is a local one."""

    directory: str | None = None
    is_far: bool = False
    """Each read is a request, so that it pays to have some under way."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.pool = ThreadPoolExecutor(2, thread_name_prefix="holdfast-ingest")
        self._pid = os.getpid()
        self._closed = False
        self._callers: dict[int, int] = {}
        """How many calls, one within the other, each thread has under way."""
        # Not the condition around it: an interrupt could leave that one locked. Reentrant: for signal handlers.
        self._gate = threading.RLock()
        self._calls = threading.Condition(self._gate)

    # -- what each backend does in its own way

    @property
    @abstractmethod
    def catalog(self) -> Catalog:
        """The catalog of this moment; ask anew for each look-up."""

    @property
    @abstractmethod
    def read_only(self) -> bool: ...

    @property
    @abstractmethod
    def durability(self) -> Durability:
        """What an acknowledgement means here."""

    @abstractmethod
    def operation(self) -> AbstractContextManager[None]:
        """Rely, until it ends, on what is looked up from here on."""

    @abstractmethod
    def lock(self) -> AbstractContextManager[None]:
        """Let no other change to what has a name happen meanwhile, as far as the backend can promise it."""

    @abstractmethod
    def adding(
        self, *, checksum: bool = False, time_ms: int = 0
    ) -> AbstractContextManager[tuple[Grouping, Ingesting]]:
        """Pin, begin a group, and forget it on an error. The body commits.

        `checksum`: blobs get the further checksum that the options ask for. `time_ms`: when it is said to happen.
        """

    @abstractmethod
    def changing(self) -> AbstractContextManager[Grouping]:
        """Change what has a name: read, check, then write what the group was given, as the block ends."""

    def next_revision(self, revision: int) -> int:
        """Give the revision of what follows the state of a name that the catalog knows."""
        return revision + 1

    def repeat(self, work: Callable[[], T]) -> T:
        """Do a change, and do it again where somebody else was quicker, as far as the backend cannot keep them out."""
        return work()

    @abstractmethod
    def deleting(self, work: Callable[[], None]) -> None:
        """Do what lets room be freed later."""

    @abstractmethod
    def claim(self, hash: Hash | bytes, format: int = 0) -> BlobRow:
        """Give the blob of a hash for an operation that relies on its staying, or `BlobNotFound`.

        The caller has pinned. `format` 1: its children as a hash seq are relied on too.
        """

    @abstractmethod
    def reader(self, ref: Ref) -> Reader:
        """Open the blob that a reference names. The caller has pinned."""

    @abstractmethod
    def read_small(self, hash: bytes, found: ArtifactBlob) -> bytes:
        """Read the blob of an artifact whose place the catalog gave with it."""

    @abstractmethod
    def tree_reader(self, row: BlobRow) -> TreeReader:
        """Open a complete blob of more than one block."""

    @abstractmethod
    def block_reader(self, row: BlobRow) -> Reader:
        """Open a complete blob of one block."""

    @abstractmethod
    def partial_reader(self, digest: bytes) -> PartialTreeReader | Reader | None:
        """Open a partial blob, or the whole one that it has become; None if there is none."""

    @abstractmethod
    def stored_bytes(self, row: BlobRow) -> int:
        """Give the room that a complete blob takes."""

    @abstractmethod
    def check_writable(self) -> None:
        """Raise `PermissionDenied` for a store that was opened to read."""

    # -- leases, and blobs that are not wholly here

    @abstractmethod
    def lease(self, digests: Sequence[bytes], kind: int) -> list[int]:
        """Hold blobs for this process; gives what `release` takes. The caller has pinned. `kind`: LEASE_…"""

    @abstractmethod
    def release(self, slot: int) -> None:
        """Hold one blob no longer."""

    @abstractmethod
    def keep(self, digest: bytes, kind: int) -> None:
        """Lease a blob until somebody names it, as long as a partial one is kept. The caller has pinned."""

    @abstractmethod
    def partial(self, digest: bytes) -> Partial | None:
        """Give what is known of a partial blob."""

    @abstractmethod
    def partial_hashes(self) -> Iterable[bytes]:
        """Give the hashes of partial blobs, ascending."""

    @abstractmethod
    def let_go(self, digest: bytes) -> None:
        """Hold a blob no longer for who is to name it: it was named."""

    @abstractmethod
    def mend(self, error: HoldfastError) -> None:
        """Rebuild a catalog that is damaged or says what storage does not."""

    @abstractmethod
    def missing_blob(self, digest: bytes) -> BlobNotFound:
        """Give the error for a blob that is not complete; of a partial one it says what is here."""

    @abstractmethod
    def dangling(self, entry: ArtifactEntry, error: BlobNotFound) -> HoldfastError:
        """Give the error for an artifact whose blob is not here."""

    @abstractmethod
    def abandon_in_child(self) -> None:
        """In a forked child: give back what was inherited, once."""

    # -- calls under way

    @property
    def closed(self) -> bool:
        """Whether the store was closed, or is another process's."""
        return self._closed or os.getpid() != self._pid

    @property
    def was_closed(self) -> bool:
        """Whether `close` was called, here or in the process that this one was forked from."""
        return self._closed

    def check(self) -> Self:
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
        """The call is over."""
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
            while self._callers:
                self._calls.wait()
        self.pool.shutdown()

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
            raise self.missing_blob(digest)
        return row

    def lacking(self, row: BlobRow) -> Partial | None:
        """Give the partial blob that takes the place of a complete one of which pieces are gone."""
        return None

    def find_row(self, digest: bytes) -> BlobRow | None:
        """Give the complete blob of a hash, wherever the backend knows it from; None where it is not here."""
        return self.catalog.find_blob(digest)

    def resolve(self, ref: Ref, *, claim: bool = False) -> BlobRow:
        """Give the blob that a reference names: a hash, an artifact or its id. `claim`: as that method does."""
        find = self.claim if claim else self.blob
        if isinstance(ref, Hash):
            return find(ref)
        entry = self.artifact(ref)
        try:
            return find(entry.hash)
        except BlobNotFound as error:
            raise self.dangling(entry, error) from error


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
        "refresh",
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
