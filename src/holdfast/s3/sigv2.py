"""AWS Signature Version 2 in the query, verified: what boto3 presigns in us-east-1 unless told otherwise.
Pure. Why it is here, and what it costs: decision record 0007.

    Signature = Base64(HMAC-SHA1(secret, method LF Content-MD5 LF Content-Type LF Expires LF
                                 {x-amz-name:value LF} path [?sub-resources]))

What must hold: nothing that selects an operation or its object goes unsigned. The scheme signs only some
parameters by its own rules; one that selects an operation and is not among them is refused, and so is
every header of ours. Headers that carry a signature of version 2 are refused elsewhere. Source: "Signing and
Authenticating REST Requests", Amazon S3 Developer Guide.
"""

import base64
import hmac
from collections.abc import Mapping

from holdfast.base.checksums import HmacSha256
from holdfast.s3.dates import iso_date
from holdfast.s3.errors import Code, S3Error
from holdfast.s3.operations import SELECTORS
from holdfast.s3.sigv4 import Credentials, Payload, Query, Signed, parse_payload

METHODS = frozenset({"GET", "HEAD", "PUT", "DELETE"})

# What AWS documents, and what its own clients sign beyond that.
_SUBRESOURCES = frozenset(
    {"accelerate", "acl", "analytics", "cors", "defaultObjectAcl", "delete", "inventory", "lifecycle"}
    | {"location", "logging", "metrics", "notification", "object-lock", "partNumber", "policy", "replication"}
    | {"requestPayment", "restore", "select", "select-type", "storageClass", "tagging", "torrent", "uploadId"}
    | {"uploads", "versionId", "versioning", "versions", "website"}
    | {f"response-{name}" for name in ("cache-control", "content-disposition", "content-encoding")}
    | {f"response-{name}" for name in ("content-language", "content-type", "expires")}
)
_HARMLESS = frozenset({"list-type", "id"})
"""`list-type` chooses between two spellings of one listing; `id` selects nothing on its own."""

_UNSIGNED_SELECTORS = SELECTORS - _SUBRESOURCES - _HARMLESS
_MARKS = frozenset({"AWSAccessKeyId", "Signature"})
_MINE = _MARKS | {"Expires"}
_EXPIRES_DIGITS_MAX = 11
_PAYLOADS = frozenset({Payload.SIGNED, Payload.UNSIGNED, Payload.STREAMING_UNSIGNED_TRAILER})


def is_presigned(query: Query) -> bool:
    """Whether the query claims to be signed in this way."""
    return any(name in _MARKS for name, _ in query)


def verify(
    method: str,
    resource: str,
    query: Query,
    headers: Mapping[str, str],
    credentials: Credentials,
    now_s: float,
) -> Signed:
    """Who signed this. `resource` is the path as it was sent, percent-encoded, with the bucket before it
    where the host named that; `headers` are by lower-case name. Raises S3Error."""
    claim = _claim(query)
    if "authorization" in headers or any(name.startswith("X-Amz-") for name, _ in query):
        raise S3Error(
            Code.INVALID_ARGUMENT,
            "Only one auth mechanism allowed; only the X-Amz-Algorithm query parameter, Signature query "
            "string parameter or the Authorization header should be specified",
        )
    if method not in METHODS:
        raise S3Error(
            Code.INVALID_REQUEST,
            f"A {method} cannot be presigned with Signature Version 2. Please use AWS4-HMAC-SHA256.",
        )
    _check_coverage(query, headers)
    _check_expiry(claim["Expires"], now_s)
    access_key = claim["AWSAccessKeyId"]
    secret = credentials.get(access_key)
    if secret is None:
        raise S3Error(Code.INVALID_ACCESS_KEY_ID, AWSAccessKeyId=access_key)
    if resource.rfind("/") == 0 and len(resource) > 1:
        # AWS's own clients sign a slash after a bucket without a key, and do not send it.
        resource += "/"
    to_sign = string_to_sign(method, resource, query, headers, claim["Expires"])
    if not hmac.compare_digest(signature(secret, to_sign).encode(), claim["Signature"].encode("utf-8")):
        raise S3Error(
            Code.SIGNATURE_DOES_NOT_MATCH,
            AWSAccessKeyId=access_key,
            StringToSign=to_sign,
            SignatureProvided=claim["Signature"],
        )
    sha256 = headers.get("x-amz-content-sha256", Payload.UNSIGNED.value)
    payload = parse_payload(sha256)
    if payload not in _PAYLOADS:
        raise S3Error(Code.INVALID_REQUEST, "Signed chunks need a signature of version 4.")
    names = tuple(name for name in headers if name.startswith("x-amz-"))
    return Signed(
        access_key, payload, sha256 if payload is Payload.SIGNED else "", "", _NO_KEY, "", "", names
    )


_NO_KEY = HmacSha256(b"")
"""Chunks are not signed with this version."""


def string_to_sign(method: str, resource: str, query: Query, headers: Mapping[str, str], expires: str) -> str:
    """The text that is signed."""
    amz = "".join([f"{name}:{headers[name]}\n" for name in sorted(headers) if name.startswith("x-amz-")])
    signed = sorted((name, value) for name, value in query if name in _SUBRESOURCES)
    parameters = "&".join([f"{name}={value}" if value else name for name, value in signed])
    md5, kind = headers.get("content-md5", ""), headers.get("content-type", "")
    end = f"?{parameters}" if parameters else ""
    return f"{method}\n{md5}\n{kind}\n{expires}\n{amz}{resource}{end}"


def signature(secret: str, to_sign: str) -> str:
    """The signature of a text."""
    digest = hmac.digest(secret.encode("utf-8"), to_sign.encode("utf-8"), "sha1")
    return base64.b64encode(digest).decode("ascii")


def _claim(query: Query) -> dict[str, str]:
    claim: dict[str, str] = {}
    for name, value in query:
        if name in _MINE:
            if name in claim:
                raise _denied(f"The query parameter {name} came more than once.")
            claim[name] = value
    if not all(claim.get(name) for name in _MINE):
        raise _denied(
            "Query-string authentication requires the Signature, Expires and AWSAccessKeyId parameters"
        )
    return claim


def _check_coverage(query: Query, headers: Mapping[str, str]) -> None:
    """Refuse what would count and is not signed."""
    for name, _ in query:
        if name in _UNSIGNED_SELECTORS:
            raise _denied(
                f"Signature Version 2 does not sign the query parameter {name}. Please use AWS4-HMAC-SHA256."
            )
        if name.lower() == "x-amz-security-token":
            raise S3Error(Code.INVALID_TOKEN)
    if "x-amz-security-token" in headers:
        raise S3Error(Code.INVALID_TOKEN)
    ours = sorted(name for name in headers if name.startswith("x-holdfast-"))
    if ours:
        raise S3Error(
            Code.ACCESS_DENIED,
            "There were headers present in the request which were not signed",
            HeadersNotSigned=", ".join(ours),
        )


def _check_expiry(expires: str, now_s: float) -> None:
    if not (expires.isascii() and expires.isdigit() and len(expires) <= _EXPIRES_DIGITS_MAX):
        raise _denied(f"Invalid date (should be seconds since epoch): {expires}")
    if now_s > int(expires):
        raise S3Error(
            Code.ACCESS_DENIED,
            "Request has expired",
            Expires=iso_date(int(expires) * 1000),
            ServerTime=iso_date(int(now_s * 1000)),
        )


def _denied(message: str) -> S3Error:
    return S3Error(Code.ACCESS_DENIED, message)
