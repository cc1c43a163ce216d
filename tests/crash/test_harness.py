"""The harness itself: each promise that a store could break is broken here on purpose, and the checks must see it."""

from __future__ import annotations

import os
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from holdfast.errors import ArtifactNotFound, BlobNotFound, CorruptSegment, HoldfastError
from holdfast.testing.checks import check_store, replayable
from holdfast.testing.faults import numbered, without_ids
from holdfast.testing.ledger import CheckFailed, Ledger
from holdfast.testing.processes import Torturer, _read
from tests.crash import world
from tests.crash.world import ROOT, SEED, Fault, FaultyDisk, World, bury, fill, new_world, piece


class LyingDisk(FaultyDisk):
    """Says that it has synced, and has not."""

    def __init__(self, inner: Any, *, files: bool = True, names: bool = True) -> None:
        super().__init__(inner)
        self.lies = (files, names)

    def fsync(self, handle: int) -> None:
        if not self.lies[0]:
            super().fsync(handle)

    def fsync_dir(self, path: str) -> None:
        if not self.lies[1]:
            super().fsync_dir(path)


@pytest.mark.parametrize(("files", "names"), [(True, False), (False, True)])
def test_a_missing_fsync_is_seen(files: bool, names: bool) -> None:
    seen = 0
    for seed in range(12):
        with new_world() as world:
            disk = LyingDisk(world.disk, files=files, names=names)
            store = world.open(disk)
            world.ledger.put(store, piece("small", 100))
            world.ledger.put_many(store, [piece(f"many-{i}", 30_000) for i in range(4)])
            state = world.disk.power_cut(random.Random(seed))
            disk.crash()
            bury(store)
            try:
                world.check(state, world.no_catalog())
            except CheckFailed:
                seen += 1
    assert seen > 0


def broken(change: Any) -> str:
    """Check a sound store after `change` made the books, or the disk, say something else; give the complaint."""
    with new_world() as world:
        fill(world, 3, 3_000)
        with world.open() as store:
            world.ledger.delete(store, "old-2")
            world.ledger.put_blobs(store, [piece("blob", 20_000)])
        world.check(world.disk, world.copy_catalog())
        change(world)
        with pytest.raises(CheckFailed) as caught:
            world.check(world.disk, world.copy_catalog())
        return str(caught.value)


def test_a_lost_artifact_is_seen() -> None:
    def change(world: World) -> None:
        ghost = piece("ghost", 5)
        world.ledger.artifacts["ghost"] = world.ledger.pieces["ghost"] = ghost
        world.ledger.ids["ghost"] = "x"

    assert broken(change).startswith("1: ghost was acknowledged as live and is nowhere")


def test_a_lost_blob_is_seen() -> None:
    def change(world: World) -> None:
        world.ledger.blobs["00" * 32] = piece("ghost", 5)

    assert broken(change).startswith("1: the blob ghost")


def test_a_lost_deletion_is_seen() -> None:
    def change(world: World) -> None:
        world.ledger.deleted["old-0"] = world.ledger.artifacts.pop("old-0")

    assert broken(change).startswith("1: old-0 was acknowledged as deleted and is in the other state")


def test_wrong_bytes_are_seen() -> None:
    def change(world: World) -> None:
        world.ledger.pieces["old-1"] = world.ledger.pieces["old-1"]._replace(seed=1)
        world.ledger.__dict__["_contents"].clear()

    assert broken(change).startswith("2: old-1 reads wrong")


def test_half_of_a_group_is_seen() -> None:
    def change(world: World) -> None:
        world.ledger.forget("old-0")
        number, attempt = world.ledger.open_attempts.popitem()
        absent = piece("absent", 7)
        world.ledger.pieces["absent"] = absent
        world.ledger.open_attempts[number] = attempt._replace(subject=(*attempt.subject, absent))

    assert broken(change).startswith("5: of 2 pieces that were not acknowledged, 1 are there")


def test_what_nobody_put_is_seen() -> None:
    def change(world: World) -> None:
        del world.ledger.artifacts["old-0"], world.ledger.pieces["old-0"]

    assert broken(change).startswith("5: old-0 is there and nobody ever put it")


def test_a_store_that_does_not_open_is_seen() -> None:
    def refuse() -> Any:
        raise CorruptSegment("broken", segment=1, offset_bytes=64)

    with pytest.raises(CheckFailed, match=r"^3: the store does not open"):
        check_store(refuse, Ledger())
    check_store(refuse, Ledger(), damaged=True)  # it names the place

    def refuse_without_evidence() -> Any:
        raise CorruptSegment("broken somewhere")

    with pytest.raises(CheckFailed):
        check_store(refuse_without_evidence, Ledger(), damaged=True)


