"""How the command behaves: exit codes, streams, interruption, pipes, help, and how quickly it is there."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from holdfast.cli.app import cli as root
from tests.cli.conftest import COMMAND, Cli

NOBODY = "00000000-0000-7000-8000-000000000000"
COMMANDS = sorted(name for name in root.commands if name != "config")


# Exit codes and streams


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["cat", NOBODY], 3),
        (["cat", "blake3:" + "0" * 64], 3),
        (["get", NOBODY], 3),
        (["rm", NOBODY], 3),
        (["restore", NOBODY], 3),
        (["verify", NOBODY], 3),
        (["put", "missing"], 3),
        (["put", "file/below-a-file"], 3),
        (["--store", "missing", "ls"], 3),
        (["--store", "missing", "put", "file"], 3),
        (["--store", "file", "ls"], 6),
        (["--config", "missing.toml", "ls"], 3),
        (["--config", "bad.toml", "ls"], 2),
        (["put", "directory"], 2),
        (["put", "empty"], 2),
        (["put", "file", "--meta", "x"], 2),
        (["put", "file", "file", "--name", "x"], 2),
        (["put", "-", "-"], 2),
        (["put"], 2),
        (["ls", "--limit", "-1"], 2),
        (["frobnicate"], 2),
        (["--store", "s3://key:secret@bucket/x", "ls"], 2),
        (["init"], 4),
        (["put", "file"], 0),
    ],
)
@pytest.mark.parametrize("form", ["text", "json"])
def test_each_error_has_its_exit_code_and_says_it_on_standard_error(
    cli: Cli, arguments: list[str], code: int, form: str
) -> None:
    cli.write("file", b"x")
    cli.write("empty", b"")
    cli.write("bad.toml", b"[lgo]\n")
    (cli.place / "directory").mkdir()
    result = cli(*(["--json"] if form == "json" else []), *arguments, code=code)
    assert "Traceback" not in result.error
    if code == 0:
        assert result.error == ""
        return
    assert result.raw == b""
    if form == "json":
        error = json.loads(result.error)["error"]
        assert error["kind"]
        assert error["message"]
    else:
        assert result.error.startswith("holdfast: ")


def test_what_is_no_store_is_no_store(cli: Cli) -> None:
    cli.write("other/readme", b"hello")
    result = cli("--store", "other", "ls", code=None)
    assert result.code in (3, 6)
    assert os.listdir(cli.place / "other") == ["readme"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may do everything")
def test_no_permission_is_said(cli: Cli) -> None:
    secret = cli.write("secret", b"x")
    secret.chmod(0)
    cli("put", secret, code=7)


def test_a_full_output_is_one_line(cli: Cli) -> None:
    artifact = cli.put(b"x" * 100_000)
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            cli.command("cat", artifact), stdout=full, stderr=subprocess.PIPE, env=cli.environ()
        )
    assert done.returncode == 7
    assert done.stderr.count(b"\n") == 1
    assert b"space" in done.stderr


def test_debug_gives_the_traceback(cli: Cli) -> None:
    assert "Traceback" in cli("cat", NOBODY, code=3, HOLDFAST_DEBUG="1").error


def test_global_options_may_follow_the_command(cli: Cli) -> None:
    artifact = cli.put(b"x")
    assert cli("ls", "--json").document["id"] == artifact
    assert cli("ls", "--store", cli.store, "-q", HOLDFAST_STORE=None).lines == [artifact]


def test_nothing_is_said_that_was_not_asked_for(cli: Cli) -> None:
    file = cli.write("file", b"x" * 5_000_000)
    for command in (["put", file], ["scrub"], ["verify", cli.put(b"y")], ["stats"], ["rebuild"]):
        assert cli(*command).error == ""


# Interruption and pipes


def test_a_broken_pipe_ends_quietly(cli: Cli) -> None:
    artifact = cli.put(os.urandom(8_000_000))
    cat = cli.popen("cat", artifact, stdout=subprocess.PIPE)
    assert cat.stdout is not None
    assert cat.stderr is not None
    cat.stdout.read(10)
    cat.stdout.close()
    assert cat.stderr.read() == b""
    assert cat.wait(30) == 141
    cat.stderr.close()


def test_a_reader_that_was_never_there_is_no_trouble_either(cli: Cli) -> None:
    cli.put(b"x")
    for arguments in (["ls"], ["--help"], ["stats", "--json"]):
        reader, writer = os.pipe()
        os.close(reader)
        done = subprocess.run(
            cli.command(*arguments), stdout=writer, stderr=subprocess.PIPE, env=cli.environ(), cwd=cli.place
        )
        os.close(writer)
        assert done.stderr == b""
        assert done.returncode == 141


def test_ctrl_c_leaves_nothing_half_there(cli: Cli) -> None:
    put = cli.popen("put", "-", stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert put.stdin is not None
    put.stdin.write(os.urandom(4_000_000))
    put.stdin.flush()  # more than a pipe holds: it is reading
    time.sleep(0.1)
    put.send_signal(signal.SIGINT)
    stdout, stderr = put.communicate(timeout=30)
    assert (put.returncode, stdout) == (130, b"")
    assert stderr == b"holdfast: interrupted\n"
    assert cli("ls").text == ""
    assert cli("scrub", "--json").document["ok"]


def test_ctrl_c_while_modules_are_imported_is_an_interrupt(cli: Cli) -> None:
    program = """
