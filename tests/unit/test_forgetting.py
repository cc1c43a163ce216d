"""Damage to the log is no reason to make a catalog anew that knows more than the log still does."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import holdfast
from holdfast.errors import IntegrityError


def test_a_read_of_damaged_records_forgets_no_name(tmp_path: Path) -> None:
    path, backup = tmp_path / "store", tmp_path / "backup"
    contents = [bytes([n]) * 9_000 for n in range(1, 9)]
    with holdfast.create(path, compression="none") as store:
        kept = [store.put(content, filename=f"{n}") for n, content in enumerate(contents)]
        store.tags.set("named", kept[3].hash)
    shutil.copytree(path, backup)
    (segment,) = (path / "segments").iterdir()
    with segment.open("r+b") as file:
        file.seek(9_500)
        file.write(bytes(30_000))  # contents, artifacts and commits alike
    with holdfast.open(path) as store:
        for artifact in kept:
            try:
                assert len(store.read(artifact)) == 9_000
            except IntegrityError:
                continue
        with pytest.raises(IntegrityError):
            store.read(kept[2])
        assert {one.id for one in store.find()} == {one.id for one in kept}
        assert store.tags.get("named").hash == kept[3].hash
        assert not store.scrub().ok
        assert {one.id for one in store.find()} == {one.id for one in kept}
        assert store.repair(str(backup)).ok
        assert store.scrub().ok
        assert [store.read(one) for one in kept] == contents
        store.rebuild()
        assert [store.read(one) for one in kept] == contents
