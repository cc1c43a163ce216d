"""What was promised to a workload, and the five checks that hold after any crash (durability.md).

A `Ledger` does the work on a store and writes down what was acknowledged and what was only begun.
`check_store` opens the store again and holds it against the ledger. Contents come from seeds, so that a
process that only heard of them can tell right bytes from wrong ones.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

from holdfast import _native
from holdfast.errors import (
    ArtifactNotFound,
    BlobNotFound,
    CorruptStream,
    FormatError,
    HoldfastError,
    IntegrityError,
    NotFound,
)
from holdfast.importing import expire_partials
from holdfast.ranges import ChunkRanges
from holdfast.testing.inside import log_core
from holdfast.testing.streams import Sender, blocks
from holdfast.types import BLOCK_BYTES, Artifact, Hash, PutItem

if TYPE_CHECKING:
    from holdfast.artifacts import Writer
    from holdfast.store import Store

Event: TypeAlias = tuple[Any, ...]
"""("begin", number, kind, pieces or names) or ("done", number, ids): what a child tells its parent."""
Dump: TypeAlias = "Callable[[Store], Iterable[str]]"


class CheckFailed(AssertionError):
    """The store broke a promise."""


class Piece(NamedTuple):
    """Named bytes made from a seed. The first `shared_bytes` are those of each piece of the `family`."""

    name: str
    seed: int
    size_bytes: int
    family: int = 0
    shared_bytes: int = 0

    def content(self) -> bytes:
        """Make the bytes; the same for equal fields, in every process."""
        shared = min(self.shared_bytes, self.size_bytes // 2)  # no two pieces may be equal as a whole
        head = random.Random(self.family).randbytes(shared) if shared else b""
        return head + random.Random(self.seed).randbytes(self.size_bytes - shared)


class _Attempt(NamedTuple):
    kind: str
    subject: tuple[Any, ...]


class Ledger:
    """Works on a store and keeps the books. Names are never used twice, nor are contents.

    `tell` gets each event as it happens, before the work is begun and after it was acknowledged; `hear` keeps
    the books for somebody else's work. An exception leaves an attempt open: whole or absent, nobody knows.
    """

    def __init__(self, tell: Callable[[Event], None] | None = None) -> None:
        self.artifacts: dict[str, Piece] = {}
        """Acknowledged and not deleted, by name."""
        self.deleted: dict[str, Piece] = {}
        self.blobs: dict[str, Piece] = {}
        self.tags: dict[str, tuple[str, ...]] = {}
        """What was acknowledged as put on artifacts later, by name."""
        self.collects = False
        """Whether collections ran: then what was deleted, and what nothing names, may be gone."""
        self.parts: dict[str, ChunkRanges] = {}
        """What was acknowledged of blobs that came as streams, by name."""
        self.ids: dict[str, str] = {}
        self.open_attempts: dict[int, _Attempt] = {}
        self.pieces: dict[str, Piece] = {}
        self._tell = tell
        self._number = 0
        self._contents: dict[str, bytes] = {}

    # --- work

    def put(self, store: Store, piece: Piece) -> Artifact:
        """Put one artifact."""
        number = self._begin("put", (piece,))
        artifact = store.put(piece.content(), filename=piece.name)
        self._done(number, [artifact.id])
        return artifact

    def put_many(self, store: Store, pieces: Sequence[Piece]) -> list[Artifact]:
        """Put several artifacts in one acknowledgement."""
        number = self._begin("put", tuple(pieces))
        artifacts = store.put_many([PutItem(piece.content(), filename=piece.name) for piece in pieces])
        self._done(number, [artifact.id for artifact in artifacts])
        return artifacts

    def put_blobs(self, store: Store, pieces: Sequence[Piece]) -> None:
        """Put several blobs in one acknowledgement, and keep no lease."""
        number = self._begin("blobs", tuple(pieces))
        leases = store.blobs.put_many([piece.content() for piece in pieces])
        self._done(number, [str(lease.hash) for lease in leases])

    def put_tree(
        self, store: Store, piece: Piece, directory: str, content: bytes, files: Sequence[Piece]
    ) -> Artifact:
        """Put a directory. `content` is what its collection is to be, `files` what it is made of."""
        self._contents[piece.name] = content
        number = self._begin("put", (piece,))
        artifact = store.put_tree(directory, filename=piece.name)
        self._done(number, [artifact.id])
        self.pieces.update((file.name, file) for file in files)
        for file in files:
            self.blobs[str(Hash(_native.blake3(file.content())))] = file
        return artifact

    def put_side_by_side(self, store: Store, pieces: Sequence[Piece]) -> None:
        """Put several artifacts through writers that are open at the same time; each is acknowledged by itself."""
        errors: list[HoldfastError] = []
        writers: list[tuple[int, Writer]] = []
        for piece in pieces:
            number = self._begin("put", (piece,))
            writer = store.writer(filename=piece.name)
            try:
                writer.write(piece.content())
            except HoldfastError as error:
                errors.append(error)
                writer.abort()
            else:
                writers.append((number, writer))
        for number, writer in writers:
            try:
                self._done(number, [writer.commit().id])
            except HoldfastError as error:
                errors.append(error)
        if errors:
            raise errors[0]

    def decode(
        self, store: Store, piece: Piece, ranges: ChunkRanges | None = None, *, broken_from: int | None = None
    ) -> None:
        """Import a stream of some blocks of a blob; from block `broken_from` on what it carries is wrong."""
        sender = Sender(piece.content())
        wanted = (ranges or ChunkRanges.all()).clip(piece.size_bytes)
        stream = bytearray(sender.stream(ranges))
        if broken_from is not None:
            wanted &= blocks(0, broken_from)
            at = broken_from * BLOCK_BYTES
            stream[stream.find(sender.content[at : at + 32])] ^= 1
        number = self._begin("decode", (piece, str(wanted)))
        try:
            store.blobs.decode(sender.hash, stream, ranges)
        except CorruptStream:
            _require(broken_from is not None, f"2: the stream of {piece.name} was right and is refused")
        else:
            _require(broken_from is None, f"2: the stream of {piece.name} was wrong and is taken")
        self._done(number, [])

    def expire(self, store: Store) -> None:
        """Let all partial blobs expire."""
        number = self._begin("expire", tuple(self.parts))
        expire_partials(log_core(store), 1 << 50)
        self._done(number, [])

    def delete(self, store: Store, name: str) -> None:
        """Delete an artifact by its name."""
        number = self._begin("delete", (name,))
        store.delete(self.ids[name])
        self._done(number, [])

    def tag(self, store: Store, name: str, tag: str) -> None:
        """Put a tag on an artifact, and a word into its metadata, in one change."""
        number = self._begin("tag", (name, tag))
        store.update(self.ids[name], add_tags=[tag], add_metadata={tag: name})
        self._done(number, [])

    def collect(self, store: Store, *, max_batches: int | None = None) -> None:
        """Collect, without an undo window."""
        self.collects = True
        number = self._begin("collect", ())
        store.gc(min_age_seconds=0, max_batches=max_batches)
        self._done(number, [])

    def restore(self, store: Store, name: str) -> None:
        """Bring a deleted artifact back by its name."""
        number = self._begin("restore", (name,))
        store.restore(self.ids[name])
        self._done(number, [])

    # --- books

    def hear(self, event: Event) -> None:
        """Keep the books for an event that another ledger told; no two of them may use one number."""
        if event[0] == "begin":
            _, number, kind, subject = event
            self._open(number, kind, tuple(Piece(*s) if isinstance(s, tuple) else s for s in subject))
        else:
            _, number, ids = event
            self._close(number, ids)

    def content(self, name: str) -> bytes:
        """Give the bytes of a piece that was ever begun."""
        found = self._contents.get(name)
        if found is None:
            found = self._contents[name] = self.pieces[name].content()
        return found

    def forget(self, name: str) -> None:
        """Pretend that the put of an artifact was not acknowledged yet."""
        del self.ids[name]
        self._number += 1
        self.open_attempts[self._number] = _Attempt("put", (self.artifacts.pop(name),))

    def unsure(self) -> set[str]:
        """Name what an open attempt was about: its state may be the old one or the new one."""
        return {
            subject if isinstance(subject, str) else subject.name
            for attempt in self.open_attempts.values()
            for subject in attempt.subject
        }

    def _begin(self, kind: str, subject: tuple[Any, ...]) -> int:
        self._number += 1
        self._open(self._number, kind, subject)
        if self._tell:
            plain = tuple(tuple(s) if isinstance(s, Piece) else s for s in subject)
            self._tell(("begin", self._number, kind, plain))
        return self._number

    def _done(self, number: int, ids: list[str]) -> None:
        self._close(number, ids)
        if self._tell:
            self._tell(("done", number, ids))

    def _open(self, number: int, kind: str, subject: tuple[Any, ...]) -> None:
        self.open_attempts[number] = _Attempt(kind, subject)
        self.collects = self.collects or kind == "collect"
        for piece in subject:
            if isinstance(piece, Piece):
                self.pieces[piece.name] = piece

    def _close(self, number: int, ids: list[str]) -> None:
        attempt = self.open_attempts.pop(number)
        if attempt.kind == "put":
            for piece, artifact_id in zip(attempt.subject, ids, strict=True):
                self.artifacts[piece.name] = piece
                self.ids[piece.name] = artifact_id
        elif attempt.kind == "blobs":
            for piece, digits in zip(attempt.subject, ids, strict=True):
                self.blobs[digits] = piece
        elif attempt.kind == "decode":
            piece, ranges = attempt.subject
            self.parts[piece.name] = self.parts.get(piece.name, ChunkRanges.empty()) | ChunkRanges.parse(
                ranges
            )
        elif attempt.kind == "expire":
            for name in attempt.subject:
                if not self._is_whole(name):
                    del self.parts[name]
        elif attempt.kind == "delete":
            (name,) = attempt.subject
            self.deleted[name] = self.artifacts.pop(name)
        elif attempt.kind == "tag":
            name, tag = attempt.subject
            self.tags[name] = (*self.tags.get(name, ()), tag)
        elif attempt.kind == "restore":
            (name,) = attempt.subject
            self.artifacts[name] = self.deleted.pop(name)

    def _is_whole(self, name: str) -> bool:
        return self.parts[name] == ChunkRanges.all().clip(self.pieces[name].size_bytes)


def dump_catalog(store: Store) -> list[str]:
    """Give every fact of a store's catalog, in canonical form."""
    return list(log_core(store).catalog.dump())


