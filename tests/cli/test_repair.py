"""What a person does about a bad disk: scrub, health, repair; and looks at figures."""

from __future__ import annotations

import random
import shutil

from tests.cli.conftest import Cli, Flip


def test_from_damage_to_a_sound_store(cli: Cli, flip: Flip) -> None:
    content = random.Random(1).randbytes(400_000)
    file = cli.write("original.bin", content)
    id_ = cli("-q", "put", file).text.strip()
    shutil.copytree(cli.store, cli.place / "backup")
    assert cli("health", "--json").document["ok"]
    assert "nothing is known to be damaged" in cli("repair").text
    flip(content)
    scrubbed = cli("scrub", code=5)
    assert "1 record put into quarantine" in scrubbed.text
    well = cli("health", code=5)
    assert "NOT WELL" in well.text
    assert "holdfast repair" in well.text
    assert cli("health", "--json", code=5).document["quarantined"] == 1
    assert "damaged" in cli("stats").text
    nothing = cli("repair", code=5)
    assert "no source has" in nothing.text
    assert cli("-q", "repair", code=5).lines
    assert "--yes" in cli("repair", "--give-up", code=2).error
    mended = cli("repair", file)
    assert "1 × chunk from" in mended.text
    assert cli("scrub").text.startswith("store: sound")
    assert cli("cat", id_).raw == content
    assert cli("health", "--json").document["ok"]
    for path in cli.store.glob("segments/*.seg"):
        path.write_bytes(path.read_bytes().replace(content[5_000:5_100], bytes(100)))
    cli("scrub", "-q", code=5)
    report = cli("repair", "--json", cli.place / "backup").document
    assert report["ok"]
    assert (report["missing"], report["repaired"][0]["source"]) == ([], str(cli.place / "backup"))
    assert "sound" in cli("verify", id_).text
    assert cli("repair", "nowhere", code=3).error


def test_a_scrub_in_parts_and_slowly(cli: Cli) -> None:
    cli.put(random.Random(2).randbytes(9_000_000))
    part = cli("scrub", "--max", "1MiB")
    assert "--resume goes on" in part.text
    rest = cli("scrub", "--resume", "--json").document
    assert rest["complete"]
    assert rest["checked_bytes"] < rest["pass_bytes"]
    slow = cli("scrub", "--rate", "20MiB", "--json").document
    assert slow["seconds"] > 0.2


def test_figures_of_one_artifact(cli: Cli) -> None:
    shared = random.Random(3).randbytes(600_000)
    one = cli.put(shared + b"one", "--name", "one")
    two = cli.put(shared + b"two", "--name", "two")
    stats = cli("stats", one, "--json").document
    assert stats["shared_with"][0]["id"] == two
    assert stats["shared_bytes"] + stats["own_bytes"] == 600_003
    assert two in cli("stats", one).text
    assert "is a hash" in cli("stats", f"blake3:{stats['hash']}", code=2).error
