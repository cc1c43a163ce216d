"""Bit rot: whatever byte of whatever record changes, it is harmless, or found; then `repair` undoes it.

Each case flips bits in a store that has a sound copy elsewhere. No read gives a wrong byte; nothing that is sound is
refused because of its neighbour; after scrub and repair a scrub is clean, and the facts are those of the copy: with the
catalog that was kept, and with one that is rebuilt from nothing.
"""

from __future__ import annotations

import logging
import random
import shutil
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import pytest

from holdfast.backend.log.disk import Disk
from holdfast.catalog.connection import connect
from holdfast.chunking import Chunking
from holdfast.errors import HoldfastError
from holdfast.store import Store
from holdfast.testing.faults import numbered
from holdfast.testing.inside import log_core
from holdfast.testing.model_disk import ModelDisk
from holdfast.types import Hash
from tests.crash.test_damage import HEADER_BYTES, KINDS, Record, records
from tests.crash.world import (
    DEEP,
    ROOT,
    SEED,
    Fault,
    FaultyDisk,
    SimulatedCrash,
    World,
    attempt,
    figure,
    fill,
    new_world,
    piece,
    replay,
    some_of,
)

FLIPS = figure(1_000, 10_000)
SHARDS = 4
"""Of the random flips, so that two cores share them."""


class Case(NamedTuple):
    """A store with everything in it, its files, and what its catalog says."""

    world: World
    files: dict[str, bytes]
    records: list[Record]
    facts: list[str]


@pytest.fixture(scope="module")
def case() -> Iterator[Case]:
    logging.disable(logging.WARNING)  # each rebuild and each damage says so
    with new_world() as world:
        with world.open() as store:
            ledger = world.ledger
            ledger.put(store, piece("small", 300))
            ledger.put(store, piece("large", 20_000))
            ledger.put(store, piece("paged", 1_300_000))
            ledger.put_many(store, [piece(f"many-{i}", 900) for i in range(3)])
            ledger.delete(store, "many-0")
            ledger.put_blobs(store, [piece("bare", 5_000)])
            store.tags.set("kept", store.info(ledger.ids["large"]).hash)
        fill(world, 2, 1_000, name="closed")
        with world.open() as store:
            facts = list(log_core(store).catalog.dump())
        files = world.disk.files(ROOT)
        yield Case(world, files, list(records(files)), facts)
    logging.disable(logging.NOTSET)


def flipped(case: Case, places: Sequence[tuple[str, int]], rng: random.Random) -> ModelDisk:
    """Give the disk with a bit of each of these bytes flipped."""
    disk = case.world.disk.clone()
    changed: dict[str, bytearray] = {}
    for path, place in places:
        data = changed.setdefault(path, bytearray(case.files[path]))
        data[place] ^= 1 << rng.randrange(8)
    for path, data in changed.items():
        disk.overwrite(path, bytes(data))
    return disk


def check_rot(case: Case, places: Sequence[tuple[str, int]], rng: random.Random) -> None:
    """The case: read, scrub, repair, scrub, compare; rebuild, compare."""
    world = case.world
    disk = flipped(case, places, rng)
    catalog = world.copy_catalog() if rng.random() < 0.5 else world.no_catalog()
    copy = world.copy_catalog()
    try:
        with (
            world.open(disk, catalog=catalog) as store,
            world.open(world.disk.clone(), catalog=copy) as source,
        ):
            damaged = read_all(case, store)
            found = store.scrub()
            # What the index of a segment tells twice may be lost once: then there is nothing to be found.
            assert damaged <= 3 * len(places), "more is refused than what was hit"
            assert found.ok is False or not damaged, "reads are refused, and scrub finds nothing"
            report = store.repair(source)
            assert report.ok, report.missing
            again = store.scrub()
            assert again.ok, again.problems
            assert read_all(case, store) == 0
            assert list(log_core(store).catalog.dump()) == case.facts, "repaired, and not what it was"
            assert store.health().ok, store.health().ailments
            stats = store.rebuild()
            assert not stats.problems
            assert list(log_core(store).catalog.dump()) == case.facts, "a rebuild forgets what was repaired"
            assert store.scrub().ok
    except BaseException as error:
        error.add_note(f"flipped: {places}; catalog kept: {catalog.exists()}")
        raise
    finally:
        for path in (catalog, copy):
            shutil.rmtree(path.parent, ignore_errors=True)


