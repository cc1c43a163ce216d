"""A store in a bucket of objects: how tests make one, break it at each of its requests, and look at what came back.

The bucket is a dictionary, or a directory on a model disk. A process that crashed is never used again: the next one
is another machine with a catalog of its own, or goes on with the catalog as it lay.
"""

from __future__ import annotations

import copy
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from holdfast import _native
from holdfast.backend.log.disk import Disk
from holdfast.backend.objects.bucket import Bucket
from holdfast.backend.objects.directory import DirectoryBucket
from holdfast.backend.objects.layout import COLLECTOR_KEY, data_key, gone_key, outboard_key
from holdfast.errors import HoldfastError
from holdfast.ranges import ChunkRanges
from holdfast.store import Store
from holdfast.testing.checks import check_store, dump_catalog
from holdfast.testing.faults import SimulatedCrash
from holdfast.testing.ledger import Ledger
from holdfast.testing.model_disk import ModelDisk
from holdfast.testing.plain_bucket import PlainBucket
from holdfast.testing.streams import blocks
from holdfast.types import Durability, Hash
from tests.crash.scripts import LARGE, SCRIPTS, STREAMED
from tests.crash.world import DEEP, attempt, piece

ROOT = "/model/objects"
QUICK = "/dev/shm" if Path("/dev/shm").is_dir() else None

Act = Callable[[Store, Ledger], None]


class ObjectWorld:
    """One bucket, its books, and the machines that work on it.

    The bucket is a dictionary; with `disk` a directory on that model disk, with `is_real` one on the real disk.
    """

    def __init__(self, directory: Path, disk: ModelDisk | None = None, *, is_real: bool = False) -> None:
        self.directory = directory
        self.disk = disk
        self.root = directory / "bucket" if is_real else None
        self.plain = PlainBucket()
        self.ledger = Ledger()
        self.catalog = directory / "catalog.db"

    def model(self) -> ModelDisk:
        """Give the disk that the bucket is a directory on."""
        assert self.disk is not None
        return self.disk

    def bucket(self, disk: Disk | None = None) -> Bucket:
        """Give the bucket as one more machine sees it; `disk` is what it sees of the model disk."""
        if self.root is not None:
            return DirectoryBucket(str(self.root), create=True)
        if self.disk is None:
            return self.plain
        return DirectoryBucket(ROOT, create=True, disk=disk or self.disk)

    def open(
        self, bucket: Bucket | None = None, *, create: bool = False, catalog: Path | None = None
    ) -> Store:
        """Open the store as a process of this machine would, or as another one does, with an empty catalog."""
        return open_objects(bucket or self.bucket(), catalog or self.catalog, create=create)

    def twin(self) -> ObjectWorld:
        """Give a world in the same state, for one more case from the same beginning."""
        twin = self._copied()
        self.copy_catalog(twin.catalog)
        return twin

    def _copied(self, disk: ModelDisk | None = None) -> ObjectWorld:
        place = Path(tempfile.mkdtemp(dir=self.directory.parent if self.root else self.directory))
        other = ObjectWorld(place, disk or (self.disk and self.disk.clone()), is_real=self.root is not None)
        if self.root is not None and other.root is not None:
            shutil.copytree(self.root, other.root)
        other.plain = self.plain.copied()
        other.ledger = copy.deepcopy(self.ledger)
        return other

    def copy_catalog(self, target: Path) -> None:
        """Copy the catalog as it lies, `-wal` included, as a crash would leave it."""
        for suffix in ("", "-wal"):
            with suppress(FileNotFoundError):
                shutil.copyfile(f"{self.catalog}{suffix}", f"{target}{suffix}")

    def end(self) -> None:
        """Remove the files of a twin."""
        shutil.rmtree(self.directory, ignore_errors=True)

    def check_all(self, rng: random.Random, *, power_cuts: int = 1) -> None:
        """The five checks after the process died now: catalog kept, catalog lost, everything collected, no power."""
        with self._another() as kept:
            self.copy_catalog(kept.catalog)
            kept.check(is_kept=True)
        if DEEP or rng.random() < 0.5:
            with self._another() as lost:
                lost.check()
        if DEEP or rng.random() < 0.5:
            with self._another() as collected:
                collected.bucket().delete([COLLECTOR_KEY])  # who crashed has it still
                collected.check(collect=True)
        if self.disk is not None:
            for state in self.disk.crash_states(rng, power_cuts):
                with self._another(state) as cut:
                    if rng.random() < 0.5:
                        self.copy_catalog(cut.catalog)
                    cut.check(is_kept=cut.catalog.exists())

    @contextmanager
    def _another(self, disk: ModelDisk | None = None) -> Iterator[ObjectWorld]:
        """Another machine on a copy of the bucket, or on a disk that came back, with no catalog yet."""
        other = self._copied(disk)
        try:
            yield other
        finally:
            other.end()

    def check(self, *, is_kept: bool = False, collect: bool = False) -> None:
        """The five checks. What a kept catalog has not heard of, a refresh tells it; that equals a rebuild."""

        def open_store() -> Store:
            store = self.open()
            try:
                if is_kept:
                    store.refresh()
                if collect:
                    attempt(lambda: store.gc(min_age_seconds=0))
            except BaseException:
                store.close()
                raise
            return store

        self.ledger.collects |= collect
        check_store(open_store, self.ledger, dump=dump_catalog)


