"""Makes the stores in `data`: what the first version of the format wrote, for all later ones to read.

    python -m tests.interop.make_fixtures DIRECTORY [NAME…]

Ids and times differ with each run. What is committed was made once, by the first version, and is not made anew: a
reader of a later version is tested with it as it is.
"""

from __future__ import annotations

import base64
import hashlib
import io
import sys
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Final

from holdfast import _native
from holdfast.bao import OutboardBuilder
from holdfast.chunking import Chunking
from holdfast.core import Options
from holdfast.ingest import Stored
from holdfast.ranges import ChunkRanges
from holdfast.store import Store
from holdfast.testing.inside import log_core
from holdfast.types import Hash, PutItem, now_ms
from holdfast.wire.document import (
    BlobDocument,
    Details,
    QuarantineDocument,
    TagDocument,
    encode_blob,
    encode_quarantine,
    encode_tag,
)
from holdfast.wire.pages import ALGORITHM_BLAKE3, ALGORITHM_SHA256, ManifestWriter, StreamWriter
from holdfast.wire.record import FLAG_SHA256, FLAG_ZSTD, Kind

DATA: Final = Path(__file__).parent / "data"
CHUNK_BYTES: Final = 4096
SEGMENT_BYTES: Final = 64 << 10
YEARS: Final = 3_000_000_000
"""What is to be gone on with is so in a century, too."""


def pattern(length: int, seed: int) -> bytes:
    """Bytes that do not compress, and are the same everywhere."""
    return hashlib.shake_256(seed.to_bytes(8)).digest(length)


LARGE: Final = pattern(CHUNK_BYTES, 1) * 1030 + b"the end"
"""4 MiB in 1,031 chunks: two leaves of a manifest, one of an outboard; few distinct bytes."""


def open_here(path: Path, *, compression: str = "zstd") -> Store:
    """Open a store with segments and chunks as small as they may be."""
    return Store._open(
        str(path),
        create=not path.exists(),
        chunking=Chunking.choose("fixed", CHUNK_BYTES),
        compression=compression,
        segment_bytes=SEGMENT_BYTES,
        options=Options(allow_empty=True, upload_expiry_seconds=YEARS, partial_age_seconds=YEARS),
    )


def make_tree(path: Path) -> None:
    """Make a directory with what a collection can carry and what it cannot."""
    (path / "sub" / "deeper").mkdir(parents=True)
    (path / "empty").mkdir()
    (path / "read me.txt").write_text("hello\n")
    (path / "sub" / "größe").write_bytes(b"")
    (path / "sub" / "deeper" / "blob.bin").write_bytes(pattern(17_000, 2))
    (path / "run").write_text("#!/bin/sh\n")
    (path / "run").chmod(0o755)
    (path / "link").symlink_to("sub/deeper")


def every_kind(root: Path) -> None:
    """Put in every kind of record that the first version writes, in segments sealed, closed and adopted."""
    with tempfile.TemporaryDirectory() as temporary:
        make_tree(Path(temporary) / "tree")
        with open_here(root) as store:
            store.put(b"", filename="empty")
            gone = store.put(b"deleted", filename="deleted.txt", tags=["old"])
            back = store.put(b"text that pays to be compressed; " * 100, filename="back.txt", links=["run:1"])
            large = store.put(
                LARGE, filename="large.bin", metadata={"n": 1, "x": 0.5, "s": "ü", "b": True, "z": None}
            )
            store.put_tree(Path(temporary) / "tree", tags=["tree"])
        with open_here(root) as store:  # adopts what was closed
            store.delete(gone)
            store.delete(back)
            store.restore(back)
            items = [PutItem(source=pattern(500 + i, 100 + i), filename=f"{i}.bin") for i in range(12)]
            store.put_many(items, requires=[large.hash], created_by="make_fixtures")
            group = log_core(store).backend.group()
            for name, deleted in (("release/1", False), ("release/0", True), ("größe", False)):
                tag = TagDocument(name, large.hash.digest, 0, 1 + deleted, now_ms(), deleted)
                group.add_one(Kind.TAG, encode_tag(tag))
            place = QuarantineDocument(4_000, 64, bytes(32), "a place in a segment that is gone")
            group.add_one(Kind.QUARANTINE, encode_quarantine(place))
            group.add_one(Kind.REPAIR, encode_quarantine(place._replace(reason="")))
            group.commit()
        with open_here(root) as store:
            store.blobs.put(b"a blob that nothing names").release()


PARTLY: Final = pattern(60_000, 3)
"""A blob of which the fixture has only some blocks."""
HERE: Final = ChunkRanges.bytes(0, 20_000) | ChunkRanges.bytes(32_768, 49_152)


