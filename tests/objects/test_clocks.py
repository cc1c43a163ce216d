"""A machine whose clock is wrong takes nothing that others may still ask for."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

import holdfast
from holdfast.backend.objects.directory import DirectoryBucket
from holdfast.types import to_datetime

YEAR_SECONDS = 365 * 86_400


@pytest.mark.parametrize("years", [-1, 1, 100])
def test_a_collector_with_a_wrong_clock_keeps_the_time_to_restore(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, years: int
) -> None:
    location = f"dir://{tmp_path / 'objects'}"
    with holdfast.open(location, create=True, catalog=":memory:") as store:
        deleted = store.put(b"deleted a moment ago")
        store.delete(deleted)
        writer = store.writer(resumable=True)
        writer.write(bytes(17 << 20))
        token = writer.token
        real = time.time_ns
        with monkeypatch.context() as patch:
            # it goes by this clock too, and would take the file of a piece that is on its way: that is tried again
            patch.setattr(DirectoryBucket, "_sweep", lambda _: None)
            patch.setattr(time, "time_ns", lambda: real() + years * YEAR_SECONDS * 10**9)
            with holdfast.open(location, catalog=":memory:") as other:
                assert other.gc().forgotten_artifacts == 0
        assert store.read(store.restore(deleted.id).id) == b"deleted a moment ago"
        assert [upload.token for upload in store.uploads()] == [token]
        writer.write(b"the rest")
        assert store.read(writer.commit().id, 17 << 20) == b"the rest"


def test_times_that_no_datetime_can_have() -> None:
    assert to_datetime(1 << 62).year == 9999
    assert to_datetime(-(1 << 62)).year == 1
    assert to_datetime(-1).year == 1969


@pytest.mark.parametrize("kind", ["dir", "log"])
@pytest.mark.parametrize("years", [-100, 9_000, 20_000])
def test_a_clock_out_of_all_bounds_is_no_trouble(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, years: int
) -> None:
    """Before 1970 counts as 1970, and what is past the year 9999 as its end."""
    location = f"dir://{tmp_path / 'store'}" if kind == "dir" else str(tmp_path / "store")
    real = time.time_ns
    monkeypatch.setattr("holdfast.types._last_tick", 0)  # ids do not go back in time, but for the other tests
    monkeypatch.setattr(time, "time_ns", lambda: real() + years * YEAR_SECONDS * 10**9)
    with holdfast.open(location, create=True) as store:
        artifact = store.put(b"x")
        assert artifact.created_at.year == (1970 if years < 0 else 9999)
        store.tags.set("name", artifact.hash)
        writer = store.writer(resumable=True)
        writer.write(b"some")
        writer.checkpoint()
        uploads = [
            upload.token for upload in store.uploads()
        ]  # in a directory it expires by the times of files
        assert uploads == [writer.token] or kind == "dir"
        other = store.put(b"y")
        store.update(other, filename="y")
        store.delete(other)
        assert [one.id for one in store.find()] == [artifact.id]
        assert store.tags.get("name").modified_at.year == artifact.created_at.year
        assert store.restore(other).id == other.id
        store.delete(other)
        store.gc()
        store.scrub()
        assert store.health().scrubbed_at is not None
        store.rebuild()
        store.refresh()
    with holdfast.open(location) as store:
        assert store.read(artifact) == b"x"
