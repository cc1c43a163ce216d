"""The Rust kernels: functions over buffers, without files, sockets or callbacks.

Every `Buffer` must be C-contiguous and of single bytes (`bytes`, `bytearray`, `memoryview`, `mmap`, an array of
`uint8`); anything else raises BufferError. Work above about 2 KiB runs without the GIL. A buffer that another
thread changes meanwhile gives a result for some mixture of the old and the new bytes, never a fault. An object
that one thread is using raises RuntimeError in another.
"""

from collections.abc import Sequence
from typing import Final, final

from typing_extensions import Buffer

BLOCK_BYTES: Final = 16384
HEADER_BYTES: Final = 64
ENTRY_BYTES: Final = 46
MAX_PAYLOAD_BYTES: Final = 16777216

def blake3(data: Buffer) -> bytes:
    """Hash `data` on this thread: 32 bytes."""

def blake3_many(data: Buffer, lengths: Sequence[int]) -> bytes:
    """Hash consecutive pieces of one buffer: 32 bytes each.

    ValueError unless `lengths` add up to all of `data`.
    """

def blake3_list(items: Sequence[Buffer]) -> bytes:
    """Hash separate buffers: 32 bytes each."""

def crc32c(data: Buffer, value: int = 0) -> int:
    """CRC-32C (Castagnoli) of `data`, continuing from `value`, the CRC of what came before."""

def compressible(items: Sequence[Buffer]) -> bytes:
    """Guess for each item, 1 or 0, whether compression is worth a try.

    Of up to 2 KiB, sampled at eight places all over the item, the equal pairs of bytes are counted. It is 1
    if there are at least 30 % more than random bytes would give (collision entropy below 7.6 bits a byte),
    beyond what chance explains for the size of the sample. Under 64 bytes the answer is 0. Repetition
    farther apart is not looked for.
    """

@final
class BlobHasher:
    """BLAKE3 of a whole blob, and the chaining values of its 16 KiB groups, in one pass.

    Memory: one group, and 32 bytes for each group not taken yet.
    """

    def __init__(self) -> None: ...
    @property
    def size_bytes(self) -> int:
        """How many bytes `update` has been given."""

    def update(self, data: Buffer) -> None:
        """Append `data`; any split gives the same result. ValueError after `finish`."""

    def resume(self, groups: Buffer) -> None:
        """Go on behind groups that were hashed before, given their chaining values (32 bytes each, from `take_groups`).

        At least a byte must follow the first group. ValueError within a group, or after `finish`. They are not
        given again by `take_groups`.
        """

    def take_groups(self) -> bytes:
        """Take away the chaining values, 32 bytes each, of groups completed since the last take.

        The first group counts once a byte after it is known: only then it is certain not to be the root.
        ValueError after `finish`.
        """

    def finish(self) -> tuple[bytes, bytes]:
        """The root hash, and the chaining values not taken yet; b"" for a blob of one group or none.

        ValueError if called twice.
        """

def outboard(groups: Buffer, is_root: bool) -> tuple[bytes, bytes]:
    """Build the pre-order outboard of n groups from their chaining values: 64 (n - 1) bytes, and the top.

    The top is the root hash if `is_root`, else the chaining value of the subtree. ValueError if n is 0, or
    if n is 1 and `is_root`: the chaining value of a lone group does not give its root hash.
    """

def leaf_cvs(outboard: Buffer, groups: int, expected: bytes, is_root: bool) -> bytes:
    """Verify every pair of a pre-order outboard against `expected`; give the chaining values of the n groups.

    The inverse of `outboard`. A wrong pair raises ValueError(message, offset) with the byte offset of the
    first one in pre-order; a wrong length raises ValueError(message). One group gives `expected` (ValueError
    if `is_root`: the root hash of a lone group is not its chaining value).
    """

def parent_cv(left: bytes, right: bytes, is_root: bool) -> bytes:
    """The chaining value (or, if `is_root`, the root hash) of the parent of two subtrees."""

def verify_groups(data: Buffer, first_group: int, cvs: Buffer) -> int:
    """Check consecutive groups of a blob that has more than one, the last of `data` may be short.

    `data` begins with group `first_group`; `cvs` holds 32 bytes for each group. Gives the index, within
    `data`, of the first group that does not match, or -1. ValueError if the number of groups and of `cvs`
    differ.
    """

def verify_many(data: Buffer, offsets: Sequence[int], lengths: Sequence[int], hashes: Buffer) -> int:
    """Check BLAKE3 of data[offset:offset + length] against each 32 bytes of `hashes`: first bad index, or -1.

    ValueError if a piece is not inside `data`, or if there are not as many of each.
    """

@final
class StreamEncoder:
    """Writes the BAO stream of a blob for ranges (size, pairs, data), verifying all that goes into it.

    The caller asks what is needed next, reads it, and gets the bytes. Data is asked for in whole groups, pairs
    as they lie in the pre-order outboard. Memory: the ranges, a node for each level of the tree, a group, and
    what is passed. Empty ranges give an empty stream.
    """

    def __init__(self, root: bytes, size_bytes: int, boundaries: Sequence[int]) -> None:
        """`boundaries` count leaves of 1,024 bytes: on, off, on, …; ValueError unless they rise."""

    def plan(self, limit: int) -> tuple[int, list[tuple[int, int]], list[tuple[int, int]]]:
        """What the next part is: its bytes (0: the stream is complete), and what to pass to `encode` for it.

        That is runs of the outboard, then runs of the data, each as (offset, length), about `limit` bytes of data
        or less, but at least one group.
        """

    def encode(self, pairs: Sequence[Buffer], data: Sequence[Buffer]) -> bytes:
        """The part that was planned last, from what its runs name.

        ValueError(message, "outboard" | "data", offset) for a pair or a group that does not verify; the encoder is
        of no use after it. ValueError(message) if these are not the runs that were planned.
        """

