"""A store at rest, and what strangers may have put into it: rights, planted links, bombs, collections without end."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import zstandard

from holdfast import _native
from holdfast.backend.log.layout import STORE_FILE
from holdfast.errors import CorruptBlob, HoldfastError, InvalidInput
from holdfast.store import Store
from holdfast.testing.inside import log_core
from holdfast.testing.streams import Sender, blocks
from holdfast.types import Hash
from holdfast.wire.record import FLAG_BLOB, FLAG_ZSTD, MAX_RECORD_BYTES, Kind

OPTIONS: dict[str, Any] = {"segment_bytes": 64 << 10}


def _work(path: Path) -> None:
    """Do what makes files: segments, partial blobs, a catalog made anew, a second segment."""
    with Store._open(path, create=True, **OPTIONS) as store:
        store.put(os.urandom(100_000), filename="one")
        sender = Sender(os.urandom(50_000))
        store.blobs.decode(sender.hash, sender.stream(blocks(0, 1)), blocks(0, 1))
        store.rebuild()
        store.delete(store.put(b"two"))


def check_private(umask: int, path: Path, work: Callable[[Path], object], least: int) -> None:
    """Whatever the umask: all that `work` makes is 0600 or, a directory, 0700."""
    before = os.umask(umask)
    try:
        work(path)
    finally:
        os.umask(before)
    made = [path, *path.rglob("*")]
    for one in made:
        assert one.stat().st_mode & 0o777 == (0o700 if one.is_dir() else 0o600), one
    assert len(made) > least


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_nobody_else_may_read(umask: int, tmp_path: Path) -> None:
    check_private(umask, tmp_path / "store", _work, least=8)


def test_a_directory_that_everybody_may_write_is_told_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _work(tmp_path / "store")
    with caplog.at_level(logging.WARNING), Store._open(tmp_path / "store"):
        assert not caplog.records
    (tmp_path / "store").chmod(0o777)
    with caplog.at_level(logging.WARNING), Store._open(tmp_path / "store") as store:
        assert "everybody" in caplog.text
        assert store.count() == 1


PLANTED = (
    "lock",
    STORE_FILE,
    "catalog.db",
    "catalog.db-wal",
    "catalog.db.rebuild",
    "catalog.db.rebuild.stage",
)


@pytest.mark.parametrize("exists", [True, False])
@pytest.mark.parametrize(
    "name", [*PLANTED, "segments/0000000001.seg", "segments/0000000099.seg", "sessions/x"]
)
def test_a_planted_link_leads_no_write_elsewhere(name: str, exists: bool, tmp_path: Path) -> None:
    """What the link leads to is as it was, and what is acknowledged is there afterwards."""
    _work(tmp_path / "store")
    outside = tmp_path / "outside"
    if exists:
        outside.write_bytes(b"of somebody else\n" * 1_000)
    planted = tmp_path / "store" / name
    planted.unlink(missing_ok=True)
    planted.symlink_to(outside)
    artifact = None
    try:
        with Store._open(tmp_path / "store", **OPTIONS) as store:
            artifact = store.put(b"new", filename="new")
            store.rebuild()
    except HoldfastError:
        pass
    if exists:
        assert outside.read_bytes() == b"of somebody else\n" * 1_000
    else:
        assert not outside.exists()
    if artifact is not None:
        planted.unlink(missing_ok=True)
        with Store._open(tmp_path / "store", **OPTIONS) as store:
            assert store.read(artifact.id) == b"new"


def test_a_link_in_place_of_the_store_s_directories(tmp_path: Path) -> None:
    """Directories may be links, as people move them to other disks; what is in them is checked as ever."""
    _work(tmp_path / "store")
    (tmp_path / "store" / "segments").rename(tmp_path / "elsewhere")
    (tmp_path / "store" / "segments").symlink_to(tmp_path / "elsewhere")
    with Store._open(tmp_path / "store") as store:
        assert store.scrub().ok


def _put_packed(store: Store, plain_bytes: int, frame: bytes) -> Hash:
    """Store a record whose frame, and whose own header, say what we like."""
    group = log_core(store).backend.group()
    hash_ = _native.blake3(frame)
    group.add(bytes((Kind.DATA,)), bytes((FLAG_BLOB | FLAG_ZSTD,)), hash_, [plain_bytes], [frame])
    group.commit()
    return Hash(hash_)


@pytest.mark.parametrize("case", ["less", "more", "no size", "huge", "cut off", "two frames"])
def test_a_bomb_is_refused_before_it_goes_off(case: str, tmp_path: Path) -> None:
    """Declared and real size disagree: that is damage, and costs no more memory than a record may have."""
    zeros = zstandard.ZstdCompressor(level=1)
    with Store._open(tmp_path / "store", create=True) as store:
        frame, plain = zeros.compress(bytes(1 << 20)), 1 << 20
        if case == "less":
            plain = 5
        elif case == "more":
            plain = MAX_RECORD_BYTES
        elif case == "no size":
            frame = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(1 << 20))
        elif case == "huge":
            compressor = zeros.compressobj(size=1 << 30)
            frame = b"".join(compressor.compress(bytes(1 << 20)) for _ in range(1 << 10)) + compressor.flush()
            plain = 1 << 30
        elif case == "cut off":
            frame = frame[:-3]
        else:
            frame = frame + frame
        hash_ = _put_packed(store, plain, frame)
        tracemalloc.start()
        with pytest.raises(CorruptBlob):
            store.read(hash_)
        assert tracemalloc.get_traced_memory()[1] < 3 * MAX_RECORD_BYTES
        tracemalloc.stop()
        assert not store.scrub().ok


@pytest.mark.parametrize("field", ["metadata", "tags", "filename"])
def test_words_of_100_mb_are_refused(field: str, tmp_path: Path) -> None:
    """The limit is 1 MiB for all that is said about an artifact; nothing of it stays."""
    text = "x" * (100 << 20)
    fields: Any = {"metadata": {"k": text}, "tags": [text], "filename": text}
    with Store._open(tmp_path / "store", create=True) as store:
        with pytest.raises(InvalidInput):
            store.put(b"x", **{field: fields[field]})
        artifact = store.put(b"y")
        with pytest.raises(InvalidInput):
            store.update(artifact, **({"add_tags": [text]} if field == "tags" else {field: fields[field]}))
        assert store.count() == 1
        assert store.stats().disk_bytes < 1 << 20


ENTRIES = """
import resource, sys
from holdfast.store import Store
from holdfast.wire.collection import encode_meta_head, encode_name
from holdfast.errors import InvalidInput

