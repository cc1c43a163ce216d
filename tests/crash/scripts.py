"""The scripted pieces of work that the tests in this directory break at every step."""

from __future__ import annotations

from functools import partial
from typing import Final

from holdfast.store import Store
from tests.crash.world import Ledger, Script, World, attempt, crash_after, fill, piece

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


SCRIPTS: Final = {
    script.name: script
    for script in (
        Script("put", _nothing, _put),
        Script("put_many", _nothing, _put_many),
        Script("delete", lambda world: fill(world, 2, 500), _delete),
        Script("restore", _deleted, _restore),
        Script("seal", _nearly_full, _seal),
        Script("adopt", lambda world: fill(world, 2, 3_000), _adopt),
        Script("takeover", _unclean, _take_over),
        Script("rebuild", _mixed, _rebuild),
    )
}
