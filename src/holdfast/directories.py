"""put_tree: a directory becomes one artifact. What is read stands in `trees`; this is how it is stored."""

from __future__ import annotations

import io
import logging
import os
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import IO

import msgspec

from holdfast.arguments import path_of
from holdfast.artifacts import Artifacts
from holdfast.core import Core, Ingesting
from holdfast.errors import InvalidInput, SourceNotFound
from holdfast.ingest import Stored
from holdfast.reports import TreeReport
from holdfast.sources import HandleWindows, iter_windows
from holdfast.trees import put_tree
from holdfast.types import Artifact, BytesLike, ProgressCallback
from holdfast.words import Words, describe

log = logging.getLogger("holdfast")


class _Sink:
    """Stores what the walk brings, through one ingest."""

    def __init__(self, ingest: Ingesting) -> None:
        self._ingest = ingest
        self.last: deque[Stored] = deque(maxlen=3)
        """The last large blobs: names, collection, extras."""

    def put_small(self, contents: Sequence[bytes]) -> list[bytes]:
        return [stored.hash for stored in self._ingest.add_many(contents)]

    def put_large(self, source: IO[bytes] | Iterable[BytesLike], size_hint: int) -> bytes:
        windows = HandleWindows(source) if isinstance(source, io.FileIO) else iter_windows(source)
        stored = self._ingest.add(windows)
        self.last.append(stored)
        return stored.hash


def put_directory(
    core: Core,
    artifacts: Artifacts,
    directory: str | os.PathLike[str],
    words: Words,
    *,
    exclude: Iterable[str],
    strict: bool,
    on_report: Callable[[TreeReport], None] | None,
    progress: ProgressCallback | None,
) -> Artifact:
    """See `Store.put_tree`. The store's own directory is left out when it lies within."""
    path = path_of("the directory", directory)
    if not os.path.isdir(path):
        if os.path.lexists(path):
            raise InvalidInput(f"{path} is not a directory: store it with put", path=path)
        raise SourceNotFound(f"there is no directory at {path}", path=path)
    own: list[tuple[int, int]] = []
    if core.directory is not None and os.path.isdir(core.directory):
        root = os.path.realpath(core.directory)
        if os.path.commonpath((os.path.realpath(path), root)) == root:
            raise InvalidInput(f"{path} is the store itself, or lies in it", path=path)
        stat = os.stat(root)
        own.append((stat.st_dev, stat.st_ino))
    with core.adding() as (group, ingest):
        sink = _Sink(ingest)
        tree = put_tree(
            path,
            sink,
            exclude=exclude,
            strict=strict,
            skip_directories=own,
            progress=progress,
        )
        for name, why in tree.report.skipped[:10]:
            log.warning("left out: %s (%s)", name, why)
        given = words.filename or os.path.basename(os.path.abspath(path)) or None
        details = describe(core, words._replace(filename=given))
        requires = details.requires
        if tree.extras is not None:
            requires = (*requires, f"blake3:{tree.extras.hex()}")
        details = msgspec.structs.replace(details, content_type=words.content_type, requires=requires)
        collection = next(one for one in sink.last if one.hash == tree.collection)
        stored = collection._replace(size_bytes=tree.file_bytes)  # what a person means by the size of a tree
        artifact = artifacts.acknowledge(group, [(stored, details, 1)])[0]
    if on_report is not None:
        on_report(tree.report)
    return artifact
