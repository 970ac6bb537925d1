"""S3's errors: their codes, and the one mapping from the house's errors to them.

`Code` holds every code this face answers, with its status and default sentence. `S3Error` is raised
inside the face; `to_s3_error` turns whatever else was raised into one. What must hold: an error that is
not ours tells the client nothing but that it happened, and none tells where things lie on this machine.
"""

import re
from collections.abc import Mapping
from enum import Enum

from holdfast.base.errors import Bug, Busy, Damaged, Fenced, HoldfastError, InvalidInput, Unavailable
from holdfast.objects import errors as o
from holdfast.packs.errors import BelowFloor
from holdfast.s3.xml import escape
from holdfast.stores.port import StoreFull
from holdfast.wire.exchange import BodyError, BodyFault

RETRY_AFTER_S = 1


class Code(Enum):
    """An S3 error code: its name on the wire, the HTTP status, and what S3 says by default."""

    ACCESS_DENIED = ("AccessDenied", 403, "Access Denied")
    ACCESS_FORBIDDEN = ("AccessForbidden", 403, "CORSResponse: CORS is not enabled for this bucket.")
    ACL_NOT_SUPPORTED = ("AccessControlListNotSupported", 400, "The bucket does not allow ACLs")
    AUTHORIZATION_HEADER_MALFORMED = (
        "AuthorizationHeaderMalformed",
        400,
        "The authorization header that you provided is not valid.",
    )
    AUTHORIZATION_QUERY_ERROR = (
        "AuthorizationQueryParametersError",
        400,
        "Query-string authentication version 4 requires the X-Amz-Algorithm, X-Amz-Credential, "
        "X-Amz-Signature, X-Amz-Date, X-Amz-SignedHeaders, and X-Amz-Expires parameters.",
    )
    BAD_DIGEST = (
        "BadDigest",
        400,
        "The Content-MD5 or checksum value that you specified did not match what the server received.",
    )
    BAD_REQUEST = ("BadRequest", 400, "The request is not well-formed HTTP/1.1.")
    BUCKET_ALREADY_OWNED = (
        "BucketAlreadyOwnedByYou",
        409,
        "The bucket that you tried to create already exists, and you own it.",
    )
    BUCKET_NOT_EMPTY = ("BucketNotEmpty", 409, "The bucket that you tried to delete is not empty.")
    CONDITIONAL_CONFLICT = (
        "ConditionalRequestConflict",
        409,
        "A conflicting operation occurred during this conditional request. Try again.",
    )
    ENTITY_TOO_LARGE = (
        "EntityTooLarge",
        400,
        "Your proposed upload exceeds the maximum allowed object size.",
    )
    ENTITY_TOO_SMALL = (
        "EntityTooSmall",
        400,
        "Your proposed upload is smaller than the minimum allowed object size.",
    )
    ENCRYPTION_NOT_FOUND = (
        "ServerSideEncryptionConfigurationNotFoundError",
        404,
        "The server side encryption configuration was not found",
    )
    ILLEGAL_LOCATION = (
        "IllegalLocationConstraintException",
        400,
        "The specified location constraint is incompatible with the region this endpoint serves.",
    )
    INCOMPLETE_BODY = (
        "IncompleteBody",
        400,
        "You did not provide the number of bytes specified by the Content-Length HTTP header.",
    )
    INSUFFICIENT_STORAGE = ("InsufficientStorage", 507, "There is no space left to store this.")
    INTERNAL_ERROR = ("InternalError", 500, "We encountered an internal error. Please try again.")
    INVALID_ACCESS_KEY_ID = (
        "InvalidAccessKeyId",
        403,
        "The access key ID that you provided does not exist in our records.",
    )
    INVALID_ARGUMENT = ("InvalidArgument", 400, "Invalid Argument")
    INVALID_BUCKET_NAME = ("InvalidBucketName", 400, "The specified bucket is not valid.")
    INVALID_CHUNK_SIZE = (
        "InvalidChunkSizeError",
        403,
        "Only the last chunk is allowed to have a size less than 8192 bytes",
    )
    INVALID_DIGEST = ("InvalidDigest", 400, "The Content-MD5 that you specified is not valid.")
    INVALID_PART = (
        "InvalidPart",
        400,
        "One or more of the specified parts could not be found. The part might not have been uploaded, or "
        "the specified entity tag might not have matched the part's entity tag.",
    )
    INVALID_PART_NUMBER = ("InvalidPartNumber", 416, "The requested partnumber is not satisfiable")
    INVALID_PART_ORDER = (
        "InvalidPartOrder",
        400,
        "The list of parts was not in ascending order. The parts list must be specified in order by part "
        "number.",
    )
    INVALID_RANGE = ("InvalidRange", 416, "The requested range is not satisfiable")
    INVALID_REQUEST = ("InvalidRequest", 400, "Invalid Request")
    INVALID_STORAGE_CLASS = ("InvalidStorageClass", 400, "The storage class that you specified is not valid.")
    INVALID_TOKEN = ("InvalidToken", 400, "The provided token is malformed or otherwise not valid.")
    INVALID_URI = ("InvalidURI", 400, "Couldn't parse the specified URI.")
    KEY_TOO_LONG = ("KeyTooLongError", 400, "Your key is too long")
    MALFORMED_TRAILER = (
        "MalformedTrailerError",
        400,
        "The request contained trailing data that was not well-formed or did not conform to our published "
        "schema.",
    )
    MALFORMED_XML = (
        "MalformedXML",
        400,
        "The XML that you provided was not well formed or did not validate against our published schema.",
    )
    METADATA_TOO_LARGE = (
        "MetadataTooLarge",
        400,
        "Your metadata headers exceed the maximum allowed metadata size.",
    )
    METHOD_NOT_ALLOWED = (
        "MethodNotAllowed",
        405,
        "The specified method is not allowed against this resource.",
    )
    MISSING_CONTENT_LENGTH = (
        "MissingContentLength",
        411,
        "You must provide the Content-Length HTTP header.",
    )
    NO_SUCH_BUCKET = ("NoSuchBucket", 404, "The specified bucket does not exist")
    NO_SUCH_BUCKET_POLICY = ("NoSuchBucketPolicy", 404, "The bucket policy does not exist")
    NO_SUCH_CORS = ("NoSuchCORSConfiguration", 404, "The CORS configuration does not exist")
    NO_SUCH_KEY = ("NoSuchKey", 404, "The specified key does not exist.")
    NO_SUCH_LIFECYCLE = (
        "NoSuchLifecycleConfiguration",
        404,
        "The lifecycle configuration does not exist",
    )
    NO_SUCH_OBJECT_LOCK = (
        "NoSuchObjectLockConfiguration",
        404,
        "The specified object does not have a ObjectLock configuration",
    )
    NO_SUCH_TAG_SET = ("NoSuchTagSet", 404, "The TagSet does not exist")
    NO_SUCH_UPLOAD = (
        "NoSuchUpload",
        404,
        "The specified upload does not exist. The upload ID may be invalid, or the upload may have been "
        "aborted or completed.",
    )
    NO_SUCH_VERSION = ("NoSuchVersion", 404, "The specified version does not exist.")
    NO_SUCH_WEBSITE = (
        "NoSuchWebsiteConfiguration",
        404,
        "The specified bucket does not have a website configuration",
    )
    NOT_FOUND = ("NotFound", 404, "There is nothing at this path.")
    NOT_IMPLEMENTED = (
        "NotImplemented",
        501,
        "A header you provided implies functionality that is not implemented.",
    )
    NOT_MODIFIED = ("NotModified", 304, "Not Modified")
    OBJECT_LOCK_NOT_FOUND = (
        "ObjectLockConfigurationNotFoundError",
        404,
        "Object Lock configuration does not exist for this bucket",
    )
    PRECONDITION_FAILED = (
        "PreconditionFailed",
        412,
        "At least one of the pre-conditions you specified did not hold",
    )
    REPLICATION_NOT_FOUND = (
        "ReplicationConfigurationNotFoundError",
        404,
        "The replication configuration was not found",
    )
    REQUEST_HEADERS_TOO_LARGE = (
        "RequestHeaderSectionTooLarge",
        400,
        "Your request header section exceeds the maximum allowed size.",
    )
    REQUEST_TIMEOUT = (
        "RequestTimeout",
        400,
        "Your socket connection to the server was not read from or written to within the timeout period.",
    )
    REQUEST_TIME_TOO_SKEWED = (
        "RequestTimeTooSkewed",
        403,
        "The difference between the request time and the server's time is too large.",
    )
    SERVICE_UNAVAILABLE = ("ServiceUnavailable", 503, "Service is unable to handle request.")
    SIGNATURE_DOES_NOT_MATCH = (
        "SignatureDoesNotMatch",
        403,
        "The request signature that the server calculated does not match the signature that you provided. "
        "Check your secret access key and signing method.",
    )
    SLOW_DOWN = ("SlowDown", 503, "Please reduce your request rate.")
    URI_TOO_LONG = ("URITooLong", 414, "The request target is too long.")
    SHA256_MISMATCH = (
        "XAmzContentSHA256Mismatch",
        400,
        "The provided 'x-amz-content-sha256' header does not match what was computed.",
    )

    def __init__(self, wire: str, status: int, message: str) -> None:
        self.wire = wire
        self.status = status
        self.message = message


