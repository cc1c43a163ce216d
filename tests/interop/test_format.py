"""docs/format.md is enough to read a store: what the second reader finds is what the API says.

`reader.py` was written from the document alone. Here it meets stores of every shape, the stores that the first
version wrote, and things that only a newer version can have written.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import holdfast
from holdfast import _native
from holdfast.backend.log.disk import LocalDisk
from holdfast.backend.log.layout import SESSIONS, encode_store_file, parse_store_file
from holdfast.backend.log.session import LEASE_HASH_SEQ, LEASES_OFFSET, Session, parse_session, read_sessions
from holdfast.chunking import Chunking
from holdfast.errors import FormatError
from holdfast.ranges import ChunkRanges
from holdfast.store import Store
from holdfast.testing.inside import log_core
from holdfast.types import Artifact, BlobStatus, Hash, now_ms
from holdfast.wire.document import TagDocument, encode_tag, parse_tag
from holdfast.wire.record import Kind, SegmentHeader, encode_segment_header, parse_segment_header
from tests.interop import reader
from tests.interop.make_fixtures import (
    FIXTURES,
    LARGE,
    PARTLY,
    every_kind,
    make_tree,
    open_here,
    pattern,
    sha256,
    unpack,
)

DOCUMENT = Path(__file__).parents[2] / "docs" / "format.md"


def milliseconds(artifact: Artifact) -> tuple[int, int]:
    return round(artifact.created_at.timestamp() * 1000), round(artifact.modified_at.timestamp() * 1000)


def snapshot(path: Path) -> dict[str, tuple[bool, bytes | str]]:
    """What a tree holds: whether it may be run, and the bytes, or where a link leads; empty directories, too."""
    found: dict[str, tuple[bool, bytes | str]] = {}
    for directory, _, files in os.walk(path):
        for name in files:
            file = Path(directory, name)
            relative = str(file.relative_to(path))
            if not file.is_symlink():
                found[relative] = os.access(file, os.X_OK), file.read_bytes()
        for entry in os.scandir(directory):
            relative = str(Path(entry.path).relative_to(path))
            if entry.is_symlink():
                found[relative] = False, os.readlink(entry.path)
            elif entry.is_dir() and not os.listdir(entry.path):
                found[relative] = False, "a directory"
    return found


def compare(store: Store, other: reader.Store, place: Path) -> None:
    """Hold everything that the second reader says against the API."""
    assert other.damage == []
    expected = {}
    for artifact in store.find():
        created, modified = milliseconds(artifact)
        words = {
            name: list(value) if isinstance(value, tuple) else value
            for name in (
                "filename",
                "content_type",
                "checksum",
                "created_by",
                "tags",
                "links",
                "requires",
                "metadata",
            )
            if (value := getattr(artifact, name))
        }
        expected[artifact.id] = {
            "revision": artifact.revision,
            "hash": str(artifact.hash),
            "size_bytes": artifact.size_bytes,
            "format": str(artifact.format),
            "chunk_count": artifact.chunk_count,
            "created_ms": created,
            "modified_ms": modified,
            **words,
        }
    assert other.live() == expected
    durable = {bytes.fromhex(upload.token): upload.offset_bytes for upload in store.uploads()}
    assert {token: len(data) for token, data in other.uploads().items()} == durable
    blobs = {bytes(info.hash.digest): info for info in store.blobs.list()}
    assert other.stored_ms.keys() == blobs.keys()
    for hash_, info in blobs.items():
        data = other.read(hash_)
        assert data == store.blobs.read(info.hash)
        assert len(data) == info.size_bytes
        assert other.stored_ms[hash_] == round(info.created_at.timestamp() * 1000)
    place.mkdir()
    for id_, artifact_ in other.live().items():
        other.extract(artifact_, place / id_)
        if artifact_["format"] == "hash_seq":
            store.export(id_, place / f"{id_}.ours")
            assert snapshot(place / id_) == snapshot(place / f"{id_}.ours")
        else:
            assert (place / id_).read_bytes() == store.read(id_)


# --- stores of every shape


def tiny_chunks(root: Path) -> None:
    """Manifests and outboards with inner pages, cut by content."""
    chunking = Chunking("fastcdc", 64, 4096, 4096)
    with Store._open(str(root), create=True, chunking=chunking, compression="none") as store:
        store.put(pattern(5 << 20, 7), filename="many pages")
        store.put(pattern(16_384, 8), filename="one block")
        store.put(pattern(16_385, 9), filename="a byte more")


def several_segments(root: Path) -> None:
    """One acknowledgement over several segments, and one that was given up halfway."""
    with open_here(root, compression="none") as store:
        store.put_many([pattern(7_000, i) for i in range(60)])
        with pytest.raises(RuntimeError, match="midway"):
            store.put(_failing())
        store.put(b"after")


def _failing() -> Any:
    yield pattern(9 << 20, 3)
    raise RuntimeError("midway")


def adopted(root: Path) -> None:
    """One segment that many processes, one after another, closed and adopted."""
    for i in range(6):
        with open_here(root) as store:
            store.put(b"%d" % i)


def deleted_and_restored(root: Path) -> None:
    """Revisions up to 5, and the last state is what counts."""
    with open_here(root) as store:
        kept, gone = store.put(b"kept"), store.put(b"gone")
        for _ in range(2):
            store.delete(kept)
            store.restore(kept)
        store.delete(gone)


def uploads(root: Path) -> None:
    """Puts that broke off, one of them long, one ended, one given up."""
    with open_here(root) as store:
        for number, size in enumerate((0, 1, 16_384, 16_385, 100_000, 9 << 20)):
            writer = store.writer(f"{number}", resumable=True)
            writer.write(pattern(size, number))
            writer.suspend()
        store.writer(resume=writer.token).commit()
        gone = store.writer("gone", resumable=True)
        gone.write(b"gone")
        gone.checkpoint()
        gone.abort()
        writer = store.writer("last", resumable=True)
        for at in range(3):
            writer.write(pattern(5 << 20, at))
            writer.checkpoint()
        writer.suspend()


def optional_kinds(root: Path) -> None:
    """Records that an older reader may skip: the reserved ones, and one that nobody knows."""
    with open_here(root) as store:
        group = log_core(store).backend.group()
        for kind in (Kind.PARTIAL, 0x3F):
            group.add(bytes((kind,)), b"\x40" if kind == 0x3F else b"\0", _native.blake3(b"?"), [1], [b"?"])
        group.commit()
        store.put(b"beside them")


def compacted(root: Path) -> None:
    """Blobs that moved keep their times; groups go on without the segments that were compacted away."""
    with open_here(root, compression="none") as store:
        artifacts = store.put_many([pattern(7_000 + i, i) for i in range(60)])
        for i in range(9):
            artifacts.append(store.put(pattern(15_000 + 2_000 * i, 70 + i)))
            time.sleep(0.002)  # another millisecond
        store.update(artifacts[-1], metadata={"noise": "x" * 500})
        store.delete(*artifacts[1:-1:3])
        assert store.gc(min_age_seconds=0).complete
        assert store.compact().freed_bytes > 100_000
        store.delete(artifacts[0])
        store.gc(min_age_seconds=0)
        assert store.compact().segments
        store.put(b"after")


SHAPES: list[Callable[[Path], None]] = [
    every_kind, sha256, tiny_chunks, several_segments, adopted, deleted_and_restored, uploads, compacted,
    optional_kinds,
]  # fmt: skip


@pytest.mark.parametrize("make", SHAPES, ids=lambda make: make.__name__)
def test_the_second_reader_agrees(make: Callable[[Path], None], tmp_path: Path) -> None:
    make(tmp_path / "store")
    other = reader.Store(tmp_path / "store")
    assert all(segment.clean for segment in other.segments.values())
    with holdfast.open(tmp_path / "store", read_only=True) as store:
        compare(store, other, tmp_path / "out")


def test_shapes_are_what_they_are_called(tmp_path: Path) -> None:
    tiny_chunks(tmp_path / "tiny")
    kinds = [e.kind for s in reader.Store(tmp_path / "tiny").segments.values() for e in s.entries.values()]
    assert kinds.count(Kind.MANIFEST_PAGE) > 2
    assert kinds.count(Kind.OUTBOARD_PAGE) == 1
    several_segments(tmp_path / "several")
    assert len(reader.Store(tmp_path / "several").segments) >= 4
    adopted(tmp_path / "adopted")
    (segment,) = reader.Store(tmp_path / "adopted").segments.values()
    assert [e.kind for e in segment.entries.values()].count(Kind.CLOSE) == 6


def test_an_unclean_tail_is_read_as_far_as_it_is_whole(tmp_path: Path) -> None:
    root = tmp_path / "store"
    store = open_here(root)
    store.put(pattern(300, 1), filename="first")
    store.put(pattern(300, 2), filename="second")
    store._abandon()
    (path,) = (root / "segments").iterdir()
    whole = path.read_bytes()
    (first, second) = sorted(reader.Store(root).live().values(), key=lambda a: str(a["filename"]))
    commits = [e for e in reader.Segment(1, whole, bytes(16), []).entries.values() if e.kind == Kind.COMMIT]
    middle = commits[0].offset + 64 + commits[0].stored
    for stop in (len(whole) - 1, len(whole) - 200, middle, middle + 65):
        path.write_bytes(whole[:stop])
        other = reader.Store(root)
        assert list(other.live().values()) == [first]
        assert other.damage == []
    flipped = bytearray(whole)
    flipped[middle + 64 + 5] ^= 1  # within the payload of the second group
    path.write_bytes(flipped)
    (root / "catalog.db").unlink()
    with holdfast.open(root, read_only=True) as again:
        compare(again, reader.Store(root), tmp_path / "out")
        assert [a.filename for a in again.find()] == ["first"]
    path.write_bytes(whole)
    assert list(reader.Store(root).live().values()) == [first, second]
    with holdfast.open(root) as again:  # copies what is whole
        compare(again, reader.Store(root), tmp_path / "out2")
        assert len(list(again.find())) == 2


# --- what the first version wrote


@pytest.mark.parametrize("name", FIXTURES)
def test_the_first_versions_stores_are_read(name: str, tmp_path: Path) -> None:
    root = unpack(name, tmp_path / name)
    with holdfast.open(root, read_only=True) as store:  # without a catalog
        compare(store, reader.Store(root), tmp_path / "read-only")
    with holdfast.open(root) as store:
        compare(store, reader.Store(root), tmp_path / "out")
        for artifact in store.find():
            assert store.verify(artifact).ok
            whole = store.read(artifact)
            middle = len(whole) // 2
            assert (
                store.read(artifact, middle)
                == whole[middle:]
                == b"".join(store.iter_bytes(artifact))[middle:]
            )
            assert store.read(artifact, middle, min(100, middle)) == whole[middle : middle + min(100, middle)]
        assert store.scrub().ok
        facts = list(log_core(store).catalog.dump())
        assert store.rebuild().damaged == 0
        assert list(log_core(store).catalog.dump()) == facts
        store.put(b"and it goes on")
    (root / "catalog.db").unlink()
    with holdfast.open(root) as store:
        assert store.scrub().ok
        compare(store, reader.Store(root), tmp_path / "again")


def test_the_fixture_holds_every_kind(tmp_path: Path) -> None:
    other = reader.Store(unpack("store-v1", tmp_path / "store"))
    kinds = {e.kind for s in other.segments.values() for e in s.entries.values()}
    kinds |= {e.kind for s in other.segments.values() if (e := s.record_at(len(s.data) - 80))}
    later = {Kind.UPLOAD, Kind.PARTIAL, Kind.RETIRED, Kind.TIMES, Kind.INTENDED_TAG}
    assert kinds == {int(kind) for kind in Kind} - later
    assert (
        other.read(
            bytes.fromhex(next(a["hash"] for a in other.live().values() if a.get("filename") == "large.bin"))
        )
        == LARGE
    )
    names = {name.decode(): state[0] for (kind, name), state in other.states.items() if kind == Kind.TAG}
    assert names == {"release/1": 1, "release/0": 2, "größe": 1}
    assert (Kind.QUARANTINE, struct.pack("<II", 4_000, 64)) in other.states


def test_the_later_fixture_holds_what_compaction_repair_and_streams_leave(tmp_path: Path) -> None:
    root = unpack("later-v1", tmp_path / "store")
    other = reader.Store(root)
    kinds = {e.kind for s in other.segments.values() for e in s.entries.values()}
    assert {Kind.UPLOAD, Kind.RETIRED, Kind.TIMES, Kind.QUARANTINE, Kind.REPAIR} <= kinds
    with holdfast.open(root) as store:
        assert store.count(tag="kept") == 6
        assert store.count(tag="old") == 0
        assert [tag.name for tag in store.tags.list()] == ["kept/one"]
        (upload,) = store.uploads()
        with store.writer(resume=upload.token) as writer:
            assert writer.offset_bytes == upload.offset_bytes > 0
            writer.write(pattern(20_000, 5)[writer.offset_bytes :])
        assert store.read(writer.artifact) == pattern(20_000, 5)
        partly = Hash(_native.blake3(PARTLY))
        assert store.blobs.status(partly) == BlobStatus.PARTIAL
        assert store.blobs.bitfield(partly).ranges == ChunkRanges.bytes(0, 16_384) | ChunkRanges.bytes(
            32_768, 49_152
        )
        assert store.blobs.read(partly, 32_768, 1_000) == PARTLY[32_768:33_768]
        with holdfast.open("memory://") as source:
            source.put(PARTLY)
            missing = store.blobs.missing_ranges(partly)
            store.blobs.decode(partly, source.blobs.encode(partly, missing), missing)
        assert store.blobs.read(partly) == PARTLY
        assert store.scrub().ok


def test_the_fixtures_tree_is_the_one_that_was_put(tmp_path: Path) -> None:
    make_tree(tmp_path / "tree")
    other = reader.Store(unpack("store-v1", tmp_path / "store"))
    (tree,) = (a for a in other.live().values() if a["format"] == "hash_seq")
    other.extract(tree, tmp_path / "out")
    assert snapshot(tmp_path / "out") == snapshot(tmp_path / "tree")


@pytest.mark.parametrize("offset_bytes", [0, 5_000, 12_000])
def test_a_flipped_bit_in_a_sha256_chunk_is_found(offset_bytes: int, tmp_path: Path) -> None:
    root = unpack("sha256-v1", tmp_path / "store")
    other = reader.Store(root)
    (artifact,) = (a for a in other.live().values() if a["filename"] == "all.bin")
    piece = other.read(bytes.fromhex(artifact["hash"]))[offset_bytes : offset_bytes + 64]
    for path in (root / "segments").iterdir():
        data = bytearray(path.read_bytes())
        if (at := data.find(piece)) >= 0:
            data[at] ^= 16
            path.write_bytes(data)
    with holdfast.open(root) as store:
        hash_ = Hash.parse(artifact["hash"])
        with pytest.raises(holdfast.errors.IntegrityError):
            store.read(hash_)
        assert not store.verify(hash_).ok
        assert not store.scrub().ok
    with pytest.raises(reader.Damaged):
        reader.Store(root).read(hash_.digest)


# --- the examples of the document


def test_the_document_s_store_file_is_one() -> None:
    (example,) = re.findall(r"```json\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    store = parse_store_file(example.encode(), "here")
    assert json.loads(encode_store_file(store)) == json.loads(example)


def test_the_document_s_segment_is_one(tmp_path: Path) -> None:
    text = DOCUMENT.read_text()
    (dump,) = re.findall(r"```hexdump\n(.*?)```", text, re.DOTALL)
    rows = [line.split("  ") for line in dump.splitlines() if re.match(r"[0-9a-f]{4}  ", line)]
    data = b"".join(bytes.fromhex(row[1]) for row in rows)
    assert [int(row[0], 16) for row in rows] == list(range(0, len(data), 16))
    (tmp_path / "segments").mkdir()
    (tmp_path / "store.json").write_text(re.findall(r"```json\n(.*?)```", text, re.DOTALL)[0])
    (tmp_path / "segments" / "0000000001.seg").write_bytes(data)
    other = reader.Store(tmp_path)
    (artifact,) = other.live().values()
    assert other.read(bytes.fromhex(artifact["hash"])) == b"hello"
    with holdfast.open(tmp_path) as store:
        compare(store, other, tmp_path / "out")
        assert store.scrub().ok


# --- what only a newer version can have written


def _put_raw(root: Path, kind: int, flags: int, payload: bytes) -> None:
    """Commit one record and end as a killed process would, so that the catalog does not know it."""
    store = open_here(root)
    store.put(b"known")
    group = log_core(store).backend.group()
    group.add(bytes((kind,)), bytes((flags,)), _native.blake3(payload), [len(payload)], [payload])
    with pytest.raises(FormatError, match="newer"):
        group.commit()
    store._abandon()


@pytest.mark.parametrize(
    ("kind", "flags", "payload"),
    [
        (0xBF, 0, b"a kind that must be understood"),
        (Kind.DATA, 0x10, b"a flag"),
        (Kind.DATA, 0x80, b"the flag that the catalog uses itself"),
        (Kind.DATA, 0x09, b"a blob named by its SHA-256"),
        (Kind.TOMBSTONE, 0, b"\2" + bytes(29)),
        (Kind.ARTIFACT, 0, b"\2" + bytes(100)),
        (Kind.REPAIR, 0, b"\2" + bytes(43)),
    ],
)
@pytest.mark.parametrize("read_only", [False, True])
def test_what_must_be_understood_is_refused(
    kind: int, flags: int, payload: bytes, read_only: bool, tmp_path: Path
) -> None:
    root = tmp_path / "store"
    _put_raw(root, kind, flags, payload)
    (root / "catalog.db").unlink()
    with pytest.raises(reader.NewerFormat):
        reader.Store(root)
    before = {path: path.read_bytes() for path in (root / "segments").iterdir()}
    with pytest.raises(FormatError, match="newer"):
        holdfast.open(root, read_only=read_only)
    for path, data in before.items():
        assert path.read_bytes() == data


def test_feature_bits_of_a_segment() -> None:
    header = bytearray(encode_segment_header(SegmentHeader(7, bytes(16), 1)))
    for bits, known in ((0x0001, True), (0x00FF, True), (0x0100, False), (0x8000, False)):
        header[10:12] = bits.to_bytes(2, "little")
        header[60:64] = _native.crc32c(header[:60]).to_bytes(4, "little")
        if known:
            assert parse_segment_header(bytes(header)) == SegmentHeader(7, bytes(16), 1)
        else:
            with pytest.raises(FormatError, match="feature"):
                parse_segment_header(bytes(header))


def test_keys_and_features_of_the_store_file(tmp_path: Path) -> None:
    root = tmp_path / "store"
    with open_here(root) as store:
        kept = store.put(b"kept")

    def rewrite(**more: Any) -> None:
        document = {**json.loads((root / "store.json").read_bytes()), **more, "crc32c": 0}
        document["crc32c"] = _native.crc32c(json.dumps(document, separators=(",", ":")).encode())
        (root / "store.json").write_text(json.dumps(document))

    rewrite(a_later_key={"x": [1]})
    with holdfast.open(root) as store:
        assert store.read(kept) == b"kept"
    rewrite(write_features=["two_phase_gc"])
    with pytest.raises(FormatError, match="two_phase_gc"):
        holdfast.open(root)
    with holdfast.open(root, read_only=True) as store:
        assert store.read(kept) == b"kept"
    rewrite(features=["sealed_boxes"])
    with pytest.raises(FormatError, match="sealed_boxes"):
        holdfast.open(root, read_only=True)
    text = (root / "store.json").read_text().replace("zstd", "none")
    (root / "store.json").write_text(text)
    with pytest.raises(FormatError, match="damaged"):
        holdfast.open(root, read_only=True)


def test_a_session_that_cannot_be_read_counts_as_busy(tmp_path: Path) -> None:
    (tmp_path / SESSIONS).mkdir()
    session = Session(LocalDisk(), str(tmp_path), 1_000)
    (path,) = (tmp_path / SESSIONS).iterdir()
    data = path.read_bytes()[:LEASES_OFFSET]
    assert struct.unpack_from("<8s16sqI", data)[3] == os.getpid()
    assert not parse_session(path.name, data).pinned
    before_ms = now_ms()
    pin = session.begin(b"c" * 16, 9)
    (state,) = read_sessions(LocalDisk(), str(tmp_path))
    assert (state.pinned, state.catalog_id, state.epoch, state.pid) == (True, b"c" * 16, 9, os.getpid())
    assert before_ms <= state.pinned_ms <= now_ms()
    session.end(pin)
    slots = session.lease([b"h" * 32, b"i" * 32])
    session.lease([b"s" * 32], LEASE_HASH_SEQ)
    session.release(slots[0])
    slotted = b"\0" + b"h" * 32 + b"\1" + b"i" * 32 + b"\2" + b"s" * 32
    assert path.read_bytes()[LEASES_OFFSET:] == slotted
    (state,) = read_sessions(LocalDisk(), str(tmp_path), leases=True)
    assert (state.pinned, state.pinned_ms) == (False, 0)
    assert state.leases == ((b"i" * 32, 0), (b"s" * 32, 1))
    session.lease([b"n" * 32], 3)  # of a newer version
    (state,) = read_sessions(LocalDisk(), str(tmp_path), leases=True)
    assert state.leases is None
    for bad in (b"", data[:100], b"HFSES\0\0\2" + data[8:], data[:20] + b"?" + data[21:]):
        state = parse_session(path.name, bad)
        assert state.pinned
        assert state.catalog_id == bytes(16)
    session.close()


def test_a_tag_s_name_is_utf8() -> None:
    payload = encode_tag(TagDocument("name", bytes(32), 0, 1, 1, False))
    with pytest.raises(FormatError, match="UTF-8"):
        parse_tag(payload[:-1] + b"\xff")
    with pytest.raises(FormatError, match="format"):
        parse_tag(payload[:1] + b"\7" + payload[2:])


def test_a_copy_of_a_segment_elsewhere_is_not_taken_for_its_own(tmp_path: Path) -> None:
    adopted(tmp_path / "store")
    segments = tmp_path / "store" / "segments"
    shutil.copy(segments / "0000000001.seg", segments / "0000000009.seg")
    other = reader.Store(tmp_path / "store")
    assert any("another place" in line for line in other.damage)
    assert len(other.live()) == 6


def test_the_second_reader_is_small_and_its_own() -> None:
    source = Path(reader.__file__).read_text()
    assert sum(bool(line.strip()) for line in source.splitlines()) < 370
    imported = set(re.findall(r"^\s*(?:import|from) (\w+)", source, re.MULTILINE))
    assert imported - sys.stdlib_module_names == {"blake3", "zstandard"}
