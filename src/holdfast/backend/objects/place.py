"""Where the objects of a store are: one frozen value, and what its parts may be.

Made by `holdfast.config.places.place_of` from a location and the configuration. Nothing here talks to anybody.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias
from urllib.parse import SplitResult, quote, urlsplit

from holdfast.backend.objects.credentials import Credentials
from holdfast.errors import InvalidConfig

Provider: TypeAlias = Literal["directory", "s3", "gcs", "azure"]
SCHEMES: Final[dict[str, Provider]] = {"dir": "directory", "s3": "s3", "gs": "gcs", "az": "azure"}
"""The kinds of locations that are object stores."""

MAX_PREFIX_BYTES: Final = 512
_BUCKET: Final = re.compile(r"[A-Za-z0-9$][A-Za-z0-9._-]{1,253}[A-Za-z0-9]")
_UNSAFE: Final = re.compile(r"[\x00-\x1f\x7f?#%\\]")
_PORTS: Final = {"http": 80, "https": 443}
_LOOPBACK: Final = re.compile(r"localhost|.*\.localhost|127\.\d+\.\d+\.\d+|::1")


@dataclass(frozen=True, slots=True)
class BucketPlace:
    """Where the objects are, and how to get at them. It has no secret that `repr` would show."""

    provider: Provider
    bucket: str = ""
    """The bucket, or the container of Azure."""
    prefix: str = ""
    """What all keys begin with, without a slash at either end."""
    path: str = ""
    """The absolute path of a directory."""
    endpoint: str = ""
    """The service, where it is not the provider's own."""
    account: str = ""
    """Of Azure."""
    options: tuple[tuple[str, str | bool], ...] = ()
    """What obstore takes as `config`; no secrets."""
    credentials: Credentials | None = field(default=None, repr=False)
    """None: what obstore finds by itself, in variables, files, or by asking the machine that it runs on."""
    allow_http: bool = False
    ca_file: str = ""
    timeout_seconds: float = 30
    retry_seconds: float = 120
    max_requests: int | None = None
    single_writer: bool = False
    """Write also where the service honours no conditions: this process is to be the only one."""

    @property
    def location(self) -> str:
        """Give the location as users write it."""
        return location_of(
            self.provider, self.path if self.provider == "directory" else self.bucket, self.prefix
        )

    @property
    def identity(self) -> str:
        """Give a text that is equal for two places just when they are the same objects, as far as names tell."""
        parts = (self.provider, self.endpoint, self.account, self.path or self.bucket, self.prefix)
        return "\n".join(parts)

    def store_arguments(self) -> dict[str, Any]:
        """Give what the stores of obstore take beside name and prefix: `config`, `client_options`, credentials.

        `InvalidConfig` when credentials or the file of certificates cannot be read.
        """
        client: dict[str, Any] = {"allow_http": self.allow_http}
        if self.ca_file:
            client["root_certificate"] = read_certificates(self.ca_file)
        arguments: dict[str, Any] = {"config": dict(self.options), "client_options": client}
        if self.credentials is not None:
            self.credentials()  # what is missing is said here, and not through the wrappings of a request
            arguments["credential_provider"] = self.credentials
        return arguments


def is_object_location(text: str) -> bool:
    """Whether a location is one of an object store, of whatever provider."""
    scheme, separator, _ = text.partition("://")
    return bool(separator) and scheme.lower() in SCHEMES


def location_of(provider: Provider, name: str, prefix: str = "") -> str:
    """Give the location of a directory (its absolute path), or of a bucket and a prefix."""
    scheme = next(scheme for scheme, kind in SCHEMES.items() if kind == provider)
    if provider == "directory":
        return f"{scheme}://{quote(name)}"
    return f"{scheme}://{name}/{prefix}" if prefix else f"{scheme}://{name}"


def check_bucket(name: str) -> str:
    """Give the name of a bucket back, or `InvalidConfig`; a provider may allow less than this does."""
    if "@" in name or ":" in name:
        raise InvalidConfig(
            "a location names no credentials and no port: endpoint and keys stand in [blob_store], in variables,"
            " or in the provider's files"
        )
    if not _BUCKET.fullmatch(name):
        raise InvalidConfig(f"{name!r:.80} is no name of a bucket: 3 to 255 letters, digits, dots, hyphens")
    return name


def check_prefix(prefix: str) -> str:
    """Give the prefix without slashes at its ends; `InvalidConfig` for one that servers would read differently."""
    parts = prefix.strip("/").split("/")
    if parts == [""]:
        return ""
    if any(part in ("", ".", "..") for part in parts):
        raise InvalidConfig(f"the prefix {prefix!r:.80} has an empty part, or one that is a dot or two")
    if found := _UNSAFE.search(prefix):
        raise InvalidConfig(
            f"{found[0]!r} cannot follow {prefix[: found.start()]!r:.80} in a prefix; settings such as"
            " endpoint or region stand in [blob_store]"
        )
    try:
        size = len(prefix.encode())
    except UnicodeEncodeError:
        raise InvalidConfig("the prefix is not UTF-8") from None
    if size > MAX_PREFIX_BYTES:
        raise InvalidConfig(f"the prefix has {size} bytes; {MAX_PREFIX_BYTES} are allowed")
    return "/".join(parts)


def check_endpoint(text: str) -> SplitResult:
    """Read an endpoint; `InvalidConfig` unless it is http:// or https://, a host, and perhaps a port and a path."""
    try:
        parts = urlsplit(text.strip())
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), None
    if parts.username is not None or parts.password is not None:
        raise InvalidConfig("endpoint has credentials in it: take them out, keys have settings of their own")
    if parts.scheme not in _PORTS or not parts.hostname or parts.query or parts.fragment:
        shown = text.partition("?")[0].rpartition("@")[2]
        raise InvalidConfig(f"endpoint is {shown!r:.80}; https://HOST or http://HOST:PORT is expected")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    shown_port = "" if port in (None, _PORTS[parts.scheme]) else f":{port}"
    return parts._replace(netloc=host + shown_port, path=parts.path.rstrip("/"))


def is_loopback(host: str) -> bool:
    """Whether a host is this machine, so that nobody can listen on the way."""
    return _LOOPBACK.fullmatch(host.lower()) is not None


def read_certificates(path: str) -> bytes:
    """Read a file of certificates in PEM; `InvalidConfig` when it cannot be one."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise InvalidConfig(f"ca_file {path} cannot be read: {error.strerror}", path=path) from error
    if b"-----BEGIN CERTIFICATE-----" not in data:
        raise InvalidConfig(f"ca_file {path} has no certificate in it (PEM is expected)", path=path)
    return data