def later_kinds(root: Path) -> None:
    """Put in what came after the first stores: what compaction leaves, an upload, a partial blob, real damage."""
    with tempfile.TemporaryDirectory() as temporary, open_here(Path(temporary) / "other") as other:
        other.put(PARTLY)
        stream = b"".join(other.blobs.encode(Hash(_native.blake3(PARTLY)), HERE))
        damaged = other.put(pattern(9_000, 4), filename="mended.bin")
        with open_here(root) as store:
            old = store.put_many([pattern(12_000, 20 + i) for i in range(6)], tags=["old"])
            kept = store.put_many([pattern(1_000, 40 + i) for i in range(6)], tags=["kept"])
            mended = store.put(pattern(9_000, 4), filename="mended.bin")
        flip(root, pattern(9_000, 4)[:CHUNK_BYTES])
        with open_here(root) as store:
            assert store.scrub().quarantined
            assert store.repair(other).ok
            assert damaged.hash == mended.hash
            store.delete(*old)
            store.gc(min_age_seconds=0)
            store.compact()
            store.tags.set("kept/one", kept[0].hash)
            store.blobs.decode(Hash(_native.blake3(PARTLY)), stream, HERE)
            writer = store.writer("to be gone on with.bin", resumable=True)
            writer.write(pattern(20_000, 5))
            writer.suspend()


def flip(root: Path, payload: bytes) -> None:
    """Change one bit of a payload that is stored as it is."""
    for path in sorted((root / "segments").iterdir()):
        data = bytearray(path.read_bytes())
        at = data.find(payload)
        if at >= 0:
            data[at + 100] ^= 1
            path.write_bytes(data)
            return
    raise AssertionError("the payload is in no segment")


def sha256(root: Path) -> None:
    """Put in blobs whose manifests name chunks by their SHA-256: all of them, some of them, compressed ones."""
    with open_here(root) as store:
        text = b"".join(b"line %06d\n" % i for i in range(3_000))
        put_chunks(store, [pattern(CHUNK_BYTES, i) for i in range(5)], [ALGORITHM_SHA256] * 5, "all.bin")
        put_chunks(store, [pattern(4_200 + i, 50 + i) for i in range(4)], [1, 2, 2, 1], "some.bin")
        put_chunks(store, [text[:20_000], text[20_000:]], [ALGORITHM_SHA256] * 2, "packed.txt")


def put_chunks(store: Store, chunks: list[bytes], algorithms: list[int], name: str) -> None:
    """Store a blob whose chunks are named by these algorithms, as the API does not."""
    group = log_core(store).backend.group()
    manifest = ManifestWriter(lambda page: group.add_one(Kind.MANIFEST_PAGE, page))
    hasher = _native.BlobHasher()
    for chunk, algorithm in zip(chunks, algorithms, strict=True):
        is_sha256 = algorithm == ALGORITHM_SHA256
        digest = hashlib.sha256(chunk).digest() if is_sha256 else _native.blake3(chunk)
        stored, flags = _pack(chunk)
        flags |= FLAG_SHA256 if is_sha256 else 0
        group.add(bytes((Kind.DATA,)), bytes((flags,)), digest, [len(chunk)], [stored])
        manifest.add(algorithm if is_sha256 else ALGORITHM_BLAKE3, len(chunk), digest)
        hasher.update(chunk)
    root, groups = hasher.finish()
    stream = StreamWriter(lambda page: group.add_one(Kind.OUTBOARD_PAGE, page))
    with OutboardBuilder() as builder:
        builder.feed(groups)
        for part in builder.finish(hasher.size_bytes):
            stream.write(part)
    document = BlobDocument(root, hasher.size_bytes, len(chunks), manifest.finish(), stream.finish())
    group.add_one(Kind.BLOB, encode_blob(document))
    stored_blob = Stored(root, hasher.size_bytes, len(chunks))
    store._artifacts.acknowledge(group, [(stored_blob, Details(filename=name), 0)])


def _pack(chunk: bytes) -> tuple[bytes, int]:
    import zstandard

    packed = zstandard.ZstdCompressor(write_content_size=True).compress(chunk)
    return (packed, FLAG_ZSTD) if len(packed) < len(chunk) // 2 else (chunk, 0)


FIXTURES: Final[dict[str, Callable[[Path], None]]] = {
    "store-v1": every_kind,
    "sha256-v1": sha256,
    "later-v1": later_kinds,
}


def pack(root: Path) -> str:
    """Give a store without its catalog as a .tar.gz in base64."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz", compresslevel=9) as tar:
        partials = root / "partials"
        parts = sorted(path for path in partials.rglob("*") if path.is_file()) if partials.is_dir() else []
        for path in (root / "store.json", *sorted((root / "segments").iterdir()), *parts):
            info = tar.gettarinfo(path, str(path.relative_to(root)))
            info.uid = info.gid = info.mtime = 0
            info.uname = info.gname = ""
            with path.open("rb") as file:
                tar.addfile(info, file)
    return base64.encodebytes(buffer.getvalue()).decode()


def unpack(name: str, root: Path) -> Path:
    """Make a copy of a committed store at `root`, without a catalog."""
    packed = base64.decodebytes((DATA / f"{name}.tar.gz.b64").read_bytes())
    with tarfile.open(fileobj=io.BytesIO(packed), mode="r:gz") as tar:
        tar.extractall(root, filter="data")
    return root


if __name__ == "__main__":
    wanted = sys.argv[2:] or list(FIXTURES)
    for fixture, make in [(name, FIXTURES[name]) for name in wanted]:
        with tempfile.TemporaryDirectory() as directory:
            make(Path(directory) / fixture)
            Path(sys.argv[1], f"{fixture}.tar.gz.b64").write_text(pack(Path(directory) / fixture))