def rss():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10

count = int(sys.argv[2])
with Store._open(sys.argv[1], create=True) as store:
    store.put(bytes(9_000_000))
    child = store.blobs.put(b"x").hash.digest
    def names():
        yield encode_meta_head(count)
        for number in range(count - 1):
            yield encode_name(str(number))
        yield encode_name("../out")
    meta = store.blobs.put(names()).hash.digest
    def hashes():
        yield meta
        for _ in range(0, count, 1000):
            yield child * min(1000, count)
    tree = store.blobs.put(hashes()).hash
    before = rss()
    try:
        store.export(tree, sys.argv[1] + "-out", format="hash_seq")
    except InvalidInput:
        print(rss() - before)
"""


@pytest.mark.parametrize(
    "count",
    [200_000, pytest.param(10_000_000, marks=[pytest.mark.deep, pytest.mark.timeout(0)])],
)
def test_a_collection_of_very_many_names_is_read_in_bounded_memory(count: int, tmp_path: Path) -> None:
    """Its last name leads out of the tree: all names are looked at before anything is written."""
    done = subprocess.run(
        [sys.executable, "-c", ENTRIES, str(tmp_path / "store"), str(count)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    assert done.returncode == 0, done.stderr
    print(f"{count} names: {done.stdout.strip()} MiB more, peak")
    assert int(done.stdout) < 40
    assert not (tmp_path / "store-out").exists()


# --- hash seqs: none can name itself, but they can be deep, and lead to one place in more ways than can be walked


def test_deep_and_branching_sequences_are_followed_in_bounded_time(tmp_path: Path) -> None:
    """A chain of 1,500, and one of 200 each of which names the one below twice: 2 ** 200 ways."""
    with Store._open(str(tmp_path / "store"), create=True, fsync=False) as store:
        leaf = chain = branching = store.blobs.put(b"leaf").hash
        for _ in range(1_500):
            chain = store.blobs.hash_seq([chain]).hash
        for _ in range(200):
            branching = store.blobs.hash_seq([branching, branching, leaf]).hash
    with Store._open(str(tmp_path / "store"), fsync=False) as store:
        store.tags.set("chain", chain, "hash_seq")
        store.tags.set("branching", branching, "hash_seq")
        assert store.gc(min_age_seconds=0).dropped_blobs == 0
        assert len(store.why(leaf)) >= 2
        assert {one.root for one in store.why(leaf)} == {"tag 'chain'", "tag 'branching'"}
        assert sum(1 for _ in islice(store.blobs.children(branching, depth=16), 1_000)) == 1_000
        assert len(list(store.blobs.children(chain, depth=16))) == 16
        store.tags.delete("branching")
        assert store.gc(min_age_seconds=0).dropped_blobs == 200
        store.tags.delete("chain")
        store.gc(min_age_seconds=0)
        assert not store.exists(leaf)


def test_why_finds_the_one_holder_among_many_dead_ones(tmp_path: Path) -> None:
    """Of 300 sequences that name a blob one is named, by a sequence that a tag names."""
    with Store._open(str(tmp_path / "store"), create=True, fsync=False) as store:
        leaf = store.blobs.put(b"leaf").hash
        dead = [store.blobs.hash_seq([leaf, Hash(_native.blake3(b"%d" % i))]).hash for i in range(300)]
        above = [store.blobs.hash_seq([one]).hash for one in (min(dead), max(dead))]
    with Store._open(str(tmp_path / "store"), fsync=False) as store:  # without the leases
        for one in above:
            store.tags.set("above", one, "hash_seq")
            assert [chain.root for chain in store.why(leaf)] == ["tag 'above'"]
