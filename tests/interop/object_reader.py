"""A second reader of stores in a bucket, written from docs/format.md, "Objects", alone: no code of Holdfast is in it.

It needs the PyPI package `blake3`, and reads a directory that is a bucket, or into which one was copied.

    python object_reader.py DIRECTORY            list artifacts, as JSON lines
    python object_reader.py DIRECTORY TARGET     also write each artifact to TARGET/ID
"""

from __future__ import annotations

import base64
import json
import re
import struct
import sys
import uuid
from pathlib import Path
from typing import Any, NamedTuple

from blake3 import blake3

ARTIFACT, TAG, TOMBSTONE = 0x85, 0x86, 0x87
PART = re.compile(r"(data|outboard|gone)(?:\.(0|[1-9][0-9]{0,8}))?")
NAME = re.compile(r"[0-9a-f]{64}|[a-z2-7]{52}")


class NewerFormat(Exception): ...


class Damaged(Exception): ...


def crc32c(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


class Artifact(NamedTuple):
    id: str
    revision: int
    hash: bytes
    size: int
    format: int
    created_ms: int
    modified_ms: int
    details: dict[str, Any]


class Bucket:
    """A store: its artifacts and tags as they are now, and its blobs."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.damage: list[str] = []
        self.artifacts: dict[str, Artifact] = {}
        self.tags: dict[str, tuple[int, bool, bytes]] = {}
        self.deleted: dict[str, int] = {}
        self._check_identity(json.loads((root / "store.json").read_bytes()))
        self.blobs: dict[bytes, dict[tuple[str, int], Path]] = {}
        for path in root.glob("blobs/*/*"):
            part = PART.fullmatch(path.name)
            if not part or not NAME.fullmatch(path.parent.name):
                continue
            if part[2] is not None if part[1] == "gone" else part[2] != "0":
                self.blobs.setdefault(digest_of(path.parent.name), {})[part[1], int(part[2] or 0)] = path
        for folder in ("commits", "artifacts", "tags"):
            for path in sorted(root.glob(f"{folder}/[0-9a-f]*")):
                try:
                    self._take(f"{folder}/{path.name}", path.read_bytes())
                except Damaged as error:
                    self.damage.append(str(error))

    def _check_identity(self, document: dict[str, Any]) -> None:
        plain = json.dumps({**document, "crc32c": 0}, separators=(",", ":"), ensure_ascii=False).encode()
        if crc32c(plain) != document["crc32c"]:
            raise Damaged("store.json")
        if (document["format"], document["version"]) != ("holdfast objects", 1) or document["features"]:
            raise NewerFormat("store.json")

    def _take(self, key: str, data: bytes) -> None:
        if data[:4] != b"HFOB" or blake3(data[:-32] + key.encode()).digest() != data[-32:]:
            raise Damaged(key)
        version, count = struct.unpack_from("<HI", data, 4)
        if version != 1:
            raise NewerFormat(key)
        at = 10
        for _ in range(count):
            kind, length = struct.unpack_from("<BI", data, at)
            at += 5 + length
            self._document(key, kind, data[at - length : at])
        if at != len(data) - 32:
            raise Damaged(key)

    def _document(self, key: str, kind: int, payload: bytes) -> None:
        if kind not in (ARTIFACT, TAG, TOMBSTONE):
            if kind & 0x80:
                raise NewerFormat(f"{key}: kind {kind}")
            return
        if payload[0] != 1:
            raise NewerFormat(key)
        if kind == ARTIFACT:
            layout = "<BI16s32sQqqQ"
            format_, revision, raw, hash_, size, made, last, _ = struct.unpack_from(layout, payload, 1)
            id_ = str(uuid.UUID(bytes=raw))
            if id_ not in self.artifacts or self.artifacts[id_].revision < revision:
                details = json.loads(payload[86:])
                self.artifacts[id_] = Artifact(id_, revision, hash_, size, format_, made, last, details)
        elif kind == TOMBSTONE:
            revision, raw, _ = struct.unpack_from("<I16sq", payload, 2)
            id_ = str(uuid.UUID(bytes=raw))
            self.deleted[id_] = max(revision, self.deleted.get(id_, 0))
        else:
            _, deleted, revision, hash_, _, length = struct.unpack_from("<BBI32sqH", payload, 1)
            name = payload[49 : 49 + length].decode()
            self.tags[name] = max((revision, bool(deleted), hash_), self.tags.get(name, (0, False, b"")))

    def live(self) -> list[Artifact]:
        named = (one for one in self.artifacts.values() if not self._was_never_acknowledged(one.hash))
        return [one for one in named if self.deleted.get(one.id, 0) < one.revision]

    def _was_never_acknowledged(self, hash_: bytes) -> bool:
        return {part for part, _ in self.blobs.get(hash_, {})} in ({"gone"}, {"gone", "outboard"})

    def read(self, hash_: bytes) -> bytes:
        """Give a blob: the highest generation without a marker, else the highest; any that verifies is as good."""
        parts = self.blobs.get(hash_, {})
        for number in sorted(
            (n for part, n in parts if part == "data"), key=lambda n: (("gone", n) in parts, -n)
        ):
            data = parts["data", number].read_bytes()
            if blake3(data).digest() == hash_:
                return data
        raise Damaged(f"blobs/{hash_.hex()}")


def digest_of(name: str) -> bytes:
    return bytes.fromhex(name) if len(name) == 64 else base64.b32decode(name.upper() + "====")


if __name__ == "__main__":
    store = Bucket(Path(sys.argv[1]))
    for artifact in store.live():
        print(json.dumps({**artifact._asdict(), "hash": artifact.hash.hex()}))
        if len(sys.argv) > 2:
            Path(sys.argv[2], artifact.id).write_bytes(store.read(artifact.hash))
