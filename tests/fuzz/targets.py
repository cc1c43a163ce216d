"""What is fuzzed from Python: each target takes bytes that somebody else may have made, and checks what it promises.

A target may raise typed errors of the kinds that it names (they are caught here), and nothing else; what parses must be
written back as it was read, or mean the same. Sums are put right first where a fuzzer would never get past them.
"""

from __future__ import annotations

import struct
import tempfile
from collections.abc import Callable
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any, Final, NamedTuple

from holdfast import _native
from holdfast.backend.log.layout import encode_store_file, parse_store_file
from holdfast.backend.log.partial_state import ENTRY_HEADER_BYTES, encode_entry, parse_journal
from holdfast.backend.log.segment import check_segment_header, read_index, scan_records
from holdfast.backend.log.session import parse_session
from holdfast.backend.memory import MemoryDisk
from holdfast.backend.objects.layout import COLLECTOR_KEY, parse_identity, tag_key
from holdfast.bao_stream import Decoder
from holdfast.config import load
from holdfast.errors import (
    CorruptBlob,
    CorruptStream,
    FormatError,
    HoldfastError,
    InvalidConfig,
    InvalidHash,
    InvalidRange,
    RemoteProtocolError,
)
from holdfast.ranges import MAX_LEAF, ChunkRanges
from holdfast.reference_bao import Blob
from holdfast.store import Store
from holdfast.testing.plain_bucket import PlainBucket
from holdfast.types import Hash
from holdfast.wire import collection, document, pages, ranges, record, upload

Target = Callable[[bytes], None]


class Row(NamedTuple):
    """One line of the table: the target, and what it is about."""

    run: Target
    max_bytes: int
    about: str


SEGMENT: Final = 7
_ID_TEXT: Final = "01a20092-ee3b-7000-95d9-9d43f1f63053"
STORE_ID: Final = bytes(range(16))


def segment(data: bytes) -> None:
    """Take the bytes for what follows a segment's header; the sums of records are put right at multiples of 8."""
    body = bytearray(data)
    for at in range(0, len(body) - 63, 8):
        if body[at : at + 4] == b"HFrc":
            struct.pack_into("<II", body, at + 8, SEGMENT, 64 + at)
            stored = int.from_bytes(body[at + 16 : at + 20], "little")
            if stored <= len(body) - at - 64:
                payload = body[at + 64 : at + 64 + stored]
                struct.pack_into("<I", body, at + 24, _native.crc32c(payload))
            struct.pack_into("<I", body, at + 60, _native.crc32c(body[at : at + 60]))
    head = record.encode_segment_header(record.SegmentHeader(SEGMENT, STORE_ID, 1))
    disk = MemoryDisk()
    disk.mkdir("/s")
    handle = disk.open("/s/one", "x")
    disk.pwrite(handle, [head + body], 0)
    with suppress(FormatError):
        check_segment_header(disk, handle, SEGMENT, STORE_ID, "/s/one")
        found = read_index(disk, handle, SEGMENT, "/s/one")
        assert len(found.entries) % record.ENTRY_BYTES == 0
        assert found.records_stop <= disk.size(handle)
        for deep in (False, True):
            for stretch in scan_records(disk, handle, SEGMENT, 64, disk.size(handle), deep=deep):
                assert len(stretch.entries) % record.ENTRY_BYTES == 0
        columns: tuple[list[Any], ...] = _native.entry_columns(found.entries)
        assert len({len(column) for column in columns}) == 1
    with suppress(FormatError):
        record.parse_segment_header(data[:64])


def commit(data: bytes) -> None:
    """Take the bytes for the payload of a commit, then for the tail of a segment."""
    with suppress(FormatError):
        found = record.parse_commit(data)
        if found is not None:
            assert record.encode_commit(found) == data
    with suppress(FormatError):
        record.parse_tail(data, SEGMENT, 1 << 20)
    parse_session("x", data)
    with suppress(FormatError):
        store = parse_store_file(data, "/x")
        parse_store_file(encode_store_file(store), "/x")


_DOCUMENTS: Final[tuple[tuple[Callable[[bytes], Any], Callable[[Any], bytes] | None], ...]] = (
    (document.parse_artifact, document.encode_artifact),
    (document.parse_tombstone, None),
    (document.parse_tag, None),
    (document.parse_blob, document.encode_blob),
    (document.parse_quarantine, None),
    (upload.parse_upload, upload.encode_upload),
    (document.parse_blob_head, None),
    (document.parse_details, None),
    (document.parse_retired, None),
    (document.parse_times, None),
)


