"""Real servers on this machine, for tests and for `holdfast dev`: built once, on the loopback only.

MinIO is no longer maintained by its makers: a server to develop and test with, not one to keep data in.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, NamedTuple

from holdfast.errors import Conflict, NotFound, Unavailable

BUCKET: Final = "holdfast"
REGION: Final = "us-east-1"
USER: Final = "holdfast"
READY_SECONDS: Final = 30
STOP_SECONDS: Final = 10
BUILD_SECONDS: Final = 1800
STATE_FILE: Final = "server.json"


class Kind(NamedTuple):
    """How a server is built and run. The versions are those that the tests were seen to pass with."""

    package: str
    version: str
    ready_path: str
    arguments: Callable[[str, str], list[str]]
    """From the address and the directory of the data."""
    environ: Callable[[str, str], dict[str, str]]
    """From name and secret of the first user."""
    tool: str = "go"
    """What it is built with."""
    ready_status: int = 200


KINDS: Final[Mapping[str, Kind]] = {
    "minio": Kind(
        "github.com/minio/minio",
        "v0.0.0-20260212201848-7aac2a2c5b7c",
        "/minio/health/cluster",
        lambda address, data: [
            "server", data, "--address", address, "--console-address", "127.0.0.1:0", "--quiet",
            "--certs-dir", f"{data}/../certs",
        ],
        lambda user, secret: {
            "MINIO_ROOT_USER": user, "MINIO_ROOT_PASSWORD": secret, "MINIO_BROWSER": "off", "MINIO_UPDATE": "off",
        },
    ),
    "versitygw": Kind(
        "github.com/versity/versitygw/cmd/versitygw",
        "v1.8.0",
        "/health",
        lambda address, data: ["--port", address, "--quiet", "--keep-alive", "--health", "/health", "posix", data],
        lambda user, secret: {"ROOT_ACCESS_KEY": user, "ROOT_SECRET_KEY": secret},
    ),
    "azurite": Kind(  # Azure's; buckets are made by asking for them
        "azurite",
        "3.37.0",
        "/",
        lambda address, data: [
            "--blobHost", address.partition(":")[0], "--blobPort", address.partition(":")[2], "--location", data,
            "--silent", "--skipApiVersionCheck", "--disableTelemetry",
        ],
        lambda user, secret: {"AZURITE_ACCOUNTS": f"{user}:{b64encode(secret.encode()).decode()}"},
        tool="npm",
        ready_status=400,
    ),
}  # fmt: skip


# --- binaries


def cache_directory(environ: Mapping[str, str] = os.environ) -> Path:
    """Give the directory in which binaries are kept: HOLDFAST_SERVERS, or `~/.cache/holdfast`."""
    return Path(environ.get("HOLDFAST_SERVERS") or Path.home() / ".cache" / "holdfast")


def find_binary(name: str, cache: Path | None = None) -> Path | None:
    """Give the program of a server, from the cache or from the path of programs."""
    kept = (cache or cache_directory()) / "bin" / name
    if os.access(kept, os.X_OK):
        return kept
    found = shutil.which(name)
    return Path(found) if found else None


def how_to_get(name: str) -> str:
    """Say how the program of a server is got."""
    kind = KINDS[name]
    return f"`make services`, or `{kind.tool} install {kind.package}@{kind.version}` (minutes), and {name} on the path"


def build_binary(name: str, cache: Path | None = None) -> Path:
    """Give the program of a server, and build it in the cache when it is nowhere: minutes, once for all processes.

    `NotFound` when there is nothing to build it with; `Unavailable` when it fails.
    """
    if (found := find_binary(name, cache)) is not None:
        return found
    kind = KINDS[name]
    tool = shutil.which(kind.tool)
    if tool is None:
        raise NotFound(
            f"{name} is built with {kind.tool}, which is not on the path: {how_to_get(name)}", name=name
        )
    directory = (cache or cache_directory()) / "bin"
    directory.mkdir(parents=True, exist_ok=True)
    with open(directory / f".{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if (found := find_binary(name, cache)) is not None:
            return found
        with tempfile.TemporaryDirectory(dir=directory) as scratch:
            environ = {key: value for key, value in os.environ.items() if key != "GOFLAGS"} | {
                "GOBIN": scratch
            }
            command = ["nice", "-n", "10", tool, "install"]
            if kind.tool == "npm":
                command += [
                    "--no-audit",
                    "--no-fund",
                    "--ignore-scripts",
                    "--prefix",
                    f"{directory}/../{name}",
                ]
            command.append(f"{kind.package}@{kind.version}")
            try:
                done = subprocess.run(
                    command, env=environ, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                    stderr=subprocess.PIPE, timeout=BUILD_SECONDS, check=False,
                )  # fmt: skip
            except (OSError, subprocess.TimeoutExpired) as error:
                raise Unavailable(f"{name} could not be built: {error}", name=name) from error
            if done.returncode != 0:
                said = done.stderr.decode(errors="replace").strip()[-600:]
                raise Unavailable(f"{name} could not be built: {said}", name=name)
            if kind.tool == "npm":
                os.symlink(f"../{name}/node_modules/.bin/{name}-blob", Path(scratch, name))
            os.replace(Path(scratch, name), directory / name)
    return directory / name


# --- a server that lives as long as its parent


@dataclass(frozen=True, slots=True)
class Access:
    """How a server is talked to."""

    name: str
    endpoint: str
    access_key: str
    secret_key: str
    bucket: str = BUCKET
    region: str = REGION


_WITH_PARENT: Final = """
"$@" >&2 & child=$!; echo $child; trap 'kill $child' TERM; cat >/dev/null; kill $child 2>/dev/null; wait $child
"""
"""A shell that ends the server when its own input ends: however the parent dies."""


class LocalServer:
    """A server for tests: its own port and data, gone with the process that started it. A context manager."""

    def __init__(self, name: str, directory: Path, binary: Path | None = None) -> None:
        self._binary = binary or build_binary(name)
        self._kind = KINDS[name]
        self._directory = directory
        self._process: subprocess.Popen[bytes] | None = None
        self._pid = 0
        (directory / "data" / BUCKET).mkdir(parents=True, exist_ok=True)  # both take a directory for a bucket
        self.port = free_port()
        self.access = Access(name, f"http://127.0.0.1:{self.port}", USER, secrets.token_hex(16))

    def start(self) -> None:
        """Start it, also after `kill`, and wait until it is ready."""
        with open(self._directory / "log", "ab") as log:
            self._process = subprocess.Popen(
                ["sh", "-c", _WITH_PARENT, "sh", *_command(self._binary, self._kind, self.port, self._directory)],
                env=_environ(self._kind, self.access, self._directory),
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log,
            )  # fmt: skip
        assert self._process.stdout is not None
        self._pid = int(self._process.stdout.readline())
        if not wait_ready(self.access.endpoint, self._kind, lambda: _is_running(self._pid)):
            raise Unavailable(f"{self.access.name} did not start: {_tail(self._directory / 'log')}")

    def kill(self) -> None:
        """End it as a power cut would: no word of farewell."""
        os.kill(self._pid, signal.SIGKILL)
        self.stop()

    def suspend(self) -> None:
        """Let it stand still."""
        os.kill(self._pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on."""
        os.kill(self._pid, signal.SIGCONT)

    def stop(self) -> None:
        """End it in order."""
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.close()
        try:
            process.wait(1)
        except subprocess.TimeoutExpired:  # some wait for connections to end
            os.kill(self._pid, signal.SIGKILL)
            process.wait(STOP_SECONDS)
        process.stdout.close()

    def __enter__(self) -> LocalServer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