import os, signal, sys
from holdfast.cli import main

class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == "holdfast.cli.app":
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interrupt())
sys.exit(main())
"""
    done = subprocess.run(
        [sys.executable, "-c", program, "ls"], capture_output=True, env=cli.environ(), cwd=cli.place
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, b"", b"")


@pytest.mark.parametrize("how", ["ignored", "wrapped"])
def test_ctrl_c_that_python_makes_something_else_of_is_an_interrupt(cli: Cli, how: str) -> None:
    """The terminal interrupts who writes into the pipe as well: half a stream would be stored."""
    program = f"""
import os, signal, sys
from holdfast.cli import main

class Ignored:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)

class Wrapped:
    def __set_name__(self, owner, name):
        os.kill(os.getpid(), signal.SIGINT)

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "holdfast.opening":
            if {how == "ignored"}:
                Ignored()
            else:
                type("Owner", (), {{"field": Wrapped()}})

sys.meta_path.insert(0, Finder())
sys.exit(main())
"""
    put = subprocess.Popen(
        [sys.executable, "-c", program, "put", "-"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=cli.environ(),
        cwd=cli.place,
    )
    assert put.stdin is not None
    put.stdin.write(b"half")
    put.stdin.flush()
    assert put.wait(30) == 130
    assert put.communicate() == (b"", b"holdfast: interrupted\n")
    assert not cli("ls", "-q").lines


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc to see how far it has come")
@pytest.mark.parametrize("delay", [0.0, 0.01, 0.03, 0.1])
def test_ctrl_c_at_any_time_ends_without_a_traceback(cli: Cli, delay: float) -> None:
    put = cli.popen("put", "-", stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    while "holdfast/_native" not in Path(f"/proc/{put.pid}/maps").read_text():
        time.sleep(0.001)  # until then it is Python itself that starts
        assert put.poll() is None
    time.sleep(delay)
    put.send_signal(signal.SIGINT)
    _, stderr = put.communicate(timeout=30)
    assert put.returncode in (130, -signal.SIGINT)  # met by Python itself, it is 130 for a shell
    assert b"Traceback" not in stderr


def on_a_terminal(cli: Cli, *arguments: str, typed: bytes = b"") -> tuple[int, str]:
    """Run with a terminal for all three streams; give the exit code and what the person sees."""
    ours, theirs = pty.openpty()
    child = subprocess.Popen(
        cli.command(*arguments),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=cli.environ(TERM="xterm"),
        cwd=cli.place,
    )
    os.close(theirs)
    os.write(ours, typed)
    seen = b""
    with contextlib.suppress(OSError):  # EIO is how Linux says that the other side is gone
        while piece := os.read(ours, 65_536):
            seen += piece
    os.close(ours)
    return child.wait(30), seen.decode()


def test_deleting_asks_on_a_terminal(cli: Cli) -> None:
    artifact = cli.put(b"x")
    code, seen = on_a_terminal(cli, "rm", artifact, typed=b"n\n")
    assert (code, cli("ls", "-q").lines) == (1, [artifact])
    assert "delete" in seen
    assert on_a_terminal(cli, "rm", artifact, typed=b"y\n")[0] == 0
    assert cli("ls", "-q").lines == []
    other = cli.put(b"y")
    assert on_a_terminal(cli, "rm", "--yes", other)[0] == 0


def test_a_list_on_a_terminal_has_columns_and_short_ids(cli: Cli) -> None:
    ids = [cli.put(b"x" * 2048, "--name", "a.bin", "--tag", "t"), cli.put(b"y", "--name", "\x1b[31mb")]
    code, seen = on_a_terminal(cli, "ls")
    header, *rows = seen.replace("\r", "").splitlines()
    assert code == 0
    assert header.split() == ["ID", "SIZE", "STORED", "NAME", "TAGS"]
    assert ["2.0 KiB" in row for row in rows] == [False, True]
    assert "\x1b" not in seen
    shortened = [row.split()[0] for row in rows]
    assert all(full.startswith(short) for full, short in zip(reversed(ids), shortened, strict=True))
    assert len(set(shortened)) == 2


# Help


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself_with_an_example(bare: Cli, command: str) -> None:
    text = bare(command, "--help").text
    assert "Example:" in text
    assert f"holdfast {command}" in text or f"holdfast --json {command}" in text


def test_help_lists_every_command_and_the_exit_codes(bare: Cli) -> None:
    text = bare("--help").text
    for command in root.commands:
        assert f"  {command} " in text
    assert "130 interrupted" in text
    assert bare("--version").text.startswith("holdfast ")
    package = subprocess.run([sys.executable, "-m", "holdfast", "--version"], capture_output=True, check=True)
    assert package.stdout.decode() == bare("--version").text


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_are_scripts(bare: Cli, shell: str, tmp_path: Path) -> None:
    script = bare("completion", shell).raw
    assert b"_HOLDFAST_COMPLETE" in script
    if shutil.which(shell):
        (tmp_path / "script").write_bytes(script)
        subprocess.run([shell, "-n", tmp_path / "script"], check=True)


def test_completion_completes(bare: Cli) -> None:
    asked = bare(_HOLDFAST_COMPLETE="bash_complete", COMP_WORDS="holdfast re", COMP_CWORD="1")
    assert {line.split(",")[1] for line in asked.lines} == {"rebuild", "refresh", "repair", "restore"}


# Configuration at the prompt


def test_config_is_shown_without_secrets_and_checked(cli: Cli) -> None:
    text = '[blob_store]\ntype = "s3"\nbucket = "bbb"\naccess_key = "me"\nsecret_key = "hunter2"\n'
    text += "[log]\nfsync = false\n"
    cli.write("holdfast.toml", text.encode()).chmod(0o600)
    for form in ([], ["--json"]):
        shown = cli(*form, "config", "show").text
        assert "hunter2" not in shown
        assert "fsync" in shown
    cli.write("holdfast.toml", text.replace("bucket", 'endpoint = "hunter2:3@x"\nbucket').encode())
    said = cli("config", "check", code=2, HOLDFAST_STORE=None).error
    assert "endpoint" in said
    assert "hunter2" not in said
    cli.write("holdfast.toml", b"[log]\nfsnc = false\n")
    assert "did you mean fsync?" in cli("config", "check", code=2).error
    cli.write("holdfast.toml", b"[log]\nfsync = false\n")
    assert cli("config", "check", "--json").document["ok"]
    assert cli("put", "-", "--json", stdin=b"x").document["durability"] == "buffered"


def test_the_shown_configuration_is_a_configuration(cli: Cli) -> None:
    text = cli("config", "show").text
    cli.write("holdfast.toml", text.encode())
    assert (
        cli("config", "show", "--json").document["log"]
        == json.loads(cli("--json", "config", "show").text)["log"]
    )


def test_a_store_can_be_configured(cli: Cli) -> None:
    artifact = cli.put(b"x")
    cli.write("holdfast.toml", b'[blob_store]\ntype = "filesystem"\npath = "store"\n')
    assert cli("ls", "-q", HOLDFAST_STORE=None).lines == [artifact]


# Start-up


@pytest.mark.parametrize("arguments", [["--help"], ["ls"], ["put", "--help"]])
def test_start_up_brings_nothing_heavy(cli: Cli, arguments: list[str]) -> None:
    code = (
        "import sys; from holdfast.cli import main; code = main(sys.argv[1:]);"
        "heavy = {'pydantic', 'rich', 'asyncio', 'importlib.metadata'} & set(sys.modules);"
        "sys.exit(f'heavy: {heavy}' if heavy else code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env=cli.environ(),
        cwd=cli.place,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def test_it_runs_as_a_module_and_as_a_script(bare: Cli) -> None:
    assert COMMAND[0] == sys.executable
    script = Path(sys.executable).with_name("holdfast")
    if script.exists():
        done = subprocess.run([script, "--help"], capture_output=True, text=True)
        assert done.stdout == bare("--help").text
