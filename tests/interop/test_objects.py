"""docs/format.md, "Objects", is enough to read a store in a bucket: a second reader finds what the API says."""

from __future__ import annotations

import json
import re
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import holdfast
from holdfast import _native
from holdfast.backend.objects.intents import intent_of
from holdfast.backend.objects.layout import base32_name, gone_key, parse_identity, tag_key
from holdfast.backend.objects.names import read_named
from holdfast.errors import CorruptObject, FormatError, HoldfastError, InvalidInput, UnreadableRoot
from holdfast.testing.contract_base import sample
from holdfast.testing.inside import object_core
from holdfast.wire.bundle import encode_bundle
from holdfast.wire.document import TagDocument, encode_tag
from holdfast.wire.record import Kind
from tests.interop import object_reader

DOCUMENT = Path(__file__).parents[2] / "docs" / "format.md"
SIZES = (1, 16_384, 16_385, 300_000)


def fill(store: holdfast.Store) -> None:
    """Put one of each kind of object into a store."""
    many = store.put_many([sample(size) for size in SIZES], metadata={"k": "wört"}, tags=["many"])
    store.update(many[0], filename="ünïcode/../name", add_tags=["two"])
    store.delete(many[1])
    store.delete(many[2])
    store.restore(many[2])
    store.tags.set("a/tag", many[3].hash)
    store.tags.set("gone", many[3].hash)
    store.tags.delete("gone")


def seal(body: bytes, key: str) -> bytes:
    return body + _native.blake3(body + key.encode())


@pytest.fixture
def bucket(tmp_path: Path) -> Path:
    with holdfast.open(f"dir://{tmp_path}/objects", create=True) as store:
        fill(store)
    return tmp_path / "objects"


def test_the_second_reader_agrees(bucket: Path, tmp_path: Path) -> None:
    other = object_reader.Bucket(bucket)
    assert other.damage == []
    with holdfast.open(f"dir://{bucket}") as store:
        artifacts = {artifact.id: artifact for artifact in store.find()}
        assert artifacts.keys() == {one.id for one in other.live()}
        for one in other.live():
            mine = artifacts[one.id]
            assert (one.revision, one.hash, one.size) == (mine.revision, mine.hash.digest, mine.size_bytes)
            assert one.created_ms == round(mine.created_at.timestamp() * 1000)
            assert one.details.get("filename") == mine.filename
            assert one.details.get("metadata", {}) == mine.metadata
            assert other.read(one.hash) == store.read(mine)
        tags = {tag.name: tag.hash.digest for tag in store.tags.list()}
        assert tags == {name: hash_ for name, (_, deleted, hash_) in other.tags.items() if not deleted}
    target = tmp_path / "out"
    target.mkdir()
    script = Path(object_reader.__file__)
    done = subprocess.run(
        [sys.executable, script, bucket, target], capture_output=True, text=True, check=True, timeout=60
    )
    assert len(done.stdout.splitlines()) == len(artifacts)
    assert {path.name for path in target.iterdir()} == artifacts.keys()


def test_a_reader_that_knows_no_intents_reads_what_counts(bucket: Path) -> None:
    """Who died between an intent and its look: the second reader skips the kind, as the format says of unknown ones."""
    with holdfast.open(f"dir://{bucket}") as store:
        counting, wanted = store.tags.get("a/tag"), store.blobs.put(b"wanted")
        key = tag_key("a/tag")
        before = read_named(object_core(store).backend.bucket, key)
        assert before is not None
        document = encode_tag(TagDocument("a/tag", wanted.hash.digest, 0, 2, 7, deleted=False))
        (bucket / key).write_bytes(encode_bundle(intent_of((Kind.TAG, document), before), key))
        assert store.rebuild().tags == 1
        assert store.tags.get("a/tag") == counting
    assert object_reader.Bucket(bucket).tags["a/tag"] == (1, False, counting.hash.digest)
    assert struct.pack("<BI", 0x11, len(document)) + document in (bucket / key).read_bytes()


def test_the_second_reader_is_small_and_its_own() -> None:
    source = Path(object_reader.__file__).read_text()
    assert len(source.splitlines()) <= 150
    imported = set(re.findall(r"^(?:from|import) (\w+)", source, re.MULTILINE)) - {"__future__"}
    assert imported - set(sys.stdlib_module_names) == {"blake3"}


def test_the_document_s_identity_is_one() -> None:
    text = DOCUMENT.read_text()
    (line,) = re.findall(r"^\{\"format\":\"holdfast objects\".*$", text, re.MULTILINE)
    assert parse_identity(line.encode(), "here").created_ms == 1_795_219_200_000


def test_generations_and_hashes_in_base32_are_read(bucket: Path) -> None:
    """The data of one blob is that of generation 2, after two collections; another blob stands under base32."""
    hashes = [_native.blake3(sample(size)) for size in SIZES]
    folder = bucket / "blobs" / hashes[3].hex()
    for name in ("data", "outboard"):
        (folder / name).rename(folder / f"{name}.2")
    for number in (0, 1):
        (bucket / gone_key(hashes[3], number)).touch()
    (bucket / "blobs" / hashes[2].hex()).rename(bucket / "blobs" / base32_name(hashes[2]))
    (bucket / "blobs" / "README").write_text("somebody else's")
    (folder / "data.02").write_text("somebody else's")
    other = object_reader.Bucket(bucket)
    assert other.read(hashes[3]) == sample(SIZES[3])
    assert other.read(hashes[2]) == sample(SIZES[2])
    for catalog in (None, ":memory:", None):
        with holdfast.open(f"dir://{bucket}", catalog=catalog) as store:
            assert store.rebuild().foreign_objects == 2
            assert store.scrub().ok
            for artifact in store.find():
                assert store.read(artifact) == other.read(artifact.hash.digest)


