"""Multipart uploads: Create, UploadPart, UploadPartCopy, Complete, Abort, ListParts, ListMultipartUploads."""

import re
from itertools import pairwise
from urllib.parse import quote

from holdfast.base.checksums import ChecksumAlgorithm
from holdfast.base.ids import UploadId
from holdfast.objects.model import (
    LISTING_MAX,
    OBJECT_BYTES_MAX,
    PARTS_MAX,
    Checksum,
    CompletePart,
    CompleteUpload,
    CopyPart,
    CreateUpload,
    ListedPart,
    Upload,
    UploadPart,
)
from holdfast.s3.body import open_body
from holdfast.s3.dates import iso_date
from holdfast.s3.digests import (
    COMPOSITE,
    FULL_OBJECT,
    checksum_text,
    element_name,
    find_checksum,
    parse_algorithm,
    parse_checksum,
)
from holdfast.s3.documents import expect_root, read_document, required
from holdfast.s3.errors import Code, S3Error, invalid_argument
from holdfast.s3.handlers.listing import name_writer
from holdfast.s3.handlers.object_write import (
    checksum_xml,
    copy_document,
    copy_source,
    receipt_fields,
    stored_fields,
)
from holdfast.s3.request import (
    OWNER,
    Fields,
    Request,
    Response,
    Site,
    content_headers,
    integer,
    parse_etags,
    part_number,
    read_conditions,
    refuse_unserved,
    storage_class,
    user_metadata,
    write_conditions,
    xml_response,
)
from holdfast.s3.xml import LONG_DOCUMENT_BYTES_MAX, Element, document, escape, url_encode

_COPY_RANGE = re.compile(r"bytes=([0-9]{1,18})-([0-9]{1,18})\Z")
_PEOPLE = f"<Initiator><ID>{OWNER}</ID></Initiator><Owner><ID>{OWNER}</ID></Owner>"


async def create_upload(site: Site, request: Request) -> Response:
    """Begin an upload."""
    headers = request.headers
    refuse_unserved(request)
    name = headers.get("x-amz-checksum-algorithm")
    algorithm = None if name is None else parse_algorithm(name, "x-amz-checksum-algorithm")
    upload = await site.service.create_upload(
        CreateUpload(
            bucket=request.bucket,
            key=request.key,
            headers=content_headers(headers),
            metadata=user_metadata(request),
            algorithm=algorithm,
            full_object=_is_full_object(algorithm, headers.get("x-amz-checksum-type")),
            storage_class=storage_class(headers),
            request=request.request_id,
        )
    )
    fields: Fields = []
    if upload.algorithm is not None:
        kind = FULL_OBJECT if upload.full_object else COMPOSITE
        fields = [("x-amz-checksum-algorithm", upload.algorithm.value), ("x-amz-checksum-type", kind)]
    content = f"<Bucket>{request.bucket}</Bucket><Key>{escape(request.key)}</Key>"
    content += f"<UploadId>{upload.upload}</UploadId>"
    return xml_response(document("InitiateMultipartUploadResult", content), fields)


def _is_full_object(algorithm: ChecksumAlgorithm | None, kind: str | None) -> bool:
    """Which checksum the object gets. CRC64NVME has only a full one, SHA-1 and SHA-256 only a composite
    one. Raises InvalidRequest for what does not go together."""
    if kind not in {None, FULL_OBJECT, COMPOSITE}:
        raise S3Error(Code.INVALID_REQUEST, "Value for x-amz-checksum-type header is invalid.")
    if algorithm is None:
        if kind is not None:
            raise S3Error(
                Code.INVALID_REQUEST,
                "The x-amz-checksum-type header can only be used with the x-amz-checksum-algorithm header.",
            )
        return True
    only = {
        ChecksumAlgorithm.CRC64NVME: FULL_OBJECT,
        ChecksumAlgorithm.SHA1: COMPOSITE,
        ChecksumAlgorithm.SHA256: COMPOSITE,
    }.get(algorithm)
    if kind is not None and only is not None and kind != only:
        raise S3Error(
            Code.INVALID_REQUEST,
            f"The {kind} checksum type cannot be used with the {algorithm.value.lower()} checksum algorithm.",
        )
    return (kind or only or COMPOSITE) == FULL_OBJECT


