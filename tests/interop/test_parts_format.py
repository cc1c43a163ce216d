"""Partial blobs and uploads in a bucket, byte by byte as docs/format.md has them; with no encoder of ours."""

from __future__ import annotations

import struct
from typing import Any

from holdfast._native import blake3
from holdfast.backend.objects.directory import DirectoryBucket
from holdfast.core import Options
from holdfast.store import Store
from holdfast.testing.contract_base import sample
from holdfast.testing.streams import Sender, blocks

CONTENT = sample(3 * 16_384 + 5)


def open_store(path: Any) -> Store:
    return Store._open_objects(DirectoryBucket(str(path), create=True), create=True, options=Options())


def head_of(data: bytes, key: str, kind: int) -> tuple[bytes, bytes]:
    """Give the body of a head, and the payload."""
    assert data[:4] == b"HFPT"
    version, found, length = struct.unpack_from("<HHI", data, 4)
    assert (version, found) == (1, kind)
    assert data[length - 32 : length] == blake3(data[: length - 32] + key.encode())
    return data[12 : length - 32], data[length:]


def with_head(body: bytes, payload: bytes, key: str, kind: int) -> bytes:
    head = b"HFPT" + struct.pack("<HHI", 1, kind, 12 + len(body) + 32) + body
    return head + blake3(head + key.encode()) + payload


def test_a_part(tmp_path: Any) -> None:
    """The tree of four blocks has three pairs: the root 0, then the left 1 and the right 2."""
    sender = Sender(CONTENT)
    pairs = [sender.outboard[at : at + 64] for at in range(0, 192, 64)]
    with open_store(tmp_path) as store:
        store.blobs.decode(sender.hash, sender.stream(blocks(2)), blocks(2))
    (file,) = (tmp_path / "parts" / str(sender.hash)).iterdir()
    body, payload = head_of(file.read_bytes(), f"parts/{sender.hash}/{file.name}", 1)
    hash_, flags, size, highest, _, runs, pair_runs = struct.unpack_from("<32sIQQQII", body)
    assert (hash_, flags, size, highest) == (sender.hash.digest, 1, len(CONTENT), len(CONTENT))
    assert struct.unpack_from("<QIQIQI", body, 68) == (2, 2, 0, 1, 2, 1)
    assert (runs, pair_runs, len(body)) == (1, 2, 68 + 36)
    assert payload == pairs[0] + pairs[2] + CONTENT[2 * 16_384 :]

    key = f"parts/{sender.hash}/01a1ff19-111c-7000-a581-a8c092915467"
    body = struct.pack("<32sIQQQIIQIQI", sender.hash.digest, 0, 40_000, 32_768, 7, 1, 1, 0, 2, 0, 2)
    (tmp_path / key).write_bytes(with_head(body, pairs[0] + pairs[1] + CONTENT[: 2 * 16_384], key, 1))
    with open_store(tmp_path) as store:
        assert store.blobs.bitfield(sender.hash).ranges == blocks(0, 4).clip(len(CONTENT))
        store.blobs.decode(sender.hash, sender.stream(blocks(0, 1)), blocks(0, 1))
        assert store.blobs.read(sender.hash) == CONTENT


def test_an_upload(tmp_path: Any) -> None:
    with open_store(tmp_path) as store:
        writer = store.writer("name", resumable=True)
        writer.write(CONTENT[:20_000])
        token = writer.suspend()
    directory = tmp_path / "uploads" / token
    assert sorted(one.name for one in directory.iterdir()) == ["00000000", "00000001"]
    layout = struct.Struct("<16sIB3xQQQQ16s16s32s32sII")
    for number, (offset, data) in enumerate(((0, b""), (0, CONTENT[:20_000]))):
        raw = (directory / f"{number:08x}").read_bytes()
        body, payload = head_of(raw, f"uploads/{token}/{number:08x}", 2)
        fields = layout.unpack_from(body)
        assert fields[:3] == (bytes.fromhex(token), number, 0)
        assert fields[4:7] == (7 * 86_400_000, offset, len(data))
        assert fields[10] == blake3(data)
        groups, words = fields[11:]
        assert (groups, payload) == (32 * number, data)
        assert len(body) == layout.size + groups + words
        assert bool(words) == (not number)
        if words:
            assert b'"filename":"name"' in body[layout.size :]
    key = f"uploads/{token}/00000002"
    fixed = layout.pack(
        bytes.fromhex(token),
        2,
        0,
        fields[3],
        fields[4],
        20_000,
        5,
        bytes(16),
        bytes(16),
        bytes(32),
        blake3(b"12345"),
        0,
        0,
    )
    (tmp_path / key).write_bytes(with_head(fixed, b"12345", key, 2))
    with open_store(tmp_path) as store:
        writer = store.writer(resume=token)
        assert writer.offset_bytes == 20_005
        artifact = writer.commit()
        assert store.read(artifact) == CONTENT[:20_000] + b"12345"
    assert [one.name for one in directory.iterdir()] == ["00000005"]
    body, _ = head_of((directory / "00000005").read_bytes(), f"uploads/{token}/00000005", 2)
    assert layout.unpack_from(body)[2] == 2
    assert layout.unpack_from(body)[7].hex() == artifact.id.replace("-", "")
