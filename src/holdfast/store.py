"""The API of an open store. Thin; the rooms below do the work, and `opening` finds the place."""

from __future__ import annotations

import io
import os
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Unpack, overload

from holdfast.artifacts import Artifacts, Writer
from holdfast.blobs import Blobs
from holdfast.care.calls import Care
from holdfast.care.deep import rebuild_deep
from holdfast.catalog.labels import LINK, TAG
from holdfast.collecting import Collecting
from holdfast.core import entered
from holdfast.directories import put_directory
from holdfast.engine import Engine
from holdfast.errors import (
    ArtifactNotFound,
    BlobNotFound,
    InvalidInput,
)
from holdfast.finding import Filters, Finding
from holdfast.log_engine import LogEngine
from holdfast.making import How, open_core
from holdfast.naming import Change, Changes, Naming
from holdfast.reading import Reading
from holdfast.reports import RecoveryStats, RefreshStats, TreeReport
from holdfast.tags import Tags
from holdfast.types import (
    Artifact,
    BlobFormat,
    LabelCount,
    ProgressCallback,
    PutItem,
    Ref,
    Scalar,
    Source,
    Upload,
)
from holdfast.words import Said, Words, check_key, check_keywords, gather

if TYPE_CHECKING:
    from holdfast.backend.objects.bucket import Bucket
    from holdfast.resumable import ResumableWriter

_open_stores: weakref.WeakSet[Store] = weakref.WeakSet()


