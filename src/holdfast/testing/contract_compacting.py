"""What giving room back promises, whatever the backend."""

from __future__ import annotations

import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest

from holdfast.errors import InvalidInput
from holdfast.store import Store
from holdfast.testing.contract_base import ContractBase, Interrupted, sample
from holdfast.types import Progress


class CompactingContract(ContractBase):
    """Nothing that is live is touched, and what is not gives its room back."""

    def test_room_comes_back(self, store: Store) -> None:
        artifacts = [store.put(sample(150_000, i), filename=f"{i}", tags=["t"]) for i in range(12)]
        store.delete(*artifacts[::2])
        store.gc(min_age_seconds=0)
        store.compact()
        stats = store.stats()
        assert stats.disk_bytes - stats.catalog_bytes < 6 * 150_000 + 200_000
        assert stats.live_bytes <= stats.disk_bytes
        assert list(store.find()) == artifacts[1::2][::-1]
        for i, artifact in enumerate(artifacts):
            assert store.exists(artifact) == bool(i % 2)
            if i % 2:
                assert store.read(artifact) == sample(150_000, i)
                assert store.read(artifact.hash, 70_000, 20_000) == sample(150_000, i)[70_000:90_000]
        assert store.scrub().ok
        assert store.rebuild().damaged == 0
        assert list(store.find()) == artifacts[1::2][::-1]

    def test_what_can_be_restored_stays(self, store: Store) -> None:
        artifact = store.put(sample(40_000), metadata={"k": "v"})
        store.update(artifact, add_tags=["late"])
        store.delete(artifact)
        store.compact()
        restored = store.restore(artifact)
        assert (restored.tags, restored.metadata) == (("late",), {"k": "v"})
        assert store.read(artifact) == sample(40_000)

    def test_tags_leases_and_trees_stay(self, store: Store) -> None:
        lease, named = store.blobs.put(sample(30_000, 1)), store.blobs.put(b"named")
        tag = store.tags.set("name", named.hash)
        named.release()
        dropped = store.put(sample(100_000, 2))
        store.delete(dropped)
        store.gc(min_age_seconds=0)
        store.compact()
        assert store.blobs.read(lease.hash) == sample(30_000, 1)
        assert store.tags.get("name") == tag
        assert store.blobs.read(named.hash) == b"named"

    def test_a_dry_run_changes_nothing_and_reports_are_plain_values(self, store: Store) -> None:
        artifact = store.put(sample(100_000))
        for i in range(5):
            artifact = store.update(artifact, metadata={"noise": f"{i}" * 3_000})
        before = store.stats()
        forecast = store.compact(dry_run=True)
        assert forecast.dry_run
        assert store.stats() == before
        report = store.compact()
        assert not report.dry_run
        for value in (forecast, report):
            assert pickle.loads(pickle.dumps(value)) == value
            assert isinstance(value.to_dict()["segments"], list)
        assert store.info(artifact) == artifact

    def test_shares_out_of_range(self, store: Store) -> None:
        for share in (-0.1, 1.1):
            with pytest.raises(InvalidInput):
                store.compact(share)
        store.compact(1.0)

    def test_cancelling_loses_nothing(self, store: Store) -> None:
        artifacts = [store.put(sample(60_000, i)) for i in range(8)]
        for artifact in artifacts:
            store.update(artifact, metadata={"noise": "x" * 2_000})
            store.update(artifact, metadata={})

        def cancel(_: Progress) -> None:
            raise Interrupted

        try:
            store.compact(progress=cancel)
        except Interrupted:
            pass
        store.compact()
        for i, artifact in enumerate(artifacts):
            assert store.read(artifact) == sample(60_000, i)

    def test_others_go_on_meanwhile(self, store: Store) -> None:
        """Threads read and write while segments are compacted away, again and again."""
        kept = [store.put(sample(50_000, i)) for i in range(6)]

        def work(number: int) -> None:
            for turn in range(12):
                i = (number + turn) % len(kept)
                assert store.read(kept[i]) == sample(50_000, i)
                new = store.put(sample(9_000, 1_000 * number + turn))
                store.update(new, metadata={"noise": "x" * 1_000})
                assert store.read(new) == sample(9_000, 1_000 * number + turn)

        with ThreadPoolExecutor(3) as pool:
            jobs = [pool.submit(work, number) for number in range(1, 4)]
            while not all(job.done() for job in jobs):
                store.compact()
            for job in jobs:
                job.result()
        store.compact()
        assert store.scrub().ok
        assert store.count() == 6 + 3 * 12
        assert store.rebuild().damaged == 0
