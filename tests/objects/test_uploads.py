"""Resumable puts in buckets: what a piece says, two writers, promises, crashes at every call, age, damage."""

from __future__ import annotations

import os
import random
import tempfile
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from holdfast import _native
from holdfast.backend.objects.bucket import Bucket
from holdfast.backend.objects.claims import LocalClaims
from holdfast.backend.objects.directory import DirectoryBucket
from holdfast.backend.objects.layout import (
    ARTIFACTS,
    COMMITS,
    TAGS,
    UPLOADS,
    commit_key,
    data_key,
    gone_key,
    outboard_key,
    parse_upload_key,
    upload_key,
)
from holdfast.backend.objects.names import read_named
from holdfast.backend.objects.opening import memory_bucket
from holdfast.errors import Conflict, CorruptObject, FormatError, HoldfastError, Locked, UploadNotFound
from holdfast.object_partials import iter_held
from holdfast.object_resumable import ObjectResumableWriter
from holdfast.resumable import ResumableWriter
from holdfast.store import Store
from holdfast.testing.contract_base import sample
from holdfast.testing.contract_partial import check_kept
from holdfast.testing.faults import SimulatedCrash
from holdfast.testing.faulty_bucket import BucketFault, FaultyBucket
from holdfast.testing.inside import object_core
from holdfast.testing.model_disk import ModelDisk
from holdfast.testing.streams import Sender, blocks
from holdfast.types import BLOCK_BYTES, now_ms
from holdfast.wire.bundle import encode_bundle
from holdfast.wire.part import COMMITTING, PieceHead, encode_piece, head_length, parse_piece
from tests.objects.test_parts import FAULTS, MINUTE_MS, damage, keys, lasting, open_store

CONTENT = sample(5 * BLOCK_BYTES + 99, 7)
HASH = _native.blake3(CONTENT)
STOPS = (10, BLOCK_BYTES, 3 * BLOCK_BYTES + 5, len(CONTENT))
"""Checkpoints: within a block, at one, behind some, at the end."""
MANY_DAYS_MS = 365 * 24 * 60 * MINUTE_MS


@pytest.fixture
def bucket() -> Bucket:
    return lasting(memory_bucket())


def begin(store: Store, upto: int = 3 * BLOCK_BYTES + 5) -> ResumableWriter:
    writer = store.writer("name", resumable=True, tags=["t"])
    for stop in STOPS:
        if stop <= upto:
            writer.write(CONTENT[writer.written_bytes : stop])
            assert writer.checkpoint() == stop
    return writer


def elsewhere(writer: ResumableWriter) -> None:
    """Let it look as if the writer were another machine's."""
    assert isinstance(writer, ObjectResumableWriter)
    writer._objects.claims.release(bytes.fromhex(writer.token))


# -- what a piece says


def test_a_head_that_is_not_as_it_was_written_is_none() -> None:
    head = PieceHead(
        bytes(range(16)),
        7,
        COMMITTING,
        1,
        2,
        3,
        4,
        bytes(32),
        b"g" * 64,
        b"details",
        b"a" * 16,
        b"c" * 16,
        b"h" * 32,
    )
    packed = encode_piece(head, "key")
    assert parse_piece(packed + b"more", "key") == head
    assert head.stop_bytes == 7
    with pytest.raises(FormatError):
        parse_piece(packed, "another")
    for at in range(len(packed)):
        for wrong in (packed[:at], packed[:at] + bytes([packed[at] ^ 4]) + packed[at + 1 :]):
            with pytest.raises(FormatError):
                parse_piece(wrong, "key")
    for some in ({"state": 9}, {"length_bytes": 1 << 62}, {"groups": b"g"}):
        with pytest.raises(FormatError):
            parse_piece(encode_piece(head._replace(**some), "key"), "key")


def test_keys_that_are_not_ours_are_left_alone(bucket: Bucket) -> None:
    assert parse_upload_key(upload_key(bytes(range(16)), 258)) == (bytes(range(16)), 258)
    strange = [f"{UPLOADS}x", f"{UPLOADS}{'0' * 32}/1", f"{UPLOADS}{'0' * 32}/0000000g"]
    with open_store(bucket) as store:
        for key in strange:
            assert parse_upload_key(key) is None
            bucket.create(key, b"somebody else's")
        assert list(store.uploads()) == []
        with pytest.raises(UploadNotFound):
            store.writer(resume="0" * 32)
        store._engine.expire_uploads(now_ms() + MANY_DAYS_MS)
        assert keys(bucket, UPLOADS) == sorted(strange)


