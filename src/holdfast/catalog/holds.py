"""Payloads and blobs that something keeps which is neither an artifact nor a tag: partial blobs, uploads.

`holds(owner, hash)`: as long as a row is there, a collection takes the payload for live, and, where it is a blob,
what the blob is made of. Rows are facts: they follow from records in the log, and a rebuild makes them again. Who
makes them chooses `owner` (16 bytes or more that nobody else uses) and drops its rows when it ends.

The functions work in the transaction that is open, so that a hold comes and goes together with what it is for.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import apsw

TABLE: Final = """
CREATE TABLE holds(owner BLOB NOT NULL, hash BLOB NOT NULL, PRIMARY KEY(owner, hash)) STRICT, WITHOUT ROWID;
"""
_HOLD: Final = "INSERT INTO holds VALUES(?, ?) ON CONFLICT DO NOTHING"


def hold(cursor: apsw.Cursor, owner: bytes, hashes: Iterable[bytes]) -> None:
    """Keep payloads for an owner. Whoever relies on ones that it did not bring has pinned and touched them first."""
    cursor.executemany(_HOLD, ((owner, hash_) for hash_ in hashes))


def release(cursor: apsw.Cursor, owner: bytes) -> None:
    """Keep nothing for an owner any more."""
    cursor.execute("DELETE FROM holds WHERE owner = ?", (owner,))
