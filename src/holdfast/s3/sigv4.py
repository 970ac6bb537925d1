"""AWS Signature Version 4, verified. Pure: a request's head, the credentials and the time go in; who
signed, and how the body is protected, comes out, or an S3Error.

What must hold: every request that gets past `verify` carries a signature over its method, path, query,
host and every `x-amz-` and `x-holdfast-` header it came with, made with a secret we know, at a time near
ours. Comparisons take the same time whatever differs. Source: "Authenticating Requests (AWS Signature
Version 4)", Amazon S3 API Reference. S3 differs from other services: paths are encoded once and never
normalised.
"""

import hashlib
import hmac
import re
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import NamedTuple
from urllib.parse import quote

from holdfast.base.checksums import HmacSha256
from holdfast.s3.dates import amz_date, iso_date, parse_amz_date, parse_http_date
from holdfast.s3.errors import Code, S3Error

SKEW_S_MAX = 15 * 60
EXPIRES_S_MAX = 7 * 24 * 3600
ALGORITHM = "AWS4-HMAC-SHA256"
_CACHE_MAX = 512

Credentials = Mapping[str, str]
"""Access key ids and their secrets."""

Query = Sequence[tuple[str, str]]
"""Decoded names and values of a query, in the order sent."""


class Payload(Enum):
    """How a body is protected: the value of `x-amz-content-sha256`; SIGNED stands for a digest."""

    SIGNED = "signed"
    UNSIGNED = "UNSIGNED-PAYLOAD"
    STREAMING_SIGNED = "STREAMING-AWS4-HMAC-SHA256-PAYLOAD"
    STREAMING_SIGNED_TRAILER = "STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER"
    STREAMING_UNSIGNED_TRAILER = "STREAMING-UNSIGNED-PAYLOAD-TRAILER"


class Signed(NamedTuple):
    """A request whose signature holds. `sha256` is the signed digest of the body (hex), or empty;
    `amz_names` are the `x-amz-` headers that were signed, which are all that there are; the rest begins
    the chain of chunk signatures."""

    access_key: str
    payload: Payload
    sha256: str
    signature: str
    signing_key: HmacSha256
    amz_date: str
    scope: str
    amz_names: tuple[str, ...]


class _Claim(NamedTuple):
    """The parts of a credential and what it says it signed."""

    access_key: str
    date: str
    region: str
    service: str
    terminator: str
    signed_headers: str
    names: tuple[str, ...]
    signed: frozenset[str]
    amz_names: tuple[str, ...]

    @property
    def scope(self) -> str:
        return f"{self.date}/{self.region}/{self.service}/{self.terminator}"


_SHA256_HEX = re.compile(r"[0-9a-f]{64}\Z")
_PLAIN_PATH = re.compile(r"[A-Za-z0-9\-._~/]*\Z")
_AUTHORIZATION = re.compile(r"(AWS4-HMAC-SHA256 .*?)Signature=([0-9a-f]{64})\Z")
_WRONG_DATE = 'Invalid credential date "{}". This date is not the same as X-Amz-Date: "{}".'
_UNSUPPORTED = "The authorization mechanism you have provided is not supported. Please use AWS4-HMAC-SHA256."
_MUST_BE_SIGNED = ("x-amz-", "x-holdfast-")
_SPACES = re.compile(" {2,}")
_PAYLOADS = {payload.value: payload for payload in Payload if payload is not Payload.SIGNED}
_MISSING_QUERY = (
    "X-Amz-Algorithm",
    "X-Amz-Credential",
    "X-Amz-Signature",
    "X-Amz-Date",
    "X-Amz-SignedHeaders",
    "X-Amz-Expires",
)


