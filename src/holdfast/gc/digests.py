"""Sets of digests that are larger than what one would hold as Python objects. No knowledge of what they name."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from typing import IO, Final

from holdfast.types import HASH_BYTES

BUCKETS: Final = 256
"""A digest's first byte says where it lies: digests spread evenly, so a bucket has a 256th of them."""
SPILL_BYTES: Final = 48 << 20
"""From this many on, what was gathered goes to a temporary file: 1.5 million digests."""


class DigestSet:
    """Gathers digests, packed, and gives them back a bucket at a time as a set: 32 bytes each, above 48 MiB on disk.

    One thread at a time. Adding a digest twice costs room and does no harm.
    """

    def __init__(self) -> None:
        self._packed = [bytearray() for _ in range(BUCKETS)]
        self._held_bytes = 0
        self._file: IO[bytes] | None = None
        self._extents: list[list[tuple[int, int]]] = [[] for _ in range(BUCKETS)]
        self.count = 0
        """How many were added, repetitions included."""

    def add(self, digests: Iterable[bytes]) -> None:
        """Take digests in."""
        packed = self._packed
        count = 0
        for digest in digests:
            packed[digest[0]] += digest
            count += 1
        self.count += count
        self._held_bytes += count * HASH_BYTES
        if self._held_bytes >= SPILL_BYTES:
            self._spill()

    def bucket(self, number: int) -> set[bytes]:
        """Give the digests that begin with this byte."""
        found = _unpack(self._packed[number])
        if self._file is not None:
            for offset, length in self._extents[number]:
                self._file.seek(offset)
                found |= _unpack(self._file.read(length))
        return found

    def buckets(self) -> Iterator[tuple[int, set[bytes]]]:
        """Give all buckets that have digests, in order."""
        for number in range(BUCKETS):
            if self._packed[number] or self._extents[number]:
                yield number, self.bucket(number)

    def close(self) -> None:
        """Give the temporary file back."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _spill(self) -> None:
        if self._file is None:
            self._file = tempfile.TemporaryFile(prefix="holdfast-gc-")  # noqa: SIM115  # closed by `close`
        at = self._file.seek(0, 2)
        for number, packed in enumerate(self._packed):
            if packed:
                self._file.write(packed)
                self._extents[number].append((at, len(packed)))
                at += len(packed)
                packed.clear()
        self._held_bytes = 0


def bucket_range(number: int) -> tuple[bytes, bytes]:
    """Give the bounds of a bucket in the order of digests: from the first, and below the second."""
    return bytes((number,)), bytes((number + 1,)) if number + 1 < BUCKETS else b"\xff" * (HASH_BYTES + 1)


def _unpack(packed: bytes | bytearray) -> set[bytes]:
    whole = bytes(packed)
    return {whole[at : at + HASH_BYTES] for at in range(0, len(whole), HASH_BYTES)}
