"""What the log backend does to send a stream: how much it reads, and how it goes round damage."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import pytest

from holdfast.backend.log.disk import LocalDisk
from holdfast.chunking import Chunking
from holdfast.errors import CorruptBlob
from holdfast.ranges import ChunkRanges
from holdfast.reference_bao import Blob
from holdfast.store import Store
from holdfast.testing.inside import log_core
from holdfast.types import Hash
from holdfast.wire.record import HEADER_BYTES, Kind

SIZE = 24 << 20
CONTENT = random.Random(4).randbytes(SIZE)


class CountingDisk(LocalDisk):
    """Counts what is read."""

    read_bytes = 0

    def pread(self, handle: int, length: int, offset: int, /) -> bytes:
        data = LocalDisk.pread(handle, length, offset)
        self.read_bytes += len(data)
        return data

    def preadv(self, handle: int, buffers: Sequence[bytearray | memoryview], offset: int, /) -> int:  # type: ignore[override]
        count = LocalDisk.preadv(handle, list(buffers), offset)
        self.read_bytes += count
        return count


def make(path: Path, disk: LocalDisk | None = None) -> tuple[Store, Hash]:
    store = Store._open(
        str(path / "store"),
        create=True,
        disk=disk,
        chunking=Chunking.choose("fastcdc"),
        compression="none",
    )
    return store, store.blobs.put(CONTENT).hash


def flip(path: Path, kind: Kind, index: int = -1) -> None:
    """Flip a bit in a payload of a kind, behind the store's back."""
    found = []
    for segment in sorted((path / "store" / "segments").iterdir()):
        data = segment.read_bytes()
        at = HEADER_BYTES
        while data[at : at + 4] == b"HFrc":
            stored = int.from_bytes(data[at + 16 : at + 20], "little")
            if data[at + 4] == kind and stored:
                found.append((segment, at + HEADER_BYTES + stored // 2))
            at += HEADER_BYTES + stored
    segment, at = found[index]
    with segment.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)
        file.seek(at)
        file.write(bytes((byte[0] ^ 4,)))


def test_work_goes_with_the_range(tmp_path: Path) -> None:
    disk = CountingDisk()
    store, hash_ = make(tmp_path, disk)
    with store:
        for leaf in (0, 10_000, SIZE // 1024 - 1):
            ranges = ChunkRanges.leaves(leaf, leaf + 1)
            disk.read_bytes = 0
            stream = b"".join(store.blobs.encode(hash_, ranges))
            assert len(stream) == 8 + 1024 + (len(stream) - 1032) // 64 * 64
            assert disk.read_bytes < 500_000  # pages of 64 KiB, of manifest and outboard; never the blob
            disk.read_bytes = 0
            assert b"".join(store.blobs.encode(hash_, ranges)) == stream
            assert disk.read_bytes <= 16_384  # the next time the block alone
        disk.read_bytes = 0
        for _ in store.blobs.encode(hash_):
            pass
        assert disk.read_bytes < SIZE * 1.02


@pytest.mark.parametrize("damage", ["before", "midway"])
def test_a_damaged_outboard_is_computed_again(damage: str, tmp_path: Path) -> None:
    store, hash_ = make(tmp_path)
    with store:
        clean = b"".join(store.blobs.encode(hash_))
    with Store._open(str(tmp_path / "store")) as store:
        stream = store.blobs.encode(hash_)
        got = b""
        if damage == "midway":
            got = next(stream)
        flip(tmp_path, Kind.OUTBOARD_PAGE)
        if damage == "before":
            stream = store.blobs.encode(hash_)
        assert got + b"".join(stream) == clean
        ranges = ChunkRanges.leaves(20_000, 20_001)
        part = b"".join(store.blobs.encode(hash_, ranges))
        assert part[-1024:] == CONTENT[20_000 * 1024 : 20_001 * 1024]


def test_damaged_data_is_an_error_that_names_the_place(tmp_path: Path) -> None:
    store, hash_ = make(tmp_path)
    with store:
        clean = b"".join(store.blobs.encode(hash_))
        flip(tmp_path, Kind.DATA, 100)
        got = b""
        with pytest.raises(CorruptBlob) as raised:  # noqa: PT012  # what came before counts
            for piece in store.blobs.encode(hash_):
                got += piece
        assert clean.startswith(got)
        assert raised.value.hash == hash_
        assert raised.value.path


def test_another_copy_is_sent_where_one_is_bad(tmp_path: Path) -> None:
    content = CONTENT[: 4 << 20]
    with Store._open(str(tmp_path / "store"), create=True, compression="none") as store:
        lease = store.blobs.put(content)
        group = log_core(store).backend.group()
        for leaf in (
            log_core(store).backend.large_reader(log_core(store).blob(lease.hash)).manifest.iter_leaves()
        ):
            for _, _, digest in leaf.entries:
                group.add_one(Kind.DATA, log_core(store).backend.payloads.load(digest))
        group.commit()
        clean = b"".join(store.blobs.encode(lease.hash))
        flip(tmp_path, Kind.DATA, 5)
        assert b"".join(store.blobs.encode(lease.hash)) == clean


@pytest.mark.parametrize("kind", ["fastcdc", "fixed", "whole"])
def test_compressed_and_scattered_chunks(kind: str, tmp_path: Path) -> None:
    rng = random.Random(1)
    content = b"".join(rng.randbytes(40_000) if i % 3 else b"compressible " * 3_000 for i in range(16))
    with Store._open(str(tmp_path / "store"), create=True, chunking=Chunking.choose(kind)) as store:
        store.put(content[100_000:300_000] * 2)
        hash_ = store.blobs.put(content).hash
        reference = Blob(content)
        assert b"".join(store.blobs.encode(hash_)) == reference.encode((0,))
        for _ in range(5):
            start = rng.randrange(len(content))
            ranges = ChunkRanges.bytes(start, start + rng.randrange(1, 300_000))
            assert b"".join(store.blobs.encode(hash_, ranges)) == reference.encode(ranges.boundaries)


def test_a_stream_that_is_dropped_holds_nothing(tmp_path: Path) -> None:
    store, hash_ = make(tmp_path)
    with store:
        stream = store.blobs.encode(hash_)
        next(stream)
        del stream
        assert not log_core(store).backend.sessions()[0].pinned
