"""The part of the contract about what is sent: BAO streams of blobs and ranges, hash seqs, collections."""

from __future__ import annotations

import io
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from holdfast import _native
from holdfast.errors import (
    BlobNotFound,
    CorruptBlob,
    CorruptStream,
    EmptyData,
    FormatError,
    InvalidHash,
    InvalidInput,
    RangeNotAvailable,
    RemoteProtocolError,
)
from holdfast.ranges import ChunkRanges
from holdfast.reference_bao import Blob
from holdfast.store import Store
from holdfast.testing.contract_base import ContractBase, MakeStore, boundary_sizes, sample
from holdfast.types import BlobStatus, Hash

SOME_RANGES = (
    ChunkRanges.all(),
    ChunkRanges.empty(),
    ChunkRanges.last(),
    ChunkRanges.leaves(0, 1),
    ChunkRanges.leaves(3, 40),
    ChunkRanges.parse("0..1,17..33,64.."),
    ChunkRanges.bytes(100_000, 200_001),
    ChunkRanges.leaves(1 << 40),
)


class StreamsContract(ContractBase):
    """What goes out is right, byte for byte, and comes in again."""

    def test_streams_are_those_of_the_reference(self, store: Store) -> None:
        for size in boundary_sizes(self.chunk_bytes, self.segment_bytes)[:-3]:
            content = sample(size)
            lease = store.blobs.put(content)
            blob = Blob(content)
            for ranges in SOME_RANGES:
                got = b"".join(store.blobs.encode(lease.hash, ranges))
                assert got == blob.encode(ranges.boundaries), (size, ranges)

    def test_a_stream_makes_the_same_blob_elsewhere(self, make_store: MakeStore) -> None:
        content = sample(3 * self.chunk_bytes + 7)
        with make_store() as store, make_store() as other:
            hash_ = store.blobs.put(content).hash
            info = other.blobs.decode(hash_, store.blobs.encode(hash_))
            assert info.status == BlobStatus.COMPLETE
            assert other.read(hash_) == content

    def test_of_a_partial_blob_what_is_here_is_sent(self, make_store: MakeStore) -> None:
        content = sample(10 * 16_384)
        here, wanted = ChunkRanges.bytes(16_384, 5 * 16_384), ChunkRanges.bytes(20_000, 40_000)
        with make_store() as store, make_store() as other:
            hash_ = store.blobs.put(content).hash
            other.blobs.decode(hash_, store.blobs.encode(hash_, here), here)
            got = b"".join(other.blobs.encode(hash_, wanted))
            assert got == b"".join(store.blobs.encode(hash_, wanted))
            for missing in (None, ChunkRanges.last(), ChunkRanges.bytes(0, 1)):
                with pytest.raises(RangeNotAvailable):
                    other.blobs.encode(hash_, missing)

    def test_what_cannot_be_sent_is_said_at_once(self, store: Store) -> None:
        with pytest.raises(BlobNotFound):
            store.blobs.encode(Hash(bytes(32)))
        with pytest.raises(InvalidHash):
            store.blobs.encode("ab" * 32)  # type: ignore[arg-type]  # wrong on purpose

    def test_an_empty_blob_is_eight_zero_bytes(self, make_store: MakeStore) -> None:
        with make_store(allow_empty=True) as store:
            hash_ = store.blobs.put(b"").hash
            assert b"".join(store.blobs.encode(hash_)) == bytes(8)
            assert b"".join(store.blobs.encode(hash_, ChunkRanges.empty())) == b""

    @pytest.mark.parametrize("size", [10_000, 100_000, 400_000])
    def test_nothing_wrong_is_sent(self, store: Store, size: int) -> None:
        content = sample(size)
        hash_ = store.blobs.put(content).hash
        bad = size - 3_000
        self.corrupt(store, hash_, bad)
        sent = b""
        with pytest.raises(CorruptBlob):  # noqa: PT012  # what came before counts
            for piece in store.blobs.encode(hash_):
                sent += piece
        assert Blob(content).encode((0,)).startswith(sent)
        if size > 50_000:
            clean = ChunkRanges.bytes(0, 16_384)
            assert b"".join(store.blobs.encode(hash_, clean)) == Blob(content).encode(clean.boundaries)

    # --- hash seqs

    def test_a_hash_seq_is_its_children(self, store: Store) -> None:
        leases = store.blobs.put_many([sample(10, i) for i in range(5)])
        missing = Hash(_native.blake3(b"nobody has this"))
        children: list[Any] = [
            leases[0].hash,
            leases[0],
            str(leases[1].hash),
            missing,
            *leases[2:],
            leases[0].hash,
        ]
        with store.blobs.hash_seq(iter(children)) as lease:
            expected = [leases[0].hash] * 2 + [leases[1].hash, missing, *(one.hash for one in leases[2:])]
            expected.append(leases[0].hash)
            assert store.read(lease.hash) == b"".join(hash_.digest for hash_ in expected)
            assert list(store.blobs.children(lease.hash)) == expected
            info = store.blobs.seq_info(lease.hash)
            assert (info.children, info.complete_children, info.is_complete) == (8, 7, False)
            assert info.complete_bytes == 70

    def test_hash_seqs_of_hash_seqs(self, store: Store) -> None:
        leaves = [lease.hash for lease in store.blobs.put_many([b"a", b"b", b"c"])]
        inner = store.blobs.hash_seq(leaves[:2]).hash
        outer = store.blobs.hash_seq([inner, leaves[2], inner]).hash
        assert list(store.blobs.children(outer)) == [inner, leaves[2], inner]
        nested = [inner, *leaves[:2]]
        assert list(store.blobs.children(outer, depth=2)) == [*nested, leaves[2], *nested]
        assert list(store.blobs.children(outer, depth=16)) == [*nested, leaves[2], *nested]
        for depth in (0, 17, -1):
            with pytest.raises(InvalidInput):
                store.blobs.children(outer, depth=depth)

    def test_a_blob_that_happens_to_be_as_long_as_hashes_ends(self, store: Store) -> None:
        raw = store.blobs.put(sample(64)).hash
        seq = store.blobs.hash_seq([raw]).hash
        assert len(list(store.blobs.children(seq, depth=16))) == 3  # its 64 bytes, taken for two hashes

    def test_a_long_hash_seq_is_streamed(self, store: Store) -> None:
        count = 200_000
        child = store.blobs.put(b"x").hash
        seq = store.blobs.hash_seq(child for _ in range(count)).hash
        assert sum(1 for _ in store.blobs.children(seq)) == count

    def test_what_is_no_hash_seq_is_refused(self, make_store: MakeStore) -> None:
        with make_store() as store:
            hash_ = store.blobs.put(b"33 bytes, which are not hashes...").hash
            calls: tuple[Callable[[Hash], Any], ...] = (
                store.blobs.children,
                store.blobs.encode_seq,
                store.blobs.missing_seq,
                store.blobs.seq_info,
            )
            for call in calls:
                with pytest.raises(FormatError):
                    list(call(hash_))
            with pytest.raises(BlobNotFound):
                store.blobs.children(Hash(bytes(32)))
            with pytest.raises(EmptyData):
                store.blobs.hash_seq([])
            for bad in (["ab"], [5], [b"x" * 32]):
                with pytest.raises(InvalidHash):
                    store.blobs.hash_seq(bad)  # type: ignore[arg-type]  # wrong on purpose
            with make_store() as other, pytest.raises(FormatError):
                other.blobs.decode_seq(hash_, store.blobs.encode(hash_))

    # --- a hash seq and its children in one stream

    def _tree(self, directory: Path) -> Path:
        rng = random.Random(5)
        for number, size in enumerate((0, 1, 16_384, 16_385, 300_000, 300_000, self.chunk_bytes + 1)):
            (directory / f"{number}").write_bytes(sample(size))
        for number in range(50):
            (directory / f"small-{number}").write_bytes(rng.randbytes(number))
        (directory / "again").write_bytes(sample(300_000))
        return directory

    def test_a_tree_goes_over_in_one_stream(self, make_store: MakeStore, tmp_path: Path) -> None:
        tree = self._tree(tmp_path)
        with make_store() as store, make_store() as other:
            hash_ = store.put_tree(tree).hash
            stream = b"".join(store.blobs.encode_seq(hash_))
            pieces = [b"".join(store.blobs.encode(one)) for one in (hash_, *store.blobs.children(hash_))]
            assert stream == b"".join(pieces)
            file = io.BytesIO(stream + b"what follows")
            info = other.blobs.decode_seq(hash_, file)
            assert file.read() == b"what follows"
            assert info.is_complete
            assert info.children == info.complete_children == len(pieces) - 1
            other.export(hash_, tmp_path / "out", format="hash_seq")
            for path in tree.iterdir():
                if path.name != "out":
                    assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes()
            assert list(other.blobs.missing_seq(hash_)) == [ChunkRanges.empty()] * len(pieces)
            assert list(other.blobs.encode_seq(hash_, other.blobs.missing_seq(hash_))) == []

    def test_a_broken_stream_goes_on_with_what_is_missing(
        self, make_store: MakeStore, tmp_path: Path
    ) -> None:
        tree = self._tree(tmp_path)
        with make_store() as store:
            hash_ = store.put_tree(tree).hash
            stream = b"".join(store.blobs.encode_seq(hash_))
            rng = random.Random(3)
            for stop in (0, 5, 500, *(rng.randrange(len(stream)) for _ in range(4))):
                with make_store() as other:
                    with pytest.raises(RemoteProtocolError) as raised:
                        other.blobs.decode_seq(hash_, [stream[:stop]])
                    assert raised.value.child >= -1
                    missing = list(other.blobs.missing_seq(hash_))
                    if missing[0]:  # the hash seq itself
                        other.blobs.decode(hash_, store.blobs.encode(hash_, missing[0]), missing[0])
                        missing = list(other.blobs.missing_seq(hash_))
                    rest = b"".join(store.blobs.encode_seq(hash_, missing))
                    assert other.blobs.decode_seq(hash_, [rest], missing).is_complete
                    assert len(rest) < len(stream) - stop + 200_000 + 20_000

    def test_a_wrong_child_is_named_and_those_before_it_stay(self, make_store: MakeStore) -> None:
        with make_store() as store:
            leases = store.blobs.put_many([sample(1_000, i) for i in range(6)])
            seq = store.blobs.hash_seq(leases).hash
            pieces = [b"".join(store.blobs.encode(one)) for one in (seq, *(one.hash for one in leases))]
            bad = bytearray(pieces[4])
            bad[500] ^= 1
            pieces[4] = bytes(bad)
            with make_store() as other:
                with pytest.raises(CorruptStream) as raised:
                    other.blobs.decode_seq(seq, pieces)
                assert (raised.value.child, raised.value.hash) == (3, leases[3].hash)
                assert [other.blobs.status(one.hash) for one in leases] == ["complete"] * 3 + ["missing"] * 3
            with make_store() as other, pytest.raises(RemoteProtocolError, match="follows"):
                other.blobs.decode_seq(seq, [*store.blobs.encode_seq(seq), b"more"])

    def test_a_missing_child_is_named_when_its_turn_comes(self, store: Store) -> None:
        missing = Hash(_native.blake3(b"missing"))
        seq = store.blobs.hash_seq([store.blobs.put(b"here"), missing]).hash
        stream: Iterator[bytes] = store.blobs.encode_seq(seq)
        sent = b""
        with pytest.raises(BlobNotFound) as raised:  # noqa: PT012  # what came before counts
            for piece in stream:
                sent += piece
        assert (raised.value.child, raised.value.hash) == (1, missing)
        assert sent.endswith(b"here")
        some = [ChunkRanges.all(), ChunkRanges.all(), ChunkRanges.empty()]
        assert b"".join(store.blobs.encode_seq(seq, some)) == sent
