"""`holdfast dev minio`: a server to develop against, started and stopped by the command."""

from __future__ import annotations

import os
import signal
import socket
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from holdfast.errors import NotFound
from holdfast.servers import build_binary, cache_directory, find_binary, read_state
from tests.cli.conftest import Cli
from tests.servers import need


@pytest.fixture
def dev(cli: Cli) -> Iterator[Cli]:
    need("minio")
    cli.env["HOLDFAST_SERVERS"] = str(cache_directory())
    yield cli
    cli("dev", "minio", "stop")


def test_it_starts_tells_and_stops(dev: Cli) -> None:
    assert "never started" in dev("dev", "minio", "status").text
    assert dev("dev", "minio", "stop").text == "it does not run\n"

    toml = dev("dev", "minio", "start").text
    settings = tomllib.loads(toml)["blob_store"]
    assert settings["endpoint"].startswith("http://127.0.0.1:")
    secret = Path(settings["secret_key"]["file"])
    assert secret.stat().st_mode & 0o077 == 0
    assert secret.read_text().strip() not in toml

    (dev.place / "holdfast.toml").write_text(toml)
    checks = dev("--json", "config", "check", HOLDFAST_STORE=None).document
    assert checks["ok"] is True

    again = dev("--json", "dev", "minio", "start").document
    assert again["endpoint"] == settings["endpoint"]
    assert dev("--json", "dev", "minio", "status").document == again
    dev("dev", "minio", "stop")
    assert dev("--json", "dev", "minio", "status").document["running"] is False
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", int(settings["endpoint"].rpartition(":")[2]))) != 0

    # the same port and secret, so that a pasted configuration goes on working
    assert dev("dev", "minio", "start").text.splitlines()[1:] == toml.splitlines()[1:]


def test_one_that_was_killed_is_started_again(dev: Cli) -> None:
    first = dev("--json", "dev", "minio", "start", "--data", dev.place / "here").document
    os.kill(first["pid"], signal.SIGKILL)
    second = dev("--json", "dev", "minio", "start", "--data", dev.place / "here").document
    assert second["pid"] != first["pid"]
    assert dev("--json", "dev", "minio", "stop", "--data", dev.place / "here").document["stopped"] is True


def test_another_process_of_the_same_number_is_left_alone(dev: Cli, tmp_path: Path) -> None:
    dev("dev", "minio", "start")
    state = read_state(dev.place / "data" / "holdfast" / "dev-minio")
    assert state is not None
    dev("dev", "minio", "stop")
    file = Path(state.directory) / "server.json"
    file.write_text(file.read_text().replace(f'"pid": {state.pid}', f'"pid": {os.getpid()}'))
    assert dev("--json", "dev", "minio", "status").document["running"] is False
    assert dev("--json", "dev", "minio", "stop").document["stopped"] is False


def test_without_a_server_it_says_how_to_get_one(cli: Cli) -> None:
    cli.env["PATH"] = "/nonexistent"
    cli.env["HOLDFAST_SERVERS"] = str(cli.place / "empty")
    failed = cli("dev", "minio", "start", code=3)
    assert "--build" in failed.error
    assert "go install github.com/minio/minio@" in failed.error
    failed = cli("dev", "minio", "start", "--build", code=3)
    assert "is built with go, which is not on the path" in failed.error


def test_a_port_that_is_taken_is_an_error(dev: Cli) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        failed = dev("dev", "minio", "start", "--port", str(port), code=7)
    assert f"127.0.0.1:{port}" in failed.error


def test_what_is_there_is_not_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bin").mkdir()
    tool = tmp_path / "bin" / "minio"
    tool.write_text("#!/bin/sh\n")
    tool.chmod(0o755)
    assert find_binary("minio", tmp_path) == build_binary("minio", tmp_path) == tool
    monkeypatch.setenv("PATH", str(tmp_path / "none"))
    with pytest.raises(NotFound):
        build_binary("versitygw", tmp_path)
