"""The native kernels again, slow and plain, from their definitions. Tests compare; nothing else imports this.

Written from the BLAKE3 paper (section 2), the FastCDC paper of 2020 and docs/format.md, not from the Rust code.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator, Sequence
from itertools import accumulate

GROUP_BYTES = 16_384
CHUNK_BYTES = 1_024
MAX_PAYLOAD_BYTES = 16 << 20

# --- CRC-32C: polynomial 0x1EDC6F41, reflected


def crc32c(data: bytes, value: int = 0) -> int:
    """One bit at a time."""
    crc = value ^ 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


# --- BLAKE3

IV = (0x6A09E667, 0xBB67AE85, 0x3C6EF372, 0xA54FF53A, 0x510E527F, 0x9B05688C, 0x1F83D9AB, 0x5BE0CD19)
PERMUTATION = (2, 6, 3, 10, 7, 0, 4, 13, 1, 11, 12, 5, 9, 14, 15, 8)
COLUMNS_AND_DIAGONALS = (
    (0, 4, 8, 12), (1, 5, 9, 13), (2, 6, 10, 14), (3, 7, 11, 15),
    (0, 5, 10, 15), (1, 6, 11, 12), (2, 7, 8, 13), (3, 4, 9, 14),
)  # fmt: skip
CHUNK_START, CHUNK_END, PARENT, ROOT = 1, 2, 4, 8


def compress(cv: Sequence[int], block: bytes, counter: int, flags: int) -> tuple[int, ...]:
    """BLAKE3's compression function, the first eight words of its output."""
    message = struct.unpack("<16I", block.ljust(64, b"\0"))
    v = [*cv, *IV[:4], counter & 0xFFFFFFFF, counter >> 32, len(block), flags]
    for _ in range(7):
        for i, (a, b, c, d) in enumerate(COLUMNS_AND_DIAGONALS):
            for word, (right_d, right_b) in zip(message[2 * i : 2 * i + 2], ((16, 12), (8, 7)), strict=True):
                v[a] = (v[a] + v[b] + word) & 0xFFFFFFFF
                v[d] = rotate_right(v[d] ^ v[a], right_d)
                v[c] = (v[c] + v[d]) & 0xFFFFFFFF
                v[b] = rotate_right(v[b] ^ v[c], right_b)
        message = tuple(message[i] for i in PERMUTATION)
    return tuple(v[i] ^ v[i + 8] for i in range(8))


def rotate_right(word: int, bits: int) -> int:
    return (word >> bits | word << (32 - bits)) & 0xFFFFFFFF


def chunk_cv(chunk: bytes, index: int, root: int = 0) -> bytes:
    """The chaining value of one BLAKE3 chunk (0 to 1,024 bytes)."""
    blocks = [chunk[at : at + 64] for at in range(0, len(chunk), 64)] or [b""]
    cv: tuple[int, ...] = IV
    for i, block in enumerate(blocks):
        last = i == len(blocks) - 1
        cv = compress(cv, block, index, CHUNK_START * (i == 0) | (CHUNK_END | root) * last)
    return struct.pack("<8I", *cv)


def parent_cv(left: bytes, right: bytes, is_root: bool) -> bytes:
    return struct.pack("<8I", *compress(IV, left + right, 0, PARENT | ROOT * is_root))


def left_length(count: int) -> int:
    """The largest power of two below `count`."""
    return 1 << (count - 1).bit_length() - 1


