"""Paged trees: a long manifest or outboard as pages that are stored and verified one by one. Pure, no I/O.

A stream is split into leaf pages; inner pages list up to 1,024 children as (32-byte page hash, u64 end), and
neither memory nor a record grows with the stream (format.md, "Paged trees"). Two kinds of stream share this:

* a **manifest** is entries of 37 bytes (u8 algorithm, u32 length, 32 digest), 1,024 a leaf page; lengths and
  ends count bytes *of the blob*, so an offset of the blob is found by bisection;
* an **outboard** is plain bytes, 64 KiB a leaf page; ends count bytes of the outboard.

Ends are relative to the start of the page that holds them, so equal stretches give equal pages. A stream of
at most 4,096 bytes is not paged: it stands in the `TreeRoot` itself (depth 0). With depth 1 the root names
one leaf page, with depth n there are n - 1 levels of inner pages.

Writing::

    writer = ManifestWriter(emit)            # emit(page) stores one page and returns its 32-byte hash
    writer.extend(lengths, digests)          # BLAKE3 chunks: lengths, and their digests packed
    root = writer.finish()                   # a TreeRoot; root.encode() goes into the blob record
    writer = StreamWriter(emit); writer.write(piece); root = writer.finish()       # an outboard

Reading (`load(hash)` gives the page, already checked against its hash)::

    root, position = TreeRoot.parse(payload, position)
    manifest = ManifestReader(root, blob_size, load)
    leaf = manifest.leaf_at(offset)          # leaf.starts, leaf.entries: bisect in them, or
    for start, algorithm, length, digest in manifest.iter_chunks(start, stop): ...
    outboard = StreamReader(root, outboard_bytes(blob_size), load)
    outboard.read(offset, length)
    for hash, is_leaf in reader.iter_pages(): ...      # what keeps the tree alive, for collection and scrub

Readers trust nothing but the hash: every bound is checked before it is used and `CorruptBlob` says what is
wrong (`FormatError` for what only a newer version can have written). They may be shared by threads if `load`
may. Their memory is bounded by `CACHED_LEAVES` and `CACHED_INNER` pages.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from copy import copy
from functools import lru_cache
from itertools import accumulate, repeat
from struct import Struct
from typing import Final, Generic, NamedTuple, Self, TypeAlias, TypeVar

from holdfast.errors import CorruptBlob, FormatError
from holdfast.types import HASH_BYTES, MAX_BLOB_BYTES

FAN_OUT: Final = 1_024
MAX_DEPTH: Final = 8
MAX_INLINE_BYTES: Final = 4_096
STREAM_PAGE_BYTES: Final = 65_536
ENTRIES_PER_PAGE: Final = 1_024
ALGORITHM_BLAKE3: Final = 1
ALGORITHM_SHA256: Final = 2
CACHED_LEAVES: Final = 32
CACHED_INNER: Final = 16

_ENTRY: Final = Struct("<BI32s")
_CHILD: Final = Struct("<32sQ")
_ALGORITHMS: Final = frozenset((ALGORITHM_BLAKE3, ALGORITHM_SHA256))
ENTRY_BYTES: Final = _ENTRY.size
MANIFEST_PAGE_BYTES: Final = ENTRIES_PER_PAGE * ENTRY_BYTES
INNER_PAGE_BYTES: Final = FAN_OUT * _CHILD.size

Emit: TypeAlias = Callable[[bytes], bytes]
Load: TypeAlias = Callable[[bytes], bytes]
Entry: TypeAlias = tuple[int, int, bytes]
"""An entry of a manifest: algorithm, length in bytes, digest."""


class TreeRoot(NamedTuple):
    """Where a tree begins: `depth` 0 and the stream itself as `body`, or 1 to 8 and the hash of a page."""

    depth: int
    body: bytes

    def encode(self) -> bytes:
        """Give the root's bytes: u8 depth, then u16 length and the stream (depth 0), or 32 bytes of hash."""
        if self.depth:
            return bytes((self.depth,)) + self.body
        return b"\0" + len(self.body).to_bytes(2, "little") + self.body

    @classmethod
    def parse(cls, data: bytes | memoryview, position: int = 0) -> tuple[TreeRoot, int]:
        """Read a root at `position`; give it and where it ends. `CorruptBlob` when it is not valid."""
        if position < 0 or position >= len(data):
            raise CorruptBlob("the root of a page tree is missing", offset_bytes=position)
        depth = data[position]
        if depth > MAX_DEPTH:
            raise CorruptBlob(f"a page tree of depth {depth} (at most {MAX_DEPTH})", offset_bytes=position)
        start, length = position + 1, HASH_BYTES
        if depth == 0:
            length = int.from_bytes(data[start : start + 2], "little")
            start += 2
        if length > MAX_INLINE_BYTES or start + length > len(data):
            raise CorruptBlob(
                f"the root of a page tree is cut off or too long ({length} bytes)", offset_bytes=position
            )
        return cls(depth, bytes(data[start : start + length])), start + length


