"""What can be put: paths, bytes, binary files, iterables; all read as windows of bytes.

What is the caller's own is read in the caller's thread; of a path, the next window is read while one is stored.

A window is never changed after it was given. What is stored is what was read: a file that changes meanwhile
gives the bytes that were read, under their own hash.
"""

from __future__ import annotations

import errno
import io
import os
import select
import stat
import time
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from itertools import chain
from typing import IO, Any, Final, cast

from holdfast.errors import InvalidInput, PermissionDenied, SourceNotFound, Unavailable
from holdfast.types import BytesLike, Source

WINDOW_BYTES: Final = 4 << 20
_RETRY_SECONDS: Final = 0.01


class Rereadable(Iterator[BytesLike], ABC):
    """The windows of a file, which who needs its bytes twice can read again."""

    name: str
    """The file, as people know it."""
    _windows: Iterator[BytesLike]

    def __next__(self) -> BytesLike:
        return next(self._windows)

    def put_back(self, window: BytesLike) -> None:
        """Give it next once more."""
        self._windows = chain((window,), self._windows)

    @abstractmethod
    def size_bytes(self) -> int:
        """Give its size by now; 0 where that is not known."""

    @abstractmethod
    def again(self) -> Rereadable:
        """Begin anew."""

    @abstractmethod
    def reopen(self) -> io.FileIO:
        """Give the file, the caller's to close, for reading at any place. `HoldfastError` where it is gone."""


class PathWindows(Rereadable):
    """Of a file that has a path."""

    def __init__(self, path: str, pool: ThreadPoolExecutor | None = None) -> None:
        self.name = os.path.abspath(path)
        self._pool = pool
        windows = _path_windows(path)
        self._windows = windows if pool is None else _read_ahead(windows, pool)

    def size_bytes(self) -> int:
        return source_size(self.name) or 0

    def again(self) -> PathWindows:
        return PathWindows(self.name, self._pool)

    def reopen(self) -> io.FileIO:
        return open_source(self.name)


class HandleWindows(Rereadable):
    """Of a regular file that is open, at its beginning, and has a path, by which it is reopened once it is closed."""

    def __init__(self, file: io.FileIO) -> None:
        self.name = os.path.abspath(os.fsdecode(file.name))
        self._file = file
        self._windows = _raw_windows(file, self.name)

    def size_bytes(self) -> int:
        return os.fstat(self._file.fileno()).st_size

    def again(self) -> HandleWindows:
        self._file.seek(0)
        return HandleWindows(self._file)

    def reopen(self) -> io.FileIO:
        if self._file.closed:
            return open_source(self.name)
        return io.FileIO(os.dup(self._file.fileno()), "rb")


def iter_windows(source: Source, pool: ThreadPoolExecutor | None = None) -> Iterator[BytesLike]:
    """Give the bytes of a source in windows of 4 MiB (the last may be shorter), none for an empty one.

    `SourceNotFound`, `PermissionDenied`, `Unavailable` or `InvalidInput` name the path or type; an exception
    of a caller's own iterator passes through.
    """
    if isinstance(source, (str, os.PathLike)):
        return PathWindows(os.fspath(source), pool)
    if isinstance(source, bytes):
        return _bytes_windows(source)
    if isinstance(source, (bytearray, memoryview)):
        view = memoryview(source)
        return _copied_windows(view.cast("B") if view.c_contiguous else memoryview(view.tobytes()))
    if hasattr(source, "read"):
        return _file_windows(cast(IO[bytes], source))
    if hasattr(source, "__iter__"):
        return _piece_windows(iter(source))
    raise InvalidInput(
        f"cannot store {type(source).__name__}: give a path, bytes, a binary file or an iterable of bytes"
    )


def source_size(source: Source) -> int | None:
    """Give the size of a source where it is known before reading."""
    if isinstance(source, (bytes, bytearray)):
        return len(source)
    if isinstance(source, memoryview):
        return source.nbytes
    if isinstance(source, (str, os.PathLike)):
        try:
            return os.stat(source).st_size
        except (OSError, ValueError):  # who opens it says what is wrong
            return None
    return None


def source_name(source: Source) -> str | None:
    """Give the file name that a source brings along: of a path its last part, of an open file likewise."""
    if isinstance(source, (str, os.PathLike)):
        return os.path.basename(os.fspath(source)) or None
    name = getattr(source, "name", None)
    return os.path.basename(name) if isinstance(name, str) and not name.startswith("<") else None


def _bytes_windows(data: bytes) -> Iterator[BytesLike]:
    if len(data) <= WINDOW_BYTES:
        if data:
            yield data
        return
    view = memoryview(data)
    for start in range(0, len(data), WINDOW_BYTES):
        yield view[start : start + WINDOW_BYTES]


def _copied_windows(view: memoryview) -> Iterator[BytesLike]:
    for start in range(0, len(view), WINDOW_BYTES):
        yield bytes(view[start : start + WINDOW_BYTES])


def _path_windows(path: str) -> Generator[BytesLike, None, None]:
    with closing(open_source(path)) as file:
        yield from _raw_windows(file, path)


