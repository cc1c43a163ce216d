"""How blobs are cut into chunks: chosen when a store is made, recorded in its format file. Pure.

`fastcdc` cuts where the content says so: equal stretches give equal chunks wherever they stand. `fixed` cuts
at multiples of a length. `whole` does not share: pieces as long as a record may be. Chunks of one store need
not all come from one setting; cuts matter for deduplication alone, never for reading.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Protocol

import msgspec

from holdfast import _native
from holdfast.errors import FormatError, InvalidConfig
from holdfast.types import BytesLike

MAX_CHUNK_BYTES: Final = _native.MAX_PAYLOAD_BYTES
DEFAULT_FASTCDC_BYTES: Final = 65_536
DEFAULT_FIXED_BYTES: Final = 1 << 20

_KINDS: Final = ("fastcdc", "fixed", "whole")
_AVERAGE_RANGE: Final = (4_096, 4 << 20)
_FIXED_RANGE: Final = (4_096, MAX_CHUNK_BYTES)
_MIN_FLOOR: Final = 64
_MIN_CEILING: Final = 1 << 20


class Cutter(Protocol):
    """Says where a stream is cut, however it is split; keeps none of it."""

    def feed(self, data: BytesLike, /) -> list[int]:
        """Give the lengths of the chunks that end in `data`; the first began where the last call left off."""

    def finish(self) -> int:
        """Give the length of the last, unfinished chunk, 0 if there is none; ready for another stream."""


class FixedCutter:
    """Chunks of one length; the last may be shorter."""

    def __init__(self, chunk_bytes: int) -> None:
        self._chunk_bytes = chunk_bytes
        self._open = 0

    def feed(self, data: BytesLike, /) -> list[int]:
        """Give the lengths of the chunks that end in `data`."""
        count, self._open = divmod(self._open + memoryview(data).nbytes, self._chunk_bytes)
        return [self._chunk_bytes] * count

    def finish(self) -> int:
        """Give the length of the last chunk, 0 if there is none."""
        rest, self._open = self._open, 0
        return rest


class Chunking(msgspec.Struct, frozen=True):
    """A way to cut: `kind`, and the least, average and greatest length of a chunk in bytes.

    `fixed` and `whole` have one length, which stands in all three. The last chunk of a blob may be shorter.
    Made by `Chunking.choose` or `Chunking.from_dict`; raises InvalidConfig, with the allowed range,
    otherwise.
    """

    kind: str
    min_bytes: int
    average_bytes: int
    max_bytes: int

    def __post_init__(self) -> None:
        if self.kind not in _KINDS:
            raise InvalidConfig(
                f"chunking is one of {', '.join(_KINDS)}, not {self.kind!r:.40}", value=self.kind
            )
        for name in ("min_bytes", "average_bytes", "max_bytes"):
            if type(getattr(self, name)) is not int:
                raise InvalidConfig(f"chunking: {name} is a number of bytes, not {getattr(self, name)!r:.40}")
        if self.kind == "fastcdc":
            _check("the average chunk of fastcdc", self.average_bytes, *_AVERAGE_RANGE)
            if self.average_bytes & (self.average_bytes - 1):
                raise InvalidConfig(
                    f"the average chunk of fastcdc is a power of two, not {self.average_bytes}"
                )
            _check(
                "the least chunk of fastcdc",
                self.min_bytes,
                _MIN_FLOOR,
                min(self.average_bytes, _MIN_CEILING),
            )
            _check("the greatest chunk of fastcdc", self.max_bytes, self.average_bytes, MAX_CHUNK_BYTES)
            return
        if self.kind == "fixed":
            _check("the chunk of fixed", self.max_bytes, *_FIXED_RANGE)
        elif self.max_bytes != MAX_CHUNK_BYTES:
            raise InvalidConfig(f"whole has pieces of {MAX_CHUNK_BYTES} bytes, and no size to choose")
        if not self.min_bytes == self.average_bytes == self.max_bytes:
            raise InvalidConfig(f"chunking {self.kind} has one length, in all three places")

    @classmethod
    def choose(cls, kind: str = "fastcdc", chunk_size_bytes: int | None = None) -> Chunking:
        """Give the chunking of a kind with an average of `chunk_size_bytes` (None: the default of the kind).

        fastcdc cuts from a quarter of the average to four times it: 16 KiB, 64 KiB, 256 KiB unless told
        otherwise.
        """
        if kind == "fastcdc":
            average = DEFAULT_FASTCDC_BYTES if chunk_size_bytes is None else chunk_size_bytes
            if type(average) is int:
                _check("the average chunk of fastcdc", average, *_AVERAGE_RANGE)
                return cls(kind, average // 4, average, average * 4)
        else:
            average = DEFAULT_FIXED_BYTES if kind == "fixed" else MAX_CHUNK_BYTES
            average = average if chunk_size_bytes is None else chunk_size_bytes
        return cls(kind, average, average, average)

    def make_cutter(self) -> Cutter:
        """Give a new cutter for one stream after another."""
        if self.kind == "fastcdc":
            return _native.Cutter(self.min_bytes, self.average_bytes, self.max_bytes)
        return FixedCutter(self.max_bytes)

    def to_dict(self) -> dict[str, str | int]:
        """Give the plain form that the store's format file keeps."""
        return {name: getattr(self, name) for name in self.__struct_fields__}

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Chunking:
        """Read `to_dict`'s form; FormatError when it is not that or not allowed."""
        try:
            if set(document) != set(cls.__struct_fields__):
                raise InvalidConfig(f"chunking has the keys {', '.join(cls.__struct_fields__)}")
            return cls(**document)
        except (InvalidConfig, TypeError) as error:
            raise FormatError(f"the chunking that the store records cannot be used: {error}") from error


def _check(what: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise InvalidConfig(f"{what} has {low} to {high} bytes, not {value}", value=value, low=low, high=high)
