"""Lists that go on where the catalog was mended midway."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import holdfast
from holdfast.catalog import Catalog, CatalogUnusable
from holdfast.store import Store
from holdfast.testing.inside import log_core
from holdfast.types import PutItem


def names(store: Store) -> list[list[Any]]:
    """Everything that lists."""
    return [
        [a.id for a in store.find()],
        [a.id for a in store.find(filename="f*", limit=5)],
        [a.id for a in store.find(tag="t", limit=3)],
        [label.name for label in store.tags_in_use()],
        [tag.name for tag in store.tags.list()],
    ]


@pytest.mark.parametrize("fails_at", [0, 1, 4])
def test_a_catalog_that_proves_damaged_midway_is_mended_and_nothing_comes_twice(
    monkeypatch: pytest.MonkeyPatch, fails_at: int
) -> None:
    with holdfast.open("memory://") as store:
        put = store.put_many([PutItem(bytes([n]), filename=f"f{n}", tags=["t", f"t{n}"]) for n in range(6)])
        for number, artifact in enumerate(put):
            store.tags.set(f"name{number}", artifact.hash)
        want = names(store)
        mended: list[Exception] = []
        monkeypatch.setattr(log_core(store), "mend", mended.append)

        def failing(method: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
            calls = itertools.count()

            def call(*arguments: Any) -> Iterator[Any]:
                first = next(calls) % 2 == 0
                for number, item in enumerate(method(*arguments)):
                    if first and number == fails_at:
                        raise CatalogUnusable("damaged")
                    yield item
                if first:
                    next(calls)  # it was too short to fail

            return call

        for name in ("search", "iter_names", "tags_with_prefix"):
            monkeypatch.setattr(Catalog, name, failing(getattr(Catalog, name)))
        assert names(store) == want
        assert len(mended) >= 4
