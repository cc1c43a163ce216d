"""A catalog that says what storage does not is rebuilt, and the caller gets the answer all the same."""

from __future__ import annotations

from pathlib import Path

import apsw
import pytest

import holdfast
from holdfast.errors import IntegrityError
from holdfast.testing.contract_base import sample


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE data SET location = location + 1",
        "UPDATE data SET location = location + (99 << 32)",
        "UPDATE data SET stored = stored - 1 WHERE plain IS NULL",
        "DELETE FROM data",
        "UPDATE blobs SET location = location + 64",
        "DELETE FROM blobs",
    ],
)
def test_a_catalog_that_lies_is_rebuilt(tmp_path: Path, damage: str) -> None:
    contents = [b"small" * 10, sample(3_000_000)]
    with holdfast.open(tmp_path / "s", create=True) as store:
        artifacts = [store.put(content) for content in contents]
    connection = apsw.Connection(str(tmp_path / "s" / "catalog.db"))
    connection.execute(damage).fetchall()
    connection.close()
    for artifact, content in zip(artifacts, contents, strict=True):
        with holdfast.open(tmp_path / "s") as store:
            assert store.read(artifact) == content
            assert b"".join(store.iter_bytes(artifact)) == content
            assert store.read(artifact, 1, 20) == content[1:21]
            with store.open(artifact) as file:
                assert file.read() == content
            assert store.verify(artifact).ok
    with holdfast.open(tmp_path / "s") as store:
        assert store.scrub().ok


def test_the_layer_of_blobs_mends_it_too(tmp_path: Path) -> None:
    content = sample(100_000)
    with holdfast.open(tmp_path / "s", create=True) as store:
        hash_ = store.put(content).hash
        for ask in (store.blobs.info, store.blobs.read, store.blobs.open):
            with apsw.Connection(str(tmp_path / "s" / "catalog.db")) as connection:
                connection.execute("UPDATE blobs SET location = location + 64").fetchall()
            store._core.backend.payloads._suspected.clear()
            ask(hash_)


def test_real_damage_is_still_an_error_after_the_rebuild(tmp_path: Path) -> None:
    with holdfast.open(tmp_path / "s", create=True) as store:
        artifact = store.put(sample(700))
    (segment,) = (tmp_path / "s" / "segments").iterdir()
    data = bytearray(segment.read_bytes())
    data[64:200] = bytes(136)  # its header and some of its payload
    segment.write_bytes(data)
    with holdfast.open(tmp_path / "s") as store:
        for _ in range(3):
            with pytest.raises(IntegrityError):
                store.read(artifact)
        assert not store.scrub().ok
