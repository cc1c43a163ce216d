"""The object backend: blobs as whole objects under their hash, in generations. Knows neither names nor SQL.

A writer puts a blob, publishes what names it, and then looks for the marker `gone.N` of the generation that it
relies on: `settle` does that, and puts the blob again as the next generation where a collector was there first.
The look is never left out (docs/design.md, "Collection over a bucket").
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Container, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Final, NamedTuple

from holdfast import _native
from holdfast.backend.objects.bucket import Bucket, Meta
from holdfast.backend.objects.cache import BlockCache
from holdfast.backend.objects.ends import TRIES
from holdfast.backend.objects.layout import (
    DAMAGED,
    DATA,
    GONE,
    OUTBOARD,
    base32_name,
    blob_prefix,
    data_key,
    gone_key,
    outboard_key,
    parse_blob_key,
)
from holdfast.backend.objects.parts import Parts
from holdfast.backend.objects.reader import LargeObjectReader, SmallObjectReader
from holdfast.backend.objects.spool import PIECE_BYTES, Spool, Stock
from holdfast.backend.objects.waiting import Waiting
from holdfast.bao import OutboardBuilder, outboard_bytes
from holdfast.errors import (
    BlobNotFound,
    CorruptBlob,
    FormatError,
    HoldfastError,
    MissingChunk,
    PermissionDenied,
    Unavailable,
)
from holdfast.types import BLOCK_BYTES, BytesLike, Hash

THREADS: Final = 32
MAX_KNOWN: Final = 100_000
SINGLE_PUT_BYTES: Final = 8 << 20
"""Blobs up to here are one conditional PUT; larger ones go up in parts."""
MAX_GENERATIONS: Final = 100
POOL: Final = "holdfast-objects"
MAX_READERS: Final = 32
"""Blobs whose verified trees stay in memory: some 2 MiB each."""
LOOKS: Final = 10
"""How often a reader looks for another generation, each time the one that it knew has gone."""
MISSING: Final = "missing"
"""The reason that is noted for a blob of which nothing is there."""
SHORT: Final = "it is too short"


class Generations(NamedTuple):
    """What is there of a blob: `data` maps each generation to its size, `gone` has those that are marked."""

    data: dict[int, int]
    outboards: frozenset[int]
    gone: frozenset[int]
    modified_ms: int
    name: str = ""
    """How the hash is written in the keys, where not in hex."""

    @property
    def unmarked(self) -> int | None:
        """The generation to rely on: the highest that is not marked."""
        if not self.gone:
            return max(self.data, default=None)
        return max((number for number in self.data if number not in self.gone), default=None)

    @property
    def best(self) -> int | None:
        """The generation to read: the highest that is not marked, else the highest."""
        unmarked = self.unmarked
        return max(self.data, default=None) if unmarked is None else unmarked

    @property
    def next(self) -> int:
        """The generation that is put next."""
        return max((*self.data, *self.gone), default=-1) + 1

    @property
    def was_collected(self) -> bool:
        """Whether a collection took it. An outboard that no marker is above tells of data that was lost otherwise."""
        return not self.data and bool(self.gone) and self.outboards <= self.gone


class ObjectBackend:
    """One process's access to the objects of a store. Threads share it."""

    def __init__(self, bucket: Bucket, *, read_only: bool, cache: BlockCache | None = None) -> None:
        self.bucket = bucket
        self.cache = BlockCache() if cache is None else cache
        self.read_only = read_only
        self.refused: PermissionDenied | None = None
        """Why it is read-only, where nobody has asked for that: the bucket does not let us write."""
        self.pool = ThreadPoolExecutor(THREADS, thread_name_prefix=POOL)
        self.remade_outboards = 0
        self.parts = Parts(bucket, self.pool)
        self._mutex = threading.Lock()
        self._known: OrderedDict[bytes, tuple[int, str]] = OrderedDict()
        """Generation and name of blobs, as they were seen last, where they are not 0 and hex."""
        self.has_base32 = False
        """Whether some keys have hashes in base32; then a blob that is missed is looked for so as well."""
        self._damage: dict[str, tuple[bytes, str]] = {}
        self._readers: OrderedDict[bytes, LargeObjectReader] = OrderedDict()

    def check_writable(self) -> None:
        """`PermissionDenied` where nothing may be written."""
        if not self.read_only:
            return
        where = self.bucket.location
        if self.refused is None:
            raise PermissionDenied(f"the store at {where} was opened read-only", path=where)
        raise PermissionDenied(
            f"the store at {where} can only be read from here: {self.refused}. Give that permission, then open it"
            " anew",
            **{"path": where, **self.refused.evidence},
        )

    # -- reading

    def reader(self, hash_: bytes, size_bytes: int) -> SmallObjectReader | LargeObjectReader:
        """Open a blob that is said to be there."""
        if size_bytes <= BLOCK_BYTES:
            return SmallObjectReader(self, hash_, size_bytes)
        with self._mutex:
            reader = self._readers.pop(hash_, None)
            if reader is None or reader.size_bytes != size_bytes:
                reader = LargeObjectReader(self, hash_, size_bytes)
            self._readers[hash_] = reader
            if len(self._readers) > MAX_READERS:
                self._readers.popitem(last=False)
        return reader

    @staticmethod
    def is_in_pool() -> bool:
        """Whether this thread is one of the pool's: it must not wait for others there, which may all do the same."""
        return threading.current_thread().name.startswith(POOL)

    def damaged(self, hash_: bytes, offset: int) -> CorruptBlob:
        """Take note of wrong bytes, and give the error."""
        self.note_damage(self.data_key(hash_), hash_, "other bytes")
        return CorruptBlob(
            f"the object of blob {hash_.hex()} holds other bytes at {offset}",
            hash=Hash(hash_),
            offset_bytes=offset,
        )

    def fetch(self, hash_: bytes, start: int, stop: int) -> bytes:
        """Give bytes of a blob as the bucket has them; `MissingChunk` when it has no generation of it."""
        if start == stop:
            return b""
        return self._any_generation(hash_, data_key, start, stop)

    def fetch_outboard(self, hash_: bytes, start: int, stop: int) -> bytes:
        """Give bytes of a blob's outboard; `MissingChunk` when there is none."""
        return self._any_generation(hash_, outboard_key, start, stop)

    def _any_generation(
        self, hash_: bytes, key: Callable[[bytes, int, str], str], start: int, stop: int
    ) -> bytes:
        looks = 0
        short = False
        while True:
            place = self._place(hash_)
            try:
                data = self.bucket.get_range(key(hash_, *place), start, stop)
            except FormatError as error:
                self.note_damage(key(hash_, *place), hash_, SHORT)
                raise CorruptBlob(
                    f"an object of blob {hash_.hex()} is shorter than the blob",
                    hash=Hash(hash_),
                    offset_bytes=start,
                ) from error
            if data is not None and len(data) == stop - start:
                return data
            if data is not None:  # a body that was cut off on the way is asked for once more
                if short:
                    self.note_damage(key(hash_, *place), hash_, SHORT)
                    raise CorruptBlob(
                        f"{self.bucket.location} gave {len(data)} of {stop - start} bytes of blob {hash_.hex()}, twice",
                        hash=Hash(hash_),
                        offset_bytes=start,
                    )
                short = True
                continue
            found = self.find(hash_)
            looks += 1
            if looks == LOOKS or found.best not in (found.data if key is data_key else found.outboards):
                raise self.absent(hash_, key(hash_, *place), found)

    def absent(self, hash_: bytes, key: str, found: Generations) -> MissingChunk | BlobNotFound:
        """Give the error for an object that is not there; that of a blob is noted."""
        if found.best is not None:
            return MissingChunk(f"the bucket has no object {key}", hash=Hash(hash_))
        self.note_damage(key, hash_, MISSING)
        if found.was_collected:
            return BlobNotFound(f"blob {hash_.hex()} was collected by another machine", hash=Hash(hash_))
        return MissingChunk(f"the bucket has nothing of blob {hash_.hex()}", hash=Hash(hash_))

    def generation(self, hash_: bytes) -> int:
        """Give the generation that a blob was last seen in."""
        return self._place(hash_)[0]

    def _place(self, hash_: bytes) -> tuple[int, str]:
        return self._known.get(hash_, (0, ""))

    def data_key(self, hash_: bytes, number: int | None = None) -> str:
        """Give the key from which a blob is read; `number`: that of another generation."""
        place, name = self._place(hash_)
        return data_key(hash_, place if number is None else number, name)

    def outboard_key(self, hash_: bytes) -> str:
        """Give the key from which the outboard of a blob is read."""
        return outboard_key(hash_, *self._place(hash_))

    def look(self, hash_: bytes) -> Generations:
        """List what there is of a blob: one request, or two where some hashes are written in base32."""
        found = generations_of(self.bucket.list(blob_prefix(hash_)))
        if self.has_base32 and not found.data:
            name = base32_name(hash_)
            other = generations_of(self.bucket.list(blob_prefix(hash_, name)))
            if other.data:  # the markers of both stand under the hash in hex
                found = other._replace(name=name, gone=other.gone | found.gone)
        self.remember(hash_, found)
        return found

    def find(self, hash_: bytes) -> Generations:
        """List what there is of a blob, for who concludes that it is missing; `Unavailable` where that is not certain.

        A page that something else answers with looks like an empty listing (`ends.py`). So the first generation and its
        marker are asked for as well: of a blob that was ever put, one of them is there.
        """
        for _ in range(TRIES):
            found = self.look(hash_)
            if found.data or found.gone or not self._is_there(hash_):
                return found
        raise Unavailable(
            f"{self.bucket.location}: the listing of {blob_prefix(hash_)} is empty, and there are objects: something"
            " answers in its place. Nothing was concluded from it: try again",
            path=self.bucket.location,
            key=blob_prefix(hash_),
        )

    def _is_there(self, hash_: bytes) -> bool:
        keys = [data_key(hash_), gone_key(hash_, 0)]
        if self.has_base32:
            keys.append(data_key(hash_, 0, base32_name(hash_)))
        return any(self.bucket.head(key) is not None for key in keys)

    def remember(self, hash_: bytes, found: Generations) -> None:
        """Read a blob from where it was seen just now."""
        if found.name or found.best or hash_ in self._known:  # where nearly all are needs no word
            self._remember(hash_, found.best or 0, found.name)

    def note_damage(self, key: str, hash_: bytes, reason: str) -> None:
        """Remember that an object was read twice, and was wrong both times."""
        with self._mutex:
            self._damage[key] = (hash_, reason)

    def forget_damage(self, hashes: Container[bytes]) -> None:
        """Forget what was met of blobs that have been put since."""
        with self._mutex:
            self._damage = {key: found for key, found in self._damage.items() if found[0] not in hashes}

    def is_damaged(self, hash_: bytes) -> bool:
        """Whether damage of a blob was met that nobody has taken note of yet."""
        with self._mutex:
            return any(one == hash_ for one, _ in self._damage.values())

    def take_damage(self) -> dict[str, tuple[bytes, str]]:
        """Give what was met since the last time: (hash, reason) by key."""
        with self._mutex:
            found, self._damage = self._damage, {}
        return found

    def expect(self, hash_: bytes, number: int) -> None:
        """Note the generation that a blob is put as next; that it is so is seen when it is put, or read."""
        if number > self.generation(hash_):
            self._remember(hash_, number)

    def _remember(self, hash_: bytes, number: int, name: str = "") -> None:
        with self._mutex:
            if number or name:
                self._known[hash_] = (number, name)
                if len(self._known) > MAX_KNOWN:
                    self._known.popitem(last=False)
            else:
                self._known.pop(hash_, None)

    # -- putting

    def put(self, blob: Waiting, spool: Stock) -> int:
        """Put a blob and its outboard, unless they are there; gives the generation that has it.

        Nobody may rely on it before it was named and `settle` has looked for the marker of that generation.
        """
        number = self.generation(blob.hash)
        if blob.heals and self.heal(blob, spool):
            return self.generation(blob.hash)
        if blob.size_bytes > SINGLE_PUT_BYTES:
            found = self.look(blob.hash)
            number = found.next if found.unmarked is None else found.unmarked
            if found.data.get(number) == blob.size_bytes:
                if number not in found.outboards and not found.name:
                    self._put_outboard(blob, spool, number)
                return number
        self.put_at(blob, spool, number)
        return number

    def put_at(self, blob: Waiting, spool: Stock, number: int) -> None:
        """Put a blob and its outboard as a generation. One that is there already must have the same bytes."""
        key = data_key(blob.hash, number)
        if blob.size_bytes > SINGLE_PUT_BYTES:
            self.bucket.upload(key, verified(blob, spool), blob.size_bytes)
        else:
            data = b"".join(verified(blob, spool))
            if self.bucket.create(key, data) is None and not self._holds(key, data):
                self.replace_damaged(blob, spool, number)
        if blob.size_bytes > BLOCK_BYTES:
            self._put_outboard(blob, spool, number)
        self._remember(blob.hash, number)

    def _holds(self, key: str, data: BytesLike) -> bool:
        """Look what there is already: whether just these bytes. Others are asked for once more."""
        for _ in range(2):
            try:
                found = self.bucket.get(key, max_bytes=len(data))
            except FormatError:
                return False
            if found is None or found[0] == data:
                return found is not None
        return False

    def heal(self, blob: Waiting, spool: Stock) -> bool:
        """Replace what is damaged of a blob of which the bytes are at hand; False when nothing is there any more."""
        found = self.look(blob.hash)
        if found.best is None:
            return False
        self.replace_damaged(blob, spool, found.best)
        if blob.size_bytes > BLOCK_BYTES:
            length = outboard_bytes(blob.size_bytes)
            key = self.outboard_key(blob.hash)
            self.keep_damaged(key)
            self.bucket.upload(key, spool.iter(blob.outboard_start, length), length)
        return True

    def replace_damaged(self, blob: Waiting, spool: Stock, number: int) -> None:
        """Put right bytes in the place of wrong ones, which are kept under `damaged/`.

        Where it is one request, on the condition that the wrong ones are still there. Else whoever is quicker puts
        the same bytes: the key is their hash, and they were verified before the last of them goes up.
        """
        key = data_key(blob.hash, number, self._place(blob.hash)[1])
        meta = self.keep_damaged(key)
        if blob.size_bytes > SINGLE_PUT_BYTES or meta is None or meta.e_tag is None:
            self.bucket.upload(key, verified(blob, spool), blob.size_bytes)
        else:
            data = b"".join(verified(blob, spool))
            self.bucket.replace(key, data, meta.e_tag)  # None: somebody else has put it right

    def keep_damaged(self, key: str) -> Meta | None:
        """Copy a damaged object aside; gives what it was, None where there is none."""
        meta = self.bucket.head(key)
        if meta is not None:
            self.bucket.copy(key, f"{DAMAGED}{key}")
        return meta

    def put_outboard(self, hash_: bytes, spool: Spool) -> None:
        """Put a computed outboard where the blob's belongs; a damaged one is kept under `damaged/`."""
        key = self.outboard_key(hash_)
        self.keep_damaged(key)
        self.bucket.upload(key, spool.iter(0, spool.size_bytes), spool.size_bytes)

    def _put_outboard(self, blob: Waiting, spool: Stock, number: int) -> None:
        length = outboard_bytes(blob.size_bytes)
        key = outboard_key(blob.hash, number)
        if length > SINGLE_PUT_BYTES:
            self.bucket.upload(key, spool.iter(blob.outboard_start, length), length)
        else:
            self.bucket.create(
                key, spool.read(blob.outboard_start, length)
            )  # a wrong one is noticed by who reads it

    def settle(
        self, hash_: bytes, size_bytes: int | None, number: int | None, again: tuple[Waiting, Stock] | None
    ) -> bool:
        """See that a blob that has just been named stays: the generation relied on is there, and not marked.

        `number` is the one that was put for this name; None where nothing was, so that it is looked for as well. Where
        a collector was there first, the blob goes up again as the next generation (True): `again` has its bytes, or it
        is copied from a generation that is there. `BlobNotFound` when none is: the name came too late.
        """
        relied = self.generation(hash_) if number is None else number
        marked = {relied} if self.bucket.head(gone_key(hash_, relied)) is not None else set()
        if not marked and (number is not None or self._has(self.data_key(hash_), size_bytes)):
            return False
        for _ in range(MAX_GENERATIONS):
            found = self.find(hash_)
            found = found._replace(gone=found.gone | marked)  # a marker stays, whatever a listing says
            if found.unmarked is not None and (again is None or found.data[found.unmarked] == size_bytes):
                return False
            if again is not None:
                self.put_at(*again, found.next if found.unmarked is None else found.unmarked)
                return True
            if found.best is None:
                self.note_damage(self.data_key(hash_), hash_, MISSING)
                raise BlobNotFound(f"blob {hash_.hex()} was collected before it was named", hash=Hash(hash_))
            if self._copy(hash_, found.best, found):
                return True
        raise Unavailable(f"blob {hash_.hex()} is collected faster than it can be copied: try again")

    def _has(self, key: str, size_bytes: int | None) -> bool:
        meta = self.bucket.head(key)
        return meta is not None and size_bytes in (meta.size_bytes, None)

    def _copy(self, hash_: bytes, source: int, found: Generations) -> bool:
        """Give a blob its next generation from another; False when that has gone meanwhile."""
        number = found.next
        if self.bucket.copy(data_key(hash_, source, found.name), data_key(hash_, number)) is None:
            return False
        if found.data[source] > BLOCK_BYTES and source in found.outboards:
            self.bucket.copy(outboard_key(hash_, source, found.name), outboard_key(hash_, number))
        self._remember(hash_, number)
        return True

    def remake_outboard(self, hash_: bytes, size_bytes: int) -> Spool:
        """Compute an outboard that is missing or damaged from the data, and put it in its place where that is allowed.

        `CorruptBlob` when the data has another hash.
        """
        spool = Spool()
        with OutboardBuilder() as builder:
            hasher = _native.BlobHasher()
            for start in range(0, size_bytes, PIECE_BYTES):
                hasher.update(self.fetch(hash_, start, min(start + PIECE_BYTES, size_bytes)))
                builder.feed(hasher.take_groups())
            root, rest = hasher.finish()
            if root != hash_:
                self.note_damage(self.data_key(hash_), hash_, "other bytes")
                raise CorruptBlob(f"the object of blob {hash_.hex()} holds other bytes", hash=Hash(hash_))
            builder.feed(rest)
            for part in builder.finish(size_bytes):
                spool.append(part)
        self.remade_outboards += 1
        if not self.read_only:
            with suppress(HoldfastError):  # it serves this reader all the same
                self.put_outboard(hash_, spool)
        return spool

    def close(self) -> None:
        """Let go of the bucket; what is under way ends first."""
        self.pool.shutdown()
        self.cache.close()
        self.bucket.close()


def generations_of(metas: Iterable[Meta]) -> Generations:
    """Say what the objects of one blob make up."""
    data: dict[int, int] = {}
    parts: dict[str, set[int]] = {OUTBOARD: set(), GONE: set()}
    modified = 0
    for meta in metas:
        key = parse_blob_key(meta.key)
        if key is None:
            continue
        if key.part == DATA:
            data[key.generation] = meta.size_bytes
            modified = max(modified, meta.modified_ms)
        else:
            parts[key.part].add(key.generation)
    return Generations(data, frozenset(parts[OUTBOARD]), frozenset(parts[GONE]), modified)


def verified(blob: Waiting, spool: Stock) -> Iterator[BytesLike]:
    """Give the bytes of a blob, and fail before the last of them where they are not what was hashed."""
    hasher = _native.BlobHasher()
    held: BytesLike = b""
    for piece in spool.iter(blob.start, blob.size_bytes):
        if held:
            yield held
        hasher.update(piece)
        hasher.take_groups()
        held = piece
    if hasher.finish()[0] != blob.hash:
        raise spool.wrong(blob.hash)
    yield held
