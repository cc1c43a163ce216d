"""A store of objects at the prompt: configured, made, used, and opened anew without its catalog."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from holdfast.servers import LocalServer
from tests.cli.conftest import Cli


@pytest.fixture(params=["directory", "minio", "versitygw"])
def configured(
    request: pytest.FixtureRequest, cli: Cli, prefix: str, servers: Callable[[str], LocalServer]
) -> Cli:
    """A working directory whose configuration names a place where no store is yet."""
    cli.env.pop("HOLDFAST_STORE")
    shutil.rmtree(cli.store)
    text = '[blob_store]\ntype = "directory"\npath = "objects"\n[log]\nchunking = "fixed"\n'
    (cli.place / "objects").mkdir()
    if request.param != "directory":
        access = servers(request.param).access
        cli.env["SERVER_SECRET"] = access.secret_key
        text = (
            f'[blob_store]\ntype = "s3"\nbucket = "{access.bucket}"\nprefix = "{prefix}"\n'
            f'endpoint = "{access.endpoint}"\naccess_key = "{access.access_key}"\n'
            'secret_key = { env = "SERVER_SECRET" }\n'
        )
    cli.write("holdfast.toml", text.encode())
    return cli


def test_from_the_configuration_to_a_store_and_back_without_its_catalog(configured: Cli) -> None:
    cli = configured
    assert "make one: holdfast init" in cli("ls", code=3).error
    assert cli("config", "check", "--json").document["checks"][0]["said"] == "there is no store yet"
    location = cli("init", "-q").lines[0]
    assert location.startswith(("dir:///", "s3://"))
    assert "there is a store" in cli("config", "check").text
    (artifact,) = cli("put", "-", "--name", "a.txt", "-q", stdin=b"some bytes").lines
    assert cli("cat", artifact).raw == b"some bytes"
    catalog = Path(cli("config", "check", "--offline", "--json").document["catalog"])
    assert catalog.is_file()
    for file in catalog.parent.glob("catalog.db*"):
        file.unlink()
    assert cli("ls", "-q").lines == [artifact]
    assert cli("--store", location, "cat", artifact).raw == b"some bytes"


def test_a_catalog_in_memory_leaves_none_on_the_disk(configured: Cli) -> None:
    cli = configured
    cli.env["HOLDFAST_BLOB_STORE__DB_PATH"] = ":memory:"
    cli("init")
    (artifact,) = cli("put", "-", "-q", stdin=b"x").lines
    assert cli("ls", "-q").lines == [artifact]
    assert list(cli.place.rglob("catalog.db*")) == []


def test_a_catalog_lies_where_it_is_said(configured: Cli) -> None:
    cli = configured
    cli.env["HOLDFAST_BLOB_STORE__DB_PATH"] = str(cli.place / "mine.db")
    cli("init")
    assert (cli.place / "mine.db").is_file()
    assert list(cli.place.rglob("catalog.db*")) == []


def test_what_a_local_store_has_is_refused_for_one_of_objects(configured: Cli) -> None:
    assert "are for local stores" in configured("init", "--chunking", "fixed", code=2).error


def test_a_local_store_and_one_of_objects_are_not_taken_for_each_other(cli: Cli) -> None:
    cli("init", "local")
    assert "something else" in cli("--store", f"dir://{cli.place}/local", "ls", code=6).error
    cli("--store", f"dir://{cli.place}/objects", "init")
    before = sorted((cli.place / "objects").rglob("*"))
    assert cli("--store", str(cli.place / "objects"), "ls", code=6).error
    assert cli("init", "objects", code=6, HOLDFAST_STORE=None).error
    assert sorted((cli.place / "objects").rglob("*")) == before
