"""Reads a directory, in the order of its names' bytes, into batches of files. Knows no store.

The order is that of the whole paths (a directory sorts as its name and `/`), the same on every file system. A
tree is what was read when it was read: a file that changes meanwhile is the bytes that came, one that is gone
is reported. Links are kept, never followed, and no directory is entered through one, even in a race.
"""

from __future__ import annotations

import errno
import io
import os
import stat
from collections.abc import Collection, Iterator
from typing import Final

from holdfast.backend.log.disk import translate
from holdfast.errors import InvalidInput, PermissionDenied, SourceNotFound
from holdfast.trees.exclude import Excludes
from holdfast.trees.names import Directories, decode_name, describe_mode

SMALL_FILE_BYTES: Final = 256 << 10
BATCH_BYTES: Final = 8 << 20
BATCH_FILES: Final = 4_096
MAX_SKIPPED: Final = 10_000

_CHANGED: Final = frozenset((errno.ELOOP, errno.EMLINK, errno.ENXIO, errno.ENODEV))

# Without O_NONBLOCK a named pipe that takes a file's place between look and open would hang us.
_FILE_FLAGS: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK


class Batch:
    """Files in order: `contents[i]` is that of `names[i]`; a last name without content is the one of `large`.

    `large` is an open file at its beginning, the reader's to close, and `large_bytes` its size when it was
    opened.
    """

    __slots__ = ("contents", "executable", "large", "large_bytes", "names", "total_bytes")

    def __init__(self) -> None:
        self.names: list[str] = []
        self.contents: list[bytes] = []
        self.executable = bytearray()
        self.large: io.FileIO | None = None
        self.large_bytes = 0
        self.total_bytes = 0


class _Frame:
    __slots__ = ("entries", "links", "others", "parts", "prefix", "stored")

    def __init__(self, parts: list[str], prefix: str) -> None:
        self.parts = parts  # as the file system writes them, to open by
        self.prefix = prefix  # as the tree writes them
        self.entries: Iterator[tuple[str, str]] = iter(())
        self.links: set[str] = set()
        self.others: set[str] = set()
        self.stored = False


