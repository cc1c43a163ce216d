"""The part of the contract about collection: what nothing keeps goes, what anything keeps stays, and why."""

from __future__ import annotations

import threading
import time
from contextlib import suppress

import pytest

from holdfast.errors import ArtifactNotFound, BlobNotFound, Conflict, HoldfastError, InvalidInput
from holdfast.store import Store
from holdfast.testing.contract_base import ContractBase, MakeStore, sample
from holdfast.types import Hash


class CollectingContract(ContractBase):
    """`gc`, `why`, `forecast`, maintenance."""

    def test_what_was_deleted_is_gone_after_a_collection_without_a_window(self, store: Store) -> None:
        data = sample(3 * self.chunk_bytes)
        kept = store.put(data)
        gone = store.put(data + b"more")
        small = store.put(b"small")
        store.delete(gone, small)
        foreseen = store.gc(dry_run=True, min_age_seconds=0)
        report = store.gc(min_age_seconds=0)
        assert report.complete
        assert not report.waits_for
        for deleted in (gone, small):
            assert not store.exists(deleted.hash)
            with pytest.raises(ArtifactNotFound):
                store.restore(deleted)
        assert list(store.find(deleted=True)) == []
        assert store.read(kept) == data
        assert store.verify(kept).ok
        assert set(foreseen.blobs) == set(report.blobs) == {gone.hash, small.hash}
        assert foreseen.freed_bytes == report.freed_bytes
        assert all("was deleted" in why for why in foreseen.reasons.values())

    def test_a_dry_run_takes_nothing(self, store: Store) -> None:
        artifact = store.put(sample(50_000))
        store.delete(artifact)
        report = store.gc(dry_run=True, min_age_seconds=0)
        assert (report.dry_run, report.dropped_blobs) == (True, 1)
        assert store.read(store.restore(artifact)) == sample(50_000)

    def test_the_undo_window_protects_what_was_deleted(self, store: Store) -> None:
        artifact = store.put(sample(50_000))
        store.delete(artifact)
        assert store.gc().forgotten_artifacts == 0
        assert store.gc(min_age_seconds=1000).dropped_blobs == 0
        assert store.read(store.restore(artifact)) == sample(50_000)

    def test_what_came_again_is_as_good_as_new(self, store: Store) -> None:
        for _ in range(3):
            artifact = store.put(sample(50_000))
            store.delete(artifact)
            store.gc(min_age_seconds=0)
            assert not store.exists(artifact.hash)
        artifact = store.put(sample(50_000))
        assert store.read(artifact) == sample(50_000)

    def test_leases_tags_and_requirements_keep(self, store: Store) -> None:
        leases = [store.blobs.put(sample(20_000, seed)) for seed in range(4)]
        store.tags.set("name", leases[1].hash)
        store.put(b"user", requires=[leases[2].hash])
        for lease in leases[1:]:
            lease.release()
        store.gc(min_age_seconds=0)
        assert [store.exists(lease.hash) for lease in leases] == [True, True, True, False]

    def test_a_hash_seq_keeps_what_it_lists(self, store: Store) -> None:
        children = [store.blobs.put(sample(20_000, seed)) for seed in range(3)]
        missing = Hash(b"\1" * 32)
        with store.blobs.hash_seq([*(one.hash for one in children), missing]) as lease:
            for child in children:
                child.release()
            store.gc(min_age_seconds=0)
            assert all(store.exists(child.hash) for child in children)
            store.tags.set("seq", lease.hash, "hash_seq")
        store.gc(min_age_seconds=0)
        assert all(store.exists(child.hash) for child in children)
        store.tags.set("seq", lease.hash)
        store.gc(min_age_seconds=0)
        assert store.exists(lease.hash)
        assert not any(store.exists(child.hash) for child in children)

    def test_a_writer_that_is_aborted_leaves_nothing(self, store: Store) -> None:
        with suppress(ZeroDivisionError), store.writer() as writer:
            writer.write(sample(2 * self.chunk_bytes))
            raise ZeroDivisionError
        store.gc(min_age_seconds=0)
        assert store.stats().chunks == 0

    def test_what_is_read_stays_until_it_is_closed(self, store: Store) -> None:
        artifact = store.put(sample(2 * self.chunk_bytes))
        with store.open(artifact) as file:
            assert file.read(1) == sample(2 * self.chunk_bytes)[:1]
            store.delete(artifact)
            store.gc(min_age_seconds=0, max_batches=1)
            assert file.read() == sample(2 * self.chunk_bytes)[1:]
        while not store.gc(min_age_seconds=0).complete:
            pass
        assert not store.exists(artifact.hash)

    def test_parts_end_where_a_whole_ends(self, make_store: MakeStore) -> None:
        with make_store(gc_batch_size=5) as store:
            kept = store.put_many([sample(100, seed) for seed in range(20)])
            gone = store.put_many([sample(100, 100 + seed) for seed in range(20)])
            store.delete(*gone)
            for _ in range(200):
                if store.gc(min_age_seconds=0, max_batches=1).complete:
                    break
            assert not any(store.exists(one.hash) for one in gone)
            assert [store.read(one) for one in kept] == [sample(100, seed) for seed in range(20)]

    def test_progress_may_stop_it_at_any_point_and_the_next_one_goes_on(self, make_store: MakeStore) -> None:
        with make_store(gc_batch_size=3) as store:
            kept = store.put(sample(50_000, 1))
            gone = store.put_many([sample(100, 100 + seed) for seed in range(10)])
            store.delete(*gone)
            for calls in range(1, 100):
                left = calls

                def stop(_: object) -> None:
                    nonlocal left
                    left -= 1
                    if not left:
                        raise KeyboardInterrupt

                try:
                    store.gc(min_age_seconds=0, progress=stop)
                except KeyboardInterrupt:
                    continue
                break
            assert not any(store.exists(one.hash) for one in gone)
            assert store.read(kept) == sample(50_000, 1)

    def test_forecast_counts_what_is_shared(self, store: Store) -> None:
        data = sample(3 * self.chunk_bytes)
        one, two = store.put(data), store.put(data)
        assert store.forecast(one).freed_bytes == 0
        assert store.forecast(one).shared_bytes > 0
        both = store.forecast([one, two])
        assert (both.artifacts, both.shared_bytes) == (2, 0)
        store.delete(one, two)
        assert store.gc(min_age_seconds=0).freed_bytes == both.freed_bytes
        with pytest.raises(ArtifactNotFound):
            store.forecast(one)

    def test_why_names_all_that_keeps_a_blob(self, store: Store) -> None:
        artifact = store.put(sample(50_000))
        store.tags.set("name", artifact.hash)
        user = store.put(b"user", requires=[artifact.hash])
        roots = {chain.root for chain in store.why(artifact.hash)}
        assert roots == {f"artifact {artifact.id}", "tag 'name'", f"artifact {user.id} (requires it)"}
        with pytest.raises(BlobNotFound):
            store.why(Hash(bytes(32)))

    def test_restoring_asks_for_what_is_required(self, store: Store) -> None:
        base = store.put(b"base")
        user = store.put(b"user", requires=[base])
        store.delete(user, base)
        with pytest.raises(Conflict) as caught:
            store.restore(user)
        assert caught.value.requires == base.id
        assert store.restore(user, force=True).requires == (base.id,)

    def test_numbers_that_make_no_sense_are_refused(self, store: Store) -> None:
        for options in ({"min_age_seconds": -1}, {"max_batches": 0}):
            with pytest.raises(InvalidInput):
                store.gc(**options)  # type: ignore[arg-type]  # wrong on purpose

    def test_others_work_while_it_collects(self, store: Store) -> None:
        errors: list[BaseException] = []
        end = threading.Event()

        def work(seed: int) -> None:
            try:
                while not end.is_set():
                    artifact = store.put(sample(30_000, seed % 3))
                    assert store.read(artifact) == sample(30_000, seed % 3)
                    store.delete(artifact)
                    with suppress(ArtifactNotFound):
                        assert store.read(store.restore(artifact)) == sample(30_000, seed % 3)
                        store.delete(artifact)
            except BaseException as error:  # noqa: BLE001  # told below
                errors.append(error)

        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(3)]
        for thread in threads:
            thread.start()
        for _ in range(8):
            store.gc(min_age_seconds=0)
        end.set()
        for thread in threads:
            thread.join()
        assert not errors, errors
        while not store.gc(min_age_seconds=0).complete:
            pass
        assert store.stats().blobs == 0
        assert store.scrub().ok

    def test_maintenance_collects_by_itself_and_ends_at_once(self, make_store: MakeStore) -> None:
        with make_store(gc_interval_seconds=0.02, min_age_seconds=0) as store:
            artifact = store.put(sample(50_000))
            store.delete(artifact)
            store.start_maintenance()
            store.start_maintenance()
            deadline = time.monotonic() + 60
            while store.exists(artifact.hash) and time.monotonic() < deadline:
                time.sleep(0.01)
            assert not store.exists(artifact.hash)
            store.stop_maintenance()
            store.stop_maintenance()
            turns = store._engine.maintenance_turns()
            time.sleep(0.1)
            assert store._engine.maintenance_turns() == turns
            store.start_maintenance()
        with pytest.raises(HoldfastError):
            store.start_maintenance()

    def test_maintenance_is_off_where_the_configuration_says_so(self, make_store: MakeStore) -> None:
        with make_store(gc_interval_seconds=0.01, gc_enabled=False) as store:
            store.start_maintenance()
            time.sleep(0.05)
            assert store._engine.maintenance_turns() == 0
