"""What can befall a catalog file: damage, other owners, versions, replacement, forks, missing rights, crashes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import apsw
import pytest

from holdfast.catalog import Catalog, CatalogUnusable
from holdfast.catalog import aside as catalog_aside
from holdfast.catalog import base as catalog_base
from holdfast.catalog.connection import connect
from holdfast.catalog.schema import MIGRATIONS
from holdfast.catalog.unusable import translate
from holdfast.errors import HoldfastError, NeedsReopen, NoSpace, PermissionDenied, Unavailable
from holdfast.facts import FLAG_BLOB, KIND_DATA, ArtifactRow, Facts

STORE = b"s" * 16
COUNT = 1000


def hash_of(number: int) -> bytes:
    return Random(number).randbytes(32)


def some_facts(start: int = 0, count: int = COUNT) -> Facts:
    numbers = range(start, start + count)
    return Facts(
        data=[(hash_of(n), (1 << 32) + n * 100, 100, None, KIND_DATA | FLAG_BLOB, n) for n in numbers],
        artifacts=[
            ArtifactRow(n.to_bytes(16), 1, hash_of(n), 100, 0, n, n, 1, b'{"filename":"x"}') for n in numbers
        ],
        tags=[(f"tag-{n}", hash_of(n), 0, 1, n, 0, 0) for n in numbers[:50]],
        uploads=[(hash_of(n)[:16], 1, n % 4, n, b"document", 0) for n in numbers[:50]],
        segments={1: (start + count, 0)},
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "catalog.db"
    catalog = Catalog.open(path, STORE)
    catalog.apply(some_facts())
    catalog.close()
    return path


def use_all_of(catalog: Catalog) -> list[str]:
    """Call every query once; give the dump."""
    catalog.find_data([hash_of(n) for n in range(COUNT)])
    catalog.find_blobs([hash_of(n) for n in range(COUNT)])
    for _ in catalog.iter_artifacts():
        pass
    catalog.find_artifact_blob((5).to_bytes(16))
    catalog.counts()
    catalog.segments()
    catalog.find_upload(hash_of(5)[:16])
    for _ in catalog.iter_open_uploads():
        pass
    return list(catalog.dump())


# Whose, which version


def test_a_catalog_of_another_store_is_not_used(path: Path) -> None:
    with pytest.raises(CatalogUnusable, match="another store"):
        Catalog.open(path, b"t" * 16)


def test_a_newer_catalog_is_not_used(path: Path) -> None:
    connect(path).execute(f"PRAGMA user_version={len(MIGRATIONS) + 1}")
    for read_only in (False, True):
        with pytest.raises(CatalogUnusable, match="newer"):
            Catalog.open(path, STORE, read_only=read_only)


def test_an_older_catalog_is_migrated_and_keeps_its_rows(path: Path) -> None:
    more = (
        *MIGRATIONS,
        "CREATE TABLE extra(x); INSERT INTO extra VALUES(1)",
        "ALTER TABLE extra ADD COLUMN y",
    )
    with pytest.raises(CatalogUnusable, match="older"):
        Catalog.open(path, STORE, read_only=True, migrations=more)
    before = Catalog.open(path, STORE)
    id, dump = before.id, use_all_of(before)
    before.close()
    catalog = Catalog.open(path, STORE, migrations=more)
    assert (catalog.id, use_all_of(catalog)) == (id, dump)
    catalog.close()
    assert apsw.Connection(str(path)).execute("SELECT x, y FROM extra").fetchall() == [(1, None)]
    assert apsw.Connection(str(path)).pragma("user_version") == len(more)
    fresh = Catalog.open(path.with_name("other.db"), STORE, migrations=more)
    fresh.close()
    assert apsw.Connection(str(path.with_name("other.db"))).execute("SELECT x FROM extra").fetchall() == [
        (1,)
    ]


def test_a_catalog_whose_rows_do_not_say_where_documents_lie_is_rebuilt(path: Path) -> None:
    for rows in (Facts(), Facts(tags=[("name", bytes(32), 0, 1, 1, 0, 0)])):
        path.unlink(missing_ok=True)
        catalog = Catalog.open(path, STORE)
        catalog.apply(rows)
        catalog._write(
            lambda cursor: cursor.execute(
                "ALTER TABLE artifacts DROP COLUMN location; ALTER TABLE tombstones DROP COLUMN location;"
                "ALTER TABLE tags DROP COLUMN location; ALTER TABLE segments DROP COLUMN content;"
                "DROP TABLE spilled; DROP TABLE retired; DROP TABLE repaired;"
                "DROP TABLE seen; DROP TABLE bad; DROP TABLE hidden_artifacts; DROP TABLE hidden_tags;"
                "PRAGMA user_version=4"
            ).fetchall()
        )
        catalog.close()
        if rows.tags:
            with pytest.raises(CatalogUnusable, match="documents"):
                Catalog.open(path, STORE)
        else:
            Catalog.open(path, STORE).close()


def test_a_migration_that_fails_leaves_the_catalog_as_it_was(path: Path) -> None:
    before = path.read_bytes()
    with pytest.raises(HoldfastError):
        Catalog.open(path, STORE, migrations=(*MIGRATIONS, "CREATE TABLE extra(x); DROP TABLE no_such"))
    catalog = Catalog.open(path, STORE)
    assert len(use_all_of(catalog)) > COUNT
    catalog.close()
    assert len(path.read_bytes()) == len(before)
    assert (
        apsw.Connection(str(path)).execute("SELECT 1 FROM sqlite_schema WHERE name='extra'").fetchall() == []
    )


# Damage


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (b"not a database, but long enough to be mistaken for one" * 100, "damaged"),
        (b"SQLite format 3\0" + bytes(84), "cut short"),
        (b"SQLite format 3\0" + bytes(4080), "damaged"),
        (b"\0", "cut short"),
        (bytes(8192), "damaged"),
    ],
)
@pytest.mark.parametrize("read_only", [False, True])
def test_what_is_not_a_database_is_not_used(content: bytes, reason: str, read_only: bool, path: Path) -> None:
    path.write_bytes(content)
    with pytest.raises(CatalogUnusable, match=reason):
        Catalog.open(path, STORE, read_only=read_only)
    assert path.read_bytes() == content


def test_any_other_database_is_not_used(path: Path) -> None:
    path.unlink()
    connection = apsw.Connection(str(path))
    connection.execute("CREATE TABLE data(x)")
    connection.close()
    with pytest.raises(CatalogUnusable, match="not a Holdfast catalog"):
        Catalog.open(path, STORE)


@pytest.mark.parametrize("part", [0.01, 0.3, 0.6, 0.99])
@pytest.mark.parametrize("read_only", [False, True])
def test_a_file_that_is_cut_short_is_not_used(part: float, read_only: bool, path: Path) -> None:
    os.truncate(path, int(path.stat().st_size * part))
    with pytest.raises(CatalogUnusable):
        Catalog.open(path, STORE, read_only=read_only)


def test_a_page_of_rubbish_anywhere_is_an_error_and_never_a_crash(path: Path, tmp_path: Path) -> None:
    whole = path.read_bytes()
    catalog = Catalog.open(path, STORE)
    good = use_all_of(catalog)
    catalog.close()
    random = Random(7)
    noticed = 0
    pages = len(whole) // 4096
    for page in range(pages):
        for rubbish in (bytes(4096), b"\xff" * 4096, random.randbytes(4096)):
            damaged = bytearray(whole)
            damaged[page * 4096 : page * 4096 + 4096] = rubbish
            path.write_bytes(damaged)
            try:
                catalog = Catalog.open(path, STORE)
            except CatalogUnusable:
                noticed += 1
                continue
            try:
                dump = use_all_of(catalog)
            except CatalogUnusable:
                noticed += 1
            else:
                with pytest.raises(CatalogUnusable):  # a page of zeros may pass for one without rows
                    catalog.check()
                assert len(dump) < len(good)
            finally:
                catalog.close()
    assert noticed > pages * 2


def test_flipped_bits_anywhere_are_typed_errors_and_never_a_crash(path: Path) -> None:
    whole = path.read_bytes()
    random = Random(11)
    for _ in range(200):
        damaged = bytearray(whole)
        for _ in range(random.choice((1, 8, 100))):
            damaged[random.randrange(len(damaged))] ^= 1 << random.randrange(8)
        path.write_bytes(damaged)
        for name in ("-wal", "-shm"):
            path.with_name(path.name + name).unlink(missing_ok=True)
        try:
            catalog = Catalog.open(path, STORE)
        except HoldfastError:
            continue
        try:
            use_all_of(catalog)
            catalog.apply(some_facts(COUNT, 20))
        except HoldfastError:
            pass
        finally:
            catalog.close()


def test_a_directory_in_its_place_is_an_error_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "catalog.db").mkdir()
    with pytest.raises((CatalogUnusable, Unavailable)):
        Catalog.open(tmp_path / "catalog.db", STORE)


# Deleted or replaced under its users


def test_a_catalog_that_is_gone_or_replaced_is_not_current(path: Path) -> None:
    catalog = Catalog.open(path, STORE)
    assert catalog.is_current()
    path.unlink()
    assert not catalog.is_current()
    other = Catalog.open(path, STORE)
    assert not catalog.is_current()
    assert other.is_current()
    assert other.id != catalog.id
    other.apply(some_facts(0, 10))
    catalog.close()
    assert other.is_current()
    assert len(list(other.iter_artifacts())) == 10, "the old one must not take the new one's log away"
    other.close()


def test_a_connection_that_is_opened_late_never_mixes_two_files(path: Path) -> None:
    catalog = Catalog.open(path, STORE)  # no reader yet
    aside = Catalog.create_aside(path, STORE)
    aside.publish(path)
    with pytest.raises(CatalogUnusable, match="replaced"):
        catalog.find_data([hash_of(1)])
    catalog.close()


@pytest.mark.parametrize("how", ["its bytes", "its file"])
@pytest.mark.parametrize("use", ["read", "write"])
def test_a_catalog_is_told_by_its_id_and_by_its_file(path: Path, how: str, use: str) -> None:
    """Other bytes in the same file, as where an inode's number comes again; the same bytes in another file."""
    catalog = Catalog.open(path, STORE)
    catalog.before_fork(time.monotonic() + 10)  # all connections are closed; the next use opens them anew
    catalog.after_fork_in_parent()
    other = path.with_name("other.db")
    if how == "its bytes":
        Catalog.open(other, STORE).close()
        path.write_bytes(other.read_bytes())
    else:
        shutil.copy(path, other)
        other.replace(path)
    uses: dict[str, Callable[[], object]] = {
        "read": lambda: catalog.find_data([hash_of(1)]),
        "write": lambda: catalog.apply(some_facts(COUNT, 1)),
    }
    with pytest.raises(CatalogUnusable, match="replaced"):
        uses[use]()
    catalog.close()


