"""Jobs about BAO streams and partial blobs; `benches.jobs` runs them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from holdfast.testing.inside import log_core

if TYPE_CHECKING:
    from benches.jobs import Clock

HASH = bytes(range(32))


def make_stream(clock: Clock, source: str, target: str, every_second: int | None) -> dict[str, Any]:
    """Write the stream of a file: all of it, or every second block, from block 0 or 1 on."""
    from holdfast.ranges import ChunkRanges
    from holdfast.testing.streams import Sender, blocks

    sender = Sender(Path(source).read_bytes())
    ranges = None
    if every_second is not None:
        ranges = ChunkRanges.union(blocks(i, i + 1) for i in range(every_second, sender.blocks, 2))
    with clock, open(target, "wb") as file:
        file.writelines(sender.pieces(ranges))
    return {
        "hash": str(sender.hash),
        "ranges": str(ranges) if ranges is not None and sender.blocks < 64 else "",
    }


def decode(
    clock: Clock, store: str, stream: str, hash: str, size_bytes: int, every_second: int | None
) -> dict[str, Any]:
    """Take a stream in; what comes of it is checked outside the clock."""
    import holdfast
    from holdfast.testing.streams import blocks

    ranges = None
    if every_second is not None:
        count = -(-size_bytes // 16_384)
        ranges = holdfast.ChunkRanges.union(blocks(i, i + 1) for i in range(every_second, count, 2))
    with holdfast.open(store, create=True) as opened:
        wanted = holdfast.Hash.parse(hash)
        if ranges is not None and opened.blobs.status(wanted) == "partial":
            assert opened.blobs.missing_ranges(wanted).clip(size_bytes) == ranges.clip(size_bytes)
        with clock, open(stream, "rb") as file:
            info = opened.blobs.decode(wanted, file, ranges)
        if info.status == "complete":
            assert opened.verify(wanted).ok, "other bytes were stored"
        return {"status": str(info.status), **opened.stats().to_dict()}


def claim_half(clock: Clock, store: str, size_bytes: int) -> dict[str, Any]:
    """Write the journal of a partial blob with every second block, without the blocks."""
    import holdfast
    from holdfast.backend.log.partial_state import empty_state
    from holdfast.ranges import ChunkRanges
    from holdfast.types import now_ms

    leaves = range(0, size_bytes // 1024, 32)
    have = ChunkRanges([edge for start in leaves for edge in (start, start + 16)])
    state = empty_state(now_ms())._replace(size_bytes=size_bytes, is_size_proven=True, have=have)
    with holdfast.open(store, create=True) as opened:
        partial = log_core(opened).backend.partials.open(HASH, now_ms())
        with partial.locked(), clock:
            partial.save(state)
        partial.close()
    return {"journal_bytes": os.path.getsize(f"{store}/partials/{HASH.hex()}/state")}


def first_ask(clock: Clock, store: str) -> dict[str, Any]:
    """Open a store, and say what to ask for first of a partial blob."""
    import holdfast

    wanted = holdfast.Hash(HASH)
    with clock:
        opened = holdfast.open(store)
        missing = opened.blobs.missing_ranges(wanted)
        first = next(iter(missing))
    with opened:
        assert first == (16, 32)
        return {"ranges": len(missing.boundaries) // 2}


def look(clock: Clock, store: str, count: int) -> dict[str, Any]:
    """Ask many times what is here of a blob of 1 TiB with one hole."""
    import holdfast
    from holdfast.backend.log.partial_state import empty_state
    from holdfast.ranges import ChunkRanges
    from holdfast.types import now_ms

    have = ChunkRanges((0, 16 * 12_345, 16 * 12_346, 1 << 30))
    wanted = holdfast.Hash(HASH)
    with holdfast.open(store, create=True) as opened:
        partial = log_core(opened).backend.partials.open(HASH, now_ms())
        with partial.locked():
            partial.save(empty_state(now_ms())._replace(size_bytes=1 << 40, is_size_proven=True, have=have))
            partial.compact()
        partial.close()
        blobs = opened.blobs
        with clock:
            for i in range(count):
                field = blobs.bitfield(wanted)
                assert (i in field.ranges) is True
                assert len(field.missing.boundaries) == 2
    return {"journal_bytes": os.path.getsize(f"{store}/partials/{HASH.hex()}/state")}
