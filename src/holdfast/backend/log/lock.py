"""The store-wide lock: between processes by `flock`, between threads by a mutex, with a limit to the waiting."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

import msgspec

from holdfast.backend.log.disk import Disk
from holdfast.backend.log.layout import LOCK_FILE
from holdfast.errors import BackendError, Locked
from holdfast.types import now_ms

OWNER_BYTES: Final = 256
_FIRST_PAUSE_SECONDS: Final = 0.0002
_LONGEST_PAUSE_SECONDS: Final = 0.02


class StoreLock:
    """Whoever changes what others rely on holds this: apply, named changes, takeover, rebuild.

    Reentrant within a thread. The file names its last owner, for the message of whoever waits in vain.
    """

    def __init__(self, disk: Disk, root: str, timeout_seconds: float) -> None:
        self._disk = disk
        self.handle = disk.open(f"{root}/{LOCK_FILE}", "rw")
        self._path = f"{root}/{LOCK_FILE}"
        self._timeout = timeout_seconds
        self._mutex = threading.RLock()
        self._depth = 0
        owner = msgspec.json.encode({"host": os.uname().nodename[:100], "pid": os.getpid()})
        self._owner = owner.ljust(OWNER_BYTES)
        self._names_us = False

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the lock; `Locked` names the owner when it does not come free in time."""
        self.acquire()
        try:
            yield
        finally:
            self.release()

    def acquire(self) -> None:
        """Take the lock."""
        if not self._mutex.acquire(timeout=self._timeout):
            raise Locked(
                "another thread of this process holds the store's lock", path=self._path, pid=os.getpid()
            )
        try:
            if self._depth == 0:
                self._take()
            self._depth += 1
        except BaseException:
            try:
                if self._depth == 0:  # interrupted just after it was taken: nobody would release it
                    self._disk.unlock(self.handle)
            finally:
                self._mutex.release()
            raise

    def release(self) -> None:
        """Give the lock back."""
        self._depth -= 1
        try:
            if self._depth == 0:
                self._disk.unlock(self.handle)
        finally:
            self._mutex.release()

    def close(self) -> None:
        """Close the lock's file; harmless twice: its number may be another file's by then."""
        handle, self.handle = self.handle, -1
        if handle >= 0:
            self._disk.close(handle)

    def _take(self) -> None:
        if not self._disk.lock(self.handle):
            self._names_us = False
            deadline = time.monotonic() + self._timeout
            pause = _FIRST_PAUSE_SECONDS
            while not self._disk.lock(self.handle):
                if time.monotonic() > deadline:
                    raise self._refusal()
                time.sleep(pause)
                pause = min(pause * 1.5, _LONGEST_PAUSE_SECONDS)
        if not self._names_us:
            with suppress(BackendError):  # a courtesy: the lock is held all the same, also on a full disk
                self._disk.pwrite(self.handle, [self._owner], 0)
                self._names_us = True

    def _refusal(self) -> Locked:
        data = self._disk.pread(self.handle, OWNER_BYTES, 0)
        try:
            owner = msgspec.json.decode(data.rstrip(b" \0"), type=dict[str, str | int])
        except (msgspec.MsgspecError, UnicodeDecodeError):
            owner = {}
        host, pid = owner.get("host", "?"), owner.get("pid", "?")
        return Locked(
            f"the store's lock was not free within {self._timeout:g} s: process {pid} on {host} had it last",
            path=self._path,
            host=host,
            pid=pid,
            at_ms=now_ms(),
        )
