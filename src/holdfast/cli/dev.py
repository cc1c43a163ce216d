"""`dev minio start|stop|status`: a real S3 server on this machine, to develop against."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from holdfast.cli.base import Command, command, group
from holdfast.cli.output import State, out

NAME = "minio"


@group("dev", example="holdfast dev minio start")
def dev_group() -> None:
    """Help with developing: a local object store."""


@group("minio", example="holdfast dev minio start >> holdfast.toml")
def minio_group() -> None:
    """Run MinIO on the loopback, with data of its own. It is not maintained any more: keep nothing in it."""


def _data_option(function: Any) -> Any:
    return click.option(
        "--data",
        type=click.Path(path_type=Path, file_okay=False),
        metavar="DIR",
        help="Where the server keeps its data and its state.  [default: the user's data directory]",
    )(function)


@command("start", example="holdfast dev minio start --port 9000")
@_data_option
@click.option(
    "--port", type=click.IntRange(0, 65535), default=0, help="Use this port.  [default: a free one]"
)
@click.option("--build", is_flag=True, help="Build the server with Go when there is none (minutes).")
def start(state: State, data: Path | None, port: int, build: bool) -> None:
    """Start the server and print the configuration to paste. One that runs already is left alone."""
    from holdfast.errors import NotFound
    from holdfast.servers import build_binary, find_binary, how_to_get, read_state, start_detached

    directory = _directory(data)
    running = read_state(directory)
    if running is None or not running.is_running:
        binary = build_binary(NAME) if build else find_binary(NAME)
        if binary is None:
            raise NotFound(
                f"there is no {NAME} on this machine: `holdfast dev minio start --build`, or {how_to_get(NAME)}",
                name=NAME,
            )
        running = start_detached(NAME, directory, binary, port)
    _tell(state, running)


@command("stop", example="holdfast dev minio stop")
@_data_option
def stop(state: State, data: Path | None) -> None:
    """Stop the server. Its data stay."""
    from holdfast.servers import stop_detached

    directory = _directory(data)
    stopped = stop_detached(directory)
    words = f"stopped; its data stay in {directory}" if stopped else "it does not run"
    state.answer({"stopped": stopped, "directory": str(directory)}, lambda: out(words))


@command("status", example="holdfast dev minio status")
@_data_option
def status(state: State, data: Path | None) -> None:
    """Say whether the server runs, and how to reach it."""
    from holdfast.servers import read_state

    directory = _directory(data)
    found = read_state(directory)
    if found is not None and found.is_running:
        _tell(state, found)
        return
    words = (
        f"it does not run; its data are in {directory}" if found else f"it was never started in {directory}"
    )
    state.answer({"running": False, "directory": str(directory)}, lambda: out(words))


def _directory(data: Path | None) -> Path:
    if data is not None:
        return data.absolute()
    import platformdirs

    return platformdirs.user_data_path("holdfast", appauthor=False) / "dev-minio"


def _tell(state: State, found: Any) -> None:
    """Show a running server, in a form that is a configuration."""
    import json

    access = found.access
    document = {
        "running": True,
        "pid": found.pid,
        "directory": found.directory,
        "endpoint": access.endpoint,
        "bucket": access.bucket,
        "access_key": access.access_key,
        "secret_file": f"{found.directory}/secret",
    }
    lines = [
        f"# MinIO, process {found.pid}, on this machine alone; its data are in {found.directory}",
        "[blob_store]",
        'type = "s3"',
        f"endpoint = {json.dumps(access.endpoint)}",
        f"bucket = {json.dumps(access.bucket)}",
        f"region = {json.dumps(access.region)}",
        f"access_key = {json.dumps(access.access_key)}",
        f"secret_key = {{ file = {json.dumps(document['secret_file'])} }}",
    ]
    state.answer(document, lambda: out("\n".join(lines)))


for step in (start, stop, status):
    minio_group.add_command(step)
    assert isinstance(step, Command)
dev_group.add_command(minio_group)
COMMANDS: tuple[click.Command, ...] = (dev_group,)
