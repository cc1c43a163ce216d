"""A crash, or a failing disk, at every step of every script (durability.md, the table)."""

from __future__ import annotations

import errno
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress

import pytest

from holdfast.backend.log.disk import Disk, translate
from holdfast.testing.faults import numbered
from tests.crash.scripts import SCRIPTS
from tests.crash.world import (
    Fault,
    FaultyDisk,
    Script,
    SimulatedCrash,
    Site,
    World,
    attempt,
    new_world,
    replay,
    some_of,
)

Case = Callable[[World, Script, FaultyDisk, random.Random], None]


def each_site(
    script: Script,
    fault: Fault,
    test: str,
    stride: int,
    case: Case,
    *,
    for_good: bool = False,
    file: str = "tests/crash/test_sites.py",
) -> None:
    """Run a case for each site at which the fault can happen, or for each `stride`-th outside of deep runs."""
    with new_world() as base:
        script.prepare(base)
        trial = base.twin()
        recorder = FaultyDisk(trial.disk)
        script.run(trial, recorder)
        sites = [site for site in recorder.sites if site.can(fault)]
        assert sites
        missed: list[Site] = []
        tried = 0
        for site, rng in some_of(sites, stride, test):
            world = base.twin()
            at = numbered(site, recorder.sites)
            disk = FaultyDisk(world.disk, fault, at, for_good=for_good, like=site)
            try:
                with replay(f"{file}::{test}", site=site.number):
                    case(world, script, disk, rng)
            finally:
                world.end()
            tried += 1
            if not disk.struck:
                missed.append(site)
        assert len(missed) <= tried // 20, f"these of {tried} sites never came: {missed}"


@pytest.mark.parametrize("fault", [Fault.CRASH_BEFORE, Fault.CRASH_AFTER, Fault.CRASH_MIDWAY])
@pytest.mark.parametrize("name", SCRIPTS)
def test_crash(name: str, fault: Fault) -> None:
    def case(world: World, script: Script, disk: FaultyDisk, rng: random.Random) -> None:
        with suppress(SimulatedCrash):
            script.run(world, disk)
        world.check_all(rng)

    each_site(SCRIPTS[name], fault, f"test_crash[{name}-{fault}]", 1, case)


def _faults() -> Iterator[tuple[Fault, bool]]:
    for fault in (Fault.EIO, Fault.ENOSPC, Fault.SHORT_WRITE):
        yield fault, False
        yield fault, True


@pytest.mark.parametrize(("fault", "for_good"), list(_faults()))
@pytest.mark.parametrize("name", SCRIPTS)
def test_failing_disk(name: str, fault: Fault, for_good: bool) -> None:
    def case(world: World, script: Script, disk: FaultyDisk, rng: random.Random) -> None:
        attempt(lambda: script.run(world, disk))  # typed errors only; the script goes on after each
        if not for_good:
            assert len(world.ledger.open_attempts) <= 1, "one failure of the disk, and more than one refusal"
        disk.crash()
        world.check_all(rng)

    each_site(
        SCRIPTS[name], fault, f"test_failing_disk[{name}-{fault}-{for_good}]", 2, case, for_good=for_good
    )


class FailingReads(FaultyDisk):
    """Numbers reads of files and directories, and fails at one, once: what is there is not to be taken for missing."""

    def __init__(self, inner: Disk, at: int = 0) -> None:
        super().__init__(inner)
        self.reads: list[Site] = []
        self._at = at

    def _read(self, call: str, path: str) -> None:
        self._alive()
        self.reads.append(Site(len(self.reads) + 1, call, path))
        if len(self.reads) == self._at:
            self.struck = True
            raise translate(OSError(errno.EIO, "injected"), path)

    def pread(self, handle: int, length: int, offset: int, /) -> bytes:
        self._read("pread", self._path(handle))
        return super().pread(handle, length, offset)

    def preadv(self, handle: int, buffers: Sequence[bytearray | memoryview], offset: int, /) -> int:
        self._read("preadv", self._path(handle))
        return super().preadv(handle, buffers, offset)

    def listdir(self, path: str) -> list[str]:
        self._read("listdir", path)
        return super().listdir(path)


@pytest.mark.parametrize("name", SCRIPTS)
def test_failing_read(name: str) -> None:
    script, test = SCRIPTS[name], f"tests/crash/test_sites.py::test_failing_read[{name}]"
    with new_world() as base:
        script.prepare(base)
        trial = base.twin()
        recorder = FailingReads(trial.disk)
        script.run(trial, recorder)
        assert recorder.reads
        missed: list[Site] = []  # how much is read depends on what another thread has read before
        tried = 0
        for site, rng in some_of(recorder.reads, 8, test):
            world = base.twin()
            disk = FailingReads(world.disk, site.number)
            try:
                with replay(test, site=site.number):
                    attempt(lambda: script.run(world, disk))  # noqa: B023  # called at once
                    disk.crash()
                    world.check_all(rng)
            finally:
                world.end()
            tried += 1
            missed += [] if disk.struck else [site]
        assert len(missed) <= 1 + tried // 10, f"these of {tried} reads never came: {missed}"
