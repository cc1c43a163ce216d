"""The books of a workload on a store: what was promised to it, and what was only begun.

A `Ledger` does the work and writes down what was acknowledged. Contents come from seeds, so that a process that
only heard of them can tell right bytes from wrong ones. `checks.check_store` holds a store against the books.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from holdfast import _native
from holdfast.errors import CorruptStream, HoldfastError
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


class CheckFailed(AssertionError):
    """The store broke a promise."""


def require(condition: bool, message: str) -> None:
    """Raise `CheckFailed` unless something holds."""
    if not condition:
        raise CheckFailed(message)


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


class Attempt(NamedTuple):
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
        self.refs: dict[str, str] = {}
        """What was acknowledged as named by tags of the store: the name of a piece, by tag."""
        self.parts: dict[str, ChunkRanges] = {}
        """What was acknowledged of blobs that came as streams, by name."""
        self.ids: dict[str, str] = {}
        self.open_attempts: dict[int, Attempt] = {}
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
            require(broken_from is not None, f"2: the stream of {piece.name} was right and is refused")
        else:
            require(broken_from is None, f"2: the stream of {piece.name} was wrong and is taken")
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

    def refer(self, store: Store, tag: str, name: str) -> None:
        """Let a tag of the store name the blob of a piece."""
        number = self._begin("refer", (tag, name))
        store.tags.set(tag, Hash(_native.blake3(self.content(name))))
        self._done(number, [])

    def rename_ref(self, store: Store, tag: str, new: str) -> None:
        """Give a tag of the store another name."""
        number = self._begin("rename", (tag, new))
        store.tags.rename(tag, new)
        self._done(number, [])

    def drop_ref(self, store: Store, tag: str) -> None:
        """Delete a tag of the store."""
        number = self._begin("unrefer", (tag,))
        store.tags.delete(tag)
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
        self.open_attempts[self._number] = Attempt("put", (self.artifacts.pop(name),))

    def unsure(self) -> set[str]:
        """Name what an open attempt was about: its state may be the old one or the new one."""
        return {
            subject if isinstance(subject, str) else subject.name
            for attempt in self.open_attempts.values()
            for subject in attempt.subject
            if attempt.kind not in ("refer", "rename", "unrefer")
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
        self.open_attempts[number] = Attempt(kind, subject)
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
        elif attempt.kind == "refer":
            tag, name = attempt.subject
            self.refs[tag] = name
        elif attempt.kind == "rename":
            tag, new = attempt.subject
            self.refs[new] = self.refs.pop(tag)
        elif attempt.kind == "unrefer":
            (tag,) = attempt.subject
            del self.refs[tag]

    def _is_whole(self, name: str) -> bool:
        return self.parts[name] == ChunkRanges.all().clip(self.pieces[name].size_bytes)
