"""A store on a model disk: how the tests in this directory make one, crash it, and look at what came back.

The segments lie on a `ModelDisk`, the catalog in a real directory, because SQLite wants one. A process that
crashed is never used again: its catalog is copied as it lies, and the next process opens the copy.
"""

from __future__ import annotations

import copy
import os
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

from holdfast.backend.log.disk import Disk
from holdfast.chunking import Chunking
from holdfast.errors import HoldfastError
from holdfast.store import Store
from holdfast.testing.checks import check_store, replayable
from holdfast.testing.faults import Fault, FaultyDisk, SimulatedCrash, Site
from holdfast.testing.inside import log_core
from holdfast.testing.ledger import Ledger, Piece
from holdfast.testing.model_disk import ModelDisk

ROOT: Final = "/model/store"
SEGMENT_BYTES: Final = 64 << 10
CHUNKING: Final = Chunking.choose("fastcdc", 4096)
SHARE: Final = float(os.environ.get("HOLDFAST_DEEP") or 0)
"""How much of the deep figures is run: 1 all of it, 0.3 less than a third, 0 (everyday) the small ones."""
DEEP: Final = SHARE > 0
SEED: Final = int(os.environ.get("HOLDFAST_SEED", "20261121"))
ONLY_SITE: Final = os.environ.get("HOLDFAST_SITE")

Act = Callable[[Store, Ledger], None]


def figure(everyday: int, deep: int) -> int:
    """Give how often something is tried: everyday, or as much of the deep figure as was asked for."""
    return max(everyday, round(deep * SHARE))


class Numbered(Protocol):
    """A step of a recorded run."""

    @property
    def number(self) -> int: ...


S = TypeVar("S", bound=Numbered)


def some_of(sites: Sequence[S], stride: int, test: str) -> Iterator[tuple[S, random.Random]]:
    """Give each `stride`-th site, in a deep run as many as were asked for, and what decides its case.

    `HOLDFAST_SITE` names the only one, whatever the stride.
    """
    step = min(stride, round(1 / SHARE)) if DEEP else stride
    start = random.Random(f"{SEED} {test}").randrange(step)
    for site in sites[start::step] if ONLY_SITE is None else sites:
        if ONLY_SITE in (None, str(site.number)):
            yield site, random.Random(f"{SEED} {test} {site.number}")


class World:
    """One store, its books, and the processes that work on it."""

    def __init__(self, directory: Path) -> None:
        self.disk = ModelDisk("/model")
        self.directory = directory
        self.ledger = Ledger()
        self._catalogs = 0
        self.catalog = self._new_catalog()

    def _new_catalog(self) -> Path:
        self._catalogs += 1
        place = self.directory / f"catalog-{self._catalogs}"
        place.mkdir()
        return place / "catalog.db"

    def open(self, disk: Disk | None = None, *, create: bool = False, catalog: Path | None = None) -> Store:
        """Open the store as a process of its own would."""
        return open_store(disk or self.disk, catalog or self.catalog, create=create)

    def copy_catalog(self) -> Path:
        """Copy the catalog as it lies, `-wal` included, as a crash would leave it."""
        target = self._new_catalog()
        for suffix in ("", "-wal"):
            with suppress(FileNotFoundError):
                shutil.copyfile(f"{self.catalog}{suffix}", f"{target}{suffix}")
        return target

    def no_catalog(self) -> Path:
        """Give a place where there is none."""
        return self._new_catalog()

    def twin(self) -> World:
        """Give a world in the same state, for one more case from the same beginning."""
        twin = World(Path(tempfile.mkdtemp(dir=self.directory)))
        twin.disk = self.disk.clone()
        twin.ledger = copy.deepcopy(self.ledger)
        for suffix in ("", "-wal"):
            with suppress(FileNotFoundError):
                shutil.copyfile(f"{self.catalog}{suffix}", f"{twin.catalog}{suffix}")
        return twin

    def end(self) -> None:
        """Remove the files of a twin."""
        shutil.rmtree(self.directory, ignore_errors=True)

    def check(self, disk: ModelDisk, catalog: Path, **options: Any) -> None:
        """The five checks on a disk that came back, which is left as it was."""
        check_store(lambda: self.open(disk.clone(), catalog=catalog), self.ledger, **options)

    def check_all(self, rng: random.Random, *, power_cuts: int = 1) -> None:
        """The five checks after the processes died now: catalog kept, catalog lost, and power lost as well."""
        kept = self.copy_catalog()
        self.check(self.disk, kept)
        if DEEP or rng.random() < 0.5:
            self.check(self.disk, self.no_catalog())
        for state in self.disk.crash_states(rng, power_cuts):
            self.check(state, self.copy_catalog() if rng.random() < 0.5 else self.no_catalog())


