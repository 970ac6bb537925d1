"""Documents that clients send: read whole within a limit, checked against their digests, then parsed.

Parsed, a document takes about ten times its bytes. So only a few large ones are worked on at once; the bytes
of the others stay with their clients meanwhile.
"""

import asyncio

from holdfast.s3.body import StreamedBody, WholeBody, check_digests, open_body
from holdfast.s3.errors import Code, S3Error
from holdfast.s3.request import Request, Site
from holdfast.s3.xml import DOCUMENT_BYTES_MAX, Element, MalformedXml, XmlReader

_PIECE_BYTES = 8 << 10
_WAIT_S = 10.0


async def read_document(
    site: Site,
    request: Request,
    *,
    bytes_max: int = DOCUMENT_BYTES_MAX,
    needs_digest: bool = False,
    optional: bool = False,
) -> Element | None:
    """The document in a request's body, or None when there is none and that is allowed. Raises
    MalformedXML, InvalidRequest where S3 insists on a digest and none was sent, and SlowDown when too many
    large documents are under way."""
    head = request.exchange.head
    if optional and not head.length and not head.chunked:
        return None
    body = await open_body(request.exchange, request.signed)
    if body.length > bytes_max:
        raise S3Error(Code.MALFORMED_XML, f"The document is longer than {bytes_max} bytes.")
    if isinstance(body, WholeBody):
        data = bytes(body.data)
        _check(data, body, needs_digest=needs_digest)
        return None if optional and not data else await _parse(site, data, bytes_max)
    try:
        async with asyncio.timeout(_WAIT_S):
            await site.large_documents.acquire()
    except TimeoutError:
        raise S3Error(Code.SLOW_DOWN, headers=(("Retry-After", "1"),)) from None
    try:
        data = b"".join([bytes(piece) async for piece in body])
        _check(data, body, needs_digest=needs_digest)
        return await _parse(site, data, bytes_max)
    finally:
        site.large_documents.release()


def _check(data: bytes, body: WholeBody | StreamedBody, *, needs_digest: bool) -> None:
    expected = body.expected()
    if needs_digest and expected.md5 is None and expected.checksum is None:
        raise S3Error(Code.INVALID_REQUEST, "Missing required header for this request: Content-MD5")
    check_digests(data, expected)


async def _parse(site: Site, data: bytes, bytes_max: int) -> Element:
    reader = XmlReader(bytes_max)
    try:
        for at in range(0, len(data), _PIECE_BYTES):
            if at:
                await site.clock.sleep(0)
            reader.feed(data[at : at + _PIECE_BYTES])
        return reader.finish()
    except MalformedXml as error:
        raise S3Error(Code.MALFORMED_XML, f"{Code.MALFORMED_XML.message} ({error})") from None


def required(element: Element | None, name: str) -> str:
    """The text of a child that must be there. Raises MalformedXML."""
    value = None if element is None else element.value(name)
    if value is None:
        raise S3Error(Code.MALFORMED_XML, f"{Code.MALFORMED_XML.message} ({name} is missing)")
    return value


def expect_root(element: Element | None, name: str) -> Element:
    """The document, whose root must be `name`. Raises MalformedXML."""
    if element is None or element.name != name:
        raise S3Error(Code.MALFORMED_XML)
    return element
