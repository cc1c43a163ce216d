"""What becomes of the files of a log when somebody meddles with them, or the disk is full."""

from __future__ import annotations

import os
import shutil
import socket
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

import holdfast
from holdfast.backend.log.disk import LocalDisk
from holdfast.errors import CorruptSegment, HoldfastError, NeedsReopen, NoSpace, PermissionDenied, Unavailable
from holdfast.store import Store
from holdfast.testing.contract_base import sample
from holdfast.testing.faults import Fault, FaultyDisk, Site
from holdfast.types import BytesLike
from holdfast.wire.record import SegmentHeader, encode_segment_header


def open_store(path: Path, **options: Any) -> Store:
    return Store._open(path, **{"create": True, "compression": "none", "segment_bytes": 64 << 10, **options})


def segments(path: Path) -> list[str]:
    return sorted(os.listdir(path / "segments"))


# -- taken away while they are open


def unlinked(segment: Path) -> None:
    segment.unlink()


def replaced(segment: Path) -> None:
    shutil.copyfile(segment, segment.with_suffix(".copy"))
    segment.with_suffix(".copy").replace(segment)


def moved(segment: Path) -> None:
    segment.rename(segment.with_suffix(".moved"))


@pytest.mark.parametrize("take", [unlinked, replaced, moved])
def test_nothing_is_acknowledged_into_a_segment_that_was_taken_away(
    tmp_path: Path, take: Callable[[Path], None]
) -> None:
    with open_store(tmp_path / "s") as store:
        store.put(b"before")
        (name,) = segments(tmp_path / "s")
        take(tmp_path / "s" / "segments" / name)
        after = store.put(b"after")
        assert store.read(after) == b"after"
    (tmp_path / "s" / "catalog.db").unlink()
    with open_store(tmp_path / "s") as store:
        assert store.read(after) == b"after"


def test_a_store_whose_segments_were_removed_says_so(tmp_path: Path) -> None:
    with open_store(tmp_path / "s") as store:
        store.put(b"before")
        shutil.rmtree(tmp_path / "s" / "segments")
        for call in (lambda: store.put(b"after"), store.scrub, store.rebuild, store.stats):
            with pytest.raises(CorruptSegment, match=r"gone|missing"):
                call()
    with pytest.raises(CorruptSegment, match="segments is gone"):
        holdfast.open(tmp_path / "s")


def test_a_store_that_was_removed_says_so(tmp_path: Path) -> None:
    store = open_store(tmp_path / "s")
    store.put(b"before")
    shutil.rmtree(tmp_path / "s")
    with pytest.raises(NeedsReopen, match="removed"):
        store.put(b"after")
    store.close()


# -- planted


def a_pipe(path: Path, elsewhere: Path) -> None:
    os.mkfifo(path)


def a_directory(path: Path, elsewhere: Path) -> None:
    path.mkdir()


def a_link(path: Path, elsewhere: Path) -> None:
    elsewhere.write_bytes(b"not ours")
    path.symlink_to(elsewhere)


def a_link_to_nothing(path: Path, elsewhere: Path) -> None:
    path.symlink_to(elsewhere)


def a_socket(path: Path, elsewhere: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)  # a socket's path is short
    try:
        with socket.socket(socket.AF_UNIX) as one:
            one.bind(path.name)
    finally:
        os.chdir(here)


def a_device(path: Path, elsewhere: Path) -> None:
    try:
        os.mknod(path, 0o20600, os.stat("/dev/zero").st_rdev)
    except PermissionError:
        pytest.skip("only root makes devices")


PLANTED = [a_pipe, a_directory, a_link, a_link_to_nothing, a_socket, a_device]


@pytest.mark.timeout(60)
@pytest.mark.parametrize("plant", PLANTED)
def test_what_is_no_file_is_refused_among_the_segments(
    tmp_path: Path, plant: Callable[[Path, Path], None]
) -> None:
    open_store(tmp_path / "s").close()
    plant(tmp_path / "s" / "segments" / "0000000009.seg", tmp_path / "elsewhere")
    for read_only in (False, True):
        with pytest.raises(PermissionDenied, match=r"0000000009\.seg is no regular file"):
            holdfast.open(tmp_path / "s", read_only=read_only)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("plant", PLANTED)
