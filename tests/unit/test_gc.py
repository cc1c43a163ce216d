"""Collection: what nothing keeps goes, what anything keeps stays, and every answer about it is right."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

import holdfast
from holdfast.chunking import Chunking
from holdfast.errors import ArtifactNotFound, BlobNotFound, Conflict, UnreadableRoot
from holdfast.ranges import ChunkRanges
from holdfast.store import Store
from holdfast.testing.inside import log_core
from holdfast.types import Hash


def noise(size_bytes: int, seed: int) -> bytes:
    return random.Random(seed).randbytes(size_bytes)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store._open(
        tmp_path / "store",
        create=True,
        chunking=Chunking.choose("fastcdc", 4096),
        compression="none",
        segment_bytes=64 << 10,
    ) as store:
        yield store


def rows(store: Store, table: str) -> int:
    return int(
        log_core(store).catalog._read(lambda reader: reader.all(f"SELECT count(*) FROM {table}"))[0][0]
    )


def test_what_was_deleted_goes_and_what_is_shared_stays(store: Store) -> None:
    common = noise(60_000, 1)
    keep = store.put(common + noise(30_000, 2))
    drop = store.put(common + noise(30_000, 3))
    small = store.put(b"small")
    store.delete(drop, small)
    foreseen = store.gc(dry_run=True, min_age_seconds=0)
    assert store.exists(drop.hash)
    report = store.gc(min_age_seconds=0)
    assert report.complete
    assert not store.exists(drop.hash)
    assert not store.exists(small.hash)
    assert store.read(keep) == common + noise(30_000, 2)
    assert store.scrub().ok
    for ref in (drop, small):
        with pytest.raises(ArtifactNotFound):
            store.restore(ref)
    for name in ("forgotten_artifacts", "dropped_blobs", "dropped_payloads", "freed_bytes", "blobs"):
        assert getattr(foreseen, name) == getattr(report, name), name
    assert report.dropped_blobs == 2
    assert 30_000 < report.freed_bytes < 50_000
    assert set(foreseen.reasons) == {str(drop.hash), str(small.hash)}
    assert store.gc(min_age_seconds=0).dropped_payloads == 0


def test_the_undo_window_keeps_what_was_deleted(store: Store) -> None:
    artifact = store.put(noise(40_000, 1), requires=[store.blobs.put(noise(20_000, 2)).hash])
    store.delete(artifact)
    assert store.gc().forgotten_artifacts == 0
    assert store.gc(min_age_seconds=3600).dropped_blobs == 0
    assert store.restore(artifact).revision == 3
    assert store.read(artifact) == noise(40_000, 1)


def test_a_chunk_that_was_a_blob_of_its_own_is_one_no_more(store: Store) -> None:
    data = noise(60_000, 5)
    large = store.put(data)
    leaf = log_core(store).backend.large_reader(log_core(store).blob(large.hash)).manifest.leaf_at(0)
    first = data[: leaf.entries[0][1]]
    chunk = store.put(first)
    assert Hash(leaf.entries[0][2]) == chunk.hash
    store.delete(chunk)
    report = store.gc(min_age_seconds=0)
    assert (report.dropped_blobs, report.dropped_payloads) == (1, 0)
    assert not store.exists(chunk.hash)
    assert store.read(large) == data
    again = store.put(first)
    assert store.read(again.hash) == first


def test_leases_tags_and_requirements_keep_what_they_name(store: Store) -> None:
    leased = store.blobs.put(noise(30_000, 1))
    tagged = store.blobs.put(noise(30_000, 2))
    required = store.blobs.put(noise(30_000, 3))
    nothing = store.blobs.put(noise(30_000, 4))
    store.tags.set("name", tagged.hash)
    artifact = store.put(b"x", requires=[required.hash])
    for lease in (tagged, required, nothing):
        lease.release()
    assert store.gc().dropped_blobs == 1
    assert [store.exists(one.hash) for one in (leased, tagged, required, nothing)] == [
        True,
        True,
        True,
        False,
    ]
    leased.release()
    store.tags.delete("name")
    store.update(artifact, remove_requires=[required.hash])
    assert store.gc().dropped_blobs == 3
    assert store.scrub().ok


def test_a_hash_seq_keeps_its_children_and_theirs(store: Store, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "sub").mkdir(parents=True)
    for i in range(5):
        (tree / "sub" / f"{i}").write_bytes(noise(20_000, i))
    inner = store.put_tree(tree)
    lone = store.blobs.put(noise(20_000, 99))
    outer = store.blobs.put(lone.hash.digest + inner.hash.digest)
    store.tags.set("outer", outer.hash, "hash_seq")
    outer.release()
    lone.release()
    store.delete(inner)
    assert store.gc(min_age_seconds=0).dropped_blobs <= 1  # the extras of the tree
    assert all(store.exists(blob.hash) for blob in (lone, outer))
    store.export(inner.hash, tmp_path / "out", format="hash_seq")
    assert (tmp_path / "out" / "sub" / "3").read_bytes() == noise(20_000, 3)
    store.tags.set("outer", outer.hash)
    assert store.gc(min_age_seconds=0).dropped_blobs == 8
    assert rows(store, "blobs") == 0


@pytest.mark.parametrize(("table", "format"), [("data", "hash_seq"), ("blobs", "raw")])
def test_a_root_that_cannot_be_read_stops_everything(store: Store, table: str, format: str) -> None:
    leaf = store.blobs.put(noise(20_000, 1))
    tree = store.blobs.put(leaf.hash.digest) if table == "data" else leaf
    store.tags.set("broken", tree.hash, format)
    log_core(store).catalog._write(
        lambda cursor: cursor.execute(f"DELETE FROM {table} WHERE hash = ?", (tree.hash.digest,))
    )
    garbage = store.blobs.put(b"garbage")
    garbage.release()
    with pytest.raises(UnreadableRoot, match="broken") as caught:
        store.gc()
    assert caught.value.root.startswith("tag 'broken'")
    assert caught.value.hash == tree.hash
    assert store.exists(garbage.hash)
    store.tags.delete("broken")
    tree.release()
    assert store.gc().complete
    assert not store.exists(garbage.hash)


def test_parts_of_a_collection_continue_each_other(tmp_path: Path) -> None:
    options = holdfast.core.Options(gc_batch_size=10)
    store = Store._open(tmp_path / "store", create=True, compression="none", options=options)
    keep = store.put_many([noise(100, i) for i in range(40)])
    for lease in store.blobs.put_many([noise(100, 1000 + i) for i in range(60)]):
        lease.release()
    calls = dropped = 0
    while True:
        other = Store._open(tmp_path / "store", options=options) if calls % 2 else store
        report = other.gc(max_batches=1)
        calls += 1
        dropped += report.dropped_payloads
        if other is not store:
            other.close()
        if report.complete:
            break
    assert calls > 10
    assert dropped == 60
    assert [store.read(one) for one in keep] == [noise(100, i) for i in range(40)]
    store.close()


def test_restoring_asks_for_what_is_required(store: Store) -> None:
    base = store.put(b"base")
    user = store.put(b"user", requires=[base])
    store.delete(user, base)
    with pytest.raises(Conflict, match=base.id):
        store.restore(user)
    store.restore(base)
    store.restore(user)
    store.delete(user, base)
    assert store.restore(user, force=True).requires == (base.id,)


def test_forecast_tells_what_is_shared(store: Store) -> None:
    common = noise(60_000, 1)
    one = store.put(common + noise(30_000, 2))
    two = store.put(common + noise(30_000, 3))
    alone, both = store.forecast(one), store.forecast([one, two.id])
    assert 25_000 < alone.freed_bytes < 45_000
    assert 50_000 < alone.shared_bytes < 65_000
    assert both.shared_bytes == 0
    assert both.freed_bytes == pytest.approx(2 * alone.freed_bytes + alone.shared_bytes, rel=0.1)
    store.delete(one, two)
    assert store.gc(min_age_seconds=0).freed_bytes == both.freed_bytes


def test_who_opened_a_store_to_read_looks_at_sessions_and_removes_none(store: Store) -> None:
    """It holds no lock: what looks like a dead one's file may be one that is just being made."""
    artifact = store.put(noise(50_000, 1))
    lease = store.blobs.put(b"leased")
    root = log_core(store).backend.root
    half_made = Path(root, "sessions", "half-made")
    half_made.touch()
    with Store._open(root, read_only=True) as reader:
        assert reader.forecast([artifact]).freed_bytes
        (chain,) = reader.why(lease.hash)
        assert chain.root.startswith("the lease of process")
        assert reader.gc(dry_run=True).complete
    assert half_made.exists()