async def upload_part(site: Site, request: Request) -> Response:
    """Store one part."""
    query = request.query
    refuse_unserved(request)
    part = UploadPart(
        bucket=request.bucket,
        key=request.key,
        upload=UploadId(query["uploadId"]),
        number=part_number(query["partNumber"]),
        body=await open_body(request.exchange, request.signed),
        request=request.request_id,
        tries=request.tries,
    )
    stored = await site.service.upload_part(part)
    fields = [field for field in stored_fields(stored) if field[0] != "x-amz-checksum-type"]
    return Response(fields=fields)


async def copy_part(site: Site, request: Request) -> Response:
    """Store a part from another object."""
    headers, query = request.headers, request.query
    refuse_unserved(request)
    bucket, key, version = copy_source(headers)
    text = headers.get("x-amz-copy-source-range")
    range_: tuple[int, int] | None = None
    if text is not None:
        found = _COPY_RANGE.match(text)
        if found is None or int(found[1]) > int(found[2]):
            raise invalid_argument(
                "The x-amz-copy-source-range value must be of the form bytes=first-last where first and last "
                "are the zero-based offsets of the first and last bytes to copy",
                "x-amz-copy-source-range",
                text,
            )
        range_ = int(found[1]), int(found[2])
    stored = await site.service.copy_part(
        CopyPart(
            bucket=request.bucket,
            key=request.key,
            upload=UploadId(query["uploadId"]),
            number=part_number(query["partNumber"]),
            source_bucket=bucket,
            source_key=key,
            source_version=version,
            source_conditions=read_conditions(headers, "x-amz-copy-source-"),
            range_=range_,
        )
    )
    return xml_response(copy_document("CopyPartResult", stored), receipt_fields(stored))


async def complete_upload(site: Site, request: Request) -> Response:
    """Make one object of the parts."""
    headers = request.headers
    checksum = find_checksum(headers)
    kind = headers.get("x-amz-checksum-type")
    if kind is not None and checksum is not None and (kind == COMPOSITE) != bool(checksum.parts):
        raise S3Error(Code.INVALID_REQUEST, "Value for x-amz-checksum-type header is invalid.")
    size = headers.get("x-amz-mp-object-size")
    if size is not None and not (size.isascii() and size.isdigit() and len(size) < 18):
        raise invalid_argument("x-amz-mp-object-size must be a whole number.", "x-amz-mp-object-size", size)
    if size is not None and int(size) > OBJECT_BYTES_MAX:
        raise S3Error(Code.ENTITY_TOO_LARGE, ProposedSize=size, MaxSizeAllowed=str(OBJECT_BYTES_MAX))
    complete = CompleteUpload(
        bucket=request.bucket,
        key=request.key,
        upload=UploadId(request.query["uploadId"]),
        conditions=write_conditions(headers),
        checksum=checksum,
        size=None if size is None else int(size),
        request=request.request_id,
        tries=request.tries,
        parts=await _read_parts(site, request),
    )
    stored = await site.service.complete_upload(complete)
    location = f"http://{headers.get('host', '')}/{request.bucket}/{quote(request.key, safe='/-_.~')}"
    content = (
        f"<Location>{escape(location)}</Location><Bucket>{request.bucket}</Bucket>"
        f"<Key>{escape(request.key)}</Key><ETag>&quot;{stored.etag}&quot;</ETag>{checksum_xml(stored)}"
    )
    return xml_response(document("CompleteMultipartUploadResult", content), receipt_fields(stored))


async def _read_parts(site: Site, request: Request) -> tuple[CompletePart, ...]:
    root = await read_document(site, request, bytes_max=LONG_DOCUMENT_BYTES_MAX)
    entries = list(expect_root(root, "CompleteMultipartUpload").all("Part"))
    if not 1 <= len(entries) <= PARTS_MAX:
        raise S3Error(Code.MALFORMED_XML)
    parts = tuple(_complete_part(entry) for entry in entries)
    if any(a.number >= b.number for a, b in pairwise(parts)):
        raise S3Error(Code.INVALID_PART_ORDER)
    return parts


def _complete_part(entry: Element) -> CompletePart:
    number, etag = required(entry, "PartNumber").strip(), required(entry, "ETag").strip()
    checksum: Checksum | None = None
    for algorithm in ChecksumAlgorithm:
        text = entry.value(element_name(algorithm))
        if text is not None:
            checksum = parse_checksum(algorithm, text.strip(), element_name(algorithm))
    etags = parse_etags(etag)
    if len(etags) != 1:
        raise S3Error(Code.INVALID_PART)
    return CompletePart(part_number(number), etags[0], checksum)


