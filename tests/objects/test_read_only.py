"""Places that may be read and not written: opened to read, with a word; a write is refused, and says what to do."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import holdfast
from holdfast.backend.objects.opening import open_bucket
from holdfast.cli import main
from holdfast.errors import PermissionDenied, StoreNotFound
from holdfast.servers import LocalServer
from holdfast.store import Store
from holdfast.testing.fault_proxy import FaultProxy, HttpFault
from holdfast.testing.faulty_bucket import WRITES, FaultyBucket
from holdfast.testing.plain_bucket import PlainBucket
from tests.servers import let_all, need, place_in

WRITING = frozenset({"PUT", "POST", "DELETE"})
NOBODY = 65534


@pytest.fixture
def root() -> Iterator[Path]:
    """Give a place that another user gets at; those of pytest are private."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        yield Path(name) / "objects"


@contextmanager
def taken_away(root: Path) -> Iterator[None]:
    """Nobody has the right to write in a directory, and we are not root."""
    for path in (root, *root.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    if os.geteuid() != 0:
        yield
    else:
        os.seteuid(NOBODY)
        try:
            yield
        finally:
            os.seteuid(0)
    for path in (root, *root.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)


def everything(root: Path) -> dict[Path, bytes | None]:
    return {path: path.read_bytes() if path.is_file() else None for path in root.rglob("*")}


def try_out(store: Store, artifact_id: str) -> None:
    """All reading works, and every way of writing is refused with words on what to do."""
    artifact = store.info(artifact_id)
    assert store.read(artifact) == b"what is kept" * 3_000
    assert [one.id for one in store.find()] == [artifact.id]
    assert store.tags.get("name").hash == artifact.hash
    assert store.verify(artifact).ok
    assert store.scrub().ok
    assert store.health().ok
    store.refresh()
    store.rebuild()
    assert [one.id for one in store.find()] == [artifact.id]
    writes: list[Callable[[], object]] = [
        lambda: store.put(b"new"),
        lambda: store.put_many([b"new"]),
        lambda: store.update(artifact, filename="other"),
        lambda: store.delete(artifact),
        lambda: store.tags.set("other", artifact.hash),
        lambda: store.tags.delete("name"),
        store.gc,
        store.compact,
        store.repair,
        store.writer,
    ]
    for write in writes:
        with pytest.raises(PermissionDenied, match=r"can only be read from here.*Give that permission"):
            write()


@pytest.mark.parametrize("kept", [True, False], ids=["catalog", "no catalog"])
def test_a_directory(root: Path, caplog: pytest.LogCaptureFixture, *, kept: bool) -> None:
    with holdfast.open(f"dir://{root}", create=True) as store:
        artifact = store.put(b"what is kept" * 3_000)
        store.tags.set("name", artifact.hash)
    if not kept:
        for path in root.glob("catalog.db*"):
            path.unlink()
    before = everything(root)
    with taken_away(root), caplog.at_level(logging.WARNING, "holdfast"):
        with holdfast.open(f"dir://{root}") as store:
            try_out(store, artifact.id)
        with holdfast.open(f"dir://{root}", create=True) as store:
            assert store.read(artifact) == b"what is kept" * 3_000
    assert f"{root} is opened read-only: " in caplog.text
    assert everything(root) == before
    with holdfast.open(f"dir://{root}") as store:
        store.put(b"new")  # with the permission it is as it was


def test_a_directory_whose_catalog_lies_elsewhere(root: Path, tmp_path: Path) -> None:
    """It is written then: nothing has to be listed again."""
    with holdfast.open(f"dir://{root}", create=True) as store:
        artifact = store.put(b"what is kept" * 3_000)
        store.tags.set("name", artifact.hash)
    catalog = root.parent / "elsewhere" / "catalog.db"
    catalog.parent.mkdir()
    catalog.parent.chmod(0o777)
    with taken_away(root):
        with holdfast.open(f"dir://{root}", catalog=catalog) as store:
            try_out(store, artifact.id)
        with holdfast.open(f"dir://{root}", catalog=catalog) as store:
            assert store.requests["list"] == 0
            assert store.read(artifact) == b"what is kept" * 3_000


def test_a_directory_without_a_store_is_none(root: Path) -> None:
    root.mkdir()
    with taken_away(root):
        with pytest.raises(StoreNotFound):
            holdfast.open(f"dir://{root}")
        with pytest.raises(PermissionDenied):
            holdfast.open(f"dir://{root}", create=True)


def refusing(bucket: PlainBucket) -> FaultyBucket:
    """Give it to somebody who may only read."""

    def refuse(site: object) -> None:
        if getattr(site, "call", "") in WRITES:
            raise PermissionDenied("not allowed to write (403 AccessDenied): the credentials lack it")

    return FaultyBucket(bucket, on_site=refuse)


def test_a_bucket(tmp_path: Path) -> None:
    bucket = PlainBucket()
    path = tmp_path / "catalog.db"
    with Store._open_objects(bucket, path, create=True) as store:
        artifact = store.put(b"what is kept" * 3_000)
        store.tags.set("name", artifact.hash)
    path.unlink()
    before = dict(bucket.objects)
    for _ in range(2):
        with Store._open_objects(refusing(bucket), path) as store:
            try_out(store, artifact.id)
    assert bucket.objects == before
    with Store._open_objects(bucket, path) as store:
        store.put(b"new")  # as soon as there is the permission


def test_a_permission_that_is_taken_away_later(tmp_path: Path) -> None:
    """The bucket is not asked before something is written."""
    bucket = PlainBucket()
    path = tmp_path / "catalog.db"
    with Store._open_objects(bucket, path, create=True) as store:
        artifact = store.put(b"what is kept" * 3_000)
        store.tags.set("name", artifact.hash)
    with Store._open_objects(refusing(bucket), path) as store:
        assert store.read(artifact) == b"what is kept" * 3_000
        writes: list[Callable[[], object]] = [
            lambda: store.put(b"new"),
            lambda: store.delete(artifact),
            lambda: store.tags.delete("name"),
            store.gc,
        ]
        for write in writes:
            with pytest.raises(PermissionDenied, match="lack it"):
                write()
        assert store.read(artifact) == b"what is kept" * 3_000


def test_who_may_add_and_not_delete_writes() -> None:
    bucket = PlainBucket()
    with Store._open_objects(bucket, create=True):
        pass

    def refuse(site: object) -> None:
        if getattr(site, "call", "") == "delete":
            raise PermissionDenied("not allowed to delete")

    with Store._open_objects(FaultyBucket(bucket, on_site=refuse)) as store:
        assert store.read(store.put(b"new")) == b"new"


@pytest.fixture(scope="module", params=["minio", "versitygw"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServer]:
    """Give a server of our own, whose bucket everybody may read and list."""
    need(request.param)
    with LocalServer(request.param, tmp_path_factory.mktemp("server")) as running:
        let_all(running.access, "ListBucket", "GetObject")
        yield running


def test_without_credentials_a_server_lets_one_read(
    server: LocalServer, prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = open_bucket(place_in(server.access, prefix))
    with Store._open_objects(bucket, tmp_path / "writer.db", create=True) as store:
        artifact = store.put(b"what is kept" * 3_000)
        store.tags.set("name", artifact.hash)
    options = {"endpoint": server.access.endpoint, "region": server.access.region, "skip_signature": True}
    anonymous = place_in(server.access, prefix, credentials=None, options=tuple(options.items()))
    for path in (None, tmp_path / "reader.db", tmp_path / "reader.db"):
        with Store._open_objects(open_bucket(anonymous), path) as store:
            try_out(store, artifact.id)


def test_the_command_line(
    servers: Callable[[str], LocalServer],
    prefix: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    access = servers("versitygw").access
    with FaultProxy(access.endpoint) as proxy:
        for name, value in {
            "TYPE": "s3",
            "BUCKET": access.bucket,
            "PREFIX": prefix,
            "ENDPOINT": proxy.endpoint,
            "REGION": access.region,
            "ACCESS_KEY": access.access_key,
            "SECRET_KEY": access.secret_key,
            "DB_PATH": str(tmp_path / "catalog.db"),
        }.items():
            monkeypatch.setenv(f"HOLDFAST_BLOB_STORE__{name}", value)
        (tmp_path / "photo.jpg").write_bytes(b"what is kept" * 3_000)

        def run(*arguments: str) -> tuple[int, str, str]:
            code = main(list(arguments))
            said = capsys.readouterr()
            return code, said.out, said.err

        assert run("init")[0] == 0
        code, id_, _ = run("put", "--quiet", str(tmp_path / "photo.jpg"))
        assert code == 0
        id_ = id_.strip()
        for path in tmp_path.glob("catalog.db*"):
            path.unlink()
        proxy.arm(HttpFault.DENIED, times=10**9, where=lambda request: request.method in WRITING)
        for arguments in (
            ["ls"],
            ["find", "--name", "photo*"],
            ["get", id_, "-o", str(tmp_path / "out")],
            ["info", id_],
        ):
            code, _, err = run(*arguments)
            assert (code, "opened read-only" in err) == (0, True), (arguments, err)
        assert (tmp_path / "out").read_bytes() == b"what is kept" * 3_000
        lists = [one for one in proxy.requests if "list-type" in one.query]
        assert run("ls")[0] == 0
        assert len([one for one in proxy.requests if "list-type" in one.query]) == len(
            lists
        )  # the catalog is kept
        for arguments in (["put", str(tmp_path / "photo.jpg")], ["rm", id_], ["gc"]):
            code, _, err = run(*arguments)
            assert (code, "can only be read from here" in err) == (7, True), (arguments, err)
            assert access.secret_key not in err
        code, out, _ = run("config", "check")
        assert code == 7
        assert "not allowed to write" in out
