"""The native kernels against the plain reference, on what Hypothesis finds."""

import hashlib
from collections.abc import Callable
from itertools import pairwise

import blake3 as oracle
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from holdfast import _native as native
from holdfast import reference

BLOCK = native.BLOCK_BYTES
HASHES = st.binary(min_size=32, max_size=32)
# Sizes at which something changes: chunks, groups, and how full the last group is.
SIZES = st.one_of(
    st.integers(0, 4 * BLOCK),
    st.builds(lambda unit, count, more: max(0, unit * count + more), st.sampled_from((1024, BLOCK)),
              st.integers(0, 20), st.integers(-1, 1)),
)  # fmt: skip


def noise(count: int, seed: int = 0) -> bytes:
    return hashlib.shake_128(seed.to_bytes(4, "big")).digest(count)


def split(data: bytes, points: list[int]) -> list[bytes]:
    """Pieces of `data`, cut at `points` (taken modulo its length)."""
    ends = sorted({0, len(data), *(point % (len(data) + 1) for point in points)})
    return [data[start:end] for start, end in pairwise(ends)]


@given(SIZES, st.lists(st.integers(0, 1 << 20), max_size=6), st.booleans())
def test_blob_hasher_does_not_depend_on_the_split(size: int, points: list[int], taking: bool) -> None:
    data = noise(size)
    hasher, groups = native.BlobHasher(), b""
    for piece in split(data, points):
        hasher.update(piece)
        if taking:
            groups += hasher.take_groups()
    root, rest = hasher.finish()
    assert hasher.size_bytes == size
    assert root == oracle.blake3(data).digest()
    assert len(groups + rest) == (32 * -(-size // BLOCK) if size > BLOCK else 0)
    if groups + rest:
        assert native.outboard(groups + rest, True)[1] == root
        assert native.verify_groups(data, 0, groups + rest) == -1


@pytest.mark.parametrize(
    "size", [0, 1, 64, 65, 1024, 1025, BLOCK, BLOCK + 1, 2 * BLOCK, 3 * BLOCK - 1, 5 * BLOCK + 1]
)
def test_groups_and_outboard_are_those_of_the_reference(size: int) -> None:
    data = noise(size)
    hasher = native.BlobHasher()
    hasher.update(data)
    root, groups = hasher.finish()
    expected = reference.group_cvs(data)
    assert (root, groups) == (reference.blake3(data), b"".join(expected))
    assert native.blake3(data) == root
    if expected:
        assert native.outboard(groups, True) == reference.outboard(expected, True)


@given(st.lists(HASHES, min_size=1, max_size=40), st.booleans())
def test_outboard_is_that_of_the_reference(cvs: list[bytes], is_root: bool) -> None:
    is_root = is_root and len(cvs) > 1
    pairs, top = native.outboard(b"".join(cvs), is_root)
    assert (pairs, top) == reference.outboard(cvs, is_root)
    assert native.leaf_cvs(pairs, len(cvs), top, is_root) == b"".join(cvs)
    if len(cvs) == 2:
        assert native.parent_cv(cvs[0], cvs[1], is_root) == top


@given(st.lists(HASHES, min_size=2, max_size=20), st.integers(0), st.integers(1, 255), st.booleans())
def test_a_changed_pair_is_named_as_by_the_reference(
    cvs: list[bytes], at: int, change: int, is_root: bool
) -> None:
    pairs, top = reference.outboard(cvs, is_root)
    at %= len(pairs)
    damaged = bytearray(pairs)
    damaged[at] ^= change
    with pytest.raises(ValueError, match="wrong") as found:
        native.leaf_cvs(damaged, len(cvs), top, is_root)
    with pytest.raises(ValueError, match="wrong") as expected:
        reference.leaf_cvs(bytes(damaged), len(cvs), top, is_root)
    assert found.value.args[1] == expected.value.args[1] == at // 64 * 64


@given(st.binary(max_size=640), st.integers(0, 20), HASHES, st.booleans())
def test_arbitrary_outboards_are_refused(pairs: bytes, groups: int, expected: bytes, is_root: bool) -> None:
    if groups == 1 and not pairs and not is_root:
        assert native.leaf_cvs(pairs, groups, expected, is_root) == expected
    else:
        with pytest.raises(ValueError):
            native.leaf_cvs(pairs, groups, expected, is_root)


@given(st.integers(BLOCK + 1, 4 * BLOCK), st.integers(0, 3), st.integers(0), st.integers(1, 255))
def test_the_first_bad_group_is_named(size: int, first: int, at: int, change: int) -> None:
    data = bytearray(noise(size))
    hasher = native.BlobHasher()
    hasher.update(data)
    cvs = hasher.finish()[1]
    first %= len(cvs) // 32
    at = first * BLOCK + at % (size - first * BLOCK)
    data[at] ^= change
    assert native.verify_groups(data[first * BLOCK :], first, cvs[32 * first :]) == at // BLOCK - first


@given(st.lists(st.binary(max_size=3000), max_size=8))
def test_many_hashes_are_each_that_of_blake3(items: list[bytes]) -> None:
    expected = b"".join(oracle.blake3(item).digest() for item in items)
    lengths = [len(item) for item in items]
    joined = b"".join(items)
    offsets = [sum(lengths[:i]) for i in range(len(items))]
    assert native.blake3_list(items) == native.blake3_many(joined, lengths) == expected
    assert native.verify_many(joined, offsets, lengths, expected) == -1
    for i in range(len(items)):
        wrong = bytearray(expected)
        wrong[32 * i] ^= 1
        assert native.verify_many(joined, offsets, lengths, wrong) == i


@given(st.binary(max_size=500), st.binary(max_size=500), st.integers(0, 2**32 - 1))
def test_crc32c_is_that_of_the_reference(first: bytes, second: bytes, value: int) -> None:
    assert native.crc32c(first, value) == reference.crc32c(first, value)
    assert native.crc32c(second, native.crc32c(first)) == native.crc32c(first + second)


# --- cut points

CUTS = st.tuples(
    st.integers(32, 1024).map(lambda n: 2 * n),
    st.integers(128, 2048).map(lambda n: 2 * n),
    st.integers(512, 8192).map(lambda n: 2 * n),
).filter(lambda sizes: sizes[0] <= sizes[1] <= sizes[2])


def corpus(kind: int, size: int) -> bytes:
    """Noise; noise of few letters; one letter; a page again and again."""
    data = noise(size, kind)
    makers: list[Callable[[], bytes]] = [
        lambda: data,
        lambda: data.translate(bytes(b"etaoin"[i % 6] for i in range(256))),
        lambda: bytes(size),
        lambda: (noise(4096) * (size // 4096 + 1))[:size],
    ]
    return makers[kind]()


@given(CUTS, st.integers(0, 3), st.integers(0, 60_000), st.lists(st.integers(0, 1 << 20), max_size=8))
@example((64, 256, 1024), 0, 1025, [1024])
@example((64, 256, 16_384), 2, 60_000, [])
@example((2048, 4096, 16_384), 0, 60_000, [2049, 4097, 16_385])
def test_cuts_are_those_of_the_reference_however_split(
    sizes: tuple[int, int, int], kind: int, size: int, points: list[int]
) -> None:
    data = corpus(kind, size)
    cutter = native.Cutter(*sizes)
    lengths = [length for piece in split(data, points) for length in cutter.feed(piece)]
    last = cutter.finish()
    assert lengths + [last] * (last > 0) == reference.cut(data, *sizes)
    assert cutter.finish() == 0


@given(CUTS, st.integers(0, 3), st.integers(0, 3000))
def test_cuts_of_single_bytes(sizes: tuple[int, int, int], kind: int, size: int) -> None:
    data = corpus(kind, size)
    cutter = native.Cutter(*sizes)
    lengths = [length for i in range(size) for length in cutter.feed(data[i : i + 1])]
    last = cutter.finish()
    assert lengths + [last] * (last > 0) == reference.cut(data, *sizes)


def test_streams_that_end_beside_a_cut() -> None:
    """The last byte of a stream is no cut if it is the first of a pair: each end around every cut, fed bytewise too."""
    data, sizes = noise(8000), (64, 256, 1024)
    ends = {sum(lengths) + more for lengths in prefixes(reference.cut(data, *sizes)) for more in range(-1, 4)}
    for end in sorted(end for end in ends if 0 <= end <= len(data)):
        expected = reference.cut(data[:end], *sizes)
        for step in (end or 1, 1):
            cutter = native.Cutter(*sizes)
            lengths = [
                length for at in range(0, end, step) for length in cutter.feed(data[at : min(end, at + step)])
            ]
            last = cutter.finish()
            assert lengths + [last] * (last > 0) == expected


def prefixes(lengths: list[int]) -> list[list[int]]:
    return [lengths[:i] for i in range(len(lengths) + 1)]


# --- records

RECORD = st.tuples(
    st.integers(0, 255), st.integers(0, 255), st.binary(max_size=200), st.integers(0, 2**32 - 1)
)
RECORDS = st.lists(RECORD, max_size=6)


def framed(records: list[tuple[int, int, bytes, int]], segment: int, offset: int) -> tuple[bytes, bytes]:
    """Records with true hashes, joined, and their entries."""
    payloads = [payload for _, _, payload, _ in records]
    return native.frame_joined(
        segment,
        offset,
        bytes(kind for kind, _, _, _ in records),
        bytes(flags for _, flags, _, _ in records),
        native.blake3_list(payloads),
        [plain for _, _, _, plain in records],
        payloads,
    )


@given(RECORDS, st.integers(0, 2**32 - 1), st.integers(0, 2**31))
def test_frames_are_those_of_the_reference_and_scan_gives_them_back(
    records: list[tuple[int, int, bytes, int]], segment: int, offset: int
) -> None:
    kinds, flags = bytes(r[0] for r in records), bytes(r[1] for r in records)
    payloads, plain = [r[2] for r in records], [r[3] for r in records]
    hashes = native.blake3_list(payloads)
    headers, entries = reference.frame(
        segment, offset, kinds, flags, [oracle.blake3(p).digest() for p in payloads], plain, payloads
    )
    arguments = (segment, offset, kinds, flags, hashes, plain, payloads)
    assert native.frame(*arguments) == (b"".join(headers), b"".join(entries))
    joined, same = native.frame_joined(*arguments)
    assert joined == b"".join(h + p for h, p in zip(headers, payloads, strict=True))
    assert same == b"".join(entries)
    assert native.scan(joined, segment, offset, deep=True) == (same, len(joined), "end")
    assert native.check_payloads(joined, same, offset) == []
    columns = [reference.ENTRY.unpack(entry) for entry in entries]
    expected = tuple(map(list, zip(*columns, strict=True))) or ([],) * 6
    assert native.entry_columns(same) == expected


def reference_check(data: bytes, entries: bytes, base: int) -> list[tuple[int, str]]:
    found = [reference.check_payload(data, entries[at : at + 46], base) for at in range(0, len(entries), 46)]
    return [(i, wrong) for i, wrong in enumerate(found) if wrong]


@given(
    RECORDS.filter(bool),
    st.binary(max_size=80),
    st.binary(max_size=80),
    st.lists(st.tuples(st.integers(0), st.integers(1, 255)), max_size=3),
    st.integers(0),
    st.booleans(),
)
def test_damage_is_seen_as_by_the_reference(
    records: list[tuple[int, int, bytes, int]],
    before: bytes,
    after: bytes,
    flips: list[tuple[int, int]],
    end: int,
    deep: bool,
) -> None:
    offset = 1000
    joined, entries = framed(records, 9, offset + len(before))
    damaged = bytearray(before + joined + after)
    for at, change in flips:
        damaged[at % len(damaged)] ^= change
    data = bytes(damaged[: end % (len(damaged) + 1)] if end % 3 == 0 else damaged)
    for start in (0, len(before)):
        arguments = (data[start:], 9, offset + start)
        assert native.scan(*arguments, deep=deep) == reference.scan(*arguments, deep=deep)
        assert native.find_header(*arguments, start // 2) == reference.find_header(*arguments, start // 2)
    assert native.check_payloads(data, entries, offset) == reference_check(data, entries, offset)
    assert native.check_payloads(data, entries, offset + 70) == reference_check(data, entries, offset + 70)


@given(
    st.lists(st.one_of(st.binary(max_size=100), st.just(b"HFrc"), st.just(bytes(60))), max_size=8).map(
        b"".join
    ),
    st.integers(0, 2**32 - 1),
    st.one_of(st.integers(0, 1000), st.integers(2**64 - 1000, 2**64 - 1)),
    st.integers(0, 2**64 - 1),
)
def test_arbitrary_bytes_are_answered(data: bytes, segment: int, offset: int, start: int) -> None:
    for deep in (False, True):
        assert native.scan(data, segment, offset, deep=deep) == reference.scan(
            data, segment, offset, deep=deep
        )
    assert native.find_header(data, segment, offset, start % 200) == -1
    assert native.find_header(data, segment, offset, start) == -1
    entries = data[: len(data) // 46 * 46]
    assert native.check_payloads(data, entries, offset) == reference_check(data, entries, offset)
    assert set(native.compressible([data])) <= {0, 1}


@given(SIZES, st.integers(0, 1 << 20), st.integers(1, 5))
def test_a_hasher_goes_on_behind_groups_that_it_did_not_see(size: int, point: int, parts: int) -> None:
    data = noise(size)
    stop = point % (size + 1)
    first = native.BlobHasher()
    first.update(data[:stop])
    known = first.take_groups()
    hasher = native.BlobHasher()
    step = 32 * max(1, len(known) // 32 // parts)
    for start in range(0, len(known), step):
        hasher.resume(known[start : start + step])
    assert hasher.size_bytes == len(known) // 32 * BLOCK
    hasher.update(data[hasher.size_bytes :])
    root, rest = hasher.finish()
    assert (root, known + rest) == _whole(data)


def _whole(data: bytes) -> tuple[bytes, bytes]:
    hasher = native.BlobHasher()
    hasher.update(data)
    return hasher.finish()


def test_a_hasher_goes_on_only_between_groups() -> None:
    hasher = native.BlobHasher()
    with pytest.raises(ValueError, match="32 bytes each"):
        hasher.resume(bytes(31))
    hasher.update(b"x")
    with pytest.raises(ValueError, match="within a group"):
        hasher.resume(bytes(32))
    lone = native.BlobHasher()
    lone.resume(bytes(32))
    with pytest.raises(ValueError, match="lone group"):
        lone.finish()
