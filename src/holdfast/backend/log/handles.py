"""Open segment files for reading: one budget for all threads of a store, and none is closed while it is read."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from itertools import islice
from typing import Final

from holdfast.backend.log.disk import Disk
from holdfast.backend.log.layout import segment_path

MAX_OPEN: Final = 128
"""How many stay open; more only while more than so many threads read at once."""


class _Open:
    """One open segment."""

    __slots__ = ("handle", "is_closed", "is_dropped", "users")

    def __init__(self, handle: int) -> None:
        self.handle = handle
        self.users = [None]
        """One for each read under way: a list, because it grows and shrinks in one step, without a lock."""
        self.is_dropped = False
        """Nobody will find it any more: its last user closes it."""
        self.is_closed = False


class Handles:
    """Reads segments by their ids.

    Reading takes no lock: a reader says that it reads, and then looks whether the handle was dropped; who drops one
    says so first, and then looks for readers. One of the two sees the other.
    """

    def __init__(self, disk: Disk, root: str) -> None:
        self._disk = disk
        self._root = root
        self._mutex = threading.RLock()  # a signal handler may read while its thread is in here
        self._open: OrderedDict[int, _Open] = OrderedDict()
        """The least recently opened first."""

    def read(self, segment: int, offset: int, length: int) -> bytes:
        """Read from a segment; short only at its end. `FileNotFoundError` when it is gone."""
        one = self._take(segment)
        try:
            return self._disk.pread(one.handle, length, offset)
        finally:
            one.users.pop()
            if one.is_dropped:
                self._close_unused(one)

    def read_into(self, segment: int, buffers: Sequence[bytearray | memoryview], offset: int) -> int:
        """Read from a segment into buffers, one after the other; gives the count of bytes."""
        one = self._take(segment)
        try:
            return self._disk.preadv(one.handle, buffers, offset)
        finally:
            one.users.pop()
            if one.is_dropped:
                self._close_unused(one)

    def compacted(self) -> None:
        """Let go of segments that are gone: while one is open, its room is not given back."""
        with self._mutex:
            for segment in [*self._open]:
                if self._disk.stat(segment_path(self._root, segment)) is None:
                    self._drop(segment)

    def close(self) -> None:
        """Close all; what is being read is closed by its reader."""
        with self._mutex:
            while self._open:
                self._drop(next(iter(self._open)))

    def _take(self, segment: int) -> _Open:
        """Give the open segment; the caller takes one of its `users` back."""
        one = self._open.get(segment)
        if one is not None:
            one.users.append(None)
            if not one.is_dropped:
                return one
            one.users.pop()
            self._close_unused(one)
        handle = self._disk.open(segment_path(self._root, segment), "r")
        with self._mutex:
            self._look_at_oldest()
            other = self._open.get(segment)
            if other is not None:  # another thread was faster; what is found here is not dropped
                self._disk.close(handle)
                other.users.append(None)
                return other
            surplus = len(self._open) + 1 - MAX_OPEN
            if surplus > 0:
                idle = (number for number, one in self._open.items() if not one.users)
                for number in [*islice(idle, surplus)]:
                    self._drop(number)
            one = self._open[segment] = _Open(handle)
            return one

    def _look_at_oldest(self) -> None:
        """By and by, let go also of what other processes have compacted away."""
        for segment in islice([*self._open], 1):
            if self._disk.stat(segment_path(self._root, segment)) is None:
                self._drop(segment)
            else:
                self._open.move_to_end(segment)

    def _drop(self, segment: int) -> None:
        one = self._open.pop(segment)
        one.is_dropped = True
        self._close_unused(one)

    def _close_unused(self, one: _Open) -> None:
        """Close a segment that was dropped, once, when its last user has left it."""
        with self._mutex:
            if not one.users and not one.is_closed:
                one.is_closed = True
                self._disk.close(one.handle)
