"""Torn tails at every byte, and flipped bits in every header byte of every kind of record."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest

from holdfast.errors import HoldfastError
from holdfast.testing.checks import check_store
from holdfast.wire.record import Kind
from tests.crash.world import (
    DEEP,
    ROOT,
    SEED,
    FaultyDisk,
    World,
    bury,
    crash_after,
    figure,
    fill,
    new_world,
    piece,
    replay,
)

HEADER_BYTES = 64
KINDS = {
    0x81: "data",
    0x02: "outboard page",
    0x83: "manifest page",
    0x84: "blob",
    0x85: "artifact",
    0x86: "tag",
    0x87: "tombstone",
    0x8C: "commit",
    0x8D: "close",
    0x8E: "footer",
}
CARE_KINDS = {0x88: "quarantine", 0x89: "repair", 0x0A: "upload", 0x0F: "retired", 0x10: "times"}
"""Kinds that only care, collection and uploads write; `records` gives them as numbers."""


class Record(NamedTuple):
    path: str
    kind: str
    offset: int
    stop: int


def records(files: dict[str, bytes]) -> Iterator[Record]:
    """Walk the records of segments by the letter of the format, without the code under test."""
    for path, data in sorted(files.items()):
        at = HEADER_BYTES
        while path.endswith(".seg") and data[at : at + 4] == b"HFrc":
            kind = data[at + 4]
            (stored,) = struct.unpack_from("<I", data, at + 16)
            name = "end" if kind == 0x8E and data[at + 5] & 4 else KINDS.get(kind, f"{kind:#x}")
            yield Record(path, name, at, at + HEADER_BYTES + stored)
            at += HEADER_BYTES + stored


# --- torn tails


class Torn(NamedTuple):
    """A world whose last group, of `before` to `after` bytes in `path`, nobody may have been told of."""

    world: World
    path: str
    before: int
    content: bytes


def torn(world: World, size_bytes: int, *, older: bool = False) -> Torn:
    """Leave a tail whose end nobody was told of; `older`: another process has closed a newer segment before that."""
    if older:
        return _torn_older(world, size_bytes)
    fill(world, 2, 2_000)
    crash_after(world, lambda store: world.ledger.put(store, piece("kept", 300)))
    stale = world.copy_catalog()
    lengths = {path: len(data) for path, data in world.disk.files(ROOT).items()}
    last = piece("last", size_bytes)
    crash_after(world, lambda store: world.ledger.put(store, last))
    world.catalog = stale
    world.ledger.forget("last")
    path = max(path for path in world.disk.files(ROOT) if path.endswith(".seg"))
    return Torn(world, path, lengths.get(path, HEADER_BYTES), world.disk.files(ROOT)[path])


def _torn_older(world: World, size_bytes: int) -> Torn:
    fill(world, 2, 2_000)
    disk = FaultyDisk(world.disk)
    store = world.open(disk)
    world.ledger.put(store, piece("kept", 300))
    with world.open() as other:
        world.ledger.put(other, piece("newer", 900))
    stale = world.copy_catalog()
    before = world.disk.files(ROOT)
    world.ledger.put(store, piece("last", size_bytes))
    disk.crash()
    bury(store)
    world.catalog = stale
    world.ledger.forget("last")
    after = world.disk.files(ROOT)
    (path,) = [path for path in before if path.endswith(".seg") and before[path] != after[path]]
    assert path < max(path for path in after if path.endswith(".seg"))
    return Torn(world, path, len(before[path]), after[path])


@pytest.mark.parametrize("part", range(4))
@pytest.mark.parametrize(("size_bytes", "stride"), [(1, 1), (200, 1), (1_200, 1), (30_000, 701)])
def test_a_tail_cut_at_every_byte(size_bytes: int, stride: int, part: int) -> None:
    """Every byte for three sizes; for a large group, which takes half an hour, only in deep runs."""
    test = f"test_a_tail_cut_at_every_byte[{size_bytes}-{stride}-{part}]"
    with new_world() as world, replay(f"tests/crash/test_damage.py::{test}"):
        case = torn(world, size_bytes)
        cuts = range(case.before, len(case.content) + 1, 1 if DEEP else stride)
        for cut in cuts[part::4]:
            _check_tail(case, case.content[:cut], cut)


@pytest.mark.parametrize(("size_bytes", "stride"), [(1, 1), (200, 1), (1_200, 5), (30_000, 1_501)])
def test_the_tail_of_an_older_segment_cut_at_every_byte(size_bytes: int, stride: int) -> None:
    """Its writer died; another one has closed a newer segment before. Every byte of large ones in deep runs."""
    test = f"test_the_tail_of_an_older_segment_cut_at_every_byte[{size_bytes}-{stride}]"
    with new_world() as world, replay(f"tests/crash/test_damage.py::{test}"):
        case = torn(world, size_bytes, older=True)
        for cut in range(case.before, len(case.content) + 1, 1 if DEEP else stride):
            _check_tail(case, case.content[:cut], cut)


@pytest.mark.parametrize("older", [False, True])
@pytest.mark.parametrize("fill_byte", [b"\0", None])
@pytest.mark.parametrize("size_bytes", [1, 1_500, 30_000])
def test_a_hole_or_garbage_in_the_tail(size_bytes: int, fill_byte: bytes | None, older: bool) -> None:
    rng = random.Random(SEED)
    with new_world() as world, replay("tests/crash/test_damage.py::test_a_hole_or_garbage_in_the_tail"):
        case = torn(world, size_bytes, older=older)
        for number in range(figure(25, 400)):
            start = rng.randrange(case.before, len(case.content))
            stop = rng.randrange(start + 1, len(case.content) + 1)
            filler = bytes(stop - start) if fill_byte else rng.randbytes(stop - start)
            grown = rng.randbytes(rng.choice((0, 0, 100, 5_000)))
            _check_tail(case, case.content[:start] + filler + case.content[stop:] + grown, number)


def _check_tail(case: Torn, content: bytes, number: int) -> None:
    disk = case.world.disk.clone()
    disk.overwrite(case.path, content)
    catalog = case.world.no_catalog() if number % 2 else case.world.copy_catalog()
    try:
        case.world.check(disk, catalog, usable=number % 5 == 0)
    except BaseException as error:
        error.add_note(f"the tail of {case.path}: case {number}, {len(content)} bytes from {case.before}")
        raise


# --- flipped bits


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A store with records of every kind that a put or a deletion writes, closed, some segments sealed."""
    with new_world() as world:
        with world.open() as store:
            ledger = world.ledger
            ledger.put(store, piece("small", 300))
            ledger.put(store, piece("large", 20_000))
            ledger.put(store, piece("paged", 1_300_000))
            ledger.put_many(store, [piece(f"many-{i}", 900) for i in range(3)])
            ledger.delete(store, "many-0")
            ledger.put_blobs(store, [piece("bare", 5_000)])
            ledger.refer(store, "kept", "large")
        fill(world, 2, 1_000, name="closed")
        yield world