def open_store(disk: Disk, catalog: Path, *, create: bool = False, root: str = ROOT) -> Store:
    """Open a store with segments and chunks as small as they may be."""
    store = Store._open(
        root,
        disk=disk,
        catalog_path=catalog,
        create=create,
        chunking=CHUNKING,
        compression="none",
        segment_bytes=SEGMENT_BYTES,
        lock_timeout_seconds=2.0,
    )
    log_core(store)._let_go.detach()  # a process that dies in a test closes nothing, and is not warned of it
    return store


@contextmanager
def new_world() -> Iterator[World]:
    """Make a world with an empty store in it, closed."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as directory:
        world = World(Path(directory))
        world.open(create=True).close()
        yield world


class Script:
    """A piece of work with a beginning that is not under test. `prepare` and `act` open stores themselves."""

    def __init__(self, name: str, prepare: Callable[[World], None], act: Act) -> None:
        self.name = name
        self.prepare = prepare
        self.act = act

    def run(self, world: World, disk: FaultyDisk) -> None:
        """Act in a process of its own, which opens the store, works, and closes it."""
        with world.open(disk) as store:
            self.act(store, world.ledger)

    def record(self) -> list[Site]:
        """Give the sites of a run without a fault."""
        with new_world() as world:
            self.prepare(world)
            disk = FaultyDisk(world.disk)
            self.run(world, disk)
            return disk.sites


def piece(name: str, size_bytes: int, *, shared_bytes: int = 0) -> Piece:
    """Make a piece whose content follows from its name."""
    seed = random.Random(name).getrandbits(40)
    return Piece(name, seed, size_bytes, 7, shared_bytes)


def attempt(work: Callable[[], object]) -> HoldfastError | None:
    """Do something that may be refused, with a typed error and in no other way."""
    try:
        work()
    except HoldfastError as error:
        return error
    return None


def fill(world: World, count: int, size_bytes: int, name: str = "old") -> None:
    """Put some pieces in a process that closes cleanly."""
    with world.open() as store:
        for i in range(count):
            world.ledger.put(store, piece(f"{name}-{i}", size_bytes + i))


def crash_after(world: World, work: Callable[[Store], object]) -> None:
    """Work in a process that is killed at the end: its tail is not clean, its catalog is as it lay."""
    disk = FaultyDisk(world.disk)
    store = world.open(disk)
    work(store)
    disk.crash()
    world.catalog = world.copy_catalog()
    bury(store)


def bury(store: Store) -> None:
    """Let a store go whose process has died: only what this process holds for it is freed."""
    with suppress(SimulatedCrash, HoldfastError):
        store.close()


def replay(test: str, seed: int = SEED, site: int | None = None) -> AbstractContextManager[None]:
    """Add the seed and the command to whatever fails inside.

    `test` is the test that runs, or all of it, or its first part, which begins with `seed`; `ValueError` if it is not.
    """
    running = os.environ.get("PYTEST_CURRENT_TEST", "").rpartition(" ")[0]
    every = running.partition("[")[0]
    if running and test not in (running, every, f"{every}[0]"):
        raise ValueError(f"{test} is not what runs: {running}")
    only = "" if site is None else f"HOLDFAST_SITE={site} "
    deep, patience = (f"HOLDFAST_DEEP={SHARE:g} ", " --timeout 0") if DEEP else ("", "")
    return replayable(seed, f"{deep}{only}.venv/bin/pytest{patience} '{test}'")


__all__ = [
    "DEEP",
    "ONLY_SITE",
    "ROOT",
    "SEED",
    "SEGMENT_BYTES",
    "Fault",
    "FaultyDisk",
    "Ledger",
    "ModelDisk",
    "Script",
    "SimulatedCrash",
    "Site",
    "World",
    "attempt",
    "bury",
    "crash_after",
    "figure",
    "fill",
    "new_world",
    "open_store",
    "piece",
    "replay",
    "some_of",
]
