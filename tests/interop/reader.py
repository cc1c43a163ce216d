"""A second reader of local stores, written from docs/format.md alone: no code of Holdfast is in it.

It needs the standard library and the PyPI package `blake3`; `zstandard` is imported only when a compressed payload
is met, because the library of Python 3.11 has no zstd. Everything that it hands out was hashed. It holds segments
in memory: simple rather than fit for large stores.

    python reader.py STORE              list artifacts, as JSON lines
    python reader.py STORE TARGET       also write each artifact to TARGET/ID, and each blob to TARGET/blobs/HASH
"""

from __future__ import annotations

import hashlib
import json
import struct
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from blake3 import blake3

DATA, OUTBOARD, MANIFEST, BLOB, ARTIFACT, TAG, TOMBSTONE = 0x81, 0x02, 0x83, 0x84, 0x85, 0x86, 0x87
QUARANTINE, REPAIR, UPLOAD, COMMIT, CLOSE, FOOTER = 0x88, 0x89, 0x0A, 0x8C, 0x8D, 0x8E
RETIRED, TIMES = 0x0F, 0x10
IS_BLOB, IS_ZSTD, IS_END, IS_SHA256 = 1, 2, 4, 8
FORMATS = ("raw", "hash_seq")


class NewerFormat(Exception): ...


class Damaged(Exception): ...


CRC = list(range(256))
for _ in range(8):
    CRC = [value >> 1 ^ (0x82F63B78 if value & 1 else 0) for value in CRC]


