"""A blob that grows from checkpoint to checkpoint: what of it is where, so that it can go on in another process."""

from __future__ import annotations

from collections.abc import Callable

from holdfast import _native, uploads
from holdfast.bao import OutboardBuilder
from holdfast.errors import CorruptBlob
from holdfast.ingest import Ahead, Cut, Ingest, Stored
from holdfast.types import BLOCK_BYTES, BytesLike
from holdfast.wire.pages import ManifestWriter, StreamWriter, TreeRoot
from holdfast.wire.upload import MAX_TAIL_PIECES, UploadDocument

Load = Callable[[bytes], bytes]


class GrowingBlob:
    """The state of a blob that comes in windows, and is saved now and then.

    Each time, what came since the last time belongs to another group: `ingest` is then replaced by that group's.
    Memory as for any put, and the chunk that is open.
    """

    def __init__(self, ingest: Ingest) -> None:
        self.ingest = ingest
        self.size_bytes = 0
        self._head = bytearray()  # all of it, while it may be a blob of one block
        self._cutter = ingest.chunking.make_cutter()
        self._carry: list[BytesLike] = []  # the chunk that is open
        self._tail: list[tuple[int, bytes]] = []  # what of that is stored already, in pieces
        self._hasher = _native.BlobHasher()
        self._sha256 = ingest.new_sha256()
        self._manifest = ManifestWriter(self._emit_manifest)
        self._groups = StreamWriter(self._emit_groups)
        self._outboard = OutboardBuilder()
        self._pending: Ahead | None = None

    def restore(self, document: UploadDocument, load: Load) -> None:
        """Go on where a document says; `load` gives the verified payload of a hash. Reads no data but its last block.

        (All of it if a further checksum is wanted.) Time and memory as for a 500th of the data.
        """
        for lengths, digests in uploads.iter_entries(document, load):
            self._manifest.extend(lengths, digests)
        for part in uploads.iter_groups(document, load):
            self._hasher.resume(part)
            self._feed(part)
        for rest in uploads.iter_bytes(document, load, uploads.blocks_before(document)):
            self._hasher.update(rest)
        opened = b"".join(load(digest) for _, digest in document.tail)
        cuts = self._cutter.feed(opened)
        if opened:
            self._carry = [opened]
        self._tail = list(document.tail)
        if document.offset_bytes <= BLOCK_BYTES:
            self._head += b"".join(uploads.iter_bytes(document, load, 0))
        if self._sha256 is not None:
            for rest in uploads.iter_bytes(document, load, 0):
                self._sha256.update(rest)
        self.size_bytes = document.offset_bytes
        if cuts or self._hasher.take_groups() or self._hasher.size_bytes != self.size_bytes:
            raise CorruptBlob(f"the state of upload {document.token.hex()} does not hold together")

    def push(self, window: BytesLike) -> None:
        """Take the next bytes; they must not change any more."""
        if not len(window):
            return
        self.ingest.check_size(self.size_bytes + len(window))
        done = None if self._pending is None else self._pending.result()
        self.size_bytes += len(window)
        if self.size_bytes <= BLOCK_BYTES:
            self._head += window
        self._pending = self.ingest.cut_ahead(window, self._carry, self._cutter, self._hasher, self._sha256)
        if done is not None:
            self._take(*done)

    def save(self) -> tuple[TreeRoot, TreeRoot, tuple[tuple[int, bytes], ...]]:
        """Append all that is not stored yet; gives manifest, chaining values and tail, as a document has them."""
        self._settle()
        opened = b"".join(self._carry)
        self._carry = [opened] if opened else []
        if len(self._tail) >= MAX_TAIL_PIECES:
            self._tail.clear()
        fresh = memoryview(opened)[sum(length for length, _ in self._tail) :]
        if fresh:
            digest = _native.blake3(fresh)
            self.ingest.add_chunks([fresh], digest)
            self._tail.append((len(fresh), digest))
        return self._manifest.snapshot(), self._groups.snapshot(), tuple(self._tail)

    def finish(self) -> Stored:
        """Append what is left, and what describes the blob."""
        self._settle()
        if self.size_bytes <= BLOCK_BYTES:
            (stored,) = self.ingest.add_many([bytes(self._head)])
            return stored
        rest = self._cutter.finish()
        if rest:
            data = b"".join(self._carry)
            digest = _native.blake3(data)
            self.ingest.add_chunks([memoryview(data)], digest)
            self._manifest.extend([rest], digest)
        root, groups = self._hasher.finish()
        self._outboard.feed(groups)
        stored = self.ingest.finish_blob(root, self.size_bytes, self._manifest, self._outboard)
        return stored if self._sha256 is None else stored._replace(sha256=self._sha256.digest())

    def close(self) -> None:
        """Wait for the other threads, and give memory back."""
        if self._pending is not None:
            self._pending.wait()
            self._pending = None
        self._outboard.close()

    def _settle(self) -> None:
        pending, self._pending = self._pending, None
        if pending is not None:
            self._take(*pending.result())

    def _take(self, cut: Cut, groups: bytes) -> None:
        self._feed(groups)
        if cut.lengths:
            self.ingest.add_chunks(cut.chunks, cut.digests)
            self._manifest.extend(cut.lengths, cut.digests)
            self._tail.clear()

    def _feed(self, groups: bytes) -> None:
        self._groups.write(groups)
        self._outboard.feed(groups)

    def _emit_manifest(self, page: bytes) -> bytes:
        return self.ingest.emit_manifest(page)

    def _emit_groups(self, page: bytes) -> bytes:
        return self.ingest.emit_outboard(page)
