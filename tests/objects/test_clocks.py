"""A machine whose clock is wrong takes nothing that others may still ask for."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

import holdfast
from holdfast.backend.objects.directory import DirectoryBucket

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
