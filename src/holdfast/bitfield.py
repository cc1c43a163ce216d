"""Which parts of a blob are here: the value `Bitfield`, nothing else."""

from __future__ import annotations

from typing import Any

from holdfast.ranges import LEAF_BYTES, ChunkRanges, leaf_count
from holdfast.types import BlobStatus, Hash, Value


class Bitfield(Value, frozen=True, kw_only=True):
    """Which leaves of a blob are here, in whole blocks; runs, so its size goes with the number of gaps.

    `size_bytes` is what a stream claimed, as long as `is_size_verified` is false; 0 if nothing is known.
    """

    hash: Hash
    status: BlobStatus
    size_bytes: int
    is_size_verified: bool
    ranges: ChunkRanges

    @property
    def missing(self) -> ChunkRanges:
        """What to ask for next: whole blocks that are not here; open-ended while the size is not verified."""
        rest = ~self.ranges
        return rest.clip(self.size_bytes) if self.is_size_verified else rest

    @property
    def present_bytes(self) -> int:
        """How many bytes are here."""
        return present_bytes(self.ranges, self.size_bytes)

    def to_dict(self) -> dict[str, Any]:
        """Give plain data; ranges as `ChunkRanges.parse` reads them."""
        plain = Value.to_dict(self)
        return {**plain, "ranges": str(self.ranges), "present_bytes": self.present_bytes}


def present_bytes(ranges: ChunkRanges, size_bytes: int) -> int:
    """How many bytes of a blob are in `ranges`."""
    last = leaf_count(size_bytes) - 1
    beyond = (last + 1) * LEAF_BYTES - size_bytes if last in ranges else 0
    return ranges.count(size_bytes) * LEAF_BYTES - beyond