def check_store(
    open_store: Callable[[], Store],
    expected: Ledger,
    *,
    damaged: bool = False,
    dump: Dump | None = dump_catalog,
    usable: bool = True,
) -> None:
    """Hold a store against what was promised; `CheckFailed` says which of the five was broken.

    `open_store` opens it as a new process would. With `damaged`, stored bytes were changed on purpose:
    then what was acknowledged may be refused with a typed error that names the place, or be reported as a
    problem; it may not be wrong or silently gone. `usable` also puts something new.
    """
    try:
        store = open_store()
    except HoldfastError as error:
        if damaged and isinstance(error, (IntegrityError, FormatError)) and _names_a_place(error):
            return
        raise CheckFailed(f"3: the store does not open: {error!r} {error.evidence}") from error
    with store:
        listed = _check_contents(store, expected, damaged)
        if not damaged:
            _require(
                store.scrub().ok, f"2: scrub finds damage where nothing was damaged: {store.scrub().problems}"
            )
        if dump is not None:
            _check_rebuild(store, dump, damaged, expected.collects)
            again = _check_contents(store, expected, damaged)
            if expected.collects:  # what was collected may come back as deleted, never as live
                _require(again[0] == listed[0], f"4: a rebuild changed what is live: {listed[0]}, {again[0]}")
            elif not damaged:
                _require(again == listed, f"4: a rebuild changed what is there: {listed} became {again}")
        if usable:
            try:
                probe = store.put(b"after the crash", filename="probe")
                _require(
                    store.read(probe) == b"after the crash", "3: what was put after the crash reads wrong"
                )
            except HoldfastError as error:
                raise CheckFailed(
                    f"3: the store opened and takes nothing: {error!r} {error.evidence}"
                ) from error


