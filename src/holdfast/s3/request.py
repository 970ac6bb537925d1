"""What handlers take and give: a request that has been understood and authorised, and a response.

Also what is read from headers by several handlers: conditions, ranges, the headers that are stored
with an object, and those that ask for what is not served. What must hold: a header that would change what
happens is obeyed or refused, never skipped.
"""

import asyncio
import base64
import re
from collections.abc import AsyncIterator, Callable, Mapping
from typing import NamedTuple

from holdfast.base.checksums import Buffer, ChecksumAlgorithm
from holdfast.base.clock import Clock
from holdfast.base.ids import RequestId
from holdfast.objects.model import (
    USER_METADATA_BYTES_MAX,
    Conditions,
    ContentHeaders,
    ObjectService,
)
from holdfast.s3.dates import parse_http_date
from holdfast.s3.errors import Code, S3Error, invalid_argument, not_implemented
from holdfast.s3.operations import Operation
from holdfast.s3.sigv4 import Signed
from holdfast.wire.exchange import Exchange

Fields = list[tuple[str, str]]

OWNER = "holdfast"
"""The one owner there is: everything belongs to whoever holds the credentials."""


class Site(NamedTuple):
    """What handlers need to know of the server they run in. `large_documents` is held while a large
    document is read."""

    service: ObjectService
    clock: Clock
    region: str
    large_documents: asyncio.Semaphore


class Request:
    """One request, understood and authorised."""

    __slots__ = (
        "bucket",
        "exchange",
        "headers",
        "key",
        "operation",
        "query",
        "request_id",
        "signed",
        "tries",
    )

    def __init__(
        self,
        exchange: Exchange,
        operation: Operation,
        bucket: str,
        key: str,
        query: Mapping[str, str],
        signed: Signed,
        request_id: RequestId,
        tries: int = 1,
    ) -> None:
        self.exchange = exchange
        self.operation = operation
        self.bucket = bucket
        self.key = key
        self.query = query
        self.headers = exchange.head.headers
        self.signed = signed
        self.request_id = request_id
        self.tries = tries


class Response:
    """One answer. `stream` gives the body where `body` does not; `length` is the Content-Length, which a
    HEAD has without a body."""

    __slots__ = ("body", "fields", "length", "status", "stream")

    def __init__(
        self,
        status: int = 200,
        fields: Fields | None = None,
        body: Buffer = b"",
        stream: Callable[[], AsyncIterator[Buffer]] | None = None,
        length: int | None = None,
    ) -> None:
        self.status = status
        self.fields: Fields = [] if fields is None else fields
        self.body = body
        self.stream = stream
        self.length = len(body) if length is None else length


def xml_response(document: bytes, fields: Fields | None = None, status: int = 200) -> Response:
    """An answer in XML."""
    return Response(status, [("Content-Type", "application/xml"), *(fields or ())], document)


# Conditions

_ETAG = re.compile(r'\s*(?:(?:W/)?"([^"]*)"|([^",\s]+))\s*(?:,|\Z)')


def parse_etags(text: str) -> tuple[str, ...]:
    """The ETags of If-Match or If-None-Match, without quotes; S3 takes them without quotes, too."""
    found: list[str] = []
    at = 0
    while at < len(text):
        match = _ETAG.match(text, at)
        if match is None:
            return (*found, text[at:].strip())
        found.append(match[1] if match[1] is not None else match[2])
        at = match.end()
    return tuple(found)


def _optional_etags(text: str | None) -> tuple[str, ...] | None:
    return None if text is None else parse_etags(text)


def _optional_date(text: str | None) -> int | None:
    # A date that cannot be read is ignored (RFC 9110, 13.1.3).
    return None if text is None else parse_http_date(text)


_CONDITION_HEADERS = frozenset({"if-match", "if-none-match", "if-modified-since", "if-unmodified-since"})
_NO_CONDITIONS = Conditions()


