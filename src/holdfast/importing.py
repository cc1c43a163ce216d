"""Bringing a BAO stream into the store: what is verified is kept, whatever becomes of the rest.

While a stream runs, a checkpoint every few megabytes, or once a second, makes durable what came: see `filling`. No
lock and no pin is held while the stream is waited for, so that several can fill one blob, and collections go on.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import IO, Final

from holdfast.backend.log.partial import Partial
from holdfast.backend.log.session import LEASE_RAW
from holdfast.bao_stream import Decoder, iter_verified
from holdfast.errors import CorruptBlob, TooLarge
from holdfast.filling import Batch, Filling, Run
from holdfast.log_core import LogCore
from holdfast.ranges import ChunkRanges
from holdfast.types import BLOCK_BYTES, BytesLike, now_ms

log = logging.getLogger("holdfast")

ROOT_TRIES: Final = 5
CHECKPOINT_BYTES: Final = 7 << 20
"""One checkpoint is written while the next is gathered: two of them, and the end of a chunk, are below 16 MiB."""
CHECKPOINT_SECONDS: Final = 1.0


class Import:
    """One stream on its way into the store. Memory: about ten times `CHECKPOINT_BYTES`."""

    def __init__(self, core: LogCore, hash_: bytes, ranges: ChunkRanges | None) -> None:
        self._core = core
        self._hash = hash_
        self._is_complete = False
        with core.backend.operation():
            self._look()
        self._decoder = Decoder(hash_, ranges, keep_pairs=not self._is_complete)
        self._filling = Filling(core, hash_, self._look)
        self._partial: Partial | None = None
        self._runs: list[Run] = []
        self._waiting_bytes = 0
        self._waiting_since = 0.0
        self._highest_byte = 0
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="holdfast-import")
        self._under_way: Future[None] | None = None
        self._has_failed = False

    def run(self, source: IO[bytes] | Iterable[BytesLike], watch: Callable[[int, int | None], None]) -> None:
        """Take the stream in. An error of the stream, or of its source, is raised after what came is durable."""
        fault: BaseException | None = None
        try:
            try:
                for offset, data in iter_verified(self._decoder, source):
                    self._take(offset, data)
                    watch(len(data), self._decoder.size_bytes)
            except BaseException as error:  # raised below
                if self._has_failed:
                    raise
                fault = error
            try:
                self._wait()
                if not self._is_complete:
                    self._checkpoint(self._take_batch(), last=True)
            except BaseException as error:
                raise error from fault
        finally:
            self._worker.shutdown()
            self._filling.close()
            if self._partial is not None:
                self._partial.close()
        if fault is not None:
            raise fault

    def _take(self, offset: int, data: bytes) -> None:
        """Keep the whole blocks among verified bytes. Fragments of blocks prove the size, and are dropped."""
        stop = offset + len(data)
        size = self._decoder.size_bytes
        assert size is not None
        if size > (limit := self._core.options.max_artifact_bytes or size):
            raise TooLarge(
                f"the stream is of a blob of {size} bytes, more than the {limit} that max_artifact_bytes allows",
                limit_bytes=limit,
            )
        self._highest_byte = max(self._highest_byte, stop)
        if self._is_complete:
            return
        first = -(-offset // BLOCK_BYTES) * BLOCK_BYTES
        end = stop if stop == size else stop - stop % BLOCK_BYTES
        if first >= end:
            return
        if not self._runs:
            self._waiting_since = time.monotonic()
        self._runs.append((first, data if end - first == len(data) else data[first - offset : end - offset]))
        self._waiting_bytes += end - first
        if (
            self._waiting_bytes >= CHECKPOINT_BYTES
            or time.monotonic() - self._waiting_since >= CHECKPOINT_SECONDS
        ):
            self._wait()
            if not self._is_complete:
                self._under_way = self._worker.submit(self._checkpoint, self._take_batch())

    def _take_batch(self) -> Batch:
        decoder = self._decoder
        runs, self._runs, self._waiting_bytes = self._runs, [], 0
        return Batch(
            runs, decoder.take_pairs(), decoder.size_bytes or 0, decoder.is_size_proven, self._highest_byte
        )

    def _wait(self) -> None:
        under_way, self._under_way = self._under_way, None
        if under_way is not None:
            try:
                under_way.result()
            except BaseException:
                self._has_failed = True
                raise

    def _checkpoint(self, batch: Batch, *, last: bool = False) -> None:
        """Make a batch durable, in the partial blob, or, of one that came whole, as a blob at once."""
        core = self._core
        with core.backend.operation():
            if last and self._partial is None and self._is_whole(batch):
                self._put(batch)
                return
            if not batch.runs and not self._filling.carry and not batch.is_size_proven:
                return  # nothing came that is worth a name
            while not self._is_complete:
                if self._partial is None:
                    self._partial = core.backend.partials.open(self._hash, now_ms())
                with self._partial.locked() as is_here:
                    if is_here:
                        self._filling.store(self._partial, batch, last=last)
                        return
                # Another one completed it meanwhile, or it had expired and was removed before we had it open.
                self._partial.close()
                self._partial = None
                self._look()

    def _look(self) -> None:
        """See whether the blob is here, all of it: then it is kept, and the stream only verified from here on.

        The caller has pinned. A collection that runs hears of it before the partial blob, which kept the pieces, goes.
        """
        if self._core.catalog.claim(self._hash) is not None:
            self._is_complete = True
            self._core.keep(self._hash, LEASE_RAW)  # until it is named

    def _is_whole(self, batch: Batch) -> bool:
        at = 0
        for start, data in batch.runs:
            if start != at:
                return False
            at += len(data)
        return batch.is_size_proven and at == batch.size_bytes

    def _put(self, batch: Batch) -> None:
        """Store a blob of which all came before the first checkpoint was due."""
        core = self._core
        with core.adding() as (group, ingest):
            stored = ingest.add(iter([data for _, data in batch.runs]))
            assert stored.hash == self._hash, "what was verified has another hash"
            if not group.is_empty:
                group.commit()
        self._look()
        retire_leftover(core, self._hash)


def retire_leftover(core: LogCore, hash_: bytes) -> None:
    """Remove the partial blob of one that is complete."""
    partials = core.backend.partials
    if partials.find(hash_) is None:
        return
    partial = partials.open(hash_, now_ms())
    try:
        with partial.locked() as is_here:
            if is_here:
                partial.retire()
    finally:
        partial.close()


def iter_roots(core: LogCore) -> Iterator[list[bytes]]:
    """Give the hashes of all payloads in the log that partial blobs rely on, in batches: roots of each collection.

    They are read from the partial blobs themselves, so a catalog that was lost forgets none. A list that is damaged
    stops nobody, unlike other roots: its partial blob begins anew, whatever is kept, by a further transfer
    (docs/decisions/012). It gives what can be read of it.
    """
    partials = core.backend.partials
    for digest in partials.hashes():
        for attempt in range(ROOT_TRIES):
            try:
                yield from partials.chunks(digest)
                break
            except FileNotFoundError:  # completed meanwhile: the blob itself is there
                break
            except CorruptBlob as error:  # somebody may be writing it just now
                if attempt == ROOT_TRIES - 1:
                    log.warning("%s", error)
                time.sleep(0.01)


def expire_partials(core: LogCore, now_ms: int) -> int:
    """Remove partial blobs that nobody has open and to which nothing was added for `partial_age_seconds`.

    What is left of those that were completed goes too. Gives how many; what they had in the log is garbage then.
    """
    oldest_ms = now_ms - int(core.options.partial_age_seconds * 1000)
    removed = 0
    for digest in core.backend.partials.hashes():
        is_complete = core.catalog.find_blob(digest) is not None
        removed += core.backend.partials.remove(
            digest,
            lambda state, done=is_complete: done or state is None or state.written_ms <= oldest_ms,  # type: ignore[misc]
        )
    return removed