def _check_contents(store: Store, expected: Ledger, damaged: bool) -> tuple[dict[str, str], dict[str, str]]:
    live = {a.filename or "": a for a in store.find() if a.filename != "probe"}
    deleted = {a.filename or "": a for a in store.find(deleted=True) if a.filename != "probe"}
    reported = damaged and not store.scrub().ok
    unsure = expected.unsure()
    _check_acknowledged(store, expected, live, deleted, unsure, reported)
    _check_bytes(store, expected, live, deleted, damaged)
    _check_whole(store, expected, live, deleted, reported)
    _check_parts(store, expected, damaged)
    return {n: a.id for n, a in live.items()}, {n: a.id for n, a in deleted.items()}


def _check_acknowledged(
    store: Store,
    expected: Ledger,
    live: dict[str, Artifact],
    deleted: dict[str, Artifact],
    unsure: set[str],
    reported: bool,
) -> None:
    for state, names, others in (("live", expected.artifacts, deleted), ("deleted", expected.deleted, live)):
        mine = live if state == "live" else deleted
        for name in names:
            found = mine.get(name) or (others.get(name) if name in unsure else None)
            if found is None and expected.collects and (state == "deleted" or name in unsure):
                continue  # deleted, if nobody knows whether that was acknowledged, and collected
            if found is None:
                where = "in the other state" if name in others else "nowhere"
                _require(reported, f"1: {name} was acknowledged as {state} and is {where}")
                continue
            _require(found.id == expected.ids[name], f"1: {name} came back under another id")
            _require(found.size_bytes == expected.pieces[name].size_bytes, f"1: {name} has another size")
            _check_tags(expected, name, found)
    for digits, piece in expected.blobs.items():
        try:
            got = store.read(Hash.parse(digits))
        except NotFound as error:
            _require(
                reported or expected.collects,
                f"1: the blob {piece.name} ({digits}) was acknowledged and is gone: {error!r}",
            )
        except IntegrityError as error:
            _require(reported, f"1: the blob {piece.name} ({digits}) does not read: {error!r}")
        else:
            _require(got == expected.content(piece.name), f"2: the blob {piece.name} reads wrong")


