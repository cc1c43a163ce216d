"""Try out on a bucket what a store will ask of it, under keys of its own that are removed again."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, Final

from holdfast.backend.objects.bucket import Bucket
from holdfast.errors import FormatError, HoldfastError, InvalidConfig, exit_code

STORE_KEY: Final = "store.json"
STORE_FORMAT: Final = "holdfast objects"
FOLDER: Final = "check/"
"""Keys begin with it, and a random part of each run's own; a store takes them for foreign."""
MULTIPART_BYTES: Final = (8 << 20) + 1
"""More than one part."""
RACERS: Final = 8
CONDITIONS: Final = ("create if absent", "one winner of a race", "If-Match")
"""What `single_writer` does without."""

OK: Final = "ok"
WARNING: Final = "warn"
"""It does not work, and `single_writer` does without it."""
FAILED: Final = "failed"
NOT_TRIED: Final = "not tried"


@dataclass(frozen=True, slots=True)
class Finding:
    """How one thing went. `error` is the kind of the error and `said` its message, without secrets."""

    name: str
    state: str
    said: str = ""
    milliseconds: float = 0
    error: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Give the finding as plain data."""
        shown = {"name": self.name, "state": self.state, "milliseconds": round(self.milliseconds, 1)}
        return shown | {key: value for key in ("said", "error") if (value := getattr(self, key))}


@dataclass(slots=True)
class BucketReport:
    """What works of a bucket. Reading needs the first three, everything else needs all."""

    location: str
    findings: list[Finding] = field(default_factory=list)
    requests: dict[str, int] = field(default_factory=dict)
    code: int = 0
    """The exit code: that of the first error."""

    @property
    def ok(self) -> bool:
        """Whether all of it works that is needed."""
        return all(finding.state in (OK, WARNING) for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """Give the report as plain data."""
        findings = [finding.to_dict() for finding in self.findings]
        return {"ok": self.ok, "location": self.location, "checks": findings, "requests": self.requests}


def check_bucket(bucket: Bucket, *, single_writer: bool = False) -> BucketReport:
    """Try everything, in an order in which each step uses only what was tried before; raises nothing of its own.

    With `single_writer`, conditions that are not honoured are warnings. About 40 requests and 8 MiB. What cannot be
    removed afterwards is said by key.
    """
    run = _Run(bucket, f"{FOLDER}{secrets.token_hex(16)}/", single_writer)
    steps: list[tuple[str, Callable[[], str]]] = [
        ("reach", run.reach),
        ("list", run.list),
        ("create", run.create),
        ("range", run.range),
        ("create if absent", run.create_if_absent),
        ("one winner of a race", run.race),
        ("If-Match", run.if_match),
        ("copy", run.copy),
        ("multipart", run.multipart),
    ]
    report = BucketReport(bucket.location)
    stopped = False
    try:
        for name, step in steps:
            if stopped:
                report.findings.append(Finding(name, NOT_TRIED))
                continue
            report.findings.append(_try(name, step, report, single_writer=single_writer))
            stopped = name in ("reach", "list", "create") and report.findings[-1].state != OK
    except BaseException:  # interrupted: what was made is removed all the same
        _try("delete", run.delete, report)
        raise
    report.findings.append(_try("delete", run.delete, report) if run.made else Finding("delete", NOT_TRIED))
    report.requests = bucket.requests.snapshot()
    return report


def _try(name: str, step: Callable[[], str], report: BucketReport, *, single_writer: bool = False) -> Finding:
    begun = perf_counter()
    try:
        said, state, kind = step(), OK, ""
    except HoldfastError as error:
        said, state, kind = str(error), FAILED, error.kind
        is_condition = name in CONDITIONS and isinstance(error, InvalidConfig)
        if is_condition and single_writer:
            said, state = f"{said}; single_writer = true does without it", WARNING
        else:
            said += "; where one machine alone writes, single_writer = true does without it" * is_condition
            report.code = report.code or exit_code(error)
    return Finding(name, state, said, (perf_counter() - begun) * 1000, kind)


class _Run:
    def __init__(self, bucket: Bucket, folder: str, single_writer: bool) -> None:
        self.bucket, self.folder, self.single_writer = bucket, folder, single_writer
        self.made: list[str] = []
        self.first = secrets.token_bytes(64)
        """What is written is random, so that nothing old can be taken for it."""

    def _key(self, name: str) -> str:
        key = self.folder + name
        if key not in self.made:
            self.made.append(key)  # before it is made: a reply may be lost
        return key

    def reach(self) -> str:
        found = self.bucket.get(STORE_KEY, max_bytes=1 << 20)
        if found is None:
            return "there is no store yet"
        try:
            name = json.loads(found[0]).get("format")
        except (ValueError, AttributeError):
            name = None
        if name == STORE_FORMAT:
            return "there is a store"
        local = " (it is that of a local store: open its path)" if isinstance(name, int) else ""
        raise FormatError(
            f"{STORE_KEY} is not the one of an object store{local}: choose another prefix or place"
        )

    def list(self) -> str:
        found = next(self.bucket.list(""), None)
        return "nothing is there" if found is None else "there are objects"

    def create(self) -> str:
        if self.single_writer:  # some refuse whatever has a condition
            self.bucket.upload(self._key("one"), [self.first], len(self.first))
        elif self.bucket.create(self._key("one"), self.first) is None:
            raise FormatError("a new key counts as taken")
        self._expect(self._key("one"), self.first)
        if [meta.key for meta in self.bucket.list(self.folder)] != [self._key("one")]:
            raise FormatError(
                "what was just created is not in the list: old lists are of no use to a collection"
            )
        return ""

    def range(self) -> str:
        if self.bucket.get_range(self._key("one"), 3, 40) != self.first[3:40]:
            raise FormatError("a range gave other bytes than were written")
        return ""

    def create_if_absent(self) -> str:
        if self.bucket.create(self._key("one"), b"x" * 64) is not None:
            raise InvalidConfig("the service ignores If-None-Match: an object that was there was replaced")
        self._expect(self._key("one"), self.first)
        return ""

    def race(self) -> str:
        key, bodies = self._key("race"), [os.urandom(64) for _ in range(RACERS)]
        with ThreadPoolExecutor(RACERS) as pool:
            answers = pool.map(lambda body: self.bucket.create(key, body), bodies)
            won = [body for body, meta in zip(bodies, answers, strict=True) if meta is not None]
        if len(won) != 1:
            raise InvalidConfig(
                f"of {RACERS} that created one key at once, {len(won)} were told that they had"
            )
        self._expect(key, won[0])
        return ""

    def if_match(self) -> str:
        key = self._key("one")
        before = self.bucket.head(key)
        if before is None or before.e_tag is None:
            raise InvalidConfig("the service gives no ETag")
        second = secrets.token_bytes(64)
        if self.bucket.replace(key, second, before.e_tag) is None:
            raise InvalidConfig("the service does not know its own ETag: If-Match is refused")
        if self.bucket.replace(key, b"y" * 64, before.e_tag) is not None:
            raise InvalidConfig("the service ignores If-Match: a change of somebody else would be lost")
        self._expect(key, second)
        return ""

    def copy(self) -> str:
        if self.bucket.copy(self._key("one"), self._key("copy")) is None:
            raise FormatError("an object that is there was not found to be copied")
        found = self.bucket.get(self._key("one"), max_bytes=64)
        self._expect(self._key("copy"), found[0] if found is not None else b"")
        return ""

    def multipart(self) -> str:
        key, piece = self._key("large"), os.urandom(1 << 20)
        last = self.first[:1]
        self.bucket.upload(key, (*[piece] * 8, last), MULTIPART_BYTES)
        meta = self.bucket.head(key)
        if meta is None or meta.size_bytes != MULTIPART_BYTES:
            raise FormatError(
                f"of {MULTIPART_BYTES} bytes in parts, {meta.size_bytes if meta else 0} arrived"
            )
        if self.bucket.get_range(key, MULTIPART_BYTES - 3, MULTIPART_BYTES) != piece[-2:] + last:
            raise FormatError("an upload in parts has other bytes than were sent")
        return ""

    def delete(self) -> str:
        try:
            self.bucket.delete(self.made)
        except HoldfastError as error:
            raise type(error)(f"{error}; left behind: {', '.join(self.made)}", **error.evidence) from None
        left = [key for key in self.made if self.bucket.head(key) is not None]
        if left:
            raise FormatError(f"what was deleted is still there: {', '.join(left)}")
        return "what was tried is removed"

    def _expect(self, key: str, wanted: bytes) -> None:
        found = self.bucket.get(key, max_bytes=1 << 10)
        if found is None or found[0] != wanted:
            raise FormatError("what was written is not what is read")
