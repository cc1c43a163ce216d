"""Bringing a BAO stream into the store: what is verified is kept, whatever becomes of the rest.

While a stream runs (`intake`), a checkpoint every few megabytes, or once a second, makes durable what came: see
`filling`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Final

from holdfast.backend.log.partial import Partial
from holdfast.backend.log.partial_state import PartialState
from holdfast.backend.log.session import LEASE_RAW
from holdfast.errors import CorruptBlob
from holdfast.filling import Filling
from holdfast.intake import Batch, Intake
from holdfast.log_core import LogCore
from holdfast.ranges import ChunkRanges
from holdfast.types import now_ms

log = logging.getLogger("holdfast")

ROOT_TRIES: Final = 5
CHECKPOINT_BYTES: Final = 7 << 20
"""One checkpoint is written while the next is gathered: two of them, and the end of a chunk, are below 16 MiB."""


class Import(Intake):
    """One stream on its way into the log. Memory: about ten times `CHECKPOINT_BYTES`."""

    def __init__(self, core: LogCore, hash_: bytes, ranges: ChunkRanges | None) -> None:
        self._core = core
        self._hash = hash_
        self._is_complete = False
        with core.backend.operation():
            self._look()
        super().__init__(core, hash_, ranges, is_complete=self._is_complete)
        self._filling = Filling(core, hash_, self._completed)
        self._partial: Partial | None = None
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="holdfast-import")
        self._under_way: Future[None] | None = None

    @property
    def checkpoint_bytes(self) -> int:
        return CHECKPOINT_BYTES

    def _checkpoint(self) -> None:
        self._wait()
        if not self._is_complete:
            self._under_way = self._worker.submit(self._store, self._take_batch())

    def _finish(self) -> None:
        self._wait()
        if not self._is_complete:
            self._store(self._take_batch(), last=True)

    def _close(self) -> None:
        self._worker.shutdown()
        self._filling.close()
        if self._partial is not None:
            self._partial.close()

    def _wait(self) -> None:
        under_way, self._under_way = self._under_way, None
        if under_way is not None:
            try:
                under_way.result()
            except BaseException:
                self._has_failed = True
                raise

    def _store(self, batch: Batch, *, last: bool = False) -> None:
        """Make a batch durable, in the partial blob, or, of one that came whole, as a blob at once."""
        core = self._core
        with core.backend.operation():
            if last and self._partial is None and batch.is_whole:
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
        core, hash_ = self._core, self._hash
        row = core.catalog.claim(hash_)
        if row is not None and core.is_whole(row):
            self._completed()

    def _completed(self) -> None:
        """It is here: keep it until it is named."""
        self._is_complete = True
        self._core.keep(self._hash, LEASE_RAW)

    def _put(self, batch: Batch) -> None:
        """Store a blob of which all came before the first checkpoint was due."""
        core = self._core
        with core.adding() as (group, ingest):
            stored = ingest.add(iter([data for _, data in batch.runs]))
            assert stored.hash == self._hash, "what was verified has another hash"
            if not group.is_empty:
                group.commit()
            self._completed()
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

    def is_whole(digest: bytes) -> bool:
        row = core.catalog.find_blob(digest)
        return row is not None and core.is_whole(row)

    def is_over(is_complete: bool, state: PartialState | None) -> bool:
        return is_complete or state is None or state.written_ms <= oldest_ms

    return sum(
        core.backend.partials.remove(digest, partial(is_over, is_whole(digest)))
        for digest in core.backend.partials.hashes()
    )
