"""Room that is kept for compaction: a file with real blocks, given back to the disk when nothing else is left.

Without it nothing could be copied on a full disk, and so nothing be freed. Other writers cannot take it. It is made
with the second segment of a store (before that there is little to give back), and again after each compaction.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Final

from holdfast.backend.log.collector import is_collecting
from holdfast.backend.log.disk import Disk
from holdfast.errors import HoldfastError

RESERVE_FILE: Final = "reserve"
SHARE: Final = 20
"""At most this part of the file system, where nothing else is configured: 5 %."""
LENT_SHARE: Final = 8
"""What a deletion borrows at a time is this part of it."""


class Reserve:
    """The reserve of one store. `want_bytes` None: a segment, or 5 % of the file system if that is less."""

    def __init__(self, disk: Disk, root: str, want_bytes: int | None, segment_bytes: int) -> None:
        self._disk = disk
        self._root = root
        self._path = f"{root}/{RESERVE_FILE}"
        self._want = want_bytes
        self._segment_bytes = segment_bytes
        self.given_up = False
        """Released, and to stay so until who compacts is done."""

    def want_bytes(self) -> int:
        """Give how large it is to be."""
        if self._want is not None:
            return self._want
        return min(self._segment_bytes, self._disk.total_bytes(self._root) // SHARE)

    def held_bytes(self) -> int:
        """Give how large it is."""
        found = self._disk.stat(self._path)
        return 0 if found is None else found.size_bytes

    def make(self) -> None:
        """Have it as large as it is to be, as far as there is room; not while somebody compacts, who may be using it.

        Whoever calls goes on without it: `held_bytes` says what is there.
        """
        with suppress(HoldfastError):
            held, want = self.held_bytes(), self.want_bytes()
            if self.given_up:
                return
            if held < want and not is_collecting(self._disk, self._root):
                self.fill()
            elif held > want and self._want is not None:
                self._disk.unlink(self._path)
                self.fill()

    def fill(self) -> None:
        """The same, for who compacts, when that is done."""
        self.given_up = False
        want = self.want_bytes()
        if self.held_bytes() >= want:
            return
        handle = self._disk.open(self._path, "rw")
        held = self._disk.size(handle)
        try:
            self._disk.allocate(handle, want)
        except HoldfastError:
            self._disk.truncate(handle, held)  # some more of it is of no use, and others may need it
            raise
        finally:
            self._disk.close(handle)

    def lend(self) -> int:
        """Give a part of it back, for what takes little; gives how many bytes that were, 0 when half is gone."""
        held, want = self.held_bytes(), self.want_bytes()
        part = min(want // LENT_SHARE, held - want // 2)
        if part <= 0:
            return 0
        self.given_up = True
        handle = self._disk.open(self._path, "a")
        try:
            self._disk.truncate(handle, held - part)
        finally:
            self._disk.close(handle)
        return part

    def release(self) -> int:
        """Give it back to the disk; gives how many bytes that were."""
        self.given_up = True
        held = self.held_bytes()
        if held:
            self._disk.unlink(self._path)
        return held
