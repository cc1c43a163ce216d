"""The rules of the collection (models/log.pml, twolevel.pml): for each a test that fails without it.

What may happen between two steps of a collection is made to happen there: `during` runs something at the beginning
or the end of a step. Another `Store` on the same directory is another process's, as far as locks and sessions go.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from holdfast import hashseqs, importing, reading
from holdfast import log_core as log_cores
from holdfast.backend.log.pieces import iter_pieces
from holdfast.backend.log.session import LEASES_OFFSET
from holdfast.care import repair as repairing
from holdfast.care import verify as verifying
from holdfast.care.scrub import Scrub
from holdfast.catalog import Catalog
from holdfast.catalog import collecting as books
from holdfast.chunking import Chunking
from holdfast.errors import BlobNotFound, HoldfastError, Locked, NoSpace, UnreadableRoot
from holdfast.facts import KIND_DATA, KIND_MASK
from holdfast.gc import collector, cycle, explain
from holdfast.gc.cycle import Collection
from holdfast.log_core import LogCore
from holdfast.store import Store
from holdfast.testing.inside import log_core
from holdfast.testing.streams import Sender
from holdfast.types import Artifact, Hash

DATA = random.Random(1).randbytes(60_000)
OTHER = random.Random(2).randbytes(60_000)


class Two:
    """A store that collects, and one beside it; `garbage` is a blob that nothing keeps."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.store = self.open(create=True)
        self.beside = self.open()
        with self.store.blobs.put(DATA) as lease:
            self.garbage = lease.hash

    def open(self, *, create: bool = False) -> Store:
        return Store._open(
            self.path,
            create=create,
            chunking=Chunking.choose("fastcdc", 4096),
            compression="none",
            segment_bytes=64 << 10,
            lock_timeout_seconds=5.0,
        )

    def read(self, ref: Artifact | Hash) -> bytes:
        """Read a blob of which the catalog has every piece: a rebuild must not be what makes it whole."""
        hash_ = ref if isinstance(ref, Hash) else ref.hash
        core = log_core(self.store)
        row = core.blob(hash_)
        if row.flags & KIND_MASK != KIND_DATA:
            document = core.backend.payloads.read_document(row.hash, row.location, row.stored)
            for digests in iter_pieces(core.backend.payloads, row.hash, document):
                assert core.catalog.find_data(digests).keys() == set(digests)
        return self.store.read(ref)

    def check(self) -> None:
        """Nothing is half there, now and after a rebuild."""
        for store in (self.store, self.beside):
            report = store.scrub()
            assert report.ok, report.problems
        self.beside.rebuild()
        assert self.store.scrub().ok


@pytest.fixture
def two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Two]:
    monkeypatch.setattr(cycle, "WAIT_SECONDS", 0.1)
    two = Two(tmp_path / "store")
    yield two
    two.store.close()
    two.beside.close()


During = Callable[..., None]


@pytest.fixture
def during(monkeypatch: pytest.MonkeyPatch) -> During:
    def patch(step: str, action: Callable[[], Any], *, after: bool = False, of: Any = Collection) -> None:
        original = getattr(of, step)
        done: list[int] = []

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            if not after and not done:
                done.append(1)
                action()
            result = original(*args, **kwargs)
            if after and not done:
                done.append(1)
                action()
            return result

        monkeypatch.setattr(of, step, wrapped)

    return patch


def begin(stack: ExitStack, store: Store) -> tuple[Any, Any]:
    """Begin to put something: pinned, nothing looked up."""
    return stack.enter_context(log_core(store).adding())


def name(store: Store, group: Any, stored: Any) -> Any:
    """Finish a put that was begun."""
    from holdfast.words import Words, describe

    return store._artifacts.acknowledge(group, [(stored, describe(log_core(store), Words()), 0)])[0]


# -- log.pml: pins, condemning, waiting


def test_an_operation_that_looked_up_before_is_waited_for(two: Two) -> None:
    with ExitStack() as stack:
        group, ingest = begin(stack, two.beside)
        (stored,) = ingest.add_many([DATA])
        assert group.is_empty, "a hit"
        report = two.store.gc(min_age_seconds=0)
        assert not report.complete
        assert [waiting.session for waiting in report.waits_for] == [
            log_core(two.beside).backend.session.name
        ]
        assert report.waits_for[0].since is not None
        artifact = name(two.beside, group, stored)
    assert two.store.gc(min_age_seconds=0).complete
    assert two.read(artifact) == DATA
    two.check()


