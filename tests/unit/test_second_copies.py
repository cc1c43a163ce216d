"""Where one copy cannot be had, another is taken; and other small things that a failing disk once brought to light."""

from __future__ import annotations

import errno
import logging
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import holdfast
from holdfast.backend.log.disk import LocalDisk
from holdfast.backend.log.reader import LargeReader
from holdfast.errors import Conflict, Unavailable
from holdfast.reports import Problem
from holdfast.store import Store
from holdfast.testing.contract_base import sample
from holdfast.testing.inside import log_core


class FailingDisk(LocalDisk):
    """Cannot read the segments in `bad`."""

    def __init__(self) -> None:
        super().__init__()
        self.bad: set[str] = set()

    def pread(self, handle: int, length: int, offset: int, /) -> bytes:
        if os.path.basename(self._paths[handle]) in self.bad:
            raise OSError(errno.EIO, "cannot be read")
        return os.pread(handle, length, offset)


@pytest.mark.parametrize("size", [5_000, 300_000])
def test_a_disk_that_cannot_be_read_is_asked_for_another_copy(tmp_path: Path, size: int) -> None:
    """One cannot tell what it has stored, so the other stores it as well: two copies."""
    content = sample(size)
    disk = FailingDisk()

    def open_it(**options: Any) -> Store:
        return Store._open(tmp_path / "s", create=True, compression="none", **options)

    with open_it() as first, open_it(disk=disk, catalog_path="") as second:
        committer = log_core(second).backend.committer
        apply = committer._apply

        def fail(_: object) -> None:
            committer._apply = apply
            raise Unavailable("the catalog's disk is full")

        committer._apply = fail
        with pytest.raises(Unavailable):
            second.put(content)
        artifact = first.put(content)
        second.sync()
    with open_it(disk=disk, catalog_path="") as store:
        names = sorted(os.listdir(tmp_path / "s" / "segments"))
        assert len(names) == 2
        for bad in names:
            disk.bad = set()
            reader = log_core(store).reader(artifact)
            disk.bad = {bad}
            assert reader.read_at(0, size) == content
            assert b"".join(reader.iter_bytes(0, size)) == content
        disk.bad = set(names)
        with pytest.raises(Unavailable, match="cannot be read"):
            store.read(artifact)


def test_an_outboard_that_another_thread_finds_bad_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = sample(300_000)
    with holdfast.create(tmp_path / "s") as store:
        reader = log_core(store).reader(store.put(content))
        assert isinstance(reader, LargeReader)
        read = reader._read_raw

        def meanwhile(start: int, stop: int) -> bytes | bytearray | None:
            reader._outboard = None
            return read(start, stop)

        monkeypatch.setattr(reader, "_read_raw", meanwhile)
        assert reader.read_at(100_000, 50_000) == content[100_000:150_000]


def test_each_damage_is_logged_though_there_was_other_damage_before(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with holdfast.create(tmp_path / "s") as store:
        keeper = log_core(store).keeper
        old, new = (Problem(kind="corrupt_segment", message=text, segment=1) for text in ("old", "new"))
        recovery: Any = SimpleNamespace(problems=[old])
        with caplog.at_level(logging.WARNING, "holdfast"):
            keeper._note(recovery)
            recovery.problems = [new]
            keeper._note(recovery)
            keeper._note(recovery)
    assert [record.getMessage().rsplit(" ", 1)[1] for record in caplog.records] == ["old", "new"]


def test_of_two_that_create_a_store_at_once_one_is_told(tmp_path: Path) -> None:
    class SlowDisk(LocalDisk):
        """Another process makes the store after this one has seen that there is none."""

        def lock(self, handle: int, *, exclusive: bool = True, wait: bool = False) -> bool:
            if wait and not (tmp_path / "s" / "store.json").exists():
                Store._open(tmp_path / "s", create=True).close()
            return super().lock(handle, exclusive=exclusive, wait=wait)

    with pytest.raises(Conflict, match="already"):
        Store._open(tmp_path / "s", create=True, exist_ok=False, disk=SlowDisk(), catalog_path="")
    other = tmp_path / "t"
    Store._open(other, create=True, exist_ok=False).close()
    with pytest.raises(Conflict, match="already"):
        Store._open(other, create=True, exist_ok=False)
