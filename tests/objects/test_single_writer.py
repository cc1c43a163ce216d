"""Services that honour no conditions: refused without a word, and written by one process alone where that is chosen."""

from __future__ import annotations

import itertools
import json
import logging
import multiprocessing
import os
import re
import secrets
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import holdfast
from holdfast.backend.objects import single_writer as module
from holdfast.backend.objects.bucket import Meta
from holdfast.backend.objects.check import check_bucket
from holdfast.backend.objects.layout import WRITER_KEY
from holdfast.backend.objects.opening import open_bucket
from holdfast.backend.objects.single_writer import SingleWriter
from holdfast.cli import main
from holdfast.errors import Conflict, InvalidConfig, Locked
from holdfast.servers import LocalServer
from holdfast.store import Store
from holdfast.testing.fault_proxy import FaultProxy
from holdfast.testing.loose_bucket import LooseBucket
from holdfast.types import now_ms
from tests.servers import let_all, need, place_in


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Locks of our own, and no second to wait for others that are not there."""
    monkeypatch.setattr(module, "SETTLE_SECONDS", 0.01)
    monkeypatch.setattr(module, "place_of_claims", lambda: str(tmp_path))


@pytest.fixture(params=["ignores", "refuses"])
def loose(request: pytest.FixtureRequest) -> LooseBucket:
    bucket = LooseBucket()
    bucket.refuses = request.param == "refuses"
    return bucket


def writer(bucket: Any, name: str = "here") -> SingleWriter:
    return SingleWriter(bucket, name)


def note(bucket: LooseBucket) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(bucket.objects[WRITER_KEY][0])
    return found


def age(bucket: LooseBucket, seconds: float) -> None:
    """Let what says who writes be so old, by the bucket's time."""
    data, meta = bucket.objects[WRITER_KEY]
    bucket.objects[WRITER_KEY] = data, meta._replace(modified_ms=now_ms() - int(seconds * 1000))


def test_without_it_the_refusal_names_it(loose: LooseBucket) -> None:
    loose.refuses = False
    with pytest.raises(InvalidConfig, match=r"does not honour create-if-absent.*single_writer = true"):
        Store._open_objects(loose, create=True)
    assert not loose.objects
    Store._open_objects(loose, create=True, single_writer="here").close()
    with pytest.raises(InvalidConfig, match=r"does not honour create-if-absent.*single_writer = true"):
        Store._open_objects(loose)


def test_a_store_is_used_as_any_other(loose: LooseBucket, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "holdfast"):
        with Store._open_objects(loose, create=True, single_writer="here") as store:
            artifacts = store.put_many([b"%d" % n for n in range(50)])
            store.put(bytes(100_000))
            store.tags.set("name", artifacts[0].hash)
            store.update(artifacts[1], filename="x")
            with pytest.raises(Conflict):
                store.update(artifacts[1], filename="y", if_revision=1)
            store.delete(artifacts[2])
            store.restore(artifacts[2])
            store.delete(artifacts[3])
            assert note(loose)["pid"] == os.getpid()
        assert note(loose)["holder"] == ""
    warned = [one.getMessage() for one in caplog.records if "single_writer" in one.getMessage()]
    assert len(warned) == 1
    assert "not as safe" in warned[0]
    with Store._open_objects(loose, single_writer="here") as store:  # without its catalog
        assert len(list(store.find())) == 50
        assert store.info(artifacts[1]).filename == "x"
        assert store.gc(min_age_seconds=0).dropped_blobs == 1
        assert store.scrub().ok


def test_reading_claims_nothing(loose: LooseBucket, tmp_path: Path) -> None:
    catalog = tmp_path / "catalog.db"
    with Store._open_objects(loose, catalog, create=True, single_writer="here") as store:
        artifact = store.put(b"x")
    before = dict(loose.objects)
    with Store._open_objects(loose, catalog, single_writer="here") as store:
        assert store.read(artifact) == b"x"
    with Store._open_objects(loose, read_only=True, single_writer="here") as store:
        assert store.read(artifact) == b"x"
    assert loose.objects == before


def test_two_of_one_machine(loose: LooseBucket) -> None:
    with Store._open_objects(loose, create=True, single_writer="here") as store:
        store.put(b"x")
        with Store._open_objects(loose, single_writer="here") as other:
            assert len(list(other.find())) == 1  # the ends of listings are there: nothing was to be written
            with pytest.raises(Locked, match="on this machine") as caught:
                other.put(b"y")
            assert caught.value.pid == os.getpid()
            store.close()
            other.put(b"y")


