"""The part of the contract about finding: filters, their order, pages, counts."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from fnmatch import fnmatchcase
from typing import Any

import pytest

from holdfast.errors import InvalidInput
from holdfast.store import Store
from holdfast.testing.contract_base import ContractBase
from holdfast.types import Artifact, Hash, PutItem

TAGS = ("prod", "prod/eu", "prod/us", "test", "é", "x" * 3000)
LINKS = ("run:1", "run:2", "case:7")
NAMES = ("a.png", "b.PNG", "c.txt", "dir/d.txt", None)
TYPES = ("image/png", "text/plain; charset=utf-8", "Image/SVG+xml", None)


def ids(found: Iterable[Artifact]) -> list[str]:
    """Give ids in the order of the answer."""
    return [artifact.id for artifact in found]


def fill(store: Store, count: int, seed: int) -> list[Artifact]:
    """Store artifacts of all sorts; some change, some are deleted. Gives the live ones, newest first."""
    chance = random.Random(seed)
    items = [
        PutItem(
            bytes(chance.randrange(1, 40)),
            filename=chance.choice(NAMES),
            content_type=chance.choice(TYPES),
            tags=chance.sample(TAGS, chance.randrange(4)),
            links=chance.sample(LINKS, chance.randrange(3)),
            created_by=chance.choice(("ann", "bob", None)),
        )
        for _ in range(count)
    ]
    put = store.put_many(items)
    for artifact in chance.sample(put, count // 3):
        store.update(
            artifact, add_tags=[chance.choice(TAGS)], remove_links=[chance.choice(LINKS)], filename="c.txt"
        )
    gone = chance.sample(put, count // 5)
    store.delete(*gone)
    for artifact in gone[::2]:
        store.restore(artifact)
    return sorted((store.info(a) for a in put if store.exists(a)), key=lambda a: a.id, reverse=True)


FILTERS: tuple[tuple[dict[str, Any], Callable[[Artifact], bool]], ...] = (
    ({}, lambda a: True),
    ({"tag": "prod"}, lambda a: "prod" in a.tags),
    ({"tag": ["prod", "test"]}, lambda a: {"prod", "test"} <= set(a.tags)),
    ({"tag": []}, lambda a: True),
    ({"tag": "none"}, lambda a: False),
    ({"tag": "x" * 3000}, lambda a: "x" * 3000 in a.tags),
    ({"any_tag": ["prod", "é", "none"]}, lambda a: bool({"prod", "é"} & set(a.tags))),
    ({"any_tag": []}, lambda a: False),
    ({"any_tag": [*TAGS, *map(str, range(100))]}, lambda a: bool(a.tags)),
    ({"link": "run:1"}, lambda a: "run:1" in a.links),
    ({"any_link": ("run:1", "case:7")}, lambda a: bool({"run:1", "case:7"} & set(a.links))),
    (
        {"tag": "test", "any_tag": ["é", "prod"], "link": "run:2"},
        lambda a: "test" in a.tags and bool({"é", "prod"} & set(a.tags)) and "run:2" in a.links,
    ),
    ({"prefix": "prod"}, lambda a: any(tag.startswith("prod") for tag in a.tags)),
    ({"prefix": "prod/"}, lambda a: any(tag.startswith("prod/") for tag in a.tags)),
    ({"prefix": "q"}, lambda a: False),
    ({"filename": "*.txt"}, lambda a: fnmatchcase(a.filename or "", "*.txt")),
    ({"filename": "a.png", "tag": "prod"}, lambda a: a.filename == "a.png" and "prod" in a.tags),
    ({"content_type": "image/*"}, lambda a: (a.content_type or "").lower().startswith("image/")),
    ({"content_type": "text/plain"}, lambda a: (a.content_type or "").startswith("text/plain")),
    ({"content_type": "*; charset=utf-8"}, lambda a: "charset" in (a.content_type or "")),
    ({"created_by": "ann", "link": "run:1"}, lambda a: a.created_by == "ann" and "run:1" in a.links),
    ({"min_size_bytes": 10, "max_size_bytes": 20}, lambda a: 10 <= a.size_bytes <= 20),
    ({"max_size_bytes": 12, "tag": "test"}, lambda a: a.size_bytes <= 12 and "test" in a.tags),
)


class FindingContract(ContractBase):
    """Everything that matches, once, newest first."""

    @pytest.mark.parametrize("number", range(len(FILTERS)))
    def test_filters_agree_with_looking_at_everything(self, store: Store, number: int) -> None:
        live = fill(store, 80, number)
        filters, matches = FILTERS[number]
        want = ids(a for a in live if matches(a))
        assert ids(store.find(**filters)) == want
        assert store.count(**filters) == len(want)
        assert ids(store.find(**filters, limit=3)) == want[:3]
        pages: list[str] = []
        while page := ids(store.find(**filters, limit=4, after=pages[-1] if pages else None)):
            pages += page
        assert pages == want
        gone = list(store.find(deleted=True))
        want = ids(a for a in gone if matches(a))
        assert ids(store.find(**filters, deleted=True)) == want
        assert store.count(**filters, deleted=True) == len(want)

    def test_what_is_found_is_what_info_gives(self, store: Store) -> None:
        live = fill(store, 20, 99)
        assert list(store.find()) == live
        assert list(store.find(created_by="ann")) == [a for a in live if a.created_by == "ann"]

    def test_times_and_hash(self, store: Store) -> None:
        before = datetime.now(UTC) - timedelta(milliseconds=1)
        live = fill(store, 20, 5)
        first = live[-1]
        tick = timedelta(milliseconds=1)
        assert ids(store.find(created_after=before)) == ids(live)
        assert ids(store.find(created_after=first.created_at)) == ids(live)
        assert ids(store.find(created_before=first.created_at)) == []
        assert store.count(created_before=first.created_at + tick) == len(live)
        assert store.count(created_after=first.created_at + timedelta(microseconds=1)) == 0
        changed = [a for a in live if a.revision > 1]
        last = max(a.modified_at for a in changed)
        want = [a.id for a in live if a.modified_at >= last]
        assert ids(store.find(modified_after=last)) == want
        assert store.count(modified_before=last, tag="prod") == sum(
            1 for a in live if a.modified_at < last and "prod" in a.tags
        )
        assert ids(store.find(hash=first.hash)) == [a.id for a in live if a.hash == first.hash]
        assert store.count(hash=Hash(bytes(32))) == 0
        assert store.count(created_after=datetime(1900, 1, 1, tzinfo=UTC)) == len(live)
        assert store.count(created_after=datetime(9999, 1, 1, tzinfo=UTC)) == 0

    def test_tags_and_links_in_use(self, store: Store) -> None:
        live = fill(store, 40, 3)
        tags = {name: sum(name in a.tags for a in live) for name in sorted(TAGS)}
        links = {name: sum(name in a.links for a in live) for name in sorted(LINKS)}
        for found, counts in ((store.tags_in_use(), tags), (store.links_in_use(), links)):
            assert [(one.name, one.artifacts) for one in found] == [(n, c) for n, c in counts.items() if c]
        assert [one.name for one in store.tags_in_use("prod/")] == ["prod/eu", "prod/us"]
        assert list(store.links_in_use("zz")) == []

    def test_a_page_that_was_begun_goes_on_while_artifacts_come_and_go(self, store: Store) -> None:
        put = store.put_many([PutItem(b"x", tags=["t"]) for _ in range(1_005)])
        found = store.find(tag="t")
        seen = [next(found).id for _ in range(3)]
        store.put(b"later", tags=["t"])
        store.delete(put[0], put[1])
        seen += ids(found)
        assert len(seen) == len(set(seen))
        assert set(seen) >= {a.id for a in put[2:]}
        assert seen == sorted(seen, reverse=True)

    def test_finds_after_a_rebuild_what_it_found_before(self, store: Store) -> None:
        fill(store, 40, 8)
        want = [ids(store.find(**filters)) for filters, _ in FILTERS]
        uses = list(store.tags_in_use())
        store.rebuild()
        assert [ids(store.find(**filters)) for filters, _ in FILTERS] == want
        assert list(store.tags_in_use()) == uses

    @pytest.mark.parametrize(
        "filters",
        [
            {"tag": ""},
            {"tag": 7},
            {"any_tag": "text"},
            {"link": [b"x"]},
            {"filename": 7},
            {"hash": "00"},
            {"min_size_bytes": -1},
            {"max_size_bytes": 1.5},
            {"created_after": datetime(2026, 1, 1)},  # naive on purpose
            {"modified_before": 5},
            {"content_type": b"x"},
            {"limit": -1},
            {"after": "no id"},
        ],
    )
    def test_a_filter_that_makes_no_sense_is_said_at_once(
        self, store: Store, filters: dict[str, Any]
    ) -> None:
        with pytest.raises((InvalidInput, TypeError)):
            store.find(**filters)
        with pytest.raises(TypeError, match="nonsense"):
            store.count(nonsense=1)  # type: ignore[call-arg]  # wrong on purpose
