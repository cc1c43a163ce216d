"""A disk in memory: the same log, kept by nobody. `memory://` and tests stand on it."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Final

from holdfast.backend.log.disk import FileStat, OpenMode
from holdfast.errors import Unavailable
from holdfast.types import BytesLike

PAGE_BYTES: Final = 1 << 20


class _Node:
    """A file in pages; those that nobody wrote are zero and take no room."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.length = 0
        self.modified_ns = time.time_ns()
        self.links = 1
        self.pages: dict[int, bytearray] = {}
        self.locks: dict[int, bool] = {}
        """Who holds a lock, and whether it is exclusive."""

    def read(self, offset: int, length: int) -> bytes:
        parts = []
        stop = min(offset + length, self.length)
        while offset < stop:
            page, at = divmod(offset, PAGE_BYTES)
            count = min(PAGE_BYTES - at, stop - offset)
            part = bytes(memoryview(self.pages.get(page, b""))[at : at + count])
            parts.append(part if len(part) == count else part + bytes(count - len(part)))
            offset += count
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def write(self, offset: int, data: BytesLike) -> None:
        view = memoryview(data)
        self.length = max(self.length, offset + len(view))
        while view:
            page, at = divmod(offset, PAGE_BYTES)
            count = min(PAGE_BYTES - at, len(view))
            into = self.pages.setdefault(page, bytearray())
            if len(into) < at:
                into.extend(bytes(at - len(into)))
            into[at : at + count] = view[:count]
            view = view[count:]
            offset += count

    def clear(self, start: int, stop: int) -> None:
        """Let a range be zero; whole pages go."""
        for page in [
            page for page in self.pages if start < (page + 1) * PAGE_BYTES and page * PAGE_BYTES < stop
        ]:
            first, last = max(0, start - page * PAGE_BYTES), min(PAGE_BYTES, stop - page * PAGE_BYTES)
            if last - first == PAGE_BYTES:
                del self.pages[page]
            else:
                data = self.pages[page]
                last = min(last, len(data))
                data[first:last] = bytes(max(0, last - first))


def _described(node: _Node) -> FileStat:
    return FileStat(0, node.number, node.length, False, node.modified_ns, node.links)


class MemoryDisk:
    """Implements `Disk` for one process. Nothing is ever durable, and fsync says so to nobody: it does nothing."""

    def __init__(self) -> None:
        self._mutex = threading.RLock()
        self._numbers = itertools.count(1)
        self._files: dict[str, _Node] = {}
        self._directories = {"/"}
        self._open: dict[int, tuple[_Node, str]] = {}

    def open(self, path: str, mode: OpenMode) -> int:
        with self._mutex:
            node = self._files.get(path)
            if node is not None and mode == "x":
                raise FileExistsError(path)
            if node is None:
                if mode in ("r", "a") or str(PurePosixPath(path).parent) not in self._directories:
                    raise FileNotFoundError(path)
                node = self._files[path] = _Node(next(self._numbers))
            handle = next(self._numbers)
            self._open[handle] = (node, path)
            return handle

    def close(self, handle: int) -> None:
        with self._mutex:
            self.unlock(handle)
            del self._open[handle]

    def pread(self, handle: int, length: int, offset: int, /) -> bytes:
        with self._mutex:
            return self._node(handle).read(offset, length)

    def preadv(self, handle: int, buffers: Sequence[bytearray | memoryview], offset: int, /) -> int:
        done = 0
        for buffer in buffers:
            part = self.pread(handle, len(buffer), offset + done)
            memoryview(buffer)[: len(part)] = part
            done += len(part)
        return done

    def pwrite(self, handle: int, buffers: Sequence[BytesLike], offset: int) -> None:
        node = self._node(handle)
        with self._mutex:
            for buffer in buffers:
                node.write(offset, buffer)
                offset += len(buffer)
            node.modified_ns = time.time_ns()

    def fsync(self, handle: int) -> None:
        self._node(handle)

    def truncate(self, handle: int, length: int) -> None:
        with self._mutex:
            node = self._node(handle)
            node.clear(length, node.length)
            node.length = length

    def punch(self, handle: int, offset: int, length: int) -> None:
        with self._mutex:
            self._node(handle).clear(offset, offset + length)

    def allocate(self, handle: int, length: int) -> None:
        with self._mutex:
            node = self._node(handle)
            node.length = max(node.length, length)

    def size(self, handle: int) -> int:
        return self._node(handle).length

    def fstat(self, handle: int) -> FileStat:
        return _described(self._node(handle))

    def lock(self, handle: int, *, exclusive: bool = True, wait: bool = False) -> bool:
        with self._mutex:
            locks = self._node(handle).locks
            if any(other != handle and (exclusive or held) for other, held in locks.items()):
                return False
            locks[handle] = exclusive
            return True

    def unlock(self, handle: int) -> None:
        with self._mutex:
            self._node(handle).locks.pop(handle, None)

    def rename(self, source: str, target: str) -> None:
        with self._mutex:
            if source not in self._files:
                raise FileNotFoundError(source)
            if target in self._files:
                self._files[target].links -= 1
            self._files[target] = self._files.pop(source)

    def link(self, source: str, target: str) -> None:
        with self._mutex:
            if target in self._files:
                raise FileExistsError(target)
            if source not in self._files:
                raise FileNotFoundError(source)
            self._files[target] = self._files[source]
            self._files[target].links += 1

    def unlink(self, path: str) -> None:
        with self._mutex:
            node = self._files.pop(path, None)
            if node is None:
                raise FileNotFoundError(path)
            node.links -= 1

    def mkdir(self, path: str) -> None:
        with self._mutex:
            if path in self._directories:
                raise FileExistsError(path)
            self._directories.add(path)

    def rmdir(self, path: str) -> None:
        with self._mutex:
            self._directories.discard(path)

    def listdir(self, path: str) -> list[str]:
        with self._mutex:
            if path not in self._directories:
                raise FileNotFoundError(path)
            prefix = path.rstrip("/") + "/"
            below = (name for name in (*self._files, *self._directories) if name.startswith(prefix))
            return sorted({name[len(prefix) :].split("/")[0] for name in below} - {""})

    def stat(self, path: str) -> FileStat | None:
        with self._mutex:
            if path in self._directories:
                return FileStat(0, 0, 0, True)
            node = self._files.get(path)
            return None if node is None else _described(node)

    def fsync_dir(self, path: str) -> None:
        self.listdir(path)

    def free_bytes(self, path: str) -> int:
        return 1 << 40

    def total_bytes(self, path: str) -> int:
        return 1 << 40

    def drop_cache(self, handle: int) -> None:
        self._node(handle)

    def _node(self, handle: int) -> _Node:
        try:
            return self._open[handle][0]
        except KeyError:
            raise Unavailable(f"handle {handle} is closed", handle=handle) from None