def test_two_machines(loose: LooseBucket) -> None:
    """Another name stands for another machine: their locks do not meet."""
    with Store._open_objects(loose, create=True, single_writer="here") as store:
        artifact = store.put(b"x")
        with Store._open_objects(loose, single_writer="there") as other:
            writes: list[Callable[[], object]] = [
                lambda: other.put(b"y"),
                lambda: other.put(bytes(9 << 20)),
                lambda: other.delete(artifact.id),
                lambda: other.tags.set("name", artifact.hash),
                other.gc,
                other.compact,
            ]
            before = dict(loose.objects)
            for write in writes:
                with pytest.raises(Locked, match="another machine"):
                    write()
            assert loose.objects == before
            store.close()
            other.put(b"y")
            with Store._open_objects(loose, single_writer="here") as again, pytest.raises(Locked):
                again.put(b"z")


def test_one_that_is_silent_is_taken_for_gone_and_writes_no_more(
    loose: LooseBucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = itertools.count(0, module.CHECK_SECONDS)
    first = writer(loose)
    first.create("a", b"1")
    second = writer(loose, "there")
    age(loose, 590)
    with pytest.raises(Locked):
        second.create("b", b"2")
    age(loose, 610)
    second.create("b", b"2")
    monkeypatch.setattr(module, "_seconds", lambda: float(next(seconds)) + 1e9)  # the first one wakes up
    with pytest.raises(Locked, match="another machine"):
        first.create("c", b"1")
    assert "c" not in loose.objects
    second.close()
    monkeypatch.undo()


def test_one_that_was_killed_is_followed_at_once_on_its_machine(loose: LooseBucket) -> None:
    first = writer(loose)
    first.create("a", b"1")
    assert first._lock is not None
    os.close(first._lock)  # as the end of a process does
    first._lock = None
    second = writer(loose)
    assert second.create("b", b"2") is not None
    third = writer(loose, "there")  # on another one nobody knows
    with pytest.raises(Locked):
        third.create("c", b"3")


def test_the_claim_is_kept_fresh(loose: LooseBucket, monkeypatch: pytest.MonkeyPatch) -> None:
    at = [0.0]
    monkeypatch.setattr(module, "_seconds", lambda: at[0])
    bucket = writer(loose)
    bucket.create("a", b"1")
    beats = []
    for second in range(0, 200, 5):
        at[0] = float(second)
        bucket.upload("a", [b"1"], 1)
        beats.append(note(loose)["beat"])
    assert beats[-1] == 3


def test_the_claim_is_kept_fresh_while_a_large_body_goes_up(
    loose: LooseBucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    at = [0.0]
    monkeypatch.setattr(module, "_seconds", lambda: at[0])
    bucket = writer(loose)
    bucket.create("a", b"1")

    def pieces() -> Iterator[bytes]:
        for second in range(0, 200, 5):
            at[0] = float(second)
            yield b"1"

    bucket.upload("b", pieces(), 40)
    assert note(loose)["beat"] == 3


def test_two_that_claim_at_once(loose: LooseBucket, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both see that nobody has it; one of them loses it before it has written anything."""
    monkeypatch.setattr(module, "SETTLE_SECONDS", 0.3)
    for turn in range(8):
        loose.objects.pop(WRITER_KEY, None)
        both = [SingleWriter(loose, f"{turn}-{n}") for n in range(2)]
        barrier = threading.Barrier(2)

        def write(one: SingleWriter, barrier: threading.Barrier = barrier) -> bool:
            barrier.wait()
            with suppress(Locked):
                return one.create(secrets.token_hex(16), b"x") is not None
            return False

        with ThreadPoolExecutor(2) as pool:
            won = list(pool.map(write, both))
        assert won.count(True) == 1
        for one in both:
            one.close()


def test_a_claim_that_takes_long_waits_for_others_to_look(
    loose: LooseBucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    at = [0.0]
    slept: list[float] = []
    monkeypatch.setattr(module, "_seconds", lambda: at[0])
    monkeypatch.setattr("time.sleep", slept.append)
    real = loose.upload

    def slow(key: str, pieces: Any, size_bytes: int) -> Meta:
        at[0] += 5
        return real(key, pieces, size_bytes)

    monkeypatch.setattr(loose, "upload", slow)
    writer(loose).delete([])
    assert slept[0] > module.CHECK_SECONDS


def test_a_note_that_cannot_be_read_holds_until_it_is_old(loose: LooseBucket) -> None:
    loose.upload(WRITER_KEY, [b'{"holder": "half'], 16)
    with pytest.raises(Locked):
        writer(loose).create("a", b"1")
    age(loose, 3_600)
    assert writer(loose, "there").create("a", b"1") is not None


def test_threads_of_one_process_do_not_overwrite_each_other(loose: LooseBucket) -> None:
    bucket = writer(loose)
    with ThreadPoolExecutor(8) as pool:
        for turn in range(30):
            key = f"k{turn}"
            made = list(pool.map(lambda n, key=key: bucket.create(key, b"%d" % n), range(8)))
            assert sum(one is not None for one in made) == 1
            tag = loose.objects[key][1].e_tag or ""
            made = list(pool.map(lambda n, key=key, tag=tag: bucket.replace(key, b"r%d" % n, tag), range(8)))
            assert sum(one is not None for one in made) == 1
    assert bucket.replace("nothing", b"x", '"1"') is None


def test_no_place_for_the_lock_is_told(loose: LooseBucket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "place_of_claims", lambda: None)
    with pytest.raises(InvalidConfig, match="TMPDIR"):
        writer(loose).create("a", b"1")


def test_a_process_that_was_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its lock ends with it, and the claim that it left is followed at once."""
    monkeypatch.setattr(module, "SETTLE_SECONDS", 0.5)
    from holdfast.backend.objects.directory import DirectoryBucket

    root = tmp_path / "bucket"
    root.mkdir()

    def die() -> None:
        SingleWriter(DirectoryBucket(str(root)), "here").create("a", b"1")
        os._exit(9)

    process = multiprocessing.get_context("fork").Process(target=die)
    process.start()
    process.join()
    assert process.exitcode == 9
    assert json.loads((root / WRITER_KEY).read_text())["holder"]
    assert SingleWriter(DirectoryBucket(str(root)), "here").create("b", b"1") is not None


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServer]:
    """Give a server of our own that everybody may write to: what is not signed can be taken away on the way."""
    need("minio")
    with LocalServer("minio", tmp_path_factory.mktemp("server")) as running:
        let_all(running.access, "ListBucket", "GetObject", "PutObject", "DeleteObject")
        yield running


@pytest.fixture
def deaf(server: LocalServer) -> Iterator[FaultProxy]:
    """Give a service that hears no conditions."""
    with FaultProxy(server.access.endpoint) as proxy:
        proxy.drops = frozenset({"if-none-match", "if-match"})
        yield proxy


def test_a_server(server: LocalServer, deaf: FaultProxy, prefix: str) -> None:
    options = (("endpoint", deaf.endpoint), ("region", server.access.region), ("skip_signature", True))
    place = place_in(server.access, prefix, endpoint=deaf.endpoint, credentials=None, options=options)
    with pytest.raises(InvalidConfig, match="single_writer"):
        Store._open_objects(open_bucket(place), create=True)
    with Store._open_objects(open_bucket(place), create=True, single_writer="here") as store:
        artifact = store.put(bytes(20 << 20))
        store.update(artifact, filename="x")
        store.delete(store.put(b"y"))
        with Store._open_objects(open_bucket(place), single_writer="there") as other, pytest.raises(Locked):
            other.put(b"z")
        assert store.gc(min_age_seconds=0).dropped_blobs == 1
        assert store.rebuild(deep=True).damaged == 0
    report = check_bucket(open_bucket(place), single_writer=True)
    assert (report.ok, report.code) == (True, 0)


def test_what_the_check_says(loose: LooseBucket) -> None:
    report = check_bucket(loose, single_writer=True)
    assert (report.ok, report.code) == (True, 0), report.findings
    states = {finding.name: finding.state for finding in report.findings}
    assert states["create if absent"] == states["If-Match"] == "warn"
    assert states["create"] == states["multipart"] == "ok"
    strict = check_bucket(loose)
    assert (strict.ok, strict.code) == (False, 2)
    if not loose.refuses:
        assert "single_writer = true" in next(f.said for f in strict.findings if f.name == "If-Match")


def test_the_command_line(
    server: LocalServer,
    deaf: FaultProxy,
    prefix: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    access = server.access
    monkeypatch.setattr(module, "SETTLE_SECONDS", 0.5)
    monkeypatch.setenv("AWS_SKIP_SIGNATURE", "true")
    for name, value in {
        "TYPE": "s3",
        "BUCKET": access.bucket,
        "PREFIX": prefix,
        "ENDPOINT": deaf.endpoint,
        "REGION": access.region,
        "DB_PATH": str(tmp_path / "catalog.db"),
    }.items():
        monkeypatch.setenv(f"HOLDFAST_BLOB_STORE__{name}", value)
    assert main(["init"]) == 2
    assert "set single_writer = true in [blob_store]" in capsys.readouterr().err.replace("\n", " ")
    monkeypatch.setenv("HOLDFAST_BLOB_STORE__SINGLE_WRITER", "true")
    assert main(["init"]) == 0
    assert "single_writer = true: a look and a claim" in capsys.readouterr().err
    (tmp_path / "x").write_bytes(b"x")
    assert main(["put", str(tmp_path / "x")]) == 0
    capsys.readouterr()
    assert main(["config", "show"]) == 0
    assert "\nsingle_writer = true\n" in capsys.readouterr().out
    assert main(["config", "check"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"create if absent +warn ", out)
    assert "one machine alone writes" in out
    config = holdfast.config.load()
    with holdfast.open(config=config) as store:
        store.put(b"more")
        assert main(["put", str(tmp_path / "x")]) == 7
        assert "one process alone writes" in capsys.readouterr().err
        assert main(["ls"]) == 0