def _check_tags(expected: Ledger, name: str, found: Artifact) -> None:
    """What was acknowledged as said of an artifact is said, and a change is there as a whole."""
    attempts = (attempt for attempt in expected.open_attempts.values() if attempt.kind == "tag")
    maybe = {attempt.subject[1] for attempt in attempts if attempt.subject[0] == name}
    tags = set(found.tags)
    _require(
        set(expected.tags.get(name, ())) <= tags <= {*expected.tags.get(name, ()), *maybe},
        f"1: {name} bears {sorted(tags)}, and should bear {expected.tags.get(name, ())}",
    )
    _require(set(found.metadata) == tags, f"5: a change of {name} is there in part")


def _check_bytes(
    store: Store,
    expected: Ledger,
    live: dict[str, Artifact],
    deleted: dict[str, Artifact],
    damaged: bool,
) -> None:
    rng = random.Random(len(live))
    for name, artifact in live.items():
        _require(name in expected.pieces, f"5: {name} is there and nobody ever put it")
        content = expected.content(name)
        start = rng.randrange(len(content) + 1)
        length = rng.randint(0, len(content) - start)
        reads: tuple[tuple[Callable[[], bytes], bytes], ...] = (
            (partial(store.read, artifact), content),
            (partial(store.read, artifact, start, length), content[start : start + length]),
            (partial(_joined, store, artifact), content),
        )
        for read, want in reads:
            try:
                got = read()
            except (IntegrityError, BlobNotFound) as error:
                _require(damaged, f"2: {name} does not read: {error!r} {error.evidence}")
            else:
                _require(got == want, f"2: {name} reads wrong ({len(got)} bytes for {len(want)})")
        if not damaged:
            _require(store.verify(artifact).ok, f"2: {name} does not verify")
    for name, artifact in deleted.items():
        _require(name in expected.pieces, f"5: {name} is there as deleted and nobody ever put it")
        try:
            store.read(artifact.id)
        except ArtifactNotFound:
            continue
        raise CheckFailed(f"1: {name} is deleted and reads")


def _joined(store: Store, artifact: Artifact) -> bytes:
    return b"".join(store.iter_bytes(artifact))