@final
class StreamDecoder:
    """Verifies a BAO stream as it arrives.

    Memory: the ranges, a node for each level of the tree, and a group; and pairs that were not taken.
    """

    def __init__(self, root: bytes, boundaries: Sequence[int], keeps_pairs: bool) -> None:
        """`boundaries` count leaves of 1,024 bytes: on, off, on, …; ValueError unless they rise."""

    def feed(self, data: Buffer) -> list[tuple[int, bytes]]:
        """Verify what is complete now: runs of (offset in the blob, bytes).

        Nothing is given that does not verify, and all that comes before a failure is given; after one, nothing.
        """

    def wants(self, limit: int) -> int:
        """How many of the next bytes belong to the stream, as far as that is certain; 0 when it is complete or wrong.

        At most `limit`, but at least what completes the next item.
        """

    def take_pairs(self) -> list[tuple[int, bytes]]:
        """Take away the pairs above leaves that were verified: runs of (offset in the outboard, bytes)."""

    def finish(self) -> bool:
        """Whether the stream was complete and right; if it was not, `failure` says why."""

    @property
    def failure(self) -> tuple[str, int, int] | None:
        """What is wrong, at which offset of the stream, and a detail.

        "size" (above 2**62; the detail is that size), "parent", "leaf" (the detail is its offset in the blob),
        "trailing", "truncated".
        """

    @property
    def size_bytes(self) -> int | None:
        """The claimed size of the blob, once it has come."""

    @property
    def is_size_proven(self) -> bool:
        """Whether the last leaf was verified, which proves the size."""

    @property
    def position(self) -> int:
        """How many bytes of the stream are verified."""

@final
class Cutter:
    """FastCDC (2020, normalisation level 1): where a stream is cut depends on its content alone.

    The cuts are those of the `fastcdc` crate's v2020, frozen here. Memory: none that grows; data is not
    kept.
    """

    def __init__(self, min_bytes: int, average_bytes: int, max_bytes: int) -> None:
        """ValueError names what is allowed: even, min 64..1 MiB <= average 256..4 MiB <= max 1024..16 MiB."""

    def feed(self, data: Buffer) -> list[int]:
        """The lengths of the chunks that end in `data`; the first began where the last call left off.

        However the stream is split, the chunks are the same.
        """

    def finish(self) -> int:
        """The length of the last, unfinished chunk, 0 if there is none; ready for another stream after it."""

def frame(
    segment: int,
    offset: int,
    kinds: bytes,
    flags: bytes,
    hashes: Buffer,
    plain_lengths: Sequence[int],
    payloads: Sequence[Buffer],
) -> tuple[bytes, bytes]:
    """Headers (64 bytes each) and entries (46 bytes each) of n records that follow each other from `offset`.

    OverflowError if an offset, a length or the segment does not fit into 32 bits; ValueError if the numbers
    of kinds, flags, hashes, lengths and payloads differ, or a payload exceeds 16 MiB.
    """

def frame_joined(
    segment: int,
    offset: int,
    kinds: bytes,
    flags: bytes,
    hashes: Buffer,
    plain_lengths: Sequence[int],
    payloads: Sequence[Buffer],
) -> tuple[bytes, bytes]:
    """Like `frame`, but header, payload, header, payload, … in one piece, and the entries."""

def scan(data: Buffer, segment: int, offset: int, *, deep: bool) -> tuple[bytes, int, str]:
    """Walk consecutive records; the first begins at data[0], which is at `offset` of the segment.

    Gives the entries of the good records, the bytes that these take, and why it stopped: "end" (exactly at
    the end of the data), "short" (the record goes on after the end of the data), "magic", "header"
    (checksum, version, segment or offset), "length" (more than 16 MiB stored), "payload" (checksum; only if
    `deep`).
    """

def find_header(data: Buffer, segment: int, offset: int, start: int) -> int:
    """The first position >= `start` in `data` of a header valid in every way, or -1.

    Valid: magic, checksum, version, length, this segment, and its own offset is `offset` + position.
    """

def check_payloads(data: Buffer, entries: Buffer, base_offset: int) -> list[tuple[int, str]]:
    """Check the records that `entries` name in `data`, a stretch of a segment that starts at `base_offset`.

    Gives (index of the entry, what is wrong), one for each bad record: "short" (not wholly in `data`),
    "header" (checksum, or it does not say what the entry says), "payload" (checksum), "hash" (BLAKE3, of
    payloads that are not compressed).
    """

def entry_columns(
    entries: Buffer,
) -> tuple[list[int], list[int], list[int], list[int], list[int], list[bytes]]:
    """Kinds, flags, offsets, stored lengths, plain lengths and hashes of index entries, a list each."""
