"""Credentials in the shape that obstore asks for, revealed only when it asks.

They are handed over as providers rather than as options: an option would be mixed with what the environment
has (a session token that belongs to other keys), and would show in what the store says of itself.
"""

from __future__ import annotations

import json
import shlex
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, TypeAlias

from holdfast.errors import InvalidConfig
from holdfast.secret import Secret

Credentials: TypeAlias = Callable[[], dict[str, Any]]
"""What obstore calls when it has none, or when those that it has expire; `InvalidConfig` when there are none."""

PROCESS_SECONDS: Final = 60


@dataclass(frozen=True, slots=True)
class Keys:
    """An access key of S3 and its secret, with the token of a session or without."""

    access_key: Secret
    secret_key: Secret
    session_token: Secret | None = None

    def __call__(self) -> dict[str, Any]:
        token = self.session_token.reveal() if self.session_token is not None else None
        return {
            "access_key_id": self.access_key.reveal(),
            "secret_access_key": self.secret_key.reveal(),
            "token": token,
            "expires_at": None,
        }


@dataclass(frozen=True, slots=True)
class AccountKey:
    """The key of an Azure storage account."""

    key: Secret

    def __call__(self) -> dict[str, Any]:
        return {"access_key": self.key.reveal(), "expires_at": None}


@dataclass(frozen=True, slots=True)
class SasToken:
    """A shared access signature of Azure."""

    token: Secret

    def __call__(self) -> dict[str, Any]:
        return {"sas_token": self.token.reveal().lstrip("?"), "expires_at": None}


@dataclass(frozen=True, slots=True)
class Process:
    """A program that prints keys of S3, as AWS describes it (`credential_process`); run again when they expire.

    Neither its arguments nor what it prints is ever shown.
    """

    profile: str
    command: Secret

    def __call__(self) -> dict[str, Any]:
        try:
            done = subprocess.run(
                shlex.split(self.command.reveal()),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=PROCESS_SECONDS,
                check=False,
            )
        except (OSError, ValueError, subprocess.TimeoutExpired) as error:
            why = getattr(error, "strerror", None) or type(error).__name__
            raise self._failed(f"cannot be run: {why}") from None
        if done.returncode != 0:
            raise self._failed(f"ended with {done.returncode}")
        try:
            found = json.loads(done.stdout)
            expires = found.get("Expiration")
            return {
                "access_key_id": str(found["AccessKeyId"]),
                "secret_access_key": str(found["SecretAccessKey"]),
                "token": found.get("SessionToken") or None,
                "expires_at": _aware(expires) if expires else None,
            }
        except (ValueError, KeyError, TypeError, AttributeError):
            raise self._failed("did not print what it should (Version 1, as AWS describes it)") from None

    def _failed(self, why: str) -> InvalidConfig:
        return InvalidConfig(
            f"the credential_process of the AWS profile {self.profile} {why}", profile=self.profile
        )


def _aware(text: str) -> datetime:
    when = datetime.fromisoformat(text)
    return when if when.tzinfo is not None else when.replace(tzinfo=UTC)
