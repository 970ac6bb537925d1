"""ListBuckets."""

from holdfast.s3.dates import iso_date
from holdfast.s3.handlers.tokens import read_token, write_token
from holdfast.s3.request import OWNER, Request, Response, Site, integer, xml_response
from holdfast.s3.xml import document, escape

BUCKETS_MAX = 10_000


async def list_buckets(site: Site, request: Request) -> Response:
    """All buckets by name, or a page of them."""
    query = request.query
    prefix = query.get("prefix", "")
    limit = integer(query, "max-buckets", BUCKETS_MAX, BUCKETS_MAX)
    after = read_token(query.get("continuation-token"))
    elsewhere = query.get("bucket-region", site.region) != site.region
    buckets = [] if elsewhere else list(await site.service.list_buckets(prefix, after, limit + 1))
    page = buckets[:limit]
    rows = "".join(
        f"<Bucket><Name>{bucket.name}</Name><CreationDate>{iso_date(bucket.created_ms)}</CreationDate>"
        f"<BucketRegion>{escape(bucket.region)}</BucketRegion></Bucket>"
        for bucket in page
    )
    content = f"<Owner><ID>{OWNER}</ID></Owner><Buckets>{rows}</Buckets>"
    if prefix:
        content += f"<Prefix>{escape(prefix)}</Prefix>"
    if page and len(buckets) > limit:
        content += f"<ContinuationToken>{write_token(page[-1].name)}</ContinuationToken>"
    return xml_response(document("ListAllMyBucketsResult", content))
