"""Claims: files that a process holds by `flock` while it alone may go on with something, as with an upload.

Whoever dies loses its claims with its locks. Names are taken and removed under the store's lock, so that nobody ever
holds a file that has no name any more. The file names its owner, for the message of whoever comes second.
"""

from __future__ import annotations

import os

import msgspec

from holdfast.backend.log.disk import Disk
from holdfast.backend.log.lock import OWNER_BYTES
from holdfast.errors import Locked


class Claims:
    """The claims of one open store."""

    def __init__(self, disk: Disk, root: str) -> None:
        self._disk = disk
        self._root = root
        self._held: dict[str, int] = {}

    def take(self, directory: str, name: str, what: str) -> None:
        """Claim `directory/name`; `Locked` names who has it. The caller holds the store's lock."""
        disk = self._disk
        place = f"{self._root}/{directory}"
        if disk.stat(place) is None:
            disk.mkdir(place)
        path = f"{place}/{name}"
        handle = disk.open(path, "rw")
        try:
            if not disk.lock(handle):
                raise self._refusal(handle, path, what)
            owner = msgspec.json.encode({"host": os.uname().nodename[:100], "pid": os.getpid()})
            disk.pwrite(handle, [owner.ljust(OWNER_BYTES)], 0)
        except BaseException:
            disk.close(handle)
            raise
        self._held[path] = handle

    def is_held(self, directory: str, name: str) -> bool:
        """Whether anybody holds it, this process included; a file that nobody holds goes. Under the store's lock."""
        path = f"{self._root}/{directory}/{name}"
        try:
            handle = self._disk.open(path, "a")
        except FileNotFoundError:
            return False
        try:
            if not self._disk.lock(handle):
                return True
            self._disk.unlink(path)
            return False
        finally:
            self._disk.close(handle)

    def release(self, directory: str, name: str, *, remove: bool) -> None:
        """Give a claim up; harmless when it is not ours. `remove`: under the store's lock, its file goes too."""
        path = f"{self._root}/{directory}/{name}"
        handle = self._held.pop(path, -1)
        if handle >= 0:
            try:
                if remove:
                    self._disk.unlink(path)
            finally:
                self._disk.close(handle)

    def close(self) -> None:
        """Give all of them up, as a killed process does."""
        held, self._held = self._held, {}
        for handle in held.values():
            self._disk.close(handle)

    def _refusal(self, handle: int, path: str, what: str) -> Locked:
        data = self._disk.pread(handle, OWNER_BYTES, 0)
        try:
            owner = msgspec.json.decode(data.rstrip(b" \0"), type=dict[str, str | int])
        except (msgspec.MsgspecError, UnicodeDecodeError):
            owner = {}
        host, pid = owner.get("host", "?"), owner.get("pid", "?")
        return Locked(f"{what} is being worked on by process {pid} on {host}", path=path, host=host, pid=pid)