def _check_whole(
    store: Store,
    expected: Ledger,
    live: dict[str, Artifact],
    deleted: dict[str, Artifact],
    reported: bool,
) -> None:
    for attempt in expected.open_attempts.values():
        if attempt.kind == "put":
            there = [piece.name in live or piece.name in deleted for piece in attempt.subject]
        elif attempt.kind == "blobs" and not expected.collects:
            there = [_has_blob(store, expected.content(piece.name)) for piece in attempt.subject]
        else:
            continue  # a single name: the old state or the new one, and one of them was found above
        _require(
            all(there) or not any(there) or reported,
            f"5: of {len(there)} pieces that were not acknowledged, {sum(there)} are there",
        )


def _check_parts(store: Store, expected: Ledger, damaged: bool) -> None:
    """What was acknowledged of a stream is here, and whatever is here is right."""
    expiring = any(attempt.kind == "expire" for attempt in expected.open_attempts.values())
    begun = {a.subject[0].name for a in expected.open_attempts.values() if a.kind == "decode"}
    for name in {*expected.parts, *begun}:
        content = expected.content(name)
        hash_ = Hash(_native.blake3(content))
        field = store.blobs.bitfield(hash_)
        lost = expected.parts.get(name, ChunkRanges.empty()) - field.ranges
        _require(
            not lost or damaged or expiring, f"1: of {name} leaves {lost} were acknowledged and are gone"
        )
        for start, stop in field.ranges.byte_ranges(field.size_bytes):
            try:
                got = store.blobs.read(hash_, start, stop - start)
            except IntegrityError as error:
                _require(damaged, f"2: {name} does not read at {start}: {error!r} {error.evidence}")
            else:
                _require(got == content[start:stop], f"2: {name} reads wrong at {start}")


def _has_blob(store: Store, content: bytes) -> bool:
    try:
        return store.read(Hash(_native.blake3(content))) == content
    except BlobNotFound:
        return False


def _without_garbage(dump: Iterable[str]) -> set[str]:
    """Leave out of a dump what a rebuild may bring back of what was collected, and when it had come."""
    kept = set()
    for line in dump:
        kind, *fields = line.split("\t")
        if kind == "blob":
            line = "\t".join((kind, *fields[:2]))
        if kind != "artifact" or fields[-1] == "-":
            kept.add(line)
    return kept


def _check_rebuild(store: Store, dump: Dump, damaged: bool, collects: bool) -> None:
    before = list(dump(store))
    try:
        stats = store.rebuild()
    except (IntegrityError, FormatError) as error:
        _require(damaged and _names_a_place(error), f"4: the rebuild failed: {error!r} {error.evidence}")
        return
    after = list(dump(store))
    if damaged:
        gone = len(set(before) - set(after))
        _require(
            not gone or stats.damaged > 0 or bool(stats.problems), f"4: {gone} facts are gone, unreported"
        )
        return
    _require(not stats.damaged, f"4: a rebuild reports damage where nothing was damaged: {stats.problems}")
    if collects:
        lost = sorted(
            line for line in _without_garbage(before) - _without_garbage(after) if line[:3] != "req"
        )
        _require(not lost, f"4: the rebuilt catalog lacks {lost[:5]}")
        back = sorted(_without_garbage(after) - _without_garbage(before))
        back = [
            line for line in back if line.split("\t")[0] not in ("blob", "payload", "requires", "tombstone")
        ]
        _require(not back, f"4: the rebuilt catalog has beside garbage {back[:5]}")
        return
    if before != after:
        lost = sorted(set(before) - set(after))[:5]
        new = sorted(set(after) - set(before))[:5]
        raise CheckFailed(f"4: the rebuilt catalog differs: lost {lost}, new {new}")


def _names_a_place(error: HoldfastError) -> bool:
    return "path" in error.evidence or {"segment", "offset_bytes"} <= error.evidence.keys()


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise CheckFailed(message)


_SEED_VARIABLE: Final = "HOLDFAST_SEED"


@contextmanager
def replayable(seed: int, command: str) -> Iterator[None]:
    """Add the seed, and the one command that runs this case again, to whatever fails inside."""
    try:
        yield
    except BaseException as error:
        error.add_note(f"seed {seed}; to run this case again: {_SEED_VARIABLE}={seed} {command}")
        raise
