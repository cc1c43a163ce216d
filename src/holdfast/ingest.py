"""Bringing blobs into a group: cut, hash, look up, compress, append; each byte read once, in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from holdfast import _native
from holdfast.bao import OutboardBuilder
from holdfast.chunking import Chunking, Cutter
from holdfast.compress import compress
from holdfast.errors import TooLarge
from holdfast.types import BLOCK_BYTES, HASH_BYTES, MAX_BLOB_BYTES, BytesLike
from holdfast.wire.document import BlobDocument, encode_blob
from holdfast.wire.pages import ManifestWriter, StreamWriter
from holdfast.wire.record import FLAG_BLOB, Kind

if TYPE_CHECKING:
    from hashlib import _Hash

MAX_SEEN: Final = 400_000
"""Chunks of a group that are remembered (48 MiB or so); those forgotten may be stored twice, which does no harm."""
_DATA: Final = bytes((Kind.DATA,))


class Sink(Protocol):
    """A group of the backend."""

    def add(
        self, kinds: bytes, flags: bytes, hashes: bytes, plain: Sequence[int], payloads: Sequence[BytesLike]
    ) -> None: ...
    def add_one(self, kind: Kind, payload: bytes, *, flags: int = 0) -> bytes: ...


class Lookup(Protocol):
    """What is in the store already."""

    def find_data(self, hashes: Sequence[bytes]) -> dict[bytes, tuple[int, int, int, int]]: ...
    def find_blobs(self, hashes: Sequence[bytes]) -> Mapping[bytes, BlobFound]: ...


class BlobFound(Protocol):
    """A blob that is there."""

    @property
    def chunks(self) -> int: ...


class Stored(NamedTuple):
    """A blob that is in the store, or will be with the group."""

    hash: bytes
    size_bytes: int
    chunk_count: int
    sha256: bytes | None = None


def check_blob_size(size_bytes: int, max_bytes: int | None) -> None:
    """Raise `TooLarge` for what has more bytes than `max_artifact_bytes` allows, or than any blob may have."""
    limit = min(max_bytes or MAX_BLOB_BYTES, MAX_BLOB_BYTES)
    if size_bytes > limit:
        raise TooLarge(
            f"the data has more than the {limit} bytes that max_artifact_bytes allows", limit_bytes=limit
        )


class Ingest:
    """Adds blobs to one group. One thread at a time.

    A chunk counts as there when the catalog has a row for it or this very group holds it, never because
    another thread has appended it and not committed yet.
    """

    def __init__(
        self,
        group: Sink,
        lookup: Callable[[], Lookup],
        chunking: Chunking,
        pool: ThreadPoolExecutor,
        *,
        compression: str,
        max_bytes: int | None = None,
        sha256: bool = False,
    ) -> None:
        self.sha256 = sha256
        """Whether a SHA-256 is computed beside the BLAKE3 of each blob, in other threads."""
        self._group = group
        self._lookup = lookup
        self.chunking = chunking
        self._pool = pool
        self._compress = compression == "zstd"
        self._max_bytes = max_bytes
        self._seen: set[bytes] = set()
        self._blobs: dict[bytes, int] = {}

    def add(self, windows: Iterator[BytesLike], watch: Callable[[int], None] | None = None) -> Stored:
        """Add the blob that the windows make up. `watch` hears of bytes read, and may raise."""
        with self.stream() as stream:
            for window in windows:
                stream.push(window)
                if watch is not None:
                    watch(len(window))
            return stream.finish()

    def add_many(self, items: Sequence[BytesLike]) -> list[Stored]:
        """Add whole blobs that are in memory, with one look-up for all."""
        if self.sha256:
            sums = self._pool.map(_sha256_all, [items[start::2] for start in range(2)])
            added = self._add_many(items)  # while the sums are computed
            for start, digests in enumerate(sums):
                added[start::2] = [
                    stored._replace(sha256=digest)
                    for stored, digest in zip(added[start::2], digests, strict=True)
                ]
            return added
        return self._add_many(items)

    def _add_many(self, items: Sequence[BytesLike]) -> list[Stored]:
        small = [i for i, item in enumerate(items) if len(item) <= BLOCK_BYTES]
        if len(small) == len(items):
            return self._add_small(items)
        results: list[Stored | None] = [None] * len(items)
        for i, stored in zip(small, self._add_small([items[i] for i in small]), strict=True):
            results[i] = stored
        large = [i for i, item in enumerate(items) if len(item) > BLOCK_BYTES]
        for i, stored in zip(large, self._add_large([items[i] for i in large]), strict=True):
            results[i] = stored
        return [stored for stored in results if stored is not None]

    def check_size(self, size_bytes: int) -> None:
        """Refuse a blob above the limit as soon as it is known."""
        check_blob_size(size_bytes, self._max_bytes)

    # -- blobs of one block

    def _add_small(self, items: Sequence[BytesLike]) -> list[Stored]:
        if not items:
            return []
        digests = _native.blake3_list(items)
        hashes = [digests[i : i + HASH_BYTES] for i in range(0, len(digests), HASH_BYTES)]
        found = self._lookup().find_data(hashes)
        blobs = self._blobs
        fresh = []
        for i, hash_ in enumerate(hashes):
            if hash_ not in blobs:
                row = found.get(hash_)
                if row is None or not row[3] & FLAG_BLOB:
                    fresh.append(i)
                blobs[hash_] = 1
        if len(blobs) > MAX_SEEN:
            blobs.clear()
        if fresh:
            all_new = len(fresh) == len(items)
            payloads = list(items) if all_new else [items[i] for i in fresh]
            packed = digests if all_new else b"".join([hashes[i] for i in fresh])
            self._append(payloads, packed, FLAG_BLOB)
        return [Stored(hash_, len(item), 1) for hash_, item in zip(hashes, items, strict=True)]

    def _append(self, payloads: list[BytesLike], hashes: bytes, flags: int) -> None:
        plain = [len(payload) for payload in payloads]
        stored: Sequence[BytesLike] = payloads
        marks = bytes((flags,)) * len(payloads)
        if self._compress:
            stored, packed = compress(payloads, self._pool)
            if any(packed):
                marks = bytes(mark | flags for mark in packed)
        self._group.add(_DATA * len(payloads), marks, hashes, plain, stored)

    # -- larger blobs that are in memory

    def _add_large(self, items: Sequence[BytesLike]) -> list[Stored]:
        trees = []
        for item in items:
            hasher = _native.BlobHasher()
            hasher.update(item)
            trees.append(hasher.finish())
        hashes = [root for root, _ in trees]
        known = {hash_: blob.chunks for hash_, blob in self._lookup().find_blobs(hashes).items()}
        cuts: dict[bytes, tuple[list[int], bytes]] = {}
        chunks: list[memoryview] = []
        for item, root in zip(items, hashes, strict=True):
            if root in known or root in self._blobs or root in cuts:
                continue
            lengths, digests = self._cut_whole(item, root)
            cuts[root] = lengths, digests
            view, at = memoryview(item), 0
            for length in lengths:
                chunks.append(view[at : at + length])
                at += length
        self.add_chunks(chunks, b"".join([digests for _, digests in cuts.values()]))
        results = []
        for item, (root, groups) in zip(items, trees, strict=True):
            count = known.get(root) or self._blobs.get(root)
            if count is None:
                lengths, digests = cuts[root]
                manifest = ManifestWriter(self.emit_manifest)
                manifest.extend(lengths, digests)
                outboard = OutboardBuilder()
                outboard.feed(groups)
                count = self._describe(root, len(item), manifest, outboard)
            results.append(Stored(root, len(item), count))
        return results

    def _cut_whole(self, item: BytesLike, root: bytes) -> tuple[list[int], bytes]:
        """Give lengths and packed digests; a blob of one chunk is named like its chunk."""
        cutter = self.chunking.make_cutter()
        lengths = cutter.feed(item)
        rest = cutter.finish()
        if rest:
            lengths.append(rest)
        return lengths, root if len(lengths) == 1 else _native.blake3_many(item, lengths)

    def add_chunks(self, chunks: Sequence[memoryview], digests: bytes) -> None:
        """Append the chunks that are not there yet."""
        seen = self._seen
        wanted: dict[bytes, memoryview] = {}
        for i, chunk in enumerate(chunks):
            digest = digests[i * HASH_BYTES : (i + 1) * HASH_BYTES]
            if digest not in seen:
                wanted.setdefault(digest, chunk)
        if not wanted:
            return
        found = self._lookup().find_data(list(wanted))
        fresh = [digest for digest in wanted if digest not in found] if found else list(wanted)
        if len(seen) > MAX_SEEN:
            seen.clear()
        seen.update(wanted)
        if fresh:
            self._append([wanted[digest] for digest in fresh], b"".join(fresh), 0)

    # -- streams

    def stream(self) -> BlobStream:
        """Begin a blob that comes in windows."""
        return BlobStream(self)

    def cut_ahead(
        self,
        window: BytesLike,
        carry: list[BytesLike],
        cutter: Cutter,
        hasher: _native.BlobHasher,
        sha256: _Hash | None,
    ) -> Ahead:
        """Cut a window and hash its chunks in one thread, hash it as a part of the whole in another."""
        return Ahead(
            self._pool.submit(_cut, window, carry, cutter),
            self._pool.submit(_hash, window, hasher),
            None if sha256 is None else self._pool.submit(sha256.update, window),
        )

    def new_sha256(self) -> _Hash | None:
        """Begin a SHA-256, where one is wanted."""
        if not self.sha256:
            return None
        from hashlib import sha256

        return sha256()

    # -- what describes a blob

    def finish_blob(
        self, root: bytes, size: int, manifest: ManifestWriter, outboard: OutboardBuilder
    ) -> Stored:
        """Append what describes a blob whose chunks are all there, unless it is known."""
        known = self._lookup().find_blobs((root,)).get(root)
        count = known.chunks if known is not None else self._describe(root, size, manifest, outboard)
        return Stored(root, size, count)

    def _describe(self, root: bytes, size: int, manifest: ManifestWriter, outboard: OutboardBuilder) -> int:
        stream = StreamWriter(self.emit_outboard)
        for part in outboard.finish(size):
            stream.write(part)
        document = BlobDocument(root, size, manifest.chunk_count, manifest.finish(), stream.finish())
        self._group.add_one(Kind.BLOB, encode_blob(document))
        if len(self._blobs) > MAX_SEEN:
            self._blobs.clear()
        self._blobs[root] = manifest.chunk_count
        return manifest.chunk_count

    def emit_manifest(self, page: bytes) -> bytes:
        return self._emit(Kind.MANIFEST_PAGE, page)

    def emit_outboard(self, page: bytes) -> bytes:
        return self._emit(Kind.OUTBOARD_PAGE, page)

    def _emit(self, kind: Kind, page: bytes) -> bytes:
        hash_ = _native.blake3(page)
        if hash_ not in self._seen and not self._lookup().find_data((hash_,)):
            self._group.add_one(kind, page)
            self._seen.add(hash_)
        return hash_


class BlobStream:
    """One blob that comes in windows: while one is looked up and written, two threads work on the next.

    A blob of a single window is added as one that is in memory. Use as a context manager: whatever happens,
    nothing works on its buffers afterwards.
    """

    def __init__(self, ingest: Ingest) -> None:
        self.size_bytes = 0
        self._ingest = ingest
        self._first: BytesLike | None = None
        self._long: _LongBlob | None = None

    def push(self, window: BytesLike) -> None:
        """Take the next bytes; they must not change until `finish`."""
        if not len(window):
            return
        self._ingest.check_size(self.size_bytes + len(window))
        if self.size_bytes == 0:
            self._first = window
        else:
            if self._long is None:
                self._long = _LongBlob(self._ingest)
            if self._first is not None:
                self._long.advance(self._first)
                self._first = None
            self._long.advance(window)
        self.size_bytes += len(window)

    def finish(self) -> Stored:
        """Add what is left and what describes the blob."""
        if self._long is not None:
            return self._long.finish(self.size_bytes)
        (stored,) = self._ingest.add_many([self._first if self._first is not None else b""])
        return stored

    def close(self) -> None:
        """Wait for the other thread, and give memory back."""
        if self._long is not None:
            self._long.close()

    def __enter__(self) -> BlobStream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _LongBlob:
    """The state of a blob of more than one window."""

    def __init__(self, ingest: Ingest) -> None:
        self._ingest = ingest
        self._carry: list[BytesLike] = []
        self._pending: Ahead | None = None
        self._cutter = ingest.chunking.make_cutter()
        self._hasher = _native.BlobHasher()
        self._manifest = ManifestWriter(ingest.emit_manifest)
        self._outboard = OutboardBuilder()
        self._sha256 = ingest.new_sha256()

    def advance(self, window: BytesLike) -> None:
        """Have the window cut and hashed, and meanwhile take what was cut before."""
        done = (
            None if self._pending is None else self._pending.result()
        )  # one at a time: windows are in order
        self._pending = self._ingest.cut_ahead(window, self._carry, self._cutter, self._hasher, self._sha256)
        if done is not None:
            self._take(*done)

    def finish(self, size_bytes: int) -> Stored:
        """Take the rest, and append what describes the blob."""
        if self._pending is not None:
            self._take(*self._pending.result())
        rest = self._cutter.finish()
        if rest:
            data = b"".join(self._carry)
            self._take(Cut([memoryview(data)], [rest], _native.blake3(data)), b"")
        root, groups = self._hasher.finish()
        self._outboard.feed(groups)
        stored = self._ingest.finish_blob(root, size_bytes, self._manifest, self._outboard)
        return stored if self._sha256 is None else stored._replace(sha256=self._sha256.digest())

    def close(self) -> None:
        """Wait for the other threads, and give memory back."""
        if self._pending is not None:
            self._pending.wait()
        self._outboard.close()

    def _take(self, cut: Cut, groups: bytes) -> None:
        self._outboard.feed(groups)
        if cut.lengths:
            self._ingest.add_chunks(cut.chunks, cut.digests)
            self._manifest.extend(cut.lengths, cut.digests)


class Cut(NamedTuple):
    """Whole chunks and their digests, packed."""

    chunks: list[memoryview]
    lengths: list[int]
    digests: bytes


class Ahead(NamedTuple):
    """What is being done with a window: its chunks, and the chaining values of the blocks that it completes."""

    cut: Future[Cut]
    groups: Future[bytes]
    sha256: Future[None] | None

    def result(self) -> tuple[Cut, bytes]:
        """Wait for all; raises what any raised."""
        if self.sha256 is not None:
            self.sha256.result()
        return self.cut.result(), self.groups.result()

    def wait(self) -> None:
        """Wait for all, whatever becomes of them."""
        if self.sha256 is not None:
            self.sha256.exception()
        self.cut.exception()
        self.groups.exception()


def _hash(window: BytesLike, hasher: _native.BlobHasher) -> bytes:
    hasher.update(window)
    return hasher.take_groups()


def _sha256_all(items: Sequence[BytesLike]) -> list[bytes]:
    from hashlib import sha256

    return [sha256(item).digest() for item in items]


def _cut(window: BytesLike, carry: list[BytesLike], cutter: Cutter) -> Cut:
    """Cut one window and hash its chunks; `carry` holds the beginning of the chunk that is still open."""
    lengths = cutter.feed(window)
    view = memoryview(window)
    if not lengths:
        carry.append(view)
        return Cut([], [], b"")
    at = lengths[0] - sum(map(len, carry))
    if at < 0:  # the cutter looks at two bytes at a time: it saw the cut one byte after it, in this window
        view = memoryview(b"".join((*carry, view)))
        carry.clear()
        at = lengths[0]
    first = memoryview(b"".join((*carry, view[:at]))) if carry else view[:at]
    rest = sum(lengths[1:])
    digests = _native.blake3(first) + _native.blake3_many(view[at : at + rest], lengths[1:])
    chunks = [first]
    for length in lengths[1:]:
        chunks.append(view[at : at + length])
        at += length
    carry[:] = [view[at:]] if at < len(view) else []
    return Cut(chunks, lengths, digests)
