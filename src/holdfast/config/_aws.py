"""The usual chain of AWS, as far as obstore does not go it: profiles, endpoints, regions, credential processes.

obstore reads variables, web identities, containers and the machine's own role, and no file of `~/.aws`.
Order as in the AWS tools: variables, then the profile (`credentials` before `config`), then what obstore asks.
"""

from __future__ import annotations

import configparser
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from holdfast.backend.objects.credentials import Credentials, Keys, Process
from holdfast.config import BlobStore
from holdfast.errors import InvalidConfig
from holdfast.secret import Secret

_BY_OBSTORE: Final = (
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
)
_NEEDS_A_LOGIN: Final = (
    "sso_session",
    "sso_start_url",
    "role_arn",
    "web_identity_token_file",
    "login_session",
)
_TRUE: Final = ("1", "true", "yes", "on")


@dataclass(frozen=True, slots=True)
class Found:
    """What is to be used, wherever it comes from."""

    endpoint: str = ""
    region: str = ""
    ca_file: str = ""
    credentials: Credentials | None = None


@dataclass(slots=True)
class _Profile:
    name: str
    keys: Mapping[str, str] = field(default_factory=dict)
    """Of the file of credentials."""
    settings: Mapping[str, str] = field(default_factory=dict)
    """Of the file of settings."""
    services: Mapping[str, str] = field(default_factory=dict)

    def get(self, key: str) -> str:
        return self.keys.get(key) or self.settings.get(key) or ""


def find(store: BlobStore, environ: Mapping[str, str]) -> Found:
    """Go the chain; `InvalidConfig` when a named profile is not there, or when nothing can give credentials."""
    profile = _read_profile(store.profile, environ)
    endpoint = (
        store.endpoint
        or environ.get("AWS_ENDPOINT_URL_S3")
        or environ.get("AWS_ENDPOINT_URL")
        or environ.get("AWS_ENDPOINT")
        or _nested(profile.services.get("s3", "")).get("endpoint_url")
        or profile.settings.get("endpoint_url")
        or ""
    )
    region = (
        store.region
        or environ.get("AWS_REGION")
        or environ.get("AWS_DEFAULT_REGION")
        or profile.settings.get("region")
        or ""
    )
    ca_file = store.ca_file or environ.get("AWS_CA_BUNDLE") or profile.settings.get("ca_bundle") or ""
    credentials = _credentials(store, profile, environ)
    if credentials is None and not _obstore_may_find(endpoint, environ):
        raise InvalidConfig(
            "no credentials for S3: set access_key and secret_key in [blob_store], or AWS_ACCESS_KEY_ID and"
            " AWS_SECRET_ACCESS_KEY, or make a profile in ~/.aws/credentials"
            " (AWS_SKIP_SIGNATURE=true asks without any)"
        )
    return Found(endpoint, region, ca_file, credentials)


def _credentials(store: BlobStore, profile: _Profile, environ: Mapping[str, str]) -> Credentials | None:
    if store.access_key is not None and store.secret_key is not None:
        return Keys(store.access_key, store.secret_key, store.session_token)
    if store.profile is None:
        if environ.get("AWS_ACCESS_KEY_ID") and environ.get("AWS_SECRET_ACCESS_KEY"):
            return _from_variables(environ)
        if environ.get("AWS_WEB_IDENTITY_TOKEN_FILE") or _is_true(environ, "AWS_SKIP_SIGNATURE"):
            return None
    for source in (profile.keys, profile.settings):
        access, secret = source.get("aws_access_key_id"), source.get("aws_secret_access_key")
        if access and secret:
            token = source.get("aws_session_token")
            return Keys(Secret(access), Secret(secret), Secret(token) if token else None)
    if command := profile.get("credential_process"):
        return Process(profile.name, Secret(command))
    needs = next((key for key in _NEEDS_A_LOGIN if profile.get(key)), None)
    if needs is not None or store.profile is not None:
        why = f"has {needs}, which Holdfast does not follow" if needs else "has no keys"
        raise InvalidConfig(
            f"the AWS profile {profile.name} {why}: give it a credential_process (`aws configure"
            f" export-credentials --profile {profile.name} --format process` is one), or set the variables"
            " that `aws configure export-credentials --format env` prints",
            profile=profile.name,
        )
    return None


def _from_variables(environ: Mapping[str, str]) -> Keys:
    token = environ.get("AWS_SESSION_TOKEN") or environ.get("AWS_TOKEN")
    return Keys(
        Secret(environ["AWS_ACCESS_KEY_ID"]),
        Secret(environ["AWS_SECRET_ACCESS_KEY"]),
        Secret(token) if token else None,
    )


def _obstore_may_find(endpoint: str, environ: Mapping[str, str]) -> bool:
    """Whether it makes sense to let obstore look: the role of a machine is of no use to somebody else's server."""
    if any(environ.get(name) for name in _BY_OBSTORE) or _is_true(environ, "AWS_SKIP_SIGNATURE"):
        return True
    is_of_aws = not endpoint or ".amazonaws.com" in endpoint
    return is_of_aws and not _is_true(environ, "AWS_EC2_METADATA_DISABLED")


def _is_true(environ: Mapping[str, str], name: str) -> bool:
    return environ.get(name, "").strip().lower() in _TRUE


def _read_profile(named: str | None, environ: Mapping[str, str]) -> _Profile:
    """Read a profile; one that somebody named must be there."""
    home = Path(environ.get("HOME") or "~").expanduser()
    key_file = Path(environ.get("AWS_SHARED_CREDENTIALS_FILE") or home / ".aws" / "credentials").expanduser()
    setting_file = Path(environ.get("AWS_CONFIG_FILE") or home / ".aws" / "config").expanduser()
    wanted = named or environ.get("AWS_PROFILE") or environ.get("AWS_DEFAULT_PROFILE") or ""
    name = wanted or "default"
    keys, settings = _read(key_file), _read(setting_file)
    section = name if name == "default" and not settings.has_section("profile default") else f"profile {name}"
    if wanted and not keys.has_section(name) and not settings.has_section(section):
        raise InvalidConfig(
            f"the AWS profile {name} is neither in {key_file} nor in {setting_file}", profile=name
        )
    profile = _Profile(name)
    if keys.has_section(name):
        profile.keys = dict(keys.items(name))
    if settings.has_section(section):
        profile.settings = dict(settings.items(section))
    services = f"services {profile.settings.get('services', '')}"
    if settings.has_section(services):
        profile.services = dict(settings.items(services))
    return profile


def _read(path: Path) -> configparser.RawConfigParser:
    """Read a file of AWS; one that is not there is empty. What it holds is never quoted: it has secrets."""
    parser = configparser.RawConfigParser(default_section="", strict=False, interpolation=None)
    try:
        with path.open(encoding="utf-8") as file:
            parser.read_file(file)
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:
        raise InvalidConfig(f"{path} cannot be read: {error.strerror}", path=str(path)) from None
    except (configparser.Error, UnicodeDecodeError):
        raise InvalidConfig(
            f"{path} cannot be read: it is not what the AWS tools write", path=str(path)
        ) from None
    return parser


def _nested(text: str) -> dict[str, str]:
    """Read the indented lines below a key."""
    pairs = (line.partition("=") for line in text.splitlines() if "=" in line)
    return {key.strip(): value.strip() for key, _, value in pairs}
