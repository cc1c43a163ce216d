"""Reading from a bucket that gives wrong bodies: each is asked for once more, then it is an error, never an answer."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import wait

import pytest

from holdfast.backend.objects.bucket import Bucket
from holdfast.backend.objects.cache import BlockCache
from holdfast.backend.objects.layout import data_key, outboard_key
from holdfast.backend.objects.opening import memory_bucket
from holdfast.backend.objects.reader import AHEAD, PIECE_BYTES, LargeObjectReader
from holdfast.bao import outboard_bytes, pair_spans
from holdfast.errors import IntegrityError, MissingChunk, Unavailable
from holdfast.store import Store
from holdfast.testing.contract_base import sample
from holdfast.testing.faulty_bucket import BucketFault, BucketSite, FaultyBucket
from holdfast.testing.inside import object_core

SIZES = (9_000, 100_000, 9_000_000)
SPOILED: dict[str, Callable[[bytes], bytes]] = {
    "truncated": lambda body: body[: len(body) // 2],
    "empty": lambda body: b"",
    "flipped": lambda body: body[:-1] + bytes([body[-1] ^ 1]),
    "another's": lambda body: bytes(len(body)),
}


class Spoiled(FaultyBucket):
    """Gives `times` wrong bodies for keys that end in `part`."""

    def __init__(self, inner: Bucket, part: str, how: Callable[[bytes], bytes], times: int) -> None:
        super().__init__(inner)
        self.part, self.how, self.times = part, how, times
        self._left = threading.Lock()

    def get_range(self, key: str, start: int, stop: int) -> bytes | None:
        body = super().get_range(key, start, stop)
        with self._left:
            if body is None or not key.endswith(self.part) or not self.times:
                return body
            self.times -= 1
        return self.how(body)


@pytest.fixture
def bucket() -> Bucket:
    return memory_bucket()


def ways(store: Store, content: bytes) -> Iterator[Callable[[], bytes]]:
    (artifact,) = store.find()
    yield lambda: store.read(artifact, 100, 5_000)
    yield lambda: store.read(artifact)
    yield lambda: b"".join(store.iter_bytes(artifact))
    yield lambda: store.open(artifact).read()


@pytest.mark.parametrize("how", SPOILED)
@pytest.mark.parametrize("part", ["data", "outboard"])
@pytest.mark.parametrize("size", SIZES)
def test_a_wrong_body_is_asked_for_once_more(bucket: Bucket, size: int, part: str, how: str) -> None:
    content = sample(size)
    spoiled = Spoiled(bucket, part, SPOILED[how], 0)
    with Store._open_objects(spoiled, create=True, cache=BlockCache(0)) as store:
        store.put(content)
        for work in ways(store, content):
            object_core(store).backend._readers.clear()
            spoiled.times = 1
            assert work() in (content, content[100:5_100])
            assert spoiled.times == 0 or (part == "outboard" and size <= 16_384)
        assert store.health().ok


@pytest.mark.parametrize("how", SPOILED)
@pytest.mark.parametrize("size", SIZES)
def test_data_that_stays_wrong_is_an_error(bucket: Bucket, size: int, how: str) -> None:
    content = sample(size)
    spoiled = Spoiled(bucket, "data", SPOILED[how], 0)
    with Store._open_objects(spoiled, create=True, cache=BlockCache(0)) as store:
        artifact = store.put(content)
        for work in ways(store, content):
            spoiled.times = 1_000
            with pytest.raises(IntegrityError) as caught:
                work()
            assert caught.value.evidence["hash"] == artifact.hash
        assert not store.health().ok
        spoiled.times = 0
        assert store.read(artifact) == content
        assert store.repair().ok  # it was the way, and not the object
        assert store.health().ok


@pytest.mark.parametrize("how", SPOILED)
@pytest.mark.parametrize("size", SIZES[1:])
def test_an_outboard_that_stays_wrong_is_computed(bucket: Bucket, size: int, how: str) -> None:
    content = sample(size)
    spoiled = Spoiled(bucket, "outboard", SPOILED[how], 0)
    with Store._open_objects(spoiled, create=True, cache=BlockCache(0)) as store:
        artifact = store.put(content)
        spoiled.times = 1_000
        for work in ways(store, content):
            assert work() in (content, content[100:5_100])
        assert store.health().bad_outboards >= 1
        assert store.verify(artifact).problem_count == 1
        spoiled.times = 0
        assert store.repair().ok
        assert store.scrub().ok


@pytest.mark.parametrize("size", SIZES)
def test_an_error_on_the_way_is_no_damage_and_passes(bucket: Bucket, size: int) -> None:
    content = sample(size)
    faulty = FaultyBucket(bucket, where=lambda site: site.call in ("get_range", "iter"))
    with Store._open_objects(faulty, create=True, cache=BlockCache(0)) as store:
        artifact = store.put(content)
        for calls in (1, 2):
            object_core(store).backend._readers.clear()
            faulty.arm(BucketFault.BEFORE, calls)
            try:
                assert store.read(artifact) == content
            except Unavailable:
                pass
            faulty.heal()
            assert store.read(artifact) == content
        assert store.health().ok


@pytest.mark.parametrize("size", SIZES)
def test_an_old_error_is_no_answer_to_who_reads_later(bucket: Bucket, size: int) -> None:
    """The request for what proves the data may fail unheard, because that for the data failed before."""
    content = sample(size)
    faulty = FaultyBucket(bucket, for_good=True, where=lambda site: site.call in ("get_range", "iter"))
    with Store._open_objects(faulty, create=True, cache=BlockCache(0)) as store:
        artifact = store.put(content)
        faulty.arm(BucketFault.BEFORE, 1)
        with pytest.raises(Unavailable):
            store.read(artifact)
        for reader in object_core(store).backend._readers.values():
            wait(list(reader._pairs.values()), 20)
        faulty.heal()
        assert store.read(artifact) == content


class Watched(FaultyBucket):
    """Counts how many reads are under way at once; each takes some milliseconds."""

    def __init__(self, inner: Bucket, seconds: float = 0.03) -> None:
        super().__init__(inner, on_site=self._wait)
        self._seconds = seconds
        self.most = self._now = 0
        self._count = threading.Lock()

    def _wait(self, site: BucketSite) -> None:
        if site.call != "get_range":
            return
        with self._count:
            self._now += 1
            self.most = max(self.most, self._now)
        time.sleep(self._seconds)
        with self._count:
            self._now -= 1


def test_what_proves_a_range_is_asked_for_beside_it(bucket: Bucket) -> None:
    watched = Watched(bucket, 0.2)
    with Store._open_objects(watched, create=True) as store:
        artifact = store.put(sample(3_000_000))
        store.read(artifact, 1_000_000, 65_536)
    assert watched.most == 2


def test_of_a_blob_above_256_mib_only_the_needed_pairs_are_fetched_and_at_once(bucket: Bucket) -> None:
    """The tree of 1 GiB without its data: what is asked for is known before any byte came."""
    size = 1 << 30
    watched = Watched(bucket, 0.5)  # threads begin late on a busy machine
    with Store._open_objects(watched, create=True) as store:
        backend = object_core(store).backend
        hash_ = b"h" * 32
        pairs = bytes(outboard_bytes(size))
        bucket.upload(outboard_key(hash_), [pairs], len(pairs))
        reader = LargeObjectReader(backend, hash_, size)
        first = 700 << 20 >> 14
        reader._ask_for_pairs(first, first + 4)
        spans = pair_spans(size, first, 4)
        for span in spans:
            assert reader.read_pairs(*span) == bytes(span[1])
        asked = [site for site in watched.sites if site.call == "get_range"]
        assert len(asked) == len(spans) == 5  # four parents on the way, and the piece
        assert sum(length for _, length in spans) < 300_000
        assert watched.most == len(spans)


def test_a_blob_that_is_read_in_order_is_fetched_ahead(bucket: Bucket) -> None:
    content = sample(40 << 20)
    watched = Watched(bucket)
    with Store._open_objects(watched, create=True) as store:
        artifact = store.put(content)
        assert b"".join(store.iter_bytes(artifact)) == content
        assert AHEAD <= watched.most <= AHEAD + 2
        watched.most = 0
        with store.open(artifact) as file:
            assert file.read(10) == content[:10]
            got = bytearray(content[:10])
            while piece := file.read(100_000):
                got += piece
        assert got == content
        assert watched.most >= AHEAD - 1
        assert sum(site.call == "get_range" for site in watched.sites) <= 2 * (
            len(content) // PIECE_BYTES + 4
        )


def test_a_file_that_jumps_about_reads_what_it_is_asked_for(bucket: Bucket) -> None:
    content = sample(30 << 20)
    with Store._open_objects(bucket, create=True) as store:
        artifact = store.put(content)
        with store.open(artifact) as file:
            for at in (0, 20_000_000, 5, 29_999_000, 12_345_678):
                file.seek(at)
                got = b"".join(file.read(70_000) for _ in range(9))
                assert got == content[at : at + 630_000]
        assert object_core(store).backend.bucket.requests.snapshot()["bytes_in"] < 3 * len(content)


def test_the_pool_may_read_and_does_not_wait_for_itself(bucket: Bucket) -> None:
    """As many readers as it has threads, each within one of them."""
    contents = [sample(2_000_000, seed) for seed in range(4)]
    with Store._open_objects(bucket, create=True) as store:
        artifacts = store.put_many(contents)
        backend = object_core(store).backend

        def read(number: int) -> bool:
            reader = LargeObjectReader(backend, artifacts[number % 4].hash.digest, 2_000_000)
            content = contents[number % 4]
            assert reader.read_at(5, 70_000) == content[5:70_005]
            return b"".join(reader.iter_bytes(0, 2_000_000)) == content

        futures = [backend.pool.submit(read, number) for number in range(100)]
        assert all(future.result(30) for future in futures)


def test_a_blob_that_was_missing_and_is_put_again_stays_known(bucket: Bucket) -> None:
    with Store._open_objects(bucket, None, create=True) as store:
        artifact = store.put(b"here")
        bucket.delete([data_key(artifact.hash.digest)])
        with pytest.raises(MissingChunk):
            store.read(artifact)
        store.put(b"here")
        assert store.stats().blobs == 1
        assert store.health().ok
        assert store.read(artifact) == b"here"
