"""A store against a dictionary: whatever is called in whatever order, and whoever dies meanwhile.

One or two processes work on one store on a model disk. They are closed, killed between calls and in the middle of
them, lose their catalog, or all of them lose power; the clock jumps. The dictionary says what must be there. Only of
a call that was cut off nobody knows whether it happened: the store is asked once, and held to its answer from then on.
"""

from __future__ import annotations

import os
import random
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from holdfast import _native, types
from holdfast.backend.log.layout import SEGMENTS
from holdfast.errors import (
    ArtifactNotFound,
    BlobNotFound,
    Conflict,
    HoldfastError,
    IntegrityError,
    NotFound,
    TagNotFound,
)
from holdfast.log_core import LEAP
from holdfast.ranges import ChunkRanges
from holdfast.store import Store
from holdfast.testing.checks import dump_catalog
from holdfast.testing.faults import Fault, FaultyDisk, SimulatedCrash
from holdfast.testing.inside import log_core
from holdfast.testing.streams import Sender
from holdfast.types import Hash, PutItem
from tests.crash.world import DEEP, ROOT, World, bury, figure, replay

QUICK = "/dev/shm" if os.path.isdir("/dev/shm") else None
SIZES = st.sampled_from((1, 200, 5_000, 16_384, 16_385, 30_000, 70_000))
CRASHES = (Fault.CRASH_BEFORE, Fault.CRASH_AFTER, Fault.CRASH_MIDWAY)
PICK = st.integers(0, 1 << 30)
BLOCK_LEAVES = 16
START_NS = 1_800_000_000 * 10**9
pytestmark = pytest.mark.timeout(0 if DEEP else 900)
DEATH = st.one_of(st.none(), st.none(), st.tuples(st.sampled_from(CRASHES), st.integers(1, 14)))
"""Whether who does it dies meanwhile: how, and at which of its next steps."""


Death = tuple[Fault, int] | None


class State(NamedTuple):
    """What the dictionary knows of an artifact."""

    content: bytes
    filename: str
    tags: frozenset[str]
    revision: int
    deleted: bool


class Process:
    """Somebody who has the store open."""

    def __init__(self, world: World) -> None:
        self.disk = FaultyDisk(world.disk)
        self.store: Store = world.open(self.disk)
        self.leases: list[tuple[Any, bytes]] = []


