"""The part of the contract about partial blobs: verified import, what is here, what is missing, bad streams."""

from __future__ import annotations

import io
import itertools
import random
import threading
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from holdfast.errors import (
    BlobNotFound,
    CorruptStream,
    HoldfastError,
    InvalidHash,
    InvalidInput,
    InvalidRange,
    RangeNotAvailable,
    RemoteProtocolError,
    TooLarge,
)
from holdfast.ranges import ChunkRanges
from holdfast.store import Store
from holdfast.testing.contract_base import ContractBase, Interrupted, MakeStore, sample
from holdfast.testing.streams import Sender, blocks
from holdfast.types import BLOCK_BYTES, BlobStatus, Hash, Progress

SMALL = 5 * BLOCK_BYTES + 3_077
"""Six blocks: pairs on four levels, the last block of four leaves."""
EVERY_SIZE = (0, 1, 1023, 1024, 1025, 16_383, 16_384, 16_385, 32_768, 32_769, SMALL, 300_001)


def check_kept(store: Store, sender: Sender) -> ChunkRanges:
    """Check that what the store says is here of a blob is what was sent; gives it."""
    field = store.blobs.bitfield(sender.hash)
    size = len(sender.content)
    for start, stop in field.ranges.byte_ranges(size):
        assert store.blobs.read(sender.hash, start, stop - start) == sender.content[start:stop]
    if field.is_size_verified:
        assert field.size_bytes == size
    if field.status is not BlobStatus.COMPLETE:
        for first, _ in itertools.islice(field.missing.clip(size), 3):
            if first * 1024 < field.size_bytes:
                with pytest.raises(RangeNotAvailable):
                    store.blobs.read(sender.hash, first * 1024, 1)
    return field.ranges