class S3Error(Exception):
    """An answer other than success. `facts` (and `more`, for names that Python cannot
    spell) become elements of the XML, `headers` go beside them."""

    def __init__(
        self,
        code: Code,
        message: str = "",
        *,
        headers: tuple[tuple[str, str], ...] = (),
        more: Mapping[str, str] | None = None,
        **facts: str,
    ) -> None:
        super().__init__(message or code.message)
        self.code = code
        self.message = message or code.message
        self.headers = headers
        self.facts = {**facts, **more} if more else facts

    @property
    def status(self) -> int:
        """The HTTP status."""
        return self.code.status


def not_implemented(header: str) -> S3Error:
    """501 for a header that asks for what is not there."""
    return S3Error(Code.NOT_IMPLEMENTED, f"{Code.NOT_IMPLEMENTED.message} ({header})", Header=header)


def invalid_argument(message: str, name: str, value: str) -> S3Error:
    """400 that names the argument."""
    return S3Error(Code.INVALID_ARGUMENT, message, ArgumentName=name, ArgumentValue=value)


_CODES: dict[type[BaseException], Code] = {
    o.NoSuchBucket: Code.NO_SUCH_BUCKET,
    o.NoSuchKey: Code.NO_SUCH_KEY,
    o.NoSuchVersion: Code.NO_SUCH_VERSION,
    o.NoSuchUpload: Code.NO_SUCH_UPLOAD,
    o.BucketAlreadyOwnedByYou: Code.BUCKET_ALREADY_OWNED,
    o.BucketNotEmpty: Code.BUCKET_NOT_EMPTY,
    o.InvalidBucketName: Code.INVALID_BUCKET_NAME,
    o.KeyTooLong: Code.KEY_TOO_LONG,
    o.InvalidKey: Code.INVALID_URI,
    o.MetadataTooLarge: Code.METADATA_TOO_LARGE,
    o.EntityTooLarge: Code.ENTITY_TOO_LARGE,
    o.EntityTooSmall: Code.ENTITY_TOO_SMALL,
    o.IncompleteBody: Code.INCOMPLETE_BODY,
    o.BadDigest: Code.BAD_DIGEST,
    o.InvalidPart: Code.INVALID_PART,
    o.InvalidPartOrder: Code.INVALID_PART_ORDER,
    o.PreconditionFailed: Code.PRECONDITION_FAILED,
    o.NotModified: Code.NOT_MODIFIED,
    o.InvalidRange: Code.INVALID_RANGE,
    o.InvalidRequest: Code.INVALID_REQUEST,
    o.ConditionalConflict: Code.CONDITIONAL_CONFLICT,
    InvalidInput: Code.INVALID_ARGUMENT,
    Busy: Code.SLOW_DOWN,
    StoreFull: Code.INSUFFICIENT_STORAGE,
    Unavailable: Code.SERVICE_UNAVAILABLE,
    Fenced: Code.SERVICE_UNAVAILABLE,
    Damaged: Code.INTERNAL_ERROR,
    Bug: Code.INTERNAL_ERROR,
}

