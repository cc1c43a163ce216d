"""Bringing a BAO stream into a bucket: what is verified is kept in parts, whatever becomes of the rest.

A checkpoint is one object that holds blocks together with what says and verifies them, so nothing is ever claimed that
is not there. Several machines may fill one blob at once: none needs the others' parts to verify its own. Whoever sees
that all of it is here puts it together as a blob like any other; only then the parts go.
"""

from __future__ import annotations

import logging
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final, NamedTuple

from holdfast.backend.log.session import LEASE_RAW
from holdfast.backend.objects.parts import Here, claim_of, spans
from holdfast.backend.objects.pieces import Pieces
from holdfast.backend.objects.stock import PartStock
from holdfast.bao import OutboardBuilder, OutboardReader, block_count, left_count, parents_before
from holdfast.bao_stream import encode
from holdfast.catalog.objects import drop_blobs
from holdfast.errors import BlobNotFound, CorruptBlob, HoldfastError, MissingChunk
from holdfast.intake import Batch, Intake, Run, runs_ranges, without
from holdfast.object_core import ObjectCore
from holdfast.ranges import ChunkRanges
from holdfast.types import BLOCK_BYTES, BytesLike, Hash, now_ms
from holdfast.wire.part import COMMITTING, PAIR_BYTES, BlocksHead

log = logging.getLogger("holdfast")

CHECKPOINT_BYTES: Final = 4 << 20
"""Two checkpoints are on their way while the next is gathered, with a piece of the stream: all below 16 MiB."""
FLYING: Final = 2
PIECE_BYTES: Final = 8 << 20
CVS_AT_ONCE: Final = 4_096
TRIES: Final = 5
SMALL_BYTES: Final = 1 << 20
MERGED_AT: Final = 64
"""So many parts below `SMALL_BYTES` are put into one: else a blob of many small streams is long to list."""


