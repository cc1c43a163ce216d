"""Descriptors, threads and temporary files: as many as before, after much work and after every injected fault."""

from __future__ import annotations

import gc
import os
import random
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from holdfast.backend.log.disk import LocalDisk
from holdfast.backend.log.handles import MAX_OPEN
from holdfast.store import Store
from holdfast.testing.checks import check_store
from holdfast.testing.ledger import Ledger
from tests.crash.child import OPTIONS
from tests.crash.world import SEED, Fault, FaultyDisk, attempt, piece, replay, some_of


class Held(NamedTuple):
    """What a process holds."""

    descriptors: list[str]
    threads: list[str]
    temporaries: list[str]


def held() -> Held:
    gc.collect()
    deadline = time.monotonic() + 20.0
    while True:  # a thread that was told to end takes a moment
        threads = sorted(
            t.name for t in threading.enumerate() if t.name.startswith(("holdfast", "ThreadPool"))
        )
        if not threads or time.monotonic() > deadline:
            break
        time.sleep(0.01)
    return Held(sorted(_descriptors()), threads, sorted(os.listdir(tempfile.gettempdir())))


def _descriptors() -> Iterator[str]:
    for number in os.listdir("/proc/self/fd"):
        try:
            yield os.readlink(f"/proc/self/fd/{number}")
        except FileNotFoundError:
            continue


def _beside_segments() -> list[str]:
    return [path for path in _descriptors() if "/segments/" not in path]


def _resident_bytes() -> int:
    gc.collect()
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory, and an empty one for temporary files."""
    if not os.path.isdir("/proc/self/fd"):
        pytest.skip("there is no /proc to count descriptors in")
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    return tmp_path


def _mixed(store: Store, ledger: Ledger, rng: random.Random, count: int, start: int = 0) -> int:
    """Do this and that; gives how much of it was refused."""
    refused = 0

    def tried(work: Callable[[], object]) -> None:
        nonlocal refused
        refused += attempt(work) is not None

    for i in range(start, start + count):
        choice = rng.random()
        live = list(ledger.artifacts)
        if choice < 0.2 or not live:
            tried(lambda: ledger.put(store, piece(f"a{i}", rng.choice((9, 5_000, 40_000)))))  # noqa: B023
        elif choice < 0.25:
            tried(lambda: ledger.put_many(store, [piece(f"b{i}-{n}", 12_000) for n in range(3)]))  # noqa: B023
        elif choice < 0.3:
            writer = store.writer(filename="given up")
            writer.write(bytes(30_000))
            writer.abort()
        elif choice < 0.35 and len(live) > 5:
            tried(lambda: ledger.delete(store, rng.choice(live)))  # noqa: B023
        elif choice < 0.4 and ledger.deleted:
            tried(lambda: ledger.restore(store, rng.choice(list(ledger.deleted))))
        elif choice < 0.7:
            tried(lambda: store.read(ledger.ids[rng.choice(live)]))  # noqa: B023
        elif choice < 0.8:
            pieces = store.iter_bytes(ledger.ids[rng.choice(live)])
            tried(lambda: next(pieces))  # noqa: B023  # and never to its end
            tried(pieces.close)  # type: ignore[attr-defined]  # its pin goes here, which may fail as well
        elif choice < 0.9:
            tried(lambda: _read_some(store, ledger.ids[rng.choice(live)]))  # noqa: B023
        else:
            tried(lambda: list(store.find(limit=5)))
    return refused


def test_much_work_leaves_nothing_behind(place: Path) -> None:
    path = place / "store"
    with replay("tests/crash/test_leaks.py::test_much_work_leaves_nothing_behind"):
        Store._open(path, create=True, **OPTIONS).close()
        before = held()
        ledger, rng = Ledger(), random.Random(SEED)
        with Store._open(path, **OPTIONS, fsync=False) as store:
            assert not _mixed(store, ledger, rng, 5_000), "refused on a disk that works"
            middle, resident = len(_beside_segments()), _resident_bytes()
            assert not _mixed(store, ledger, rng, 5_000, 5_000), "refused on a disk that works"
            assert _resident_bytes() - resident < 48 << 20, "memory grows with the work"
            assert len(_beside_segments()) <= middle + 2, "descriptors grow with the work"
            assert len(list(_descriptors())) <= len(_beside_segments()) + MAX_OPEN + 2
            store.rebuild()
            assert store.scrub().ok
        assert held() == before
        assert os.listdir(path / "sessions") == []
        assert not [name for name in os.listdir(path) if name not in _EXPECTED]


def _read_some(store: Store, artifact_id: str) -> None:
    with store.open(artifact_id) as file:
        file.read(10)


_EXPECTED = {"store.json", "lock", "reserve", "catalog.db", "segments", "sessions", "quarantine"}


def _session(disk: FaultyDisk, path: Path, ledger: Ledger) -> None:
    store = Store._open(path, disk=disk, catalog_path="", **OPTIONS)
    try:
        _mixed(store, ledger, random.Random(SEED), 14)
        attempt(lambda: ledger.put_many(store, [piece(f"last-{n}", 30_000) for n in range(5)]))
        attempt(store.rebuild)
    finally:
        store.close()


@pytest.mark.parametrize("for_good", [False, True])
@pytest.mark.parametrize("fault", [Fault.EIO, Fault.ENOSPC, Fault.SHORT_WRITE])
def test_a_failing_disk_leaves_nothing_open(fault: Fault, for_good: bool, place: Path) -> None:
    """Real descriptors: each store that was refused, or closed with an error, has let go of all it held."""
    test = f"tests/crash/test_leaks.py::test_a_failing_disk_leaves_nothing_open[{fault}-{for_good}]"
    recorder = FaultyDisk(LocalDisk())
    _prepare(place / "trial")
    _session(recorder, place / "trial", Ledger())
    sites = [site for site in recorder.sites if site.can(fault)]
    before = held()
    for site, _ in some_of(sites, 6, test):
        with replay(test, site=site.number):
            path = place / f"store-{site.number}"
            ledger = _prepare(path)
            disk = FaultyDisk(LocalDisk(), fault, at=site.number, for_good=for_good)
            attempt(lambda: _session(disk, path, ledger))  # noqa: B023  # called at once
            after = held()
            assert after == before, f"after {fault} at {site}"
            check_store(lambda: Store._open(path, **OPTIONS), ledger)  # noqa: B023


def _prepare(path: Path) -> Ledger:
    """Make a store with a tail that a dead process left, and one that was closed."""
    ledger = Ledger()
    Store._open(path, create=True, **OPTIONS).close()
    disk = FaultyDisk(LocalDisk())
    dead = Store._open(path, disk=disk, **OPTIONS)
    ledger.put(dead, piece("dead", 5_000))
    with Store._open(path, **OPTIONS) as store:
        ledger.put(store, piece("closed", 2_000))
    ledger.put(dead, piece("dead too", 9_000))
    disk.crash()
    try:
        dead.close()
    except BaseException:
        pass  # it is dead
    return ledger
