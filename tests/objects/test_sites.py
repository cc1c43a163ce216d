"""A crash, an error, a lie at every request of every script of a store in a bucket (durability.md, the table).

The requests are taken from a run without a fault, so that new code is covered without anyone remembering.
"""

from __future__ import annotations

from contextlib import suppress

import pytest

from holdfast.errors import PermissionDenied
from holdfast.testing.faults import SimulatedCrash
from holdfast.testing.faulty_bucket import BucketFault, BucketSite, FaultyBucket
from tests.crash.world import attempt, replay, some_of
from tests.objects.world import OBJECT_SCRIPTS, ObjectScript, ObjectWorld, new_world

CRASHES = (BucketFault.CRASH_BEFORE, BucketFault.CRASH_AFTER)
FAILURES = (
    BucketFault.BEFORE,
    BucketFault.AFTER,
    BucketFault.DENIED,
    BucketFault.TRUNCATED,
    BucketFault.FLIPPED,
    BucketFault.MISSING,
    BucketFault.MIDWAY,
)


def sites_of(script: ObjectScript, base: ObjectWorld) -> list[BucketSite]:
    """Give the requests of a run without a fault."""
    trial = base.twin()
    recorder = FaultyBucket(trial.bucket())
    script.run(trial, recorder)
    trial.end()
    return recorder.sites


@pytest.mark.parametrize("fault", CRASHES)
@pytest.mark.parametrize("name", OBJECT_SCRIPTS)
def test_crash(name: str, fault: BucketFault) -> None:
    each_site(name, fault, f"test_crash[{name}-{fault}]", 1)


@pytest.mark.parametrize("fault", FAILURES)
@pytest.mark.parametrize("name", OBJECT_SCRIPTS)
def test_failing_request(name: str, fault: BucketFault) -> None:
    each_site(name, fault, f"test_failing_request[{name}-{fault}]", 3)


@pytest.mark.parametrize("name", OBJECT_SCRIPTS)
def test_a_service_that_stays_away(name: str) -> None:
    each_site(name, BucketFault.BEFORE, f"test_a_service_that_stays_away[{name}]", 3, for_good=True)


def each_site(name: str, fault: BucketFault, test: str, stride: int, *, for_good: bool = False) -> None:
    """Run a case for each request at which the fault can happen, or for each `stride`-th outside of deep runs."""
    script = OBJECT_SCRIPTS[name]
    with new_world() as base:
        script.prepare(base)
        sites = [site for site in sites_of(script, base) if site.can(fault)]
        assert sites or fault in (BucketFault.MISSING, BucketFault.MIDWAY)
        missed: list[BucketSite] = []
        tried = 0
        for site, rng in some_of(sites, stride, test):
            world = base.twin()
            try:
                with replay(f"tests/objects/test_sites.py::{test}", site=site.number):
                    faulty = one_case(world, script, fault, site, for_good)
                    world.check_all(rng)
            finally:
                world.end()
            tried += 1
            if not faulty.struck:
                missed.append(site)
        assert len(missed) <= tried // 10, f"these of {tried} requests never came: {missed}"


def one_case(
    world: ObjectWorld, script: ObjectScript, fault: BucketFault, site: BucketSite, for_good: bool
) -> FaultyBucket:
    """Break a script at a request; gives the bucket that failed."""
    faulty = FaultyBucket(
        world.bucket(), fault, site.number, for_good=for_good, error=PermissionDenied("injected: no")
    )
    with suppress(SimulatedCrash):
        attempt(lambda: script.run(world, faulty))  # typed errors only; the script goes on after each
    if fault not in CRASHES and not for_good:
        assert len(world.ledger.open_attempts) <= 1, "one failure, and more than one refusal"
    return faulty
