"""What a collection does to a bucket: markers, deletions by generation, and a note of who collects.

No condition spans two keys, so a generation of a blob goes in three steps: its marker `gone.N` is made, then the names
are read, then exactly that generation is deleted if none needs it. Markers stay for ever. Whoever names a blob looks
for the marker afterwards (`ObjectBackend.settle`), so one of the two always sees the other (models/bucket.pml).
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import groupby
from typing import Any, Final, NamedTuple

import msgspec

from holdfast.backend.objects.backend import ObjectBackend
from holdfast.backend.objects.bucket import Bucket, Meta
from holdfast.backend.objects.ends import list_whole
from holdfast.backend.objects.layout import (
    BLOBS,
    COLLECTOR_KEY,
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
from holdfast.errors import HoldfastError, Locked, Unavailable
from holdfast.types import now_ms, to_datetime

STALE_SECONDS: Final = 600
"""Who collects says so every minute. After so long in silence it is taken for dead, wrongly at worst."""
BEAT_SECONDS: Final = 60
MAX_NOTE_BYTES: Final = 4_096
PAGE_KEYS: Final = 1_000
"""How many keys one LIST gives, and one DELETE takes."""


class BlobObjects(NamedTuple):
    """The objects of one blob, by generation."""

    hash: bytes
    data: dict[int, Meta]
    outboards: dict[int, Meta]
    gone: frozenset[int]

    @property
    def unmarked(self) -> int | None:
        """The highest generation without a marker."""
        return max((number for number in self.data if number not in self.gone), default=None)

    @property
    def strays(self) -> list[int]:
        """Marked generations of which something is there though a name of the blob has no use for it."""
        best = self.unmarked
        useless = [
            number for number in self.data if number in self.gone and best is not None and number < best
        ]
        alone = [number for number in self.outboards if number in self.gone and number not in self.data]
        return sorted({*useless, *alone})

    def bytes_of(self, numbers: Iterable[int]) -> int:
        """Give the bytes that generations take."""
        parts = (part[number] for number in numbers for part in (self.data, self.outboards) if number in part)
        return sum(meta.size_bytes for meta in parts)


def iter_blobs(backend: ObjectBackend) -> Iterator[BlobObjects]:
    """List what there is of all blobs, in the order of their keys; what is not ours is passed over.

    A blob whose hash is written in base32 comes in its place with all there is of it, and again with what stands in
    hex, if anything does: their generations and markers are the same. It costs a listing of its own.
    """
    bucket = backend.bucket
    keyed = ((parse_blob_key(meta.key), meta) for meta in list_whole(bucket, BLOBS))
    ours = ((key, meta) for key, meta in keyed if key is not None)
    for name, group in groupby(ours, lambda one: one[0].name):
        found = list(group)
        hash_ = found[0][0].hash
        if name != hash_.hex():
            backend.has_base32 = True
            in_hex = ((parse_blob_key(meta.key), meta) for meta in bucket.list(blob_prefix(hash_)))
            found += ((key, meta) for key, meta in in_hex if key is not None)
        data: dict[int, Meta] = {}
        outboards: dict[int, Meta] = {}
        gone: set[int] = set()
        for key, meta in found:
            if key.part == DATA:
                data[key.generation] = meta
            elif key.part == OUTBOARD:
                outboards[key.generation] = meta
            elif key.part == GONE:
                gone.add(key.generation)
        yield BlobObjects(hash_, data, outboards, frozenset(gone))


def mark(backend: ObjectBackend, generations: Sequence[tuple[bytes, int]]) -> None:
    """Make markers, many at a time; all are there when this returns."""
    for _ in backend.pool.map(lambda one: _mark(backend.bucket, *one), generations):
        pass


def _mark(bucket: Bucket, hash_: bytes, number: int) -> None:
    key = gone_key(hash_, number)
    if bucket.create(key, b"") is None and bucket.head(key) is None:
        raise Unavailable(
            f"{key} could not be made, and is not there: nothing was deleted, try again", key=key
        )


def delete(backend: ObjectBackend, generations: Iterable[tuple[bytes, int]]) -> None:
    """Delete marked generations, in batches; who puts such a blob again here tries the generation behind."""
    generations = list(generations)
    keys: list[str] = []
    for hash_, number in generations:
        for name in ("", base32_name(hash_)) if backend.has_base32 else ("",):
            keys += (data_key(hash_, number, name), outboard_key(hash_, number, name))
    backend.bucket.delete(keys)
    for hash_, number in generations:
        backend.expect(hash_, number + 1)


class _Note(msgspec.Struct):
    """What stands in the object of who collects."""

    holder: str
    """Random; empty when nobody does."""
    doing: str = ""
    host: str = ""
    pid: int = 0
    since_ms: int = 0
    beat: int = 0


_ours: Final[set[str]] = set()
"""The turns of this process that have not ended."""


class Turn:
    """The turn of one collector, as far as a bucket can promise it: two at once do no harm, only work twice.

    `Locked` says who has it. Someone of this host who is not alive, or was silent for ten minutes, has it no more.
    """

    def __init__(self, bucket: Bucket, doing: str) -> None:
        self._bucket = bucket
        self._note = _Note(os.urandom(16).hex(), doing, socket.gethostname(), os.getpid(), now_ms())
        self._e_tag = self._take()
        _ours.add(self._note.holder)
        self._beaten = time.monotonic()
        try:
            found = bucket.head(COLLECTOR_KEY)
        except BaseException:
            self.end()
            raise
        self.time_ms = now_ms() if found is None else found.modified_ms
        """What time it is, as the server says."""

    def beat(self) -> None:
        """Say that this one is alive, once a minute; `Locked` where another took it for dead."""
        if time.monotonic() - self._beaten < BEAT_SECONDS:
            return
        self._note.beat += 1
        self._e_tag = self._replace(self._note, self._e_tag)
        self._beaten = time.monotonic()

    def end(self) -> None:
        """Let others have it."""
        _ours.discard(self._note.holder)
        with suppress(HoldfastError):  # they wait ten minutes then
            self._bucket.replace(COLLECTOR_KEY, msgspec.json.encode(_Note("", beat=now_ms())), self._e_tag)

    def _take(self) -> str:
        found = self._bucket.get(COLLECTOR_KEY, max_bytes=MAX_NOTE_BYTES)
        if found is None:
            made = self._bucket.create(COLLECTOR_KEY, msgspec.json.encode(self._note))
            if made is not None:
                return made.e_tag or ""
            found = self._bucket.get(COLLECTOR_KEY, max_bytes=MAX_NOTE_BYTES)
            if found is None:
                raise Unavailable(f"{COLLECTOR_KEY} was made and is not there: try again", key=COLLECTOR_KEY)
        data, meta = found
        other = _parse(data)
        if other is not None and other.holder and not _is_dead(other, meta):
            raise _locked(other, meta)
        return self._replace(self._note, meta.e_tag or "")

    def _replace(self, note: _Note, e_tag: str) -> str:
        made = self._bucket.replace(COLLECTOR_KEY, msgspec.json.encode(note), e_tag)
        if made is not None:
            return made.e_tag or ""
        found = self._bucket.get(COLLECTOR_KEY, max_bytes=MAX_NOTE_BYTES)
        other = None if found is None else _parse(found[0])
        if found is None or other is None:
            raise Unavailable(f"{COLLECTOR_KEY} was removed meanwhile: try again", key=COLLECTOR_KEY)
        raise _locked(other, found[1])


def _parse(data: bytes) -> _Note | None:
    """Read a note; one that cannot be read is nobody's."""
    try:
        return msgspec.json.decode(data, type=_Note)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None


def _is_dead(other: _Note, meta: Meta) -> bool:
    if now_ms() - meta.modified_ms > STALE_SECONDS * 1000:
        return True
    if other.host != socket.gethostname():
        return False
    if other.pid == os.getpid():
        return other.holder not in _ours
    try:
        os.kill(other.pid, 0)
    except ProcessLookupError:
        return True
    except OSError:
        pass
    return False


def _locked(other: _Note, meta: Meta) -> Locked:
    evidence: dict[str, Any] = {"pid": other.pid, "host": other.host, "since_ms": other.since_ms}
    last = to_datetime(meta.modified_ms)
    return Locked(
        f"process {other.pid} on {other.host} is busy with {other.doing or 'a collection'} of this bucket (last heard"
        f" of at {last:%Y-%m-%d %H:%M:%S} UTC): wait until it has ended; {STALE_SECONDS // 60} minutes after its last"
        " word it is taken for dead",
        **evidence,
    )
