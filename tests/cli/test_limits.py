"""What the command does where it may not write, may not look, or has nobody to answer."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import holdfast
from holdfast.cli.output import State
from holdfast.errors import NoSpace, PermissionDenied
from tests.cli.conftest import Cli, Result

CONTENT = b"what may be read and not written"


@contextlib.contextmanager
def mode(path: Path, change: str) -> Iterator[None]:
    """Change the rights to everything below a path; given back at the end, so that it can be removed."""
    subprocess.run(["chmod", "-R", change, path], check=True)
    try:
        yield
    finally:
        subprocess.run(["chmod", "-R", "u+rwX", path], check=True)


def unprivileged(cli: Cli, *arguments: str, **env: str | None) -> Result:
    """Run a command for whom the rights to files count, as they do not for root."""
    command = list(cli.command(*arguments))
    if os.geteuid() == 0:
        if shutil.which("setpriv") is None:
            pytest.skip("root may do everything")
        command = ["setpriv", "--bounding-set", "-dac_override,-dac_read_search", *command]
    done = subprocess.run(command, capture_output=True, cwd=cli.place, env=cli.environ(**env), timeout=60)
    return Result(done.returncode, done.stdout, done.stderr.decode())


# A store that may not be written


@pytest.mark.parametrize(
    "arguments",
    [
        ["ls"],
        ["info", "REF"],
        ["cat", "REF"],
        ["get", "REF", "-o", "-"],
        ["find", "--tag", "x"],
        ["count"],
        ["verify", "REF"],
        ["scrub"],
        ["stats"],
        ["blob", "ls"],
        ["blob", "info", "tag:t"],
        ["blob", "cat", "tag:t"],
        ["tag", "ls"],
    ],
    ids=" ".join,
)
def test_a_store_that_may_not_be_written_can_be_read(cli: Cli, arguments: list[str]) -> None:
    ref = cli.put(CONTENT, "--tag", "x")
    cli("tag", "set", "t", ref)
    given = ["-q", *(ref if a == "REF" else a for a in arguments)]
    wanted = cli(*given).raw
    with mode(cli.store, "a-w"):
        done = unprivileged(cli, *given)
    assert (done.code, done.raw) == (0, wanted), done.error
    assert len(done.error.splitlines()) == 1
    assert "warning: opened read-only" in done.error


def test_a_store_that_may_not_be_written_is_not_changed(cli: Cli) -> None:
    ref = cli.put(CONTENT)
    for arguments in (["rm", ref], ["edit", ref, "--tag", "x"], ["rebuild"], ["tag", "set", "t", ref]):
        with mode(cli.store, "a-w"):
            done = unprivileged(cli, *arguments)
        assert done.code == 7, arguments
        assert "read-only" not in done.error


@pytest.mark.parametrize("why", [NoSpace, PermissionDenied])
def test_only_reading_commands_go_on_where_writing_is_not_possible(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], why: type[Exception]
) -> None:
    opened = holdfast.open

    def cannot_write(*arguments: Any, read_only: bool = False, **more: Any) -> holdfast.Store:
        if not read_only:
            raise why("no")
        return opened(*arguments, read_only=True, **more)

    monkeypatch.setattr(holdfast, "open", cannot_write)
    state = State(store=str(cli.store))
    with pytest.raises(why):
        state.open()
    with state.open(reads=True) as store:
        assert store.count() == 0
    assert capsys.readouterr().err == "holdfast: warning: opened read-only: no\n"


# A store that is not the one that was meant


@pytest.mark.parametrize(
    "arguments",
    [
        ["--store", "", "ls"],
        ["ls", "--store", ""],
        ["--store=", "put", "file"],
        ["--config", "", "ls"],
        ["--store", "", "init"],
        ["init", ""],
        ["--store", "other", "init", "x9"],
        ["init", "x9", "--store", "other"],
    ],
    ids=repr,
)
def test_another_store_than_the_one_that_was_named_is_never_used(bare: Cli, arguments: list[str]) -> None:
    bare.write("file", b"x")
    done = bare(*arguments, code=2)
    assert "empty" in done.error or "two places" in done.error
    assert sorted(os.listdir(bare.place)) == ["file"]


def test_init_takes_the_same_place_twice(bare: Cli) -> None:
    bare("--store", "./x9", "init", "x9")
    bare("--store", "x9", "ls")


def test_nothing_is_put_where_nothing_would_stay(cli: Cli) -> None:
    cli.write("file", b"x")
    for arguments in (["put", "file"], ["blob", "add", "file"]):
        assert "nothing would stay" in cli(*arguments, code=2, HOLDFAST_STORE="memory://").error
    assert cli("ls", HOLDFAST_STORE="memory://").raw == b""


def test_two_values_for_one_key_are_refused(cli: Cli) -> None:
    ref = cli.put(b"x", "--meta", "a=1", "--meta", "a=1")
    for arguments in (["put", "-"], ["edit", ref]):
        done = cli(*arguments, "--meta", "a=1", "--meta", "a=2", code=2, stdin=b"x")
        assert "given twice" in done.error
    assert cli("info", "--json", ref).document["metadata"] == {"a": "1"}


@pytest.mark.parametrize("text", ["1_0..12", "0..1_2", "_..", "-1..2", "1..٢"])
def test_a_range_has_plain_digits(cli: Cli, text: str) -> None:
    ref = cli.put(b"0123456789abcdef")
    cli("cat", ref, "--range", text, code=2)


# A configuration that may not be looked up


def test_a_configuration_directory_that_may_not_be_entered_does_not_count(cli: Cli) -> None:
    ref = cli.put(CONTENT)
    hidden = cli.write("config/holdfast/holdfast.toml", b"[log]\nfsync = false\n").parent
    named = str(hidden / "holdfast.toml")
    with mode(hidden, "a-rwx"):
        done = unprivileged(cli, "cat", ref)
        assert (done.code, done.raw) == (0, CONTENT), done.error
        assert done.error == f"holdfast: warning: {named} may not be looked up: it does not count\n"
        for refused in (
            unprivileged(cli, "--config", named, "ls"),
            unprivileged(cli, "ls", HOLDFAST_CONFIG=named),
        ):
            assert refused.code == 7
            assert named in refused.error


# Nobody to answer


def through_shell(cli: Cli, redirection: str, *arguments: str) -> Result:
    line = shlex.join(os.fsdecode(part) for part in cli.command(*arguments))
    done = subprocess.run(
        f"{line} {redirection}",
        shell=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        cwd=cli.place,
        env=cli.environ(),
        timeout=60,
    )
    return Result(done.returncode, b"", done.stderr.decode())


@pytest.mark.parametrize("redirection", [">&-", "> /dev/full"])
@pytest.mark.parametrize("what", ["ls", "ls --json", "cat REF", "get REF -o -", "stats", "info REF"])
def test_an_answer_that_cannot_be_written_is_an_error_of_standard_output(
    cli: Cli, redirection: str, what: str
) -> None:
    ref = cli.put(CONTENT)
    done = through_shell(cli, redirection, *what.replace("REF", ref).split())
    assert done.code == 7, done.error
    assert done.error.startswith('{"error"' if "--json" in what else "holdfast: standard output")
    assert len(done.error.splitlines()) == 1


@pytest.mark.parametrize("what", ["--help", "put --help", "--version", "completion bash"])
def test_a_help_text_that_cannot_be_written_is_one_too(cli: Cli, what: str) -> None:
    done = through_shell(cli, "> /dev/full", *what.split())
    assert (done.code, done.error) == (7, "holdfast: standard output: No space left on device\n")


def test_many_lines_that_cannot_be_written(cli: Cli) -> None:
    ref = cli.put(bytes(range(256)) * 4096)
    done = through_shell(cli, "> /dev/full", "cat", ref)
    assert (done.code, "standard output" in done.error) == (7, True)


def test_errors_that_nobody_hears_have_their_code(cli: Cli) -> None:
    assert through_shell(cli, "2>&-", "cat", "00000000-0000-7000-8000-000000000000").code == 3


# What is left out, and what is deleted


def test_a_tree_says_how_many_files_were_left_out_and_strict_refuses(cli: Cli) -> None:
    for i in range(12):
        cli.write(f"tree/{i}", b"x").chmod(0)
    cli.write("tree/good", b"good")
    done = unprivileged(cli, "-q", "put", "-r", "tree")
    assert done.code == 0
    assert (
        done.error.splitlines()[-1] == "holdfast: warning: 12 files left out (--strict makes that an error)"
    )
    assert cli("count", "-q").text == "1\n"
    done = unprivileged(cli, "put", "-r", "--strict", "tree")
    assert done.code == 7
    assert "cannot be read" in done.error
    assert cli("count", "-q").text == "1\n"


def test_what_is_deleted_is_said_to_be(cli: Cli) -> None:
    ref = cli.put(CONTENT)
    assert f"{ref} is not deleted" in cli("restore", ref, code=3).error
    cli("rm", ref)
    for arguments in (["cat", ref], ["cat", ref[:30]], ["info", ref], ["verify", ref], ["rm", ref]):
        assert f"{ref} is deleted: `holdfast restore {ref}`" in cli(*arguments, code=3).error
    cli("restore", ref)
    assert cli("cat", ref).raw == CONTENT
