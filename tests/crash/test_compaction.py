"""Compaction beside everything else: real processes that are killed and stopped, power cuts, the command itself."""

from __future__ import annotations

import random
import subprocess
import sys
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from holdfast.catalog import compacting
from holdfast.errors import Unavailable
from holdfast.store import Store
from holdfast.testing.checks import check_store
from holdfast.testing.inside import log_core
from holdfast.testing.ledger import Ledger
from holdfast.testing.processes import Torturer
from tests.crash.scripts import SCRIPTS, _wear, _worn, small_switches
from tests.crash.test_command import Killer, start
from tests.crash.world import (
    CHUNKING,
    DEEP,
    SEED,
    SEGMENT_BYTES,
    Fault,
    FaultyDisk,
    SimulatedCrash,
    attempt,
    bury,
    figure,
    new_world,
    piece,
    replay,
)

OPTIONS: dict[str, Any] = {"chunking": CHUNKING, "segment_bytes": SEGMENT_BYTES}
CUTS = figure(10, 500)
"""Power cuts of each batch."""


def test_processes_write_read_and_compact(tmp_path: Path) -> None:
    """Three write, two read, two compact; all of them are killed and stopped at random."""
    path = tmp_path / "store"
    Store._open(str(path), create=True, **OPTIONS).close()
    with replay("tests/crash/test_compaction.py::test_processes_write_read_and_compact"):
        torturer = Torturer(path, SEED, writers=3, readers=2, compactors=2, options=OPTIONS)
        for _ in range(figure(40, 200)):  # until enough was compacted: longer on a busy machine
            figures = torturer.run(seconds=3, pause_seconds=(0.05, 0.6), stop_share=0.4, keep=True)
            if figures.kills > 5 and figures.acknowledged > 20 and figures.compacted > 3 and not DEEP:
                break
        figures = torturer.run(kills=1)
        print(figures)
        assert figures.compacted
        check_store(partial(Store._open, str(path), **OPTIONS), torturer.ledger)


@pytest.mark.parametrize("batch", range(4))
def test_the_power_fails_while_it_compacts(batch: int) -> None:
    """At a random step of compactions beside other work, with a catalog of that moment, an older one, or none."""
    for seed in range(SEED + batch * CUTS, SEED + (batch + 1) * CUTS):
        rng = random.Random(seed)
        with (
            replay("tests/crash/test_compaction.py::test_the_power_fails_while_it_compacts[0]", seed),
            small_switches(),
            new_world() as world,
        ):
            _worn(world)
            catalogs = [world.copy_catalog()]
            crashes = [Fault.CRASH_BEFORE, Fault.CRASH_AFTER, Fault.CRASH_MIDWAY]
            disk = FaultyDisk(world.disk, rng.choice(crashes), at=rng.randint(5, 110))
            store = None
            with suppress(SimulatedCrash):
                store = world.open(disk)
                for turn in range(3):
                    catalogs.append(world.copy_catalog())
                    store.compact(rng.choice((0.0, 0.0, 0.3)))
                    world.ledger.put(store, piece(f"{turn}", rng.choice((10, 20_000)), shared_bytes=5_000))
                    _wear(store, world.ledger, "worn-0")
                disk.crash()
            if store is not None:
                bury(store)
            world.catalog = world.copy_catalog()
            for state in world.disk.crash_states(rng, 2):
                world.check(state, rng.choice((world.copy_catalog(), world.no_catalog())))
            # What was only there is kept, an older copy of the catalog comes back, as from a backup.
            world.catalog = rng.choice(catalogs)
            world.check(world.disk, world.copy_catalog())


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("dies", [True, False])
@pytest.mark.parametrize("name", ["compact", "compact_beside"])
def test_it_breaks_between_two_transactions(name: str, dies: bool, after: bool) -> None:
    """At each one in which rows are moved, which the disk does not see: the process dies, or hears of an error."""
    test = f"tests/crash/test_compaction.py::test_it_breaks_between_two_transactions[{name}-{dies}-{after}]"
    script, switch = SCRIPTS[name], compacting.switch
    done = 0

    def broken(disk: FaultyDisk, at: int, *what: Any) -> None:
        nonlocal done
        done += 1
        if done != at or after:
            switch(*what)
        if done == at and dies:
            disk.crash()
            raise SimulatedCrash("between two transactions")
        if done == at:
            raise Unavailable("the catalog is busy")

    with new_world() as base:
        script.prepare(base)
        at, total = 0, 1
        while at < total:  # 0: how many there are
            world, done = base.twin(), 0
            disk = FaultyDisk(world.disk)
            with replay(test, site=at), patch.object(compacting, "switch", partial(broken, disk, at)):
                try:
                    with suppress(SimulatedCrash):
                        attempt(partial(script.run, world, disk))
                    total = max(total, done + 1)
                    if at:
                        world.check_all(random.Random(SEED + at))
                finally:
                    world.end()
            at += 1
        assert total > 10


