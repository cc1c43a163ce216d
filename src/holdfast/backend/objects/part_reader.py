"""Reading what is here of a partial blob in a bucket, each block verified up to the root before it is handed on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final, TypeVar

from holdfast.backend.log.partial_reader import not_available, require
from holdfast.backend.objects.parts import Here, Parts, spans
from holdfast.backend.objects.reader import LargeObjectReader, SmallObjectReader
from holdfast.errors import BlobNotFound, CorruptBlob, MissingChunk, RangeNotAvailable
from holdfast.ranges import ChunkRanges
from holdfast.types import BLOCK_BYTES, Hash

PIECE_BYTES: Final = 4 << 20
TRIES: Final = 4
"""How often a read begins anew when somebody changes the partial blob meanwhile, or a part of it is damaged."""

Whole = SmallObjectReader | LargeObjectReader
T = TypeVar("T")


class PartsReader:
    """Reads a partial blob: `RangeNotAvailable` says what is here where something is not. Threads may share it.

    What is here is looked up again where it is not enough, or has gone: the blob was completed then, or has expired.
    """

    def __init__(self, parts: Parts, here: Here, whole: Callable[[], Whole | None]) -> None:
        self.hash = here.hash
        self.size_bytes = here.state.size_bytes
        """A claim, as long as `is_size_proven` of the state is not true."""
        self._parts = parts
        self._here: Here | None = here
        self._whole = whole

    def read_at(self, offset_bytes: int, length_bytes: int) -> bytes:
        if not length_bytes:
            return b""
        return b"".join(self.iter_bytes(offset_bytes, offset_bytes + length_bytes))

    def iter_bytes(self, start: int, stop: int) -> Iterator[bytes]:
        """Give a range in verified pieces. What is not here is said before the first of them."""
        if start < stop:
            self.require(ChunkRanges.bytes(start, stop))
        while start < stop:
            first = start - start % BLOCK_BYTES
            end = min(first + PIECE_BYTES, stop)
            piece = self._blocks(first, min(-(-end // BLOCK_BYTES) * BLOCK_BYTES, self.size_bytes))
            yield piece[start - first : end - first]
            start = end

    def read_data(self, offset: int, length: int) -> bytes:
        """Give bytes for who verifies: `encode`."""
        return self._blocks(offset, offset + length)

    def read_pairs(self, offset: int, length: int) -> bytes:
        """Give pairs of the outboard that nobody has verified, for who verifies: `encode`."""
        return self._again(
            lambda here: self._parts.read_pairs(here, offset, length),
            lambda whole: b"" if isinstance(whole, SmallObjectReader) else whole.read_pairs(offset, length),
        )

    def require(self, ranges: ChunkRanges) -> None:
        """Raise `RangeNotAvailable` unless all these leaves (clipped to the blob) are here."""
        self._again(lambda here: require(self.hash, here.state, ranges), lambda _: None)

    def _blocks(self, start: int, stop: int) -> bytes:
        return self._again(
            lambda here: b"".join(self._verified(here, start, stop)),
            lambda whole: whole.read_at(start, stop - start),
        )

    def _verified(self, here: Here, start: int, stop: int) -> Iterator[bytes]:
        at = start
        for span in spans(here.blocks, start // BLOCK_BYTES, -(-stop // BLOCK_BYTES)):
            first, last = max(start, span.first * BLOCK_BYTES), min(stop, span.stop * BLOCK_BYTES)
            if first != at:
                break
            yield self._parts.read_span(span, first, last)
            at = last
        if at != stop:
            missing = ChunkRanges.bytes(start, stop) - here.state.have
            raise not_available(self.hash, here.state, missing)

    def _again(self, partly: Callable[[Here], T], wholly: Callable[[Whole], T]) -> T:
        """Do something with what is here, and again where that has changed."""
        for attempt in range(TRIES):
            here = self._here
            if here is None:
                whole = self._whole()
                if whole is None:
                    raise BlobNotFound(f"the partial blob {self.hash.hex()} is gone", hash=Hash(self.hash))
                return wholly(whole)
            try:
                return partly(here)
            except (CorruptBlob, MissingChunk, RangeNotAvailable):
                found = self._parts.find(self.hash)
                is_same = found is not None and found.keys == here.keys
                self._here = found
                if is_same or attempt == TRIES - 1:
                    raise
        raise AssertionError("the last attempt returns or raises")
