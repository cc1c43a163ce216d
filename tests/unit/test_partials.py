"""Partial blobs on a disk: the journal, what becomes of damage, room, expiry, collections, and other processes."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import holdfast
from holdfast import _native, filling, importing
from holdfast.backend.log.disk import LocalDisk
from holdfast.backend.log.partial import Partial
from holdfast.backend.log.partial_state import (
    ENTRY_HEADER_BYTES,
    PartialState,
    empty_state,
    encode_entry,
    iter_chunks,
    pack_chunks,
    parse_journal,
)
from holdfast.chunking import Chunking
from holdfast.core import Options
from holdfast.errors import CorruptBlob, Locked, NeedsReopen, NoSpace, PermissionDenied, Unavailable
from holdfast.gc import cycle
from holdfast.importing import expire_partials
from holdfast.ranges import ChunkRanges
from holdfast.reports import GcReport
from holdfast.store import Store
from holdfast.testing.faults import Fault, FaultyDisk
from holdfast.testing.inside import log_core
from holdfast.testing.model_disk import ModelDisk
from holdfast.testing.streams import Sender, blocks
from holdfast.types import BLOCK_BYTES, BlobStatus, now_ms

HASH = bytes(range(32))
AGES = 1 << 50
"""A time at which everything has expired."""


def noise(size_bytes: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size_bytes)


def make(path: Any, **options: Any) -> Store:
    how: dict[str, Any] = {"compression": "none", "segment_bytes": 1 << 20} | options
    return Store._open(path, create=True, chunking=Chunking.choose("fastcdc", 4096), **how)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with make(tmp_path / "store") as store:
        yield store


@pytest.fixture
def sender() -> Sender:
    return Sender(noise(40 * BLOCK_BYTES + 100))


@pytest.fixture
def small_checkpoints(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importing, "CHECKPOINT_BYTES", 5 * BLOCK_BYTES)
    monkeypatch.setattr(filling, "STEP_BYTES", 4 * BLOCK_BYTES)
    monkeypatch.setattr(filling, "CARRY_BYTES", 20_000)


def take(store: Store, sender: Sender, ranges: ChunkRanges | None = None) -> BlobStatus:
    return store.blobs.decode(sender.hash, sender.stream(ranges), ranges).status


def directory(store: Store, sender: Sender) -> Path:
    return Path(store.location) / "partials" / str(sender.hash)


def finish(store: Store, sender: Sender) -> None:
    """Ask for what is missing until there is nothing left, as a client would."""
    for _ in range(5):
        missing = store.blobs.missing_ranges(sender.hash)
        if take(store, sender, missing) is BlobStatus.COMPLETE:
            break
    assert store.blobs.read(sender.hash) == sender.content
    assert store.verify(sender.hash).ok
    assert store.scrub().ok
    assert os.listdir(Path(store.location) / "partials") == []


# -- the journal

STATES = st.builds(
    PartialState,
    size_bytes=st.integers(0, 1 << 62),
    is_size_proven=st.booleans(),
    have=st.lists(st.integers(0, 300), unique=True).map(
        lambda numbers: ChunkRanges(sorted(numbers)[: len(numbers) // 2 * 2])
    ),
    logged_bytes=st.integers(0, 1 << 62),
    chunk_count=st.integers(0, 1 << 40),
    chunks_crc=st.integers(0, (1 << 32) - 1),
    created_ms=st.integers(0, 1 << 60),
    written_ms=st.integers(0, 1 << 60),
)


@given(st.lists(STATES, min_size=1, max_size=5), st.data())
def test_a_journal_gives_its_last_whole_entry(states: list[PartialState], data: st.DataObject) -> None:
    entries, before = [], None
    for state in states:
        entries.append(encode_entry(HASH, state, since=before))
        before = state
    journal = b"".join(entries)
    assert parse_journal(journal, HASH) == (states[-1], len(journal))
    known = parse_journal(entries[0], HASH)[0]
    assert parse_journal(b"".join(entries[1:]), HASH, known)[0] == states[-1]
    cut = data.draw(st.integers(0, len(journal)))
    whole = [sum(map(len, entries[: i + 1])) <= cut for i in range(len(entries))].count(True)
    expected = states[whole - 1] if whole else None
    assert parse_journal(journal[:cut], HASH)[0] == expected
    at = data.draw(st.integers(0, len(journal) - 1))
    flipped = bytearray(journal)
    flipped[at] ^= 1 << data.draw(st.integers(0, 7))
    whole = [sum(map(len, entries[: i + 1])) <= at for i in range(len(entries))].count(True)
    assert parse_journal(bytes(flipped), HASH)[0] == (states[whole - 1] if whole else None)
    assert parse_journal(journal, bytes(32)) == (None, 0)


def test_a_list_of_chunks_with_a_wrong_digest_is_damaged() -> None:
    packed = pack_chunks([10, 25], [bytes(32), HASH])
    state = empty_state(0)._replace(logged_bytes=25, chunk_count=2, chunks_crc=_native.crc32c(packed))

    def read(data: bytes) -> list[tuple[list[int], list[bytes]]]:
        return list(iter_chunks(lambda length, offset: data[offset : offset + length], HASH, state))

    assert read(packed) == [([10, 15], [bytes(32), HASH])]
    with pytest.raises(CorruptBlob):
        read(packed[:-1] + bytes((packed[-1] ^ 1,)))


def test_what_another_claimed_meanwhile_is_taken_over(store: Store) -> None:
    with make(store.location) as other:
        ours, theirs = (log_core(one).backend.partials.open(HASH, 0) for one in (store, other))
        for one, have in ((ours, blocks(0, 1)), (theirs, blocks(0, 2)), (ours, blocks(0, 3))):
            with one.locked():
                one.save(one.state._replace(size_bytes=5 * BLOCK_BYTES, have=one.state.have | have))
        with theirs.locked():
            assert theirs.state.have == blocks(0, 3)
            theirs.save(theirs.state._replace(have=blocks(0, 4)))
        with ours.locked():
            assert ours.state.have == blocks(0, 4)
        ours.close()
        theirs.close()


def test_a_claim_is_gone_durably_before_what_it_claims(sender: Sender) -> None:
    disk = FaultyDisk(ModelDisk("/model"))
    with make("/model/store", disk=disk, catalog_path=None) as store:
        take(store, sender, blocks(0, 3))
        before = len(disk.sites)
        assert log_core(store).backend.partials.remove(sender.hash.digest, lambda _: True)
        steps = [(site.call, os.path.basename(site.path)) for site in disk.sites[before:]]
        first = steps.index(("unlink", "state"))
        assert steps[first + 1] == ("fsync_dir", str(sender.hash))
        assert {name for call, name in steps[first + 2 :] if call == "unlink"} == {
            "lock",
            "blocks",
            "pairs",
            "chunks",
        }


def test_a_partial_blob_goes_when_its_blob_is_durable(sender: Sender) -> None:
    disk = FaultyDisk(ModelDisk("/model"))
    with make("/model/store", disk=disk, catalog_path=None) as store:
        take(store, sender, blocks(0, 10))
        before = len(disk.sites)
        assert take(store, sender, blocks(10)) is BlobStatus.COMPLETE
        steps = [(site.call, site.path) for site in disk.sites[before:]]
        gone = next(i for i, (call, path) in enumerate(steps) if call == "unlink" and "/partials/" in path)
        log = [call for call, path in steps if path.endswith(".seg") and call in ("pwrite", "fsync")]
        assert log[-1] == "fsync"
        assert log == [
            call for call, path in steps[:gone] if path.endswith(".seg") and call in ("pwrite", "fsync")
        ]


def test_a_tebibyte_with_one_hole_takes_less_than_a_kibibyte() -> None:
    leaves = 1 << 30
    have = ChunkRanges((0, 16 * 12_345, 16 * 12_346, leaves))
    state = empty_state(1)._replace(size_bytes=1 << 40, is_size_proven=True, have=have)
    assert len(encode_entry(HASH, state)) <= 1024
    assert state.missing == ChunkRanges.leaves(16 * 12_345, 16 * 12_346)
    assert state.prefix_bytes == 12_345 * BLOCK_BYTES
    assert not state.is_whole


def test_the_journal_stays_short(store: Store, sender: Sender, small_checkpoints: None) -> None:
    take(store, sender, blocks(0, 38))
    assert (directory(store, sender) / "state").stat().st_size < 4 * ENTRY_HEADER_BYTES + 100
    finish(store, sender)


# -- damage


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def test_blocks_that_change_while_they_wait_are_fetched_again(store: Store, sender: Sender) -> None:
    take(store, sender, blocks(3, 20))
    flip(directory(store, sender) / "blocks", 7 * BLOCK_BYTES + 5)
    with pytest.raises(holdfast.CorruptBlob):
        store.blobs.read(sender.hash, 7 * BLOCK_BYTES, 10)
    assert store.blobs.read(sender.hash, 8 * BLOCK_BYTES, 10) == sender.content[8 * BLOCK_BYTES :][:10]
    take(store, sender, blocks(0, 3) | blocks(20))
    assert store.blobs.missing_ranges(sender.hash) == blocks(7, 8)
    finish(store, sender)


def test_pairs_that_change_while_they_wait_are_fetched_again(store: Store, sender: Sender) -> None:
    take(store, sender, blocks(3, 20))
    pairs = directory(store, sender) / "pairs"
    data = bytearray(pairs.read_bytes())
    data[4 * 64 :] = bytes(len(data) - 4 * 64)
    pairs.write_bytes(data)
    take(store, sender, blocks(0, 3) | blocks(20))
    assert store.blobs.status(sender.hash) is BlobStatus.PARTIAL
    finish(store, sender)


def test_an_outboard_that_is_damaged_at_the_end_is_computed_again(
    store: Store, sender: Sender, small_checkpoints: None
) -> None:
    take(store, sender, blocks(0, 40))
    pairs = directory(store, sender) / "pairs"
    data = bytearray(pairs.read_bytes())
    at = next(i for i in range(64 * 20, len(data), 64) if any(data[i : i + 64]))
    data[at : at + 64] = bytes(64)
    pairs.write_bytes(data)
    assert take(store, sender, blocks(40)) is BlobStatus.COMPLETE
    finish(store, sender)


@pytest.mark.parametrize("name", ["chunks", "state", "blocks", "pairs"])
@pytest.mark.parametrize("how", ["flipped", "empty", "gone"])
def test_a_damaged_file_costs_a_transfer_and_nothing_else(
    store: Store, sender: Sender, name: str, how: str, small_checkpoints: None
) -> None:
    take(store, sender, blocks(0, 17) | blocks(25, 30))
    path = directory(store, sender) / name
    if how == "flipped":  # of a chunk: where it ends
        flip(path, path.stat().st_size // 2 // 40 * 40)
    elif how == "empty":
        path.write_bytes(b"")
    else:
        path.unlink()
    for start in range(0, len(sender.content), 50_000):
        try:
            data = store.blobs.read(sender.hash, start, 10)
        except (holdfast.IntegrityError, holdfast.NotFound):
            continue
        assert data == sender.content[start : start + 10]
    finish(store, sender)


@pytest.mark.parametrize("how", ["flipped", "empty", "gone"])
def test_a_damaged_list_stops_no_collection(
    store: Store, sender: Sender, how: str, small_checkpoints: None
) -> None:
    """What is collected then is of no use without the list; all that is kept by a name stays."""
    kept = store.put(b"kept" * 10_000)
    take(store, sender, blocks(0, 17))
    path = directory(store, sender) / "chunks"
    if how == "gone":
        path.unlink()
    elif how == "empty":
        path.write_bytes(b"")
    else:
        flip(path, path.stat().st_size // 2 // 40 * 40)
    assert store.gc(min_age_seconds=0).complete
    assert store.read(kept) == b"kept" * 10_000
    finish(store, sender)
    assert store.scrub().ok


def test_a_list_that_the_disk_fails_to_read_stops_a_collection(
    store: Store, sender: Sender, small_checkpoints: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    take(store, sender, blocks(0, 17))

    def fail(*_: Any) -> Any:
        raise Unavailable("the disk fails")

    with monkeypatch.context() as patch:
        patch.setattr(log_core(store).backend.partials, "chunks", fail)
        with pytest.raises(Unavailable):
            store.gc(min_age_seconds=0)
    store.gc(min_age_seconds=0)
    finish(store, sender)


@pytest.mark.parametrize(
    ("name", "at"),
    [("chunks", 1), ("pairs", 1), ("pairs", 2), ("blocks", 1), *(("state.new", at) for at in (1, 2, 3))],
)
def test_a_sync_that_fails_is_an_error_and_nothing_is_claimed(
    name: str, at: int, sender: Sender, small_checkpoints: None
) -> None:
    model = ModelDisk("/model")
    how: dict[str, Any] = {"catalog_path": None, "segment_bytes": 64 << 10}
    make("/model/store", disk=model, **how).close()
    disk = FaultyDisk(
        model,
        Fault.EIO,
        at=at,
        where=lambda site: site.call == "fsync" and site.path.endswith(f"/{name}"),
    )
    parts = [blocks(0, 12), blocks(20, 25), blocks(0, 18), blocks(30)]
    with make("/model/store", disk=disk, **how) as store:

        def fill() -> None:
            for part in parts:
                take(store, sender, part)

        with pytest.raises(Unavailable):
            fill()
        assert disk.hit is not None
        claimed = store.blobs.bitfield(sender.hash).ranges
        states = list(model.crash_states(random.Random(name), 20))
    for state in states:
        with make("/model/store", disk=state, **how) as after:
            field = after.blobs.bitfield(sender.hash)
            assert field.ranges <= claimed
            for start, stop in field.ranges.byte_ranges(len(sender.content)):
                assert after.blobs.read(sender.hash, start, stop - start) == sender.content[start:stop]


def test_a_chunk_that_is_gone_begins_the_blob_anew(
    store: Store, sender: Sender, small_checkpoints: None
) -> None:
    take(store, sender, blocks(0, 17))
    (chunks,) = log_core(store).backend.partials.chunks(sender.hash.digest)
    with_it = "DELETE FROM data WHERE hash = ?"
    log_core(store).catalog._write(lambda cursor: cursor.execute(with_it, (chunks[3],)))
    finish(store, sender)


# -- room


def test_copying_looks_for_room_first_and_keeps_what_came(tmp_path: Path, sender: Sender) -> None:
    disk = ModelDisk("/model")
    with make("/model/store", disk=disk, catalog_path=None, segment_bytes=64 << 10) as store:
        take(store, sender, blocks(1))
        disk.capacity_bytes = disk.used_bytes + 200_000
        with pytest.raises(NoSpace) as caught:
            take(store, sender, blocks(0, 1))
        assert caught.value.need_bytes > caught.value.free_bytes
        field = store.blobs.bitfield(sender.hash)
        assert not field.missing, "all of it is here"
        assert field.status is BlobStatus.PARTIAL
        assert store.blobs.read(sender.hash) == sender.content
        disk.capacity_bytes = 1 << 40
        assert take(store, sender, ChunkRanges.last()) is BlobStatus.COMPLETE
        assert store.blobs.read(sender.hash) == sender.content


def test_a_blob_never_needs_twice_its_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sender = Sender(noise(8 << 20))
    highest = 0

    class Watching(LocalDisk):
        def fsync(self, handle: int) -> None:
            nonlocal highest
            super().fsync(handle)
            room = sum(os.stat(path).st_blocks * 512 for path in tmp_path.rglob("*") if path.is_file())
            highest = max(highest, room)

    monkeypatch.setattr(filling, "STEP_BYTES", 512 << 10)
    with make(tmp_path / "store", disk=Watching(), catalog_path=None) as store:
        take(store, sender, blocks(1))
        highest = 0
        assert take(store, sender, blocks(0, 1)) is BlobStatus.COMPLETE
        assert store.blobs.read(sender.hash) == sender.content
    assert highest < 1.4 * len(sender.content)


# -- expiry and collection


def test_partial_blobs_expire(tmp_path: Path, sender: Sender) -> None:
    with make(tmp_path / "store", options=Options(partial_age_seconds=100)) as store:
        take(store, sender, blocks(1, 2))
        assert expire_partials(log_core(store), now_ms() + 90_000) == 0
        assert store.blobs.status(sender.hash) is BlobStatus.PARTIAL
        assert expire_partials(log_core(store), now_ms() + 110_000) == 1
        assert store.blobs.status(sender.hash) is BlobStatus.MISSING
        finish(store, sender)


def test_one_that_is_open_does_not_expire(store: Store, sender: Sender, small_checkpoints: None) -> None:
    stream, half = sender.stream(), threading.Event()
    go_on = threading.Event()

    def source() -> Iterator[bytes]:
        yield stream[: len(stream) // 2]
        yield b""
        half.set()
        go_on.wait(30)
        yield stream[len(stream) // 2 :]

    importer = threading.Thread(target=lambda: store.blobs.decode(sender.hash, source()))
    importer.start()
    half.wait(30)
    while not store.blobs.bitfield(sender.hash).ranges:  # the first checkpoint is being written
        time.sleep(0.001)
    assert expire_partials(log_core(store), AGES) == 0
    assert store.gc(min_age_seconds=0).dropped_payloads == 0
    assert store.blobs.read(sender.hash, 100, 1000) == sender.content[100:1100]
    go_on.set()
    importer.join()
    assert store.blobs.read(sender.hash) == sender.content


def test_one_that_another_completed_meanwhile_is_only_verified(
    store: Store, sender: Sender, small_checkpoints: None
) -> None:
    stream, half, go_on = sender.stream(), threading.Event(), threading.Event()
    found: list[object] = []

    def source() -> Iterator[bytes]:
        yield stream[: len(stream) // 2]
        half.set()
        go_on.wait(30)
        for at in range(len(stream) // 2, len(stream), 50_000):
            yield stream[at : at + 50_000]

    def fill() -> None:
        try:
            found.append(store.blobs.decode(sender.hash, source()).status)
        except Exception as error:  # shown below
            found.append(error)

    importer = threading.Thread(target=fill)
    importer.start()
    half.wait(30)
    while not store.blobs.bitfield(sender.hash).ranges:
        time.sleep(0.001)
    finish(store, sender)
    before = store.stats().stored_bytes
    go_on.set()
    importer.join()
    assert found == [BlobStatus.COMPLETE]
    assert store.stats().stored_bytes == before
    assert os.listdir(Path(store.location) / "partials") == []


def test_a_collection_keeps_what_partial_blobs_have_in_the_log(
    store: Store, sender: Sender, small_checkpoints: None
) -> None:
    take(store, sender, blocks(0, 30))
    assert store.stats().chunks > 10
    for _ in range(2):
        assert store.gc(min_age_seconds=0).dropped_payloads == 0
    store.rebuild()
    assert store.gc(min_age_seconds=0).dropped_payloads == 0
    assert store.blobs.read(sender.hash, 0, 30 * BLOCK_BYTES) == sender.content[: 30 * BLOCK_BYTES]
    finish(store, sender)
    assert store.gc(min_age_seconds=0).dropped_blobs == 0, "it is held for who completed it"
    assert store.blobs.status(sender.hash) is BlobStatus.COMPLETE


def test_a_collection_waits_for_chunks_that_no_state_names_yet(
    store: Store, sender: Sender, small_checkpoints: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cycle, "WAIT_SECONDS", 0.05)
    save = Partial.save
    reports: list[GcReport] = []

    def collect_first(self: Partial, state: PartialState) -> None:
        if state.chunk_count and not reports:
            reports.append(store.gc(min_age_seconds=0))
        save(self, state)

    monkeypatch.setattr(Partial, "save", collect_first)
    take(store, sender, blocks(0, 30))
    assert reports[0].condemned > 0
    assert not reports[0].complete
    assert store.gc(min_age_seconds=0).dropped_payloads == 0
    assert store.blobs.read(sender.hash, 0, 30 * BLOCK_BYTES) == sender.content[: 30 * BLOCK_BYTES]
    finish(store, sender)


@pytest.mark.parametrize("first", [ChunkRanges.empty(), blocks(3, 9)])
def test_what_a_stream_completed_is_kept_until_it_is_named(
    store: Store, sender: Sender, first: ChunkRanges
) -> None:
    take(store, sender, first)
    for _ in range(2):
        take(store, sender, store.blobs.missing_ranges(sender.hash))
        assert store.gc(min_age_seconds=0).dropped_blobs == 0
    assert store.gc(min_age_seconds=0).dropped_blobs == 0
    store.tags.set("name", sender.hash)
    assert store.gc(min_age_seconds=0).dropped_blobs == 0
    store.tags.delete("name")
    store.gc(min_age_seconds=0)
    assert store.blobs.status(sender.hash) is BlobStatus.MISSING


def test_what_expired_is_collected(store: Store, sender: Sender, small_checkpoints: None) -> None:
    take(store, sender, blocks(0, 30))
    held = store.stats().chunks
    assert expire_partials(log_core(store), AGES) == 1
    assert store.gc(min_age_seconds=0).dropped_payloads == held
    assert store.stats().chunks == 0
    finish(store, sender)


def test_what_a_crash_left_of_a_complete_one_is_tidied_up(store: Store, sender: Sender) -> None:
    take(store, sender, blocks(0, 3))
    left = directory(store, sender)
    files = {path.name: path.read_bytes() for path in left.iterdir()}
    finish(store, sender)
    left.mkdir()
    for name, data in files.items():
        (left / name).write_bytes(data)
    assert store.blobs.status(sender.hash) is BlobStatus.COMPLETE
    assert [info.status for info in store.blobs.list(partial=True)] == [BlobStatus.COMPLETE]
    assert expire_partials(log_core(store), 0) == 1
    assert not left.exists()
    (Path(store.location) / "partials" / "foreign").mkdir()
    assert expire_partials(log_core(store), AGES) == 0
    assert store.rebuild().partial_blobs == 0


# -- several


def test_a_lock_that_does_not_come_free_is_said(tmp_path: Path, sender: Sender) -> None:
    with make(tmp_path / "store", lock_timeout_seconds=0.2) as store:
        take(store, sender, blocks(1, 2))
        partial = log_core(store).backend.partials.open(sender.hash.digest, 0)
        try:
            with partial.locked(), pytest.raises(Locked):
                take(store, sender, blocks(2, 3))
        finally:
            partial.close()
        finish(store, sender)


def test_a_store_that_was_opened_to_read_reads_partial_blobs(store: Store, sender: Sender) -> None:
    take(store, sender, blocks(0, 2))
    with holdfast.open(store.location, read_only=True) as other:
        assert other.blobs.read(sender.hash, 5, 9) == sender.content[5:14]
        assert other.blobs.bitfield(sender.hash).ranges == blocks(0, 2)
        with pytest.raises(PermissionDenied):
            take(other, sender)


def test_a_child_does_not_keep_what_its_parent_had_open(store: Store, sender: Sender) -> None:
    partial = log_core(store).backend.partials.open(sender.hash.digest, 0)
    told, tell = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            store.blobs.status(sender.hash)
        except NeedsReopen:
            code = 0
        finally:
            os.write(tell, b"!")
            time.sleep(0.5)
            os._exit(code)
    partial.close()
    assert os.read(told, 1) == b"!", "the child goes on while we look"
    os.close(told)
    os.close(tell)
    assert expire_partials(log_core(store), AGES) == 1
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


FILL = """
import sys, random
from holdfast import importing, filling
from holdfast.store import Store
from holdfast.testing.streams import Sender, blocks
from holdfast.ranges import ChunkRanges
importing.CHECKPOINT_BYTES, filling.STEP_BYTES, filling.CARRY_BYTES = 90_000, 70_000, 20_000
path, number = sys.argv[1], int(sys.argv[2])
sender = Sender(random.Random(8).randbytes(200 * 16384 + 5))
rng = random.Random(number)
with Store._open(path, segment_bytes=1 << 20) as store:
    print("ready", flush=True)
    sys.stdin.readline()
    for i in range(12):
        start = rng.randrange(200)
        part = store.blobs.missing_ranges(sender.hash) & blocks(start, start + 40)
        if part:
            store.blobs.decode(sender.hash, sender.stream(part), part)
