"""Blobs of which a rebuild finds the record and not every piece.

Compaction removes the bytes of what was collected segment by segment, so the record of a blob may outlive its
pieces. A row for such a blob would be a promise that nobody can keep: a put would rely on it. So a rebuild gives up
its row where nothing names the blob; where something does, the blob is damaged, and is said to be.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from holdfast.backend.log.backend import LogBackend
from holdfast.backend.log.payloads import Payloads, Place
from holdfast.backend.log.pieces import is_whole
from holdfast.backend.log.reader import BlobReader, LargeReader, SmallReader
from holdfast.catalog import BlobRow, Catalog
from holdfast.catalog.collecting import FOREVER_MS, blob_page, drop_rows, forget, iter_names
from holdfast.catalog.labels import names_of
from holdfast.digests import BUCKETS, DigestSet, bucket_range
from holdfast.errors import MissingChunk
from holdfast.facts import KIND_DATA, KIND_MASK
from holdfast.reports import Problem
from holdfast.sequences import Sequences
from holdfast.types import HASH_BYTES, Hash

PAGE: Final = 1_000
MAX_PROBLEMS: Final = 10_000


def drop_half_blobs(catalog: Catalog, backend: LogBackend, *, is_damaged: bool = False) -> list[Problem]:
    """Take blobs out of a catalog that is being rebuilt whose pieces are not all here; gives those that are named.

    Reads the manifests of all large blobs, unless no segment was ever removed, nothing is damaged, and no place was
    repaired or given up. The caller holds the store's lock.
    """
    segments = backend.segment_ids()
    is_complete = not segments or len(segments) == segments[-1]
    if is_complete and not is_damaged and not catalog.ask("SELECT 1 FROM repaired LIMIT 1"):
        return []
    payloads = Payloads(backend.disk, backend.root, lambda: catalog)
    half, named, sequences = DigestSet(), DigestSet(), DigestSet()
    problems: list[Problem] = []
    pool = ThreadPoolExecutor(1)

    def reader(row: BlobRow) -> BlobReader:
        if row.flags & KIND_MASK == KIND_DATA:
            return SmallReader(payloads, row.hash, Place(row.location, row.stored, row.plain, row.flags))
        document = payloads.read_document(row.hash, row.location, row.stored)
        return LargeReader(payloads, lambda: catalog, pool, document, row.hash)

    try:
        for page in _pages(catalog):
            half.add(
                hash_
                for hash_, location, stored in page
                if not is_whole(payloads, hash_, location, stored, catalog.find_data)
            )
        for hash_, format_ in iter_names(catalog, FOREVER_MS):
            (sequences if format_ else named).add((hash_,))
        for _, hashes in sequences.buckets():
            named.add(hashes)
        named_by = Sequences(lambda: catalog, reader, as_far_as_possible=True)
        for _, words in named_by.follow(sequences):
            named.add(words)
        for session in [] if backend.read_only else backend.sessions(leases=True):
            named.add(hash_ for hash_, _ in session.leases or ())
        for number, hashes in half.buckets():
            kept = hashes & named.bucket(number)
            drop_rows(catalog, sorted(hashes - kept))
            problems += [_problem(hash_) for hash_ in sorted(kept)[: MAX_PROBLEMS - len(problems)]]
        if not is_complete:  # else nothing was ever collected for good: repair may bring back what they lack
            _forget_gone(catalog)
    finally:
        pool.shutdown()
        payloads.handles.close()
        half.close()
        named.close()
        sequences.close()
    return problems


def _forget_gone(catalog: Catalog) -> None:
    """Forget deleted artifacts whose bytes or last state are not here: they were collected, and cannot be restored."""
    gone: list[bytes] = []
    for entry in catalog.iter_artifacts(deleted=True):
        needed = [entry.hash, *(name for name in names_of(entry.doc).requires if len(name) == HASH_BYTES)]
        is_last = catalog.find_tombstone(entry.id) == entry.revision + 1
        if not is_last or len(catalog.find_blobs(needed)) < len(set(needed)):
            gone.append(entry.id)
    for start in range(0, len(gone), PAGE):
        forget(catalog, gone[start : start + PAGE])


def _pages(catalog: Catalog) -> Iterator[list[tuple[bytes, int, int]]]:
    for number in range(BUCKETS):
        after, below = bucket_range(number)
        while page := blob_page(catalog, after, below, PAGE):
            yield [row[:3] for row in page]
            after = page[-1][0]


def _problem(hash_: bytes) -> Problem:
    return Problem(
        kind=MissingChunk.kind,
        message=f"blob {hash_.hex()} is named, and not all of its pieces are here",
        hash=Hash(hash_),
    )
