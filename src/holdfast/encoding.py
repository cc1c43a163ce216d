"""BAO streams of blobs that are here, wholly or in part: what is sent was verified, whatever the disk holds."""

from __future__ import annotations

import tempfile
from collections import OrderedDict
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, suppress
from typing import IO, Final

from holdfast import _native, bao_stream
from holdfast.bao import OutboardBuilder
from holdfast.bao_stream import ReadAt
from holdfast.core import MENDABLE, Core, Reader, TreeReader, has_tree, is_partial
from holdfast.errors import BlobNotFound, CorruptBlob, IntegrityError
from holdfast.ranges import ChunkRanges
from holdfast.types import BLOCK_BYTES, BytesLike, Hash

OPEN_BLOBS: Final = 4
"""How many large blobs are kept open, with 20 MB or so of what was looked up in each."""
SPOOLED_BYTES: Final = 8 << 20
"""An outboard that is computed anew lies in a temporary file above this (a blob of 2 GiB)."""


class Encoding:
    """The room of encoding. Keeps the blobs that were encoded last open, so that one more range of them is cheap."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._open: OrderedDict[tuple[bytes, int], TreeReader] = OrderedDict()

    def reader(self, hash: Hash, ranges: ChunkRanges | None) -> Reader:
        """Open a blob for who has pinned. `RangeNotAvailable` for what is not here of a partial one."""
        core = self._core
        try:
            row = core.claim(hash)
        except BlobNotFound:
            reader = core.reader(hash)
            if is_partial(reader):
                reader.require(ChunkRanges.all() if ranges is None else ranges)
            return reader
        if row.size <= BLOCK_BYTES:
            return core.block_reader(row)
        key = hash.digest, row.location
        found = self._open.pop(key, None) or core.tree_reader(row)
        if len(self._open) >= OPEN_BLOBS:
            with suppress(KeyError):  # another thread may take the last one
                self._open.popitem(last=False)
        self._open[key] = found
        return found

    def forget(self, hash: Hash) -> None:
        """Open a blob anew the next time."""
        for key in list(self._open):
            if key[0] == hash.digest:
                self._open.pop(key, None)


class BaoStream(Iterator[bytes]):
    """The stream of one blob, in pieces of about 1 MiB. Pins what it reads before it looks it up, until its end.

    What cannot be read as it lies is read otherwise, from the same place in the stream on: another copy of a chunk,
    an outboard computed from the data. Only what no copy has right is an error.
    """

    def __init__(self, core: Core, encoding: Encoding, hash: Hash, ranges: ChunkRanges | None) -> None:
        self._core = core
        self._encoding = encoding
        self._hash = hash
        self._ranges = ranges
        self._given = 0
        self._is_careful = False
        self._outboard: _Outboard | None = None
        self._pairs = _Pairs()
        self._pin: AbstractContextManager[None] | None = core.operation()
        self._pin.__enter__()
        try:
            self._reader = encoding.reader(hash, ranges)
            self.size_bytes = self._reader.size_bytes
            self._pieces = self._encode()
        except BaseException:
            self.close()
            raise

    def __next__(self) -> bytes:
        try:
            self._core.check()
            piece = self._next()
            self._given += len(piece)
            return piece
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Rely on it no more. Harmless when done twice."""
        pin, self._pin = self._pin, None
        if pin is not None:
            pin.__exit__(None, None, None)
            if self._outboard is not None:
                self._outboard.close()

    def __del__(self) -> None:
        with suppress(Exception):  # at the end of the interpreter nothing is there to be told
            self.close()

    def _encode(self) -> Iterator[bytes]:
        reader = self._reader
        data: ReadAt = reader.read_at
        if has_tree(reader):
            if not self._is_careful:
                data = reader.read_data
            if not is_partial(reader) and (self._ranges is None or self._ranges.is_open):
                data = _Ahead(data, self.size_bytes, self._core.pool).read
            self._pairs.read = reader.read_pairs if self._outboard is None else self._outboard.read
        return bao_stream.encode(reader.size_bytes, self._hash.digest, data, self._pairs, self._ranges)

    def _next(self) -> bytes:
        while True:
            try:
                return next(self._pieces)
            except MENDABLE as error:
                self._core.mend(error)
                self._encoding.forget(self._hash)
                self._reader = self._encoding.reader(self._hash, self._ranges)
            except IntegrityError as error:
                self._go_round(error)
            self._pieces = _skipping(self._encode(), self._given)

    def _go_round(self, error: IntegrityError) -> None:
        """Read otherwise what was wrong; the error itself where that is done already."""
        reader = self._reader
        if not has_tree(reader) or is_partial(reader):
            raise error
        if error is self._pairs.error or error.evidence.get("part") == "outboard":
            if self._outboard is not None:
                raise error
            self._outboard = _Outboard(reader, self._hash.digest)
        elif self._is_careful:
            raise error
        self._is_careful = True


class _Pairs:
    """Reads pairs of the outboard, and remembers what went wrong with that."""

    def __init__(self) -> None:
        self.read: ReadAt = _no_pairs
        self.error: IntegrityError | None = None

    def __call__(self, offset: int, length: int) -> BytesLike:
        try:
            return self.read(offset, length)
        except IntegrityError as error:
            self.error = error
            raise


class _Ahead:
    """Reads what probably comes next while a piece is verified: a thread of the pool is always one piece ahead."""

    def __init__(self, read: ReadAt, size_bytes: int, pool: ThreadPoolExecutor) -> None:
        self._read = read
        self._size = size_bytes
        self._pool = pool
        self._next: tuple[int, int, Future[BytesLike]] | None = None

    def read(self, offset: int, length: int) -> BytesLike:
        ahead, self._next = self._next, None
        found = ahead[2].result() if ahead is not None else b""  # also one in vain: nobody reads for nobody
        more = min(length, self._size - offset - length)
        if more > 0 and length == bao_stream.PIECE_BYTES:
            behind = offset + length
            self._next = behind, more, self._pool.submit(self._read, behind, more)
        return found if ahead is not None and ahead[:2] == (offset, length) else self._read(offset, length)


class _Outboard:
    """An outboard computed from the data of a blob, which is verified on the way."""

    def __init__(self, reader: Reader, root: bytes) -> None:
        self._file: IO[bytes] = tempfile.SpooledTemporaryFile(SPOOLED_BYTES)  # noqa: SIM115  # closed in `close`
        try:
            self._fill(reader, root)
        except BaseException:
            self.close()
            raise

    def _fill(self, reader: Reader, root: bytes) -> None:
        hasher = _native.BlobHasher()
        with OutboardBuilder() as builder:
            for piece in reader.iter_bytes(0, reader.size_bytes):
                hasher.update(piece)
                builder.feed(hasher.take_groups())
            found, rest = hasher.finish()
            if found != root:
                raise CorruptBlob(f"the chunks of blob {root.hex()} do not make it up", hash=Hash(root))
            builder.feed(rest)
            for part in builder.finish(reader.size_bytes):
                self._file.write(part)

    def read(self, offset: int, length: int) -> bytes:
        self._file.seek(offset)
        return self._file.read(length)

    def close(self) -> None:
        """Give its room back."""
        self._file.close()


def _no_pairs(offset: int, length: int) -> BytesLike:
    raise AssertionError("a blob of one block has no outboard")


def _skipping(pieces: Iterator[bytes], count: int) -> Iterator[bytes]:
    """Leave out the first `count` bytes."""
    for piece in pieces:
        if count < len(piece):
            yield piece[count:] if count else piece
        count = max(0, count - len(piece))
