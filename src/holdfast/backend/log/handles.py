"""Open segment files for reading: a few for each thread, so that no thread closes what another reads from."""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from collections.abc import Sequence
from typing import Final

from holdfast.backend.log.disk import Disk
from holdfast.backend.log.layout import segment_path

MAX_OPEN: Final = 64


class _Cache:
    """The open segments of one thread, the least recently opened first."""

    def __init__(self, disk: Disk, root: str) -> None:
        self.handles: OrderedDict[int, int] = OrderedDict()
        self.looked = 0
        """How often segments were compacted away here before this thread last looked."""
        self._disk = disk
        self._root = root

    def open(self, segment: int) -> int:
        self.let_go(1)  # by and by also of what other processes have compacted away
        handle = self._disk.open(segment_path(self._root, segment), "r")
        if len(self.handles) >= MAX_OPEN:
            _, oldest = self.handles.popitem(last=False)
            self._disk.close(oldest)
        self.handles[segment] = handle
        return handle

    def let_go(self, count: int) -> None:
        """See whether some of the segments are gone, and close those: their room comes back only then."""
        for segment in [*self.handles][:count]:
            if self._disk.stat(segment_path(self._root, segment)) is None:
                self._disk.close(self.handles.pop(segment))
            else:
                self.handles.move_to_end(segment)

    def close(self) -> None:
        while self.handles:
            _, handle = self.handles.popitem()
            self._disk.close(handle)

    def __del__(self) -> None:
        self.close()


class Handles:
    """Gives handles of segments for reading."""

    def __init__(self, disk: Disk, root: str) -> None:
        self._disk = disk
        self._root = root
        self._local = threading.local()
        self._caches: weakref.WeakSet[_Cache] = weakref.WeakSet()
        self._compacted = 0

    def get(self, segment: int) -> int:
        """Give a handle that stays good until this thread asks for another; `FileNotFoundError` when it is gone."""
        try:
            cache: _Cache = self._local.cache
        except AttributeError:
            cache = self._local.cache = _Cache(self._disk, self._root)
            self._caches.add(cache)
        if cache.looked != self._compacted:
            cache.looked = self._compacted
            cache.let_go(MAX_OPEN)
        handle = cache.handles.get(segment)
        return cache.open(segment) if handle is None else handle

    def compacted(self) -> None:
        """Have each thread let go of segments that are gone, before it reads the next time."""
        self._compacted += 1

    def read(self, segment: int, offset: int, length: int) -> bytes:
        """Read from a segment; short only at its end."""
        return self._disk.pread(self.get(segment), length, offset)

    def read_into(self, segment: int, buffers: Sequence[bytearray | memoryview], offset: int) -> int:
        """Read from a segment into buffers, one after the other; gives the count of bytes."""
        return self._disk.preadv(self.get(segment), buffers, offset)

    def close(self) -> None:
        """Close the handles of all threads; nobody may be reading."""
        for cache in list(self._caches):
            cache.close()
