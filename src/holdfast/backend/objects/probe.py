"""Whether a bucket does what conditional writes stand on: most do, some say yes and overwrite."""

from __future__ import annotations

import re
import secrets
from contextlib import suppress
from typing import Final, NamedTuple

from holdfast.backend.objects.bucket import Bucket
from holdfast.errors import InvalidConfig, PermissionDenied

PROBE: Final = "check/"
NOT_IMPLEMENTED: Final = 501
"""What some answer to a condition, in place of ignoring it."""


_TRY: Final = re.compile(rf"{PROBE}[0-9a-f]{{32}}(/[a-z]+)?")


def is_try(key: str) -> bool:
    """Whether an object was made to try the bucket, here or by `config check`; others may lie beside it."""
    return _TRY.fullmatch(key) is not None


class Conditions(NamedTuple):
    """What was seen to be honoured."""

    create_if_absent: bool
    replace_if_match: bool


def honours_conditions(bucket: Bucket) -> Conditions:
    """Try both conditions on a key of its own, which is removed again: four writes of a few bytes and a delete.

    What it cannot see: a service that compares first and writes later, so that two of many at once may win.
    Errors are those of the bucket.
    """
    key = f"{PROBE}{secrets.token_hex(16)}"
    first = secrets.token_bytes(16)
    try:
        try:
            made = bucket.create(key, first)
        except InvalidConfig as error:
            if error.evidence.get("status") != NOT_IMPLEMENTED:
                raise
            return Conditions(False, False)
        if made is None or made.e_tag is None:
            return Conditions(False, False)
        create = bucket.create(key, secrets.token_bytes(16)) is None
        try:
            head = bucket.head(key) if not create else made
            if head is None or head.e_tag is None:
                return Conditions(create, False)
            replaced = bucket.replace(key, secrets.token_bytes(16), head.e_tag)
            match = replaced is not None and bucket.replace(key, secrets.token_bytes(16), head.e_tag) is None
        except InvalidConfig:  # some refuse what they do not know
            match = False
        return Conditions(create, match)
    finally:
        with suppress(PermissionDenied):  # who may add and not delete leaves it there, once for each catalog
            bucket.delete([key])
