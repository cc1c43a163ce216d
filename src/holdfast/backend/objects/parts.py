"""Partial blobs in a bucket: parts of verified blocks, each with the pairs that verify it. Knows no streams.

A part is made once under a key of its own, so that any number of machines can fill one blob without a lock; what is
here of the blob is what its parts say, together. Nothing that a part holds is believed: it is verified up to the
root whenever it is used, and a part that fails counts for nothing from then on in this process.
"""

from __future__ import annotations

import logging
import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import groupby
from typing import Final, NamedTuple

from holdfast.backend.log.partial_reader import read_verified
from holdfast.backend.log.partial_state import PartialState
from holdfast.backend.objects.bucket import Bucket, Meta
from holdfast.backend.objects.ends import list_whole
from holdfast.backend.objects.layout import PARTS, parse_part_key, part_key, parts_prefix
from holdfast.errors import CorruptBlob, FormatError, MissingChunk, Unavailable
from holdfast.ranges import ChunkRanges
from holdfast.types import BLOCK_BYTES, BytesLike, Hash, new_ids, now_ms
from holdfast.wire.part import (
    PAIR_BYTES,
    BlocksHead,
    encode_blocks,
    head_length,
    parse_blocks,
)

log = logging.getLogger("holdfast")

HEAD_BYTES: Final = 4 << 10
"""How much of a part is fetched to see what it holds; nearly always enough."""
MAX_KNOWN: Final = 16
"""Partial blobs of which the heads of parts are kept."""
MAX_PAIRS_BYTES: Final = 8 << 20
"""Pairs of parts that are kept: those of 2 GiB."""


class Part(NamedTuple):
    """An object under `parts/`, with what its head says."""

    key: str
    head_bytes: int
    modified_ms: int
    head: BlocksHead

    @property
    def data_at(self) -> int:
        """Where its blocks begin in the object."""
        return self.head_bytes + self.head.pairs_bytes


class Span(NamedTuple):
    """A run of blocks, or of pairs, in a part: numbers `first` to `stop`, which begin at `at` in the object."""

    first: int
    stop: int
    at: int
    part: Part


class Here:
    """What is here of a partial blob at one moment."""

    def __init__(self, hash_: bytes, parts: Sequence[Part]) -> None:
        self.hash = hash_
        self.parts = parts
        self.keys = frozenset(part.key for part in parts)
        self.state = _state_of(parts)
        self.blocks = _cover(_block_spans(parts))
        """Disjoint and rising: each block that is here, once."""
        self._pairs: list[Span] | None = None

    @property
    def pairs(self) -> list[Span]:
        """Disjoint and rising: each pair that is here, once."""
        if self._pairs is None:
            self._pairs = _cover(_pair_spans(self.parts))
        return self._pairs