class PartialContract(ContractBase):
    """What verifies is kept, and says what it is; nothing else is ever stored."""

    @pytest.fixture
    def sender(self) -> Sender:
        return Sender(sample(SMALL, 5))

    @pytest.mark.parametrize("size", EVERY_SIZE)
    def test_a_whole_stream_is_a_blob(self, store: Store, size: int, tmp_path: Path) -> None:
        sender = Sender(sample(size, 1))
        stream = sender.stream()
        assert store.blobs.status(sender.hash) is BlobStatus.MISSING
        assert store.blobs.missing_ranges(sender.hash) == ChunkRanges.all()
        info = store.blobs.decode(sender.hash, stream)
        assert (info.hash, info.size_bytes, info.status) == (sender.hash, size, BlobStatus.COMPLETE)
        assert info.is_size_verified
        assert info == store.blobs.info(sender.hash)
        assert store.blobs.read(sender.hash) == sender.content
        assert not store.blobs.missing_ranges(sender.hash)
        assert store.scrub().ok
        (tmp_path / "stream").write_bytes(stream)
        sources: tuple[Any, ...] = (
            tmp_path / "stream",
            bytearray(stream),
            [stream[:9], b"", memoryview(stream)[9:]],
        )
        for source in sources:
            assert store.blobs.decode(sender.hash, source).status is BlobStatus.COMPLETE

    def test_of_a_file_exactly_the_stream_is_read(self, store: Store) -> None:
        one, two = Sender(sample(SMALL, 1)), Sender(sample(40_000, 2))
        file = io.BytesIO(one.stream(blocks(1, 3)) + two.stream() + b"rest")
        assert store.blobs.decode(one.hash, file, blocks(1, 3)).status is BlobStatus.PARTIAL
        assert store.blobs.decode(two.hash, file).status is BlobStatus.COMPLETE
        assert file.read() == b"rest"
        assert check_kept(store, one) == blocks(1, 3)

    def test_parts_in_any_order_make_the_blob(self, store: Store, sender: Sender) -> None:
        order = list(range(sender.blocks))
        random.Random(3).shuffle(order)
        have = ChunkRanges.empty()
        for block in order:
            want = blocks(block, block + 1)
            info = store.blobs.decode(sender.hash, sender.stream(want), want)
            have |= want.clip(len(sender.content))
            assert check_kept(store, sender) == have
            assert info.status is store.blobs.status(sender.hash)
            assert info == store.blobs.info(sender.hash)
        assert info.status is BlobStatus.COMPLETE
        assert store.blobs.read(sender.hash) == sender.content
        assert store.scrub().ok

    def test_it_is_stored_as_if_it_had_been_put(self, make_store: MakeStore) -> None:
        sender = Sender(sample(3 * self.chunk_bytes + 5_000, 9))
        with make_store() as put, make_store() as sent:
            put.blobs.put(sender.content)
            half = ChunkRanges.union(blocks(i, i + 1) for i in range(0, sender.blocks, 2))
            sent.blobs.decode(sender.hash, sender.stream(half), half)
            rest = sent.blobs.missing_ranges(sender.hash)
            sent.blobs.decode(sender.hash, sender.stream(rest), rest)
            for name in ("blobs", "chunks", "unique_bytes", "stored_bytes", "tree_bytes", "copy_bytes"):
                assert getattr(sent.stats(), name) == getattr(put.stats(), name), name
            before = sent.stats().stored_bytes
            sent.blobs.put(sender.content)
            assert sent.stats().stored_bytes == before

    def test_what_is_complete_is_verified_and_not_stored(self, store: Store, sender: Sender) -> None:
        store.blobs.put(sender.content)
        before = store.stats()
        assert store.blobs.decode(sender.hash, sender.stream()).status is BlobStatus.COMPLETE
        stream = bytearray(sender.stream())
        stream[300] ^= 1
        with pytest.raises(CorruptStream):
            store.blobs.decode(sender.hash, stream)
        assert store.stats().stored_bytes == before.stored_bytes
        assert store.blobs.status(sender.hash) is BlobStatus.COMPLETE

    def test_the_size_is_a_claim_until_the_last_leaf(self, store: Store, sender: Sender) -> None:
        info = store.blobs.decode(sender.hash, sender.stream(blocks(0, 2)), blocks(0, 2))
        assert not info.is_size_verified
        assert info.size_bytes == len(sender.content)
        assert store.blobs.missing_ranges(sender.hash) == blocks(2)
        info = store.blobs.decode(sender.hash, sender.stream(ChunkRanges.last()), ChunkRanges.last())
        assert info.is_size_verified
        assert check_kept(store, sender) == blocks(0, 2), "a leaf of a block is no block"
        assert store.blobs.missing_ranges(sender.hash) == blocks(2).clip(len(sender.content))

    def test_a_lied_size_does_no_harm_and_is_put_right(self, store: Store) -> None:
        """The figures of the issue: with only the first group verified these sizes all pass."""
        sender = Sender(sample(1_000_003, 1))
        for claim in (900_000, 1_000_004, 1_040_000):
            stream = claim.to_bytes(8, "little") + sender.stream(blocks(0, 1))[8:]
            info = store.blobs.decode(sender.hash, stream, blocks(0, 1))
            assert not info.is_size_verified
            assert check_kept(store, sender) == blocks(0, 1)
        rest = store.blobs.missing_ranges(sender.hash)
        info = store.blobs.decode(sender.hash, sender.stream(rest), rest)
        assert (info.size_bytes, info.status) == (1_000_003, BlobStatus.COMPLETE)
        assert store.blobs.read(sender.hash) == sender.content

    def test_a_range_that_is_not_here_is_refused_and_says_what_is(self, store: Store, sender: Sender) -> None:
        store.blobs.decode(sender.hash, sender.stream(blocks(1, 3)), blocks(1, 3))
        with pytest.raises(RangeNotAvailable) as caught:
            store.blobs.read(sender.hash, 2 * BLOCK_BYTES, 2 * BLOCK_BYTES)
        assert caught.value.here == blocks(1, 3)
        assert caught.value.missing == blocks(3, 4)
        with pytest.raises(RangeNotAvailable):
            store.blobs.read(sender.hash)
        with pytest.raises(InvalidRange):
            store.blobs.read(sender.hash, len(sender.content) + 1)
        start, stop = BLOCK_BYTES + 5, 3 * BLOCK_BYTES - 7
        assert store.read(sender.hash, start, stop - start) == sender.content[start:stop]
        assert b"".join(store.blobs.iter_bytes(sender.hash, start, 9)) == sender.content[start : start + 9]
        with store.blobs.open(sender.hash) as file:
            file.seek(start)
            assert file.read(100) == sender.content[start : start + 100]
        assert not store.exists(sender.hash)

    def test_what_is_here_can_be_sent_on(self, make_store: MakeStore, sender: Sender) -> None:
        with make_store() as near, make_store() as far:
            near.blobs.decode(sender.hash, sender.stream(blocks(1, 4)), blocks(1, 4))
            assert b"".join(near.blobs.encode(sender.hash, blocks(2, 4))) == sender.stream(blocks(2, 4))
            far.blobs.decode(sender.hash, near.blobs.encode(sender.hash, blocks(2, 4)), blocks(2, 4))
            assert check_kept(far, sender) == blocks(2, 4)
            for wanted in (blocks(0, 2), ChunkRanges.all(), ChunkRanges.last()):
                with pytest.raises(RangeNotAvailable):
                    near.blobs.encode(sender.hash, wanted)
            rest = near.blobs.missing_ranges(sender.hash)
            near.blobs.decode(sender.hash, sender.stream(rest), rest)
            missing = far.blobs.missing_ranges(sender.hash)
            far.blobs.decode(sender.hash, near.blobs.encode(sender.hash, missing), missing)
            assert far.blobs.read(sender.hash) == sender.content

    def test_partial_ones_are_listed_where_asked(self, store: Store, sender: Sender) -> None:
        other = store.blobs.put(b"complete").hash
        store.blobs.decode(sender.hash, sender.stream(blocks(1, 2)), blocks(1, 2))
        assert [info.hash for info in store.blobs.list()] == [other]
        both = {info.hash: info for info in store.blobs.list(partial=True)}
        assert list(both) == sorted((other, sender.hash))
        assert both[sender.hash].status is BlobStatus.PARTIAL
        assert both[sender.hash].stored_bytes == BLOCK_BYTES
        found = [info.hash for info in store.blobs.list(str(sender.hash)[:9], partial=True)]
        assert found == [sender.hash]
        field = store.blobs.bitfield(sender.hash)
        assert (field.present_bytes, field.to_dict()["ranges"]) == (BLOCK_BYTES, "16..32")

    def test_another_store_goes_on_where_it_stopped(self, store: Store, sender: Sender) -> None:
        if not self.persistent:
            pytest.skip("nothing of this backend outlives its store")
        some = blocks(0, 1) | blocks(4, 5)
        store.blobs.decode(sender.hash, sender.stream(some), some)
        with self.reopen(store) as other:
            assert check_kept(other, sender) == some
            assert other.rebuild().partial_blobs == 1
            assert check_kept(other, sender) == some
            rest = other.blobs.missing_ranges(sender.hash)
            assert other.blobs.decode(sender.hash, sender.stream(rest), rest).status is BlobStatus.COMPLETE
            assert other.rebuild().partial_blobs == 0
        assert store.blobs.read(sender.hash) == sender.content

    def test_several_fill_one_blob_at_once(self, store: Store) -> None:
        sender = Sender(sample(70 * BLOCK_BYTES + 1, 4))
        parts = [ChunkRanges.union(blocks(i, i + 1) for i in range(n, 71, 4)) for n in range(4)]
        errors: list[BaseException] = []

        def fill(part: ChunkRanges) -> None:
            try:
                store.blobs.decode(sender.hash, sender.stream(part), part)
                store.blobs.decode(sender.hash, sender.stream(blocks(0, 20)), blocks(0, 20))
            except BaseException as error:  # noqa: BLE001  # raised below
                errors.append(error)

        threads = [threading.Thread(target=fill, args=(part,)) for part in parts]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not errors
        assert store.blobs.status(sender.hash) is BlobStatus.COMPLETE
        assert store.blobs.read(sender.hash) == sender.content
        assert store.scrub().ok

    def test_what_a_source_raises_passes_and_what_came_is_kept(self, store: Store, sender: Sender) -> None:
        stream = sender.stream()
        upto = 8 + 5 * 64 + 2 * BLOCK_BYTES + 100

        def source() -> Iterator[bytes]:
            yield stream[:upto]
            raise Interrupted

        with pytest.raises(Interrupted):
            store.blobs.decode(sender.hash, source())
        assert check_kept(store, sender) == blocks(0, 2)

        def cancel(progress: Progress) -> None:
            assert progress.total_bytes == len(sender.content)
            if progress.done_bytes >= 3 * BLOCK_BYTES:
                raise Interrupted

        pieces = [stream[i : i + 1000] for i in range(0, len(stream), 1000)]
        with pytest.raises(Interrupted):
            store.blobs.decode(sender.hash, pieces, progress=cancel)
        assert check_kept(store, sender) == blocks(0, 3)

    def test_empty_ranges_and_ranges_beyond_the_end(self, store: Store, sender: Sender) -> None:
        nothing = ChunkRanges.empty()
        info = store.blobs.decode(sender.hash, b"", nothing)
        assert (info.status, info.size_bytes, info.is_size_verified) == (BlobStatus.MISSING, 0, False)
        with pytest.raises(RemoteProtocolError):
            store.blobs.decode(sender.hash, b"x", nothing)
        with pytest.raises(BlobNotFound):
            store.blobs.info(sender.hash)
        beyond = ChunkRanges.leaves(1 << 40, 1 << 50)
        info = store.blobs.decode(sender.hash, sender.stream(beyond), beyond)
        assert (info.is_size_verified, info.stored_bytes) == (True, 0)

    def test_what_is_no_hash_or_no_stream_is_refused(self, store: Store, sender: Sender) -> None:
        wrong: Any = "ab" * 32
        with pytest.raises(InvalidHash):
            store.blobs.decode(wrong, b"")
        for source in (5, io.StringIO("text" * 10), ["text"]):
            broken: Any = source
            with pytest.raises(InvalidInput):
                store.blobs.decode(sender.hash, broken)
        assert store.blobs.status(sender.hash) is BlobStatus.MISSING

    def test_the_limit_of_a_store_holds_for_streams(self, make_store: MakeStore, sender: Sender) -> None:
        with make_store(max_artifact_bytes=SMALL - 1) as store:
            with pytest.raises(TooLarge):
                store.blobs.decode(sender.hash, sender.stream(blocks(0, 1)), blocks(0, 1))
            assert store.blobs.status(sender.hash) is BlobStatus.MISSING

    # -- bad input

    def _refused(
        self, store: Store, sender: Sender, stream: Any, ranges: ChunkRanges | None = None
    ) -> HoldfastError:
        """Expect a typed error with the offset; and that nothing is here but what is right."""
        with pytest.raises((CorruptStream, RemoteProtocolError)) as caught:
            store.blobs.decode(sender.hash, stream, ranges)
        error = caught.value
        assert isinstance(error.offset_bytes, int)
        assert error.hash == sender.hash
        assert str(error.offset_bytes) in error.message
        check_kept(store, sender)
        return error

    def test_a_wrong_block_leaves_those_before_it(self, store: Store) -> None:
        sender = Sender(sample(1_100 * BLOCK_BYTES, 6))
        stream = bytearray(sender.stream())
        at = stream.find(sender.content[1_000 * BLOCK_BYTES : 1_000 * BLOCK_BYTES + 32])
        stream[at + 5_000] ^= 8
        error = self._refused(store, sender, stream)
        assert isinstance(error, CorruptStream)
        assert error.offset_bytes == at
        assert store.blobs.bitfield(sender.hash).ranges == blocks(0, 1_000)
        rest = store.blobs.missing_ranges(sender.hash)
        assert store.blobs.decode(sender.hash, sender.stream(rest), rest).status is BlobStatus.COMPLETE
        assert store.blobs.read(sender.hash) == sender.content

    def test_cut_off_at_every_byte(self, store: Store) -> None:
        sender = Sender(sample(1_025, 1))
        stream = sender.stream()
        for length in range(len(stream)):
            error = self._refused(store, sender, stream[:length])
            assert isinstance(error, RemoteProtocolError)
            assert error.offset_bytes <= length
            assert store.blobs.status(sender.hash) is BlobStatus.MISSING
        self._cut_off_at_random(store)

    def _cut_off_at_random(self, store: Store) -> None:
        sender, rng = Sender(sample(60 * BLOCK_BYTES + 9, 2)), random.Random(1)
        stream = sender.stream()
        for length in sorted(rng.sample(range(len(stream)), 12)):
            self._refused(store, sender, stream[:length])
            (*_, (_, stop)) = (
                (0, 0),
                *(store.blobs.bitfield(sender.hash).ranges.byte_ranges(len(sender.content))),
            )
            assert stop > length - 2 * BLOCK_BYTES - 64 * 70, "what came was kept"
        assert store.blobs.decode(sender.hash, stream).status is BlobStatus.COMPLETE

    def test_a_bit_flipped_at_every_byte(self, store: Store) -> None:
        rng = random.Random(2)
        one, two = Sender(sample(1_025, 3)), Sender(sample(BLOCK_BYTES + 1, 4))
        long = two.stream()
        some = [*range(8 + 64), *rng.sample(range(72, len(long) - 1), 30), len(long) - 1]
        for sender, places in ((one, range(len(one.stream()))), (two, some)):
            for place in places:
                stream = bytearray(sender.stream())
                stream[place] ^= 1 << rng.randrange(8)
                self._refused(store, sender, stream)
                assert store.blobs.status(sender.hash) is not BlobStatus.COMPLETE
        assert store.blobs.decode(two.hash, long).status is BlobStatus.COMPLETE

    @pytest.mark.parametrize(
        "claim",
        [0, 1, BLOCK_BYTES, SMALL - 1, SMALL + 1, 2 * SMALL, 1 << 40, 1 << 62, 1 << 63, (1 << 64) - 1],
    )
    def test_a_lied_size_of_a_whole_stream(self, store: Store, sender: Sender, claim: int) -> None:
        tracemalloc.start()
        try:
            stream = claim.to_bytes(8, "little") + sender.stream()[8:]
            error = self._refused(store, sender, stream)
            assert tracemalloc.get_traced_memory()[1] < 32 << 20
        finally:
            tracemalloc.stop()
        if claim > 1 << 62:
            assert isinstance(error, RemoteProtocolError)
            assert error.offset_bytes == 0
        assert store.blobs.decode(sender.hash, sender.stream()).status is BlobStatus.COMPLETE
        assert store.blobs.read(sender.hash) == sender.content

    def test_what_follows_the_stream(self, store: Store, sender: Sender) -> None:
        error = self._refused(store, sender, sender.stream() + b"garbage")
        assert isinstance(error, RemoteProtocolError)
        assert error.offset_bytes == len(sender.stream())
        assert store.blobs.status(sender.hash) is BlobStatus.COMPLETE, "all of it came, and was right"

    def test_swapped_parents(self, store: Store, sender: Sender) -> None:
        stream = bytearray(sender.stream())
        stream[8:72], stream[72:136] = stream[72:136], stream[8:72]
        assert self._refused(store, sender, stream).offset_bytes == 8
        halves = bytearray(sender.stream())
        halves[8:40], halves[40:72] = halves[40:72], halves[8:40]
        assert self._refused(store, sender, halves).offset_bytes == 8

    def test_another_block_size_and_other_ranges(self, store: Store) -> None:
        sender = Sender(sample(3 * 1024, 1))
        first, second, third = (sender.stream(ChunkRanges.leaves(i, i + 1)) for i in range(3))
        self._refused(store, sender, first + second[-1024:] + third[-1024:])
        large = Sender(sample(SMALL, 2))
        self._refused(store, large, large.stream(blocks(1, 2)))
        self._refused(store, large, large.stream(), blocks(1, 2))
        self._refused(store, large, large.stream(ChunkRanges.leaves(0, 15)), blocks(0, 1))

    def test_an_endless_stream(self, store: Store, sender: Sender) -> None:
        taken = 0

        def endless(first: bytes) -> Iterator[bytes]:
            nonlocal taken
            for piece in itertools.chain((first,), itertools.repeat(bytes(100_000))):
                taken += len(piece)
                assert taken < 10 << 20, "it is read on and on"
                yield piece

        self._refused(store, sender, endless(b""))
        self._refused(store, sender, endless(sender.stream()[:50_000]))
        assert store.blobs.status(sender.hash) is BlobStatus.PARTIAL
        taken = 0
        self._refused(store, sender, endless(sender.stream()))
        assert store.blobs.status(sender.hash) is BlobStatus.COMPLETE

    def test_a_stream_of_another_blob(self, store: Store, sender: Sender) -> None:
        other = Sender(sample(SMALL, 99))
        with pytest.raises(CorruptStream):
            store.blobs.decode(sender.hash, other.stream())
        for hash_ in (sender.hash, other.hash, Hash(bytes(32))):
            assert store.blobs.status(hash_) is BlobStatus.MISSING
