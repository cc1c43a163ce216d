"""Checking one blob of a bucket by reading it: its bytes, and its outboard. Wrong bytes are asked for once more."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from functools import lru_cache
from typing import Final, NamedTuple

from holdfast import _native
from holdfast.backend.objects.backend import ObjectBackend
from holdfast.bao import OutboardBuilder, OutboardReader, outboard_bytes
from holdfast.errors import CorruptBlob, FormatError, IntegrityError, MissingChunk
from holdfast.types import BLOCK_BYTES, BytesLike

WINDOW_BYTES: Final = 4 << 20
PAGE_BYTES: Final = 256 << 10
CACHED_PAGES: Final = 32


class Finding(NamedTuple):
    """Something that is wrong with an object. `offset`: in the blob, where that is known."""

    key: str
    hash: bytes
    offset: int | None
    reason: str


class BlobCheck:
    """One blob, in windows that are checked apart. Threads share it."""

    def __init__(self, backend: ObjectBackend, hash_: bytes, size_bytes: int, *, has_outboard: bool) -> None:
        self.hash = hash_
        self.size_bytes = size_bytes
        self.made_outboard = False
        self._backend = backend
        self._data_key = backend.data_key(hash_)
        self._outboard_key = backend.outboard_key(hash_)
        self._has_outboard = has_outboard
        self._mutex = threading.Lock()
        self._is_told = False
        self._pages = lru_cache(CACHED_PAGES)(self._read_page)
        self._outboard = OutboardReader(size_bytes, hash_, self._read_pairs)

    def windows(self, start: int = 0) -> Iterator[tuple[int, int]]:
        """Give what is to be checked from `start` on: one window, where the blob is small or has no outboard."""
        if self.size_bytes <= WINDOW_BYTES or not self._has_outboard:
            yield 0, self.size_bytes
            return
        for at in range(start, self.size_bytes, WINDOW_BYTES):
            yield at, min(at + WINDOW_BYTES, self.size_bytes)

    def check(self, start: int, stop: int) -> list[Finding]:
        """Read a window; gives what is wrong there."""
        try:
            if self.size_bytes <= BLOCK_BYTES:
                return self._check_small()
            if not self._has_outboard:
                return self._compute()
            if self.size_bytes <= WINDOW_BYTES:
                return self._check_at_once()
            return self._check_window(start, stop)
        except (MissingChunk, CorruptBlob) as error:  # it is gone, or shorter than it was listed
            return [self._data_finding(error.evidence.get("offset_bytes"), error.message)]

    def first_bad(self, data: BytesLike, first_block: int) -> int:
        """Hold blocks from anywhere against the bucket's outboard, as `OutboardReader.check` does."""
        return self._outboard.check(data, first_block)

    def _check_small(self) -> list[Finding]:
        for _ in range(2):
            if _native.blake3(self._backend.fetch(self.hash, 0, self.size_bytes)) == self.hash:
                return []
        return [self._data_finding(0, "other bytes")]

    def _check_at_once(self) -> list[Finding]:
        for _ in range(2):
            hasher = _native.BlobHasher()
            hasher.update(self._backend.fetch(self.hash, 0, self.size_bytes))
            root, groups = hasher.finish()
            if root == self.hash:
                break
        else:
            return [self._data_finding(self._first_bad(), "other bytes")]
        with OutboardBuilder() as builder:
            builder.feed(groups)
            pairs = b"".join(builder.finish(self.size_bytes))
        for _ in range(2):
            try:
                if self._backend.fetch_outboard(self.hash, 0, len(pairs)) == pairs:
                    return []
            except IntegrityError:
                continue
        return [self._outboard_finding()]

    def _first_bad(self) -> int | None:
        """Say where the first block is that is wrong, if the outboard can tell."""
        try:
            bad = self._outboard.check(self._backend.fetch(self.hash, 0, self.size_bytes), 0)
        except (IntegrityError, FormatError):
            return None
        return bad * BLOCK_BYTES if bad >= 0 else None

    def _check_window(self, start: int, stop: int) -> list[Finding]:
        bad = -1
        for _ in range(2):
            data = self._backend.fetch(self.hash, start, stop)
            try:
                bad = self._outboard.check(data, start // BLOCK_BYTES)
            except (IntegrityError, FormatError):
                self._pages.cache_clear()
                try:
                    bad = self._outboard.check(data, start // BLOCK_BYTES)
                except (IntegrityError, FormatError):
                    return self._without_outboard()
            if bad < 0:
                return []
        return [self._data_finding(start + bad * BLOCK_BYTES, "other bytes")]

    def _without_outboard(self) -> list[Finding]:
        """The outboard proves nothing: read all of the blob, once for all windows."""
        with self._mutex:
            if self._is_told:
                return []
            self._is_told = True
        if self._is_whole():
            return [self._outboard_finding()]
        return [self._data_finding(None, "other bytes"), self._outboard_finding()]

    def _is_whole(self) -> bool:
        for _ in range(2):
            hasher = _native.BlobHasher()
            for at in range(0, self.size_bytes, WINDOW_BYTES):
                hasher.update(self._backend.fetch(self.hash, at, min(at + WINDOW_BYTES, self.size_bytes)))
                hasher.take_groups()
            if hasher.finish()[0] == self.hash:
                return True
        return False

    def _compute(self) -> list[Finding]:
        """There is no outboard: it is made, and put where that is allowed."""
        for attempt in range(2):
            try:
                self._backend.remake_outboard(self.hash, self.size_bytes).close()
                self.made_outboard = True
                return []
            except CorruptBlob:
                if attempt:
                    raise
        raise AssertionError

    def _read_pairs(self, offset: int, length: int) -> bytes:
        parts = []
        while length:
            number, at = divmod(offset, PAGE_BYTES)
            part = self._pages(number)[at : at + length]
            if not part:
                break
            parts.append(part)
            offset, length = offset + len(part), length - len(part)
        return b"".join(parts)

    def _read_page(self, number: int) -> bytes:
        start = number * PAGE_BYTES
        stop = min(start + PAGE_BYTES, outboard_bytes(self.size_bytes))
        return self._backend.fetch_outboard(self.hash, start, stop)

    def _data_finding(self, offset: int | None, reason: str) -> Finding:
        return Finding(self._data_key, self.hash, offset, reason)

    def _outboard_finding(self) -> Finding:
        return Finding(self._outboard_key, self.hash, None, "not the outboard of this blob")