class Verifier:
    """Verifies requests to one endpoint. Keeps derived signing keys and parsed credentials, bounded."""

    def __init__(self, credentials: Credentials, region: str) -> None:
        self._credentials = credentials
        self._region = region
        self._keys: dict[tuple[str, str, str], HmacSha256] = {}
        self._claims: dict[str, _Claim] = {}

    def verify(
        self, method: str, path: str, query: Query, headers: Mapping[str, str], now_s: float
    ) -> Signed:
        """Who signed this. `path` is decoded; `headers` are by lower-case name, several values joined
        by commas. Raises S3Error."""
        authorization = headers.get("authorization")
        presigned = _find_presigned(query) if query else None
        if authorization is None:
            if presigned is None:
                raise S3Error(Code.ACCESS_DENIED)
            return self._verify_query(method, path, query, presigned, headers, now_s)
        if presigned is not None:
            raise S3Error(
                Code.INVALID_ARGUMENT,
                "Only one auth mechanism allowed; only the X-Amz-Algorithm query parameter, Signature query "
                "string parameter or the Authorization header should be specified",
                ArgumentName="Authorization",
                ArgumentValue=authorization.partition(" ")[0],
            )
        return self._verify_header(method, path, query, authorization, headers, now_s)

    def _verify_header(
        self,
        method: str,
        path: str,
        query: Query,
        authorization: str,
        headers: Mapping[str, str],
        now_s: float,
    ) -> Signed:
        found = _AUTHORIZATION.match(authorization)
        if found is None:
            raise _unusable_authorization(authorization)
        stem, signature = found.groups()
        claim = self._claims.get(stem)
        if claim is None:
            claim = _parse_header_claim(stem)
            if len(self._claims) >= _CACHE_MAX:
                self._claims.clear()
            self._claims[stem] = claim
        self._check_scope(claim, presigned=False)
        date, sent_s = _request_date(headers)
        _check_skew(sent_s, date, now_s)
        if date[:8] != claim.date:
            raise _malformed(_WRONG_DATE.format(claim.date, date[:8]))
        sha256 = headers.get("x-amz-content-sha256")
        if sha256 is None:
            raise S3Error(
                Code.INVALID_REQUEST, "Missing required header for this request: x-amz-content-sha256"
            )
        payload = parse_payload(sha256)
        return self._compare(method, path, query, headers, claim, date, sha256, payload, signature)

    def _verify_query(
        self,
        method: str,
        path: str,
        query: Query,
        parameters: dict[str, str],
        headers: Mapping[str, str],
        now_s: float,
    ) -> Signed:
        algorithm = parameters.get("X-Amz-Algorithm", "")
        if algorithm == "AWS4-ECDSA-P256-SHA256":
            raise S3Error(Code.NOT_IMPLEMENTED, "SigV4A signatures are not implemented; sign with SigV4.")
        if any(not parameters.get(name) for name in _MISSING_QUERY):
            raise S3Error(Code.AUTHORIZATION_QUERY_ERROR)
        if algorithm != ALGORITHM:
            raise _bad_query('X-Amz-Algorithm only supports "AWS4-HMAC-SHA256"')
        claim = _make_claim(parameters["X-Amz-Credential"], parameters["X-Amz-SignedHeaders"], _bad_query)
        self._check_scope(claim, presigned=True)
        date = parameters["X-Amz-Date"]
        sent_s = parse_amz_date(date)
        if sent_s is None:
            raise _bad_query("X-Amz-Date must be in the ISO8601 Long Format \"yyyyMMdd'T'HHmmss'Z'\"")
        if date[:8] != claim.date:
            raise _bad_query(_WRONG_DATE.format(claim.date, date[:8]))
        _check_expiry(parameters["X-Amz-Expires"], sent_s, now_s)
        sha256 = parameters.get("X-Amz-Content-Sha256") or headers.get("x-amz-content-sha256")
        sha256 = sha256 or Payload.UNSIGNED.value
        payload = parse_payload(sha256)
        rest = [(name, value) for name, value in query if name != "X-Amz-Signature"]
        signature = parameters["X-Amz-Signature"]
        if not _SHA256_HEX.match(signature):
            raise S3Error(Code.SIGNATURE_DOES_NOT_MATCH, SignatureProvided=signature)
        return self._compare(method, path, rest, headers, claim, date, sha256, payload, signature)

    def _check_scope(self, claim: _Claim, *, presigned: bool) -> None:
        complaint = _bad_query if presigned else _malformed
        prefix = "Error parsing the X-Amz-Credential parameter; " if presigned else ""
        if claim.region != self._region:
            raise complaint(
                f"{prefix}the region '{claim.region}' is wrong; expecting '{self._region}'",
                self._region,
            )
        if claim.service != "s3":
            raise complaint(f'{prefix}incorrect service "{claim.service}". This endpoint belongs to "s3".')
        if claim.terminator != "aws4_request":
            raise complaint(
                f'{prefix}incorrect terminal "{claim.terminator}". This endpoint uses "aws4_request".'
            )
        if "host" not in claim.signed:
            raise S3Error(
                Code.ACCESS_DENIED,
                "There were headers present in the request which were not signed",
                HeadersNotSigned="host",
            )

    def _compare(
        self,
        method: str,
        path: str,
        query: Query,
        headers: Mapping[str, str],
        claim: _Claim,
        date: str,
        sha256: str,
        payload: Payload,
        signature: str,
    ) -> Signed:
        signed = claim.signed
        unsigned = [name for name in headers.keys() - signed if name.startswith(_MUST_BE_SIGNED)]
        if unsigned:
            raise S3Error(
                Code.ACCESS_DENIED,
                "There were headers present in the request which were not signed",
                HeadersNotSigned=", ".join(sorted(unsigned)),
            )
        secret = self._credentials.get(claim.access_key)
        if secret is None:
            raise S3Error(Code.INVALID_ACCESS_KEY_ID, AWSAccessKeyId=claim.access_key)
        if "x-amz-security-token" in headers or (query and ("X-Amz-Security-Token" in dict(query))):
            # There are no temporary credentials here, so a token was meant for somebody else.
            raise S3Error(Code.INVALID_TOKEN)
        canonical = canonical_request(method, path, query, headers, claim.names, claim.signed_headers, sha256)
        digest = hashlib.sha256(canonical.encode("utf-8")).hexdigest()
        scope = claim.scope
        to_sign = f"{ALGORITHM}\n{date}\n{scope}\n{digest}"
        key = self._signing_key(claim, secret)
        expected = key.hexdigest(to_sign.encode("utf-8"))
        if not hmac.compare_digest(expected, signature):
            raise S3Error(
                Code.SIGNATURE_DOES_NOT_MATCH,
                AWSAccessKeyId=claim.access_key,
                StringToSign=to_sign,
                SignatureProvided=signature,
                CanonicalRequest=canonical,
            )
        digest_of_body = sha256 if payload is Payload.SIGNED else ""
        return Signed(claim.access_key, payload, digest_of_body, signature, key, date, scope, claim.amz_names)

    def _signing_key(self, claim: _Claim, secret: str) -> HmacSha256:
        # The secret is part of the name, so that a changed one is never answered with an old key.
        name = (claim.access_key, claim.date, secret)
        key = self._keys.get(name)
        if key is None:
            key = signing_key(secret, claim.date, claim.region, claim.service)
            if len(self._keys) >= _CACHE_MAX:
                self._keys.clear()
            self._keys[name] = key
        return key


