"""A disk in memory that keeps what is live and what is durable apart, good enough to run a whole store on.

Bytes and lengths become durable by `fsync` of the file, names by `fsync_dir` of their directory, and by
nothing else. `power_cut` gives a disk as it may come back: each step that was not synced is kept or
dropped by itself, and a write may be torn at sectors. That is weaker than any file system in use, on purpose.
"""

from __future__ import annotations

import errno
import itertools
import os
import posixpath
import random
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from holdfast.backend.log.disk import FileStat, OpenMode, translate
from holdfast.types import BytesLike

SECTOR_BYTES: Final = 512


class _Write(NamedTuple):
    offset: int
    data: bytes


class _Truncate(NamedTuple):
    length: int


class _Name(NamedTuple):
    """Names that change together: (name, what it stands for then, or None when it goes)."""

    changes: tuple[tuple[str, _Node | None], ...]


class _Node:
    """A file or a directory: what is live, what is durable, and the steps between the two."""

    def __init__(self, number: int, is_dir: bool) -> None:
        self.number = number
        self.is_dir = is_dir
        self.live = bytearray()
        self.durable = bytearray()
        self.steps: list[_Write | _Truncate] = []
        self.names: dict[str, _Node] = {}
        self.durable_names: dict[str, _Node] = {}
        self.name_steps: list[_Name] = []
        self.locks: dict[int, bool] = {}
        self.modified_ns = time.time_ns()
        self.links = 1


class _Open(NamedTuple):
    node: _Node
    path: str
    writable: bool


_instances = itertools.count(1)


