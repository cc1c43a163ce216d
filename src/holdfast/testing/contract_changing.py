"""The part of the contract about what changes after a put: words, revisions, deletion."""

from __future__ import annotations

import hashlib
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from holdfast.errors import ArtifactNotFound, BlobNotFound, Conflict, InvalidInput, TooLarge
from holdfast.store import Store
from holdfast.testing.contract_base import ContractBase, MakeStore, sample
from holdfast.types import KEEP, Hash, Scalar


class ChangingContract(ContractBase):
    """One step, whole, with a revision; or nothing."""

    def test_update_changes_what_is_named_and_nothing_else(self, store: Store) -> None:
        put = store.put(
            b"data",
            filename="a.png",
            tags=["one", "two"],
            links=["run:1"],
            metadata={"lr": 1, "x": None},
            created_by="ann",
        )
        new = store.update(put, filename="b.png", add_tags=["three", "one"], remove_tags=["two", "none"])
        assert new == store.info(put.id)
        assert new.filename == "b.png"
        assert new.tags == ("one", "three")
        assert new.revision == put.revision + 1
        assert new.modified_at >= put.modified_at
        same = ("id", "hash", "size_bytes", "content_type", "links", "metadata", "created_by", "created_at")
        assert all(getattr(new, name) == getattr(put, name) for name in same)
        assert store.read(put.id) == b"data"

    def test_none_clears_a_field_and_keep_does_not(self, store: Store) -> None:
        put = store.put(b"data", filename="a.png", created_by="ann", metadata={"k": "v"})
        new = store.update(put, filename=None, content_type=None, created_by=None, metadata=None)
        assert (new.filename, new.content_type, new.created_by, new.metadata) == (None, None, None, {})
        kept = store.update(put, filename=KEEP, content_type="text/plain")
        assert (kept.filename, kept.content_type) == (None, "text/plain")

    def test_metadata_is_replaced_or_changed_by_key(self, store: Store) -> None:
        put = store.put(b"data", metadata={"a": 1, "b": 2})
        assert store.update(put, add_metadata={"c": 3}, remove_metadata=["a", "zz"]).metadata == {
            "b": 2,
            "c": 3,
        }
        assert store.update(put, metadata={"d": 4}, add_metadata={"e": 5}).metadata == {"d": 4, "e": 5}
        values: list[Scalar] = ["é", -1, 2.5, True, None, ""]
        for value in values:
            assert store.set_metadata(put, "key", value).metadata["key"] == value
            assert store.get_metadata(put, "key", "default") == value
        assert "key" not in store.remove_metadata(put, "key").metadata
        assert store.get_metadata(put, "key") is None
        assert store.get_metadata(put.id, "key", 7) == 7

    def test_tag_and_link_are_plain_calls(self, store: Store) -> None:
        put = store.put(b"data")
        store.tag(put, "a", "b")
        store.link(put.id, "run:1")
        assert store.untag(put, "a").tags == ("b",)
        assert store.info(put.id).links == ("run:1",)
        assert store.unlink(put, "run:1").links == ()

    def test_what_changes_nothing_writes_nothing(self, store: Store) -> None:
        put = store.put(b"data", tags=["a"], metadata={"k": 1})
        assert store.update(put) == put
        assert store.update(put, add_tags=["a"], remove_links=["x"], add_metadata={"k": 1}) == put
        assert store.untag(put, "b").revision == 1

    def test_another_revision_is_a_conflict_with_both_as_evidence(self, store: Store) -> None:
        put = store.put(b"data")
        assert store.update(put, add_tags=["a"], if_revision=put.revision).revision == 2
        with pytest.raises(Conflict) as caught:
            store.update(put, add_tags=["b"], if_revision=put.revision)
        assert caught.value.revision == 2
        assert caught.value.if_revision == 1
        assert caught.value.id == put.id
        assert store.info(put.id).tags == ("a",)

    def test_concurrent_updates_lose_nothing(self, store: Store) -> None:
        put = store.put(b"data")
        barrier = threading.Barrier(4)

        def add(number: int) -> None:
            barrier.wait(10)
            for i in range(5):
                store.tag(put, f"{number}-{i}")

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(add, range(4)))
        found = store.info(put.id)
        assert sorted(found.tags) == sorted(f"{number}-{i}" for number in range(4) for i in range(5))
        assert found.revision == 21

    @pytest.mark.parametrize(
        "change",
        [
            {"filename": 7},
            {"filename": "x" * 5000},
            {"add_tags": "text"},
            {"add_tags": [""]},
            {"remove_tags": [b"x"]},
            {"add_tags": ["a"], "remove_tags": ["a"]},
            {"add_metadata": {"k": float("nan")}},
            {"add_metadata": {"k": 1}, "remove_metadata": ["k"]},
            {"remove_metadata": "key"},
            {"metadata": {"k": [1]}},
            {"add_links": ["\ud800"]},
            {"add_requires": ["not an id"]},
            {"add_requires": [7]},
            {"metadata": {str(n): "x" * 2000 for n in range(600)}},
        ],
    )
    def test_what_cannot_be_kept_changes_nothing(self, store: Store, change: dict[str, object]) -> None:
        put = store.put(b"data", tags=["t"], metadata={"k": 0})
        with pytest.raises(InvalidInput):
            store.update(put, **change)  # type: ignore[arg-type]  # wrong on purpose
        assert store.info(put.id) == put

    def test_update_of_what_is_not_there(self, store: Store) -> None:
        put = store.put(b"data")
        store.delete(put)
        with pytest.raises(ArtifactNotFound):
            store.update(put, add_tags=["a"])
        with pytest.raises(InvalidInput):
            store.tag("no id", "a")

    def test_requires_can_be_added_and_removed(self, store: Store) -> None:
        base, other = store.put(b"base"), store.put(b"other")
        put = store.put(b"data")
        new = store.update(put, add_requires=[base, other.hash])
        assert new.requires == (base.id, f"blake3:{other.hash}")
        assert store.update(put, remove_requires=[base.id, other.hash]).requires == ()
        with pytest.raises(InvalidInput):
            store.update(put, add_requires=[put])
        with pytest.raises(BlobNotFound):
            store.update(put, add_requires=[Hash(bytes(32))])

    def test_changes_are_there_after_opening_anew_and_after_a_rebuild(self, store: Store) -> None:
        put = store.put(b"data", tags=["old"])
        want = store.update(put, filename="n", add_tags=["new"], remove_tags=["old"], add_metadata={"k": 1})
        if self.persistent:
            with self.reopen(store) as other:
                assert other.info(put.id) == want
        store.rebuild()
        assert store.info(put.id) == want

    def test_restore_brings_the_last_state_back(self, store: Store) -> None:
        put = store.put(b"data", tags=["a"])
        want = store.update(put, add_tags=["b"])
        store.delete(put)
        back = store.restore(put)
        assert back.tags == ("a", "b")
        assert back.revision == want.revision + 2
        assert store.info(put.id) == back

    def test_several_are_deleted_together_or_not_at_all(self, store: Store) -> None:
        items = [store.put(bytes([n])) for n in range(4)]
        store.delete(items[0], items[1].id, items[0])
        assert [a.id for a in store.find()] == [items[3].id, items[2].id]
        with pytest.raises(ArtifactNotFound):
            store.delete(items[2], items[0])
        assert store.exists(items[2])
        store.delete()

    def test_what_is_required_cannot_be_deleted(self, store: Store) -> None:
        base, blob = store.put(b"base"), store.put(b"blob")
        holder = store.put(b"holder", requires=[base, blob.hash])
        for required in (base, blob):
            with pytest.raises(Conflict) as caught:
                store.delete(required)
            assert caught.value.holders == (holder.id,)
            assert caught.value.id == required.id
            assert store.exists(required)
        with pytest.raises(Conflict):
            store.delete(store.put(b"other"), base)
        assert store.count() == 4
        store.update(holder, remove_requires=[base])
        store.delete(base)
        store.restore(base)
        store.delete(holder)
        store.delete(base, blob)

    def test_force_deletes_what_is_required(self, store: Store) -> None:
        base = store.put(b"base")
        holder = store.put(b"holder", requires=[base])
        store.delete(base, force=True)
        assert not store.exists(base)
        assert store.info(holder).requires == (base.id,)
        assert store.tag(holder, "still").tags == ("still",)

    def test_what_requires_each_other_goes_together(self, store: Store) -> None:
        one = store.put(b"one")
        two = store.put(b"two", requires=[one])
        store.update(one, add_requires=[two, one.hash])
        for artifact in (one, two):
            with pytest.raises(Conflict):
                store.delete(artifact)
        store.rebuild()
        with pytest.raises(Conflict):
            store.delete(two)
        store.delete(one, two)
        assert store.count() == 0

    def test_max_artifacts_is_exact(self, make_store: MakeStore) -> None:
        with make_store(max_artifacts=3) as store:
            first = store.put(b"1")
            with pytest.raises(TooLarge):
                store.put_many([b"2", b"3", b"4"])
            assert store.count() == 1
            store.put_many([b"2", b"3"])
            for put in (lambda: store.put(b"4"), lambda: store.writer("w"), lambda: store.put_many([b"x"])):
                with pytest.raises(TooLarge) as caught:
                    put()
                assert caught.value.limit == 3
            store.delete(first)
            late = store.put(b"4")
            with pytest.raises(TooLarge):
                store.restore(first)
            store.rebuild()
            with pytest.raises(TooLarge):
                store.restore(first)
            store.delete(late)
            store.restore(first)
            assert store.count() == 3

    def test_max_artifacts_is_exact_with_many_threads(self, make_store: MakeStore) -> None:
        with make_store(max_artifacts=10) as store:

            def put(number: int) -> int:
                try:
                    store.put(f"{number}".encode())
                except TooLarge:
                    return 0
                return 1

            with ThreadPoolExecutor(8) as pool:
                assert sum(pool.map(put, range(40))) == 10
            assert store.count() == 10

    def test_max_artifact_bytes_refuses_while_it_streams(self, make_store: MakeStore) -> None:
        with make_store(max_artifact_bytes=1000) as store:
            store.put(bytes(1000))
            for source in (bytes(1001), (bytes(100) for _ in range(11)), [bytes(999), b"12"]):
                with pytest.raises(TooLarge):
                    store.put(source)
                with pytest.raises(TooLarge):
                    store.put_many([b"fits", bytes(1001)])
            assert store.count() == 1

    def test_a_checksum_is_that_of_the_bytes(self, make_store: MakeStore) -> None:
        with make_store(checksum="sha256") as store:
            contents = [sample(size) for size in (1, 16_384, 16_385, (4 << 20) + 1, (9 << 20) + 5)]
            want = [f"sha256:{hashlib.sha256(content).hexdigest()}" for content in contents]
            assert [a.checksum for a in store.put_many([*contents, contents[0]])] == [*want, want[0]]
            assert [store.put(iter([content])).checksum for content in contents] == want
            with store.writer("w") as writer:
                for start in range(0, len(contents[-1]), 1 << 20):
                    writer.write(contents[-1][start : start + (1 << 20)])
            assert writer.artifact.checksum == want[-1]
            assert store.tag(writer.artifact, "t").checksum == want[-1]
            assert store.info(writer.artifact.id).checksum == want[-1]
        with make_store() as plain:
            assert plain.put(b"x").checksum is None
