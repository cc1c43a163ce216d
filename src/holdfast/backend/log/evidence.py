"""Whether a tombstone may be forgotten: only the segments' own records say so, never the catalog.

As long as any segment, tails and those that are being written included, holds a lower revision of a name, a rebuild
would bring it back; so nothing goes while a segment cannot be read, or is out of use and may come back.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from holdfast import _native
from holdfast.backend.log.disk import Disk
from holdfast.backend.log.layout import QUARANTINE, SEGMENTS, list_segments, segment_path
from holdfast.backend.log.replay import windowed
from holdfast.backend.log.segment import read_index, read_tail, scan_records
from holdfast.errors import HoldfastError
from holdfast.wire.document import parse_artifact, parse_tag, parse_tombstone
from holdfast.wire.record import HEADER_BYTES, SEGMENT_HEADER_BYTES, Kind

Name = tuple[str, Any]
"""What is deleted: "tombstones" and the id of an artifact, or "tags" and a name."""
_NAMED = frozenset({int(Kind.ARTIFACT), int(Kind.TOMBSTONE), int(Kind.TAG)})


class Evidence:
    """What segments hold of some names. `look` again whenever it has to be up to date: only what is new is read."""

    def __init__(self, disk: Disk, root: str, names: Iterable[Name]) -> None:
        self.obstacle: str | None = None
        """Why no tombstone may go at all."""
        self._disk = disk
        self._root = root
        self._holders: dict[Name, set[int]] = {name: set() for name in names}
        self._seen: dict[int, int] = {}

    def look(self) -> None:
        """Read what was appended since the last time; a segment that is gone, durably, holds nothing any more."""
        self._disk.fsync_dir(f"{self._root}/{SEGMENTS}")  # an unlink counts from here on
        present = list_segments(self._disk, self._root)
        for gone in self._seen.keys() - set(present):
            del self._seen[gone]
            for holders in self._holders.values():
                holders.discard(gone)
        if self._disk.stat(f"{self._root}/{QUARANTINE}") is not None:
            taken_out = self._disk.listdir(f"{self._root}/{QUARANTINE}")
            if taken_out:
                self.obstacle = f"{QUARANTINE}/{min(taken_out)} may come back"
        for segment in present:
            try:
                self._look_at(segment)
            except FileNotFoundError:
                continue
            except (HoldfastError, OSError) as error:
                self.obstacle = f"segment {segment} cannot be read ({error})"

    def allows(self, name: Name, beside: int) -> bool:
        """Whether no segment holds anything of this name but `beside`, which goes together with the tombstone."""
        return self.obstacle is None and self._holders.get(name, {0}) <= {beside}

    def _look_at(self, segment: int) -> None:
        path = segment_path(self._root, segment)
        handle = self._disk.open(path, "r")
        try:
            if (
                segment not in self._seen
            ):  # who cut its end may have died before that was durable: it could come back
                self._disk.fsync(handle)
                self._seen[segment] = SEGMENT_HEADER_BYTES
            size = self._disk.size(handle)
            start = self._seen[segment]
            if size <= start:
                return
            if read_tail(self._disk, handle, segment, size).end is not None:
                index = read_index(self._disk, handle, segment, path)
                if index.problems:
                    self.obstacle = f"segment {segment} is damaged"
                self._take(segment, handle, index.entries)
                self._seen[segment] = size
                return
            troubled = False
            for found in scan_records(self._disk, handle, segment, start, size):
                if found.entries:
                    if troubled:
                        self.obstacle = f"segment {segment} is damaged before {found.start}"
                    self._take(segment, handle, found.entries)
                    start = found.stop
                # What somebody is writing just now may end anywhere: nothing of that is there yet.
                troubled = troubled or bool(found.trouble)
            self._seen[segment] = start
        finally:
            self._disk.close(handle)

    def _take(self, segment: int, handle: int, entries: bytes) -> None:
        kinds, _, offsets, stored, _, hashes = _native.entry_columns(entries)
        payloads = windowed(lambda length, offset: self._disk.pread(handle, length, offset))
        for number, kind in enumerate(kinds):
            if kind in _NAMED:
                payload = payloads(number, offsets[number] + HEADER_BYTES, stored[number])
                if _native.blake3(payload) != hashes[number]:
                    self.obstacle = f"segment {segment} is damaged at {offsets[number]}"
                    continue
                holders = self._holders.get(_name(kind, payload))
                if holders is not None:
                    holders.add(segment)


def _name(kind: int, payload: bytes) -> Name:
    if kind == Kind.ARTIFACT:
        return "tombstones", parse_artifact(payload).id
    if kind == Kind.TOMBSTONE:
        return "tombstones", parse_tombstone(payload).id
    return "tags", parse_tag(payload).name