def documents(data: bytes) -> None:
    """The first byte chooses the kind, the rest is the document."""
    if not data:
        return
    parse, encode = _DOCUMENTS[data[0] % len(_DOCUMENTS)]
    with suppress(FormatError, CorruptBlob):
        found = parse(data[1:])
        if encode is not None:
            again = parse(encode(found))
            assert again == found, "what is written is read as something else"


def page_trees(data: bytes) -> None:
    """Four bytes of size, a root, and pages of any content: whatever hash is asked for, one of them comes."""
    if len(data) < 5:
        return
    units = int.from_bytes(data[:4], "little")
    with suppress(CorruptBlob, FormatError):
        root, at = pages.TreeRoot.parse(data, 4)
        rest = data[at:]
        step = max(40, len(rest) // 4)
        parts = [rest[start : start + step] for start in range(0, len(rest), step)] or [b""]

        def load(hash_: bytes) -> bytes:
            return parts[hash_[0] % len(parts)] if hash_ else b""

        for reader in (pages.ManifestReader(root, units, load), pages.StreamReader(root, units, load)):
            with suppress(CorruptBlob, FormatError):
                for _ in islice(reader.iter_pages(), 100):
                    pass
            for offset in (0, units // 2, max(0, units - 1)):
                with suppress(CorruptBlob, FormatError, IndexError):
                    reader.leaf_at(offset)
        manifest = pages.ManifestReader(root, units, load)
        end = 0
        for start, _, length, digest in islice(manifest.iter_chunks(), 1_000):
            assert start == end
            assert length > 0
            assert len(digest) == 32
            end = start + length


_CONTENT: Final = bytes(range(256)) * 80  # 20 KiB: two blocks
_BLOB: Final = Blob(_CONTENT)
_STREAMS: Final = {
    boundaries: _BLOB.encode(boundaries)
    for boundaries in ((0,), (0, 1), (3, 18), (MAX_LEAF,), (1, 2, 17, 19))
}


def streams(data: bytes) -> None:
    """A right stream, broken as the bytes say (kind, position, byte, and again), fed in pieces of any length."""
    if len(data) < 2:
        return
    boundaries = list(_STREAMS)[data[0] % len(_STREAMS)]
    stream = bytearray(_STREAMS[boundaries])
    for at in range(2, len(data) - 3, 4):
        kind, place, byte = data[at], int.from_bytes(data[at + 1 : at + 3], "little"), data[at + 3]
        place %= len(stream) + 1
        if kind % 4 == 0 and place < len(stream):
            stream[place] ^= byte
        elif kind % 4 == 1:
            stream[place:place] = bytes((byte,)) * (kind // 4 + 1)
        elif kind % 4 == 2:
            del stream[place : place + kind // 4 + 1]
        else:
            del stream[place:]
    decoder = Decoder(_BLOB.root, ChunkRanges(boundaries), keep_pairs=True)
    step = data[1] % 97 * 131 + 7
    got = 0
    with suppress(CorruptStream):
        for start in range(0, len(stream), step):
            for offset, run in decoder.feed(stream[start : start + step]):
                assert run == _CONTENT[offset : offset + len(run)], "wrong bytes were given out"
                got += len(run)
            decoder.take_pairs()
            assert decoder.wants(100) <= max(100, 16_384)
        decoder.finish()
        if decoder.is_size_proven:  # else another size may pass: it is a claim
            assert bytes(stream) == _STREAMS[boundaries]
            assert decoder.size_bytes == len(_CONTENT)
    assert got <= len(_CONTENT)
    wild = Decoder(_BLOB.root, None)
    with suppress(CorruptStream):
        wild.feed(data[2:])
        wild.finish()


def hash_seqs(data: bytes) -> None:
    """Take the bytes for a collection's names, its hashes, and its extras."""
    half = len(data) // 2
    for count in (data[0] if data else 0, 1, 3):
        with suppress(FormatError):
            names = list(collection.iter_names([data[1:half], data[half:]], count))
            assert list(collection.iter_names([collection.encode_meta(names)], count)) == names
    with suppress(FormatError):
        hashes = list(collection.iter_hashes([data[:half], data[half:]]))
        assert b"".join(hashes) == data
        assert collection.file_count(len(data)) == len(hashes) - 1
    for prefix in (b"", collection.EXTRAS_PREFIX):
        with suppress(FormatError):
            extras = collection.parse_extras(prefix + data, bytes(32))
            with suppress(FormatError):
                extras.is_executable(1_000)


def range_sets(data: bytes) -> None:
    """Take the bytes for ranges on the wire, and as text."""
    with suppress(RemoteProtocolError):
        found, at = ranges.parse_ranges(data)
        assert ranges.parse_ranges(ranges.encode_ranges(found))[0] == found
        assert at <= len(data)
        assert ~~found == found
        assert not found & ~found
        assert found.select(1_000_000) <= ChunkRanges.leaves(0, 977)
        assert ChunkRanges.parse(str(found)) == found
    with suppress(InvalidRange, UnicodeDecodeError):
        text = data.decode()
        assert ChunkRanges.parse(str(ChunkRanges.parse(text))) == ChunkRanges.parse(text)
    with suppress(InvalidHash, UnicodeDecodeError):
        text = data.decode()
        assert Hash.parse(str(Hash.parse(text))) == Hash.parse(text)


def journals(data: bytes) -> None:
    """Take the bytes for the journal of a partial blob; the sums of its entries are put right."""
    body = bytearray(data)
    at = 0
    while at + ENTRY_HEADER_BYTES <= len(body):
        length = int.from_bytes(body[at + 8 : at + 12], "little")
        stop = at + length
        if length < ENTRY_HEADER_BYTES or stop > len(body):
            break
        struct.pack_into("<I", body, at + 4, _native.crc32c(body[at + 8 : stop]))
        at = stop
    for journal in (data, bytes(body)):
        state, end = parse_journal(journal, bytes(32))
        assert 0 <= end <= len(journal)
        if state is not None:
            again, _ = parse_journal(encode_entry(bytes(32), state), bytes(32))
            assert again == state


def configuration(data: bytes) -> None:
    """Take the bytes for a configuration file."""
    with tempfile.NamedTemporaryFile(suffix=".toml") as file:
        Path(file.name).write_bytes(data)
        with suppress(InvalidConfig):
            found = load(file.name, environ={})
            with suppress(HoldfastError):
                found.location()


_KEYS: Final = (
    f"commits/{_ID_TEXT}",
    f"artifacts/{_ID_TEXT}",
    tag_key("name"),
    f"parts/{'ab' * 32}/{_ID_TEXT}",
    f"uploads/{'cd' * 16}/00000000",
    COLLECTOR_KEY,
    f"blobs/{'ab' * 32}/data",
)


def bucket(data: bytes) -> None:
    """The first byte chooses a key, the rest is the object there, its sum put right: a store is opened around it."""
    if not data:
        return
    key, body = _KEYS[data[0] % len(_KEYS)], data[1:]
    if key.startswith(("parts/", "uploads/")) and len(body) >= 12:
        length = min(len(body), max(12, int.from_bytes(body[1:3], "little")))
        body = body[:8] + (length + 32).to_bytes(4, "little") + body[12:length]
        body += _native.blake3(body + key.encode()) + data[1 + length :]
    elif not key.startswith(("blobs/", COLLECTOR_KEY)):
        body += _native.blake3(body + key.encode())
    plain = PlainBucket()
    with Store._open_objects(plain, create=True) as store:
        kept = store.put(b"what is sound", filename="sound")
    plain.upload(key, [body], len(body))
    try:
        opened = Store._open_objects(plain)
    except FormatError as error:  # nothing else is a reason to refuse what is sound (docs/format.md)
        if "newer version" not in error.message:
            raise
        return
    with opened as store:
        assert store.read(kept.id) == b"what is sound"
        for artifact in store.find():
            with suppress(HoldfastError):
                store.read(artifact)
        for tag in store.tags.list():
            with suppress(HoldfastError):
                store.read(tag.hash)
        for call in (
            store.refresh,
            store.scrub,
            store.repair,
            lambda: list(store.uploads()),
            store.gc,
        ):
            with suppress(HoldfastError):
                call()
        with suppress(HoldfastError):
            store.blobs.read(Hash(bytes.fromhex("ab" * 32)), 0, 1)
        with suppress(HoldfastError):
            store.writer(resume="cd" * 16).abort()
        assert store.read(kept.id) == b"what is sound"
    with suppress(HoldfastError):
        parse_identity(body, "x")


TARGETS: Final[dict[str, Row]] = {
    "segment": Row(segment, 4_096, "records, headers and footers of a segment"),
    "commit": Row(commit, 1_024, "commits, ends of segments, sessions, store.json"),
    "documents": Row(documents, 2_048, "artifact, tag, tombstone, blob, quarantine, upload, retired, times"),
    "page_trees": Row(page_trees, 4_096, "manifests and outboards in pages"),
    "streams": Row(streams, 256, "BAO streams, and their decoder"),
    "hash_seqs": Row(hash_seqs, 2_048, "hash seqs, collections, what else a tree has"),
    "range_sets": Row(range_sets, 256, "ranges on the wire and as text, hashes as text"),
    "journals": Row(journals, 2_048, "what is here of partial blobs"),
    "bucket": Row(bucket, 1_024, "objects of names, parts, uploads and notes, through an open store"),
    "configuration": Row(configuration, 1_024, "holdfast.toml"),
}