# S3's own sentence says it; ours would only differ in words.
_OWN_SENTENCE = frozenset(
    {
        Code.NO_SUCH_BUCKET,
        Code.NO_SUCH_KEY,
        Code.NO_SUCH_VERSION,
        Code.NO_SUCH_UPLOAD,
        Code.BUCKET_ALREADY_OWNED,
        Code.BUCKET_NOT_EMPTY,
        Code.INVALID_BUCKET_NAME,
        Code.INVALID_RANGE,
        Code.INVALID_PART,
        Code.INVALID_PART_ORDER,
        Code.NOT_MODIFIED,
        Code.PRECONDITION_FAILED,
        Code.INTERNAL_ERROR,
        Code.SLOW_DOWN,
    }
)

_RETRY = (("Retry-After", str(RETRY_AFTER_S)),)


_BODY_FAULTS = {
    BodyFault.CUT: Code.INCOMPLETE_BODY,
    BodyFault.LATE: Code.REQUEST_TIMEOUT,
    BodyFault.CODING: Code.BAD_REQUEST,
}


def to_s3_error(error: BaseException, *, reading: bool) -> S3Error:
    """The S3 error for `error`. `reading` tells a GET or HEAD from the rest, where S3 differs by it.

    What the house raised keeps its sentence where that helps the client; what it did not raise says
    only InternalError. Whoever calls this logs the latter.
    """
    if isinstance(error, S3Error):
        return error
    if isinstance(error, BodyError):
        code = _BODY_FAULTS[error.fault]
        return S3Error(code, error.message if code is Code.BAD_REQUEST else "")
    code = next((_CODES[kind] for kind in type(error).__mro__ if kind in _CODES), Code.INTERNAL_ERROR)
    if isinstance(error, o.InvalidPartNumber):
        code = Code.INVALID_PART_NUMBER if reading else Code.INVALID_ARGUMENT
    if not isinstance(error, HoldfastError):
        return S3Error(code)
    if isinstance(error, Damaged):
        return S3Error(code, "The object is damaged: its bytes cannot be read back correctly any more.")
    facts = _facts(error)
    message = "" if code in _OWN_SENTENCE else _sentence(error, code)
    headers: tuple[tuple[str, str], ...] = ()
    if code.status == 503:
        headers = _RETRY
    elif isinstance(error, o.InvalidRange) and "size" in error.facts:
        headers = (("Content-Range", f"bytes */{error.facts['size']}"),)
    return S3Error(code, message, headers=headers, more=facts)


