"""The real command, as a subprocess, in a world of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

COMMAND = [sys.executable, "-m", "holdfast.cli"]


@dataclass(frozen=True)
class Result:
    """What one call gave."""

    code: int
    raw: bytes
    error: str

    @property
    def text(self) -> str:
        return self.raw.decode()

    @property
    def lines(self) -> list[str]:
        return self.text.splitlines()

    @property
    def documents(self) -> list[Any]:
        return [json.loads(line) for line in self.lines]

    @property
    def document(self) -> Any:
        (only,) = self.documents
        return only


class Cli:
    """Runs `holdfast` in a directory with a store in `store`, and no home but this."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.store = place / "store"
        self.env = {
            "PATH": os.environ["PATH"],
            "HOME": str(place / "home"),
            "XDG_DATA_HOME": str(place / "data"),
            "XDG_CONFIG_HOME": str(place / "config"),
            "XDG_CACHE_HOME": str(place / "cache"),
            "LANG": "C.UTF-8",
            "HOLDFAST_STORE": str(self.store),
        }

    def __call__(
        self, *arguments: str | bytes | Path, stdin: bytes = b"", code: int | None = 0, **env: str | None
    ) -> Result:
        """Run a command; `code` is what it must end with (None: anything)."""
        done = subprocess.run(
            self.command(*arguments),
            input=stdin,
            capture_output=True,
            cwd=self.place,
            env=self.environ(**env),
            timeout=120,
        )
        result = Result(done.returncode, done.stdout, done.stderr.decode(errors="backslashreplace"))
        if code is not None:
            assert result.code == code, f"{arguments}: {result.code}\n{result.raw[-2000:]!r}\n{result.error}"
        return result

    def command(self, *arguments: str | bytes | Path) -> Sequence[str | bytes]:
        return [*COMMAND, *(os.fspath(a) for a in arguments)]

    def environ(self, **more: str | None) -> dict[str, str]:
        return {name: value for name, value in (self.env | more).items() if value is not None}

    def popen(self, *arguments: str | bytes | Path, **more: Any) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            self.command(*arguments), cwd=self.place, env=self.environ(), stderr=subprocess.PIPE, **more
        )

    def write(self, name: str | bytes, content: bytes) -> Path:
        path = self.place / os.fsdecode(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return path

    def put(self, content: bytes, *arguments: str) -> str:
        """Store bytes; give the id."""
        return self("-q", "put", "-", *arguments, stdin=content).text.strip()


@pytest.fixture
def bare(tmp_path: Path) -> Cli:
    """The command, without a store."""
    return Cli(tmp_path)


@pytest.fixture
def cli(bare: Cli) -> Cli:
    """The command, with a store."""
    bare("-q", "init")
    return bare


Flip = Callable[[bytes], None]


@pytest.fixture
def flip(cli: Cli) -> Flip:
    """Turn one bit over, on the disk, in the middle of these stored bytes."""

    def damage(content: bytes) -> None:
        for path in sorted(cli.store.rglob("*.seg")):
            image = bytearray(path.read_bytes())
            at = image.find(content[:64])
            if at >= 0:
                image[at + 32] ^= 1
                path.write_bytes(image)
                return
        raise AssertionError("the bytes were not found in any segment")

    return damage
