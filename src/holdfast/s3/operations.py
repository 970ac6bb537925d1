"""Every operation of the S3 API in one table, and the function that finds the one that a request means. Pure.

An operation is selected by method, by what the target is (the service, a bucket, an object), and by the
query parameters or the header that tell it from its siblings. What must hold: a request means one
operation or is refused, so that `PUT /b/k?acl` can never be taken for a PUT of the object. What is not
served is in the table all the same, and answers NotImplemented under its name.
"""

from collections.abc import Mapping
from enum import Enum
from typing import NamedTuple

from holdfast.s3.errors import Code, S3Error


class Scope(Enum):
    """What a request is about."""

    SERVICE = "SERVICE"
    BUCKET = "BUCKET"
    OBJECT = "OBJECT"


class Operation(NamedTuple):
    """One operation. `query` are the parameters that select it (`name`, or `name=value`), `header` the
    header that does; `served` tells whether there is a handler."""

    name: str
    method: str
    scope: Scope
    query: tuple[str, ...] = ()
    header: str = ""
    served: bool = False


_S, _B, _O = Scope.SERVICE, Scope.BUCKET, Scope.OBJECT

OPERATIONS: tuple[Operation, ...] = (
    Operation("ListBuckets", "GET", _S, served=True),
    Operation("ListDirectoryBuckets", "GET", _S, ("max-directory-buckets",)),
    Operation("WriteGetObjectResponse", "POST", _S, ("x-amz-request-route",)),
    # Buckets
    Operation("CreateBucket", "PUT", _B, served=True),
    Operation("HeadBucket", "HEAD", _B, served=True),
    Operation("DeleteBucket", "DELETE", _B, served=True),
    Operation("ListObjects", "GET", _B, served=True),
    Operation("ListObjectsV2", "GET", _B, ("list-type=2",), served=True),
    Operation("ListObjectVersions", "GET", _B, ("versions",)),
    Operation("ListMultipartUploads", "GET", _B, ("uploads",), served=True),
    Operation("DeleteObjects", "POST", _B, ("delete",), served=True),
    Operation("PostObject", "POST", _B),
    Operation("CreateSession", "GET", _B, ("session",)),
    Operation("GetBucketLocation", "GET", _B, ("location",), served=True),
    Operation("GetBucketVersioning", "GET", _B, ("versioning",), served=True),
    Operation("PutBucketVersioning", "PUT", _B, ("versioning",)),
    Operation("GetBucketAcl", "GET", _B, ("acl",), served=True),
    Operation("PutBucketAcl", "PUT", _B, ("acl",)),
    Operation("GetBucketCors", "GET", _B, ("cors",), served=True),
    Operation("PutBucketCors", "PUT", _B, ("cors",)),
    Operation("DeleteBucketCors", "DELETE", _B, ("cors",)),
    Operation("GetBucketTagging", "GET", _B, ("tagging",), served=True),
    Operation("PutBucketTagging", "PUT", _B, ("tagging",)),
    Operation("DeleteBucketTagging", "DELETE", _B, ("tagging",)),
    Operation("GetBucketEncryption", "GET", _B, ("encryption",), served=True),
    Operation("PutBucketEncryption", "PUT", _B, ("encryption",)),
    Operation("DeleteBucketEncryption", "DELETE", _B, ("encryption",)),
    Operation("GetBucketLifecycleConfiguration", "GET", _B, ("lifecycle",), served=True),
    Operation("PutBucketLifecycleConfiguration", "PUT", _B, ("lifecycle",)),
    Operation("DeleteBucketLifecycle", "DELETE", _B, ("lifecycle",)),
    Operation("GetBucketPolicy", "GET", _B, ("policy",), served=True),
    Operation("PutBucketPolicy", "PUT", _B, ("policy",)),
    Operation("DeleteBucketPolicy", "DELETE", _B, ("policy",)),
    Operation("GetBucketPolicyStatus", "GET", _B, ("policyStatus",), served=True),
    Operation("GetPublicAccessBlock", "GET", _B, ("publicAccessBlock",), served=True),
    Operation("PutPublicAccessBlock", "PUT", _B, ("publicAccessBlock",)),
    Operation("DeletePublicAccessBlock", "DELETE", _B, ("publicAccessBlock",)),
    Operation("GetBucketOwnershipControls", "GET", _B, ("ownershipControls",), served=True),
    Operation("PutBucketOwnershipControls", "PUT", _B, ("ownershipControls",)),
    Operation("DeleteBucketOwnershipControls", "DELETE", _B, ("ownershipControls",)),
    Operation("GetObjectLockConfiguration", "GET", _B, ("object-lock",), served=True),
    Operation("PutObjectLockConfiguration", "PUT", _B, ("object-lock",)),
    Operation("GetBucketLogging", "GET", _B, ("logging",), served=True),
    Operation("PutBucketLogging", "PUT", _B, ("logging",)),
    Operation("GetBucketNotificationConfiguration", "GET", _B, ("notification",), served=True),
    Operation("PutBucketNotificationConfiguration", "PUT", _B, ("notification",)),
    Operation("GetBucketReplication", "GET", _B, ("replication",), served=True),
    Operation("PutBucketReplication", "PUT", _B, ("replication",)),
    Operation("DeleteBucketReplication", "DELETE", _B, ("replication",)),
    Operation("GetBucketRequestPayment", "GET", _B, ("requestPayment",), served=True),
    Operation("PutBucketRequestPayment", "PUT", _B, ("requestPayment",)),
    Operation("GetBucketWebsite", "GET", _B, ("website",), served=True),
    Operation("PutBucketWebsite", "PUT", _B, ("website",)),
    Operation("DeleteBucketWebsite", "DELETE", _B, ("website",)),
    Operation("GetBucketAccelerateConfiguration", "GET", _B, ("accelerate",), served=True),
    Operation("PutBucketAccelerateConfiguration", "PUT", _B, ("accelerate",)),
    Operation("GetBucketAbac", "GET", _B, ("abac",)),
    Operation("PutBucketAbac", "PUT", _B, ("abac",)),
    Operation("GetBucketAnalyticsConfiguration", "GET", _B, ("analytics", "id")),
    Operation("ListBucketAnalyticsConfigurations", "GET", _B, ("analytics",)),
    Operation("PutBucketAnalyticsConfiguration", "PUT", _B, ("analytics",)),
    Operation("DeleteBucketAnalyticsConfiguration", "DELETE", _B, ("analytics",)),
    Operation("GetBucketIntelligentTieringConfiguration", "GET", _B, ("intelligent-tiering", "id")),
    Operation("ListBucketIntelligentTieringConfigurations", "GET", _B, ("intelligent-tiering",)),
    Operation("PutBucketIntelligentTieringConfiguration", "PUT", _B, ("intelligent-tiering",)),
    Operation("DeleteBucketIntelligentTieringConfiguration", "DELETE", _B, ("intelligent-tiering",)),
    Operation("GetBucketInventoryConfiguration", "GET", _B, ("inventory", "id")),
    Operation("ListBucketInventoryConfigurations", "GET", _B, ("inventory",)),
    Operation("PutBucketInventoryConfiguration", "PUT", _B, ("inventory",)),
    Operation("DeleteBucketInventoryConfiguration", "DELETE", _B, ("inventory",)),
    Operation("GetBucketMetricsConfiguration", "GET", _B, ("metrics", "id")),
    Operation("ListBucketMetricsConfigurations", "GET", _B, ("metrics",)),
    Operation("PutBucketMetricsConfiguration", "PUT", _B, ("metrics",)),
    Operation("DeleteBucketMetricsConfiguration", "DELETE", _B, ("metrics",)),
    Operation("CreateBucketMetadataConfiguration", "POST", _B, ("metadataConfiguration",)),
    Operation("GetBucketMetadataConfiguration", "GET", _B, ("metadataConfiguration",)),
    Operation("DeleteBucketMetadataConfiguration", "DELETE", _B, ("metadataConfiguration",)),
    Operation("CreateBucketMetadataTableConfiguration", "POST", _B, ("metadataTable",)),
    Operation("GetBucketMetadataTableConfiguration", "GET", _B, ("metadataTable",)),
    Operation("DeleteBucketMetadataTableConfiguration", "DELETE", _B, ("metadataTable",)),
    Operation("UpdateBucketMetadataInventoryTableConfiguration", "PUT", _B, ("metadataInventoryTable",)),
    Operation("UpdateBucketMetadataJournalTableConfiguration", "PUT", _B, ("metadataJournalTable",)),
    Operation("UpdateBucketMetadataAnnotationTableConfiguration", "PUT", _B, ("metadataAnnotationTable",)),
    # Objects
    Operation("PutObject", "PUT", _O, served=True),
    Operation("CopyObject", "PUT", _O, header="x-amz-copy-source", served=True),
    Operation("GetObject", "GET", _O, served=True),
    Operation("HeadObject", "HEAD", _O, served=True),
    Operation("DeleteObject", "DELETE", _O, served=True),
    Operation("RenameObject", "PUT", _O, ("renameObject",)),
    Operation("GetObjectAttributes", "GET", _O, ("attributes",), served=True),
    Operation("GetObjectAcl", "GET", _O, ("acl",), served=True),
    Operation("PutObjectAcl", "PUT", _O, ("acl",)),
    Operation("GetObjectTagging", "GET", _O, ("tagging",), served=True),
    Operation("PutObjectTagging", "PUT", _O, ("tagging",)),
    Operation("DeleteObjectTagging", "DELETE", _O, ("tagging",)),
    Operation("GetObjectLegalHold", "GET", _O, ("legal-hold",), served=True),
    Operation("PutObjectLegalHold", "PUT", _O, ("legal-hold",)),
    Operation("GetObjectRetention", "GET", _O, ("retention",), served=True),
    Operation("PutObjectRetention", "PUT", _O, ("retention",)),
    Operation("ListObjectAnnotations", "GET", _O, ("annotation",)),
    Operation("GetObjectAnnotation", "GET", _O, ("annotation", "annotationName")),
    Operation("PutObjectAnnotation", "PUT", _O, ("annotation", "annotationName")),
    Operation("DeleteObjectAnnotation", "DELETE", _O, ("annotation", "annotationName")),
    Operation("GetObjectTorrent", "GET", _O, ("torrent",)),
    Operation("SelectObjectContent", "POST", _O, ("select", "select-type=2")),
    Operation("RestoreObject", "POST", _O, ("restore",)),
    Operation("UpdateObjectEncryption", "PUT", _O, ("encryption",)),
    Operation("CreateMultipartUpload", "POST", _O, ("uploads",), served=True),
    Operation("UploadPart", "PUT", _O, ("partNumber", "uploadId"), served=True),
    Operation("UploadPartCopy", "PUT", _O, ("partNumber", "uploadId"), "x-amz-copy-source", served=True),
    Operation("CompleteMultipartUpload", "POST", _O, ("uploadId",), served=True),
    Operation("AbortMultipartUpload", "DELETE", _O, ("uploadId",), served=True),
    Operation("ListParts", "GET", _O, ("uploadId",), served=True),
)

