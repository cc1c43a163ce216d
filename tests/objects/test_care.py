"""Care of a store in a bucket: what is damaged or gone is found, remembered, and comes back from wherever it is."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

import holdfast
from holdfast import _native
from holdfast.backend.objects.directory import DirectoryBucket
from holdfast.backend.objects.layout import data_key, gone_key, outboard_key, tag_key
from holdfast.backend.objects.opening import memory_bucket
from holdfast.errors import (
    BackendError,
    BlobNotFound,
    IntegrityError,
    MissingChunk,
    NoSpace,
    PermissionDenied,
    Unavailable,
)
from holdfast.store import Store
from holdfast.testing.contract_base import Interrupted, sample
from holdfast.testing.inside import object_core
from holdfast.types import Artifact, Progress

BIG = 9_000_000
"""More than two windows of a check, and more than a single PUT."""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "objects"


@pytest.fixture
def store(root: Path) -> Iterator[Store]:
    with holdfast.open(f"dir://{root}", create=True) as store:
        yield store


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 0x20
    path.write_bytes(data)


def rot(path: Path) -> None:
    """Make all of a file wrong, as a disk does it: nobody wrote to it."""
    before = path.stat()
    path.write_bytes(b"rubbish".ljust(before.st_size, b"!"))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def data_of(root: Path, artifact: Artifact) -> Path:
    return root / data_key(artifact.hash.digest)


def outboard_of(root: Path, artifact: Artifact) -> Path:
    return root / outboard_key(artifact.hash.digest)


@pytest.mark.parametrize("size", [20_000, BIG])
def test_an_outboard_that_is_wrong_is_found_and_computed_again(store: Store, root: Path, size: int) -> None:
    content = sample(size)
    artifact = store.put(content)
    path = outboard_of(root, artifact)
    right = path.read_bytes()
    flip(path, len(right) - 5)
    report = store.scrub()
    assert [problem.path for problem in report.problems] == [outboard_key(artifact.hash.digest)]
    assert store.stats().quarantined == 1
    done = store.repair()
    assert [(one.what, one.source) for one in done.repaired] == [("outboard", "computed")]
    assert path.read_bytes() == right
    assert (root / "damaged" / outboard_key(artifact.hash.digest)).read_bytes() != right
    assert store.scrub().ok
    assert store.health().ok
    assert store.read(artifact) == content


@pytest.mark.parametrize("size", [20_000, BIG])
def test_a_missing_outboard_is_counted_and_made(store: Store, root: Path, size: int) -> None:
    artifact = store.put(sample(size))
    path = outboard_of(root, artifact)
    right = path.read_bytes()
    path.unlink()
    assert store.rebuild().missing_outboards == 1
    assert store.health().missing_outboards == 1
    assert store.scrub().ok
    assert path.read_bytes() == right
    assert store.rebuild().missing_outboards == 0


def test_a_large_blob_takes_only_the_blocks_that_are_wrong(store: Store, root: Path, tmp_path: Path) -> None:
    content = sample(BIG)
    artifact = store.put(content)
    for at in (0, 5_000_000, BIG - 1):
        flip(data_of(root, artifact), at)
    assert store.scrub().problem_count == 3
    (tmp_path / "file").write_bytes(content)
    report = store.repair(tmp_path / "file")
    assert (report.ok, report.repaired_count) == (True, 1)
    assert report.fetched_bytes == 2 * 16_384 + BIG % 16_384
    assert store.read(artifact) == content
    assert store.scrub().ok


@pytest.mark.parametrize("size", [700, 100_000, BIG])
def test_a_blob_that_is_too_short_is_found_and_mended(
    store: Store, root: Path, tmp_path: Path, size: int
) -> None:
    content = sample(size)
    artifact = store.put(content)
    data_of(root, artifact).write_bytes(content[: size // 2])
    with pytest.raises(IntegrityError):
        store.read(artifact)
    assert store.rebuild().damaged == 1  # without reading it: its artifact says how long it is
    assert not store.health().ok
    (tmp_path / "file").write_bytes(content)
    assert store.repair(tmp_path / "file").ok
    assert store.read(artifact) == content
    assert store.scrub().ok
    assert store.health().ok


def test_a_blob_that_is_gone_is_named_and_comes_back(store: Store, root: Path, tmp_path: Path) -> None:
    contents = [sample(size) for size in (900, 50_000)]
    artifacts = store.put_many(contents)
    store.blobs.put(sample(300)).release()
    shutil.rmtree(root / "blobs")
    with pytest.raises(MissingChunk):
        store.read(artifacts[0])
    report = store.scrub()
    assert {problem.hash for problem in report.problems} == {artifact.hash for artifact in artifacts}
    assert {problem.kind for problem in report.problems} == {"missing_chunk"}
    assert store.health().missing_blobs == 2
    assert not store.repair().ok
    (tmp_path / "file").write_bytes(contents[1])
    with holdfast.open("memory://") as other:
        other.put(contents[0])
        mended = store.repair([tmp_path / "file", other])
    assert (mended.ok, mended.repaired_count) == (True, 2)
    assert [store.read(artifact) for artifact in artifacts] == contents
    assert store.scrub().ok
    assert store.health().ok


def test_a_blob_that_verify_misses_is_known_to_health_and_repair(
    store: Store, root: Path, tmp_path: Path
) -> None:
    artifact = store.put(sample(50_000))
    data_of(root, artifact).unlink()
    assert not store.verify(artifact).ok
    assert store.health().missing_blobs == 1
    (tmp_path / "file").write_bytes(sample(50_000))
    assert store.repair([tmp_path / "file"]).repaired_count == 1
    assert store.verify(artifact).ok


def test_a_blob_that_is_gone_is_found_beside_those_of_others(store: Store, root: Path) -> None:
    """Blobs that the catalog does not know stand on both sides of the one that is gone."""
    contents = sorted((sample(50, seed) for seed in range(9)), key=_native.blake3)
    gone = store.put(contents[4])
    with Store._open_objects(DirectoryBucket(str(root))) as other:
        others = other.put_many(contents[:4] + contents[5:])
    data_of(root, gone).unlink()
    assert {problem.hash for problem in store.scrub().problems} == {gone.hash}
    store.put(contents[4])
    assert store.scrub().ok
    assert store.refresh().blobs_found == len(others)
    assert store.stats().blobs == len(contents)
    data_of(root, gone).unlink()
    assert store.refresh().blobs_gone == 1
    assert store.health().missing_blobs == 1


def test_what_is_mended_is_forgotten_and_what_is_not_is_remembered(
    store: Store, root: Path, tmp_path: Path
) -> None:
    contents = [sample(500, seed) for seed in range(3)]
    for artifact in store.put_many(contents):
        flip(data_of(root, artifact), 9)
    store.scrub()
    (tmp_path / "file").write_bytes(contents[0])
    assert store.repair(tmp_path / "file").repaired_count == 1
    assert store.health().quarantined == 2


def test_a_blob_that_came_again_after_a_collection_and_is_lost_is_damage(
    store: Store, root: Path, tmp_path: Path
) -> None:
    """The marker tells of an earlier generation; the outboard that no marker is above tells that this one was here."""
    content = sample(20_000)
    store.delete(store.put(content))
    store.gc(min_age_seconds=0)
    artifact = store.put(content)
    (root / data_key(artifact.hash.digest, 1)).unlink()
    for look in (store.refresh, store.rebuild, store.scrub):
        look()
        assert store.health().missing_blobs == 1
        with pytest.raises(MissingChunk):
            store.read(artifact)
    assert store.rebuild().unacknowledged == 0
    assert not store.scrub().ok
    (tmp_path / "file").write_bytes(content)
    assert store.repair(tmp_path / "file").ok
    assert store.read(artifact) == content
    assert store.scrub().ok


def test_a_blob_that_others_collected_is_not_damage(store: Store, root: Path) -> None:
    with store.blobs.put(sample(40_000)) as lease:
        hash_ = lease.hash
    (root / gone_key(hash_.digest, 0)).touch()
    for path in (root / data_key(hash_.digest), root / outboard_key(hash_.digest)):
        path.unlink()
    with pytest.raises(BlobNotFound, match="collected by another"):
        store.read(hash_)
    assert store.scrub().ok
    assert not store.exists(hash_)
    assert store.health().ok


def test_another_generation_is_a_source(store: Store, root: Path) -> None:
    content = sample(60_000)
    artifact = store.put(content)
    path = data_of(root, artifact)
    for name, other in (("data", "data.1"), ("outboard", "outboard.1")):
        shutil.copy(path.with_name(name), path.with_name(other))
    flip(path.with_name("data.1"), 30_000)
    store.rebuild()
    assert not store.scrub().ok
    report = store.repair()
    assert [one.source for one in report.repaired] == ["this bucket"]
    assert path.with_name("data.1").read_bytes() == content


def test_names_come_back_from_one_bit_from_the_catalog_and_from_a_copy(
    store: Store, root: Path, tmp_path: Path
) -> None:
    artifacts = store.put_many([b"one", b"two", b"three"], metadata={"k": 1})
    store.update(artifacts[1], filename="second")
    store.delete(artifacts[2])
    store.tags.set("name", artifacts[0].hash)
    (commit,) = (root / "commits").glob("*-*")
    changed, deleted = (root / "artifacts" / artifact.id for artifact in artifacts[1:])
    tag = root / tag_key("name")
    before = list(store.find()), list(store.find(deleted=True)), list(store.tags.list())
    shutil.copytree(root, tmp_path / "copy")
    everything = (commit, changed, deleted, tag)

    def damage_all(*, wholly: bool) -> None:
        for path in everything:
            if wholly:
                rot(path)
            else:
                flip(path, 20)
        report = store.scrub()
        assert (report.problem_count, {p.kind for p in report.problems}) == (4, {"corrupt_object"})
        assert store.stats().quarantined == 4

    def check() -> None:
        assert store.scrub().ok
        store.rebuild()
        assert (list(store.find()), list(store.find(deleted=True)), list(store.tags.list())) == before
        assert store.health().ok

    damage_all(wholly=False)
    assert {one.source for one in store.repair().repaired} == {"computed"}
    check()
    damage_all(wholly=True)
    assert {one.source for one in store.repair().repaired} == {"the catalog"}
    check()
    damage_all(wholly=True)
    store.rebuild()  # from here on the catalog does not know them either
    assert list(store.find()) == []
    assert store.repair().missing_count == 4
    assert {one.source for one in store.repair(f"dir://{tmp_path}/copy").repaired} == {
        f"dir://{tmp_path}/copy"
    }
    check()
    for path in everything:
        assert (root / "damaged" / path.relative_to(root)).read_bytes().startswith(b"rubbish!")


def test_a_catalog_that_is_behind_takes_no_change_of_others_back(
    store: Store, root: Path, tmp_path: Path
) -> None:
    artifact = store.put(b"one", filename="first")
    store.update(artifact, filename="second")
    with holdfast.open(f"dir://{root}", catalog=tmp_path / "behind.db") as behind:
        store.update(artifact, filename="third")
        shutil.copytree(root, tmp_path / "copy")
        (root / "artifacts" / artifact.id).write_bytes(b"rubbish")
        assert not behind.scrub().ok
        (problem,) = behind.repair().missing
        assert "changed since" in problem.message
        assert behind.repair(f"dir://{tmp_path}/copy").ok
        assert behind.info(artifact).filename == "third"
        store.update(artifact, filename="fourth")
        (root / "artifacts" / artifact.id).write_bytes(b"rubbish")
        assert not behind.scrub().ok
        behind.repair(give_up=True)
        assert behind.scrub().ok
        assert behind.info(artifact).filename == "third"


def test_another_store_is_no_source_for_names(store: Store, root: Path) -> None:
    """It may have a tag of the same name, and means another blob."""
    store.tags.set("name", store.put(b"ours").hash)
    (root / tag_key("name")).write_bytes(b"rubbish")
    store.rebuild()
    with Store._open_objects(memory_bucket(), create=True) as other:
        other.tags.set("name", other.put(b"theirs").hash)
        assert store.repair(other).missing_count == 1


def test_what_is_given_up_is_gone_but_for_a_copy(store: Store, root: Path) -> None:
    artifact, other = store.put(sample(50_000)), store.put(b"other")
    flip(data_of(root, artifact), 1)
    assert not store.scrub().ok
    assert not store.repair(give_up=True).ok
    assert not data_of(root, artifact).exists()
    assert (root / "damaged" / data_key(artifact.hash.digest)).exists()
    assert store.health().quarantined == 0
    assert store.health().missing_blobs == 1
    store.delete(artifact)
    assert store.health().ok
    assert store.read(other) == b"other"


def test_a_scrub_goes_on_within_a_blob(store: Store) -> None:
    store.put_many([sample(BIG), b"small"])
    total = store.scrub().checked_bytes
    parts = [store.scrub(max_bytes=1)]
    while not parts[-1].complete:
        assert store.health().scrub_under_way
        parts.append(store.scrub(resume=True, max_bytes=1))
    assert len(parts) >= 5  # three windows, a small blob, an object of names
    assert sum(part.checked_bytes for part in parts) == total == parts[-1].pass_bytes
    assert store.health().scrubbed_at is not None

    def interrupt(progress: Progress) -> None:
        if progress.done_bytes > 2_000_000:
            raise Interrupted

    with suppress(Interrupted):
        store.scrub(progress=interrupt)
    rest = store.scrub(resume=True)
    assert 0 < rest.checked_bytes < total
    assert rest.pass_bytes == total


def test_a_scrub_keeps_to_its_pace(store: Store) -> None:
    store.put_many([sample(1_000, seed) for seed in range(40)])
    assert store.scrub(bytes_per_second=200_000).seconds >= 0.2


def test_what_is_not_ours_is_left_alone(store: Store, root: Path) -> None:
    artifact = store.put(sample(20_000))
    store.tags.set("name", artifact.hash)
    store.update(artifact, filename="x")
    foreign = [root / "README", root / "blobs" / "readme", data_of(root, artifact).with_name("data.txt")]
    foreign += [root / section / "readme" for section in ("artifacts", "commits", "tags")]
    for path in foreign:
        path.write_text("somebody else's")
    rebuilt = store.rebuild()
    assert (rebuilt.foreign_objects, rebuilt.damaged, rebuilt.missing_outboards) == (5, 0, 0)
    assert store.health().foreign_objects == 5
    store.refresh()
    assert store.health().foreign_objects == 5
    assert store.scrub().ok
    assert store.repair().ok
    assert store.gc(min_age_seconds=0).complete
    assert store.health().ok
    assert all(path.read_text() == "somebody else's" for path in foreign)


def test_a_deep_rebuild_reads_everything_and_goes_on_where_it_was(store: Store, root: Path) -> None:
    artifacts = store.put_many([sample(size) for size in (500, 30_000, BIG)])
    outboard_of(root, artifacts[1]).unlink()
    flip(data_of(root, artifacts[2]), 4_500_000)
    assert store.rebuild().damaged == 0
    seen: list[Progress] = []

    def interrupt(progress: Progress) -> None:
        seen.append(progress)
        if progress.phase == "scrub" and progress.done_bytes:
            raise Interrupted

    with pytest.raises(Interrupted):
        store.rebuild(deep=True, progress=interrupt)
    requests = store.stats().requests["bytes_in"]
    stats = store.rebuild(deep=True, resume=True)
    assert (stats.damaged, stats.artifacts, stats.complete_blobs) == (1, 3, 3)
    assert stats.problems[0].offset_bytes == 4_500_000 // 16_384 * 16_384
    assert outboard_of(root, artifacts[1]).exists()
    assert store.stats().requests["bytes_in"] > requests
    assert {progress.phase for progress in seen} == {"rebuild", "scrub"}
    whole = store.rebuild(deep=True)
    assert whole.requests["bytes_in"] > BIG
    assert whole.damaged == 1


def test_a_deep_rebuild_of_a_local_store(tmp_path: Path) -> None:
    with holdfast.open(tmp_path / "log", create=True) as store:
        store.put(sample(100_000))
        assert store.rebuild(deep=True).damaged == 0
        (segment,) = (tmp_path / "log" / "segments").iterdir()
        flip(segment, 5_000)
        assert store.rebuild().damaged == 0
        assert store.rebuild(deep=True).damaged == 1


def test_who_may_only_read_is_told_and_changes_nothing(store: Store, root: Path) -> None:
    artifact = store.put(sample(50_000))
    flip(data_of(root, artifact), 1)
    outboard_of(root, artifact).unlink()
    store.close()
    before = {path: path.read_bytes() for path in (root / "blobs").rglob("*") if path.is_file()}
    with holdfast.open(f"dir://{root}", read_only=True) as reader:
        assert not reader.scrub().ok
        assert not reader.verify(artifact.id).ok
        with pytest.raises(IntegrityError):
            reader.read(artifact.id)
        with pytest.raises(PermissionDenied):
            reader.repair()
    assert {path: path.read_bytes() for path in (root / "blobs").rglob("*") if path.is_file()} == before


def test_damage_that_is_known_outlives_a_rebuild_and_is_a_hint(store: Store, root: Path) -> None:
    artifact = store.put(sample(50_000))
    flip(data_of(root, artifact), 1)
    assert not store.verify(artifact).ok
    assert store.health().quarantined == 1
    store.rebuild()
    store.close()
    with holdfast.open(f"dir://{root}") as again:
        assert again.health().quarantined == 1
    (root / "catalog.db").unlink()
    with holdfast.open(f"dir://{root}") as again:
        assert again.health().ok
        assert not again.scrub().ok


def test_two_processes_that_find_no_catalog_make_one(root: Path) -> None:
    """One waits for the other; neither takes a catalog that is half filled."""
    from concurrent.futures import ThreadPoolExecutor

    with holdfast.open(f"dir://{root}", create=True) as store:
        artifacts = store.put_many([b"%d" % n for n in range(300)])
    for _ in range(5):
        (root / "catalog.db").unlink()

        def use(_: int) -> int:
            with Store._open_objects(DirectoryBucket(str(root)), root / "catalog.db") as store:
                object_core(store).keeper.rebuild(None)
                return sum(1 for _ in store.find())

        with ThreadPoolExecutor(4) as pool:
            assert list(pool.map(use, range(4))) == [len(artifacts)] * 4


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (errno.EACCES, PermissionDenied),
        (errno.EROFS, PermissionDenied),
        (errno.ENOSPC, NoSpace),
        (errno.ENOTDIR, Unavailable),
    ],
)
@pytest.mark.parametrize("call", ["mkdir", "open"])
def test_where_no_catalog_can_lie_is_told(
    store: Store,
    root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    code: int,
    expected: type[BackendError],
    call: str,
) -> None:
    """Typed, so that the command line reads on without a catalog where that is all it needs."""
    real = getattr(os, call)

    def fail(path: str | Path, *args: int, **named: int) -> int:
        if "elsewhere" in str(path):
            raise OSError(code, os.strerror(code), str(path))
        return int(real(path, *args, **named) or 0)

    monkeypatch.setattr(os, call, fail)
    where = tmp_path / "elsewhere" / "catalog.db"
    if call == "open":
        monkeypatch.setattr(os, "mkdir", lambda *_: None)
    with pytest.raises(expected, match=r"the catalog .*elsewhere"):
        holdfast.open(f"dir://{root}", catalog=where)
    with holdfast.open(f"dir://{root}", catalog=where, read_only=True) as again:
        assert not list(again.find())


@pytest.mark.parametrize("beside", [None, "commits/README"])
def test_a_lost_name_is_found_in_a_copy_of_the_directory_as_well(
    store: Store, root: Path, tmp_path: Path, beside: str | None
) -> None:
    """All files of a copy are others than those that the catalog has read; none says what is lost."""
    artifacts = [store.put(sample(20_000, number), filename=f"{number}") for number in range(3)]
    store.tags.set("kept", artifacts[1].hash)
    store.update(artifacts[2], filename="other")
    before = set((root / "commits").iterdir())
    lost = store.put(sample(20_000, 9), filename="lost")
    (commit,) = set((root / "commits").iterdir()) - before
    store.close()
    copy = tmp_path / "copy"
    shutil.copytree(root, copy)
    (copy / "commits" / commit.name).unlink()
    if beside is not None:
        (copy / beside).write_text("somebody else's")
    with holdfast.open(f"dir://{copy}") as again:
        report = again.scrub()
        assert [problem.path for problem in report.problems] == [f"commits/{commit.name}"]
        assert again.repair().ok
        assert again.scrub().ok
    for path in copy.glob("catalog.db*"):
        path.unlink()
    with holdfast.open(f"dir://{copy}") as again:
        assert again.read(lost) == sample(20_000, 9)
        assert {one.id for one in again.find()} == {one.id for one in (*artifacts, lost)}