def open_objects(bucket: Bucket, catalog: Path | None, *, create: bool = False) -> Store:
    """Open a store in a bucket."""
    store = Store._open_objects(bucket, catalog, create=create, durability=Durability.STORED)
    store._core._let_go.detach()  # type: ignore[attr-defined]  # one that dies in a test closes nothing
    return store


@contextmanager
def new_world(disk: ModelDisk | None = None) -> Iterator[ObjectWorld]:
    """Make a world with an empty store in it, closed."""
    with tempfile.TemporaryDirectory(dir=QUICK) as directory:
        world = ObjectWorld(Path(directory), disk)
        world.open(create=True).close()
        yield world


def bury(store: Store) -> None:
    """Let a store go whose process has died: only what this process holds for it is freed."""
    with suppress(SimulatedCrash, HoldfastError):
        store.close()


class ObjectScript(NamedTuple):
    """A piece of work with a beginning that is not under test."""

    prepare: Callable[[ObjectWorld], None]
    act: Act

    def run(self, world: ObjectWorld, bucket: Bucket) -> None:
        """Act in a process of its own, which opens the store, works, and closes it."""
        store = world.open(bucket)
        try:
            self.act(store, world.ledger)
            store.close()
        except BaseException:
            bury(store)
            raise


def _nothing(world: ObjectWorld) -> None:
    pass


def _some(count: int, size_bytes: int) -> Callable[[ObjectWorld], None]:
    def prepare(world: ObjectWorld) -> None:
        with world.open() as store:
            for i in range(count):
                world.ledger.put(store, piece(f"old-{i}", size_bytes + i))

    return prepare


def _deleted(world: ObjectWorld) -> None:
    _some(3, 500)(world)
    with world.open() as store:
        world.ledger.delete(store, "old-0")
        world.ledger.delete(store, "old-1")


def _again(store: Store, ledger: Ledger) -> None:
    """Bytes that are known, bytes that another name has, and a stream."""
    same = piece("old-0", LARGE)._replace(name="same")
    attempt(lambda: ledger.put(store, same))
    attempt(lambda: ledger.put_blobs(store, [piece("bare", 20_000), piece("small", 20)]))
    attempt(lambda: ledger.put_side_by_side(store, [piece("streamed-0", 25_000), piece("streamed-1", 40)]))


def _named(world: ObjectWorld) -> None:
    _some(3, 500)(world)
    with world.open() as store:
        world.ledger.refer(store, "one", "old-0")
        world.ledger.refer(store, "two", "old-1")


