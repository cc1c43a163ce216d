"""Uploads that break at every step: what was said to be durable is there, and goes on to the right bytes."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from holdfast.errors import HoldfastError, UploadNotFound
from holdfast.store import Store
from holdfast.testing.checks import check_store
from holdfast.testing.inside import log_core
from holdfast.testing.ledger import Ledger
from holdfast.uploads import expire_uploads
from tests.crash.test_sites import each_site
from tests.crash.world import (
    CHUNKING,
    SEED,
    SEGMENT_BYTES,
    Fault,
    FaultyDisk,
    Script,
    SimulatedCrash,
    World,
    attempt,
    figure,
    fill,
    piece,
    replay,
)

HERE = "tests/crash/test_uploads.py"
PIECE = piece("upload", 90_000)
STOPS = (10, 16_384, 50_000, 90_000)
"""Checkpoints: within a block, at one, across segments, at the end."""


class Upload:
    """One upload, and what was acknowledged of it."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.content = PIECE.content()
        self.token = ""
        self.durable = 0
        self.is_ending = False

    def run(self, store: Store) -> None:
        """Write with a break in the middle, then commit; after a refusal go on with what is durable."""
        number = self.ledger._begin("put", (PIECE,))
        for _ in range(3):
            if attempt(lambda: self._go_on(store, number)) is None:
                return

    def _go_on(self, store: Store, number: int) -> None:
        if self.token:
            try:
                writer = store.writer(resume=self.token)
            except UploadNotFound as error:
                if error.state != "committed":
                    raise
                self.ledger._done(number, [error.artifact_id])
                return
        else:
            writer = store.writer(PIECE.name, resumable=True)
            self.token = writer.token
        assert writer.offset_bytes >= self.durable, "what was durable is not there"
        try:
            for stop in STOPS:
                if stop > writer.offset_bytes:
                    writer.write(self.content[writer.offset_bytes : stop])
                    self.durable = writer.checkpoint()
                if stop == STOPS[1]:
                    writer.suspend()
                    writer = store.writer(resume=self.token)
            self.is_ending = True
            artifact = writer.commit()
        except HoldfastError:
            with suppress(HoldfastError):
                writer.suspend()
            raise
        self.ledger._done(number, [artifact.id])

    def check(self, store: Store) -> None:
        """Hold what came back against what was acknowledged, and bring it to its end."""
        if not self.token:
            assert len(list(store.uploads())) <= 1, "it was begun, and nobody heard of it"
            return
        gone: list[UploadNotFound] = []
        try:
            writer = store.writer(resume=self.token)
        except UploadNotFound as error:
            gone.append(error)
        for end in gone:
            assert self.is_ending
            assert end.state == "committed"
            assert store.read(end.artifact_id) == self.content
            return
        assert PIECE.name not in self.ledger.artifacts, "it was committed, and is open again"
        assert writer.offset_bytes >= self.durable
        writer.write(self.content[writer.offset_bytes :])
        assert store.read(writer.commit()) == self.content
        assert list(store.uploads()) == []


def _check(world: World, upload: Upload, rng: random.Random) -> None:
    for disk in (world.disk, *world.disk.crash_states(rng, 1)):
        catalog = world.copy_catalog() if rng.random() < 0.5 else world.no_catalog()
        with world.open(disk.clone(), catalog=catalog) as store:
            upload.check(store)
    world.check_all(rng, power_cuts=0)


class _Script(Script):
    """A script whose work is one upload; that of the last run is kept."""

    upload: Upload

    def __init__(self) -> None:
        super().__init__("upload", lambda world: fill(world, 1, 500), self._act)

    def _act(self, store: Store, ledger: Ledger) -> None:
        self.upload.run(store)

    def run(self, world: World, disk: FaultyDisk) -> None:
        self.upload = Upload(world.ledger)
        super().run(world, disk)


@pytest.mark.parametrize("fault", [Fault.CRASH_BEFORE, Fault.CRASH_AFTER, Fault.CRASH_MIDWAY])
def test_crash(fault: Fault) -> None:
    script = _Script()

    def case(world: World, _: Script, disk: FaultyDisk, rng: random.Random) -> None:
        with suppress(SimulatedCrash):
            script.run(world, disk)
        _check(world, script.upload, rng)

    each_site(script, fault, f"test_crash[{fault}]", 1, case, file=HERE)


@pytest.mark.parametrize("fault", [Fault.EIO, Fault.ENOSPC, Fault.SHORT_WRITE])
@pytest.mark.parametrize("for_good", [False, True])
def test_failing_disk(fault: Fault, for_good: bool) -> None:
    script = _Script()

    def case(world: World, _: Script, disk: FaultyDisk, rng: random.Random) -> None:
        attempt(lambda: script.run(world, disk))
        disk.crash()
        _check(world, script.upload, rng)

    test = f"test_failing_disk[{for_good}-{fault}]"
    each_site(script, fault, test, 3, case, for_good=for_good, file=HERE)


