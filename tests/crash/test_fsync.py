"""A failed fsync is final (durability.md, rule 3): what was not durable then is nobody's to trust, ever."""

from __future__ import annotations

import random
from functools import partial

import pytest

from holdfast.store import Store
from holdfast.testing.checks import check_store
from tests.crash.world import (
    SEED,
    Fault,
    FaultyDisk,
    Ledger,
    Site,
    World,
    attempt,
    fill,
    new_world,
    piece,
    replay,
)

CHANGES = {"pwrite", "fsync", "truncate"}


def of_a_segment(site: Site) -> bool:
    return site.call == "fsync" and site.path.endswith(".seg")


def work(store: Store, ledger: Ledger) -> list[bool]:
    """Do several things; say of each whether it was acknowledged."""
    pieces = [piece("one", 100), piece("two", 30_000), piece("three", 50), piece("four", 40_000)]
    done = [attempt(partial(ledger.put, store, p)) is None for p in pieces]
    done.append(attempt(lambda: ledger.delete(store, "old-0")) is None)
    many = [piece(f"many-{i}", 40_000) for i in range(4)]
    return [*done, attempt(lambda: ledger.put_many(store, many)) is None]


@pytest.mark.parametrize("at", range(1, 13))
def test_nothing_goes_to_a_segment_whose_fsync_failed(at: int) -> None:
    with new_world() as world, replay(f"tests/crash/test_fsync.py::{_name('nothing_goes', at)}"):
        fill(world, 2, 3_000)
        disk = FaultyDisk(world.disk, Fault.EIO, at=at, where=of_a_segment)
        store = world.open(disk)
        done = work(store, world.ledger)
        if disk.hit is None:
            store.close()
            pytest.skip("the work has fewer fsyncs")
        failed = disk.hit
        touched = [
            s
            for s in disk.sites
            if s.number > failed.number
            and s.path == failed.path
            and s.call != "truncate"  # cutting off is no writing
        ]
        assert not [site for site in touched if site.call in CHANGES]
        assert done.count(False) <= 1
        _others_see_what_was_promised(world, failed)
        attempt(store.close)
        disk.crash()
        _power_cuts(world)


@pytest.mark.parametrize("at", range(1, 7))
def test_a_segment_closed_by_a_failing_fsync_is_no_foundation(at: int) -> None:
    """The close record is in the page cache, and will never be on the disk. The next process must not build on it."""
    with new_world() as world, replay(f"tests/crash/test_fsync.py::{_name('a_segment_closed', at)}"):
        disk = FaultyDisk(world.disk, Fault.EIO, at=at, where=of_a_segment)
        store = world.open(disk)
        world.ledger.put(store, piece("one", 5_000)) if at > 2 else None
        attempt(lambda: world.ledger.put(store, piece("two", 700)))
        attempt(store.close)
        disk.crash()
        with world.open() as other:
            world.ledger.put(other, piece("later", 2_000))
            world.ledger.put(other, piece("and later", 20_000))
        _power_cuts(world)


def test_a_disk_whose_fsync_always_fails_acknowledges_nothing() -> None:
    with (
        new_world() as world,
        replay("tests/crash/test_fsync.py::test_a_disk_whose_fsync_always_fails_acknowledges_nothing"),
    ):
        fill(world, 2, 3_000)
        before = len(world.ledger.artifacts)
        disk = FaultyDisk(world.disk, Fault.EIO, at=1, for_good=True, where=of_a_segment)
        disk.for_good = True
        store = world.open(disk)
        work(store, world.ledger)
        assert len(world.ledger.artifacts) == before
        _others_see_what_was_promised(world, None)
        attempt(store.close)
        disk.crash()
        _power_cuts(world)


def _others_see_what_was_promised(world: World, failed: Site | None) -> None:
    """Open a second process while the first is alive, with its catalog; let it write, and watch where."""
    other = FaultyDisk(world.disk)
    with world.open(other) as store:
        live = {artifact.filename: artifact for artifact in store.find()}
        unsure = world.ledger.unsure()
        for name in set(world.ledger.artifacts) - unsure:
            assert store.read(live[name]) == world.ledger.content(name)
        for name in map(str, live):
            assert name in world.ledger.artifacts or name in unsure
        world.ledger.put(store, piece("by another", 3_000))
    if failed is not None:
        appended = [s for s in other.sites if s.path == failed.path and s.call == "pwrite"]
        cut = [s for s in other.sites if s.path == failed.path and s.call == "truncate"]
        assert not appended or cut, "somebody appended to a tail that nobody may trust"


def _power_cuts(world: World) -> None:
    rng = random.Random(SEED)
    check_store(lambda: world.open(world.disk.clone(), catalog=world.copy_catalog()), world.ledger)
    for state in world.disk.crash_states(rng, 6):
        world.check(state, world.copy_catalog())
        world.check(state, world.no_catalog())


def _name(start: str, at: int) -> str:
    names = {
        "nothing_goes": "test_nothing_goes_to_a_segment_whose_fsync_failed",
        "a_segment_closed": "test_a_segment_closed_by_a_failing_fsync_is_no_foundation",
    }
    return f"{names[start]}[{at}]"
