"""Syncs and locks that the other tests here do not miss by themselves: one small test for each (docs/proofs.md)."""

from __future__ import annotations

import os
import random
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from holdfast import _native
from holdfast.backend.log.backend import LogBackend
from holdfast.backend.log.claims import Claims
from holdfast.backend.log.disk import LocalDisk
from holdfast.backend.log.evacuation import Source
from holdfast.backend.log.layout import segment_path
from holdfast.backend.log.lock import StoreLock
from holdfast.backend.log.session import read_sessions
from holdfast.backend.log.tidy import close_quiet, remove_empty, remove_retired, retire, seal_again
from holdfast.candidates import Choice
from holdfast.care import health
from holdfast.catalog import compacting
from holdfast.compaction import _Compaction
from holdfast.errors import HoldfastError, Locked, NeedsReopen
from holdfast.facts import SEGMENT_OPEN
from holdfast.recovery import CatalogKeeper
from holdfast.store import Store
from holdfast.testing.inside import log_core
from holdfast.testing.ledger import Ledger
from holdfast.testing.model_disk import ModelDisk
from holdfast.trees import export
from holdfast.types import Hash
from holdfast.wire.record import FLAG_BLOB, SEGMENT_HEADER_BYTES, Kind, frame_one
from tests.crash.world import (
    CHUNKING,
    ROOT,
    SEED,
    SEGMENT_BYTES,
    Fault,
    FaultyDisk,
    Site,
    World,
    attempt,
    bury,
    crash_after,
    fill,
    new_world,
    open_store,
    piece,
)

CUTS = 12


class Pausing(FaultyDisk):
    """Runs something else, once, right after a step for which `where` holds."""

    def __init__(self, inner: Any, where: Callable[[str, str], bool], between: Callable[[], object]) -> None:
        super().__init__(inner)
        self.pause = where
        self.between = between
        self.done = False

    def _maybe(self, call: str, path: str) -> None:
        if not self.done and self.pause(call, path):
            self.done = True
            self.between()

    def open(self, path: str, mode: Any) -> int:
        handle = super().open(path, mode)
        self._maybe(f"open {mode}", path)
        return handle

    def truncate(self, handle: int, length: int) -> None:
        path = self._path(handle)
        super().truncate(handle, length)
        self._maybe("truncate", path)


def beside(work: Callable[[], object]) -> threading.Thread:
    """Start something in a thread and give it a moment: it is done by then, or waits for a lock."""
    thread = threading.Thread(target=lambda: attempt(work), daemon=True)
    thread.start()
    thread.join(0.5)
    return thread


def after_power_cuts(world: World, check: Callable[[Store], None], count: int = CUTS) -> None:
    """Check what comes back of the disk as it is now, whatever was not synced, without a catalog."""
    for seed in range(count):
        state = world.disk.power_cut(random.Random(SEED + seed))
        with world.open(state, catalog=world.no_catalog()) as store:
            check(store)


def put_raw(store: Store, payloads: list[bytes]) -> Any:
    """Begin a group of blobs that is not committed yet."""
    group = log_core(store).backend.group()
    hashes = b"".join(_native.blake3(payload) for payload in payloads)
    count = len(payloads)
    flags = bytes((FLAG_BLOB,)) * count
    group.add(bytes((Kind.DATA,)) * count, flags, hashes, [len(p) for p in payloads], payloads)
    return group


# --- syncs


def test_groups_that_share_a_commit_are_durable_in_each_segment_that_they_fill() -> None:
    with new_world() as world:
        store = world.open()
        store.put(b"the segment is not fresh")
        contents = [random.Random(number).randbytes(13_000) for number in range(7)]
        groups = [put_raw(store, [content]) for content in contents]
        log_core(store).backend.committer.commit_now(groups)
        assert len(log_core(store).backend.segment_ids()) > 1

        def check(again: Store) -> None:
            for content in contents:
                assert again.read(Hash(_native.blake3(content))) == content

        after_power_cuts(world, check)
        store.close()


