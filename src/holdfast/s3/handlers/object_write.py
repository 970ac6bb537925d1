"""PutObject, CopyObject, DeleteObject, DeleteObjects."""

import logging
from collections.abc import Mapping

from holdfast.base.checksums import ChecksumAlgorithm
from holdfast.base.errors import Busy, InvalidInput
from holdfast.base.ids import VersionId
from holdfast.objects.model import CopyObject, DeleteKey, DeleteResult, PutObject, Stored
from holdfast.s3.body import open_body
from holdfast.s3.dates import iso_date
from holdfast.s3.digests import checksum_fields, checksum_text, checksum_type, element_name, parse_algorithm
from holdfast.s3.documents import expect_root, read_document, required
from holdfast.s3.errors import Code, S3Error, invalid_argument, not_implemented, to_s3_error
from holdfast.s3.handlers.object_read import version_id
from holdfast.s3.names import Target, check_target, parse_copy_source
from holdfast.s3.request import (
    Fields,
    Request,
    Response,
    Site,
    content_headers,
    parse_etags,
    read_conditions,
    refuse_unserved,
    storage_class,
    user_metadata,
    write_conditions,
    xml_response,
)
from holdfast.s3.xml import LONG_DOCUMENT_BYTES_MAX, Element, document, escape

_LOG = logging.getLogger("holdfast.s3")
KEYS_MAX = 1000
RECEIPT_HEADER = "x-holdfast-receipt"


def stored_fields(stored: Stored) -> Fields:
    """The headers that tell what a write came to."""
    fields = [("ETag", f'"{stored.etag}"'), *checksum_fields(stored.checksum)]
    return fields + receipt_fields(stored)


def receipt_fields(stored: Stored) -> Fields:
    """The durability receipt, where bytes became durable."""
    return [] if stored.receipt is None else [(RECEIPT_HEADER, stored.receipt.header())]


def checksum_xml(stored: Stored) -> str:
    """The checksum as elements of a result."""
    if stored.checksum is None:
        return ""
    name = element_name(stored.checksum.algorithm)
    return (
        f"<{name}>{checksum_text(stored.checksum)}</{name}>"
        f"<ChecksumType>{checksum_type(stored.checksum)}</ChecksumType>"
    )


async def put_object(site: Site, request: Request) -> Response:
    """Store one object."""
    headers = request.headers
    refuse_unserved(request)
    put = PutObject(
        bucket=request.bucket,
        key=request.key,
        headers=content_headers(headers),
        metadata=user_metadata(request),
        conditions=write_conditions(headers),
        storage_class=storage_class(headers),
        request=request.request_id,
        tries=request.tries,
        body=await open_body(request.exchange, request.signed),
    )
    return Response(fields=stored_fields(await site.service.put_object(put)))


def wanted_algorithm(headers: Mapping[str, str]) -> ChecksumAlgorithm | None:
    """x-amz-checksum-algorithm, for objects that are made without a body."""
    name = headers.get("x-amz-checksum-algorithm")
    return None if name is None else parse_algorithm(name, "x-amz-checksum-algorithm")


async def copy_object(site: Site, request: Request) -> Response:
    """Store a copy of an object."""
    headers = request.headers
    refuse_unserved(request)
    source_bucket, source_key, source_version = copy_source(headers)
    directive = headers.get("x-amz-metadata-directive", "COPY")
    if directive not in {"COPY", "REPLACE"}:
        raise invalid_argument("Unknown metadata directive.", "x-amz-metadata-directive", directive)
    if headers.get("x-amz-tagging-directive", "COPY") not in {"COPY", "REPLACE"}:
        raise invalid_argument(
            "Unknown tagging directive.", "x-amz-tagging-directive", headers["x-amz-tagging-directive"]
        )
    replace = directive == "REPLACE"
    changes = replace or not _CHANGES.isdisjoint(headers) or source_version is not None
    if not changes and (source_bucket, source_key) == (request.bucket, request.key):
        raise S3Error(
            Code.INVALID_REQUEST,
            "This copy request is illegal because it is trying to copy an object to itself without changing "
            "the object's metadata, storage class, website redirect location or encryption attributes.",
        )
    copy = CopyObject(
        source_bucket=source_bucket,
        source_key=source_key,
        source_version=source_version,
        source_conditions=read_conditions(headers, "x-amz-copy-source-"),
        bucket=request.bucket,
        key=request.key,
        conditions=write_conditions(headers),
        replace=replace,
        headers=content_headers(headers),
        metadata=user_metadata(request),
        algorithm=wanted_algorithm(headers),
        storage_class=storage_class(headers),
        request=request.request_id,
        tries=request.tries,
    )
    stored = await site.service.copy_object(copy)
    return xml_response(copy_document("CopyObjectResult", stored), receipt_fields(stored))