def read_conditions(headers: Mapping[str, str], prefix: str = "") -> Conditions:
    """The conditions of a read, or, with the prefix `x-amz-copy-source-`, of a copy's source."""
    if not prefix and _CONDITION_HEADERS.isdisjoint(headers):
        return _NO_CONDITIONS
    return Conditions(
        if_match=_optional_etags(headers.get(prefix + "if-match")),
        if_none_match=_optional_etags(headers.get(prefix + "if-none-match")),
        if_modified_since_ms=_optional_date(headers.get(prefix + "if-modified-since")),
        if_unmodified_since_ms=_optional_date(headers.get(prefix + "if-unmodified-since")),
    )


def write_conditions(headers: Mapping[str, str]) -> Conditions:
    """The conditions of a write: If-Match with an ETag, or If-None-Match with `*`, as S3 has them.
    Raises NotImplemented for others."""
    if _CONDITION_HEADERS.isdisjoint(headers):
        return _NO_CONDITIONS
    for name in ("If-Modified-Since", "If-Unmodified-Since"):
        if name.lower() in headers:
            raise not_implemented(name)
    if_match = _optional_etags(headers.get("if-match"))
    if_none_match = _optional_etags(headers.get("if-none-match"))
    if if_none_match is not None and if_none_match != ("*",):
        raise not_implemented("If-None-Match")
    if if_match is not None and if_none_match is not None:
        raise not_implemented("If-Match")
    return Conditions(if_match=if_match, if_none_match=if_none_match)


# Ranges

_RANGE = re.compile(r"bytes=[ \t]*([0-9]{0,18})-([0-9]{0,18})[ \t]*\Z", re.IGNORECASE)


def parse_range(text: str | None) -> tuple[int | None, int | None] | None:
    """The range of a read. One that is not understood, or several, means the whole object, as in S3."""
    if text is None:
        return None
    found = _RANGE.match(text)
    if found is None or not (found[1] or found[2]):
        return None
    first = int(found[1]) if found[1] else None
    last = int(found[2]) if found[2] else None
    if first is not None and last is not None and last < first:
        return None
    return first, last


# What is stored with an object

_META = "x-amz-meta-"
_ACLS_HARMLESS = frozenset({"private", "bucket-owner-full-control"})
_ACLS_REFUSED = frozenset(
    {"public-read", "public-read-write", "authenticated-read", "aws-exec-read", "bucket-owner-read"}
    | {"log-delivery-write"}
)
_STORAGE_CLASSES = frozenset(
    {"STANDARD", "REDUCED_REDUNDANCY", "STANDARD_IA", "ONEZONE_IA", "INTELLIGENT_TIERING", "GLACIER_IR"}
)
_STORAGE_CLASSES_REFUSED = frozenset(
    {"GLACIER", "DEEP_ARCHIVE", "OUTPOSTS", "SNOW", "EXPRESS_ONEZONE", "FSX_OPENZFS", "FSX_ONTAP"}
)
_HARMLESS = frozenset(
    {"x-amz-content-sha256", "x-amz-date", "x-amz-sdk-checksum-algorithm", "x-amz-user-agent"}
    | {f"x-amz-checksum-{algorithm.value.lower()}" for algorithm in ChecksumAlgorithm}
)
_REFUSED = frozenset({"x-amz-tagging", "x-amz-write-offset-bytes"})
_REFUSED_PREFIXES = ("x-amz-server-side-encryption", "x-amz-copy-source-server-side-encryption")


def refuse_unserved(request: Request) -> None:
    """Raise for headers of a write that ask for what is not there."""
    for name in request.signed.amz_names:
        if name in _HARMLESS:
            continue
        if name == "x-amz-acl":
            check_acl(request.headers.get(name, "private"))
        elif name.startswith("x-amz-object-lock-"):
            raise S3Error(Code.INVALID_REQUEST, "Bucket is missing Object Lock Configuration")
        elif name.startswith("x-amz-grant-"):
            raise S3Error(Code.ACL_NOT_SUPPORTED)
        elif name in _REFUSED or name.startswith(_REFUSED_PREFIXES):
            raise not_implemented(name)


def check_acl(value: str) -> None:
    """Everything is private to its owner. Raises for an ACL that says otherwise."""
    if value in _ACLS_HARMLESS:
        return
    if value in _ACLS_REFUSED:
        raise S3Error(Code.ACL_NOT_SUPPORTED)
    raise invalid_argument("", "x-amz-acl", value)


