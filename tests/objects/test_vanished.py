"""A bucket that vanishes under an open store: what is known of it is kept, and nothing takes its place unnoticed."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

import holdfast
from holdfast.errors import BackendError, InvalidInput, NeedsReopen, StoreNotFound
from holdfast.store import Store


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "objects"


@pytest.fixture
def store(root: Path, tmp_path: Path) -> Iterator[Store]:
    with holdfast.open(f"dir://{root}", create=True, catalog=tmp_path / "catalog.db") as store:
        store.put(b"content", filename="kept")
        yield store


@pytest.mark.parametrize("left", ["nothing", "an empty directory"])
def test_a_disk_that_is_away_takes_no_names_along(store: Store, root: Path, left: str) -> None:
    away = root.with_name("away")
    root.rename(away)
    if left != "nothing":
        root.mkdir()
    for call in (store.refresh, store.rebuild, lambda: store.rebuild(deep=True)):
        with pytest.raises(StoreNotFound):
            call()
    assert [artifact.filename for artifact in store.find()] == ["kept"]
    if left != "nothing":
        shutil.rmtree(root)
    away.rename(root)
    store.refresh()
    (artifact,) = store.find()
    assert store.read(artifact.id) == b"content"


def test_another_store_in_its_place_is_told(store: Store, root: Path) -> None:
    shutil.rmtree(root)
    with holdfast.open(f"dir://{root}", create=True) as other:
        other.put(b"other", filename="other")
        for call in (store.refresh, store.rebuild):
            with pytest.raises(NeedsReopen):
                call()
    with holdfast.open(f"dir://{root}", catalog=root.with_name("catalog.db")) as again:
        assert [artifact.filename for artifact in again.find()] == ["other"]


def test_writing_where_no_directory_is_left_is_a_typed_error(store: Store, root: Path) -> None:
    (artifact,) = store.find()
    shutil.rmtree(root)
    for call in (
        lambda: store.put(b"new"),
        lambda: store.update(artifact, filename="x"),
        lambda: store.delete(artifact),
    ):
        with pytest.raises(BackendError):
            call()


def test_nothing_is_written_where_a_disk_should_be(store: Store, root: Path) -> None:
    """The place of a disk that is away is an empty directory; what is put there would be hidden when it is back."""
    (artifact,) = store.find()
    away = root.with_name("away")
    root.rename(away)
    root.mkdir()
    calls = (
        lambda: store.put(b"new"),
        lambda: store.put(b"content"),
        lambda: store.update(artifact, filename="x"),
        lambda: store.tags.set("t", artifact.hash),
    )
    for call in calls:
        with pytest.raises(BackendError, match="unmounted"):
            call()
    assert not list(root.iterdir())
    root.rmdir()
    away.rename(root)
    assert store.read(store.put(b"new")) == b"new"


@pytest.mark.parametrize("location", ["s3:/bucket", "dir:/tmp/x", "GS:/bucket/p", "az:/c"])
def test_a_slash_too_few_makes_no_local_store(
    location: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidInput, match="two slashes"):
        holdfast.open(location, create=True)
    assert not list(tmp_path.iterdir())
    with holdfast.open(f"./{location}", create=True):
        pass