def test_what_pins_while_it_condemns_is_waited_for(
    two: Two, monkeypatch: pytest.MonkeyPatch, during: During
) -> None:
    """The epoch advances with or after the last condemning: else this pin would pass for one of the new epoch."""
    monkeypatch.setattr(cycle, "TRANSACTION_ROWS", 1)
    with ExitStack() as stack:
        found = []

        def look() -> None:
            group, ingest = begin(stack, two.beside)
            found.append((group, ingest.add_many([DATA])[0]))

        during("condemn", look, of=books)  # the first row is condemned after that, the others too
        report = two.store.gc(min_age_seconds=0)
        assert not report.complete
        assert len(report.waits_for) == 1
        artifact = name(two.beside, *found[0])
    assert two.store.gc(min_age_seconds=0).complete
    assert two.read(artifact) == DATA
    two.check()


def test_nobody_waits_with_the_store_s_lock(two: Two, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cycle, "WAIT_SECONDS", 3.0)
    looked, waiting, artifacts = threading.Event(), threading.Event(), []

    def write() -> None:
        with ExitStack() as stack:
            group, ingest = begin(stack, two.beside)
            (stored,) = ingest.add_many([DATA])
            looked.set()
            waiting.wait(10)
            artifacts.append(name(two.beside, group, stored))  # needs the lock

    thread = threading.Thread(target=write)
    thread.start()
    looked.wait(10)
    sessions = log_core(two.store).backend.sessions

    def tell(**more: Any) -> Any:
        found = sessions(**more)
        if not more:
            waiting.set()
        return found

    monkeypatch.setattr(log_core(two.store).backend, "sessions", tell)
    report = two.store.gc(min_age_seconds=0)
    thread.join()
    assert report.complete
    assert two.read(artifacts[0]) == DATA


def test_a_tag_that_is_set_between_mark_and_sweep_keeps_its_blob(two: Two, during: During) -> None:
    during("_unmarked_blobs", lambda: two.beside.tags.set("late", two.garbage))
    report = two.store.gc(min_age_seconds=0)
    assert report.complete
    assert report.pardoned
    assert two.read(two.garbage) == DATA
    two.check()


def test_look_ups_for_deduplication_miss_what_is_condemned(two: Two, during: During) -> None:
    """A put of condemned bytes, here and elsewhere, brings them anew; what it brought is not dropped."""
    artifacts = []
    during("_drop", lambda: artifacts.extend([two.beside.put(DATA), two.store.put(DATA[:9_000])]))
    report = two.store.gc(min_age_seconds=0)
    assert report.complete
    assert report.dropped_payloads < 5, "what came again is live"
    assert two.read(artifacts[0]) == DATA
    assert two.read(artifacts[1]) == DATA[:9_000]
    two.check()


@pytest.mark.parametrize("step", ["drop_blobs", "drop_data"])
def test_only_what_is_still_condemned_is_dropped(two: Two, during: During, step: str) -> None:
    """The collector has chosen the rows when a put brings them again."""
    artifacts = []
    during(step, lambda: artifacts.append(two.beside.put(DATA)), of=books)
    assert two.store.gc(min_age_seconds=0).complete
    assert two.read(artifacts[0]) == DATA
    two.check()


@pytest.mark.parametrize("how", ["open", "iter_bytes", "writer"])
def test_what_is_open_is_waited_for(two: Two, how: str) -> None:
    """A reader pins before it looks up, also one that has not begun; so does a writer."""
    reader: Any = two.beside.writer() if how == "writer" else getattr(two.beside, how)(two.garbage)
    report = two.store.gc(min_age_seconds=0)
    assert len(report.waits_for) == 1
    assert not report.complete
    if how == "iter_bytes":
        assert b"".join(reader) == DATA
    elif how == "open":
        assert reader.read() == DATA
        reader.close()
    else:
        reader.abort()
    assert two.store.gc(min_age_seconds=0).complete
    assert not two.store.exists(two.garbage)


def _import(two: Two, content: bytes) -> None:
    sender = Sender(content)
    two.store.blobs.decode(sender.hash, sender.stream(None), None)


