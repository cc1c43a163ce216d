"""Blobs of which the bytes are at hand, on their way into a bucket. One call may have a million of them."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final, NamedTuple

_FORM: Final = struct.Struct("<QQQ?")


class Waiting(NamedTuple):
    """A blob of which the bytes are at hand, in a spool."""

    hash: bytes
    size_bytes: int
    start: int
    outboard_start: int
    heals: bool = False
    """What the bucket has is known to be damaged: it is replaced."""


class WaitingBlobs:
    """Blobs by their hash, in the order in which they came; each takes some 230 bytes."""

    def __init__(self) -> None:
        self._packed: dict[bytes, bytes] = {}

    def add(self, blob: Waiting) -> None:
        """Take one in."""
        self._packed[blob.hash] = _FORM.pack(*blob[1:])

    def remove(self, hash_: bytes) -> None:
        """Forget one."""
        del self._packed[hash_]

    def move_in(self, others: WaitingBlobs) -> None:
        """Take all of others in; they have none then."""
        self._packed.update(others._packed)
        others._packed = {}

    def find(self, hash_: bytes) -> Waiting | None:
        """Give the blob of a hash."""
        packed = self._packed.get(hash_)
        return None if packed is None else Waiting(hash_, *_FORM.unpack(packed))

    def hashes(self) -> list[bytes]:
        """Give the hashes of this moment, while another thread may add some."""
        return list(self._packed)

    def __contains__(self, hash_: object) -> bool:
        return hash_ in self._packed

    def __len__(self) -> int:
        return len(self._packed)

    def __iter__(self) -> Iterator[Waiting]:
        return (Waiting(hash_, *_FORM.unpack(packed)) for hash_, packed in self._packed.items())
