"""CreateBucket, HeadBucket, DeleteBucket, GetBucketLocation."""

from holdfast.objects.errors import BucketAlreadyOwnedByYou
from holdfast.objects.model import Bucket
from holdfast.s3.documents import expect_root, read_document
from holdfast.s3.errors import Code, S3Error, not_implemented
from holdfast.s3.request import Request, Response, Site, check_acl, xml_response
from holdfast.s3.xml import Element, document, escape
from holdfast.scheme import parse_scheme
from holdfast.topology import parse_survive

SCHEME_HEADER = "x-holdfast-scheme"
SURVIVE_HEADER = "x-holdfast-survive"
_CONFIGURATION = "CreateBucketConfiguration"

REPEATED_IN = "us-east-1"
"""The region in which making one's own bucket again is answered like the first time."""


async def create_bucket(site: Site, request: Request) -> Response:
    """Make a bucket, with the scheme of `x-holdfast-scheme`, one that survives what `x-holdfast-survive`
    says, or the default one."""
    headers = request.headers
    for name in headers:
        if name.startswith("x-amz-grant-"):
            raise S3Error(Code.ACL_NOT_SUPPORTED)
    if "x-amz-acl" in headers:
        check_acl(headers["x-amz-acl"])
    if headers.get("x-amz-bucket-object-lock-enabled", "false").lower() != "false":
        raise not_implemented("x-amz-bucket-object-lock-enabled")
    if headers.get("x-amz-object-ownership", "BucketOwnerEnforced") != "BucketOwnerEnforced":
        raise not_implemented("x-amz-object-ownership")
    configuration = await read_document(site, request, optional=True)
    if configuration is not None:
        _check_configuration(expect_root(configuration, _CONFIGURATION), site.region)
    scheme, survive = headers.get(SCHEME_HEADER), headers.get(SURVIVE_HEADER)
    try:
        bucket = await site.service.create_bucket(
            request.bucket, scheme, request.request_id, request.tries, survive
        )
    except BucketAlreadyOwnedByYou:
        # As in AWS's first region, and nowhere else: scripts that were written for it rely on that.
        if site.region != REPEATED_IN:
            raise
        bucket = await site.service.get_bucket(request.bucket)
        if scheme is not None and parse_scheme(scheme, bucket.scheme.n) != bucket.scheme:
            raise
        if survive is not None and parse_survive(survive).name != bucket.survive:
            raise
    return Response(
        fields=[
            ("Location", f"/{bucket.name}"),
            *_protection(bucket),
            ("x-amz-bucket-region", bucket.region),
        ]
    )


def _protection(bucket: Bucket) -> list[tuple[str, str]]:
    told = [(SURVIVE_HEADER, bucket.survive)] if bucket.survive else []
    return [(SCHEME_HEADER, bucket.scheme.name), *told]


def _check_configuration(configuration: Element, region: str) -> None:
    for child in configuration.children:
        if child.name == "LocationConstraint":
            if child.text not in {"", region}:
                raise S3Error(
                    Code.ILLEGAL_LOCATION,
                    f"The {child.text} location constraint is incompatible with the region {region} that "
                    "this endpoint serves.",
                )
        elif child.name in {"Location", "Bucket", "Tags"}:
            raise S3Error(Code.NOT_IMPLEMENTED, f"{child.name} in {_CONFIGURATION} is not implemented.")
        else:
            raise S3Error(Code.MALFORMED_XML)


async def head_bucket(site: Site, request: Request) -> Response:
    """Whether the bucket is there, and where."""
    bucket = await site.service.get_bucket(request.bucket)
    return Response(
        fields=[
            ("x-amz-bucket-region", bucket.region),
            ("x-amz-access-point-alias", "false"),
            *_protection(bucket),
            ("Content-Type", "application/xml"),
        ]
    )


async def delete_bucket(site: Site, request: Request) -> Response:
    """Delete an empty bucket."""
    await site.service.delete_bucket(request.bucket, request.request_id, request.tries)
    return Response(204)


async def get_bucket_location(site: Site, request: Request) -> Response:
    """The bucket's region; us-east-1 is written as nothing, as in S3."""
    bucket = await site.service.get_bucket(request.bucket)
    region = "" if bucket.region == "us-east-1" else escape(bucket.region)
    return xml_response(document("LocationConstraint", region))
