"""Partial blobs: verified import of BAO streams, what is here and what is missing, and their end."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator
from typing import IO, Final, TypeAlias, cast

from holdfast.backend.log.session import LEASE_RAW
from holdfast.bitfield import Bitfield, present_bytes
from holdfast.catalog import BlobRow
from holdfast.core import Core, Partial, entered
from holdfast.engine import Engine
from holdfast.errors import (
    CorruptStream,
    HoldfastError,
    InvalidHash,
    InvalidInput,
    RemoteProtocolError,
)
from holdfast.ranges import ChunkRanges, leaf_count
from holdfast.sources import as_bytes, iter_windows, read_some
from holdfast.types import (
    BLOCK_BYTES,
    BlobInfo,
    BlobStatus,
    BytesLike,
    Hash,
    Progress,
    ProgressCallback,
    now_ms,
    to_datetime,
)

log = logging.getLogger("holdfast")

Stream: TypeAlias = "str | os.PathLike[str] | BytesLike | IO[bytes] | Iterable[BytesLike]"
"""A path, bytes or an iterable, which end with the stream; or a file, of which exactly the stream is read."""
_MALFORMED: Final = frozenset({"size", "trailing", "truncated"})


class PartialBlobs:
    """The part of `store.blobs` that is about blobs which are not wholly here."""

    _core: Core
    _engine: Engine

    @entered
    def decode(
        self,
        hash: Hash,
        stream: Stream,
        ranges: ChunkRanges | None = None,
        *,
        progress: ProgressCallback | None = None,
    ) -> BlobInfo:
        """Take in a BAO stream of a blob, or of `ranges` of it (what was asked for), verified; say what is here then.

        What verifies is kept, in whole blocks, whatever happens to the rest, and is durable when this returns or
        raises; on the way at most 16 MiB, or the last second's, are lost in a crash. Several may fill one blob at
        once. A blob that is here already is only verified. From a file exactly the stream is read; all else must end
        with it. `CorruptStream` (`offset_bytes`: where in the stream) for what does not verify;
        `RemoteProtocolError` for a stream that is cut off, goes on, or claims a size that no blob has; `TooLarge`;
        `NoSpace` when there is no room to put the pieces together, which keeps what came.
        """
        core = self._core
        digest = checked(hash).digest
        if not isinstance(ranges, ChunkRanges | None):
            raise InvalidInput(
                f"ranges are ChunkRanges, not {type(ranges).__name__}: ChunkRanges.parse reads text"
            )
        core.check_writable()  # before anything is read
        done = 0

        def watch(more_bytes: int, size_bytes: int | None) -> None:
            nonlocal done
            done += more_bytes
            if progress is not None:
                progress(Progress(phase="decode", done_bytes=done, total_bytes=size_bytes))

        try:
            self._engine.take_in(digest, ranges, open_source(stream), watch)
        except CorruptStream as error:
            raise stream_error(error) from error
        return self._after_import(digest)

    @entered
    def bitfield(self, hash: Hash) -> Bitfield:
        """Say which parts of a blob are here."""
        return bitfield(self._core, checked(hash).digest)

    @entered
    def missing_ranges(self, hash: Hash) -> ChunkRanges:
        """Say what to ask for next: all of a blob of which nothing is here, nothing of one that is complete."""
        found = look(self._core, checked(hash).digest)
        if found is None:
            return ChunkRanges.all()
        return ChunkRanges.empty() if isinstance(found, BlobRow) else found.missing

    def _described(self, digest: bytes) -> BlobInfo | None:
        """Say what is known of a blob, complete or partial; None if nothing."""
        raise NotImplementedError

    def _after_import(self, digest: bytes) -> BlobInfo:
        return self._described(digest) or BlobInfo(
            hash=Hash(digest),
            size_bytes=0,
            status=BlobStatus.MISSING,
            has_outboard=False,
            stored_bytes=0,
            created_at=to_datetime(now_ms()),
            is_size_verified=False,
        )

    def _hold(self, digest: bytes, kind: int = LEASE_RAW) -> None:
        """Lease a blob of which a stream came: it is kept as its partial blob was, so that it can be named."""
        self._core.keep(digest, kind)


def look(core: Core, digest: bytes) -> BlobRow | Partial | None:
    """Give what is here of a blob: its row if it is complete, its state if it is partial."""
    row = core.catalog.find_blob(digest)
    if row is not None:
        return core.lacking(row) or row
    state = core.partial(digest)  # first: what was partial is there for good before it is no more
    return core.find_row(digest) or state


def status_of(found: BlobRow | Partial | None) -> BlobStatus:
    """Say how much of a blob is here, of what `look` gave."""
    if found is None:
        return BlobStatus.MISSING
    return BlobStatus.COMPLETE if isinstance(found, BlobRow) else BlobStatus.PARTIAL


def bitfield(core: Core, digest: bytes) -> Bitfield:
    """Say which parts of a blob are here."""
    found = look(core, digest)
    size, verified, ranges = 0, False, ChunkRanges.empty()
    if isinstance(found, BlobRow):
        size, verified, ranges = found.size, True, ChunkRanges.leaves(0, leaf_count(found.size))
    elif found is not None:
        size, verified, ranges = found.size_bytes, found.is_size_proven, found.ranges
    status = status_of(found)
    return Bitfield(
        hash=Hash(digest), status=status, size_bytes=size, is_size_verified=verified, ranges=ranges
    )


def partial_info(digest: bytes, state: Partial) -> BlobInfo:
    """Describe a partial blob."""
    return BlobInfo(
        hash=Hash(digest),
        size_bytes=state.size_bytes,
        status=BlobStatus.PARTIAL,
        has_outboard=state.size_bytes > BLOCK_BYTES,
        stored_bytes=present_bytes(state.ranges, state.size_bytes),
        created_at=to_datetime(state.created_ms),
        is_size_verified=state.is_size_proven,
    )


def iter_partials(core: Core, low: bytes, high: bytes) -> Iterator[BlobInfo]:
    """Describe the partial blobs with hashes from `low` to `high`, ascending; not those that are complete by now."""
    for digest in core.partial_hashes():
        if low <= digest <= high:
            found = look(core, digest)
            if found is not None and not isinstance(found, BlobRow):
                yield partial_info(digest, found)


def stream_error(error: CorruptStream) -> HoldfastError:
    """Give the error for a stream that is wrong: what does not verify is damage, what is malformed is the sender's."""
    if error.evidence.get("reason") in _MALFORMED:
        return RemoteProtocolError(error.message, **error.evidence)
    return CorruptStream(error.message, **error.evidence)


class _File:
    """A caller's file, from which only bytes are taken; one that does not block is waited for."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def read(self, length: int) -> bytes:
        return read_some(self._file, length)


def open_source(stream: Stream) -> IO[bytes] | Iterable[BytesLike]:
    """Give what a stream is read from: a file, or pieces that end with it."""
    if isinstance(stream, (str, os.PathLike, bytes, bytearray, memoryview)):
        return iter_windows(stream)
    if hasattr(stream, "read"):
        return cast(IO[bytes], _File(cast(IO[bytes], stream)))
    if hasattr(stream, "__iter__"):
        return map(as_bytes, stream)
    raise InvalidInput(
        f"cannot read {type(stream).__name__}: give a path, bytes, a binary file or an iterable of bytes"
    )


def checked(hash: Hash) -> Hash:
    """Refuse what is no `Hash`."""
    if not isinstance(hash, Hash):
        raise InvalidHash(f"a Hash is needed, not {type(hash).__name__}: Hash.parse reads text")
    return hash
