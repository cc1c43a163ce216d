"""A store in a directory of objects: a crash or a failing disk at every step of the disk, and then no power."""

from __future__ import annotations

import random
from contextlib import suppress

import pytest

from holdfast.testing.faults import Fault, FaultyDisk, SimulatedCrash, Site, numbered
from holdfast.testing.model_disk import ModelDisk
from tests.crash.world import SEED, attempt, replay, some_of
from tests.objects.world import OBJECT_SCRIPTS, ROOT, new_world

CRASHES = (Fault.CRASH_BEFORE, Fault.CRASH_AFTER, Fault.CRASH_MIDWAY)
POWER_CUTS = 2


@pytest.mark.parametrize("fault", CRASHES)
@pytest.mark.parametrize("name", OBJECT_SCRIPTS)
def test_crash(name: str, fault: Fault) -> None:
    each_step(name, fault, f"test_crash[{name}-{fault}]", 12)


@pytest.mark.parametrize("for_good", [False, True])
@pytest.mark.parametrize("fault", [Fault.EIO, Fault.ENOSPC, Fault.SHORT_WRITE])
@pytest.mark.parametrize("name", OBJECT_SCRIPTS)
def test_failing_disk(name: str, fault: Fault, for_good: bool) -> None:
    each_step(name, fault, f"test_failing_disk[{name}-{fault}-{for_good}]", 40, for_good=for_good)


def each_step(name: str, fault: Fault, test: str, stride: int, *, for_good: bool = False) -> None:
    """Run a case for each step of the disk at which the fault can happen; everyday for each `stride`-th."""
    script = OBJECT_SCRIPTS[name]
    with new_world(ModelDisk("/model")) as base:
        script.prepare(base)
        trial = base.twin()
        recorder = FaultyDisk(trial.model())
        script.run(trial, trial.bucket(recorder))
        trial.end()
        sites = [site for site in recorder.sites if site.can(fault)]
        assert sites or fault in (Fault.SHORT_WRITE, Fault.CRASH_MIDWAY)
        missed: list[Site] = []
        tried = 0
        for site, rng in some_of(sites, stride, test):
            world = base.twin()
            at = numbered(site, recorder.sites)
            disk = FaultyDisk(world.model(), fault, at, for_good=for_good, like=site)
            try:
                with replay(f"tests/objects/test_directory_sites.py::{test}", site=site.number):
                    with suppress(SimulatedCrash):
                        attempt(lambda: script.run(world, world.bucket(disk)))  # noqa: B023  # called at once
                    if fault not in CRASHES and not for_good:
                        assert len(world.ledger.open_attempts) <= 1, "one failure, and more than one refusal"
                    world.check_all(rng, power_cuts=POWER_CUTS)
            finally:
                world.end()
            tried += 1
            if not disk.struck:
                missed.append(site)
        assert len(missed) <= tried // 10, f"these of {tried} steps never came: {missed}"


def test_the_places_are_those_of_a_directory() -> None:
    """The harness itself: the objects lie on the model disk, and a power cut brings back no other ones."""
    with new_world(ModelDisk("/model")) as world:
        OBJECT_SCRIPTS["put"].prepare(world)
        OBJECT_SCRIPTS["put"].run(world, world.bucket())
        before = set(world.model().files(ROOT))
        assert len(world.ledger.artifacts) == 3
        for state in world.model().crash_states(random.Random(SEED), 5):
            assert {path for path in before if "/blobs/" in path} <= set(state.files(ROOT))