def test_a_catalog_that_differs_from_storage_is_seen() -> None:
    with new_world() as world:
        fill(world, 1, 100)
        dumps = iter((["a", "b"], ["a"]))
        with pytest.raises(CheckFailed, match=r"^4: the rebuilt catalog differs: lost \['b'\], new \[\]"):
            check_store(world.open, world.ledger, dump=lambda _: next(dumps))


def test_a_failure_says_how_to_see_it_again() -> None:
    with pytest.raises(ValueError, match="x") as caught, replayable(SEED, "pytest this"):
        raise ValueError("x")
    assert caught.value.__notes__ == [
        f"seed {SEED}; to run this case again: HOLDFAST_SEED={SEED} pytest this"
    ]


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_the_command_of_a_deep_run_says_so(share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """With less of the deep figures other cases are run, and others decide what befalls them."""
    monkeypatch.setattr(world, "SHARE", share)
    monkeypatch.setattr(world, "DEEP", share > 0)
    test = f"tests/crash/test_harness.py::test_the_command_of_a_deep_run_says_so[{share}]"
    with pytest.raises(ValueError, match="x") as caught, world.replay(test, 7, 3):
        raise ValueError("x")
    (note,) = caught.value.__notes__
    command = note.partition(": ")[2]
    assert command == (
        f"HOLDFAST_SEED=7 HOLDFAST_DEEP=0.5 HOLDFAST_SITE=3 .venv/bin/pytest --timeout 0 '{test}'"
        if share
        else f"HOLDFAST_SEED=7 HOLDFAST_SITE=3 .venv/bin/pytest '{test}'"
    )


def test_a_command_that_runs_something_else_is_refused() -> None:
    with (
        pytest.raises(ValueError, match="is not what runs"),
        world.replay("tests/crash/test_sites.py::test_x"),
    ):
        pass


def test_a_fault_comes_at_the_step_that_was_recorded_whatever_others_do_before_it() -> None:
    """Two threads reach their steps in another order than when the run was recorded."""
    with new_world() as one:
        recorder = FaultyDisk(one.disk)
        for name in "ab":
            recorder.close(recorder.open(f"{ROOT}/{name}", "x"))
        (site,) = [site for site in recorder.sites if str(site) == "3:create(b)"]
    with new_world() as other:
        disk = FaultyDisk(other.disk, Fault.EIO, numbered(site, recorder.sites), like=site, for_good=True)
        with pytest.raises(HoldfastError):
            disk.open(f"{ROOT}/b", "x")
        assert disk.struck
        with pytest.raises(HoldfastError):
            disk.open(f"{ROOT}/a", "x")


@pytest.mark.parametrize(
    ("path", "masked"),
    [
        ("/s/sessions/01a20092-ee3b-7000-95d9-9d43f1f63053", "/s/sessions/*"),
        ("/s/sessions/01a20092ee3b700095d99d43f1f63053", "/s/sessions/*"),
        ("/o/.new/store.json,3533-18ea3e4e262d3ff1-4", "/o/.new/store.json,*"),
        ("/s/segments/0000000003.seg", "/s/segments/0000000003.seg"),
    ],
)
def test_ids_that_are_others_in_each_run_make_no_other_step(path: str, masked: str) -> None:
    assert without_ids(path) == masked


class _Death:
    """What no process takes out of a message alive."""

    def __reduce__(self) -> Any:
        return os._exit, (3,)


def test_a_process_that_ends_by_itself_is_seen(tmp_path: Path) -> None:
    torturer = Torturer(tmp_path / "store", SEED, options={"death": _Death()})
    with pytest.raises(CheckFailed, match="write 1 ended by itself, with 3"):
        torturer.run(seconds=60)


@pytest.mark.parametrize("is_live", [True, False])
def test_a_reader_that_misses_the_blob_of_a_live_artifact_says_so(is_live: bool) -> None:
    said: list[Any] = []

    def send(event: Any) -> None:
        said.append(event)
        raise BrokenPipeError

    def miss(*_: object) -> None:
        raise BlobNotFound("gone")

    def info(_: object) -> None:
        if not is_live:
            raise ArtifactNotFound("deleted")

    turns = iter(([SimpleNamespace(id="x")], []))
    store = SimpleNamespace(find=lambda limit: next(turns), read=miss, info=info)
    with pytest.raises((BrokenPipeError, StopIteration)):
        _read(SimpleNamespace(send=send), store, 1, random.Random(SEED))  # type: ignore[arg-type]
    assert [event[0] for event in said] == (["wrong"] if is_live else [])