# Parameters that select one operation and merely refine another: part numbers on reads, ids of
# configurations.
_REFINES: frozenset[tuple[Scope, str, str]] = frozenset(
    {(_O, "GET", "partNumber"), (_O, "HEAD", "partNumber")}
    | {(_B, method, "id") for method in ("GET", "HEAD", "PUT", "DELETE", "POST")}
)


def _selectors(scope: Scope) -> frozenset[str]:
    return frozenset(
        name.partition("=")[0]
        for operation in OPERATIONS
        if operation.scope is scope
        for name in operation.query
    )


_SELECTORS = {scope: _selectors(scope) for scope in Scope}
SELECTORS = frozenset[str]().union(*_SELECTORS.values())
"""All query parameters by which one operation is told from another."""

_PLAIN = {
    (operation.method, operation.scope): operation
    for operation in OPERATIONS
    if not operation.query and not operation.header
}
_CHOICES: dict[tuple[str, Scope], list[Operation]] = {}
for _operation in OPERATIONS:
    _CHOICES.setdefault((_operation.method, _operation.scope), []).append(_operation)
for _choices in _CHOICES.values():
    # The most particular first.
    _choices.sort(key=lambda operation: -len(operation.query) - bool(operation.header))


def route(method: str, scope: Scope, query: Mapping[str, str], headers: Mapping[str, str]) -> Operation:
    """The operation that a request means. Raises MethodNotAllowed, or InvalidArgument for a part without
    its upload."""
    if not query and "x-amz-copy-source" not in headers:
        plain = _PLAIN.get((method, scope))
        if plain is None:
            raise _not_allowed(method, scope, "")
        return plain
    selectors = {
        name for name in query if name in _SELECTORS[scope] and (scope, method, name) not in _REFINES
    }
    for operation in _CHOICES.get((method, scope), ()):
        if _selected(operation, query, headers):
            left = selectors.difference(name.partition("=")[0] for name in operation.query)
            if left:
                raise _contradiction(method, scope, left)
            return operation
    raise _not_allowed(method, scope, "")


