"""A directory as a bucket, crashed before, in and after every step of the disk, and with every step failing."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import suppress
from functools import partial

import pytest

from holdfast.backend.log.disk import Disk
from holdfast.backend.objects.bucket import Bucket, Meta
from holdfast.backend.objects.directory import DirectoryBucket
from holdfast.errors import HoldfastError, InvalidConfig, StoreNotFound
from holdfast.testing.contract_base import sample
from holdfast.testing.faults import CRASHES, Fault, FaultyDisk, SimulatedCrash, Site
from holdfast.testing.model_disk import ModelDisk

ROOT = "/model/objects"
LARGE = 20_000
POWER_CUTS = 6

Wanted = dict[str, set[bytes | None]]
"""What may be under each key: None where it may be absent."""


def _data(name: str) -> bytes:
    return sample(LARGE if name.startswith("blob") else 300, len(name))


class Work:
    """Does every kind of change, and knows what must be there: what was acknowledged, or what is under way."""

    def __init__(self, bucket: Bucket) -> None:
        self.bucket = bucket
        self.may: Wanted = {}

    def run(self) -> None:
        self._do("store.json", _data("store"), lambda data: self.bucket.create("store.json", data))
        self._do("blobs/a/data", _data("blob a"), lambda data: self._upload("blobs/a/data", data))
        self._do("blobs/a/outboard", _data("outboard"), lambda data: self._upload("blobs/a/outboard", data))
        self._do("commits/1", _data("commit"), lambda data: self.bucket.create("commits/1", data))
        self._do("tags/t", _data("tag"), lambda data: self.bucket.create("tags/t", data))
        for version in ("tag second", "tag the third"):
            head = self.bucket.head("tags/t")
            assert head is not None
            self._do("tags/t", _data(version), partial(self._replace, "tags/t", head.e_tag or ""))
        self._do(
            "blobs/a/data.1", _data("blob a"), lambda data: self.bucket.copy("blobs/a/data", "blobs/a/data.1")
        )
        self._do("blobs/a/data", _data("blob a"), lambda data: self._upload("blobs/a/data", data))
        self._do("blobs/a/data", None, lambda data: self.bucket.delete(["blobs/a/data", "blobs/a/outboard"]))
        self._do("blobs/b/data", _data("blob bb"), lambda data: self._upload("blobs/b/data", data))
        self._do("blobs/b/data", None, lambda data: self.bucket.delete(["blobs/b/data"]))
        self._do("blobs/b/data", _data("blob bb"), lambda data: self._upload("blobs/b/data", data))

    def _replace(self, key: str, e_tag: str, data: bytes) -> Meta | None:
        return self.bucket.replace(key, data, e_tag)

    def _upload(self, key: str, data: bytes) -> Meta:
        return self.bucket.upload(key, (data[:7_000], data[7_000:]), len(data))

    def _do(self, key: str, after: bytes | None, action: Callable[[bytes], object]) -> None:
        keys = (key, "blobs/a/outboard") if after is None and key == "blobs/a/data" else (key,)
        for each in keys:
            self.may.setdefault(each, {None}).add(after)
        result = action(after or b"")
        assert after is None or result is not None
        for each in keys:
            self.may[each] = {after}


def check(bucket: Bucket, may: Wanted) -> dict[str, bytes]:
    """See that everything that is there is whole, and that what was acknowledged is there."""
    seen: dict[str, bytes] = {}
    for meta in bucket.list(""):
        found = bucket.get(meta.key, max_bytes=1 << 20)
        assert found is not None
        assert found[1] == meta
        seen[meta.key] = found[0]
    for key, allowed in may.items():
        assert seen.get(key) in allowed, key
    assert seen.keys() <= may.keys()
    return seen


def sites() -> list[Site]:
    disk = FaultyDisk(ModelDisk())
    work = Work(DirectoryBucket(ROOT, create=True, disk=disk))
    work.run()
    check(work.bucket, work.may)
    return disk.sites


SITES = sites()


@pytest.mark.parametrize("fault", list(Fault))
def test_what_is_acknowledged_or_seen_survives(fault: Fault) -> None:
    for site in SITES:
        if not site.can(fault):
            continue
        model = ModelDisk()
        disk = FaultyDisk(model, fault, site.number)
        may: Wanted = {}
        try:
            work = Work(DirectoryBucket(ROOT, create=True, disk=disk))
            may = work.may
            work.run()
        except SimulatedCrash:
            assert fault in CRASHES
        except HoldfastError:
            assert fault not in CRASHES
        rng = random.Random(site.number)
        for after in model.crash_states(rng, POWER_CUTS):
            check(DirectoryBucket(ROOT, create=True, disk=after), may)
        # another process looks before the power fails: what it has seen is there after
        seen = check(DirectoryBucket(ROOT, create=True, disk=model), may)
        for after in model.crash_states(rng, POWER_CUTS):
            again = check(DirectoryBucket(ROOT, create=True, disk=after), may)
            missing = {key for key in seen if key not in again}
            assert not missing, (site, missing)


def test_a_name_that_is_seen_is_durable_at_once() -> None:
    """Its writer hangs between naming it and telling the disk: a second process that finds it must not rely on luck."""
    looks: dict[str, Callable[[Bucket, str], object]] = {
        "head": lambda other, key: other.head(key),
        "get": lambda other, key: other.get(key, max_bytes=1 << 20),
        "list": lambda other, key: list(other.list("")),
        "create": lambda other, key: other.create(key, b""),
    }
    seen = 0
    for site in (site for site in SITES if site.call == "link"):
        for call in looks:
            model = ModelDisk()
            disk = FaultyDisk(model, Fault.CRASH_AFTER, site.number)
            with suppress(SimulatedCrash):
                Work(DirectoryBucket(ROOT, create=True, disk=disk)).run()
            if not disk.crashed:
                continue  # this one was refused: there was no directory yet
            key = site.path.removeprefix(f"{ROOT}/")
            other = _opened_before(model)
            looks[call](other, key)
            for after in model.crash_states(random.Random(seen), POWER_CUTS):
                assert after.stat(f"{ROOT}/{key}") is not None, (call, site)
            seen += 1
    assert seen


def test_a_second_upload_over_one_that_never_ended() -> None:
    """Two writers die, one at naming, one at replacing: who finds the object still finds it after a power cut."""
    model = ModelDisk()
    DirectoryBucket(ROOT, create=True, disk=model)
    data = sample(1000)
    for call, at in (("link", 2), ("rename", 1)):
        disk = FaultyDisk(model, Fault.CRASH_AFTER, at, where=partial(_is, call))
        with suppress(SimulatedCrash):
            _opened_before(disk).upload("blobs/a/data", [data], len(data))
        assert disk.crashed
    assert _opened_before(model).head("blobs/a/data") is not None
    for after in model.crash_states(random.Random(1), 50):
        assert DirectoryBucket(ROOT, disk=after).get_range("blobs/a/data", 0, 1000) == data


def _is(call: str, site: Site) -> bool:
    return site.call == call


def _opened_before(model: Disk) -> DirectoryBucket:
    """Give a bucket of a process that was there before the other one crashed: it has swept nothing."""

    class Opened(DirectoryBucket):
        def _sweep(self) -> None:
            """It did so before."""

    return Opened(ROOT, disk=model)


def test_it_can_be_used_again_after_a_failure() -> None:
    for site in SITES:
        for fault in (Fault.EIO, Fault.ENOSPC):
            if not site.can(fault):
                continue
            model = ModelDisk()
            disk = FaultyDisk(model, fault, site.number)
            bucket: DirectoryBucket | None = None
            with suppress(HoldfastError):
                bucket = DirectoryBucket(ROOT, create=True, disk=disk)
                Work(bucket).run()
            bucket = bucket or DirectoryBucket(ROOT, create=True, disk=disk)
            bucket.delete([meta.key for meta in bucket.list("")])
            work = Work(bucket)
            work.run()
            for after in model.crash_states(random.Random(site.number), 2):
                check(DirectoryBucket(ROOT, create=True, disk=after), work.may)


def test_what_is_no_directory_is_refused() -> None:
    disk = ModelDisk()
    with pytest.raises(StoreNotFound):
        DirectoryBucket(ROOT, disk=disk)
    disk.overwrite("/model/file", b"")
    with pytest.raises(StoreNotFound):
        DirectoryBucket("/model/file", disk=disk, create=True)


def test_a_file_system_without_second_names_is_said() -> None:
    import errno
    import os

    from holdfast.backend.log.disk import translate

    class NoLinks(FaultyDisk):
        def link(self, source: str, target: str) -> None:
            raise translate(OSError(errno.EPERM, os.strerror(errno.EPERM)), target)

    bucket = DirectoryBucket(ROOT, create=True, disk=NoLinks(ModelDisk()))
    with pytest.raises(InvalidConfig, match="two names"):
        bucket.create("tags/a", b"1")
    assert list(bucket.list("")) == []


def test_old_unfinished_files_are_swept(monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    disk = ModelDisk()
    bucket = DirectoryBucket(ROOT, create=True, disk=disk)
    bucket.create("a", b"1")
    disk.overwrite(f"{ROOT}/.new/blobs,x,data,1-2-3", b"half")
    DirectoryBucket(ROOT, disk=disk)
    assert disk.stat(f"{ROOT}/.new/blobs,x,data,1-2-3") is not None
    now = time.time_ns()
    monkeypatch.setattr(time, "time_ns", lambda: now + 2 * 86_400 * 10**9)
    DirectoryBucket(ROOT, disk=disk)
    assert disk.stat(f"{ROOT}/.new/blobs,x,data,1-2-3") is None
    assert [meta.key for meta in bucket.list("")] == ["a"]


def test_keys_that_leave_the_directory_are_no_keys() -> None:
    bucket = DirectoryBucket(ROOT, create=True, disk=ModelDisk())
    for key in ("", "/a", "a/", "a//b", "../a", "a/../b", ".new/x", "a\0b", "a b", "ü", "x" * 201):
        with pytest.raises(ValueError, match="no key"):
            bucket.head(key)


@pytest.mark.parametrize("how", ["create", "replace", "upload"])
def test_what_somebody_removes_as_soon_as_it_is_there_was_written(how: str) -> None:
    """A commit may be gathered by others, or its artifact forgotten, before its writer looks at it again."""

    class Hasty(FaultyDisk):
        def link(self, source: str, target: str) -> None:
            super().link(source, target)
            self.unlink(target)

        def rename(self, source: str, target: str) -> None:
            super().rename(source, target)
            self.unlink(target)

    model = ModelDisk()
    bucket = DirectoryBucket(ROOT, create=True, disk=model)
    other = DirectoryBucket(ROOT, disk=Hasty(model))
    calls: dict[str, Callable[[str], Meta | None]] = {
        "create": lambda _: other.create("tags/b", b"12"),
        "replace": lambda e_tag: other.replace("tags/a", b"12", e_tag),
        "upload": lambda _: other.upload("tags/a", (b"12",), 2),
    }
    there = bucket.create("tags/a", b"1")
    assert there is not None
    made = calls[how](there.e_tag or "")
    assert made is not None
    assert made.size_bytes == 2
    assert made.e_tag != there.e_tag