def test_a_checkpoint_is_one_object_and_a_look(bucket: Bucket) -> None:
    with open_store(bucket) as store:
        writer = begin(store, 10)
        before = bucket.requests.snapshot()
        writer.write(b"x" * 100)
        writer.checkpoint()
        asked = bucket.requests.since(before, bucket.requests.snapshot())
        assert (asked["put"], asked["list"], asked["get"] + asked["head"] + asked["delete"]) == (1, 1, 0)
        writer.abort()


def test_going_on_reads_heads_and_the_last_block(bucket: Bucket) -> None:
    content = sample(2 << 20)
    with open_store(bucket) as store:
        writer = store.writer("a", resumable=True)
        writer.write(content)
        token = writer.suspend()
    with open_store(bucket) as other:
        before = bucket.requests.snapshot()["bytes_in"]
        writer = other.writer(resume=token)
        assert bucket.requests.snapshot()["bytes_in"] - before < 6 * (32 << 10)
        assert other.read(writer.commit()) == content


# -- two writers


def test_whoever_goes_on_elsewhere_takes_over(bucket: Bucket) -> None:
    with open_store(bucket) as one, open_store(bucket) as two:
        first = begin(one)
        elsewhere(first)
        second = two.writer(resume=first.token)
        assert second.offset_bytes == first.offset_bytes == STOPS[2]
        first.write(b"other bytes")
        with pytest.raises(Conflict, match="somebody else"):
            first.checkpoint()
        second.write(CONTENT[STOPS[2] :])
        assert two.read(second.commit()) == CONTENT


def test_the_end_is_said_before_the_pieces_go() -> None:
    bucket = FaultyBucket(memory_bucket())
    with open_store(bucket) as store:
        writer = store.writer(resumable=True)
        for part in range(3):
            writer.write(sample(50_000, part))
            writer.checkpoint()
        before = len(bucket.sites)
        writer.abort()
        steps = [(site.call, site.key.split("/")[0]) for site in bucket.sites[before:]]
    said = steps.index(("create", "uploads"))
    assert said < steps.index(("delete", "uploads"))


@pytest.mark.parametrize("how", ["commit", "abort"])
def test_an_upload_that_was_ended_elsewhere_stays_ended(bucket: Bucket, how: str) -> None:
    """The writer that was overtaken has numbers free before it: what it stores there counts for nothing."""
    with open_store(bucket) as one, open_store(bucket) as two:
        first = begin(one)
        elsewhere(first)
        second = two.writer(resume=first.token)
        getattr(second, how)()
        first.write(b"more")
        with pytest.raises(Conflict):
            first.commit()
        assert one.count() + two.count() == (1 if how == "commit" else 0)
        with pytest.raises(UploadNotFound) as raised:
            one.writer(resume=first.token)
        assert raised.value.state == ("committed" if how == "commit" else "aborted")
        one._engine.expire_uploads(now_ms())
        assert len(keys(bucket, UPLOADS)) == 1


def test_a_commit_that_was_overtaken_publishes_nothing(bucket: Bucket) -> None:
    """Suspended between its promise and the object that keeps it; somebody else goes on meanwhile."""
    faulty = FaultyBucket(bucket)
    with open_store(faulty) as one, open_store(bucket) as two:
        first = begin(one, len(CONTENT))
        token = first.token
        taken: list[ResumableWriter] = []

        def on_site(site: Any) -> None:
            if site.call == "create" and site.key.startswith(COMMITS) and not taken:
                elsewhere(first)
                taken.append(two.writer(resume=token))

        faulty.on_site = on_site
        with pytest.raises(Conflict):
            first.commit()
        (second,) = taken
        assert second.offset_bytes == len(CONTENT)
        second.write(b"more")
        assert two.read(second.commit()) == CONTENT + b"more"
        with open_store(bucket) as three:
            assert three.count() == 1