class ObjectImport(Intake):
    """One stream on its way into a bucket. Memory: about eight times `CHECKPOINT_BYTES`."""

    def __init__(self, core: ObjectCore, hash_: bytes, ranges: ChunkRanges | None) -> None:
        self._objects = core
        is_complete = is_here(core, hash_)
        super().__init__(core, hash_, ranges, is_complete=is_complete)
        self._flying: deque[Future[None]] = deque()
        self._begun_ms = now_ms()
        self._pairs: dict[int, bytes] = {}
        """Verified pairs that parts to come may need, by their number in the outboard."""
        self._have = ChunkRanges.empty()
        self._is_proven = False
        self._has_sent = False
        self._parts = core.backend.parts
        here = self._parts.find(hash_)
        self._has_parts = self._parts.had_any(hash_)
        self._pool = ThreadPoolExecutor(FLYING, thread_name_prefix="holdfast-import")
        core.importing.append(hash_)
        if here is not None and not is_complete:
            self._have, self._is_proven = here.state.have, here.state.is_size_proven
            if here.state.written_ms < self._begun_ms - core.options.partial_age_seconds * 500:
                try:
                    self._touch(here)
                except BaseException:
                    self._close()
                    raise

    @property
    def checkpoint_bytes(self) -> int:
        return CHECKPOINT_BYTES

    def _checkpoint(self) -> None:
        self._send(self._take_batch())

    def _finish(self) -> None:
        core, hash_ = self._objects, self._hash
        if self._is_complete:
            if self._has_parts:
                self._parts.remove(hash_)
            return
        batch = self._take_batch()
        if batch.is_whole and not self._has_sent:
            with core.adding() as (group, ingest):
                stored = ingest.add(iter([data for _, data in batch.runs]))
                assert stored.hash == hash_, "what was verified has another hash"
                group.commit()
            core.keep(hash_, LEASE_RAW)
            if self._has_parts:
                self._parts.remove(hash_)
            return
        self._send(batch)
        self._land(0)
        if self._has_sent or self._has_parts:
            here = complete_if_whole(core, hash_)
            if here is not None:
                merge_small(core, here)

    def _close(self) -> None:
        self._pool.shutdown()
        self._objects.importing.remove(self._hash)

    def _send(self, batch: Batch) -> None:
        """Begin to store what is new in a batch."""
        for offset, packed in batch.pairs:
            first = offset // PAIR_BYTES
            for at in range(0, len(packed), PAIR_BYTES):
                self._pairs[first + at // PAIR_BYTES] = packed[at : at + PAIR_BYTES]
        fresh = without(batch.runs, self._have)
        if fresh or (batch.is_size_proven and not self._is_proven):
            self._land(FLYING - 1)
            claim = Claim(batch.size_bytes, batch.is_size_proven, batch.highest_byte, self._begun_ms)
            part = pack(self._hash, claim, _joined(fresh), self._pairs.__getitem__)
            self._flying.append(self._pool.submit(self._parts.put, *part))
            self._has_sent = True
            self._have |= runs_ranges(fresh)
            self._is_proven |= batch.is_size_proven
        self._prune(batch)

    def _land(self, limit: int) -> None:
        while len(self._flying) > limit:
            try:
                self._flying.popleft().result()
            except BaseException:
                self._has_failed = True
                raise

    def _prune(self, batch: Batch) -> None:
        """Drop the pairs that no block to come has above it."""
        blocks = block_count(batch.size_bytes)
        next_ = min(batch.highest_byte // BLOCK_BYTES, blocks - 1)
        behind = parents_before(next_, blocks)
        above = set(_way(next_, blocks))
        for number in [one for one in self._pairs if one < behind and one not in above]:
            del self._pairs[number]

    def _touch(self, here: Here) -> None:
        """Keep what is here from expiring while this stream runs."""
        state = here.state
        highest = max(part.head.highest_byte for part in here.parts)
        head = BlocksHead(self._hash, state.size_bytes, state.is_size_proven, highest, self._begun_ms, (), ())
        self._parts.put(head, b"", ())


class Claim(NamedTuple):
    """What a part says beside its blocks: see `wire.part.BlocksHead`."""

    size_bytes: int
    is_size_proven: bool
    highest_byte: int
    created_ms: int


def pack(
    hash_: bytes, claim: Claim, runs: list[Run], pair: Callable[[int], bytes]
) -> tuple[BlocksHead, bytes, list[BytesLike]]:
    """Make a part of runs: verified once more, with all pairs on the way from the root to its blocks.

    `pair` gives one by its number in the outboard.
    """
    used: dict[int, bytes] = {}
    starts = [start for start, _ in runs]

    def read_pairs(offset: int, length: int) -> bytes:
        numbers = range(offset // PAIR_BYTES, (offset + length) // PAIR_BYTES)
        used.update((number, pair(number)) for number in numbers)
        return b"".join([used[number] for number in numbers])

    def read_data(offset: int, length: int) -> BytesLike:
        start, data = runs[bisect_right(starts, offset) - 1]
        return memoryview(data)[offset - start : offset - start + length]

    wanted = runs_ranges(runs).clip(claim.size_bytes)
    for _ in encode(claim.size_bytes, hash_, read_data, read_pairs, wanted):
        pass
    blocks = tuple((start // BLOCK_BYTES, -(-len(data) // BLOCK_BYTES)) for start, data in runs)
    head = BlocksHead(hash_, *claim, blocks, _counted(sorted(used)))
    return head, b"".join([used[number] for number in sorted(used)]), [data for _, data in runs]


def merge_small(core: ObjectCore, here: Here) -> None:
    """Put many small parts into one, which goes up before they go. What cannot be done now the next stream does."""
    parts = core.backend.parts
    small = [part for part in here.parts if part.head.data_bytes < SMALL_BYTES]
    if len(small) < MERGED_AT:
        return
    while sum(part.head.data_bytes for part in small) > PIECE_BYTES:
        small.pop()
    some = Here(here.hash, small)
    best = max(small, key=claim_of).head
    claim = Claim(best.size_bytes, best.is_size_proven, best.highest_byte, some.state.created_ms)
    try:
        loaded = core.backend.pool.map(
            lambda span: parts.read_span(
                span, span.first * BLOCK_BYTES, min(span.stop * BLOCK_BYTES, claim.size_bytes)
            ),
            some.blocks,
        )
        runs: list[Run] = [
            (span.first * BLOCK_BYTES, data) for span, data in zip(some.blocks, loaded, strict=True)
        ]
        packed = pack(
            here.hash, claim, _joined(runs), lambda n: parts.read_pairs(some, n * PAIR_BYTES, PAIR_BYTES)
        )
        parts.put(*packed)
        core.backend.bucket.delete([part.key for part in small])
    except HoldfastError as error:
        log.warning("the parts of blob %s stay as they are: %s", here.hash.hex(), error)


def is_here(core: ObjectCore, hash_: bytes) -> bool:
    """Look whether all of a blob is in the bucket, and is not being collected; if so it is kept until it is named."""
    row = core.find_row(hash_)
    if row is None:
        return False
    try:
        core.backend.settle(hash_, row.size, None, None)
    except BlobNotFound:  # another machine has collected it
        drop_blobs(core.catalog, [hash_])
        return False
    core.keep(hash_, LEASE_RAW)
    return True


def complete_if_whole(core: ObjectCore, hash_: bytes) -> Here | None:
    """Make a partial blob of which all is here a blob like any other, unless somebody else has; else give it."""
    parts = core.backend.parts
    for _ in range(TRIES):
        here = parts.find(hash_)
        if here is None:  # somebody else completed it, or it has expired
            is_here(core, hash_)
            return None
        if not here.state.is_whole:
            return here
        try:
            _complete(core, here)
            break
        except (CorruptBlob, MissingChunk) as error:  # with less than was said, or with nothing left to do
            log.warning("blob %s is looked through anew: %s", hash_.hex(), error)
            if parts.find(hash_) is here:
                raise
    else:
        return None
    core.keep(hash_, LEASE_RAW)
    parts.remove(hash_)
    return None


def _complete(core: ObjectCore, here: Here) -> None:
    """Stream the parts into the blob's object, verified; then its outboard, and all that belongs to a put."""
    parts, size = core.backend.parts, here.state.size_bytes

    def load(start: int, stop: int) -> bytes:
        (span,) = spans(here.blocks, start // BLOCK_BYTES, -(-stop // BLOCK_BYTES))
        return parts.read_span(span, start, stop)

    def outboard() -> Iterator[bytes]:
        tree = OutboardReader(size, here.hash, lambda offset, length: parts.read_pairs(here, offset, length))
        blocks = block_count(size)
        with OutboardBuilder() as builder:
            for first in range(0, blocks, CVS_AT_ONCE):
                builder.feed(tree.cvs(first, min(CVS_AT_ONCE, blocks - first)))
            yield from builder.finish(size)

    def wrong() -> CorruptBlob:
        """Each block was right: so it is the size that is not, and those who said that it is proven."""
        parts.distrust([part for part in here.parts if part.head.is_size_proven])
        return CorruptBlob(
            f"the parts of blob {here.hash.hex()} say that it has {size} bytes, which is not so",
            hash=Hash(here.hash),
        )

    pieces = [
        (start, min(start + PIECE_BYTES, span.stop * BLOCK_BYTES, size))
        for span in here.blocks
        for start in range(span.first * BLOCK_BYTES, span.stop * BLOCK_BYTES, PIECE_BYTES)
    ]
    stock = PartStock(here.hash, size, pieces, load, outboard, wrong)
    try:
        with core.adding() as (group, _):
            group.send(stock.blob, stock)
            group.commit()
    finally:
        stock.close()


# -- what becomes of them


def iter_held(core: ObjectCore) -> Iterator[bytes]:
    """Give the hashes of blobs that partial blobs and uploads hold: roots of each collection. Two listings.

    Parts and pieces lie outside of `blobs/` and rely on nothing there. But a blob of which there are parts may just be
    completed, and one whose upload promises an artifact is about to be named. A piece that cannot be read holds
    nothing: whoever keeps such a promise has the bytes, and looks for markers.
    """
    for hash_, _ in core.backend.parts.iter_all():
        yield hash_
    pieces = Pieces(core.backend.bucket, core.backend.pool)
    for _, metas in pieces.iter_all():
        last = pieces.try_read(metas[-1])
        if last is not None and last.head.state == COMMITTING:
            yield last.head.hash


def retire_partials(core: ObjectCore, digests: set[bytes]) -> None:
    """Remove what was kept of blobs that are complete by now."""
    parts = core.backend.parts
    for hash_, metas in parts.iter_all():
        if hash_ in digests:
            core.backend.bucket.delete([meta.key for meta in metas])
            parts.forget(hash_)


def expire_partials(core: ObjectCore, time_ms: int) -> int:
    """Remove partial blobs to which nothing was added for `partial_age_seconds`, by the bucket's own times.

    Those that this process fills stay, and others keep theirs by what they add. What is left of those that were
    completed goes too. Gives how many were removed.
    """
    oldest_ms = time_ms - int(core.options.partial_age_seconds * 1000)
    parts = core.backend.parts
    removed = 0
    for hash_, metas in parts.iter_all():
        if hash_ in core.importing:
            continue
        is_old = max(meta.modified_ms for meta in metas) <= oldest_ms
        if is_old or core.backend.look(hash_).best is not None:
            core.backend.bucket.delete([meta.key for meta in metas])
            parts.forget(hash_)
            removed += 1
    return removed


def _joined(runs: list[Run]) -> list[Run]:
    """Put together what follows one another."""
    joined: list[tuple[int, list[BytesLike]]] = []
    stop = -1
    for start, data in runs:
        if start != stop:
            joined.append((start, []))
        joined[-1][1].append(data)
        stop = start + len(data)
    return [(start, b"".join(pieces)) for start, pieces in joined]


def _counted(numbers: list[int]) -> tuple[tuple[int, int], ...]:
    """Give the runs of rising numbers: (first, how many)."""
    runs: list[tuple[int, int]] = []
    for number in numbers:
        if runs and sum(runs[-1]) == number:
            runs[-1] = runs[-1][0], runs[-1][1] + 1
        else:
            runs.append((number, 1))
    return tuple(runs)


def _way(index: int, count: int) -> Iterator[int]:
    """Give the numbers of the pairs on the way from the root to a block."""
    number = 0
    while count > 1:
        yield number
        left = left_count(count)
        if index < left:
            number, count = number + 1, left
        else:
            number, count, index = number + left, count - left, index - left
