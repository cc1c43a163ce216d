"""Compression of payloads: tried where it may pay, kept where it does, on two threads when there is much."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from holdfast import _native
from holdfast.types import BytesLike
from holdfast.wire.record import FLAG_ZSTD

LEVEL: Final = 1
MIN_BYTES: Final = 128
"""Below this a record is as large with or without."""
PARALLEL_BYTES: Final = 256 << 10

_local = threading.local()


def compress(
    payloads: Sequence[BytesLike], pool: ThreadPoolExecutor | None = None
) -> tuple[list[BytesLike], bytearray]:
    """Give payloads as they are to be stored, and the flags of each (`FLAG_ZSTD` or 0).

    A payload is left alone when a sample looks random, or when less than an eighth is saved.
    """
    worth = _native.compressible(payloads)
    stored = list(payloads)
    flags = bytearray(len(stored))
    chosen = [i for i, yes in enumerate(worth) if yes and len(stored[i]) >= MIN_BYTES]
    if not chosen:
        return stored, flags
    if pool is not None and sum(len(stored[i]) for i in chosen) >= PARALLEL_BYTES and len(chosen) > 1:
        half = len(chosen) // 2
        other = pool.submit(_compress_some, payloads, chosen[:half], stored, flags)
        _compress_some(payloads, chosen[half:], stored, flags)
        other.result()
    else:
        _compress_some(payloads, chosen, stored, flags)
    return stored, flags


def _compress_some(
    payloads: Sequence[BytesLike], chosen: Sequence[int], stored: list[BytesLike], flags: bytearray
) -> None:
    try:
        compressor = _local.compressor
    except AttributeError:
        import zstandard

        compressor = _local.compressor = zstandard.ZstdCompressor(level=LEVEL, write_content_size=True)
    for i in chosen:
        plain = payloads[i]
        packed = compressor.compress(plain)
        if len(packed) <= len(plain) - (len(plain) >> 3):
            stored[i] = packed
            flags[i] = FLAG_ZSTD