def test_crash_while_uploads_expire() -> None:
    def prepare(world: World) -> None:
        with world.open() as store:
            for i in range(2):
                writer = store.writer(f"{i}", resumable=True)
                writer.write(bytes(20_000))
                writer.suspend()

    def act(store: Store, _: Ledger) -> None:
        expire_uploads(log_core(store), 1 << 50)

    def case(world: World, script: Script, disk: FaultyDisk, rng: random.Random) -> None:
        with suppress(SimulatedCrash):
            script.run(world, disk)
        with world.open(world.disk.clone(), catalog=world.no_catalog()) as store:
            assert len(list(store.uploads())) in (0, 2), "one acknowledgement, and half of it is there"
        world.check_all(rng)

    script = Script("expire", prepare, act)
    test = "test_crash_while_uploads_expire"
    each_site(script, Fault.CRASH_MIDWAY, test, 1, case, file=HERE)


CHILD = """
import sys
from holdfast.chunking import Chunking
from holdfast.store import Store
from tests.crash.test_uploads import OPTIONS, content
store = Store._open(sys.argv[1], **OPTIONS)
token, seed = sys.argv[2], int(sys.argv[3])
data = content(seed)
writer = store.writer(resume=token) if token else store.writer("big", resumable=True)
print(writer.token, writer.offset_bytes, flush=True)
while writer.written_bytes < len(data):
    at = writer.written_bytes
    writer.write(data[at : at + 70_000])
    print(writer.token, writer.checkpoint(), flush=True)
print("done", writer.commit().id, flush=True)
"""
OPTIONS = {"chunking": CHUNKING, "segment_bytes": SEGMENT_BYTES}
BYTES = 6_000_000
KILLS = figure(4, 40)


def content(seed: int) -> bytes:
    return random.Random(seed).randbytes(BYTES)


def test_a_writing_child_is_killed_until_it_gets_through(tmp_path: Path) -> None:
    path = str(tmp_path / "store")
    Store._open(path, create=True, **OPTIONS).close()  # type: ignore[arg-type]
    rng = random.Random(SEED)
    seed, token, durable, kills = SEED, "", 0, 0
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": f"{root}:{os.environ.get('PYTHONPATH', '')}"}
    with replay(f"{HERE}::test_a_writing_child_is_killed_until_it_gets_through"):
        while True:
            with subprocess.Popen(
                [sys.executable, "-c", CHILD, path, token, str(seed)],
                stdout=subprocess.PIPE,
                text=True,
                env=environment,
            ) as child:
                assert child.stdout is not None
                first = child.stdout.readline().split()
                assert len(first) == 2, "the child did not begin"
                assert int(first[1]) >= durable, "what was durable is not there"
                token = first[0]
                if kills < KILLS:
                    time.sleep(rng.uniform(0.0, 0.1))
                    child.send_signal(signal.SIGKILL)
                    kills += 1
                said = child.stdout.read().splitlines(keepends=True)
            lines = [line.split() for line in said if line.endswith("\n")]
            if lines and lines[-1][0] == "done":
                break
            durable = max([durable, int(first[1]), *(int(line[1]) for line in lines)])
        with Store._open(path, **OPTIONS) as store:  # type: ignore[arg-type]
            assert store.read(lines[-1][1]) == content(seed)
            assert list(store.uploads()) == []
        assert kills >= 1
    check_store(lambda: Store._open(path, **OPTIONS), _Anything(), usable=False)  # type: ignore[arg-type]


class _Anything(Ledger):
    """Expects the one artifact."""

    def __init__(self) -> None:
        super().__init__()
        self._contents["big"] = content(SEED)
        self.pieces["big"] = piece("big", BYTES)


def test_uploads_go_on_while_collections_run(tmp_path: Path) -> None:
    """Writers of equal bytes break off and go on; what each relies on is never taken from it."""
    path = str(tmp_path / "store")
    contents = [random.Random(i % 2).randbytes(600_000) for i in range(4)]
    became: dict[int, str] = {}
    over = threading.Event()
    with Store._open(path, create=True, **OPTIONS) as store:  # type: ignore[arg-type]

        def write(number: int) -> None:
            rng = random.Random(SEED + number)
            writer = store.writer(f"{number}", resumable=True)
            for at in range(0, 600_000, 40_000):
                writer.write(contents[number][at : at + 40_000])
                if rng.random() < 0.3:
                    writer.checkpoint()
                if rng.random() < 0.3:
                    writer = store.writer(resume=writer.suspend())
            became[number] = writer.commit().id

        def collect() -> None:
            while not over.is_set():
                store.gc(min_age_seconds=0)

        with ThreadPoolExecutor(5) as pool:
            collecting = pool.submit(collect)
            try:
                for one in [pool.submit(write, number) for number in range(4)]:
                    one.result()
            finally:
                over.set()
            collecting.result()
        store.gc(min_age_seconds=0)
        for number, content in enumerate(contents):
            assert store.read(became[number]) == content
        assert store.scrub().ok
