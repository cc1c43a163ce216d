"""Sessions: a file a process, held by `flock`, that says since when it has been busy and what it leases.

What stands there is how a collector knows whom to wait for (docs/format.md, "Sessions"). A process that dies
loses its lock, and with it its pin and its leases; nobody looks at a clock.
"""

from __future__ import annotations

import os
import struct
import threading
from collections import Counter
from collections.abc import Iterable
from typing import Final, NamedTuple

from holdfast import _native
from holdfast.backend.log.disk import Disk
from holdfast.backend.log.layout import SESSIONS
from holdfast.errors import Unavailable
from holdfast.types import HASH_BYTES, id_text, new_ids, now_ms

SESSION_MAGIC: Final = b"HFSES\0\0\1"
_HEADER: Final = struct.Struct("<8s16sqI100sI")
_PIN: Final = struct.Struct("<BxxxI16sQq")
PIN_OFFSET: Final = 144
LEASES_OFFSET: Final = 192
SLOT_BYTES: Final = 1 + HASH_BYTES
LEASE_RAW: Final = 1
LEASE_HASH_SEQ: Final = 2
"""What a lease's slot begins with, before the hash; 0: it is free."""
READ_BYTES: Final = SLOT_BYTES << 15


class SessionState(NamedTuple):
    """What another process's session file says.

    One that cannot be read (a newer version's, damaged, or not written yet) counts as pinned, by no catalog.
    """

    name: str
    pid: int
    host: str
    started_ms: int
    pinned: bool
    catalog_id: bytes
    epoch: int
    pinned_ms: int = 0
    """When the oldest operation that still runs began; 0: not known."""
    leases: tuple[tuple[bytes, int], ...] | None = ()
    """(hash, 1 if it is followed as a hash seq else 0) of each, where asked for; None: they cannot be read."""


class Session:
    """This process's session: pins while operations run, and leases."""

    def __init__(self, disk: Disk, root: str, started_ms: int) -> None:
        self._disk = disk
        self._root = root
        (raw,) = new_ids(1, started_ms)
        self.name = id_text(raw)
        self._path = f"{root}/{SESSIONS}/{self.name}"
        self._mutex = threading.RLock()  # a signal handler may read while its thread is in here
        self._pins: Counter[tuple[bytes, int]] = Counter()
        self._pinned: tuple[bytes, int] | None = None
        self._free: list[int] = []
        self._next_slot = 0
        self.handle = disk.open(self._path, "x")
        try:
            if not disk.lock(self.handle):
                raise Unavailable(
                    f"a new session file is locked by somebody else: {self._path}", path=self._path
                )
            host = os.uname().nodename.encode()[:100]
            header = _HEADER.pack(SESSION_MAGIC, raw, started_ms, os.getpid(), host, 0)
            crc = _native.crc32c(header[:-4])
            disk.pwrite(
                self.handle, [header[:-4], crc.to_bytes(4, "little"), bytes(LEASES_OFFSET - len(header))], 0
            )
        except BaseException:
            disk.close(self.handle)
            raise

    def begin(self, catalog_id: bytes, epoch: int) -> tuple[bytes, int]:
        """Pin what the catalog `catalog_id` says in `epoch`, before anything is looked up; the oldest pin shows.

        `end` with what this gives.
        """
        key = (catalog_id, epoch)
        with self._mutex:
            self._pins[key] += 1
            try:
                self._show_oldest()
            except BaseException:
                self._count_off(key)
                raise
        return key

    def end(self, key: tuple[bytes, int]) -> None:
        """The operation is over."""
        with self._mutex:
            self._count_off(key)
            self._show_oldest()

    def lease(self, hashes: Iterable[bytes], kind: int = LEASE_RAW) -> list[int]:
        """Write leases; gives their slots."""
        mark = bytes((kind,))
        with self._mutex:
            left = list(hashes)
            slots: list[int] = []
            while left and self._free:
                slot = self._free.pop()
                self._disk.pwrite(self.handle, [mark + left.pop()], LEASES_OFFSET + slot * SLOT_BYTES)
                slots.append(slot)
            slots.reverse()
            fresh = b"".join([mark + hash_ for hash_ in left])
            count = len(left)
            first = self._next_slot
            self._next_slot = first + count
            if fresh:
                self._disk.pwrite(self.handle, [fresh], LEASES_OFFSET + first * SLOT_BYTES)
            return [*range(first, first + count), *slots]

    def release(self, slot: int) -> None:
        """Give a lease up."""
        with self._mutex:
            if self.handle >= 0:
                self._disk.pwrite(self.handle, [b"\0"], LEASES_OFFSET + slot * SLOT_BYTES)
                self._free.append(slot)

    def close(self) -> None:
        """End the session: its file goes, then its lock."""
        with self._mutex:
            handle, self.handle = self.handle, -1
            if handle >= 0:
                try:
                    self._disk.unlink(self._path)
                except FileNotFoundError:
                    pass
                finally:
                    self._disk.close(handle)

    def _count_off(self, key: tuple[bytes, int]) -> None:
        self._pins[key] -= 1
        if not self._pins[key]:
            del self._pins[key]

    def _show_oldest(self) -> None:
        """Write the pin that began the longest ago, the first in the order of insertion, as long as it changes."""
        while (oldest := next(iter(self._pins), None)) != self._pinned:
            self._write_pin(oldest)

    def _write_pin(self, key: tuple[bytes, int] | None) -> None:
        if self.handle >= 0:
            catalog_id, epoch = key or (bytes(16), 0)
            pin = _PIN.pack(key is not None, 0, catalog_id, epoch, 0 if key is None else now_ms())
            self._disk.pwrite(self.handle, [pin], PIN_OFFSET)
        self._pinned = key


