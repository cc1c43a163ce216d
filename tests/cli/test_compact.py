"""`holdfast compact`, as a person and as a script see it."""

from __future__ import annotations

import os

from tests.cli.conftest import Cli


def test_compact_gives_room_back(cli: Cli) -> None:
    assert cli("compact").text == "nothing to do: no segment has that much to give back\n"
    keep = cli.put(os.urandom(30_000))
    gone = [cli.put(os.urandom(50_000)) for _ in range(3)]
    cli("rm", "--yes", *gone)
    cli("edit", keep, "--tag", "x")
    forecast = cli("--json", "compact", "--dry-run").document
    assert forecast["dry_run"]
    assert cli("compact", "--dry-run").text.startswith("would rewrite 1 segment (")
    assert cli("compact", "--min-dead-share", "0.9").text.startswith("nothing to do")
    report = cli("--json", "compact").document
    assert report["segments"] == forecast["segments"]
    assert report["freed_bytes"] > 0
    assert (report["kept"], report["problems"]) == ([], [])
    assert cli("cat", keep).code == 0
    for name in gone:  # the undo window is open: all of it is still there
        cli("restore", name)
        assert cli("cat", name).code == 0
    cli("edit", keep, "--tag", "y")
    assert "freed: 1 segment rewritten, " in cli("compact").text
    cli("edit", keep, "--tag", "z")
    assert len(cli("-q", "compact").lines) == 1
    cli("scrub")


def test_compact_says_what_is_wrong(cli: Cli) -> None:
    cli("compact", "--min-dead-share", "2", code=2)
    artifact = cli.put(os.urandom(40_000))
    cli("edit", artifact, "--tag", "x")
    (segment,) = (cli.store / "segments").iterdir()
    data = bytearray(segment.read_bytes())
    data[5_000] ^= 1
    segment.write_bytes(data)
    refused = cli("compact", code=5)
    assert "segment 1 stays: it is damaged" in refused.text
    assert segment.read_bytes()[5_000] == data[5_000]