class Machine(RuleBasedStateMachine):
    """The rules; `artifacts`, `tags` and `parts` are the dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self._directory = tempfile.TemporaryDirectory(dir=QUICK)
        self.world = World(Path(self._directory.name))
        self.world.open(create=True).close()
        self.processes: list[Process] = []
        self.artifacts: dict[str, State] = {}
        self.tags: dict[str, tuple[bytes, bytes]] = {}
        self.named: dict[bytes, bytes] = {}
        """Contents that somebody once had, by hash: what a read gives, if it gives anything, is this."""
        self.parts: dict[bytes, tuple[bytes, ChunkRanges]] = {}
        """Partial blobs: what was acknowledged of them, by hash."""
        self.unsure: list[Callable[[Store], None]] = []
        self.forgotten: set[str] = set()
        """Collected for good; a rebuild may find them once more, as deleted (docs/design.md)."""
        self.has_collected = False
        self.count = 0
        self.offset_ms = 0
        self._time = pytest.MonkeyPatch()
        self._time.setattr(types, "time", SimpleNamespace(time_ns=self.tick))

    def tick(self) -> int:
        """Tell the time, a millisecond later at each call: what follows of it is the same in every run."""
        self.offset_ms += 1
        return START_NS + self.offset_ms * 1_000_000

    # --- who works

    def process(self, pick: int) -> Process:
        if not self.processes:
            self.open()
        return self.processes[pick % len(self.processes)]

    def open(self) -> Process:
        process = Process(self.world)
        self.processes.append(process)
        while self.unsure:
            self.unsure.pop(0)(process.store)
        return process

    def die(self, process: Process) -> None:
        self.processes.remove(process)
        process.disk.crash()
        bury(process.store)
        if not self.processes:
            self.world.catalog = self.world.copy_catalog()

    def attempt(
        self,
        process: Process,
        death: Death,
        work: Callable[[], Any],
        unsure: Callable[[Store], None] = lambda _: None,
    ) -> Any:
        """Work in a process that may die in the middle; then `unsure` finds out what became of it."""
        if death is not None:
            process.disk.arm(*death)
        try:
            return work()
        except SimulatedCrash:
            self.unsure.append(unsure)
            self.die(process)
            for other in self.processes[:1]:
                self.take_over(other.store)
                while self.unsure:
                    self.unsure.pop(0)(other.store)
            return None
        finally:
            process.disk.heal()

    @staticmethod
    def take_over(store: Store) -> None:
        """Bring in what the dead left whole in their segments; until somebody does, nobody knows what became of it."""
        core = log_core(store)
        with core.backend.lock():
            core.keeper.catch_up()

    def content(self, size: int, family: int) -> bytes:
        """Make new bytes; those of a family begin alike."""
        self.count += 1
        head = random.Random(family).randbytes(min(size // 2, 30_000)) if family else b""
        data = head + random.Random(1000 + self.count).randbytes(size - len(head))
        self.named[_native.blake3(data)] = data
        return data

    # --- artifacts

    @rule(
        pick=PICK,
        size=SIZES,
        family=st.integers(0, 2),
        how=st.sampled_from(("put", "writer", "file")),
        death=DEATH,
    )
    def put(self, pick: int, size: int, family: int, how: str, death: Death) -> None:
        process = self.process(pick)
        data, name = self.content(size, family), f"n{self.count}"

        def work() -> Any:
            if how == "writer":
                with process.store.writer(filename=name) as writer:
                    writer.write(data[: size // 3])
                    writer.write(data[size // 3 :])
                return writer.artifact
            source = data if how == "put" else iter([data[: size // 2], data[size // 2 :]])
            return process.store.put(source, filename=name)

        artifact = self.attempt(process, death, work, lambda store: self.look_for(store, {name: data}))
        if artifact is not None:
            self.artifacts[artifact.id] = State(data, name, frozenset(), 1, False)

    @rule(
        pick=PICK,
        sizes=st.lists(SIZES, min_size=1, max_size=5),
        tag=st.sampled_from(("", "t1", "t2")),
        death=DEATH,
    )
    def put_many(self, pick: int, sizes: list[int], tag: str, death: Death) -> None:
        process = self.process(pick)
        items = {f"n{self.count}": data for data in (self.content(size, 1) for size in sizes)}
        tags = [tag] if tag else []
        many = [PutItem(data, filename=name) for name, data in items.items()]
        put = self.attempt(
            process,
            death,
            lambda: process.store.put_many(many, tags=tags),
            lambda store: self.look_for(store, items, frozenset(tags)),
        )
        for artifact, (name, data) in zip(put or (), items.items(), strict=False):
            self.artifacts[artifact.id] = State(data, name, frozenset(tags), 1, False)

    @rule(pick=PICK, sizes=st.lists(SIZES, min_size=1, max_size=4), death=DEATH)
    def put_tree(self, pick: int, sizes: list[int], death: Death) -> None:
        process = self.process(pick)
        with tempfile.TemporaryDirectory(dir=QUICK) as directory:
            files = [self.content(size, 2) for size in sizes]
            for number, data in enumerate(files):
                Path(directory, f"{number}").write_bytes(data)
            name = f"n{self.count}-tree"
            tree = self.attempt(
                process,
                death,
                lambda: process.store.put_tree(directory, filename=name),
                lambda store: self.look_for_tree(store, name, sizes),
            )
            if tree is not None:
                self.remember_tree(process.store, tree, name, files)

    def remember_tree(self, store: Store, tree: Any, name: str, files: list[bytes]) -> None:
        content = store.read(tree.hash)
        assert content[32:] == b"".join(map(_native.blake3, files))
        self.named[tree.hash.digest] = content
        self.artifacts[tree.id] = State(content, name, frozenset(), 1, False)

    def look_for(self, store: Store, items: dict[str, bytes], tags: frozenset[str] = frozenset()) -> None:
        """Take what is there of a put that was cut off: all of it, or nothing."""
        there = {a.filename: a for a in store.find() if a.filename in items}
        assert len(there) in (0, len(items)), f"of {len(items)} that belong together {len(there)} are there"
        for name, artifact in there.items():
            self.artifacts[artifact.id] = State(items[str(name)], str(name), tags, 1, False)

    def look_for_tree(self, store: Store, name: str, sizes: list[int]) -> None:
        for tree in store.find(filename=name):
            files = [self.named[hash_] for hash_ in _split(store.read(tree.hash)[32:])]
            assert list(map(len, files)) == sizes
            self.remember_tree(store, tree, name, files)

    def some(self, pick: int, deleted: bool = False) -> str | None:
        ids = [key for key, state in self.artifacts.items() if state.deleted == deleted]
        return ids[pick % len(ids)] if ids else None

    def change(self, process: Process, death: Death, key: str, work: Callable[[], Any], new: State) -> None:
        """Change an artifact: afterwards it is `new`; if somebody dies meanwhile, that or as it was."""
        old = self.artifacts[key]

        def find_out(store: Store) -> None:
            self.artifacts[key] = new if self.is_state(store, key, new) else old

        self.artifacts[key] = new
        self.attempt(process, death, work, find_out)

    def is_state(self, store: Store, key: str, state: State) -> bool:
        try:
            found = store.info(key)
        except ArtifactNotFound:
            return state.deleted
        return not state.deleted and _changes(found.revision) == state.revision

    @rule(
        pick=PICK,
        which=PICK,
        add=st.sets(st.sampled_from(("t1", "t2", "t3"))),
        stale=st.booleans(),
        death=DEATH,
    )
    def update(self, pick: int, which: int, add: set[str], stale: bool, death: Death) -> None:
        process, key = self.process(pick), self.some(which)
        if key is None:
            return
        old = self.artifacts[key]
        if stale:
            with pytest.raises(Conflict):
                process.store.update(key, add_tags=["never"], if_revision=old.revision + 1)
            return
        self.count += 1
        new = old._replace(
            filename=f"n{self.count}", tags=(old.tags | add) - {"t1"}, revision=old.revision + 1
        )
        self.change(
            process,
            death,
            key,
            lambda: process.store.update(
                key, filename=new.filename, add_tags=add - {"t1"}, remove_tags=["t1"]
            ),
            new,
        )

    @rule(pick=PICK, which=PICK, death=DEATH)
    def delete(self, pick: int, which: int, death: Death) -> None:
        process, key = self.process(pick), self.some(which)
        if key is None:
            with pytest.raises(ArtifactNotFound):
                process.store.delete("00000000-0000-7000-8000-000000000000")
            return
        old = self.artifacts[key]
        new = old._replace(deleted=True, revision=old.revision + 1)
        self.change(process, death, key, lambda: process.store.delete(key), new)

    @rule(pick=PICK, which=PICK, death=DEATH)
    def restore(self, pick: int, which: int, death: Death) -> None:
        process, key = self.process(pick), self.some(which, deleted=True)
        if key is None:
            return
        old = self.artifacts[key]
        new = old._replace(deleted=False, revision=old.revision + 1)
        self.change(process, death, key, lambda: process.store.restore(key), new)

    # --- reading

    @rule(pick=PICK, which=PICK, start=PICK, length=PICK)
    def read(self, pick: int, which: int, start: int, length: int) -> None:
        store, key = self.process(pick).store, self.some(which)
        if key is None:
            return
        content = self.artifacts[key].content
        start %= len(content) + 1
        length %= len(content) - start + 1
        assert store.read(key, start, length) == content[start : start + length]
        with store.open(key) as file:
            file.seek(start)
            assert file.read(length) == content[start : start + length]

    @rule(pick=PICK, tag=st.sampled_from(("t1", "t2", "t3")))
    def find(self, pick: int, tag: str) -> None:
        store = self.process(pick).store
        found = {artifact.id for artifact in store.find(tag=tag)}
        assert found == {k for k, s in self.artifacts.items() if tag in s.tags and not s.deleted}
        assert store.count() == sum(not state.deleted for state in self.artifacts.values())

    # --- blobs, leases, tags, parts

    @rule(pick=PICK, size=SIZES, death=DEATH)
    def put_blob(self, pick: int, size: int, death: Death) -> None:
        process = self.process(pick)
        data = self.content(size, 1)
        lease = self.attempt(process, death, lambda: process.store.blobs.put(data))
        if lease is not None:
            process.leases.append((lease, data))

    @rule(pick=PICK, which=PICK)
    def release(self, pick: int, which: int) -> None:
        process = self.process(pick)
        if process.leases:
            lease, _ = process.leases.pop(which % len(process.leases))
            lease.release()

    @rule(pick=PICK, which=PICK, name=st.sampled_from(("a", "b", "c")), death=DEATH)
    def set_tag(self, pick: int, which: int, name: str, death: Death) -> None:
        """Name what an artifact or a lease holds."""
        process = self.process(pick)
        contents = [s.content for s in self.artifacts.values() if not s.deleted]
        contents += [data for _, data in process.leases]
        if contents:
            data = contents[which % len(contents)]
            digest = _native.blake3(data)
            self.retag(
                process, death, name, (digest, data), lambda: process.store.tags.set(name, Hash(digest))
            )

    @rule(pick=PICK, name=st.sampled_from(("a", "b", "c")), death=DEATH)
    def delete_tag(self, pick: int, name: str, death: Death) -> None:
        process = self.process(pick)
        if name in self.tags:
            self.retag(process, death, name, None, lambda: process.store.tags.delete(name))
        else:
            with pytest.raises(TagNotFound):
                process.store.tags.delete(name)

    def retag(
        self,
        process: Process,
        death: Death,
        name: str,
        new: tuple[bytes, bytes] | None,
        work: Callable[[], Any],
    ) -> None:
        old = self.tags.get(name)

        def find_out(store: Store) -> None:
            try:
                there = store.tags.get(name).hash.digest
            except TagNotFound:
                there = None
            assert there in {None if one is None else one[0] for one in (old, new)}
            keep(old if there == (None if old is None else old[0]) else new)

        def keep(value: tuple[bytes, bytes] | None) -> None:
            self.tags.pop(name, None)
            if value is not None:
                self.tags[name] = value

        keep(new)
        self.attempt(process, death, work, find_out)

    @rule(
        pick=PICK,
        size=st.sampled_from((5_000, 40_000, 70_000)),
        start=PICK,
        length=PICK,
        again=st.booleans(),
        death=DEATH,
    )
    def decode(self, pick: int, size: int, start: int, length: int, again: bool, death: Death) -> None:
        """Take in a part of a blob that came from elsewhere, or more of one."""
        process = self.process(pick)
        if again and self.parts:
            digest = sorted(self.parts)[start % len(self.parts)]
            data, have = self.parts[digest]
        else:
            data, have = self.content(size, 0), ChunkRanges.empty()
            digest = _native.blake3(data)
        leaves = -(-len(data) // 1024)
        first = start % leaves
        ranges = ChunkRanges.leaves(first, first + 1 + length % (leaves - first))
        stream = Sender(data).stream(ranges)
        info = self.attempt(process, death, lambda: process.store.blobs.decode(Hash(digest), stream, ranges))
        if info is not None:
            found = process.store.blobs.bitfield(Hash(digest))
            assert not have - found.ranges, "blocks that were here are gone"
            assert not _whole_blocks(ranges, leaves) - found.ranges, "blocks that came are not here"
            self.parts[digest] = data, found.ranges

    # --- what happens to processes and disks

    @rule()
    def open_another(self) -> None:
        if len(self.processes) < 2:
            self.open()

    @rule(pick=PICK, death=DEATH)
    def close(self, pick: int, death: Death) -> None:
        if not self.processes:
            return
        process = self.process(pick)
        self.attempt(process, death, process.store.close)
        if process in self.processes:
            self.processes.remove(process)

    @rule(pick=PICK)
    def kill(self, pick: int) -> None:
        if self.processes:
            self.die(self.process(pick))

    @rule(seed=PICK, lost=st.booleans())
    def power_cut(self, seed: int, lost: bool) -> None:
        state = self.world.disk.power_cut(random.Random(seed))
        while self.processes:
            self.die(self.processes[0])
        self.world.disk = state
        self.world.catalog = self.world.no_catalog() if lost else self.world.copy_catalog()

    @rule()
    def lose_the_catalog(self) -> None:
        """It goes, under whoever has it open."""
        for suffix in ("", "-wal", "-shm"):
            with suppress(FileNotFoundError):
                os.unlink(f"{self.world.catalog}{suffix}")

    @rule(pick=PICK, death=DEATH)
    def rebuild(self, pick: int, death: Death) -> None:
        process = self.process(pick)
        before = dump_catalog(process.store)
        report = self.attempt(process, death, process.store.rebuild)
        if report is not None:
            assert not report.damaged, report.problems
            self.same_facts(before, dump_catalog(process.store))

    @rule(offset_ms=st.integers(-(10**9), 10**9))
    def move_the_clock(self, offset_ms: int) -> None:
        self.offset_ms = offset_ms

    @rule(pick=PICK, death=DEATH)
    def collect(self, pick: int, death: Death) -> None:
        """What is deleted may go for good, and partial blobs whose time is over; nothing else does."""
        process = self.process(pick)
        self.has_collected = True
        self.attempt(process, death, lambda: process.store.gc(min_age_seconds=0))
        if self.processes:
            self.look_what_is_left(self.processes[0].store)
        else:
            self.unsure.append(self.look_what_is_left)

    def same_facts(self, before: list[str], after: list[str]) -> None:
        """A rebuild gives the same facts; once something was collected, garbage as well."""
        if self.has_collected:
            assert set(map(_timeless, before)) <= set(map(_timeless, after))
        else:
            assert after == before

    def look_what_is_left(self, store: Store) -> None:
        left = {artifact.id for artifact in store.find(deleted=True)}
        for key, state in list(self.artifacts.items()):
            if state.deleted and key not in left:
                del self.artifacts[key]
                self.forgotten.add(key)
        for digest in list(self.parts):
            if store.blobs.status(Hash(digest)) == "missing":
                del self.parts[digest]

    @rule(pick=PICK, death=DEATH)
    def compact(self, pick: int, death: Death) -> None:
        process = self.process(pick)
        self.attempt(process, death, process.store.compact)

    @rule(seed=PICK)
    def rot(self, seed: int) -> None:
        """Flip a bit in a copy of the store: what is read of it is right or refused, and scrub knows.

        Then the copy is repaired from the store, and the work goes on with it.
        """
        rng = random.Random(seed)
        while self.processes:
            self.die(self.processes[0])
        self.open().store.close()
        self.processes.clear()
        disk = self.world.disk.clone()
        segments = {p: d for p, d in disk.files(f"{ROOT}/{SEGMENTS}").items() if d}
        if not segments:
            return
        path = rng.choice(sorted(segments))
        damaged = bytearray(segments[path])
        damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
        disk.overwrite(path, bytes(damaged))
        catalog = self.world.copy_catalog()
        with (
            self.world.open(disk, catalog=catalog) as store,
            self.world.open(self.world.disk.clone(), catalog=self.world.copy_catalog()) as sound,
        ):
            refused = sum(not _reads(store, key, state) for key, state in self.artifacts.items())
            assert not refused or not store.scrub().ok
            store.scrub()
            report = store.repair([sound])
            assert report.ok, report.missing
            again = store.scrub()
            assert again.ok, again.problems
            self.check(store)
        self.world.disk, self.world.catalog = disk, catalog

    # --- what always holds

    @invariant()
    def nobody_is_lost(self) -> None:
        assert len(self.processes) <= 3

    def check(self, store: Store) -> None:
        """Hold all of the store against the dictionary."""
        live = {a.id: a for a in store.find()}
        assert set(live) == {k for k, s in self.artifacts.items() if not s.deleted}
        deleted = {a.id for a in store.find(deleted=True)}
        known = {k for k, s in self.artifacts.items() if s.deleted}
        assert known <= deleted <= known | self.forgotten
        for key, artifact in live.items():
            state = self.artifacts[key]
            assert (artifact.filename, frozenset(artifact.tags)) == (state.filename, state.tags)
            assert _changes(artifact.revision) == state.revision
            assert store.read(key) == state.content
        assert {tag.name: tag.hash.digest for tag in store.tags.list()} == {
            name: digest for name, (digest, _) in self.tags.items()
        }
        for digest, data in self.tags.values():
            assert store.read(Hash(digest)) == data
        for digest, (data, have) in self.parts.items():
            assert not have - store.blobs.bitfield(Hash(digest)).ranges
            for first, last in have.byte_ranges(len(data)):
                assert store.blobs.read(Hash(digest), first, last - first) == data[first:last]
            with suppress(NotFound):
                assert store.read(Hash(digest)) == data
        for process in self.processes:
            for _, data in process.leases:
                assert store.read(Hash(_native.blake3(data))) == data
        report = store.scrub()
        assert report.ok, report.problems

    def teardown(self) -> None:
        try:
            for process in self.processes:
                process.disk.heal()
            store = self.process(0).store
            self.check(store)
            before = dump_catalog(store)
            assert not store.rebuild().damaged
            self.same_facts(before, dump_catalog(store))
            self.check(store)
        finally:
            self._time.undo()
            for process in self.processes:
                with suppress(HoldfastError):
                    process.store.close()
            self._directory.cleanup()


def _changes(revision: int) -> int:
    """How often a name changed: each time by one, or, where damage may hide later states of it, by a leap."""
    return revision // LEAP + revision % LEAP


def _split(hashes: bytes) -> Iterator[bytes]:
    for start in range(0, len(hashes), 32):
        yield hashes[start : start + 32]


def _whole_blocks(ranges: ChunkRanges, leaves: int) -> ChunkRanges:
    """Give those of the ranges that fill blocks: of a block in part nothing is kept."""
    whole = ChunkRanges.empty()
    for first in range(0, leaves, BLOCK_LEAVES):
        block = ChunkRanges.leaves(first, min(first + BLOCK_LEAVES, leaves))
        if block <= ranges:
            whole |= block
    return whole


def _timeless(fact: str) -> str:
    """A fact without the time at which a blob came: one that was garbage once has two."""
    return fact.rsplit("\t", 1)[0] if fact.startswith("blob\t") else fact


def _reads(store: Store, key: str, state: State) -> bool:
    """Whether an artifact reads; wrong bytes are an error, damage is none."""
    if state.deleted:
        return True
    try:
        assert store.read(key) == state.content
    except (IntegrityError, BlobNotFound, ArtifactNotFound):
        return False
    return True


class TestStoreMachine(Machine.TestCase):  # type: ignore[misc, valid-type]
    """Run the machine; what follows of the examples is the same in every run of as many."""

    def runTest(self) -> None:
        with replay("tests/property/test_store_machine.py::TestStoreMachine::runTest"):
            super().runTest()


TestStoreMachine.settings = settings(
    max_examples=figure(300, 10_000),
    stateful_step_count=40 if DEEP else 22,
    deadline=None,
    derandomize=True,
    report_multiple_bugs=False,
    suppress_health_check=list(HealthCheck),
)