def test_what_is_no_file_is_not_read_in_place_of_a_segment(
    tmp_path: Path, plant: Callable[[Path, Path], None]
) -> None:
    with open_store(tmp_path / "s") as store:
        artifact = store.put(b"content")
    with open_store(tmp_path / "s", read_only=True, create=False) as store:
        (name,) = segments(tmp_path / "s")
        (tmp_path / "s" / "segments" / name).unlink()
        plant(tmp_path / "s" / "segments" / name, tmp_path / "elsewhere")
        with pytest.raises(PermissionDenied, match="no regular file"):
            store.read(artifact)


def test_a_segment_of_another_store_is_reported_and_not_taken_in(tmp_path: Path) -> None:
    with open_store(tmp_path / "other") as other:
        for seed in range(30):
            other.put(sample(9_000, seed), filename="of another store")
    with open_store(tmp_path / "s") as store:
        mine = store.put(b"mine")
    name = segments(tmp_path / "other")[2]
    assert name not in segments(tmp_path / "s")
    shutil.copy(tmp_path / "other" / "segments" / name, tmp_path / "s" / "segments" / name)
    with open_store(tmp_path / "s") as store:
        assert list(store.find()) == [mine]
        (problem,) = store.rebuild().problems
        assert "another store" in problem.message
        assert problem.path is not None
        assert problem.path.endswith(name)
        assert list(store.find()) == [mine]
        after = store.put(b"after")
    with open_store(tmp_path / "s") as store:
        assert list(store.find()) == [after, mine]
    assert (tmp_path / "s" / "segments" / name).read_bytes() == (
        tmp_path / "other" / "segments" / name
    ).read_bytes()


def test_a_segment_that_says_it_is_another_store_s_is_told_of(tmp_path: Path) -> None:
    """Its records are sound; scrub compares whose it is."""
    with open_store(tmp_path / "s") as store:
        for seed in range(9):
            store.put(sample(9_000, seed))
        name = segments(tmp_path / "s")[0]
        with (tmp_path / "s" / "segments" / name).open("r+b") as file:
            file.write(encode_segment_header(SegmentHeader(1, b"another store id", 0)))
        report = store.scrub()
        assert ["belongs elsewhere" in problem.message for problem in report.problems] == [True]
        assert store.repair().ok
        assert store.scrub().ok, "it says again that it is ours"


def test_repair_takes_nothing_in_from_a_segment_of_another_store(tmp_path: Path) -> None:
    """Its records are sound: put under our name they would be ours, tags and tombstones included."""
    with open_store(tmp_path / "other") as other:
        other.tags.set("latest", other.put(sample(9_000, 1)).hash)
        other.tags.set("latest", other.put(sample(9_000, 2)).hash)
    with open_store(tmp_path / "s") as store:
        mine = store.put(sample(9_000, 3))
        store.tags.set("latest", mine.hash)
    kept = (tmp_path / "s" / "segments" / segments(tmp_path / "s")[0]).read_bytes()
    theirs = (tmp_path / "other" / "segments" / segments(tmp_path / "other")[0]).read_bytes()
    for number in (1, 9):  # in the place of ours, and beside it
        path = tmp_path / "s" / "segments" / f"{number:010d}.seg"
        path.write_bytes(theirs)
        with open_store(tmp_path / "s") as store:
            if number == 1:
                with pytest.raises(
                    CorruptSegment, match="was replaced by another one: a rebuild would forget"
                ):
                    store.rebuild()
            store.scrub()
            report = store.repair()
            assert any("move it away" in problem.message for problem in report.missing)
            assert list(store.find()) == [mine]
            assert not store.health().ok
            assert path.read_bytes() == theirs
        path.unlink()
        (tmp_path / "s" / "segments" / "0000000001.seg").write_bytes(kept)
    with open_store(tmp_path / "s") as store:
        assert store.repair().ok
        assert store.scrub().ok
        assert store.health().ok
        assert store.read(mine) == sample(9_000, 3)


def test_a_segment_under_another_name_is_not_touched(tmp_path: Path) -> None:
    """As of somebody who brings together two copies of a store that went their own ways."""
    with open_store(tmp_path / "s") as store:
        mine = store.put(sample(9_000, 1))
    (name,) = segments(tmp_path / "s")
    content = (tmp_path / "s" / "segments" / name).read_bytes()
    renamed = tmp_path / "s" / "segments" / "0000000007.seg"
    renamed.write_bytes(content)
    for _ in range(2):
        with open_store(tmp_path / "s") as store:
            assert not store.health().ok
            assert not store.repair().ok
            assert any("move it away" in problem.message for problem in store.rebuild().problems)
            store.put(b"more")
            assert renamed.read_bytes() == content
    renamed.unlink()
    with open_store(tmp_path / "s") as store:
        assert store.repair().ok
        assert store.health().ok
        assert store.read(mine) == sample(9_000, 1)


