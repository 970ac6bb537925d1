"""ListObjects and ListObjectsV2."""

from collections.abc import Callable, Mapping

from holdfast.objects.model import LISTING_MAX, ListedObject, Listing, ListObjects
from holdfast.s3.dates import iso_date
from holdfast.s3.digests import checksum_type
from holdfast.s3.errors import invalid_argument
from holdfast.s3.handlers.tokens import read_token, write_token
from holdfast.s3.request import OWNER, Request, Response, Site, integer, xml_response
from holdfast.s3.xml import document, escape, url_encode

_OWNER_XML = f"<Owner><ID>{OWNER}</ID></Owner>"
_EMPTY = Listing(entries=(), truncated=False, next_after="")


def name_writer(query: Mapping[str, str]) -> Callable[[str], str]:
    """How names are written: as they are, or percent-encoded on request. Raises InvalidArgument."""
    encoding = query.get("encoding-type", "")
    if encoding == "":
        return escape
    if encoding.lower() != "url":
        raise invalid_argument("Invalid Encoding Method specified in Request", "encoding-type", encoding)
    return url_encode


async def list_objects(site: Site, request: Request) -> Response:
    """Version 1: continued by the last name seen."""
    query = request.query
    write = name_writer(query)
    marker = query.get("marker", "")
    listing, limit = await _list(site, request, marker)
    head = f"<Marker>{write(marker)}</Marker>"
    # S3 names the next marker only where the client could not know it: a page may end in a prefix.
    if listing.truncated and query.get("delimiter"):
        head += f"<NextMarker>{write(listing.next_after)}</NextMarker>"
    return _page(request, head, listing, limit, write, _OWNER_XML)


async def list_objects_v2(site: Site, request: Request) -> Response:
    """Version 2: continued by a token."""
    query = request.query
    write = name_writer(query)
    token = query.get("continuation-token")
    start_after = query.get("start-after", "")
    after = start_after if token is None else read_token(token)
    # A token says what was listed; what the client names itself is a key to begin behind, and no more.
    listing, limit = await _list(site, request, after, cut_off=token is None)
    head = f"<KeyCount>{len(listing.entries)}</KeyCount>"
    if token is not None:
        head += f"<ContinuationToken>{escape(token)}</ContinuationToken>"
    if start_after:
        head += f"<StartAfter>{write(start_after)}</StartAfter>"
    if listing.truncated:
        head += f"<NextContinuationToken>{write_token(listing.next_after)}</NextContinuationToken>"
    owner = _OWNER_XML if query.get("fetch-owner", "").lower() == "true" else ""
    return _page(request, head, listing, limit, write, owner)


async def _list(site: Site, request: Request, after: str, *, cut_off: bool = False) -> tuple[Listing, int]:
    query = request.query
    limit = integer(query, "max-keys", LISTING_MAX, LISTING_MAX)
    if limit == 0:
        await site.service.get_bucket(request.bucket)
        return _EMPTY, 0
    wanted = ListObjects(
        bucket=request.bucket,
        prefix=query.get("prefix", ""),
        delimiter=query.get("delimiter", ""),
        after=after,
        cut_off=cut_off,
        limit=limit,
    )
    return await site.service.list_objects(wanted), limit


def _page(
    request: Request, head: str, listing: Listing, limit: int, write: Callable[[str], str], owner: str
) -> Response:
    query = request.query
    delimiter = query.get("delimiter", "")
    parts = [
        f"<Name>{request.bucket}</Name><Prefix>{write(query.get('prefix', ''))}</Prefix>{head}",
        f"<MaxKeys>{limit}</MaxKeys>",
        f"<Delimiter>{write(delimiter)}</Delimiter>" if delimiter else "",
        "<EncodingType>url</EncodingType>" if write is url_encode else "",
        f"<IsTruncated>{'true' if listing.truncated else 'false'}</IsTruncated>",
    ]
    prefixes = []
    for entry in listing.entries:
        if isinstance(entry, str):
            prefixes.append(f"<CommonPrefixes><Prefix>{write(entry)}</Prefix></CommonPrefixes>")
        else:
            parts.append(_entry(entry, write, owner))
    parts += prefixes
    return xml_response(document("ListBucketResult", "".join(parts)))


def _entry(entry: ListedObject, write: Callable[[str], str], owner: str) -> str:
    checksum = entry.checksum
    algorithm = (
        f"<ChecksumAlgorithm>{checksum.algorithm.value}</ChecksumAlgorithm>"
        f"<ChecksumType>{checksum_type(checksum)}</ChecksumType>"
        if checksum
        else ""
    )
    return (
        f"<Contents><Key>{write(entry.key)}</Key><LastModified>{iso_date(entry.modified_ms)}</LastModified>"
        f"<ETag>&quot;{entry.etag}&quot;</ETag>{algorithm}<Size>{entry.size}</Size>{owner}"
        f"<StorageClass>{entry.storage_class}</StorageClass></Contents>"
    )
