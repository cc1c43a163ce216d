"""Tags of the blob layer: durable names for hashes, roots of what is kept. Not an artifact's labels."""

from __future__ import annotations

from collections.abc import Iterator

from holdfast.catalog import TagEntry
from holdfast.core import Core, Grouping, entered
from holdfast.errors import Conflict, InvalidHash, InvalidInput, TagNotFound
from holdfast.finding import FORMATS, resumed
from holdfast.types import HASH_BYTES, BlobFormat, Hash, Tag, now_ms, to_datetime
from holdfast.wire.document import TagDocument, encode_tag
from holdfast.wire.record import Kind
from holdfast.words import check_text


class Tags:
    """`store.tags`: names a hash, so that it is kept. Each change is one step, durable when it returns."""

    def __init__(self, core: Core) -> None:
        self._core = core

    @entered
    def set(
        self,
        name: str,
        hash: Hash,
        format: BlobFormat | str = BlobFormat.RAW,
        *,
        if_revision: int | None = None,
    ) -> Tag:
        """Give a name to a hash, in place of what it named before. `BlobNotFound` when the blob is not here.

        `format="hash_seq"` keeps the children too; `InvalidInput` where it can be none. Naming what it names already
        writes nothing. `if_revision`: `Conflict` when the tag is at another one; 0: when there is one.
        """
        wanted = _checked_format(format)
        if not isinstance(hash, Hash):
            raise InvalidHash(f"a Hash is needed, not {type(hash).__name__}: Hash.parse reads text")
        return self._core.repeat(lambda: self._set(name, hash, wanted, if_revision))

    def _set(self, name: str, hash: Hash, wanted: int, if_revision: int | None) -> Tag:
        core = self._core
        with core.changing() as group:
            old = core.catalog.find_tag(_checked(name))
            _check_revision(name, old, if_revision)
            row = core.claim(hash, wanted)
            if wanted and row.size % HASH_BYTES:
                raise InvalidInput(
                    f"{hash} is no hash seq: its {row.size} bytes are not hashes of {HASH_BYTES}", hash=hash
                )
            if old is not None and not old.deleted and (old.hash, old.format) == (hash.digest, wanted):
                return _view(old)
            entry = _append(core, group, name, hash.digest, wanted, old, deleted=False)
        core.let_go(hash.digest)
        return _view(entry)

    @entered
    def get(self, name: str) -> Tag:
        """Give a tag; `TagNotFound`."""
        return _view(self._entry(self._core, name))

    @entered
    def delete(self, name: str, *, if_revision: int | None = None) -> None:
        """Delete a tag; `TagNotFound`, or `Conflict` when it is at another revision. Its blob is kept by it no more."""
        self._core.repeat(lambda: self._delete(name, if_revision))

    def _delete(self, name: str, if_revision: int | None) -> None:
        core = self._core
        with core.changing() as group:
            old = self._entry(core, name)
            _check_revision(name, old, if_revision)
            _append(core, group, name, old.hash, old.format, old, deleted=True)

    @entered
    def rename(self, name: str, to: str, *, overwrite: bool = False) -> Tag:
        """Give a tag another name, in one step. `Conflict` when that is taken, unless `overwrite`."""
        return self._core.repeat(lambda: self._rename(name, to, overwrite))

    def _rename(self, name: str, to: str, overwrite: bool) -> Tag:
        core = self._core
        with core.changing() as group:
            old = self._entry(core, name)
            if _checked(to) == name:
                return _view(old)
            taken = core.catalog.find_tag(to)
            if taken is not None and not taken.deleted and not overwrite:
                raise Conflict(f"there is a tag {to!r:.100} already", name=to, revision=taken.revision)
            core.claim(old.hash, old.format)
            entry = _append(core, group, to, old.hash, old.format, taken, deleted=False)
            _append(core, group, name, old.hash, old.format, old, deleted=True)
        return _view(entry)

    @entered
    def list(self, prefix: str = "") -> Iterator[Tag]:
        """Give the tags that begin with `prefix`, in the order of their names; pages are fetched as it goes."""
        core = self._core
        if check_text("prefix", prefix) is None:
            raise InvalidInput("prefix is text, not None")

        def pages(last: str | None) -> Iterator[TagEntry]:
            found = core.check().catalog.tags_with_prefix(prefix)
            return (entry for entry in found if last is None or entry.name > last)

        return map(_view, resumed(core, pages, lambda entry: entry.name))

    @staticmethod
    def _entry(core: Core, name: str) -> TagEntry:
        entry = core.catalog.find_tag(_checked(name))
        if entry is None or entry.deleted:
            raise TagNotFound(f"there is no tag {name!r:.100}", name=name)
        return entry


def _append(
    core: Core,
    group: Grouping,
    name: str,
    hash_: bytes,
    format_: int,
    old: TagEntry | None,
    *,
    deleted: bool,
) -> TagEntry:
    """Append the next state of a name. A clock that was set back does not make it older than it was."""
    revision = core.next_revision(0 if old is None else old.revision)
    modified_ms = now_ms() if old is None else max(now_ms(), old.modified_ms)
    entry = TagEntry(name, hash_, format_, revision, modified_ms, int(deleted))
    group.add_one(Kind.TAG, encode_tag(TagDocument._make((*entry[:-1], deleted))))
    return entry


def _view(entry: TagEntry) -> Tag:
    return Tag(
        name=entry.name,
        hash=Hash(entry.hash),
        format=FORMATS[entry.format],
        revision=entry.revision,
        modified_at=to_datetime(entry.modified_ms),
    )


def _checked(name: str) -> str:
    if not check_text("a tag's name", name):
        raise InvalidInput("a tag has a name")
    return name


def _checked_format(format: BlobFormat | str) -> int:
    try:
        return FORMATS.index(BlobFormat(format))
    except ValueError:
        raise InvalidInput(f"format is {format!r:.100}; raw and hash_seq can be named") from None


def _check_revision(name: str, old: TagEntry | None, if_revision: int | None) -> None:
    revision = 0 if old is None or old.deleted else old.revision
    if if_revision is not None and if_revision != revision:
        raise Conflict(
            f"tag {name!r:.100} is at revision {revision}, not {if_revision}: it was changed meanwhile",
            name=name,
            revision=revision,
            if_revision=if_revision,
        )