# -- a full or failing disk


def of_a_segment(site: Site) -> bool:
    return site.path.endswith(".seg") and site.call == "pwrite"


@pytest.mark.parametrize("at", [1, 2])
def test_puts_on_a_full_disk_leave_no_files(tmp_path: Path, at: int) -> None:
    """`at` 1: the header of a new segment does not fit; 2: it does, and the first record does not."""
    disk = FaultyDisk(LocalDisk(), where=of_a_segment)
    with open_store(tmp_path / "s", disk=disk, catalog_path="") as store:
        for _ in range(6):
            disk.arm(Fault.ENOSPC, at)
            with pytest.raises(NoSpace):
                store.put(b"content")
            assert len(segments(tmp_path / "s")) <= 2
        disk.heal()
        store.put(b"content")
        assert len(segments(tmp_path / "s")) == 1
        store.rebuild()
        assert store.scrub().ok


@pytest.mark.parametrize("fault", [Fault.EIO, Fault.ENOSPC])
def test_a_lock_is_taken_where_its_owner_cannot_be_written(tmp_path: Path, fault: Fault) -> None:
    disk = FaultyDisk(
        LocalDisk(),
        fault,
        at=1,
        for_good=True,
        where=lambda s: s.path.endswith("/lock") and s.call == "pwrite",
    )
    with open_store(tmp_path / "s", disk=disk) as store:
        assert store.read(store.put(b"content")) == b"content"
    assert disk.hit is not None


class PausingDisk(LocalDisk):
    """Holds the first write to a segment that comes after `armed`, until `go`."""

    def __init__(self) -> None:
        super().__init__()
        self.armed = threading.Event()
        self.waits = threading.Event()
        self.go = threading.Event()
        self.written: list[int] = []

    def pwrite(self, handle: int, buffers: Sequence[BytesLike], offset: int) -> None:
        if self.armed.is_set() and self._paths[handle].endswith(".seg"):
            self.armed.clear()
            self.waits.set()
            self.go.wait()
            assert handle in self._paths, "the handle was closed under its user"
        super().pwrite(handle, buffers, offset)


def test_sync_beside_a_thread_that_writes(tmp_path: Path) -> None:
    """An fsync that fails gives the segment up, but not under the thread that is appending to it."""
    inner = PausingDisk()
    disk = FaultyDisk(inner, Fault.EIO, at=1, where=lambda s: s.path.endswith(".seg") and s.call == "fsync")
    disk.heal()
    with open_store(tmp_path / "s", disk=disk, catalog_path="", fsync=False) as store:
        store.put(b"first")
        before = segments(tmp_path / "s")
        inner.armed.set()
        failures: list[BaseException] = []

        def put() -> None:
            try:
                store.put(b"beside")
            except BaseException as error:
                failures.append(error)

        thread = threading.Thread(target=put)
        thread.start()
        inner.waits.wait()
        disk.fault = Fault.EIO
        with pytest.raises(Unavailable):
            store.sync()
        disk.heal()
        inner.go.set()
        thread.join()
        assert not [error for error in failures if not isinstance(error, HoldfastError)]
        touched = len(
            [site for site in disk.sites if site.path.endswith(before[0]) and site.call == "pwrite"]
        )
        store.put(b"later")
        assert touched == len(
            [site for site in disk.sites if site.path.endswith(before[0]) and site.call == "pwrite"]
        ), "a segment whose fsync failed was written to again"
        store.sync()


def test_sync_gives_an_idle_segment_up_whose_fsync_fails(tmp_path: Path) -> None:
    disk = FaultyDisk(
        LocalDisk(), Fault.EIO, at=1, where=lambda s: s.path.endswith(".seg") and s.call == "fsync"
    )
    disk.heal()
    with open_store(tmp_path / "s", disk=disk, catalog_path="", fsync=False) as store:
        store.put(b"first")
        disk.fault = Fault.EIO
        with pytest.raises(Unavailable):
            store.sync()
        disk.heal()
        own = LocalDisk()
        handle = own.open(str(tmp_path / "s" / "segments" / segments(tmp_path / "s")[0]), "a")
        assert own.lock(handle), "others may take it over"
        own.close(handle)
        store.put(b"later")
        store.sync()
        assert len(segments(tmp_path / "s")) == 2