def test_every_kind_of_record_is_there(everything: World) -> None:
    assert {record.kind for record in records(everything.disk.files(ROOT))} >= {*KINDS.values(), "end"}


@pytest.mark.parametrize("kind", [*KINDS.values(), "end", "segment"])
def test_a_flipped_bit_in_every_header_byte(everything: World, kind: str) -> None:
    rng = random.Random(f"{SEED} {kind}")
    files = everything.disk.files(ROOT)
    found = [record for record in records(files) if record.kind == kind]
    with replay(f"tests/crash/test_damage.py::test_a_flipped_bit_in_every_header_byte[{kind}]"):
        for byte in range(HEADER_BYTES):
            if kind == "segment":
                path = rng.choice(sorted(path for path in files if path.endswith(".seg")))
                place = byte
            else:
                record = rng.choice(found)
                path, place = record.path, record.offset + byte
            _flip(everything, files, path, place, rng)


def test_flipped_bits_anywhere(everything: World) -> None:
    rng = random.Random(SEED)
    files = everything.disk.files(ROOT)
    segments = sorted(path for path in files if path.endswith(".seg"))
    with replay("tests/crash/test_damage.py::test_flipped_bits_anywhere"):
        for _ in range(figure(60, 10_000)):
            path = rng.choice(segments)
            _flip(everything, files, path, rng.randrange(len(files[path])), rng)


