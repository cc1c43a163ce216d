"""What the proofs found, each as small as it can be (docs/proofs.md, "Defects found and mended")."""

from __future__ import annotations

import gc
import os
from contextlib import suppress
from pathlib import Path

import pytest

from holdfast.errors import NotFound
from holdfast.store import Store
from holdfast.testing.faults import SimulatedCrash
from holdfast.testing.streams import Sender, blocks
from tests.crash.world import Fault, FaultyDisk, bury, new_world, piece


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