def test_the_command_is_killed_again_and_again(tmp_path: Path) -> None:
    """`holdfast compact` dies by SIGKILL in its midst; the store is whole, and the next one goes on."""
    path = tmp_path / "store"
    ledger = Ledger()
    with Store._open(str(path), create=True, **OPTIONS) as store:
        for i in range(40):
            ledger.put(store, piece(f"{i}", 20_000))
        for i in range(0, 40, 2):
            store.delete(ledger.ids[f"{i}"])
            ledger.artifacts.pop(f"{i}")
        store.gc(min_age_seconds=1e9)
    rng = random.Random(SEED)
    killer, turns = Killer(path, rng), figure(9, 40)
    size = {"HOLDFAST_LOG__SEGMENT_SIZE_BYTES": str(SEGMENT_BYTES)}
    with replay("tests/crash/test_compaction.py::test_the_command_is_killed_again_and_again"):
        for turn in range(turns):
            with Store._open(str(path), **OPTIONS) as store:
                for name in sorted(ledger.artifacts)[turn % 3 :: 3]:
                    store.update(ledger.ids[name], metadata={"noise": f"{turn}" * 3_000})
            killer.run(start(path, "--json", "compact", **size))
            with Store._open(str(path), **OPTIONS) as store:
                for name in ledger.artifacts:
                    assert store.read(ledger.ids[name]) == ledger.content(name)
                assert store.scrub().ok
                before = list(log_core(store).catalog.dump())
                assert store.rebuild().damaged == 0
                assert set(before) <= set(log_core(store).catalog.dump())
        said, _ = start(path, "--json", "compact", **size).communicate(timeout=60)
        assert '"problems":[]' in said
        print(f"{killer.killed} killed")
        assert killer.killed >= turns // 3


def test_a_reader_in_another_process_is_in_the_midst(tmp_path: Path) -> None:
    """It has the segment open, or has only looked up where to read: it goes on after the segment is gone."""
    path = tmp_path / "store"
    content = random.Random(5).randbytes(400_000)
    with Store._open(str(path), create=True, **OPTIONS) as store:
        artifact = store.put(content, filename="x")
        code = f"""
import sys
from holdfast.store import Store
from holdfast.testing.inside import log_core
with Store._open({str(path)!r}, segment_bytes={SEGMENT_BYTES}) as store:
    with store.open({artifact.id!r}) as file:
        pieces = store.iter_bytes({artifact.id!r}, 100_000)
        sys.stdout.buffer.write(file.read(100_000)); sys.stdout.buffer.flush()
        sys.stdin.readline()
        log_core(store).backend.payloads.handles.close()
        sys.stdout.buffer.write(b"".join(pieces))
        file.seek(0)
        sys.stdout.buffer.write(file.read()); sys.stdout.buffer.flush()
        sys.stdin.readline()
"""
        process = subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.read(100_000) == content[:100_000]
        old = log_core(store).backend.segment_ids()
        store.update(artifact, metadata={"noise": "x" * 100})
        compacting.set_contents(
            log_core(store).catalog, dict.fromkeys(old, 1 << 30)
        )  # as if much were dead in each
        attempt(store.compact)
        assert len(set(old) & set(log_core(store).backend.segment_ids())) <= 1
        process.stdin.write(b"\n")
        process.stdin.flush()
        assert process.stdout.read(300_000) == content[100_000:]
        assert process.stdout.read(400_000) == content
        process.stdin.write(b"\n")
        process.stdin.close()
        assert process.wait(30) == 0
        process.stdout.close()
