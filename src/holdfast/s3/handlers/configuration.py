"""What clients ask about features that are not there, answered truthfully.

Each answer states what is so: no versions are kept, no policy, rule or tag exists, everything belongs to
one owner. Each looks the bucket or object up first, so that what does not exist is not described.
"""

from collections.abc import Awaitable, Callable

from holdfast.base.ids import VersionId
from holdfast.objects.model import ReadObject
from holdfast.s3.errors import Code, S3Error
from holdfast.s3.request import OWNER, Request, Response, Site, xml_response
from holdfast.s3.xml import document

Handler = Callable[[Site, Request], Awaitable[Response]]

_XSI = 'xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance" xsi:type="CanonicalUser"'
_ACL = (
    f"<Owner><ID>{OWNER}</ID></Owner><AccessControlList><Grant><Grantee {_XSI}><ID>{OWNER}</ID></Grantee>"
    "<Permission>FULL_CONTROL</Permission></Grant></AccessControlList>"
)
_DOCUMENTS = {
    "GetBucketVersioning": document("VersioningConfiguration", ""),
    "GetBucketAcl": document("AccessControlPolicy", _ACL),
    "GetBucketPolicyStatus": document("PolicyStatus", "<IsPublic>FALSE</IsPublic>"),
    "GetBucketLogging": document("BucketLoggingStatus", ""),
    "GetBucketNotificationConfiguration": document("NotificationConfiguration", ""),
    "GetBucketRequestPayment": document("RequestPaymentConfiguration", "<Payer>BucketOwner</Payer>"),
    "GetBucketAccelerateConfiguration": document("AccelerateConfiguration", ""),
    "GetBucketOwnershipControls": document(
        "OwnershipControls", "<Rule><ObjectOwnership>BucketOwnerEnforced</ObjectOwnership></Rule>"
    ),
    "GetPublicAccessBlock": document(
        "PublicAccessBlockConfiguration",
        "<BlockPublicAcls>true</BlockPublicAcls><IgnorePublicAcls>true</IgnorePublicAcls>"
        "<BlockPublicPolicy>true</BlockPublicPolicy><RestrictPublicBuckets>true</RestrictPublicBuckets>",
    ),
    "GetObjectAcl": document("AccessControlPolicy", _ACL),
    "GetObjectTagging": document("Tagging", "<TagSet/>"),
}
_ABSENT = {
    "GetBucketCors": Code.NO_SUCH_CORS,
    "GetBucketTagging": Code.NO_SUCH_TAG_SET,
    "GetBucketEncryption": Code.ENCRYPTION_NOT_FOUND,
    "GetBucketLifecycleConfiguration": Code.NO_SUCH_LIFECYCLE,
    "GetBucketPolicy": Code.NO_SUCH_BUCKET_POLICY,
    "GetObjectLockConfiguration": Code.OBJECT_LOCK_NOT_FOUND,
    "GetBucketReplication": Code.REPLICATION_NOT_FOUND,
    "GetBucketWebsite": Code.NO_SUCH_WEBSITE,
    "GetObjectLegalHold": Code.NO_SUCH_OBJECT_LOCK,
    "GetObjectRetention": Code.NO_SUCH_OBJECT_LOCK,
}


async def describe(site: Site, request: Request) -> Response:
    """Answer one of the operations above."""
    if request.key:
        version = request.query.get("versionId", "null")
        known = None if version == "null" else VersionId(version)
        await site.service.head_object(ReadObject(bucket=request.bucket, key=request.key, version=known))
    else:
        await site.service.get_bucket(request.bucket)
    name = request.operation.name
    if name in _ABSENT:
        raise S3Error(_ABSENT[name])
    return xml_response(_DOCUMENTS[name])


NAMES = (*_DOCUMENTS, *_ABSENT)