async def abort_upload(site: Site, request: Request) -> Response:
    """Give an upload up."""
    upload = UploadId(request.query["uploadId"])
    named = (request.request_id, request.tries)
    await site.service.abort_upload(request.bucket, request.key, upload, *named)
    return Response(204)


async def list_parts(site: Site, request: Request) -> Response:
    """A page of an upload's parts."""
    query = request.query
    write = name_writer(query)
    limit = integer(query, "max-parts", LISTING_MAX, LISTING_MAX)
    after = integer(query, "part-number-marker", 0, PARTS_MAX)
    page = await site.service.list_parts(
        request.bucket, request.key, UploadId(query["uploadId"]), after, max(limit, 1)
    )
    parts = page.parts if limit else ()
    truncated = page.truncated and limit > 0
    upload = page.upload
    next_marker = page.next_after if truncated else (parts[-1].number if parts else 0)
    content = (
        f"<Bucket>{request.bucket}</Bucket><Key>{write(request.key)}</Key><UploadId>{upload.upload}</UploadId>"
        f"{_PEOPLE}<StorageClass>{upload.storage_class}</StorageClass>"
        f"<PartNumberMarker>{after}</PartNumberMarker>"
        f"<NextPartNumberMarker>{next_marker}</NextPartNumberMarker>"
        f"<MaxParts>{limit}</MaxParts><IsTruncated>{'true' if truncated else 'false'}</IsTruncated>"
        f"{_algorithm(upload)}{'<EncodingType>url</EncodingType>' if write is url_encode else ''}"
    )
    return xml_response(document("ListPartsResult", content + "".join(_part(part) for part in parts)))


def _part(part: ListedPart) -> str:
    checksum = ""
    if part.checksum is not None:
        name = element_name(part.checksum.algorithm)
        checksum = f"<{name}>{checksum_text(part.checksum)}</{name}>"
    return (
        f"<Part><PartNumber>{part.number}</PartNumber><LastModified>{iso_date(part.modified_ms)}</LastModified>"
        f"<ETag>&quot;{part.etag}&quot;</ETag><Size>{part.size}</Size>{checksum}</Part>"
    )


def _algorithm(upload: Upload) -> str:
    if upload.algorithm is None:
        return ""
    kind = FULL_OBJECT if upload.full_object else COMPOSITE
    return (
        f"<ChecksumAlgorithm>{upload.algorithm.value}</ChecksumAlgorithm><ChecksumType>{kind}</ChecksumType>"
    )


async def list_uploads(site: Site, request: Request) -> Response:
    """A page of the uploads in progress."""
    query = request.query
    write = name_writer(query)
    limit = integer(query, "max-uploads", LISTING_MAX, LISTING_MAX)
    prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
    after_key = query.get("key-marker", "")
    # S3 ignores an upload marker without its key.
    after_upload = query.get("upload-id-marker", "") if after_key else ""
    page = await site.service.list_uploads(
        request.bucket, prefix, delimiter, after_key, after_upload, max(limit, 1)
    )
    entries = page.entries if limit else ()
    truncated = page.truncated and limit > 0
    content = [
        f"<Bucket>{request.bucket}</Bucket><KeyMarker>{write(after_key)}</KeyMarker>"
        f"<UploadIdMarker>{escape(after_upload)}</UploadIdMarker>"
    ]
    if truncated:
        content.append(
            f"<NextKeyMarker>{write(page.next_key)}</NextKeyMarker>"
            f"<NextUploadIdMarker>{page.next_upload}</NextUploadIdMarker>"
        )
    content.append(
        f"<Prefix>{write(prefix)}</Prefix><MaxUploads>{limit}</MaxUploads>"
        f"<IsTruncated>{'true' if truncated else 'false'}</IsTruncated>"
    )
    if delimiter:
        content.append(f"<Delimiter>{write(delimiter)}</Delimiter>")
    if write is url_encode:
        content.append("<EncodingType>url</EncodingType>")
    for entry in entries:
        if isinstance(entry, str):
            content.append(f"<CommonPrefixes><Prefix>{write(entry)}</Prefix></CommonPrefixes>")
        else:
            content.append(
                f"<Upload><Key>{write(entry.key)}</Key><UploadId>{entry.upload}</UploadId>{_PEOPLE}"
                f"<StorageClass>{entry.storage_class}</StorageClass>"
                f"<Initiated>{iso_date(entry.started_ms)}</Initiated>{_algorithm(entry)}</Upload>"
            )
    return xml_response(document("ListMultipartUploadsResult", "".join(content)))