class PageWriter:
    """The inner pages of one tree, built while leaf pages come: memory is one page a level."""

    def __init__(self, emit: Emit) -> None:
        self._emit = emit
        self._levels: list[tuple[bytearray, list[int]]] = []  # children packed; [units so far]

    def add_leaf(self, page: bytes, units: int) -> None:
        """Emit one leaf page that stands for `units` (bytes of the blob or of the stream)."""
        self._add(0, self._emit(page), units)

    def _add(self, level: int, hash: bytes, units: int) -> None:
        while True:
            if level == len(self._levels):
                if level >= MAX_DEPTH:
                    raise FormatError(f"a page tree deeper than {MAX_DEPTH} levels")
                self._levels.append((bytearray(), [0]))
            page, total = self._levels[level]
            if len(page) < INNER_PAGE_BYTES:
                total[0] += units
                page += _CHILD.pack(hash, total[0])
                return
            parent = self._emit(bytes(page))  # full, and one more comes: a parent is needed
            parent_units = total[0]
            page[:] = _CHILD.pack(hash, units)
            total[0] = units
            level, hash, units = level + 1, parent, parent_units

    def finish_tree(self) -> TreeRoot:
        """Emit the open inner pages from below and give the root."""
        level = 0
        while True:
            page, total = self._levels[level]
            if level == len(self._levels) - 1 and len(page) == _CHILD.size:
                return TreeRoot(level + 1, bytes(page[:HASH_BYTES]))
            self._add(level + 1, self._emit(bytes(page)), total[0])
            level += 1

    def _twin(self) -> Self:
        """Give one in the same state that can be finished while this one goes on."""
        twin = copy(self)
        twin._levels = [(page[:], total[:]) for page, total in self._levels]
        return twin


class StreamWriter(PageWriter):
    """Pages a stream of plain bytes (an outboard)."""

    def __init__(self, emit: Emit) -> None:
        super().__init__(emit)
        self._pending = bytearray()
        self.length_bytes = 0

    def write(self, piece: bytes | bytearray | memoryview) -> None:
        """Take the next bytes; emits what makes a whole page."""
        self.length_bytes += len(piece)
        pending = self._pending
        pending += piece
        if len(pending) >= STREAM_PAGE_BYTES:
            view = memoryview(bytes(pending))
            whole = len(view) - len(view) % STREAM_PAGE_BYTES
            for start in range(0, whole, STREAM_PAGE_BYTES):
                self.add_leaf(bytes(view[start : start + STREAM_PAGE_BYTES]), STREAM_PAGE_BYTES)
            del pending[:whole]

    def finish(self) -> TreeRoot:
        """Emit the rest and give the root."""
        pending = bytes(self._pending)
        if self.length_bytes <= MAX_INLINE_BYTES:
            return TreeRoot(0, pending)
        if pending:
            self.add_leaf(pending, len(pending))
        return self.finish_tree()

    def snapshot(self) -> TreeRoot:
        """Emit what the stream so far needs, give its root, and go on."""
        return self._twin().finish()


