"""Taking in a BAO stream: verified blocks, gathered for checkpoints. What becomes of a batch is each backend's own.

No lock and no pin is held while the stream is waited for, so that several can fill one blob, and collections go on.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Callable, Iterable
from typing import IO, Final, NamedTuple

from holdfast.bao_stream import Decoder, iter_verified
from holdfast.core import Core
from holdfast.errors import TooLarge
from holdfast.ranges import LEAF_BYTES, ChunkRanges
from holdfast.types import BLOCK_BYTES, BytesLike

CHECKPOINT_SECONDS: Final = 1.0

Run = tuple[int, BytesLike]
"""Whole verified blocks: (offset in the blob, bytes)."""


class Batch(NamedTuple):
    """What a stream brought since its last checkpoint."""

    runs: list[Run]
    pairs: list[tuple[int, bytes]]
    size_bytes: int
    is_size_proven: bool
    highest_byte: int
    """Up to where in the blob the stream has verified anything; 0 for nothing."""

    @property
    def is_whole(self) -> bool:
        """Whether it has all of the blob."""
        at = 0
        for start, data in self.runs:
            if start != at:
                return False
            at += len(data)
        return self.is_size_proven and at == self.size_bytes


class Intake(ABC):
    """One stream on its way into the store. Memory: some times what a checkpoint takes."""

    def __init__(self, core: Core, hash_: bytes, ranges: ChunkRanges | None, *, is_complete: bool) -> None:
        """`is_complete`: the blob is here, and the stream is only verified."""
        self._max_bytes = core.options.max_artifact_bytes
        self._hash = hash_
        self._is_complete = is_complete
        self._decoder = Decoder(hash_, ranges, keep_pairs=not is_complete)
        self._runs: list[Run] = []
        self._waiting_bytes = 0
        self._waiting_since = 0.0
        self._highest_byte = 0
        self._has_failed = False

    @property
    @abstractmethod
    def checkpoint_bytes(self) -> int:
        """After how much a checkpoint is due."""

    @abstractmethod
    def _checkpoint(self) -> None:
        """Make what `_take_batch` gives durable, or begin to; an error of an earlier one is raised, as `_failing`."""

    @abstractmethod
    def _finish(self) -> None:
        """Wait for all checkpoints, and make durable what is left."""

    @abstractmethod
    def _close(self) -> None:
        """Let go of everything."""

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
                self._finish()
            except BaseException as error:
                raise error from fault
        finally:
            self._close()
        if fault is not None:
            raise fault

    def _take(self, offset: int, data: bytes) -> None:
        """Keep the whole blocks among verified bytes. Fragments of blocks prove the size, and are dropped."""
        stop = offset + len(data)
        size = self._decoder.size_bytes
        assert size is not None
        if size > (limit := self._max_bytes or size):
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
            self._waiting_bytes >= self.checkpoint_bytes
            or time.monotonic() - self._waiting_since >= CHECKPOINT_SECONDS
        ):
            self._checkpoint()

    def _take_batch(self) -> Batch:
        decoder = self._decoder
        runs, self._runs, self._waiting_bytes = self._runs, [], 0
        return Batch(
            runs, decoder.take_pairs(), decoder.size_bytes or 0, decoder.is_size_proven, self._highest_byte
        )


def runs_ranges(runs: Iterable[Run]) -> ChunkRanges:
    """Give the leaves of runs, in whole blocks."""
    return ChunkRanges.union(
        ChunkRanges.bytes(start, start + -(-len(data) // BLOCK_BYTES) * BLOCK_BYTES) for start, data in runs
    )


def without(runs: Iterable[Run], have: ChunkRanges) -> list[Run]:
    """Give what of the runs is not in `have`, which consists of whole blocks."""
    left: list[Run] = []
    bounds = have.boundaries
    for start, data in runs:
        stop = start + len(data)
        first, last = start // LEAF_BYTES, -(-stop // LEAF_BYTES)
        at = bisect_right(bounds, first)
        if at == len(bounds) or bounds[at] >= last:
            if not at % 2:
                left.append((start, data))
            continue
        view = memoryview(data)
        for begin, end in ChunkRanges.leaves(first, last) - have:
            assert end is not None
            left.append((begin * LEAF_BYTES, view[begin * LEAF_BYTES - start : end * LEAF_BYTES - start]))
    return left