@pytest.fixture(scope="module")
def cared_for() -> Iterator[World]:
    """A closed store that was collected, compacted and repaired, with an upload that was broken off."""
    with new_world() as world:
        ledger = world.ledger
        for i in range(12):
            fill(world, 1, 9_000 + i, name=f"old-{i}")
        with world.open() as store:
            ledger.put(store, piece("large", 40_000))
            for i in range(0, 12, 2):
                ledger.delete(store, f"old-{i}-0")
            ledger.collect(store)
            store.compact()
            writer = store.writer("upload", resumable=True)
            writer.write(bytes(50_000))
            writer.suspend()
        sound, catalog = world.disk.clone(), world.copy_catalog()
        files = world.disk.files(ROOT)
        hit = [record for record in records(files) if record.kind == "data"][-3]
        damaged = bytearray(files[hit.path])
        damaged[hit.stop - 1] ^= 1
        world.disk.overwrite(hit.path, bytes(damaged))
        with world.open() as store, world.open(sound, catalog=catalog) as source:
            assert not store.scrub().ok
            assert store.repair(source).ok
        yield world


def test_every_kind_is_flipped_somewhere(everything: World, cared_for: World) -> None:
    """A new kind belongs into one of the two stores; partial checkpoints nobody writes, intended tags no log has."""
    kinds = {int(kind) for kind in Kind} - {int(Kind.PARTIAL), int(Kind.INTENDED_TAG)}
    assert kinds == {*KINDS, *CARE_KINDS}
    assert {one.kind for one in records(cared_for.disk.files(ROOT))} >= {f"{kind:#x}" for kind in CARE_KINDS}


@pytest.mark.parametrize("kind", CARE_KINDS, ids=CARE_KINDS.get)
def test_a_flipped_bit_in_every_header_byte_of_what_care_writes(cared_for: World, kind: int) -> None:
    rng = random.Random(f"{SEED} {kind}")
    files = cared_for.disk.files(ROOT)
    found = [record for record in records(files) if record.kind == f"{kind:#x}"]
    test = f"test_a_flipped_bit_in_every_header_byte_of_what_care_writes[{CARE_KINDS[kind]}]"
    with replay(f"tests/crash/test_damage.py::{test}"):
        for byte in range(HEADER_BYTES):
            record = rng.choice(found)
            _flip(cared_for, files, record.path, record.offset + byte, rng)
        for record in found:
            for place in range(record.offset + HEADER_BYTES, record.stop, 7):
                _flip(cared_for, files, record.path, place, rng)


def _flip(world: World, files: dict[str, bytes], path: str, place: int, rng: random.Random) -> None:
    damaged = bytearray(files[path])
    damaged[place] ^= 1 << rng.randrange(8)
    disk = world.disk.clone()
    disk.overwrite(path, bytes(damaged))
    catalog = world.no_catalog() if rng.random() < 0.5 else world.copy_catalog()
    try:
        world.check(disk, catalog, damaged=True, usable=False)
    except BaseException as error:
        error.add_note(f"a bit of byte {place} of {path} was flipped; catalog kept: {catalog.exists()}")
        raise


def test_flipped_bits_in_the_store_file(everything: World) -> None:
    path = f"{ROOT}/store.json"
    content = everything.disk.files(ROOT)[path]
    for place in range(len(content)):
        damaged = bytearray(content)
        damaged[place] ^= 1 << place % 8
        disk = everything.disk.clone()
        disk.overwrite(path, bytes(damaged))
        try:
            with everything.open(disk, catalog=everything.copy_catalog()) as store:
                assert store.info(everything.ledger.ids["small"]).size_bytes == 300
        except HoldfastError as error:
            if "path" not in error.evidence:
                raise


def test_a_damaged_catalog_is_built_again(everything: World, tmp_path: Path) -> None:
    rng = random.Random(SEED)
    content = everything.copy_catalog().read_bytes()
    with replay("tests/crash/test_damage.py::test_a_damaged_catalog_is_built_again"):
        for number in range(figure(30, 1000)):
            damaged = bytearray(content)
            for _ in range(rng.choice((1, 20))):
                place = rng.randrange(min(len(damaged), rng.choice((100, 4096, len(damaged)))))
                damaged[place] ^= 1 << rng.randrange(8)
            if number % 4 == 0:
                del damaged[rng.randrange(len(damaged)) :]
            catalog = everything.no_catalog()
            catalog.write_bytes(damaged)
            disk = everything.disk.clone()
            check_store(partial(everything.open, disk, catalog=catalog), everything.ledger, dump=None)
