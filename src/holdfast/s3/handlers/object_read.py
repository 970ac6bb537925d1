"""GetObject, HeadObject, GetObjectAttributes."""

from collections.abc import Mapping

from holdfast.base.ids import VersionId
from holdfast.objects.model import ContentHeaders, ObjectView, ReadObject, VersionRecord
from holdfast.s3.dates import http_date
from holdfast.s3.digests import checksum_fields, checksum_text, checksum_type, element_name
from holdfast.s3.errors import Code, S3Error, invalid_argument, not_implemented
from holdfast.s3.request import (
    Fields,
    Request,
    Response,
    Site,
    integer,
    metadata_fields,
    parse_etags,
    parse_range,
    part_number,
    read_conditions,
    xml_response,
)
from holdfast.s3.xml import document

_OVERRIDES = {
    "response-content-type": "Content-Type",
    "response-content-language": "Content-Language",
    "response-expires": "Expires",
    "response-cache-control": "Cache-Control",
    "response-content-disposition": "Content-Disposition",
    "response-content-encoding": "Content-Encoding",
}
_SSE_C = "x-amz-server-side-encryption-customer-algorithm"
_ATTRIBUTES = frozenset({"ETag", "Checksum", "ObjectParts", "StorageClass", "ObjectSize"})


async def get_object(site: Site, request: Request) -> Response:
    """The object, or a range or part of it."""
    read = _read(request)
    if read.range_ is not None and "if-range" in request.headers:
        read = await _if_range(site, request, read)
    view = await site.service.read_object(read)
    status, fields = _describe(request, view)
    if view.whole is not None:
        return Response(status, fields, view.whole)
    assert view.body is not None, "a read answers with bytes"
    return Response(status, fields, stream=view.body, length=view.length)


async def head_object(site: Site, request: Request) -> Response:
    """What GetObject would say, without the bytes."""
    view = await site.service.head_object(_read(request))
    status, fields = _describe(request, view)
    return Response(status, fields, length=view.length)


def _read(request: Request) -> ReadObject:
    query, headers = request.query, request.headers
    if _SSE_C in headers:
        raise not_implemented(_SSE_C)
    if not query and len(headers) < 3:
        return ReadObject(bucket=request.bucket, key=request.key)
    range_ = parse_range(headers.get("range"))
    part = query.get("partNumber")
    if range_ is not None and part is not None:
        raise S3Error(Code.INVALID_REQUEST, "Cannot specify both Range header and partNumber query parameter")
    return ReadObject(
        bucket=request.bucket,
        key=request.key,
        version=version_id(query),
        range_=range_,
        part=None if part is None else part_number(part),
        conditions=read_conditions(headers),
    )


def version_id(query: Mapping[str, str]) -> VersionId | None:
    """The version asked for. What was written without versioning is the version called null."""
    version = query.get("versionId")
    if version is None or version == "null":
        return None
    if not version:
        raise invalid_argument("Version id cannot be the empty string", "versionId", "")
    return VersionId(version)


async def _if_range(site: Site, request: Request, read: ReadObject) -> ReadObject:
    """A range holds only for the state that the client has part of (RFC 9110, 13.1.5); else it gets
    the whole object. Dates are too coarse to prove that it is the same."""
    whole = ReadObject(bucket=read.bucket, key=read.key, version=read.version, conditions=read.conditions)
    view = await site.service.head_object(whole)
    same = parse_etags(request.headers["if-range"]) == (view.record.etag,)
    return read if same else whole


