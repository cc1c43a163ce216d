"""A local directory as a bucket, durable by itself: an object is fsynced before it has its name.

Below the root, `.new/` has what is being written, each file under a name of its own. To publish, the finished
file gets its key as a second name, the directories above are fsynced, and only then the first name goes. So an
object with one name is durable under it; one that is found with two is made so by whoever finds it (its writer
may have died in between, or failed). `replace` is a rename under a lock: who builds on the new state fsyncs
the same directory before anything is acknowledged. Every disk call goes through `Disk`.
"""

from __future__ import annotations

import errno
import itertools
import os
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from holdfast.backend.log.disk import Disk, FileStat, LocalDisk
from holdfast.backend.objects.bucket import Meta, Requests, exactly
from holdfast.errors import (
    Conflict,
    FormatError,
    HoldfastError,
    InvalidConfig,
    NeedsReopen,
    PermissionDenied,
    StoreNotFound,
    Unavailable,
)
from holdfast.types import BytesLike

NEW: Final = ".new"
LOCK: Final = "lock"
PIECE_BYTES: Final = 1 << 20
STALE_SECONDS: Final = 86_400
"""After so long without a write, what is in `.new/` is nobody's."""
_KEY: Final = re.compile(r"(?!\.)[A-Za-z0-9_=.-]+(/(?!\.)[A-Za-z0-9_=.-]+)*")
_NO_LINKS: Final = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK})
_LONGEST_KEY: Final = 200
_SETTLED: Final = 10_000