_CHANGES = frozenset({"x-amz-storage-class", "x-amz-website-redirect-location", "x-amz-checksum-algorithm"})


def copy_source(headers: Mapping[str, str]) -> tuple[str, str, VersionId | None]:
    """Bucket, key and version of x-amz-copy-source."""
    bucket, key, version = parse_copy_source(headers["x-amz-copy-source"])
    return bucket, key, None if version is None or version == "null" else VersionId(version)


def copy_document(root: str, stored: Stored) -> bytes:
    """CopyObjectResult or CopyPartResult."""
    return document(
        root,
        f"<LastModified>{iso_date(stored.modified_ms)}</LastModified>"
        f"<ETag>&quot;{stored.etag}&quot;</ETag>{checksum_xml(stored)}",
    )


async def delete_object(site: Site, request: Request) -> Response:
    """Delete one object; deleting what is not there is a success."""
    headers = request.headers
    for name in ("x-amz-if-match-last-modified-time", "x-amz-if-match-size"):
        if name in headers:
            raise not_implemented(name)
    if_match = headers.get("if-match")
    key = DeleteKey(
        key=request.key,
        version=version_id(request.query),
        if_match=None if if_match is None else parse_etags(if_match),
    )
    (result,) = await site.service.delete_objects(request.bucket, [key], request.request_id, request.tries)
    if result.error is not None:
        raise result.error
    return Response(204, [("x-amz-delete-marker", "true")] if result.delete_marker else [])


async def delete_objects(site: Site, request: Request) -> Response:
    """Delete up to 1,000 objects, each on its own."""
    root = await read_document(site, request, bytes_max=LONG_DOCUMENT_BYTES_MAX, needs_digest=True)
    root = expect_root(root, "Delete")
    entries = list(root.all("Object"))
    if not 1 <= len(entries) <= KEYS_MAX:
        raise S3Error(Code.MALFORMED_XML)
    quiet = (root.value("Quiet") or "").strip().lower() == "true"
    refused: list[DeleteResult] = []
    keys: list[DeleteKey] = []
    for entry in entries:
        key = _delete_key(entry)
        try:
            check_target(Target("", key.key), creating=False)
            _check_delete_conditions(entry)
        except S3Error as error:
            refused.append(DeleteResult(key.key, key.version, error=error))
        else:
            keys.append(key)
    results = [*refused]
    if keys:
        named = (request.request_id, request.tries)
        results += await site.service.delete_objects(request.bucket, keys, *named)
    else:
        await site.service.get_bucket(request.bucket)
    for result in results:
        if result.error is None:
            continue
        if not isinstance(result.error, S3Error | InvalidInput | Busy):
            _LOG.error("request %s: a delete failed", request.request_id, exc_info=result.error)
        if (failure := to_s3_error(result.error, reading=False)).status >= 500:
            request.exchange.code = failure.code.wire  # the answer is a success, what was asked for is not
    return xml_response(document("DeleteResult", "".join(_result(result, quiet) for result in results)))


def _delete_key(entry: Element) -> DeleteKey:
    name = required(entry, "Key")
    if not name:
        raise S3Error(Code.MALFORMED_XML)
    version, etag = entry.value("VersionId"), entry.value("ETag")
    return DeleteKey(
        key=name,
        version=VersionId(version) if version and version != "null" else None,
        if_match=None if etag is None else parse_etags(etag),
    )


def _check_delete_conditions(entry: Element) -> None:
    for name in ("LastModifiedTime", "Size"):
        if entry.find(name) is not None:
            raise S3Error(Code.NOT_IMPLEMENTED, f"{name} as a condition of a delete is not implemented.")


def _result(result: DeleteResult, quiet: bool) -> str:
    version = f"<VersionId>{escape(result.version)}</VersionId>" if result.version else ""
    if result.error is not None:
        error = to_s3_error(result.error, reading=False)
        return (
            f"<Error><Key>{escape(result.key)}</Key>{version}<Code>{error.code.wire}</Code>"
            f"<Message>{escape(error.message)}</Message></Error>"
        )
    if quiet:
        return ""
    marker = "<DeleteMarker>true</DeleteMarker>" if result.delete_marker else ""
    return f"<Deleted><Key>{escape(result.key)}</Key>{version}{marker}</Deleted>"
