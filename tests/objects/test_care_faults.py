"""Care that is interrupted at any of its requests: nothing that was right gets worse, and the next call ends it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from holdfast import _native
from holdfast.backend.objects.cache import BlockCache
from holdfast.backend.objects.directory import DirectoryBucket
from holdfast.backend.objects.layout import data_key, outboard_key
from holdfast.errors import HoldfastError
from holdfast.store import Store
from holdfast.testing.contract_base import sample
from holdfast.testing.faults import SimulatedCrash
from holdfast.testing.faulty_bucket import BucketFault, FaultyBucket
from tests.objects.test_care import rot

FAULTS = (
    BucketFault.BEFORE,
    BucketFault.AFTER,
    BucketFault.CRASH_AFTER,
    BucketFault.TRUNCATED,
    BucketFault.FLIPPED,
    BucketFault.MISSING,
    BucketFault.MIDWAY,
)
CONTENTS = [sample(size) for size in (900, 40_000, 70_000, 300)]


def make(root: Path) -> Path:
    """Make a store with each kind of thing, and what it can be repaired from."""
    bucket = DirectoryBucket(str(root / "objects"), create=True)
    with Store._open_objects(bucket, root / "catalog.db", create=True) as store:
        artifacts = store.put_many(CONTENTS, metadata={"k": 1})
        store.update(artifacts[0], filename="new")
        store.delete(artifacts[3])
        store.tags.set("name", artifacts[1].hash)
    for number, content in enumerate(CONTENTS):
        (root / "sources").mkdir(exist_ok=True)
        (root / "sources" / f"{number}").write_bytes(content)
    return root


def damage(root: Path) -> None:
    """Damage each kind of thing, in a copy of the store, whose catalog knows it then."""
    objects = root / "objects"
    with Store._open_objects(DirectoryBucket(str(objects)), root / "catalog.db") as store:
        store.refresh()
        for path in (*(objects / "artifacts").glob("*-*"), *(objects / "tags").glob("[0-9a-f]*")):
            rot(path)
        damaged, missing = (_native.blake3(content) for content in CONTENTS[1:3])
        data = objects / data_key(damaged)
        data.write_bytes(CONTENTS[1][:20_000] + bytes(20_000))
        shutil.copy(data, root / "wrong")
        (objects / data_key(missing)).unlink()
        (objects / outboard_key(missing)).unlink()
        store.scrub()


def check(root: Path, *, mended: bool) -> None:
    bucket = DirectoryBucket(str(root / "objects"))
    with Store._open_objects(bucket, root / "catalog.db", cache=BlockCache(0)) as store:
        by_size = {artifact.size_bytes: artifact for artifact in store.find()}
        assert by_size.keys() == {900, 40_000, 70_000}
        assert store.read(by_size[900]) == CONTENTS[0]
        for content in CONTENTS[1:3]:
            try:
                assert store.read(by_size[len(content)]) == content
            except HoldfastError:
                assert not mended
        if not mended:
            return
        assert store.scrub().ok
        assert store.rebuild().damaged == 0
        assert {artifact.size_bytes for artifact in store.find()} == by_size.keys()
        assert [artifact.size_bytes for artifact in store.find(deleted=True)] == [300]
        assert store.info(by_size[900].id).filename == "new"
        assert [tag.name for tag in store.tags.list()] == ["name"]
        assert store.health().ok
        kept = root / "objects" / "damaged" / data_key(by_size[40_000].hash.digest)
        assert kept.read_bytes() == (root / "wrong").read_bytes()


def repair(store: Store, root: Path) -> object:
    return store.repair(root / "sources")


def refresh(store: Store, root: Path) -> object:
    return store.refresh()


def put_again(store: Store, root: Path) -> object:
    return store.put(CONTENTS[1])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("made"))


def run(root: Path, work: Callable[[Store, Path], object], faulty: FaultyBucket) -> None:
    store = Store._open_objects(faulty, root / "catalog.db", cache=BlockCache(0))
    try:
        with suppress(HoldfastError, SimulatedCrash):
            work(store, root)
    finally:
        with suppress(HoldfastError, SimulatedCrash):
            store.close()


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("work", [repair, refresh, put_again])
def test_every_request_may_fail(
    made: Path, tmp_path: Path, work: Callable[[Store, Path], object], fault: BucketFault
) -> None:
    number = 0
    while True:
        number += 1
        root = tmp_path / str(number)
        shutil.copytree(made, root)
        damage(root)
        faulty = FaultyBucket(DirectoryBucket(str(root / "objects")), fault, number)
        faulty.where = lambda site: site.key != "store.json"
        run(root, work, faulty)
        if faulty.hit is None:
            break
        if faulty.hit.can(fault):
            check(root, mended=False)
            run(root, repair, FaultyBucket(DirectoryBucket(str(root / "objects"))))
            check(root, mended=True)
        shutil.rmtree(root)
    assert number > 4
