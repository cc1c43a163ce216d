"""`config check`: what it finds out about a bucket, and that it leaves nothing there."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

import holdfast
from holdfast.backend.objects.bucket import Bucket, Meta
from holdfast.backend.objects.check import FOLDER, BucketReport, check_bucket
from holdfast.backend.objects.opening import memory_bucket
from holdfast.cli import main
from holdfast.errors import HoldfastError, PermissionDenied, StoreNotFound, Unavailable


class Odd:
    """A bucket in memory, of which a test replaces methods."""

    def __init__(self, **methods: Callable[..., Any]) -> None:
        self.inner = memory_bucket("memory")
        for name, method in methods.items():
            setattr(self, name, method)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def keys(self) -> list[str]:
        return [meta.key for meta in self.inner.list("")]


def check(bucket: Any) -> BucketReport:
    typed: Bucket = bucket
    return check_bucket(typed)


def states(report: BucketReport) -> dict[str, str]:
    return {finding.name: finding.state for finding in report.findings}


def said(report: BucketReport, name: str) -> str:
    return next(finding.said for finding in report.findings if finding.name == name)


def test_a_sound_bucket_passes_and_has_nothing_left_in_it() -> None:
    bucket = Odd()
    report = check(bucket)
    assert report.ok, report.findings
    assert report.code == 0
    assert set(states(report).values()) == {"ok"}
    assert bucket.keys() == []
    assert sum(count for name, count in report.requests.items() if not name.startswith("bytes")) < 45
    assert json.loads(json.dumps(report.to_dict()))["ok"]


def test_what_is_there_is_left_alone() -> None:
    bucket = Odd()
    bucket.create("holiday.jpg", b"x")
    assert check(bucket).ok
    assert bucket.keys() == ["holiday.jpg"]


def test_a_service_that_ignores_conditions_is_seen_through() -> None:
    bucket = Odd()

    def create(key: str, data: bytes) -> Meta | None:
        return bucket.inner.upload(key, [data], len(data))

    def replace(key: str, data: bytes, e_tag: str) -> Meta | None:
        return bucket.inner.upload(key, [data], len(data))

    bucket.create, bucket.replace = create, replace  # type: ignore[attr-defined]
    report = check(bucket)
    found = states(report)
    assert (found["create if absent"], found["one winner of a race"], found["If-Match"]) == ("failed",) * 3
    assert "ignores If-None-Match" in said(report, "create if absent")
    assert "ignores If-Match" in said(report, "If-Match")
    assert (found["range"], found["multipart"], found["delete"]) == ("ok",) * 3
    assert report.code == 2
    assert bucket.keys() == []


def fails(error: HoldfastError) -> Callable[..., Any]:
    def method(*_: Any, **__: Any) -> Any:
        raise error

    return method


@pytest.mark.parametrize(
    ("methods", "code", "failed"),
    [
        ({"get": fails(Unavailable("nothing can be reached"))}, 7, "reach"),
        ({"list": fails(StoreNotFound("there is no such bucket"))}, 3, "list"),
        ({"create": fails(PermissionDenied("not allowed to write"))}, 7, "create"),
    ],
)
def test_after_what_everything_rests_on_nothing_is_tried(methods: Any, code: int, failed: str) -> None:
    bucket = Odd(**methods)
    report = check(bucket)
    assert report.code == code
    assert not report.ok
    found = states(report)
    assert found[failed] == "failed"
    names = list(found)
    later = names[names.index(failed) + 1 :]
    assert all(found[name] == "not tried" for name in later if name != "delete")
    assert bucket.keys() == []


def test_what_cannot_be_removed_is_named() -> None:
    bucket = Odd(delete=fails(PermissionDenied("not allowed to delete")))
    report = check(bucket)
    assert states(report)["delete"] == "failed"
    left = bucket.keys()
    assert left
    assert all(key.startswith(FOLDER) and key in said(report, "delete") for key in left)
    assert report.code == 7


def test_a_delete_that_does_nothing_is_seen() -> None:
    def delete(keys: Sequence[str]) -> None:
        """Say that all is well."""

    report = check(Odd(delete=delete))
    assert "still there" in said(report, "delete")
    assert report.code == 6


def test_a_list_without_what_was_just_made_is_seen() -> None:
    report = check(Odd(list=lambda prefix, *, after="": iter(())))
    assert "not in the list" in said(report, "create")
    assert report.code == 6


def test_other_bytes_than_were_written_are_seen() -> None:
    bucket = Odd()

    def get_range(key: str, start: int, stop: int) -> bytes | None:
        data = bucket.inner.get_range(key, start, stop)
        return data and bytes([data[0] ^ 1]) + data[1:]

    bucket.get_range = get_range  # type: ignore[attr-defined]
    report = check(bucket)
    assert (states(report)["range"], states(report)["multipart"]) == ("failed", "failed")
    assert bucket.keys() == []


def test_an_interrupted_check_removes_what_it_made() -> None:
    bucket = Odd(copy=fails(KeyboardInterrupt()))  # type: ignore[arg-type]
    with pytest.raises(KeyboardInterrupt):
        check(bucket)
    assert bucket.keys() == []


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'{"format": 1, "store_id": "x"}', "that of a local store"),
        (b'{"format": "other"}', "not the one of an object store"),
        (b"[1]", "not the one of an object store"),
        (b"\xff", "not the one of an object store"),
    ],
)
def test_a_prefix_that_holds_another_format_is_refused_and_left_alone(content: bytes, words: str) -> None:
    bucket = Odd()
    bucket.create("store.json", content)
    report = check(bucket)
    assert words in said(report, "reach")
    assert report.code == 6
    assert states(report)["create"] == "not tried"
    assert bucket.keys() == ["store.json"]


def test_a_store_is_recognised() -> None:
    bucket = Odd()
    bucket.create("store.json", b'{"format": "holdfast objects", "version": 1}')
    report = check(bucket)
    assert report.ok
    assert said(report, "reach") == "there is a store"


# At the prompt


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = main(arguments)
    shown = capsys.readouterr()
    return code, shown.out, shown.err


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    (tmp_path / "objects").mkdir()
    return tmp_path / "objects"


def test_a_directory_is_tried_and_left_empty(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("holdfast.toml").write_text('[blob_store]\ntype = "directory"\npath = "objects"\n')
    code, out, err = run(capsys, "config", "check")
    assert (code, err) == (0, "")
    assert f"store  dir://{directory}" in out
    assert f"catalog  {directory}/catalog.db" in out
    assert "all of it works" in out
    assert sum("  ok  " in line for line in out.splitlines()) == 10
    assert [path.name for path in directory.rglob("*") if path.is_file()] == ["lock"]  # the directory's own
    Path("holdfast.toml").write_text(
        '[blob_store]\ntype = "directory"\npath = "objects"\n[limits]\nmax_requests = 5\n'
    )  # which is for stores: a check that is cut short would leave something behind
    code, out, _ = run(capsys, "--json", "config", "check")
    assert code == 0
    document = json.loads(out)
    assert document["ok"]
    assert document["location"] == f"dir://{directory}"
    assert [check["state"] for check in document["checks"]] == ["ok"] * 10


def test_a_directory_that_is_not_there_or_somebody_else_s_is_said(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = run(capsys, "--store", f"dir://{directory}/absent", "config", "check")
    assert code == 3
    assert "there is no such directory" in err
    (directory / "blobs.db").write_bytes(b"redb\x1a\n\xa9\r\n")
    code, _, err = run(capsys, "--store", f"dir://{directory}", "config", "check")
    assert code == 6
    assert "holds an iroh-blobs file store" in err
    assert sorted(directory.iterdir()) == [directory / "blobs.db"]


def test_the_directory_of_a_local_store_is_told_apart(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    holdfast.create(directory / "local").close()
    before = sorted((directory / "local").iterdir())
    code, out, _ = run(capsys, "--store", f"dir://{directory}/local", "config", "check")
    assert code == 6
    assert "that of a local store: open its path" in out
    assert sorted((directory / "local").iterdir()) == before


def test_without_a_service_the_settings_alone_are_read(
    directory: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HIDDEN", "hunter2")
    Path("holdfast.toml").write_text(
        '[blob_store]\ntype = "s3"\nbucket = "photos"\nendpoint = "http://127.0.0.1:1"\naccess_key = "key"\n'
        'secret_key = { env = "HIDDEN" }\nretry_seconds = 0\n'
    )
    code, out, err = run(capsys, "config", "check", "--offline")
    assert (code, err) == (0, "")
    assert "endpoint  http://127.0.0.1:1" in out
    code, out, err = run(capsys, "config", "check")
    assert code == 7
    assert "nothing can be reached there" in out
    assert "hunter2" not in out + err
    monkeypatch.delenv("HIDDEN")
    code, out, err = run(capsys, "config", "check", "--offline")
    assert code == 2
    assert "the variable HIDDEN, which holds a secret, is not set" in err
