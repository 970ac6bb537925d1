"""Bucket names, and keys out of request targets. Pure.

A key is the percent-decoded rest of the path, decoded exactly once and otherwise left alone: `..`, `//`,
`%2e` and a trailing slash are characters like any others. It must be UTF-8 and at most 1,024 bytes. Objects
refuse NUL, which S3 allows: it ends keys in the index, and no XML can carry it.
"""

import re
from typing import NamedTuple
from urllib.parse import unquote_to_bytes

from holdfast.objects.model import KEY_BYTES_MAX
from holdfast.s3.errors import Code, S3Error

_PLAIN_PATH = re.compile(r"[A-Za-z0-9\-._~/]*\Z")
_BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
_BUCKET = re.compile(r"[a-z0-9](?:[a-z0-9\-]|\.(?!\.)){1,61}[a-z0-9]\Z")
_IPV4 = re.compile(r"[0-9]{1,3}(?:\.[0-9]{1,3}){3}\Z")
_FORBIDDEN_PREFIXES = ("xn--", "sthree-", "amzn-s3-demo-")
_FORBIDDEN_SUFFIXES = ("-s3alias", "--ol-s3", ".mrap", "--x-s3", "--table-s3")


class Target(NamedTuple):
    """What a request is about. Empty strings where there is no bucket or key."""

    bucket: str
    key: str


def is_bucket_name(name: str) -> bool:
    """Whether S3's rules for general purpose buckets allow `name`."""
    return (
        _BUCKET.match(name) is not None
        and _IPV4.match(name) is None
        and not name.startswith(_FORBIDDEN_PREFIXES)
        and not name.endswith(_FORBIDDEN_SUFFIXES)
    )


def decode(text: str) -> str:
    """Percent-decode once, as UTF-8. Raises InvalidURI."""
    if "%" not in text:
        return text
    if _BAD_ESCAPE.search(text):
        raise S3Error(Code.INVALID_URI, URI=text)
    try:
        return unquote_to_bytes(text).decode("utf-8")
    except UnicodeDecodeError:
        raise S3Error(Code.INVALID_URI, "The specified URI is not UTF-8.", URI=text) from None


def decode_path(path: str) -> str:
    """As `decode`, at once for what needs no decoding."""
    return path if _PLAIN_PATH.match(path) else decode(path)


def bucket_of_host(host: str, base_domains: tuple[str, ...]) -> str:
    """The bucket that a host of the form `bucket.<base domain>` names, or ''."""
    if base_domains:
        name = host.partition(":")[0].lower()
        for domain in base_domains:
            if name.endswith("." + domain):
                return name[: -len(domain) - 1]
    return ""


def find_target(path: str, host: str, base_domains: tuple[str, ...]) -> Target:
    """Bucket and key of a decoded path: from the host when it is `bucket.<base domain>`, else from the
    path's first segment."""
    named = bucket_of_host(host, base_domains)
    if named:
        return Target(named, path[1:])
    bucket, _, key = path[1:].partition("/")
    return Target(bucket, key)


def check_target(target: Target, *, creating: bool) -> None:
    """Raise what S3 says of a bucket or key that cannot exist. Only new buckets are judged by all of
    the rules: S3 says NoSuchBucket for a reserved name that nobody could have made."""
    bucket, key = target
    if bucket and (_BUCKET.match(bucket) is None or (creating and not is_bucket_name(bucket))):
        raise S3Error(Code.INVALID_BUCKET_NAME)
    if len(key) > KEY_BYTES_MAX or (not key.isascii() and len(key.encode("utf-8")) > KEY_BYTES_MAX):
        raise S3Error(
            Code.KEY_TOO_LONG, Size=str(len(key.encode("utf-8"))), MaxSizeAllowed=str(KEY_BYTES_MAX)
        )


def parse_copy_source(value: str) -> tuple[str, str, str | None]:
    """Bucket, key and version of `x-amz-copy-source`. Raises InvalidArgument."""
    source, _, query = value.partition("?")
    version: str | None = None
    if query:
        name, _, version = query.partition("=")
        if name != "versionId" or not version:
            raise _bad_copy_source(value)
    if source.startswith("arn:"):
        raise S3Error(Code.NOT_IMPLEMENTED, "Copying from access points is not implemented.")
    try:
        bucket, _, key = decode(source).removeprefix("/").partition("/")
    except S3Error:
        raise _bad_copy_source(value) from None
    if not bucket or not key:
        raise _bad_copy_source(value)
    check_target(Target(bucket, key), creating=False)
    return bucket, key, version


def _bad_copy_source(value: str) -> S3Error:
    return S3Error(
        Code.INVALID_ARGUMENT,
        "Copy Source must mention the source bucket and key: sourcebucket/sourcekey",
        ArgumentName="x-amz-copy-source",
        ArgumentValue=value,
    )