def _selected(operation: Operation, query: Mapping[str, str], headers: Mapping[str, str]) -> bool:
    if operation.header and operation.header not in headers:
        return False
    for wanted in operation.query:
        name, separator, value = wanted.partition("=")
        if name not in query or (separator and query[name] != value):
            return False
    return True


def _contradiction(method: str, scope: Scope, left: set[str]) -> S3Error:
    name = min(left)
    if name in {"partNumber", "uploadId"}:
        return S3Error(
            Code.INVALID_ARGUMENT,
            "A part needs both the partNumber and the uploadId parameter.",
            ArgumentName=name,
        )
    if name == "list-type":
        return S3Error(Code.INVALID_ARGUMENT, "Invalid List Type specified", ArgumentName="list-type")
    return _not_allowed(method, scope, name)


def _not_allowed(method: str, scope: Scope, subresource: str) -> S3Error:
    allowed = sorted(
        {
            operation.method
            for operation in OPERATIONS
            if operation.scope is scope
            and (not subresource or subresource in {name.partition("=")[0] for name in operation.query})
        }
    )
    return S3Error(
        Code.METHOD_NOT_ALLOWED,
        headers=(("Allow", ", ".join(allowed)),),
        Method=method,
        ResourceType=subresource.upper() or scope.value,
    )