_PATH = re.compile(r"(?:^|[\s('\"])/[^\s/]")


def _sentence(error: HoldfastError, code: Code) -> str:
    """What the client is told. Of trouble inside, what happened but not where: hints name directories of
    this machine, which are for the log."""
    if code.status < 500:
        return str(error)
    text = str(error) if isinstance(error, BelowFloor) else error.message
    # What ends in a colon goes on with the hint.
    return code.message if _PATH.search(text) else re.sub(r":\Z", ".", text)


def _facts(error: HoldfastError) -> dict[str, str]:
    if isinstance(error, o.PreconditionFailed) and "condition" in error.facts:
        return {"Condition": str(error.facts["condition"])}
    if isinstance(error, o.InvalidRange) and "size" in error.facts:
        return {"ActualObjectSize": str(error.facts["size"])}
    if isinstance(error, o.EntityTooSmall) and _TOO_SMALL.keys() <= error.facts.keys():
        return {element: str(error.facts[name]) for name, element in _TOO_SMALL.items()}
    if isinstance(error, o.InvalidPart) and "part" in error.facts:
        return {"PartNumber": str(error.facts["part"]), "ETag": str(error.facts.get("etag", ""))}
    return {}


_TOO_SMALL = {"size": "ProposedSize", "size_min": "MinSizeAllowed", "part": "PartNumber", "etag": "ETag"}


_ABOUT_BUCKETS = frozenset(
    {
        Code.BUCKET_ALREADY_OWNED,
        Code.BUCKET_NOT_EMPTY,
        Code.ENCRYPTION_NOT_FOUND,
        Code.INVALID_BUCKET_NAME,
        Code.NO_SUCH_BUCKET,
        Code.NO_SUCH_BUCKET_POLICY,
        Code.NO_SUCH_CORS,
        Code.NO_SUCH_LIFECYCLE,
        Code.NO_SUCH_TAG_SET,
        Code.NO_SUCH_WEBSITE,
        Code.OBJECT_LOCK_NOT_FOUND,
        Code.REPLICATION_NOT_FOUND,
    }
)


def error_xml(
    error: S3Error, *, resource: str, bucket: str, key: str, request_id: str, host_id: str
) -> bytes:
    """The body of an error's answer."""
    parts = [
        '<?xml version="1.0" encoding="UTF-8"?>\n<Error>',
        f"<Code>{error.code.wire}</Code><Message>{escape(error.message)}</Message>",
    ]
    if key and error.code in {Code.NO_SUCH_KEY, Code.NO_SUCH_VERSION, Code.KEY_TOO_LONG}:
        parts.append(f"<Key>{escape(key)}</Key>")
    elif bucket and error.code in _ABOUT_BUCKETS:
        parts.append(f"<BucketName>{escape(bucket)}</BucketName>")
    parts += [f"<{name}>{escape(value)}</{name}>" for name, value in error.facts.items()]
    parts.append(
        f"<Resource>{escape(resource)}</Resource><RequestId>{request_id}</RequestId>"
        f"<HostId>{host_id}</HostId></Error>"
    )
    return "".join(parts).encode("utf-8", "surrogatepass")
