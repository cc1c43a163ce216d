"""`encode`, `decode`, and what `blob info` draws."""

from __future__ import annotations

import os
import pty
import random
import subprocess
from pathlib import Path

import pytest

from tests.cli.conftest import Cli

CONTENT = random.Random(8).randbytes(1_000_001)


def add(cli: Cli) -> str:
    """Make a store with one blob, and another without."""
    cli("init", cli.place / "other")
    cli.write("data.bin", CONTENT)
    return cli("-q", "blob", "add", "data.bin").text.strip()


def test_a_stream_goes_from_store_to_store(cli: Cli) -> None:
    hash_ = add(cli)
    stream = cli("encode", f"blake3:{hash_}").raw
    assert stream[:8] == len(CONTENT).to_bytes(8, "little")
    assert cli("encode", hash_[:8]).raw == stream
    done = cli("--store", "other", "--json", "decode", hash_, "--tag", "it", stdin=stream).document
    assert (done["status"], done["tag"], done["bitfield"]["ranges"]) == ("complete", "it", "0..977")
    assert cli("--store", "other", "cat", "tag:it").raw == CONTENT
    (cli.place / "data.bao").write_bytes(stream)
    assert cli("--store", "other", "-q", "decode", hash_, "data.bao").text.strip() == hash_


def test_ranges_go_one_by_one_and_are_drawn(cli: Cli) -> None:
    hash_ = add(cli)
    other = ("--store", "other")
    part = cli("encode", hash_, "--range", "0..16384", "--range", "500000..").raw
    done = cli(
        *other, "decode", hash_, "--range", "0..16384", "--range", "500000..", "--tag", "it", stdin=part
    )
    assert "not tagged it" in done.error
    info = cli(*other, "--json", "blob", "info", hash_).document
    assert info["status"] == "partial"
    assert info["bitfield"]["ranges"].startswith("0..16,")
    text = cli(*other, "blob", "info", hash_, COLUMNS="60").text
    assert "█" in text
    assert "░" in text
    assert "missing  16.." in text
    plain = cli(*other, "blob", "info", hash_, COLUMNS="60", PYTHONIOENCODING="ascii").text
    assert "#" in plain
    assert plain.isascii()
    bars = [line for line in plain.splitlines() if "here" in line]
    assert len(bars[0].split()[1]) == 30
    first, stop = info["bitfield"]["ranges"].split(",")[1].split("..")
    missing = f"{16 * 1024}..{int(first) * 1024}"
    rest = cli("encode", hash_, "--range", missing).raw
    assert (
        cli(*other, "--json", "decode", hash_, "--range", missing, stdin=rest).document["status"]
        == "complete"
    )
    assert int(stop) == 977


def test_a_tree_goes_in_one_stream(cli: Cli) -> None:
    add(cli)
    for name in ("a.txt", "b/c.bin", "b/d.txt"):
        cli.write(f"tree/{name}", name.encode() * 10)
    artifact = cli("--json", "put", "-r", "tree").document
    stream = cli("encode", f"blake3:{artifact['hash']}", "--children").raw
    done = cli(
        "--store", "other", "--json", "decode", artifact["hash"], "--children", "--tag", "t", stdin=stream
    )
    assert (done.document["is_complete"], done.document["children"]) == (True, 4)
    names = cli("--store", "other", "--json", "tag", "ls").document
    assert names["format"] == "hash_seq"
    assert "4 of 4" in cli("--store", "other", "decode", artifact["hash"], "--children", stdin=stream).text


@pytest.mark.parametrize("stop", [0, 7, 100, 500_000])
def test_a_stream_that_ends_early_leaves_what_verified(cli: Cli, stop: int) -> None:
    hash_ = add(cli)
    stream = cli("encode", hash_).raw
    done = cli("--store", "other", "decode", hash_, stdin=stream[:stop], code=8)
    assert "too early" in done.error
    left = cli("--store", "other", "--json", "blob", "info", hash_, code=None)
    assert left.code == (0 if stop > 50_000 else 3)


def test_what_is_wrong_has_its_exit_code(cli: Cli) -> None:
    hash_ = add(cli)
    stream = bytearray(cli("encode", hash_).raw)
    stream[100_000] ^= 1
    assert "does not verify" in cli("--store", "other", "decode", hash_, stdin=bytes(stream), code=5).error
    cli("encode", "ff" * 32, code=3)
    cli("decode", "short", stdin=b"", code=2)
    cli("encode", hash_, "--range", "5..1", code=2)
    cli("encode", hash_, "--range", "0..1", "--children", code=2)
    cli("encode", hash_, "--children", code=6)
    cli("--store", "other", "encode", hash_, code=3)
    cli("--store", "other", "decode", hash_, "missing.bao", code=3)


def test_a_closed_pipe_is_quiet_and_a_terminal_is_refused(cli: Cli) -> None:
    hash_ = add(cli)
    with subprocess.Popen(
        cli.command("encode", hash_),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=cli.place,
        env=cli.environ(),
    ) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        child.stdout.read(10)
        child.stdout.close()
        assert child.stderr.read() == b""
        assert child.wait() == 141
    for command, used in (("encode", "stdout"), ("decode", "stdin")):
        ours, theirs = pty.openpty()
        try:
            streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, used: theirs}
            done = subprocess.run(
                cli.command(command, hash_),
                stderr=subprocess.PIPE,
                cwd=cli.place,
                env=cli.environ(),
                timeout=60,
                **streams,  # type: ignore[call-overload]  # the name of one is computed
            )
            assert done.returncode == 2
            assert b"terminal" in done.stderr
        finally:
            os.close(ours)
            os.close(theirs)


def test_a_read_only_store_can_be_sent_from(cli: Cli, tmp_path: Path) -> None:
    hash_ = add(cli)
    stream = cli("encode", hash_).raw
    for path in (cli.store, *cli.store.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        assert cli("encode", hash_).raw == stream
    finally:
        for path in (cli.store, *cli.store.rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)


def test_what_is_no_hash_seq_is_refused_before_it_is_out(cli: Cli) -> None:
    noise = random.Random(8).randbytes(3_200_000)
    hash_ = cli("--json", "info", cli.put(noise)).document["hash"]
    failed = cli("encode", hash_, "--children", code=2)
    assert "is no hash seq, as it seems" in failed.error
    assert not failed.text
    cli("encode", hash_)
    cli("tag", "set", "seq", hash_, "--hash-seq")  # somebody says so: it is believed, and a child is missing
    assert "is no hash seq" not in cli("encode", hash_, "--children", code=3).error