class ManifestWriter(PageWriter):
    """Pages the list of a blob's chunks."""

    def __init__(self, emit: Emit) -> None:
        super().__init__(emit)
        self._pending: list[bytes] = []
        self._units = 0
        self.size_bytes = 0
        self.chunk_count = 0

    def add(self, algorithm: int, length: int, digest: bytes) -> None:
        """Take one entry."""
        self._take([_ENTRY.pack(algorithm, length, digest)], [length])

    def extend(self, lengths: Sequence[int], digests: bytes | memoryview | Sequence[bytes]) -> None:
        """Take BLAKE3 chunks in order: their lengths, and their digests one by one or packed."""
        if isinstance(digests, (bytes, memoryview)):
            view = bytes(digests)
            digests = [view[i : i + HASH_BYTES] for i in range(0, len(view), HASH_BYTES)]
        if len(digests) != len(lengths):
            raise ValueError(f"{len(lengths)} lengths and {len(digests)} digests")
        self._take(list(map(_ENTRY.pack, repeat(ALGORITHM_BLAKE3), lengths, digests)), lengths)

    def _take(self, packed: list[bytes], lengths: Sequence[int]) -> None:
        taken = 0
        while taken < len(packed):
            count = min(len(packed) - taken, ENTRIES_PER_PAGE - len(self._pending))
            part = lengths[taken : taken + count]
            if min(part) < 1:
                raise ValueError("a chunk has at least one byte")
            self._pending += packed[taken : taken + count]
            self._units += sum(part)
            taken += count
            if len(self._pending) == ENTRIES_PER_PAGE:
                self._flush()
        self.chunk_count += len(packed)

    def _flush(self) -> None:
        self.size_bytes += self._units
        self.add_leaf(b"".join(self._pending), self._units)
        self._pending, self._units = [], 0

    def finish(self) -> TreeRoot:
        """Emit the rest and give the root."""
        if self.chunk_count * ENTRY_BYTES <= MAX_INLINE_BYTES:
            self.size_bytes += self._units
            return TreeRoot(0, b"".join(self._pending))
        if self._pending:
            self._flush()
        return self.finish_tree()

    def snapshot(self) -> TreeRoot:
        """Emit what the entries so far need, give their root, and go on."""
        return self._twin().finish()


class _Inner(NamedTuple):
    starts: list[int]  # one more than there are children, relative to the page
    hashes: list[bytes]


def _parse_inner(page: bytes, units: int) -> _Inner:
    if not page or len(page) > INNER_PAGE_BYTES or len(page) % _CHILD.size:
        raise CorruptBlob(f"an inner page of {len(page)} bytes")
    hashes, ends = zip(*_CHILD.iter_unpack(page), strict=True)
    starts = [0, *ends]
    if ends[-1] != units or any(map(int.__ge__, starts, ends)):
        raise CorruptBlob(f"an inner page whose ends do not rise from 0 to {units}")
    return _Inner(starts, list(hashes))


class ManifestLeaf(NamedTuple):
    """A decoded leaf page: `entries[i]` covers `starts[i]` to `starts[i + 1]` of the blob."""

    starts: list[int]
    entries: list[Entry]


class StreamLeaf(NamedTuple):
    """A leaf page of a plain stream and where it begins in it."""

    start: int
    content: bytes


def parse_manifest_leaf(page: bytes, start: int, units: int) -> ManifestLeaf:
    """Decode entries that cover exactly `units` bytes of a blob from `start` on."""
    if len(page) > MANIFEST_PAGE_BYTES or len(page) % ENTRY_BYTES or (not page) != (not units):
        raise CorruptBlob(
            f"a manifest page of {len(page)} bytes for {units} bytes of a blob", offset_bytes=start
        )
    entries: list[Entry] = list(_ENTRY.iter_unpack(page))
    lengths = [entry[1] for entry in entries]
    starts = list(accumulate(lengths, initial=start))
    if starts[-1] != start + units or (lengths and min(lengths) == 0):
        raise CorruptBlob(f"a manifest page does not cover its {units} bytes", offset_bytes=start)
    unknown = set(page[::ENTRY_BYTES]) - _ALGORITHMS
    if unknown:
        raise FormatError(f"a manifest uses hash algorithm {min(unknown)}, which this version does not know")
    return ManifestLeaf(starts, entries)


def parse_stream_leaf(page: bytes, start: int, units: int) -> StreamLeaf:
    """Take a leaf page of exactly `units` bytes."""
    if len(page) != units or units > STREAM_PAGE_BYTES:
        raise CorruptBlob(f"an outboard page of {len(page)} bytes in place of {units}", offset_bytes=start)
    return StreamLeaf(start, page)


_Leaf = TypeVar("_Leaf")