class TreeWalk:
    """One walk over a directory: iterate over `batches()`, then read what else was found.

    Memory: a batch (8 MiB, or less than that and one small file), the names of the directories on the current
    path (about 150 bytes for each entry of these), links, empty directories, and up to 10,000 reports.
    """

    def __init__(
        self,
        root: str,
        excludes: Excludes,
        *,
        strict: bool = False,
        skip_directories: Collection[tuple[int, int]] = (),
        small_bytes: int = SMALL_FILE_BYTES,
    ) -> None:
        self.root = root
        self.symlinks: dict[str, str] = {}
        self.empty_directories: list[str] = []
        self.skipped: list[tuple[str, str]] = []
        self.skipped_count = 0
        self._excludes = excludes
        self._strict = strict
        self._skip_directories = frozenset(skip_directories)
        self._small_bytes = small_bytes
        self._batch = Batch()

    def batches(self) -> Iterator[Batch]:
        """Walk; SourceNotFound, PermissionDenied or InvalidInput when the root is not a directory to be read."""
        try:
            root = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise SourceNotFound(f"there is no directory {self.root!r}", path=self.root) from None
        except NotADirectoryError:
            raise InvalidInput(f"not a directory: {self.root!r}", path=self.root) from None
        except OSError as error:
            raise translate(error, self.root) from error
        directories = Directories(root)
        try:
            yield from self._walk(root, directories)
        finally:
            directories.close()
            os.close(root)

    def _walk(self, root: int, directories: Directories) -> Iterator[Batch]:
        stack = [_Frame([], "")]
        self._list(root, stack[0])
        current: _Frame | None = None  # whose directory `here` is
        here = root
        while stack:
            frame = stack[-1]
            item = next(frame.entries, None)
            if item is None:
                stack.pop()
                if stack and not frame.stored:
                    self.empty_directories.append(frame.prefix[:-1])
                if stack:
                    stack[-1].stored = True
                continue
            key, name = item
            if current is not frame:
                try:
                    here = directories.open(frame.parts) if frame.parts else root
                except OSError as error:  # gone, or a link now: so is all that was in it
                    self._skip(frame.prefix, _why(error), error)
                    frame.entries = iter(())
                    continue
                current = frame
            if key[-1] == "/":
                child = _Frame([*frame.parts, name], frame.prefix + key)
                if self._enter(directories, child):
                    stack.append(child)
                current = None
            elif key in frame.links:
                frame.stored |= self._link(here, name, frame.prefix + key)
            elif key in frame.others:
                self._other(here, name, frame.prefix + key)
            elif self._file(here, name, frame.prefix + key):
                frame.stored = True
                batch = self._batch
                if batch.large or batch.total_bytes >= BATCH_BYTES or len(batch.names) >= BATCH_FILES:
                    self._batch = Batch()
                    yield batch
        if self._batch.names:
            yield self._batch

    def _enter(self, directories: Directories, frame: _Frame) -> bool:
        try:
            here = directories.open(frame.parts)
            if self._skip_directories:
                status = os.fstat(here)
                if (status.st_dev, status.st_ino) in self._skip_directories:
                    self._skip(frame.prefix, "the store itself")
                    return False
            self._list(here, frame)
        except OSError as error:
            self._skip(frame.prefix, _why(error), error)
            return False
        return True

    def _list(self, here: int, frame: _Frame) -> None:
        found: list[tuple[str, str]] = []
        excludes, prefix = self._excludes, frame.prefix
        with os.scandir(here) as entries:
            for entry in entries:
                name = entry.name
                key = decode_name(name, os.path.join(self.root, prefix))
                is_dir = entry.is_dir(follow_symlinks=False)
                if excludes and excludes.matches(prefix + key, is_dir):
                    continue
                if is_dir:
                    key += "/"
                elif entry.is_symlink():
                    frame.links.add(key)
                elif not entry.is_file(follow_symlinks=False):
                    frame.others.add(key)
                found.append((key, name))
        found.sort()
        frame.entries = iter(found)

    def _file(self, here: int, name: str, path: str) -> bool:
        try:
            handle = os.open(name, _FILE_FLAGS, dir_fd=here)
        except OSError as error:
            self._skip(path, _why(error), error)
            return False
        batch = self._batch
        try:
            status = os.fstat(handle)
            size = status.st_size
            if not stat.S_ISREG(status.st_mode):
                self._skip(path, f"{describe_mode(status.st_mode)} took its place")
                return False
            content: bytes | None = None
            if size <= self._small_bytes:
                content = os.read(handle, size + 1)
                if len(content) != size:  # it changed, or is one whose size the system does not know
                    content = self._read_on(handle, content)
            if content is not None:
                batch.contents.append(content)
                batch.total_bytes += len(content)
            else:
                opened = handle
                batch.large = io.FileIO(os.path.join(self.root, path), opener=lambda *_: opened)
                batch.large_bytes = size
                batch.total_bytes += size
                handle = -1
        except OSError as error:
            raise translate(error, os.path.join(self.root, path)) from error
        finally:
            if handle >= 0:
                os.close(handle)
        batch.names.append(path)
        batch.executable.append(1 if status.st_mode & stat.S_IXUSR else 0)
        return True

    def _read_on(self, handle: int, content: bytes) -> bytes | None:
        parts = [content]
        length = len(content)
        while parts[-1]:
            if length > self._small_bytes:
                os.lseek(handle, 0, os.SEEK_SET)  # a large one after all: read it anew, as a stream
                return None
            parts.append(os.read(handle, 65_536))
            length += len(parts[-1])
        return b"".join(parts)

    def _link(self, here: int, name: str, path: str) -> bool:
        try:
            target = os.readlink(name, dir_fd=here)
        except OSError as error:
            self._skip(path, _why(error), error)
            return False
        self.symlinks[path] = decode_name(target, f"the link {os.path.join(self.root, path)}")
        return True

    def _other(self, here: int, name: str, path: str) -> None:
        try:
            mode = os.stat(name, dir_fd=here, follow_symlinks=False).st_mode
        except OSError as error:
            self._skip(path, _why(error), error)
        else:
            self._skip(path, describe_mode(mode))

    def _skip(self, path: str, why: str, error: OSError | None = None) -> None:
        path = path.rstrip("/")
        if self._strict:
            where = os.path.join(self.root, path)
            if isinstance(error, FileNotFoundError):
                raise SourceNotFound(f"gone while the tree was read: {where!r}", path=where) from error
            if isinstance(error, PermissionError):
                raise PermissionDenied(f"cannot be read: {where!r}", path=where, errno=error.errno) from error
            raise InvalidInput(f"cannot be stored: {where!r} is {why}", path=where) from error
        self.skipped_count += 1
        if len(self.skipped) < MAX_SKIPPED:
            self.skipped.append((path, why))


def _why(error: OSError) -> str:
    """Say why something is skipped; what is no reason to skip is raised anew."""
    if isinstance(error, (FileNotFoundError, NotADirectoryError)):
        return "gone while the tree was read"
    if isinstance(error, PermissionError):
        return "not allowed to be read"
    code = os.strerror(error.errno or 0)
    if error.errno in _CHANGED:
        return f"changed while the tree was read ({code})"
    raise translate(error, None) from error
