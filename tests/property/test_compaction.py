"""Random stores: compaction changes no fact, and what it leaves is what a rebuild makes of storage."""

from __future__ import annotations

import random
import tempfile
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.chunking import Chunking
from holdfast.store import Store
from holdfast.testing.inside import log_core
from holdfast.types import Artifact

OPTIONS: dict[str, Any] = {
    "chunking": Chunking.choose("fastcdc", 4096),
    "segment_bytes": 64 << 10,
    "lock_timeout_seconds": 5.0,
}
STEPS = (
    "put",
    "put",
    "put_many",
    "again",
    "blob",
    "update",
    "delete",
    "restore",
    "tag",
    "untag",
    "gc",
    "die",
    "compact",
)


def named(store: Store) -> dict[str, Any]:
    """What a person sees: artifacts, deleted ones too, tags, and their bytes."""
    found: dict[str, Any] = {artifact.id: artifact for artifact in store.find()}
    found |= {artifact.id: artifact for artifact in store.find(deleted=True)}
    found |= {tag.name: tag for tag in store.tags.list()}
    return found


@given(
    st.lists(st.tuples(st.sampled_from(STEPS), st.integers(0, 1 << 30)), min_size=4, max_size=30),
    st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_compaction_changes_no_fact(steps: list[tuple[str, int]], compressed: bool) -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = f"{directory}/store"
        options = {**OPTIONS, "compression": "zstd" if compressed else "none"}
        store = Store._open(path, create=True, **options)
        contents: dict[str, bytes] = {}
        try:
            for step, seed in steps:
                rng = random.Random(seed)
                if step == "die":
                    log_core(store).backend.abandon()
                    log_core(store).keeper.close()
                    log_core(store).close()
                    store = Store._open(path, **options)
                elif step == "compact":
                    compact(store, rng.choice((0.0, 0.1, 0.5)))
                else:
                    act(store, step, rng, contents)
            before = named(store)
            compact(store, 0.0)
            assert named(store) == before
            whole = list(log_core(store).catalog.dump())
            assert store.rebuild().damaged == 0
            assert list(log_core(store).catalog.dump()) == whole, "nothing but what is live is left"
            assert store.scrub().ok
            for artifact in store.find():
                assert store.read(artifact) == contents[str(artifact.hash)]
        finally:
            store.close()


def compact(store: Store, share: float) -> None:
    def dump() -> list[str]:
        lines = log_core(store).catalog.dump()  # what says that something is deleted may be forgotten
        return [line for line in lines if not line.startswith("tombstone") and not line.endswith("\t1")]

    before = dump()
    report = store.compact(share)
    assert not report.problems
    assert dump() == before


def act(store: Store, step: str, rng: random.Random, contents: dict[str, bytes]) -> None:
    live, gone = list(store.find(limit=20)), list(store.find(deleted=True, limit=20))

    def content() -> bytes:
        size = rng.choice((1, 300, 16_384, 16_385, 40_000, 90_000))
        return (
            (b"shared" * 4_000 + rng.randbytes(size))[-size:]
            if rng.random() < 0.5
            else b"text " * (size // 5)
        )

    def keep(artifact: Artifact, data: bytes) -> None:
        contents[str(artifact.hash)] = data

    if step == "put":
        data = content() + bytes((rng.randrange(256),))
        keep(store.put(data, tags=["t"]), data)
    elif step == "put_many":
        many = [content() + bytes((i,)) for i in range(rng.randint(2, 6))]
        for artifact, data in zip(store.put_many(many), many, strict=True):
            keep(artifact, data)
    elif step == "again" and live:
        data = contents[str(rng.choice(live).hash)]
        keep(store.put(data), data)
    elif step == "blob":
        data = content() + b"blob"
        lease = store.blobs.put(data)
        store.tags.set(f"{rng.randrange(3)}", lease.hash)
        lease.release()
    elif step == "update" and live:
        store.update(rng.choice(live), metadata={"noise": "x" * rng.randrange(3_000)})
    elif step == "delete" and live:
        store.delete(rng.choice(live))
    elif step == "restore" and gone:
        store.restore(rng.choice(gone))
    elif step == "tag" and live:
        store.tags.set(f"{rng.randrange(3)}", rng.choice(live).hash)
    elif step == "untag" and (tags := list(store.tags.list())):
        store.tags.delete(rng.choice(tags).name)
    elif step == "gc":
        store.gc(min_age_seconds=rng.choice((0, 1e9)))
