"""A disk that fails on purpose: it numbers each step that changes something, and crashes or fails at one.

Record a run with `FaultyDisk(inner)`, take its `sites`, and run again once for each of them. After a
simulated crash the disk is dead, as a killed process is: every call raises `SimulatedCrash`, all its locks
are released, and what another disk over the same storage sees is what was there.
"""

from __future__ import annotations

import errno
import re
import threading
from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import Any, Final, NamedTuple, TypeVar

from holdfast.backend.log.disk import Disk, FileStat, OpenMode, translate
from holdfast.types import BytesLike

T = TypeVar("T")


class SimulatedCrash(BaseException):
    """The process ended here. No `Exception`: code that survives failures must not survive its own death."""


class Fault(StrEnum):
    """What happens at a site."""

    CRASH_BEFORE = "crash-before"
    CRASH_AFTER = "crash-after"
    CRASH_MIDWAY = "crash-midway"
    """Half of a write is there, the rest is not."""
    EIO = "eio"
    ENOSPC = "enospc"
    SHORT_WRITE = "short-write"
    """Half of a write is there, then the disk is full."""


CRASHES: Final = frozenset({Fault.CRASH_BEFORE, Fault.CRASH_AFTER, Fault.CRASH_MIDWAY})
CHANGING: Final = frozenset(
    {
        "create",
        "pwrite",
        "fsync",
        "truncate",
        "allocate",
        "rename",
        "link",
        "unlink",
        "mkdir",
        "rmdir",
        "fsync_dir",
        "close",
        "punch",
    }
)
"""The calls that are sites. `create` is an `open` that made a file; `close` is of a handle that may write."""

_GROWING: Final = frozenset({"create", "pwrite", "mkdir", "allocate"})
_CALLS: Final[dict[Fault, frozenset[str]]] = {
    Fault.CRASH_BEFORE: CHANGING,
    Fault.CRASH_AFTER: CHANGING,
    Fault.CRASH_MIDWAY: frozenset({"pwrite"}),
    Fault.EIO: CHANGING,
    Fault.ENOSPC: _GROWING | {"fsync", "rename", "link"},
    Fault.SHORT_WRITE: frozenset({"pwrite"}),
}


class Site(NamedTuple):
    """One step of a run that changes something; numbers start at 1."""

    number: int
    call: str
    path: str
    size_bytes: int = 0

    def can(self, fault: Fault) -> bool:
        """Say whether a fault can happen here at all."""
        return self.call in _CALLS[fault]

    def is_like(self, other: Site) -> bool:
        """Say whether it is the same call on the same path, but for ids, which are others in each run."""
        return self.call == other.call and without_ids(self.path) == without_ids(other.path)

    def __str__(self) -> str:
        return f"{self.number}:{self.call}({self.path.rsplit('/', 1)[-1]})"


_IDS: Final = re.compile(
    r"[0-9a-f]{8}-[0-9a-f-]{27}|(?<![0-9a-f])[0-9a-f]{32}(?![0-9a-f])|[0-9a-f]+-[0-9a-f]{16}-[0-9]+$"
)


def without_ids(path: str) -> str:
    """Give a path with a star for each UUID, and for what makes the name of a temporary file its own."""
    return _IDS.sub("*", path)


def numbered(site: Site, sites: Sequence[Site]) -> int:
    """Give the how-many-th of those that are like it a site of a run is; numbers start at 1."""
    return sum(one.is_like(site) for one in sites[: site.number])


