"""A store in a bucket against a dictionary: several machines, in any order, dying and failing at any request.

Up to three machines work on one bucket, each with a catalog of its own that is behind until it is refreshed. They are
closed, killed between calls and in the middle of them; a request fails, or its reply is lost, or what it brings is
wrong; catalogs are lost; the machines' clock jumps, the bucket's own goes on. The dictionary says what must be there.
What became of a call that was cut off is looked up in the bucket itself; the store is held to that from then on.
"""

from __future__ import annotations

import os
import random
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from holdfast import _native, types
from holdfast.backend.objects import backend
from holdfast.backend.objects.bucket import Meta
from holdfast.backend.objects.layout import COLLECTOR_KEY, IDENTITY_KEY
from holdfast.errors import (
    ArtifactNotFound,
    BlobNotFound,
    Conflict,
    CorruptObject,
    FormatError,
    HoldfastError,
    IntegrityError,
    Locked,
    NotFound,
    TagNotFound,
    UploadNotFound,
)
from holdfast.ranges import ChunkRanges
from holdfast.store import Store
from holdfast.testing.checks import dump_catalog
from holdfast.testing.faults import SimulatedCrash
from holdfast.testing.faulty_bucket import BucketFault, FaultyBucket
from holdfast.testing.plain_bucket import PlainBucket
from holdfast.testing.streams import Sender
from holdfast.types import BytesLike, Hash, PutItem
from tests.crash.world import DEEP, figure, replay
from tests.objects.world import QUICK, bury, open_objects

SIZES = st.sampled_from((1, 200, 5_000, 16_384, 16_385, 30_000))
PICK = st.integers(0, 1 << 30)
START_NS = 1_800_000_000 * 10**9
DAY_MS = 86_400_000
CRASHES = (BucketFault.CRASH_BEFORE, BucketFault.CRASH_AFTER)
FAILURES = (BucketFault.BEFORE, BucketFault.AFTER, BucketFault.TRUNCATED, BucketFault.FLIPPED)
MISHAP = st.one_of(st.none(), st.none(), st.tuples(st.sampled_from(CRASHES + FAILURES), st.integers(1, 12)))
"""What befalls who does it meanwhile: and at which of its next requests."""
pytestmark = pytest.mark.timeout(0 if DEEP else 900)

Mishap = tuple[BucketFault, int] | None


class State(NamedTuple):
    """What the dictionary knows of an artifact."""

    content: bytes
    filename: str
    tags: frozenset[str]
    revision: int
    deleted_ms: int | None = None
    """When, by the bucket's clock."""


class Part(NamedTuple):
    """What was acknowledged of a blob that comes as a stream, and when it was gone on with last."""

    content: bytes
    have: ChunkRanges
    time_ms: int

    @property
    def is_whole(self) -> bool:
        return self.have == ChunkRanges.all().clip(len(self.content))


class Begun(NamedTuple):
    """An upload: what it is to be, how much of that is durable, and since when."""

    content: bytes
    offset: int
    filename: str
    time_ms: int


class _Bucket(PlainBucket):
    """Has a clock of its own, which only goes on."""

    time_ms = START_NS // 1_000_000

    def _put(self, key: str, data: BytesLike) -> Meta:
        self.time_ms += 1
        meta = super()._put(key, bytes(data))._replace(modified_ms=self.time_ms)
        self.objects[key] = (self.objects[key][0], meta)
        return meta

    def copied(self) -> _Bucket:
        other = super().copied()
        other.time_ms = self.time_ms
        return other


class Machine:
    """Somebody who has the store open, with a catalog of its own."""

    def __init__(self, bucket: _Bucket, catalog: Path) -> None:
        self.bucket = FaultyBucket(bucket)
        self.catalog = catalog
        self.leases: list[tuple[Any, bytes, int]] = []
        self.store: Store = open_objects(self.bucket, catalog)


