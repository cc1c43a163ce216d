"""What the proofs found, each as small as it can be (docs/proofs.md, "Defects found and mended")."""

from __future__ import annotations

import gc
import os
import random
import time
from contextlib import suppress
from pathlib import Path

import pytest

from holdfast.backend.log import collector
from holdfast.errors import HoldfastError, Locked, NotFound
from holdfast.store import Store
from holdfast.testing.checks import dump_catalog
from holdfast.testing.faults import SimulatedCrash, Site
from holdfast.testing.inside import log_core
from holdfast.testing.streams import Sender, blocks
from tests.crash.world import ROOT, Fault, FaultyDisk, attempt, bury, crash_after, new_world, piece


@pytest.mark.parametrize("steps", range(10, 30))
def test_a_blob_of_which_nothing_has_come_does_not_read_as_empty(steps: int) -> None:
    """The taker of a stream died before it knew the size of the blob, which then read as b""."""
    content = piece("sent", 40_000).content()
    sender = Sender(content)
    with new_world() as world:
        disk = FaultyDisk(world.disk)
        store = world.open(disk)
        disk.arm(Fault.CRASH_BEFORE, steps)
        with suppress(SimulatedCrash):
            store.blobs.decode(sender.hash, sender.stream(blocks(0, 1)), blocks(0, 1))
        disk.crash()
        bury(store)
        with world.open(catalog=world.copy_catalog()) as again:
            for read in (again.read, lambda h: b"".join(again.iter_bytes(h)), lambda h: again.open(h).read()):
                with suppress(NotFound):
                    assert read(sender.hash) == content


def test_a_closed_store_holds_no_file_whatever_was_rebuilt(tmp_path: Path) -> None:
    """Catalogs that were replaced stayed open until the garbage collector came by, and a file system busy."""
    gc.disable()
    try:
        store = Store._open(tmp_path / "store", create=True)
        store.put(b"x")
        store.rebuild()
        (tmp_path / "store" / "catalog.db").unlink()
        assert store.count() == 1
        store.close()
        held = [os.readlink(f"/proc/self/fd/{number}") for number in _descriptors()]
        assert not [path for path in held if path.startswith(str(tmp_path))]
    finally:
        gc.enable()


def _descriptors() -> list[str]:
    if not os.path.isdir("/proc/self/fd"):
        pytest.skip("there is no /proc to count descriptors in")
    return [name for name in os.listdir("/proc/self/fd") if os.path.islink(f"/proc/self/fd/{name}")]


@pytest.mark.parametrize("how", ["its writer died", "its fsync failed"])
def test_what_lies_in_a_segment_that_nobody_goes_on_with_is_cared_for(how: str) -> None:
    """Scrub passed over it, and that it was gone was not noticed: a rebuild then forgot what was acknowledged."""
    with new_world() as world:
        if how == "its writer died":
            crash_after(world, lambda store: world.ledger.put(store, piece("kept", 3_000)))
            stale = world.copy_catalog()
            crash_after(world, lambda store: attempt(lambda: store.put(b"x" * 700)))
            world.catalog = stale
            disk = FaultyDisk(world.disk)
            store = world.open(disk)
            log_core(store).backend.committer.group().abort()
            disk.arm(Fault.CRASH_BEFORE, 6)
            with suppress(SimulatedCrash):
                store.put(b"dies before it has applied")
            disk.crash()
            bury(store)
            world.catalog = world.copy_catalog()
        else:
            disk = FaultyDisk(world.disk, Fault.EIO, at=4, where=_is_sync_of_a_segment)
            store = world.open(disk)
            world.ledger.put(store, piece("kept", 3_000))
            for number in range(3):
                attempt(lambda: store.put(bytes((number,)) * 500))  # noqa: B023  # called at once
            store.close()
        world.open().close()
        for path, content in world.disk.files(f"{ROOT}/segments").items():
            if piece("kept", 3_000).content() not in content:
                continue
            flipped = bytearray(content)
            flipped[content.index(piece("kept", 3_000).content()) + 5] ^= 1
            rotten = world.disk.clone()
            rotten.overwrite(path, bytes(flipped))
            with world.open(rotten, catalog=world.copy_catalog()) as again:
                assert not again.scrub().ok, "scrub passed over it"
            world.disk.unlink(path)
            with world.open(catalog=world.copy_catalog()) as again, pytest.raises(HoldfastError):
                again.rebuild()
            return
        raise AssertionError("what was acknowledged is nowhere")


