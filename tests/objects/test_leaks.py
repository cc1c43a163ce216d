"""What a store of objects holds: descriptors, threads, temporary files, memory: as before, after work and faults."""

from __future__ import annotations

import os
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from holdfast.backend.objects.directory import DirectoryBucket
from holdfast.store import Store
from holdfast.testing.checks import check_store
from holdfast.testing.faulty_bucket import BucketFault, FaultyBucket
from holdfast.testing.ledger import Ledger
from holdfast.testing.streams import Sender, blocks
from tests.crash.test_leaks import _descriptors, _mixed, _resident_bytes, held, place
from tests.crash.world import SEED, attempt, piece, replay, some_of
from tests.objects.world import QUICK

__all__ = ["place"]  # the fixture
OPERATIONS = 10_000
FAULTS = (BucketFault.BEFORE, BucketFault.AFTER, BucketFault.FLIPPED)


def _open(path: Path, bucket: FaultyBucket | None = None, *, create: bool = False) -> Store:
    return Store._open_objects(
        bucket or DirectoryBucket(str(path / "bucket"), create=create), path / "catalog.db", create=create
    )


@pytest.fixture
def quick() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=QUICK) as directory:
        yield Path(directory)


def test_much_work_leaves_nothing_behind(place: Path, quick: Path) -> None:
    with replay("tests/objects/test_leaks.py::test_much_work_leaves_nothing_behind"):
        path = quick / "store"
        path.mkdir()
        _open(path, create=True).close()
        before = held()
        ledger, rng = Ledger(), random.Random(SEED)
        with _open(path) as store:
            assert not _mixed(store, ledger, rng, OPERATIONS // 2), "refused by a bucket that works"
            middle, resident = len(list(_descriptors())), _resident_bytes()
            refused = _mixed(store, ledger, rng, OPERATIONS // 2, OPERATIONS // 2)
            assert not refused, "refused by a bucket that works"
            assert _resident_bytes() - resident < 96 << 20, "memory grows with the work"  # 64 MiB are a cache
            assert len(list(_descriptors())) <= middle + 8, "descriptors grow with the work"
            ledger.collect(store)
            store.compact()
            store.rebuild()
            assert store.scrub().ok
        assert held() == before
        assert os.listdir(path / "bucket" / ".new") == ["lock"]


def _session(path: Path, bucket: FaultyBucket, ledger: Ledger) -> None:
    store = _open(path, bucket)
    try:
        _mixed(store, ledger, random.Random(SEED), 12)
        attempt(lambda: ledger.put_many(store, [piece(f"last-{n}", 30_000) for n in range(3)]))
        sender = Sender(piece("sent", 60_000).content())
        attempt(lambda: store.blobs.decode(sender.hash, sender.stream(blocks(0, 1)), blocks(0, 1)))
        writer = attempt(lambda: store.writer("up", resumable=True).suspend())
        del writer
        attempt(store.refresh)
        attempt(lambda: ledger.collect(store))
        attempt(store.scrub)
    finally:
        store.close()


@pytest.mark.parametrize("for_good", [False, True])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_failing_bucket_leaves_nothing_open(
    fault: BucketFault, for_good: bool, place: Path, quick: Path
) -> None:
    """Each store that was refused, or closed with an error, has let go of all it held."""
    test = f"tests/objects/test_leaks.py::test_a_failing_bucket_leaves_nothing_open[{fault}-{for_good}]"
    trial = quick / "trial"
    trial.mkdir()
    _open(trial, create=True).close()
    recorder = FaultyBucket(DirectoryBucket(str(trial / "bucket")))
    _session(trial, recorder, Ledger())
    sites = [site for site in recorder.sites if site.can(fault)]
    before = held()
    for site, _ in some_of(sites, 9, test):
        with replay(test, site=site.number):
            path = quick / f"store-{site.number}"
            path.mkdir()
            _open(path, create=True).close()
            ledger = Ledger()
            faulty = FaultyBucket(
                DirectoryBucket(str(path / "bucket")), fault, site.number, for_good=for_good
            )
            attempt(lambda: _session(path, faulty, ledger))  # noqa: B023  # called at once
            assert held() == before, f"after {fault} at {site}"
            assert os.listdir(path / "bucket" / ".new") == ["lock"], f"after {fault} at {site}"
            check_store(lambda: _refreshed(path), ledger)  # noqa: B023


def _refreshed(path: Path) -> Store:
    store = _open(path)
    store.refresh()
    return store
