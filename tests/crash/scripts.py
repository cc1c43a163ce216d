"""The scripted pieces of work that the tests in this directory break at every step."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, partial
from typing import Final, NamedTuple
from unittest.mock import patch

from holdfast import compaction, filling, importing
from holdfast._native import blake3
from holdfast.store import Store
from holdfast.testing.ledger import Piece
from holdfast.testing.streams import blocks
from holdfast.types import Hash
from tests.crash.world import (
    FaultyDisk,
    Ledger,
    Script,
    World,
    attempt,
    crash_after,
    fill,
    new_world,
    piece,
)

LARGE: Final = 30_000
"""Larger than a block, cut into several chunks."""


def _nothing(world: World) -> None:
    pass


def _put(store: Store, ledger: Ledger) -> None:
    attempt(lambda: ledger.put(store, piece("small", 100)))
    attempt(lambda: ledger.put(store, piece("large", LARGE, shared_bytes=20_000)))
    attempt(lambda: ledger.put(store, piece("sharing", LARGE, shared_bytes=20_000)))


def _put_many(store: Store, ledger: Ledger) -> None:
    sizes = (50, 40_000, 16_385, 1, 60_000, 3_000, 45_000)  # 164 KB: three segments of 64 KiB
    attempt(lambda: ledger.put_many(store, [piece(f"many-{i}", size) for i, size in enumerate(sizes)]))
    attempt(lambda: ledger.put_blobs(store, [piece(f"blob-{i}", size) for i, size in enumerate((9, 20_000))]))
    attempt(lambda: ledger.put(store, piece("after", 10)))


def _delete(store: Store, ledger: Ledger) -> None:
    attempt(lambda: ledger.delete(store, "old-0"))
    attempt(lambda: ledger.delete(store, "old-1"))


def _deleted(world: World) -> None:
    fill(world, 3, 500)
    with world.open() as store:
        world.ledger.delete(store, "old-0")
        world.ledger.delete(store, "old-1")


def _restore(store: Store, ledger: Ledger) -> None:
    attempt(lambda: ledger.restore(store, "old-0"))
    attempt(lambda: ledger.restore(store, "old-1"))
    attempt(lambda: ledger.delete(store, "old-2"))


def _update(store: Store, ledger: Ledger) -> None:
    attempt(lambda: ledger.tag(store, "old-0", "one"))
    attempt(lambda: ledger.tag(store, "old-0", "two"))
    attempt(lambda: ledger.tag(store, "old-1", "one"))


def _named(world: World) -> None:
    fill(world, 3, 500)
    with world.open() as store:
        world.ledger.refer(store, "one", "old-0")
        world.ledger.refer(store, "two", "old-1")


def _names(store: Store, ledger: Ledger) -> None:
    attempt(lambda: ledger.refer(store, "three", "old-2"))
    attempt(lambda: ledger.refer(store, "one", "old-1"))
    attempt(lambda: ledger.rename_ref(store, "two", "four"))
    attempt(lambda: ledger.drop_ref(store, "one"))


def _garbage(world: World) -> None:
    """Leave what goes and what stays, in chunks that both share; of one tail its writer died."""
    with world.open() as store:
        for i in range(4):
            world.ledger.put(store, piece(f"old-{i}", LARGE + i, shared_bytes=15_000))
        world.ledger.put_blobs(store, [piece("nameless", 20_000), piece("small", 300)])
        world.ledger.delete(store, "old-0")
        world.ledger.delete(store, "old-2")
    crash_after(world, lambda store: world.ledger.put(store, piece("dead", LARGE, shared_bytes=15_000)))


def _collect(store: Store, ledger: Ledger) -> None:
    attempt(lambda: ledger.collect(store, max_batches=1))
    attempt(lambda: ledger.collect(store))
    attempt(lambda: ledger.put(store, piece("again", LARGE, shared_bytes=15_000)))
    attempt(lambda: ledger.delete(store, "old-1"))
    attempt(lambda: ledger.collect(store))


def _nearly_full(world: World) -> None:
    fill(world, 5, 11_000)


def _seal(store: Store, ledger: Ledger) -> None:
    for i in range(3):
        attempt(partial(ledger.put, store, piece(f"seal-{i}", 9_000)))


def _adopt(store: Store, ledger: Ledger) -> None:
    attempt(lambda: ledger.put(store, piece("adopted", 2_000)))


def _unclean(world: World) -> None:
    """Leave two unclean tails: one that the catalog knows, and one whose last group it has not seen."""
    fill(world, 2, 3_000)
    crash_after(world, lambda store: world.ledger.put(store, piece("dead-1", 18_000)))
    stale = world.copy_catalog()
    crash_after(world, lambda store: world.ledger.put(store, piece("dead-2", 700)))
    world.catalog = stale


def _take_over(store: Store, ledger: Ledger) -> None:
    attempt(lambda: ledger.put(store, piece("taker", 2_000)))


def _mixed(world: World) -> None:
    fill(world, 4, 17_000)
    _unclean_more(world)


def _unclean_more(world: World) -> None:
    with world.open() as store:
        world.ledger.delete(store, "old-1")
    crash_after(world, lambda store: world.ledger.put(store, piece("dead", 40_000)))


def _rebuild(store: Store, ledger: Ledger) -> None:
    attempt(store.rebuild)
    attempt(lambda: ledger.put(store, piece("rebuilt", 100)))


class _Tree(NamedTuple):
    """A directory, and the collection that its blob is to be."""

    path: str
    files: list[Piece]
    content: bytes
    size_bytes: int
    """Of its files together, as its artifact says."""


@cache
def _tree() -> _Tree:
    """Make a directory of small and large files, two of them equal, an empty one, a link, and what only we carry."""
    path = tempfile.mkdtemp(prefix="holdfast-tree-")
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    os.makedirs(f"{path}/a/b")
    os.makedirs(f"{path}/void")
    files = [
        piece(f"a/b/{i}", size) for i, size in enumerate((1, 300, 16_384, 16_385, 50_000, 70_000, 2_000))
    ]
    for file in files:
        with open(f"{path}/{file.name}", "wb") as out:
            out.write(file.content())
    shutil.copyfile(f"{path}/a/b/1", f"{path}/again")
    with open(f"{path}/empty", "wb"):
        pass
    os.chmod(f"{path}/a/b/1", 0o700)
    os.symlink("a/b/0", f"{path}/link")
    with new_world() as world, world.open() as store:
        artifact = store.put_tree(path)
        return _Tree(path, files, store.read(artifact), artifact.size_bytes)


def _put_tree(store: Store, ledger: Ledger) -> None:
    tree = _tree()  # 155 KB: three segments of 64 KiB
    whole = Piece("tree", 0, tree.size_bytes)
    attempt(lambda: ledger.put_tree(store, whole, tree.path, tree.content, tree.files))
    attempt(lambda: ledger.put(store, piece("after", 10)))


def _close(store: Store, ledger: Ledger) -> None:
    """Leave several segments to be closed: each large writer that is open at the same time has one of its own."""
    attempt(lambda: ledger.put_side_by_side(store, [piece(f"side-{i}", 25_000 + i) for i in range(3)]))
    attempt(store.close)


STREAMED: Final = piece("streamed", 7 * 16_384 + 5_000)
"""Eight blocks, of several chunks each, in two segments."""


class _Import(Script):
    """Streams come in, with checkpoints as small as the blobs are."""

    def run(self, world: World, disk: FaultyDisk) -> None:
        with small_checkpoints():
            super().run(world, disk)


@contextmanager
def small_checkpoints() -> Iterator[None]:
    """Let a checkpoint come after two blocks, and a step of copying take three."""
    with (
        patch.object(importing, "CHECKPOINT_BYTES", 32_768),
        patch.object(filling, "STEP_BYTES", 49_152),
        patch.object(filling, "CARRY_BYTES", 20_000),
    ):
        yield


def _import(store: Store, ledger: Ledger) -> None:
    """A block apart, some in order from a stream that breaks off, and what joins them."""
    attempt(lambda: ledger.decode(store, STREAMED, blocks(5, 6)))
    attempt(lambda: ledger.decode(store, STREAMED, broken_from=3))
    attempt(lambda: ledger.decode(store, STREAMED, blocks(3)))


def _half_imported(world: World) -> None:
    """Leave a partial blob that a process was filling when it died, and one that is to expire."""
    with small_checkpoints():
        with world.open() as store:
            world.ledger.decode(store, STREAMED, blocks(4, 5) | blocks(7))
            world.ledger.decode(store, piece("stale", 50_000), blocks(0, 2))
        crash_after(world, lambda store: world.ledger.decode(store, STREAMED, blocks(0, 3)))


def _import_on(store: Store, ledger: Ledger) -> None:
    missing = store.blobs.missing_ranges(Hash(blake3(STREAMED.content())))
    attempt(lambda: ledger.decode(store, STREAMED, missing))
    attempt(lambda: ledger.expire(store))
    attempt(lambda: ledger.decode(store, piece("stale", 50_000), blocks(2)))


def _worn(world: World) -> None:
    """Leave segments with old revisions, with groups that others go on with, with copies, and a dead writer's tail."""
    with world.open() as store:
        world.ledger.put_many(
            store, [piece(f"worn-{i}", size) for i, size in enumerate((40_000, 60_000, 70))]
        )
        for i in range(3):
            world.ledger.put(store, piece(f"old-{i}", 17_000 + i))
            _wear(store, world.ledger, "worn-0", "worn-2", f"old-{i}")
        world.ledger.delete(store, "old-0")
        world.ledger.restore(store, "old-0")
        world.ledger.delete(store, "old-1")
    crash_after(world, lambda store: _wear(store, world.ledger, "worn-1", "old-2"))


