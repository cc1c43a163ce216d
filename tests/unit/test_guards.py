"""What must not happen by a slip: a store overwritten by an export, forgotten by a rebuild, grown by rebuilds."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import holdfast
from holdfast.errors import Conflict, CorruptSegment, IntegrityError, InvalidInput
from holdfast.testing.contract_base import sample


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    root.mkdir()
    (root / "a").write_bytes(b"a")
    return root


def test_an_export_never_overwrites_the_store(
    tmp_path: Path, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "here"
    (here / "below").mkdir(parents=True)
    with holdfast.open(here / "store", create=True) as store:
        one, artifact = store.put(b"one"), store.put_tree(tree)
        (here / "mine.txt").write_bytes(b"mine")
        for target in (here, here / "store", here / "store" / "segments", here / "store" / "new"):
            for ref in (one, artifact):
                with pytest.raises((InvalidInput, Conflict)):
                    store.export(ref, target, overwrite=True)
        monkeypatch.chdir(here / "below")
        for name in (".", "..", "../below"):
            with pytest.raises((InvalidInput, Conflict)):
                store.export(artifact, name, overwrite=True)
        assert store.scrub().ok
    assert (here / "mine.txt").read_bytes() == b"mine"


def test_an_export_replaces_no_directory_with_strangers_in_it(tmp_path: Path, tree: Path) -> None:
    with holdfast.open(tmp_path / "store", create=True) as store:
        artifact = store.put_tree(tree)
        store.export(artifact, tmp_path / "out")
        store.export(artifact, tmp_path / "out", overwrite=True)
        (tmp_path / "out" / "mine").write_bytes(b"mine")
        with pytest.raises(Conflict, match="mine"):
            store.export(artifact, tmp_path / "out", overwrite=True)
        assert (tmp_path / "out" / "mine").read_bytes() == b"mine"


def test_an_export_replaces_no_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with holdfast.open(tmp_path / "store", create=True) as store:
        artifact = store.put(b"one")
        with pytest.raises(InvalidInput):
            store.export(artifact, tmp_path / "pipe", overwrite=True)
    assert (tmp_path / "pipe").is_fifo()


def test_a_store_is_not_put_into_itself(tmp_path: Path) -> None:
    with holdfast.open(tmp_path / "store", create=True) as store:
        for path in (tmp_path / "store", tmp_path / "store" / "segments"):
            with pytest.raises(InvalidInput):
                store.put_tree(path)


@pytest.mark.parametrize("cut", [True, False])
def test_a_lost_segment_is_damage_and_not_forgotten(tmp_path: Path, cut: bool) -> None:
    with holdfast.open(tmp_path / "store", create=True) as store:
        artifact = store.put(sample(50_000))
    segment = tmp_path / "store" / "segments" / "0000000001.seg"
    data = segment.read_bytes()
    if cut:
        os.truncate(segment, 100)
    else:
        segment.unlink()
    with holdfast.open(tmp_path / "store") as store:
        for _ in range(2):
            with pytest.raises(IntegrityError):
                store.read(artifact)
            assert store.info(artifact).id == artifact.id
            with pytest.raises(CorruptSegment):
                store.rebuild()
            assert not store.scrub().ok
    segment.write_bytes(data)
    with holdfast.open(tmp_path / "store") as store:
        assert store.read(artifact) == sample(50_000)


def test_rebuilds_beside_a_live_writer_copy_its_tail_once(tmp_path: Path) -> None:
    with holdfast.open(tmp_path / "store", create=True) as writer:
        artifact = writer.put(sample(500_000))
        with holdfast.open(tmp_path / "store") as other:
            assert other.rebuild().copied_bytes > 0
            size = other.stats().disk_bytes
            for _ in range(3):
                assert other.rebuild().copied_bytes == 0
            assert other.stats().disk_bytes < size + 50_000
            assert other.read(artifact) == writer.read(artifact) == sample(500_000)
