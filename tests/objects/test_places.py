"""From a location and what is configured to the place of an object store: what counts, and what never shows."""

from __future__ import annotations

import json
import pickle
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

import holdfast
from holdfast.backend.objects.credentials import AccountKey, Keys, Process, SasToken
from holdfast.backend.objects.place import BucketPlace
from holdfast.config import BlobStore, Config, Limits, load
from holdfast.config.places import catalog_of, place_of
from holdfast.errors import InvalidConfig, InvalidInput
from holdfast.secret import Secret

SECRET = "hunter2"
AWS = {"AWS_ACCESS_KEY_ID": "env-key", "AWS_SECRET_ACCESS_KEY": SECRET}
AZURE = {"AZURE_STORAGE_ACCOUNT_NAME": "acc"}


@pytest.fixture(autouse=True)
def _nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No configuration, no home, and no credentials but what the test brings."""
    import os

    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "user"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    for name in list(os.environ):
        if name.startswith(("AWS_", "AZURE_", "GOOGLE_")) or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)


def s3(**keys: Any) -> Config:
    return Config(BlobStore(type="s3", bucket="photos", **keys))


def azure(**keys: Any) -> Config:
    return Config(BlobStore(type="azure", container="photos", **keys))


def place(location: str, config: Config | None = None, environ: dict[str, str] | None = None) -> BucketPlace:
    found = place_of(location, config, environ={**AWS, **AZURE} if environ is None else environ)
    assert found is not None
    return found


def refused(location: str, config: Config | None = None, environ: dict[str, str] | None = None) -> str:
    with pytest.raises(InvalidConfig) as caught:
        place(location, config, environ)
    said = f"{caught.value}{caught.value!r}{caught.value.to_dict()}"
    assert SECRET not in said
    return str(caught.value)


def home_file(tmp_path: Path, name: str, text: str) -> dict[str, str]:
    """Write a file of `~/.aws`; gives the environment of somebody who lives there."""
    path = tmp_path / "home" / ".aws" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return {"HOME": str(tmp_path / "home")}


# Locations


@pytest.mark.parametrize(
    "location", ["store", "/store", "file:///store", "memory://", "https://b/x", "s3:/b", ""]
)
def test_a_location_of_no_object_store_is_none_of_ours(location: str) -> None:
    assert place_of(location, environ={}) is None


@pytest.mark.parametrize(
    ("location", "provider", "name", "prefix", "shown"),
    [
        ("s3://photos", "s3", "photos", "", "s3://photos"),
        ("s3://photos/", "s3", "photos", "", "s3://photos"),
        ("S3://photos/a/b/", "s3", "photos", "a/b", "s3://photos/a/b"),
        ("gs://photos/a b", "gcs", "photos", "a b", "gs://photos/a b"),
        ("az://photos/é", "azure", "photos", "é", "az://photos/é"),
        ("dir:///a/b", "directory", "/a/b", "", "dir:///a/b"),
        ("dir://localhost/a/../b%20c", "directory", "/b c", "", "dir:///b%20c"),
    ],
)
def test_a_location_is_read_and_written(
    location: str, provider: str, name: str, prefix: str, shown: str
) -> None:
    found = place(location)
    assert (found.provider, found.path or found.bucket, found.prefix) == (provider, name, prefix)
    assert found.location == shown
    assert place(found.location) == found


@pytest.mark.parametrize(
    ("location", "said"),
    [
        ("s3://", "no name of a bucket"),
        ("s3:///x", "no name of a bucket"),
        ("s3://a b/x", "no name of a bucket"),
        ("s3://photos/a//b", "empty part"),
        ("s3://photos/../b", "a dot or two"),
        ("s3://photos/a?endpoint=x", "settings such as endpoint or region stand in [blob_store]"),
        ("s3://photos/a#b", "settings such as"),
        ("s3://photos/a\nb", "cannot follow"),
        ("s3://photos/" + "a" * 513, "512 are allowed"),
        (f"s3://key:{SECRET}@photos/x", "names no credentials"),
        (f"s3://photos/a?secret_key={SECRET}", "settings such as"),
        ("dir://objects", "dir:// takes an absolute path, as in dir:///"),
        ("dir://host/objects", "absolute path"),
        ("dir:///a?b", "absolute path"),
    ],
)
def test_a_location_that_cannot_be_meant_is_refused(location: str, said: str) -> None:
    assert said in refused(location)


# Which of several answers counts


def test_what_speaks_of_the_provider_counts_for_each_of_its_locations() -> None:
    config = replace(
        s3(endpoint="https://minio.example:9000/", region="r1", timeout_seconds=3, retry_seconds=4),
        limits=Limits(max_requests=7),
    )
    found = place("s3://other/x", config)
    assert (found.bucket, found.prefix, found.endpoint) == ("other", "x", "https://minio.example:9000")
    assert (found.timeout_seconds, found.retry_seconds, found.max_requests) == (3, 4, 7)
    assert dict(found.options)["region"] == "r1"
    assert place("gs://other", config).endpoint == ""


def test_settings_count_over_variables_and_variables_over_the_profile(tmp_path: Path) -> None:
    aws = "[default]\nregion = file-region\nendpoint_url = https://file.example\nca_bundle = /file.pem\n"
    files = home_file(tmp_path, "config", aws) | AWS
    from_file = place("s3://photos", None, files)
    assert (from_file.endpoint, dict(from_file.options)["region"]) == ("https://file.example", "file-region")
    assert from_file.ca_file == "/file.pem"
    variables = files | {"AWS_REGION": "env-region", "AWS_ENDPOINT_URL": "https://env.example"}
    from_variables = place("s3://photos", None, variables)
    assert (from_variables.endpoint, dict(from_variables.options)["region"]) == (
        "https://env.example",
        "env-region",
    )
    variables["AWS_ENDPOINT_URL_S3"] = "https://s3.env.example"
    assert place("s3://photos", None, variables).endpoint == "https://s3.env.example"
    config = s3(region="set", endpoint="https://set.example", ca_file="/set.pem")
    found = place("s3://photos", config, variables)
    assert (found.endpoint, dict(found.options)["region"], found.ca_file) == (
        "https://set.example",
        "set",
        "/set.pem",
    )


def test_the_whole_way_from_file_variable_and_argument() -> None:
    file = Path("holdfast.toml")
    file.write_text('[blob_store]\ntype = "s3"\nbucket = "photos"\nregion = "of-file"\nprefix = "p"\n')
    variables = {"HOLDFAST_BLOB_STORE__REGION": "of-variable"}
    for overrides, region in (
        ({}, "of-variable"),
        ({"blob_store": {"region": "of-argument"}}, "of-argument"),
    ):
        config = load(environ=variables, overrides=overrides)
        assert config.location() == "s3://photos/p"
        assert dict(place(config.location(), config).options)["region"] == region


# Credentials of S3


def test_configured_keys_take_no_session_token_from_the_environment() -> None:
    keys = {"access_key": Secret("key"), "secret_key": Secret(SECRET)}
    found = place("s3://photos", s3(**keys), AWS | {"AWS_SESSION_TOKEN": "of-others"})
    assert found.credentials == Keys(keys["access_key"], keys["secret_key"])
    assert found.store_arguments()["credential_provider"]()["token"] is None


def test_keys_of_variables_count_over_those_of_a_profile(tmp_path: Path) -> None:
    text = (
        f"[default]\naws_access_key_id = of-file\naws_secret_access_key = {SECRET}\naws_session_token = t\n"
    )
    files = home_file(tmp_path, "credentials", text)
    found = place("s3://photos", None, files).credentials
    assert found is not None
    assert (found()["access_key_id"], found()["token"]) == ("of-file", "t")
    found = place("s3://photos", None, files | AWS).credentials
    assert found is not None
    assert (found()["access_key_id"], found()["token"]) == ("env-key", None)


def test_a_profile_is_chosen_by_variable_or_setting(tmp_path: Path) -> None:
    text = "".join(
        f"[{name}]\naws_access_key_id = {name}\naws_secret_access_key = {SECRET}\n" for name in ("one", "two")
    )
    files = home_file(tmp_path, "credentials", text)
    for config, environ, key in (
        (None, {"AWS_PROFILE": "one"}, "one"),
        (s3(profile="two"), {"AWS_PROFILE": "one"}, "two"),
        (s3(profile="two"), AWS, "two"),
    ):
        found = place("s3://photos", config, files | environ).credentials
        assert found is not None
        assert found()["access_key_id"] == key
    assert "the AWS profile three is neither in" in refused("s3://photos", s3(profile="three"), files)


def test_the_file_of_settings_has_profiles_services_and_programs(tmp_path: Path) -> None:
    program = tmp_path / "keys.py"
    document = {
        "Version": 1,
        "AccessKeyId": "made",
        "SecretAccessKey": SECRET,
        "Expiration": "2030-01-02T03:04:05Z",
    }
    program.write_text(f"print({json.dumps(document)!r})")
    text = (
        f"[profile made]\ncredential_process = {sys.executable} {program}\nservices = mine\nregion = r\n"
        "[services mine]\ns3 =\n  endpoint_url = https://mine.example\n  addressing_style = path\n"
    )
    found = place("s3://photos", s3(profile="made"), home_file(tmp_path, "config", text))
    assert (found.endpoint, dict(found.options)["region"]) == ("https://mine.example", "r")
    assert isinstance(found.credentials, Process)
    given = found.store_arguments()["credential_provider"]()
    assert (given["access_key_id"], given["expires_at"].isoformat()) == ("made", "2030-01-02T03:04:05+00:00")


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (f"import sys; sys.exit('{SECRET}')", "ended with 1"),
        (f"print('{SECRET}')", "did not print what it should"),
        (f"""print('{{"SecretAccessKey": "{SECRET}"}}')""", "did not print what it should"),
        ("raise SystemExit(3)", "ended with 3"),
    ],
)
def test_a_program_that_gives_no_keys_is_named_and_not_quoted(tmp_path: Path, code: str, said: str) -> None:
    program = tmp_path / "keys.py"
    program.write_text(code)
    text = f"[default]\ncredential_process = {sys.executable} {program} --password {SECRET}\n"
    found = place("s3://photos", None, home_file(tmp_path, "config", text))
    with pytest.raises(InvalidConfig) as caught:
        found.store_arguments()
    assert said in str(caught.value)
    assert SECRET not in f"{caught.value!r}{caught.value.to_dict()}{caught.value.__cause__!r}{found!r}"


@pytest.mark.parametrize("key", ["sso_session = x", "role_arn = arn:aws:iam::1:role/x\nsource_profile = y"])
def test_a_profile_that_wants_a_login_says_how_to_get_its_keys(tmp_path: Path, key: str) -> None:
    files = home_file(tmp_path, "config", f"[profile work]\n{key}\n")
    said = refused("s3://photos", None, files | {"AWS_PROFILE": "work"})
    assert f"has {key.split()[0]}, which Holdfast does not follow" in said
    assert "export-credentials --profile work" in said


def test_broken_files_of_aws_are_named_and_not_quoted(tmp_path: Path) -> None:
    said = refused(
        "s3://photos", None, home_file(tmp_path, "credentials", f"aws_secret_access_key = {SECRET}\n")
    )
    assert "credentials cannot be read: it is not what the AWS tools write" in said


def test_without_any_credentials_a_server_of_somebody_else_is_not_asked() -> None:
    assert "no credentials for S3: set access_key and secret_key" in refused(
        "s3://photos", s3(endpoint="http://localhost:9000"), {}
    )
    assert "no credentials for S3" in refused("s3://photos", None, {"AWS_EC2_METADATA_DISABLED": "true"})
    assert place("s3://photos", None, {}).credentials is None  # a role of the machine may have some
    anonymous = {"AWS_SKIP_SIGNATURE": "true"}
    assert place("s3://photos", s3(endpoint="http://localhost:9000"), anonymous).credentials is None


# Endpoints


@pytest.mark.parametrize(
    ("endpoint", "said"),
    [
        ("localhost:9000", "endpoint is 'localhost:9000'; https://HOST or http://HOST:PORT is expected"),
        ("ftp://x", "is expected"),
        ("https://", "is expected"),
        ("https://x:port", "is expected"),
        ("https://x?y=z", "is expected"),
        (f"https://me:{SECRET}@x", "endpoint has credentials in it"),
        (f"{SECRET}:9000@x", "endpoint is 'x'"),
        (f"https://x/?key={SECRET}", "endpoint is 'https://x/'"),
        ("http://minio.example:9000", "is plain http"),
    ],
)
def test_an_endpoint_that_cannot_be_one_is_refused(endpoint: str, said: str) -> None:
    assert said in refused("s3://photos", s3(endpoint=endpoint))
    assert said in refused("gs://photos", Config(BlobStore(type="gcs", bucket="photos", endpoint=endpoint)))
    assert said in refused("az://photos", azure(endpoint=endpoint))
    assert said in refused("s3://photos", None, AWS | {"AWS_ENDPOINT_URL": endpoint})


def test_plain_http_is_for_this_machine_unless_it_is_allowed() -> None:
    for endpoint in ("http://localhost:9000", "http://127.0.0.1:1", "http://[::1]:1"):
        assert place("s3://photos", s3(endpoint=endpoint)).allow_http
        assert "plain http" in refused("s3://photos", s3(endpoint=endpoint, allow_http=False))
    assert place("s3://photos", s3(endpoint="http://minio:9000", allow_http=True)).allow_http
    assert place("s3://photos", s3(endpoint="http://minio:9000"), AWS | {"AWS_ALLOW_HTTP": "true"}).allow_http
    assert not place("s3://photos", s3(endpoint="https://minio")).allow_http


def test_a_virtual_host_has_the_bucket_in_its_name() -> None:
    found = place("s3://photos", s3(endpoint="https://minio.example:9000", virtual_host=True))
    options = dict(found.options)
    assert options["endpoint"] == "https://photos.minio.example:9000"
    assert options["virtual_hosted_style_request"] is True
    assert found.endpoint == "https://minio.example:9000"


def test_a_file_of_certificates_is_read_when_it_is_used(tmp_path: Path) -> None:
    file = tmp_path / "ca.pem"
    found = place("s3://photos", s3(ca_file=str(file)))
    with pytest.raises(InvalidConfig, match=r"ca_file .*ca.pem cannot be read: No such file"):
        found.store_arguments()
    file.write_text("no certificate")
    with pytest.raises(InvalidConfig, match="has no certificate in it"):
        found.store_arguments()
    file.write_text("-----BEGIN CERTIFICATE-----")
    assert found.store_arguments()["client_options"]["root_certificate"] == b"-----BEGIN CERTIFICATE-----"


# GCS and Azure


def test_gcs_takes_a_file_of_a_service_account(tmp_path: Path) -> None:
    file = tmp_path / "account.json"
    config = Config(BlobStore(type="gcs", bucket="photos", service_account=str(file)))
    assert "there is no file" in refused("gs://photos", config)
    file.write_text("{}")
    assert dict(place("gs://photos", config).options)["service_account"] == str(file)
    for name in ("GOOGLE_SERVICE_ACCOUNT_KEY", "GOOGLE_BEARER_TOKEN"):
        assert f"{name} is set, which would count over it" in refused("gs://photos", config, {name: SECRET})


def test_azure_takes_account_and_key_from_where_they_are_said() -> None:
    assert "no storage account for Azure" in refused("az://photos", None, {})
    connection = (
        f"DefaultEndpointsProtocol=https;AccountName=conn;AccountKey={SECRET}==;EndpointSuffix=core.example"
    )
    variables = {"AZURE_STORAGE_CONNECTION_STRING": connection}
    found = place("az://photos", None, variables)
    assert (found.account, found.endpoint) == ("conn", "https://conn.blob.core.example")
    assert found.credentials == AccountKey(Secret(f"{SECRET}=="))
    other = place("az://photos", azure(account="mine"), variables)
    assert (other.account, other.endpoint, other.credentials) == ("mine", "", None)
    assert place("az://photos", None, variables | AZURE).account == "acc"
    assert place("az://photos", None, AZURE | {"AZURE_STORAGE_KEY": SECRET}).credentials == AccountKey(
        Secret(SECRET)
    )
    assert place("az://photos", None, AZURE | {"AZURE_STORAGE_ACCOUNT_KEY": SECRET}).credentials is None
    token = place(
        "az://photos", azure(account="mine", sas_token=Secret(f"?sig={SECRET}")), variables
    ).credentials
    assert token == SasToken(Secret(f"?sig={SECRET}"))
    assert token is not None
    assert token()["sas_token"] == f"sig={SECRET}"


# Catalogs


def test_each_place_has_a_catalog_of_its_own(tmp_path: Path) -> None:
    places = [
        place("s3://photos"),
        place("s3://photos/a"),
        place("gs://photos"),
        place("az://photos"),
        place("az://photos", azure(account="other")),
        place("s3://photos", s3(endpoint="https://minio.example")),
    ]
    catalogs = [catalog_of(place) for place in places]
    assert len(set(catalogs)) == len(places)
    assert all(path.startswith(str(tmp_path / "data" / "holdfast" / "objects")) for path in catalogs)
    same = place(
        "s3://photos/", s3(endpoint="https://Minio.Example:443/", region="r", access_key=Secret("k"))
    )
    assert catalog_of(same) == catalogs[-1]
    assert catalog_of(place("dir:///objects")) == "/objects/catalog.db"


def test_db_path_is_for_the_configured_place_alone(tmp_path: Path) -> None:
    config = s3(db_path=str(tmp_path / "c.db"))
    assert catalog_of(place("s3://photos", config), config) == str(tmp_path / "c.db")
    assert catalog_of(place("s3://other", config), config) == catalog_of(place("s3://other"))
    config = s3(db_path=":memory:")
    assert catalog_of(place("s3://photos", config), config) == ":memory:"


# Secrets


def test_no_secret_shows_in_a_place_and_it_pickles() -> None:
    keys: dict[str, Any] = {
        "access_key": Secret("key"),
        "secret_key": Secret(SECRET),
        "session_token": Secret(SECRET),
    }
    connection = f"AccountName=acc;SharedAccessSignature=sig={SECRET}"
    for found in (
        place("s3://photos", s3(**keys)),
        place("s3://photos", None, AWS | {"AWS_SESSION_TOKEN": SECRET}),
        place("az://photos", azure(account="a", account_key=Secret(SECRET))),
        place("az://photos", None, {"AZURE_STORAGE_CONNECTION_STRING": connection}),
    ):
        shown = f"{found!r}{found}{found.location}{found.identity}{found.options}{found.credentials!r}"
        assert SECRET not in shown
        assert pickle.loads(pickle.dumps(found)) == found


def test_a_secret_that_is_not_there_is_said_before_anything_is_asked() -> None:
    missing = place("s3://photos", s3(access_key=Secret("key"), secret_key=Secret(env="NOT_SET")))
    with pytest.raises(InvalidConfig, match="the variable NOT_SET, which holds a secret, is not set"):
        missing.store_arguments()


# What is sent: obstore reads the environment by itself, and must not count over what was decided here


@dataclass
class Listener:
    """A server that answers 404 to everything and keeps what it was asked."""

    server: ThreadingHTTPServer
    asked: list[tuple[str, dict[str, str]]] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture
def listeners() -> Iterator[tuple[Listener, Listener]]:
    made = []
    for _ in range(2):
        asked: list[tuple[str, dict[str, str]]] = []

        class Handler(BaseHTTPRequestHandler):
            kept = asked

            def do_HEAD(self) -> None:
                self.kept.append((self.path, {name.lower(): value for name, value in self.headers.items()}))
                self.send_response(404)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                """Stay quiet."""

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        made.append(Listener(server, asked))
    yield made[0], made[1]
    for listener in made:
        listener.server.shutdown()
        listener.server.server_close()


def ask(found: BucketPlace) -> None:
    """Send one request with obstore as it comes, without retries."""
    from obstore.store import AzureStore, GCSStore, S3Store

    kinds: dict[str, Any] = {"s3": S3Store, "gcs": GCSStore, "azure": AzureStore}
    store = kinds[found.provider](found.bucket, retry_config={"max_retries": 0}, **found.store_arguments())
    assert SECRET not in repr(store)
    with suppress(FileNotFoundError):
        store.head("x")


def test_s3_is_asked_with_what_was_decided(
    listeners: tuple[Listener, Listener], monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, others = listeners
    for name, value in (AWS | {"AWS_SESSION_TOKEN": "of-others", "AWS_ENDPOINT_URL_S3": others.url}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_SKIP_SIGNATURE", "true")
    monkeypatch.setenv("AWS_REGION", "of-others")
    keys = {"access_key": Secret("ours"), "secret_key": Secret(SECRET)}
    found = place_of("s3://photos", s3(endpoint=ours.url, region="here", **keys))
    assert found is not None
    ask(found)
    assert not others.asked
    ((path, headers),) = ours.asked
    assert path == "/photos/x"
    assert "Credential=ours/" in headers["authorization"]
    assert "/here/s3/" in headers["authorization"]
    assert "x-amz-security-token" not in headers


def test_azure_is_asked_with_what_was_decided(
    listeners: tuple[Listener, Listener], monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, others = listeners
    monkeypatch.setenv("AZURE_STORAGE_SAS_TOKEN", "sig=of-others")
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "others")
    monkeypatch.setenv("AZURE_STORAGE_ENDPOINT", others.url)
    found = place_of("az://photos", azure(account="ours", account_key=Secret("a2V5"), endpoint=ours.url))
    assert found is not None
    ask(found)
    assert not others.asked
    ((path, headers),) = ours.asked
    assert path == "/photos/x"
    assert headers["authorization"].startswith("SharedKey ours:")


def test_gcs_is_asked_with_what_was_decided(
    listeners: tuple[Listener, Listener], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ours, others = listeners
    monkeypatch.setenv("GOOGLE_BASE_URL", others.url)
    monkeypatch.setenv("GOOGLE_SERVICE_ACCOUNT", "/nowhere.json")
    account = {"gcs_base_url": others.url, "disable_oauth": True, "client_email": "", "private_key": ""}
    file = tmp_path / "account.json"
    file.write_text(json.dumps(account | {"private_key_id": ""}))
    found = place_of(
        "gs://photos",
        Config(BlobStore(type="gcs", bucket="photos", endpoint=ours.url, service_account=str(file))),
    )
    assert found is not None
    ask(found)
    assert not others.asked
    assert [path for path, _ in ours.asked] == ["/photos/x"]


@pytest.mark.parametrize(
    "location", ["https://key:hunter2@host/p", "file://key:hunter2@host/x", "sftp://k:hunter2@h"]
)
def test_a_location_that_is_not_ours_is_refused_without_what_may_be_a_secret(location: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        holdfast.open(location)
    assert "hunter2" not in repr(caught.value) + str(caught.value.evidence)
