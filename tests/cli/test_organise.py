"""What a person does to keep order: find, count, edit, tags and blobs."""

from __future__ import annotations

import pytest

from tests.cli.conftest import Cli


def test_artifacts_are_found_and_counted_by_what_they_bear(cli: Cli) -> None:
    a = cli.put(b"a", "--tag", "prod", "--tag", "eu", "--link", "run:1", "--name", "a.png", "--by", "ann")
    b = cli.put(b"bb", "--tag", "prod", "--name", "b.txt", "--by", "bob")
    c = cli.put(b"c" * 3000, "--tag", "product", "--name", "c.txt")
    for options, want in (
        ((), [c, b, a]),
        (("--tag", "prod"), [b, a]),
        (("--tag", "prod", "--tag", "eu"), [a]),
        (("--any-tag", "eu", "--any-tag", "product"), [c, a]),
        (("--link", "run:1"), [a]),
        (("--prefix", "prod"), [c, b, a]),
        (("--type", "image/*"), [a]),
        (("--name", "*.txt"), [c, b]),
        (("--by", "bob"), [b]),
        (("--min-size", "1KiB"), [c]),
        (("--max-size", "1"), [a]),
        (("--max-size", "0"), []),
        (("--since", "1h"), [c, b, a]),
        (("--until", "2020-01-01"), []),
        (("--changed-since", "2020-01-01T12:00", "--tag", "eu"), [a]),
        (("--deleted",), []),
    ):
        assert cli("-q", "find", *options).lines == want, options
        assert cli("--json", "count", *options).document == {"artifacts": len(want)}
    assert cli("-q", "find", "--limit", "1").lines == [c]
    assert cli("-q", "find", "--after", c).lines == [b, a]
    assert cli("count", "--tag", "prod").text == "2 artifacts\n"
    hash_ = cli("info", a, "--json").document["hash"]
    assert cli("-q", "find", "--hash", hash_).lines == [a]
    assert cli("count", "--each", "tag").lines == ["1\teu", "2\tprod", "1\tproduct"]
    assert cli("count", "--each", "link", "--json").documents == [{"name": "run:1", "artifacts": 1}]
    assert cli("count", "--each", "tag", "--prefix", "e", "-q").lines == ["eu"]
    cli("count", "--each", "tag", "--by", "ann", code=2)
    cli("find", "--since", "yesterday", code=2)
    cli("find", "--hash", "xyz", code=2)


def test_edit_changes_in_one_step(cli: Cli) -> None:
    base = cli.put(b"base")
    a = cli.put(b"a", "--tag", "old", "--meta", "k=1", "--name", "a.png", "--by", "ann")
    new = cli(
        *("--json", "edit", a, "--tag", "new", "--untag", "old", "--link", "run:1", "--meta", "lr=2"),
        *("--unset", "k", "--name", "b.png", "--clear", "by", "--require", base, "--if-revision", "1"),
    ).document
    assert (new["tags"], new["links"], new["metadata"]) == (["new"], ["run:1"], {"lr": "2"})
    assert (new["filename"], new["created_by"], new["requires"]) == ("b.png", None, [base])
    assert new["revision"] == 2
    assert "changed" in cli("edit", a, "--tag", "x").text
    assert cli("edit", a, "--tag", "x").text.startswith("unchanged")
    refused = cli("--json", "edit", a, "--tag", "y", "--if-revision", "2", code=4).error
    assert '"revision": 3' in refused
    cli("edit", a, "--name", "x", "--clear", "name", code=2)
    held = cli("rm", base, code=4).error
    assert a in held
    cli("edit", a, "--unrequire", base)
    cli("rm", base)


def test_rm_takes_all_or_none_and_force_what_is_required(cli: Cli) -> None:
    base, other = cli.put(b"base"), cli.put(b"other")
    holder = cli.put(b"holder")
    cli("edit", holder, "--require", base)
    cli("rm", other, base, code=4)
    assert set(cli("ls", "-q").lines) == {base, other, holder}
    cli("rm", other, base, "--force")
    assert cli("ls", "-q").lines == [holder]


def test_tags_name_blobs_at_the_prompt(cli: Cli) -> None:
    a, b = cli.put(b"a"), cli.put(b"b")
    tag = cli("--json", "tag", "set", "latest", a, "--if-revision", "0").document
    assert (tag["name"], tag["format"], tag["revision"]) == ("latest", "raw", 1)
    assert cli("cat", "tag:latest").raw == b"a"
    assert cli("info", "tag:latest", "--json").document["hash"] == tag["hash"]
    cli("edit", "tag:latest", "--tag", "x")
    assert cli("-q", "find", "--tag", "x").lines == [a]
    cli("tag", "set", "latest", b)
    assert cli("cat", "tag:latest").raw == b"b"
    cli("tag", "set", "latest", a, "--if-revision", "1", code=4)
    cli("tag", "mv", "latest", "old/1")
    assert [line.split("\t")[0] for line in cli("tag", "ls").lines] == ["old/1"]
    assert cli("tag", "ls", "new/").lines == []
    assert cli("tag", "rm", "old/1", "--dry-run", "--json").document["deleted"] is False
    cli("tag", "rm", "old/1", "none", code=3)
    assert cli("-q", "tag", "ls", "old/").lines == ["old/1"]
    assert "deleted old/1" in cli("tag", "rm", "old/1").text
    cli("cat", "tag:old/1", code=3)
    cli("tag", "set", "t", "blake3:" + "0" * 64, code=3)


def test_a_tree_is_tagged_with_its_children(cli: Cli) -> None:
    cli.write("tree/file", b"content")
    tree = cli("-q", "put", "-r", "tree").text.strip()
    assert cli("--json", "tag", "set", "t", tree).document["format"] == "hash_seq"


def test_blobs_are_added_listed_and_read(cli: Cli) -> None:
    one, two = cli.write("one", b"1" * 20_000), cli.write("two", b"2")
    hashes = cli("-q", "blob", "add", one, two).lines
    assert sorted(cli("-q", "blob", "ls").lines) == sorted(hashes)
    assert cli("-q", "blob", "ls", hashes[0][:6]).lines == [hashes[0]]
    assert cli("blob", "cat", hashes[0][:8], "--range", "0..3").raw == b"111"
    assert cli("blob", "info", f"blake3:{hashes[1]}", "--json").document["size_bytes"] == 1
    assert cli("blob", "add", "-", "--tag", "in", "--json", stdin=b"in").document["tag"] == "in"
    assert cli("blob", "cat", "tag:in").raw == b"in"
    assert "20,000 bytes" in cli("blob", "info", hashes[0]).text
    assert cli("ls", "-q").lines == []
    cli("blob", "add", one, two, "--tag", "t", code=2)
    cli("blob", "add", "missing", code=3)
    cli("blob", "cat", "0" * 64, code=3)


@pytest.mark.parametrize(
    "command", ["tag ls", "tag set", "tag mv", "tag rm", "blob ls", "blob info", "blob add", "blob cat"]
)
def test_every_command_below_has_an_example(bare: Cli, command: str) -> None:
    text = bare(*command.split(), "--help").text
    assert "Example:" in text
    assert f"holdfast {command}" in text
