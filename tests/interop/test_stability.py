"""The bytes of the format do not change behind anybody's back.

Each kind of record and each document is made from fixed values and held against what the first version made of them
(`data/golden.json`). When one differs, stores that exist cannot be read as before: give the format another version,
teach readers both, and add a line for the new one. A line that is there is never changed.

    python -m tests.interop.test_stability       add lines for what is new
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from holdfast import _native
from holdfast.backend.log import layout, partial_state, session
from holdfast.chunking import Chunking
from holdfast.ranges import ChunkRanges
from holdfast.testing.streams import Sender
from holdfast.wire import collection, document, pages, record, upload
from holdfast.wire.record import Kind

GOLDEN = Path(__file__).parent / "data" / "golden.json"
HASH = bytes(range(32))
ID = bytes(range(100, 116))
TIME = 1_795_219_200_123


def _documents() -> Iterator[tuple[Kind, bytes]]:
    inline = pages.TreeRoot(0, b"stream")
    paged = pages.TreeRoot(2, HASH)
    details = document.encode_details(
        document.Details(
            filename="größe.bin",
            content_type="text/plain",
            checksum="sha256:00",
            created_by="me",
            tags=("a", "b"),
            links=("run:1",),
            requires=("blake3:" + HASH.hex(),),
            metadata={"n": 1, "x": 0.5, "b": True, "z": None, "s": "ü"},
        )
    )
    yield Kind.DATA, b"bytes"
    yield Kind.OUTBOARD_PAGE, HASH * 2
    yield Kind.MANIFEST_PAGE, b"\1" + (5).to_bytes(4, "little") + HASH
    yield Kind.BLOB, document.encode_blob(document.BlobDocument(HASH, 1 << 40, 77, inline, paged))
    artifact = document.ArtifactDocument(ID, 3, HASH, 1 << 33, 1, TIME, TIME + 1, 9, details)
    yield Kind.ARTIFACT, document.encode_artifact(artifact)
    yield Kind.TAG, document.encode_tag(document.TagDocument("release/ö", HASH, 1, 4, TIME, True))
    yield Kind.TOMBSTONE, document.encode_tombstone(document.Tombstone(ID, 2, TIME))
    place = document.QuarantineDocument(7, 4711, HASH, "does not match")
    yield Kind.QUARANTINE, document.encode_quarantine(place)
    yield Kind.REPAIR, document.encode_quarantine(place._replace(reason=""))
    yield Kind.RETIRED, document.encode_retired([range(1, 4), range(9, 10)])
    yield Kind.TIMES, document.encode_times([(3, TIME), (1, TIME + 5)])
    extents = (record.Extent(4, 64, 1_000, 3), record.Extent(5, 64, 200, 1))
    yield Kind.COMMIT, record.encode_commit(record.Commit(ID, TIME, 4, HASH, extents))


def now() -> dict[str, str]:
    """Make everything anew; give it in hex by name."""
    made: dict[str, bytes] = {}
    entries = b""
    at = record.SEGMENT_HEADER_BYTES
    for kind, payload in _documents():
        framed, entry = record.frame_one(6, at, kind, payload)
        made[f"record {kind.name.lower()}"] = framed
        entries += entry
        at += len(framed)
    close, entry = record.encode_close(6, at)
    made["record close"] = close
    made["record footer"] = record.encode_footer(6, at + len(close), entries + entry)
    made["document upload"] = upload.encode_upload(
        upload.UploadDocument(
            ID, 3, upload.UploadState.OPEN, TIME, TIME + 1, TIME + 2, 99_000, bytes(16),
            pages.TreeRoot(2, HASH), pages.TreeRoot(0, HASH * 2), ((1_000, HASH),), b'{"filename":"x"}',
        )
    )  # fmt: skip
    header = record.SegmentHeader(6, ID, TIME)
    made["segment header"] = record.encode_segment_header(header)
    store = layout.StoreFile(
        format=1,
        store_id="5b0c4a44-54f8-4f4b-9d06-3e1b6c6d2f01",
        created_ms=TIME,
        chunking=Chunking.choose("fastcdc").to_dict(),
        compression="zstd",
    )
    made["store file"] = layout.encode_store_file(store)
    made["names of a collection"] = collection.encode_meta(["a/b", "größe", ""])
    state = partial_state.PartialState(99_999, True, ChunkRanges.leaves(16, 32), 16_384, 1, 5, TIME, TIME + 2)
    made["partial state"] = partial_state.encode_entry(HASH, state)
    made["change of a partial state"] = partial_state.encode_entry(
        HASH, state._replace(have=ChunkRanges.leaves(0, 48)), since=state
    )
    content = b"".join(number.to_bytes(4, "little") for number in range(30_000))
    made["outboard"] = Sender(content).outboard
    cutter = Chunking.choose("fastcdc", 4096).make_cutter()
    made["cuts"] = json.dumps([*cutter.feed(content), cutter.finish()]).encode()
    made["names of kinds"] = json.dumps({kind.name: int(kind) for kind in Kind}).encode()
    made["numbers"] = json.dumps(
        {
            "format": record.FORMAT_VERSION,
            "document": document.DOCUMENT_VERSION,
            "record header": [record.HEADER.format, record.HEADER_BYTES],
            "entry": [record.ENTRY.format, record.ENTRY_BYTES],
            "flags": [record.FLAG_BLOB, record.FLAG_ZSTD, record.FLAG_END, record.FLAG_SHA256],
            "payload limit": record.MAX_RECORD_BYTES,
            "pages": [pages.FAN_OUT, pages.MAX_DEPTH, pages.MAX_INLINE_BYTES, pages.STREAM_PAGE_BYTES],
            "manifest": [pages.ENTRIES_PER_PAGE, pages.ENTRY_BYTES],
            "session": [session.PIN_OFFSET, session.LEASES_OFFSET, session.SLOT_BYTES],
        }
    ).encode()
    return {
        name: data.hex() if len(data) < 600 else "blake3:" + _native.blake3(data).hex()
        for name, data in made.items()
    }


def golden() -> dict[str, str]:
    found: dict[str, str] = json.loads(GOLDEN.read_text())
    return found


@pytest.mark.parametrize("name", golden() if GOLDEN.exists() else ())
def test_the_bytes_are_those_of_the_first_version(name: str) -> None:
    if name == "names of kinds":
        old = json.loads(bytes.fromhex(golden()[name]))
        assert {kind.name: int(kind) for kind in Kind}.items() >= old.items(), (
            "kinds only come, they never change"
        )
        return
    assert now()[name] == golden()[name], "the format changed: see the top of this file"


def test_every_kind_has_its_line() -> None:
    """A new kind, and a new document, are written down when they come."""
    assert set(now()) == set(golden())
    reserved = {Kind.UPLOAD, Kind.PARTIAL, Kind.INTENDED_TAG}  # the last is in objects of buckets alone
    assert {f"record {kind.name.lower()}" for kind in set(Kind) - reserved} <= set(golden())


if __name__ == "__main__":
    known = golden() if GOLDEN.exists() else {}
    GOLDEN.write_text(json.dumps({**now(), **known}, indent=1, sort_keys=True, ensure_ascii=False) + "\n")