def subtree_cv(data: bytes, first_chunk: int, is_root: bool) -> bytes:
    """The chaining value, or root hash, of the subtree over `data`, which begins with chunk `first_chunk`."""
    chunks = max(1, -(-len(data) // CHUNK_BYTES))
    if chunks == 1:
        return chunk_cv(data, first_chunk, ROOT * is_root)
    left = left_length(chunks)
    middle = left * CHUNK_BYTES
    return parent_cv(
        subtree_cv(data[:middle], first_chunk, False),
        subtree_cv(data[middle:], first_chunk + left, False),
        is_root,
    )


def blake3(data: bytes) -> bytes:
    return subtree_cv(data, 0, True)


def group_cvs(data: bytes) -> list[bytes]:
    """The chaining values of the groups of a blob with more than one group; none for others."""
    if len(data) <= GROUP_BYTES:
        return []
    per_group = GROUP_BYTES // CHUNK_BYTES
    starts = range(0, len(data), GROUP_BYTES)
    return [subtree_cv(data[at : at + GROUP_BYTES], i * per_group, False) for i, at in enumerate(starts)]


# --- outboards


def outboard(cvs: Sequence[bytes], is_root: bool) -> tuple[bytes, bytes]:
    """Pre-order pairs over the groups' chaining values, and the top."""
    if len(cvs) == 1:
        return b"", cvs[0]
    middle = left_length(len(cvs))
    left_pairs, left = outboard(cvs[:middle], False)
    right_pairs, right = outboard(cvs[middle:], False)
    return left + right + left_pairs + right_pairs, parent_cv(left, right, is_root)


def leaf_cvs(pairs: bytes, groups: int, expected: bytes, is_root: bool, at: int = 0) -> list[bytes]:
    """The groups' chaining values, or ValueError(message, offset of the first pair that is wrong)."""
    if groups == 1:
        return [expected]
    left, right = pairs[at : at + 32], pairs[at + 32 : at + 64]
    if parent_cv(left, right, is_root) != expected:
        raise ValueError("wrong pair", at)
    middle = left_length(groups)
    return leaf_cvs(pairs, middle, left, False, at + 64) + leaf_cvs(
        pairs, groups - middle, right, False, at + 64 * middle
    )


# --- cut points

GEAR = [int.from_bytes(hashlib.md5(bytes([i]) * 64).digest()[:8], "big") for i in range(256)]
# By the rounded base-2 logarithm of the distance between cuts that the mask gives, from 32 bytes on.
MASK_DIGITS = """
    1804110 1803110 18035100 1800035300 19000353000 590003530000 d90003530000 d90103530000 d90303530000
    d90313530000 d90f03530000 d90303537000 d90703537000 d90707537000 d91707537000 d91747537000 d91767537000
    d93767537000 d93777537000 d93777577000 db3777577000
"""
MASKS = {bits: int(digits, 16) for bits, digits in enumerate(MASK_DIGITS.split(), start=5)}


def mask_bits(average_bytes: int) -> int:
    """log2, rounded: average >= 2 ** (bits - 1/2), squared to stay with integers."""
    bits = average_bytes.bit_length()
    return bits if average_bytes**2 > 1 << 2 * bits - 1 else bits - 1


def cut(data: bytes, min_bytes: int, average_bytes: int, max_bytes: int) -> list[int]:
    """The lengths of all chunks of a whole stream."""
    bits = mask_bits(average_bytes)
    lengths, at = [], 0
    while at < len(data):
        length = min(max_bytes, len(data) - at)
        fingerprint = 0
        # Bytes count in pairs: the first of one whose second is missing is never a cut.
        for i in range(min_bytes, length - length % 2):
            fingerprint = (fingerprint << 1) + GEAR[data[at + i]] & (1 << 64) - 1
            if not fingerprint & MASKS[bits + 1 if i < average_bytes else bits - 1]:
                length = i
                break
        lengths.append(length)
        at += length
    return lengths


# --- records

HEADER = struct.Struct("<4sBBBBIIIII32sI")
ENTRY = struct.Struct("<BBIII32s")


def frame(
    segment: int,
    offset: int,
    kinds: bytes,
    flags: bytes,
    hashes: Sequence[bytes],
    plain_lengths: Sequence[int],
    payloads: Sequence[bytes],
) -> tuple[list[bytes], list[bytes]]:
    """The header and the index entry of each record."""
    headers, entries = [], []
    stored = [len(payload) for payload in payloads]
    offsets = accumulate((64 + length for length in stored), initial=offset)
    columns = zip(kinds, flags, offsets, stored, plain_lengths, hashes, payloads, strict=False)
    for kind, flag, at, length, plain, digest, payload in columns:
        summed = HEADER.pack(
            b"HFrc", kind, flag, 1, 0, segment, at, length, plain, crc32c(payload), digest, 0
        )[:60]
        headers.append(summed + struct.pack("<I", crc32c(summed)))
        entries.append(ENTRY.pack(kind, flag, at, length, plain, digest))
    return headers, entries


def is_header(header: bytes, segment: int, offset: int) -> bool:
    """Checksum, version, segment and offset; the magic and the length are looked at apart."""
    _, _, _, version, _, its_segment, its_offset, _, _, _, _, crc = HEADER.unpack(header)
    return version > 0 and (its_segment, its_offset) == (segment, offset) and crc == crc32c(header[:60])


def walk(data: bytes, segment: int, offset: int, *, deep: bool) -> Iterator[tuple[bytes, int] | str]:
    """(entry, end) of each good record, then why it stopped."""
    at = 0
    while at < len(data):
        if not b"HFrc".startswith(data[at : at + 4]):
            yield "magic"
            return
        header = data[at : at + 64]
        if len(header) < 64:
            yield "short"
            return
        if not is_header(header, segment, offset + at):
            yield "header"
            return
        _, kind, flags, _, _, _, _, stored, plain, crc, digest, _ = HEADER.unpack(header)
        if stored > MAX_PAYLOAD_BYTES:
            yield "length"
            return
        payload = data[at + 64 : at + 64 + stored]
        if len(payload) < stored:
            yield "short"
            return
        if deep and crc32c(payload) != crc:
            yield "payload"
            return
        yield ENTRY.pack(kind, flags, offset + at, stored, plain, digest), at + 64 + stored
        at += 64 + stored
    yield "end"


def scan(data: bytes, segment: int, offset: int, *, deep: bool) -> tuple[bytes, int, str]:
    entries: list[bytes] = []
    consumed = 0
    for found in walk(data, segment, offset, deep=deep):
        if isinstance(found, str):
            return b"".join(entries), consumed, found
        entry, consumed = found
        entries.append(entry)
    raise AssertionError("walk says why it stops")


def find_header(data: bytes, segment: int, offset: int, start: int) -> int:
    for at in range(start, len(data) - 63):
        header = data[at : at + 64]
        length = HEADER.unpack(header)[7]
        if header[:4] == b"HFrc" and is_header(header, segment, offset + at) and length <= MAX_PAYLOAD_BYTES:
            return at
    return -1


def check_payload(data: bytes, entry: bytes, base_offset: int) -> str | None:
    """What is wrong with the record that `entry` names, if anything."""
    kind, flags, offset, stored, plain, digest = ENTRY.unpack(entry)
    at = offset - base_offset
    if at < 0 or at + 64 + stored > len(data):
        return "short"
    header, payload = data[at : at + 64], data[at + 64 : at + 64 + stored]
    magic, *said, crc, digest_said, _ = HEADER.unpack(header)
    if magic != b"HFrc" or not is_header(header, said[4], said[5]) or stored > MAX_PAYLOAD_BYTES:
        return "header"
    if (said[0], said[1], said[5], said[6], said[7], digest_said) != (
        kind,
        flags,
        offset,
        stored,
        plain,
        digest,
    ):
        return "header"
    if crc32c(payload) != crc:
        return "payload"
    if not flags & 2 and blake3(payload) != digest:
        return "hash"
    return None
