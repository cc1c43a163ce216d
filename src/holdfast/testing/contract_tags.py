"""The part of the contract about tags of the blob layer."""

from __future__ import annotations

from typing import Any

import pytest

from holdfast.errors import BlobNotFound, Conflict, InvalidInput, TagNotFound
from holdfast.store import Store
from holdfast.testing.contract_base import ContractBase
from holdfast.types import BlobFormat, Hash


def blob(store: Store, content: bytes) -> Hash:
    """Store a blob; give its hash."""
    return store.blobs.put(content).hash


class TagsContract(ContractBase):
    """Names for hashes."""

    def test_a_tag_names_a_hash_until_it_is_deleted(self, store: Store) -> None:
        hash_ = blob(store, b"data")
        tag = store.tags.set("latest", hash_)
        assert (tag.name, tag.hash, tag.format, tag.revision) == ("latest", hash_, BlobFormat.RAW, 1)
        assert store.tags.get("latest") == tag
        assert store.stats().tags == 1
        store.tags.delete("latest")
        for call in (store.tags.get, store.tags.delete):
            with pytest.raises(TagNotFound):
                call("latest")
        assert list(store.tags.list()) == []
        assert store.tags.set("latest", hash_).revision == 3

    def test_setting_again_replaces_and_the_same_writes_nothing(self, store: Store) -> None:
        one, two = blob(store, b"one"), blob(store, b"2" * 64)
        first = store.tags.set("t", one)
        with pytest.raises(InvalidInput):  # three bytes are no hashes
            store.tags.set("t", one, "hash_seq")
        assert store.tags.set("t", one) == first
        second = store.tags.set("t", two, "hash_seq")
        assert (second.hash, second.format, second.revision) == (two, BlobFormat.HASH_SEQ, 2)
        assert second.modified_at >= first.modified_at
        assert store.tags.set("t", two, BlobFormat.RAW).revision == 3

    def test_if_revision_guards_a_change(self, store: Store) -> None:
        one, two = blob(store, b"one"), blob(store, b"two")
        store.tags.set("t", one, if_revision=0)
        with pytest.raises(Conflict) as caught:
            store.tags.set("t", two, if_revision=0)
        assert (caught.value.revision, caught.value.if_revision) == (1, 0)
        store.tags.set("t", two, if_revision=1)
        with pytest.raises(Conflict):
            store.tags.delete("t", if_revision=1)
        store.tags.delete("t", if_revision=2)
        store.tags.set("t", one, if_revision=0)

    def test_rename_is_one_step(self, store: Store) -> None:
        one, two = blob(store, b"1" * 32), blob(store, b"two")
        store.tags.set("a", one, "hash_seq")
        store.tags.set("b", two)
        with pytest.raises(Conflict):
            store.tags.rename("a", "b")
        moved = store.tags.rename("a", "c")
        assert (moved.hash, moved.format) == (one, BlobFormat.HASH_SEQ)
        assert [tag.name for tag in store.tags.list()] == ["b", "c"]
        assert store.tags.rename("c", "b", overwrite=True).hash == one
        assert store.tags.rename("b", "b").revision == 2
        assert [(tag.name, tag.hash) for tag in store.tags.list()] == [("b", one)]
        with pytest.raises(TagNotFound):
            store.tags.rename("a", "d")

    def test_list_goes_by_name_and_prefix(self, store: Store) -> None:
        hash_ = blob(store, b"data")
        names = ["a", "a/1", "a/2", "b", "é", "a/\U0010ffff", "a0"]
        for name in names:
            store.tags.set(name, hash_)
        store.tags.delete("a/1")
        names.remove("a/1")
        assert [tag.name for tag in store.tags.list()] == sorted(names)
        assert [tag.name for tag in store.tags.list("a/")] == ["a/2", "a/\U0010ffff"]
        assert list(store.tags.list("zz")) == []

    def test_tags_are_there_after_opening_anew_and_after_a_rebuild(self, store: Store) -> None:
        one, two = blob(store, b"one"), blob(store, b"two")
        store.tags.set("gone", one)
        store.tags.set("kept", one)
        store.tags.set("kept", two)
        store.tags.delete("gone")
        want = list(store.tags.list())
        assert [tag.hash for tag in want] == [two]
        if self.persistent:
            with self.reopen(store) as other:
                assert list(other.tags.list()) == want
        store.rebuild()
        assert list(store.tags.list()) == want

    @pytest.mark.parametrize("name", ["", "\ud800", "x" * 5000, 7, None])
    def test_what_is_no_name(self, store: Store, name: Any) -> None:
        with pytest.raises(InvalidInput):
            store.tags.set(name, blob(store, b"data"))
        with pytest.raises(InvalidInput):
            store.tags.get(name)

    def test_only_what_is_here_is_named(self, store: Store) -> None:
        with pytest.raises(BlobNotFound):
            store.tags.set("t", Hash(bytes(32)))
        with pytest.raises(InvalidInput):
            store.tags.set("t", "00" * 32)  # type: ignore[arg-type]  # wrong on purpose
        with pytest.raises(InvalidInput):
            store.tags.set("t", blob(store, b"x"), "other")
        assert list(store.tags.list()) == []
