"""Paged trees of any shape against plain lists. Small pages make deep trees of little data."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

from hypothesis import given
from hypothesis import strategies as st

from holdfast.errors import CorruptBlob, FormatError
from holdfast.wire import pages
from holdfast.wire.pages import ManifestReader, ManifestWriter, StreamReader, StreamWriter, TreeRoot


@contextmanager
def small_pages() -> Iterator[None]:
    with mock.patch.multiple(
        pages,
        STREAM_PAGE_BYTES=64,
        ENTRIES_PER_PAGE=3,
        MANIFEST_PAGE_BYTES=3 * 37,
        INNER_PAGE_BYTES=4 * 40,
        MAX_INLINE_BYTES=80,
    ):
        yield


class Pages(dict[bytes, bytes]):
    def emit(self, page: bytes) -> bytes:
        hash = hashlib.sha256(page).digest()
        self[hash] = page
        return hash


ENTRIES = st.lists(
    st.tuples(st.sampled_from([1, 2]), st.integers(1, 9), st.binary(min_size=32, max_size=32)), max_size=200
)


@given(ENTRIES, st.data())
def test_a_manifest_is_the_list_of_its_chunks(
    entries: list[tuple[int, int, bytes]], data: st.DataObject
) -> None:
    with small_pages():
        stored = Pages()
        writer = ManifestWriter(stored.emit)
        for item in entries:
            writer.add(*item)
        root = writer.finish()
        expected, size = [], 0
        for algorithm, length, digest in entries:
            expected.append((size, algorithm, length, digest))
            size += length
        assert TreeRoot.parse(root.encode()) == (root, len(root.encode()))
        reader = ManifestReader(root, size, stored.__getitem__)
        assert list(reader.iter_chunks()) == expected
        start = data.draw(st.integers(0, size))
        stop = data.draw(st.integers(start, size + 5))
        touched = [c for c in expected if c[0] < stop and c[0] + c[2] > start and stop > start]
        assert list(reader.iter_chunks(start, stop)) == touched
        assert {hash for hash, _ in reader.iter_pages()} == set(stored)


@given(st.binary(max_size=3_000), st.lists(st.integers(0, 500), max_size=30), st.data())
def test_a_stream_is_its_bytes(content: bytes, cuts: list[int], data: st.DataObject) -> None:
    with small_pages():
        stored = Pages()
        writer = StreamWriter(stored.emit)
        position = 0
        for length in [*cuts, len(content)]:
            writer.write(content[position : position + length])
            position = min(len(content), position + length)
        reader = StreamReader(writer.finish(), len(content), stored.__getitem__)
        assert b"".join(reader.iter_pieces()) == content
        start = data.draw(st.integers(0, len(content)))
        length = data.draw(st.integers(0, len(content) - start))
        assert reader.read(start, length) == content[start : start + length]


@given(ENTRIES, st.randoms(use_true_random=False), st.integers(-1, 2_000), st.integers(0, 8))
def test_damaged_trees_give_typed_errors(
    entries: list[tuple[int, int, bytes]], rng: random.Random, units: int, depth: int
) -> None:
    """Pages come verified, but from whoever wrote them: anything may be in them."""
    with small_pages():
        stored = Pages()
        writer = ManifestWriter(stored.emit)
        for item in entries:
            writer.add(*item)
        root = writer.finish()
        size = sum(length for _, length, _ in entries)
        for hash, page in stored.items():
            if rng.random() < 0.3:
                bad = bytearray(page)
                bad[rng.randrange(len(bad))] ^= 1 << rng.randrange(8)
                stored[hash] = bytes(bad[: rng.choice([len(bad), len(bad), rng.randrange(len(bad) + 1)])])
        for tried, claimed in ((root, size), (root, units), (TreeRoot(depth, root.body), size)):
            try:
                reader = ManifestReader(tried, claimed, stored.__getitem__)
                chunks = list(reader.iter_chunks())
                list(reader.iter_pages())
            except (CorruptBlob, FormatError, KeyError):  # KeyError: a damaged hash names no page
                continue
            assert sum(length for _, _, length, _ in chunks) == claimed
            assert chunks == sorted(chunks)


@given(st.binary(max_size=200))
def test_any_bytes_as_a_root(data: bytes) -> None:
    try:
        root, stop = TreeRoot.parse(data)
    except CorruptBlob:
        return
    assert root.encode() == data[:stop]
