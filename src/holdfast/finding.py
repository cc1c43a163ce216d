"""Looking artifacts up: one by its id, many by what they bear, newest first."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime, timedelta
from itertools import islice
from typing import Any, Final, NamedTuple, TypedDict, TypeVar

from holdfast.arguments import whole_number
from holdfast.catalog import ArtifactEntry, Catalog, Search
from holdfast.catalog.labels import LINK, TAG, Label
from holdfast.catalog.search import MAX_LABELS, Bounds
from holdfast.core import MENDABLE, Core, id_of
from holdfast.errors import InvalidInput
from holdfast.types import EPOCH, Artifact, BlobFormat, Hash, LabelCount, id_text, parse_id, to_datetime
from holdfast.wire.document import Details, parse_details
from holdfast.words import check_keywords, check_text, check_texts

FORMATS: Final = (BlobFormat.RAW, BlobFormat.HASH_SEQ)
Check = Callable[[Details], bool]
K = TypeVar("K")
T = TypeVar("T")


class Filters(TypedDict, total=False):
    """What `find` and `count` take; all that are given must hold."""

    tag: str | Iterable[str] | None
    any_tag: Iterable[str] | None
    link: str | Iterable[str] | None
    any_link: Iterable[str] | None
    prefix: str | None
    content_type: str | None
    created_by: str | None
    filename: str | None
    hash: Hash | None
    created_after: datetime | None
    created_before: datetime | None
    modified_after: datetime | None
    modified_before: datetime | None
    min_size_bytes: int | None
    max_size_bytes: int | None
    deleted: bool


def view(core: Core, entry: ArtifactEntry, details: Details | None = None) -> Artifact:
    """Make a row what people see; `details` are those of its document, where they were read already."""
    if details is None:
        details = parse_details(entry.doc)
    created = to_datetime(entry.created_ms)
    deleted_ms = entry.deleted_ms
    return Artifact(
        id=id_text(entry.id),
        hash=Hash(entry.hash),
        size_bytes=entry.size,
        format=FORMATS[entry.format],
        filename=details.filename,
        content_type=details.content_type,
        checksum=details.checksum,
        chunk_count=entry.chunks,
        created_at=created,
        modified_at=created if entry.modified_ms == entry.created_ms else to_datetime(entry.modified_ms),
        revision=entry.revision,
        created_by=details.created_by,
        tags=details.tags,
        links=details.links,
        requires=details.requires,
        metadata=details.metadata,
        durability=core.durability,
        deleted_at=None if deleted_ms is None else to_datetime(deleted_ms),
    )


class Finding:
    """The room of look-ups."""

    def __init__(self, core: Core) -> None:
        self._core = core

    def info(self, ref: Artifact | str) -> Artifact:
        return view(self._core, self._core.artifact(ref))

    def find(self, filters: Filters, limit: int | None, after: Artifact | str | None) -> Iterator[Artifact]:
        core = self._core
        if limit is not None:
            whole_number("limit", limit)
        start = None if after is None else parse_id(id_of(after))
        plan = plan_find(core.catalog, filters)
        search = plan.search._replace(after=start)
        wanted = None if plan.checks else limit
        entries = resumed(
            core,
            lambda last: core.check().catalog.search(
                search if last is None else search._replace(after=last), wanted
            ),
            lambda entry: entry.id,
        )
        if not plan.checks:
            return islice((view(core, entry) for entry in entries), limit)
        matching = (
            view(core, entry, details)
            for entry, details in _read(entries)
            if all(check(details) for check in plan.checks)
        )
        return islice(matching, limit)

    def count(self, filters: Filters) -> int:
        catalog = self._core.catalog
        plan = plan_find(catalog, filters)
        if not plan.checks:
            return catalog.count_found(plan.search)
        found = _read(catalog.search(plan.search))
        return sum(1 for _, details in found if all(check(details) for check in plan.checks))

    def names(self, kind: int, prefix: str) -> Iterator[LabelCount]:
        if check_text("prefix", prefix) is None:
            raise InvalidInput("prefix is text, not None")
        core = self._core
        names = resumed(
            core, lambda last: core.check().catalog.iter_names(kind, prefix, last), lambda row: row[0]
        )
        return (LabelCount(name=name, artifacts=count) for name, count in names)


def resumed(core: Core, pages: Callable[[K | None], Iterator[T]], key: Callable[[T], K]) -> Iterator[T]:
    """Stream pages; where the catalog proves damaged midway, go on behind the last item in a mended one, once."""
    last: K | None = None
    try:
        for item in pages(None):
            yield item
            last = key(item)
    except MENDABLE as error:
        core.mend(error)
    else:
        return
    yield from pages(last)


def _read(entries: Iterable[ArtifactEntry]) -> Iterator[tuple[ArtifactEntry, Details]]:
    for entry in entries:
        yield entry, parse_details(entry.doc)


class Plan(NamedTuple):
    """What the catalog searches by, and what is checked in the documents that it gives."""

    search: Search
    checks: tuple[Check, ...]


def plan_find(catalog: Catalog, filters: Filters) -> Plan:
    """Check the filters, and choose what the catalog's rows can tell; `InvalidInput` says which one will not do."""
    check_keywords(filters, Filters)
    deleted = bool(filters.get("deleted"))
    groups: list[tuple[Label, ...]] = []
    checks: list[Check] = []

    def wanted(kind: int, names: tuple[str, ...]) -> None:
        """At least one of the names."""
        if len(names) <= MAX_LABELS and not deleted:  # the rows are those of live artifacts
            groups.append(tuple((kind, name) for name in names))
            return
        chosen = frozenset(names)
        if kind == TAG:
            checks.append(lambda details: not chosen.isdisjoint(details.tags))
        else:
            checks.append(lambda details: not chosen.isdisjoint(details.links))

    for kind, what in ((TAG, "tag"), (LINK, "link")):
        every: Any = filters.get(what)
        for name in check_texts(what, (every,) if isinstance(every, str) else every or ()):
            wanted(kind, (name,))
        some: Any = filters.get(f"any_{what}")
        if some is not None:
            wanted(kind, check_texts(f"any_{what}", some))
    prefix = check_text("prefix", filters.get("prefix"))
    if prefix:
        names = () if deleted else catalog.names_with_prefix(TAG, prefix, MAX_LABELS + 1)
        if deleted or len(names) > MAX_LABELS:
            checks.append(lambda details: any(tag.startswith(prefix) for tag in details.tags))
        else:
            groups.append(tuple(names))
    if (filename := check_text("filename", filters.get("filename"))) is not None:
        match = re.compile(fnmatch.translate(filename)).match
        checks.append(lambda details: details.filename is not None and match(details.filename) is not None)
    if (content_type := check_text("content_type", filters.get("content_type"))) is not None:
        checks.append(_type_check(content_type))
    if (created_by := check_text("created_by", filters.get("created_by"))) is not None:
        checks.append(lambda details: details.created_by == created_by)
    return Plan(_search(filters, tuple(groups), deleted), tuple(checks))