def test_sync_makes_durable_what_was_only_buffered() -> None:
    with new_world() as world:
        store = Store._open(
            ROOT,
            disk=world.disk,
            catalog_path=world.catalog,
            chunking=CHUNKING,
            segment_bytes=SEGMENT_BYTES,
            fsync=False,
        )
        artifact = store.put(b"buffered at first")
        store.sync()
        after_power_cuts(world, lambda again: _reads(again, artifact.id, b"buffered at first"))
        store.close()


def _reads(store: Store, artifact_id: str, content: bytes) -> None:
    assert store.read(artifact_id) == content


def test_a_store_in_new_directories_survives_a_power_cut(tmp_path: Path) -> None:
    """Each directory that is made on the way is durable in the one above it."""
    disk = ModelDisk("/model")
    root = "/model/a/b/c/store"
    store = open_store(disk, tmp_path / "one.db", create=True, root=root)
    artifact = store.put(b"deep down")
    for seed in range(CUTS):
        state = disk.power_cut(random.Random(seed))
        with open_store(state, tmp_path / f"{seed}.db", root=root) as again:
            assert again.read(artifact.id) == b"deep down"
    store.close()


def test_what_a_takeover_copies_is_durable_in_each_segment_that_it_fills() -> None:
    with new_world() as world:
        fill(world, 1, 100)
        stale = world.copy_catalog()
        names = {f"tail-{number}" for number in range(8)}  # more than a segment of the taker has room for
        for name in sorted(names):
            crash_after(world, lambda store, n=name: world.ledger.put(store, piece(n, 14_000)))  # type: ignore[misc]
        world.catalog = stale
        with world.open() as store:
            live = {a.filename for a in store.find()}
            assert names <= live
            after_power_cuts(
                world, lambda again: _same_set({a.filename for a in again.find()}, live | {"old-0"})
            )


def _same_set(found: Any, wanted: Any) -> None:
    assert found == wanted


def test_the_real_disk_syncs_what_it_is_told_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files by fdatasync, or fsync where there is none; directories by fsync of themselves."""
    synced: list[tuple[str, str]] = []

    def spy(name: str) -> Callable[[int], None]:
        return lambda handle: synced.append((name, os.readlink(f"/proc/self/fd/{handle}")))

    disk = LocalDisk()
    handle = disk.open(str(tmp_path / "file"), "x")
    monkeypatch.setattr(os, "fsync", spy("fsync"))
    if hasattr(os, "fdatasync"):
        monkeypatch.setattr(os, "fdatasync", spy("fdatasync"))
        disk.fsync(handle)
        assert synced == [("fdatasync", str(tmp_path / "file"))]
        monkeypatch.delattr(os, "fdatasync")
    synced.clear()
    disk.fsync(handle)
    disk.fsync_dir(str(tmp_path))
    assert synced == [("fsync", str(tmp_path / "file")), ("fsync", str(tmp_path))]
    disk.close(handle)


@pytest.mark.parametrize("kind", ["file", "tree", "tree without syncfs", "file over a file"])
def test_an_export_is_durable_when_it_returns(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its bytes before the rename (of a tree by one sync of all), its name after it."""
    steps: list[str] = []
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "a").write_bytes(b"a")

    def spy(name: str, real: Any) -> Any:
        def call(*arguments: Any, **more: Any) -> Any:
            is_directory = name == "fsync" and os.path.isdir(f"/proc/self/fd/{arguments[0]}")
            steps.append("fsync of a directory" if is_directory else name)
            return real(*arguments, **more)

        return call

    with Store._open(tmp_path / "store", create=True) as store:
        ref: Any = store.put_tree(tmp_path / "source") if "tree" in kind else store.put(b"content")
        if kind == "file over a file":
            (tmp_path / "out").write_bytes(b"old")
        if kind == "tree":
            monkeypatch.setattr(export, "_sync", spy("sync", export._sync))
        elif kind == "tree without syncfs":
            monkeypatch.setattr(sys, "platform", "another")
        for name in ("fsync", "sync", "rename", "replace", "link"):
            monkeypatch.setattr(os, name, spy(name, getattr(os, name)))
        store.export(ref, tmp_path / "out", overwrite=kind == "file over a file")
        monkeypatch.undo()
    named = max(i for i, step in enumerate(steps) if step in ("rename", "replace", "link"))
    assert {"fsync", "sync"} & set(steps[:named]), steps
    assert "fsync of a directory" in steps[named:], steps


