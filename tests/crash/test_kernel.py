"""Faults that the kernel itself makes: a disk that is really full, and system calls that really fail."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from holdfast.store import Store
from holdfast.testing.checks import check_store
from holdfast.testing.ledger import Ledger
from tests.crash.child import OPTIONS, events
from tests.crash.world import DEEP, SEED, replay

TOP = Path(__file__).parents[2]


def _can(*command: str) -> bool:
    """Whether a command is there and may do what it is for."""
    if shutil.which(command[0]) is None:
        return False
    return subprocess.run(command, capture_output=True, check=False, timeout=30).returncode == 0


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(TOP), *filter(None, sys.path)])}


@pytest.mark.parametrize("size", ["5m", "9m"])
def test_a_disk_that_is_really_full(size: str, tmp_path: Path) -> None:
    """A small tmpfs in a mount namespace of its own; segments and the catalog lie on it."""
    if not _can("unshare", "-rm", "mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(tmp_path)):
        pytest.skip("this machine does not let us mount a small tmpfs")
    with replay(f"tests/crash/test_kernel.py::test_a_disk_that_is_really_full[{size}]"):
        script = 'mount -t tmpfs -o "size=$1" tmpfs "$2" && exec "$3" -m tests.crash.child fill "$2/store"'
        command = ["unshare", "-rm", "sh", "-c", script, "sh", size, str(tmp_path), sys.executable]
        done = subprocess.run(
            command, capture_output=True, check=False, timeout=150, env=_environment(), cwd=TOP, text=True
        )
        assert done.returncode == 0, done.stderr
        said, refused, stored = json.loads(done.stdout.splitlines()[-1])
        print(f"{size}: {refused} refused, {stored} stored")
        assert said == "full"
        assert refused > 3
        assert stored > 20


@pytest.mark.parametrize(
    "when", [*map(str, range(1, 61 if DEEP else 11)), "15", "20", "25", "1+", "2+", "7+"]
)
def test_a_system_call_that_really_fails(when: str, tmp_path: Path) -> None:
    """`strace` lets the n-th fsync or fdatasync of each thread say EIO, SQLite's own included."""
    if not _can("strace", "-f", "-o", os.devnull, "-e", "inject=fsync:error=EIO:when=1", "true"):
        pytest.skip("strace is missing, or may not trace here")
    path = tmp_path / "store"
    Store._open(path, create=True, **OPTIONS).close()
    with replay(f"tests/crash/test_kernel.py::test_a_system_call_that_really_fails[{when}]"):
        log = tmp_path / "strace"
        calls = "fsync,fdatasync"
        injection = ["-e", f"trace={calls}", "-e", f"inject={calls}:error=EIO:when={when}"]
        child = [sys.executable, "-m", "tests.crash.child", "work", str(path), str(SEED)]
        done = subprocess.run(
            ["strace", "-f", "-qq", "-o", str(log), *injection, *child],
            capture_output=True,
            check=False,
            timeout=120,
            env=_environment(),
            cwd=TOP,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        injected = len(re.findall(r"\(INJECTED\)", log.read_text()))
        if not injected:
            pytest.skip("the work has fewer of these calls")
        ledger = Ledger()
        for event in events(done.stdout):
            ledger.hear(event)
        print(
            f"when={when}: {injected} failed, {len(ledger.ids)} acknowledged, {len(ledger.open_attempts)} not"
        )
        check_store(lambda: Store._open(path, **OPTIONS), ledger)
