"""The part of the contract about what happens to damage: quarantine, repair, scrubbing in parts, health, figures."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from holdfast.errors import IntegrityError
from holdfast.store import Store
from holdfast.testing.contract_base import ContractBase, Interrupted, MakeStore, sample
from holdfast.types import Progress


class RepairContract(ContractBase):
    """What is damaged is kept, not relied on, and brought back from elsewhere."""

    def test_a_read_puts_what_it_finds_into_quarantine(self, store: Store) -> None:
        artifact = store.put(sample(5_000))
        self.corrupt(store, artifact.hash, 77)
        assert store.health().ok
        with pytest.raises(IntegrityError):
            store.read(artifact)
        assert not store.health().ok
        assert store.stats().quarantined == 1
        with pytest.raises(IntegrityError):
            store.read(artifact)
        assert store.stats().quarantined == 1
        store.rebuild()
        assert store.stats().quarantined == 1

    @pytest.mark.parametrize("size", [700, 16_385, 400_000])
    def test_whoever_brings_the_bytes_again_heals(self, store: Store, size: int) -> None:
        content = sample(size)
        artifact, other = store.put(content), store.put(sample(3_000, 5))
        self.corrupt(store, artifact.hash, size // 2)
        assert not store.scrub().ok
        again = store.put(content)
        assert store.read(again) == store.read(artifact) == content
        store.rebuild()
        assert store.read(artifact) == content
        assert store.read(other) == sample(3_000, 5)
        assert store.repair().ok
        assert store.scrub().ok
        assert store.health().ok

    @pytest.mark.parametrize("size", [700, 16_385, 400_000])
    def test_repair_takes_from_another_store(self, make_store: MakeStore, size: int) -> None:
        contents = [sample(size, seed) for seed in range(3)]
        with make_store() as store, make_store() as source:
            artifacts = store.put_many(contents)
            source.put_many(contents[:2])
            for artifact in artifacts:
                self.corrupt(store, artifact.hash, size - 1)
            assert store.scrub().problem_count == 3
            facts = [store.info(artifact.id) for artifact in artifacts]
            report = store.repair([source])
            assert (report.ok, report.repaired_count, report.missing_count) == (False, 2, 1)
            assert report.missing[0].hash is not None
            assert {one.source for one in report.repaired} == {source.location}
            assert [store.read(artifact) for artifact in artifacts[:2]] == contents[:2]
            with pytest.raises(IntegrityError):
                store.read(artifacts[2])
            source.put(contents[2])
            assert store.repair(source).ok
            assert store.scrub().ok
            assert [store.info(artifact.id) for artifact in artifacts] == facts
            assert store.repair(source).repaired_count == 0

    def test_repair_takes_from_files(self, store: Store, tmp_path: Path) -> None:
        content = sample(500_000)
        artifact = store.put(content)
        self.corrupt(store, artifact.hash, 250_000)
        assert not store.scrub().ok
        wrong, right = tmp_path / "wrong", tmp_path / "right"
        wrong.write_bytes(sample(500_000, 1))
        assert not store.repair(wrong).ok
        right.write_bytes(content)
        report = store.repair([wrong, right])
        assert report.ok
        assert report.fetched_bytes < len(content)
        assert store.read(artifact) == content

    def test_a_scrub_goes_on_where_it_was_interrupted(self, store: Store) -> None:
        store.put(sample(self.segment_bytes * 2))
        whole = store.scrub()
        assert whole.complete

        def interrupt(progress: Progress) -> None:
            if progress.done_bytes:
                raise Interrupted

        with contextlib.suppress(Interrupted):
            store.scrub(progress=interrupt)
        assert store.health().scrub_under_way
        rest = store.scrub(resume=True)
        assert rest.complete
        assert rest.ok
        assert 0 < rest.checked_bytes < whole.checked_bytes
        assert rest.pass_bytes == whole.pass_bytes
        calls = 0
        while not store.scrub(resume=True, max_bytes=1 << 20).complete:
            calls += 1
        assert calls > 1
        assert not store.health().scrub_under_way

    def test_a_scrub_in_parts_remembers_what_it_found(self, store: Store) -> None:
        first = store.put(sample(300_000))
        store.put(sample(self.segment_bytes * 2, 1))
        self.corrupt(store, first.hash, 100)
        reports = [store.scrub(max_bytes=1 << 20)]
        while not reports[-1].complete:
            reports.append(store.scrub(resume=True, max_bytes=1 << 20))
        assert len(reports) > 1
        assert reports[-1].pass_problems == 1
        assert not reports[-1].ok

    def test_stats_of_an_artifact_say_what_it_shares(self, store: Store) -> None:
        shared = sample(self.chunk_bytes * 4)
        one = store.put(shared + sample(1_000, 1))
        two = store.put(shared + sample(1_000, 2))
        store.put(sample(50_000, 3))
        stats = store.stats(one)
        assert stats.size_bytes == one.size_bytes
        assert stats.shared_bytes + stats.own_bytes == stats.size_bytes
        assert [other.id for other in stats.shared_with] in ([two.id], [])
        assert sum(other.shared_bytes for other in stats.shared_with) == stats.shared_bytes
        store.delete(two)
        assert store.stats(one.id).shared_with == ()

    def test_orphans_are_what_nothing_names(self, store: Store) -> None:
        named = store.put(sample(40_000))
        assert (store.stats().orphan_blobs, store.stats().orphan_bytes) == (0, 0)
        with store.blobs.put(sample(30_000, 1)) as lease:
            assert (store.stats().orphan_blobs, store.stats().orphan_bytes) == (1, 30_000)
            store.tags.set("name", lease.hash)
        assert store.stats().orphan_blobs == 0
        store.delete(named)
        assert store.stats().orphan_blobs == 0  # it can be restored
