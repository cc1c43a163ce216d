"""Paged trees: what is written is what is read, at every boundary, and hostile pages are refused."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable

import pytest

from holdfast.errors import CorruptBlob, FormatError
from holdfast.wire import pages
from holdfast.wire.pages import ManifestReader, ManifestWriter, StreamReader, StreamWriter, TreeRoot


class Pages(dict[bytes, bytes]):
    """Keeps pages by hash; any 32-byte hash will do here."""

    def emit(self, page: bytes) -> bytes:
        hash = hashlib.sha256(page).digest()
        self[hash] = page
        return hash

    def load(self, hash: bytes) -> bytes:
        return self[hash]


def content(length: int) -> bytes:
    return hashlib.shake_128(b"outboard").digest(length)


def lengths_of(count: int) -> list[int]:
    return [1 + (i * 7_919) % 100_000 for i in range(count)]


def digest_of(index: int) -> bytes:
    return index.to_bytes(4) * 8


@pytest.mark.parametrize(
    "length",
    [
        0,
        64,
        4_096,  # the longest that is inline
        4_160,
        65_535,  # a page - 1
        65_536,
        65_537,
        131_072,
        65_536 * 3 + 64,
        65_536 * 1_024,  # the fan-out, exactly: depth 2
        65_536 * 1_024 + 64,  # one more: depth 3
    ],
)
@pytest.mark.parametrize("piece", [262_080, 10_000_000])
def test_a_stream_comes_back(length: int, piece: int) -> None:
    stored = Pages()
    data = content(min(length, 1 << 20)) * (-(-length // (1 << 20)))
    data = data[:length]
    writer = StreamWriter(stored.emit)
    for start in range(0, length, piece):
        writer.write(data[start : start + piece])
    root = writer.finish()
    assert root.depth == (0 if length <= 4_096 else 1 if length <= 65_536 else 2 if length <= 1 << 26 else 3)
    assert TreeRoot.parse(b"xx" + root.encode() + b"yy", 2) == (root, 2 + len(root.encode()))
    reader = StreamReader(root, length, stored.load)
    assert b"".join(reader.iter_pieces()) == data
    assert reader.read(0, length) == data
    for offset in (
        o for o in (0, 1, 63, 65_535, 65_536, 65_537, length // 2, length - 64) if 0 <= o < length
    ):
        for size in {0, 1, 64, 65_536, 200_000}:
            if offset + size <= length:
                assert reader.read(offset, size) == data[offset : offset + size]
    for offset, size in ((-1, 1), (0, length + 1), (length, 1), (0, -1)):
        with pytest.raises(IndexError):
            reader.read(offset, size)
    walked = list(reader.iter_pages())
    assert {hash for hash, _ in walked} == set(stored)
    assert all(is_leaf == (len(stored[hash]) % 40 != 0 or root.depth == 1) for hash, is_leaf in walked[:1])


@pytest.mark.parametrize("count", [0, 1, 110, 111, 1_023, 1_024, 1_025, 2_048, 5_000])
def test_a_manifest_comes_back(count: int) -> None:
    stored = Pages()
    lengths = lengths_of(count)
    writer = ManifestWriter(stored.emit)
    for start in range(0, count, 700):
        part = range(start, min(count, start + 700))
        packed = b"".join(map(digest_of, part))
        writer.extend(lengths[start : start + 700], packed if start else [digest_of(i) for i in part])
    root = writer.finish()
    assert (writer.chunk_count, writer.size_bytes) == (count, sum(lengths))
    assert root.depth == (0 if count <= 110 else 1 if count <= 1_024 else 2)
    reader = ManifestReader(root, sum(lengths), stored.load)
    expected, start = [], 0
    for i, length in enumerate(lengths):
        expected.append((start, pages.ALGORITHM_BLAKE3, length, digest_of(i)))
        start += length
    assert list(reader.iter_chunks()) == expected
    for chunk in expected[:: max(1, count // 50)] + expected[-2:]:
        for offset in (chunk[0], chunk[0] + chunk[2] - 1):
            assert list(reader.iter_chunks(offset, offset + 1)) == [chunk]
    if count:
        middle = expected[count // 2][0]
        assert list(reader.iter_chunks(middle, middle + 300_000)) == [
            c for c in expected if c[0] < middle + 300_000 and c[0] + c[2] > middle
        ]


def test_a_manifest_of_two_inner_levels() -> None:
    stored = Pages()
    writer = ManifestWriter(stored.emit)
    count = 1_024 * 1_024 + 1
    digest = bytes(32)
    for _ in range(1_024):
        writer.extend([5] * 1_024, [digest] * 1_024)
    writer.add(pages.ALGORITHM_SHA256, 9, b"s" * 32)
    root = writer.finish()
    assert root.depth == 3
    assert len(stored) == 2 + 2 + 1  # equal leaves once, the last leaf, two inner pages, the root page
    reader = ManifestReader(root, 5 * (count - 1) + 9, stored.load)
    assert next(reader.iter_chunks(5 * (count - 1) + 8)) == (5 * (count - 1), 2, 9, b"s" * 32)
    assert next(reader.iter_chunks(5 * 12_345 + 2)) == (5 * 12_345, 1, 5, digest)
    assert sum(leaf for _, leaf in reader.iter_pages()) == 1_025


def test_equal_stretches_share_pages() -> None:
    stored = Pages()
    writer = ManifestWriter(stored.emit)
    for _ in range(2):
        writer.extend([7] * 1_024, [digest_of(i) for i in range(1_024)])
    writer.finish()
    assert len(stored) == 2  # one leaf twice, and the root


def test_writers_refuse_what_readers_would() -> None:
    writer = ManifestWriter(Pages().emit)
    with pytest.raises(ValueError, match="at least one byte"):
        writer.add(1, 0, bytes(32))
    with pytest.raises(ValueError, match="2 lengths and 1 digests"):
        writer.extend([1, 2], [bytes(32)])


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0",
        b"\0\x01",
        b"\0\x01\0",
        b"\0\x01\x10" + bytes(4_097),  # inline, longer than allowed
        b"\x01" + bytes(31),
        b"\x09" + bytes(32),  # deeper than allowed
        b"\xff" + bytes(32),
    ],
)
def test_a_bad_root_is_refused(data: bytes) -> None:
    with pytest.raises(CorruptBlob):
        TreeRoot.parse(data)


def entry(algorithm: int, length: int) -> bytes:
    return struct.pack("<BI32s", algorithm, length, bytes(32))


def child(hash: bytes, end: int) -> bytes:
    return struct.pack("<32sQ", hash, end)


LEAF = entry(1, 10) + entry(1, 20)


@pytest.mark.parametrize(
    ("page", "error"),
    [
        (b"", CorruptBlob),
        (LEAF[:-1], CorruptBlob),
        (entry(1, 10), CorruptBlob),  # covers less than it should
        (entry(1, 40), CorruptBlob),
        (entry(1, 30) + entry(1, 0), CorruptBlob),  # an empty chunk
        (entry(1, 10) + entry(3, 20), FormatError),
        (entry(0, 10) + entry(1, 20), FormatError),
        (entry(1, 1) * 1_025, CorruptBlob),
    ],
)
def test_a_bad_manifest_page_is_refused(page: bytes, error: type[Exception]) -> None:
    stored = Pages()
    reader = ManifestReader(TreeRoot(1, stored.emit(page)), 30, stored.load)
    with pytest.raises(error):
        reader.leaf_at(0)


@pytest.mark.parametrize(
    "build",
    [
        lambda leaf: b"",
        lambda leaf: child(leaf, 30)[:-1],
        lambda leaf: child(leaf, 29),
        lambda leaf: child(leaf, 31),
        lambda leaf: child(leaf, 0) + child(leaf, 30),  # an empty child
        lambda leaf: child(leaf, 20) + child(leaf, 10) + child(leaf, 30),  # falls
        lambda leaf: child(leaf, 1 << 63) + child(leaf, 30),
        lambda leaf: b"".join(child(leaf, i + 1) for i in range(1_025)),  # above the fan-out
    ],
)
def test_a_bad_inner_page_is_refused(build: Callable[[bytes], bytes]) -> None:
    stored = Pages()
    leaf = stored.emit(LEAF)
    reader = ManifestReader(TreeRoot(2, stored.emit(build(leaf))), 30, stored.load)
    with pytest.raises(CorruptBlob):
        reader.leaf_at(5)
    with pytest.raises(CorruptBlob):
        list(reader.iter_pages())


def test_a_depth_that_lies_is_refused() -> None:
    stored = Pages()
    leaf = stored.emit(LEAF)
    inner = stored.emit(child(leaf, 30))
    assert ManifestReader(TreeRoot(2, inner), 30, stored.load).leaf_at(29).starts[-2] == 10
    for root in (TreeRoot(1, inner), TreeRoot(2, leaf), TreeRoot(3, inner), TreeRoot(8, inner)):
        with pytest.raises(CorruptBlob):
            ManifestReader(root, 30, stored.load).leaf_at(0)
    for units in (-1, 1 << 63, 0):
        with pytest.raises(CorruptBlob):
            ManifestReader(TreeRoot(1, leaf), units, stored.load)
    with pytest.raises(CorruptBlob):
        ManifestReader(TreeRoot(0, LEAF), 31, stored.load)


def test_a_bad_outboard_page_is_refused() -> None:
    stored = Pages()
    with pytest.raises(CorruptBlob):
        StreamReader(TreeRoot(1, stored.emit(bytes(64))), 128, stored.load).read(0, 64)
    with pytest.raises(CorruptBlob):
        StreamReader(TreeRoot(1, stored.emit(bytes(65_600))), 65_600, stored.load).read(0, 64)
