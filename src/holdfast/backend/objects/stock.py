"""A blob that lies in pieces in the bucket, on its way to become one object: read back, verified, put together.

Memory: a few pieces. Its outboard lies in a spool, as that of any blob on its way.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from holdfast import _native
from holdfast.backend.objects.spool import Spool
from holdfast.backend.objects.waiting import Waiting
from holdfast.bao import OutboardBuilder
from holdfast.errors import HoldfastError
from holdfast.types import BLOCK_BYTES, BytesLike

AHEAD = 3
"""How many pieces are on their way besides the one that is given."""


class PartStock:
    """See `spool.Stock`: the blob's bytes begin at 0, its outboard behind them."""

    def __init__(
        self,
        hash_: bytes,
        size_bytes: int,
        pieces: Sequence[tuple[int, int]],
        load: Callable[[int, int], bytes],
        outboard: Callable[[], Iterable[bytes]],
        wrong: Callable[[], HoldfastError],
    ) -> None:
        """`pieces`: (start, stop) of each, in order and without a gap; `load` reads one, or a part of one."""
        self.blob = Waiting(hash_, size_bytes, 0, size_bytes)
        self._pieces = pieces
        self._load = load
        self._outboard = outboard
        self._wrong = wrong
        self._spool: Spool | None = None
        self._builder: OutboardBuilder | None = None
        """Of a blob that was read through: its outboard comes of itself."""

    def read(self, start: int, length: int) -> BytesLike:
        """Give bytes; all of the blob at once only if they are right."""
        return b"".join(self.iter(start, length))

    def iter(self, start: int, length: int) -> Iterator[BytesLike]:
        """Give a stretch of the blob, or of its outboard."""
        size = self.blob.size_bytes
        if start >= size > BLOCK_BYTES:
            return self._made().iter(start - size, length)
        stretch = self._iter_data(start, start + length)
        return self._watched(stretch) if length == size else stretch

    def _watched(self, pieces: Iterator[bytes]) -> Iterator[BytesLike]:
        """Hash all of the blob on its way; an error before its last piece where it is another one."""
        self._forget_builder()
        hasher, builder = _native.BlobHasher(), OutboardBuilder()
        try:
            held: BytesLike = b""
            for piece in pieces:
                if held:
                    yield held
                hasher.update(piece)
                builder.feed(hasher.take_groups())
                held = piece
            root, rest = hasher.finish()
            if root != self.blob.hash:
                raise self._wrong()
            builder.feed(rest)
        except BaseException:
            builder.close()
            raise
        self._builder = builder
        yield held

    def _forget_builder(self) -> None:
        builder, self._builder = self._builder, None
        if builder is not None:
            builder.close()

    def _iter_data(self, start: int, stop: int) -> Iterator[bytes]:
        wanted = [
            (max(first, start), min(last, stop))
            for first, last in self._pieces
            if last > start and first < stop
        ]
        ahead: deque[Future[bytes]] = deque()
        # Threads of its own: those of the bucket may all be waiting for such pieces.
        with ThreadPoolExecutor(AHEAD + 1, thread_name_prefix="holdfast-parts") as pool:
            try:
                for piece in wanted:
                    ahead.append(pool.submit(self._load, *piece))
                    if len(ahead) > AHEAD:
                        yield ahead.popleft().result()
                while ahead:
                    yield ahead.popleft().result()
            finally:
                for future in ahead:
                    future.cancel()

    def _made(self) -> Spool:
        if self._spool is None:
            spool = Spool()
            try:
                builder = self._builder
                for part in self._outboard() if builder is None else builder.finish(self.blob.size_bytes):
                    spool.append(part)
            except BaseException:
                spool.close()
                raise
            self._spool = spool
        return self._spool

    def wrong(self, hash_: bytes) -> HoldfastError:
        """Give the error for pieces that are right each, and do not make the blob."""
        return self._wrong()

    def close(self) -> None:
        """Give its room back."""
        self._forget_builder()
        if self._spool is not None:
            self._spool.close()
