"""Content that waits until it is in the bucket and was looked at once more.

What comes once is kept in memory, and above a limit in a file; what lies in a file of the user's is read there again.
"""

from __future__ import annotations

import errno
import os
import tempfile
import threading
from bisect import bisect_right
from collections.abc import Iterator
from typing import IO, Final, Protocol, Self

from holdfast.errors import HoldfastError, InvalidInput, NoSpace, NotFound, PermissionDenied, Unavailable
from holdfast.sources import Rereadable
from holdfast.types import BytesLike

MEMORY_BYTES: Final = 16 << 20
PIECE_BYTES: Final = 4 << 20
PART_BYTES: Final = 250
"""What a piece in memory takes besides its bytes, so that a great many tiny ones are bounded as well."""


class Stock(Protocol):
    """Holds the bytes of blobs on their way into a bucket, and of their outboards."""

    def read(self, start: int, length: int) -> BytesLike:
        """Give bytes."""

    def iter(self, start: int, length: int) -> Iterator[BytesLike]:
        """Give a stretch in pieces of a few MiB."""

    def wrong(self, hash_: bytes) -> HoldfastError:
        """Give the error for a blob that turned out to have other bytes than it should, when it was read back."""


class Spool:
    """Grows at its end, is read anywhere; one thread appends, all may read. `NoSpace` when there is no room for it."""

    def __init__(self, memory_bytes: int = MEMORY_BYTES) -> None:
        self.size_bytes = 0
        self._limit = memory_bytes
        self._parts: dict[int, BytesLike] = {}
        """What is in memory, by where it begins; each was appended in one piece, and is read within one piece."""
        self._memory_bytes = 0
        self._file: IO[bytes] | None = None
        self._starts: list[int] = []

    def append(self, data: BytesLike) -> int:
        """Take bytes, which must not change; gives where they begin."""
        at = self.size_bytes
        if self._file is None and self._memory_bytes + len(data) + PART_BYTES <= self._limit:
            if data:
                self._parts[at] = data
                self._starts.append(at)
                self._memory_bytes += len(data) + PART_BYTES
        else:
            self._write(at, data)
        self.size_bytes += len(data)
        return at

    def read(self, start: int, length: int) -> BytesLike:
        """Give bytes of one `append`, or of several that lie in the file."""
        part = self._parts.get(start)
        if part is not None and len(part) == length:
            return part
        parts = []
        while length:
            piece = self._read_some(start, length)
            parts.append(piece)
            start += len(piece)
            length -= len(piece)
        return b"".join(parts) if len(parts) != 1 else parts[0]

    def iter(self, start: int, length: int) -> Iterator[BytesLike]:
        """Give a stretch in pieces of 4 MiB or less."""
        stop = start + length
        while start < stop:
            piece = self._read_some(start, min(PIECE_BYTES, stop - start))
            yield piece
            start += len(piece)

    def clear(self) -> None:
        """Forget what it has, to be filled anew."""
        self.close()
        self._memory_bytes = self.size_bytes = 0

    def cut(self, start: int) -> None:
        """Forget what was appended from a place on."""
        while self._starts and self._starts[-1] >= start:
            self._memory_bytes -= len(self._parts.pop(self._starts.pop())) + PART_BYTES
        if self._file is not None:
            try:
                os.ftruncate(self._file.fileno(), start)
            except OSError as error:
                raise self._failed(error) from error
        self.size_bytes = start

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def wrong(self, hash_: bytes) -> HoldfastError:
        """Give the error for a blob that is not what was appended any more."""
        return Unavailable(
            f"the temporary file of blob {hash_.hex()} gave other bytes than were written to it: nothing was"
            " stored; look at that disk"
        )

    def close(self) -> None:
        """Give its room back."""
        self._parts.clear()
        self._starts.clear()
        file, self._file = self._file, None
        if file is not None:
            file.close()

    def _read_some(self, start: int, length: int) -> BytesLike:
        index = bisect_right(self._starts, start) - 1
        if index >= 0:
            at = self._starts[index]
            part = self._parts[at]
            if start < at + len(part):
                return memoryview(part)[start - at : start - at + length]
        assert self._file is not None, "what is in no part is in the file"
        try:
            data = os.pread(self._file.fileno(), length, start)
        except OSError as error:
            raise self._failed(error) from error
        if not data:
            raise Unavailable("the temporary file of an upload is shorter than what was written to it")
        return data

    def _write(self, at: int, data: BytesLike) -> None:
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile(prefix="holdfast-", buffering=0)  # noqa: SIM115  # closed in `close`
            view = memoryview(data)
            while view:
                done = os.pwrite(self._file.fileno(), view, at)
                at, view = at + done, view[done:]
        except OSError as error:
            raise self._failed(error) from error

    @staticmethod
    def _failed(error: OSError) -> NoSpace | Unavailable:
        where = tempfile.gettempdir()
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return NoSpace(
                f"no room in {where} for what is to be uploaded: set TMPDIR to a larger disk", path=where
            )
        return Unavailable(
            f"a temporary file in {where} failed: {error.strerror}", path=where, errno=error.errno
        )