def test_no_log_lies_beside_a_catalog_that_is_made(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.unlink()
    for suffix in ("-wal", "-shm", "-journal"):
        path.with_name(path.name + suffix).write_bytes(b"another database's")
    seen: list[list[str]] = []

    def look(*args: Any, **kwargs: Any) -> Any:
        seen.append([item.name for item in path.parent.iterdir()])
        return connect(*args, **kwargs)

    monkeypatch.setattr(catalog_base, "connect", look)
    Catalog.open(path, STORE).close()
    assert seen[0] == [path.name]


def test_a_stale_log_never_meets_a_new_catalog(path: Path) -> None:
    catalog = Catalog.open(path, STORE)
    catalog.apply(some_facts(COUNT, 10))
    saved = {name: path.with_name(path.name + name).read_bytes() for name in ("-wal", "-shm")}
    catalog.close()
    path.unlink()
    for name, content in saved.items():
        path.with_name(path.name + name).write_bytes(content)
    fresh = Catalog.open(path, STORE)
    assert list(fresh.dump()) == []
    fresh.close()


PUBLISH_STEPS = ("unlink", "fsync", "rename")


def test_a_crash_at_any_step_of_publishing_leaves_a_state_that_opens(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each step in turn is the last that happens. Then there is the old catalog whole, the new one whole, or none."""

    class Crash(BaseException):
        pass

    old = Catalog.open(path, STORE)
    old_dump = list(old.dump())
    new_facts = some_facts(COUNT, 30)
    outcomes = []
    for crash_at in range(1, 30):
        steps = 0

        def step(call: Callable[..., object], at: int = crash_at) -> Callable[..., object]:
            def run(*args: object, **kwargs: object) -> object:
                nonlocal steps
                steps += 1
                if steps == at:
                    raise Crash
                return call(*args, **kwargs)

            return run

        old.close()
        for item in path.parent.iterdir():
            item.unlink()
        old = Catalog.open(path, STORE)
        old.apply(some_facts())
        old.find_data([hash_of(1)])  # a log and shared memory are there
        aside = Catalog.create_aside(path, STORE)
        aside.apply(new_facts)
        aside.settle()
        with monkeypatch.context() as patch:
            patch.setattr(os, "unlink", step(os.unlink))
            patch.setattr(os, "rename", step(os.rename))
            patch.setattr(catalog_aside, "_fsync", step(catalog_aside._fsync))
            try:
                aside.publish(path)
                crashed = False
            except Crash:
                crashed = True
        old.close()
        aside.close()
        was_there = path.exists()
        catalog = Catalog.open(path, STORE)
        dump = list(catalog.dump())
        catalog.check()
        catalog.close()
        new = [line for line in dump if line.startswith("artifact")]
        outcome = (
            "old"
            if dump == old_dump
            else "new"
            if len(new) == 30
            else "none"
            if not dump and not was_there
            else "bad"
        )
        outcomes.append(outcome)
        if not crashed:
            break
    assert "bad" not in outcomes
    assert outcomes[0] == "old"
    assert outcomes[-1] == "new"
    assert "none" in outcomes
    assert sorted(outcomes, key=["old", "none", "new"].index) == outcomes
    assert len(outcomes) >= 6


def test_each_step_of_publishing_is_durable_before_the_next(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The new one's bytes; then the old database is gone, then its log; then the new one has the name."""
    old = Catalog.open(path, STORE)
    old.apply(some_facts())
    aside = Catalog.create_aside(path, STORE)
    aside.apply(some_facts(COUNT, 30))
    aside.settle()
    steps: list[str] = []

    def spy(name: str) -> None:
        real = getattr(os, name)

        def call(what: Any, *rest: Any, **more: Any) -> Any:
            where = os.readlink(f"/proc/self/fd/{what}") if name == "fsync" else os.fspath(what)
            steps.append(f"{name} {os.path.basename(where)}")
            return real(what, *rest, **more)

        monkeypatch.setattr(os, name, call)

    for name in ("fsync", "unlink", "rename"):
        spy(name)
    aside.publish(path)
    monkeypatch.undo()
    old.close()
    sync = f"fsync {path.parent.name}"
    new = f"{path.name}.rebuild"
    assert [step for step in steps if not step.endswith((".stage", "-shm", "-journal"))] == [
        f"fsync {new}",
        f"unlink {path.name}",
        sync,
        f"unlink {path.name}-wal",
        sync,
        f"rename {new}",
        sync,
    ]


def test_nothing_of_a_broken_off_rebuild_meets_the_next(path: Path) -> None:
    for name in (".rebuild", ".rebuild.stage"):
        for suffix in ("-wal", "-shm", "-journal"):
            path.with_name(path.name + name + suffix).write_bytes(b"left by a process that was killed")
    aside = Catalog.create_aside(path, STORE)
    aside.apply(some_facts(0, 3))
    aside.publish(path)
    assert [item.name for item in path.parent.iterdir()] == [path.name]


def test_what_a_broken_off_rebuild_left_is_removed_by_the_next(path: Path) -> None:
    aside = Catalog.create_aside(path, STORE)
    aside.apply(some_facts())
    again = Catalog.create_aside(
        path, STORE
    )  # the first one's process is dead, as far as the second can tell
    again.apply(some_facts(0, 3))
    again.publish(path)
    aside.close()
    catalog = Catalog.open(path, STORE)
    assert len(list(catalog.iter_artifacts())) == 3
    catalog.close()


# Forks


def in_child(work: Callable[[], None]) -> str:
    """Run `work` in a forked child; give what went wrong there, or nothing."""
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            work()
            os.write(writing, b".")
        except BaseException as error:
            os.write(writing, repr(error).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        answer = pipe.read()
    os.waitpid(pid, 0)
    return answer.removesuffix(".")


def locks_on(path: Path) -> dict[int, int]:
    """Count the POSIX locks on a file by process."""
    inode = f":{path.stat().st_ino} "
    found: dict[int, int] = {}
    for line in Path("/proc/locks").read_text().splitlines():
        if inode in line + " ":
            pid = int(line.split()[4])
            found[pid] = found.get(pid, 0) + 1
    return found


@pytest.mark.skipif(not Path("/proc/locks").exists(), reason="needs /proc/locks")
def test_a_forked_child_that_opens_anew_has_locks_of_its_own(path: Path) -> None:
    catalog = Catalog.open(path, STORE)
    catalog.find_data([hash_of(1)])

    def work() -> None:
        with pytest.raises(NeedsReopen):
            catalog.find_data([hash_of(1)])
        with pytest.raises(NeedsReopen):
            catalog.apply(Facts())
        mine = Catalog.open(path, STORE)
        mine.apply(some_facts(COUNT, 5))
        assert os.getpid() in locks_on(path)
        mine.close()

    assert in_child(work) == ""
    assert len(catalog.find_data([hash_of(COUNT + n) for n in range(5)])) == 5
    catalog.apply(some_facts(COUNT + 5, 5))
    catalog.close()


def test_a_fork_while_threads_read_and_write_harms_nobody(path: Path) -> None:
    catalog = Catalog.open(path, STORE)
    stop = threading.Event()
    problems: list[BaseException] = []

    def work(start: int) -> None:
        try:
            n = start
            while not stop.is_set():
                catalog.apply(some_facts(n, 2))
                assert len(catalog.find_data([hash_of(n), hash_of(n + 1)])) == 2
                n += 2
        except BaseException as problem:
            problems.append(problem)

    threads = [threading.Thread(target=work, args=(10_000 * n,)) for n in (1, 2, 3)]
    for thread in threads:
        thread.start()

    def child() -> None:
        mine = Catalog.open(path, STORE)
        assert len(mine.find_data([hash_of(n) for n in range(COUNT)])) == COUNT
        mine.apply(some_facts(90_000, 2))
        mine.close()

    answers = [in_child(child) for _ in range(10)]
    stop.set()
    for thread in threads:
        thread.join()
    assert (answers, problems) == ([""] * 10, [])
    catalog.check()
    catalog.close()


def test_a_catalog_in_memory_is_refused_in_a_child(path: Path) -> None:
    catalog = Catalog.open(None, STORE)

    def work() -> None:
        with pytest.raises(NeedsReopen):
            catalog.apply(Facts(segments={1: (1, 0)}))
        with pytest.raises(NeedsReopen):
            catalog.find_data([hash_of(1)])

    assert in_child(work) == ""
    catalog.apply(some_facts(0, 3))
    assert len(list(catalog.iter_artifacts())) == 3
    catalog.close()


# Read-only


def state_of(directory: Path) -> dict[str, tuple[int, int, bytes]]:
    return {
        item.name: (item.stat().st_ino, item.stat().st_mtime_ns, item.read_bytes())
        for item in directory.iterdir()
    }


def test_a_read_only_catalog_writes_nothing_at_all(path: Path) -> None:
    before = state_of(path.parent)
    catalog = Catalog.open(path, STORE, read_only=True)
    assert len(use_all_of(catalog)) > COUNT
    assert catalog.is_current()
    with pytest.raises(PermissionDenied):
        catalog.apply(some_facts())
    with pytest.raises(PermissionDenied):
        catalog.set_meta("hint.x", 1)
    catalog.close()
    assert state_of(path.parent) == before


def test_a_read_only_catalog_is_not_current_once_somebody_writes(path: Path) -> None:
    catalog = Catalog.open(path, STORE, read_only=True)
    writer = Catalog.open(path, STORE)
    writer.apply(some_facts(COUNT, 1))
    assert not catalog.is_current()
    again = Catalog.open(path, STORE, read_only=True)  # this one reads the log too
    assert again.find_data([hash_of(COUNT)])
    writer.apply(some_facts(COUNT + 1, 1))
    assert again.is_current()
    assert again.find_data([hash_of(COUNT + 1)])
    again.close()
    writer.close()
    assert not catalog.is_current()
    catalog.close()


def test_a_read_only_catalog_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(CatalogUnusable, match="not there"):
        Catalog.open(tmp_path / "catalog.db", STORE, read_only=True)
    assert list(tmp_path.iterdir()) == []


READ_ONLY_SCRIPT = textwrap.dedent("""
    import os, sys
    from pathlib import Path
    from holdfast.catalog import Catalog, CatalogUnusable
    if os.getuid() == 0:
        os.setresgid(65534, 65534, 65534), os.setresuid(65534, 65534, 65534)
    path = Path(sys.argv[1])
    try:
        open(path.parent / "probe", "x")
        sys.exit("the directory can be written")
    except PermissionError:
        pass
    try:
        catalog = Catalog.open(path, b"s" * 16, read_only=True)
    except CatalogUnusable as error:
        print("unusable:", error)
    else:
        print(sum(1 for _ in catalog.iter_artifacts()), catalog.is_current())
        catalog.close()
""")


@pytest.mark.parametrize("log", ["none", "whole", "log only"])
def test_a_directory_that_cannot_be_written_is_read_or_refused(log: str, path: Path) -> None:
    home = Path(tempfile.mkdtemp(dir="/tmp"))  # its parents can be entered by anybody
    try:
        catalog = Catalog.open(path, STORE)
        catalog.apply(some_facts(COUNT, 7))
        names = {"none": [], "whole": ["-wal", "-shm"], "log only": ["-wal"]}[log]
        if not names:
            catalog.close()
        for name in ("", *names):
            shutil.copy(f"{path}{name}", home / f"catalog.db{name}")
            os.chmod(home / f"catalog.db{name}", 0o444)
        catalog.close()
        os.chmod(home, 0o555)
        command = [sys.executable, "-c", READ_ONLY_SCRIPT, str(home / "catalog.db")]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
        if log == "log only":
            assert done.stdout.startswith("unusable:")
        else:
            assert done.stdout.split() == [str(COUNT + 7), "True"]
    finally:
        os.chmod(home, 0o700)
        shutil.rmtree(home)


def test_a_disk_too_full_to_open_it_is_called_full(path: Path) -> None:
    error: Any = apsw.IOError(
        "disk I/O error"
    )  # what SQLite says where there is no room for its shared memory
    error.extendedresult = apsw.SQLITE_IOERR_SHMSIZE
    assert isinstance(translate(error, path), NoSpace)
