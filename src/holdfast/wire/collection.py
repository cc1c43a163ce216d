"""Trees on the wire: iroh collections, and a document for what these cannot carry. Pure.

A collection is a hash seq, a blob of 32-byte hashes, whose first names the **meta blob** and whose others are
the files. The meta blob is postcard (docs/protocol.md, "Collections"): the 13 bytes `CollectionV0.`, a varint
count, then each name as varint length and UTF-8; as many names as files.

**Tree extras** are a JSON document in a blob of its own: version, the collection it belongs to, which files
are executable (runs of positions among the names), symbolic links with their targets, directories without
files.

Names from the wire are hostile until `trees.check_name` has seen them; here they are only well-formed. What
is not well-formed raises `FormatError` with `offset_bytes`; memory is bounded by one name and the caller's
pieces.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import Final, Literal

import msgspec

from holdfast.errors import FormatError, TooLarge
from holdfast.types import HASH_BYTES

META_HEADER: Final = b"CollectionV0."
MAX_NAME_BYTES: Final = 65_535
MAX_EXTRAS_BYTES: Final = 64 << 20
EXTRAS_PREFIX: Final = b'{"holdfast_tree":1,'
"""How every tree-extras document begins."""

_MAX_VARINT_BYTES: Final = 10


def encode_varint(value: int) -> bytes:
    """Write a postcard (LEB128) varint."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def encode_meta_head(count: int) -> bytes:
    """Give the beginning of the meta blob of `count` names."""
    return META_HEADER + encode_varint(count)


def encode_name(name: str) -> bytes:
    """Give one name as it stands in the meta blob; TooLarge above 65,535 bytes."""
    raw = name.encode()
    if len(raw) > MAX_NAME_BYTES:
        raise TooLarge(
            f"a name in a tree has at most {MAX_NAME_BYTES} bytes: {name[:80]!r}…", name=name[:1000]
        )
    return encode_varint(len(raw)) + raw


def encode_meta(names: Iterable[str]) -> bytes:
    """Give a whole meta blob; for long lists send the head and then each name."""
    encoded = [encode_name(name) for name in names]
    return encode_meta_head(len(encoded)) + b"".join(encoded)


def iter_names(pieces: Iterable[bytes | memoryview], count: int) -> Iterator[str]:
    """Decode a meta blob that comes in pieces and must hold exactly `count` names.

    `FormatError` for another header, another count, a varint or name that is cut off or too long, a name that
    is not UTF-8, and anything after the last name. Names before the fault have been given by then.
    """
    source = iter(pieces)
    buffer, position, base = b"", 0, 0  # base: the offset of buffer[0] in the blob

    def need(length: int) -> bool:
        nonlocal buffer, position, base
        while len(buffer) - position < length:
            piece = next(source, None)
            if piece is None:
                return False
            base += position
            buffer, position = buffer[position:] + bytes(piece), 0
        return True

    def varint(what: str) -> int:
        nonlocal position
        need(_MAX_VARINT_BYTES)
        value = 0
        for index, byte in enumerate(buffer[position : position + _MAX_VARINT_BYTES]):
            value |= (byte & 0x7F) << 7 * index
            if byte < 0x80:
                if value >> 64:
                    break
                position += index + 1
                return value
        raise _malformed(f"{what} is cut off or too long", base + position)

    if not need(len(META_HEADER)) or buffer[: len(META_HEADER)] != META_HEADER:
        raise _malformed(f"it does not begin with {META_HEADER.decode()}", 0)
    position = len(META_HEADER)
    claimed = varint("the number of names")
    if claimed != count:
        raise _malformed(f"it claims {claimed} names for {count} files", len(META_HEADER))
    for index in range(count):
        if position < len(buffer) and buffer[position] < 0x80:  # the usual case, without a call
            length = buffer[position]
            position += 1
        else:
            length = varint(f"the length of name {index}")
        if length > MAX_NAME_BYTES:
            raise _malformed(f"name {index} has {length} bytes, at most {MAX_NAME_BYTES}", base + position)
        if len(buffer) - position < length and not need(length):
            raise _malformed(f"name {index} is cut off", base + position)
        try:
            name = buffer[position : position + length].decode()
        except UnicodeDecodeError:
            raise _malformed(f"name {index} is not UTF-8", base + position) from None
        position += length
        yield name
    if need(1):
        raise _malformed("something follows the last name", base + position)


def file_count(hash_seq_bytes: int) -> int:
    """Give how many files a collection of that many bytes has; FormatError when it cannot be one."""
    count, rest = divmod(hash_seq_bytes, HASH_BYTES)
    if rest or count == 0:
        raise FormatError(
            f"not a collection: {hash_seq_bytes} bytes are no sequence of hashes with a first one"
        )
    return count - 1


def iter_hashes(pieces: Iterable[bytes | memoryview]) -> Iterator[bytes]:
    """Split a hash seq that comes in pieces into its hashes; FormatError when the last is cut off."""
    rest = b""
    for piece in pieces:
        data = rest + bytes(piece)
        whole = len(data) - len(data) % HASH_BYTES
        for start in range(0, whole, HASH_BYTES):
            yield data[start : start + HASH_BYTES]
        rest = data[whole:]
    if rest:
        raise FormatError(f"not a sequence of hashes: {len(rest)} bytes are left over")


def _malformed(why: str, offset_bytes: int) -> FormatError:
    return FormatError(f"not the names of a collection: {why}", offset_bytes=offset_bytes)


class TreeExtras(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a collection cannot carry. `collection` is the hash of the hash seq, in hex."""

    version: Literal[1] = msgspec.field(name="holdfast_tree")
    collection: str
    executable: list[int] = []
    """Half-open runs of positions among the names, rising: start, stop, start, stop, …"""
    symlinks: dict[str, str] = {}
    directories: list[str] = []

    def encode(self) -> bytes:
        """Give the document; equal extras give equal bytes when their parts are in the same order."""
        data = msgspec.json.encode(self)
        if len(data) > MAX_EXTRAS_BYTES:
            raise TooLarge(f"links and modes of this tree take {len(data)} bytes, at most {MAX_EXTRAS_BYTES}")
        return data

    def is_executable(self, count: int) -> bytearray:
        """Give one byte, 0 or 1, for each of `count` files; FormatError when the runs do not fit."""
        flags = bytearray(count)
        runs = self.executable
        if len(runs) % 2 or (runs and (runs[0] < 0 or runs[-1] > count)):
            raise FormatError(f"the executable files of a tree of {count} files are out of range")
        if any(a >= b for a, b in pairwise(runs)):
            raise FormatError("the executable files of a tree are out of order")
        for start, stop in zip(runs[::2], runs[1::2], strict=True):
            flags[start:stop] = b"\1" * (stop - start)
        return flags


_DECODER: Final = msgspec.json.Decoder(TreeExtras)


def parse_extras(data: bytes, collection: bytes) -> TreeExtras:
    """Decode the extras of a collection (by its hash); FormatError for anything but that, exactly."""
    if len(data) > MAX_EXTRAS_BYTES:
        raise FormatError(f"tree extras of {len(data)} bytes, at most {MAX_EXTRAS_BYTES} are read")
    try:
        extras = _DECODER.decode(data)
        for texts in (extras.symlinks, extras.symlinks.values(), extras.directories):
            for text in texts:
                text.encode()
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise FormatError(f"not the extras of a tree that this version knows: {error}") from error
    if extras.collection != collection.hex():
        raise FormatError("these extras belong to another tree", collection=extras.collection)
    return extras
