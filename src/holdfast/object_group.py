"""What is put into a bucket together: blobs on their way up, and the documents that name them afterwards.

Order: data, outboard, what names them, the look for markers, what takes a name away, the catalog, the answer. What was
put and never named is garbage that a collection takes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from itertools import chain
from types import TracebackType
from typing import TYPE_CHECKING, Final, NamedTuple, Self

from holdfast import _native
from holdfast.backend.objects.backend import SINGLE_PUT_BYTES, ObjectBackend, Waiting
from holdfast.backend.objects.intents import confirm, intent_of, withdraw
from holdfast.backend.objects.layout import artifact_key, commit_key, tag_key
from holdfast.backend.objects.names import Named, facts_of, is_grave, newest, read_named, revision_of
from holdfast.backend.objects.spool import FileStock, SourceChanged, Spool, Stock
from holdfast.bao import OutboardBuilder, outboard_bytes
from holdfast.catalog import Catalog
from holdfast.catalog.objects import bad_among, release_blobs, set_size
from holdfast.errors import BlobNotFound, Conflict, HoldfastError, TooLarge
from holdfast.facts import Facts
from holdfast.ingest import Stored
from holdfast.sources import PathWindows, source_size
from holdfast.types import BLOCK_BYTES, HASH_BYTES, MAX_BLOB_BYTES, BytesLike, Durability, new_ids, now_ms
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

if TYPE_CHECKING:
    from hashlib import _Hash

MAX_FLYING: Final = 256
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
        self.blobs: dict[bytes, Waiting] = {}
        """Blobs whose bytes came with this group and are to be in the bucket."""
        self._stocks: dict[bytes, Stock] = {}
        self.commit_id: bytes | None = None
        """The id of the object that makes it so, where it was promised before."""
        self.relied_on: dict[bytes, int] = {}
        """Blobs that are said to be there already, and that this group names or requires, with their sizes."""
        self.again: dict[bytes, Waiting] = {}
        """Those of them whose bytes came with this group nevertheless: should they be gone, they go up."""
        self.is_done = False
        """Whether it was committed."""
        self._backend = backend
        self._catalog = catalog
        self._durability = durability
        self._time_ms = time_ms
        self._documents: list[Document] = []
        self._first: Waiting | None = None
        """The first blob, while it is alone: it needs no other thread."""
        self._flying: dict[Future[int], bytes] = {}
        self._flying_bytes = 0
        self._numbers: dict[bytes, int] = {}
        """The generation that each of `blobs` was put as."""

    @property
    def is_empty(self) -> bool:
        """Whether nothing is to be stored, nor to be looked at."""
        return not (self.blobs or self._documents or self.relied_on)

    def is_damaged(self, hash_: bytes) -> bool:
        """Whether reading a blob has just failed."""
        return self._backend.is_damaged(hash_)

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
        self.blobs[blob.hash] = blob
        self._stocks[blob.hash] = self.spool if stock is None else stock
        if is_first and blob.size_bytes <= SINGLE_PUT_BYTES:
            self._first = blob
            return
        if self._first is not None:
            self._begin(self._first)
            self._first = None
        self._begin(blob)

    def _begin(self, blob: Waiting) -> None:
        self._land(MAX_FLYING_BYTES - min(blob.size_bytes, MAX_FLYING_BYTES))
        future = self._backend.pool.submit(self._backend.put, blob, self._stocks[blob.hash])
        self._flying[future] = blob.hash
        self._flying_bytes += blob.size_bytes

    def rely_on(self, blob: Waiting, stock: Stock | None = None) -> None:
        """Rely on a blob that is said to be there; its bytes are kept until that is certain."""
        self._stocks[blob.hash] = self.spool if stock is None else stock
        self.relied_on[blob.hash] = blob.size_bytes
        self.again[blob.hash] = blob

    def forget(self, hash_: bytes) -> None:
        """Forget a blob that could not be put."""
        del self.blobs[hash_], self._stocks[hash_]

    def has(self, hash_: bytes) -> bool:
        """Whether the group has a blob's bytes already."""
        return hash_ in self.blobs or hash_ in self.again

    def _land(self, limit_bytes: int) -> None:
        while self._flying and (self._flying_bytes > limit_bytes or len(self._flying) > MAX_FLYING):
            done, _ = wait(self._flying, return_when=FIRST_COMPLETED)
            for future in done:
                hash_ = self._flying.pop(future)
                self._flying_bytes -= self.blobs[hash_].size_bytes
                self._numbers[hash_] = future.result()

    def arrive(self) -> None:
        """Wait until all blobs are up."""
        if self._first is not None:
            blob, self._first = self._first, None
            self._numbers[blob.hash] = self._backend.put(blob, self._stocks[blob.hash])
        self._land(-1)

    def commit(self, *, alone: bool = False) -> Durability:
        """Wait for the blobs, publish the names, look for markers, tell the catalog."""
        self.arrive()
        time_ms = self._time_ms or now_ms()
        facts = Facts()
        facts.blobs += [
            (one.hash, one.size_bytes, time_ms, 0, stored_bytes(one.size_bytes), 1)
            for one in self.blobs.values()
        ]
        self._publish(facts)
        self._catalog().apply(facts)
        healed = [one for one in self.blobs.values() if one.heals]
        for one in healed:  # what was known of it came from a listing of the wrong object
            set_size(self._catalog(), one.hash, one.size_bytes, stored_bytes(one.size_bytes))
        release_blobs(self._catalog(), [one.hash for one in healed])
        self.is_done = True
        self.close()
        return self._durability

    def abort(self) -> None:
        """Forget the group. Blobs that are up already are nobody's."""
        for future in self._flying:
            future.cancel()
        wait(self._flying)
        self.close()

    def close(self) -> None:
        """Give the spool's room back."""
        self.spool.close()

    def _publish(self, facts: Facts) -> None:
        """New artifacts share one object; each change to a name is an object of its own, replaced on condition.

        What names something is published first; then all that is relied on is looked at; only then a name is taken
        from a blob: by a tag that names another one from here on, or because another of these names is there to keep
        it (models/bucket.pml, RENAME; models/tags.pml).
        """
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
        made = self._backend.bucket.create(key, encode_bundle(new, key))
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
                self._catalog().apply(facts)
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
                    self._backend.bucket.delete([commit])
                for change in done:
                    self._undo(change, told)
            self._catalog().apply(told)
            raise

    def _undo(self, change: _Change, told: Facts) -> None:
        """Give a name the state that it had, with the next revision; one that was only intended has it still."""
        if change.is_intent and change.made is not None:
            withdraw(self._backend.bucket, change.made)
            return
        now = read_named(self._backend.bucket, change.key)
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
                self._backend.settle(hash_, row.size, None, None)  # it was not named for a moment

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
        before = read_named(self._backend.bucket, key)
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
        bucket = self._backend.bucket
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
            hashes = list(chain(self.blobs, self.relied_on.keys() - self.blobs.keys()))
            for hash_ in hashes:
                if len(hashes) == 1:
                    self._look(hash_)
                else:
                    looks.append(self._backend.pool.submit(self._look, hash_))
                if len(looks) > MAX_FLYING:
                    looks.popleft().result()
            while looks:
                looks.popleft().result()
        finally:
            wait(looks)
        here = self._catalog().find_blobs(list(self.relied_on)) if self.relied_on else {}
        for hash_, size in self.relied_on.items():
            if hash_ not in here:  # a collection of our own had given it up
                facts.blobs.append((hash_, size, self._time_ms or now_ms(), 0, stored_bytes(size), 1))

    def _look(self, hash_: bytes) -> bool:
        blob = self.blobs.get(hash_) or self.again.get(hash_)
        again = None if blob is None else (blob, self._stocks[hash_])
        size = self.relied_on[hash_] if blob is None else blob.size_bytes
        return self._backend.settle(hash_, size, self._numbers.get(hash_), again)


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