_OWNER_HEADERS = ("x-amz-expected-bucket-owner", "x-amz-source-expected-bucket-owner")


def check_owner(headers: Mapping[str, str]) -> None:
    """Raise AccessDenied when the client expects the bucket to be somebody else's."""
    for name in _OWNER_HEADERS:
        if headers.get(name, OWNER) != OWNER:
            raise S3Error(Code.ACCESS_DENIED)


def storage_class(headers: Mapping[str, str]) -> str:
    """x-amz-storage-class. Those that are read at once are labels; archives are not served."""
    value = headers.get("x-amz-storage-class")
    if value is None or value in _STORAGE_CLASSES:
        return value or "STANDARD"
    if value in _STORAGE_CLASSES_REFUSED:
        raise not_implemented("x-amz-storage-class")
    raise S3Error(Code.INVALID_STORAGE_CLASS, StorageClassRequested=value)


_CONTENT = {
    "content-type": "content_type",
    "content-encoding": "content_encoding",
    "content-disposition": "content_disposition",
    "content-language": "content_language",
    "cache-control": "cache_control",
    "expires": "expires",
    "x-amz-website-redirect-location": "website_redirect",
}
_CONTENT_NAMES = frozenset(_CONTENT)


def content_headers(headers: Mapping[str, str]) -> ContentHeaders:
    """The headers that come back as they came; `aws-chunked` belongs to the request alone."""
    values = {_CONTENT[name]: headers[name] for name in _CONTENT_NAMES.intersection(headers)}
    encoding = values.get("content_encoding")
    if encoding is not None and "aws-chunked" in encoding.lower():
        codings = [coding.strip() for coding in encoding.split(",")]
        values["content_encoding"] = ",".join(coding for coding in codings if coding.lower() != "aws-chunked")
    return ContentHeaders(**values)


def user_metadata(request: Request) -> tuple[tuple[str, str], ...]:
    """x-amz-meta-*, without the prefix. Raises MetadataTooLarge."""
    headers = request.headers
    found = [
        (name[len(_META) :], headers[name])
        for name in request.signed.amz_names
        if name.startswith(_META) and name in headers
    ]
    if not found:
        return ()
    size = sum(len(name) + len(value.encode("utf-8")) for name, value in found)
    if size > USER_METADATA_BYTES_MAX:
        raise S3Error(Code.METADATA_TOO_LARGE, Size=str(size), MaxSizeAllowed=str(USER_METADATA_BYTES_MAX))
    return tuple(found)


def metadata_fields(metadata: tuple[tuple[str, str], ...]) -> Fields:
    """User metadata as headers. What is not ASCII goes as RFC 2047 has it, as in S3."""
    return [(_META + name, value if value.isascii() else _encoded_word(value)) for name, value in metadata]


def _encoded_word(value: str) -> str:
    return f"=?UTF-8?B?{base64.b64encode(value.encode('utf-8')).decode('ascii')}?="


# Parameters

_INTEGER_MAX = 2**31 - 1


def integer(query: Mapping[str, str], name: str, default: int, most: int) -> int:
    """A parameter that counts, clipped to `most`. Raises InvalidArgument."""
    text = query.get(name)
    if text is None or text == "":
        return default
    digits = text.removeprefix("-")
    if not (digits.isascii() and digits.isdigit()) or len(digits) > 10 or int(digits) > _INTEGER_MAX:
        raise invalid_argument(f"Provided {name} not an integer or within integer range", name, text)
    if text.startswith("-"):
        raise invalid_argument(f"Argument {name} must be an integer between 0 and {_INTEGER_MAX}", name, text)
    return min(int(digits), most)


def part_number(text: str) -> int:
    """A part number, 1 to 10,000. Raises InvalidArgument."""
    if not (text.isascii() and text.isdigit()) or len(text) > 9 or not 1 <= int(text) <= 10_000:
        raise invalid_argument(
            "Part number must be an integer between 1 and 10000, inclusive", "partNumber", text
        )
    return int(text)
