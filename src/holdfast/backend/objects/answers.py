"""What a provider's failure means, from what obstore says of it.

obstore tells status, body and kind of a failure in its text alone. The text itself goes nowhere: bodies and
addresses may have keys and signatures in them. What is passed on is the status, the provider's own code (a
word), and what to do.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from holdfast.errors import (
    HoldfastError,
    InvalidConfig,
    NoSpace,
    PermissionDenied,
    StoreNotFound,
    Unavailable,
)


class Answer(NamedTuple):
    """What was found in the text: `status` 0 where there was no answer, `code` "" where the body has none."""

    status: int
    code: str
    transport: str
    """How a connection failed, "" when it did not: `connect`, `tls`, `timeout`, `dropped`, `garbage`."""
    foreign: bool
    """The answer is none of an object store."""
    credentials: bool
    """It failed while credentials were looked for."""
    region: str


class Failure(NamedTuple):
    """An error to raise, and whether the same request may work soon."""

    error: HoldfastError
    retry: bool
    answer: Answer
    busy: bool = False
    """The service asks for fewer requests."""


_STATUS: Final = re.compile(r"status code: (\d{3})\b")
_CODE: Final = re.compile(r"<Code>\s*([A-Za-z0-9_.]{1,80})\s*</Code>")
_DELETE_CODE: Final = re.compile(r'\bcode: "([A-Za-z0-9_.]{1,80})"')
_REGION: Final = re.compile(r"<Region>\s*([a-z0-9-]{1,40})\s*</Region>")
_KIND: Final = re.compile(r"\bkind: (Connect|Request|Timeout|Interrupted|Unknown|Decode)\b")
_CREDENTIALS: Final = re.compile(
    r"169\.254\.169\.254|token request|metadata\.google|credential provider", re.IGNORECASE
)
_FOREIGN: Final = re.compile(
    r"MissingEtag|MissingLastModified|MissingContentLength|Invalid(List|Multipart|DeleteObjects)Response"
    r"|NotPartial|UnexpectedRange|InvalidListRequest|ParseContentRange|NoContentRange|InvalidEtag|InvalidLastModified"
)
_TRANSPORT: Final = {
    "Connect": "connect",
    "Request": "dropped",
    "Interrupted": "dropped",
    "Timeout": "timeout",
    "Unknown": "garbage",
    "Decode": "garbage",
}


def parse_answer(error: BaseException) -> Answer:
    """Read what obstore says of a failure."""
    text = str(error)
    status = _STATUS.search(text)
    code = _CODE.search(text) or _DELETE_CODE.search(text)
    kind = _KIND.search(text)
    region = _REGION.search(text)
    transport = "" if status or not kind else _TRANSPORT[kind[1]]
    if transport == "connect" and re.search(r"InvalidContentType|[Cc]ertificate|UnknownIssuer", text):
        transport = "tls"
    bare = "BareRedirect" in text or "redirect without LOCATION" in text
    word = code[1] if code else ""
    number = int(status[1]) if status else 301 if bare else 0
    if word.isdigit():  # of one object of a batch, on Azure
        word, number = "", int(word)
    return Answer(
        status=number,
        code=word,
        transport=transport,
        foreign=bool(_FOREIGN.search(text))
        or (
            status is not None and not code and bool(re.search(r"<!doctype html|<html", text, re.IGNORECASE))
        ),
        credentials=bool(_CREDENTIALS.search(text)),
        region=region[1] if region else "",
    )


class _Meaning(NamedTuple):
    kind: type[HoldfastError]
    words: str
    """`{doing}`, `{said}` (status and code) and `{region}` are filled in."""


_NO_BUCKET: Final = _Meaning(
    StoreNotFound, "there is no such bucket ({said}); make it with the provider's tools, or correct the name"
)
_DENIED: Final = _Meaning(
    PermissionDenied,
    "not allowed to {doing} ({said}): the credentials lack that permission (reading needs get and list,"
    " writing put and delete)",
)
_UNKNOWN: Final = _Meaning(
    PermissionDenied,
    "the credentials are not accepted ({said}); check the key and its secret, and that they are for this endpoint",
)
_EXPIRED: Final = _Meaning(PermissionDenied, "the credentials have expired ({said}); get new ones")
_MISSING: Final = _Meaning(
    PermissionDenied,
    "no credentials were found; set them in the configuration, or in the provider's variables or files",
)
_SKEWED: Final = _Meaning(
    PermissionDenied, "the clock of this machine is too far from the provider's ({said}); set the clock"
)
_REGION_WRONG: Final = _Meaning(
    InvalidConfig, "the bucket is in another region, or at another endpoint ({said}); set region{region}"
)
_FULL: Final = _Meaning(NoSpace, "no space left, or a quota is reached ({said})")
_CANNOT: Final = _Meaning(InvalidConfig, "this service refuses to {doing} ({said})")
_UNTRUSTED: Final = _Meaning(
    InvalidConfig,
    "the certificate of the endpoint is not trusted, or it speaks plain HTTP; name its CA in the configuration, or "
    "write http:// where that is meant",
)
_NO_ADDRESS: Final = _Meaning(
    InvalidConfig, "the endpoint is no address that begins with https:// or http://"
)
_NO_STORE: Final = _Meaning(
    InvalidConfig,
    "what answers is no object store (a web page, a console, another protocol?); check the endpoint and its port",
)
_FAILED: Final = _Meaning(Unavailable, "could not {doing}: {said}; the same call may work later")

_OF_CODE: Final[dict[str, _Meaning]] = {
    **dict.fromkeys(("NoSuchBucket", "ContainerNotFound", "ContainerBeingDeleted"), _NO_BUCKET),
    **dict.fromkeys(
        ("InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken", "AuthenticationFailed", "InvalidSecurity",
         "NoAuthenticationInformation", "InvalidAuthenticationInfo", "AuthenticationRequired", "XAdminUserNotFound"),
        _UNKNOWN,
    ),
    **dict.fromkeys(("ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "RequestExpired"), _EXPIRED),
    "RequestTimeTooSkewed": _SKEWED,
    "AccessDenied": _DENIED,  # of one key of a batch that is deleted there is no status
    **dict.fromkeys(
        ("PermanentRedirect", "TemporaryRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException",
         "InvalidRegion"),
        _REGION_WRONG,
    ),
    **dict.fromkeys(
        ("QuotaExceeded", "StorageFull", "XMinioStorageFull", "XMinioAdminBucketQuotaExceeded", "AccountQuotaExceeded"),
        _FULL,
    ),
}  # fmt: skip
_OF_STATUS: Final = {
    **dict.fromkeys((301, 302, 307, 308), _REGION_WRONG),
    401: _UNKNOWN,
    403: _DENIED,
    501: _CANNOT,
    507: _FULL,
}
_PASSING: Final = frozenset({
    "RequestTimeout", "BadDigest", "IncompleteBody", "XAmzContentSHA256Mismatch", "XAmzContentChecksumMismatch",
    "InternalError", "SlowDown", "ServiceUnavailable", "Throttling", "ThrottlingException", "OperationAborted",
    "ConditionalRequestConflict", "ServerBusy", "OperationTimedOut", "Md5Mismatch", "RequestTimeoutException",
    "InvalidDigest", "NoSuchUpload", "MalformedXML", "InvalidPart", "InvalidPartOrder",
})  # fmt: skip
"""Codes that may be gone at the next try: the service is busy, or the bytes were damaged on the way to it."""
_BUSY: Final = frozenset({429, 503})
_PASSING_STATUS: Final = frozenset(
    {408, 409, 412, 425, 429, 500, 502, 503, 504, 509, 520, 521, 522, 523, 524}
)
_TRANSPORT_WORDS: Final = {
    "connect": "nothing can be reached there (name, port, network, or the service is not running)",
    "timeout": "no answer in time (on a slow line, raise timeout_seconds)",
    "dropped": "the connection broke",
    "garbage": "what answers does not speak HTTP",
}


def explain(error: BaseException, doing: str, where: str) -> Failure:
    """Turn a failure of obstore into one of ours. `doing` completes "not allowed to …"."""
    answer = parse_answer(error)
    said = " ".join(str(part) for part in (answer.status, answer.code) if part)
    retry = busy = False
    if answer.code in _OF_CODE:
        meaning = _OF_CODE[answer.code]
    elif answer.credentials:
        meaning = _MISSING
    elif answer.code in _PASSING or answer.status in _PASSING_STATUS:
        meaning, retry = _FAILED, True
        busy = answer.status in _BUSY or answer.code in ("SlowDown", "ServerBusy")
    elif answer.status in _OF_STATUS:
        meaning = _OF_STATUS[answer.status]
    elif answer.foreign:
        meaning, retry = _NO_STORE, True
    elif 400 <= answer.status < 500:
        meaning = _CANNOT
    elif answer.transport == "tls":
        meaning = _UNTRUSTED
    elif "BadScheme" in str(error):
        meaning = _NO_ADDRESS
    else:
        meaning, retry = _FAILED, True
        said = said or _TRANSPORT_WORDS.get(answer.transport) or type(error).__name__
    return Failure(_make(meaning, answer, said, doing, where), retry, answer, busy)


def no_object_store(where: str) -> Failure:
    """Give the failure for an answer that no object store gives, though it looks like a success."""
    answer = Answer(200, "", "", True, False, "")
    return Failure(_make(_NO_STORE, answer, "", "", where), True, answer)


def _make(meaning: _Meaning, answer: Answer, said: str, doing: str, where: str) -> HoldfastError:
    region = f' = "{answer.region}"' if answer.region else " and endpoint"
    words = meaning.words.format(doing=doing, said=said or "no word why", region=region)
    evidence = {
        "status": answer.status,
        "code": answer.code,
        "transport": answer.transport,
        "region": answer.region,
    }
    return meaning.kind(f"{where}: {words}", location=where, **{k: v for k, v in evidence.items() if v})