# --- a server that stays


@dataclass(frozen=True, slots=True)
class State:
    """What is noted of a server that was started to stay."""

    pid: int
    access: Access
    directory: str

    @property
    def is_running(self) -> bool:
        """Whether the process is there, and is this server: numbers of processes are used again."""
        return _is_running(self.pid) and f"{self.directory}/data" in _arguments(self.pid)


def read_state(directory: Path) -> State | None:
    """Give what was noted of the server of a directory, running or not; None when there never was one."""
    try:
        found = json.loads((directory / STATE_FILE).read_text())
        return State(int(found["pid"]), Access(**found["access"]), found["directory"])
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError):
        return None


def start_detached(name: str, directory: Path, binary: Path, port: int = 0) -> State:
    """Start a server that outlives this process; `Conflict` when one runs in that directory.

    Port and secret stay those of the first start, unless another port is asked for.
    """
    directory = directory.absolute()
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    with open(directory / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        before = read_state(directory)
        if before is not None and before.is_running:
            raise Conflict(
                f"{name} runs already at {before.access.endpoint}", endpoint=before.access.endpoint
            )
        (directory / "data" / BUCKET).mkdir(parents=True, exist_ok=True)
        secret = before.access.secret_key if before is not None else secrets.token_hex(16)
        port = port or (_port_of(before) if before is not None else 0) or free_port()
        access = Access(name, f"http://127.0.0.1:{port}", USER, secret)
        kind = KINDS[name]
        with open(directory / "log", "ab") as log:
            process = subprocess.Popen(
                _command(binary, kind, port, directory),
                env=_environ(kind, access, directory),
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, close_fds=True,
            )  # fmt: skip
        if not wait_ready(access.endpoint, kind, lambda: process.poll() is None):
            process.kill()
            process.wait()
            raise Unavailable(f"{name} did not start at {access.endpoint}: {_tail(directory / 'log')}")
        state = State(process.pid, access, str(directory))
        process.returncode = 0  # it is nobody's child from here on: no warning, no wait
        _write_private(directory / "secret", secret + "\n")
        _write_private(directory / STATE_FILE, json.dumps(asdict(state)))
        return state


def stop_detached(directory: Path) -> bool:
    """Stop the server of a directory; its data stay. False when none runs."""
    state = read_state(directory.absolute())
    if state is None or not state.is_running:
        return False
    os.kill(state.pid, signal.SIGTERM)
    until = time.monotonic() + STOP_SECONDS
    while state.is_running and time.monotonic() < until:
        time.sleep(0.05)
    if state.is_running:
        os.kill(state.pid, signal.SIGKILL)
    try:
        os.waitpid(state.pid, os.WNOHANG)
    except ChildProcessError:
        pass  # another process has started it
    return True


# --- what both need


def free_port() -> int:
    """Give a port of the loopback that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_ready(endpoint: str, kind: Kind, is_running: Callable[[], bool]) -> bool:
    """Wait until a server answers as it does when it is ready; False when it ends, or does not in time."""
    until = time.monotonic() + READY_SECONDS
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    while time.monotonic() < until and is_running():
        try:
            with opener.open(endpoint + kind.ready_path, timeout=1) as answer:
                status = answer.status
        except urllib.error.HTTPError as error:
            status = error.code
        except (OSError, urllib.error.URLError):
            status = 0
        if status == kind.ready_status:
            return is_running()
        time.sleep(0.02)
    return False


def _command(binary: Path, kind: Kind, port: int, directory: Path) -> list[str]:
    return [str(binary), *kind.arguments(f"127.0.0.1:{port}", f"{directory}/data")]


def _environ(kind: Kind, access: Access, directory: Path) -> dict[str, str]:
    return {
        "PATH": os.environ.get("PATH", ""),
        "HOME": str(directory),
        "TMPDIR": tempfile.gettempdir(),
        **kind.environ(access.access_key, access.secret_key),
    }


def _port_of(state: State) -> int:
    """Give the port of before, if it is still free."""
    port = int(state.access.endpoint.rpartition(":")[2])
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return 0
    return port


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, PermissionError):
        return False
    return not _arguments(pid).startswith("Z")


def _arguments(pid: int) -> str:
    """Give state and command line of a process: by /proc, which spares small systems `ps`, or by `ps`."""
    if os.path.exists("/proc/self/stat"):
        try:
            state = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(") ")[2][:1]
            arguments = (
                Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            )
        except OSError:
            return "Z"
        return f"{state} {arguments}"
    done = subprocess.run(
        ["ps", "-o", "stat=", "-o", "args=", "-ww", "-p", str(pid)],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip()


def _tail(log: Path) -> str:
    try:
        return log.read_text(errors="replace").strip()[-400:] or "it said nothing"
    except OSError:
        return "it said nothing"


def _write_private(path: Path, text: str) -> None:
    new = path.with_name(f".{path.name}.new")
    handle = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(handle, "w") as file:
        file.write(text)
    os.replace(new, path)