class Store(Care, Collecting):
    """One open store. Threads may share it; a forked child may not; it pickles as its location.

    Made by `holdfast.create` and `holdfast.open` (`opening`). A context manager.
    """

    def __init__(self, location: str, engine: Engine, reopen: Mapping[str, Any] | None) -> None:
        self.location = location
        self._engine = engine
        self._core = core = engine.core
        self._reopen = reopen
        self._artifacts = Artifacts(core)
        self._finding = Finding(core)
        self._naming = Naming(core)
        self._reading = Reading(core)
        self._blobs = Blobs(engine, self._reading)
        self._tags = Tags(core)
        self._closing = threading.RLock()
        self._is_closing = False
        _open_stores.add(self)

    @classmethod
    def _open(
        cls,
        path: str | os.PathLike[str],
        *,
        location: str | None = None,
        reopen: Mapping[str, Any] | None = None,
        **how: Unpack[How],
    ) -> Store:
        """Open a log store on any disk (`making.open_core` has the keywords)."""
        root = os.path.abspath(os.fspath(path))
        return cls(location or root, LogEngine(open_core(root, **how)), reopen)

    @classmethod
    def _open_objects(
        cls,
        bucket: Bucket,
        catalog_path: Path | None = None,
        *,
        location: str | None = None,
        reopen: Mapping[str, Any] | None = None,
        **how: Any,
    ) -> Store:
        """Open a store in a bucket (`object_making.open_object_core` has the keywords)."""
        from holdfast.object_engine import ObjectEngine
        from holdfast.object_making import open_object_core

        return cls(
            location or bucket.location, ObjectEngine(open_object_core(bucket, catalog_path, **how)), reopen
        )

    # -- storing

    @entered
    def put(
        self,
        source: Source,
        *,
        filename: str | None = None,
        progress: ProgressCallback | None = None,
        **words: Unpack[Said],
    ) -> Artifact:
        """Store one artifact; durable when it returns (its `durability` says how).

        `source`: a path (`str` is always a path), bytes-like, a binary file, or an iterable of bytes-like. What
        was read is what is stored. Keywords: `content_type`, `tags`, `links`, `requires` (artifacts and hashes that
        live as long as this one), `metadata`, `created_by`. Raises `EmptyData`, `TooLarge`, `SourceNotFound`,
        `InvalidInput`, and `BackendError`; nothing of it is visible then. Memory is bounded whatever the size.
        """
        return self._artifacts.put(source, gather(filename, words), progress)

    @entered
    def put_many(
        self,
        items: Iterable[PutItem | Source],
        *,
        max_items: int = 100_000,
        filename: str | None = None,
        progress: ProgressCallback | None = None,
        **words: Unpack[Said],
    ) -> list[Artifact]:
        """Store many artifacts as one acknowledgement, all or nothing; in the order of the items.

        Keywords, those of `put`, are defaults, which an item's own replace. `TooLarge` above `max_items`.
        """
        common = gather(filename, words)
        return self._artifacts.put_many(items, common, max_items=max_items, progress=progress)

    @entered
    def put_tree(
        self,
        directory: str | os.PathLike[str],
        *,
        exclude: Iterable[str] = (),
        strict: bool = False,
        on_report: Callable[[TreeReport], None] | None = None,
        filename: str | None = None,
        progress: ProgressCallback | None = None,
        **words: Unpack[Said],
    ) -> Artifact:
        """Store a directory as one artifact, whose blob is an iroh collection of its files.

        Executable bits, symbolic links and empty directories stand in a second blob that the artifact requires.
        The tree is what was read: a file that vanishes midway, or is a socket, pipe or device, is left out and
        told to `on_report` (and logged), or is an error if `strict`. `exclude`: patterns as in .gitignore.
        Other keywords are those of `put`.
        """
        return put_directory(
            self._core,
            self._artifacts,
            directory,
            gather(filename, words),
            exclude=exclude,
            strict=strict,
            on_report=on_report,
            progress=progress,
        )

    @overload
    def writer(
        self,
        filename: str | None = None,
        *,
        resumable: Literal[False] = False,
        resume: None = None,
        **words: Unpack[Said],
    ) -> Writer: ...
    @overload
    def writer(
        self, filename: str | None = None, *, resumable: Literal[True], **words: Unpack[Said]
    ) -> ResumableWriter: ...
    @overload
    def writer(self, *, resume: str) -> ResumableWriter: ...
    def writer(
        self,
        filename: str | None = None,
        *,
        resumable: bool = False,
        resume: str | None = None,
        **words: Unpack[Said],
    ) -> Writer | ResumableWriter:
        """Store an artifact that is written piece by piece; see `Writer`. Keywords are those of `put`.

        `resumable`: what was written stays, and can be gone on with by `resume=writer.token`, also after a crash and
        in another process: see `ResumableWriter`. The words were said when it began, and are not said again.
        """
        return self._writer(gather(filename, words), resumable, resume)

    @entered
    def _writer(self, said: Words, resumable: bool, resume: str | None) -> Writer | ResumableWriter:
        if not resumable and resume is None:
            return Writer(self._core, self._artifacts, said)
        if resume is None:
            return self._engine.begin_upload(self._artifacts, said)
        if said != Words():
            raise InvalidInput("the words of an upload were said when it began: give the token alone")
        return self._engine.resume_upload(self._artifacts, resume)

    @entered
    def uploads(self) -> Iterator[Upload]:
        """Give the puts that were begun with `writer(resumable=True)` and can go on."""
        return self._engine.uploads()

    # -- finding and reading

    @entered
    def info(self, ref: Artifact | str) -> Artifact:
        """Give an artifact as it is now; `ArtifactNotFound`."""
        return self._finding.info(ref)

    @entered
    def exists(self, ref: Ref) -> bool:
        """Whether a live artifact, or a blob of this hash, is here."""
        try:
            self._core.resolve(ref)
        except (ArtifactNotFound, BlobNotFound):
            return False
        return True

    @entered
    def find(
        self, *, limit: int | None = None, after: Artifact | str | None = None, **filters: Unpack[Filters]
    ) -> Iterator[Artifact]:
        """Give the artifacts for which all that is given holds, newest first, fetched in pages as it goes.

        `tag`, `link`: one, or several, all of which it has; `any_tag`, `any_link`: it has at least one of these.
        `prefix`: a tag begins with it. `filename` and `content_type` are patterns (`*.png`, `image/*`).
        `hash`, `created_by`: it is this one. `created_after`, `created_before`, `modified_after`, `modified_before`:
        aware times, from `…_after` on and before `…_before`. `min_size_bytes` and `max_size_bytes` are both included.
        `deleted=True`: those that can still be restored. `after` goes on behind an artifact, here still or not.

        Tags and links are looked up; other filters go through all that the former leave.
        """
        return self._finding.find(filters, limit, after)

    @entered
    def count(self, **filters: Unpack[Filters]) -> int:
        """Count artifacts; the filters are those of `find`."""
        return self._finding.count(filters)

    @entered
    def tags_in_use(self, prefix: str = "") -> Iterator[LabelCount]:
        """Give the tags of live artifacts that begin with `prefix`, in order, each with how many bear it."""
        return self._finding.names(TAG, prefix)

    @entered
    def links_in_use(self, prefix: str = "") -> Iterator[LabelCount]:
        """Give the links of live artifacts that begin with `prefix`, in order, each with how many bear it."""
        return self._finding.names(LINK, prefix)

    @entered
    def read(self, ref: Ref, offset_bytes: int = 0, length_bytes: int | None = None) -> bytes:
        """Give a range of a blob, verified. `InvalidRange` when it is negative or goes past the end; `CorruptBlob`."""
        return self._reading.read(ref, offset_bytes, length_bytes)

    @entered
    def iter_bytes(self, ref: Ref, offset_bytes: int = 0, length_bytes: int | None = None) -> Iterator[bytes]:
        """Give a range of a blob in verified pieces of some MiB at most. Errors as for `read`."""
        return self._reading.iter_bytes(ref, offset_bytes, length_bytes)

    @entered
    def open(self, ref: Ref) -> io.BufferedReader:
        """Open a blob as a seekable file, verified as it is read. It reads short at the end, as files do."""
        return self._reading.open(ref)

    @entered
    def export(
        self,
        ref: Ref,
        path: str | os.PathLike[str],
        *,
        overwrite: bool = False,
        format: BlobFormat | str | None = None,
        progress: ProgressCallback | None = None,
    ) -> None:
        """Write a file, or the tree of a collection (`format="hash_seq"` for a bare hash); renamed when whole.

        `Conflict` where something is there already, unless `overwrite`. Never writes outside `path`.
        """
        self._reading.export(ref, path, overwrite=overwrite, format=format, progress=progress)

    # -- changing

    @entered
    def update(
        self, ref: Artifact | str, *, if_revision: int | None = None, **changes: Unpack[Changes]
    ) -> Artifact:
        """Change what is said about an artifact, in one step; durable when it returns. Gives it as it is then.

        `filename`, `content_type`, `created_by`, `metadata`: the new value; None clears it, `KEEP` (the default)
        leaves it. `add_…` and `remove_…` of `tags`, `links`, `requires` and `metadata` change some. What is added
        twice or removed in vain is no error; a call that changes nothing writes nothing, and the revision stays.
        `if_revision`: `Conflict`, with both revisions as evidence, when the artifact is at another one.
        """
        check_keywords(changes, Changes)
        return self._naming.update(ref, Change(**changes), if_revision)

    @entered
    def tag(self, ref: Artifact | str, *tags: str) -> Artifact:
        """Add tags to an artifact."""
        return self._naming.update(ref, Change(add_tags=tags), None)

    @entered
    def untag(self, ref: Artifact | str, *tags: str) -> Artifact:
        """Remove tags from an artifact; those that it does not have are no error."""
        return self._naming.update(ref, Change(remove_tags=tags), None)

    @entered
    def link(self, ref: Artifact | str, *links: str) -> Artifact:
        """Add links to an artifact: names of things elsewhere, which keep nothing alive."""
        return self._naming.update(ref, Change(add_links=links), None)

    @entered
    def unlink(self, ref: Artifact | str, *links: str) -> Artifact:
        """Remove links from an artifact; those that it does not have are no error."""
        return self._naming.update(ref, Change(remove_links=links), None)

    @entered
    def set_metadata(self, ref: Artifact | str, key: str, value: Scalar) -> Artifact:
        """Set one key of an artifact's metadata. None is a value like any other: `remove_metadata` drops a key."""
        return self._naming.update(ref, Change(add_metadata={key: value}), None)

    @entered
    def get_metadata(self, ref: Artifact | str, key: str, default: Scalar = None) -> Scalar:
        """Give one key of an artifact's metadata, or `default` where it has none."""
        return self._finding.info(ref).metadata.get(check_key(key), default)

    @entered
    def remove_metadata(self, ref: Artifact | str, *keys: str) -> Artifact:
        """Drop keys of an artifact's metadata; those that it does not have are no error."""
        return self._naming.update(ref, Change(remove_metadata=keys), None)

    # -- deleting

    @entered
    def delete(self, *refs: Artifact | str, force: bool = False) -> None:
        """Delete artifacts, all or none: gone from every answer, `restore` brings them back.

        `Conflict` when one that stays requires one of them (or its blob): `holders` names who does. `force`
        deletes nevertheless; what requires it then points to nothing.
        """
        self._naming.delete(refs, force=force)

    @entered
    def restore(self, ref: Artifact | str, *, force: bool = False) -> Artifact:
        """Bring a deleted artifact back, with everything; `ArtifactNotFound` when it was collected since.

        `Conflict` when it is not deleted, or when what it requires is not here, unless `force`.
        """
        return self._naming.restore(ref, force=force)

    # -- the layer below

    @property
    def requests(self) -> Mapping[str, int]:
        """What the bucket was asked since the store was opened: by kind, with the bytes that came and went.

        What one call cost is the difference to before. A local store asks nobody: it is empty.
        """
        return self._engine.requests()

    @property
    def blobs(self) -> Blobs:
        """Blobs by hash."""
        return self._blobs

    @property
    def tags(self) -> Tags:
        """Names of blobs, which keep them."""
        return self._tags

    # -- care

    @entered
    def rebuild(
        self, *, deep: bool = False, resume: bool = False, progress: ProgressCallback | None = None
    ) -> RecoveryStats:
        """Make the catalog anew from storage; the others who have the store open notice by themselves.

        Sizes and names are taken from what storage lists, unless `deep`: then every byte is read and verified, and
        outboards that are missing are computed. With `resume` that goes on where it was interrupted.

        What damaged records held is forgotten: `scrub` and `repair` first. `CorruptSegment` where segments are gone,
        or names are known to have no record any more.
        """
        return rebuild_deep(self._engine, progress, resume=resume) if deep else self._engine.rebuild(progress)

    @entered
    def refresh(self, *, progress: ProgressCallback | None = None) -> RefreshStats:
        """Learn what other machines did to a store in a bucket since the catalog was filled, deletions included.

        Lists the bucket (a request for 1,000 objects) and reads the names that are new or were changed. What others
        put is found without it when it is asked for by its hash; their artifacts and tags are known after it.
        """
        return self._engine.refresh(progress)

    @entered
    def sync(self) -> None:
        """Make durable what was acknowledged as `buffered`."""
        self._engine.sync()

    def close(self) -> None:
        """Close the store; harmless when done twice. Readers and writers that are open must not be used after it.

        Waits for the calls of other threads; from within a call of its own thread it is `InvalidInput`. A store that
        is never closed is let go when nobody has it any more, with a `ResourceWarning`.
        """
        self._core.refuse_within_call()
        with self._closing:
            if self._core.closed or self._is_closing:  # the latter: in a signal handler that interrupted us
                return
            self._is_closing = True
            try:
                self._engine.stop_work()
                self._core.close()
                self._engine.close()
            finally:
                self._is_closing = False

    def __enter__(self) -> Store:
        self._core.check()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<holdfast.Store {self.location}{' (closed)' if self._core.closed else ''}>"

    def __reduce__(self) -> tuple[Callable[..., Store], tuple[Any, ...]]:
        if self._reopen is None:
            raise InvalidInput(f"the store {self.location} lives in this process alone and cannot be pickled")
        return _unpickle, (self.location, dict(self._reopen))

    def _abandon(self) -> None:
        """In a forked child: give back what was inherited, without touching what the parent still uses."""
        if not self._core.was_closed:
            self._core.abandon_in_child()


def _unpickle(location: str, options: dict[str, Any]) -> Store:
    import holdfast

    return holdfast.open(location, **options)


def _after_fork_in_child() -> None:
    for store in list(_open_stores):
        store._abandon()


os.register_at_fork(after_in_child=_after_fork_in_child)
