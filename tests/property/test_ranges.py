"""ChunkRanges against plain sets of integers."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterable

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from holdfast import ChunkRanges
from holdfast.errors import InvalidRange, RemoteProtocolError
from holdfast.ranges import BLOCK_LEAVES, MAX_LEAF, leaf_count
from holdfast.wire.ranges import encode_ranges, parse_ranges

END = 100
"""Beyond it nothing but open ends: what is true of this leaf is true of all that follow."""

small = st.lists(st.integers(0, END), unique=True, max_size=12).map(sorted).map(ChunkRanges)
huge = st.lists(st.integers(0, MAX_LEAF), unique=True, max_size=6).map(sorted).map(ChunkRanges)
anything = st.one_of(small, huge)
sizes = st.one_of(
    st.integers(0, 40 * 1024), st.sampled_from([0, 1, 1023, 1024, 1025, 16_384, 16_385, 1 << 62])
)


def leaves(ranges: ChunkRanges, end: int = END + 40) -> set[int]:
    """Every leaf below `end`, from what iteration says."""
    found: set[int] = set()
    for start, stop in ranges:
        found |= set(range(start, end if stop is None else min(stop, end)))
    return found


def is_canonical(ranges: ChunkRanges) -> bool:
    numbers = ranges.boundaries
    return ranges == ChunkRanges(numbers) and all(0 <= n <= MAX_LEAF for n in numbers)


EVERY = set(range(END + 40))


@given(small, small)
@example(ChunkRanges.all(), ChunkRanges.empty())
@example(ChunkRanges([1, 3]), ChunkRanges([3, 5]))
@example(ChunkRanges([0, 5]), ChunkRanges([0]))
def test_algebra_is_that_of_sets(a: ChunkRanges, b: ChunkRanges) -> None:
    x, y = leaves(a), leaves(b)
    for ours, plain in ((a | b, x | y), (a & b, x & y), (a - b, x - y), (~a, EVERY - x)):
        assert leaves(ours) == plain
        assert is_canonical(ours)
    assert (a <= b) == (x <= y)
    assert (a == b) == (x == y)
    assert bool(a) == bool(x)
    assert ChunkRanges.union([a, b, a]) == a | b


@given(small)
def test_membership(a: ChunkRanges) -> None:
    plain = leaves(a)
    assert {leaf for leaf in EVERY if leaf in a} == plain
    assert -1 not in a
    assert "1" not in a
    assert a.is_open == (max(EVERY) in plain)


@given(anything, anything, anything)
def test_laws_hold_at_any_distance(a: ChunkRanges, b: ChunkRanges, c: ChunkRanges) -> None:
    assert ~~a == a
    assert a & b == b & a
    assert ~(a | b) == ~a & ~b
    assert a & (b | c) == (a & b) | (a & c)
    assert a - b == a & ~b
    assert a | ~a == ChunkRanges.all()
    assert a & ~a == ChunkRanges.empty()
    assert is_canonical(a | b)
    assert is_canonical(a & b)


@given(anything)
@example(ChunkRanges.empty())
@example(ChunkRanges.last())
def test_text_wire_and_copies_give_the_same(a: ChunkRanges) -> None:
    assert ChunkRanges.parse(str(a)) == a
    assert parse_ranges(b"x" + encode_ranges(a) + b"y", 1) == (a, len(encode_ranges(a)) + 1)
    assert pickle.loads(pickle.dumps(a)) == a
    assert copy.deepcopy(a) == a
    assert hash(copy.copy(a)) == hash(a)


@given(st.lists(st.tuples(st.integers(0, END), st.integers(0, END)), max_size=6))
def test_parts_may_overlap_and_come_in_any_order(pairs: list[tuple[int, int]]) -> None:
    pairs = [(min(pair), max(pair)) for pair in pairs]
    parsed = ChunkRanges.parse(" , ".join(f"{start}..{stop}" for start, stop in pairs))
    assert leaves(parsed) == set().union(*(range(start, stop) for start, stop in pairs))
    assert is_canonical(parsed)


@given(st.integers(0, 200_000), st.integers(0, 200_000))
def test_bytes_are_rounded_out_to_leaves(a: int, b: int) -> None:
    start, stop = min(a, b), max(a, b)
    touched = {at // 1024 for at in (*range(start, stop, 1024), *([stop - 1] if stop > start else []))}
    assert leaves(ChunkRanges.bytes(start, stop), 300) == touched
    assert leaves(ChunkRanges.bytes(start), 300) == set(range(start // 1024, 300))


@given(small)
def test_rounding_out_to_blocks(a: ChunkRanges) -> None:
    blocks = {leaf // BLOCK_LEAVES for leaf in leaves(a, 160)}
    assert leaves(a.to_blocks(), 160) == {leaf for leaf in range(160) if leaf // BLOCK_LEAVES in blocks}
    assert is_canonical(a.to_blocks())


@given(huge)
def test_rounding_out_at_any_distance(a: ChunkRanges) -> None:
    blocks = a.to_blocks()
    assert is_canonical(blocks)
    assert a <= blocks
    assert blocks.to_blocks() == blocks
    assert all(number % BLOCK_LEAVES == 0 for number in blocks.boundaries)


@given(anything, sizes)
def test_clipping_and_selecting(a: ChunkRanges, size: int) -> None:
    count = leaf_count(size)
    clipped, selected = a.clip(size), a.select(size)
    assert is_canonical(clipped)
    assert is_canonical(selected)
    assert clipped == a & ChunkRanges.leaves(0, count)
    beyond = bool(a - ChunkRanges.leaves(0, count))
    assert selected == (clipped | ChunkRanges.leaves(count - 1, count) if beyond else clipped)
    assert selected.select(size) == selected
    if count <= END:
        assert a.count(size) == len(leaves(clipped))
        touched = [(start // 1024, -(-stop // 1024)) for start, stop in a.byte_ranges(size)]
        assert touched == (list(clipped) if size else [])
        assert all(0 <= start < stop <= size for start, stop in a.byte_ranges(size))


@given(sizes)
def test_the_size_proof_is_the_last_leaf(size: int) -> None:
    count = leaf_count(size)
    assert ChunkRanges.last().select(size) == ChunkRanges.leaves(count - 1, count)
    assert not ChunkRanges.last().clip(size)


@given(st.lists(st.integers(-2, MAX_LEAF + 2), max_size=5))
def test_only_rising_boundaries_are_taken(numbers: list[int]) -> None:
    if numbers == sorted(set(numbers)) and all(0 <= n <= MAX_LEAF for n in numbers):
        assert ChunkRanges(numbers).boundaries == tuple(numbers)
    else:
        with pytest.raises(InvalidRange):
            ChunkRanges(numbers)


@given(st.binary(max_size=40))
def test_any_bytes_are_ranges_or_an_error(data: bytes) -> None:
    try:
        ranges, end = parse_ranges(data)
    except RemoteProtocolError as error:
        place = error.offset_bytes
    else:
        place = end
        assert parse_ranges(encode_ranges(ranges)) == (ranges, len(encode_ranges(ranges)))
    assert 0 <= place <= len(data)


@pytest.mark.parametrize(
    ("ranges", "wire"),
    [
        (ChunkRanges.all(), "0100"),
        (ChunkRanges.empty(), "00"),
        (ChunkRanges.bytes(0, 16_384), "020010"),
        (ChunkRanges.bytes(1 << 20, (1 << 20) + 65_536), "02800840"),
        (ChunkRanges.last(), "01ffffffffffffffffff01"),
    ],
)
def test_the_wire_form_is_that_of_iroh(ranges: ChunkRanges, wire: str) -> None:
    assert encode_ranges(ranges).hex() == wire


@pytest.mark.parametrize(
    "wire", ["", "01", "020500", "0180", "ff", "ffffffffffffffffffff01", "0201ffffffffffffffffff01"]
)
def test_bad_wire_forms(wire: str) -> None:
    with pytest.raises(RemoteProtocolError):
        parse_ranges(bytes.fromhex(wire))


@pytest.mark.parametrize(
    "text", ["1", "..-1", "a..b", "1..2,", ",", "2..1", "1...2", "0x1..", f"{1 << 64}..", "١..٢"]
)
def test_bad_text(text: str) -> None:
    with pytest.raises(InvalidRange):
        ChunkRanges.parse(text)


@pytest.mark.parametrize(
    ("text", "boundaries"),
    [("", ()), (" ", ()), ("..", (0,)), ("..3", (0, 3)), ("5..5", ()), ("0..2,1..4", (0, 4))],
)
def test_text_that_is_short_for_more(text: str, boundaries: Iterable[int]) -> None:
    assert ChunkRanges.parse(text) == ChunkRanges(boundaries)


def test_how_they_look() -> None:
    assert str(ChunkRanges([0, 16, 64])) == "0..16,64.."
    assert repr(ChunkRanges([0, 16, 64])) == "ChunkRanges(0..16,64..)"
    assert repr(ChunkRanges(range(100))).endswith("18..19,…)")


@pytest.mark.parametrize("bounds", [(-1, 2), (3, 2), (0, MAX_LEAF + 1), (MAX_LEAF + 1, None)])
def test_bad_leaves(bounds: tuple[int, int | None]) -> None:
    with pytest.raises(InvalidRange):
        ChunkRanges.leaves(*bounds)


@pytest.mark.parametrize("bounds", [(-1, 2), (3, 2), (0, 1 << 80), (1 << 80, None)])
def test_bad_bytes(bounds: tuple[int, int | None]) -> None:
    with pytest.raises(InvalidRange):
        ChunkRanges.bytes(*bounds)


def test_they_do_not_change() -> None:
    with pytest.raises(AttributeError):
        ChunkRanges.all()._boundaries = ()


def test_many_holes_cost_their_number() -> None:
    """Every second block of 10 GiB is here: what is missing, and a piece of it, at once."""
    here = ChunkRanges(range(0, 10 << 20, 16))
    missing = ChunkRanges.all().clip(10 << 30) - here
    assert next(iter(missing)) == (16, 32)
    assert missing | here == ChunkRanges.leaves(0, 10 << 20)
    assert list(missing & ChunkRanges.bytes(5 << 30, (5 << 30) + 32_768)) == [(5242896, 5242912)]
