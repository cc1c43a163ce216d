"""Claims between the processes of one machine: who writes an upload. They end with the process that has them.

A courtesy: it says at once, and by whose name, what the bucket says only at the next piece. What keeps two writers
apart, wherever they are, is that each number of a piece is taken once (`pieces`).
"""

from __future__ import annotations

import os
import stat
import tempfile
from contextlib import suppress

from holdfast.backend.log.claims import Claims
from holdfast.backend.log.disk import LocalDisk
from holdfast.backend.log.layout import UPLOADS
from holdfast.errors import HoldfastError


class LocalClaims:
    """The claims of one open store. Where this machine has no safe place for them there are none."""

    def __init__(self) -> None:
        self._claims: Claims | None = None

    def take(self, token: bytes) -> None:
        """Claim an upload; `Locked` names the process that has it."""
        claims = self._open()
        if claims is not None:
            claims.take(UPLOADS, token.hex(), f"the upload {token.hex()}")

    def is_held(self, token: bytes) -> bool:
        """Whether a process of this machine has it."""
        claims = self._open()
        return claims is not None and claims.is_held(UPLOADS, token.hex())

    def release(self, token: bytes) -> None:
        """Give it up."""
        if self._claims is not None:
            with suppress(HoldfastError, FileNotFoundError):
                self._claims.release(UPLOADS, token.hex(), remove=True)

    def close(self) -> None:
        """Give all of them up."""
        if self._claims is not None:
            self._claims.close()

    def _open(self) -> Claims | None:
        if self._claims is None and (root := place_of_claims()) is not None:
            self._claims = Claims(LocalDisk(), root)
        return self._claims


def place_of_claims() -> str | None:
    """Give a directory that nobody else can write to."""
    root = f"{tempfile.gettempdir()}/holdfast-{os.getuid()}"
    try:
        os.mkdir(root, 0o700)
    except FileExistsError:
        pass
    except OSError:
        return None
    found = os.lstat(root)
    is_ours = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o077
    return root if is_ours else None
