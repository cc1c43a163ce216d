"""Streams that are broken off: by a power cut at random, and by kill -9 in the middle of a long one."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any, Final

import pytest

import holdfast
from holdfast.ranges import ChunkRanges
from holdfast.testing.ledger import Piece
from holdfast.testing.streams import Sender, blocks
from holdfast.types import BLOCK_BYTES, BlobStatus
from tests.crash.scripts import small_checkpoints
from tests.crash.world import (
    SEED,
    Fault,
    FaultyDisk,
    SimulatedCrash,
    World,
    attempt,
    bury,
    figure,
    new_world,
    piece,
    replay,
)

CASES: Final = figure(80, 3_000)
BATCH: Final = 20
LOST_BYTES: Final = 16 << 20
"""What a crash may cost at most: what the documents promise."""


@pytest.mark.parametrize("batch", range(CASES // BATCH))
def test_power_cuts(batch: int) -> None:
    for seed in range(SEED + batch * BATCH, SEED + (batch + 1) * BATCH):
        with (
            replay("tests/crash/test_imports.py::test_power_cuts[0]", seed),
            new_world() as world,
            small_checkpoints(),
        ):
            one_case(world, random.Random(seed))


def one_case(world: World, rng: random.Random) -> None:
    """Several processes fill the same blobs, two of them side by side; each may crash; then the power goes, twice."""
    pieces = [piece(f"blob-{i}", size) for i, size in enumerate((20_000, 100_000, 9 * BLOCK_BYTES))]
    catalogs = [world.no_catalog()]
    for _ in range(rng.randint(1, 3)):
        disk = FaultyDisk(world.disk, rng.choice(list(Fault)[:3]), at=rng.randint(1, 150))
        if rng.random() < 0.3:
            disk.heal()
        try:
            store = world.open(disk)
        except SimulatedCrash:
            world.catalog = world.copy_catalog()
            continue
        beside = world.open(FaultyDisk(world.disk)) if rng.random() < 0.4 else None
        try:
            for _ in range(rng.randint(1, 6)):
                step(
                    world, store if beside is None or rng.random() < 0.6 else beside, rng, rng.choice(pieces)
                )
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


def step(world: World, store: Any, rng: random.Random, some: Piece) -> None:
    ledger = world.ledger
    count = -(-some.size_bytes // BLOCK_BYTES)
    start = rng.randrange(count)
    ranges = rng.choice((None, blocks(start, start + rng.randint(1, 4)), blocks(start)))
    choice = rng.random()
    if choice < 0.1:
        error = attempt(partial(ledger.expire, store))
    elif choice < 0.3 and ranges is None:
        error = attempt(partial(ledger.decode, store, some, broken_from=start))
    else:
        error = attempt(partial(ledger.decode, store, some, ranges))
    if error is not None:
        raise AssertionError(f"refused on a disk that works: {error!r} {error.evidence}")


CHILD: Final = """
import sys
from holdfast.store import Store
from holdfast.testing.streams import Sender
from tests.crash.test_imports import noise
sender = Sender(noise(int(sys.argv[2])))
with Store._open(sys.argv[1]) as store:
    done = 0
    def pieces():
        global done
        for piece in sender.pieces(store.blobs.missing_ranges(sender.hash)):
            yield piece
            done += len(piece)
            print(done, flush=True)
    store.blobs.decode(sender.hash, pieces(), store.blobs.missing_ranges(sender.hash))
print("end", flush=True)
"""


def noise(size: int) -> bytes:
    """Make bytes that do not compress, more than a random generator gives at a time."""
    parts = (
        random.Random(f"noise {start}").randbytes(min(16 << 20, size - start))
        for start in range(0, size, 16 << 20)
    )
    return b"".join(parts)


@pytest.mark.parametrize(
    "size", [64 << 20, pytest.param(2 << 30, marks=[pytest.mark.deep, pytest.mark.timeout(3600)])]
)
def test_a_killed_import_goes_on_where_it_was(tmp_path: Path, size: int) -> None:
    """Bytes asked for in all are those of the blob, and at most what one crash may cost more for each kill."""
    path, rng = str(tmp_path / "store"), random.Random(SEED)
    holdfast.create(path).close()
    content = noise(size)
    hash_ = Sender(content).hash
    have = ChunkRanges.empty()
    for upto in (size // 3, size // 4):  # bytes of the stream, each of what was missing then
        came = _run_and_kill(path, size, upto + rng.randrange(size // 20))
        with holdfast.open(path) as store:
            field = store.blobs.bitfield(hash_)
            assert have <= field.ranges, "what was here is gone"
            kept = field.present_bytes - sum(stop - start for start, stop in have.byte_ranges(size))
            assert kept >= came - LOST_BYTES - came // 200, f"{came} bytes had come, and {kept} were kept"
            have = field.ranges
            for _ in range(20):
                at = rng.randrange(size)
                if at // 1024 in have:
                    assert store.blobs.read(hash_, at, 1) == content[at : at + 1]
    with holdfast.open(path) as store:
        sender = Sender(content)
        missing = store.blobs.missing_ranges(hash_)
        asked = sum(stop - start for start, stop in missing.byte_ranges(size))
        assert asked == size - store.blobs.bitfield(hash_).present_bytes
        info = store.blobs.decode(hash_, sender.pieces(missing), missing)
        assert info.status is BlobStatus.COMPLETE
        at = 0
        for piece_ in store.blobs.iter_bytes(hash_):
            assert piece_ == content[at : at + len(piece_)]
            at += len(piece_)
        assert at == size
        assert os.listdir(f"{path}/partials") == []


def _run_and_kill(path: str, size: int, upto: int) -> int:
    """Let a process import until so many bytes of the stream were taken; give how many those were."""
    arguments = [sys.executable, "-c", CHILD, path, str(size)]
    top = Path(__file__).parents[2]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, cwd=top) as child:
        assert child.stdout is not None
        came = 0
        for line in child.stdout:
            assert line != "end\n", "it was too quick to be killed"
            came = int(line)
            if came >= upto:
                break
        time.sleep(0.01)
        child.send_signal(signal.SIGKILL)
        rest = child.stdout.read().split()
    return int(rest[-1]) if rest and rest[-1].isdigit() else came