def _is_sync_of_a_segment(site: Site) -> bool:
    return site.call == "fsync" and site.path.endswith(".seg")


def test_a_tail_whose_cut_was_not_synced_brings_nothing_back() -> None:
    """A taker cut a dead tail and died; compaction saw no tail and dropped the tombstone; then the power went.

    Found by the model (models/names.pml, NO_LOOK_SYNC KILL_TAKER): the tail came back, and with it what was deleted.
    """
    dropped = 0
    with new_world() as world:
        first = world.open()  # it keeps its segment, so that the next one makes another
        key = first.put(b"deleted in the end", filename="again").id
        tombstone = f"tombstone\tx{key.replace('-', '')}"
        stale = []

        def work(store: Store) -> None:
            store.put(piece("stays", 14_000).content(), filename="stays")
            stale.append(world.copy_catalog())
            store.update(key, metadata={"revision": "two"})

        crash_after(world, work)
        first.close()
        world.catalog = stale[0]
        cut = FaultyDisk(world.disk, Fault.CRASH_AFTER, at=1, where=lambda site: site.call == "truncate")
        with suppress(SimulatedCrash):
            bury(world.open(cut))
        assert cut.hit is not None
        cut.crash()
        world.catalog = world.copy_catalog()
        with world.open() as store:
            store.put(b"another segment is the highest")
            assert store.info(key).revision == 2
            store.delete(key)
            store.gc(min_age_seconds=0)
            other = store.put(b"changes often")
            for number in range(24):  # segments that fill up, with something dead beside the tombstone
                store.update(other, metadata={"words": f"{number}" * 7_000})
                if number % 8 == 7:
                    store.compact(0.0)
            dropped += not [row for row in dump_catalog(store) if row.startswith(tombstone)]
            for seed in range(40):
                state = world.disk.power_cut(random.Random(seed))
                with world.open(state, catalog=world.no_catalog()) as again:
                    assert not list(again.find(filename="again")), "what was deleted is back"
        assert dropped


def test_a_group_of_which_all_was_compacted_away_is_no_damage(tmp_path: Path) -> None:
    """Its commit is restated by what is compacted first; with that still to be brought in, it seemed broken."""
    (tmp_path / "file").write_bytes(piece("gone", 70_000).content())
    with new_world() as world:
        disk = FaultyDisk(world.disk)
        store = world.open(disk)
        store.delete(store.put_tree(tmp_path))
        time.sleep(0.01)  # what is deleted in this very millisecond stays
        assert store.gc(min_age_seconds=0).dropped_blobs
        disk.crash()
        bury(store)
        with world.open(catalog=world.no_catalog()) as again:
            assert again.count() == 0
            assert again.rebuild().problems == ()
            assert again.scrub().ok


def test_the_header_of_a_segment_that_holds_nothing_is_no_loss() -> None:
    """What its writer left was never committed and is cut off; a bit of its header then was damage for good."""
    kept = piece("kept", 3_000).content()
    seen = 0
    for step in range(6, 18):
        with new_world() as world:
            with world.open() as first:
                artifact = first.put(kept)  # the other one takes a segment of its own
                disk = FaultyDisk(world.disk)
                store = world.open(disk)
                disk.arm(Fault.CRASH_BEFORE, step)
                with suppress(SimulatedCrash):
                    store.put_many([b"1", piece("lost", 16_384).content()])
                disk.crash()
                bury(store)
            world.open().close()
            path, data = max(world.disk.files(f"{ROOT}/segments").items())
            if not 64 < len(data) < 200:
                continue
            seen += 1
            damaged = bytearray(data)
            damaged[20] ^= 1
            world.disk.overwrite(path, bytes(damaged))
            for catalog in (world.copy_catalog(), world.no_catalog()):
                with world.open(catalog=catalog) as again:
                    assert again.rebuild().problems == ()
                    assert again.scrub().ok
                    assert again.read(artifact) == kept
    assert seen


def test_a_note_of_who_holds_a_lock_that_is_not_utf_8_is_nobody_s(tmp_path: Path) -> None:
    """A bit of it flipped was a `UnicodeDecodeError` in place of `Locked`."""
    with Store._open(str(tmp_path / "s"), create=True) as store, log_core(store).backend.lock():
        (tmp_path / "s" / "lock").write_bytes(b'{"host":"\xa2"}')
        with pytest.raises(Locked, match="process \\? on \\?"):
            Store._open(str(tmp_path / "s"), lock_timeout_seconds=0.05)
    assert collector._refusal(b'{"host":"\xa2"}', "x").kind == Locked.kind