def read_sessions(
    disk: Disk, root: str, *, leases: bool = False, read_only: bool = False
) -> list[SessionState]:
    """Give the sessions of living processes, our own included; files of dead ones are removed.

    The caller holds the store's lock: a session that is just being made must not be taken for a dead one's. Who is
    `read_only` has no lock, and removes none.
    """
    states: list[SessionState] = []
    if disk.stat(f"{root}/{SESSIONS}") is None:  # empty directories are what copies of a store lack
        if not read_only:
            disk.mkdir(f"{root}/{SESSIONS}")
        return states
    for name in disk.listdir(f"{root}/{SESSIONS}"):
        path = f"{root}/{SESSIONS}/{name}"
        try:
            handle = disk.open(path, "r" if read_only else "a")
        except FileNotFoundError:
            continue
        try:
            if disk.lock(handle, exclusive=not read_only):
                if not read_only:
                    disk.unlink(path)
                continue
            state = parse_session(name, disk.pread(handle, LEASES_OFFSET, 0))
            states.append(state._replace(leases=_read_leases(disk, handle, state)) if leases else state)
        finally:
            disk.close(handle)
    return states


def parse_session(name: str, data: bytes) -> SessionState:
    """Read the first `LEASES_OFFSET` bytes of a session file."""
    if len(data) == LEASES_OFFSET:
        magic, _, started_ms, pid, host, crc = _HEADER.unpack_from(data)
        if magic == SESSION_MAGIC and _native.crc32c(data[: _HEADER.size - 4]) == crc:
            pinned, _, catalog_id, epoch, pinned_ms = _PIN.unpack_from(data, PIN_OFFSET)
            text = host.rstrip(b"\0").decode(errors="replace")
            return SessionState(name, pid, text, started_ms, bool(pinned), catalog_id, epoch, pinned_ms)
    return SessionState(name, 0, "", 0, True, bytes(16), 0)


def _read_leases(disk: Disk, handle: int, state: SessionState) -> tuple[tuple[bytes, int], ...] | None:
    if not state.pid:
        return None
    found = []
    at = LEASES_OFFSET
    while data := disk.pread(handle, READ_BYTES, at):
        for start in range(0, len(data) - SLOT_BYTES + 1, SLOT_BYTES):
            kind = data[start]
            if kind > LEASE_HASH_SEQ:
                return None
            if kind:
                found.append((data[start + 1 : start + SLOT_BYTES], kind - LEASE_RAW))
        at += len(data)
    return tuple(found)