class DirectoryBucket:
    """Implements `Bucket` over a directory.

    `StoreNotFound` when there is none, unless it is to be made; `InvalidConfig` where files cannot have two names.
    """

    def __init__(
        self,
        path: str,
        *,
        create: bool = False,
        disk: Disk | None = None,
        location: str | None = None,
        limit: int | None = None,
    ) -> None:
        self.location = location if location is not None else f"dir://{path}"
        self.requests = Requests(limit)
        self._root = path.rstrip("/") or "/"
        self._disk = disk if disk is not None else LocalDisk()
        self._names = itertools.count(1)
        self._durable = {""}
        """Directories of the first level whose names are durable: they are never removed."""
        self._settled: set[tuple[str, int, int]] = set()
        """Files with two names whose keys are durable: a backup may have the second one for good."""
        self._pid = os.getpid()
        self._closed = False
        found = self._disk.stat(self._root)
        if found is None and not create:
            raise StoreNotFound(f"{self._root}: there is no such directory", path=self._root)
        if found is not None and not found.is_dir:
            raise StoreNotFound(f"{self._root} is no directory", path=self._root)
        if create:
            self._make_root(self._root)
        self._opened = self._which()
        """Which directory it was: another in its place, as when a disk is unmounted, gets nothing."""
        self._sweep()

    def __repr__(self) -> str:
        return f"DirectoryBucket({self._root!r})"

    # --- reading

    def head(self, key: str) -> Meta | None:
        path = self._path(key)
        self.requests.count("head")
        found = self._disk.stat(path)
        if found is None or found.is_dir:
            return None
        self._settle(key, found)
        return _meta(key, found)

    def get(self, key: str, *, max_bytes: int) -> tuple[bytes, Meta] | None:
        path = self._path(key)
        self.requests.count("get")
        handle = self._open(path)
        if handle is None:
            return None
        try:
            found = self._disk.fstat(handle)
            self._settle(key, found)
            if found.size_bytes > max_bytes:
                raise FormatError(
                    f"{path} has {found.size_bytes} bytes, and at most {max_bytes} belong there",
                    key=key,
                    size_bytes=found.size_bytes,
                )
            return b"".join(self._pieces(handle, path, 0, found.size_bytes)), _meta(key, found)
        finally:
            self._disk.close(handle)

    def get_range(self, key: str, start: int, stop: int) -> bytes | None:
        pieces = self.iter(key, start, stop)
        return None if pieces is None else b"".join(pieces)

    def iter(self, key: str, start: int, stop: int) -> Iterator[bytes] | None:
        if not 0 <= start <= stop:
            raise ValueError(f"{start}..{stop} is no range")
        path = self._path(key)
        self.requests.count("get")
        handle = self._open(path)
        if handle is None:
            return None
        size_bytes = self._disk.size(handle)
        if size_bytes < stop:
            self._disk.close(handle)
            raise _too_short(path, key, size_bytes, stop)
        return self._close_after(handle, self._pieces(handle, path, start, stop))

    def _close_after(self, handle: int, pieces: Iterator[bytes]) -> Iterator[bytes]:
        try:
            yield from pieces
        finally:
            self._disk.close(handle)

    def _pieces(self, handle: int, path: str, at: int, stop: int) -> Iterator[bytes]:
        while at < stop:
            piece = self._disk.pread(handle, min(PIECE_BYTES, stop - at), at)
            if not piece:
                raise _too_short(path, path, at, stop)
            self.requests.moved(bytes_in=len(piece))
            at += len(piece)
            yield piece

    def list(self, prefix: str, *, after: str = "") -> Iterator[Meta]:
        self._check()
        self.requests.count("list")
        return self._walk(prefix, after)

    def _walk(self, prefix: str, after: str) -> Iterator[Meta]:
        """Give what is below a prefix, in order: a directory is sorted as if its slash belonged to its name."""
        directory = f"{self._root}/{prefix}".rstrip("/") or "/"
        try:
            names = self._disk.listdir(directory)
        except (FileNotFoundError, NotADirectoryError):
            return
        entries: list[tuple[str, FileStat]] = []
        for name in names:
            if prefix == "" and name == NEW:
                continue
            found = self._disk.stat(f"{directory}/{name}")
            if found is not None:
                entries.append((f"{prefix}{name}/" if found.is_dir else f"{prefix}{name}", found))
        for key, found in sorted(entries):
            if found.is_dir:
                if key > after or after.startswith(key):
                    yield from self._walk(key, after)
            elif key > after:
                self._settle(key, found)
                yield _meta(key, found)

    # --- writing

    def create(self, key: str, data: BytesLike) -> Meta | None:
        path = self._path(key)
        self.requests.count("put")
        found = self._disk.stat(path)
        if found is not None:
            self._settle(key, found)
            return None
        new, meta = self._write(key, (data,))
        if self._publish(new, key):
            return meta
        self._remove(new)
        found = self._disk.stat(path)
        if found is not None:
            self._settle(key, found)
        return None

    def replace(self, key: str, data: BytesLike, e_tag: str) -> Meta | None:
        path = self._path(key)
        self.requests.count("put")
        self._make(NEW)
        lock = self._disk.open(f"{self._root}/{NEW}/{LOCK}", "rw")
        try:
            self._disk.lock(lock, wait=True)
            found = self._disk.stat(path)
            if found is None or found.is_dir or _e_tag(found) != e_tag:
                return None
            new, meta = self._write(key, (data,), other_than=found)
            self._rename(new, key, found)
            return meta
        finally:
            self._disk.close(lock)

    def upload(self, key: str, pieces: Iterable[BytesLike], size_bytes: int) -> Meta:
        path = self._path(key)
        self.requests.count("put")
        new, meta = self._write(key, exactly(pieces, size_bytes))
        if not self._publish(new, key):
            self._rename(new, key, self._disk.stat(path))
        return meta

    def copy(self, source: str, target: str) -> Meta | None:
        meta = self.head(source)
        pieces = None if meta is None else self.iter(source, 0, meta.size_bytes)
        return None if meta is None or pieces is None else self.upload(target, pieces, meta.size_bytes)

    def delete(self, keys: Sequence[str]) -> None:
        paths = {key: self._path(key) for key in keys}
        self.requests.count("delete")
        above: set[str] = set()
        for key, path in paths.items():
            try:
                self._disk.unlink(path)
            except (FileNotFoundError, NotADirectoryError):
                continue
            above.add(key.rpartition("/")[0])
        for directory in sorted(above):
            self._clear(directory)

    def abort_stale(self, before_ms: int) -> int | None:
        return None  # what is in `.new/` goes with the next opening

    def close(self) -> None:
        self._closed = True

    # --- how a file gets its name

    def _write(
        self, key: str, pieces: Iterable[BytesLike], *, other_than: FileStat | None = None
    ) -> tuple[str, Meta]:
        """Make a durable file in `.new/`, with another e_tag than the one that it is to replace.

        Gives its path, and what it is under its key: by the time it has that, somebody may have removed it again.
        """
        while True:
            unique = f"{self._pid}-{time.time_ns():x}-{next(self._names)}"
            new = f"{self._root}/{NEW}/{key.replace('/', ',')},{unique}"
            try:
                handle = self._disk.open(new, "x")
                break
            except FileExistsError:
                continue
            except FileNotFoundError:
                self._make(NEW)
        try:
            try:
                at = 0
                for piece in pieces:
                    self._disk.pwrite(handle, (piece,), at)
                    at += len(piece)
                while (
                    other_than is not None and self._disk.fstat(handle).modified_ns == other_than.modified_ns
                ):
                    time.sleep(0.001)  # the clock of files is coarse, and numbers of files are used again
                    self._disk.truncate(handle, 0)
                    self._disk.pwrite(handle, tuple(pieces), 0)
                self._disk.fsync(handle)
                meta = _meta(key, self._disk.fstat(handle))
                self.requests.moved(bytes_out=at)
            finally:
                self._disk.close(handle)
        except BaseException:
            self._remove(new)
            raise
        return new, meta

    def _publish(self, new: str, key: str) -> bool:
        """Give a durable file its key as a second name, durably. False: the key is taken."""
        path = self._path(key)
        while True:
            try:
                self._disk.link(new, path)
                break
            except FileExistsError:
                return False
            except FileNotFoundError as error:
                if self._disk.stat(new) is None:
                    raise _removed(path, key) from error
                self._make(key.rpartition("/")[0])  # again and again: a deletion may remove what is empty
            except NotADirectoryError as error:
                self._remove(new)
                raise Conflict(
                    f"{path}: a file stands where a directory belongs; move it away", key=key
                ) from error
            except HoldfastError as error:
                self._remove(new)
                if error.evidence.get("errno") in _NO_LINKS:
                    raise InvalidConfig(
                        f"{self._root}: this file system cannot give a file two names, which a directory of objects "
                        'needs; use a store of type "filesystem" there',
                        path=self._root,
                    ) from error
                raise
        self._sync_above(
            key
        )  # when this fails, the second name stays, and whoever finds the first tries it again
        self._remove(new)
        return True

    def _rename(self, new: str, key: str, found: FileStat | None) -> None:
        """Let a durable file take a key from the one that has it; that there is one is durable before."""
        try:
            if found is not None:
                self._settle(key, found)
            self._disk.rename(new, self._path(key))
        except BaseException:
            self._remove(new)
            raise
        self._sync_above(key)

    def _settle(self, key: str, found: FileStat) -> None:
        """Make a name durable that may not be: its writer has not come to remove the other one."""
        which = (key, found.ino, found.modified_ns)
        if found.links > 1 and which not in self._settled:
            self._sync_above(key)
            if len(self._settled) >= _SETTLED:
                self._settled.clear()
            self._settled.add(which)

    def _sync_above(self, key: str) -> None:
        """Make the name of a file and those of all directories above it durable."""
        directory = key.rpartition("/")[0]
        while True:
            try:
                self._disk.fsync_dir(f"{self._root}/{directory}".rstrip("/") or "/")
            except FileNotFoundError as error:
                raise _removed(self._path(key), key) from error
            if directory in self._durable:
                return
            if "/" not in directory:
                self._disk.fsync_dir(self._root)
                self._durable.add(directory)
                return
            directory = directory.rpartition("/")[0]

    def _make(self, directory: str) -> None:
        if "/" in directory:
            self._make(directory.rpartition("/")[0])
        elif self._which() != self._opened:
            raise Unavailable(
                f"{self._root} is another directory than the one that was opened, or gone: was a disk unmounted?"
                " Nothing was written there",
                path=self._root,
            )
        try:
            self._disk.mkdir(f"{self._root}/{directory}")
        except FileExistsError:
            pass
        except FileNotFoundError as error:
            raise _removed(f"{self._root}/{directory}", directory) from error

    def _which(self) -> tuple[int, int] | None:
        found = self._disk.stat(self._root)
        return None if found is None else (found.dev, found.ino)

    def _make_root(self, path: str) -> None:
        """Make the root and what is missing above it. What is there may be so without being durable."""
        parent = os.path.dirname(path)
        if parent == path:
            return
        self._make_root(parent)
        if self._disk.stat(path) is None:
            try:
                self._disk.mkdir(path)
            except FileExistsError:
                pass
        try:
            self._disk.fsync_dir(parent)
        except PermissionDenied:
            pass  # others made it, and nobody may look into it

    def _clear(self, directory: str) -> None:
        """Make removals durable; directories below the first level go when they are empty."""
        while "/" in directory:
            try:
                self._disk.rmdir(f"{self._root}/{directory}")
            except FileNotFoundError:
                pass
            except OSError:
                break
            directory = directory.rpartition("/")[0]
        try:
            self._disk.fsync_dir(f"{self._root}/{directory}".rstrip("/") or "/")
        except FileNotFoundError:
            pass

    def _remove(self, new: str) -> None:
        try:
            self._disk.unlink(new)
        except OSError:
            pass  # renamed, or swept one day

    def _sweep(self) -> None:
        """Finish what was published, and remove what nobody writes to any more."""
        directory = f"{self._root}/{NEW}"
        try:
            names = self._disk.listdir(directory)
        except (FileNotFoundError, PermissionDenied):
            return
        before_ns = time.time_ns() - STALE_SECONDS * 10**9
        for name in names:
            found = self._disk.stat(f"{directory}/{name}")
            if name == LOCK or found is None or (found.links == 1 and found.modified_ns > before_ns):
                continue
            key = name.rpartition(",")[0].replace(",", "/")
            if found.links > 1 and _KEY.fullmatch(key) and self._disk.stat(f"{self._root}/{key}") is not None:
                self._sync_above(key)
            self._remove(f"{directory}/{name}")

    # --- paths

    def _check(self) -> None:
        if self._closed or self._pid != os.getpid():
            raise NeedsReopen(f"{self.location} is closed, or was opened by another process: open it anew")

    def _path(self, key: str) -> str:
        self._check()
        if len(key) > _LONGEST_KEY or not _KEY.fullmatch(key):
            raise ValueError(f"{key!r:.80} is no key of an object in a directory")
        return f"{self._root}/{key}"

    def _open(self, path: str) -> int | None:
        try:
            return self._disk.open(path, "r")
        except (FileNotFoundError, NotADirectoryError):
            return None


def _e_tag(found: FileStat) -> str:
    return f'"{found.ino:x}-{found.modified_ns:x}-{found.size_bytes:x}"'


def _meta(key: str, found: FileStat) -> Meta:
    return Meta(key, found.size_bytes, _e_tag(found), found.modified_ns // 1_000_000)


def _too_short(path: str, key: str, size_bytes: int, stop: int) -> FormatError:
    return FormatError(
        f"{path} has {size_bytes} bytes, and {stop} were expected", key=key, size_bytes=size_bytes
    )


def _removed(path: str, key: str) -> Unavailable:
    return Unavailable(f"{path} was removed while it was written; the same call may work later", key=key)
