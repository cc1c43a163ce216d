"""What is put into a bucket together: blobs on their way up, and the documents that name them afterwards.

Order: data, outboard, what names them, the look for markers, what takes a name away, the catalog, the answer. What was
put and never named is garbage that a collection takes.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import suppress
from itertools import chain, islice
from typing import Final, NamedTuple

from holdfast.backend.objects.backend import SINGLE_PUT_BYTES, ObjectBackend
from holdfast.backend.objects.intents import confirm, intent_of, withdraw
from holdfast.backend.objects.layout import artifact_key, commit_key, tag_key
from holdfast.backend.objects.names import Named, facts_of, is_grave, newest, read_named, revision_of
from holdfast.backend.objects.spool import SourceChanged, Spool, Stock, StoppableStock
from holdfast.backend.objects.stock import PartStock
from holdfast.backend.objects.waiting import Waiting, WaitingBlobs
from holdfast.bao import outboard_bytes
from holdfast.catalog import Catalog
from holdfast.catalog.objects import release_blobs, set_size
from holdfast.errors import BlobNotFound, Conflict, HoldfastError
from holdfast.facts import Facts
from holdfast.types import BLOCK_BYTES, Durability, new_ids, now_ms
from holdfast.wire.bundle import Document, encode_bundle
from holdfast.wire.document import (
    ArtifactDocument,
    encode_artifact,
    encode_tag,
    encode_tombstone,
    parse_artifact,
    parse_tag,
    parse_tombstone,
)
from holdfast.wire.record import Kind

MAX_FLYING: Final = 256
BATCH_ROWS: Final = 2_000
MAX_FLYING_BYTES: Final = 64 << 20
"""How many bytes of small blobs are on their way at once; beyond, who puts waits."""


class Stale(Conflict):
    """Somebody else has changed the name meanwhile, and the catalog knows it by now. Never for users."""


class _Change(NamedTuple):
    """The next state of a name, and the one that it takes the place of. `removes`: it names nothing then."""

    key: str
    documents: list[Document]
    before: Named | None
    removes: bool
    made: Named | None = None
    """The object, once it was written."""

    @property
    def is_intent(self) -> bool:
        """Whether it says what is to be next, and does not make it so yet."""
        return self.documents[-1][0] == Kind.INTENDED_TAG


class ObjectGroup:
    """See `core.Grouping`. One thread at a time."""

    def __init__(
        self, backend: ObjectBackend, catalog: Callable[[], Catalog], durability: Durability, time_ms: int = 0
    ) -> None:
        backend.check_writable()
        self.spool = Spool()
        self.blobs = WaitingBlobs()
        """Blobs whose bytes came with this group and are to be in the bucket."""
        self._stocks: dict[bytes, Stock] = {}
        """Where the bytes are of those that do not lie in the spool."""
        self._up = WaitingBlobs()
        """Blobs that were put, and whose bytes are not kept any more."""
        self._staged: list[tuple[PartStock, Callable[[], None]]] = []
        self.commit_id: bytes | None = None
        """The id of the object that makes it so, where it was promised before."""
        self.relied_on: dict[bytes, int] = {}
        """Blobs that are said to be there already, and that this group names or requires, with their sizes."""
        self.again = WaitingBlobs()
        """Such blobs whose bytes came with this group nevertheless: should they be gone, they go up."""
        self.is_done = False
        """Whether it was committed."""
        self.backend = backend
        self._catalog = catalog
        self._durability = durability
        self._time_ms = time_ms
        self._documents: list[Document] = []
        self._first: Waiting | None = None
        """The first blob, while it is alone: it needs no other thread."""
        self._flying: dict[Future[int], tuple[bytes, int]] = {}
        """Hash and length of each that is on its way."""
        self._flying_bytes = 0
        self._stop = threading.Event()
        self._numbers: dict[bytes, int] = {}
        """The generation that each of `blobs` was put as, where it is not 0."""

    @property
    def is_empty(self) -> bool:
        """Whether nothing is to be stored, nor to be looked at."""
        return not (self.blobs or self._up or self._documents or self.relied_on or self.again)

    def is_damaged(self, hash_: bytes) -> bool:
        """Whether reading a blob has just failed."""
        return self.backend.is_damaged(hash_)

    def add_one(self, kind: Kind, payload: bytes) -> None:
        """Add a document."""
        self._documents.append((kind, payload))

    def add_documents(self, kind: Kind, documents: list[bytes]) -> None:
        """Add documents of one kind."""
        self._documents += [(kind, document) for document in documents]

    def send(self, blob: Waiting, stock: Stock | None = None) -> None:
        """Begin to put a blob; waits while much is on its way. An error of an earlier one is raised.

        `stock`: where its bytes are, if not in the spool.
        """
        is_first = not self.blobs
        self.blobs.add(blob)
        if stock is not None:
            self._stocks[blob.hash] = stock
        if is_first and blob.size_bytes <= SINGLE_PUT_BYTES:
            self._first = blob
            return
        if self._first is not None:
            self._begin(self._first)
            self._first = None
        self._begin(blob)

    def _begin(self, blob: Waiting) -> None:
        self._land(MAX_FLYING_BYTES - min(blob.size_bytes, MAX_FLYING_BYTES))
        stock = StoppableStock(self._stock(blob.hash), self._stop)
        future = self.backend.pool.submit(self.backend.put, blob, stock)
        self._flying[future] = blob.hash, blob.size_bytes
        self._flying_bytes += blob.size_bytes

    def rely_on(self, blob: Waiting, stock: Stock | None = None) -> None:
        """Rely on a blob that is said to be there; its bytes are kept until that is certain."""
        if stock is not None:
            self._stocks[blob.hash] = stock
        self.again.add(blob)

    def let_go(self) -> None:
        """Wait until all is up, and forget the bytes: what a collection takes meanwhile has to be put once more."""
        self.arrive()
        self.relied_on.update((one.hash, one.size_bytes) for one in self.again)
        self.again = WaitingBlobs()
        self._up.move_in(self.blobs)
        self._stocks.clear()
        self.spool.clear()

    def keep(self, stock: PartStock, discard: Callable[[], None]) -> None:
        """Keep what lies in pieces until the end of the group; then it is closed, and discarded."""
        self._staged.append((stock, discard))

    def forget(self, hash_: bytes) -> None:
        """Forget a blob that could not be put."""
        self.blobs.remove(hash_)
        self._stocks.pop(hash_, None)

    def hashes(self) -> list[bytes]:
        """Give what a collection must leave alone while this goes on, each once.

        For other threads too: what `let_go` moves is in its new place before it leaves the old one.
        """
        found = [*self.blobs.hashes(), *self.again.hashes()]
        return [*found, *self._up.hashes(), *(one for one in list(self.relied_on) if not self.has(one))]

    def __contains__(self, hash_: object) -> bool:
        """Whether a blob was put with this group."""
        return hash_ in self.blobs or hash_ in self._up

    def _put(self) -> Iterator[Waiting]:
        return chain(self._up, self.blobs)

    def _stock(self, hash_: bytes) -> Stock:
        return self._stocks.get(hash_, self.spool)

    def has(self, hash_: bytes) -> bool:
        """Whether the group has a blob's bytes already."""
        return hash_ in self or hash_ in self.again

    def _land(self, limit_bytes: int) -> None:
        while self._flying and (self._flying_bytes > limit_bytes or len(self._flying) > MAX_FLYING):
            done, _ = wait(self._flying, return_when=FIRST_COMPLETED)
            for future in done:
                hash_, size_bytes = self._flying.pop(future)
                self._flying_bytes -= size_bytes
                self._landed(hash_, future.result())

    def _landed(self, hash_: bytes, number: int) -> None:
        if number:
            self._numbers[hash_] = number

    def arrive(self) -> None:
        """Wait until all blobs are up."""
        if self._first is not None:
            blob, self._first = self._first, None
            self._landed(blob.hash, self.backend.put(blob, self._stock(blob.hash)))
        self._land(-1)

    def commit(self, *, alone: bool = False) -> Durability:
        """Wait for the blobs, publish the names, look for markers, tell the catalog."""
        self.arrive()
        self._time_ms = self._time_ms or now_ms()
        facts = Facts()
        self._publish(facts)
        self.backend.forget_damage(self)
        self._tell(facts)
        healed = [one for one in self._put() if one.heals]
        for one in healed:  # what was known of it came from a listing of the wrong object
            set_size(self._catalog(), one.hash, one.size_bytes, stored_bytes(one.size_bytes))
        release_blobs(self._catalog(), [one.hash for one in healed])
        self.is_done = True
        self.close()
        return self._durability

    def _tell(self, facts: Facts) -> None:
        """Tell the catalog of what was put, so many blobs at a time, and then of what was named."""
        for one in self._put():
            facts.blobs.append((one.hash, one.size_bytes, self._time_ms, 0, stored_bytes(one.size_bytes), 1))
            if len(facts.blobs) >= BATCH_ROWS:
                self._catalog().apply(Facts(blobs=facts.blobs))
                facts.blobs = []
        self._catalog().apply(facts)

    def abort(self) -> None:
        """Forget the group. Blobs that are up already are nobody's."""
        self._stop.set()
        for future in self._flying:
            future.cancel()
        wait(self._flying)
        self.close()

    def close(self) -> None:
        """Give the room back of what is not in its place."""
        self.spool.close()
        while self._staged:
            stock, discard = self._staged.pop()
            stock.close()
            discard()

    def _publish(self, facts: Facts) -> None:
        """New artifacts share one object; each change to a name is an object of its own, replaced on condition.

        What names something is published first; then all that is relied on is looked at; only then a name is taken
        from a blob: by a tag that names another one from here on, or because another of these names is there to keep
        it (models/bucket.pml, RENAME; models/tags.pml).
        """
        assert not self._flying, "blobs are there before what names them"
        assert self._first is None, "blobs are there before what names them"
        new = [
            one for one in self._documents if one[0] == Kind.ARTIFACT and parse_artifact(one[1]).revision == 1
        ]
        known = set(map(id, new))
        changes = [self._prepare(one) for one in self._documents if id(one) not in known]
        adding = [one for one in changes if not one.removes]
        commit = self._create(new, facts) if new else None
        removing = [one for one in changes if one.removes]
        done: list[_Change] = []
        try:
            self._change_all(adding, facts, done)
        finally:
            if done or not adding:
                self._settle_or_withdraw(commit, done, facts)
        intents = [one for one in done if one.is_intent]
        done = [one for one in done if not one.is_intent]
        self._change_all(intents + removing, facts, done)

    def _create(self, new: list[Document], facts: Facts) -> str:
        key = commit_key(self.commit_id or new_ids(1, now_ms())[0])
        made = self.backend.bucket.create(key, encode_bundle(new, key))
        if made is None:
            raise Conflict(
                f"there is another object {key}: the random numbers of this machine repeat", key=key
            )
        facts_of(new, facts, key)
        facts.seen.append((key, made.e_tag or ""))
        return key

    def _change_all(self, changes: list[_Change], facts: Facts, done: list[_Change]) -> None:
        """Make changes, one after another; once one is made, `Stale` is no more an answer, but a `Conflict`."""
        for change in changes:
            try:
                made = self._change(change)
            except Stale as error:
                if not done:
                    raise
                self._tell(facts)
                raise Conflict(
                    f"{error.message}; {len(done)} changes of this call were made before", done=len(done)
                ) from error
            facts_of(made.documents, facts, made.key)
            facts.seen.append((made.key, made.e_tag))
            done.append(change._replace(made=made))

    def _settle_or_withdraw(self, commit: str | None, done: list[_Change], facts: Facts) -> None:
        """Look at what the published names need; where that is gone they are taken back, as far as that can be."""
        try:
            self._settle(facts)
        except (BlobNotFound, SourceChanged):
            told = Facts()
            with suppress(HoldfastError):  # what cannot be taken back names what is not there: it is hidden
                if commit is not None:
                    self.backend.bucket.delete([commit])
                for change in done:
                    self._undo(change, told)
            self._catalog().apply(told)
            raise

    def _undo(self, change: _Change, told: Facts) -> None:
        """Give a name the state that it had, with the next revision; one that was only intended has it still."""
        if change.is_intent and change.made is not None:
            withdraw(self.backend.bucket, change.made)
            return
        now = read_named(self.backend.bucket, change.key)
        if now is None or newest(now) != max(map(revision_of, change.documents)):
            return  # somebody else has changed it since
        documents = _documents_before(change, newest(now) + 1, self._catalog())
        again = _Change(change.key, documents, now, removes=True)
        made = self._change(again)
        facts_of(documents, told, change.key)
        told.seen.append((change.key, made.e_tag))
        for _, hash_, _, _, _, deleted, _ in told.tags[-1:]:
            row = None if deleted else self._catalog().find_blob(hash_)
            if row is not None:
                self.backend.settle(hash_, row.size, None, None)  # it was not named for a moment

    def _prepare(self, document: Document) -> _Change:
        """Read the name that is to be changed; `Stale` when it is further than the catalog knew."""
        kind, payload = document
        if kind == Kind.TAG:
            tag = parse_tag(payload)
            key, revision = tag_key(tag.name), tag.revision
        elif kind == Kind.TOMBSTONE:
            tombstone = parse_tombstone(payload)
            key, revision = artifact_key(tombstone.id), tombstone.revision
        else:
            artifact = parse_artifact(payload)
            key, revision = artifact_key(artifact.id), artifact.revision
        before = read_named(self.backend.bucket, key)
        if newest(before) >= revision:
            raise self._stale(before, key)
        documents = [document]
        removes = kind == Kind.TOMBSTONE or (kind == Kind.TAG and parse_tag(payload).deleted)
        if before is not None and not removes and _has_tag(before):
            documents = intent_of(document, before)
        elif kind == Kind.TOMBSTONE:
            documents.insert(0, self._last_state(parse_tombstone(payload).id, before))
        elif kind == Kind.ARTIFACT and before is not None and is_grave(before):
            raise self._stale(before, key)  # forgotten for good: there is nothing to be restored
        return _Change(key, documents, before, removes)

    def _change(self, change: _Change) -> Named:
        """Write the next state of a name, or make so what was intended; gives the object."""
        bucket = self.backend.bucket
        if change.made is not None:
            confirmed = confirm(bucket, change.made)
            if confirmed is None:
                raise self._stale(read_named(bucket, change.key), change.key)
            return confirmed
        data, before = encode_bundle(change.documents, change.key), change.before
        made = (
            bucket.create(change.key, data)
            if before is None
            else bucket.replace(change.key, data, before.e_tag)
        )
        if made is None:
            raise self._stale(read_named(bucket, change.key), change.key)
        return Named(change.key, change.documents, made.e_tag or "")

    def _stale(self, found: Named | None, key: str) -> Stale:
        """Tell the catalog what stands there, and give the error."""
        facts = Facts()
        if found is not None:
            facts_of(found.documents, facts, key)
            facts.seen.append((key, found.e_tag))
            self._catalog().apply(facts)
        return Stale(f"{key} was changed meanwhile by somebody else: try again", key=key)

    def _last_state(self, id_: bytes, before: Named | None) -> Document:
        """Give the state of an artifact that a tombstone ends: it stands beside it, to be restored from."""
        for kind, payload in () if before is None else before.documents:
            if kind == Kind.ARTIFACT:
                return kind, payload
        entry = self._catalog().find_artifact(id_)
        assert entry is not None, "what is deleted was just looked up"
        return Kind.ARTIFACT, encode_artifact(ArtifactDocument._make(entry[:-1]))

    def _settle(self, facts: Facts) -> None:
        """Look at each blob that is named or relied on, several at a time."""
        looks: deque[Future[bool]] = deque()
        try:
            hashes = self.hashes()
            for hash_ in hashes:
                if len(hashes) == 1:
                    self._look(hash_)
                else:
                    looks.append(self.backend.pool.submit(self._look, hash_))
                if len(looks) > MAX_FLYING:
                    looks.popleft().result()
            while looks:
                looks.popleft().result()
        finally:
            wait(looks)
        known = chain(self.relied_on.items(), ((one.hash, one.size_bytes) for one in self.again))
        while batch := list(islice(known, BATCH_ROWS)):
            here = self._catalog().find_blobs([hash_ for hash_, _ in batch])
            for hash_, size in batch:
                if hash_ not in here:  # a collection of our own had given it up
                    facts.blobs.append((hash_, size, self._time_ms or now_ms(), 0, stored_bytes(size), 1))

    def _look(self, hash_: bytes) -> bool:
        put = self.blobs.find(hash_)
        blob = self.again.find(hash_) if put is None else put
        again = None if blob is None else (blob, self._stock(hash_))
        put = put or self._up.find(hash_)
        blob = blob or put
        size = self.relied_on[hash_] if blob is None else blob.size_bytes
        return self.backend.settle(hash_, size, None if put is None else self._numbers.get(hash_, 0), again)