def _wear(store: Store, ledger: Ledger, *names: str) -> None:
    """Give artifacts new revisions, with documents that are large enough to be worth the while."""
    for name in names:
        artifact = store.info(ledger.ids[name])
        for _ in range(2):
            artifact = store.update(artifact, created_by=f"{artifact.revision}-{name}-" * 200)


def _compact(store: Store, ledger: Ledger) -> None:
    attempt(store.compact)
    attempt(lambda: ledger.put(store, piece("compacted", 20_000)))
    attempt(lambda: _wear(store, ledger, "worn-0", "old-2"))
    attempt(lambda: store.compact(0.1))


class _Compact(Script):
    """A compaction that moves its rows in several transactions, between which others write."""

    def __init__(self) -> None:
        super().__init__("compact", _worn, _compact)

    def run(self, world: World, disk: FaultyDisk) -> None:
        with small_switches():
            super().run(world, disk)


@contextmanager
def small_switches() -> Iterator[None]:
    """Let a compaction move three rows in a transaction."""
    with patch.object(compaction, "SWITCHED_ROWS", 3):
        yield


class _CompactBeside(Script):
    """A compaction breaks, while another process has the store open, reads, and goes on writing."""

    def __init__(self) -> None:
        super().__init__("compact_beside", _worn, _compact)

    def run(self, world: World, disk: FaultyDisk) -> None:
        with small_switches(), world.open() as live, live.open(world.ledger.ids["worn-1"]) as file:
            file.read(1_000)
            world.ledger.put(live, piece("beside-1", 3_000))
            try:
                super().run(world, disk)
            finally:
                file.seek(0)
                assert file.read() == world.ledger.content("worn-1")
                world.ledger.put(live, piece("beside-2", 20_000))
                for name in world.ledger.artifacts.keys() - world.ledger.unsure():
                    assert live.read(world.ledger.ids[name]) == world.ledger.content(name)


