"""Make the inputs that fuzzing begins from, out of a real store: `python -m tests.fuzz.seeds`."""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path

from holdfast import _native
from holdfast.backend.log.partial_state import empty_state, encode_entry
from holdfast.backend.objects.layout import COLLECTOR_KEY
from holdfast.ranges import ChunkRanges
from holdfast.store import Store
from holdfast.testing.plain_bucket import PlainBucket
from holdfast.testing.streams import Sender, blocks
from holdfast.wire import collection, ranges
from holdfast.wire.record import Kind
from tests.fuzz.run import CORPORA
from tests.fuzz.targets import TARGETS

NUMBER = {Kind.ARTIFACT: 0, Kind.TOMBSTONE: 1, Kind.TAG: 2, Kind.BLOB: 3, Kind.QUARANTINE: 4, Kind.UPLOAD: 5}


def keep(target: str, data: bytes) -> None:
    """Write one input under its own name."""
    place = CORPORA / target
    place.mkdir(parents=True, exist_ok=True)
    data = data[: TARGETS[target].max_bytes]
    (place / hashlib.sha1(data).hexdigest()).write_bytes(data)


def objects() -> None:
    """Keep one of each kind of object, without its sum, under the number of its key among the fuzzer's."""
    plain = PlainBucket()
    sender = Sender(bytes(50_000))
    with Store._open_objects(plain, create=True) as store:
        one, two = store.put_many([b"hello", b"two"], tags=["a"], metadata={"n": 1})
        store.update(one, filename="hello.txt")
        store.delete(two)
        store.tags.set("name", one.hash)
        store.blobs.decode(sender.hash, sender.stream(blocks(0)), blocks(0))
        writer = store.writer("u", resumable=True)
        writer.write(b"half")
        writer.suspend()
        store.gc(min_age_seconds=1000)
    for key, (data, _) in plain.objects.items():
        prefixes = ("commits/", "artifacts/", "tags/", "parts/", "uploads/", COLLECTOR_KEY, "blobs/")
        for number, prefix in enumerate(prefixes):
            if key.startswith(prefix) and not key.endswith("z" * 53):
                keep("bucket", bytes((number,)) + (data[:-32] if number < 3 else data))


def main() -> None:
    objects()
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory, "s")
        with Store._open(str(root), create=True, compression="none") as store:
            one = store.put(b"hello", filename="hello.txt", tags=["a"], metadata={"n": 1})
            store.put(bytes(40_000))
            store.tags.set("name", one.hash)
            store.delete(store.put(b"gone"))
            writer = store.writer("u", resumable=True)
            writer.write(bytes(30_000))
            writer.suspend()
        for kinds in ((), tuple(NUMBER)):
            for path in sorted((root / "segments").iterdir()):
                data, at = path.read_bytes(), 64
                if not kinds:
                    keep("segment", data[64:])
                    keep("segment", data[-2_000:])
                    keep("commit", data[-80:])
                while data[at : at + 4] == b"HFrc":
                    kind, stored = data[at + 4], int.from_bytes(data[at + 16 : at + 20], "little")
                    payload = data[at + 64 : at + 64 + stored]
                    if kind in NUMBER:
                        keep("documents", bytes((NUMBER[Kind(kind)],)) + payload)
                    if kind == Kind.COMMIT:
                        keep("commit", payload)
                    if kind == Kind.BLOB:
                        keep("page_trees", (40_000).to_bytes(4, "little") + payload[52:])
                    if kind in (Kind.MANIFEST_PAGE, Kind.OUTBOARD_PAGE):
                        keep(
                            "page_trees", (40_000).to_bytes(4, "little") + b"\1" + bytes(32) + payload[:1_000]
                        )
                    at += 64 + stored
        keep("commit", (root / "store.json").read_bytes())
        session = next(iter((root / "sessions").iterdir()), None)
        keep("commit", session.read_bytes() if session else b"HFSES\0\0\1" + bytes(184))
    child = _native.blake3(b"x")
    inner = child + (20_000).to_bytes(8, "little") + child + (40_000).to_bytes(8, "little")
    keep("page_trees", (40_000).to_bytes(4, "little") + b"\2" + child + inner + inner)
    leaf = b"\1" + (40_000).to_bytes(4, "little") + child
    keep("page_trees", (40_000).to_bytes(4, "little") + b"\0" + len(leaf).to_bytes(2, "little") + leaf)
    for choice in range(5):
        keep("streams", bytes((choice, 9)))
        keep("streams", bytes((choice, 40, 0, 70, 1, 4, 3, 200, 2, 0)))
        keep("streams", bytes((choice, 3)) + (20_480).to_bytes(8, "little") + bytes(100))
    keep("hash_seqs", bytes((2,)) + collection.encode_meta(["a/b", "größe"]))
    keep("hash_seqs", child * 4)
    keep(
        "hash_seqs",
        b'{"holdfast_tree":1,"collection":"%s","executable":[0,2],"symlinks":{"a":"b"}}' % (b"00" * 32),
    )
    keep("hash_seqs", b'"collection":"%s","directories":["d"]}' % (b"00" * 32))
    for text in ("0..16,64..", "", "..", "5..1", "af" * 32, "blake3:" + "0" * 64):
        keep("range_sets", text.encode())
    for some in (
        ChunkRanges.all(),
        ChunkRanges.empty(),
        ChunkRanges.last(),
        ChunkRanges.parse("0..1,5..9,70.."),
    ):
        keep("range_sets", ranges.encode_ranges(some))
    state = empty_state(5)._replace(size_bytes=1_000_000, have=ChunkRanges.parse("0..16,32..64"))
    more = state._replace(have=ChunkRanges.parse("0..64"), is_size_proven=True)
    whole = encode_entry(bytes(32), state)
    keep("journals", whole)
    keep("journals", whole + encode_entry(bytes(32), more, since=state))
    keep(
        "configuration",
        b'[blob_store]\ntype = "s3"\nbucket = "b"\nsecret_key = { env = "X" }\n[gc]\nenabled = false\n',
    )
    keep(
        "configuration",
        b'[log]\nsegment_size_bytes = 1048576\nchunking = "fixed"\n[limits]\nchecksum = "sha256"\n',
    )
    keep("configuration", b"[limits]\nmax_artifact = 5\n[cache]\nmax_bytes = 1.5\n")


if __name__ == "__main__":
    main()