RELYING: dict[str, tuple[Any, str, Callable[[Two, Hash], object]]] = {
    "repair": (repairing, "lost_segments", lambda two, _: two.store.repair()),
    "scrub": (Scrub, "_scrub_segment", lambda two, _: two.store.scrub()),
    "verify": (verifying, "verify_blob", lambda two, _: two.store.verify(two.garbage)),
    "a forecast of a collection": (explain, "_tracer", lambda two, _: two.store.gc(dry_run=True)),
    "a forecast of a deletion": (
        explain,
        "_tracer",
        lambda two, _: two.store.forecast(two.store.put(OTHER)),
    ),
    "why": (explain, "_tracer", lambda two, _: two.store.why(two.garbage)),
    "read": (reading, "MendingReader", lambda two, _: two.store.read(two.garbage)),
    "read in pieces": (reading, "MendingReader", lambda two, _: list(two.store.iter_bytes(two.garbage))),
    "open": (reading, "MendingReader", lambda two, _: two.store.open(two.garbage).close()),
    "export": (
        reading.Reading,
        "_export",
        lambda two, _: two.store.export(two.garbage, two.path.with_name("out")),
    ),
    "put": (log_cores, "Ingest", lambda two, _: two.store.put(OTHER)),
    "tag": (LogCore, "claim", lambda two, _: two.store.tags.set("one", two.garbage)),
    "look at a hash seq": (hashseqs, "_check_size", lambda two, seq: two.store.blobs.children(seq)),
    "page of a hash seq": (
        hashseqs,
        "_check_size",
        lambda two, seq: list(two.store.blobs.children(seq)),
    ),
    "begin to send a hash seq": (
        hashseqs,
        "_check_size",
        lambda two, seq: two.store.blobs.encode_seq(seq),
    ),
    "send a hash seq": (
        hashseqs,
        "BaoStream",
        lambda two, seq: list(two.store.blobs.encode_seq(seq)),
    ),
    "take a hash seq in": (
        LogCore,
        "lease",
        lambda two, seq: two.store.blobs.decode_seq(seq, list(two.beside.blobs.encode_seq(seq))),
    ),
    "begin to import": (importing.Import, "_look", lambda two, _: _import(two, OTHER)),
    "import": (importing.Import, "_put", lambda two, _: _import(two, OTHER)),
}
"""Where each of them has begun to rely on what it found: a step on the way."""


@pytest.mark.parametrize("what", RELYING)
def test_who_relies_on_what_it_finds_has_pinned_before(
    two: Two, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with two.store.blobs.put(two.garbage.digest) as seq:
        owner, step, work = RELYING[what]
        session = log_core(two.store).backend.session
        pinned: list[bool] = []
        original = getattr(owner, step)

        def look(*args: Any, **kwargs: Any) -> Any:
            pinned.append(session._pinned is not None)
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, step, look)
        work(two, seq.hash)
        assert pinned
        assert all(pinned), "a collection would not wait for it"


def test_a_put_that_misses_a_condemned_chunk_is_whole_whenever_it_commits(two: Two, during: During) -> None:
    """It looks up after the wait, and commits after the drop."""
    with ExitStack() as stack:
        found = []

        def look() -> None:
            group, ingest = begin(stack, two.beside)
            found.append((group, ingest.add_many([DATA])[0]))

        during("_drop", look)
        assert two.store.gc(min_age_seconds=0).complete
        artifact = name(two.beside, *found[0])
    assert two.read(artifact) == DATA
    two.check()


