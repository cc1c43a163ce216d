"""An upload, broken off anywhere, any number of times, is what an unbroken put of the same bytes is."""

from __future__ import annotations

import random
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast import _native
from holdfast.backend.memory import MemoryDisk
from holdfast.chunking import Chunking
from holdfast.errors import CorruptBlob, FormatError
from holdfast.log_resumable import LogResumableWriter
from holdfast.store import Store
from holdfast.testing.inside import log_core
from holdfast.uploads import iter_held
from holdfast.wire.pages import TreeRoot
from holdfast.wire.upload import UploadDocument, encode_upload, groups_bytes, parse_upload

CHUNKINGS = (Chunking.choose("fastcdc", 4096), Chunking.choose("fixed", 4096), Chunking.choose("whole"))


def open_store(chunking: Chunking) -> Store:
    return Store._open(
        "/memory", disk=MemoryDisk(), catalog_path=None, create=True, chunking=chunking, fsync=False
    )


@given(
    st.sampled_from(CHUNKINGS),
    st.one_of(st.integers(1, 40_000), st.integers(1, 300_000)),
    st.lists(st.tuples(st.integers(0, 300_000), st.sampled_from(("checkpoint", "suspend", "rebuild")))),
)
def test_broken_anywhere_it_is_the_same(chunking: Chunking, size: int, breaks: list[tuple[int, str]]) -> None:
    content = random.Random(size).randbytes(size)
    with open_store(chunking) as store, open_store(chunking) as other:
        writer = store.writer("a", resumable=True)
        for stop, how in sorted((at % (size + 1), how) for at, how in breaks):
            writer.write(content[writer.written_bytes : stop])
            if how == "checkpoint":
                assert writer.checkpoint() == stop
            else:
                writer.suspend()
                if how == "rebuild":
                    store.rebuild()
                writer = store.writer(resume=writer.token)
                assert writer.offset_bytes == stop
            assert isinstance(writer, LogResumableWriter)
            held = set(iter_held(writer._document, log_core(store).backend.payloads.load))
            assert log_core(store).catalog.find_data(list(held)).keys() == held
        writer.write(content[writer.written_bytes :])
        artifact, whole = writer.commit(), other.put(content, filename="a")
        assert (artifact.hash, artifact.chunk_count) == (whole.hash, whole.chunk_count)
        assert artifact.hash.digest == _native.blake3(content)
        assert store.read(artifact) == content
        mine, theirs = (set(log_core(one).catalog.dump()) for one in (store, other))
        payloads = {line for line in theirs if line.startswith(("blob\t", "payload\t"))}
        assert {line.split("\t")[1] for line in payloads} <= {
            line.split("\t")[1] for line in mine if line.startswith(("blob\t", "payload\t"))
        }


HASHES = st.binary(min_size=32, max_size=32)
TAILS = st.lists(st.tuples(st.integers(1, 1 << 24), HASHES), max_size=5).map(tuple)
ROOTS = st.one_of(
    st.builds(TreeRoot, st.just(0), st.binary(max_size=200)), st.builds(TreeRoot, st.just(2), HASHES)
)
DOCUMENTS = st.builds(
    UploadDocument,
    token=st.binary(min_size=16, max_size=16),
    revision=st.integers(0, 2**32 - 1),
    state=st.just(0),
    created_ms=st.integers(-(2**40), 2**50),
    modified_ms=st.integers(0, 2**50),
    expires_ms=st.integers(0, 2**50),
    offset_bytes=st.integers(5 << 24, 1 << 61),
    artifact=st.binary(min_size=16, max_size=16),
    manifest=ROOTS,
    groups=st.builds(TreeRoot, st.just(1), HASHES),
    tail=TAILS,
    details=st.binary(max_size=300),
)  # fmt: skip


@given(DOCUMENTS)
def test_a_document_comes_back(document: UploadDocument) -> None:
    assert parse_upload(encode_upload(document)) == document


@given(DOCUMENTS, st.data())
def test_a_broken_document_is_refused_or_another_one(document: UploadDocument, data: st.DataObject) -> None:
    raw = bytearray(encode_upload(document))
    if data.draw(st.booleans()):
        raw = raw[: data.draw(st.integers(0, len(raw)))]
    else:
        raw[data.draw(st.integers(0, len(raw) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    with suppress(FormatError, CorruptBlob):
        parse_upload(bytes(raw))


@pytest.mark.parametrize("size", [0, 1, 16_383, 16_384, 16_385, 32_767, 32_768, 32_769, 1_000_000])
def test_as_many_chaining_values_as_the_hasher_gives(size: int) -> None:
    hasher = _native.BlobHasher()
    hasher.update(bytes(size))
    assert len(hasher.take_groups()) == groups_bytes(size)
