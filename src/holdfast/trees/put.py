"""Stores a directory as a collection, through whatever keeps blobs. Order, names and modes are decided here.

The collection lists the files in the order of their paths' bytes. The same tree gives the same hash
everywhere.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import IO, Final, NamedTuple, Protocol

from holdfast.backend.log.disk import translate
from holdfast.reports import TreeReport
from holdfast.trees.exclude import Excludes
from holdfast.trees.walk import SMALL_FILE_BYTES, TreeWalk
from holdfast.types import HASH_BYTES, BytesLike, Progress, ProgressCallback
from holdfast.wire.collection import TreeExtras, encode_meta_head, encode_name

_SPOOL_BYTES: Final = 8 << 20
_PIECE_BYTES: Final = 1 << 20


class TreeSink(Protocol):
    """Where blobs go. Nothing has to be durable, or visible to others, before the caller acknowledges."""

    def put_small(self, contents: Sequence[bytes]) -> Sequence[bytes]:
        """Store blobs of at most 256 KiB, empty and equal ones included; give their hashes in order."""

    def put_large(self, source: IO[bytes] | Iterable[BytesLike], size_hint: int) -> bytes:
        """Store one blob of any length, about `size_hint` bytes, and give its hash. Does not close a file."""


class StoredTree(NamedTuple):
    """What `put_tree` stored: hashes of the collection and, if there is need of one, of its extras."""

    collection: bytes
    extras: bytes | None
    file_count: int
    file_bytes: int
    collection_bytes: int
    report: TreeReport


def put_tree(
    root: str | os.PathLike[str],
    sink: TreeSink,
    *,
    exclude: Iterable[str] = (),
    strict: bool = False,
    skip_directories: Collection[tuple[int, int]] = (),
    small_bytes: int = SMALL_FILE_BYTES,
    progress: ProgressCallback | None = None,
) -> StoredTree:
    """Store every file below `root`, then the collection, then its extras (executable bits, links, empty directories).

    What vanished, may not be read, or is a socket, pipe or device stands in `report.skipped` (the first
    10,000), or is an error if `strict`. A name that is not UTF-8 is InvalidInput. `skip_directories`, as
    (st_dev, st_ino), are left out: a store must not read itself. Memory: see `TreeWalk`; names and hashes are
    spooled to temporary files.
    """
    walk = TreeWalk(
        os.fspath(root),
        Excludes(exclude),
        strict=strict,
        skip_directories=skip_directories,
        small_bytes=small_bytes,
    )
    count = total = 0
    runs: list[int] = []
    with (
        tempfile.SpooledTemporaryFile(max_size=_SPOOL_BYTES) as names,
        tempfile.SpooledTemporaryFile(max_size=_SPOOL_BYTES) as hashes,
    ):
        for batch in walk.batches():
            if batch.contents:
                _spool(hashes, b"".join(sink.put_small(batch.contents)))
            if batch.large is not None:
                with batch.large:
                    _spool(hashes, sink.put_large(batch.large, batch.large_bytes))
            _spool(names, b"".join(map(encode_name, batch.names)))
            _add_runs(runs, batch.executable, count)
            count += len(batch.names)
            total += batch.total_bytes
            if progress is not None:
                progress(Progress(phase="store", done_bytes=total, done_items=count))
        head = encode_meta_head(count)
        meta = sink.put_large(_pieces(head, names), len(head) + names.tell())
        collection_bytes = (count + 1) * HASH_BYTES
        collection = sink.put_large(_pieces(meta, hashes), collection_bytes)
    return StoredTree(
        collection,
        _put_extras(sink, collection, runs, walk),
        count,
        total,
        collection_bytes,
        TreeReport(skipped=tuple(walk.skipped)),
    )


def _put_extras(sink: TreeSink, collection: bytes, runs: list[int], walk: TreeWalk) -> bytes | None:
    if not (runs or walk.symlinks or walk.empty_directories):
        return None
    document = TreeExtras(
        version=1,
        collection=collection.hex(),
        executable=runs,
        symlinks=walk.symlinks,
        directories=walk.empty_directories,
    ).encode()
    return sink.put_large([document], len(document))


def _add_runs(runs: list[int], executable: bytearray, base: int) -> None:
    """Add half-open runs of ones, at positions counted from `base`, to rising runs that end at `base` or before."""
    start = executable.find(1)
    while start >= 0:
        stop = executable.find(0, start)
        if stop < 0:
            stop = len(executable)
        if runs and runs[-1] == base + start:
            runs[-1] = base + stop
        else:
            runs += (base + start, base + stop)
        start = executable.find(1, stop)


def _spool(file: tempfile.SpooledTemporaryFile[bytes], data: bytes) -> None:
    try:
        file.write(data)
    except OSError as error:
        raise translate(error, tempfile.gettempdir()) from error


def _pieces(head: bytes, rest: tempfile.SpooledTemporaryFile[bytes]) -> Iterator[bytes]:
    rest.seek(0)
    yield head
    while piece := rest.read(_PIECE_BYTES):
        yield piece
