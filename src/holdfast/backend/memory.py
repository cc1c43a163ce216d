"""A disk in memory: the same log, kept by nobody. `memory://` and tests stand on it."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Sequence
from pathlib import PurePosixPath

from holdfast.backend.log.disk import FileStat, OpenMode
from holdfast.errors import Unavailable
from holdfast.types import BytesLike


class _Node:
    def __init__(self, number: int) -> None:
        self.number = number
        self.data = bytearray()
        self.owner: int | None = None
        """The handle that holds the exclusive lock."""


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
        with self._mutex:  # a view that lives elsewhere would keep the file from growing
            return bytes(self._node(handle).data[offset : offset + length])

    def preadv(self, handle: int, buffers: Sequence[bytearray | memoryview], offset: int, /) -> int:
        done = 0
        for buffer in buffers:
            part = self.pread(handle, len(buffer), offset + done)
            memoryview(buffer)[: len(part)] = part
            done += len(part)
        return done

    def pwrite(self, handle: int, buffers: Sequence[BytesLike], offset: int) -> None:
        data = self._node(handle).data
        with self._mutex:
            if len(data) < offset:
                data.extend(bytes(offset - len(data)))
            for buffer in buffers:
                data[offset : offset + len(buffer)] = buffer
                offset += len(buffer)

    def fsync(self, handle: int) -> None:
        self._node(handle)

    def truncate(self, handle: int, length: int) -> None:
        with self._mutex:
            data = self._node(handle).data
            del data[length:]
            data.extend(bytes(length - len(data)))

    def size(self, handle: int) -> int:
        return len(self._node(handle).data)

    def lock(self, handle: int, *, exclusive: bool = True, wait: bool = False) -> bool:
        with self._mutex:
            node = self._node(handle)
            if node.owner not in (None, handle):
                return False
            node.owner = handle
            return True

    def unlock(self, handle: int) -> None:
        with self._mutex:
            node = self._node(handle)
            if node.owner == handle:
                node.owner = None

    def rename(self, source: str, target: str) -> None:
        with self._mutex:
            self._files[target] = self._files.pop(source)

    def unlink(self, path: str) -> None:
        with self._mutex:
            if self._files.pop(path, None) is None:
                raise FileNotFoundError(path)

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
            return None if node is None else FileStat(0, node.number, len(node.data), False)

    def fsync_dir(self, path: str) -> None:
        self.listdir(path)

    def free_bytes(self, path: str) -> int:
        return 1 << 40

    def drop_cache(self, handle: int) -> None:
        self._node(handle)

    def _node(self, handle: int) -> _Node:
        try:
            return self._open[handle][0]
        except KeyError:
            raise Unavailable(f"handle {handle} is closed", handle=handle) from None
