"""Ways to cut: what may be chosen, and that every kind cuts as it says."""

from __future__ import annotations

import pickle
import random
from typing import Any

import pytest

from holdfast.chunking import MAX_CHUNK_BYTES, Chunking, Cutter
from holdfast.errors import FormatError, InvalidConfig

KIB, MIB = 1 << 10, 1 << 20
ALL = [
    Chunking.choose(),
    Chunking.choose("fastcdc", 4 * KIB),
    Chunking.choose("fixed"),
    Chunking.choose("fixed", 5_000),
    Chunking.choose("whole"),
]


def cut(cutter: Cutter, data: bytes, step: int) -> list[int]:
    lengths: list[int] = []
    for start in range(0, len(data), step):
        lengths += cutter.feed(data[start : start + step])
    last = cutter.finish()
    return lengths + [last] * bool(last)


def test_defaults() -> None:
    assert Chunking.choose() == Chunking("fastcdc", 16 * KIB, 64 * KIB, 256 * KIB)
    assert Chunking.choose("fastcdc", 256 * KIB) == Chunking("fastcdc", 64 * KIB, 256 * KIB, MIB)
    assert Chunking.choose("fixed") == Chunking("fixed", MIB, MIB, MIB)
    assert Chunking.choose("whole") == Chunking("whole", 16 * MIB, 16 * MIB, 16 * MIB)


@pytest.mark.parametrize("chunking", ALL, ids=str)
def test_round_trips(chunking: Chunking) -> None:
    assert Chunking.from_dict(chunking.to_dict()) == chunking
    assert pickle.loads(pickle.dumps(chunking)) == chunking


@pytest.mark.parametrize("chunking", ALL, ids=str)
@pytest.mark.parametrize("size", [0, 1, 4_096, 100_000, 3 * MIB + 1])
def test_cuts_do_not_depend_on_the_split(chunking: Chunking, size: int) -> None:
    data = random.Random(size).randbytes(size)
    cutter = chunking.make_cutter()
    expected = cut(cutter, data, max(1, size))
    assert sum(expected) == size
    assert all(chunking.min_bytes <= length <= chunking.max_bytes for length in expected[:-1])
    assert all(0 < length <= chunking.max_bytes for length in expected[-1:])
    for step in (4_097, 65_536, MIB):
        assert cut(cutter, data, step) == expected  # the same cutter, ready for the next stream


def test_the_seams_of_fixed() -> None:
    for size in (4_999, 5_000, 5_001, 10_000):
        lengths = cut(Chunking.choose("fixed", 5_000).make_cutter(), bytes(size), 1_000)
        assert lengths == [5_000] * (size // 5_000) + [size % 5_000] * bool(size % 5_000)


def test_whole_has_pieces_of_a_record() -> None:
    cutter = Chunking.choose("whole").make_cutter()
    piece = bytes(MIB)
    assert [length for _ in range(33) for length in cutter.feed(piece)] == [MAX_CHUNK_BYTES] * 2
    assert (cutter.finish(), cutter.finish()) == (MIB, 0)


@pytest.mark.parametrize(
    ("kind", "size", "says"),
    [
        ("rolling", None, "fastcdc, fixed, whole"),
        ("fastcdc", 4_095, "4096 to 4194304"),
        ("fastcdc", 8 * MIB, "4096 to 4194304"),
        ("fastcdc", 100_000, "power of two"),
        ("fixed", 0, "4096 to 16777216"),
        ("fixed", -1, "4096 to 16777216"),
        ("fixed", 16 * MIB + 1, "4096 to 16777216"),
        ("whole", MIB, "no size to choose"),
        ("fastcdc", 1e5, "number of bytes"),
        ("fixed", "1", "number of bytes"),
        ("fixed", True, "number of bytes"),
    ],
)
def test_what_may_not_be_chosen(kind: str, size: Any, says: str) -> None:
    with pytest.raises(InvalidConfig, match=says):
        Chunking.choose(kind, size)


@pytest.mark.parametrize(
    "lengths",
    [(16, 65_536, 262_144), (65_537, 65_536, 262_144), (1, 2, 3), (64, 4_096, 4_095), (64, 4_096, 17 * MIB)],
)
def test_lengths_out_of_order(lengths: tuple[int, int, int]) -> None:
    with pytest.raises(InvalidConfig):
        Chunking("fastcdc", *lengths)
    with pytest.raises(InvalidConfig):
        Chunking("fixed", *lengths)


@pytest.mark.parametrize(
    "document",
    [
        {},
        {"kind": "fixed"},
        {"kind": "fixed", "min_bytes": 1, "average_bytes": 1, "max_bytes": 1},
        {"kind": "fixed", "min_bytes": MIB, "average_bytes": MIB, "max_bytes": MIB, "more": 1},
        {"kind": None, "min_bytes": MIB, "average_bytes": MIB, "max_bytes": MIB},
        {"kind": [], "min_bytes": MIB, "average_bytes": MIB, "max_bytes": "x"},
    ],
)
def test_a_recorded_choice_that_cannot_be_used(document: dict[str, Any]) -> None:
    with pytest.raises(FormatError):
        Chunking.from_dict(document)


def test_extreme_lengths_reach_the_native_cutter() -> None:
    for average in (4 * KIB, 4 * MIB):
        data = random.Random(1).randbytes(5 * MIB)
        assert sum(cut(Chunking.choose("fastcdc", average).make_cutter(), data, MIB)) == len(data)
    Chunking("fastcdc", 64, 4_096, 16 * MIB).make_cutter()
