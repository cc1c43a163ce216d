"""Reading blobs of a bucket by range. Nothing that comes back is trusted: every block is verified up to the root.

What proves a range is known by its place before any byte came, so data and pairs are asked for at the same time. Short
reads go through the cache of verified blocks; long ones stream past it.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator
from concurrent.futures import Future
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from holdfast import _native
from holdfast.bao import CACHED_PIECES, PAIR_BYTES, PIECE_BLOCKS, OutboardReader, outboard_bytes, pair_spans
from holdfast.errors import FormatError, IntegrityError, MissingChunk
from holdfast.types import BLOCK_BYTES

if TYPE_CHECKING:
    from holdfast.backend.objects.backend import ObjectBackend
    from holdfast.backend.objects.spool import Spool

PIECE_BYTES: Final = 4 << 20
"""About how much `iter_bytes` gives at a time, and asks for in one request."""
AHEAD: Final = 6
"""How many pieces are on their way at once."""
CACHED_READ_BYTES: Final = 1 << 20
"""Reads up to here go through the cache."""
WHOLE_OUTBOARD_BYTES: Final = 1 << 20
"""An outboard up to here (of a blob of 256 MiB) is fetched whole, with the first range."""
PAGE_BYTES: Final = 256 << 10
CACHED_PAGES: Final = 8
GAP_BLOCKS: Final = 16
"""Blocks that are in the cache, and are fetched again all the same rather than with one more request."""
WHOLE: Final = -1
"""Under this number a whole outboard is in the cache; a part that begins with pair n stands under -2 - n."""


class SmallObjectReader:
    """A blob of one block: its object is fetched and verified whole."""

    def __init__(self, backend: ObjectBackend, hash_: bytes, size_bytes: int) -> None:
        self.size_bytes = size_bytes
        self._backend = backend
        self._hash = hash_

    def read_at(self, offset_bytes: int, length_bytes: int) -> bytes:
        return self._whole()[offset_bytes : offset_bytes + length_bytes]

    def iter_bytes(self, start: int, stop: int) -> Iterator[bytes]:
        if stop > start:
            yield self.read_at(start, stop - start)

    def _whole(self) -> bytes:
        cache = self._backend.cache
        found = cache.get(self._hash, (0,))
        if found:
            return found[0]
        for data in cache.load(self._hash, (0,)).values():
            if _native.blake3(data) == self._hash:
                cache.put(self._hash, {0: data}, is_new=False)
                return data
            cache.drop(self._hash, (0,))
        for _ in range(2):  # a wrong body is asked for once more
            data = self._backend.fetch(self._hash, 0, self.size_bytes)
            if _native.blake3(data) == self._hash:
                cache.put(self._hash, {0: data})
                return data
        raise self._backend.damaged(self._hash, 0)


class LargeObjectReader:
    """A blob with an outboard. Threads may share it; the backend keeps some that were used last."""

    def __init__(self, backend: ObjectBackend, hash_: bytes, size_bytes: int) -> None:
        self.size_bytes = size_bytes
        self._backend = backend
        self._hash = hash_
        self._mutex = threading.Lock()
        self._pairs: dict[tuple[int, int], Future[bytes]] = {}
        """Pairs that were asked for and are not verified yet."""
        self._fresh: dict[int, bytes] = {}
        """Pairs that came from the bucket, by number in the cache: kept there once they are verified."""
        self._pieces: OrderedDict[int, None] = OrderedDict()
        """Pieces of the tree that `OutboardReader` has verified and still holds."""
        self._made: Spool | None = None
        """The outboard, computed from the data because the bucket's is missing or damaged."""
        self._total = outboard_bytes(size_bytes)
        self._is_short = self._total <= WHOLE_OUTBOARD_BYTES
        self._use_file = True
        self._page = lru_cache(CACHED_PAGES)(self._read_page)
        self._outboard = OutboardReader(size_bytes, hash_, self.read_pairs)

    # -- the blob

    def read_at(self, offset_bytes: int, length_bytes: int) -> bytes:
        if not length_bytes:
            return b""
        first = offset_bytes // BLOCK_BYTES
        stop = -(-(offset_bytes + length_bytes) // BLOCK_BYTES)
        if length_bytes > CACHED_READ_BYTES:
            self._ask_for_pairs(first, stop)
            return self._read(offset_bytes, length_bytes)
        blocks = self._backend.cache.get(self._hash, range(first, stop))
        if len(blocks) != stop - first:
            self._bring(blocks, first, stop)
        at = offset_bytes - first * BLOCK_BYTES
        if stop - first == 1:
            return blocks[first][at : at + length_bytes]
        parts = [blocks[number] for number in range(first, stop)]
        parts[0] = parts[0][at:]
        parts[-1] = parts[-1][: offset_bytes + length_bytes - (stop - 1) * BLOCK_BYTES]
        return b"".join(parts)

    def iter_bytes(self, start: int, stop: int) -> Iterator[bytes]:
        if stop - start <= CACHED_READ_BYTES:
            if stop > start:
                yield self.read_at(start, stop - start)
            return
        if self._backend.is_in_pool():
            for at in range(start, stop, PIECE_BYTES):
                yield self._read(at, min(PIECE_BYTES, stop - at))
            return
        ahead: list[Future[bytes]] = []
        try:
            at = start
            while at < stop:
                end = min((at // PIECE_BYTES + 1) * PIECE_BYTES, stop)
                # first: a task of the pool may wait for one that was given to it earlier, and for no other
                self._ask_for_pairs(at // BLOCK_BYTES, -(-end // BLOCK_BYTES))
                ahead.append(self._backend.pool.submit(self._read, at, end - at))
                at = end
                if len(ahead) >= AHEAD:
                    yield ahead.pop(0).result()
            while ahead:
                yield ahead.pop(0).result()
        finally:
            for future in ahead:
                future.cancel()

    def read_data(self, offset: int, length: int) -> bytes:
        """Give bytes as they come from the bucket, for who verifies them."""
        return self._backend.fetch(self._hash, offset, offset + length)

    def _bring(self, blocks: dict[int, bytes], first: int, stop: int) -> None:
        """Add the blocks that are not in memory: from the file, then from the bucket, all at once; verify them."""
        self._ask_for_pairs(first, stop)
        cache = self._backend.cache
        lacking = [number for number in range(first, stop) if number not in blocks]
        if self._use_file:
            found = cache.load(self._hash, lacking)
            kept = {
                number: data
                for number, data in found.items()
                if len(data) == self._length(number) and self._first_bad(data, number) < 0
            }
            if len(kept) != len(found):
                cache.drop(self._hash, found.keys() - kept.keys())
            cache.put(self._hash, kept, is_new=False)
            blocks.update(kept)
            if kept or len(lacking) != stop - first:
                lacking = [number for number in lacking if number not in blocks]
        runs = _runs(lacking)
        if len(runs) > 1 and not self._backend.is_in_pool():
            futures = [self._backend.pool.submit(self._fetch, *run) for run in runs[1:]]
            bodies = [self._fetch(*runs[0]), *(future.result() for future in futures)]
        else:
            bodies = [self._fetch(*run) for run in runs]
        for run, body in zip(runs, bodies, strict=True):
            data = self._verify(body, *run)
            start = run[0] * BLOCK_BYTES
            new = {
                number: data[number * BLOCK_BYTES - start : (number + 1) * BLOCK_BYTES - start]
                for number in range(*run)
            }
            cache.put(self._hash, new)
            blocks.update(new)

    def _read(self, offset_bytes: int, length_bytes: int) -> bytes:
        """Fetch the blocks that a range touches, and verify them."""
        first, stop = offset_bytes // BLOCK_BYTES, -(-(offset_bytes + length_bytes) // BLOCK_BYTES)
        data = self._verify(self._fetch(first, stop), first, stop)
        at = offset_bytes - first * BLOCK_BYTES
        return data if len(data) == length_bytes else data[at : at + length_bytes]

    def _fetch(self, first: int, stop: int) -> bytes:
        return self._backend.fetch(self._hash, first * BLOCK_BYTES, min(stop * BLOCK_BYTES, self.size_bytes))

    def _length(self, number: int) -> int:
        return min(BLOCK_BYTES, self.size_bytes - number * BLOCK_BYTES)

    def _verify(self, data: bytes, first: int, stop: int) -> bytes:
        """Check blocks; what is wrong is asked for once more."""
        bad = self._first_bad(data, first)
        if bad >= 0:
            data = self._fetch(first, stop)
            bad = self._first_bad(data, first)
        if bad >= 0:
            raise self._backend.damaged(self._hash, (first + bad) * BLOCK_BYTES)
        return data

    # -- what proves it

    def read_pairs(self, offset: int, length: int) -> bytes:
        """Give pairs of the outboard, for who verifies them."""
        if self._made is not None:
            return bytes(self._made.read(offset, length))
        span = (0, self._total) if self._is_short else (offset, length)
        with self._mutex:
            future = self._pairs.get(span)
        try:
            if future is not None:
                return future.result()[offset - span[0] : offset - span[0] + length]
            if not self._is_short:
                return self._from_pages(offset, length)
            future = Future()  # here and now: a task of the pool may wait for no later one
            future.set_result(self._load_pairs(*span))
            with self._mutex:
                self._pairs[span] = future
            return self.read_pairs(offset, length)
        except MissingChunk:
            self._remake()
            return self.read_pairs(offset, length)
        except BaseException:
            with self._mutex:
                self._pairs.pop(span, None)
            raise

    def _from_pages(self, offset: int, length: int) -> bytes:
        """Give pairs that nobody asked for before: whoever reads the outboard in order."""
        parts = []
        while length:
            number, at = divmod(offset, PAGE_BYTES)
            part = self._page(number)[at : at + length]
            parts.append(part)
            offset, length = offset + len(part), length - len(part)
        return b"".join(parts)

    def _read_page(self, number: int) -> bytes:
        start = number * PAGE_BYTES
        return self._backend.fetch_outboard(self._hash, start, min(start + PAGE_BYTES, self._total))

    def _ask_for_pairs(self, first: int, stop: int) -> None:
        """Ask for the pairs that blocks need, if they are not known, without waiting."""
        if self._made is not None or self._backend.is_in_pool():
            return
        pieces = range(first // PIECE_BLOCKS, (stop - 1) // PIECE_BLOCKS + 1)
        with self._mutex:
            if all(piece in self._pieces for piece in pieces):
                return
            if self._is_short:
                spans = [(0, self._total)]
            else:
                spans = [
                    span
                    for piece in pieces
                    if piece not in self._pieces
                    for span in pair_spans(self.size_bytes, piece * PIECE_BLOCKS, 1)
                ]
            for span in spans:
                if span not in self._pairs:
                    self._pairs[span] = self._backend.pool.submit(self._load_pairs, *span)

    def _load_pairs(self, offset: int, length: int) -> bytes:
        number = WHOLE if self._is_short else -2 - offset // PAIR_BYTES
        if self._use_file:
            kept = self._backend.cache.load(self._hash, (number,)).get(number, b"")
            if len(kept) == length:
                return kept
            if kept:
                self._backend.cache.drop(self._hash, (number,))
        try:
            pairs = self._backend.fetch_outboard(self._hash, offset, offset + length)
        except BaseException:
            with self._mutex:
                self._pairs.pop((offset, length), None)  # an old error is no answer to who reads later
            raise
        with self._mutex:
            self._fresh[number] = pairs
        return pairs

    def _first_bad(self, data: bytes, first_block: int) -> int:
        """Check blocks. A bad outboard is not the data's fault: it is fetched anew once, then computed."""
        try:
            return self._check(data, first_block)
        except (IntegrityError, FormatError):
            self._forget_pairs()
        try:
            return self._check(data, first_block)
        except (IntegrityError, FormatError):
            self._remake()
        return self._check(data, first_block)

    def _check(self, data: bytes, first_block: int) -> int:
        bad = self._outboard.check(data, first_block)
        stop = first_block + max(1, -(-len(data) // BLOCK_BYTES))
        with self._mutex:
            for piece in range(first_block // PIECE_BLOCKS, (stop - 1) // PIECE_BLOCKS + 1):
                self._pieces[piece] = None
                self._pieces.move_to_end(piece)
                if not self._is_short:
                    for span in pair_spans(self.size_bytes, piece * PIECE_BLOCKS, 1):
                        self._pairs.pop(span, None)
            while len(self._pieces) > CACHED_PIECES:
                self._pieces.popitem(last=False)
            fresh, self._fresh = self._fresh, {}
        if fresh:
            self._backend.cache.put(self._hash, fresh)
        return bad

    def _forget_pairs(self) -> None:
        """Ask the bucket, and not the file, for what proved to be wrong."""
        with self._mutex:
            wrong = [WHOLE if self._is_short else -2 - offset // PAIR_BYTES for offset, _ in self._pairs]
            self._pairs.clear()
            self._fresh.clear()
            self._page.cache_clear()
            self._use_file = False
        self._backend.cache.drop(self._hash, wrong or (WHOLE,))

    def _remake(self) -> None:
        with self._mutex:
            if self._made is None:
                self._made = self._backend.remake_outboard(self._hash, self.size_bytes)


def _runs(numbers: list[int]) -> list[tuple[int, int]]:
    """Merge rising numbers into half-open runs, small gaps included."""
    runs: list[tuple[int, int]] = []
    for number in numbers:
        if runs and number - runs[-1][1] <= GAP_BLOCKS:
            runs[-1] = (runs[-1][0], number + 1)
        else:
            runs.append((number, number + 1))
    return runs