class StoppableStock:
    """Another stock, until whoever wanted it put has given up: an upload ends then, however much is left of it."""

    def __init__(self, inner: Stock, stop: threading.Event) -> None:
        self._inner = inner
        self._stop = stop

    def read(self, start: int, length: int) -> BytesLike:
        """Give bytes."""
        return self._inner.read(start, length)

    def iter(self, start: int, length: int) -> Iterator[BytesLike]:
        """Give a stretch in pieces; `Unavailable` where it is not wanted any more."""
        for piece in self._inner.iter(start, length):
            if self._stop.is_set():
                raise Unavailable("the upload was given up")
            yield piece

    def wrong(self, hash_: bytes) -> HoldfastError:
        """Give the error for other bytes than there should be."""
        return self._inner.wrong(hash_)


class SourceChanged(Unavailable):
    """A file is not any more what it was when it was hashed. Nothing of it was stored."""


class FileStock:
    """See `Stock`: a user's file, whose bytes begin at 0; the outboard behind them lies in a spool.

    It is opened for each reading, so that any number of them can wait. Whoever reads all of it verifies it.
    """

    def __init__(self, windows: Rereadable, size_bytes: int, spool: Spool, outboard_start: int) -> None:
        self._windows = windows
        self._size_bytes = size_bytes
        self._spool = spool
        self._outboard_start = outboard_start

    def read(self, start: int, length: int) -> BytesLike:
        """Give bytes."""
        return b"".join(self.iter(start, length))

    def iter(self, start: int, length: int) -> Iterator[BytesLike]:
        """Give a stretch in pieces of 4 MiB or less; `SourceChanged` where the file ends before it."""
        if start >= self._size_bytes:
            return self._spool.iter(self._outboard_start + start - self._size_bytes, length)
        return self._iter_file(start, start + length)

    def wrong(self, hash_: bytes) -> SourceChanged:
        """Give the error for a file that has other bytes than were hashed."""
        name = self._windows.name
        return SourceChanged(
            f"{name} changed while it was stored (blob {hash_.hex()}): nothing of it was stored; put it again",
            path=name,
        )

    def _iter_file(self, start: int, stop: int) -> Iterator[BytesLike]:
        name = self._windows.name
        gone = f"{name} was removed or cut off while it was stored: nothing of it was stored"
        try:
            with self._windows.reopen() as file:
                while start < stop:
                    piece = os.pread(file.fileno(), min(PIECE_BYTES, stop - start), start)
                    if not piece:
                        break
                    start += len(piece)
                    yield piece
        except (NotFound, PermissionDenied, InvalidInput) as error:
            raise SourceChanged(gone, path=name) from error
        except OSError as error:
            raise Unavailable(
                f"cannot read {name}: {error.strerror}", path=name, errno=error.errno
            ) from error
        if start < stop:
            raise SourceChanged(gone, path=name)
