"""Real processes on a real disk, killed and stopped at random moments."""

from __future__ import annotations

import random
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from holdfast.store import Store
from holdfast.testing.checks import check_store
from holdfast.testing.processes import Torturer
from tests.crash.world import CHUNKING, SEED, SEGMENT_BYTES, figure, replay

OPTIONS: dict[str, Any] = {"chunking": CHUNKING, "segment_bytes": SEGMENT_BYTES}
ROUNDS = figure(50, 2_500)
KILLS = 4


@pytest.mark.parametrize("part", range(2))
def test_a_putting_child_is_killed_again_and_again(part: int, tmp_path: Path) -> None:
    """Kills, in stores of four, so that each check looks at few operations and all of them."""
    killed = 0
    for turn in range(part, ROUNDS, 2):
        path = tmp_path / f"store-{turn}"
        Store._open(str(path), create=True, **OPTIONS).close()
        seed = SEED + turn
        with replay("tests/crash/test_kill.py::test_a_putting_child_is_killed_again_and_again[0]", seed):
            torturer = Torturer(path, seed, options=OPTIONS)
            for _ in range(KILLS):
                torturer.run(kills=1, pause_seconds=(0.0, 0.05))
                killed += 1
                check_store(partial(Store._open, str(path), **OPTIONS), torturer.ledger)
    assert killed >= ROUNDS // 2 * KILLS


def test_four_write_and_two_read(tmp_path: Path) -> None:
    path = tmp_path / "store"
    Store._open(str(path), create=True, **OPTIONS).close()
    with replay("tests/crash/test_kill.py::test_four_write_and_two_read"):
        torturer = Torturer(path, SEED, writers=4, readers=2, options=OPTIONS)
        figures = torturer.run(seconds=figure(12, 1800), pause_seconds=(0.02, 0.2), stop_share=0.4)
        print(figures)
        assert figures.kills > 6 + 15  # six of them at the end
        assert figures.stops > 10
        assert figures.acknowledged > 20
        assert figures.reads > 20
        check_store(lambda: Store._open(str(path), **OPTIONS), torturer.ledger)


def test_the_catalog_goes_while_others_work(tmp_path: Path) -> None:
    """Somebody removes the catalog under running processes, again and again."""
    path = tmp_path / "store"
    Store._open(str(path), create=True, **OPTIONS).close()
    rng = random.Random(SEED)
    with replay("tests/crash/test_kill.py::test_the_catalog_goes_while_others_work"):
        torturer = Torturer(path, SEED, writers=2, readers=1, options=OPTIONS)
        for _ in range(6):
            torturer.run(seconds=0.6, pause_seconds=(0.05, 0.3), keep=True)
            for name in rng.choice((("catalog.db",), ("catalog.db", "catalog.db-wal", "catalog.db-shm"))):
                (path / name).unlink(missing_ok=True)
        torturer.run(seconds=0.6)
        check_store(lambda: Store._open(str(path), **OPTIONS), torturer.ledger)