@pytest.mark.parametrize("how", ["taken over", "retired", "empty", "of copies", "compacted"])
def test_a_segment_that_was_removed_does_not_come_back(how: str) -> None:
    """Its removal counts from then on: others may rely on what stood there being gone."""
    with new_world() as world:
        fill(world, 12, 9_000)
        disk = world.disk
        handle = disk.open(segment_path(ROOT, 1), "a")
        size = disk.size(handle)
        with world.open(catalog=world.no_catalog()) as store:
            core = log_core(store)
            if how == "empty":
                disk.truncate(handle, SEGMENT_HEADER_BYTES)
                disk.fsync(handle)
            if how != "taken over":
                disk.close(handle)
            if how == "taken over":
                retire(disk, ROOT, core.backend.store.id, 1, handle, SEGMENT_HEADER_BYTES)
            elif how == "retired":
                remove_retired(disk, ROOT, [1])
            elif how == "empty":
                remove_empty(disk, ROOT, 1)
            elif how == "of copies":
                core.backend.committer.writers.discard(1, size)
            else:
                _Compaction(core, 0.0, None, 1, lambda: False)._unlink([Source(1)])
            states = [disk.power_cut(random.Random(SEED + seed)) for seed in range(CUTS)]
        for state in states:
            assert state.stat(segment_path(ROOT, 1)) is None


def test_a_segment_that_is_taken_over_is_cut_durably_before_its_end_is_written() -> None:
    with new_world() as world:
        fill(world, 1, 3_000)
        disk = FaultyDisk(world.disk)
        path = segment_path(ROOT, 1)
        with world.open() as store:
            handle = disk.open(path, "a")
            retire(disk, ROOT, log_core(store).backend.store.id, 1, handle, disk.size(handle))
        calls = [site.call for site in disk.sites if site.path == path]
        assert [call for call in calls if call in ("truncate", "fsync", "pwrite")] == [
            "truncate",
            "fsync",
            "pwrite",
            "fsync",
        ]


# --- a segment that failed is given up


@pytest.mark.parametrize("call", ["pwrite", "truncate"])
def test_nothing_goes_to_a_segment_that_could_not_be_written_or_cut(call: str) -> None:
    def of_a_segment(site: Site) -> bool:
        return site.call == call and site.path.endswith(".seg")

    hit = 0
    for at in range(1, 8):
        with new_world() as world:
            fill(world, 1, 3_000)
            disk = FaultyDisk(world.disk, Fault.EIO, at=at, where=of_a_segment)
            store = world.open(disk)
            _put_and_abort(store, world.ledger)
            failed = disk.hit
            if failed is not None:
                hit += 1
                later = [s for s in disk.sites if s.number > failed.number and s.path == failed.path]
                assert not [s for s in later if s.call in ("pwrite", "fsync")], "it was used again"
            attempt(store.close)
            disk.crash()
            world.check(world.disk.clone(), world.copy_catalog())
    assert hit


@pytest.mark.parametrize("end", ["close", "seal"])
def test_a_clean_end_is_written_after_a_sync_of_all_before_it(end: str) -> None:
    """It says that all before it is durable, and others trust that."""
    with new_world() as world:
        disk = FaultyDisk(world.disk)
        with world.open(disk) as store:
            writer = log_core(store).backend.committer.writers.checkout(10)
            record, entry = frame_one(writer.segment, writer.offset, Kind.DATA, b"not synced yet")
            writer.append([record], entry, len(record))
            done = len(disk.sites)
            getattr(writer, end)()
            calls = [site.call for site in disk.sites[done:] if site.path.endswith(".seg")]
            assert [call for call in calls if call in ("pwrite", "fsync")] == ["fsync", "pwrite", "fsync"]