@pytest.mark.parametrize("is_gathered", [False, True])
def test_a_promise_that_was_kept_is_acknowledged_by_whoever_comes(bucket: Bucket, is_gathered: bool) -> None:
    """It died behind the object that names the artifact; a collector had marked the blob, and gathered names."""
    store = open_store(faulty := FaultyBucket(bucket))
    writer = begin(store, len(CONTENT))

    def on_site(site: Any) -> None:
        if site.call == "head" and site.key == gone_key(HASH, 0):
            faulty.crashed = True
            raise SimulatedCrash("killed")

    faulty.on_site = on_site
    with pytest.raises(SimulatedCrash):
        writer.commit()
    store.close()
    bucket.create(gone_key(HASH, 0), b"")
    bucket.delete([data_key(HASH), outboard_key(HASH)])
    with open_store(bucket) as other:
        if is_gathered:
            (key,) = keys(bucket, COMMITS)
            named = read_named(bucket, key)
            assert named is not None
            gathered = commit_key(bytes(16))
            bucket.create(gathered, encode_bundle(list(named.documents), gathered))
            bucket.delete([key])
        assert list(iter_held(object_core(other))) == [HASH]
        with pytest.raises(UploadNotFound) as raised:
            other.writer(resume=writer.token)
        assert raised.value.state == "committed"
        assert other.read(raised.value.artifact_id) == CONTENT
        assert bucket.head(data_key(HASH, 1)) is not None
        assert len(keys(bucket, UPLOADS)) == 1
        assert list(iter_held(object_core(other))) == []


# -- crashes


@pytest.mark.parametrize("fault", [BucketFault.CRASH_BEFORE, BucketFault.CRASH_AFTER, BucketFault.BEFORE])
def test_a_crash_at_every_call(fault: BucketFault) -> None:
    """The machine dies, or loses the bucket for good, at its n-th call; another one with no catalog goes on."""
    for number in range(1, 200):
        inner = lasting(memory_bucket())
        with open_store(inner) as store:
            token = begin(store, BLOCK_BYTES).suspend()
        store = open_store(faulty := FaultyBucket(inner, for_good=True))
        faulty.arm(fault, number)
        durable, artifact = BLOCK_BYTES, None
        try:
            writer = store.writer(resume=token)
            for stop in STOPS:
                if stop > writer.offset_bytes:
                    writer.write(CONTENT[writer.written_bytes : stop])
                    durable = writer.checkpoint()
            artifact = writer.commit()
        except (SimulatedCrash, HoldfastError):
            pass
        faulty.crashed = True
        store.close()
        with open_store(inner) as other:
            gone: list[UploadNotFound] = []
            try:
                writer = other.writer(resume=token)
            except UploadNotFound as error:
                gone.append(error)
            for end in gone:
                assert end.state == "committed"
                assert artifact is None or end.artifact_id == artifact.id
                assert other.read(end.artifact_id) == CONTENT
            if not gone:
                assert artifact is None, "it was acknowledged, and is open again"
                assert writer.offset_bytes >= durable
                writer.write(CONTENT[writer.offset_bytes :])
                assert other.read(writer.commit()) == CONTENT
            assert other.count() == 1
            assert list(other.uploads()) == []
            other._engine.expire_uploads(now_ms())
            assert len(keys(inner, UPLOADS)) == 1
            with open_store(inner) as third:
                assert third.count() == 1
        if faulty.hit is None:
            assert artifact is not None
            return
    raise AssertionError("it never ends")


@pytest.mark.parametrize("fault", FAULTS)
def test_a_failure_at_every_call_is_told_and_the_upload_goes_on(fault: BucketFault) -> None:
    for number in range(1, 200):
        inner = lasting(memory_bucket())
        with open_store(faulty := FaultyBucket(inner)) as store:
            token = begin(store, BLOCK_BYTES).suspend()
            faulty.arm(fault, number)
            artifact_id = ""
            for _ in range(3):
                try:
                    writer = store.writer(resume=token)
                    assert writer.offset_bytes >= BLOCK_BYTES
                    writer.write(CONTENT[writer.offset_bytes :])
                    artifact_id = writer.commit().id
                    break
                except UploadNotFound as error:
                    artifact_id = error.artifact_id
                    break
                except HoldfastError:
                    pass
            faulty.heal()
            assert store.read(artifact_id) == CONTENT
            assert store.count() == 1
        if faulty.hit is None:
            return
    raise AssertionError("it never ends")


# -- age


