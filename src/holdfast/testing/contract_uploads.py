"""The part of the contract about puts that go on after a break: what is durable stays, and the result is the same."""

from __future__ import annotations

from contextlib import suppress

import pytest

from holdfast import _native
from holdfast.errors import EmptyData, HoldfastError, InvalidInput, Locked, NotFound, TooLarge, UploadNotFound
from holdfast.store import Store
from holdfast.testing.contract_base import ContractBase, Interrupted, MakeStore, boundary_sizes, sample
from holdfast.types import now_ms


class UploadsContract(ContractBase):
    """Whatever breaks off goes on where it was durable, and becomes what it would have become."""

    def test_a_broken_upload_becomes_what_an_unbroken_put_does(self, make_store: MakeStore) -> None:
        for size in boundary_sizes(self.chunk_bytes, self.segment_bytes):
            content = sample(size)
            with make_store() as store, make_store() as other:
                writer = store.writer("big.bin", resumable=True, tags=["kept"], metadata={"n": 1})
                for stop in (0, 1, size // 3, size - 1, size):
                    writer.write(content[writer.offset_bytes : stop])
                    assert writer.suspend() == writer.token
                    writer = store.writer(resume=writer.token)
                    assert writer.offset_bytes == writer.written_bytes == max(stop, writer.offset_bytes)
                artifact = writer.commit()
                whole = other.put(content, filename="big.bin", tags=["kept"], metadata={"n": 1})
                for field in (
                    "hash",
                    "size_bytes",
                    "filename",
                    "content_type",
                    "tags",
                    "metadata",
                    "chunk_count",
                ):
                    assert getattr(artifact, field) == getattr(whole, field), (size, field)
                assert writer.artifact == artifact == store.info(artifact.id)
                assert artifact.durability == self.durability
                assert store.read(artifact) == content
                assert store.verify(artifact).ok

    def test_an_upload_goes_on_in_another_store_object(self, store: Store) -> None:
        if not self.persistent:
            pytest.skip("nothing outlives the store")
        content = sample(2 * self.chunk_bytes + 5)
        with store.writer("a", resumable=True) as writer:
            writer.write(content[:-9])
            writer.suspend()
        store.close()
        with self.reopen(store) as again:
            assert [upload.offset_bytes for upload in again.uploads()] == [len(content) - 9]
            again.rebuild()
            (upload,) = again.uploads()
            assert (upload.token, upload.offset_bytes) == (writer.token, len(content) - 9)
            writer = again.writer(resume=upload.token)
            writer.write(content[-9:])
            assert again.read(writer.commit()) == content
            assert list(again.uploads()) == []
            again.rebuild()
            assert list(again.uploads()) == []
            with pytest.raises(UploadNotFound):
                again.writer(resume=upload.token)

    def test_an_exception_keeps_what_came(self, store: Store) -> None:
        writer = store.writer("a", resumable=True)
        with suppress(Interrupted), writer:
            writer.write(b"first half, ")
            raise Interrupted
        assert list(store.find()) == []
        with store.writer(resume=writer.token) as writer:
            assert writer.offset_bytes == 12
            writer.write(b"second half")
        assert store.read(writer.artifact) == b"first half, second half"

    def test_a_token_counts_before_the_first_byte(self, store: Store) -> None:
        token = store.writer("a", resumable=True).suspend()
        with store.writer(resume=token) as writer:
            assert writer.offset_bytes == 0
            writer.write(b"x")
        assert store.read(writer.artifact) == b"x"

    def test_a_committed_upload_says_so(self, store: Store) -> None:
        with store.writer("a", resumable=True) as writer:
            writer.write(b"x")
        with pytest.raises(UploadNotFound) as raised:
            store.writer(resume=writer.token)
        assert isinstance(raised.value, NotFound)
        assert (raised.value.state, raised.value.artifact_id) == ("committed", writer.artifact.id)
        for call in (lambda: writer.write(b"x"), writer.commit, writer.checkpoint, writer.suspend):
            with pytest.raises(InvalidInput):
                call()
        writer.abort()
        assert store.read(writer.artifact) == b"x"

    def test_an_aborted_upload_is_gone(self, store: Store) -> None:
        writer = store.writer("a", resumable=True)
        writer.write(sample(100_000))
        writer.checkpoint()
        writer.abort()
        assert list(store.uploads()) == []
        assert list(store.find()) == []
        with pytest.raises(UploadNotFound) as raised:
            store.writer(resume=writer.token)
        assert raised.value.state == "aborted"

    def test_one_at_a_time(self, store: Store) -> None:
        writer = store.writer("a", resumable=True)
        writer.write(b"one")
        with pytest.raises(Locked) as raised:
            store.writer(resume=writer.token)
        assert raised.value.pid
        if self.persistent:
            with self.reopen(store) as other, pytest.raises(Locked):
                other.writer(resume=writer.token)
        writer.suspend()
        with store.writer(resume=writer.token) as writer:
            writer.write(b"two")
        assert store.read(writer.artifact) == b"onetwo"

    @pytest.mark.parametrize("token", ["", "x" * 32, "ab", b"a" * 32, 5, "0" * 33])
    def test_what_is_no_token_is_refused(self, store: Store, token: str) -> None:
        with pytest.raises(InvalidInput):
            store.writer(resume=token)

    def test_a_token_that_nobody_made_is_not_found(self, store: Store) -> None:
        with pytest.raises(UploadNotFound) as raised:
            store.writer(resume="0" * 32)
        assert raised.value.state == "unknown"

    def test_words_are_said_once(self, store: Store) -> None:
        token = store.writer("a", resumable=True, tags=["t"]).suspend()
        for words in ({"filename": "b"}, {"tags": ["u"]}):
            with pytest.raises(InvalidInput):
                store.writer(resume=token, **words)
        with store.writer(resume=token) as writer:
            writer.write(b"x")
        assert (writer.artifact.filename, writer.artifact.tags) == ("a", ("t",))

    def test_an_upload_expires_unless_somebody_writes_it(self, make_store: MakeStore) -> None:
        with make_store(upload_expiry_seconds=60.0) as store:
            busy = store.writer("busy", resumable=True)
            busy.write(b"x")
            idle = store.writer("idle", resumable=True)
            idle.write(sample(100_000))
            idle.suspend()
            assert store._engine.expire_uploads(now_ms() + 50_000) == []
            assert store._engine.expire_uploads(now_ms() + 61_000) == [idle.token]
            assert [upload.token for upload in store.uploads()] == [busy.token]
            with pytest.raises(UploadNotFound) as raised:
                store.writer(resume=idle.token)
            assert raised.value.state == "expired"
            assert store.read(busy.commit()) == b"x"
        with make_store(upload_expiry_seconds=0.0) as store:
            token = store.writer("a", resumable=True).suspend()
            assert list(store.uploads()) == []
            with pytest.raises(UploadNotFound, match="expired"):
                store.writer(resume=token)

    def test_what_may_not_be_stored_is_refused(self, make_store: MakeStore) -> None:
        with make_store(max_artifact_bytes=50_000) as store:
            writer = store.writer("a", resumable=True)
            writer.write(bytes(30_000))
            writer.checkpoint()
            with pytest.raises(TooLarge):  # as soon as it is known
                writer.write(bytes(30_000))
            with store.writer(resume=writer.token) as writer:
                assert writer.offset_bytes == 30_000
                writer.write(bytes(20_000))
            assert writer.artifact.size_bytes == 50_000
            with pytest.raises(EmptyData):
                store.writer("empty", resumable=True).commit()
            with pytest.raises(InvalidInput):
                store.writer("a", resumable=True).write("text")  # type: ignore[arg-type]  # wrong on purpose

    def test_what_is_required_must_be_there_at_the_end(self, store: Store) -> None:
        first = store.put(b"required")
        writer = store.writer("a", resumable=True, requires=[first, first.hash])
        writer.write(b"x")
        writer.suspend()
        store.delete(first)
        with pytest.raises(HoldfastError):
            store.writer(resume=writer.token).commit()
        store.restore(first)
        artifact = store.writer(resume=writer.token).commit()
        assert len(artifact.requires) == 2

    def test_a_checksum_covers_all_parts(self, make_store: MakeStore) -> None:
        content = sample(300_000)
        with make_store(checksum="sha256") as store:
            writer = store.writer("a", resumable=True)
            writer.write(content[:200_000])
            writer = store.writer(resume=writer.suspend())
            writer.write(content[200_000:])
            assert writer.commit().checksum == store.put(content).checksum

    def test_many_small_checkpoints(self, store: Store) -> None:
        content = sample(3_000)
        writer = store.writer("a", resumable=True)
        for at in range(0, len(content), 2):
            writer.write(content[at : at + 2])
            assert writer.checkpoint() == at + 2
        artifact = writer.commit()
        assert artifact.hash.digest == _native.blake3(content)
        assert store.read(artifact) == content

    def test_a_collection_leaves_what_an_upload_has(self, make_store: MakeStore) -> None:
        content = sample(self.segment_bytes // 2)
        with make_store(upload_expiry_seconds=60.0) as store:
            shared = store.put(content[: 2 * self.chunk_bytes])
            writer = store.writer("a", resumable=True)
            writer.write(content[:-100])
            writer.checkpoint()
            store.delete(shared)
            store.gc(min_age_seconds=0)
            writer.write(content[-100:-50])
            token = writer.suspend()
            store.gc(min_age_seconds=0)
            store.compact()
            if self.persistent:
                store.rebuild()
            writer = store.writer(resume=token)
            assert writer.offset_bytes == len(content) - 50
            writer.write(content[-50:])
            artifact = writer.commit()
            store.gc(min_age_seconds=0)
            assert store.read(artifact) == content
            assert store.verify(artifact).ok
            assert store.scrub().ok

    @pytest.mark.parametrize("end", ["abort", "expire", "commit"])
    def test_what_an_upload_alone_had_is_collected(self, make_store: MakeStore, end: str) -> None:
        with make_store(upload_expiry_seconds=60.0) as store:
            store.put(b"kept")
            before = store.stats().unique_bytes
            writer = store.writer("a", resumable=True)
            writer.write(sample(3 * self.chunk_bytes))
            writer.checkpoint()
            if end == "abort":
                writer.abort()
            elif end == "expire":
                writer.suspend()
                assert store._engine.expire_uploads(now_ms() + 61_000)
            else:
                store.delete(writer.commit())
            store.gc(min_age_seconds=0)
            assert store.stats().unique_bytes == before