def test_an_end_whose_sync_never_came_is_synced_before_it_is_believed() -> None:
    """A writer was killed between the two. Who takes its end in remembers how long the segment is; the power fails."""
    with new_world() as world:
        disk = FaultyDisk(world.disk, where=lambda site: site.call == "fsync" and site.path.endswith(".seg"))
        store = world.open(disk)
        world.ledger.put(store, piece("acknowledged", 3_000))
        disk.arm(Fault.CRASH_BEFORE, 1)
        bury(store)
        assert disk.struck
        world.catalog = world.no_catalog()
        crash_after(world, lambda _: None)
        for seed in range(20):
            world.check(world.disk.power_cut(random.Random(seed)), world.copy_catalog())


@pytest.mark.parametrize("how", ["adopt", "take a closed one"])
def test_a_segment_that_is_looked_at_and_not_taken_is_let_go(
    how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The catalog knows less of it than there is: somebody else is to look into that, and needs its lock."""
    with new_world() as world:
        fill(world, 1, 3_000)
        with world.open() as store:
            writers = log_core(store).backend.committer.writers
            ((segment, (_, state)),) = writers.known().items()
            if how == "adopt":
                monkeypatch.setattr(writers, "_known", lambda: {segment: (64, state)})
                assert writers._adopt() is None
            else:
                assert writers.take_closed(segment, 64) is None
            monkeypatch.undo()
            disk = FaultyDisk(world.disk)
            handle = disk.open(segment_path(ROOT, segment), "a")
            assert disk.lock(handle)
            disk.close(handle)


def _put_and_abort(store: Store, ledger: Ledger) -> None:
    """Small groups, and large ones that are streamed and given up, which cuts a segment."""
    for turn in range(3):
        attempt(lambda: ledger.put(store, piece(f"small-{turn}", 500)))  # noqa: B023  # called at once
        with suppress(HoldfastError):
            put_raw(store, [random.Random(turn).randbytes(9_000) for _ in range(3)]).abort()


# --- locks between processes


def _lock(disk: Any, seconds: float = 0.05) -> StoreLock:
    return StoreLock(disk, ROOT, seconds)


def test_the_store_lock_keeps_other_processes_out_and_says_who_holds_it() -> None:
    with new_world() as world:
        one, two = _lock(FaultyDisk(world.disk)), _lock(FaultyDisk(world.disk))
        with one.held(), pytest.raises(Locked) as caught:
            two.acquire()
        assert caught.value.evidence["pid"] == os.getpid()
        with two.held():
            pass


def test_the_store_lock_keeps_other_threads_out() -> None:
    with new_world() as world:
        lock = _lock(FaultyDisk(world.disk))
        refused: list[Any] = []
        with lock.held():
            beside(lambda: refused.append(attempt(lock.acquire))).join()
        assert isinstance(refused[0], Locked)


@pytest.mark.parametrize(
    "work", ["put", "delete", "rebuild", "adopt", "create", "take a closed one", "drop copies", "tag"]
)
def test_what_others_rely_on_changes_under_the_store_lock(work: str) -> None:
    """While another process holds it nothing is applied, named, made anew or taken up: whoever tries waits."""
    with new_world() as world:
        fill(world, 1, 3_000)
        holder = _lock(FaultyDisk(world.disk))
        with world.open() as store:
            key = world.ledger.ids["old-0"]
            writers = log_core(store).backend.committer.writers
            ((segment, (applied, _)),) = writers.known().items()
            does: dict[str, Callable[[], object]] = {
                "put": lambda: store.put(b"x"),
                "delete": lambda: store.delete(key),
                "rebuild": store.rebuild,
                "adopt": lambda: writers.checkout(10),
                "create": writers.fresh,
                "take a closed one": lambda: writers.take_closed(segment, applied),
                "drop copies": lambda: writers.drop_copies(segment, applied),
                "tag": lambda: store.tags.set("t", store.info(key).hash),
            }
            before = len(world.disk.files(f"{ROOT}/segments"))
            with holder.held():
                thread = beside(does[work])
                assert thread.is_alive(), f"{work} did not wait for the store's lock"
                if work != "put":
                    assert len(world.disk.files(f"{ROOT}/segments")) == before
            thread.join(20)
            assert not thread.is_alive()


def _collect(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    with world.open() as store:
        monkeypatch.setattr("holdfast.gc.collector.compact_segments", lambda *_, **__: None)
        store.delete(*(world.ledger.ids[f"old-{number}"] for number in range(0, 12, 2)))
        assert store.gc(min_age_seconds=0).complete


def _compact(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    _collect(world, monkeypatch)
    with world.open() as store:
        monkeypatch.setattr(Choice, "list_broken_off", lambda _: [1])
        assert store.compact().segments


def _upload(world: World, step: str) -> None:
    with world.open() as store:
        token = store.writer(resumable=True).suspend()
        if step != "begin":
            with store.writer(resume=token) as writer:
                writer.write(b"x")


def _catalog(world: World, step: str) -> None:
    with world.open() as store:
        keeper = log_core(store).keeper
        if step == "renew":
            world.catalog.unlink()
            store.count()
        else:
            keeper.replace("it lies")


ALONE: dict[str, tuple[tuple[Any, str], Callable[[World, pytest.MonkeyPatch], object]]] = {
    "a compaction catches up": ((CatalogKeeper, "catch_up"), _compact),
    "a compaction moves rows": ((compacting, "switch"), _compact),
    "a compaction lets segments count again": ((compacting, "reinstate"), _compact),
    "a compaction removes segments": ((ModelDisk, "unlink"), _compact),
    "a collection takes over": ((CatalogKeeper, "catch_up"), _collect),
    "an upload begins": ((Claims, "take"), lambda world, _: _upload(world, "begin")),
    "an upload goes on": ((CatalogKeeper, "catch_up"), lambda world, _: _upload(world, "resume")),
    "an upload ends": ((Claims, "release"), lambda world, _: _upload(world, "end")),
    "a catalog is opened": (
        (CatalogKeeper, "_open_existing"),
        lambda world, _: _work(world, lambda store: store.count()),
    ),
    "a catalog is opened anew": ((LogBackend, "check_same_store"), lambda world, _: _catalog(world, "renew")),
    "a catalog is replaced": ((CatalogKeeper, "_rebuild"), lambda world, _: _catalog(world, "replace")),
    "a name is changed": (
        (CatalogKeeper, "catch_up"),
        lambda world, _: _work(world, lambda store: store.update(world.ledger.ids["old-0"], add_tags=["t"])),
    ),
    "sessions are counted": (
        (health, "dead_sessions"),
        lambda world, _: _work(world, lambda store: store.health()),
    ),
}


def _work(world: World, does: Callable[[Store], object]) -> None:
    with world.open() as store:
        does(store)


@pytest.mark.parametrize("what", ALONE)
def test_what_concerns_all_is_done_under_the_store_lock(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with new_world() as world:
        fill(world, 12, 9_000)
        outside = _lock(FaultyDisk(world.disk), 0)
        (owner, name), work = ALONE[what]
        original = getattr(owner, name)
        free: list[bool] = []

        def step(*args: Any, **kwargs: Any) -> Any:
            concerns_all = kwargs.get("remove", True) and (name != "unlink" or args[1].endswith(".seg"))
            if concerns_all:
                free.append(attempt(outside.acquire) is None)
                if free[-1]:
                    outside.release()
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, step)
        work(world, monkeypatch)
        assert free
        assert not any(free), "another process could have had the lock"


@pytest.mark.parametrize("how", ["close", "seal again", "remove"])
def test_who_tidies_up_leaves_alone_what_somebody_holds(how: str) -> None:
    with new_world() as world:
        fill(world, 12, 9_000)
        path = segment_path(ROOT, 1)
        disk = FaultyDisk(world.disk)
        handle = disk.open(path, "a")
        assert disk.lock(handle)
        records_stop = disk.size(handle) - 1_000
        if how == "remove":
            disk.truncate(handle, SEGMENT_HEADER_BYTES)
        tidy: dict[str, Callable[[], None]] = {
            "close": lambda: close_quiet(world.disk, ROOT, 1),
            "seal again": lambda: seal_again(world.disk, ROOT, 1, records_stop),
            "remove": lambda: remove_empty(world.disk, ROOT, 1),
        }
        before = world.disk.files(ROOT)[path]
        attempt(tidy[how])
        assert world.disk.files(ROOT).get(path) == before
        disk.close(handle)
        tidy[how]()
        assert world.disk.files(ROOT).get(path) != before


def test_a_scrub_gives_no_segment_up_that_somebody_writes() -> None:
    with new_world() as world, world.open() as other, world.open() as store:
        artifact = other.put(b"first")
        other.put(b"second")
        (path,) = world.disk.files(f"{ROOT}/segments")
        data = bytearray(world.disk.files(ROOT)[path])
        data[SEGMENT_HEADER_BYTES + 8] ^= 1
        world.disk.overwrite(path, bytes(data))
        assert not store.scrub().ok
        assert {state for _, state in log_core(store).catalog.segments().values()} == {SEGMENT_OPEN}
        assert other.info(artifact) == artifact


def test_a_forecast_counts_no_segment_that_somebody_writes() -> None:
    with new_world() as world, world.open() as store:
        with world.open() as other:
            artifact = other.put(random.Random(1).randbytes(9_000))
            other.put(b"kept")
            store.delete(artifact)
            store.gc(min_age_seconds=0)
            (held,) = log_core(other).backend.committer.writers.own()
            assert held not in store.compact(dry_run=True).segments
        assert held in store.compact(dry_run=True).segments


def test_who_opens_does_not_take_the_segments_of_the_living() -> None:
    """A large group is on its way, unclean and not applied: it is nobody else's to cut, copy or remove."""
    with new_world() as world:
        fill(world, 1, 100)
        with world.open() as store:
            with store.writer(filename="large") as writer:
                writer.write(random.Random(1).randbytes(5 << 20))
                for catalog in (world.catalog, world.no_catalog()):
                    with world.open(catalog=catalog) as other:
                        other.put(b"beside")
            assert store.read(writer.artifact) == random.Random(1).randbytes(5 << 20)
            assert store.scrub().ok


@pytest.mark.parametrize("who", ["opens", "looks"])
def test_a_session_that_begins_is_not_taken_for_a_dead_one(who: str) -> None:
    """Its file is there and not locked yet: whoever tidies up meanwhile would remove it, and its pins with it."""
    with new_world() as world:
        other = world.open()
        threads: list[threading.Thread] = []

        def tidy() -> None:
            def work() -> None:
                if who == "opens":
                    world.open().close()
                else:
                    log_core(other).backend.sessions()

            threads.append(beside(work))

        disk = Pausing(world.disk, lambda call, path: call == "open x" and "/sessions/" in path, tidy)
        with world.open(disk) as store:
            for thread in threads:
                thread.join(20)
            assert threads
            name = log_core(store).backend.session.name
            assert world.disk.stat(f"{ROOT}/sessions/{name}") is not None, "its file was removed"
            states = {state.name: state for state in read_sessions(FaultyDisk(world.disk), ROOT)}
            assert states[name].pid == os.getpid()
        other.close()


def test_a_dead_session_is_told_by_its_lock_alone() -> None:
    with new_world() as world:
        disk = FaultyDisk(world.disk)
        dead, living = world.open(disk), world.open()
        name = log_core(dead).backend.session.name
        disk.crash()
        assert living.health().dead_sessions == 1
        found = {state.name for state in read_sessions(FaultyDisk(world.disk), ROOT)}
        assert found == {log_core(living).backend.session.name}
        assert living.health().dead_sessions == 0
        assert world.disk.stat(f"{ROOT}/sessions/{name}") is None
        bury(dead)
        living.close()


@pytest.mark.parametrize("what", ["removed", "another"])
def test_a_store_that_was_replaced_is_to_be_opened_anew(what: str, tmp_path: Path) -> None:
    store = Store._open(tmp_path / "store", create=True)
    store.put(b"mine")
    (tmp_path / "store").rename(tmp_path / "aside")
    if what == "another":
        with Store._open(tmp_path / "store", create=True) as other:
            other.put(b"theirs")
    with pytest.raises(NeedsReopen):
        store.put(b"more")
    with suppress(HoldfastError):
        store.close()