def _read_ahead(windows: Generator[BytesLike, None, None], pool: ThreadPoolExecutor) -> Iterator[BytesLike]:
    """Read the next window in another thread, once it is clear that there is more than one."""
    ahead: Future[BytesLike] | None = None
    try:
        window = next(windows, b"")
        while len(window) == WINDOW_BYTES:
            ahead = pool.submit(next, windows, b"")
            yield window
            window = ahead.result()
        if window:
            yield window
    finally:
        try:
            if ahead is not None:
                ahead.exception()  # the file must not be closed under its reader
        except BaseException:  # interrupted while it waits: the reader closes it
            assert ahead is not None
            ahead.add_done_callback(lambda _: windows.close())
            raise
        windows.close()


def open_source(path: str | os.PathLike[str]) -> io.FileIO:
    """Open a regular file (or a link to one) to be stored. Devices, pipes and directories are refused by name."""
    text = os.fspath(path)
    try:
        fd = os.open(text, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (FileNotFoundError, NotADirectoryError):
        raise SourceNotFound(f"there is no file at {text}", path=text) from None
    except PermissionError as error:
        raise PermissionDenied(
            f"cannot read {text}: {error.strerror}", path=text, errno=error.errno
        ) from error
    except OSError as error:
        raise InvalidInput(f"cannot read {text}: {error.strerror or error}", path=text) from error
    except ValueError as error:
        raise InvalidInput(f"not a path: {text!r:.200} ({error})", path=text) from error
    mode = os.fstat(fd).st_mode
    if stat.S_ISREG(mode):
        os.set_blocking(fd, True)
        return io.FileIO(fd, "rb")
    os.close(fd)
    if stat.S_ISDIR(mode):
        raise InvalidInput(f"{text} is a directory: store it with put_tree (`holdfast put -r`)", path=text)
    raise InvalidInput(
        f"{text} is not a regular file (a device, pipe or socket): open it and give the file", path=text
    )


def _raw_windows(file: io.FileIO, path: str) -> Iterator[BytesLike]:
    size = os.fstat(file.fileno()).st_size
    while True:
        window = min(WINDOW_BYTES, max(size - file.tell(), 0) + 1)
        try:
            data = _read_full(file, window)
            if len(data) == window:  # there is more than the system said: it grows, or is made as it is read
                data += _read_full(file, WINDOW_BYTES - window)
        except OSError as error:
            raise Unavailable(
                f"cannot read {path}: {error.strerror}", path=path, errno=error.errno
            ) from error
        if data:
            yield data
        if len(data) < WINDOW_BYTES:
            return


def _read_full(file: io.FileIO, length: int) -> bytes:
    parts: list[bytes] = []
    while length:
        data: bytes | None = file.read(length)
        if data is None:  # of a regular file no system should say so; it is not its end
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        if not data:
            break
        parts.append(data)
        length -= len(data)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def read_some(file: IO[bytes], length: int) -> bytes:
    """Read up to `length` bytes of a caller's file; none at its end alone.

    One that does not block gives None while it has nothing: it is waited for. `InvalidInput` where that cannot be.
    """
    piece: Any = file.read(length)
    while piece is None:
        _wait_readable(file)
        piece = file.read(length)
        if piece is None:  # ready, it was said, and it is not: do not spin
            time.sleep(_RETRY_SECONDS)
    return as_bytes(piece)


def _wait_readable(file: IO[bytes]) -> None:
    try:
        number = file.fileno()
    except (AttributeError, OSError, ValueError):
        raise InvalidInput(
            f"a source ({type(file).__name__}) gave None: it has no bytes now, may have some later, and has no fileno"
            " to wait on. Give one that blocks until it has bytes, or is at its end"
        ) from None
    waiting = select.poll()
    waiting.register(number, select.POLLIN)
    waiting.poll()


def _file_windows(file: IO[bytes]) -> Iterator[BytesLike]:
    def pieces() -> Iterator[Any]:
        while piece := read_some(file, WINDOW_BYTES):
            yield piece

    return _piece_windows(pieces())


def _piece_windows(pieces: Iterator[Any]) -> Iterator[BytesLike]:
    """Gather pieces into windows, copying what could change under us."""
    gathered: list[bytes] = []
    size = 0
    for piece in pieces:
        data = as_bytes(piece)
        while size + len(data) >= WINDOW_BYTES:
            room = WINDOW_BYTES - size
            if not gathered and len(data) == WINDOW_BYTES:
                yield data
            else:
                yield b"".join((*gathered, data[:room]))
            data = data[room:]
            gathered, size = [], 0
        if data:
            gathered.append(data)
            size += len(data)
    if size:
        yield gathered[0] if len(gathered) == 1 else b"".join(gathered)


def as_bytes(piece: Any) -> bytes:
    """Take a piece of a caller's source for bytes of our own; `InvalidInput` for anything else."""
    if isinstance(piece, bytes):
        return piece
    if isinstance(piece, (bytearray, memoryview)):
        return bytes(piece)
    raise InvalidInput(
        f"a source gave {type(piece).__name__}, bytes are needed"
        + (" (open the file in binary mode)" if isinstance(piece, str) else "")
    )
