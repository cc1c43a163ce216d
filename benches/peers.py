"""Tools that do a comparable job: borg and restic, from the packages of the system, with caches of their own."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from benches.measure import Bench, Sample, command, flush, remove


class Borg:
    """borg: no encryption, its usual compression (lz4)."""

    name: Final = "borg"

    def __init__(self, bench: Bench) -> None:
        self.repository = bench.path("borg")
        self._base = bench.path("borg-home")
        self._env = {
            "BORG_BASE_DIR": os.fspath(self._base),
            "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK": "yes",
            "BORG_RELOCATED_REPO_ACCESS_IS_OK": "yes",
        }
        self._number = 0

    def create(self) -> None:
        self.remove()
        command(["borg", "init", "--encryption=none", self.repository], env=self._env)
        flush(self.repository)

    def store(self, paths: Sequence[Path], *, again: bool = False) -> Sample:
        """Store paths; `again` reads them again whatever their times say."""
        self._number += 1
        argv = ["borg", "create", *(["--files-cache=disabled"] if again else [])]
        names = [path.name for path in paths]
        return command(
            [*argv, f"{self.repository}::{self._number}", *names], env=self._env, cwd=paths[0].parent
        )

    def read(self, path: Path) -> Sample:
        script = 'borg extract --stdout "$0" "$1" | cat > /dev/null'
        return command(["sh", "-c", script, f"{self.repository}::{self._number}", path.name], env=self._env)

    def remove(self) -> None:
        remove(self.repository)
        remove(self._base)


class Restic:
    """restic: its usual encryption and compression; without a cache beside a local repository."""

    name: Final = "restic"

    def __init__(self, bench: Bench) -> None:
        self.repository = bench.path("restic")
        self._env = {"RESTIC_PASSWORD": "benchmark", "RESTIC_REPOSITORY": os.fspath(self.repository)}

    def create(self) -> None:
        self.remove()
        command(["restic", "init", "--no-cache"], env=self._env)
        flush(self.repository)

    def store(self, paths: Sequence[Path], *, again: bool = False) -> Sample:
        argv = ["restic", "backup", "--no-cache", "--quiet", *(["--force"] if again else [])]
        return command([*argv, *(path.name for path in paths)], env=self._env, cwd=paths[0].parent)

    def read(self, path: Path) -> Sample:
        script = 'restic dump --no-cache latest "/$0" | cat > /dev/null'
        return command(["sh", "-c", script, path.name], env=self._env)

    def remove(self) -> None:
        remove(self.repository)


def available(bench: Bench) -> list[Borg | Restic]:
    """Give the peers that are here; missing ones are installed by apt-get where that is possible, else said."""
    found: list[Borg | Restic] = []
    for kind, package in ((Borg, "borgbackup"), (Restic, "restic")):
        if shutil.which(kind.name) is None and shutil.which("apt-get") and os.geteuid() == 0:
            subprocess.run(
                ["apt-get", "install", "-y", "-qq", package], check=False, stdout=subprocess.DEVNULL
            )
        if shutil.which(kind.name) is None:
            print(f"{kind.name} is not here (Debian's package {package}): the row goes on without it")
        else:
            found.append(kind(bench))
    return found
