"""Sets of leaves, the 1,024-byte pieces in which the wire counts: the value `ChunkRanges`, nothing else.

A set is kept as its boundaries, as iroh and bao-tree do: on, off, on, …, rising; an odd number of them never
ends. What is done to it costs the number of boundaries, whatever the distance between them.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import Final, NoReturn

from holdfast.errors import InvalidRange
from holdfast.types import BLOCK_BYTES

LEAF_BYTES: Final = 1_024
BLOCK_LEAVES: Final = BLOCK_BYTES // LEAF_BYTES
MAX_LEAF: Final = (1 << 64) - 1
"""The largest boundary that the wire can carry; no blob has such a leaf."""

_PART: Final = re.compile(r"([0-9]{1,20})?\.\.([0-9]{1,20})?", re.ASCII)


def leaf_count(size_bytes: int) -> int:
    """How many leaves a blob has; an empty one has one."""
    return max(1, -(-size_bytes // LEAF_BYTES))


class ChunkRanges:
    """A set of leaves: half-open ranges, sorted, disjoint; the last one may be open-ended.

    Immutable, hashable, equal when the sets are. `|`, `&`, `-` and `~` are those of sets; iteration gives
    (start, stop), the stop of an open end being None; `leaf in ranges` asks for one; an empty set is false.
    """

    __slots__ = ("_boundaries",)
    _boundaries: tuple[int, ...]

    def __init__(self, boundaries: Iterable[int] = ()) -> None:
        """Make the set with these boundaries; InvalidRange unless they rise, from 0 to 2**64 - 1."""
        given = tuple(boundaries)
        if any(a >= b for a, b in pairwise(given)):
            raise InvalidRange("the boundaries of ranges must rise")
        if given and (given[0] < 0 or given[-1] > MAX_LEAF):
            raise InvalidRange("the boundaries of ranges are from 0 to 2**64 - 1")
        object.__setattr__(self, "_boundaries", given)

    @classmethod
    def trusted(cls, boundaries: tuple[int, ...]) -> ChunkRanges:
        """Make the set with boundaries that are known to be right (a checksum was checked): nothing is looked at."""
        return cls._of(boundaries)

    @classmethod
    def _of(cls, boundaries: tuple[int, ...]) -> ChunkRanges:
        made = object.__new__(cls)
        object.__setattr__(made, "_boundaries", boundaries)
        return made

    @classmethod
    def all(cls) -> ChunkRanges:
        """Give every leaf."""
        return cls._of((0,))

    @classmethod
    def empty(cls) -> ChunkRanges:
        """Give the set without leaves."""
        return cls._of(())

    @classmethod
    def last(cls) -> ChunkRanges:
        """Give the size proof: of a blob of any size this selects the last leaf alone."""
        return cls._of((MAX_LEAF,))

    @classmethod
    def leaves(cls, start: int, stop: int | None = None) -> ChunkRanges:
        """Give the leaves from `start` up to `stop`, or all from there on."""
        if start < 0 or start > MAX_LEAF or (stop is not None and not start <= stop <= MAX_LEAF):
            raise InvalidRange(f"not a range of leaves: {start}..{'' if stop is None else stop}")
        if stop == start:
            return cls.empty()
        return cls._of((start,) if stop is None else (start, stop))

    @classmethod
    def bytes(cls, start: int, stop: int | None = None) -> ChunkRanges:
        """Give the leaves that the bytes from `start` up to `stop` (or all from there on) touch."""
        if start < 0 or (stop is not None and stop < start):
            raise InvalidRange(f"not a range of bytes: {start}..{'' if stop is None else stop}")
        if stop == start:
            return cls.empty()
        return cls.leaves(start // LEAF_BYTES, None if stop is None else -(-stop // LEAF_BYTES))

    @classmethod
    def parse(cls, text: str) -> ChunkRanges:
        """Read what `str` writes: `0..16,64..`, the empty set as the empty text; `..16` begins at 0.

        Parts may overlap and come in any order. InvalidRange for anything else.
        """
        pairs = []
        for part in text.split(",") if text.strip() else ():
            found = _PART.fullmatch(part.strip())
            if not found:
                raise InvalidRange(f"not ranges of leaves: {part!r:.60} (0..16,64.. is expected)", text=text)
            start, stop = found.groups()
            pairs.append(cls.leaves(int(start or 0), None if stop is None else int(stop)))
        return cls.union(pairs)

    @classmethod
    def union(cls, parts: Iterable[ChunkRanges]) -> ChunkRanges:
        """Give the leaves that are in any of many sets: one sort, however many there are."""
        pairs = sorted(
            (start, MAX_LEAF + 1 if stop is None else stop) for part in parts for start, stop in part
        )
        return cls._of(_merge(pairs))

    @property
    def boundaries(self) -> tuple[int, ...]:
        """Where the set begins and ends, alternately."""
        return self._boundaries

    @property
    def is_open(self) -> bool:
        """Whether it never ends."""
        return len(self._boundaries) % 2 == 1

    # --- what is in it

    def __iter__(self) -> Iterator[tuple[int, int | None]]:
        numbers = iter(self._boundaries)
        for start in numbers:
            yield start, next(numbers, None)

    def __contains__(self, leaf: object) -> bool:
        return isinstance(leaf, int) and bisect_right(self._boundaries, leaf) % 2 == 1

    def __bool__(self) -> bool:
        return bool(self._boundaries)

    def __eq__(self, other: object) -> bool:
        return self._boundaries == other._boundaries if isinstance(other, ChunkRanges) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._boundaries)

    def __le__(self, other: ChunkRanges) -> bool:
        return not self - other

    # --- algebra

    def __and__(self, other: ChunkRanges) -> ChunkRanges:
        few, many = sorted((self._boundaries, other._boundaries), key=len)
        out: list[int] = []
        for at in range(0, len(few), 2):
            start = few[at]
            first = bisect_right(many, start)
            if first % 2:  # `start` is inside a range of `many`
                out.append(start)
            if at + 1 == len(few):
                out += many[first:]
                break
            stop = few[at + 1]
            behind = bisect_left(many, stop, first)
            out += many[first:behind]
            if behind % 2:
                out.append(stop)
        return ChunkRanges._of(tuple(out))

    def __invert__(self) -> ChunkRanges:
        own = self._boundaries
        return ChunkRanges._of(own[1:] if own[:1] == (0,) else (0, *own))

    def __or__(self, other: ChunkRanges) -> ChunkRanges:
        return ~(~self & ~other)

    def __sub__(self, other: ChunkRanges) -> ChunkRanges:
        return self & ~other

    # --- sizes and blocks

    def clip(self, size_bytes: int) -> ChunkRanges:
        """Give the leaves that a blob of `size_bytes` has."""
        own, count = self._boundaries, leaf_count(size_bytes)
        if not self.is_open and (not own or own[-1] <= count):
            return self
        kept = bisect_left(own, count)
        return ChunkRanges._of((*own[:kept], count) if kept % 2 else own[:kept])

    def select(self, size_bytes: int) -> ChunkRanges:
        """Give the leaves that a response carries: those that the blob has, and its last one if any beyond is asked."""
        count = leaf_count(size_bytes)
        beyond = self.is_open or (bool(self) and self._boundaries[-1] > count)
        clipped = self.clip(size_bytes)
        return clipped | ChunkRanges.leaves(count - 1, count) if beyond else clipped

    def to_blocks(self) -> ChunkRanges:
        """Round out to whole blocks of 16 leaves; beyond the last boundary that is, to the open end."""
        if not any(number % BLOCK_LEAVES for number in self._boundaries):
            return self
        pairs = [
            (start - start % BLOCK_LEAVES, MAX_LEAF + 1 if stop is None else stop + -stop % BLOCK_LEAVES)
            for start, stop in self
        ]
        return ChunkRanges._of(_merge(pairs))

    def count(self, size_bytes: int) -> int:
        """How many leaves of a blob of `size_bytes` are in it."""
        own = self.clip(size_bytes)._boundaries
        return sum(own[1::2]) - sum(own[::2])

    def byte_ranges(self, size_bytes: int) -> Iterator[tuple[int, int]]:
        """Give the ranges that a blob of `size_bytes` has of it, in bytes, half-open; none without bytes."""
        for start, stop in self.clip(size_bytes):
            assert stop is not None
            if size_bytes:
                yield start * LEAF_BYTES, min(stop * LEAF_BYTES, size_bytes)

    # --- text, copies

    def __str__(self) -> str:
        return ",".join(f"{start}..{'' if stop is None else stop}" for start, stop in self)

    def __repr__(self) -> str:
        text = str(self) if len(self._boundaries) <= 20 else f"{ChunkRanges._of(self._boundaries[:20])},…"
        return f"ChunkRanges({text})"

    def __reduce__(self) -> tuple[type[ChunkRanges], tuple[tuple[int, ...]]]:
        return ChunkRanges, (self._boundaries,)

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"ranges do not change: {name}")


def _merge(pairs: Iterable[tuple[int, int]]) -> tuple[int, ...]:
    """Join sorted pairs that touch or overlap; one that reaches beyond MAX_LEAF never ends."""
    out: list[int] = []
    for start, stop in pairs:
        if out and start <= out[-1]:
            if stop > out[-1]:
                out[-1] = stop
        else:
            out += (start, stop)
    if out and out[-1] > MAX_LEAF:
        out.pop()
    return tuple(out)
