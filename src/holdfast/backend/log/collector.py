"""The lock of whoever collects or compacts: one process, and one thread of it, at a time. The others are told who."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import msgspec

from holdfast.backend.log.disk import Disk
from holdfast.errors import BackendError, Locked
from holdfast.types import now_ms, plain, to_datetime

COLLECTOR_FILE: Final = "collector"
OWNER_BYTES: Final = 256
TRIES: Final = 5
TRY_SECONDS: Final = 0.01
"""Who looks whether somebody collects has the lock for a moment."""


class _Owner(msgspec.Struct):
    host: str = "?"
    pid: int = 0
    since_ms: int = 0
    what: str = "?"


@contextmanager
def collecting(disk: Disk, root: str, what: str) -> Iterator[None]:
    """Hold the lock, for "gc" or "compact"; `Locked` after a moment when another does, and it says who."""
    path = f"{root}/{COLLECTOR_FILE}"
    handle = disk.open(path, "rw")
    try:
        tries = 1
        while not disk.lock(handle):
            if tries == TRIES:
                raise _refusal(disk.pread(handle, OWNER_BYTES, 0), path)
            tries += 1
            time.sleep(TRY_SECONDS)
        owner = _Owner(os.uname().nodename[:100], os.getpid(), now_ms(), what)
        try:
            disk.pwrite(handle, [msgspec.json.encode(owner).ljust(OWNER_BYTES)], 0)
        except BackendError:  # a courtesy: on a full disk the others do not hear who it is
            pass
        yield
    finally:
        disk.close(handle)


def is_collecting(disk: Disk, root: str) -> bool:
    """Whether somebody holds the lock now; who else looks is in nobody's way."""
    try:
        handle = disk.open(f"{root}/{COLLECTOR_FILE}", "a")
    except FileNotFoundError:
        return False
    try:
        return not disk.lock(handle, exclusive=False)
    finally:
        disk.close(handle)


def _refusal(data: bytes, path: str) -> Locked:
    try:
        owner = msgspec.json.decode(data.rstrip(b" \0"), type=_Owner)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        owner = _Owner()
    since = plain(to_datetime(owner.since_ms)) if owner.since_ms else "an unknown time"
    return Locked(
        f"{owner.what} is running in process {owner.pid or '?'} on {owner.host} since {since}: only one collects or"
        " compacts a store at a time",
        path=path,
        host=owner.host,
        pid=owner.pid,
        since_ms=owner.since_ms,
        what=owner.what,
    )
