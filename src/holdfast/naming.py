"""Changes to artifacts that are there: words, deletion, restoring. Each is one step under the store's lock."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, Final, NamedTuple, TypedDict

from holdfast.arguments import items_of, whole_number
from holdfast.catalog import ArtifactEntry
from holdfast.core import Core, Grouping, id_of
from holdfast.errors import ArtifactNotFound, BlobNotFound, Conflict, InvalidInput
from holdfast.finding import view
from holdfast.types import KEEP, Artifact, Hash, Keep, Scalar, id_text, now_ms
from holdfast.wire.document import (
    ArtifactDocument,
    Details,
    Tombstone,
    encode_artifact,
    encode_details,
    encode_tombstone,
    parse_details,
)
from holdfast.wire.record import Kind
from holdfast.words import check_key, check_metadata, check_requires, check_text, check_texts

MAX_HOLDERS: Final = 100
"""How many of those who require something an error names, at most."""


class Change(NamedTuple):
    """What is to be different. `KEEP` leaves a field as it is, None clears it."""

    filename: str | Keep | None = KEEP
    content_type: str | Keep | None = KEEP
    created_by: str | Keep | None = KEEP
    metadata: Mapping[str, Scalar] | Keep | None = KEEP
    add_metadata: Mapping[str, Scalar] | None = None
    remove_metadata: Iterable[str] = ()
    add_tags: Iterable[str] = ()
    remove_tags: Iterable[str] = ()
    add_links: Iterable[str] = ()
    remove_links: Iterable[str] = ()
    add_requires: Iterable[Hash | Artifact | str] = ()
    remove_requires: Iterable[Hash | Artifact | str] = ()


class Changes(TypedDict, total=False):
    """The keywords of `update`."""

    filename: str | Keep | None
    content_type: str | Keep | None
    created_by: str | Keep | None
    metadata: Mapping[str, Scalar] | Keep | None
    add_metadata: Mapping[str, Scalar] | None
    remove_metadata: Iterable[str]
    add_tags: Iterable[str]
    remove_tags: Iterable[str]
    add_links: Iterable[str]
    remove_links: Iterable[str]
    add_requires: Iterable[Hash | Artifact | str]
    remove_requires: Iterable[Hash | Artifact | str]


class Naming:
    """The room of changes."""

    def __init__(self, core: Core) -> None:
        self._core = core

    def update(self, ref: Artifact | str, change: Change, if_revision: int | None) -> Artifact:
        change = Change._make(
            tuple(one) if isinstance(one, Iterator) else one for one in change
        )  # may be read twice
        return self._core.repeat(lambda: self._update(ref, change, if_revision))

    def _update(self, ref: Artifact | str, change: Change, if_revision: int | None) -> Artifact:
        core = self._core
        if if_revision is not None:
            whole_number("if_revision", if_revision)
        with core.changing() as group:
            entry = core.artifact(ref)
            if if_revision is not None and if_revision != entry.revision:
                raise Conflict(
                    f"artifact {id_text(entry.id)} is at revision {entry.revision}, not {if_revision}:"
                    " it was changed meanwhile",
                    id=id_text(entry.id),
                    revision=entry.revision,
                    if_revision=if_revision,
                )
            old = parse_details(entry.doc)
            new = _changed(core, entry.id, old, change)
            if new == old:
                return view(core, entry, old)
            # a clock that was set back does not make it older than it was
            modified_ms = max(now_ms(), entry.modified_ms)
            entry = entry._replace(
                revision=core.next_revision(entry.revision), modified_ms=modified_ms, doc=encode_details(new)
            )
            _append(group, entry)
        return view(core, entry, new)

    def delete(self, refs: Collection[Artifact | str], *, force: bool = False) -> None:
        self._core.deleting(lambda: self._delete(refs, force))

    def _delete(self, refs: Collection[Artifact | str], force: bool) -> None:
        core = self._core
        with core.changing() as group:
            doomed = {entry.id: entry for entry in map(core.artifact, refs)}
            if not force:
                for entry in doomed.values():
                    self._check_holders(entry, doomed)
            time_ms = now_ms()
            for entry in doomed.values():
                revision = core.next_revision(entry.revision)
                if revision > entry.revision + 1:  # a tombstone is one above its artifact
                    _append(group, entry._replace(revision=revision - 1))
                group.add_one(Kind.TOMBSTONE, encode_tombstone(Tombstone(entry.id, revision, time_ms)))

    def _check_holders(self, entry: ArtifactEntry, doomed: Collection[bytes]) -> None:
        """Refuse to delete what an artifact that stays requires, by its id or by the hash of its blob."""
        catalog = self._core.catalog
        found = [
            holder
            for key in (entry.id, entry.hash)
            for holder in catalog.holders(key, len(doomed) + MAX_HOLDERS)
            if holder not in doomed
        ]
        if found:
            holders = tuple(map(id_text, dict.fromkeys(found)))[:MAX_HOLDERS]
            shown = ", ".join(holders[:3]) + (", …" if len(holders) > 3 else "")
            raise Conflict(
                f"artifact {id_text(entry.id)} is required by {shown}: delete those too, or use force",
                id=id_text(entry.id),
                holders=holders,
            )

    def restore(self, ref: Artifact | str, *, force: bool = False) -> Artifact:
        try:
            return self._core.repeat(lambda: self._restore(ref, force))
        except BlobNotFound as error:  # collected while it was named: it is as deleted as it was
            raise ArtifactNotFound(f"the bytes of artifact {id_of(ref)} are gone", id=id_of(ref)) from error

    def _restore(self, ref: Artifact | str, force: bool) -> Artifact:
        core = self._core
        with core.changing() as group:
            try:
                entry = core.artifact(ref, deleted=True)
            except ArtifactNotFound:
                core.artifact(ref)
                raise Conflict("the artifact is not deleted", id=str(ref)) from None
            # A rebuild may have met an older state alone.
            if core.catalog.find_tombstone(entry.id) != entry.revision + 1:
                raise ArtifactNotFound(
                    f"the last state of artifact {id_text(entry.id)} is not here any more: it was collected, or is"
                    " damaged (`holdfast scrub` knows)",
                    id=id_text(entry.id),
                )
            core.check_room(1)
            try:
                core.claim(entry.hash, entry.format)
            except BlobNotFound as error:
                raise ArtifactNotFound(
                    f"the bytes of artifact {id_text(entry.id)} are gone", id=id_text(entry.id)
                ) from error
            self._check_required(entry, force)
            entry = entry._replace(
                revision=core.next_revision(entry.revision + 1),  # the tombstone has the one between
                modified_ms=max(now_ms(), entry.modified_ms),
                deleted_ms=None,
            )
            _append(group, entry)
        return view(core, entry)

    def _check_required(self, entry: ArtifactEntry, force: bool) -> None:
        """Rely on what an artifact requires; refuse, unless forced, to bring it back without that."""
        core = self._core
        for required in parse_details(entry.doc).requires:
            try:
                if required.startswith("blake3:"):
                    core.claim(Hash.parse(required))
                else:
                    core.artifact(required)
            except (ArtifactNotFound, BlobNotFound):
                if not force:
                    raise Conflict(
                        f"artifact {id_text(entry.id)} requires {required}, which is not here: restore that first,"
                        " or use force",
                        id=id_text(entry.id),
                        requires=required,
                    ) from None


def _append(group: Grouping, entry: ArtifactEntry) -> None:
    document = ArtifactDocument._make(entry[:-1])  # the same columns, but for `deleted_ms`
    group.add_one(Kind.ARTIFACT, encode_artifact(document))


def _changed(core: Core, id_: bytes, old: Details, change: Change) -> Details:
    """Give the new words; `InvalidInput` says which one will not do."""
    added = check_requires(core, change.add_requires)
    if id_text(id_) in added:
        raise InvalidInput("an artifact cannot require itself", id=id_text(id_))
    return Details(
        filename=_replaced("filename", old.filename, change.filename),
        content_type=_replaced("content_type", old.content_type, change.content_type),
        checksum=old.checksum,
        created_by=_replaced("created_by", old.created_by, change.created_by),
        tags=_edited("tags", old.tags, change.add_tags, change.remove_tags),
        links=_edited("links", old.links, change.add_links, change.remove_links),
        requires=_merged("requires", old.requires, added, _written(change.remove_requires)),
        metadata=_metadata(old.metadata, change),
    )


def _replaced(what: str, old: str | None, new: str | Keep | None) -> str | None:
    return old if isinstance(new, Keep) else check_text(what, new)


def _edited(what: str, old: tuple[str, ...], add: Iterable[str], remove: Iterable[str]) -> tuple[str, ...]:
    return _merged(what, old, check_texts(f"add_{what}", add), check_texts(f"remove_{what}", remove))


def _merged(
    what: str, old: tuple[str, ...], add: Collection[str], remove: Collection[str]
) -> tuple[str, ...]:
    """What is there keeps its order, what is new follows."""
    if both := set(add).intersection(remove):
        raise InvalidInput(f"{what}: {min(both)!r:.100} is to be added and removed at once")
    if not add and not remove:
        return old
    return tuple(one for one in dict.fromkeys((*old, *add)) if one not in set(remove))


def _metadata(old: Mapping[str, Scalar], change: Change) -> Mapping[str, Scalar]:
    base = old if isinstance(change.metadata, Keep) else check_metadata(change.metadata)
    added = check_metadata(change.add_metadata)
    removed = _keys(change.remove_metadata)
    if both := removed.intersection(added):
        raise InvalidInput(f"metadata {min(both)!r:.100} is to be set and removed at once")
    if not added and not removed:
        return base
    return {key: value for key, value in {**base, **added}.items() if key not in removed}


def _keys(keys: Iterable[str]) -> set[str]:
    if isinstance(keys, (str, bytes)):
        raise InvalidInput(f"remove_metadata is a list of keys, not one: [{keys!r:.100}]")
    return {check_key(key) for key in items_of("remove_metadata", keys)}


def _written(values: Iterable[Any]) -> set[str]:
    """Write requirements as they are stored, whether or not they are still here."""
    if isinstance(values, (str, bytes, Hash, Artifact)):
        raise InvalidInput("remove_requires is a list of hashes and artifacts, not one")
    written = set()
    for value in items_of("remove_requires", values):
        if isinstance(value, Artifact):
            written.add(value.id)
        elif isinstance(value, Hash):
            written.add(f"blake3:{value}")
        elif isinstance(value, str) and value.startswith("blake3:"):
            written.add(f"blake3:{Hash.parse(value)}")
        elif isinstance(value, str):
            written.add(value.lower())
        else:
            raise InvalidInput(f"requires holds hashes, artifacts and ids, not {type(value).__name__}")
    return written