def test_why_gives_the_chains(store: Store, tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "file").write_bytes(noise(50_000, 1))
    tree = store.put_tree(tmp_path / "tree")
    file = store.put(noise(50_000, 1))
    store.tags.set("name", file.hash)
    lease = store.blobs.put(noise(10, 2))
    found = {(chain.root, len(chain.path)) for chain in store.why(file.hash)}
    assert found == {(f"artifact {file.id}", 1), ("tag 'name'", 1), (f"artifact {tree.id}", 2)}
    manifest = log_core(store).backend.large_reader(log_core(store).blob(file.hash)).manifest
    chunk = Hash(manifest.leaf_at(0).entries[1][2])
    chains = store.why(chunk)
    assert {(chain.root, len(chain.path)) for chain in chains} == {(root, n + 1) for root, n in found}
    assert all(chain.path[-1] == chunk for chain in chains)
    assert [chain.root.startswith("the lease of process") for chain in store.why(lease.hash)] == [True]
    lease.release()
    assert store.why(lease.hash) == ()
    with pytest.raises(BlobNotFound):
        store.why(Hash(bytes(32)))


def test_why_names_partial_blobs_and_uploads(store: Store) -> None:
    def payloads() -> set[Hash]:
        return {Hash(digest) for (digest,) in log_core(store).catalog.ask("SELECT hash FROM data")}

    ranges = ChunkRanges.leaves(0, 2000)
    with holdfast.open("memory://") as other:
        hash = other.blobs.put(noise(3_000_000, 5)).hash
        store.blobs.decode(hash, b"".join(other.blobs.encode(hash, ranges)), ranges)
    of_partial = payloads()
    for chunk in of_partial:
        (chain,) = store.why(chunk)
        assert chain.root.startswith(f"partial blob {hash} (until 2")
        assert chain.path == (hash, chunk)
    (chain,) = store.why(hash)
    assert chain.root.startswith(f"partial blob {hash} (until 2")
    assert chain.path == (hash,)
    writer = store.writer(resumable=True)
    writer.write(noise(3_000_000, 6))
    token = writer.suspend()
    of_upload = payloads() - of_partial
    assert of_upload
    for piece in of_upload:
        (chain,) = store.why(piece)
        assert chain.root.startswith(f"upload {token} (until 2")
    store.gc(min_age_seconds=0)
    assert payloads() == of_partial | of_upload
    store.writer(resume=token).abort()
    assert not any(store.why(piece) for piece in of_upload)
