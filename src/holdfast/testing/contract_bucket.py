"""One suite for every bucket: what `holdfast.backend.objects.bucket.Bucket` promises.

A bucket's test module subclasses `BucketContract`, gives it a fixture `bucket` (empty), and `another`, which opens
the same place as another machine would.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import ClassVar

import pytest

from holdfast.backend.objects.bucket import Bucket, Meta, Requests
from holdfast.backend.objects.probe import honours_conditions
from holdfast.errors import FormatError, NeedsReopen, TooLarge
from holdfast.testing.contract_base import Interrupted, sample
from holdfast.types import BytesLike

Another = Callable[..., Bucket]


def _same(one: Meta | None, other: Meta | None, *, modified: bool = True) -> bool:
    """Whether two descriptions are of one object. Some tell the time in seconds here and milliseconds there."""
    assert one is not None
    assert other is not None
    return one[:3] == other[:3] and (not modified or abs(one.modified_ms - other.modified_ms) < 1000)


class BucketContract:
    """Subclass it, and define `another` (and `part_bytes`, where uploads go in parts)."""

    part_bytes: ClassVar[int] = 8 << 20
    racers: ClassVar[int] = 12

    @pytest.fixture
    def another(self) -> Another:
        """Give a function that opens the same, first empty, place; it may get `limit`."""
        raise NotImplementedError

    @pytest.fixture
    def bucket(self, another: Another) -> Iterator[Bucket]:
        bucket = another()
        yield bucket
        bucket.close()

    # --- one object

    @pytest.mark.parametrize("size_bytes", [0, 1, 1023, 16_384, 1_048_577])
    def test_what_was_created_is_read(self, bucket: Bucket, size_bytes: int) -> None:
        data = sample(size_bytes)
        made = bucket.create("blobs/a/data", data)
        assert made is not None
        assert made.key == "blobs/a/data"
        assert made.size_bytes == size_bytes
        found = bucket.get("blobs/a/data", max_bytes=size_bytes)
        assert found is not None
        assert found[0] == data
        assert _same(bucket.head("blobs/a/data"), found[1])
        assert _same(made, found[1], modified=False)
        assert abs(found[1].modified_ms - time.time() * 1000) < 3_600_000

    def test_what_is_not_there(self, bucket: Bucket) -> None:
        assert bucket.head("blobs/none/data") is None
        assert bucket.get("blobs/none/data", max_bytes=10) is None
        assert bucket.get_range("blobs/none/data", 0, 1) is None
        assert bucket.get_range("blobs/none/data", 0, 0) is None
        assert bucket.iter("blobs/none/data", 0, 1) is None
        assert bucket.copy("blobs/none/data", "blobs/b/data") is None
        assert bucket.replace("blobs/none/data", b"x", '"0"') is None
        assert list(bucket.list("")) == []
        bucket.delete(["blobs/none/data", "blobs/none/data"])
        bucket.delete([])

    def test_an_object_is_not_created_twice(self, bucket: Bucket) -> None:
        assert bucket.create("tags/a", b"first") is not None
        assert bucket.create("tags/a", b"second") is None
        assert bucket.create("tags/a", b"first") is None
        assert bucket.get("tags/a", max_bytes=10) == (b"first", bucket.head("tags/a"))

    def test_any_buffer_is_written(self, bucket: Bucket) -> None:
        buffers: list[BytesLike] = [b"abc", bytearray(b"abc"), memoryview(b"xabcx")[1:4]]
        for number, data in enumerate(buffers):
            assert bucket.create(f"blobs/{number}", data) is not None
            assert bucket.get_range(f"blobs/{number}", 0, 3) == b"abc"

    def test_more_than_was_allowed_for_is_not_read(self, bucket: Bucket) -> None:
        bucket.create("a", b"0123456789")
        with pytest.raises(FormatError):
            bucket.get("a", max_bytes=9)

    def test_ranges(self, bucket: Bucket) -> None:
        data = sample(3_000_000)
        bucket.upload("a", [data], len(data))
        for start, stop in ((0, 1), (0, 3_000_000), (2_999_999, 3_000_000), (17, 17), (1_048_576, 2_097_153)):
            assert bucket.get_range("a", start, stop) == data[start:stop]
            pieces = bucket.iter("a", start, stop)
            assert pieces is not None
            assert b"".join(pieces) == data[start:stop]
        for start, stop in (
            (0, 3_000_001),
            (3_000_000, 3_000_001),
            (9_000_000, 9_000_001),
            (9_000_000, 9_000_000),
        ):
            with pytest.raises(FormatError):
                bucket.get_range("a", start, stop)
        with pytest.raises(ValueError, match="range"):
            bucket.get_range("a", 2, 1)

    # --- replacing

    def test_only_the_known_object_is_replaced(self, bucket: Bucket) -> None:
        first = bucket.create("tags/a", b"one")
        assert first is not None
        assert first.e_tag is not None
        second = bucket.replace("tags/a", b"two!", first.e_tag)
        assert second is not None
        assert second.e_tag is not None
        assert bucket.head("tags/a") == bucket.head("tags/a")
        assert bucket.replace("tags/a", b"three", first.e_tag) is None
        assert bucket.get("tags/a", max_bytes=9) == (b"two!", bucket.head("tags/a"))
        assert bucket.replace("tags/a", b"three", second.e_tag) is not None
        bucket.delete(["tags/a"])
        assert bucket.replace("tags/a", b"four", second.e_tag) is None
        assert bucket.head("tags/a") is None

    def test_one_of_many_creates(self, another: Another) -> None:
        made = self._race(another, lambda bucket, mine: bucket.create("tags/a", mine))
        bucket = another()
        found = bucket.get("tags/a", max_bytes=100)
        assert found is not None
        assert [mine for mine, meta in made if meta is not None] == [found[0]]

    def test_one_of_many_replaces(self, another: Another) -> None:
        bucket = another()
        first = bucket.create("tags/a", b"zero")
        assert first is not None
        e_tag = first.e_tag
        assert e_tag is not None
        made = self._race(another, lambda bucket, mine: bucket.replace("tags/a", mine, e_tag))
        found = bucket.get("tags/a", max_bytes=100)
        assert found is not None
        assert [mine for mine, meta in made if meta is not None] == [found[0]]

    def _race(self, another: Another, act: Callable[[Bucket, bytes], object]) -> list[tuple[bytes, object]]:
        together = threading.Barrier(self.racers)

        def run(number: int) -> tuple[bytes, object]:
            bucket, mine = another(), b"racer %d" % number
            together.wait()
            return mine, act(bucket, mine)

        with ThreadPoolExecutor(self.racers) as pool:
            return list(pool.map(run, range(self.racers)))

    def test_conditions_are_found_to_be_honoured(self, bucket: Bucket) -> None:
        assert honours_conditions(bucket) == (True, True)
        assert list(bucket.list("")) == []

    # --- uploads

    def test_uploads_of_all_sizes(self, bucket: Bucket) -> None:
        part = self.part_bytes
        for size_bytes in (0, 1, part - 1, part, part + 1, 3 * part + 5):
            data = sample(size_bytes)
            pieces = [data[at : at + 1_000_003] for at in range(0, size_bytes, 1_000_003)]
            key = f"blobs/{size_bytes}/data"
            made = bucket.upload(key, iter(pieces), size_bytes)
            assert bucket.head(key) is not None
            assert made.size_bytes == size_bytes
            found = bucket.get(key, max_bytes=size_bytes)
            assert found is not None
            assert found[0] == data
            assert found[1].e_tag == made.e_tag

    @pytest.mark.parametrize("parts", [0, 2])
    def test_an_upload_replaces_what_is_there(self, bucket: Bucket, parts: int) -> None:
        size_bytes = parts * self.part_bytes + 10
        bucket.upload("a", [sample(size_bytes, 1)], size_bytes)
        bucket.upload("a", [sample(size_bytes, 2)], size_bytes)
        assert bucket.get_range("a", 0, size_bytes) == sample(size_bytes, 2)

    @pytest.mark.parametrize("parts", [0, 2])
    def test_an_upload_that_fails_leaves_what_was_there(self, bucket: Bucket, parts: int) -> None:
        bucket.create("b", b"old")
        size_bytes = parts * self.part_bytes + 10

        def broken() -> Iterator[bytes]:
            yield sample(size_bytes - 5)
            raise Interrupted("midway")

        for key in ("a", "b"):
            with pytest.raises(Interrupted, match="midway"):
                bucket.upload(key, broken(), size_bytes)
            for other in (-1, 1):
                with pytest.raises(ValueError, match="bytes that were said"):
                    bucket.upload(key, [sample(size_bytes)], size_bytes + other)
        assert bucket.head("a") is None
        assert bucket.get_range("b", 0, 3) == b"old"
        assert [meta.key for meta in bucket.list("")] == ["b"]

    def test_copies(self, bucket: Bucket) -> None:
        data = sample(100_000)
        bucket.create("blobs/a/data", data)
        bucket.create("blobs/a/data.2", b"other")
        for target in ("blobs/a/data.1", "blobs/a/data.2"):
            made = bucket.copy("blobs/a/data", target)
            assert made is not None
            assert (made.key, made.size_bytes) == (target, 100_000)
            assert bucket.get_range(target, 0, 100_000) == data

    # --- many

    def test_a_listing_is_in_order_of_keys(self, bucket: Bucket) -> None:
        keys = ["a/b", "a-b", "a.b", "a/b-", "a/c/d", "a/c.d", "a0", "ab/c", "b", "B", "a_/z", "blobs/x/data"]
        for number, key in enumerate(keys):
            bucket.create(key, b"x" * number)
        listed = list(bucket.list(""))
        assert [meta.key for meta in listed] == sorted(keys)
        assert all(_same(meta, bucket.head(meta.key)) for meta in listed)
        assert [meta.key for meta in bucket.list("a/")] == ["a/b", "a/b-", "a/c.d", "a/c/d"]
        assert list(bucket.list("a/c/none/")) == []
        for after in ("", "a", "a/b", "a/c", "a/c.d", "a/c/d", "ab/c", "b", "z"):
            assert [meta.key for meta in bucket.list("", after=after)] == [
                k for k in sorted(keys) if k > after
            ]
        assert [meta.key for meta in bucket.list("a/", after="a/b-")] == ["a/c.d", "a/c/d"]

    def test_more_than_a_page(self, bucket: Bucket) -> None:
        keys = [f"tags/{number:05}" for number in range(1_007)]
        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(lambda key: bucket.create(key, b"x"), keys))
        assert [meta.key for meta in bucket.list("tags/")] == keys
        assert [meta.key for meta in bucket.list("tags/", after=keys[600])] == keys[601:]
        bucket.delete(keys[3:])
        assert [meta.key for meta in bucket.list("")] == keys[:3]

    def test_what_was_deleted_can_be_created_again(self, bucket: Bucket) -> None:
        bucket.create("blobs/a/data", b"1")
        bucket.create("blobs/a/outboard", b"2")
        bucket.delete(["blobs/a/data", "blobs/a/none"])
        assert [meta.key for meta in bucket.list("")] == ["blobs/a/outboard"]
        bucket.delete(["blobs/a/outboard"])
        assert list(bucket.list("")) == []
        assert bucket.create("blobs/a/data", b"3") is not None

    # --- requests

    def test_requests_are_counted(self, bucket: Bucket) -> None:
        def cost(action: Callable[[], object]) -> dict[str, int]:
            before = bucket.requests.snapshot()
            action()
            spent = Requests.since(before, bucket.requests.snapshot())
            return {name: count for name, count in spent.items() if count}

        assert cost(lambda: bucket.create("a", b"12345")) == {"put": 1, "bytes_out": 5}
        assert cost(lambda: bucket.head("a")) == {"head": 1}
        assert cost(lambda: bucket.get("a", max_bytes=9)) == {"get": 1, "bytes_in": 5}
        assert cost(lambda: bucket.get_range("a", 1, 3)) == {"get": 1, "bytes_in": 2}
        assert cost(lambda: bucket.upload("b", [b"123"], 3)) == {"put": 1, "bytes_out": 3}
        assert cost(lambda: list(bucket.list(""))) == {"list": 1}
        assert cost(lambda: bucket.delete(["a", "b"])) == {"delete": 1}

    def test_the_limit_of_requests_holds(self, another: Another) -> None:
        bucket = another(limit=3)
        bucket.create("a", b"1")
        bucket.head("a")
        bucket.get("a", max_bytes=1)
        for action in (
            lambda: bucket.create("b", b"1"),
            lambda: bucket.head("a"),
            lambda: bucket.get("a", max_bytes=1),
            lambda: bucket.get_range("a", 0, 1),
            lambda: list(bucket.list("")),
            lambda: bucket.delete(["a"]),
            lambda: bucket.upload("b", [b"1"], 1),
            lambda: bucket.upload("b", [b"1"], 100_000_000),
            lambda: bucket.copy("a", "b"),
        ):
            with pytest.raises(TooLarge, match="limit of 3 requests"):
                action()
        assert [meta.key for meta in another().list("")] == ["a"]

    def test_a_closed_bucket_says_so(self, another: Another) -> None:
        bucket = another()
        bucket.close()
        bucket.close()
        with pytest.raises(NeedsReopen):
            bucket.head("a")
        with pytest.raises(NeedsReopen):
            list(bucket.list(""))

    def test_nothing_is_said_of_its_inside(self, bucket: Bucket) -> None:
        assert bucket.location in repr(bucket) or repr(bucket).startswith("DirectoryBucket(")
