"""What is durable and could not be applied, or was reported as failed: nothing undoes it, nothing brings it back."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

import holdfast
from holdfast import _native
from holdfast.backend.log.commit import Group
from holdfast.chunking import Chunking
from holdfast.errors import ArtifactNotFound, Locked, NoSpace, Unavailable
from holdfast.facts import FLAG_BLOB, Facts
from holdfast.store import Store
from holdfast.testing.contract_base import sample
from holdfast.testing.inside import log_core
from holdfast.wire.record import Kind

SEGMENT_BYTES = 64 << 10


def open_store(path: Path, *, create: bool = False) -> Store:
    chunking = Chunking.choose("fastcdc", 4096) if create else None
    return Store._open(path, create=create, segment_bytes=SEGMENT_BYTES, chunking=chunking)


def before_next_apply(store: Store, act: Callable[[], None]) -> None:
    committer = log_core(store).backend.committer
    apply = committer._apply

    def once(batches: Iterable[Facts]) -> None:
        committer._apply = apply
        act()
        apply(batches)

    committer._apply = once


def fail() -> None:
    raise Unavailable("the catalog's disk is full")


def test_what_could_not_be_applied_is_applied_with_the_next_put(tmp_path: Path) -> None:
    with open_store(tmp_path / "s", create=True) as store:
        before_next_apply(store, fail)
        with pytest.raises(Unavailable):
            store.put(b"first")
        second = store.put(b"second")
        assert store.read(second) == b"second"
        assert {store.read(one) for one in store.find()} == {b"first", b"second"}


def test_what_could_not_be_applied_is_applied_before_anything_is_compacted(tmp_path: Path) -> None:
    with open_store(tmp_path / "s", create=True) as store:
        before_next_apply(store, fail)
        with pytest.raises(Unavailable):
            store.put(b"durable all the same")
        assert not list(store.find())
        store.compact()
        assert [store.read(one) for one in store.find()] == [b"durable all the same"]


def test_a_deletion_follows_an_update_that_could_not_be_applied(tmp_path: Path) -> None:
    with open_store(tmp_path / "s", create=True) as store:
        artifact = store.put(b"hello")
        before_next_apply(store, fail)
        with pytest.raises(Unavailable):
            store.tag(artifact, "late")
        store.delete(artifact)
        assert not store.exists(artifact)
        store.rebuild()
        assert not store.exists(artifact)


def test_a_change_follows_one_that_a_living_process_could_not_apply(tmp_path: Path) -> None:
    """Each store stands for a process of its own."""
    with open_store(tmp_path / "s", create=True) as first, open_store(tmp_path / "s") as second:
        artifact = first.put(b"hello")
        gone = first.put(b"to be deleted")
        before_next_apply(first, fail)
        with pytest.raises(Unavailable) as caught:
            first.tag(artifact, "late")
        assert caught.value.durable
        changed = second.tag(artifact, "later")
        assert changed.revision == 3
        assert set(changed.tags) == {"late", "later"}
        size = sum(path.stat().st_size for path in (tmp_path / "s" / "segments").iterdir())
        for number in range(5):
            second.tag(artifact, f"more-{number}")
        grown = sum(path.stat().st_size for path in (tmp_path / "s" / "segments").iterdir()) - size
        assert grown < 5 * 1_000, "it is copied once, not with each change"
        first.put(b"this brings in what was left")
        before_next_apply(first, fail)
        with pytest.raises(Unavailable):
            first.delete(gone)
        with pytest.raises(ArtifactNotFound):
            second.tag(gone, "too late")
        first.put(b"and this as well")
        for store in (first, second):
            assert store.info(artifact).revision == 8
            assert not store.exists(gone)
        before = list(log_core(first).catalog.dump())
        first.rebuild()
        assert list(log_core(first).catalog.dump()) == before


def test_a_lock_that_does_not_come_free_says_that_the_put_is_durable(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with Store._open(path, create=True, lock_timeout_seconds=0.1) as store, Store._open(path) as other:
        store.put(b"first")
        with log_core(other).backend.lock(), pytest.raises(Locked, match="durable all the same") as caught:
            store.put(b"second")
        assert caught.value.durable
        assert caught.value.pid == os.getpid()
        store.put(b"third")
        assert sorted(other.read(one) for one in other.find()) == [b"first", b"second", b"third"]


def test_a_large_put_whose_lock_does_not_come_free_is_durable(tmp_path: Path) -> None:
    path = tmp_path / "s"
    content = sample(300_000)
    with open_store(path, create=True) as store, open_store(path) as other:
        before_next_apply(store, fail)
        with pytest.raises(Unavailable, match="durable all the same"):
            store.put(content)
        store.put(b"next")
        assert content in [other.read(one) for one in other.find()]


def tag_and_die(path: Path, artifact: str) -> None:
    store = open_store(path)
    before_next_apply(store, lambda: os.kill(os.getpid(), signal.SIGKILL))
    store.tag(artifact, "late")


def test_a_deletion_follows_an_update_of_a_process_that_was_killed_before_it_applied(tmp_path: Path) -> None:
    with open_store(tmp_path / "s", create=True) as store:
        artifact = store.put(b"hello")
        other = multiprocessing.get_context("spawn").Process(
            target=tag_and_die, args=(tmp_path / "s", artifact.id)
        )
        other.start()
        other.join()
        assert other.exitcode == -signal.SIGKILL
        store.delete(artifact)
        assert not store.exists(artifact)
    with open_store(tmp_path / "s") as store:
        assert not store.exists(artifact)


def write_and_die(path: Path, token: str) -> None:
    store = open_store(path)
    writer = store.writer(resume=token)
    writer.write(b"first, ")
    before_next_apply(store, lambda: os.kill(os.getpid(), signal.SIGKILL))
    writer.checkpoint()


def test_an_upload_goes_on_where_a_process_was_killed_before_it_applied(tmp_path: Path) -> None:
    with open_store(tmp_path / "s", create=True) as store:
        token = store.writer(resumable=True).suspend()
        other = multiprocessing.get_context("spawn").Process(
            target=write_and_die, args=(tmp_path / "s", token)
        )
        other.start()
        other.join()
        assert other.exitcode == -signal.SIGKILL
        with store.writer(resume=token) as writer:
            assert writer.offset_bytes == len(b"first, ")
            writer.write(b"then")
        assert store.read(writer.artifact) == b"first, then"


def test_a_batch_that_failed_in_its_second_segment_is_in_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def group(content: bytes) -> Group:
        one = committer.group()
        one.add(
            bytes((Kind.DATA,)), bytes((FLAG_BLOB,)), _native.blake3(content), (len(content),), (content,)
        )
        return one

    with open_store(tmp_path / "s", create=True) as store:
        store.put(b"before")
        committer = log_core(store).backend.committer
        checkout = committer.writers.checkout
        calls = 0

        def full(room_bytes: int) -> object:
            nonlocal calls
            calls += 1
            if calls == 2:
                raise NoSpace("full")
            return checkout(room_bytes)

        with monkeypatch.context() as patch:
            patch.setattr(committer.writers, "checkout", full)
            with pytest.raises(NoSpace):
                committer.commit_now([group(sample(15_000, seed)) for seed in range(5)])
        store.put(b"after")
        before = list(log_core(store).catalog.dump())
        store.rebuild()
        assert list(log_core(store).catalog.dump()) == before


def test_a_segment_that_a_commit_elsewhere_names_stays_when_its_end_is_damaged(tmp_path: Path) -> None:
    content = sample(400_000)
    with open_store(tmp_path / "s", create=True) as store:
        artifact = store.put(content)
    segments = sorted((tmp_path / "s" / "segments").iterdir())
    data = bytearray(segments[1].read_bytes())
    data[-100:] = bytes(100)
    segments[1].write_bytes(data)
    (tmp_path / "s" / "catalog.db").unlink()
    for _ in range(2):
        with open_store(tmp_path / "s") as store:
            assert store.read(artifact) == content
            assert store.rebuild().damaged
            assert store.read(artifact) == content


def test_a_reader_beside_a_writer_uses_the_catalog_and_sees_what_comes(tmp_path: Path) -> None:
    with holdfast.create(tmp_path / "s") as store:
        store.put(b"first")
        with holdfast.open(tmp_path / "s", read_only=True) as reader:
            second = store.put(b"second")
            assert reader.read(second) == b"second"


def test_a_file_whose_size_is_not_told_is_stored_whole(tmp_path: Path) -> None:
    source = Path("/proc/filesystems")
    if not source.exists():
        pytest.skip("there is no /proc here")
    with holdfast.create(tmp_path / "s") as store:
        assert store.read(store.put(source)) == source.read_bytes()
        (artifact,) = store.put_many([source])
        assert store.read(artifact) == source.read_bytes()


def test_what_others_brought_in_and_compacted_is_not_led_back(tmp_path: Path) -> None:
    """A group that could not be applied is brought in by another process, which then compacts its segment away."""
    with open_store(tmp_path / "s", create=True) as first, open_store(tmp_path / "s") as second:
        artifact = first.put(sample(3_000))
        before_next_apply(first, fail)
        with pytest.raises(Unavailable):
            first.put(sample(4_000))
        for writer in [*log_core(first).backend.committer.writers.own().values()]:
            log_core(first).backend.committer.writers._idle.remove(writer)
            writer.seal()  # full: it lets go of it, as it would of any
        second.update(artifact, metadata={"k": "w"})
        (late,) = (one for one in second.find() if one.size_bytes == 4_000)
        assert second.compact().segments
        other = first.put(b"goes on")  # and what waited is met again
        for store in (first, second):
            assert store.read(artifact) == sample(3_000)
            assert store.read(late) == sample(4_000)
            assert store.scrub().ok
        first.delete(other)
        assert first.rebuild().damaged == 0
        assert first.read(artifact) == sample(3_000)
