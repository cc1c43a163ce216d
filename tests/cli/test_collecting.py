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
