"""A store of objects at the prompt: configured, made, used, and opened anew without its catalog."""

from __future__ import annotations

import json
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


def test_a_bucket_that_is_absent_is_made_by_nobody_here(
    cli: Cli, servers: Callable[[str], LocalServer]
) -> None:
    access = servers("minio").access
    cli.env |= {"AWS_ENDPOINT_URL": access.endpoint, "AWS_ALLOW_HTTP": "true"}
    cli.env |= {"AWS_ACCESS_KEY_ID": access.access_key, "AWS_SECRET_ACCESS_KEY": access.secret_key}
    for command in ("init", "ls"):
        said = cli("--store", "s3://absent-bucket/x", command, code=3).error
        assert "no such bucket" in said
        assert "holdfast init" not in said


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


def test_every_command_works_on_a_bucket(configured: Cli) -> None:
    cli = configured
    cli("init")
    content = bytes(range(256)) * 400
    cli.write("big.bin", content)
    (cli.place / "tree" / "deep").mkdir(parents=True)
    cli.write("tree/deep/x", b"in a tree")
    (big,) = cli("put", "big.bin", "--tag", "t", "-q").lines
    (tree,) = cli("put", "-r", "tree", "-q").lines
    assert set(cli("ls", "-q").lines) == {big, tree}
    assert cli("cat", big, "--range", "1000..70000").raw == content[1000:70000]
    cli("get", tree, "-o", "out")
    assert (cli.place / "out" / "deep" / "x").read_bytes() == b"in a tree"
    cli("rm", big, "--yes")
    assert cli("ls", "-q").lines == [tree]
    cli("restore", big)
    cli("tag", "set", "name", big)
    assert cli("cat", "tag:name").raw == content
    assert "sound" in cli("verify", big, tree).text
    assert cli("scrub", "--json").document["ok"]
    assert "well" in cli("health").text
    assert cli("refresh", "--json").document["names_read"] == 0
    assert "LIST" in cli("refresh").text
    assert cli("rebuild", "--json").document["artifacts"] == 2
    deep = cli("rebuild", "--deep", "--json").document
    assert (deep["artifacts"], deep["damaged"]) == (2, 0)
    assert deep["requests"]["bytes_in"] > len(content)
    assert "--deep" in cli("rebuild", "--resume", code=2).error
    assert cli("rebuild", "--deep", "--resume", "-q").text == ""
    stats = cli("stats").text
    assert "nothing is compressed" in stats
    assert "requests" in stats
    assert "segment" not in stats
    assert cli("repair").text == "nothing is known to be damaged (scrub looks)\n"


def test_what_a_command_cost_is_the_last_line_for_programs(configured: Cli) -> None:
    cli = configured
    cli("init")
    done = cli("put", "-", "--json", stdin=b"some bytes")
    (line,) = done.error.splitlines()
    cost = json.loads(line)["requests"]
    assert cost["put"] >= 2
    assert cost["bytes_out"] > 0
    assert done.document["durability"] in ("fsynced", "stored")
    assert cli("put", "-", stdin=b"some bytes").error == ""
    cost = json.loads(cli("find", "--json").error.splitlines()[-1])["requests"]
    assert (cost["get"], cost["list"], cost["put"]) == (1, 0, 0)  # store.json
    assert json.loads(cli("stats", "--json").text)["requests"]["get"] == 1
    refused = cli("put", "-", stdin=b"more", code=2, HOLDFAST_LIMITS__MAX_REQUESTS="2").error
    assert "the limit of 2 requests is reached" in refused


def test_two_machines_at_the_prompt(configured: Cli) -> None:
    cli = configured
    cli("init")
    (first,) = cli("put", "-", "-q", stdin=b"of the first").lines
    cli.env["HOLDFAST_BLOB_STORE__DB_PATH"] = str(cli.place / "other.db")
    (second,) = cli("put", "-", "-q", stdin=b"of the second").lines
    cli("rm", first, "--yes")
    del cli.env["HOLDFAST_BLOB_STORE__DB_PATH"]
    assert cli("ls", "-q").lines == [first]
    assert "names read  2" in cli("refresh").text
    assert cli("ls", "-q").lines == [second]
    assert cli("cat", second).raw == b"of the second"


def test_damage_at_the_prompt(cli: Cli) -> None:
    store = f"dir://{cli.place}/objects"
    cli.env["HOLDFAST_STORE"] = store
    cli("init", store)
    cli.write("original", bytes(100_000))
    cli("put", "original")
    (path,) = (path for path in (cli.place / "objects" / "blobs").rglob("data"))
    path.write_bytes(bytes(50_000) + b"\x01" + bytes(49_999))
    assert "corrupt_blob" in cli("scrub", code=5).text
    assert "1 objects are damaged" in cli("health", code=5).text
    assert "STILL DAMAGED" in cli("repair", code=5).text
    assert "1 × blob from original" in cli("repair", "original").text
    assert "well" in cli("health").text
    assert path.read_bytes() == bytes(100_000)
