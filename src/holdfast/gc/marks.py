"""Marking: from what is named to every payload that it is made of, in bounded memory. Reads, and changes nothing."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from itertools import islice
from typing import Any, Final, NamedTuple, TypeAlias, TypeVar, cast

import apsw

from holdfast.backend.log.pieces import iter_pieces
from holdfast.catalog import Catalog
from holdfast.catalog.collecting import blob_page, data_page
from holdfast.digests import DigestSet, bucket_range
from holdfast.errors import BlobNotFound, FormatError, IntegrityError, NotFound
from holdfast.log_core import LogCore
from holdfast.sequences import BATCH, Sequences, Unreadable
from holdfast.types import Hash

T = TypeVar("T")
R = TypeVar("R", bound=tuple[Any, ...])
PAGE_ROWS: Final = 2_000
Root: TypeAlias = tuple[bytes, int]
"""A hash that is kept, and 1 if it is followed as a hash seq, else 0."""
Watch: TypeAlias = Callable[[int], None]
"""Hears of payloads that were marked, and may raise."""


class Marks(NamedTuple):
    """What is reached. The blobs have their own payloads or describing records; `payloads` are pieces of blobs."""

    blobs: DigestSet
    payloads: DigestSet

    def close(self) -> None:
        """Give temporary files back."""
        self.blobs.close()
        self.payloads.close()


class Tracer:
    """Follows names. `catalog` gives the catalog that is marked, and raises when it was replaced."""

    def __init__(self, core: LogCore, catalog: Callable[[], Catalog], watch: Watch) -> None:
        self._core = core
        self._catalog = catalog
        self._watch = watch

    def trace(self, roots: Iterable[Root], held: Iterable[bytes] = (), also: Iterable[bytes] = ()) -> Marks:
        """Mark all that the roots keep, and what is held; `Unreadable` where that cannot be known.

        A root must be here. What is held, what a hash seq lists, and the blobs `also` may be missing.
        """
        named, sequences = DigestSet(), DigestSet()
        marks = Marks(DigestSet(), DigestSet())
        try:
            for batch in batches(roots, BATCH):
                named.add(hash_ for hash_, _ in batch)
                marks.blobs.add(hash_ for hash_, _ in batch)
                sequences.add(hash_ for hash_, format_ in batch if format_)
            for digests in batches(held, BATCH):
                marks.blobs.add(digests)
                marks.payloads.add(digests)
            marks.blobs.add(also)
            for _, words in self.iter_sequences(sequences):
                marks.blobs.add(words)
            with closing(self._places(marks.blobs, named)) as places:
                for hash_, location, stored in places:
                    for digests in self.pieces_of(hash_, location, stored):
                        marks.payloads.add(digests)
                        self._watch(len(digests))
        except BaseException:
            marks.close()
            raise
        finally:
            named.close()
            sequences.close()
        return marks

    def iter_sequences(self, sequences: DigestSet) -> Iterator[tuple[bytes, list[bytes]]]:
        """Give (hash seq, some of its children) until all are given, those of sequences among the children too."""
        for hash_, words in Sequences(self._catalog, self._core.backend.reader).follow(sequences):
            yield hash_, words
            self._watch(len(words))

    # -- manifests

    def _places(self, blobs: DigestSet, named: DigestSet) -> Generator[tuple[bytes, int, int], None, None]:
        """Give (hash, location, stored bytes) of the large ones among the blobs, in the order of their places."""
        with closing(
            apsw.Connection("")
        ) as sorter:  # a temporary file of SQLite's: any number, in bounded memory
            sorter.execute(
                "PRAGMA journal_mode=OFF; CREATE TABLE places(location, stored, hash); BEGIN"
            ).fetchall()
            for number, bucket in blobs.buckets():
                low, high = bucket_range(number)
                large: set[bytes] = set()
                for page in blob_pages(self._catalog, low, high):
                    found = [
                        (location, stored, hash_) for hash_, location, stored, _ in page if hash_ in bucket
                    ]
                    large.update(hash_ for _, _, hash_ in found)
                    sorter.executemany("INSERT INTO places VALUES(?, ?, ?)", found)
                self._check_here(named.bucket(number) - large)
            rows = sorter.execute("SELECT hash, location, stored FROM places ORDER BY location")
            yield from cast("Iterator[tuple[bytes, int, int]]", rows)

    def _check_here(self, hashes: set[bytes]) -> None:
        for batch in batches(hashes, BATCH):
            for hash_ in set(batch) - self._catalog().find_blobs(batch).keys():
                raise Unreadable(hash_, BlobNotFound(f"there is no blob {hash_.hex()}", hash=Hash(hash_)))

    def pieces_of(self, hash_: bytes, location: int, stored: int) -> Iterator[list[bytes]]:
        """Give the payloads that a large blob is made of, some at a time."""
        payloads = self._core.backend.payloads
        try:
            yield from iter_pieces(payloads, hash_, payloads.read_document(hash_, location, stored))
        except (IntegrityError, FormatError, NotFound) as error:
            raise Unreadable(hash_, error) from error


def batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Give the items in lists of up to `size`."""
    rest = iter(items)
    while batch := list(islice(rest, size)):
        yield batch


def pages_of(page_after: Callable[[bytes], list[R]], after: bytes) -> Iterator[list[R]]:
    """Give pages of rows that begin with their hash, each asked for behind the last row of the one before."""
    while page := page_after(after):
        yield page
        after = page[-1][0]


def blob_pages(
    catalog: Callable[[], Catalog], after: bytes, below: bytes
) -> Iterator[list[tuple[bytes, int, int, int]]]:
    """Give the rows of large blobs (`books.blob_page`) between two hashes, from whichever catalog there is by then."""
    return pages_of(lambda last: blob_page(catalog(), last, below, PAGE_ROWS), after)


def data_pages(
    catalog: Callable[[], Catalog], after: bytes, below: bytes
) -> Iterator[list[tuple[bytes, int, int]]]:
    """Give the rows of payloads (`books.data_page`) in the same way."""
    return pages_of(lambda last: data_page(catalog(), last, below, PAGE_ROWS), after)