def test_an_upload_expires_by_the_buckets_own_times(bucket: Bucket) -> None:
    with open_store(bucket, upload_expiry_seconds=60.0) as store:
        token = begin(store).suspend()
        assert store._engine.expire_uploads(now_ms() + MINUTE_MS // 2) == []
        assert store._engine.expire_uploads(now_ms() + 2 * MINUTE_MS) == [token]
        assert len(keys(bucket, UPLOADS)) == 1
        with pytest.raises(UploadNotFound, match="expired"):
            store.writer(resume=token)
        store._engine.expire_uploads(now_ms() + 4 * MINUTE_MS)
        assert keys(bucket, UPLOADS) == []


def test_a_promise_that_expires_is_settled(bucket: Bucket) -> None:
    store = open_store(faulty := FaultyBucket(bucket), upload_expiry_seconds=60.0)
    writer = begin(store, len(CONTENT))
    faulty.on_site = _die_at_the_commit(faulty)
    with pytest.raises(SimulatedCrash):
        writer.commit()
    store.close()
    with open_store(bucket) as other:
        assert [upload.offset_bytes for upload in other.uploads()] == [len(CONTENT)]
        assert other._engine.expire_uploads(now_ms() + 2 * MINUTE_MS) == [writer.token]
        assert other.count() == 0
        with pytest.raises(UploadNotFound, match="expired"):
            other.writer(resume=writer.token)


def test_who_goes_on_behind_a_promise_misses_nothing_that_others_put(bucket: Bucket) -> None:
    """Their names are read then; so their blobs are to be known as well."""
    with open_store(bucket) as other:
        store = open_store(faulty := FaultyBucket(bucket))
        writer = begin(store, len(CONTENT))
        faulty.on_site = _die_at_the_commit(faulty)
        with pytest.raises(SimulatedCrash):
            writer.commit()
        store.close()
        with open_store(bucket) as third:
            third.put(b"another's")
        other.writer(resume=writer.token).abort()
        assert other.count() == 1
        assert other.health().ok


def test_many_promises_cost_one_look_at_the_names(bucket: Bucket) -> None:
    """And none at the blobs but at those that were promised."""
    tokens = []
    for _ in range(3):
        store = open_store(faulty := FaultyBucket(bucket), upload_expiry_seconds=60.0)
        writer = begin(store, len(CONTENT))
        tokens.append(writer.token)
        faulty.on_site = _die_at_the_commit(faulty)
        with pytest.raises(SimulatedCrash):
            writer.commit()
        store.close()
    recorder = FaultyBucket(bucket)
    with open_store(recorder) as other:
        before = len(recorder.sites)
        assert sorted(other._engine.expire_uploads(now_ms() + 2 * MINUTE_MS)) == sorted(tokens)
        lists = [site.key for site in recorder.sites[before:] if site.call == "list"]
    assert [key for key in lists if not key.startswith(UPLOADS)] == [COMMITS, ARTIFACTS, TAGS]


def _die_at_the_commit(faulty: FaultyBucket) -> Callable[[Any], None]:
    def on_site(site: Any) -> None:
        if site.call == "create" and site.key.startswith(COMMITS):
            faulty.crashed = True
            raise SimulatedCrash("killed")

    return on_site


def test_a_writer_that_outlived_its_upload_commits_nothing(bucket: Bucket) -> None:
    """Even the mark that it had ended is forgotten by then."""
    with open_store(bucket, upload_expiry_seconds=60.0) as one, open_store(bucket) as two:
        writer = one.writer("a", resumable=True)
        elsewhere(writer)
        later = now_ms() + 2 * MINUTE_MS
        assert two._engine.expire_uploads(later) == [writer.token]
        two._engine.expire_uploads(later + 2 * MINUTE_MS)
        assert keys(bucket, UPLOADS) == []
        writer.write(CONTENT)
        with pytest.raises(HoldfastError):
            writer.commit()
        assert one.count() == 0


# -- damage


@pytest.mark.parametrize("where", ["head", "payload"])
def test_a_damaged_piece_is_told_and_nothing_wrong_is_stored(bucket: Bucket, where: str) -> None:
    with open_store(bucket) as store:
        token = begin(store).suspend()
        key = keys(bucket, UPLOADS)[3]
        found = bucket.get(key, max_bytes=1 << 20)
        assert found is not None
        damage(bucket, key, 20 if where == "head" else head_length(found[0], key) + 5)
        with pytest.raises(CorruptObject, match="upload"):
            store.writer(resume=token).commit()
        assert store.count() == 0
        assert keys(bucket, "blobs/") == []


def test_a_damaged_last_piece_hides_an_upload_until_it_is_old(bucket: Bucket) -> None:
    with open_store(bucket, upload_expiry_seconds=60.0) as store:
        begin(store).suspend()
        damage(bucket, keys(bucket, UPLOADS)[-1], 20)
        assert list(store.uploads()) == []
        assert store._engine.expire_uploads(now_ms()) == []
        assert keys(bucket, UPLOADS) != []
        store._engine.expire_uploads(now_ms() + 2 * MINUTE_MS)
        assert keys(bucket, UPLOADS) == []


def test_a_piece_that_is_missing_stops_it(bucket: Bucket) -> None:
    with open_store(bucket) as store:
        token = begin(store).suspend()
        bucket.delete([keys(bucket, UPLOADS)[2]])
        with pytest.raises(CorruptObject, match="lacks"):
            store.writer(resume=token)


# -- claims on one machine


def test_a_claim_names_its_owner_and_ends_with_it() -> None:
    one, two, token = LocalClaims(), LocalClaims(), os.urandom(16)
    one.take(token)
    with pytest.raises(Locked) as raised:
        two.take(token)
    assert raised.value.pid == os.getpid()
    assert two.is_held(token)
    one.close()
    assert not two.is_held(token)
    two.take(token)
    two.release(token)
    assert not one.is_held(token)


@pytest.mark.parametrize("how", ["link", "open", "file"])
def test_a_place_that_others_can_write_to_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    place, elsewhere_ = tmp_path / f"holdfast-{os.getuid()}", tmp_path / "elsewhere"
    elsewhere_.mkdir(mode=0o700)
    if how == "link":
        place.symlink_to(elsewhere_)
    elif how == "open":
        place.mkdir()
        place.chmod(0o777)
    else:
        place.write_bytes(b"")
    claims = LocalClaims()
    claims.take(bytes(16))
    assert not claims.is_held(bytes(16))
    claims.release(bytes(16))
    claims.close()
    assert list(elsewhere_.iterdir()) == []


def test_several_write_at_once(bucket: Bucket) -> None:
    errors: list[BaseException] = []
    with open_store(bucket) as store:

        def put(seed: int) -> None:
            try:
                content = sample(200_000, seed)
                with store.writer(f"{seed}", resumable=True) as writer:
                    for at in range(0, len(content), 50_000):
                        writer.write(content[at : at + 50_000])
                        writer.checkpoint()
                assert store.read(writer.artifact) == content
            except BaseException as error:  # raised below
                errors.append(error)

        threads = [threading.Thread(target=put, args=(seed,)) for seed in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        with suppress(IndexError):
            raise errors[0]
        assert store.count() == 6


def test_what_a_newer_version_made_is_refused_and_left(bucket: Bucket) -> None:
    with open_store(bucket) as store:
        token = begin(store).suspend()
        key = keys(bucket, UPLOADS)[-1]
        found = bucket.get(key, max_bytes=1 << 20)
        assert found is not None
        newer = found[0][:4] + b"\2" + found[0][5:]
        bucket.upload(key, [newer], len(newer))
        assert list(store.uploads()) == []
        with pytest.raises(FormatError, match="newer"):
            store.writer(resume=token)
        assert store._engine.expire_uploads(now_ms()) == []
        assert key in keys(bucket, UPLOADS)


@pytest.mark.parametrize("seed", range(4))
def test_a_power_cut_leaves_what_was_acknowledged(seed: int) -> None:
    """In a directory, of which the disk may lose whatever was not synced, after each acknowledgement."""
    disk, rng = ModelDisk(), random.Random(seed)
    sender = Sender(CONTENT)

    def open_on(some: ModelDisk) -> Store:
        return open_store(DirectoryBucket("/model/objects", create=True, disk=some))

    with open_on(disk) as store:
        writer = begin(store, 10)
        for step in range(3):
            store.blobs.decode(sender.hash, sender.stream(blocks(step, step + 1)), blocks(step, step + 1))
            writer.write(CONTENT[writer.offset_bytes : STOPS[step + 1]])
            writer.checkpoint()
            for state in disk.crash_states(rng, 3):
                with open_on(state) as other:
                    assert blocks(0, step + 1) <= check_kept(other, sender)
                    elsewhere(writer)
                    again = other.writer(resume=writer.token)
                    assert again.offset_bytes == STOPS[step + 1]
                    again.suspend()
        artifact = writer.commit()
        rest = store.blobs.missing_ranges(sender.hash)
        store.blobs.decode(sender.hash, sender.stream(rest), rest)
        for state in disk.crash_states(rng, 3):
            with open_on(state) as other:
                assert other.read(artifact.id) == CONTENT
                with pytest.raises(UploadNotFound, match="committed"):
                    other.writer(resume=writer.token)
