"""The layer below artifacts: blobs by their hash, held by leases until something names them."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from heapq import merge
from itertools import islice

from holdfast.arguments import items_of
from holdfast.artifacts import SourceBatch
from holdfast.backend.log.session import LEASE_HASH_SEQ, LEASE_RAW
from holdfast.catalog import BlobRow
from holdfast.core import Core, Grouping, Watch, entered
from holdfast.encoding import BaoStream, Encoding
from holdfast.engine import Engine
from holdfast.errors import BlobNotFound, EmptyData, InvalidHash, InvalidInput
from holdfast.hashseqs import HashSeqs
from holdfast.ingest import Stored
from holdfast.partials import checked, iter_partials, look, partial_info, status_of
from holdfast.ranges import ChunkRanges
from holdfast.reading import Reading
from holdfast.sources import WINDOW_BYTES, iter_windows
from holdfast.types import (
    BLOCK_BYTES,
    HASH_BYTES,
    BlobInfo,
    BlobStatus,
    Durability,
    Hash,
    ProgressCallback,
    Source,
    to_datetime,
)


class Lease:
    """Holds a blob until it is released, named, or this process ends. A context manager."""

    def __init__(self, core: Core, hash: Hash, size_bytes: int, durability: Durability, slot: int) -> None:
        self.hash = hash
        self.size_bytes = size_bytes
        self.durability = durability
        self._core = core
        self._slot: int | None = slot

    def release(self) -> None:
        """Give it up. Harmless when done twice."""
        slot, self._slot = self._slot, None
        if slot is not None and not self._core.closed:
            self._core.release(slot)

    def __enter__(self) -> Lease:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def __repr__(self) -> str:
        return f"Lease({self.hash}, {'held' if self._slot is not None else 'released'})"


class Blobs(HashSeqs):
    """`store.blobs`: puts, looks at and reads blobs by hash."""

    def __init__(self, engine: Engine, reading: Reading) -> None:
        self._engine = engine
        self._core = core = engine.core
        self._reading = reading
        self._encoding = Encoding(core)

    @entered
    def put(self, source: Source, *, progress: ProgressCallback | None = None) -> Lease:
        """Store one blob; durable when it returns. The lease holds it. `EmptyData` as for artifacts."""
        core = self._core
        with core.adding() as (group, ingest):
            stored = ingest.add(iter_windows(source, core.pool), Watch(progress, "put", source))
            return self._acknowledge(group, [stored])[0]

    @entered
    def put_many(self, sources: Iterable[Source]) -> list[Lease]:
        """Store many blobs as one acknowledgement, all or nothing; a lease for each, in order."""
        core = self._core
        with core.adding() as (group, ingest):
            batch = SourceBatch(ingest)
            for source in items_of("sources", sources):
                batch.add(source)
            return self._acknowledge(group, batch.finish())

    @entered
    def hash_seq(self, children: Iterable[Hash | Lease | str]) -> Lease:
        """Store a hash seq: the hashes, one after another. The lease holds it, and those of its children that are here.

        Children may be missing, come later, and be named twice, as in iroh: nobody looks at them now. They may come
        from an iterator; memory is bounded. No children at all is an empty blob (`EmptyData`, unless that is allowed).
        """
        core = self._core
        with core.adding() as (group, ingest):
            digests = (_child_digest(child) for child in items_of("children", children))
            pages = iter(lambda: b"".join(islice(digests, CHILDREN_PER_WINDOW)), b"")
            stored = ingest.add(pages)
            (lease,) = self._acknowledge(group, [stored], LEASE_HASH_SEQ)
            return lease

    def _acknowledge(self, group: Grouping, stored: list[Stored], kind: int = LEASE_RAW) -> list[Lease]:
        """Commit, then lease while the pin still holds what was found there already."""
        core = self._core
        if not core.options.allow_empty and any(not one.size_bytes for one in stored):
            raise EmptyData("a source has no bytes; set limits.allow_empty if empty data is meant")
        durability = core.durability if group.is_empty else group.commit()
        if kind == LEASE_HASH_SEQ:
            for one in stored:
                core.claim(one.hash, 1)  # its children are relied on, and nobody brought their bytes
        slots = core.lease([one.hash for one in stored], kind)
        return [
            Lease(core, Hash(one.hash), one.size_bytes, durability, slot)
            for one, slot in zip(stored, slots, strict=True)
        ]

    @entered
    def info(self, hash: Hash) -> BlobInfo:
        """Say what the store knows of a blob, complete or partial; `BlobNotFound`."""
        digest = checked(hash).digest
        info = self._described(digest)
        if info is None:
            raise BlobNotFound(f"there is no blob {digest.hex()}", hash=hash)
        return info

    def _described(self, digest: bytes) -> BlobInfo | None:
        found = look(self._core, digest)
        if isinstance(found, BlobRow):
            return self._view(found, self._core.stored_bytes(found))
        return None if found is None else partial_info(digest, found)

    @entered
    def status(self, hash: Hash) -> BlobStatus:
        """Say how much of a blob is here."""
        return status_of(look(self._core, checked(hash).digest))

    @entered
    def list(self, prefix: str = "", *, partial: bool = False) -> Iterator[BlobInfo]:
        """Give all blobs whose hash begins with these hex digits, in order; pages are fetched as it goes.

        `stored_bytes` of a large blob counts the record that describes it alone here: `info` adds its chunks.
        `partial`: give those too of which only a part is here.
        """
        low, high = _prefix_bounds(prefix)
        complete = self._complete(low, high)
        if not partial:
            return complete
        return merge(complete, iter_partials(self._core, low, high), key=lambda info: info.hash.digest)

    def _complete(self, low: bytes, high: bytes) -> Iterator[BlobInfo]:
        core = self._core
        after: bytes | None = None
        while True:
            page = core.catalog.blobs_with_prefix(low, high, after, PAGE)
            for row in page:
                yield self._view(row, row.stored)
            if len(page) < PAGE:
                return
            after = page[-1].hash

    @entered
    def read(self, hash: Hash, offset_bytes: int = 0, length_bytes: int | None = None) -> bytes:
        """Give a range of a blob, verified."""
        return self._reading.read(checked(hash), offset_bytes, length_bytes)

    @entered
    def iter_bytes(
        self, hash: Hash, offset_bytes: int = 0, length_bytes: int | None = None
    ) -> Iterator[bytes]:
        """Give a range of a blob in verified pieces."""
        return self._reading.iter_bytes(checked(hash), offset_bytes, length_bytes)

    @entered
    def open(self, hash: Hash) -> io.BufferedReader:
        """Open a blob as a seekable file."""
        return self._reading.open(checked(hash))

    @entered
    def encode(self, hash: Hash, ranges: ChunkRanges | None = None) -> Iterator[bytes]:
        """Give the BAO stream of a blob, or of ranges of it, in pieces: 8 bytes of size, then what verifies itself.

        Ranges beyond the end select the last leaf; none give no bytes at all. Nothing wrong is sent: `CorruptBlob` when
        no copy of a piece is right. Of a partial blob what is here can be encoded; `RangeNotAvailable` for other
        ranges. What is wrong with the hash or the ranges is said at once. Memory: a few pieces of 1 MiB.
        """
        if not isinstance(ranges, ChunkRanges | None):
            raise InvalidInput(
                f"ranges are ChunkRanges, not {type(ranges).__name__}: ChunkRanges.parse reads text"
            )
        return BaoStream(self._core, self._encoding, checked(hash), ranges)

    def _view(self, row: BlobRow, stored_bytes: int) -> BlobInfo:
        return BlobInfo(
            hash=Hash(row.hash),
            size_bytes=row.size,
            status=BlobStatus.COMPLETE,
            has_outboard=row.size > BLOCK_BYTES,
            stored_bytes=stored_bytes,
            created_at=to_datetime(row.created_ms),
        )


PAGE = 1_000
CHILDREN_PER_WINDOW = WINDOW_BYTES // HASH_BYTES


def _child_digest(child: Hash | Lease | str) -> bytes:
    if isinstance(child, Lease):
        return child.hash.digest
    return Hash.parse(child).digest if isinstance(child, str) else checked(child).digest


def _prefix_bounds(prefix: str) -> tuple[bytes, bytes]:
    digits = prefix.removeprefix("blake3:").lower() if isinstance(prefix, str) else "?"
    if len(digits) > 2 * HASH_BYTES or any(c not in "0123456789abcdef" for c in digits):
        raise InvalidHash(f"not the beginning of a hash: {prefix!r:.100}", text=prefix)
    width = 2 * HASH_BYTES
    return bytes.fromhex(digits.ljust(width, "0")), bytes.fromhex(digits.ljust(width, "f"))
