"""A disk that is full, for segments and for the catalog: what frees room works, with the reserve, at the first call."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from holdfast.catalog import Catalog
from holdfast.errors import NoSpace
from holdfast.store import Store
from holdfast.testing.inside import log_core, log_engine
from holdfast.testing.model_disk import ModelDisk
from holdfast.types import Artifact

SEGMENT = 256 << 10
CATALOG_BYTES = 8 << 10
"""What one transaction needs."""


def bytes_of(number: int, size: int) -> bytes:
    return random.Random(number).randbytes(size)


class Full:
    """A store on a disk without any room; so is its catalog, which lies on a real one."""

    def __init__(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reserve_bytes: int) -> None:
        self.disk = ModelDisk("/model", capacity_bytes=4_000_000)
        self.options: dict[str, Any] = {
            "catalog_path": tmp_path / "catalog.db",
            "disk": self.disk,
            "segment_bytes": SEGMENT,
            "reserve_bytes": reserve_bytes,
        }
        self.full = False
        write = Catalog._write

        def within(catalog: Catalog, change: Callable[..., object], *, durable: bool = False) -> None:
            if self.full and self.disk.free_bytes("/model") < CATALOG_BYTES:
                raise NoSpace("no space for the catalog")
            write(catalog, change, durable=durable)

        monkeypatch.setattr(Catalog, "_write", within)
        self.store = Store._open("/model/store", create=True, **self.options)
        self.artifacts: list[Artifact] = [
            self.store.put(bytes_of(seed, 20_000 + seed)) for seed in range(120)
        ]
        self.ballast()

    def ballast(self) -> None:
        self.full = True
        handle = self.disk.open("/model/ballast", "rw")
        self.disk.allocate(handle, self.disk.size(handle) + self.disk.free_bytes("/model"))
        self.disk.close(handle)

    def held(self) -> int:
        return log_core(self.store).backend.reserve.held_bytes()

    def check(self, *, gone: slice) -> None:
        """Whatever was not deleted is there, also for a catalog that is made anew."""
        left = [one for one in self.artifacts if one not in self.artifacts[gone]]
        for _ in range(2):
            for one in left:
                assert self.store.read(one) == bytes_of(self.artifacts.index(one), one.size_bytes)
            assert self.store.rebuild().damaged == 0


@pytest.fixture
def full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Full]:
    made = Full(tmp_path, monkeypatch, 2 * SEGMENT)
    with made.store:
        yield made


def test_what_frees_room_works_where_there_is_none(full: Full) -> None:
    store = full.store
    assert full.disk.free_bytes("/model") == 0
    assert full.held() == 2 * SEGMENT
    store.delete(*full.artifacts[::2])
    assert full.held() >= SEGMENT, "the other half is for who compacts"
    full.ballast()
    report = store.gc(min_age_seconds=0)
    assert report.complete
    assert report.compacted is not None
    assert report.compacted.freed_bytes > 1_000_000
    assert full.held() == 2 * SEGMENT, "made again"
    store.put(b"there is room")
    full.check(gone=slice(None, None, 2))
    assert store.health().ok


def test_compacting_alone_works_there(full: Full) -> None:
    full.full = False
    full.disk.unlink("/model/ballast")
    full.store.delete(*full.artifacts[::2])
    log_core(full.store).backend.reserve.make()
    gone = log_engine(full.store).collector
    gone._compact = lambda *_: None  # type: ignore[method-assign]
    assert full.store.gc(min_age_seconds=0).complete
    full.ballast()
    assert full.store.compact().freed_bytes > 1_000_000
    full.check(gone=slice(None, None, 2))


def test_the_first_collection_after_the_reserve_was_used(full: Full) -> None:
    """All segments at once would not fit: what is copied of them must not take the room for one."""
    full.store.delete(*full.artifacts[::2])
    log_core(full.store).backend.reserve.release()
    report = full.store.gc(min_age_seconds=0)
    assert report.compacted is not None
    assert len(report.compacted.segments) > 4
    assert not report.compacted.kept
    assert full.held() == 2 * SEGMENT
    full.check(gone=slice(None, None, 2))


def test_what_a_failed_batch_has_copied_takes_no_room(full: Full, monkeypatch: pytest.MonkeyPatch) -> None:
    from holdfast import compaction

    monkeypatch.setattr(compaction._Compaction, "_has_room", lambda *_: True)
    full.store.delete(*full.artifacts[::2])
    log_core(full.store).backend.reserve.release()
    report = full.store.gc(min_age_seconds=0)
    assert report.compacted is not None
    assert len(report.compacted.segments) > 4
    full.check(gone=slice(None, None, 2))


def test_deleting_without_a_reserve_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = Full(tmp_path, monkeypatch, 0)
    with full.store:
        with pytest.raises(NoSpace, match="holdfast gc"):
            full.store.delete(full.artifacts[0])
        with pytest.raises(NoSpace, match="make room"):
            full.store.gc(min_age_seconds=0)
        assert full.store.exists(full.artifacts[0])
        full.full = False  # closing says so too, else


def test_a_deletion_that_only_the_catalog_has_no_room_for(
    full: Full, monkeypatch: pytest.MonkeyPatch
) -> None:
    apply, failures = Catalog.apply_all, [1]

    def once(catalog: Catalog, batches: Any) -> None:
        if failures:
            failures.pop()
            raise NoSpace("no space for the catalog")
        apply(catalog, batches)

    full.store.delete(full.artifacts[0])  # borrowed: the log has room
    monkeypatch.setattr(Catalog, "apply_all", once)
    full.store.delete(full.artifacts[1])
    assert not full.store.exists(full.artifacts[1])
    assert not failures


def test_a_full_disk_is_no_failing_one(full: Full) -> None:
    with pytest.raises(NoSpace):
        full.store.put(bytes_of(999, 300_000))
    (ailment,) = full.store.health().ailments
    assert "the disk is full" in ailment.what
    full.disk.unlink("/model/ballast")
    assert full.store.health().ok
    assert full.store.health().given_up_segments == ()


def test_opening_says_what_helps(full: Full, monkeypatch: pytest.MonkeyPatch) -> None:
    from holdfast.backend.log.session import Session

    with suppress(NoSpace):
        full.store.close()
    full.ballast()
    made = Session.__init__

    def within(self: Session, *args: Any) -> None:
        if not full.disk.free_bytes("/model"):
            raise NoSpace("no space for a session")
        made(self, *args)

    monkeypatch.setattr(Session, "__init__", within)
    with pytest.raises(NoSpace, match="use_reserve"):
        Store._open("/model/store", **full.options)
    with Store._open("/model/store", use_reserve=True, **full.options) as store:
        full.store = store
        assert full.held() > SEGMENT, "a part did"
        store.delete(*full.artifacts[::2])
        assert store.gc(min_age_seconds=0).complete
        full.check(gone=slice(None, None, 2))
