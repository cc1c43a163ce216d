"""A directory of objects at rest: rights at creation, planted links and pipes, objects without end."""

from __future__ import annotations

import logging
import os
import tracemalloc
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import holdfast
from holdfast import _native
from holdfast.backend.objects.layout import (
    ARTIFACTS,
    BLOBS,
    COLLECTOR_KEY,
    COMMITS,
    IDENTITY_KEY,
    TAGS,
    artifact_key,
    commit_key,
    data_key,
    outboard_key,
    part_key,
    tag_key,
    upload_key,
)
from holdfast.errors import FormatError, HoldfastError, UnreadableRoot
from holdfast.store import Store
from holdfast.testing.contract_base import sample
from holdfast.testing.plain_bucket import PlainBucket
from holdfast.testing.streams import Sender, blocks
from holdfast.wire.bundle import encode_bundle
from holdfast.wire.document import ArtifactDocument, encode_artifact, parse_artifact
from holdfast.wire.record import Kind
from tests.unit.test_at_rest import check_private

CONTENT = sample(50_000)
DIGEST = _native.blake3(CONTENT)


def work(path: Path) -> str:
    """Do what makes every kind of object, and a catalog anew; gives the id of an artifact."""
    with holdfast.open(f"dir://{path}", create=True) as store:
        artifact = store.put(CONTENT, filename="one")
        store.tags.set("tag", artifact.hash)
        store.update(artifact, filename="changed")
        sender = Sender(sample(60_000, 3))
        store.blobs.decode(sender.hash, sender.stream(blocks(0, 1)), blocks(0, 1))
        writer = store.writer("up", resumable=True)
        writer.write(b"half")
        writer.suspend()
        store.delete(store.put(b"two"))
        store.gc(min_age_seconds=0)
        store.rebuild()
        return artifact.id


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_nobody_else_may_read(umask: int, tmp_path: Path) -> None:
    check_private(umask, tmp_path / "store", work, least=20)


@pytest.mark.parametrize("exists", [True, False])
@pytest.mark.parametrize(
    "key",
    [
        IDENTITY_KEY,
        COLLECTOR_KEY,
        "catalog.db",
        "catalog.db.lock",
        ".new/lock",
        data_key(DIGEST),
        outboard_key(DIGEST),
        data_key(_native.blake3(b"new")),
        tag_key("tag"),
        tag_key("new tag"),
    ],
)
def test_a_planted_link_leads_no_write_elsewhere(key: str, exists: bool, tmp_path: Path) -> None:
    """What the link leads to is as it was; what is read is right; what is acknowledged is there afterwards."""
    root = tmp_path / "store"
    old = work(root)
    outside = tmp_path / "outside"
    theirs = b"of somebody else\n" * 1_000
    if exists:
        outside.write_bytes(theirs)
    planted = root / key
    planted.parent.mkdir(exist_ok=True)
    planted.unlink(missing_ok=True)
    planted.symlink_to(outside)
    artifact = None
    try:
        with holdfast.open(f"dir://{root}") as store:
            try:
                assert store.read(old) == CONTENT
            except HoldfastError:
                pass
            artifact = store.put(b"new", filename="new")
            store.tags.set("new tag", artifact.hash)
            store.gc(min_age_seconds=0)
            store.rebuild()
    except HoldfastError:
        pass
    assert (outside.read_bytes() == theirs) if exists else not outside.exists()
    if artifact is not None and key != IDENTITY_KEY:
        if planted.is_symlink():
            planted.unlink()
        with holdfast.open(f"dir://{root}") as store:
            assert store.read(artifact.id) == b"new"


@pytest.mark.parametrize("key", [data_key(DIGEST), outboard_key(DIGEST), tag_key("tag"), IDENTITY_KEY])
def test_a_pipe_is_never_waited_for(key: str, tmp_path: Path) -> None:
    root = tmp_path / "store"
    old = work(root)
    (root / key).unlink()
    os.mkfifo(root / key)
    try:
        with holdfast.open(f"dir://{root}", catalog=":memory:") as store:
            try:
                assert store.read(old) == CONTENT
            except HoldfastError:
                pass
            store.scrub()
    except HoldfastError:
        pass


