"""Following hash seqs to all that they list, those of sequences within sequences too. Reads, and changes nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from holdfast.backend.log.reader import BlobReader
from holdfast.catalog import BlobRow, Catalog
from holdfast.catalog.unusable import CatalogUnusable
from holdfast.digests import DigestSet
from holdfast.errors import BlobNotFound, FormatError, HoldfastError, IntegrityError, NotFound
from holdfast.types import HASH_BYTES, Hash

BATCH: Final = 1_000


class Unreadable(Exception):
    """A blob that is to be followed cannot be read, so nobody knows what it keeps."""

    def __init__(self, hash_: bytes, cause: HoldfastError) -> None:
        super().__init__(hash_, cause)
        self.hash = hash_
        self.cause = cause


class Sequences:
    """`catalog` gives the catalog that is asked, `reader` opens a blob of it.

    `Unreadable` for one that cannot be followed; with `as_far_as_possible` nothing is, and its rest is passed over.
    """

    def __init__(
        self,
        catalog: Callable[[], Catalog],
        reader: Callable[[BlobRow], BlobReader],
        *,
        as_far_as_possible: bool = False,
    ) -> None:
        self._catalog = catalog
        self._reader = reader
        self._passes_over = as_far_as_possible

    def follow(self, sequences: DigestSet) -> Iterator[tuple[bytes, list[bytes]]]:
        """Give (hash seq, some of its children) until all are given, those of sequences among the children too.

        A child counts as a sequence when its size allows it and its first 32 bytes are the hash of a blob that is
        here: bytes that are none pass for one only if somebody made them so, and then more is kept, not less.
        """
        done = DigestSet()
        try:
            while sequences.count:
                nested = DigestSet()
                for number, bucket in sequences.buckets():
                    fresh = bucket - done.bucket(number)
                    for hash_ in sorted(fresh):
                        for words in self._words(hash_):
                            yield hash_, words
                            nested.add(self._sequences_among(words))
                    done.add(fresh)
                sequences = nested
        finally:
            done.close()

    def _words(self, hash_: bytes) -> Iterator[list[bytes]]:
        """Give the hashes in a hash seq, in batches."""
        try:
            row = self._catalog().find_blob(hash_)
            if row is None:
                raise BlobNotFound(f"there is no blob {hash_.hex()}", hash=Hash(hash_))
            reader = self._reader(row)
            rest = b""
            for piece in reader.iter_bytes(0, reader.size_bytes):
                data = rest + piece
                whole = len(data) - len(data) % HASH_BYTES
                words = [data[at : at + HASH_BYTES] for at in range(0, whole, HASH_BYTES)]
                rest = data[whole:]
                for start in range(0, len(words), BATCH):
                    yield words[start : start + BATCH]
        except (HoldfastError, OSError) as error:
            self._pass_over(hash_, error)

    def _sequences_among(self, words: list[bytes]) -> list[bytes]:
        catalog = self._catalog()
        rows = catalog.find_blobs(list(dict.fromkeys(words)))
        heads: dict[bytes, list[bytes]] = {}
        for hash_, row in rows.items():
            if row.size and not row.size % HASH_BYTES:
                try:
                    head = self._reader(row).read_at(0, HASH_BYTES)
                except (HoldfastError, OSError) as error:
                    self._pass_over(hash_, error)
                else:
                    heads.setdefault(head, []).append(hash_)
        here = catalog.find_blobs(list(heads))
        return [hash_ for head, hashes in heads.items() if head in here for hash_ in hashes]

    def _pass_over(self, hash_: bytes, error: HoldfastError | OSError) -> None:
        """Raise what is to be raised: a disk that fails says so itself."""
        if self._passes_over and not isinstance(error, CatalogUnusable):
            return
        if isinstance(error, IntegrityError | FormatError | NotFound):
            raise Unreadable(hash_, error) from error
        raise error