def read_all(case: Case, store: Store) -> int:
    """Read all that there is; give how much of it is refused. Wrong bytes are a failure."""
    ledger = case.world.ledger
    refused = 0
    for name in ledger.artifacts:
        try:
            assert store.read(ledger.ids[name]) == ledger.content(name), f"{name} reads wrong"
            start = len(ledger.content(name)) // 3
            assert store.read(ledger.ids[name], start, 50) == ledger.content(name)[start : start + 50]
        except HoldfastError:
            refused += 1
    for digits, one in ledger.blobs.items():
        try:
            assert store.read(Hash.parse(digits)) == ledger.content(one.name)
        except HoldfastError:
            refused += 1
    return refused


@pytest.mark.parametrize("kind", [*KINDS.values(), "end", "segment"])
def test_each_byte_of_each_header(case: Case, kind: str) -> None:
    rng = random.Random(f"{SEED} {kind}")
    found = [record for record in case.records if record.kind == kind]
    segments = sorted(path for path in case.files if path.endswith(".seg"))
    with replay(f"tests/crash/test_rot.py::test_each_byte_of_each_header[{kind}]"):
        for byte in range(HEADER_BYTES):
            if kind == "segment":
                check_rot(case, [(rng.choice(segments), byte)], rng)
            else:
                record = rng.choice(found)
                check_rot(case, [(record.path, record.offset + byte)], rng)


@pytest.mark.parametrize(
    "kind", ["outboard page", "manifest page", "blob", "artifact", "tag", "commit", "footer", "end"]
)
def test_payloads_of_what_describes(case: Case, kind: str) -> None:
    rng = random.Random(f"{SEED} {kind}")
    found = [record for record in case.records if record.kind == kind]
    with replay(f"tests/crash/test_rot.py::test_payloads_of_what_describes[{kind}]"):
        for _ in range(figure(12, 200)):
            record = rng.choice(found)
            check_rot(case, [(record.path, rng.randrange(record.offset + HEADER_BYTES, record.stop))], rng)


@pytest.mark.parametrize("kind", ["data", "artifact"])
def test_no_header_is_made_for_bytes_that_are_damaged(case: Case, kind: str) -> None:
    """The index tells what a header was. With a checksum of what lies there now, it would hide the damage."""
    record = next(
        one
        for one in case.records
        if one.kind == kind and any(end.path == one.path and end.kind == "end" for end in case.records)
    )
    places = [(record.path, record.offset + at) for at in (8, HEADER_BYTES, record.stop - record.offset - 1)]
    disk = flipped(case, places, random.Random(SEED))
    damaged = disk.files(ROOT)[record.path][record.offset : record.stop]
    with (
        case.world.open(disk, catalog=case.world.copy_catalog()) as store,
        case.world.open(case.world.disk.clone(), catalog=case.world.copy_catalog()) as source,
    ):
        assert not store.scrub().ok
        report = store.repair(source)
        assert report.ok, report.missing
        assert disk.files(ROOT)[record.path][record.offset : record.stop] == damaged
        assert store.scrub().ok
        assert list(log_core(store).catalog.dump()) == case.facts


def test_a_catalog_that_lies_is_no_source(case: Case) -> None:
    """A document is damaged, and the catalog says something else than it did."""
    record = next(one for one in case.records if one.kind == "artifact")
    places = [(record.path, record.offset + HEADER_BYTES + at) for at in (20, 30)]
    disk = flipped(case, places, random.Random(SEED))
    catalog = case.world.copy_catalog()
    connection = connect(catalog)
    connection.execute("UPDATE artifacts SET modified_ms = modified_ms + 1")
    connection.close()
    with (
        case.world.open(disk, catalog=catalog) as store,
        case.world.open(case.world.disk.clone(), catalog=case.world.copy_catalog()) as source,
    ):
        store.scrub()
        assert store.repair(source).ok
        store.rebuild()
        assert list(log_core(store).catalog.dump()) == case.facts


