"""Tidying up after writers that died: their segments end cleanly, or go. The caller holds the store's lock."""

from __future__ import annotations

from collections.abc import Sequence

from holdfast.backend.log.disk import Disk
from holdfast.backend.log.layout import SEGMENTS, list_segments, segment_path
from holdfast.backend.log.segment import SegmentWriter, read_tail
from holdfast.types import now_ms
from holdfast.wire.record import SEGMENT_HEADER_BYTES, SegmentHeader, encode_segment_header


def retire(disk: Disk, root: str, store_id: bytes, segment: int, handle: int, applied: int) -> None:
    """Cut a dead writer's segment to what was applied in place, and seal that; without any, remove it."""
    directory = f"{root}/{SEGMENTS}"
    if applied <= SEGMENT_HEADER_BYTES and segment < max(list_segments(disk, root)):
        disk.unlink(segment_path(root, segment))
        disk.fsync_dir(directory)
        return
    if applied <= SEGMENT_HEADER_BYTES:
        header = encode_segment_header(SegmentHeader(segment, store_id, now_ms()))
        disk.pwrite(handle, [header], 0)
    disk.truncate(handle, applied)
    disk.fsync(handle)
    writing = disk.open(segment_path(root, segment), "a")
    SegmentWriter(disk, root, segment, writing, applied).seal()


def remove_retired(disk: Disk, root: str, segments: Sequence[int]) -> None:
    """Remove segments that were compacted away, and are still there because a crash came. The highest id stays."""
    present = list_segments(disk, root)
    gone = [segment for segment in segments if segment < present[-1]]
    for segment in gone:
        disk.unlink(segment_path(root, segment))
    if gone:
        disk.fsync_dir(f"{root}/{SEGMENTS}")


def seal_again(disk: Disk, root: str, segment: int, records_stop: int) -> None:
    """Write the index of a sealed segment anew from its records, which are all good."""
    handle = disk.open(segment_path(root, segment), "a")
    try:
        if not disk.lock(handle):
            return
        disk.truncate(handle, records_stop)
        writer = SegmentWriter(disk, root, segment, handle, records_stop)
        handle = -1
    finally:
        if handle >= 0:
            disk.close(handle)
    writer.seal()


def close_quiet(disk: Disk, root: str, segment: int) -> None:
    """Let a segment be adopted whose writer died with nothing under way; remove one that never held anything."""
    path = segment_path(root, segment)
    handle = disk.open(path, "a")
    writer = None
    try:
        if not disk.lock(handle):
            return
        size = disk.size(handle)
        if read_tail(disk, handle, segment, size).closed:
            return
        if size > SEGMENT_HEADER_BYTES:
            writer = SegmentWriter(disk, root, segment, handle, size)
    finally:
        if writer is None:
            disk.close(handle)
    if writer is not None:
        writer.close()
    else:
        remove_empty(disk, root, segment)


def remove_empty(disk: Disk, root: str, segment: int) -> None:
    """Remove a segment that nobody holds and that never held a record. The highest stays: ids never come again."""
    if segment >= max(list_segments(disk, root)):
        return
    path = segment_path(root, segment)
    handle = disk.open(path, "a")
    try:
        empty = disk.lock(handle) and disk.size(handle) <= SEGMENT_HEADER_BYTES
    finally:
        disk.close(handle)
    if empty:
        disk.unlink(path)
        disk.fsync_dir(f"{root}/{SEGMENTS}")
