"""What a bucket holds, as it is listed: blobs by their keys alone, names by reading what is new.

Names are listed before blobs: a blob is put before it is named, so whatever a name that was seen needs is there to be
listed. Memory is bounded: pages are streamed, and what is on its way is limited in number and bytes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from typing import Final, NamedTuple, TypeVar

from holdfast.backend.objects.backend import Generations, ObjectBackend, generations_of
from holdfast.backend.objects.bucket import Meta
from holdfast.backend.objects.ends import list_whole
from holdfast.backend.objects.layout import (
    ARTIFACTS,
    BLOBS,
    COMMITS,
    DATA,
    TAGS,
    is_names_key,
    parse_blob_key,
)
from holdfast.backend.objects.names import Named, facts_of, read_named
from holdfast.catalog.objects import Bad
from holdfast.digests import DigestSet
from holdfast.errors import CorruptObject
from holdfast.facts import Facts
from holdfast.object_group import stored_bytes
from holdfast.reports import Problem
from holdfast.types import BLOCK_BYTES

BATCH_ROWS: Final = 10_000
FLYING: Final = 64
FLYING_BYTES: Final = 128 << 20
"""How many objects, and bytes of them, are on their way at once."""
MAX_PROBLEMS: Final = 10_000
NAMES: Final = (COMMITS, ARTIFACTS, TAGS)
"""In this order: what a commit says of an artifact goes only when `artifacts/` says more of it."""
TRIES: Final = 10

T = TypeVar("T")
R = TypeVar("R")


class Tally:
    """What a look through a bucket found, beside the facts."""

    def __init__(self) -> None:
        self.foreign = 0
        """Objects among ours that are not of our making."""
        self.without_outboard = 0
        self.problems: list[Problem] = []
        self.bad: list[Bad] = []
        self.base32 = 0
        self.collected = DigestSet()
        """Blobs that have markers and no data."""
        self.names = 0
        """Objects of names that were read."""
        self.vanished = 0
        """Those that were gone when they were read: another object, behind them, says what they said."""


class Listed(NamedTuple):
    """One blob as it is listed. `last_key`: what a listing that goes on behind it begins after."""

    hash: bytes
    found: Generations
    size_bytes: int
    last_key: str

    @classmethod
    def of(cls, hash_: bytes, found: Generations, last_key: str = "") -> Listed:
        """Say what there is of a blob, with the length of the generation that is read."""
        best = found.best
        return cls(hash_, found, 0 if best is None else found.data[best], last_key)

    @property
    def lacks_outboard(self) -> bool:
        return self.size_bytes > BLOCK_BYTES and self.found.best not in self.found.outboards

    def row(self) -> tuple[bytes, int, int, int, int, int]:
        """Give the row of the catalog."""
        return (self.hash, self.size_bytes, self.found.modified_ms, 0, stored_bytes(self.size_bytes), 1)


def iter_blobs(backend: ObjectBackend, tally: Tally, after: str = "") -> Iterator[Listed]:
    """Give the blobs of which there is data, in the order of their keys."""
    for metas in _by_name(list_whole(backend.bucket, BLOBS, after=after)):
        listed = _plain(metas) or _any(backend, tally, metas)
        if listed is not None:
            tally.without_outboard += listed.lacks_outboard
            backend.remember(listed.hash, listed.found)
            yield listed


def _by_name(metas: Iterable[Meta]) -> Iterator[list[Meta]]:
    """Give the objects of each blob together: they are listed one after the other. What is not ours comes anyhow."""
    start, group = "", list[Meta]()
    for meta in metas:
        if group and not meta.key.startswith(start):
            yield group
            group = []
        if not group:
            start = meta.key[: meta.key.find("/", len(BLOBS)) + 1] or f"{meta.key}/"
        group.append(meta)
        # somebody else's, any number of them
        if len(group) == MANY and parse_blob_key(f"{start}{DATA}") is None:
            yield group
            group = []
    if group:
        yield group


MANY: Final = 1_000
_HEX_END: Final = len(BLOBS) + 64
_NONE: Final[frozenset[int]] = frozenset()
_FIRST: Final = frozenset({0})


def _plain(metas: list[Meta]) -> Listed | None:
    """Read what nearly all blobs are, generation 0 and maybe its outboard, without taking each key to pieces."""
    key, size_bytes, _, modified_ms = metas[0]
    last_key = metas[-1].key
    if key[_HEX_END:] != "/data" or (
        len(metas) > 1 and (len(metas) > 2 or last_key[_HEX_END:] != "/outboard")
    ):
        return None
    name = key[len(BLOBS) : _HEX_END]
    try:
        hash_ = bytes.fromhex(name)
    except ValueError:
        return None
    if hash_.hex() != name:  # capital letters, blanks
        return None
    found = Generations({0: size_bytes}, _NONE if len(metas) == 1 else _FIRST, _NONE, modified_ms)
    return Listed(hash_, found, size_bytes, last_key)


def _any(backend: ObjectBackend, tally: Tally, metas: list[Meta]) -> Listed | None:
    """Read any objects that stand together; None where there is no data among them. What is not ours is counted."""
    ours = [meta for meta in metas if parse_blob_key(meta.key) is not None]
    tally.foreign += len(metas) - len(ours)
    key = parse_blob_key(ours[0].key) if ours else None
    if key is None:
        return None
    found = generations_of(ours)
    if len(key.name) != 64:
        tally.base32 += 1
        backend.has_base32 = True
        found = found._replace(name=key.name)
    if not found.data:
        if found.gone:
            tally.collected.add((key.hash,))
        return None
    return Listed.of(key.hash, found, ours[-1].key)


def blob_facts(backend: ObjectBackend, tally: Tally) -> Iterator[Facts]:
    """Give the rows of all blobs, in batches."""
    facts = Facts()
    for listed in iter_blobs(backend, tally):
        facts.blobs.append(listed.row())
        if len(facts.blobs) >= BATCH_ROWS:
            yield facts
            facts = Facts()
    yield facts


def name_facts(backend: ObjectBackend, metas: Iterable[Meta], tally: Tally) -> Iterator[Facts]:
    """Read objects of names, and give what they say, in batches. One that is damaged is noted, and passed over."""

    def read(meta: Meta) -> Named | CorruptObject | None:
        try:
            return read_named(backend.bucket, meta.key)
        except CorruptObject as error:
            return error

    def ours() -> Iterator[Meta]:
        for meta in metas:
            if is_names_key(meta.key):
                yield meta
            else:
                tally.foreign += 1

    facts = Facts()
    for meta, named in in_flight(backend, ours(), read, lambda meta: meta.size_bytes):
        if isinstance(named, CorruptObject):
            tally.problems.append(Problem(kind=named.kind, message=named.message, path=meta.key))
            tally.bad.append(Bad(meta.key, b"", named.message))
        elif named is None:
            tally.vanished += 1
        else:
            tally.names += 1
            facts_of(named.documents, facts, meta.key)
            facts.seen.append((meta.key, named.e_tag))
        if len(facts.artifacts) + len(facts.tags) >= BATCH_ROWS:
            yield facts
            facts = Facts()
    yield facts


def in_flight(
    backend: ObjectBackend, items: Iterable[T], work: Callable[[T], R], weight: Callable[[T], int]
) -> Iterator[tuple[T, R]]:
    """Do work for each, many at once, and give the results in order; bounded in number and in bytes."""
    flying: deque[tuple[T, int, Future[R]]] = deque()
    held = 0
    try:
        for item in items:
            size = weight(item)
            while flying and (len(flying) >= FLYING or held + size > FLYING_BYTES):
                done, freed, future = flying.popleft()
                held -= freed
                yield done, future.result()
            flying.append((item, size, backend.pool.submit(work, item)))
            held += size
        while flying:
            done, _, future = flying.popleft()
            yield done, future.result()
    finally:
        for _, _, future in flying:
            if not future.cancel():
                future.exception()