class BucketMachine(RuleBasedStateMachine):
    """The rules; `artifacts`, `tags`, `parts` and `uploads` are the dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self._directory = tempfile.TemporaryDirectory(dir=QUICK)
        self._numbers = count(1)
        self.bucket = _Bucket()
        self.machines: list[Machine] = []
        self.free: list[Path] = []
        """Catalogs of machines that are closed or dead."""
        self.artifacts: dict[str, State] = {}
        self.tags: dict[str, bytes] = {}
        self.contents: dict[bytes, bytes] = {}
        self.parts: dict[bytes, Part] = {}
        self.put_whole: set[bytes] = set()
        """Of these all bytes were put at once as well: parts of them count for nothing from then on."""
        self.uploads: dict[str, Begun] = {}
        self.ghosts: dict[str, tuple[bytes, frozenset[str]]] = {}
        """Puts that were cut off and are not there: one may come back when somebody else puts its bytes."""
        self.offset_ms = 0
        self._time = pytest.MonkeyPatch()
        self._time.setattr(types, "time", SimpleNamespace(time_ns=self.tick))
        # requests come in the same order in every run
        self._time.setattr(backend, "ThreadPoolExecutor", lambda *_, **__: ThreadPoolExecutor(1))
        open_objects(self.bucket, None, create=True).close()

    def tick(self) -> int:
        """Tell the machines' time, a millisecond later at each call."""
        self.offset_ms += 1
        return START_NS + self.offset_ms * 1_000_000

    def new_catalog(self) -> Path:
        place = Path(self._directory.name, str(next(self._numbers)))
        place.mkdir()
        return place / "catalog.db"

    # --- who works

    def machine(self, pick: int) -> Machine:
        if not self.machines:
            self.open()
        return self.machines[pick % len(self.machines)]

    def open(self) -> Machine:
        machine = Machine(self.bucket, self.free.pop() if self.free else self.new_catalog())
        self.machines.append(machine)
        return machine

    def die(self, machine: Machine) -> None:
        self.machines.remove(machine)
        machine.bucket.crashed = True
        bury(machine.store)
        self.free.append(machine.catalog)

    def attempt(
        self, machine: Machine, mishap: Mishap, work: Callable[[], Any], unsure: Callable[[Store], None]
    ) -> Any:
        """Work; where something happens, `unsure` finds out in the bucket itself what became of it."""
        if mishap is not None:
            machine.bucket.arm(*mishap)
        try:
            return self.up_to_date(machine, work)
        except SimulatedCrash:
            self.die(machine)
        except HoldfastError:
            if mishap is None or machine.bucket.hit is None:
                raise
        finally:
            machine.bucket.heal()
        with self.look() as store:
            unsure(store)
        return None

    def up_to_date(self, machine: Machine, work: Callable[[], Any]) -> Any:
        """Do it; where that goes by what others have changed meanwhile, learn of it and do it then."""
        try:
            return work()
        except (NotFound, Conflict) as error:
            if isinstance(error, Locked):
                raise
            machine.store.refresh()
            return work()

    def look(self) -> Store:
        """Open the store as nobody has it: by what the bucket says."""
        store = open_objects(self.bucket, None)
        self.adopt(store)
        return store

    def adopt(self, store: Store) -> None:
        """Take what came back, of what was cut off."""
        if self.ghosts:
            for artifact in store.find():
                data = self.ghosts.pop(artifact.filename or "", None)
                if data is not None:
                    self.artifacts[artifact.id] = State(data[0], str(artifact.filename), data[1], 1)

    def content(self, size: int, family: int = 0) -> bytes:
        """Make new bytes; those of a family begin alike."""
        number = next(self._numbers)
        head = random.Random(family).randbytes(size // 2) if family else b""
        data = head + random.Random(1000 + number).randbytes(size - len(head))
        return self.remember(data)

    def remember(self, data: bytes) -> bytes:
        self.contents[_native.blake3(data)] = data
        return data

    def name(self) -> str:
        return f"n{next(self._numbers)}"

    # --- artifacts

    @rule(
        pick=PICK,
        size=SIZES,
        again=st.booleans(),
        how=st.sampled_from(("put", "writer", "file")),
        mishap=MISHAP,
    )
    def put(self, pick: int, size: int, again: bool, how: str, mishap: Mishap) -> None:
        """Put new bytes, or some that are or were there."""
        machine, name = self.machine(pick), self.name()
        known = sorted(self.contents)
        data = self.contents[known[size % len(known)]] if again and known else self.content(size)
        self.put_whole.add(_native.blake3(data))

        def work() -> Any:
            if how == "writer":
                with machine.store.writer(filename=name) as writer:
                    writer.write(data[: len(data) // 3])
                    writer.write(data[len(data) // 3 :])
                return writer.artifact
            source = data if how == "put" else iter([data[: len(data) // 2], data[len(data) // 2 :]])
            return machine.store.put(source, filename=name)

        artifact = self.attempt(machine, mishap, work, self.looking_for({name: data}))
        if artifact is not None:
            self.artifacts[artifact.id] = State(data, name, frozenset(), 1)

    @rule(
        pick=PICK,
        sizes=st.lists(SIZES, min_size=1, max_size=4),
        tag=st.sampled_from(("", "t1")),
        mishap=MISHAP,
    )
    def put_many(self, pick: int, sizes: list[int], tag: str, mishap: Mishap) -> None:
        machine = self.machine(pick)
        items = {self.name(): self.content(size, 1) for size in sizes}
        tags = [tag] if tag else []
        many = [PutItem(data, filename=name) for name, data in items.items()]
        put = self.attempt(
            machine,
            mishap,
            lambda: machine.store.put_many(many, tags=tags),
            self.looking_for(items, frozenset(tags)),
        )
        for artifact, (name, data) in zip(put or (), items.items(), strict=False):
            self.artifacts[artifact.id] = State(data, name, frozenset(tags), 1)

    def looking_for(
        self, items: dict[str, bytes], tags: frozenset[str] = frozenset()
    ) -> Callable[[Store], None]:
        """Take what is there of a put that was cut off: all of it, or nothing."""

        def look(store: Store) -> None:
            there = {str(a.filename): a for a in store.find() if a.filename in items}
            assert len(there) in (0, len(items)), (
                f"of {len(items)} that belong together {len(there)} are there"
            )
            for name, artifact in there.items():
                self.artifacts[artifact.id] = State(items[name], name, tags, 1)
            if not there:
                self.ghosts.update((name, (data, tags)) for name, data in items.items())

        return look

    def some(self, pick: int, deleted: bool = False) -> str | None:
        ids = [key for key, state in self.artifacts.items() if (state.deleted_ms is not None) == deleted]
        return ids[pick % len(ids)] if ids else None

    def change(self, machine: Machine, mishap: Mishap, key: str, work: Callable[[], Any], new: State) -> None:
        """Change an artifact: afterwards it is `new`; if something happens meanwhile, that or as it was."""
        old = self.artifacts[key]

        def find_out(store: Store) -> None:
            try:
                found = store.info(key)
                is_new = new.deleted_ms is None and found.revision == new.revision
            except ArtifactNotFound:
                is_new = new.deleted_ms is not None
            self.artifacts[key] = new if is_new else old

        self.artifacts[key] = new
        self.attempt(machine, mishap, work, find_out)

    @rule(
        pick=PICK, which=PICK, add=st.sets(st.sampled_from(("t1", "t2"))), stale=st.booleans(), mishap=MISHAP
    )
    def update(self, pick: int, which: int, add: set[str], stale: bool, mishap: Mishap) -> None:
        machine, key = self.machine(pick), self.some(which)
        if key is None:
            return
        old = self.artifacts[key]
        if stale:
            with pytest.raises((Conflict, ArtifactNotFound)):
                machine.store.update(key, add_tags=["never"], if_revision=old.revision + 1)
            return
        new = old._replace(filename=self.name(), tags=(old.tags | add) - {"t1"}, revision=old.revision + 1)
        self.change(
            machine,
            mishap,
            key,
            lambda: machine.store.update(
                key, filename=new.filename, add_tags=add - {"t1"}, remove_tags=["t1"]
            ),
            new,
        )

    @rule(pick=PICK, which=PICK, mishap=MISHAP)
    def delete(self, pick: int, which: int, mishap: Mishap) -> None:
        machine, key = self.machine(pick), self.some(which)
        if key is None:
            with pytest.raises(ArtifactNotFound):
                machine.store.delete("00000000-0000-7000-8000-000000000000")
            return
        old = self.artifacts[key]
        new = old._replace(deleted_ms=self.bucket.time_ms, revision=old.revision + 1)
        self.change(machine, mishap, key, lambda: machine.store.delete(key), new)

    @rule(pick=PICK, which=PICK, mishap=MISHAP)
    def restore(self, pick: int, which: int, mishap: Mishap) -> None:
        machine, key = self.machine(pick), self.some(which, deleted=True)
        if key is None:
            return
        old = self.artifacts[key]
        new = old._replace(deleted_ms=None, revision=old.revision + 1)
        self.change(machine, mishap, key, lambda: machine.store.restore(key), new)

    # --- reading

    @rule(pick=PICK, which=PICK, start=PICK, length=PICK, mishap=MISHAP)
    def read(self, pick: int, which: int, start: int, length: int, mishap: Mishap) -> None:
        machine, key = self.machine(pick), self.some(which)
        if key is None:
            return
        content = self.artifacts[key].content
        start %= len(content) + 1
        length %= len(content) - start + 1

        def work() -> None:
            assert machine.store.read(key, start, length) == content[start : start + length]
            with machine.store.open(key) as file:
                file.seek(start)
                assert file.read(length) == content[start : start + length]

        self.attempt(machine, mishap, work, lambda _: None)

    @rule(pick=PICK, tag=st.sampled_from(("t1", "t2")))
    def find(self, pick: int, tag: str) -> None:
        store = self.machine(pick).store
        store.refresh()
        self.adopt(store)
        found = {artifact.id for artifact in store.find(tag=tag)}
        assert found == {k for k, s in self.artifacts.items() if tag in s.tags and s.deleted_ms is None}
        assert store.count() == sum(state.deleted_ms is None for state in self.artifacts.values())

    # --- blobs, leases, tags, parts, uploads

    @rule(pick=PICK, size=SIZES, mishap=MISHAP)
    def put_blob(self, pick: int, size: int, mishap: Mishap) -> None:
        machine, data = self.machine(pick), self.content(size, 1)
        lease = self.attempt(machine, mishap, lambda: machine.store.blobs.put(data), lambda _: None)
        if lease is not None:
            machine.leases.append((lease, data, self.bucket.time_ms))

    @rule(pick=PICK, which=PICK)
    def release(self, pick: int, which: int) -> None:
        machine = self.machine(pick)
        if machine.leases:
            machine.leases.pop(which % len(machine.leases))[0].release()

    @rule(pick=PICK, which=PICK, name=st.sampled_from(("a", "b", "c")), mishap=MISHAP)
    def set_tag(self, pick: int, which: int, name: str, mishap: Mishap) -> None:
        """Name what an artifact or a lease holds."""
        machine = self.machine(pick)
        contents = [s.content for s in self.artifacts.values() if s.deleted_ms is None]
        contents += [data for _, data, _ in machine.leases]
        if contents:
            digest = _native.blake3(contents[which % len(contents)])
            self.retag(machine, mishap, {name: digest}, lambda: machine.store.tags.set(name, Hash(digest)))

    @rule(pick=PICK, name=st.sampled_from(("a", "b", "c")), mishap=MISHAP)
    def delete_tag(self, pick: int, name: str, mishap: Mishap) -> None:
        machine = self.machine(pick)
        if name in self.tags:
            self.retag(machine, mishap, {name: None}, lambda: machine.store.tags.delete(name))
        else:
            machine.store.refresh()
            with pytest.raises(TagNotFound):
                machine.store.tags.delete(name)

    @rule(
        pick=PICK, name=st.sampled_from(("a", "b", "c")), to=st.sampled_from(("a", "b", "c")), mishap=MISHAP
    )
    def rename_tag(self, pick: int, name: str, to: str, mishap: Mishap) -> None:
        machine = self.machine(pick)
        if name in self.tags and name != to:
            new = {name: None, to: self.tags[name]}
            machine.store.refresh()  # what it has is what is renamed
            self.retag(machine, mishap, new, lambda: machine.store.tags.rename(name, to, overwrite=True))

    def retag(
        self, machine: Machine, mishap: Mishap, new: dict[str, bytes | None], work: Callable[[], Any]
    ) -> None:
        old = {name: self.tags.get(name) for name in new}

        def find_out(store: Store) -> None:
            there: dict[str, bytes | None] = dict.fromkeys(new)
            for name in new:
                with suppress(TagNotFound):
                    there[name] = store.tags.get(name).hash.digest
                assert there[name] in (old[name], new[name])
            named = {digest for digest in old.values() if digest is not None}
            kept = {digest for digest in there.values() if digest is not None}
            assert len(new) == 1 or kept & named, "a rename that was cut off left neither name"
            keep(there)

        def keep(values: dict[str, bytes | None]) -> None:
            for name, digest in values.items():
                self.tags.pop(name, None)
                if digest is not None:
                    self.tags[name] = digest

        keep(new)
        self.attempt(machine, mishap, work, find_out)

    @rule(
        pick=PICK,
        size=st.sampled_from((5_000, 40_000)),
        start=PICK,
        length=PICK,
        again=st.booleans(),
        mishap=MISHAP,
    )
    def decode(self, pick: int, size: int, start: int, length: int, again: bool, mishap: Mishap) -> None:
        """Take in a part of a blob that came from elsewhere, or more of one."""
        machine = self.machine(pick)
        if again and self.parts:
            digest = sorted(self.parts)[start % len(self.parts)]
            data, have, _ = self.parts[digest]
        else:
            data, have = self.content(size), ChunkRanges.empty()
            digest = _native.blake3(data)
        leaves = -(-len(data) // 1024)
        first = start % leaves
        ranges = ChunkRanges.leaves(first, first + 1 + length % (leaves - first))
        stream = Sender(data).stream(ranges)

        def note(store: Store) -> None:
            found = store.blobs.bitfield(Hash(digest)).ranges
            assert not have - found, "blocks that were here are gone"
            if found:  # of less than a block nothing is kept
                self.parts[digest] = Part(data, found, self.bucket.time_ms)

        info = self.attempt(
            machine, mishap, lambda: machine.store.blobs.decode(Hash(digest), stream, ranges), note
        )
        if info is not None:
            note(machine.store)

    @rule(
        pick=PICK, which=PICK, size=SIZES, end=st.sampled_from(("suspend", "commit", "abort")), mishap=MISHAP
    )
    def upload(self, pick: int, which: int, size: int, end: str, mishap: Mishap) -> None:
        """Begin an upload, or go on with one; leave it, commit it, or give it up."""
        machine = self.machine(pick)
        open_ = sorted(token for token, begun in self.uploads.items() if not self.is_over(begun))
        if open_ and which % 2:
            token = open_[which % len(open_)]
            begun = self.uploads[token]
        else:
            token, begun = "", Begun(self.content(size), 0, self.name(), self.bucket.time_ms)
        made: list[str] = [token] if token else []

        def work() -> Any:
            store = machine.store
            writer = store.writer(resume=token) if token else store.writer(begun.filename, resumable=True)
            made[:] = [writer.token]
            try:
                assert writer.offset_bytes >= begun.offset, "what was durable is gone"
                assert writer.offset_bytes <= len(begun.content)
                stop = len(begun.content) if end == "commit" else (len(begun.content) + begun.offset) // 2
                writer.write(begun.content[writer.offset_bytes : max(stop, writer.offset_bytes)])
                if end == "commit":
                    return writer.commit()
                if end == "abort":
                    writer.abort()
                else:
                    writer.suspend()
                return writer.offset_bytes
            except HoldfastError:
                with suppress(HoldfastError):
                    writer.suspend()
                raise

        def find_out(store: Store) -> None:
            """Go on with it: what is durable is there, or it has ended as it should have."""
            for one in made:
                self.uploads.pop(one, None)
                try:
                    writer = store.writer(resume=one)
                except UploadNotFound as error:
                    if self.is_over(begun):
                        self.uploads[one] = begun
                    elif error.evidence.get("state") == "committed":
                        (artifact,) = (a for a in store.find() if a.filename == begun.filename)
                        assert store.read(artifact) == begun.content
                        self.artifacts[artifact.id] = State(begun.content, begun.filename, frozenset(), 1)
                    else:
                        assert end == "abort" or not begun.offset or end == "commit"
                    continue
                assert writer.offset_bytes >= begun.offset
                offset = writer.offset_bytes
                writer.suspend()
                self.uploads[one] = begun._replace(offset=offset, time_ms=self.bucket.time_ms)

        result = self.attempt(machine, mishap, work, find_out)
        if result is None:
            return
        (token,) = made
        self.uploads.pop(token, None)
        if end == "commit":
            self.artifacts[result.id] = State(begun.content, begun.filename, frozenset(), 1)
        elif end == "suspend":
            self.uploads[token] = begun._replace(offset=result, time_ms=self.bucket.time_ms)

    def is_over(self, begun: Begun) -> bool:
        """Whether an upload may be taken for expired: a machine goes by its own clock, until something is removed."""
        now_ms = max(self.bucket.time_ms, START_NS // 1_000_000 + self.offset_ms + 1_000_000)
        return now_ms - begun.time_ms >= 7 * DAY_MS

    # --- what happens to machines and catalogs

    @rule()
    def open_another(self) -> None:
        if len(self.machines) < 3:
            self.open()

    @rule(pick=PICK)
    def close(self, pick: int) -> None:
        if self.machines:
            machine = self.machine(pick)
            machine.store.close()
            self.machines.remove(machine)
            self.free.append(machine.catalog)

    @rule(pick=PICK)
    def kill(self, pick: int) -> None:
        if self.machines:
            self.die(self.machine(pick))

    @rule(pick=PICK)
    def lose_a_catalog(self, pick: int) -> None:
        """It goes, under whoever has it open."""
        catalogs = [machine.catalog for machine in self.machines] + self.free
        if catalogs:
            for suffix in ("", "-wal", "-shm"):
                with suppress(FileNotFoundError):
                    os.unlink(f"{catalogs[pick % len(catalogs)]}{suffix}")

    @rule(pick=PICK, mishap=MISHAP)
    def refresh(self, pick: int, mishap: Mishap) -> None:
        """What a refresh brings is what a rebuild makes."""
        machine = self.machine(pick)
        report = self.attempt(machine, mishap, machine.store.refresh, lambda _: None)
        if report is not None:
            self.adopt(machine.store)
            assert not report.damaged, report.problems
            with self.look() as fresh:
                assert dump_catalog(machine.store) == dump_catalog(fresh)

    @rule(pick=PICK, mishap=MISHAP)
    def rebuild(self, pick: int, mishap: Mishap) -> None:
        machine = self.machine(pick)
        report = self.attempt(machine, mishap, machine.store.rebuild, lambda _: None)
        assert report is None or not report.damaged, report.problems

    @rule(offset_ms=st.integers(-(10**9), 10**9))
    def move_the_clock(self, offset_ms: int) -> None:
        """That of the machines."""
        self.offset_ms = offset_ms

    @rule(hours=st.sampled_from((1, 11, 25, 100, 200)))
    def pass_time(self, hours: int) -> None:
        """For all: machines and bucket."""
        self.offset_ms += hours * 3_600_000
        self.bucket.time_ms += hours * 3_600_000

    @rule(pick=PICK, at_once=st.booleans(), mishap=MISHAP)
    def collect(self, pick: int, at_once: bool, mishap: Mishap) -> None:
        """What is deleted may go for good once its time is over, so may parts and uploads; nothing else does."""
        machine = self.machine(pick)
        self.bucket.delete([COLLECTOR_KEY])  # a dead one has it for some minutes
        self.attempt(
            machine, mishap, lambda: machine.store.gc(min_age_seconds=0 if at_once else None), lambda _: None
        )
        now = self.bucket.time_ms
        with self.look() as store:
            left = {artifact.id for artifact in store.find(deleted=True)}
            for key, state in list(self.artifacts.items()):
                if state.deleted_ms is not None and key not in left:
                    assert at_once or now - state.deleted_ms >= DAY_MS, "it could still be restored"
                    del self.artifacts[key]
            for digest, part in list(self.parts.items()):
                if store.blobs.status(Hash(digest)) == "missing":
                    is_blob = part.is_whole or digest in self.put_whole
                    limit = (0 if at_once else DAY_MS) if is_blob else 7 * DAY_MS
                    assert now - part.time_ms >= limit, "it could still be gone on with"
                    del self.parts[digest]
            open_ = {upload.token for upload in store.uploads()}
            for token, begun in list(self.uploads.items()):
                if token not in open_:
                    assert now - begun.time_ms >= 7 * DAY_MS, "it could still be gone on with"
                    del self.uploads[token]
        for other in self.machines:  # leases do not reach across machines; age does
            other.leases = [
                lease
                for lease in other.leases
                if other is machine or (not at_once and now - lease[2] < DAY_MS)
            ]

    @rule(pick=PICK, mishap=MISHAP)
    def compact(self, pick: int, mishap: Mishap) -> None:
        machine = self.machine(pick)
        self.bucket.delete([COLLECTOR_KEY])
        self.attempt(machine, mishap, machine.store.compact, lambda _: None)

    @rule(seed=PICK, is_known=st.booleans())
    def rot(self, seed: int, is_known: bool) -> None:
        """Flip a bit in a copy of the bucket: what is read of it is right or refused, and scrub knows.

        Then the copy is repaired from the bucket, and the work goes on with it.
        """
        rng = random.Random(seed)
        while self.machines:
            self.die(self.machines[0])
        damaged = self.bucket.copied()
        keys = sorted(key for key, (data, _) in damaged.objects.items() if data)
        key = rng.choice(keys)
        data, meta = damaged.objects[key]
        at = rng.randrange(len(data))
        wrong = data[:at] + bytes((data[at] ^ 1 << rng.randrange(8),)) + data[at + 1 :]
        damaged.objects[key] = wrong, meta
        catalog = self.free[0] if is_known and self.free else None
        try:
            store = open_objects(damaged, catalog)
        except (CorruptObject, FormatError):
            assert key == IDENTITY_KEY, f"{key} is damaged, and the store does not open"
            return
        assert key != IDENTITY_KEY, "another identity is taken"
        with store, open_objects(self.bucket.copied(), None) as sound:
            self.adopt(sound)
            store.refresh()
            refused = sum(not _reads(store, id_, state) for id_, state in self.artifacts.items())
            found = store.scrub()
            assert not refused or not found.ok, f"{key}: {refused} are refused, and scrub finds nothing"
            report = store.repair([sound])
            assert report.ok, (key, report.missing)
            again = store.scrub()
            assert again.ok, (key, again.problems)
            self.check(store)
        self.bucket = damaged
        self.parts.clear()  # a part that is damaged costs a transfer
        self.uploads.clear()

    # --- what always holds

    def check(self, store: Store) -> None:
        """Hold all of the store against the dictionary."""
        store.refresh()
        self.adopt(store)
        live = {a.id: a for a in store.find()}
        assert set(live) == {k for k, s in self.artifacts.items() if s.deleted_ms is None}
        assert {a.id for a in store.find(deleted=True)} == {
            k for k, s in self.artifacts.items() if s.deleted_ms is not None
        }
        for key, artifact in live.items():
            state = self.artifacts[key]
            assert (artifact.filename, frozenset(artifact.tags)) == (state.filename, state.tags)
            assert artifact.revision == state.revision
            assert store.read(key) == state.content
        assert {tag.name: tag.hash.digest for tag in store.tags.list()} == self.tags
        for digest in self.tags.values():
            assert store.read(Hash(digest)) == self.contents[digest]
        report = store.scrub()
        assert report.ok, report.problems

    def teardown(self) -> None:
        try:
            store = self.machine(0).store
            for machine in self.machines:
                for _, data, _ in machine.leases:
                    assert machine.store.read(Hash(_native.blake3(data))) == data
            self.check(store)
            for digest, part in self.parts.items():
                assert not part.have - store.blobs.bitfield(Hash(digest)).ranges
                with suppress(NotFound):
                    assert store.read(Hash(digest)) == part.content
            for token, begun in self.uploads.items():
                if self.is_over(begun):
                    continue
                writer = store.writer(resume=token)
                assert writer.offset_bytes >= begun.offset
                writer.write(begun.content[writer.offset_bytes :])
                assert store.read(writer.commit()) == begun.content
            before = dump_catalog(store)
            assert not store.rebuild().damaged
            assert dump_catalog(store) == before
        finally:
            self._time.undo()
            for machine in self.machines:
                bury(machine.store)
            self._directory.cleanup()


def _reads(store: Store, key: str, state: State) -> bool:
    """Whether an artifact reads; wrong bytes are an error, damage is none."""
    if state.deleted_ms is not None:
        return True
    try:
        assert store.read(key) == state.content
    except (IntegrityError, BlobNotFound, ArtifactNotFound):
        return False
    return True


class TestBucketMachine(BucketMachine.TestCase):  # type: ignore[misc, valid-type]
    """Run the machine; what follows of the examples is the same in every run of as many."""

    def runTest(self) -> None:
        with replay("tests/property/test_object_machine.py::TestBucketMachine::runTest"):
            super().runTest()


TestBucketMachine.settings = settings(
    max_examples=figure(200, 10_000),
    stateful_step_count=40 if DEEP else 22,
    deadline=None,
    derandomize=True,
    report_multiple_bugs=False,
    suppress_health_check=list(HealthCheck),
)