def _has_tag(named: Named) -> bool:
    """Whether an object holds a tag that names something."""
    return any(kind == Kind.TAG and not parse_tag(payload).deleted for kind, payload in named.documents)


def _documents_before(change: _Change, revision: int, catalog: Catalog) -> list[Document]:
    """Give what a name said before a change, as its next state; one that was not there is deleted."""
    kind, payload = change.documents[-1]
    if kind == Kind.TAG:
        tag = parse_tag(payload if change.before is None else change.before.documents[0][1])
        deleted = change.before is None or tag.deleted
        return [(Kind.TAG, encode_tag(tag._replace(revision=revision, deleted=deleted)))]
    documents = list(change.before.documents) if change.before is not None else []
    if not documents:  # it was never changed: the catalog has its first state still
        entry = catalog.find_artifact(parse_artifact(payload).id)
        assert entry is not None, "what is changed was just looked up"
        documents = [(Kind.ARTIFACT, encode_artifact(ArtifactDocument._make(entry[:-1])))]
    kind, payload = documents[-1]
    if kind != Kind.TOMBSTONE:
        return [(kind, encode_artifact(parse_artifact(payload)._replace(revision=revision)))]
    last = parse_artifact(documents[0][1])._replace(
        revision=revision - 1
    )  # who restores it counts from there
    tombstone = parse_tombstone(payload)._replace(revision=revision)
    return [(Kind.ARTIFACT, encode_artifact(last)), (kind, encode_tombstone(tombstone))]


def stored_bytes(size_bytes: int) -> int:
    """Give the room that a blob takes in the bucket: its bytes, and its outboard."""
    return size_bytes + (outboard_bytes(size_bytes) if size_bytes > BLOCK_BYTES else 0)
