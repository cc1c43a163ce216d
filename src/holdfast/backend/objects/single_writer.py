"""Writing where a service does not honour conditions: one writer at a time, who looks before it writes.

Chosen by the user (`single_writer`). What keeps two writers apart is then a claim: a lock on this machine, and
`writer.json` in the bucket, which says who writes. It is taken at the first write, and confirmed before any that comes
`CHECK_SECONDS` after the last confirmation. Without conditions that cannot be perfect: a writer that is stopped between
its look and its write, for so long that another one has taken the claim, overwrites what that one wrote.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Final

import msgspec

from holdfast.backend.objects.bucket import Bucket, Meta
from holdfast.backend.objects.claims import place_of_claims
from holdfast.backend.objects.layout import WRITER_KEY
from holdfast.backend.objects.probe import NOT_IMPLEMENTED, PROBE
from holdfast.errors import HoldfastError, InvalidConfig, Locked, Unavailable
from holdfast.types import BytesLike, now_ms

log = logging.getLogger("holdfast")

CHECK_SECONDS: Final = 15.0
"""How long a claim that was just confirmed is believed."""
BEAT_SECONDS: Final = 60.0
STALE_SECONDS: Final = 600
"""After so long in silence, by the times of the service, a writer is taken for gone."""
SETTLE_SECONDS: Final = 1.0
"""How long after a claim is made it is looked at: others who saw none either have made theirs by then."""
MAX_NOTE_BYTES: Final = 4_096
STRIPES: Final = 64


class _Note(msgspec.Struct):
    """What stands in `writer.json`."""

    holder: str
    """Random; empty when nobody writes."""
    host: str = ""
    pid: int = 0
    since_ms: int = 0
    beat: int = 0
    lock: str = ""
    """Which file is locked meanwhile: whoever gets that lock knows that this writer is gone."""


class SingleWriter:
    """Implements `Bucket` over one that may ignore conditions, or refuse them.

    `name` tells the place from others on this machine. Everything that writes may raise `Locked`: another one writes.
    Conditions are asked for all the same: where they are honoured they hold.
    """

    def __init__(self, inner: Bucket, name: str) -> None:
        self.inner = inner
        self.location = inner.location
        self.requests = inner.requests
        self._name = hashlib.sha256(name.encode()).hexdigest()[:32]
        self._mutex = threading.Lock()
        self._stripes = [threading.Lock() for _ in range(STRIPES)]
        self._note = _Note(secrets.token_hex(16), socket.gethostname(), os.getpid())
        self._lock: int | None = None
        self._holds = self._has_warned = False
        self._checked = self._beaten = 0.0

    def __repr__(self) -> str:
        return f"SingleWriter({self.inner!r})"

    # --- reading, which needs no claim

    def head(self, key: str) -> Meta | None:
        return self.inner.head(key)

    def get(self, key: str, *, max_bytes: int) -> tuple[bytes, Meta] | None:
        return self.inner.get(key, max_bytes=max_bytes)

    def get_range(self, key: str, start: int, stop: int) -> bytes | None:
        return self.inner.get_range(key, start, stop)

    def iter(self, key: str, start: int, stop: int) -> Iterator[bytes] | None:
        return self.inner.iter(key, start, stop)

    def list(self, prefix: str, *, after: str = "") -> Iterator[Meta]:
        return self.inner.list(prefix, after=after)

    # --- writing

    def create(self, key: str, data: BytesLike) -> Meta | None:
        return self._put_if(key, data, None, lambda: self.inner.create(key, data))

    def replace(self, key: str, data: BytesLike, e_tag: str) -> Meta | None:
        return self._put_if(key, data, e_tag, lambda: self.inner.replace(key, data, e_tag))

    def _put_if(
        self, key: str, data: BytesLike, e_tag: str | None, put: Callable[[], Meta | None]
    ) -> Meta | None:
        """Look, see that the claim is ours, and put; look again where it was not ours at the first look."""
        with self._stripes[hash(key) % STRIPES]:  # so that no thread of ours comes in between
            if self._e_tag(key) != e_tag or (self._own() and self._e_tag(key) != e_tag):
                return None
            try:
                made = put()
            except InvalidConfig as error:
                if error.evidence.get("status") != NOT_IMPLEMENTED:
                    raise
                made = None
            if made is None:
                if self._e_tag(key) != e_tag:
                    return None
                made = self.inner.upload(key, [data], len(data))  # it refuses the condition, though it is met
            return made if made.e_tag is not None else self.inner.head(key) or made

    def _e_tag(self, key: str) -> str | None:
        found = self.inner.head(key)
        return None if found is None else found.e_tag or ""

    def upload(self, key: str, pieces: Iterable[BytesLike], size_bytes: int) -> Meta:
        self._own()
        return self.inner.upload(key, self._claimed(pieces), size_bytes)

    def _claimed(self, pieces: Iterable[BytesLike]) -> Iterator[BytesLike]:
        """Confirm the claim while a large body goes up: who is silent for long is taken for gone."""
        for piece in pieces:
            self._own()
            yield piece

    def copy(self, source: str, target: str) -> Meta | None:
        self._own()
        return self.inner.copy(source, target)

    def delete(self, keys: Sequence[str]) -> None:
        self._own()
        self.inner.delete(keys)

    def abort_stale(self, before_ms: int) -> int | None:
        self._own()
        return self.inner.abort_stale(before_ms)

    def close(self) -> None:
        """Let others write."""
        with self._mutex:
            with suppress(HoldfastError):  # they wait ten minutes then, on another machine
                if self._holds and self._is_ours(self._read()):
                    self._write(_Note(""))
            self._holds = False
            if self._lock is not None:
                os.close(self._lock)
                self._lock = None
        self.inner.close()

    # --- the claim

    def _own(self) -> bool:
        """See that the claim is ours, and take it where it is not; True if it has just been taken."""
        with self._mutex:
            now = _seconds()
            if self._holds and now - self._checked < CHECK_SECONDS:
                return False
            found = self._read()
            is_new = not (self._holds and self._is_ours(found))
            if is_new:
                self._holds = False
                self._claim(found)
                now = _seconds()
            elif now - self._beaten >= BEAT_SECONDS:
                self._note.beat += 1
                self._write(self._note)
                self._beaten = now
            self._checked = now
            return is_new

    def _claim(self, found: tuple[_Note, Meta] | None) -> None:
        """Take the claim, or `Locked`. A claim that took long to make waits until others have looked at theirs."""
        lock = self._take_lock()
        if not self._has_warned:
            self._has_warned = True
            log.warning(
                "single_writer = true: a look and a claim keep other writers from %s, which is not as safe as"
                " conditions that the service honours; see to it that one machine alone writes there",
                self.location,
            )
        while True:
            begun = _seconds()
            if found is not None and found[0].holder and not self._is_ours(found) and found[0].lock != lock:
                other, meta = found
                if self._server_ms() - meta.modified_ms <= STALE_SECONDS * 1000:
                    raise self._locked(other, "on another machine, or another user's")
            self._note.lock = lock
            self._note.since_ms = now_ms()
            self._write(self._note)
            is_quick = _seconds() - begun < SETTLE_SECONDS
            time.sleep(SETTLE_SECONDS if is_quick else CHECK_SECONDS + SETTLE_SECONDS)
            found = self._read()
            if self._is_ours(found):
                self._holds, self._beaten = True, begun
                return
            if found is not None and found[0].holder:
                raise self._locked(found[0], "which claimed the bucket at the same time")

    def _take_lock(self) -> str:
        """Lock the file of this place on this machine; gives which file it is."""
        if self._lock is None:
            root = place_of_claims()
            if root is None:
                raise InvalidConfig(
                    "single_writer needs a place for its lock: the directory for temporary files has one of another"
                    f" user under the name holdfast-{os.getuid()}, or cannot be written; set TMPDIR"
                )
            try:
                handle = os.open(f"{root}/writer-{self._name}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            except OSError as error:
                raise Unavailable(
                    f"{root}/writer-{self._name} cannot be opened: {error.strerror}",
                    path=root,
                    errno=error.errno,
                ) from error
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                os.close(handle)
                found = self._read()
                other = found[0] if found is not None else _Note("")
                raise self._locked(other, "on this machine") from error
            self._lock = handle
        found_file = os.fstat(self._lock)
        return f"{_boot()}-{found_file.st_dev:x}-{found_file.st_ino:x}"

    def _read(self) -> tuple[_Note, Meta] | None:
        found = self.inner.get(WRITER_KEY, max_bytes=MAX_NOTE_BYTES)
        if found is None:
            return None
        try:
            return msgspec.json.decode(found[0], type=_Note), found[1]
        except msgspec.MsgspecError:  # half of one, or nobody's: it ends by its age
            return _Note("unreadable"), found[1]

    def _write(self, note: _Note) -> None:
        data = msgspec.json.encode(note)
        self.inner.upload(WRITER_KEY, [data], len(data))

    def _is_ours(self, found: tuple[_Note, Meta] | None) -> bool:
        return found is not None and found[0].holder == self._note.holder

    def _server_ms(self) -> int:
        """Give the time of the service, whatever the clock here says."""
        key = f"{PROBE}{secrets.token_hex(16)}"
        self.inner.upload(key, [b"now"], 3)
        try:
            found = self.inner.head(key)
        finally:
            self.inner.delete([key])
        if found is None:
            raise Unavailable(f"{key} was made and is not there: try again", key=key)
        return found.modified_ms

    def _locked(self, other: _Note, where: str) -> Locked:
        return Locked(
            f"one process alone writes to {self.location} (single_writer), and now that is process {other.pid} of"
            f" {other.host or 'an unknown machine'}, {where}: wait until it has closed the store"
            f" ({STALE_SECONDS // 60} minutes after its last word it is taken for gone), or open it read_only",
            path=self.location,
            host=other.host,
            pid=other.pid,
            since_ms=other.since_ms,
        )


def _seconds() -> float:
    """Give a time that goes on while the machine sleeps."""
    clock: Callable[[int], float] = time.clock_gettime
    return clock(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def _boot() -> str:
    """Tell this run of this machine from others."""
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            return file.read().strip()
    except OSError:
        return socket.gethostname()