class ModelDisk:
    """Files in memory with a power switch. Thread-safe; wrap it once for each process that is to be played.

    `capacity_bytes` bounds the sum of all files. `root` names directories that exist, durably, from the
    start.
    """

    def __init__(self, *roots: str, capacity_bytes: int = 1 << 40) -> None:
        self.capacity_bytes = capacity_bytes
        self.used_bytes = 0
        self._device = next(_instances)
        self._numbers = itertools.count(2)
        self._handles = itertools.count(1000)
        self._open: dict[int, _Open] = {}
        self._changed = threading.Condition(threading.RLock())
        self._root = _Node(1, True)
        for path in roots or ("/model",):
            node = self._root
            for part in posixpath.normpath(path).strip("/").split("/"):
                if part not in node.names:
                    node.names[part] = node.durable_names[part] = _Node(next(self._numbers), True)
                node = node.names[part]

    # --- paths

    def _find(self, path: str) -> _Node | None:
        node = self._root
        for part in posixpath.normpath(path).strip("/").split("/"):
            if part in ("", "."):
                continue
            found = node.names.get(part) if node.is_dir else None
            if found is None:
                return None
            node = found
        return node

    def _need(self, path: str) -> _Node:
        node = self._find(path)
        if node is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        return node

    def _parent(self, path: str) -> tuple[_Node, str]:
        head, name = posixpath.split(posixpath.normpath(path))
        node = self._need(head)
        if not node.is_dir:
            raise _error(errno.ENOTDIR, path)
        return node, name

    def _rename(self, parent: _Node, *changes: tuple[str, _Node | None]) -> None:
        for name, node in changes:
            if node is None:
                parent.names.pop(name, None)
            else:
                parent.names[name] = node
        parent.name_steps.append(_Name(changes))

    def _handle(self, handle: int) -> _Open:
        try:
            return self._open[handle]
        except KeyError:
            raise _error(errno.EBADF, None) from None

    def _writable(self, handle: int) -> _Open:
        file = self._handle(handle)
        if not file.writable:
            raise _error(errno.EBADF, file.path)
        return file

    # --- the calls of a disk

    def open(self, path: str, mode: OpenMode) -> int:
        with self._changed:
            parent, name = self._parent(path)
            node = parent.names.get(name)
            if mode == "x" and node is not None:
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path)
            if node is None:
                if mode in ("r", "a"):
                    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
                node = _Node(next(self._numbers), False)
                self._rename(parent, (name, node))
            if node.is_dir:
                raise _error(errno.EISDIR, path)
            handle = next(self._handles)
            self._open[handle] = _Open(node, path, mode != "r")
            return handle

    def close(self, handle: int) -> None:
        with self._changed:
            self._handle(handle).node.locks.pop(handle, None)
            del self._open[handle]
            self._changed.notify_all()

    def pread(self, handle: int, length: int, offset: int, /) -> bytes:
        with self._changed:
            return bytes(self._handle(handle).node.live[offset : offset + length])

    def preadv(self, handle: int, buffers: Sequence[bytearray | memoryview], offset: int, /) -> int:
        with self._changed:
            start, live = offset, self._handle(handle).node.live
            for buffer in buffers:
                piece = live[offset : offset + len(buffer)]
                buffer[: len(piece)] = piece
                offset += len(piece)
            return offset - start

    def pwrite(self, handle: int, buffers: Sequence[BytesLike], offset: int) -> None:
        with self._changed:
            file = self._writable(handle)
            data = b"".join(buffers)
            growth = max(0, offset + len(data) - len(file.node.live))
            if self.used_bytes + growth > self.capacity_bytes:
                data = data[: max(0, len(data) - (self.used_bytes + growth - self.capacity_bytes))]
                self._write(file.node, _Write(offset, data))
                raise _error(errno.ENOSPC, file.path)
            self._write(file.node, _Write(offset, data))

    def _write(self, node: _Node, step: _Write) -> None:
        if step.data:
            before = len(node.live)
            _apply(node.live, step)
            self.used_bytes += len(node.live) - before
            node.modified_ns = time.time_ns()
            node.steps.append(step)

    def fsync(self, handle: int) -> None:
        with self._changed:
            node = self._handle(handle).node
            for step in node.steps:
                _apply(node.durable, step)
            node.steps.clear()

    def forget_dirty(self, handle: int) -> None:
        """Do what a kernel does after a failed fsync: the pages count as clean, the disk has old bytes."""
        with self._changed:
            node = self._handle(handle).node
            if len(node.durable) < len(node.live):
                node.durable.extend(bytes(len(node.live) - len(node.durable)))
            node.steps.clear()

    def truncate(self, handle: int, length: int) -> None:
        with self._changed:
            node = self._writable(handle).node
            self.used_bytes += length - len(node.live)
            step = _Truncate(length)
            _apply(node.live, step)
            node.steps.append(step)

    def punch(self, handle: int, offset: int, length: int) -> None:
        with self._changed:
            node = self._writable(handle).node
            data = bytes(max(0, min(length, len(node.live) - offset)))
            if data:
                _apply(node.live, _Write(offset, data))
                node.steps.append(_Write(offset, data))

    def allocate(self, handle: int, length: int) -> None:
        with self._changed:
            file = self._writable(handle)
            more = length - len(file.node.live)
            if self.used_bytes + max(0, more) > self.capacity_bytes:
                raise _error(errno.ENOSPC, file.path)
            if more > 0:
                self.truncate(handle, length)

    def size(self, handle: int) -> int:
        with self._changed:
            return len(self._handle(handle).node.live)

    def fstat(self, handle: int) -> FileStat:
        with self._changed:
            node = self._handle(handle).node
            return self._described(node)

    def lock(self, handle: int, *, exclusive: bool = True, wait: bool = False) -> bool:
        with self._changed:
            while True:
                locks = self._handle(handle).node.locks
                if not any(other != handle and (exclusive or held) for other, held in locks.items()):
                    locks[handle] = exclusive
                    self._changed.notify_all()
                    return True
                if not wait:
                    return False
                locks.pop(handle, None)  # as Linux does: a conversion gives up the old lock first
                self._changed.notify_all()
                self._changed.wait()

    def unlock(self, handle: int) -> None:
        with self._changed:
            self._handle(handle).node.locks.pop(handle, None)
            self._changed.notify_all()

    def rename(self, source: str, target: str) -> None:
        with self._changed:
            old_parent, old_name = self._parent(source)
            new_parent, new_name = self._parent(target)
            node = old_parent.names.get(old_name)
            if node is None:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), source)
            replaced = new_parent.names.get(new_name)
            if replaced is node:
                return
            if replaced is not None and replaced.is_dir and (replaced.names or not node.is_dir):
                raise _error(errno.ENOTEMPTY if node.is_dir else errno.EISDIR, target)
            self._gone(replaced)
            if old_parent is new_parent:
                self._rename(old_parent, (old_name, None), (new_name, node))
            else:
                self._rename(new_parent, (new_name, node))
                self._rename(old_parent, (old_name, None))

    def _gone(self, node: _Node | None) -> None:
        if node is not None:
            node.links -= 1
            if node.links == 0:
                self.used_bytes -= len(node.live)

    def link(self, source: str, target: str) -> None:
        with self._changed:
            node = self._need(source)
            parent, name = self._parent(target)
            if name in parent.names:
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), target)
            node.links += 1
            self._rename(parent, (name, node))

    def unlink(self, path: str) -> None:
        with self._changed:
            node = self._need(path)
            if node.is_dir:
                raise _error(errno.EISDIR, path)
            self._gone(node)
            parent, name = self._parent(path)
            self._rename(parent, (name, None))

    def mkdir(self, path: str) -> None:
        with self._changed:
            parent, name = self._parent(path)
            if name in parent.names:
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path)
            self._rename(parent, (name, _Node(next(self._numbers), True)))

    def rmdir(self, path: str) -> None:
        with self._changed:
            node = self._need(path)
            if not node.is_dir or node.names:
                raise _error(errno.ENOTEMPTY if node.is_dir else errno.ENOTDIR, path)
            parent, name = self._parent(path)
            self._rename(parent, (name, None))

    def listdir(self, path: str) -> list[str]:
        with self._changed:
            node = self._need(path)
            if not node.is_dir:
                raise _error(errno.ENOTDIR, path)
            return list(node.names)

    def stat(self, path: str) -> FileStat | None:
        with self._changed:
            node = self._find(path)
            return None if node is None else self._described(node)

    def _described(self, node: _Node) -> FileStat:
        return FileStat(self._device, node.number, len(node.live), node.is_dir, node.modified_ns, node.links)

    def fsync_dir(self, path: str) -> None:
        with self._changed:
            node = self._need(path)
            node.durable_names = dict(node.names)
            node.name_steps.clear()

    def free_bytes(self, path: str) -> int:
        self._need(path)
        return self.capacity_bytes - self.used_bytes

    def total_bytes(self, path: str) -> int:
        self._need(path)
        return self.capacity_bytes

    def drop_cache(self, handle: int) -> None:
        self._handle(handle)

    # --- the side door of a test

    def files(self, under: str = "/") -> dict[str, bytes]:
        """Give all files below a directory, by path."""
        with self._changed:
            return {path: bytes(node.live) for path, node in _walk(self._need(under), under.rstrip("/"))}

    def overwrite(self, path: str, data: bytes) -> None:
        """Put other bytes into a file, durably, behind everybody's back; it is made if it is not there."""
        with self._changed:
            parent, name = self._parent(path)
            node = parent.names.get(name)
            if node is None:
                node = parent.names[name] = parent.durable_names[name] = _Node(next(self._numbers), False)
            self.used_bytes += len(data) - len(node.live)
            node.live[:] = data
            node.durable[:] = data
            node.steps.clear()

    # --- the power switch

    def clone(self) -> ModelDisk:
        """Give a disk with the live state of this one, all of it durable, and no handle open."""
        return self._copy(None)

    def power_cut(self, rng: random.Random) -> ModelDisk:
        """Give a disk as it may come back after the power failed now. The same seed gives the same disk.

        Four moods, for states that single coins would hardly ever reach: nothing that was not synced is
        there; all of it; a prefix of the steps; each step by itself, with writes torn and holes left.
        """
        return self._copy(rng)

    def crash_states(self, rng: random.Random, count: int) -> Iterator[ModelDisk]:
        """Give `count` disks, each as it may come back after the power failed now."""
        for _ in range(count):
            yield self.power_cut(rng)

    def _copy(self, rng: random.Random | None) -> ModelDisk:
        disk = ModelDisk(capacity_bytes=self.capacity_bytes)
        copies: dict[int, _Node] = {}
        mood = rng.choice(("none", "all", "prefix", "each", "each", "each")) if rng else "all"

        def copy(node: _Node) -> _Node:
            if node.number in copies:
                copies[node.number].links += 1
                return copies[node.number]
            new = copies[node.number] = _Node(node.number, node.is_dir)
            if rng is None:
                names, content = node.names, bytearray(node.live)
            else:
                names = _survive_names(node, mood, rng)
                content = _survive_bytes(node, mood, rng)
            new.live, new.durable = content, bytearray(content)
            new.modified_ns = node.modified_ns
            disk.used_bytes += len(content)
            new.names = {name: copy(names[name]) for name in sorted(names)}
            new.durable_names = dict(new.names)
            return new

        with self._changed:
            disk._root = copy(self._root)
            disk._numbers = itertools.count(max(copies) + 1)
        return disk


