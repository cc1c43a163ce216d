"""`gc`, `why`, and what `rm` says of the space that comes back."""

from __future__ import annotations

import os
import pty
import random
import subprocess
from pathlib import Path

from tests.cli.conftest import Cli

BYTES = random.Random(1).randbytes(200_000)


def test_what_was_deleted_is_collected(cli: Cli) -> None:
    a, b = cli.put(BYTES), cli.put(BYTES[:100_000] + b"end")
    kept = cli("--json", "info", b).document["hash"]
    gone = cli("--json", "info", a).document["hash"]
    plan = cli("rm", a, "--dry-run")
    assert "1 artifact would be deleted; " in plan.error
    assert "will be free after 24 h; " in plan.error
    assert "are shared and stay" in plan.error
    assert "1 artifact deleted" in cli("rm", a).error
    assert "nothing" not in cli("gc").text
    cli("restore", a)
    cli("rm", a)
    foreseen = cli("--json", "gc", "--dry-run", "--min-age", "0").document
    assert foreseen["blobs"] == [gone]
    assert "was deleted" in foreseen["reasons"][gone]
    assert gone in cli("gc", "--dry-run", "--min-age", "0").text
    done = cli("--json", "gc", "--min-age", "0").document
    assert (done["dropped_blobs"], done["complete"]) == (1, True)
    assert done["freed_bytes"] == foreseen["freed_bytes"]
    cli("cat", gone, code=3)
    cli("restore", a, code=3)
    assert cli("cat", b).raw == BYTES[:100_000] + b"end"
    assert cli("-q", "gc").text == ""
    assert f"artifact {b}" in cli("why", kept).text
    assert cli("why", gone, code=3).error
    cli("gc", "--min-age", "-1", code=2)


def test_why_shows_chains(cli: Cli) -> None:
    tree = cli.place / "tree"
    tree.mkdir()
    (tree / "file").write_bytes(BYTES)
    id_ = cli("-q", "put", "-r", str(tree)).text.strip()
    hash_ = cli("-q", "blob", "add", "-", stdin=BYTES).text.strip()
    cli("tag", "set", "mine", hash_)
    chains = cli("--json", "why", hash_).documents
    assert {(chain["root"], len(chain["path"])) for chain in chains} == {
        (f"artifact {id_}", 2),
        ("tag 'mine'", 1),
    }
    assert cli("why", "tag:mine").lines[0] == "tag 'mine'"
    assert set(cli("-q", "why", hash_).lines) == {"tag 'mine'", f"artifact {id_}"}


def test_rm_shows_the_forecast_before_it_asks(cli: Cli, tmp_path: Path) -> None:
    id_ = cli.put(BYTES)
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        cli.command("rm", id_),
        stdin=follower,
        stderr=follower,
        stdout=subprocess.DEVNULL,
        cwd=cli.place,
        env=cli.environ(),
    )
    os.close(follower)
    os.write(leader, b"n\n")
    said = b""
    try:
        while piece := os.read(leader, 4096):
            said += piece
    except OSError:  # the other end is closed
        pass
    assert process.wait(60) == 1
    os.close(leader)
    assert b"will be free after 24 h [y/N]" in said
    assert b"nothing was deleted" in said


def test_what_a_deletion_gives_is_said_without_a_question(cli: Cli) -> None:
    a, b = cli.put(BYTES), cli.put(BYTES[:100_000] + b"end")
    for words in (["rm", a], ["rm", "-y", a]):
        said = cli(*words).error
        assert "1 artifact deleted; " in said
        assert "will be free after 24 h; " in said
        assert "are shared and stay" in said
        cli("restore", a)
    documents = cli("--json", "rm", a, b).documents
    assert [one["id"] for one in documents] == [a, b]
    for one in documents:
        assert one["summary"].startswith("2 artifacts deleted; ")
        assert one["forecast"]["artifacts"] == 2
        assert one["forecast"]["freed_bytes"] > 0
    assert "2 deleted artifacts, " in cli("gc").text
    assert "can still be restored" in cli("gc").text
    assert "can still be restored" not in cli("gc", "--min-age", "0").text


def test_why_takes_the_beginning_of_a_hash(cli: Cli) -> None:
    id_ = cli.put(BYTES)
    hash_ = cli("--json", "info", id_).document["hash"]
    for text in (hash_[:8], hash_[:8].upper(), f"blake3:{hash_[:8]}", id_, hash_):
        assert cli("-q", "why", text).lines == [f"artifact {id_}"]
    assert "begins with deadbeef" in cli("why", "deadbeef", code=3).error


def test_a_scrub_that_was_cut_short_does_not_call_the_store_sound(cli: Cli) -> None:
    cli.put(BYTES)
    said = cli("scrub", "--max", "0").text
    assert "sound" not in said
    assert "NOT ALL OF IT WAS READ" in said
    assert "store: sound" in cli("scrub").text
    assert "--rate 0" in cli("scrub", "--rate", "0", code=2).error


def test_a_bucket_says_what_it_costs(cli: Cli) -> None:
    where = ("--store", f"dir://{cli.place}/objects")
    cli(*where, "init")
    id_ = cli(*where, "-q", "put", "-", stdin=BYTES).text.strip()
    cli(*where, "rm", id_)
    plan = cli(*where, "gc", "--dry-run", "--min-age", "0").text
    assert "the changes would take about " in plan
    done = cli(*where, "gc", "--min-age", "0")
    assert "the changes take about " in done.error
    assert "2 PUT, 1 DELETE" in done.error
    assert "the bucket was asked " in done.text
    assert cli(*where, "--json", "gc").document["requests"]["list"] > 0
