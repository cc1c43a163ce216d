"""A crash, or a failing disk, while a store is made: it can be made again, and what was acknowledged stays."""

from __future__ import annotations

import os
import random
import tempfile
import threading
from contextlib import suppress
from pathlib import Path

import pytest

from holdfast.errors import FormatError, HoldfastError
from holdfast.store import Store
from holdfast.testing.checks import check_store
from tests.crash.world import (
    ROOT,
    SEED,
    Fault,
    FaultyDisk,
    SimulatedCrash,
    World,
    attempt,
    bury,
    fill,
    new_world,
    piece,
    replay,
)

QUICK = "/dev/shm" if os.path.isdir("/dev/shm") else None


def _make_and_put(world: World, disk: FaultyDisk) -> None:
    with world.open(disk, create=True) as store:
        world.ledger.put(store, piece("first", 3_000))


@pytest.mark.parametrize("fault", list(Fault))
def test_making_a_store_breaks_at_every_step(fault: Fault) -> None:
    rng = random.Random(f"{SEED} {fault}")
    with tempfile.TemporaryDirectory(dir=QUICK) as directory:
        world = World(Path(directory))
        recorder = FaultyDisk(world.disk)
        _make_and_put(world, recorder)
        sites = [site for site in recorder.sites if site.can(fault)]
    assert len(sites) > 3
    for site in sites:
        with (
            replay(f"tests/crash/test_create.py::test_making_a_store_breaks_at_every_step[{fault}]"),
            tempfile.TemporaryDirectory(dir=QUICK) as directory,
        ):
            world = World(Path(directory))
            disk = FaultyDisk(world.disk, fault, at=site.number)
            try:
                with suppress(SimulatedCrash):
                    attempt(lambda: _make_and_put(world, disk))  # noqa: B023  # called at once
                disk.crash()
                for state in (world.disk, *world.disk.crash_states(rng, 4)):
                    again = state.clone()
                    catalog = world.copy_catalog()
                    world.open(again, create=True, catalog=catalog).close()
                    check_store(lambda: world.open(again, catalog=catalog), world.ledger)  # noqa: B023
            except BaseException as problem:
                problem.add_note(f"{fault} at {site}")
                raise


def test_a_store_that_lost_its_store_file_is_not_made_anew() -> None:
    with new_world() as world:
        fill(world, 1, 100)
        world.disk.unlink(f"{ROOT}/store.json")
        with pytest.raises(FormatError):
            world.open(create=True)


def test_several_make_the_same_store_at_once(tmp_path: Path) -> None:
    """All of them get one and the same store, or are told that there is one."""
    for turn in range(8):
        path = tmp_path / f"store-{turn}"
        ready = threading.Barrier(4)
        opened: list[Store] = []
        wrong: list[BaseException] = []

        def make(
            path: Path = path,
            ready: threading.Barrier = ready,
            opened: list[Store] = opened,
            wrong: list[BaseException] = wrong,
        ) -> None:
            ready.wait()
            try:
                store = Store._open(path, create=True)
                opened.append(store)
                store.put(str(id(store)).encode())
            except BaseException as error:
                wrong.append(error)

        threads = [threading.Thread(target=make) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for store in opened:
            store.close()
        assert not wrong
        with Store._open(path) as store:
            assert len(list(store.find())) == 4
            assert store.rebuild().artifacts == 4


def test_what_a_dying_disk_leaves_of_a_new_store_is_no_store() -> None:
    with tempfile.TemporaryDirectory(dir=QUICK) as directory:
        world = World(Path(directory))
        disk = FaultyDisk(world.disk, Fault.EIO, at=1, for_good=True)
        with pytest.raises(HoldfastError):
            bury(world.open(disk, create=True))
