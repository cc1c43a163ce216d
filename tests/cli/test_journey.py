"""What a person does with it: store, list, read, export, delete, restore, look after."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from tests.cli.conftest import Cli, Flip

CONTENT = b"".join(hashlib.sha256(i.to_bytes(4)).digest() for i in range(8192))  # 256 KiB, incompressible


def test_what_was_put_is_listed_shown_and_read(cli: Cli) -> None:
    file = cli.write("model.bin", CONTENT)
    stored = cli(
        "--json", "put", file, "--tag", "prod", "--link", "run:42", "--meta", "lr=3e-4", "--by", "me"
    ).document
    assert stored["filename"] == "model.bin"
    assert stored["size_bytes"] == len(CONTENT)
    assert (stored["tags"], stored["links"], stored["metadata"]) == (["prod"], ["run:42"], {"lr": "3e-4"})
    assert cli("ls", "-q").lines == [stored["id"]]
    row = cli("ls").text.rstrip("\n").split("\t")
    assert (row[0], row[1], row[3], row[4]) == (stored["id"], str(len(CONTENT)), "model.bin", "prod")
    shown = cli("info", stored["id"]).text
    for part in ("model.bin", "256.0 KiB", f"blake3:{stored['hash']}", "prod", "run:42", "lr=3e-4", "by me"):
        assert part in shown
    assert cli("cat", stored["id"]).raw == CONTENT
    assert cli("cat", f"blake3:{stored['hash']}").raw == CONTENT
    assert cli("info", f"blake3:{stored['hash']}", "--json").document["status"] == "complete"


@pytest.mark.parametrize(
    ("text", "start", "stop"),
    [
        ("0..4096", 0, 4096),
        ("16383..16385", 16383, 16385),
        ("262140..", 262140, None),
        ("..10", 0, 10),
        ("..", 0, None),
        ("5..5", 5, 5),
    ],
)
def test_ranges_are_half_open(cli: Cli, text: str, start: int, stop: int | None) -> None:
    artifact = cli.put(CONTENT)
    assert cli("cat", artifact, "--range", text).raw == CONTENT[start:stop]


@pytest.mark.parametrize(
    "text", ["4..2", "0..262145", "262145..", "-5..4", "1-4", "a..b", "1..2..3", "0..99999999999999999999"]
)
def test_a_range_that_is_none_is_refused(cli: Cli, text: str) -> None:
    artifact = cli.put(CONTENT)
    result = cli("cat", artifact, f"--range={text}", code=2)
    assert result.raw == b""


def test_several_files_are_one_acknowledgement(cli: Cli) -> None:
    paths = [cli.write(f"{i}.txt", f"file {i}".encode()) for i in range(20)]
    ids = cli("-q", "put", *paths).lines
    assert len(ids) == 20
    assert sorted(cli("ls", "-q").lines) == sorted(ids)
    assert [cli("cat", ids[i]).raw for i in (0, 19)] == [b"file 0", b"file 19"]
    cli("put", paths[0], cli.place / "missing", code=3)
    assert len(cli("ls", "-q").lines) == 20


def test_a_directory_goes_in_and_comes_out_the_same(cli: Cli) -> None:
    cli.write("photos/a.txt", b"a")
    cli.write("photos/deep/er/b.bin", CONTENT)
    cli.write("photos/deep/empty", b"")
    cli.write("photos/same.txt", b"a")
    cli.write("photos/x.tmp", b"not me")
    assert "-r" in cli("put", "photos", code=2).error
    tree = cli("put", "-r", "photos", "--exclude", "*.tmp", "--json").document
    assert (tree["format"], tree["filename"]) == ("hash_seq", "photos")
    cli("get", tree["id"], "-o", "copy")
    found = {
        str(p.relative_to(cli.place / "copy")): p.read_bytes()
        for p in (cli.place / "copy").rglob("*")
        if p.is_file()
    }
    assert found == {"a.txt": b"a", "deep/er/b.bin": CONTENT, "deep/empty": b"", "same.txt": b"a"}
    assert "get" in cli("cat", tree["id"], code=2).error
    assert cli("ls").text.split("\t")[3] == "photos/"


def test_get_writes_whole_files_and_overwrites_only_when_told(cli: Cli) -> None:
    artifact = cli.put(CONTENT, "--name", "sub/../../name.bin")
    cli("get", artifact)
    assert (cli.place / "name.bin").read_bytes() == CONTENT
    cli.write("taken", b"precious")
    cli("get", artifact, "-o", "taken", code=4)
    assert (cli.place / "taken").read_bytes() == b"precious"
    cli("get", artifact, "-o", "taken", "-f")
    assert (cli.place / "taken").read_bytes() == CONTENT
    (cli.place / "directory").mkdir()
    cli("get", artifact, "-o", "directory")
    assert (cli.place / "directory" / "name.bin").read_bytes() == CONTENT
    assert cli("get", artifact, "-o", "-").raw == CONTENT


def test_delete_and_restore(cli: Cli) -> None:
    keep, gone = cli.put(b"keep"), cli.put(b"gone")
    assert gone in cli("rm", gone, "--dry-run").text
    assert len(cli("ls", "-q").lines) == 2
    assert cli("rm", gone, "-q").lines == [gone]
    assert cli("ls", "-q").lines == [keep]
    cli("info", gone, code=3)
    cli("rm", gone, code=3)
    assert cli("ls", "-q", "--deleted").lines == [gone]
    assert cli("--json", "restore", gone).document["id"] == gone
    assert cli("cat", gone).raw == b"gone"
    cli("restore", gone, code=3)


def test_refs_may_be_shortened_while_they_are_unique(cli: Cli) -> None:
    a, b = (cli("--json", "put", cli.write(name, name.encode())).document for name in ("a", "b"))
    same = next(i for i, (x, y) in enumerate(zip(a["id"], b["id"], strict=True)) if x != y)
    assert same >= 4, "two ids of the same minute begin alike"
    assert cli("cat", a["id"][: same + 1]).raw == b"a"
    assert cli("cat", a["id"].upper()).raw == b"a"
    ambiguous = cli("cat", a["id"][:4], code=2).error
    assert a["id"] in ambiguous
    assert b["id"] in ambiguous
    assert cli("cat", f"blake3:{a['hash'][:12]}").raw == b"a"
    assert cli("cat", a["hash"]).raw == b"a"
    cli("cat", "blake3:ffffffff", code=3)
    cli("cat", "abc", code=2)
    cli("cat", "not a ref", code=2)
    cli("cat", "tag:prod", code=3)


def test_damage_is_refused_found_and_named(cli: Cli, flip: Flip) -> None:
    good, bad = cli.put(b"good" * 1000), cli("--json", "put", cli.write("bad", CONTENT[:20_000])).document
    assert cli("verify", good, bad["id"]).code == 0
    assert cli("scrub", "--json").document["ok"]
    flip(CONTENT[:20_000])
    refused = cli("cat", bad["id"], code=5)
    assert bad["hash"] in refused.error
    assert cli("cat", good).raw == b"good" * 1000
    reports = {report["ref"]: report for report in cli("verify", good, bad["id"], "--json", code=5).documents}
    assert (reports[good]["ok"], reports[bad["id"]]["ok"]) == (True, False)
    report = cli("scrub", "--json", code=5).document
    assert not report["ok"]
    assert any(problem["hash"] == bad["hash"] for problem in report["problems"])
    assert "DAMAGED" in cli("scrub", code=5).text


def test_the_catalog_may_be_lost(cli: Cli) -> None:
    ids = [cli.put(f"{i}".encode(), "--tag", "t") for i in range(3)]
    before = cli("ls", "--json").documents
    for path in cli.store.glob("catalog.db*"):
        path.unlink()
    assert cli("ls", "--json").documents == before
    stats = cli("rebuild", "--json").document
    assert stats["artifacts"] == 3
    assert cli("ls", "--json").documents == before
    assert sorted(cli("ls", "-q").lines) == sorted(ids)


def test_stats_are_figures(cli: Cli) -> None:
    cli.put(CONTENT)
    cli.put(CONTENT)
    stats = cli("stats", "--json").document
    assert (stats["artifacts"], stats["blobs"], stats["logical_bytes"]) == (2, 1, 2 * len(CONTENT))
    assert "2" in cli("stats").text


def test_lists_can_be_limited_and_are_newest_first(cli: Cli) -> None:
    ids = [cli.put(f"{i}".encode()) for i in range(3)]
    assert cli("ls", "-q").lines == ids[::-1]
    assert cli("ls", "-q", "-n", "2").lines == ids[:0:-1]
    assert cli("ls", "-n", "0").text == ""


@pytest.mark.parametrize(
    "name", ["new\nline", "tab\t", "\x1b[31mred", "space  ", "-dash", "ünï", "'\"", "a" * 200]
)
def test_odd_names_stay_on_their_line(cli: Cli, name: str) -> None:
    cli.write(f"in/{name}", b"odd")
    (stored,) = cli("--json", "put", "--", cli.place / "in" / name).documents
    assert stored["filename"] == name
    (line,) = cli("ls").lines
    assert line.count("\t") == 4
    assert "\x1b" not in line
    assert all(char.isprintable() or char == "\n" for char in cli("info", stored["id"]).text)
    cli("get", stored["id"])
    assert (cli.place / name).read_bytes() == b"odd"


def test_a_name_that_is_not_utf8_is_refused_by_name(cli: Cli) -> None:
    cli.write(b"bad\xff", b"bytes")
    result = cli("put", b"bad\xff", code=2)
    assert "bad" in result.error
    assert cli("put", b"bad\xff", "--name", "good").code == 0


def test_memory_needs_no_store(bare: Cli) -> None:
    assert bare("--store", "memory://", "put", "-", "--json", stdin=b"x").document["size_bytes"] == 1


def test_the_default_store_is_made_at_the_first_put_and_only_then(bare: Cli, tmp_path: Path) -> None:
    bare("ls", code=3, HOLDFAST_STORE=None)
    first = bare("put", "-", stdin=b"x", HOLDFAST_STORE=None)
    assert str(tmp_path / "data") in first.error
    assert first.error.count("\n") == 1
    assert bare("put", "-", stdin=b"y", HOLDFAST_STORE=None).error == ""
    assert len(bare("ls", "-q", HOLDFAST_STORE=None).lines) == 2


def test_a_typo_makes_no_store(bare: Cli) -> None:
    result = bare("--store", "stroe", "put", "-", stdin=b"x", code=3)
    assert "holdfast init stroe" in result.error
    assert not (bare.place / "stroe").exists()
    bare("put", "-", stdin=b"x", code=3)
    assert not bare.store.exists()


def test_init_takes_options_and_refuses_to_do_it_twice(bare: Cli) -> None:
    assert (
        str(bare.store)
        in bare("init", "--chunking", "fixed", "--chunk-size", "64KiB", "--json").document["location"]
    )
    bare("init", code=4)
    bare("init", "deep/er/store")
    assert bare("--store", "deep/er/store", "ls").text == ""
    bare("init", "other", "--chunk-size", "many", code=2)
    bare("init", "other", "--chunk-size", "1", code=2)
    assert not (bare.place / "other").exists()