def crc32c(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ CRC[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


class Entry(NamedTuple):
    kind: int
    flags: int
    offset: int
    stored: int
    plain: int
    hash: bytes


class Segment:
    """One file: its entries by offset, and whether it is clean."""

    def __init__(self, number: int, data: bytes, store_id: bytes, damage: list[str]) -> None:
        self.number, self.data = number, data
        head = data[:64].ljust(64, b"\0")
        magic, version, features, segment, owner = struct.unpack_from("<8sHHI16s", head)
        if magic == b"HFSEG\0\0\1" and (version != 1 or features & 0xFF00):
            raise NewerFormat(f"segment {number}: version {version}, features {features:#x}")
        if (segment, owner, crc32c(head[:60])) != (number, store_id, int.from_bytes(head[60:], "little")):
            damage += [f"segment {number}: the header is damaged or of another place"] * (len(data) > 64)
        last = self.record_at(len(data) - 80)
        if last is not None and not self.is_sound(last):
            last = None
        self.clean = last is not None and (last.kind == CLOSE or last.flags == IS_END)
        start, stop = 64, len(data)
        found: list[Entry] = []
        if last is not None and last.kind == FOOTER and last.flags == IS_END:
            footer, _, count, stop = struct.unpack("<4I", self.payload(last))
            packed = b"".join(self.payload(page) for page in self._walk(footer, last.offset, damage))
            if len(packed) == count * 46:
                found, start = [Entry(*fields) for fields in struct.iter_unpack("<BBIII32s", packed)], stop
        found += self._walk(start, stop, damage if self.clean else [])
        self.entries = {entry.offset: entry for entry in found}
        closes = [e.offset for e in found if e.kind == CLOSE and self.is_sound(e)]
        self.trusted = len(data) if self.clean else max(closes, default=0)

    def record_at(self, at: int) -> Entry | None:
        head = self.data[at : at + 64] if at >= 64 else b""
        if len(head) < 64 or head[:4] != b"HFrc" or crc32c(head[:60]) != int.from_bytes(head[60:], "little"):
            return None
        kind, flags, _, _, segment, offset, stored, plain, _ = struct.unpack_from("<4B5I", head, 4)
        if (segment, offset) != (self.number, at) or stored > 1 << 24 or at + 64 + stored > len(self.data):
            return None
        return Entry(kind, flags, offset, stored, plain, head[28:60])

    def _walk(self, at: int, stop: int, damage: list[str]) -> Iterator[Entry]:
        while 0 <= at < stop:
            if (entry := self.record_at(at)) is not None:
                yield entry
                at += 64 + entry.stored
            else:
                damage.append(f"segment {self.number}: no record at {at}")
                at = self.data.find(b"HFrc", at + 1, stop)

    def payload(self, entry: Entry) -> bytes:
        return self.data[entry.offset + 64 : entry.offset + 64 + entry.stored]

    def is_sound(self, entry: Entry) -> bool:
        crc = int.from_bytes(self.data[entry.offset + 24 : entry.offset + 28], "little")
        return self.record_at(entry.offset) == entry and crc32c(self.payload(entry)) == crc

    def verified(self, entry: Entry) -> bytes:
        """The plain payload, if it matches its hash."""
        data = self.payload(entry)
        if entry.flags & IS_ZSTD:
            import zstandard

            try:
                data = zstandard.decompress(data, max_output_size=entry.plain)
            except zstandard.ZstdError as error:
                raise Damaged(f"segment {self.number}, offset {entry.offset}: {error}") from error
        digest = hashlib.sha256(data).digest() if entry.flags & IS_SHA256 else blake3(data).digest()
        if digest != entry.hash or len(data) != entry.plain:
            raise Damaged(f"segment {self.number}, offset {entry.offset}: not what its hash says")
        return data


class Store:
    """The state of a store: the highest of each document by (kind, name); `damage` says what is wrong."""

    def __init__(self, root: Path) -> None:
        self.damage: list[str] = []
        self.states: dict[tuple[int, bytes], tuple[Any, ...]] = {}
        self.stored_ms: dict[bytes, int] = {}  # of each blob
        self._payloads: dict[bytes, set[tuple[int, int]]] = {}
        store = json.loads((root / "store.json").read_bytes())
        if store["format"] != 1 or store["features"]:
            raise NewerFormat(f"format {store['format']}, features {store['features']}")
        if crc32c(json.dumps({**store, "crc32c": 0}, separators=(",", ":")).encode()) != store["crc32c"]:
            raise Damaged("store.json does not match its checksum")
        store_id = uuid.UUID(store["store_id"]).bytes
        self.segments: dict[int, Segment] = {}
        for path in (root / "segments").glob("[0-9]" * 10 + ".seg"):
            self.segments[int(path.stem)] = Segment(int(path.stem), path.read_bytes(), store_id, self.damage)
        self.retired = self._find_retired()
        for number in self.retired & self.segments.keys():
            del self.segments[number]
        for segment in self.segments.values():
            for entry in list(segment.entries.values()):
                if entry.kind == COMMIT:
                    self._take_group(segment, entry)

    def _find_retired(self) -> set[int]:
        """Segments that were compacted away; one that is still there only if a group that counts says so."""
        retired = set()
        for segment in self.segments.values():
            for entry in segment.entries.values():
                if entry.kind == RETIRED:
                    try:
                        runs = struct.iter_unpack("<2I", segment.verified(entry)[4:])
                    except (Damaged, struct.error):
                        continue
                    counts = any(self._names(segment, commit, entry) for commit in segment.entries.values())
                    ids = {number for first, stop in runs for number in range(first, stop)}
                    retired |= ids if counts else ids - self.segments.keys()
        return retired

    def _names(self, segment: Segment, commit: Entry, entry: Entry) -> bool:
        """Whether a commit counts, lies in one segment, and names a record there."""
        try:
            head = segment.verified(commit) if commit.kind == COMMIT else b""
        except Damaged:
            return False
        runs = list(struct.iter_unpack("<4I", head[68:]))
        if [run[0] for run in runs] != [segment.number] or not runs[0][1] <= entry.offset < runs[0][2]:
            return False
        packed = b"".join(struct.pack("<BBIII32s", *e) for _, e in self._run(*runs[0]))
        return segment.clean or blake3(packed).digest() == head[32:64]

    def _run(self, number: int, start: int, stop: int, _: int) -> list[tuple[Segment, Entry]]:
        where = self.segments.get(number)
        return [(where, e) for e in where.entries.values() if start <= e.offset < stop] if where else []

    def _take_group(self, segment: Segment, commit: Entry) -> None:
        try:
            head = segment.verified(commit)
        except Damaged as error:
            self.damage += [f"a commit is damaged: {error}"] * (commit.offset < segment.trusted)
            return
        time_ms, count, digest, extents = struct.unpack_from("<qQ32sI", head, 16)
        every = list(struct.iter_unpack("<4I", head[68 : 68 + 16 * extents]))
        runs = [run for run in every if run[0] not in self.retired]
        group = [pair for run in runs for pair in self._run(*run)]
        packed = b"".join(struct.pack("<BBIII32s", *entry) for _, entry in group)
        whole = len(group) == count and blake3(packed).digest() == digest
        if len(runs) < len(every):
            whole = len(group) == sum(run[3] for run in runs)
        if commit.offset >= segment.trusted and not (
            whole and all(w.is_sound(e) for w, e in group if w is segment)
        ):
            return
        if not whole:
            self.damage.append(f"segment {segment.number}: the group that ends at {commit.offset} is damaged")
        times = self._times(*group[0]) if group and group[0][1].kind == TIMES else iter(())
        for where, entry in group:
            is_blob = entry.kind == BLOB or (entry.kind == DATA and entry.flags & IS_BLOB)
            self._take(where, entry, next(times, time_ms) if is_blob else time_ms)

    def _times(self, segment: Segment, entry: Entry) -> Iterator[int]:
        """When the blobs of a copied group were stored, one after another."""
        try:
            runs = list(struct.iter_unpack("<Iq", segment.verified(entry)[4:]))
        except (Damaged, struct.error) as error:
            self.damage.append(f"times are damaged: {error}")
            return
        for count, time_ms in runs:
            yield from (time_ms for _ in range(count))

    def _take(self, segment: Segment, entry: Entry, time_ms: int) -> None:
        place, kind, flags = (segment.number, entry.offset), entry.kind, entry.flags
        if kind not in (DATA, OUTBOARD, UPLOAD, COMMIT, CLOSE, FOOTER, *range(MANIFEST, REPAIR + 1)):
            if kind & 0x80:
                raise NewerFormat(f"{place}: kind {kind:#x}")
        elif flags not in (0, IS_BLOB, IS_ZSTD, IS_BLOB | IS_ZSTD, IS_SHA256, IS_SHA256 | IS_ZSTD):
            raise NewerFormat(f"{place}: flags {flags:#x}")
        elif kind in (DATA, OUTBOARD, MANIFEST):
            self._payloads.setdefault(entry.hash, set()).add(place)
            if flags & IS_BLOB:
                self.stored_ms[entry.hash] = min(time_ms, self.stored_ms.get(entry.hash, time_ms))
        elif kind < COMMIT:  # a document
            try:
                self._take_document(kind, segment.verified(entry), time_ms)
            except (Damaged, struct.error) as error:
                self.damage.append(f"{place}: {error}")

    def _take_document(self, kind: int, data: bytes, time_ms: int) -> None:
        if data[:1] != b"\1":
            raise NewerFormat(f"a document of version {data[:1]!r}")
        name = data[2:10]  # quarantine and repair: the place
        state: tuple[Any, ...] = (data[44:],)
        if kind == ARTIFACT:
            layout = struct.Struct("<BI16s32sQqqQ")
            f, revision, name, hash_, size, created, modified, chunks = layout.unpack_from(data, 1)
            state = (revision, modified, hash_, size, f, created, chunks, data[86:])
        elif kind == TOMBSTONE:
            revision, name, deleted = struct.unpack_from("<I16sq", data, 2)
            state = (revision, deleted)
        elif kind == TAG:
            f, is_deleted, revision, hash_, modified, _ = struct.unpack_from("<BBI32sqH", data, 1)
            name, state = data[49:], (revision, modified, bool(is_deleted), hash_, f)
        elif kind == UPLOAD:
            revision, name = struct.unpack_from("<I16s", data, 4)
            state = (revision, data[1], data[72:80], data)
        elif kind == BLOB:
            name, state = data[4:36], (data,)
            self.stored_ms[name] = min(time_ms, self.stored_ms.get(name, time_ms))
        self.states[kind, name] = max(state, self.states.get((kind, name), state))

    def live(self) -> dict[str, dict[str, Any]]:
        """Artifacts that are not deleted, by id."""
        found = {}
        for (kind, name), state in sorted(self.states.items()):
            if kind == ARTIFACT and self.states.get((TOMBSTONE, name), (0,))[0] <= state[0]:
                revision, modified, hash_, size, f, created, chunks, details = state
                artifact = {
                    "revision": revision,
                    "modified_ms": modified,
                    "hash": hash_.hex(),
                    "size_bytes": size,
                }
                artifact |= {"format": FORMATS[f], "created_ms": created, "chunk_count": chunks}
                found[str(uuid.UUID(bytes=name))] = artifact | json.loads(details)
        return found

    def _payload(self, hash_: bytes, algorithm: int = 1) -> bytes:
        error = Damaged(f"the payload {hash_.hex()} is not here")
        for number, offset in sorted(self._payloads.get(hash_, ())):
            entry = self.segments[number].entries[offset]
            try:
                if bool(entry.flags & IS_SHA256) == (algorithm == 2):
                    return self.segments[number].verified(entry)
            except Damaged as found:
                error = found
        raise error

    def _leaves(self, depth: int, hash_: bytes, units: int, is_outboard: bool) -> Iterator[bytes]:
        page, at = self._payload(hash_), 0
        if depth > 1:
            for child, end in struct.iter_unpack("<32sQ", page):
                yield from self._leaves(depth - 1, child, end - at, is_outboard)
                at = end
        else:
            yield page
            at = len(page) if is_outboard else sum(entry[1] for entry in struct.iter_unpack("<BI32s", page))
        if at != units:
            raise Damaged(f"the page {hash_.hex()} covers {at} in place of {units}")

    def _stream(self, roots: bytes, units: int, is_outboard: bool) -> tuple[bytes, bytes]:
        """The stream of the first root, and the roots behind it."""
        if roots[0]:
            return b"".join(self._leaves(roots[0], roots[1:33], units, is_outboard)), roots[33:]
        stop = 3 + int.from_bytes(roots[1:3], "little")
        return roots[3:stop], roots[stop:]

    def read(self, hash_: bytes) -> bytes:
        """A whole blob, verified."""
        if (BLOB, hash_) not in self.states:
            if hash_ in self.stored_ms:
                return self._payload(hash_)
            raise Damaged(f"the blob {hash_.hex()} is not here")
        (document,) = self.states[BLOB, hash_]
        size = int.from_bytes(document[36:44], "little")
        outboard_bytes = (-(-size // 16384) - 1) * 64
        manifest, rest = self._stream(document[52:], size, False)
        outboard, rest = self._stream(rest, outboard_bytes, True)
        chunks = []
        for algorithm, length, digest in struct.iter_unpack("<BI32s", manifest):
            chunks.append(self._payload(digest, algorithm))
            if algorithm not in (1, 2) or len(chunks[-1]) != length:
                raise Damaged(f"a chunk of {hash_.hex()}: algorithm {algorithm}, length {length}")
        data = b"".join(chunks)
        if blake3(data).digest() != hash_ or len(data) != size or rest or len(outboard) != outboard_bytes:
            raise Damaged(f"the blob {hash_.hex()} is not what its hash and its record say")
        return data

    def uploads(self) -> dict[bytes, bytes]:
        """What is durable of each open upload, by token."""
        found = {}
        for (kind, token), state in self.states.items():
            if kind == UPLOAD and state[1] == 0:
                document = state[3]
                offset, cut = struct.unpack_from("<QQ", document, 40)
                manifest, rest = self._stream(document[84:], cut, False)
                groups, rest = self._stream(rest, offset // 16384 * 32 if offset > 16384 else 0, True)
                tail = struct.iter_unpack("<I32s", rest[: 36 * int.from_bytes(document[80:82], "little")])
                pieces = [*((n, digest) for _, n, digest in struct.iter_unpack("<BI32s", manifest)), *tail]
                found[token] = b"".join(self._payload(digest)[:length] for length, digest in pieces)
                if len(found[token]) != offset or len(groups) % 32:
                    raise Damaged(f"the upload {token.hex()} is not what it says")
        return found

    def files(self, hash_: bytes) -> list[tuple[str, bytes]]:
        """(name, hash) of each file of a collection."""
        hashes = [self.read(hash_)[i : i + 32] for i in range(0, len(self.read(hash_)), 32)]
        meta, at = self.read(hashes[0]), 13
        numbers: list[int] = []
        names: list[str] = []
        while at < len(meta):
            value = shift = 0
            while meta[at] >= 0x80:
                value |= (meta[at] & 0x7F) << shift
                shift, at = shift + 7, at + 1
            value, at = value | meta[at] << shift, at + 1
            if numbers:
                names.append(meta[at : at + value].decode())
                at += value
            numbers.append(value)
        if meta[:13] != b"CollectionV0." or at != len(meta) or {numbers[0], len(names)} != {len(hashes) - 1}:
            raise Damaged(f"{hash_.hex()} is no collection")
        return list(zip(names, hashes[1:], strict=True))

    def extract(self, artifact: dict[str, Any], target: Path) -> None:
        """Write an artifact's file or tree."""
        hash_ = bytes.fromhex(artifact["hash"])
        if artifact["format"] == "raw":
            target.write_bytes(self.read(hash_))
            return
        target.mkdir()
        required = [text[7:] for text in artifact.get("requires", ()) if text.startswith("blake3:")]
        blobs = [self.read(bytes.fromhex(text)) for text in required]
        extras = json.loads(next((b for b in blobs if b.startswith(b'{"holdfast_tree":1,')), b"{}"))
        if extras.get("collection", hash_.hex()) != hash_.hex():
            raise Damaged("the extras are of another tree")
        runs = extras.get("executable", [])
        for position, (name, child) in enumerate(self.files(hash_)):
            path = place(target, name)
            path.write_bytes(self.read(child))
            if any(a <= position < b for a, b in zip(runs[::2], runs[1::2], strict=True)):
                path.chmod(0o755)
        for name in extras.get("directories", ()):
            place(target, name).mkdir()
        for name, link in extras.get("symlinks", {}).items():  # last: nothing is written through them
            place(target, name).symlink_to(link)


def place(target: Path, name: str) -> Path:
    if "\0" in name or {"", ".", ".."} & set(name.split("/")):
        raise Damaged(f"a name that leads elsewhere: {name!r}")
    (target / name).parent.mkdir(parents=True, exist_ok=True)
    return target / name


def main(root: Path, target: Path | None = None) -> None:
    store = Store(root)
    for id_, artifact in store.live().items():
        print(json.dumps({"id": id_, **artifact}))
        if target is not None:
            store.extract(artifact, target / id_)
    if target is not None:
        (target / "blobs").mkdir()
        for hash_ in store.stored_ms:
            (target / "blobs" / hash_.hex()).write_bytes(store.read(hash_))
    print(*store.damage, sep="\n", file=sys.stderr)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