class Parts:
    """The partial blobs of a store. Threads share it."""

    def __init__(self, bucket: Bucket, pool: ThreadPoolExecutor) -> None:
        self.bucket = bucket
        self.distrusted: set[str] = set()
        """Keys of parts that did not verify."""
        self._pool = pool
        self._mutex = threading.Lock()
        self._heads: OrderedDict[bytes, dict[str, Part | None]] = OrderedDict()
        self._last: dict[bytes, Here] = {}
        self._pairs: OrderedDict[str, bytes] = OrderedDict()
        self._pairs_bytes = 0

    # -- what is there

    def iter_all(self) -> Iterator[tuple[bytes, list[Meta]]]:
        """Give the hashes of all partial blobs, ascending, with their objects: one listing."""
        keyed = ((parse_part_key(meta.key), meta) for meta in list_whole(self.bucket, PARTS))
        for hash_, group in groupby(keyed, lambda one: one[0]):
            if hash_ is not None:
                yield hash_, [meta for _, meta in group]

    def find(self, hash_: bytes) -> Here | None:
        """Look what is here of a blob: one listing, and one request for each part not seen before."""
        metas = [meta for meta in self.bucket.list(parts_prefix(hash_)) if parse_part_key(meta.key) == hash_]
        with self._mutex:
            known = self._heads.get(hash_, {})
            last = self._last.get(hash_)
        fresh = [meta for meta in metas if meta.key not in known]
        heads = {meta.key: known[meta.key] for meta in metas if meta.key in known}
        heads.update(zip([meta.key for meta in fresh], self._pool.map(self._read_head, fresh), strict=True))
        if not metas:
            self.forget(hash_)
            return None
        parts = [part for key, part in heads.items() if part is not None and key not in self.distrusted]
        parts.sort()
        if not parts:
            last = None
        elif last is None or last.keys != {part.key for part in parts}:
            last = Here(hash_, parts)
        with self._mutex:
            self._heads[hash_] = heads
            if last is not None:
                self._last[hash_] = last
            self._heads.move_to_end(hash_)
            while len(self._heads) > MAX_KNOWN:
                self._last.pop(self._heads.popitem(last=False)[0], None)
        return last

    def had_any(self, hash_: bytes) -> bool:
        """Whether there were objects of a partial blob, damaged ones included, when it was looked for last."""
        return hash_ in self._heads

    def forget(self, hash_: bytes) -> None:
        """Forget what was seen of a blob."""
        with self._mutex:
            self._heads.pop(hash_, None)
            self._last.pop(hash_, None)

    def _read_head(self, meta: Meta) -> Part | None:
        """Read what a part says; None for one that is damaged, a newer version's, or gone meanwhile."""
        hash_ = parse_part_key(meta.key)
        for attempt in range(2):
            try:
                data = self.bucket.get_range(meta.key, 0, min(HEAD_BYTES, meta.size_bytes))
                if data is None:
                    return None
                length = head_length(data, meta.key)
                if length > len(data):
                    data = self.bucket.get_range(meta.key, 0, min(length, meta.size_bytes)) or b""
                head = parse_blocks(data, meta.key)
                if head.hash != hash_ or length + head.pairs_bytes + head.data_bytes != meta.size_bytes:
                    raise FormatError(f"{meta.key} does not hold together", path=meta.key)
                return Part(meta.key, length, meta.modified_ms, head)
            except FormatError as error:
                if attempt:
                    log.warning("a part of a partial blob counts for nothing: %s", error)
        return None

    # -- making and removing

    def put(self, head: BlocksHead, pairs: bytes, blocks: Sequence[BytesLike]) -> None:
        """Store a part, durably: whole, or not at all."""
        (id_,) = new_ids(1, now_ms())
        key = part_key(head.hash, id_)
        packed = encode_blocks(head, key)
        made = self.bucket.create(key, b"".join((packed, pairs, *blocks)))
        if made is None:
            raise Unavailable(
                f"there is another object {key}: the random numbers of this machine repeat", key=key
            )
        with self._mutex:  # what it says need not be asked for
            self._heads.setdefault(head.hash, {})[key] = Part(key, len(packed), made.modified_ms, head)

    def remove(self, hash_: bytes) -> int:
        """Remove all that is there of a partial blob; gives how many objects."""
        keys = [meta.key for meta in self.bucket.list(parts_prefix(hash_))]
        if keys:
            self.bucket.delete(keys)
        self.forget(hash_)
        return len(keys)

    # -- reading

    def distrust(self, parts: Sequence[Part]) -> None:
        """Let parts count for nothing from here on: they are not what they say."""
        self.distrusted.update(part.key for part in parts)
        for part in parts:
            log.warning("%s does not verify: its blocks are to be fetched again", part.key)

    def fetch(self, part: Part, start: int, stop: int) -> bytes:
        """Give bytes of a part's object, not verified; `MissingChunk` when it has gone."""
        try:
            data = self.bucket.get_range(part.key, start, stop)
        except FormatError as error:
            raise CorruptBlob(f"{part.key} is shorter than it was", hash=Hash(part.head.hash)) from error
        if data is None:
            raise MissingChunk(f"{part.key} is gone", path=part.key)
        return data

    def pairs_of(self, part: Part, *, fresh: bool = False) -> bytes:
        """Give the pairs of a part, not verified. `fresh`: not what was fetched before."""
        with self._mutex:
            found = None if fresh else self._pairs.get(part.key)
        if found is None:
            found = self.fetch(part, part.head_bytes, part.data_at) if part.head.pairs else b""
            self._keep_pairs(part, found)
        return found

    def _keep_pairs(self, part: Part, packed: bytes) -> None:
        with self._mutex:
            self._pairs_bytes += len(packed) - len(self._pairs.pop(part.key, b""))
            self._pairs[part.key] = packed
            while self._pairs_bytes > MAX_PAIRS_BYTES and len(self._pairs) > 1:
                self._pairs_bytes -= len(self._pairs.popitem(last=False)[1])

    def read_span(self, span: Span, start: int, stop: int) -> bytes:
        """Give whole blocks, bytes `start` to `stop` of the blob, from one part, verified.

        What does not verify is asked for once more; `CorruptBlob` then, and the part is distrusted.
        """
        part, at = span.part, span.at - span.first * BLOCK_BYTES
        for attempt in range(2):
            try:
                known = self._pairs.get(part.key)
                if at + start == part.data_at and (known is None or attempt):  # both in one request
                    both = memoryview(self.fetch(part, part.head_bytes, at + stop))
                    packed, data = bytes(both[: part.head.pairs_bytes]), both[part.head.pairs_bytes :]
                    self._keep_pairs(part, packed)
                else:
                    data = memoryview(self.fetch(part, at + start, at + stop))
                    packed = self.pairs_of(part, fresh=bool(attempt))
                pairs = _PairsOfPart(part, packed)
                pieces = read_verified(
                    part.head.hash,
                    part.head.size_bytes,
                    partial(_slice_at, start, data),
                    pairs.read,
                    ChunkRanges.bytes(start, stop),
                )
                return b"".join(pieces)
            except CorruptBlob:
                if attempt:
                    self.distrust([part])
                    raise
        raise AssertionError

    def read_pairs(self, here: Here, offset: int, length: int) -> bytes:
        """Give pairs of the outboard, not verified; `CorruptBlob` where they are not here."""
        found, number, stop = [], offset // PAIR_BYTES, (offset + length) // PAIR_BYTES
        for span in spans(here.pairs, number, stop):
            first, last = max(number, span.first), min(stop, span.stop)
            at = span.at + (first - span.first) * PAIR_BYTES - span.part.head_bytes
            found.append(self.pairs_of(span.part)[at : at + (last - first) * PAIR_BYTES])
        data = b"".join(found)
        if len(data) != length:
            raise CorruptBlob(
                f"the parts of blob {here.hash.hex()} have no pairs at {offset} of its outboard",
                hash=Hash(here.hash),
                part="outboard",
                offset_bytes=offset,
            )
        return data


