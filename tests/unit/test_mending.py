"""A catalog that says what storage does not is rebuilt, and the caller gets the answer all the same."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import apsw
import pytest

import holdfast
from holdfast.catalog import Catalog
from holdfast.catalog.connection import connect
from holdfast.errors import IntegrityError, Unavailable
from holdfast.store import Store
from holdfast.testing.contract_base import sample
from holdfast.testing.inside import log_core


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
            log_core(store).backend.payloads._suspected.clear()
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


def test_a_catalog_that_goes_while_it_is_opened_is_rebuilt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with holdfast.open(tmp_path / "s", create=True) as store:
        artifact = store.put(b"kept")
    taken: list[Path] = []

    def take_away(path: Path, **how: Any) -> apsw.Connection:
        if not taken:
            taken.append(path)
            path.unlink()
        return connect(path, **how)

    monkeypatch.setattr("holdfast.catalog.base.connect", take_away)
    with holdfast.open(tmp_path / "s") as store:
        assert taken
        assert store.read(artifact) == b"kept"


@pytest.mark.parametrize("read_only", [False, True])
def test_a_catalog_that_goes_behind_its_opening_is_rebuilt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read_only: bool
) -> None:
    """What reads it then fails in SQLite's own ways: the soak met an I/O error."""
    with Store._open(tmp_path / "s", create=True) as store:
        artifact = store.put(b"held")

    def take_away(self: Catalog) -> Any:
        monkeypatch.undo()
        for suffix in ("", "-wal", "-shm"):
            (tmp_path / "s" / f"catalog.db{suffix}").unlink(missing_ok=True)
        raise Unavailable("disk I/O error")

    monkeypatch.setattr(Catalog, "segments", take_away)
    with Store._open(tmp_path / "s", read_only=read_only) as store:
        assert store.read(artifact) == b"held"


def test_an_older_catalog_put_back_while_the_store_is_open_is_caught_up(tmp_path: Path) -> None:
    """What this process itself has written since then, in a segment that it still writes, is among it."""
    path = tmp_path / "s" / "catalog.db"
    with holdfast.open(tmp_path / "s", create=True) as store:
        first = store.put(b"first")
        with holdfast.open(tmp_path / "s") as other:
            theirs = other.put(b"theirs")
            with closing(apsw.Connection(str(path))) as source:
                source.execute("VACUUM INTO ?", (str(tmp_path / "copy.db"),)).fetchall()
            second, later = store.put(b"second"), other.put(b"later")
            (tmp_path / "copy.db").replace(path)
            for one, content in (
                (first, b"first"),
                (theirs, b"theirs"),
                (second, b"second"),
                (later, b"later"),
            ):
                assert store.read(one) == other.read(one) == content
            third = store.put(b"third")
            assert other.read(third) == b"third"
    with holdfast.open(tmp_path / "s") as store:
        assert sum(1 for _ in store.find()) == 5