def test_who_was_never_acknowledged_is_in_no_answer(bucket: Path) -> None:
    folder = bucket / "blobs" / _native.blake3(sample(SIZES[0])).hex()
    (folder / "data").rename(bucket / "kept")
    (folder / "gone.0").touch()
    (bucket / "catalog.db").unlink()
    with holdfast.open(f"dir://{bucket}") as store:
        assert {artifact.id for artifact in store.find()} == {
            one.id for one in object_reader.Bucket(bucket).live()
        }
        assert len(list(store.find())) == 2
        assert store.health().ok
        assert store.health().unacknowledged == 1
        (bucket / "kept").rename(folder / "data.1")  # its writer comes to it after all
        store.refresh()
        assert len(list(store.find())) == 3
        assert store.health().unacknowledged == 0
    assert len(object_reader.Bucket(bucket).live()) == 3


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (struct.pack("<4sHI", b"HFOB", 2, 0), FormatError),
        (struct.pack("<4sHIBI", b"HFOB", 1, 1, 0xF0, 0), FormatError),
        (struct.pack("<4sHIBI", b"HFOB", 1, 1, 0x70, 0), None),
    ],
    ids=["a newer version", "a document that must be understood", "one that need not be"],
)
def test_what_a_newer_version_writes(bucket: Path, body: bytes, error: type[HoldfastError] | None) -> None:
    key = "commits/019b0000-0000-7000-8000-000000000000"
    (bucket / key).write_bytes(seal(body, key))
    (bucket / "catalog.db").unlink()

    def look(read: Callable[[], object], expected: type[Exception] | None) -> None:
        if expected is None:
            read()
        else:
            with pytest.raises(expected, match="019b0000"):
                read()

    look(lambda: holdfast.open(f"dir://{bucket}").close(), error)
    if error is None:  # it is read past, and may name something all the same
        with holdfast.open(f"dir://{bucket}") as store:
            assert len(list(store.find())) == 3
            with pytest.raises(UnreadableRoot, match="newer Holdfast"):
                store.gc()
    look(lambda: object_reader.Bucket(bucket), object_reader.NewerFormat if error else None)


@pytest.mark.parametrize("where", ["first", "middle", "last", "another"])
def test_a_damaged_object_of_names_is_damage_and_not_a_newer_version(bucket: Path, where: str) -> None:
    (path,) = (bucket / "commits").glob("*-*")
    data = bytearray(path.read_bytes())
    if where == "another":  # the right answer to another question
        data[:] = next((bucket / "artifacts").iterdir()).read_bytes()
    else:
        data[{"first": 4, "middle": len(data) // 2, "last": len(data) - 1}[where]] ^= 1
    path.write_bytes(data)
    (bucket / "catalog.db").unlink()
    with holdfast.open(f"dir://{bucket}") as store:
        assert store.rebuild().damaged == 1
        assert not store.health().ok
        report = store.scrub()
        assert [problem.kind for problem in report.problems] == ["corrupt_object"]
    assert len(object_reader.Bucket(bucket).damage) == 1


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"version": 2}, FormatError),
        ({"features": ["x"]}, FormatError),
        ({"write_features": ["x"]}, FormatError),
        ({"more": 1}, None),
    ],
)
def test_what_a_newer_version_says_in_store_json(
    bucket: Path, change: dict[str, object], error: type[HoldfastError] | None
) -> None:
    document = {**json.loads((bucket / "store.json").read_bytes()), **change, "crc32c": 0}
    plain = json.dumps(document, separators=(",", ":")).encode()
    (bucket / "store.json").write_text(json.dumps({**document, "crc32c": object_reader.crc32c(plain)}))
    if error is None:
        holdfast.open(f"dir://{bucket}").close()
    else:
        with pytest.raises(error, match="newer"):
            holdfast.open(f"dir://{bucket}")
    if "write_features" in change:
        with holdfast.open(f"dir://{bucket}", read_only=True) as store:
            assert len(list(store.find())) == 3


def test_a_damaged_store_json_is_not_taken_for_a_newer_one(bucket: Path) -> None:
    path = bucket / "store.json"
    path.write_bytes(path.read_bytes().replace(b'"version":1', b'"version":3'))
    with pytest.raises(CorruptObject, match=r"store\.json"):
        holdfast.open(f"dir://{bucket}")


def test_more_names_than_a_reader_takes_are_not_written(
    bucket: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("holdfast.wire.bundle.MAX_BUNDLE_BYTES", 1_000)
    with holdfast.open(f"dir://{bucket}") as store:
        with pytest.raises(InvalidInput, match="fewer artifacts at once"):
            store.put_many([sample(10, seed) for seed in range(100)])
        assert len(list(store.find())) == 3
