"""Two machines on one bucket, each with a catalog of its own: what they find by themselves, and after a refresh."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import holdfast
from holdfast.backend.objects.bucket import Meta
from holdfast.backend.objects.directory import DirectoryBucket
from holdfast.backend.objects.layout import BLOBS, data_key, gone_key, outboard_key
from holdfast.errors import ArtifactNotFound
from holdfast.object_recovery import CONDITIONS
from holdfast.store import Store
from holdfast.testing.contract_base import sample
from holdfast.testing.faulty_bucket import FaultyBucket
from holdfast.testing.inside import object_core
from holdfast.types import Hash

Machine = Callable[[], Store]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "objects"


@pytest.fixture
def machine(root: Path) -> Iterator[Machine]:
    stores: list[Store] = []

    def open_store() -> Store:
        stores.append(Store._open_objects(DirectoryBucket(str(root), create=True), create=True))
        return stores[-1]

    yield open_store
    for store in stores:
        store.close()


def facts(store: Store) -> list[str]:
    """Give all facts, but for when a blob was stored, which each machine knows by its own clock.

    And but for tombstones of what was restored: an object has the newest state alone.
    """
    lines = [line.split("\t") for line in object_core(store).catalog.dump()]
    live = {line[1] for line in lines if line[0] == "artifact" and line[-1] == "-"}
    return [
        "\t".join(line[:3] if line[0] == "blob" else line)
        for line in lines
        if line[0] != "tombstone" or line[1] not in live
    ]


def test_blobs_of_others_are_found_without_a_refresh(machine: Machine) -> None:
    one, two = machine(), machine()
    artifact = one.put(sample(50_000))
    assert two.read(artifact.hash) == sample(50_000)
    assert two.exists(artifact.hash)
    with pytest.raises(ArtifactNotFound):
        two.info(artifact.id)
    again = two.put(sample(50_000))
    assert (again.hash, again.size_bytes) == (artifact.hash, artifact.size_bytes)


def test_a_refresh_brings_everything_and_deletions_too(machine: Machine) -> None:
    one, two = machine(), machine()
    artifacts = one.put_many([sample(size) for size in (10, 20_000, 300)], tags=["t"])
    one.update(artifacts[0], filename="new", metadata={"k": 1})
    one.delete(artifacts[1])
    one.tags.set("tag", artifacts[2].hash)
    stats = two.refresh()
    assert (stats.names_read, stats.blobs_found, stats.is_rebuilt) == (4, 3, False)
    assert facts(two) == facts(one)
    two.restore(artifacts[1])
    two.delete(artifacts[2])
    two.tags.delete("tag")
    two.untag(artifacts[0], "t")
    one.refresh()
    assert facts(one) == facts(two)
    assert [artifact.id for artifact in one.find(tag="t")] == [artifacts[1].id]
    fresh = machine()
    assert facts(fresh) == facts(one)


def test_a_refresh_costs_pages_and_what_is_new(machine: Machine) -> None:
    one, two = machine(), machine()
    for number in range(20):
        one.put(sample(100, number))
    assert two.refresh().requests["get"] == 20
    idle = two.refresh()
    assert (idle.requests["get"], idle.requests["list"], idle.names_read) == (0, 4, 0)
    assert one.refresh().requests["get"] == 0  # what it wrote itself it has seen
    one.put_many([sample(200, number) for number in range(50)])
    assert two.refresh().requests["get"] == 1
    first = next(iter(one.find()))
    one.update(first, filename="x")
    one.update(first, filename="y")
    assert two.refresh().requests["get"] == 1
    assert two.info(first.id).filename == "y"
    fresh = machine()
    assert fresh.refresh().requests["get"] == 0  # a rebuild has seen all of it


def test_blobs_that_others_collected_are_forgotten(machine: Machine, root: Path) -> None:
    one, two = machine(), machine()
    with one.blobs.put(sample(30_000)) as lease:
        hash_ = lease.hash.digest
        assert two.exists(lease.hash)
    (root / gone_key(hash_, 0)).touch()
    (root / data_key(hash_)).unlink()
    (root / outboard_key(hash_)).unlink()
    assert two.refresh().blobs_gone == 1
    assert not two.exists(Hash(hash_))
    assert two.health().ok
    artifact = two.put(sample(30_000))  # as the next generation: the marker stays
    assert (root / data_key(hash_, 1)).exists()
    assert one.read(artifact.hash) == sample(30_000)
    assert one.refresh().names_read == 1
    assert facts(one) == facts(two)


def test_names_that_are_gone_are_noticed(machine: Machine, root: Path) -> None:
    one, two = machine(), machine()
    kept, gone = one.put(b"kept"), one.put(b"gone")
    two.refresh()
    raw = bytes.fromhex(gone.id.replace("-", ""))
    (path,) = [path for path in (root / "commits").iterdir() if raw in path.read_bytes()]
    path.unlink()
    stats = two.refresh()
    assert stats.is_rebuilt
    assert stats.damaged == 1  # nobody deleted it: that leaves a tombstone
    assert [problem.message.split()[1] for problem in stats.problems] == [gone.id]
    assert [artifact.id for artifact in two.find()] == [kept.id]
    again = two.refresh()
    assert (again.is_rebuilt, again.damaged) == (False, 0)


def test_what_others_have_deleted_and_forgotten_is_not_called_lost(machine: Machine, root: Path) -> None:
    one, two = machine(), machine()
    kept, deleted, forgotten, gone = (one.put(data) for data in (b"kept", b"deleted", b"forgotten", b"gone"))
    two.refresh()
    one.delete(forgotten)
    one.gc(min_age_seconds=0)
    one.delete(deleted)
    raw = bytes.fromhex(gone.id.replace("-", ""))
    for path in (root / "commits").iterdir():
        if raw in path.read_bytes():
            path.unlink()
    stats = two.refresh()
    assert stats.is_rebuilt
    assert [problem.message.split()[1] for problem in stats.problems] == [gone.id]
    assert [artifact.id for artifact in two.find()] == [kept.id]


def test_a_refresh_beside_puts_loses_nothing(machine: Machine) -> None:
    from concurrent.futures import ThreadPoolExecutor

    one = machine()
    artifacts = []

    def put(number: int) -> None:
        artifacts.append(one.put(sample(100, number)))

    with ThreadPoolExecutor(3) as pool:
        work = [pool.submit(put, number) for number in range(150)]
        while not all(future.done() for future in work):
            one.refresh()
    assert {artifact.id for artifact in one.find()} == {artifact.id for artifact in artifacts}
    assert one.health().ok
    for artifact in artifacts:
        assert one.exists(artifact.hash)
    one.refresh()
    fresh = machine()
    assert facts(fresh) == facts(one)


def test_a_store_that_is_read_only_is_refreshed_in_memory(root: Path) -> None:
    with holdfast.open(f"dir://{root}", create=True) as writer:
        writer.put(b"first")
        with holdfast.open(f"dir://{root}", read_only=True) as reader:
            catalog = (root / "catalog.db").read_bytes()
            other = Store._open_objects(DirectoryBucket(str(root)))
            artifact = other.put(b"second")
            other.close()
            assert not reader.exists(artifact.id)
            reader.refresh()
            assert reader.read(artifact.id) == b"second"
            assert (root / "catalog.db").read_bytes() == catalog


def test_a_rebuild_keeps_the_hints_that_it_can(machine: Machine) -> None:
    store = machine()
    catalog = object_core(store).catalog
    assert catalog.get_meta(CONDITIONS) == 1
    store.put_many([sample(10, number) for number in range(3)])
    store.scrub()
    store.rebuild()
    assert object_core(store).catalog is not catalog
    assert object_core(store).catalog.get_meta(CONDITIONS) == 1
    assert store.health().scrubbed_at is not None
    assert store.health().listed_at is not None


def test_a_refresh_of_a_local_store_has_nothing_to_do(tmp_path: Path) -> None:
    with holdfast.open(tmp_path / "log", create=True) as store:
        store.put(b"x")
        assert store.refresh() == holdfast.RefreshStats()


def test_damaged_names_of_others_are_told(machine: Machine, root: Path) -> None:
    one, two = machine(), machine()
    one.put(b"one")
    (path,) = (root / "commits").glob("*-*")
    path.write_bytes(b"rubbish")
    stats = two.refresh()
    assert (stats.damaged, stats.problems[0].kind) == (1, "corrupt_object")
    assert not two.health().ok


def between(store: Store, monkeypatch: pytest.MonkeyPatch, act: Callable[[], object]) -> None:
    """Let something be done once, when the blobs have just been listed."""
    bucket = object_core(store).backend.bucket
    listed = bucket.list
    done: list[object] = []

    def list_then_act(prefix: str, *, after: str = "") -> Iterator[Meta]:
        yield from listed(prefix, after=after)
        if prefix == BLOBS and not done:
            done.append(None)
            act()

    monkeypatch.setattr(bucket, "list", list_then_act)


def test_what_is_put_while_a_catalog_is_made_anew_is_in_it(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = machine()
    store.put(sample(10))
    put: list[str] = []
    between(store, monkeypatch, lambda: put.append(store.put(sample(20), tags=["new"]).id))
    store.rebuild()
    assert store.read(put[0]) == sample(20)
    assert [one.id for one in store.find(tag="new")] == put


@pytest.mark.parametrize("look", ["refresh", "rebuild"])
def test_what_comes_back_while_the_bucket_is_listed_is_not_hidden(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, look: str
) -> None:
    store = machine()
    digest = store.put(sample(10)).hash.digest
    bucket = object_core(store).backend.bucket
    bucket.create(gone_key(digest, 0), b"")
    bucket.delete([data_key(digest)])
    put: list[str] = []
    between(store, monkeypatch, lambda: put.append(store.put(sample(10)).id))
    getattr(store, look)()
    assert store.read(put[0]) == sample(10)


class _Forgetful(FaultyBucket):
    """Lists all but one object, as a bucket may whose listings come late."""

    missing = ""

    def list(self, prefix: str, *, after: str = "") -> Iterator[Meta]:
        return (meta for meta in super().list(prefix, after=after) if meta.key != self.missing)


def test_a_listing_that_misses_a_name_makes_nobody_forget_it(root: Path) -> None:
    bucket = _Forgetful(DirectoryBucket(str(root), create=True))
    with Store._open_objects(bucket, create=True) as store:
        artifact = store.put(b"just put")
        bucket.missing = next(iter(bucket.list("commits/"))).key
        assert store.refresh().is_rebuilt is False
        assert store.exists(artifact)
        store.rebuild()
        assert store.read(artifact.id) == b"just put"
        assert store.health().ok


def test_names_removed_by_hand_are_found_by_scrub_and_written_again_by_repair(
    machine: Machine, root: Path
) -> None:
    one = machine()
    first, second = one.put(b"first", tags=["a"]), one.put(b"second")
    one.tags.set("t", first.hash)
    one.update(second, filename="x")
    assert one.scrub().ok
    before = facts(one)
    keys = {
        str(path.relative_to(root))
        for section in ("commits", "artifacts", "tags")
        for path in (root / section).iterdir()
        if "zzz" not in path.name
    }
    for key in keys:
        (root / key).unlink()
    report = one.scrub()
    assert not report.ok
    found = {problem.path for problem in report.problems}
    assert found <= keys
    assert {str(key).split("/")[0] for key in found} == {"commits", "artifacts", "tags"}
    assert not one.health().ok
    assert one.repair([]).missing_count == 0
    assert one.scrub().ok
    assert one.health().ok
    assert facts(one) == before
    assert facts(machine()) == before


def test_names_that_others_gathered_are_not_missed_by_scrub(machine: Machine) -> None:
    one, two = machine(), machine()
    for number in range(5):
        one.put(b"%d" % number)
    two.refresh()
    one.compact()
    assert two.scrub().ok
    two.refresh()
    assert two.scrub().ok
    assert one.scrub().ok
