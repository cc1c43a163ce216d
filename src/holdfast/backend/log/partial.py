"""The files of partial blobs: `partials/HASH/` (docs/format.md, "Partial blobs"). Knows bytes and locks, no streams.

Whoever imports opens a partial blob, which keeps it from expiring, and changes it only while it holds its lock, for
one checkpoint at a time. Whoever reads needs no lock: the journal only grows, or is replaced whole.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from typing import Final, NamedTuple

from holdfast._native import crc32c
from holdfast.backend.log.disk import Disk, OpenMode
from holdfast.backend.log.partial_state import (
    CHUNK_BYTES,
    ENTRY_HEADER_BYTES,
    PartialState,
    empty_state,
    encode_entry,
    iter_chunks,
    pack_chunks,
    parse_journal,
)
from holdfast.errors import Locked
from holdfast.types import HASH_BYTES, BytesLike

PARTIALS: Final = "partials"
LOCK, STATE, BLOCKS, PAIRS, CHUNKS = "lock", "state", "blocks", "pairs", "chunks"
_NEW: Final = STATE + ".new"
_FILES: Final = (LOCK, BLOCKS, PAIRS, CHUNKS)
_GONE: Final = b"gone"
"""What the lock file says once the blob is complete, or expired: whoever has it open must look again."""
_SLACK_BYTES: Final = 64 << 10
"""How much a journal may grow beyond twice what it says before it is written anew."""
MAX_KNOWN: Final = 16
_PAUSES: Final = (0.0005, 0.02)


class _Known(NamedTuple):
    """What was read of a journal: its first header, which no other journal has, and the entries that were whole."""

    first_header: bytes
    length_bytes: int
    state: PartialState | None


class Partials:
    """The partial blobs of one store's directory."""

    def __init__(
        self,
        disk: Disk,
        root: str,
        lock: Callable[[], AbstractContextManager[None]],
        timeout_seconds: float,
    ) -> None:
        self.disk = disk
        self.root = f"{root}/{PARTIALS}"
        self.timeout_seconds = timeout_seconds
        self._parent = root
        self._lock = lock
        self._cache: dict[bytes, _Known] = {}
        self.opened: set[int] = set()
        """Handles, for a forked child to close."""

    def path(self, hash_: bytes) -> str:
        """Give the directory of a partial blob."""
        return f"{self.root}/{hash_.hex()}"

    def hashes(self) -> list[bytes]:
        """Give the hashes of all partial blobs, sorted; complete ones that a crash left here included."""
        try:
            names = self.disk.listdir(self.root)
        except FileNotFoundError:
            return []
        found = []
        for name in names:
            with suppress(ValueError):
                if len(hash_ := bytes.fromhex(name)) == HASH_BYTES and name == hash_.hex():
                    found.append(hash_)
        return sorted(found)

    def find(self, hash_: bytes, *, fresh: bool = False) -> PartialState | None:
        """Give the state of a partial blob as it is on disk now; None where there is none.

        What was read before is used again if the journal has only grown since. `fresh`: read it all.
        """
        known = None if fresh else self._cache.get(hash_)
        try:
            handle = self.disk.open(f"{self.path(hash_)}/{STATE}", "r")
        except FileNotFoundError:
            self._cache.pop(hash_, None)
            return None
        try:
            size, first = self.disk.size(handle), self.disk.pread(handle, ENTRY_HEADER_BYTES, 0)
            if known is None or known.first_header != first or known.length_bytes > size:
                known = _Known(first, 0, None)
            if known.length_bytes < size:
                more = self.disk.pread(handle, size - known.length_bytes, known.length_bytes)
                state, length = parse_journal(more, hash_, known.state)
                known = _Known(first, known.length_bytes + length, state)
        finally:
            self.disk.close(handle)
        if len(self._cache) >= MAX_KNOWN:
            self._cache.clear()
        self._cache[hash_] = known
        return known.state

    def chunks(self, hash_: bytes) -> Iterator[list[bytes]]:
        """Give the digests of the chunks of a partial blob that are in the log, in batches.

        `CorruptBlob`, at the end, if the list is damaged; `FileNotFoundError` if the partial blob is gone.
        """
        state = self.find(hash_, fresh=True)
        if state is None or not state.chunk_count:
            return
        handle = self.disk.open(f"{self.path(hash_)}/{CHUNKS}", "r")
        try:
            for _, digests in iter_chunks(lambda n, at: self.disk.pread(handle, n, at), hash_, state):
                yield digests
        finally:
            self.disk.close(handle)

    def open(self, hash_: bytes, now_ms: int) -> Partial:
        """Open a partial blob to write, made if it is not there. Durable as a name when it returns."""
        with self._lock():
            while True:
                for path in (self.root, self.path(hash_)):
                    if self.disk.stat(path) is None:
                        self.disk.mkdir(path)
                partial = Partial(self, hash_)
                try:
                    if not partial.is_gone():
                        partial.begin(now_ms)
                        for path in (self.root, self._parent):
                            self.disk.fsync_dir(path)
                        return partial
                except BaseException:
                    partial.close()
                    raise
                partial.close()
                self._unlink(hash_)  # what a crash left of one that was complete, or had expired

    def remove(self, hash_: bytes, when: Callable[[PartialState | None], bool]) -> bool:
        """Remove a partial blob that nobody has open, if `when` says so of its state."""
        with self._lock():
            try:
                partial = Partial(self, hash_)
            except FileNotFoundError:
                return False
            try:
                if not partial.is_alone() or not when(self.find(hash_)):
                    return False
                self._unlink(hash_)
            finally:
                partial.close()
        return True

    def unlink(self, hash_: bytes) -> None:
        """Remove the files of a partial blob whose lock file says that it is gone."""
        with self._lock():
            self._unlink(hash_)

    def _unlink(self, hash_: bytes) -> None:
        path = self.path(hash_)
        self._cache.pop(hash_, None)
        with suppress(FileNotFoundError):
            names = self.disk.listdir(path)
            if STATE in names:  # without it, it is none: that is durable before anything that it claims goes
                self.disk.unlink(f"{path}/{STATE}")
                self.disk.fsync_dir(path)
            for name in names:
                if name != STATE:
                    self.disk.unlink(f"{path}/{name}")
            self.disk.rmdir(path)