class PageReader(Generic[_Leaf]):
    """Finds leaf pages of one tree by an offset in `units`; the two readers below say what a leaf is."""

    def __init__(
        self, root: TreeRoot, units: int, load: Load, parse: Callable[[bytes, int, int], _Leaf]
    ) -> None:
        if not 0 <= units <= MAX_BLOB_BYTES:
            raise CorruptBlob(f"a page tree over {units} bytes")
        self.root = root
        self.units = units
        self._inner = lru_cache(CACHED_INNER)(lambda hash, units: _parse_inner(load(hash), units))
        self._leaf = lru_cache(CACHED_LEAVES)(lambda hash, start, units: parse(load(hash), start, units))
        self._whole = parse(root.body, 0, units) if root.depth == 0 else None
        if not 0 <= root.depth <= MAX_DEPTH or (root.depth and not units):
            raise CorruptBlob(f"a page tree of depth {root.depth} over {units} bytes")

    def leaf_at(self, offset: int) -> _Leaf:
        """Give the leaf that covers `offset`; raises CorruptBlob, and what `load` raises."""
        if self._whole is not None:
            return self._whole
        if not 0 <= offset < self.units:
            raise IndexError(f"offset {offset} of a tree over {self.units}")
        hash, start, units = self.root.body, 0, self.units
        for _ in range(self.root.depth - 1):
            inner = self._inner(hash, units)
            starts = inner.starts
            index = bisect_right(starts, offset - start) - 1
            hash, units = inner.hashes[index], starts[index + 1] - starts[index]
            start += starts[index]
        return self._leaf(hash, start, units)

    def iter_pages(self) -> Iterator[tuple[bytes, bool]]:
        """Give (hash, is_leaf) of every page, parents before children; loads inner pages alone, each once."""
        if self.root.depth == 0:
            return
        stack = [iter([(self.root.body, self.units)])]
        while stack:
            item = next(stack[-1], None)
            if item is None:
                stack.pop()
                continue
            is_leaf = len(stack) == self.root.depth
            yield item[0], is_leaf
            if not is_leaf:
                inner = self._inner(*item)
                sizes = map(int.__sub__, inner.starts[1:], inner.starts)
                stack.append(iter(list(zip(inner.hashes, sizes, strict=True))))


class ManifestReader(PageReader[ManifestLeaf]):
    """The chunks of a blob of `size_bytes`, found by offsets of the blob."""

    def __init__(self, root: TreeRoot, size_bytes: int, load: Load) -> None:
        super().__init__(root, size_bytes, load, parse_manifest_leaf)

    def iter_leaves(self, start: int = 0, stop: int | None = None) -> Iterator[ManifestLeaf]:
        """Give the leaves that touch the range, in order."""
        stop = self.units if stop is None else min(stop, self.units)
        while start < stop:
            leaf = self.leaf_at(start)
            yield leaf
            start = leaf.starts[-1]

    def iter_chunks(self, start: int = 0, stop: int | None = None) -> Iterator[tuple[int, int, int, bytes]]:
        """Give (offset in the blob, algorithm, length, digest) of each chunk that touches the range."""
        stop = self.units if stop is None else min(stop, self.units)
        for leaf in self.iter_leaves(start, stop):
            starts = leaf.starts
            first = max(0, bisect_right(starts, start) - 1)
            for index in range(first, len(leaf.entries)):
                if starts[index] >= stop:
                    return
                yield starts[index], *leaf.entries[index]


class StreamReader(PageReader[StreamLeaf]):
    """A paged stream of `length_bytes`."""

    def __init__(self, root: TreeRoot, length_bytes: int, load: Load) -> None:
        super().__init__(root, length_bytes, load, parse_stream_leaf)

    def read(self, offset: int, length: int) -> bytes:
        """Give exactly that range; `IndexError` when it does not lie within the stream."""
        stop = offset + length
        if offset < 0 or length < 0 or stop > self.units:
            raise IndexError(f"{length} bytes at {offset} of {self.units}")
        if length == 0:
            return b""
        start, content = self.leaf_at(offset)
        piece = content[offset - start : stop - start]
        if len(piece) == length:
            return piece
        pieces = [piece]
        offset = start + len(content)
        while offset < stop:
            start, content = self.leaf_at(offset)
            pieces.append(content[: stop - start])
            offset = start + len(content)
        return b"".join(pieces)

    def iter_pieces(self) -> Iterator[bytes]:
        """Give the whole stream, page by page."""
        offset = 0
        while offset < self.units:
            start, content = self.leaf_at(offset)
            yield content
            offset = start + len(content)