def _garbage(world: ObjectWorld) -> None:
    """Leave what goes and what stays, in commits of several, and what came again after it had gone."""
    with world.open() as store:
        world.ledger.put_many(store, [piece(f"old-{i}", size) for i, size in enumerate((LARGE, 90, 400, 7))])
        world.ledger.put_blobs(store, [piece("nameless", 20_000), piece("tagged", 300)])
        world.ledger.refer(store, "kept", "tagged")
        world.ledger.delete(store, "old-0")
        world.ledger.collect(store)
        world.ledger.put(store, piece("old-0", LARGE)._replace(name="next"))
        world.ledger.delete(store, "old-2")
        world.ledger.delete(store, "old-3")


def _collect(store: Store, ledger: Ledger) -> None:
    attempt(lambda: ledger.collect(store))
    attempt(lambda: ledger.put(store, piece("old-2", 402)._replace(name="again")))
    attempt(lambda: ledger.delete(store, "next"))
    attempt(lambda: ledger.collect(store))


def _compact(store: Store, ledger: Ledger) -> None:
    attempt(store.compact)
    attempt(lambda: ledger.put(store, piece("compacted", 300)))


def _import(store: Store, ledger: Ledger) -> None:
    """A block apart, some in order from a stream that breaks off, and what joins them."""
    attempt(lambda: ledger.decode(store, STREAMED, blocks(5, 6)))
    attempt(lambda: ledger.decode(store, STREAMED, broken_from=3))
    attempt(lambda: ledger.decode(store, STREAMED, blocks(3)))


def _half_imported(world: ObjectWorld) -> None:
    with world.open() as store:
        world.ledger.decode(store, STREAMED, blocks(4, 5) | blocks(7))
        world.ledger.decode(store, STREAMED, blocks(0, 3))


def _import_on(store: Store, ledger: Ledger) -> None:
    hash_ = Hash(_native.blake3(ledger.content(STREAMED.name)))
    missing: list[ChunkRanges] = []
    attempt(lambda: missing.append(store.blobs.missing_ranges(hash_)))
    for ranges in missing:
        if attempt(lambda: ledger.decode(store, STREAMED, ranges)) is None:  # noqa: B023  # called at once
            attempt(lambda: ledger.refer(store, "whole", STREAMED.name))


def _refresh(store: Store, ledger: Ledger) -> None:
    attempt(store.refresh)
    attempt(lambda: ledger.delete(store, "old-1"))
    attempt(store.rebuild)
    attempt(lambda: ledger.put(store, piece("rebuilt", 100)))


def collect_elsewhere(bucket: Bucket, hash: Hash) -> None:
    """Do what a collector on another machine does to a blob that nothing named when it listed."""
    bucket.create(gone_key(hash.digest, 0), b"")
    bucket.delete([data_key(hash.digest), outboard_key(hash.digest)])


OBJECT_SCRIPTS = {
    "put": ObjectScript(_nothing, SCRIPTS["put"].act),
    "put_many": ObjectScript(_nothing, SCRIPTS["put_many"].act),
    "again": ObjectScript(_some(1, LARGE), _again),
    "put_tree": ObjectScript(_nothing, SCRIPTS["put_tree"].act),
    "delete": ObjectScript(_some(2, 500), SCRIPTS["delete"].act),
    "restore": ObjectScript(_deleted, SCRIPTS["restore"].act),
    "update": ObjectScript(_some(2, 500), SCRIPTS["update"].act),
    "names": ObjectScript(_named, SCRIPTS["names"].act),
    "collect": ObjectScript(_garbage, _collect),
    "compact": ObjectScript(_garbage, _compact),
    "rebuild": ObjectScript(_garbage, _refresh),
    "import": ObjectScript(_nothing, _import),
    "import_on": ObjectScript(_half_imported, _import_on),
}
