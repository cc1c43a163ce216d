"""Backups: a copy of the catalog, and then of the segments, tells when some of it did not arrive."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import holdfast
import holdfast.config
from holdfast.errors import CorruptSegment, FormatError
from holdfast.gc.cycle import Collection, Enough
from holdfast.store import Store
from holdfast.types import Artifact

SMALL = holdfast.config.load(None, environ={}, overrides={"log": {"segment_size_bytes": 256 << 10}})
Copy = Callable[[Path, Path], None]


def filled(place: Path) -> tuple[Store, list[Artifact]]:
    """Make a store with some segments: (it, its artifacts), one of what was stored deleted."""
    store = holdfast.create(place, config=SMALL)
    artifacts = [store.put(random.Random(seed).randbytes(100_000)) for seed in range(8)]
    store.delete(artifacts.pop(0))
    return store, artifacts


def copy_catalog(place: Path, copy: Path) -> None:
    for name in ("catalog.db", "catalog.db-wal"):
        if (place / name).exists():
            shutil.copy(place / name, copy)


def back_up(
    place: Path, copy: Path, catalog: Copy = copy_catalog, meanwhile: Callable[[], object] = bool
) -> list[Path]:
    """Copy as docs/concepts.md says, the catalog first; gives the segments of the copy."""
    shutil.rmtree(copy, ignore_errors=True)
    copy.mkdir()
    shutil.copy(place / "store.json", copy)
    catalog(place, copy)
    meanwhile()
    shutil.copytree(place / "segments", copy / "segments")
    return sorted((copy / "segments").iterdir())


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


@pytest.mark.parametrize("is_open", [False, True])
@pytest.mark.parametrize("harm", [cut, Path.unlink])
def test_a_copy_with_the_catalog_tells_what_is_cut_or_missing(
    tmp_path: Path, is_open: bool, harm: Callable[[Path], None]
) -> None:
    store, artifacts = filled(tmp_path / "s")
    if not is_open:  # without a catalog.db-wal then
        store.close()
    copy = tmp_path / "copy"
    count = len(back_up(tmp_path / "s", copy))
    with holdfast.open(copy) as whole:
        assert whole.scrub().ok
        assert whole.health().ok
        assert {artifact.id for artifact in whole.find()} == {artifact.id for artifact in artifacts}
    for number in range(count):
        path = back_up(tmp_path / "s", copy)[number]
        harm(path)
        with holdfast.open(copy) as broken:
            assert not broken.health().ok
            said = " ".join(one.what for one in broken.health().ailments)
            assert f"segment {int(path.stem)} " in said
            assert broken.count() == len(artifacts)  # nothing is forgotten silently
            with pytest.raises(CorruptSegment, match=r"Deleting catalog\.db .* forgets"):
                broken.rebuild()
            report = broken.scrub()
            assert not report.ok
            assert report.problems
    store.close()


def test_what_comes_between_catalog_and_segments_is_in_the_copy(tmp_path: Path) -> None:
    store, artifacts = filled(tmp_path / "s")
    back_up(tmp_path / "s", tmp_path / "copy", copy_catalog, lambda: artifacts.append(store.put(b"later")))
    store.close()
    with holdfast.open(tmp_path / "copy") as copy:
        assert copy.read(artifacts[-1]) == b"later"
        assert copy.scrub().ok
        assert copy.health().ok
        assert copy.count() == len(artifacts)


def test_without_the_catalog_nobody_can_tell(tmp_path: Path) -> None:
    """What docs/concepts.md warns of, so that it is changed there when it changes here."""
    store, artifacts = filled(tmp_path / "s")
    store.close()
    path = back_up(tmp_path / "s", tmp_path / "copy", lambda place, copy: None)[-2]
    path.unlink()
    with holdfast.open(tmp_path / "copy") as copy:
        assert copy.count() < len(artifacts)
        assert copy.scrub().ok


def test_what_is_named_while_a_half_done_collection_is_copied_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The catalog of the copy says that it may go, the segments that it is named: it is marked once more."""
    content = random.Random(1).randbytes(100_000)

    def enough(*_: object) -> None:
        raise Enough

    with holdfast.create(tmp_path / "s", config=SMALL) as store:
        store.put(b"something that stays")
        lease = store.blobs.put(content)
        lease.release()
        with monkeypatch.context() as patch:
            patch.setattr(Collection, "_drop", enough)
            assert not store.gc(min_age_seconds=0).complete
        back_up(
            tmp_path / "s", tmp_path / "copy", meanwhile=lambda: store.tags.set("named meanwhile", lease.hash)
        )
        assert store.gc(min_age_seconds=0).complete
        assert store.blobs.read(lease.hash) == content
    with holdfast.open(tmp_path / "copy") as copy:
        assert copy.gc(min_age_seconds=0).complete
        assert copy.blobs.read(lease.hash) == content
        assert copy.scrub().ok


@pytest.mark.parametrize("content", [None, b"", bytes(300), b'{"format":1'])
def test_a_lost_store_file_is_asked_for_and_any_copy_of_it_does(
    tmp_path: Path, content: bytes | None
) -> None:
    path = tmp_path / "store"
    with holdfast.create(path) as store:
        first = store.put(b"first")
    kept = (path / "store.json").read_bytes()
    with holdfast.open(path) as store:
        second = store.put(b"second")
    if content is None:
        (path / "store.json").unlink()
    else:
        (path / "store.json").write_bytes(content)
    for create in (False, True):
        with pytest.raises(FormatError, match="put a copy of it back"):
            holdfast.open(path, create=create)
    (path / "store.json").write_bytes(kept)
    with holdfast.open(path) as store:
        assert store.scrub().ok
        assert [store.read(one) for one in (first, second)] == [b"first", b"second"]