class ObjectIngest:
    """See `core.Ingesting`: hashes blobs, and sends up what is not known to be there."""

    def __init__(
        self,
        group: ObjectGroup,
        catalog: Callable[[], Catalog],
        pool: ThreadPoolExecutor,
        *,
        max_bytes: int | None,
        sha256: bool,
    ) -> None:
        self.group = group
        self.pool = pool
        self.sha256 = sha256
        self._catalog = catalog
        self._max_bytes = min(max_bytes or MAX_BLOB_BYTES, MAX_BLOB_BYTES)

    def check_size(self, size_bytes: int) -> None:
        """Refuse a blob above the limit as soon as it is known."""
        if size_bytes > self._max_bytes:
            raise TooLarge(
                f"the data has more than the {self._max_bytes} bytes that max_artifact_bytes allows",
                limit_bytes=self._max_bytes,
            )

    def add(self, windows: Iterator[BytesLike], watch: Callable[[int], None] | None = None) -> Stored:
        """Add the blob that the windows make up. `watch` hears of bytes read, and may raise.

        A large file is read once to be hashed, and again to be sent; one that changes between goes through the spool.
        """
        if isinstance(windows, PathWindows) and (source_size(windows.path) or 0) > SINGLE_PUT_BYTES:
            try:
                return self._add_from(windows, windows.path, watch)
            except SourceChanged:
                windows, watch = windows.again(), None
        return self._add_from(windows, None, watch)

    def _add_from(
        self, windows: Iterator[BytesLike], path: str | None, watch: Callable[[int], None] | None
    ) -> Stored:
        with ObjectStream(self, path) as stream:
            for window in windows:
                stream.push(window)
                if watch is not None:
                    watch(len(window))
            return stream.finish()

    def add_many(self, items: Sequence[BytesLike]) -> list[Stored]:
        """Add whole blobs that are in memory."""
        stored: list[Stored] = []
        fresh: dict[bytes, tuple[BytesLike, Iterable[bytes]]] = {}
        small = iter(_packed(_native.blake3_list([one for one in items if len(one) <= BLOCK_BYTES])))
        for item in items:
            pairs: Iterable[bytes] = ()
            if len(item) <= BLOCK_BYTES:
                hash_ = next(small)
            else:
                hasher = _native.BlobHasher()
                hasher.update(item)
                hash_, groups = hasher.finish()
                pairs = _outboard_of(groups, len(item))
            fresh.setdefault(hash_, (item, pairs))
            stored.append(Stored(hash_, len(item), 1, self._sha256(item)))
        known, damaged = self._known({hash_: len(item) for hash_, (item, _) in fresh.items()})
        group = self.group
        for hash_, (item, pairs) in fresh.items():
            if group.has(hash_):
                continue
            start = group.spool.append(item)
            blob = Waiting(hash_, len(item), start, self._append_outboard(pairs))
            if hash_ in known:
                group.rely_on(blob)
            else:
                group.send(blob._replace(heals=hash_ in damaged))
        return stored

    def _known(self, sizes: dict[bytes, int]) -> tuple[set[bytes], set[bytes]]:
        """Say which blobs need not be brought, and which are known to be damaged; an object of another length is."""
        catalog = self._catalog()
        hashes = list(sizes)
        known = catalog.find_blobs(hashes)
        damaged = bad_among(catalog, hashes)
        damaged.update(
            hash_ for hash_, row in known.items() if row.size != sizes[hash_] or self.group.is_damaged(hash_)
        )
        return known.keys() - damaged, damaged

    def stream(self) -> ObjectStream:
        """Begin a blob that comes in windows."""
        return ObjectStream(self)

    def finish_stream(
        self, start: int, size_bytes: int, hash_: bytes, pairs: Iterable[bytes], path: str | None
    ) -> None:
        """Send up what lies in the spool, or at `path`, unless it is known; `SourceChanged` as that says."""
        group = self.group
        if group.has(hash_):
            return
        known, damaged = self._known({hash_: size_bytes})
        outboard = self._append_outboard(pairs)
        blob = Waiting(hash_, size_bytes, start, outboard, bool(damaged))
        stock: FileStock | None = None
        if path is not None:
            stock = FileStock(path, size_bytes, group.spool, outboard)
            blob = blob._replace(start=0, outboard_start=size_bytes)
        if known:
            group.rely_on(blob, stock)
            return
        group.send(blob, stock)
        if stock is not None:
            try:
                group.arrive()
            except SourceChanged:
                group.forget(hash_)
                raise

    def _append_outboard(self, pairs: Iterable[bytes]) -> int:
        start = self.group.spool.size_bytes
        for part in pairs:
            self.group.spool.append(part)
        return start

    def _sha256(self, item: BytesLike) -> bytes | None:
        if not self.sha256:
            return None
        from hashlib import sha256

        return sha256(item).digest()