class FaultyDisk:
    """A disk around another one, of one process, that fails at one site, once or from then on.

    `at` counts the sites for which `where` holds (all of them, if it is not given). With `for_good`, every
    later step of the kind fails as well: the disk stays broken, or stays full. A crash is for good by nature.
    Threads reach their sites in any order: `like` has only sites that are like that one counted (`numbered`).
    """

    def __init__(
        self,
        inner: Disk,
        fault: Fault | None = None,
        at: int = 0,
        *,
        for_good: bool = False,
        where: Callable[[Site], bool] | None = None,
        like: Site | None = None,
    ) -> None:
        self.inner = inner
        self.fault = fault
        self.at = at
        self.for_good = for_good
        self.where = where
        self.like = like
        self.sites: list[Site] = []
        self.hit: Site | None = None
        self.struck = False
        """Whether the fault came to pass: the site of that number was one that can have it."""
        self.crashed = False
        self._matching = 0
        self._handles: dict[int, tuple[str, bool]] = {}
        self._mutex = threading.RLock()

    # --- faults

    def crash(self) -> None:
        """End this process now: its locks are free, and each later call raises."""
        with self._mutex:
            if self.crashed:
                return
            self.crashed = True
            for handle in self._handles:
                self.inner.close(handle)
            self._handles.clear()

    def arm(self, fault: Fault, steps: int) -> None:
        """Fail at the step that comes `steps` after this moment (1: the next)."""
        with self._mutex:
            self.fault, self.hit, self.struck = fault, None, False
            self.at = self._matching + steps

    def heal(self) -> None:
        """Fail no more."""
        self.fault = None

    def _alive(self) -> Disk:
        if self.crashed:
            raise SimulatedCrash("this process has crashed")
        return self.inner

    def _decide(self, call: str, path: str, size_bytes: int) -> Fault | None:
        with self._mutex:
            self._alive()
            site = Site(len(self.sites) + 1, call, path, size_bytes)
            self.sites.append(site)
            if self.fault is None or not (self.where is None or self.where(site)):
                return None
            if self.hit is None:
                if self.like is None or site.is_like(self.like):
                    self._matching += 1
                    if self._matching == self.at:
                        self.hit = site
                        self.struck = site.can(self.fault)
                        return self.fault if self.struck else None
            elif self.for_good:
                again = _GROWING if self.fault in (Fault.ENOSPC, Fault.SHORT_WRITE) else _CALLS[self.fault]
                if call in again:
                    return Fault.ENOSPC if self.fault is Fault.SHORT_WRITE else self.fault
            return None

    def _step(self, call: str, path: str, action: Callable[[], T]) -> T:
        fault = self._decide(call, path, 0)
        if fault is None:
            return action()
        if fault is Fault.CRASH_AFTER:
            action()
        if fault in CRASHES:
            self._die()
        raise _failure(fault, path)

    def _die(self) -> None:
        self.crash()
        raise SimulatedCrash(f"{self.fault} {self.hit}")

    def _path(self, handle: int) -> str:
        return self._handles.get(handle, ("?", False))[0]

    # --- the calls of a disk

    def open(self, path: str, mode: OpenMode) -> int:
        self._alive()
        if mode == "x" or (mode == "rw" and self.inner.stat(path) is None):
            handle = self._step("create", path, lambda: self.inner.open(path, mode))
        else:
            handle = self.inner.open(path, mode)
        with self._mutex:
            self._handles[handle] = (path, mode != "r")
        return handle

    def close(self, handle: int) -> None:
        if self.crashed:  # the kernel has closed it; finalizers may still ask
            return
        path, writable = self._handles.get(handle, ("?", False))
        fault = self._decide("close", path, 0) if writable else None
        if fault is Fault.CRASH_BEFORE:
            self._die()
        with self._mutex:
            self._handles.pop(handle, None)
        self.inner.close(handle)  # a close that fails has closed all the same
        if fault in CRASHES:
            self._die()
        if fault is not None:
            raise _failure(fault, path)

    def pread(self, handle: int, length: int, offset: int, /) -> bytes:
        return self._alive().pread(handle, length, offset)

    def preadv(self, handle: int, buffers: Sequence[bytearray | memoryview], offset: int, /) -> int:
        return self._alive().preadv(handle, buffers, offset)

    def pwrite(self, handle: int, buffers: Sequence[BytesLike], offset: int) -> None:
        total = sum(map(len, buffers))
        path = self._path(handle)
        fault = self._decide("pwrite", path, total)
        if fault in (Fault.CRASH_MIDWAY, Fault.SHORT_WRITE):
            self.inner.pwrite(handle, [b"".join(buffers)[: total // 2]], offset)
        elif fault in (None, Fault.CRASH_AFTER):
            self.inner.pwrite(handle, buffers, offset)
        if fault in CRASHES:
            self._die()
        if fault is not None:
            raise _failure(fault, path)

    def fsync(self, handle: int) -> None:
        path = self._path(handle)
        fault = self._decide("fsync", path, 0)
        if fault in (None, Fault.CRASH_AFTER):
            self.inner.fsync(handle)
        if fault in CRASHES:
            self._die()
        if fault is not None:
            # The kernel forgets that the pages were not written: the next fsync says that all is well.
            forget: Any = getattr(self.inner, "forget_dirty", None)
            if forget is not None:
                forget(handle)
            raise _failure(fault, path)

    def truncate(self, handle: int, length: int) -> None:
        self._step("truncate", self._path(handle), lambda: self.inner.truncate(handle, length))

    def punch(self, handle: int, offset: int, length: int) -> None:
        self._step("punch", self._path(handle), lambda: self.inner.punch(handle, offset, length))

    def allocate(self, handle: int, length: int) -> None:
        self._step("allocate", self._path(handle), lambda: self.inner.allocate(handle, length))

    def size(self, handle: int) -> int:
        return self._alive().size(handle)

    def fstat(self, handle: int) -> FileStat:
        return self._alive().fstat(handle)

    def lock(self, handle: int, *, exclusive: bool = True, wait: bool = False) -> bool:
        return self._alive().lock(handle, exclusive=exclusive, wait=wait)

    def unlock(self, handle: int) -> None:
        self._alive().unlock(handle)

    def rename(self, source: str, target: str) -> None:
        self._step("rename", target, lambda: self.inner.rename(source, target))

    def link(self, source: str, target: str) -> None:
        self._step("link", target, lambda: self.inner.link(source, target))

    def unlink(self, path: str) -> None:
        self._step("unlink", path, lambda: self.inner.unlink(path))

    def mkdir(self, path: str) -> None:
        self._step("mkdir", path, lambda: self.inner.mkdir(path))

    def rmdir(self, path: str) -> None:
        self._step("rmdir", path, lambda: self.inner.rmdir(path))

    def listdir(self, path: str) -> list[str]:
        return self._alive().listdir(path)

    def stat(self, path: str) -> FileStat | None:
        return self._alive().stat(path)

    def fsync_dir(self, path: str) -> None:
        self._step("fsync_dir", path, lambda: self.inner.fsync_dir(path))

    def free_bytes(self, path: str) -> int:
        return self._alive().free_bytes(path)

    def total_bytes(self, path: str) -> int:
        return self._alive().total_bytes(path)

    def drop_cache(self, handle: int) -> None:
        self._alive().drop_cache(handle)


def _failure(fault: Fault, path: str) -> Exception:
    code = errno.EIO if fault is Fault.EIO else errno.ENOSPC
    return translate(OSError(code, "injected"), path)