"""


def test_several_processes_fill_one_blob(store: Store) -> None:
    sender = Sender(random.Random(8).randbytes(200 * BLOCK_BYTES + 5))
    children = [
        subprocess.Popen(
            [sys.executable, "-c", FILL, store.location, str(number)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(3)
    ]
    for child in children:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
    for child in children:
        assert child.stdin is not None
        child.stdin.write("\n")
        child.stdin.flush()
    for child in children:
        child.communicate(timeout=100)
        assert child.returncode == 0
    field = store.blobs.bitfield(sender.hash)
    for start, stop in field.ranges.byte_ranges(len(sender.content)):
        assert store.blobs.read(sender.hash, start, stop - start) == sender.content[start:stop]
    assert field.present_bytes > len(sender.content) // 2
    finish(store, sender)


def test_reading_goes_on_while_blocks_move_and_the_blob_is_completed(
    store: Store, sender: Sender, small_checkpoints: None
) -> None:
    take(store, sender, blocks(20))
    stop = threading.Event()
    wrong: list[object] = []

    def read() -> None:
        rng = random.Random(1)
        while not stop.is_set():
            start = rng.randrange(20 * BLOCK_BYTES, len(sender.content) - 9_000)
            try:
                if store.blobs.read(sender.hash, start, 9_000) != sender.content[start : start + 9_000]:
                    wrong.append(start)
            except Exception as error:  # shown below
                wrong.append(error)

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    try:
        for first in range(0, 20, 4):
            take(store, sender, blocks(first, first + 4))
    finally:
        stop.set()
        for reader in readers:
            reader.join()
    assert not wrong
    finish(store, sender)


def test_chunks_are_those_of_a_put(
    store: Store, sender: Sender, small_checkpoints: None, tmp_path: Path
) -> None:
    with make(tmp_path / "other") as other:
        info = other.put(sender.content)
        take(store, sender, blocks(7, 25))
        finish(store, sender)
        assert store.stats().chunks == other.stats().chunks == info.chunk_count
        assert store.stats().tree_bytes == other.stats().tree_bytes
        assert _native.blake3(sender.content) == sender.hash.digest