def signing_key(secret: str, date: str, region: str, service: str) -> HmacSha256:
    """The key of one day, region and service."""
    key = hmac.digest(b"AWS4" + secret.encode("utf-8"), date.encode("ascii"), "sha256")
    key = hmac.digest(key, region.encode("utf-8"), "sha256")
    key = hmac.digest(key, service.encode("utf-8"), "sha256")
    return HmacSha256(hmac.digest(key, b"aws4_request", "sha256"))


def canonical_request(
    method: str,
    path: str,
    query: Query,
    headers: Mapping[str, str],
    names: Sequence[str],
    signed_headers: str,
    sha256: str,
) -> str:
    """The text whose digest is signed. A header that was signed and did not come reads as empty."""
    if not _PLAIN_PATH.match(path):
        path = quote(path, safe="/-._~")
    lines = [method, path, canonical_query(query) if query else ""]
    for name in names:
        value = headers.get(name, "")
        if "  " in value:
            value = _SPACES.sub(" ", value)
        lines.append(f"{name}:{value}")
    lines += ("", signed_headers, sha256)
    return "\n".join(lines)


def canonical_query(query: Query) -> str:
    """Names and values encoded and sorted, by name and then by value."""
    pairs = sorted((quote(name, safe="-._~"), quote(value, safe="-._~")) for name, value in query)
    return "&".join([f"{name}={value}" for name, value in pairs])


def _find_presigned(query: Query) -> dict[str, str] | None:
    """The authentication parameters of a presigned request, or None when it has none."""
    found: dict[str, str] = {}
    for name, value in query:
        if name.startswith("X-Amz-"):
            if name in found:
                raise _bad_query(f"The query parameter {name} came more than once.")
            found[name] = value
        elif name in {"AWSAccessKeyId", "Signature"}:
            # Version 2 is for presigned S3 operations alone: see `sigv2`.
            raise S3Error(Code.INVALID_REQUEST, _UNSUPPORTED)
    if "X-Amz-Signature" in found or "X-Amz-Algorithm" in found or "X-Amz-Credential" in found:
        return found
    return None


class _Complaint:
    """Makes an error of one code, so that header and query can share checks."""

    def __init__(self, code: Code, prefix: str) -> None:
        self._code = code
        self._prefix = prefix

    def __call__(self, message: str, region: str = "") -> S3Error:
        return S3Error(self._code, self._prefix + message, more={"Region": region} if region else None)


_malformed = _Complaint(Code.AUTHORIZATION_HEADER_MALFORMED, "The authorization header is malformed; ")
_bad_query = _Complaint(Code.AUTHORIZATION_QUERY_ERROR, "")


def _unusable_authorization(authorization: str) -> S3Error:
    scheme = authorization.partition(" ")[0]
    if scheme == "AWS4-ECDSA-P256-SHA256":
        return S3Error(Code.NOT_IMPLEMENTED, "SigV4A signatures are not implemented; sign with SigV4.")
    if scheme == ALGORITHM:
        return _malformed("the components Credential, SignedHeaders and Signature are needed, in that order.")
    if scheme == "AWS":
        return S3Error(
            Code.INVALID_REQUEST,
            _UNSUPPORTED,
        )
    return S3Error(
        Code.INVALID_ARGUMENT,
        "Unsupported Authorization Type",
        ArgumentName="Authorization",
        ArgumentValue=scheme,
    )


