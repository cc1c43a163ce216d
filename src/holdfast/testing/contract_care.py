"""The part of the contract about care: damage, reports, the life of a store, threads."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from holdfast import _native
from holdfast.errors import (
    HoldfastError,
    IntegrityError,
    NeedsReopen,
)
from holdfast.store import Store
from holdfast.testing.contract_base import ContractBase, sample
from holdfast.types import Artifact, Hash, PutItem


class CareContract(ContractBase):
    """Damage is never given out, and a store dies cleanly."""

    @pytest.mark.parametrize(
        ("size", "offset"),
        [(1, 0), (1_000, 999), (16_384, 0), (16_385, 16_384), (300_000, 150_000), (2_000_000, 0)],
    )
    def test_a_flipped_bit_is_never_given_out(
        self, store: Store, tmp_path: Path, size: int, offset: int
    ) -> None:
        content = sample(size)
        artifact, other = store.put(content), store.put(sample(5_000, 9))
        assert store.scrub().ok
        self.corrupt(store, artifact.hash, offset)
        for work in (
            lambda: store.read(artifact),
            lambda: store.read(artifact.hash),
            lambda: store.read(artifact, offset, 1),
            lambda: list(store.iter_bytes(artifact)),
            lambda: store.open(artifact).read(),
            lambda: store.export(artifact, tmp_path / "out"),
        ):
            with pytest.raises(IntegrityError) as caught:
                work()
            assert caught.value.evidence
            assert (
                str(artifact.hash) in str(caught.value) or caught.value.evidence.get("hash") == artifact.hash
            )
        report = store.verify(artifact)
        assert not report.ok
        assert report.problems[0].hash == artifact.hash
        assert report.problem_count >= 1
        assert not store.scrub().ok
        assert not os.listdir(tmp_path)
        assert store.verify(other).ok
        assert store.read(other) == sample(5_000, 9)

    def test_what_lies_before_the_damage_is_right(self, store: Store) -> None:
        content = sample(1_000_000)
        artifact = store.put(content)
        self.corrupt(store, artifact.hash, 999_999)
        got = bytearray()
        with pytest.raises(IntegrityError):
            got.extend(piece for pieces in store.iter_bytes(artifact) for piece in pieces)
        assert content.startswith(got)
        assert store.read(artifact, 0, 100_000) == content[:100_000]

    def test_reports_are_plain_values(self, store: Store) -> None:
        artifact = store.put(sample(100_000))
        for value in (store.verify(artifact), store.scrub(), store.stats(), store.rebuild(), artifact):
            assert pickle.loads(pickle.dumps(value)) == value
            assert isinstance(value.to_dict(), dict)

    def test_stats_count(self, store: Store) -> None:
        empty = store.stats()
        assert (empty.artifacts, empty.blobs, empty.logical_bytes) == (0, 0, 0)
        content = sample(200_000)
        one = store.put(content)
        store.put(content)
        store.put(b"small")
        store.delete(one)
        stats = store.stats()
        assert (stats.artifacts, stats.deleted_artifacts, stats.blobs) == (2, 1, 2)
        assert stats.logical_bytes == 200_005
        assert stats.unique_bytes >= 200_005

    def test_a_rebuild_changes_nothing(self, store: Store) -> None:
        contents = [b"small", sample(100_000), sample(self.segment_bytes + 5)]
        artifacts = store.put_many(contents, metadata={"k": "v"})
        store.blobs.put(b"bare")
        store.delete(artifacts[1])
        store.delete(artifacts[0])
        store.restore(artifacts[0])
        live, gone, stats = list(store.find()), list(store.find(deleted=True)), store.stats()
        found = store.rebuild()
        assert (found.artifacts, found.complete_blobs, found.damaged) == (2, 4, 0)
        assert (list(store.find()), list(store.find(deleted=True))) == (live, gone)
        again = store.stats()
        assert (again.blobs, again.unique_bytes, again.chunks) == (
            stats.blobs,
            stats.unique_bytes,
            stats.chunks,
        )
        assert store.read(artifacts[2]) == contents[2]
        assert store.exists(Hash(_native.blake3(b"bare")))

    def test_sync(self, store: Store) -> None:
        store.put(b"x")
        store.sync()
        store.sync()

    def test_use_after_close(self, store: Store, tmp_path: Path) -> None:
        artifact = store.put(sample(50_000))
        file = store.open(artifact)
        writer = store.writer("late")
        writer.write(b"started")
        store.close()
        store.close()
        for work in (
            lambda: store.put(b"x"),
            lambda: store.put_many([b"x"]),
            lambda: store.blobs.put(b"x"),
            lambda: store.read(artifact),
            lambda: list(store.iter_bytes(artifact)),
            lambda: store.open(artifact),
            lambda: store.info(artifact.id),
            lambda: store.exists(artifact.id),
            lambda: list(store.find()),
            lambda: store.delete(artifact),
            lambda: store.export(artifact, tmp_path / "out"),
            lambda: store.verify(artifact),
            store.scrub,
            store.stats,
            store.rebuild,
            writer.commit,
        ):
            with pytest.raises(NeedsReopen):
                work()
        with suppress(HoldfastError, ValueError):
            assert file.read() == sample(50_000)
        assert not os.listdir(tmp_path)

    def test_everything_is_there_when_it_is_opened_again(self, store: Store) -> None:
        if not self.persistent:
            pytest.skip("nothing of this backend outlives its store")
        content = sample(100_000)
        artifact, gone = store.put(content, filename="kept", metadata={"a": 1}), store.put(b"gone")
        store.delete(gone)
        with self.reopen(store) as other:  # while the first one is open
            assert other.info(artifact.id) == artifact
            assert other.read(artifact.id) == content
            second = other.put(b"from the other")
            assert store.read(second.id) == b"from the other"
        store.close()
        with self.reopen(store) as again:
            assert {a.id for a in again.find()} == {artifact.id, second.id}
            assert [a.id for a in again.find(deleted=True)] == [gone.id]
            assert again.scrub().ok

    def test_a_store_pickles_as_its_location(self, store: Store) -> None:
        if not self.persistent:
            pytest.skip("nothing of this backend outlives its store")
        artifact = store.put(b"content")
        with pickle.loads(pickle.dumps(store)) as other:
            assert other is not store
            assert other.read(artifact.id) == b"content"

    def test_a_store_carried_over_a_fork_is_refused(self, store: Store) -> None:
        artifact = store.put(b"content")
        context = multiprocessing.get_context("fork")
        ours, theirs = context.Pipe(duplex=False)
        child = context.Process(target=_use_in_child, args=(theirs, store, artifact), daemon=True)
        child.start()
        assert ours.poll(30)
        assert ours.recv() == ["NeedsReopen"] * 3
        child.join(30)
        assert store.read(artifact) == b"content"
        assert store.read(store.put(b"more")) == b"more"

    def test_values_and_errors_pickle(self, store: Store) -> None:
        artifact = store.put(sample(20_000), metadata={"k": 1}, tags=["t"])
        info = store.blobs.info(artifact.hash)
        for value in (artifact, artifact.hash, info, PutItem(b"x", filename="y")):
            assert pickle.loads(pickle.dumps(value)) == value
        errors = []
        for work in (
            lambda: store.read(artifact, 5, 1 << 40),
            lambda: store.read(Hash(bytes(32))),
            lambda: store.put(b""),
            lambda: store.info("x"),
        ):
            with pytest.raises(HoldfastError) as caught:
                work()
            errors.append(caught.value)
        for error in errors:
            copy = pickle.loads(pickle.dumps(error))
            assert (type(copy), str(copy), copy.evidence) == (type(error), str(error), error.evidence)
            assert error.to_dict()["kind"] == error.kind

    def test_threads_work_side_by_side(self, store: Store) -> None:
        shared = sample(120_000)

        def work(worker: int) -> list[tuple[Artifact, bytes]]:
            mine = []
            for i in range(12):
                content = (
                    shared if i % 4 == 3 else sample((1, 700, 16_385, 90_000)[i % 4], worker * 1_000 + i)
                )
                artifact = store.put(content, filename=f"{worker}-{i}")
                assert store.read(artifact.id) == content
                mine.append((artifact, content))
            many = store.put_many([sample(500, worker * 1_000 + 500 + i) for i in range(5)])
            store.delete(mine[0][0])
            assert not store.exists(mine[0][0].id)
            store.restore(mine[0][0].id)
            assert len(list(store.find(limit=20))) == 20 or worker < 3
            return [*mine, *((a, sample(500, worker * 1_000 + 500 + i)) for i, a in enumerate(many))]

        with ThreadPoolExecutor(8) as pool:
            results = [pair for pairs in pool.map(work, range(8)) for pair in pairs]
        assert len(list(store.find())) == len(results) == 8 * 17
        for artifact, content in results:
            assert store.read(artifact.id) == content
        assert store.scrub().ok

    def test_one_open_store_closes_under_busy_threads(self, store: Store) -> None:
        acknowledged: list[Artifact] = []
        unexpected: list[BaseException] = []

        def work() -> None:
            try:
                while True:
                    acknowledged.append(store.put(os.urandom(100)))
            except NeedsReopen:
                pass
            except BaseException as error:  # noqa: BLE001  # whatever it is, the test is to show it
                unexpected.append(error)

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        while len(acknowledged) < 20 and not unexpected:
            pass
        store.close()
        for thread in threads:
            thread.join(30)
        assert unexpected == []
        if self.persistent:
            with self.reopen(store) as again:
                assert {artifact.id for artifact in again.find()} >= {
                    artifact.id for artifact in acknowledged
                }


def _use_in_child(connection: Any, store: Store, artifact: Artifact) -> None:
    kinds = []
    for work in (lambda: store.read(artifact), lambda: store.put(b"x"), lambda: list(store.find())):
        try:
            work()
            kinds.append("worked")
        except BaseException as error:  # noqa: BLE001  # the parent is to hear of anything
            kinds.append(type(error).__name__)
    connection.send(kinds)
    connection.close()
    os._exit(0)
