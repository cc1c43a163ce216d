"""The power fails at a random step of random work by one or two processes: what was acknowledged is there."""

from __future__ import annotations

import random
from typing import Any

import pytest

from holdfast.errors import HoldfastError
from tests.crash.world import (
    SEED,
    Fault,
    FaultyDisk,
    SimulatedCrash,
    World,
    bury,
    figure,
    new_world,
    piece,
    replay,
)

CASES = figure(1_000, 50_000)
BATCH = 25


@pytest.mark.parametrize("batch", range(CASES // BATCH))
def test_power_cuts(batch: int) -> None:
    for seed in range(SEED + batch * BATCH, SEED + (batch + 1) * BATCH):
        with replay("tests/crash/test_power.py::test_power_cuts[0]", seed), new_world() as world:
            one_case(world, random.Random(seed))


def one_case(world: World, rng: random.Random) -> None:
    """Several processes after each other, two of them side by side; then the power goes, twice."""
    names = iter(range(1 << 30))
    catalogs = [world.no_catalog()]
    for _ in range(rng.randint(1, 3)):
        disk = FaultyDisk(world.disk, rng.choice(list(Fault)[:3]), at=rng.randint(1, 120))
        if rng.random() < 0.3:
            disk.heal()
        try:
            store = world.open(disk)
        except SimulatedCrash:
            world.catalog = world.copy_catalog()
            continue
        beside = world.open(FaultyDisk(world.disk)) if rng.random() < 0.3 else None
        try:
            for _ in range(rng.randint(1, 6)):
                step(world, store if beside is None or rng.random() < 0.6 else beside, rng, names)
                if rng.random() < 0.2:
                    catalogs.append(world.copy_catalog())  # SQLite may come back with an older state
            if rng.random() < 0.5:
                store.close()
        except SimulatedCrash:
            pass
        disk.crash()
        bury(store)
        if beside is not None:
            beside.close()
        world.catalog = world.copy_catalog()
    catalogs.append(world.catalog)
    for state in world.disk.crash_states(rng, 2):
        world.catalog = rng.choice(catalogs)
        world.check(state, world.copy_catalog())


def step(world: World, store: Any, rng: random.Random, names: Any) -> None:
    ledger = world.ledger
    unsure = ledger.unsure()
    live = sorted(set(ledger.artifacts) - unsure)
    gone = sorted(set(ledger.deleted) - unsure)

    def some() -> Any:
        size = rng.choice((9, 200, 5_000, 17_000, 45_000))
        return piece(f"{next(names)}", size, shared_bytes=rng.choice((0, 12_000)))

    choice = rng.random()
    try:
        if choice < 0.45:
            ledger.put(store, some())
        elif choice < 0.65:
            ledger.put_many(store, [some() for _ in range(rng.randint(1, 5))])
        elif choice < 0.75:
            ledger.put_blobs(store, [some() for _ in range(rng.randint(1, 3))])
        elif choice < 0.9 and live:
            ledger.delete(store, rng.choice(live))
        elif gone:
            ledger.restore(store, rng.choice(gone))
    except HoldfastError as error:
        raise AssertionError(f"refused on a disk that works: {error!r} {error.evidence}") from error