class _PairsOfPart:
    """Finds pairs in what one part holds of them."""

    def __init__(self, part: Part, packed: bytes) -> None:
        self._part = part
        self._packed = memoryview(packed)
        self._spans = _cover(_pair_spans([part]))

    def read(self, offset: int, length: int) -> BytesLike:
        number = offset // PAIR_BYTES
        for span in spans(self._spans, number, number + 1):
            at = span.at + (number - span.first) * PAIR_BYTES - self._part.head_bytes
            stop = span.at + (span.stop - span.first) * PAIR_BYTES - self._part.head_bytes
            return self._packed[at : min(at + length, stop)]
        return b""


def spans(cover: list[Span], first: int, stop: int) -> Iterator[Span]:
    """Give the spans of a cover that have anything of what is from `first` to `stop`."""
    index = bisect_right(cover, first, key=lambda span: span.first)
    if index and cover[index - 1].stop > first:
        index -= 1
    while index < len(cover) and cover[index].first < stop:
        yield cover[index]
        index += 1


def claim_of(part: Part) -> tuple[bool, int, str]:
    """Say how much what a part says of the size counts: a proven one most, then that of the highest byte."""
    return part.head.is_size_proven, part.head.highest_byte, part.key


def _state_of(parts: Sequence[Part]) -> PartialState:
    """Put together what parts say: of the sizes that are claimed, a proven one, or that of the highest byte."""
    best = max(parts, key=claim_of).head
    return PartialState(
        best.size_bytes,
        best.is_size_proven,
        ChunkRanges.union(part.head.ranges for part in parts),
        0,
        0,
        0,
        min(part.head.created_ms for part in parts),
        max(part.modified_ms for part in parts),
    )


def _block_spans(parts: Sequence[Part]) -> Iterator[Span]:
    for part in parts:
        at = part.data_at
        for first, count in part.head.blocks:
            yield Span(first, first + count, at, part)
            at += part.head.run_bytes(first, count)


def _pair_spans(parts: Sequence[Part]) -> Iterator[Span]:
    for part in parts:
        at = part.head_bytes
        for first, count in part.head.pairs:
            yield Span(first, first + count, at, part)
            at += count * PAIR_BYTES


def _cover(found: Iterator[Span]) -> list[Span]:
    """Choose among spans that overlap, so that what any has is there once."""
    cover: list[Span] = []
    stop = 0
    for span in sorted(found, key=lambda one: (one.first, -one.stop, one.part.key)):
        if span.stop > stop:
            first = max(span.first, stop)
            cover.append(span._replace(first=first, at=span.at + (first - span.first) * _unit(span)))
            stop = span.stop
    return cover


def _unit(span: Span) -> int:
    return BLOCK_BYTES if span.at >= span.part.data_at else PAIR_BYTES


def _slice_at(start: int, data: BytesLike, offset: int, length: int) -> BytesLike:
    """Give bytes of a window of a blob that begins at `start`."""
    return data[offset - start : offset - start + length]
