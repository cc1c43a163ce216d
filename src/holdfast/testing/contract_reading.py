"""The part of the contract about reading: ranges, files, exports, look-ups, deleting."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from holdfast import _native
from holdfast.errors import (
    ArtifactNotFound,
    BlobNotFound,
    Conflict,
    HoldfastError,
    IntegrityError,
    InvalidInput,
    InvalidRange,
    NotFound,
)
from holdfast.store import Store
from holdfast.testing.contract_base import NEAR, ContractBase, sample
from holdfast.types import BlobStatus, Hash, PutItem, new_ids, now_ms


class ReadingContract(ContractBase):
    """What is there is found and read, verified; what is not is refused by name."""

    def test_ranges(self, store: Store) -> None:
        content = sample(self.chunk_bytes + 50_000)
        artifact = store.put(content)
        size = len(content)
        edges = {edge + near for edge in (1024, 16_384, 32_768, self.chunk_bytes) for near in NEAR}
        points = sorted({0, 1, size - 1, size, *(edge for edge in edges if 0 <= edge <= size)})
        for start in points:
            assert store.read(artifact, start) == content[start:]
            for stop in points:
                if stop >= start:
                    assert store.read(artifact, start, stop - start) == content[start:stop]
        assert b"".join(store.iter_bytes(artifact, 5, 20_000)) == content[5:20_005]
        assert store.read(artifact.hash, 7, 9) == content[7:16]

    @pytest.mark.parametrize(
        ("offset", "length"),
        [
            (-1, None),
            (-1, 1),
            (0, -1),
            (1, -1),
            (1001, None),
            (1001, 0),
            (0, 1001),
            (1000, 1),
            (0, 1 << 70),
            (1 << 70, 1),
        ],
    )
    @pytest.mark.parametrize("size", [1000, 200_000])
    def test_ranges_that_do_not_lie_within(
        self, store: Store, offset: int, length: int | None, size: int
    ) -> None:
        artifact = store.put(sample(size))
        shift = size - 1000 if offset >= 1000 else 0
        length = length + size - 1000 if length == 1001 else length
        for ref in (artifact, artifact.hash):
            with pytest.raises(InvalidRange) as caught:
                store.read(ref, offset + shift, length)
            assert caught.value.size_bytes == size
            with pytest.raises(InvalidRange):
                list(store.iter_bytes(ref, offset + shift, length))

    def test_an_open_file_is_a_file(self, store: Store) -> None:
        content = sample(100_000)
        artifact = store.put(content)
        with store.open(artifact) as file:
            assert file.readable()
            assert file.seekable()
            assert not file.writable()
            assert file.seek(16_383) == 16_383
            assert file.read(3) == content[16_383:16_386]
            assert file.tell() == 16_386
            assert file.seek(-10, os.SEEK_END) == 99_990
            assert file.read(100) == content[-10:]
            assert file.read(1) == b""
            assert file.seek(200_000) == 200_000
            assert file.read() == b""
            file.seek(0)
            buffer = bytearray(50_000)
            assert file.readinto(buffer) == 50_000
            assert buffer == content[:50_000]
            with pytest.raises((OSError, ValueError)):
                file.seek(-1)
            with pytest.raises((OSError, ValueError)):
                file.write(b"x")
        assert file.closed
        with pytest.raises(ValueError):
            file.read()

    def test_random_reads_of_one_open_file(self, store: Store) -> None:
        content = sample(500_000)
        rng = random.Random(4)
        with store.open(store.put(content)) as file:
            for _ in range(200):
                start, length = rng.randrange(len(content)), rng.choice((1, 100, 5_000, 70_000))
                file.seek(start)
                assert file.read(length) == content[start : start + length]

    def test_export(self, store: Store, tmp_path: Path) -> None:
        content = sample(200_000)
        artifact = store.put(content)
        target = tmp_path / "out"
        store.export(artifact, target)
        assert target.read_bytes() == content
        target.write_bytes(b"mine")
        with pytest.raises(Conflict):
            store.export(artifact, target)
        assert target.read_bytes() == b"mine"
        store.export(artifact.hash, str(target), overwrite=True)
        assert target.read_bytes() == content
        assert os.listdir(tmp_path) == ["out"]

    def test_an_export_that_fails_leaves_nothing(self, store: Store, tmp_path: Path) -> None:
        content = sample(200_000)
        artifact = store.put(content)
        with pytest.raises((HoldfastError, OSError)):
            store.export(artifact, tmp_path / "no" / "such" / "directory")
        with pytest.raises(NotFound):
            store.export(Hash(bytes(32)), tmp_path / "out")
        (tmp_path / "directory").mkdir()
        with pytest.raises((HoldfastError, OSError)):
            store.export(artifact, tmp_path / "directory", overwrite=True)
        self.corrupt(store, artifact.hash, 150_000)
        with pytest.raises(IntegrityError):
            store.export(artifact, tmp_path / "out")
        assert os.listdir(tmp_path) == ["directory"]

    def test_what_is_not_there(self, store: Store) -> None:
        store.put(b"something")
        (raw,) = new_ids(1, now_ms())
        digits = raw.hex()
        unknown = f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"
        no_blob = Hash(_native.blake3(b"nothing"))
        for call in (store.info, store.read, store.open, store.delete, store.restore, store.verify):
            with pytest.raises(ArtifactNotFound) as caught:
                call(unknown)
            assert unknown in str(caught.value)
            assert isinstance(caught.value, KeyError)
        with pytest.raises(ArtifactNotFound):
            list(store.iter_bytes(unknown))
        for reading in (store.read, store.open, store.verify, store.blobs.info):
            with pytest.raises(BlobNotFound) as missing:
                reading(no_blob)
            assert str(no_blob) in str(missing.value)
        assert not store.exists(unknown)
        assert not store.exists(no_blob)

    @pytest.mark.parametrize("ref", ["", "x", "0" * 36, "../secret", "é" * 36, "\0"])
    def test_what_is_no_id_at_all(self, store: Store, ref: str) -> None:
        for call in (store.info, store.read, store.delete, store.restore):
            with pytest.raises((InvalidInput, NotFound)):
                call(ref)
        for other in (5, None, b"bytes"):
            with pytest.raises((InvalidInput, NotFound, TypeError)):
                store.info(other)  # type: ignore[arg-type]  # wrong on purpose

    def test_find_is_newest_first_and_pages(self, store: Store) -> None:
        artifacts = [store.put(b"%d" % i, filename=f"{i}") for i in range(25)]
        many = store.put_many([PutItem(b"m%d" % i, filename=f"m{i}") for i in range(25)])
        newest_first = [artifact.id for artifact in reversed([*artifacts, *many])]
        assert [artifact.id for artifact in store.find()] == newest_first
        assert [artifact.id for artifact in store.find(limit=7)] == newest_first[:7]
        assert list(store.find(limit=0)) == []
        pages: list[str] = []
        after: str | None = None
        while page := [artifact.id for artifact in store.find(limit=8, after=after)]:
            pages += page
            after = page[-1]
        assert pages == newest_first

    def test_find_goes_on_while_things_change(self, store: Store) -> None:
        before = store.put_many([b"%d" % i for i in range(2_500)])
        seen = []
        for count, artifact in enumerate(store.find()):
            seen.append(artifact.id)
            if count == 3:
                store.delete(before[0])
                store.put(b"new one")
        assert len(seen) == len(set(seen))
        assert set(seen) >= {artifact.id for artifact in before[1:]}

    def test_what_is_deleted_is_gone_from_every_answer_and_can_come_back(self, store: Store) -> None:
        content = sample(50_000)
        artifact, other = store.put(content, filename="x", tags=["t"]), store.put(b"other")
        store.delete(artifact)
        assert not store.exists(artifact.id)
        assert list(store.find()) == [other]
        for call in (store.info, store.read, store.open, store.delete):
            with pytest.raises(ArtifactNotFound):
                call(artifact.id)
        (gone,) = store.find(deleted=True)
        assert gone.id == artifact.id
        assert gone.deleted_at is not None
        store.restore(artifact.id)
        back = store.info(artifact.id)
        assert back.revision > artifact.revision
        assert (back.hash, back.filename, back.tags, back.deleted_at) == (artifact.hash, "x", ("t",), None)
        assert store.read(artifact.id) == content
        assert list(store.find(deleted=True)) == []
        store.delete(artifact.id)
        store.restore(artifact.id)
        assert store.read(artifact.id) == content

    def test_deleting_one_leaves_what_shares_its_content(self, store: Store) -> None:
        content = sample(300_000)
        one, two = store.put(content), store.put(content)
        store.delete(one)
        assert store.read(two) == content
        assert store.verify(two).ok

    def test_blobs(self, store: Store) -> None:
        small, large = b"small", sample(100_000)
        lease = store.blobs.put(small)
        leases = store.blobs.put_many([large, iter([b"in ", b"pieces"]), large])
        assert lease.hash.digest == _native.blake3(small)
        assert [lease.hash for lease in leases] == [
            Hash(_native.blake3(content)) for content in (large, b"in pieces", large)
        ]
        for content in (small, large, b"in pieces"):
            hash = Hash(_native.blake3(content))
            info = store.blobs.info(hash)
            assert (info.hash, info.size_bytes, info.status) == (hash, len(content), BlobStatus.COMPLETE)
            assert info.has_outboard == (len(content) > 16_384)
            assert info.stored_bytes > 0
            assert store.exists(hash)
            assert store.read(hash) == content
        assert list(store.find()) == []
        assert store.stats().blobs == 3
        lease.release()
        lease.release()
        assert store.read(lease.hash) == small
