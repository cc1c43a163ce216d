"""Hash seqs: blobs that are 32-byte hashes, one after another. Iterated, encoded and decoded with their children.

Nothing here holds all of one in memory. A blob does not say that it is a hash seq; whoever reads one as such says so,
and how deep to go. Children may be missing: a hash seq is a list of names, as in iroh.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from itertools import chain, repeat
from typing import IO, Final, cast

from holdfast.backend.log.session import LEASE_HASH_SEQ, LEASE_RAW
from holdfast.bao_stream import Decoder, iter_verified
from holdfast.catalog import BlobRow
from holdfast.core import Core, entered
from holdfast.encoding import BaoStream, Encoding
from holdfast.errors import (
    BlobNotFound,
    CorruptStream,
    FormatError,
    HoldfastError,
    InvalidInput,
    RemoteProtocolError,
)
from holdfast.partials import PartialBlobs, Stream, bitfield, checked, look, open_source, stream_error
from holdfast.ranges import ChunkRanges
from holdfast.types import HASH_BYTES, BytesLike, Hash, Progress, ProgressCallback, SeqInfo
from holdfast.wire.collection import iter_hashes

MAX_DEPTH: Final = 16
"""How deep hash seqs of hash seqs are followed; cycles cannot be made, but a blob may be taken for what it is not."""
PAGE_CHILDREN: Final = 1_024
BATCH_BYTES: Final = 4 << 20
BATCH_CHILDREN: Final = 4_096
BATCH_SECONDS: Final = 1.0
SMALL_BYTES: Final = 256 << 10
"""Children up to here share an acknowledgement when they are taken in; larger ones have checkpoints of their own."""
_SIZE_BYTES: Final = 8


class HashSeqs(PartialBlobs):
    """The part of `store.blobs` that is about hash seqs."""

    _encoding: Encoding

    @entered
    def children(self, hash: Hash, *, depth: int = 1) -> Iterator[Hash]:
        """Give the hashes in a hash seq, in order, read a piece at a time; `FormatError` where it can be none.

        `depth`: children down to this level are hash seqs too, as far as they are here and can be; each is followed
        by its own children. `BlobNotFound` when the first is not here, `RangeNotAvailable` when not all of it is.
        """
        if not 1 <= depth <= MAX_DEPTH:
            raise InvalidInput(f"depth is {depth}; 1 to {MAX_DEPTH} are allowed")
        core = self._core
        with core.operation():
            _check_size(checked(hash), core.reader(hash).size_bytes)
        return (Hash(digest) for digest in _walk(core, hash, depth))

    @entered
    def encode_seq(self, hash: Hash, ranges: Iterable[ChunkRanges] | None = None) -> Iterator[bytes]:
        """Give the BAO streams of a hash seq and of its children, one after another, as iroh sends them.

        `ranges`: of the hash seq itself, then of each child in turn; none for those behind the last. All of all if
        None. A child that is not here is `BlobNotFound`, or `RangeNotAvailable`, with its position as `child`, when
        its turn comes; one that is named twice is sent twice.
        """
        core = self._core
        wanted = repeat(ChunkRanges.all()) if ranges is None else iter(ranges)
        first = next(wanted, ChunkRanges.empty())
        with core.operation():
            _check_size(checked(hash), core.reader(hash).size_bytes)
        return self._encode_seq(hash, first, wanted)

    def _encode_seq(self, hash: Hash, first: ChunkRanges, wanted: Iterator[ChunkRanges]) -> Iterator[bytes]:
        core = self._core
        with core.operation():
            if core.catalog.find_blob(hash.digest) is not None:
                core.claim(hash, 1)
            yield from BaoStream(core, self._encoding, hash, first)
            for number, (digest, ranges) in enumerate(zip(_walk(core, hash, 1), wanted, strict=False)):
                if not ranges:
                    continue
                try:
                    yield from BaoStream(core, self._encoding, Hash(digest), ranges)
                except HoldfastError as error:
                    error.evidence["child"] = number
                    raise

    @entered
    def decode_seq(
        self,
        hash: Hash,
        stream: Stream,
        ranges: Iterable[ChunkRanges] | None = None,
        *,
        progress: ProgressCallback | None = None,
    ) -> SeqInfo:
        """Take in what `encode_seq` gives for the same `ranges`; say what of the hash seq is here then.

        As with `decode`, what verifies is kept whatever happens to the rest, and held for the caller to name; errors
        are those of `decode`, with the child's position as `child` (-1: the hash seq itself) and `offset_bytes` in its
        stream. `FormatError` when the hash seq turns out to be none: it is kept all the same.
        """
        core = self._core
        checked(hash)
        core.check_writable()  # before anything is read
        source = _Source(open_source(stream))
        wanted = repeat(ChunkRanges.all()) if ranges is None else iter(ranges)
        taking = _Taking(self, source, progress)
        taking.take(-1, hash.digest, next(wanted, ChunkRanges.empty()))
        taking.flush(LEASE_HASH_SEQ)
        found = look(core, hash.digest)
        if found is not None:
            _check_size(hash, found.size if isinstance(found, BlobRow) else found.size_bytes)
            self._take_children(hash, taking, wanted, is_whole=isinstance(found, BlobRow))
        source.finish(hash)
        return seq_info(core, hash)

    def _take_children(
        self, hash: Hash, taking: _Taking, wanted: Iterator[ChunkRanges], *, is_whole: bool
    ) -> None:
        """Take in the children. A hash seq that is whole holds them; else each is held by itself."""
        core = self._core
        slots = []
        if is_whole:
            with core.operation():
                core.claim(hash, 1)
                slots = core.lease([hash.digest], LEASE_HASH_SEQ)
        try:
            for number, (digest, ranges) in enumerate(zip(_walk(core, hash, 1), wanted, strict=False)):
                taking.take(number, digest, ranges)
        finally:
            try:
                taking.flush(None if is_whole else LEASE_RAW)
            finally:
                for slot in slots:
                    self._hold(hash.digest, LEASE_HASH_SEQ)  # as the last one: how many are held is bounded
                    core.release(slot)

    @entered
    def missing_seq(self, hash: Hash) -> Iterator[ChunkRanges]:
        """Say what to ask for next, as `encode_seq` takes it: of the hash seq, then of each child.

        While the hash seq itself is not complete, nobody knows its children: it is all that is given.
        """
        core = self._core
        first = bitfield(core, checked(hash).digest).missing

        def rest() -> Iterator[ChunkRanges]:
            if not first:
                for digest in _walk(core, hash, 1):
                    yield bitfield(core, digest).missing

        return chain([first], rest())

    @entered
    def seq_info(self, hash: Hash) -> SeqInfo:
        """Say how much of a hash seq and of its children is here; time goes with their number."""
        return seq_info(self._core, checked(hash))


def seq_info(core: Core, hash: Hash) -> SeqInfo:
    """Count what is here."""
    found = look(core, hash.digest)
    if found is None:
        raise BlobNotFound(f"there is no blob {hash}", hash=hash)
    if not isinstance(found, BlobRow):
        return SeqInfo(hash=hash, children=found.size_bytes // HASH_BYTES, is_complete=False)
    children = complete = size = partial = 0
    digests = _walk(core, hash, 1)
    begun: set[bytes] | None = None
    while page := [digest for digest, _ in zip(digests, range(PAGE_CHILDREN), strict=False)]:
        here = core.catalog.find_blobs(list(dict.fromkeys(page)))
        children += len(page)
        for digest in page:
            row = here.get(digest)
            if row is not None:
                complete, size = complete + 1, size + row.size
                continue
            if begun is None:
                begun = set(core.partial_hashes())
            partial += digest in begun and core.partial(digest) is not None
    return SeqInfo(
        hash=hash,
        children=children,
        is_complete=complete == children,
        complete_children=complete,
        partial_children=partial,
        complete_bytes=size,
    )


def _walk(core: Core, hash: Hash, depth: int) -> Iterator[bytes]:
    """Give the hashes in a hash seq, and in those down to `depth`, each followed by its own."""
    levels = [_digests(core, hash)]
    while levels:
        digest = next(levels[-1], None)
        if digest is None:
            levels.pop()
            continue
        yield digest
        if len(levels) < depth:
            row = core.catalog.find_blob(digest)
            if row is not None and row.size % HASH_BYTES == 0:
                levels.append(_digests(core, Hash(digest)))


def _digests(core: Core, hash: Hash) -> Iterator[bytes]:
    """Read a hash seq a page at a time; nothing is pinned between two pages."""
    offset, size = 0, 1
    while offset < size:
        with core.operation():
            reader = core.reader(hash)
            size = reader.size_bytes
            _check_size(hash, size)
            page = reader.read_at(offset, min(PAGE_CHILDREN * HASH_BYTES, size - offset))
        offset += len(page)
        yield from iter_hashes([page])


def _check_size(hash: Hash, size_bytes: int) -> None:
    if size_bytes % HASH_BYTES:
        raise FormatError(f"{hash} is no hash seq: its {size_bytes} bytes are not hashes of 32", hash=hash)


class _Taking:
    """Takes in one stream after another; small blobs are gathered, so that many share an acknowledgement."""

    def __init__(self, blobs: HashSeqs, source: _Source, progress: ProgressCallback | None) -> None:
        self._blobs = blobs
        self._core = blobs._core
        self._source = source
        self._progress = progress
        self._done = 0
        self._small: dict[bytes, bytes] = {}
        self._bytes = 0
        self._since = 0.0

    def take(self, number: int, digest: bytes, ranges: ChunkRanges) -> None:
        """Take in the stream of one blob."""
        if not ranges:
            return
        source, limit = self._source, min(SMALL_BYTES, self._core.options.max_artifact_bytes or SMALL_BYTES)
        try:
            head = source.read(_SIZE_BYTES)
            source.unread(head)
            is_small = len(head) == _SIZE_BYTES and int.from_bytes(head, "little") <= limit
            if is_small and ranges == ChunkRanges.all():
                self._gather(digest)
            else:
                self.flush(LEASE_RAW)
                self._blobs.decode(
                    Hash(digest), cast(IO[bytes], source), ranges, progress=self._watch(number)
                )
        except HoldfastError as error:
            error.evidence["child"] = number
            raise

    def flush(self, kind: int | None) -> None:
        """Make durable what was gathered, and (unless `kind` is None) hold it by leases of this kind."""
        small, self._small, self._bytes = self._small, {}, 0
        if not small:
            return
        core = self._core
        with core.adding() as (group, ingest):
            ingest.add_many(list(small.values()))
            if not group.is_empty:
                group.commit()
            if kind is not None:
                for digest in small:
                    self._blobs._hold(digest, kind)
        self._blobs._engine.retire_partials(small)

    def _gather(self, digest: bytes) -> None:
        decoder = Decoder(digest, None)
        try:
            data = b"".join([piece for _, piece in iter_verified(decoder, cast(IO[bytes], self._source))])
        except CorruptStream as error:
            raise stream_error(error) from error
        if not self._small:
            self._since = time.monotonic()
        self._small[digest] = data
        self._bytes += len(data)
        self._tell(len(data))
        is_full = self._bytes >= BATCH_BYTES or len(self._small) >= BATCH_CHILDREN
        if is_full or time.monotonic() - self._since >= BATCH_SECONDS:
            self.flush(LEASE_RAW)

    def _tell(self, more_bytes: int) -> None:
        self._done += more_bytes
        if self._progress is not None:
            self._progress(Progress(phase="decode", done_bytes=self._done))

    def _watch(self, number: int) -> ProgressCallback:
        before = self._done

        def watch(one: Progress) -> None:
            self._tell(before + one.done_bytes - self._done)

        return watch


class _Source:
    """A source of streams that follow one another: gives no more than it is asked for, and takes back."""

    def __init__(self, source: IO[bytes] | Iterable[BytesLike]) -> None:
        self._read = getattr(source, "read", None)
        self._pieces = iter(()) if self._read is not None else iter(source)
        self._rest = memoryview(b"")

    def read(self, length: int) -> bytes:
        """Give up to `length` bytes; none at the end alone."""
        parts: list[bytes] = []
        while length:
            if not self._rest:
                piece = self._read(length) if self._read is not None else next(self._pieces, None)
                if not piece:
                    if piece is None or self._read is not None:
                        break
                    continue
                self._rest = memoryview(piece)
            part = self._rest[:length]
            self._rest = self._rest[len(part) :]
            parts.append(bytes(part))
            length -= len(part)
        return b"".join(parts)

    def unread(self, data: bytes) -> None:
        """Take back what was read last."""
        self._rest = memoryview(data + bytes(self._rest))

    def finish(self, hash: Hash) -> None:
        """Refuse what follows, where that cannot be somebody else's."""
        if self._read is None and self.read(1):
            raise RemoteProtocolError(
                f"something follows the streams of hash seq {hash}", hash=hash, reason="trailing"
            )