class _RebuildBeside(Script):
    """A rebuild breaks, while another process has the store open, has written, and goes on writing."""

    def __init__(self) -> None:
        super().__init__("rebuild_beside", _mixed, _rebuild)

    def run(self, world: World, disk: FaultyDisk) -> None:
        with world.open() as live:
            world.ledger.put(live, piece("beside-1", 3_000))
            try:
                super().run(world, disk)
            finally:
                world.ledger.put(live, piece("beside-2", 20_000))
                world.ledger.delete(live, "beside-1")


SCRIPTS: Final = {
    script.name: script
    for script in (
        Script("put", _nothing, _put),
        Script("put_many", _nothing, _put_many),
        Script("delete", lambda world: fill(world, 2, 500), _delete),
        Script("restore", _deleted, _restore),
        Script("update", lambda world: fill(world, 2, 500), _update),
        Script("names", _named, _names),
        Script("collect", _garbage, _collect),
        Script("seal", _nearly_full, _seal),
        Script("adopt", lambda world: fill(world, 2, 3_000), _adopt),
        Script("takeover", _unclean, _take_over),
        Script("rebuild", _mixed, _rebuild),
        Script("put_tree", lambda world: fill(world, 1, 500), _put_tree),
        Script("close", _nothing, _close),
        _Import("import", _nothing, _import),
        _Import("import_on", _half_imported, _import_on),
        _RebuildBeside(),
        _Compact(),
        _CompactBeside(),
    )
}