def _parse_header_claim(stem: str) -> _Claim:
    parts = dict[str, str]()
    for part in stem[len(ALGORITHM) :].split(","):
        name, separator, value = part.strip().partition("=")
        if separator:
            parts[name] = value
    if "Credential" not in parts or "SignedHeaders" not in parts:
        raise _malformed("the components Credential, SignedHeaders and Signature are needed, in that order.")
    return _make_claim(parts["Credential"], parts["SignedHeaders"], _malformed)


def _make_claim(credential: str, signed_headers: str, complaint: _Complaint) -> _Claim:
    parts = credential.rsplit("/", 4)
    if len(parts) != 5 or not all(parts):
        raise complaint(
            'the Credential is mal-formed; expecting "<YOUR-AKID>/YYYYMMDD/REGION/SERVICE/aws4_request".'
        )
    names = tuple(signed_headers.split(";"))
    if signed_headers != signed_headers.lower() or not all(names) or len(set(names)) != len(names):
        raise complaint("SignedHeaders must be distinct lower-case names, separated by semicolons.")
    access_key, date, region, service, terminator = parts
    amz = tuple(name for name in names if name.startswith("x-amz-"))
    return _Claim(access_key, date, region, service, terminator, signed_headers, names, frozenset(names), amz)


def parse_payload(sha256: str) -> Payload:
    """How a body is protected, from x-amz-content-sha256. Raises S3Error."""
    if _SHA256_HEX.match(sha256):
        return Payload.SIGNED
    payload = _PAYLOADS.get(sha256)
    if payload is None:
        if sha256.startswith("STREAMING-AWS4-ECDSA"):
            raise S3Error(Code.NOT_IMPLEMENTED, "SigV4A signatures are not implemented; sign with SigV4.")
        raise S3Error(
            Code.INVALID_ARGUMENT,
            "x-amz-content-sha256 must be UNSIGNED-PAYLOAD, STREAMING-UNSIGNED-PAYLOAD-TRAILER, "
            "STREAMING-AWS4-HMAC-SHA256-PAYLOAD, STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER or a valid "
            "sha256 value.",
            ArgumentName="x-amz-content-sha256",
            ArgumentValue=sha256,
        )
    return payload


def _request_date(headers: Mapping[str, str]) -> tuple[str, int]:
    text = headers.get("x-amz-date")
    if text is not None:
        seconds = parse_amz_date(text)
        if seconds is not None:
            return text, seconds
    elif "date" in headers:
        milliseconds = parse_http_date(headers["date"])
        if milliseconds is not None:
            return amz_date(milliseconds // 1000), milliseconds // 1000
    raise S3Error(Code.ACCESS_DENIED, "AWS authentication requires a valid Date or x-amz-date header")


def _check_skew(sent_s: int, date: str, now_s: float) -> None:
    if abs(now_s - sent_s) > SKEW_S_MAX:
        raise S3Error(
            Code.REQUEST_TIME_TOO_SKEWED,
            RequestTime=date,
            ServerTime=iso_date(int(now_s * 1000)),
            MaxAllowedSkewMilliseconds=str(SKEW_S_MAX * 1000),
        )


def _check_expiry(expires: str, sent_s: int, now_s: float) -> None:
    digits = expires.removeprefix("-")
    if not (digits.isascii() and digits.isdigit()):
        raise _bad_query("X-Amz-Expires should be a number")
    if expires.startswith("-"):
        raise _bad_query("X-Amz-Expires must be non-negative")
    if len(digits) > 9 or int(digits) > EXPIRES_S_MAX:
        raise _bad_query(
            "X-Amz-Expires must be less than a week (in seconds); that is, the given X-Amz-Expires must be "
            f"less than {EXPIRES_S_MAX} seconds"
        )
    if int(digits) == 0:
        raise _bad_query("X-Amz-Expires must be greater than zero")
    if sent_s - now_s > SKEW_S_MAX:
        raise S3Error(Code.ACCESS_DENIED, "Request is not yet valid", ServerTime=iso_date(int(now_s * 1000)))
    if now_s > sent_s + int(digits):
        raise S3Error(
            Code.ACCESS_DENIED,
            "Request has expired",
            more={
                "X-Amz-Expires": digits,
                "Expires": iso_date((sent_s + int(digits)) * 1000),
                "ServerTime": iso_date(int(now_s * 1000)),
            },
        )