def test_a_link_in_place_of_a_prefix(tmp_path: Path) -> None:
    """Directories may be links, as people move them to other disks; what is in them is verified as ever."""
    root = tmp_path / "store"
    old = work(root)
    (root / BLOBS).rename(tmp_path / "elsewhere")
    (root / BLOBS.rstrip("/")).symlink_to(tmp_path / "elsewhere")
    with holdfast.open(f"dir://{root}") as store:
        assert store.read(old) == CONTENT
        assert store.scrub().ok


ID = bytes.fromhex("01a20092ee3b700095d99d43f1f63053")


@pytest.mark.parametrize(
    "key", [commit_key(ID), artifact_key(ID), tag_key("x"), part_key(DIGEST, ID), upload_key(ID, 0)]
)
def test_an_object_without_end_is_refused_before_it_is_read(key: str, tmp_path: Path) -> None:
    """Two gigabytes of zeros: names are refused by a typed error, the rest is left alone; memory stays small."""
    root = tmp_path / "store"
    old = work(root)
    (root / key).parent.mkdir(parents=True, exist_ok=True)
    with open(root / key, "xb") as file:
        file.truncate(2 << 30)
    is_names = key.startswith((ARTIFACTS, COMMITS, TAGS))
    logging.disable(logging.WARNING)
    tracemalloc.start()
    try:
        with holdfast.open(f"dir://{root}") as store:
            assert store.read(old) == CONTENT
            list(store.uploads())
            for call in (store.scrub, store.rebuild, store.refresh, lambda: store.gc(min_age_seconds=0)):
                if is_names:
                    with suppress(FormatError, UnreadableRoot):
                        call()
                else:
                    call()
            assert store.read(old) == CONTENT
        assert tracemalloc.get_traced_memory()[1] < 50 << 20
    finally:
        tracemalloc.stop()
        logging.disable(logging.NOTSET)


def test_a_time_that_nobody_lives_in_hides_no_other_artifact() -> None:
    """A document with a sound sum may claim any time: it is shown as the nearest that there is."""
    bucket = PlainBucket()
    with Store._open_objects(bucket, create=True) as store:
        kept = store.put(b"sound")
    told = ArtifactDocument(ID, 1, kept.hash.digest, 5, 0, 1 << 62, -(1 << 62), 1, b"{}")
    key = commit_key(ID)
    bucket.create(key, encode_bundle([(Kind.ARTIFACT, encode_artifact(told))], key))
    with Store._open_objects(bucket) as store:
        assert max(a.created_at.year for a in store.find()) == 9999
        assert store.read(kept.id) == b"sound"
    with pytest.raises(FormatError):  # no database holds such a number
        parse_artifact(encode_artifact(told._replace(chunk_count=1 << 63)))


@pytest.mark.parametrize("what", ["size", "format", "cut", "details", "version"])
def test_a_document_that_cannot_be_hides_no_other_artifact(what: str) -> None:
    """Its sums are right and its words are none: it is damage at a place, not the end of the store."""
    bucket = PlainBucket()
    with Store._open_objects(bucket, create=True) as store:
        kept = store.put(b"sound")
    told = ArtifactDocument(ID, 1, kept.hash.digest, 5, 0, 1 << 40, 1 << 40, 1, b"{}")
    changes: dict[str, dict[str, Any]] = {
        "size": {"size_bytes": (1 << 64) - 1},
        "format": {"format": 9},
        "details": {"details": b"{"},
    }
    payload = encode_artifact(told._replace(**changes.get(what, {})))
    key = commit_key(ID)
    if what == "cut":
        payload = payload[:20]
    elif what == "version":
        payload = b"\2" + payload[1:]
    bucket.create(key, encode_bundle([(Kind.ARTIFACT, payload)], key))
    if what == "version":
        with pytest.raises(FormatError, match="newer"):
            Store._open_objects(bucket)
        return
    with Store._open_objects(bucket) as store:
        assert store.read(kept.id) == b"sound"
        assert [artifact.id for artifact in store.find() if artifact.size_bytes == 5][:1] == [kept.id]
        assert {problem.path for problem in store.scrub().problems} == {key}
        with pytest.raises(UnreadableRoot):
            store.gc(min_age_seconds=0)
        assert [one.path for one in store.repair().missing] == [key]
        store.repair(give_up=True)
        assert store.scrub().ok
