"""The five checks that hold after any crash (durability.md).

`check_store` opens the store again and holds it against a `Ledger` of what was acknowledged and what was only begun.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Final, TypeAlias

from holdfast import _native
from holdfast.errors import (
    ArtifactNotFound,
    BlobNotFound,
    FormatError,
    HoldfastError,
    IntegrityError,
    NotFound,
)
from holdfast.ranges import ChunkRanges
from holdfast.testing.ledger import CheckFailed, Ledger, require
from holdfast.types import Artifact, Hash

if TYPE_CHECKING:
    from holdfast.store import Store

Dump: TypeAlias = "Callable[[Store], Iterable[str]]"


def dump_catalog(store: Store) -> list[str]:
    """Give every fact of a store's catalog, in canonical form.

    In a bucket the time at which a blob came is none, nor is the tombstone of what was restored since.
    """
    lines = list(store._core.catalog.dump())
    if not store._core.is_far:
        return lines
    live = {line.split("\t")[1] for line in lines if line.startswith("artifact\t") and line.endswith("\t-")}
    return [
        line.rpartition("\t")[0] if line.startswith("blob\t") else line
        for line in lines
        if not (line.startswith("tombstone\t") and line.split("\t")[1] in live)
    ]


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
            require(
                store.scrub().ok, f"2: scrub finds damage where nothing was damaged: {store.scrub().problems}"
            )
        if dump is not None:
            _check_rebuild(store, dump, damaged, expected.collects)
            again = _check_contents(store, expected, damaged)
            if expected.collects:  # what was collected may come back as deleted, never as live
                require(again[0] == listed[0], f"4: a rebuild changed what is live: {listed[0]}, {again[0]}")
            elif not damaged:
                require(again == listed, f"4: a rebuild changed what is there: {listed} became {again}")
        if usable:
            try:
                probe = store.put(b"after the crash", filename="probe")
                require(
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
    _check_refs(store, expected, damaged, reported)
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
                require(reported, f"1: {name} was acknowledged as {state} and is {where}")
                continue
            require(found.id == expected.ids[name], f"1: {name} came back under another id")
            require(found.size_bytes == expected.pieces[name].size_bytes, f"1: {name} has another size")
            _check_tags(expected, name, found)
    for digits, piece in expected.blobs.items():
        try:
            got = store.read(Hash.parse(digits))
        except NotFound as error:
            require(
                reported or expected.collects,
                f"1: the blob {piece.name} ({digits}) was acknowledged and is gone: {error!r}",
            )
        except IntegrityError as error:
            require(reported, f"1: the blob {piece.name} ({digits}) does not read: {error!r}")
        else:
            require(got == expected.content(piece.name), f"2: the blob {piece.name} reads wrong")


def _check_tags(expected: Ledger, name: str, found: Artifact) -> None:
    """What was acknowledged as said of an artifact is said, and a change is there as a whole."""
    attempts = (attempt for attempt in expected.open_attempts.values() if attempt.kind == "tag")
    maybe = {attempt.subject[1] for attempt in attempts if attempt.subject[0] == name}
    tags = set(found.tags)
    require(
        set(expected.tags.get(name, ())) <= tags <= {*expected.tags.get(name, ()), *maybe},
        f"1: {name} bears {sorted(tags)}, and should bear {expected.tags.get(name, ())}",
    )
    require(set(found.metadata) == tags, f"5: a change of {name} is there in part")


def _check_bytes(
    store: Store,
    expected: Ledger,
    live: dict[str, Artifact],
    deleted: dict[str, Artifact],
    damaged: bool,
) -> None:
    rng = random.Random(len(live))
    for name, artifact in live.items():
        require(name in expected.pieces, f"5: {name} is there and nobody ever put it")
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
                require(damaged, f"2: {name} does not read: {error!r} {error.evidence}")
            else:
                require(got == want, f"2: {name} reads wrong ({len(got)} bytes for {len(want)})")
        if not damaged:
            require(store.verify(artifact).ok, f"2: {name} does not verify")
    for name, artifact in deleted.items():
        require(name in expected.pieces, f"5: {name} is there as deleted and nobody ever put it")
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
        elif attempt.kind == "blobs" and not expected.collects and not store._core.is_far:
            there = [_has_blob(store, expected.content(piece.name)) for piece in attempt.subject]
        else:
            continue  # a single name: the old state or the new one; in a bucket, blobs that nobody names yet
        require(
            all(there) or not any(there) or reported,
            f"5: of {len(there)} pieces that were not acknowledged, {sum(there)} are there",
        )


def _check_parts(store: Store, expected: Ledger, damaged: bool) -> None:
    """What was acknowledged of a stream is here, and whatever is here is right."""
    expiring = any(attempt.kind == "expire" for attempt in expected.open_attempts.values())
    begun: dict[str, ChunkRanges] = {}
    for attempt in expected.open_attempts.values():
        if attempt.kind == "decode":
            piece, ranges = attempt.subject
            begun[piece.name] = begun.get(piece.name, ChunkRanges.empty()) | ChunkRanges.parse(ranges)
    for name in {*expected.parts, *begun}:
        content = expected.content(name)
        hash_ = Hash(_native.blake3(content))
        field = store.blobs.bitfield(hash_)
        promised = expected.parts.get(name, ChunkRanges.empty())
        lost = promised - field.ranges
        is_garbage = (  # it came whole, and nobody named it: in a bucket no lease outlives its process
            expected.collects
            and store._core.is_far
            and not field.ranges
            and promised | begun.get(name, promised) == ChunkRanges.all().clip(len(content))
        )
        require(
            not lost or damaged or expiring or is_garbage,
            f"1: of {name} leaves {lost} were acknowledged and are gone",
        )
        for start, stop in field.ranges.byte_ranges(field.size_bytes):
            try:
                got = store.blobs.read(hash_, start, stop - start)
            except IntegrityError as error:
                require(damaged, f"2: {name} does not read at {start}: {error!r} {error.evidence}")
            else:
                require(got == content[start:stop], f"2: {name} reads wrong at {start}")


def _check_refs(store: Store, expected: Ledger, damaged: bool, reported: bool) -> None:
    """Each tag of the store names what was acknowledged, or what an open attempt would have it name, and that reads."""
    maybe: dict[str, set[str | None]] = {tag: {name} for tag, name in expected.refs.items()}
    for attempt in expected.open_attempts.values():
        if attempt.kind == "refer":
            tag, name = attempt.subject
            maybe.setdefault(tag, {None}).add(name)
        elif attempt.kind == "rename":
            tag, new = attempt.subject
            maybe.setdefault(new, {None}).update(maybe[tag])
            maybe[tag].add(None)
        elif attempt.kind == "unrefer":
            maybe[attempt.subject[0]].add(None)
    for tag in store.tags.list():
        require(tag.name in maybe, f"5: the tag {tag.name} is there and nobody ever set it")
    for tag, names in maybe.items():
        hashes = {Hash(_native.blake3(expected.content(name))): name for name in names if name is not None}
        try:
            found = store.tags.get(tag).hash
        except NotFound:
            require(None in names or reported, f"1: the tag {tag} was acknowledged and is gone")
            continue
        require(found in hashes, f"1: the tag {tag} names {found}, and should name one of {hashes}")
        try:
            got = store.read(found)
        except (IntegrityError, BlobNotFound) as error:
            require(damaged, f"2: what the tag {tag} names does not read: {error!r} {error.evidence}")
        else:
            require(got == expected.content(str(hashes[found])), f"2: what the tag {tag} names reads wrong")


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
        require(damaged and _names_a_place(error), f"4: the rebuild failed: {error!r} {error.evidence}")
        return
    after = list(dump(store))
    if damaged:
        gone = len(set(before) - set(after))
        require(
            not gone or stats.damaged > 0 or bool(stats.problems), f"4: {gone} facts are gone, unreported"
        )
        return
    require(not stats.damaged, f"4: a rebuild reports damage where nothing was damaged: {stats.problems}")
    if collects:
        lost = sorted(
            line for line in _without_garbage(before) - _without_garbage(after) if line[:3] != "req"
        )
        require(not lost, f"4: the rebuilt catalog lacks {lost[:5]}")
        back = sorted(_without_garbage(after) - _without_garbage(before))
        back = [
            line for line in back if line.split("\t")[0] not in ("blob", "payload", "requires", "tombstone")
        ]
        require(not back, f"4: the rebuilt catalog has beside garbage {back[:5]}")
        return
    if before != after:
        lost = sorted(set(before) - set(after))[:5]
        new = sorted(set(after) - set(before))[:5]
        raise CheckFailed(f"4: the rebuilt catalog differs: lost {lost}, new {new}")


def _names_a_place(error: HoldfastError) -> bool:
    return "path" in error.evidence or {"segment", "offset_bytes"} <= error.evidence.keys()


_SEED_VARIABLE: Final = "HOLDFAST_SEED"


@contextmanager
def replayable(seed: int, command: str) -> Iterator[None]:
    """Add the seed, and the one command that runs this case again, to whatever fails inside."""
    try:
        yield
    except BaseException as error:
        error.add_note(f"seed {seed}; to run this case again: {_SEED_VARIABLE}={seed} {command}")
        raise