def _error(code: int, path: str | None) -> Exception:
    return translate(OSError(code, os.strerror(code)), path)


def _walk(node: _Node, path: str) -> Iterator[tuple[str, _Node]]:
    for name, child in sorted(node.names.items()):
        if child.is_dir:
            yield from _walk(child, f"{path}/{name}")
        else:
            yield f"{path}/{name}", child


def _apply(content: bytearray, step: _Write | _Truncate) -> None:
    if isinstance(step, _Truncate):
        if step.length < len(content):
            del content[step.length :]
        else:
            content.extend(bytes(step.length - len(content)))
        return
    if step.offset > len(content):
        content.extend(bytes(step.offset - len(content)))
    content[step.offset : step.offset + len(step.data)] = step.data


def _kept(count: int, mood: str, rng: random.Random) -> list[bool]:
    if mood == "prefix":
        stop = rng.randint(0, count)
        return [i < stop for i in range(count)]
    if mood == "each":
        return [rng.random() < 0.5 for _ in range(count)]
    return [mood == "all"] * count


def _survive_names(node: _Node, mood: str, rng: random.Random) -> dict[str, _Node]:
    names = dict(node.durable_names)
    for step, kept in zip(node.name_steps, _kept(len(node.name_steps), mood, rng), strict=True):
        if kept:
            for name, child in step.changes:
                if child is None:
                    names.pop(name, None)
                else:
                    names[name] = child
    return names


def _survive_bytes(node: _Node, mood: str, rng: random.Random) -> bytearray:
    content = bytearray(node.durable)
    for step, kept in zip(node.steps, _kept(len(node.steps), mood, rng), strict=True):
        if isinstance(step, _Truncate) or mood in ("all", "none") or not step.data:
            if kept:
                _apply(content, step)
            continue
        fate = rng.random()
        if fate < 0.4:
            if kept:
                _apply(content, step)
        elif fate < 0.5:  # the length arrived, the bytes did not
            content.extend(bytes(max(0, step.offset + len(step.data) - len(content))))
        else:
            for sector in _sectors(step):
                if rng.random() < 0.6:
                    _apply(content, sector)
    return content


def _sectors(step: _Write) -> Iterator[_Write]:
    start, stop = step.offset, step.offset + len(step.data)
    while start < stop:
        end = min(stop, (start // SECTOR_BYTES + 1) * SECTOR_BYTES)
        yield _Write(start, step.data[start - step.offset : end - step.offset])
        start = end
