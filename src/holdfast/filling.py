"""One checkpoint of a partial blob: verified blocks go to the log, or wait in its sparse file; the last completes it.

Order, so that a crash anywhere loses nothing that was claimed: blocks and pairs are durable, then the group with the
chunks, then their list, then the state that claims all of it; only then is room given back. The caller holds the
partial blob's lock and a pin, so that chunks that were found here already stay until the state names them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Final, NamedTuple

from holdfast import _native
from holdfast.backend.log.partial import Partial
from holdfast.backend.log.partial_reader import read_verified
from holdfast.backend.log.partial_state import PartialState
from holdfast.bao import OutboardBuilder, OutboardReader, block_count, outboard_bytes
from holdfast.errors import CorruptBlob, IntegrityError, NoSpace
from holdfast.intake import Batch, Run, runs_ranges, without
from holdfast.log_core import LogCore
from holdfast.ranges import BLOCK_LEAVES, LEAF_BYTES, ChunkRanges
from holdfast.types import BLOCK_BYTES, HASH_BYTES, BytesLike, now_ms
from holdfast.wire.pages import ManifestWriter

log = logging.getLogger("holdfast")

STEP_BYTES: Final = 8 << 20
"""How much of the sparse file is copied into the log at a time; more only where a chunk may be larger."""
CARRY_BYTES: Final = 1 << 20
"""How much of the end of what came in order may wait in memory for the next checkpoint to end its chunk."""
CVS_AT_ONCE: Final = 4_096


class _Ahead(NamedTuple):
    """The bytes with which the blob goes on behind what is in the log, from the beginning of a block."""

    start: int
    data: bytes
    is_cut_short: bool
    """Whether there is more of it here."""

    @property
    def stop(self) -> int:
        return self.start + len(self.data)


class _Cut(NamedTuple):
    """Whole chunks at the beginning of an `_Ahead`."""

    chunks: list[memoryview]
    lengths: list[int]
    digests: bytes

    @property
    def packed(self) -> list[bytes]:
        return [self.digests[i : i + HASH_BYTES] for i in range(0, len(self.digests), HASH_BYTES)]


class Filling:
    """What one importer does to one partial blob."""

    def __init__(self, core: LogCore, hash_: bytes, completed: Callable[[], None]) -> None:
        """`completed` is called once the blob is there, and before the partial one goes: it is to keep the blob."""
        self._core = core
        self._completed = completed
        self._syncer = ThreadPoolExecutor(1, thread_name_prefix="holdfast-sync")
        self._hash = hash_
        self._step_bytes = max(STEP_BYTES, core.backend.chunking.max_bytes + 2 * BLOCK_BYTES)
        self._carry: list[Run] = []
        self._idle: tuple[int, int] | None = None
        """(logged, prefix) at which there was no whole chunk to cut."""

    @property
    def carry(self) -> list[Run]:
        """Blocks that wait for the next checkpoint."""
        return self._carry

    def store(self, partial: Partial, batch: Batch, *, last: bool) -> None:
        """Make a batch durable; `last`: all of it, else a little may be carried over."""
        state = partial.state.claimed(batch.size_bytes, batch.is_size_proven, batch.highest_byte)
        runs = without([*self._carry, *batch.runs], state.have)
        self._carry = []
        partial.write_pairs(batch.pairs)
        ahead, apart = _split(runs, state)
        state = self._spill(partial, state, apart)
        trouble: NoSpace | None = None
        while True:
            try:
                found = self._gather(partial, state, ahead)
            except NoSpace as error:
                trouble = error
                break
            except _BadBlocks as bad:
                log.warning(
                    "blocks of the partial blob %s have changed on disk and are to be fetched again: %s",
                    self._hash.hex(),
                    bad.ranges,
                )
                state = state._replace(have=state.have - bad.ranges)
                ahead, apart = _split(ahead, state)
                state = self._spill(partial, state, apart)
                continue
            if found is None:
                break
            cut = self._cut(found, state)
            ends = state.is_size_proven and found.stop == state.size_bytes
            if ends:
                if self._complete(partial, state, cut):
                    return
                state = state.without_logged()
                ahead, apart = _split(ahead, state)
                state = self._spill(partial, state, apart)
                continue
            if not cut.lengths:
                self._idle = (state.logged_bytes, found.stop)
                break
            state = self._append(partial, state, cut)
            ahead = without(ahead, ChunkRanges.leaves(0, state.logged_blocks * BLOCK_LEAVES))
            before = partial.state
            self._save(partial, state)
            self._punch(partial, before, state)
            if not found.is_cut_short:
                break
        if last or trouble is not None or sum(len(data) for _, data in ahead) > CARRY_BYTES:
            state = self._spill(partial, state, ahead)
        else:
            self._carry = ahead
        self._save(partial, state)
        if last:
            partial.compact()
        if trouble is not None:
            raise trouble

    def close(self) -> None:
        """Wait for the thread that makes things durable."""
        self._syncer.shutdown()

    # -- blocks that wait

    def _spill(self, partial: Partial, state: PartialState, runs: Sequence[Run]) -> PartialState:
        """Put blocks into the sparse file; gives the state that claims them."""
        partial.write_blocks(runs)
        return state._replace(have=state.have | runs_ranges(runs)) if runs else state

    def _save(self, partial: Partial, state: PartialState) -> None:
        if state != partial.state:
            partial.save(state._replace(written_ms=now_ms()))

    def _punch(self, partial: Partial, before: PartialState, state: PartialState) -> None:
        """Give back the room of blocks that lie in the log now."""
        start, stop = before.logged_blocks * BLOCK_BYTES, state.logged_blocks * BLOCK_BYTES
        if stop > start and before.have & ChunkRanges.bytes(start, stop):
            partial.punch(start, stop)

    # -- what goes on

    def _gather(self, partial: Partial, state: PartialState, runs: list[Run]) -> _Ahead | None:
        """Give what follows the beginning that is in the log: from memory, or verified from the sparse file."""
        start = at = state.logged_blocks * BLOCK_BYTES
        if not runs and self._idle == (state.logged_bytes, state.prefix_bytes):
            return None
        parts: list[BytesLike | None] = []
        spilled: list[tuple[int, int]] = []
        room, index, short = self._step_bytes, 0, False
        while True:
            if index < len(runs) and runs[index][0] == at:
                parts.append(runs[index][1])
                at += len(runs[index][1])
                index += 1
                continue
            stop = state.run_end(at)
            if stop <= at:
                break
            if not room:
                short = True
                break
            stop = min(stop, at + room)
            parts.append(None)
            spilled.append((at, stop))
            room -= stop - at
            at = stop
        if at <= state.logged_bytes and not (state.is_size_proven and at == state.size_bytes):
            return None
        if spilled:
            self._check_room(partial, state)
            back = self._read_back(partial, state, spilled)
            parts = [next(back) if part is None else part for part in parts]
        return _Ahead(start, b"".join(part for part in parts if part is not None), short)

    def _check_room(self, partial: Partial, state: PartialState) -> None:
        """Look at the free space before blocks are copied into the log; it is given back after each step."""
        waiting = state.spilled.count(state.size_bytes) * LEAF_BYTES
        need = 2 * min(self._step_bytes, waiting) + outboard_bytes(waiting)
        free = partial.free_bytes()
        if free < need:
            raise NoSpace(
                f"{free} bytes are free, and putting the partial blob {self._hash.hex()} together needs {need} at a"
                " time: what came is kept; make room, and go on",
                path=self._core.backend.root,
                free_bytes=free,
                need_bytes=need,
            )

    def _read_back(
        self, partial: Partial, state: PartialState, spilled: list[tuple[int, int]]
    ) -> Iterator[BytesLike]:
        """Give these runs of the sparse file, verified; `_BadBlocks` names those that do not verify any more."""
        args = (self._hash, state.size_bytes, partial.read_blocks, partial.read_pairs)
        wanted = ChunkRanges.union(ChunkRanges.bytes(start, stop) for start, stop in spilled)
        try:
            data = b"".join(read_verified(*args, wanted))
        except CorruptBlob:
            bad = []
            for start, stop in spilled:
                for at in range(start, stop, BLOCK_BYTES):
                    block = ChunkRanges.bytes(at, min(at + BLOCK_BYTES, stop))
                    try:
                        list(read_verified(*args, block))
                    except CorruptBlob:
                        bad.append(block.to_blocks())
            raise _BadBlocks(ChunkRanges.union(bad)) from None
        view, at = memoryview(data), 0
        for start, stop in spilled:
            yield view[at : at + stop - start]
            at += stop - start

    def _cut(self, found: _Ahead, state: PartialState) -> _Cut:
        """Cut what follows the last chunk; the end of the blob ends its last chunk."""
        view = memoryview(found.data)[state.logged_bytes - found.start :]
        cutter = self._core.backend.chunking.make_cutter()
        lengths = cutter.feed(view)
        if state.is_size_proven and found.stop == state.size_bytes:
            rest = cutter.finish()
            lengths += [rest] if rest else []
        chunks, at = [], 0
        for length in lengths:
            chunks.append(view[at : at + length])
            at += length
        return _Cut(chunks, lengths, _native.blake3_many(view[:at], lengths))

    def _append(self, partial: Partial, state: PartialState, cut: _Cut) -> PartialState:
        """Append chunks to the log, durably, and to the list; gives the state that claims them."""
        ends, at = [], state.logged_bytes
        for length in cut.lengths:
            at += length
            ends.append(at)
        count, crc = partial.write_chunks(state, ends, cut.packed)
        syncing = self._syncer.submit(partial.sync)  # the file system makes both durable in one go
        try:
            with self._core.adding() as (group, ingest):
                ingest.add_chunks(cut.chunks, cut.digests)
                if not group.is_empty:
                    group.commit()
        finally:
            syncing.exception()
        syncing.result()
        blocks = ChunkRanges.leaves(0, at // BLOCK_BYTES * BLOCK_LEAVES)
        return state._replace(logged_bytes=at, chunk_count=count, chunks_crc=crc, have=state.have | blocks)

    # -- the end

    def _complete(self, partial: Partial, state: PartialState, cut: _Cut) -> bool:
        """Make it a blob like any other, in one group. False, and nothing done: what is in the log is damaged."""
        with self._core.adding() as (group, ingest):
            if block_count(state.size_bytes) == 1:
                ingest.add_many([b"".join(cut.chunks)])
            else:
                manifest = ManifestWriter(ingest.emit_manifest)
                with ExitStack() as stack:
                    outboard = (
                        self._tree(partial, state, cut, stack)
                        if self._list(partial, state, manifest)
                        else None
                    )
                    if outboard is None:
                        group.abort()
                        return False
                    ingest.add_chunks(cut.chunks, cut.digests)
                    manifest.extend(cut.lengths, cut.digests)
                    ingest.finish_blob(self._hash, state.size_bytes, manifest, outboard)
            if not group.is_empty:
                group.commit()
        self._completed()
        partial.retire()
        return True

    def _list(self, partial: Partial, state: PartialState, manifest: ManifestWriter) -> bool:
        """List the chunks that are in the log; whether they all are."""
        try:
            for lengths, digests in partial.iter_chunks(state):
                found = self._core.reusable().find_here(digests)
                if not found.keys() >= set(digests):
                    log.warning("a chunk of the partial blob %s is gone: it begins anew", self._hash.hex())
                    return False
                manifest.extend(lengths, digests)
        except CorruptBlob as error:
            log.warning("%s: it begins anew", error)
            return False
        return True

    def _tree(
        self, partial: Partial, state: PartialState, cut: _Cut, stack: ExitStack
    ) -> OutboardBuilder | None:
        """Give the verified tree of the whole blob: from its pairs, or computed again; None if its data is damaged."""
        blocks = block_count(state.size_bytes)
        tree = OutboardReader(state.size_bytes, self._hash, partial.read_pairs)
        builder = stack.enter_context(OutboardBuilder())
        try:
            for first in range(0, blocks, CVS_AT_ONCE):
                builder.feed(tree.cvs(first, min(CVS_AT_ONCE, blocks - first)))
            return builder
        except CorruptBlob as error:
            log.warning("the outboard of %s is computed again: %s", self._hash.hex(), error)
        builder = stack.enter_context(OutboardBuilder())
        hasher = _native.BlobHasher()
        try:
            for data in self._all(partial, state, cut):
                hasher.update(data)
                builder.feed(hasher.take_groups())
        except IntegrityError as error:
            log.warning("the partial blob %s begins anew: %s", self._hash.hex(), error)
            return None
        root, rest = hasher.finish()
        builder.feed(rest)
        return builder if root == self._hash else None

    def _all(self, partial: Partial, state: PartialState, cut: _Cut) -> Iterable[BytesLike]:
        for _, digests in partial.iter_chunks(state):
            for digest in digests:
                yield self._core.backend.payloads.load(digest)
        yield from cut.chunks


class _BadBlocks(Exception):
    """Blocks of the sparse file that are not what they were."""

    def __init__(self, ranges: ChunkRanges) -> None:
        super().__init__(ranges)
        self.ranges = ranges


def _split(runs: list[Run], state: PartialState) -> tuple[list[Run], list[Run]]:
    """Part runs into those with which the blob goes on from its beginning without a gap, and the others."""
    at, index = 0, 0
    while True:
        if index < len(runs) and runs[index][0] == at:
            at += len(runs[index][1])
            index += 1
        elif (stop := state.run_end(at)) > at:
            at = stop
        else:
            return runs[:index], runs[index:]
