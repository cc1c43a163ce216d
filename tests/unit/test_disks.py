"""The real disk's own promises, and that the model and the faulty disk behave as it does."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from holdfast.backend.log.disk import Disk, LocalDisk, filesystem_type, is_network_filesystem, translate
from holdfast.backend.memory import MemoryDisk
from holdfast.errors import HoldfastError, NoSpace, PermissionDenied, Unavailable
from holdfast.testing.faults import Fault, FaultyDisk, SimulatedCrash
from holdfast.testing.model_disk import ModelDisk


@pytest.fixture(params=["local", "model", "faulty"])
def disk(request: pytest.FixtureRequest) -> Disk:
    if request.param == "local":
        return LocalDisk()
    return ModelDisk("/") if request.param == "model" else FaultyDisk(LocalDisk())


@pytest.fixture
def place(disk: Disk, tmp_path: Path) -> str:
    if isinstance(disk, ModelDisk):
        disk.mkdir("/place")
        return "/place"
    return str(tmp_path)


def test_bytes_come_back(disk: Disk, place: str) -> None:
    handle = disk.open(f"{place}/a", "x")
    disk.pwrite(handle, [b"hello ", bytearray(b"wide "), memoryview(b"world")], 3)
    assert disk.size(handle) == 19
    assert disk.pread(handle, 100, 0) == b"\0\0\0hello wide world"
    first, second = bytearray(5), bytearray(50)
    assert disk.preadv(handle, [first, second], 3) == 16
    assert bytes(first) == b"hello"
    disk.truncate(handle, 8)
    disk.fsync(handle)
    disk.fsync_dir(place)
    assert disk.pread(handle, 100, 3) == b"hello"
    disk.close(handle)


def test_more_buffers_than_the_system_takes(disk: Disk, place: str) -> None:
    buffers = [bytes([i % 251]) * (i % 7) for i in range(5000)]
    handle = disk.open(f"{place}/a", "rw")
    disk.pwrite(handle, buffers, 1)
    assert disk.pread(handle, 1 << 20, 1) == b"".join(buffers)
    disk.close(handle)


def test_a_second_name(disk: Disk, place: str) -> None:
    handle = disk.open(f"{place}/a", "x")
    disk.pwrite(handle, [b"abc"], 0)
    disk.fsync(handle)
    before = disk.fstat(handle)
    disk.close(handle)
    assert before.links == 1
    disk.link(f"{place}/a", f"{place}/b")
    with pytest.raises(FileExistsError):
        disk.link(f"{place}/a", f"{place}/b")
    with pytest.raises(FileNotFoundError):
        disk.link(f"{place}/none", f"{place}/c")
    assert disk.stat(f"{place}/b") == before._replace(links=2)
    disk.unlink(f"{place}/a")
    assert disk.stat(f"{place}/b") == before
    handle = disk.open(f"{place}/b", "r")
    assert disk.pread(handle, 9, 0) == b"abc"
    disk.close(handle)


def test_a_second_name_is_lost_without_its_directory() -> None:
    disk = ModelDisk("/place")
    handle = disk.open("/place/a", "x")
    disk.pwrite(handle, [b"abc"], 0)
    disk.fsync(handle)
    disk.fsync_dir("/place")
    disk.link("/place/a", "/place/b")
    seen = {tuple(sorted(after.files())) for after in disk.crash_states(random.Random(1), 50)}
    assert seen == {("/place/a",), ("/place/a", "/place/b")}
    disk.fsync_dir("/place")
    disk.unlink("/place/a")
    assert disk.used_bytes == 3
    for after in disk.crash_states(random.Random(1), 20):
        found = after.stat("/place/b")
        assert found is not None
        assert found.links == len(after.files())
    disk.unlink("/place/b")
    assert disk.used_bytes == 0


def test_modes(disk: Disk, place: str) -> None:
    with pytest.raises(FileNotFoundError):
        disk.open(f"{place}/a", "r")
    with pytest.raises(FileNotFoundError):
        disk.open(f"{place}/a", "a")
    disk.close(disk.open(f"{place}/a", "x"))
    with pytest.raises(FileExistsError):
        disk.open(f"{place}/a", "x")
    handle = disk.open(f"{place}/a", "r")
    with pytest.raises(HoldfastError):
        disk.pwrite(handle, [b"x"], 0)
    disk.close(handle)


def test_names(disk: Disk, place: str) -> None:
    disk.mkdir(f"{place}/d")
    disk.close(disk.open(f"{place}/d/a", "x"))
    disk.close(disk.open(f"{place}/d/b", "x"))
    before = disk.stat(f"{place}/d/a")
    disk.rename(f"{place}/d/a", f"{place}/d/b")
    assert disk.listdir(f"{place}/d") == ["b"]
    assert disk.stat(f"{place}/d/b") == before
    assert disk.stat(f"{place}/d/a") is None
    assert disk.stat(f"{place}/d/b/c") is None
    found = disk.stat(f"{place}/d")
    assert found is not None
    assert found.is_dir
    with pytest.raises(HoldfastError):
        disk.rmdir(f"{place}/d")
    with pytest.raises(FileNotFoundError):
        disk.unlink(f"{place}/d/a")
    disk.unlink(f"{place}/d/b")
    disk.rmdir(f"{place}/d")
    with pytest.raises(FileNotFoundError):
        disk.listdir(f"{place}/d")
    assert disk.free_bytes(place) > 0


def test_an_unlinked_file_lives_until_it_is_closed(disk: Disk, place: str) -> None:
    handle = disk.open(f"{place}/a", "x")
    disk.pwrite(handle, [b"still here"], 0)
    disk.unlink(f"{place}/a")
    assert disk.pread(handle, 10, 0) == b"still here"
    disk.close(handle)


def test_punched_bytes_are_zero_and_the_length_stays(disk: Disk, place: str) -> None:
    handle = disk.open(f"{place}/a", "x")
    disk.pwrite(handle, [b"\1" * 50_000], 0)
    disk.punch(handle, 4_000, 30_000)
    disk.punch(handle, 45_000, 1 << 30)
    disk.punch(handle, 10, 0)
    assert disk.size(handle) == 50_000
    expected = b"\1" * 4_000 + bytes(30_000) + b"\1" * 11_000 + bytes(5_000)
    assert disk.pread(handle, 50_000, 0) == expected
    disk.close(handle)


def test_punching_gives_room_back(tmp_path: Path) -> None:
    disk = LocalDisk()
    handle = disk.open(f"{tmp_path}/a", "x")
    disk.pwrite(handle, [b"\1" * (1 << 20)], 0)
    disk.fsync(handle)
    before = os.stat(tmp_path / "a").st_blocks
    disk.punch(handle, 0, 1 << 20)
    disk.fsync(handle)
    assert os.stat(tmp_path / "a").st_blocks < before // 2
    disk.close(handle)


def test_the_disk_in_memory_does_the_same() -> None:
    disk = MemoryDisk()
    for i, test in enumerate(
        (
            test_bytes_come_back,
            test_punched_bytes_are_zero_and_the_length_stays,
            test_locks_belong_to_the_handle,
        )
    ):
        disk.mkdir(f"/{i}")
        test(disk, f"/{i}")


def test_a_file_in_memory_takes_no_room_where_nobody_wrote() -> None:
    disk = MemoryDisk()
    disk.mkdir("/d")
    handle = disk.open("/d/a", "x")
    disk.pwrite(handle, [b"far"], 1 << 60)
    assert disk.size(handle) == (1 << 60) + 3
    assert disk.pread(handle, 10, (1 << 60) - 2) == b"\0\0far"
    disk.punch(handle, 0, 1 << 61)
    assert disk.pread(handle, 10, 1 << 60) == b"\0\0\0"
    disk.close(handle)


def test_locks_belong_to_the_handle(disk: Disk, place: str) -> None:
    one = disk.open(f"{place}/a", "rw")
    two = disk.open(f"{place}/a", "rw")
    assert disk.lock(one)
    assert disk.lock(one)
    assert not disk.lock(two)
    assert not disk.lock(two, exclusive=False)
    assert disk.lock(one, exclusive=False)
    assert disk.lock(two, exclusive=False)
    assert not disk.lock(two)
    disk.unlock(one)
    disk.unlock(two)
    assert disk.lock(two)
    disk.close(two)
    assert disk.lock(one)
    disk.close(one)


def test_waiting_for_a_lock(disk: Disk, place: str) -> None:
    one = disk.open(f"{place}/a", "rw")
    two = disk.open(f"{place}/a", "rw")
    assert disk.lock(one)
    taken = threading.Event()

    def wait() -> None:
        assert disk.lock(two, wait=True)
        taken.set()

    waiter = threading.Thread(target=wait)
    waiter.start()
    assert not taken.wait(0.05)
    disk.unlock(one)
    waiter.join(10)
    assert taken.is_set()


def test_new_files_are_private_and_links_are_refused(tmp_path: Path) -> None:
    disk = LocalDisk()
    disk.close(disk.open(str(tmp_path / "a"), "x"))
    disk.mkdir(str(tmp_path / "d"))
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "d").stat().st_mode & 0o777 == 0o700
    (tmp_path / "link").symlink_to(tmp_path / "a")
    with pytest.raises(PermissionDenied):
        disk.open(str(tmp_path / "link"), "r")


def test_short_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(7)
    real = os.pwritev

    def short(handle: int, buffers: Sequence[bytes], offset: int) -> int:
        joined = b"".join(buffers)
        return real(handle, [joined[: rng.randint(min(1, len(joined)), len(joined))]], offset)

    monkeypatch.setattr(os, "pwritev", short)
    disk = LocalDisk()
    for attempt in range(50):
        buffers = [rng.randbytes(rng.choice((0, 1, 5, 700))) for _ in range(rng.randint(1, 9))]
        handle = disk.open(str(tmp_path / f"{attempt}"), "x")
        disk.pwrite(handle, buffers, 0)
        assert disk.pread(handle, 1 << 16, 0) == b"".join(buffers)
        disk.close(handle)


def test_a_write_that_takes_nothing_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "pwritev", lambda *_: 0)
    disk = LocalDisk()
    handle = disk.open(str(tmp_path / "a"), "x")
    with pytest.raises(Unavailable) as caught:
        disk.pwrite(handle, [b"x"], 0)
    assert caught.value.path == str(tmp_path / "a")
    disk.close(handle)


def test_errors_are_translated_once() -> None:
    assert isinstance(translate(OSError(28, "full"), "/p"), NoSpace)
    assert isinstance(translate(OSError(30, "read-only"), "/p"), PermissionDenied)
    failed = translate(OSError(5, "bad"), "/p")
    assert isinstance(failed, Unavailable)
    assert (failed.errno, failed.path) == (5, "/p")
    assert translate(failed, "/q") is failed
    missing = FileNotFoundError(2, "no")
    assert translate(missing, "/p") is missing


def test_the_file_system_under_a_path() -> None:
    mountinfo = (
        "21 1 8:1 / / rw - ext4 /dev/sda rw\n"
        "22 21 0:40 / /srv rw - nfs4 host:/srv rw\n"
        "23 22 0:41 / /srv/with\\040space rw - fuse.sshfs host: rw\n"
        "24 22 0:42 / /srv/fast rw - xfs /dev/sdb rw\n"
        "25 22 0:43 / /srv/fast rw - tmpfs tmpfs rw\n"
        "a broken line\n"
    )
    assert filesystem_type("/home/x", mountinfo) == "ext4"
    assert filesystem_type("/srv", mountinfo) == "nfs4"
    assert filesystem_type("/srvx", mountinfo) == "ext4"
    assert filesystem_type("/srv/with space/x", mountinfo) == "fuse.sshfs"
    assert filesystem_type("/srv/fast/x", mountinfo) == "tmpfs"
    assert filesystem_type("/", "") is None
    assert not is_network_filesystem("/dev/shm")


@pytest.mark.parametrize("fault", list(Fault))
def test_a_fault_hits_its_site_and_nothing_before(fault: Fault) -> None:
    disk = ModelDisk("/d")
    faulty = FaultyDisk(disk, fault, at=3)
    handle = faulty.open("/d/a", "x")
    faulty.pwrite(handle, [b"good"], 0)
    with pytest.raises((SimulatedCrash, HoldfastError)):
        faulty.pwrite(handle, [b"half", b"rest"], 4)
    expected = {
        Fault.CRASH_AFTER: b"goodhalfrest",
        Fault.CRASH_MIDWAY: b"goodhalf",
        Fault.SHORT_WRITE: b"goodhalf",
    }.get(fault, b"good")
    assert disk.files() == {"/d/a": expected}
    if faulty.crashed:
        with pytest.raises(SimulatedCrash):
            faulty.pread(handle, 1, 0)
    else:
        faulty.pwrite(handle, [b"after"], 0)
    assert str(faulty.hit) == "3:pwrite(a)"


def test_a_disk_that_stays_full_still_unlinks() -> None:
    faulty = FaultyDisk(ModelDisk("/d"), Fault.ENOSPC, at=1, for_good=True)
    for _ in range(2):
        with pytest.raises(NoSpace):
            faulty.open("/d/a", "x")
    faulty.inner.close(faulty.inner.open("/d/b", "x"))
    faulty.unlink("/d/b")
    faulty.heal()
    faulty.close(faulty.open("/d/a", "x"))


def test_a_crash_frees_the_locks() -> None:
    disk = ModelDisk("/d")
    dead, alive = FaultyDisk(disk), FaultyDisk(disk)
    assert dead.lock(dead.open("/d/a", "rw"))
    handle = alive.open("/d/a", "rw")
    assert not alive.lock(handle)
    dead.crash()
    assert alive.lock(handle)


def test_what_was_synced_survives_and_the_rest_may_not() -> None:
    disk = ModelDisk("/d")
    kept = disk.open("/d/kept", "x")
    disk.pwrite(kept, [b"a" * 2000], 0)
    disk.fsync(kept)
    disk.fsync_dir("/d")
    disk.pwrite(kept, [b"b" * 3000], 1000)
    nameless = disk.open("/d/nameless", "x")
    disk.pwrite(nameless, [b"c"], 0)
    disk.fsync(nameless)
    lengths, named, bodies = set(), set(), set()
    for state in disk.crash_states(random.Random(1), 300):
        files = state.files()
        assert files["/d/kept"][:1000] == b"a" * 1000
        named.add(files.get("/d/nameless", b"none"))
        lengths.add(len(files["/d/kept"]))
        bodies.add(files["/d/kept"])
    assert named == {b"c", b"none"}
    assert {2000, 4000} <= lengths
    assert len(bodies) > 20
    assert any(b"\0" in body for body in bodies)


def test_a_failed_fsync_is_final() -> None:
    disk = ModelDisk("/d")
    faulty = FaultyDisk(disk, Fault.EIO, at=1, where=lambda site: site.call == "fsync")
    handle = faulty.open("/d/a", "x")
    faulty.fsync_dir("/d")
    faulty.pwrite(handle, [b"lost"], 0)
    with pytest.raises(Unavailable):
        faulty.fsync(handle)
    faulty.fsync(handle)
    assert faulty.pread(handle, 4, 0) == b"lost"
    assert all(state.files()["/d/a"] == bytes(4) for state in disk.crash_states(random.Random(2), 20))


def test_renames_are_kept_whole_or_not_at_all() -> None:
    disk = ModelDisk("/d")
    disk.overwrite("/d/old", b"old")
    disk.overwrite("/d/new", b"new")
    disk.rename("/d/new", "/d/old")
    seen = {tuple(sorted(state.files().items())) for state in disk.crash_states(random.Random(3), 50)}
    assert seen == {(("/d/old", b"new"),), (("/d/new", b"new"), ("/d/old", b"old"))}


def test_a_model_disk_fills_up() -> None:
    disk = ModelDisk("/d", capacity_bytes=10)
    handle = disk.open("/d/a", "x")
    with pytest.raises(NoSpace):
        disk.pwrite(handle, [b"x" * 11], 0)
    assert disk.free_bytes("/d") == 0
    disk.unlink("/d/a")
    assert disk.free_bytes("/d") == 10