def _search(filters: Filters, groups: tuple[tuple[Label, ...], ...], deleted: bool) -> Search:
    hash_ = filters.get("hash")
    if hash_ is not None and not isinstance(hash_, Hash):
        raise InvalidInput(f"hash is a Hash, not {type(hash_).__name__}: Hash.parse reads text")
    created = _times(filters, "created")
    low, high = filters.get("min_size_bytes"), filters.get("max_size_bytes")
    for what, size in (("min_size_bytes", low), ("max_size_bytes", high)):
        if size is not None and (not isinstance(size, int) or not 0 <= size < 1 << 63):
            raise InvalidInput(f"{what} is {size!r:.100}; a number of bytes is needed")
    since = created[0] or 0
    return Search(
        groups=groups,
        hash=None if hash_ is None else hash_.digest,
        created_ms=created,
        modified_ms=_times(filters, "modified"),
        size=(low, None if high is None else high + 1),
        deleted=deleted,
        # an id carries the time at which it was made, or a later one: `types.new_ids`
        lowest=min(max(since, 0), (1 << 48) - 1).to_bytes(6) + bytes(10) if since > 0 else b"",
    )


def _times(filters: Filters, what: str) -> Bounds:
    return _time_ms(f"{what}_after", filters), _time_ms(f"{what}_before", filters)


def _time_ms(what: str, filters: Filters) -> int | None:
    """Give milliseconds, rounded up: what is kept has no finer times, so both bounds stay exact."""
    time: Any = filters.get(what)
    if time is None:
        return None
    if not isinstance(time, datetime) or time.utcoffset() is None:
        raise InvalidInput(f"{what} is {time!r:.100}; a datetime with a time zone is needed")
    return -((EPOCH - time) // timedelta(milliseconds=1))


def _type_check(pattern: str) -> Check:
    """Compare without regard to case and, where the pattern names none, to parameters (`; charset=…`)."""
    match = re.compile(fnmatch.translate(pattern.lower())).match
    whole = ";" in pattern

    def check(details: Details) -> bool:
        found = (details.content_type or "").lower()
        return match(found if whole else found.partition(";")[0].rstrip()) is not None

    return check
