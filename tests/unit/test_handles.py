"""Open segments: few for all threads together, and none closed under its reader."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from holdfast.backend.log.disk import LocalDisk
from holdfast.backend.log.handles import MAX_OPEN, Handles
from holdfast.backend.log.layout import segment_path

COUNT = 3 * MAX_OPEN
THREADS = 20


class CountingDisk(LocalDisk):
    """Knows how many handles are open at most; reads of `held` wait until `go`."""

    def __init__(self) -> None:
        super().__init__()
        self.most = 0
        self.held = -1
        self.waits = threading.Event()
        self.go = threading.Event()

    def pread(self, handle: int, length: int, offset: int, /) -> bytes:
        self.most = max(self.most, len(self._paths))
        if handle == self.held:
            self.waits.set()
            self.go.wait()
        assert handle in self._paths, "closed under its reader"
        return os.pread(handle, length, offset)


@pytest.fixture
def root(tmp_path: Path) -> str:
    (tmp_path / "segments").mkdir()
    for segment in range(1, COUNT + 1):
        Path(segment_path(str(tmp_path), segment)).write_bytes(b"%10d" % segment)
    return str(tmp_path)


def test_threads_share_one_budget(root: str) -> None:
    disk = CountingDisk()
    handles = Handles(disk, root)

    def read_all(first: int) -> None:
        for i in range(COUNT):
            segment = (first * 7 + i) % COUNT + 1
            assert handles.read(segment, 0, 10) == b"%10d" % segment

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(read_all, range(THREADS)))
    assert disk.most <= MAX_OPEN + THREADS
    handles.close()
    assert not disk._paths


def test_what_is_being_read_is_not_closed(root: str) -> None:
    disk = CountingDisk()
    handles = Handles(disk, root)
    handles.read(1, 0, 10)
    disk.held = next(iter(disk._paths))
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(handles.read, 1, 0, 10)
        disk.waits.wait()
        for segment in range(2, COUNT + 1):
            handles.read(segment, 0, 10)
        os.unlink(segment_path(root, 1))
        handles.compacted()
        handles.close()
        assert len(disk._paths) == 1
        disk.go.set()
        assert slow.result() == b"%10d" % 1
    assert not disk._paths


def test_a_segment_that_was_compacted_away_is_let_go(root: str) -> None:
    disk = CountingDisk()
    handles = Handles(disk, root)
    handles.read(1, 0, 10)
    handles.read(2, 0, 10)
    os.unlink(segment_path(root, 1))
    handles.compacted()
    assert list(disk._paths.values()) == [segment_path(root, 2)]
    with pytest.raises(FileNotFoundError):
        handles.read(1, 0, 10)
    handles.close()
