"""Where configuration comes from, which source counts, and what a wrong one is told."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import platformdirs
import pytest

import holdfast
from holdfast.config import STORE_KEYS, BlobStore, Config, Secret, find_file, load
from holdfast.errors import FormatError, InvalidConfig, NotFound


@pytest.fixture(autouse=True)
def _nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No configuration but what the test writes."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "user"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))


def write(text: str, path: str = "holdfast.toml") -> Path:
    file = Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return file


def complaint(text: str, environ: dict[str, str] | None = None, **more: Any) -> str:
    write(text)
    with pytest.raises(InvalidConfig) as caught:
        load(environ=environ or {}, **more)
    return str(caught.value)


# Where it comes from


def test_without_file_and_variables_the_defaults_count_and_pydantic_stays_away() -> None:
    assert load(environ={}) == Config()
    code = (
        "import sys; from holdfast.config import load; load(environ={'HOLDFAST_STORE': 'x'});"
        "sys.exit('pydantic' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_file_counts_over_defaults_variables_over_the_file_arguments_over_variables() -> None:
    write("[log]\nfsync = false\nsegment_size_bytes = 1048576\n[limits]\nmax_artifacts = 3\n")
    environ = {"HOLDFAST_LOG__SEGMENT_SIZE_BYTES": "2097152", "HOLDFAST_LIMITS__MAX_ARTIFACTS": "4"}
    config = load(environ=environ, overrides={"limits": {"max_artifacts": 5}})
    assert (config.log.fsync, config.log.segment_size_bytes, config.limits.max_artifacts) == (
        False,
        2097152,
        5,
    )


def test_the_working_directory_comes_before_the_platform_s_directory(tmp_path: Path) -> None:
    directory = platformdirs.user_config_path("holdfast", appauthor=False)
    assert directory.is_relative_to(tmp_path)
    user = write("", str(directory / "holdfast.toml"))
    assert find_file() == user
    write("")
    assert find_file() == Path("holdfast.toml")


def test_a_named_file_counts_alone_and_must_be_there() -> None:
    write("[log]\nfsync = false\n")
    other = write("", "other.toml")
    assert load(other, environ={}).log.fsync
    assert load(environ={"HOLDFAST_CONFIG": "other.toml"}).log.fsync
    with pytest.raises(NotFound, match=r"missing\.toml"):
        load("missing.toml", environ={})


def test_paths_in_a_file_are_read_from_the_file_s_directory(tmp_path: Path) -> None:
    file = write('[blob_store]\ntype = "filesystem"\npath = "blobs"\n', str(tmp_path / "etc" / "h.toml"))
    assert load(file, environ={}).location() == str(tmp_path / "etc" / "blobs")


# What a wrong one is told


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[log]\nfsnc = true", "holdfast.toml: unknown key fsnc in [log]: did you mean fsync?"),
        ("[lgo]\nfsync = true", "holdfast.toml: unknown section [lgo]: did you mean log?"),
        ("[gc]\nzzz = 1", "holdfast.toml: unknown key zzz in [gc]: known are enabled, interval_seconds"),
        ("log = 3", "holdfast.toml: [log] must be a table"),
        (
            "[log]\nsegment_size_bytes = 5",
            "[log] segment_size_bytes must be 65536 (64 KiB) to 1073741824 (1 GiB), got 5",
        ),
        ("[gc]\nbatch_size = 0", "[gc] batch_size must be 1 to 1000000, got 0"),
        ("[gc]\nmin_age_seconds = nan", "[gc] min_age_seconds must be 0 to "),
        ("[gc]\nbatch_size = 'many'", "[gc] batch_size must be a whole number, got 'many'"),
        ("[log]\nfsync = 'maybe'", "[log] fsync must be true or false, got 'maybe'"),
        ("[log]\nchunking = 'rabin'", "[log] chunking must be 'fastcdc', 'fixed' or 'whole', got 'rabin'"),
        ("[blob_store]\ntype = 's4'", "[blob_store] type must be 'legacy', 'filesystem'"),
        ("[blob_store]\ntype = 's3'", '[blob_store] type = "s3" needs bucket'),
        (
            "[blob_store]\ntype = 'filesystem'\nbucket = 'b'",
            'bucket does not go with type = "filesystem" (it goes with s3',
        ),
        (
            "[blob_store]\ntype = 's3'\nbucket = 'b'\nsecret_key = { evn = 'X' }",
            "[blob_store] secret_key must be a string, { env = … } or { file = … }",
        ),
        ("[log", "holdfast.toml: not TOML"),
        ("\udcff", "holdfast.toml: not TOML"),
    ],
)
def test_a_wrong_file_is_told_where_and_what_is_allowed(text: str, said: str) -> None:
    Path("holdfast.toml").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(InvalidConfig) as caught:
        load(environ={})
    assert said in str(caught.value)


def test_every_problem_is_named_at_once() -> None:
    said = complaint("[log]\nfsnc = true\n[gc]\nbatch_size = 0\n")
    assert len(said.splitlines()) == 2


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("HOLDFAST_STROE", "did you mean HOLDFAST_STORE?"),
        ("HOLDFAST_LOG__FSNC", "did you mean fsync?"),
        ("HOLDFAST_LOOG__FSYNC", "did you mean log?"),
        ("HOLDFAST_LOG_FSYNC", "did you mean HOLDFAST_LOG__FSYNC?"),
    ],
)
def test_a_misspelt_variable_is_not_ignored(name: str, said: str) -> None:
    with pytest.raises(InvalidConfig) as caught:
        load(environ={name: "x"})
    assert name in str(caught.value)
    assert said in str(caught.value)


def test_a_wrong_variable_is_named_rather_than_the_file() -> None:
    assert complaint("", {"HOLDFAST_LOG__FSYNC": "maybe"}).startswith(
        "HOLDFAST_LOG__FSYNC: [log] fsync must be"
    )


@pytest.mark.parametrize(
    ("keys", "location"),
    [
        ('type = "directory"\npath = "o b"', "dir://{here}/o%20b"),
        ('type = "s3"\nbucket = "photos"\nprefix = "/a/b/"', "s3://photos/a/b"),
        ('type = "gcs"\nbucket = "photos"', "gs://photos"),
        ('type = "azure"\ncontainer = "photos"\nprefix = "a"', "az://photos/a"),
    ],
)
def test_an_object_store_has_a_location(keys: str, location: str, tmp_path: Path) -> None:
    write(f"[blob_store]\n{keys}\n")
    assert load(environ={}).location() == location.format(here=tmp_path / "here")


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ('type = "azure"', "needs container"),
        ('type = "azure"\ncontainer = "c"\nregion = "x"', 'region does not go with type = "azure"'),
        ('type = "gcs"\nbucket = "b"\nsecret_key = "x"', 'secret_key does not go with type = "gcs"'),
        ('type = "s3"\nbucket = "b"\naccess_key = "k"', "access_key needs secret_key"),
        ('type = "s3"\nbucket = "b"\nsecret_key = { env = "S" }', "secret_key needs access_key"),
        ('type = "s3"\nbucket = "b"\nsession_token = { env = "S" }', "session_token needs secret_key"),
        (
            'type = "s3"\nbucket = "b"\nprofile = "p"\naccess_key = "k"\nsecret_key = { env = "S" }',
            "profile and access_key cannot both be given",
        ),
        (
            'type = "azure"\ncontainer = "c"\nsas_token = { env = "S" }\naccount_key = { env = "S" }',
            "sas_token and account_key cannot both be given",
        ),
        ('type = "s3"\nbucket = "b"\ntimeout_seconds = 0', "timeout_seconds must be 0.1 to 3600, got 0"),
        ('type = "s3"\nbuckt = "b"', "unknown key buckt in [blob_store]: did you mean bucket?"),
        ('type = "s3"\nbucket = "b"\nprefix = "a//b"', "empty part"),
    ],
)
def test_keys_of_an_object_store_that_do_not_fit_are_named(keys: str, said: str) -> None:
    write(f"[blob_store]\n{keys}\n").chmod(0o600)
    with pytest.raises(InvalidConfig) as caught:
        load(environ={}).location()
    assert said in str(caught.value)


def test_every_key_of_a_store_goes_with_a_type() -> None:
    assert set().union(*STORE_KEYS.values()) == set(BlobStore.__slots__) - {"type"}


def test_memory_and_legacy_are_locations(tmp_path: Path) -> None:
    write('[blob_store]\ntype = "memory"\n')
    assert load(environ={}).location() == "memory://"
    write('[blob_store]\ntype = "legacy"\n')
    assert load(environ={}).location() == Config().location()


# The file store of iroh-blobs


def iroh(path: Path, file: str, content: bytes) -> Path:
    (path / "data").mkdir(parents=True)
    (path / "temp").mkdir()
    (path / file).write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("blobs.db", b"redb\x1a\n\xa9\r\n\0\0\0"),
        (f"data/{'0a' * 32}.data", b"x"),
        (f"data/{'0a' * 32}.obao4", b""),
    ],
)
def test_a_file_store_of_iroh_blobs_is_refused_by_name_and_left_alone(
    tmp_path: Path, file: str, content: bytes
) -> None:
    root = iroh(tmp_path / "blobs", file, content)
    before = sorted(root.rglob("*"))
    write(f'[blob_store]\ntype = "filesystem"\npath = "{root}"\n')
    config = load(environ={})
    attempts: list[Callable[[], object]] = [
        lambda: holdfast.open(root),
        lambda: holdfast.open(root, create=True),
        lambda: holdfast.open(config=config),
        lambda: holdfast.create(root),
        lambda: holdfast.create(root, exist_ok=True),
    ]
    for attempt in attempts:
        with pytest.raises(FormatError, match="holds an iroh-blobs file store") as caught:
            attempt()
        assert caught.value.path == str(root)
    assert sorted(root.rglob("*")) == before


def test_the_default_place_is_looked_at_too() -> None:
    iroh(Path(Config().location()), "blobs.db", b"redb\x1a\n\xa9\r\n")
    with pytest.raises(FormatError, match="iroh-blobs"):
        holdfast.open()


def test_another_database_of_that_name_is_no_iroh_store(tmp_path: Path) -> None:
    root = iroh(tmp_path / "blobs", "blobs.db", b"SQLite format 3\0")
    with pytest.raises(FormatError, match="not a Holdfast store"):
        holdfast.open(root)


# Secrets


def s3(secret: str) -> str:
    return f'[blob_store]\ntype = "s3"\nbucket = "b"\naccess_key = "me"\nsecret_key = {secret}\n'


def test_a_secret_comes_from_a_variable_or_a_file_and_never_shows(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("hunter2\n")
    write(s3('{ env = "KEY" }'))
    key = load(environ={}).blob_store.secret_key
    assert key is not None
    assert key.reveal({"KEY": "hunter2"}) == "hunter2"
    write(s3(f'{{ file = "{tmp_path / "key"}" }}'))
    key = load(environ={}).blob_store.secret_key
    assert key is not None
    assert key.reveal() == "hunter2"
    plain = Secret("hunter2")
    assert "hunter2" not in f"{plain} {plain!r} {Config(BlobStore(secret_key=plain))}"


@pytest.mark.parametrize("secret", [Secret(env="KEY_THAT_IS_NOT_SET"), Secret(file="file-that-is-not-there")])
def test_a_secret_that_is_not_there_is_said_by_name(secret: Secret) -> None:
    with pytest.raises(InvalidConfig, match=r"(?i)that.is.not"):
        secret.reveal({})


def test_paths_and_files_of_secrets_are_read_from_the_file_s_directory(tmp_path: Path) -> None:
    text = s3('{ file = "key" }') + 'db_path = "c.db"\nca_file = "~/ca.pem"\n[cache]\npath = "cache"\n'
    config = load(write(text, str(tmp_path / "etc" / "h.toml")), environ={})
    assert config.blob_store.secret_key == Secret(file=str(tmp_path / "etc" / "key"))
    assert config.blob_store.db_path == str(tmp_path / "etc" / "c.db")
    assert config.blob_store.ca_file == str(Path("~/ca.pem").expanduser())
    assert config.cache.path == str(tmp_path / "etc" / "cache")
    write(s3('{ file = "key" }') + 'db_path = ":memory:"')
    assert load(environ={}).blob_store.db_path == ":memory:"


def test_a_secret_in_a_variable_counts_over_the_file_s() -> None:
    write(s3('{ env = "KEY" }'))
    config = load(environ={"HOLDFAST_BLOB_STORE__SECRET_KEY": "hunter2"})
    assert config.blob_store.secret_key == Secret("hunter2")
    config = load(environ={"HOLDFAST_BLOB_STORE__SECRET_KEY__FILE": "other"})
    assert config.blob_store.secret_key == Secret(file="other")


def test_a_plain_secret_wants_a_private_file() -> None:
    file = write(s3('"hunter2"'))
    file.chmod(0o644)
    with pytest.raises(InvalidConfig, match="chmod 600") as caught:
        load(environ={})
    assert "hunter2" not in str(caught.value)
    file.chmod(0o600)
    assert load(environ={}).blob_store.secret_key == Secret("hunter2")


@pytest.mark.parametrize("key", ["session_token", "account_key", "sas_token"])
def test_every_secret_wants_a_private_file(key: str) -> None:
    keys = 'type = "s3"\nbucket = "b"\naccess_key = "k"\nsecret_key = { env = "S" }'
    if key != "session_token":
        keys = 'type = "azure"\ncontainer = "c"'
    file = write(f'[blob_store]\n{keys}\n{key} = "hunter2"\n')
    file.chmod(0o644)
    with pytest.raises(InvalidConfig, match=f"{key} stands in a file that others can read") as caught:
        load(environ={})
    assert "hunter2" not in f"{caught.value!r}{caught.value.to_dict()}"


def test_a_wrong_secret_is_not_quoted() -> None:
    for text in (s3('["hunter2"]'), s3('{ value = "hunter2" }'), s3('"hunter2" "'), s3("hunter2")):
        write(text).chmod(0o600)
        with pytest.raises(InvalidConfig) as caught:
            load(environ={})
        assert "hunter2" not in f"{caught.value!r}{caught.value.to_dict()}{caught.value.__cause__!r}"


@pytest.mark.parametrize("name", ["HOLDFAST_LOG", "HOLDFAST_LIMITS", "HOLDFAST_GC", "HOLDFAST_BLOB_STORE"])
def test_a_variable_that_names_a_whole_section_is_refused(name: str) -> None:
    with pytest.raises(InvalidConfig, match=f"{name} names a whole section: set its keys, such as {name}__"):
        load(environ={name: "7"})


def test_the_configuration_is_there_without_an_import_of_its_own() -> None:
    """As documents write it: `holdfast.open(location, config=holdfast.config.load())`."""
    program = "import holdfast; print(holdfast.config.load.__name__)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "load\n"