def test_a_blob_that_is_cut_otherwise_elsewhere_is_described_anew(case: Case, tmp_path: Path) -> None:
    """The source has the same blob in other chunks: its description is none of ours."""
    name = "large"
    record = next(one for one in case.records if one.kind == "blob")
    places = [(record.path, record.offset + HEADER_BYTES + at) for at in (1, 9, 60)]
    disk = flipped(case, places, random.Random(SEED))
    with (
        case.world.open(disk, catalog=case.world.copy_catalog()) as store,
        Store._open(tmp_path / "other", create=True, chunking=Chunking.choose("fixed")) as other,
    ):
        for one in case.world.ledger.artifacts:
            other.put(case.world.ledger.content(one))
        assert not store.scrub().ok
        report = store.repair(other)
        assert report.ok, report.missing
        assert store.scrub().ok
        assert read_all(case, store) == 0
        store.rebuild()
        assert read_all(case, store) == 0
        assert store.exists(case.world.ledger.ids[name])


@pytest.mark.parametrize("shard", range(SHARDS))
def test_random_flips(case: Case, shard: int) -> None:
    """Ten at a time in everyday runs, each in a record of its own: what one breaks, another must not hide."""
    rng = random.Random(f"{SEED} {shard}")
    at_once = 1 if DEEP else 10
    data = [record for record in case.records if record.kind == "data"]
    with replay(f"tests/crash/test_rot.py::test_random_flips[{shard}]"):
        for _ in range(FLIPS // SHARDS // at_once):
            hit = rng.sample(data, at_once)
            check_rot(case, [(r.path, rng.randrange(r.offset + HEADER_BYTES, r.stop)) for r in hit], rng)


def rotten(case: Case, rng: random.Random) -> ModelDisk:
    """Give the disk with damage of several kinds: payloads, a document, headers, an index."""
    places = []
    for kind, inside in (
        ("data", True),
        ("data", True),
        ("data", False),
        ("manifest page", True),
        ("outboard page", True),
        ("blob", True),
        ("artifact", True),
        ("tag", True),
        ("commit", False),
        ("footer", True),
    ):
        record = rng.choice([one for one in case.records if one.kind == kind])
        first = HEADER_BYTES if inside else 0
        last = record.stop - record.offset if inside else HEADER_BYTES
        places.append((record.path, record.offset + rng.randrange(first, last)))
    return flipped(case, places, rng)


def scrub_and_repair(case: Case, disk: Disk, catalog: Path) -> None:
    """In a process of its own: find what is damaged, and bring it back."""
    copy = case.world.copy_catalog()
    try:
        with (
            case.world.open(case.world.disk.clone(), catalog=copy) as source,
            case.world.open(disk, catalog=catalog) as store,
        ):
            store.scrub()
            store.repair(source)
    finally:
        shutil.rmtree(copy.parent, ignore_errors=True)


@pytest.mark.parametrize(
    "fault", [Fault.CRASH_BEFORE, Fault.CRASH_AFTER, Fault.CRASH_MIDWAY, Fault.EIO, Fault.ENOSPC]
)
def test_each_step_of_scrub_and_repair(case: Case, fault: Fault) -> None:
    rng = random.Random(f"{SEED} {fault}")
    base = rotten(case, rng)
    recorder = FaultyDisk(base.clone())
    scrub_and_repair(case, recorder, case.world.copy_catalog())
    sites = [site for site in recorder.sites if site.can(fault)]
    assert len(sites) > 10
    test = f"tests/crash/test_rot.py::test_each_step_of_scrub_and_repair[{fault}]"
    for site, rng in some_of(sites, 4, test):
        with replay(test, site=site.number):
            disk, catalog = base.clone(), case.world.copy_catalog()
            faulty = FaultyDisk(disk, fault, numbered(site, recorder.sites), like=site)
            with suppress(SimulatedCrash):
                attempt(lambda d=faulty, c=catalog: scrub_and_repair(case, d, c))  # type: ignore[misc]
            faulty.crash()
            again = case.world.no_catalog() if rng.random() < 0.4 else copied(case, catalog)
            states = [disk, *disk.crash_states(rng, 1)]
            try:
                for state in states:
                    place = copied(case, again)
                    scrub_and_repair(case, state, place)
                    with case.world.open(state, catalog=place) as store:
                        assert store.scrub().ok
                        assert list(log_core(store).catalog.dump()) == case.facts, f"{site}: not what it was"
                        assert not store.rebuild().problems
                        assert list(log_core(store).catalog.dump()) == case.facts, (
                            f"{site}: a rebuild forgets"
                        )
            except BaseException as error:
                error.add_note(f"at {site}")
                raise
            assert faulty.struck, f"{site} never came"


def copied(case: Case, catalog: Path) -> Path:
    """Copy a catalog as it lies, as a crash would leave it."""
    target = case.world.no_catalog()
    for suffix in ("", "-wal"):
        with suppress(FileNotFoundError):
            shutil.copyfile(f"{catalog}{suffix}", f"{target}{suffix}")
    return target


def test_files_repair_as_well_as_stores(case: Case, tmp_path: Path) -> None:
    rng = random.Random(SEED)
    ledger = case.world.ledger
    for name in ledger.artifacts:
        (tmp_path / name).write_bytes(ledger.content(name))
    (tmp_path / "bare").write_bytes(ledger.content("bare"))
    (tmp_path / "many-0").write_bytes(ledger.content("many-0"))
    data = [record for record in case.records if record.kind in ("data", "outboard page", "manifest page")]
    hit = rng.sample(data, 20)
    disk = flipped(case, [(r.path, rng.randrange(r.offset + HEADER_BYTES, r.stop)) for r in hit], rng)
    with case.world.open(disk, catalog=case.world.copy_catalog()) as store:
        assert not store.scrub().ok
        report = store.repair(tmp_path)
        assert report.ok, report.missing
        assert {one.source for one in report.repaired} <= {str(tmp_path), "computed"}
        assert store.scrub().ok
        assert list(log_core(store).catalog.dump()) == case.facts
        store.rebuild()
        assert list(log_core(store).catalog.dump()) == case.facts


def test_a_segment_that_is_gone_or_cut(case: Case) -> None:
    segments = sorted(path for path in case.files if path.endswith(".seg"))
    for number, path in enumerate(segments):
        disk = case.world.disk.clone()
        if number % 2:
            disk.overwrite(path, case.files[path][: len(case.files[path]) // 2])
        else:
            disk.unlink(path)
        copy = case.world.copy_catalog()
        with (
            case.world.open(disk, catalog=case.world.copy_catalog()) as store,
            case.world.open(case.world.disk.clone(), catalog=copy) as source,
        ):
            assert not store.scrub().ok
            assert not store.health().ok
            report = store.repair(source)
            assert report.ok, report.missing
            assert store.scrub().ok
            assert list(log_core(store).catalog.dump()) == case.facts
            assert store.health().ok, store.health().ailments
            assert not store.rebuild().problems
            assert list(log_core(store).catalog.dump()) == case.facts


def test_what_no_source_has_stays_until_it_is_given_up(case: Case) -> None:
    rng = random.Random(SEED)
    record = next(r for r in case.records if r.kind == "data" and r.stop - r.offset > 2_000)
    disk = flipped(case, [(record.path, record.offset + 100), (record.path, record.offset + 300)], rng)
    with case.world.open(disk, catalog=case.world.copy_catalog()) as store:
        store.scrub()
        before = store.repair()
        assert not before.ok
        assert before.missing[0].offset_bytes == record.offset
        assert not store.health().ok
        store.rebuild()
        assert store.stats().quarantined == 1  # a rebuild forgets no quarantine
        assert not store.repair(give_up=True).ok
        assert store.stats().quarantined == 0
        store.rebuild()
        assert store.stats().quarantined == 0
