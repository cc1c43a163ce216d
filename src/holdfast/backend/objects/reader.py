"""Reading blobs of a bucket by range. Nothing that comes back is trusted: every block is verified up to the root."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future
from typing import TYPE_CHECKING, Final

from holdfast import _native
from holdfast.bao import OutboardReader, outboard_bytes
from holdfast.errors import CorruptBlob, FormatError, IntegrityError, MissingChunk
from holdfast.types import BLOCK_BYTES, Hash

if TYPE_CHECKING:
    from holdfast.backend.objects.backend import ObjectBackend
    from holdfast.backend.objects.spool import Spool

PIECE_BYTES: Final = 4 << 20
"""About how much `iter_bytes` gives at a time, and asks for in one request."""
AHEAD: Final = 6
"""How many pieces are on their way at once."""
WHOLE_OUTBOARD_BYTES: Final = 1 << 20
"""An outboard up to here (of a blob of 256 MiB) is fetched whole, with the first range."""
PAGE_BYTES: Final = 256 << 10
MAX_PAGES: Final = 64


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
        for _ in range(2):  # a wrong body is asked for once more
            data = self._backend.fetch(self._hash, 0, self.size_bytes)
            if _native.blake3(data) == self._hash:
                return data
        self._backend.note_damage(self._backend.data_key(self._hash), self._hash, "other bytes")
        raise CorruptBlob(
            f"the object of blob {self._hash.hex()} holds other bytes", hash=Hash(self._hash), offset_bytes=0
        )


class LargeObjectReader:
    """A blob with an outboard. Threads may share it."""

    def __init__(self, backend: ObjectBackend, hash_: bytes, size_bytes: int) -> None:
        self.size_bytes = size_bytes
        self._backend = backend
        self._hash = hash_
        self._mutex = threading.Lock()
        self._pages: dict[int, bytes] = {}
        self._made: Spool | None = None
        """The outboard, computed from the data because the bucket's is missing or damaged."""
        self._outboard = OutboardReader(size_bytes, hash_, self.read_pairs)
        self._total = outboard_bytes(size_bytes)
        self._page_bytes = self._total if self._total <= WHOLE_OUTBOARD_BYTES else PAGE_BYTES

    def read_at(self, offset_bytes: int, length_bytes: int) -> bytes:
        if not length_bytes:
            return b""
        warm = None if self._pages else self._backend.pool.submit(self._page, 0)  # beside the data
        try:
            return self._read(offset_bytes, length_bytes)
        finally:
            if warm is not None:
                warm.cancel() or warm.exception()

    def iter_bytes(self, start: int, stop: int) -> Iterator[bytes]:
        ahead: list[Future[bytes]] = []
        try:
            at = start
            while at < stop:
                end = min((at // PIECE_BYTES + 1) * PIECE_BYTES, stop)
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

    def read_pairs(self, offset: int, length: int) -> bytes:
        """Give pairs of the outboard, for who verifies them."""
        if self._made is not None:
            return bytes(self._made.read(offset, length))
        parts = []
        while length:
            number, at = divmod(offset, self._page_bytes)
            part = self._page(number)[at : at + length]
            parts.append(part)
            offset, length = offset + len(part), length - len(part)
        return b"".join(parts)

    def _read(self, offset_bytes: int, length_bytes: int) -> bytes:
        """Fetch the blocks that a range touches, and verify them; what is wrong is asked for once more."""
        first = offset_bytes // BLOCK_BYTES
        start = first * BLOCK_BYTES
        stop = min(-(-(offset_bytes + length_bytes) // BLOCK_BYTES) * BLOCK_BYTES, self.size_bytes)
        bad = -1
        for _ in range(2):
            data = self._backend.fetch(self._hash, start, stop)
            bad = self._first_bad(data, first)
            if bad < 0:
                at = offset_bytes - start
                return data if len(data) == length_bytes else data[at : at + length_bytes]
        offset = start + bad * BLOCK_BYTES
        self._backend.note_damage(self._backend.data_key(self._hash), self._hash, "other bytes")
        raise CorruptBlob(
            f"the object of blob {self._hash.hex()} holds other bytes at {offset}",
            hash=Hash(self._hash),
            offset_bytes=offset,
        )

    def _first_bad(self, data: bytes, first_block: int) -> int:
        """Check blocks. A bad outboard is not the data's fault: it is fetched anew once, then computed."""
        try:
            return self._outboard.check(data, first_block)
        except (IntegrityError, FormatError):
            with self._mutex:
                self._pages.clear()
        try:
            return self._outboard.check(data, first_block)
        except (IntegrityError, FormatError):
            self._remake()
        return self._outboard.check(data, first_block)

    def _remake(self) -> None:
        with self._mutex:
            if self._made is None:
                self._made = self._backend.remake_outboard(self._hash, self.size_bytes)

    def _page(self, number: int) -> bytes:
        page = self._pages.get(number)
        if page is None:
            start = number * self._page_bytes
            stop = min(start + self._page_bytes, self._total)
            try:
                page = self._backend.fetch_outboard(self._hash, start, stop)
            except MissingChunk:
                self._remake()
                assert self._made is not None
                return bytes(self._made.read(start, stop - start))
            with self._mutex:
                if len(self._pages) >= MAX_PAGES:
                    self._pages.clear()
                self._pages[number] = page
        return page