def _describe(request: Request, view: ObjectView) -> tuple[int, Fields]:
    record = view.record
    stored = record.headers
    fields: Fields = [
        ("Last-Modified", http_date(record.modified_ms // 1000)),
        ("ETag", f'"{record.etag}"'),
        ("Accept-Ranges", "bytes"),
        ("Content-Type", stored.content_type or "binary/octet-stream"),
    ]
    if stored != _NO_CONTENT_HEADERS:
        fields += _content_fields(stored)
    if record.metadata:
        fields += metadata_fields(record.metadata)
    if record.storage_class != "STANDARD":
        fields.append(("x-amz-storage-class", record.storage_class))
    status = 200
    if view.partial:
        status = 206
        last = view.first + view.length - 1
        fields.append(("Content-Range", f"bytes {view.first}-{last}/{record.size}"))
    query = request.query
    if query:
        if view.part_count and "partNumber" in query:
            fields.append(("x-amz-mp-parts-count", str(view.part_count)))
        _override(fields, query)
    if request.headers.get("x-amz-checksum-mode", "").upper() == "ENABLED":
        fields += _checksum(request, view)
    return status, fields


_NO_CONTENT_HEADERS = ContentHeaders()


def _content_fields(stored: ContentHeaders) -> Fields:
    named = (
        ("Content-Encoding", stored.content_encoding),
        ("Content-Disposition", stored.content_disposition),
        ("Content-Language", stored.content_language),
        ("Cache-Control", stored.cache_control),
        ("Expires", stored.expires),
        ("x-amz-website-redirect-location", stored.website_redirect),
    )
    return [(name, value) for name, value in named if value]


def _override(fields: Fields, query: Mapping[str, str]) -> None:
    for parameter, name in _OVERRIDES.items():
        value = query.get(parameter)
        if value is None:
            continue
        if any(character < " " or character == "\x7f" for character in value):
            raise invalid_argument("Header value cannot be represented using ISO-8859-1.", parameter, "")
        fields[:] = [field for field in fields if field[0] != name]
        fields.append((name, value))


def _checksum(request: Request, view: ObjectView) -> Fields:
    """The checksum of what the answer holds; a range of an object has none."""
    record = view.record
    if "partNumber" in request.query and record.parts:
        number = int(request.query["partNumber"])
        part = next((part for part in record.parts if part.number == number), None)
        if part is None or part.checksum is None or record.checksum is None:
            return []
        return [checksum_fields(part.checksum)[0], ("x-amz-checksum-type", checksum_type(record.checksum))]
    if view.partial and view.length != record.size:
        return []
    return checksum_fields(record.checksum)


async def get_object_attributes(site: Site, request: Request) -> Response:
    """What x-amz-object-attributes asks for."""
    headers = request.headers
    text = headers.get("x-amz-object-attributes", "")
    wanted = {name.strip() for name in text.split(",")} - {""}
    if not wanted or not wanted <= _ATTRIBUTES:
        raise invalid_argument("Invalid attribute name specified.", "x-amz-object-attributes", text)
    read = ReadObject(
        bucket=request.bucket,
        key=request.key,
        version=version_id(request.query),
        conditions=read_conditions(headers),
    )
    record = (await site.service.head_object(read)).record
    content = ""
    if "ETag" in wanted:
        content += f"<ETag>{record.etag}</ETag>"
    if "Checksum" in wanted and record.checksum is not None:
        name = element_name(record.checksum.algorithm)
        content += (
            f"<Checksum><{name}>{checksum_text(record.checksum)}</{name}>"
            f"<ChecksumType>{checksum_type(record.checksum)}</ChecksumType></Checksum>"
        )
    if "ObjectParts" in wanted and record.parts:
        content += _parts(record, headers)
    if "StorageClass" in wanted:
        content += f"<StorageClass>{record.storage_class}</StorageClass>"
    if "ObjectSize" in wanted:
        content += f"<ObjectSize>{record.size}</ObjectSize>"
    modified = ("Last-Modified", http_date(record.modified_ms // 1000))
    return xml_response(document("GetObjectAttributesResponse", content), [modified])


def _parts(record: VersionRecord, headers: Mapping[str, str]) -> str:
    limit = integer(headers, "x-amz-max-parts", 1000, 1000)
    after = integer(headers, "x-amz-part-number-marker", 0, 10_000)
    left = [part for part in record.parts if part.number > after]
    page = left[:limit]
    truncated = len(left) > limit
    content = (
        f"<PartsCount>{len(record.parts)}</PartsCount><PartNumberMarker>{after}</PartNumberMarker>"
        f"<MaxParts>{limit}</MaxParts><IsTruncated>{'true' if truncated else 'false'}</IsTruncated>"
    )
    if truncated and page:
        content += f"<NextPartNumberMarker>{page[-1].number}</NextPartNumberMarker>"
    for part in page:
        if part.checksum is not None:
            name = element_name(part.checksum.algorithm)
            value = f"<{name}>{checksum_text(part.checksum)}</{name}>"
            content += f"<Part><PartNumber>{part.number}</PartNumber><Size>{part.size}</Size>{value}</Part>"
    return f"<ObjectParts>{content}</ObjectParts>"
