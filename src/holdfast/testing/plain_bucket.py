"""A bucket that is a dictionary: quick, copied in a moment, and simple enough to be right by looking at it."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import Self

from holdfast.backend.objects.bucket import Meta, Requests, exactly
from holdfast.errors import FormatError
from holdfast.types import BytesLike, now_ms


class PlainBucket:
    """Implements `Bucket` for one process; stores may share it, also after a `close`."""

    def __init__(self) -> None:
        self.location = "plain"
        self.requests = Requests()
        self.objects: dict[str, tuple[bytes, Meta]] = {}
        self._mutex = threading.Lock()
        self._numbers = itertools.count(1)

    def copied(self) -> Self:
        """Give another one with the same objects."""
        other = type(self)()
        other.objects = dict(self.objects)
        other._numbers = itertools.count(1_000_000)
        return other

    def head(self, key: str) -> Meta | None:
        self.requests.count("head")
        found = self.objects.get(key)
        return None if found is None else found[1]

    def get(self, key: str, *, max_bytes: int) -> tuple[bytes, Meta] | None:
        self.requests.count("get")
        found = self.objects.get(key)
        if found is not None and len(found[0]) > max_bytes:
            raise FormatError(f"{key} is too long", key=key)
        return found

    def get_range(self, key: str, start: int, stop: int) -> bytes | None:
        self.requests.count("get")
        found = self.objects.get(key)
        if found is None:
            return None
        if len(found[0]) < stop:
            raise FormatError(f"{key} is too short", key=key)
        return found[0][start:stop]

    def iter(self, key: str, start: int, stop: int) -> Iterator[bytes] | None:
        data = self.get_range(key, start, stop)
        return None if data is None else iter((data,))

    def create(self, key: str, data: BytesLike) -> Meta | None:
        self.requests.count("put")
        with self._mutex:
            return None if key in self.objects else self._put(key, bytes(data))

    def replace(self, key: str, data: BytesLike, e_tag: str) -> Meta | None:
        self.requests.count("put")
        with self._mutex:
            found = self.objects.get(key)
            return None if found is None or found[1].e_tag != e_tag else self._put(key, bytes(data))

    def upload(self, key: str, pieces: Iterable[BytesLike], size_bytes: int) -> Meta:
        data = b"".join(exactly(pieces, size_bytes))
        self.requests.count("put")
        with self._mutex:
            return self._put(key, data)

    def copy(self, source: str, target: str) -> Meta | None:
        self.requests.count("put")
        with self._mutex:
            found = self.objects.get(source)
            return None if found is None else self._put(target, found[0])

    def delete(self, keys: Sequence[str]) -> None:
        self.requests.count("delete")
        with self._mutex:
            for key in keys:
                self.objects.pop(key, None)

    def list(self, prefix: str, *, after: str = "") -> Iterator[Meta]:
        self.requests.count("list")
        with self._mutex:
            found = sorted(
                one for one in self.objects.items() if one[0].startswith(prefix) and one[0] > after
            )
        return iter([meta for _, (_, meta) in found])

    def abort_stale(self, before_ms: int) -> int | None:
        return None

    def close(self) -> None:
        """Others may have it still."""

    def _put(self, key: str, data: bytes) -> Meta:
        meta = Meta(key, len(data), f'"{next(self._numbers)}"', now_ms())
        self.objects[key] = (data, meta)
        return meta
