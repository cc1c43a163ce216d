"""A process of its own on a directory of objects: writes, reads or collects until a file says stop.

Usage: bucket_child.py ROLE DIRECTORY SEED LOG STOP. What is acknowledged goes to the log, a line each, in the order in
which it happened; what is about to be taken away is written there before.

Or: bucket_child.py stopped DIRECTORY N LOG WORK puts (WORK is `put`) or collects once, and stops itself before its Nth
request.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

from holdfast.backend.objects import collection
from holdfast.backend.objects.directory import DirectoryBucket
from holdfast.errors import ArtifactNotFound, BlobNotFound, Conflict, Locked, MissingChunk
from holdfast.store import Store
from holdfast.testing.contract_base import sample
from holdfast.testing.faulty_bucket import BucketSite, FaultyBucket
from holdfast.types import Durability, Hash

CONTENTS = [sample(size, size) for size in (10, 500, 16_384, 20_000, 60_000)]


def main(role: str, root: str, seed: int, log: str, stop: str) -> None:
    collection.STALE_SECONDS = 1  # type: ignore[misc]  # so that collectors take each other for dead, and meet
    chance = random.Random(seed)
    with (
        open(log, "a", buffering=1) as lines,
        Store._open_objects(DirectoryBucket(root), durability=Durability.FSYNCED) as store,
    ):

        def note(*words: object) -> None:
            lines.write(" ".join(map(str, words)) + "\n")

        note("ready")
        while not os.path.exists(stop):
            {"write": write, "read": read, "collect": collect}[role](store, chance, note, seed)
        note("done")


def write(store: Store, chance: random.Random, note: object, seed: int) -> None:
    assert callable(note)
    content = chance.choice(CONTENTS)
    what = chance.randrange(8)
    mine = f"writer-{seed}"
    if what < 3:
        artifact = store.put(content, tags=[mine])
        note("put", artifact.id, artifact.hash)
    elif what < 5:
        found = list(store.find(tag=mine, limit=20))
        if found:
            artifact = chance.choice(found)
            note("gone", artifact.id)
            store.delete(artifact)
            if chance.random() < 0.5:
                with suppress(ArtifactNotFound):
                    back = store.restore(artifact)
                    note("put", back.id, back.hash)
    elif what < 7:
        name = f"{mine}-{chance.randrange(3)}"
        with store.blobs.put(content) as lease:
            note("untagged", name)
            with suppress(BlobNotFound):
                tag = store.tags.set(name, lease.hash)
                note("tagged", name, tag.hash)
                if chance.random() < 0.3:
                    to = f"{mine}-r{chance.randrange(3)}"
                    note("untagged", to)
                    with suppress(Conflict, BlobNotFound):
                        moved = store.tags.rename(name, to, overwrite=True)
                        note("tagged", to, moved.hash)
                        note("untagged", name)
    elif chance.random() < 0.2:
        store.refresh()


def read(store: Store, chance: random.Random, note: object, seed: int) -> None:
    assert callable(note)
    del seed
    for artifact in list(store.find(tag="kept")):
        assert store.read(artifact) == CONTENTS[int(artifact.filename or "0")]
    note("read")
    if chance.random() < 0.1:
        store.refresh()
    for content in store.find(limit=10):
        with suppress(ArtifactNotFound, BlobNotFound, MissingChunk):  # deleted, and collected
            assert store.read(content) in CONTENTS
    time.sleep(0.002)


def collect(store: Store, chance: random.Random, note: object, seed: int) -> None:
    assert callable(note)
    del seed
    try:
        report = store.gc(min_age_seconds=0)
        note("collected", report.dropped_blobs)
        if chance.random() < 0.1:
            store.compact()
    except Locked:
        time.sleep(0.01)


def stopped(root: str, number: int, log: str, work: str) -> None:
    bucket = FaultyBucket(DirectoryBucket(root))
    with Store._open_objects(bucket) as store, open(log, "a", buffering=1) as lines:
        before = len(bucket.sites)

        def on_site(site: BucketSite) -> None:
            if site.number == before + number:
                os.kill(os.getpid(), signal.SIGSTOP)

        bucket.on_site = on_site
        if work == "put":
            artifact = store.put(CONTENTS[3])
            lines.write(f"put {artifact.id} {artifact.hash}\n")
        else:
            store.gc(min_age_seconds=0)


def acknowledged(logs: list[Path]) -> tuple[dict[str, Hash], dict[str, Hash]]:
    """Give what is there by what was written down: artifacts by id, tags by name."""
    artifacts: dict[str, Hash] = {}
    tags: dict[str, Hash] = {}
    for log in logs:
        for line in log.read_text().splitlines():
            kind, *words = line.split()
            if kind == "put":
                artifacts[words[0]] = Hash.parse(words[1])
            elif kind == "gone":
                artifacts.pop(words[0], None)
            elif kind == "tagged":
                tags[words[0]] = Hash.parse(words[1])
            elif kind == "untagged":
                tags.pop(words[0], None)
    return artifacts, tags


if __name__ == "__main__":
    if sys.argv[1] == "stopped":
        stopped(sys.argv[2], int(sys.argv[3]), sys.argv[4], sys.argv[5])
    else:
        main(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4], sys.argv[5])