def test_a_dead_writer_s_tail_is_taken_over_before_the_second_mark(
    two: Two, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It committed, relying on what is condemned, and died before it applied: its pin is gone."""
    dying = two.open()
    with ExitStack() as stack:
        group, ingest = begin(stack, dying)
        (stored,) = ingest.add_many([DATA])

        def die(*_: object) -> None:
            raise NoSpace("died")

        monkeypatch.setattr(log_core(dying).backend.committer, "apply", die)
        with pytest.raises(NoSpace):
            name(dying, group, stored)
    backend = log_core(dying).backend
    log_core(dying)._let_go.detach()  # what it had open is closed here: the numbers will be other files'
    for writer in backend.committer.writers.own().values():
        backend.disk.close(writer.handle)  # as the kernel does when a process dies
    backend.disk.close(backend._session.handle)  # type: ignore[union-attr]
    assert two.store.gc(min_age_seconds=0).complete
    (artifact,) = two.store.find()
    assert two.read(artifact) == DATA
    two.check()


def test_a_group_that_could_not_be_applied_keeps_its_pin(two: Two, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise NoSpace("the catalog has no room")

    committer = log_core(two.beside).backend.committer
    with monkeypatch.context() as patch:
        patch.setattr(committer, "_apply", refuse)
        with pytest.raises(NoSpace):
            two.beside.put(DATA)
    assert committer.has_unapplied
    assert two.store.gc(min_age_seconds=0).waits_for
    committer.apply()
    log_core(two.beside).backend.end_pins()
    assert two.store.gc(min_age_seconds=0).complete
    (artifact,) = two.store.find()
    assert two.read(artifact) == DATA
    two.check()


def test_an_operation_that_ends_while_another_thread_applies_leaves_no_pin(two: Two) -> None:
    core = log_core(two.beside)
    committer = core.backend.committer
    committer._applying = True
    with core.backend.operation():
        pass
    assert two.store.gc(min_age_seconds=0).waits_for
    committer.apply()  # the other thread's ends
    report = two.store.gc(min_age_seconds=0)
    assert (report.complete, report.waits_for) == (True, ())


def test_an_operation_that_ends_while_a_pin_is_being_ended_keeps_its_own(
    two: Two, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two threads: one ends its pin, and meanwhile the group of the other becomes durable and cannot be applied."""
    backend = log_core(two.beside).backend
    end = backend.session.end
    done: list[int] = []

    def slow(key: Any) -> None:
        end(key)
        if not done:
            done.append(1)
            with monkeypatch.context() as patch:
                patch.setattr(backend.committer, "_apply", refuse)
                with pytest.raises(NoSpace):
                    two.beside.put(DATA)

    def refuse(*_: object) -> None:
        raise NoSpace("the catalog has no room")

    monkeypatch.setattr(backend.session, "end", slow)
    with backend.operation():
        pass
    assert backend.committer.has_unapplied
    assert two.store.gc(min_age_seconds=0).waits_for
    backend.committer.apply()
    assert two.store.gc(min_age_seconds=0).complete
    (artifact,) = two.store.find()
    assert two.read(artifact) == DATA
    two.check()


def test_readers_find_what_is_condemned_and_keep_what_they_opened(two: Two, during: During) -> None:
    files: list[Any] = []

    def look() -> None:
        assert two.beside.read(two.garbage, 5, 9) == DATA[5:14]
        files.append(two.beside.open(two.garbage))
        files.append(two.beside.iter_bytes(two.garbage))

    during("_drop", look)
    assert two.store.gc(min_age_seconds=0).complete
    assert files[0].read() == DATA
    assert b"".join(files[1]) == DATA
    files[0].close()
    assert two.store.gc(min_age_seconds=0).complete
    assert not two.store.exists(two.garbage)


def test_what_begins_to_be_read_later_is_gone_or_whole(two: Two, during: During) -> None:
    """Blobs go before their chunks: at no time is one found whose chunks are gone."""
    seen: list[bool | None] = []

    def look() -> None:
        try:
            seen.append(two.beside.read(two.garbage) == DATA)
        except BlobNotFound:
            seen.append(None)

    during("drop_blobs", look, of=books, after=True)
    during("drop_data", look, of=books)
    assert two.store.gc(min_age_seconds=0).complete
    assert seen == [None, None]


# -- log.pml: the catalog goes, or is another one


def test_a_catalog_that_is_replaced_ends_the_cycle(two: Two, during: During) -> None:
    """What was condemned there is not in the new one: a put relies on it."""
    artifacts = []

    def replace() -> None:
        two.beside.rebuild()
        artifacts.append(two.beside.put(DATA))
        assert log_core(two.beside).catalog.find_blob(two.garbage.digest) is not None

    during("_drop", replace)
    report = two.store.gc(min_age_seconds=0)
    assert report.complete
    assert two.read(artifacts[0]) == DATA
    two.check()


def test_an_older_catalog_that_is_put_back_ends_the_cycle(
    two: Two, during: During, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There something is condemned that was named since: the second mark was of the other catalog."""
    path = two.path / "catalog.db"
    with monkeypatch.context() as patch:
        patch.setattr(Collection, "_wait", lambda *_: False)
        assert not two.store.gc(min_age_seconds=0).complete
    log_core(two.store).catalog.checkpoint()
    old = path.read_bytes()
    two.beside.tags.set("late", two.garbage)
    assert two.store.gc(min_age_seconds=0).complete
    two.store.blobs.put(OTHER).release()

    def put_back() -> None:
        path.with_name("old").write_bytes(old)
        path.with_name("old").replace(path)
        for suffix in ("-wal", "-shm"):
            path.with_name(path.name + suffix).unlink(missing_ok=True)

    during("_drop", put_back)
    assert two.store.gc(min_age_seconds=0).complete
    assert two.read(two.garbage) == DATA
    two.check()


def test_a_pin_of_another_catalog_is_waited_for(two: Two) -> None:
    """Its epoch says nothing here, however high it is."""
    two.store.tags.set("keep", two.store.put(OTHER).hash)
    log_core(two.beside).catalog._write(lambda c: c.execute("UPDATE meta SET value = 50 WHERE key = 'epoch'"))
    with ExitStack() as stack:
        group, ingest = begin(stack, two.beside)
        two.store.rebuild()
        (stored,) = ingest.add_many([DATA])
        report = two.store.gc(min_age_seconds=0)
        assert not report.complete
        assert report.waits_for
        artifact = name(two.beside, group, stored)
    assert two.store.gc(min_age_seconds=0).complete
    assert two.read(artifact) == DATA
    two.check()


def test_each_look_up_asks_the_catalog_that_is_there(two: Two) -> None:
    before = log_core(two.beside).catalog
    two.store.rebuild()
    assert two.store.gc(min_age_seconds=0).complete
    assert before.find_blob(two.garbage.digest) is not None, "the old catalog has it still"
    artifact = two.beside.put(DATA)
    assert two.read(artifact) == DATA
    two.check()


def test_a_rebuild_takes_no_blob_whose_pieces_are_gone(two: Two, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compaction removed segments with its chunks, and the record of the blob is in one that is kept."""
    monkeypatch.setattr(collector, "compact_segments", lambda *_, **__: None)
    data = random.Random(3).randbytes(300_000)
    with two.store.blobs.put(data) as lease:
        half = lease.hash
    place = log_core(two.store).blob(half).location >> 32
    held = [two.store.put(random.Random(i).randbytes(20_000)) for i in range(3)]
    assert two.store.gc(min_age_seconds=0).complete
    two.store.close()
    two.beside.close()
    for segment in range(place - 3, place - 1):
        (two.path / "segments" / f"{segment:010d}.seg").unlink()
    for suffix in ("", "-wal", "-shm"):
        (two.path / f"catalog.db{suffix}").unlink(missing_ok=True)
    two.store, two.beside = two.open(), two.open()
    assert not two.store.exists(half)
    artifact = two.beside.put(data)
    assert two.read(artifact) == data
    assert all(two.store.exists(one.hash) for one in held)


# -- twolevel.pml: touches


@pytest.mark.parametrize("how", ["tag", "requires", "upload", "update", "hash_seq", "rename"])
def test_whoever_comes_to_rely_on_something_while_it_is_dropped_keeps_it(
    two: Two, during: During, how: str
) -> None:
    artifact = two.beside.put(b"artifact")
    with two.beside.blobs.hash_seq([two.garbage]) as lease:
        listing = lease.hash

    with two.beside.blobs.put(DATA):
        upload = two.beside.writer("late", resumable=True, requires=[two.garbage])
        token = upload.suspend()

    def rely() -> None:
        if how == "upload":
            with two.beside.writer(resume=token) as writer:
                writer.write(b"later")
        elif how == "tag":
            two.beside.tags.set("late", two.garbage)
        elif how == "requires":
            two.beside.put(b"later", requires=[two.garbage])
        elif how == "update":
            two.beside.update(artifact, add_requires=[two.garbage])
        elif how == "hash_seq":
            two.beside.tags.set("late", listing, "hash_seq")
        else:
            two.beside.tags.set("early", two.garbage)
            two.beside.tags.rename("early", "late")

    during("_drop", rely)
    assert two.store.gc(min_age_seconds=0).complete
    assert two.read(two.garbage) == DATA
    two.check()


def test_a_blob_that_nobody_names_yet_and_that_came_again_keeps_its_chunks(two: Two, during: During) -> None:
    """It was condemned, came again while its chunks were not, and has no name: a later put relies on it."""

    def bring() -> None:
        with ExitStack() as stack:
            group, ingest = begin(stack, two.beside)
            ingest.add_many([DATA])
            assert not group.is_empty, "its record is new, its chunks are not"
            group.commit()

    during("_unmarked_data", bring)
    assert two.store.gc(min_age_seconds=0).complete
    artifact = two.store.put(DATA)
    assert two.read(artifact) == DATA
    two.check()


# -- one at a time, and roots that cannot be read


def test_there_is_one_collector(two: Two, during: During) -> None:
    seen = []

    def collect() -> None:
        with pytest.raises(Locked) as caught:
            two.beside.gc()
        seen.append(caught.value.pid)

    during("_drop", collect)
    assert two.store.gc(min_age_seconds=0).complete
    assert len(seen) == 1


def test_a_session_that_cannot_be_read_stops_everything(two: Two, tmp_path: Path) -> None:
    session = log_core(two.beside).backend.session
    log_core(two.store).backend.disk.pwrite(session.handle, [b"\7" * 33], LEASES_OFFSET)
    with pytest.raises(UnreadableRoot, match=session.name):
        two.store.gc(min_age_seconds=0)
    assert two.store.exists(two.garbage)


def test_an_artifact_is_restored_whole_or_not_at_all_whenever_it_is_asked_for(tmp_path: Path) -> None:
    steps = ["_forget_expired", "_condemn", "_wait", "_take_over", "_mark_again", "_drop", "_drop_rows"]
    for number, step in enumerate(steps):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(cycle, "WAIT_SECONDS", 0.1)
            two = Two(tmp_path / f"store-{number}")
            artifact = two.store.put(OTHER)
            two.store.delete(artifact)
            original = getattr(Collection, step)
            restored: list[Any] = []

            def wrapped(
                self: Any, *args: Any, o: Any = original, t: Two = two, r: Any = restored, a: Any = artifact
            ) -> Any:
                if not r:
                    try:
                        r.append(t.beside.restore(a))
                    except HoldfastError:
                        r.append(None)
                return o(self, *args)

            patch.setattr(Collection, step, wrapped)
            assert two.store.gc(min_age_seconds=0).complete
            if restored[0] is not None:
                assert two.read(artifact) == OTHER
            else:
                assert not two.store.exists(artifact.hash)
            assert not two.store.exists(two.garbage)
            two.check()
            two.store.close()
            two.beside.close()


def test_a_clock_that_jumps_costs_undo_time_and_nothing_else(
    two: Two, monkeypatch: pytest.MonkeyPatch
) -> None:
    year_ms = 366 * 86_400_000
    real = time.time_ns
    live = two.store.put(OTHER)
    kept = two.store.put(b"deleted now")
    two.store.delete(kept)
    for shift in (-year_ms, year_ms):
        monkeypatch.setattr(time, "time_ns", lambda s=shift: real() + s * 1_000_000)
        assert two.store.gc().complete
        assert two.read(live) == OTHER
        if shift < 0:
            assert list(two.store.find(deleted=True))
    assert not list(two.store.find(deleted=True)), "a year later its window is over"
    late = two.store.put(b"deleted in a year")
    two.store.delete(late)
    monkeypatch.setattr(time, "time_ns", real)
    assert two.store.gc().complete
    assert two.store.restore(late).id == late.id
    with monkeypatch.context() as patch:
        patch.setattr(time, "time_ns", lambda: real() + year_ms * 1_000_000)
        two.store.delete(late)
    assert two.store.gc(min_age_seconds=0).forgotten_artifacts == 1
    assert two.read(live) == OTHER


def test_a_reader_that_only_looks_writes_nothing_to_the_catalog(
    two: Two, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact = two.store.put(OTHER)
    monkeypatch.setattr(Catalog, "_write", lambda *_: pytest.fail("a read wrote"))
    with two.store.open(artifact) as file:
        assert file.read() == OTHER
    assert Hash(artifact.hash.digest) == artifact.hash
