"""Bit rot in a bucket: whatever byte of whatever object changes, it is harmless, or found; then `repair` undoes it.

Each case flips bits in a bucket that has a sound copy. No read gives a wrong byte; what is sound is not refused because
of a neighbour; after scrub and repair a scrub is clean, and the facts are those of the copy: with the catalog that was
kept, and with one that is made from nothing.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import pytest

from holdfast import _native
from holdfast.backend.objects.cache import BlockCache, BlockFile
from holdfast.backend.objects.layout import COLLECTOR_KEY, IDENTITY_KEY
from holdfast.errors import (
    BlobNotFound,
    Conflict,
    CorruptObject,
    FormatError,
    HoldfastError,
    IntegrityError,
    Locked,
    NotFound,
)
from holdfast.ranges import ChunkRanges
from holdfast.store import Store
from holdfast.testing.checks import dump_catalog
from holdfast.testing.plain_bucket import PlainBucket
from holdfast.testing.streams import Sender, blocks
from holdfast.types import Hash
from tests.crash.world import DEEP, SEED, figure, piece, replay
from tests.objects.world import ObjectWorld, new_world, open_objects

NAMES = ("commits", "artifacts", "tags")
KINDS = (*NAMES, "store.json", "data", "outboard", "parts", "uploads", "ends", "collector")
CONTENT = piece("in parts", 5 * 16_384 + 100).content()
SENDER = Sender(CONTENT)
HERE = blocks(0, 1) | blocks(3)
UPLOADED = piece("uploaded", 30_000).content()
FLIPS = figure(200, 10_000)
SHARDS = 2
EVERY = {"data": 997, "outboard": 5, "parts": 499, "uploads": 499}
"""Payloads and trees are tried at each so-many-th byte; all else at every byte of the shortest object of its kind."""
FURTHER = 13
"""Of further objects of a kind each so-many-th byte is tried everyday."""


class Case(NamedTuple):
    """A bucket with everything in it, and what its catalog says."""

    world: ObjectWorld
    token: str
    facts: list[str]

    def keys(self, kind: str) -> list[str]:
        return sorted(key for key in self.world.plain.objects if kind_of(key) == kind)


def kind_of(key: str) -> str:
    """Say what an object is."""
    if key.endswith("z" * 53):
        return "ends"
    if key.startswith("blobs/"):
        return key.rpartition("/")[2].partition(".")[0]
    return {IDENTITY_KEY: "store.json", COLLECTOR_KEY: "collector"}.get(key, key.partition("/")[0])


@pytest.fixture(scope="module")
def case() -> Iterator[Case]:
    logging.disable(logging.WARNING)  # each damage is logged
    with new_world() as world:
        with world.open() as store:
            ledger = world.ledger
            ledger.put(store, piece("small", 300))
            ledger.put(store, piece("large", 40_000))
            ledger.put_many(store, [piece(f"many-{i}", 900) for i in range(3)])
            ledger.delete(store, "many-0")
            ledger.tag(store, "many-1", "changed")
            ledger.refer(store, "kept", "large")
            ledger.put(store, piece("goes", 20_000))
            ledger.delete(store, "goes")
            ledger.collect(store)
            ledger.put(store, piece("goes", 20_000)._replace(name="again"))
            ledger.delete(store, "many-2")
            store.blobs.decode(SENDER.hash, SENDER.stream(HERE), HERE)
            writer = store.writer("uploaded", resumable=True)
            writer.write(UPLOADED[:17_000])
            token = writer.suspend()
            store.refresh()
            facts = dump_catalog(store)
        yield Case(world, token, facts)
    logging.disable(logging.NOTSET)


def flipped(case: Case, places: Sequence[tuple[str, int]], rng: random.Random) -> PlainBucket:
    """Give the bucket with a bit of each of these bytes flipped, as a disk does it: times and e_tags stay."""
    bucket = case.world.plain.copied()
    for key, at in places:
        data, meta = bucket.objects[key]
        wrong = data[:at] + bytes((data[at] ^ 1 << rng.randrange(8),)) + data[at + 1 :]
        bucket.objects[key] = wrong, meta
    return bucket


def check_rot(case: Case, places: Sequence[tuple[str, int]], rng: random.Random) -> None:
    """The case: read, scrub, repair, scrub, compare; rebuild, compare."""
    world, bucket = case.world, flipped(case, places, rng)
    is_kept = rng.random() < 0.5
    catalog = world.directory / f"case-{rng.getrandbits(64)}.db"
    if is_kept:
        world.copy_catalog(catalog)
    try:
        try:
            store = open_objects(bucket, catalog)
        except (CorruptObject, FormatError):
            assert any(key == IDENTITY_KEY for key, _ in places), "the store does not open"
            return
        with store, open_objects(world.plain.copied(), None) as source:
            damaged = read_all(case, store)
            found = store.scrub()
            assert damaged <= 2 * len(places), "more is refused than what was hit"
            assert not (damaged and found.ok), "reads are refused, and scrub finds nothing"
            report = store.repair(source)
            assert report.ok, report.missing
            again = store.scrub()
            assert again.ok, again.problems
            assert read_all(case, store) == 0
            assert dump_catalog(store) == case.facts, "repaired, and not what it was"
            assert store.health().ok, store.health().ailments
            read_partial(case, store)
            stats = store.rebuild()
            assert not stats.problems
            assert dump_catalog(store) == case.facts, "a rebuild forgets what was repaired"
            finish(case, store)
    except BaseException as error:
        error.add_note(f"flipped: {places}; catalog kept: {is_kept}")
        raise
    finally:
        for suffix in ("", "-wal", "-shm", ".lock"):
            Path(f"{catalog}{suffix}").unlink(missing_ok=True)


def read_all(case: Case, store: Store) -> int:
    """Read everything in every way; gives how many artifacts are refused. Wrong bytes are an error."""
    ledger, refused = case.world.ledger, 0
    for name in ledger.artifacts:
        content = ledger.content(name)
        middle = len(content) // 2
        try:
            assert store.read(ledger.ids[name]) == content
            assert store.read(ledger.ids[name], middle, 100) == content[middle : middle + 100]
            assert b"".join(store.iter_bytes(ledger.ids[name])) == content
        except (IntegrityError, NotFound):
            refused += 1
    for name in ledger.refs.values():
        content = ledger.content(name)
        with suppress(IntegrityError, BlobNotFound):
            assert store.read(Hash(_native.blake3(content))) == content
    return refused


def read_partial(case: Case, store: Store) -> None:
    """What is here of a blob that came as a stream is right, or is to be asked for again."""
    found = store.blobs.bitfield(SENDER.hash)
    for start, stop in found.ranges.byte_ranges(found.size_bytes):
        with suppress(IntegrityError, NotFound, HoldfastError):
            assert store.blobs.read(SENDER.hash, start, stop - start) == CONTENT[start:stop]


def finish(case: Case, store: Store) -> None:
    """What was begun is gone on with; what was damaged of it costs a transfer, or a typed error, never a wrong byte."""
    missing = store.blobs.missing_ranges(SENDER.hash)
    for ranges in (missing, ChunkRanges.all()):
        try:
            store.blobs.decode(SENDER.hash, SENDER.stream(ranges), ranges)
            break
        except IntegrityError:
            continue
    else:
        raise AssertionError("a stream of all of it does not complete the blob")
    if store.blobs.status(SENDER.hash) != "complete":
        store.blobs.decode(SENDER.hash, SENDER.stream(ChunkRanges.all()), ChunkRanges.all())
    assert store.read(SENDER.hash) == CONTENT
    try:
        writer = store.writer(resume=case.token)
        writer.write(UPLOADED[writer.offset_bytes :])
        assert store.read(writer.commit()) == UPLOADED
    except (IntegrityError, NotFound, FormatError, Conflict):
        pass  # told; it is put anew
    with suppress(Locked):  # by whoever the damaged note names
        store.gc()


@pytest.mark.parametrize("kind", KINDS)
def test_a_flip_in_each_byte_of_each_kind(case: Case, kind: str) -> None:
    rng = random.Random(f"{SEED} {kind}")
    keys = case.keys(kind)
    assert keys, f"there is no object of this kind: {kind}"
    tried = 0
    with replay(f"tests/objects/test_rot.py::test_a_flip_in_each_byte_of_each_kind[{kind}]"):
        for number, key in enumerate(sorted(keys, key=lambda key: len(case.world.plain.objects[key][0]))):
            size = len(case.world.plain.objects[key][0])
            step = 1 if DEEP else EVERY.get(kind, FURTHER if number else 1)
            for at in range(rng.randrange(step), size, step):
                check_rot(case, [(key, at)], rng)
                tried += 1
    print(f"{kind}: {tried} bytes of {len(keys)} objects")


@pytest.mark.parametrize("shard", range(SHARDS))
def test_flips_anywhere(case: Case, shard: int) -> None:
    """Several at once, in different objects."""
    rng = random.Random(f"{SEED} {shard}")
    keys = sorted(k for k, (data, _) in case.world.plain.objects.items() if data and k != IDENTITY_KEY)
    at_once = 1 if DEEP else 4
    with replay(f"tests/objects/test_rot.py::test_flips_anywhere[{shard}]"):
        for _ in range(FLIPS // SHARDS // at_once):
            hit = rng.sample(keys, at_once)
            check_rot(case, [(key, rng.randrange(len(case.world.plain.objects[key][0]))) for key in hit], rng)


@pytest.mark.parametrize(
    "what", ["data", "outboard", "commits", "artifacts", "tags", "parts", "uploads", "ends"]
)
@pytest.mark.parametrize("how", ["gone", "empty", "cut", "longer", "rubbish"])
def test_an_object_that_is_quite_wrong(case: Case, what: str, how: str) -> None:
    """It is gone, empty, too short, too long, or something else: found, and repaired from the copy."""
    rng = random.Random(f"{SEED} {what} {how}")
    named = {_native.blake3(case.world.ledger.content(name)).hex() for name in case.world.ledger.artifacts}
    for key in case.keys(what):
        if how == "gone" and what == "data" and key.split("/")[1] not in named:
            continue  # nobody misses it but who restores what was deleted
        bucket = case.world.plain.copied()
        data, meta = bucket.objects[key]
        changes = {
            "empty": b"",
            "cut": data[: len(data) // 2],
            "longer": data + b"x",
            "rubbish": rng.randbytes(len(data)),
        }
        if how == "gone":
            del bucket.objects[key]
        else:
            bucket.objects[key] = changes[how], meta._replace(size_bytes=len(changes[how]))
        is_kept = rng.random() < 0.5
        catalog = case.world.directory / f"wrong-{rng.getrandbits(64)}.db"
        if is_kept:
            case.world.copy_catalog(catalog)
        with (
            replay(f"tests/objects/test_rot.py::test_an_object_that_is_quite_wrong[{how}-{what}]"),
            open_objects(bucket, catalog) as store,
            open_objects(case.world.plain.copied(), None) as source,
        ):
            damaged = read_all(case, store)
            found = store.scrub()
            if what in NAMES and how == "gone":
                continue  # nothing but a catalog that was kept knows of it (docs/proofs.md)
            assert not (damaged and found.ok), (key, is_kept)
            assert store.repair(source).ok, (key, is_kept)
            assert store.scrub().ok, (key, is_kept)
            assert read_all(case, store) == 0, (key, is_kept)
            assert dump_catalog(store) == case.facts, (key, is_kept)
            finish(case, store)


@pytest.mark.parametrize("where", ["anywhere", "head"])
def test_a_cache_of_blocks_that_rots_costs_a_request(case: Case, tmp_path: Path, where: str) -> None:
    """`blocks.db`: whatever is wrong in it, what is read is right."""
    rng = random.Random(f"{SEED} {where}")
    path, name = tmp_path / "blocks.db", "large"
    content = case.world.ledger.content(name)

    def read() -> None:
        cache = BlockCache(file=BlockFile(path, 1 << 20))
        bucket = case.world.plain.copied()
        with Store._open_objects(bucket, None, cache=cache) as store:
            assert store.read(case.world.ledger.ids[name]) == content
            for start in range(0, len(content), 9_000):
                assert store.read(case.world.ledger.ids[name], start, 500) == content[start : start + 500]

    read()
    sound = path.read_bytes()
    with replay(f"tests/objects/test_rot.py::test_a_cache_of_blocks_that_rots_costs_a_request[{where}]"):
        for _ in range(figure(40, 1_000)):
            data = bytearray(sound)
            at = rng.randrange(len(data) if where == "anywhere" else 4096)
            data[at] ^= 1 << rng.randrange(8)
            for suffix in ("-wal", "-shm"):
                Path(f"{path}{suffix}").unlink(missing_ok=True)
            path.write_bytes(data)
            read()
