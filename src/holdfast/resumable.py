"""A put that goes on after a crash or a broken connection: what was written is durable at checkpoints.

What is the same on every backend; each of them says how bytes, states and the end are kept.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from contextlib import suppress
from typing import ClassVar, Self

from holdfast.artifacts import Artifacts
from holdfast.core import Core, entered
from holdfast.errors import HoldfastError, InvalidInput
from holdfast.sources import WINDOW_BYTES
from holdfast.types import Artifact, BytesLike, Hash
from holdfast.wire.document import Details


class ResumableWriter(ABC):
    """A put that is pushed, and can go on in another process: `write`, then `commit`.

    What was written becomes durable with each `checkpoint`, which comes by itself in a `write` after 16 MiB, or a
    second after the last one. `store.writer(resume=token)` goes on behind the bytes that are durable, until the upload
    is committed, aborted, or has expired: `UploadNotFound` then says which. Nobody else can go on with it meanwhile
    (`Locked`). A `with` block commits at its end; on an exception it keeps what came, for the next one.

    Memory is bounded. One thread at a time.
    """

    CHECKPOINT_BYTES: ClassVar[int] = 16 << 20
    CHECKPOINT_SECONDS: ClassVar[float] = 1.0

    def __init__(self, core: Core, artifacts: Artifacts, details: Details) -> None:
        """For the subclasses, which hold the upload."""
        self._core = core
        self._artifacts = artifacts
        self._details = details
        self._pending: list[bytes] = []
        self._pending_bytes = 0
        self._artifact: Artifact | None = None
        self._is_open = True
        self._is_whole = False  # not while something is half done: an interrupt must not be saved
        self._last = time.monotonic()

    # -- what each backend does in its own way; an error of any of these ends the writer

    @property
    @abstractmethod
    def token(self) -> str:
        """What `store.writer(resume=…)` takes."""

    @property
    @abstractmethod
    def offset_bytes(self) -> int:
        """How much is durable: where whoever resumes goes on."""

    @property
    @abstractmethod
    def _taken_bytes(self) -> int:
        """How much `_take` was given in all."""

    @property
    def _begun_bytes(self) -> int:
        """How much is durable, or on its way to be."""
        return self.offset_bytes

    @abstractmethod
    def _check_size(self, size_bytes: int) -> None:
        """Refuse more bytes than are allowed."""

    @abstractmethod
    def _take(self, window: memoryview) -> None:
        """Take the next bytes; they do not change any more."""

    @abstractmethod
    def _save(self, *, wait: bool) -> None:
        """Make durable what was taken; it may still be on its way unless it is to `wait`."""

    @abstractmethod
    def _commit(self) -> Artifact:
        """Make the artifact of all that was taken."""

    @abstractmethod
    def _suspend(self) -> None:
        """Let go of the upload, of which everything is durable."""

    @abstractmethod
    def _abort(self) -> None:
        """Say that the upload was given up."""

    @abstractmethod
    def _leave(self, error: BaseException | None, *, is_over: bool) -> None:
        """Let go of everything. `is_over`: the upload has ended, and not this writer alone."""

    # -- what is the same everywhere

    @property
    def written_bytes(self) -> int:
        """How much was written, what is not durable yet included."""
        return self._taken_bytes + self._pending_bytes

    @property
    def artifact(self) -> Artifact:
        """What was stored, after the commit."""
        if self._artifact is None:
            raise InvalidInput("nothing was committed yet")
        return self._artifact

    @entered
    def write(self, data: BytesLike) -> int:
        """Append bytes; gives their number. An error ends this writer; what is durable stays, to be resumed."""
        self._check_open()
        if not isinstance(data, (bytes, bytearray, memoryview)):
            raise InvalidInput(f"bytes are needed, not {type(data).__name__}")
        piece = bytes(data)
        with _Ending(self):
            self._check_size(self.written_bytes + len(piece))
            self._pending.append(piece)
            self._pending_bytes += len(piece)
            if self._pending_bytes >= WINDOW_BYTES:
                self._push()
            unsaved = self.written_bytes - self._begun_bytes
            is_time = time.monotonic() - self._last >= self.CHECKPOINT_SECONDS
            if unsaved >= self.CHECKPOINT_BYTES or (unsaved and is_time):
                self._checkpoint(wait=False)
        return len(piece)

    @entered
    def checkpoint(self) -> int:
        """Make all that was written durable; gives `offset_bytes`."""
        self._check_open()
        with _Ending(self):
            self._checkpoint()
        return self.offset_bytes

    @entered
    def commit(self) -> Artifact:
        """Make the artifact; gives it. The token has served its turn then."""
        self._check_open()
        with _Ending(self):
            self._push()
            artifact = self._commit()
        self._end(None, is_over=True)
        self._artifact = artifact
        return artifact

    @entered
    def suspend(self) -> str:
        """Make what was written durable, let go of it, and give the token: anybody may resume."""
        self._check_open()
        with _Ending(self):
            self._checkpoint()
            self._suspend()
        self._end(None)
        return self.token

    @entered
    def abort(self) -> None:
        """Give the upload up for good; nothing of it stays. Harmless when this writer has ended."""
        if self._is_open:
            with _Ending(self):
                self._abort()
            self._end(None, is_over=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: object) -> None:
        if not self._is_open:
            return
        if kind is None:
            self.commit()
        elif self._is_whole:
            with suppress(HoldfastError):  # the error on its way says more
                self.suspend()
        self._end(error)

    def _check_open(self) -> None:
        if not self._is_open:
            raise InvalidInput(
                "this writer was committed, suspended or aborted, or an error ended it: open another one"
                f" (resume={self.token!r} goes on, unless it was committed or aborted)"
            )

    def _push(self) -> None:
        whole = b"".join(self._pending)
        self._pending, self._pending_bytes = [], 0
        for start in range(0, len(whole), WINDOW_BYTES):
            self._take(memoryview(whole)[start : start + WINDOW_BYTES])

    def _checkpoint(self, *, wait: bool = True) -> None:
        self._push()
        self._save(wait=wait)
        self._last = time.monotonic()

    def _claim_required(self) -> None:
        """Rely on the blobs that the artifact requires: they were not held since it began."""
        for required in self._details.requires:
            if required.startswith("blake3:"):
                self._core.claim(Hash.parse(required))

    def _end(self, error: BaseException | None, *, is_over: bool = False) -> None:
        """Let go of everything. What was not made durable is gone."""
        if self._is_open:
            self._is_open = False
            self._leave(error, is_over=is_over)


class _Ending:
    """Ends a writer when an error, or an interrupt, leaves what it does half done."""

    def __init__(self, writer: ResumableWriter) -> None:
        self._writer = writer

    def __enter__(self) -> None:
        self._writer._is_whole = False

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: object) -> None:
        if error is not None:
            self._writer._end(error)
        else:
            self._writer._is_whole = True