class Partial:
    """A partial blob that is open to write. One thread at a time."""

    def __init__(self, owner: Partials, hash_: bytes) -> None:
        self.hash = hash_
        self.state = empty_state(0)
        self._owner = owner
        self._disk = owner.disk
        self._path = owner.path(hash_)
        self._handles: dict[str, int] = {}
        self._is_ours = False
        """Whether the journal's last entry is ours, so that we know it to be durable."""
        self._dirty: set[str] = set()
        self._identity = (0, 0)
        self._journal_bytes = 0
        self._whole_bytes = 0
        if self._disk.stat(self._path) is None:
            raise FileNotFoundError(self._path)
        try:
            for name in _FILES:
                self._open(name, "rw")
        except BaseException:
            self.close()
            raise

    def begin(self, now_ms: int) -> None:
        """Keep it from expiring from here on; write its first state if it has none.

        The caller holds the store's lock.
        """
        if not self._disk.lock(self._handles[BLOCKS], exclusive=False):
            raise Locked(f"the partial blob {self.hash.hex()} is being removed", path=self._path)
        if self._owner.find(self.hash) is None:
            self._write_journal(empty_state(now_ms))

    def is_gone(self) -> bool:
        """Whether it was completed, or removed."""
        return self._disk.pread(self._handles[LOCK], len(_GONE), 0) == _GONE

    def is_alone(self) -> bool:
        """Whether nobody else has it open; from then on nobody can, as long as the caller holds the store's lock."""
        return self._disk.lock(self._handles[BLOCKS])

    @contextmanager
    def locked(self) -> Iterator[bool]:
        """Hold the lock of this partial blob for one checkpoint, with `state` as it is now; False: it is gone."""
        handle = self._handles[LOCK]
        deadline = time.monotonic() + self._owner.timeout_seconds
        pause, longest = _PAUSES
        while not self._disk.lock(handle):
            if time.monotonic() > deadline:
                raise Locked(
                    f"somebody else holds the partial blob {self.hash.hex()}", path=f"{self._path}/{LOCK}"
                )
            time.sleep(pause)
            pause = min(2 * pause, longest)
        try:
            gone = self.is_gone()
            if not gone:
                self._refresh()
            yield not gone
        finally:
            self._disk.unlock(handle)

    # -- while it is locked

    def write_blocks(self, runs: Sequence[tuple[int, BytesLike]]) -> None:
        """Put whole blocks into the sparse file: (offset in the blob, bytes)."""
        self._write(BLOCKS, runs)

    def write_pairs(self, runs: Sequence[tuple[int, BytesLike]]) -> None:
        """Put pairs into the outboard: (offset in it, bytes)."""
        self._write(PAIRS, runs)

    def write_chunks(
        self, state: PartialState, ends: Sequence[int], digests: Sequence[bytes]
    ) -> tuple[int, int]:
        """Append to the list of chunks in the log; gives its new length and checksum for the next state."""
        packed = pack_chunks(ends, digests)
        self._write(CHUNKS, [(state.chunk_count * CHUNK_BYTES, packed)])
        return state.chunk_count + len(ends), crc32c(packed, state.chunks_crc)

    def sync(self) -> None:
        """Make durable what was written: `save` does so first, but it may be begun beside something else.

        After a failure the caller gives up: a second fsync would say that all is well.
        """
        for name in sorted(self._dirty):
            self._disk.fsync(self._handles[name])
        self._dirty.clear()

    def save(self, state: PartialState) -> None:
        """Claim a new state, durably, after all that was written before it."""
        self.sync()
        entry = encode_entry(self.hash, state, since=self.state)
        grown = self._journal_bytes + len(entry)
        if not self._is_ours or grown > 2 * self._whole_bytes + _SLACK_BYTES:
            # What another wrote may be in the page cache alone (its fsync may have failed): it is written anew.
            self._write_journal(state)
            return
        handle = self._handles[STATE]
        self._is_ours = False
        self._disk.pwrite(handle, [entry], self._journal_bytes)
        self._disk.fsync(handle)
        self._is_ours = True
        self._journal_bytes = grown
        self.state = state

    def compact(self) -> None:
        """Write the journal anew if it says much more than the state needs."""
        if self._journal_bytes > 2 * self._whole_bytes and self._journal_bytes > 4 * ENTRY_HEADER_BYTES:
            self._write_journal(self.state)

    def punch(self, start: int, stop: int) -> None:
        """Give the room of a range of the sparse file back."""
        self._disk.punch(self._handles[BLOCKS], start, stop - start)

    def free_bytes(self) -> int:
        """Give the room that is left on the file system."""
        return self._disk.free_bytes(self._path)

    def read_blocks(self, offset: int, length: int) -> bytes:
        """Read from the sparse file; not verified."""
        return self._disk.pread(self._handles[BLOCKS], length, offset)

    def read_pairs(self, offset: int, length: int) -> bytes:
        """Read from the outboard; not verified, and zeros where nothing came yet."""
        return self._disk.pread(self._handles[PAIRS], length, offset)

    def iter_chunks(self, state: PartialState) -> Iterator[tuple[list[int], list[bytes]]]:
        """Give lengths and digests of all chunks in the log, in batches; `CorruptBlob` if the list is damaged."""
        handle = self._handles[CHUNKS]
        yield from iter_chunks(lambda n, at: self._disk.pread(handle, n, at), self.hash, state)

    def retire(self) -> None:
        """Say that the blob is complete (and durable so) and remove the files."""
        self.mark_gone()
        self._owner.unlink(self.hash)

    def mark_gone(self) -> None:
        """Tell those who have it open that it is no more."""
        self._disk.pwrite(self._handles[LOCK], [_GONE], 0)

    def close(self) -> None:
        """Let go of it, and of its locks."""
        with ExitStack() as each:  # each of them, whatever became of the others
            for name in list(self._handles):
                each.callback(self._close, name)

    def _open(self, name: str, mode: OpenMode) -> None:
        handle = self._disk.open(f"{self._path}/{name}", mode)
        self._handles[name] = handle
        self._owner.opened.add(handle)

    def _close(self, name: str) -> None:
        handle = self._handles.pop(name, None)
        if handle is not None:
            self._owner.opened.discard(handle)
            self._disk.close(handle)

    def _write(self, name: str, runs: Sequence[tuple[int, BytesLike]]) -> None:
        handle = self._handles[name]
        for offset, data in runs:
            self._dirty.add(name)
            self._disk.pwrite(handle, [data], offset)

    def _refresh(self) -> None:
        """Take over what others have written since our last entry."""
        found = self._disk.stat(f"{self._path}/{STATE}")
        if self._is_ours and found is not None and found[:3] == (*self._identity, self._journal_bytes):
            return
        self._is_ours = False
        self.state = self._owner.find(self.hash, fresh=True) or empty_state(self.state.created_ms)

    def _write_journal(self, state: PartialState) -> None:
        """Replace the journal by one entry: aside, durable, renamed, durable."""
        self._is_ours = False
        entry = encode_entry(self.hash, state)
        self._close(STATE)
        if self._disk.stat(f"{self._path}/{_NEW}") is not None:
            self._disk.unlink(f"{self._path}/{_NEW}")
        handle = self._disk.open(f"{self._path}/{_NEW}", "x")
        self._handles[STATE] = handle
        self._owner.opened.add(handle)
        self._disk.pwrite(handle, [entry], 0)
        self._disk.fsync(handle)
        self._disk.rename(f"{self._path}/{_NEW}", f"{self._path}/{STATE}")
        self._disk.fsync_dir(self._path)
        found = self._disk.stat(f"{self._path}/{STATE}")
        assert found is not None
        self._identity = (found.dev, found.ino)
        self._is_ours = True
        self._journal_bytes = self._whole_bytes = len(entry)
        self.state = state