class ObjectStream:
    """One blob that comes in windows: hashed in another thread while the window goes to the spool.

    `path`: where the same bytes can be read again, so that they need not go there.
    """

    def __init__(self, ingest: ObjectIngest, path: str | None = None) -> None:
        self.size_bytes = 0
        self._path = path
        self._ingest = ingest
        self._hasher = _native.BlobHasher()
        self._builder = OutboardBuilder()
        self._pending: Future[None] | None = None
        self._start = ingest.group.spool.size_bytes
        self._sha256: _Hash | None = None
        if ingest.sha256:
            from hashlib import sha256

            self._sha256 = sha256()

    def push(self, window: BytesLike) -> None:
        """Take the next bytes; they must not change until `finish`."""
        if not len(window):
            return
        self._ingest.check_size(self.size_bytes + len(window))
        self._wait()
        self._pending = self._ingest.pool.submit(self._hash, window)
        if self._path is None:
            self._ingest.group.spool.append(window)
        self.size_bytes += len(window)

    def finish(self) -> Stored:
        """Send the blob up, unless it is known."""
        self._wait()
        root, groups = self._hasher.finish()
        self._builder.feed(groups)
        pairs = self._builder.finish(self.size_bytes) if self.size_bytes > BLOCK_BYTES else iter(())
        self._ingest.finish_stream(self._start, self.size_bytes, root, pairs, self._path)
        return Stored(root, self.size_bytes, 1, None if self._sha256 is None else self._sha256.digest())

    def close(self) -> None:
        """Wait for the other thread, and give memory back."""
        if self._pending is not None:
            self._pending.exception()
        self._builder.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self.close()

    def _wait(self) -> None:
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def _hash(self, window: BytesLike) -> None:
        self._hasher.update(window)
        self._builder.feed(self._hasher.take_groups())
        if self._sha256 is not None:
            self._sha256.update(window)


def _packed(digests: bytes) -> list[bytes]:
    return [digests[at : at + HASH_BYTES] for at in range(0, len(digests), HASH_BYTES)]


def _outboard_of(groups: bytes, size_bytes: int) -> list[bytes]:
    with OutboardBuilder() as builder:
        builder.feed(groups)
        return list(builder.finish(size_bytes))
