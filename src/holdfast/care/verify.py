"""Verifying one artifact or blob on demand: all of its bytes against its root, and its outboard."""

from __future__ import annotations

from holdfast import _native
from holdfast.backend.log.reader import LargeReader
from holdfast.bao import OutboardReader
from holdfast.care.report import Report, problem_of
from holdfast.core import MENDABLE
from holdfast.errors import BackendError, CorruptBlob, HoldfastError
from holdfast.log_core import LogCore
from holdfast.reading import Reading
from holdfast.reports import VerifyReport
from holdfast.types import BLOCK_BYTES, Hash, ProgressCallback, Ref

STEP_BLOCKS = 4_096


def verify(core: LogCore, ref: Ref, progress: ProgressCallback | None) -> VerifyReport:
    """Read all of a blob against its root, and its outboard; of a tree all its files."""
    with core.backend.operation():
        return _verify(core, ref, Report("verify", progress))


def _verify(core: LogCore, ref: Ref, report: Report) -> VerifyReport:
    hashes = [core.resolve(ref, claim=True).hash]
    if not isinstance(ref, Hash):
        entry = core.artifact(ref)
        if entry.format:
            core.claim(entry.hash, entry.format)
            try:
                children = dict.fromkeys(hash_ for _, hash_ in Reading(core).iter_collection(entry.hash))
                hashes += [child for child in children if child != entry.hash]
            except MENDABLE:
                raise
            except HoldfastError as error:
                report.add(problem_of(error))
    for hash_ in hashes:
        try:
            verify_blob(core, hash_, report)
        except (BackendError, *MENDABLE):
            raise
        except HoldfastError as error:
            report.add(problem_of(error, hash=Hash(hash_)))
        report.blobs += 1
    return report.finish()


def verify_blob(core: LogCore, hash_: bytes, report: Report) -> None:
    """Read a blob; `IntegrityError` when something of it is damaged."""
    reader = core.backend.reader(core.blob(hash_))
    hasher = _native.BlobHasher()
    groups = bytearray()
    for piece in reader.iter_bytes(0, reader.size_bytes):
        hasher.update(piece)
        groups += hasher.take_groups()
        report.checked(len(piece))
    root, rest = hasher.finish()
    if root != hash_:
        raise CorruptBlob(
            f"blob {hash_.hex()} does not match its hash, though its chunks match theirs", hash=Hash(hash_)
        )
    if isinstance(reader, LargeReader):
        groups += rest
        outboard = OutboardReader(reader.size_bytes, hash_, reader.outboard_stream.read)
        blocks = -(-reader.size_bytes // BLOCK_BYTES)
        for first in range(0, blocks, STEP_BLOCKS):
            count = min(STEP_BLOCKS, blocks - first)
            if outboard.cvs(first, count) != groups[32 * first : 32 * (first + count)]:
                raise CorruptBlob(f"the outboard of blob {hash_.hex()} is of another blob", hash=Hash(hash_))
