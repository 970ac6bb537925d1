"""The way of a request: understood, authorised, handled, answered.

What must hold: nothing of a body is read, and nothing of the table of operations told, before the signature
holds (only `/-/` paths that say so are open); every request gets exactly one answer with its request id;
whatever goes wrong becomes an S3 error, and what is our fault goes to the log under that id, without
headers, since those hold signatures.
"""

import asyncio
import base64
import hmac
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple
from urllib.parse import unquote_to_bytes

from holdfast.base.checksums import Buffer
from holdfast.base.clock import Clock
from holdfast.base.errors import Bug, Busy, Damaged, HoldfastError
from holdfast.base.ids import RequestId, is_repeatable
from holdfast.base.randomness import Randomness
from holdfast.objects.errors import NotModified
from holdfast.objects.model import ObjectService
from holdfast.s3 import sigv2
from holdfast.s3.body import open_body
from holdfast.s3.dates import http_date
from holdfast.s3.errors import Code, S3Error, error_xml, to_s3_error
from holdfast.s3.handlers import HANDLERS
from holdfast.s3.names import Target, bucket_of_host, check_target, decode_path, find_target
from holdfast.s3.operations import Scope, route
from holdfast.s3.request import Request, Response, Site, check_owner
from holdfast.s3.sigv4 import Credentials, Signed, Verifier
from holdfast.wire.balancing import BALANCER_HEADER, REQUEST_HEADER, TRIES_HEADER
from holdfast.wire.exchange import ClientGone, Exchange
from holdfast.wire.http import Head, HeadError

_LOG = logging.getLogger("holdfast.s3")
INTERNAL_PREFIX = "/-/"
_LARGE_DOCUMENTS_MAX = 8
_ADMIN_BODY_BYTES_MAX = 64 << 10
_REFUSALS = {
    408: Code.REQUEST_TIMEOUT,
    414: Code.URI_TOO_LONG,
    431: Code.REQUEST_HEADERS_TOO_LARGE,
    501: Code.NOT_IMPLEMENTED,
    503: Code.SLOW_DOWN,
}


class AdminRequest(NamedTuple):
    """A request to an internal path. `body` is empty unless the route is signed; names in `headers` are in
    lower case."""

    method: str
    path: str
    query: Mapping[str, str]
    body: bytes
    headers: Mapping[str, str] = MappingProxyType({})


class AdminAnswer(NamedTuple):
    """The answer of an internal path."""

    status: int
    body: bytes
    content_type: str = "application/json"


class Route(NamedTuple):
    """An internal path: who answers, to which methods, and whether the request must be signed. What can be
    answered `at_once` does not wait behind what else the node does (see `route_at_once`)."""

    answer: Callable[[AdminRequest], Awaitable[AdminAnswer]]
    signed: bool
    methods: frozenset[str] = frozenset({"GET", "HEAD"})
    at_once: Callable[[AdminRequest], AdminAnswer] | None = None


def route_at_once(
    answer: Callable[[AdminRequest], AdminAnswer], methods: frozenset[str] = frozenset({"GET", "HEAD"})
) -> Route:
    """An open path whose answer waits for nothing, and must not raise."""

    async def answer_in_turn(request: AdminRequest) -> AdminAnswer:
        return answer(request)

    return Route(answer_in_turn, signed=False, methods=methods, at_once=answer)


Routes = Mapping[str, Route]


class Face:
    """Answers the requests of one endpoint."""

    gives_up = False
    single_headers = frozenset(
        {
            "x-amz-content-sha256",
            "x-amz-copy-source",
            "x-amz-copy-source-range",
            "x-amz-date",
            "x-amz-decoded-content-length",
            "x-amz-security-token",
            "x-amz-trailer",
        }
    )

    def __init__(
        self,
        service: ObjectService,
        credentials: Credentials,
        clock: Clock,
        randomness: Randomness,
        *,
        region: str,
        base_domains: tuple[str, ...],
        routes: Routes,
        balancer_secrets: Sequence[str] = (),
    ) -> None:
        assert all(path.startswith(INTERNAL_PREFIX) for path in routes), "internal paths begin with /-/"
        self._site = Site(service, clock, region, asyncio.Semaphore(_LARGE_DOCUMENTS_MAX))
        self._clock = clock
        self._randomness = randomness
        self._credentials = credentials
        self._verifier = Verifier(credentials, region)
        self._base_domains = tuple(domain.lower().strip(".") for domain in base_domains)
        self._routes = routes
        self._balancer_secrets = balancer_secrets
        self._host_id = base64.b64encode(randomness.token(30)).decode("ascii")
        self._second = -1
        self._trouble_second = -1
        self._common = ""

    def answer_at_once(self, exchange: Exchange) -> bool:
        """Whether the request was answered, without its turn."""
        head = exchange.head
        found = self._routes.get(head.path)
        if found is None or found.at_once is None or head.method not in found.methods:
            return False
        try:
            asked = _parameters(parse_query(head.query) if head.query else ())
        except S3Error:
            return False
        answer = found.at_once(AdminRequest(head.method, head.path, asked, b"", head.headers))
        response = Response(answer.status, [("Content-Type", answer.content_type)], answer.body)
        request_id, _ = self._identify(head)
        exchange.respond(
            response.status,
            self._fields(response, request_id, self._clock.wall()),
            b"" if head.method == "HEAD" else response.body,
        )
        return True

    async def handle(self, exchange: Exchange) -> None:
        """Answer one request."""
        head = exchange.head
        request_id, tries = self._identify(head)
        now_s = self._clock.wall()
        target = Target("", "")
        try:
            if self.is_internal(head):
                response = await self._internal(exchange, now_s)
            else:
                path = decode_path(head.path)
                target = find_target(path, head.headers.get("host", ""), self._base_domains)
                request = self._admit(exchange, path, target, request_id, tries, now_s)
                exchange.admitted = True
                exchange.operation = request.operation.name
                exchange.subject = target.bucket
                response = await HANDLERS[request.operation.name](self._site, request)
            if response.stream is not None:
                await self._send_stream(exchange, response, response.stream, request_id, now_s)
                return
        except ClientGone:
            raise
        except Exception as error:
            if exchange.begun:
                _LOG.warning("request %s: the answer broke off: %s", request_id, type(error).__name__)
                if not isinstance(error, HoldfastError):
                    raise
                return
            response = self._error(exchange, target, error, request_id)
        exchange.respond(
            response.status,
            self._fields(response, request_id, now_s),
            b"" if head.method == "HEAD" else response.body,
        )

    def is_internal(self, head: Head) -> bool:
        """Whether a request is for the node, not for S3. In a bucket's own host, `/-/` begins a key."""
        return head.path.startswith(INTERNAL_PREFIX) and not bucket_of_host(
            head.headers.get("host", ""), self._base_domains
        )

    def claim(self, exchange: Exchange) -> None:
        """Note what a request claims to be about. It was not read, and may be about nothing."""
        head = exchange.head
        try:
            target = find_target(decode_path(head.path), head.headers.get("host", ""), self._base_domains)
            query = _parameters(parse_query(head.query))
            operation = route(head.method, _scope_of(target), query, head.headers)
        except S3Error:
            return
        exchange.operation, exchange.subject = operation.name, target.bucket

    def refuse(self, error: HeadError) -> tuple[int, str, bytes]:
        """The answer to what is not HTTP as it should be, or comes when there is no room."""
        request_id = self._randomness.token(8).hex().upper()
        failure = S3Error(_REFUSALS.get(error.status, Code.BAD_REQUEST), error.reason)
        body = error_xml(
            failure, resource="", bucket="", key="", request_id=request_id, host_id=self._host_id
        )
        fields = [("Content-Type", "application/xml")]
        if failure.status == 503:
            fields.append(("Retry-After", "1"))
        response = Response(failure.status, fields, body)
        return failure.status, self._fields(response, RequestId(request_id), self._clock.wall()), body

    # The way in

    def _identify(self, head: Head) -> tuple[RequestId, int]:
        """The request's id and which try of it this is. Of clients nothing is believed: who could choose the
        id could have a write of his taken for one that was answered already."""
        if self._balancer_secrets and (told := head.headers.get(BALANCER_HEADER)) is not None:
            named = head.headers.get(REQUEST_HEADER, "").replace("-", "")
            tries = head.headers.get(TRIES_HEADER, "")
            known = any(
                hmac.compare_digest(told.encode(), secret.encode()) for secret in self._balancer_secrets
            )
            if known and is_repeatable(named) and tries.isascii() and tries.isdigit():
                return RequestId(named), int(tries[:3])
        return RequestId(self._randomness.token(8).hex().upper()), 1

    def _admit(
        self,
        exchange: Exchange,
        path: str,
        target: Target,
        request_id: RequestId,
        tries: int,
        now_s: float,
    ) -> Request:
        head = exchange.head
        pairs = parse_query(head.query) if head.query else ()
        if head.method == "OPTIONS":
            raise S3Error(Code.ACCESS_FORBIDDEN)
        if head.method == "POST" and not pairs and _is_form(head):
            # A form is signed in its fields, so that its signature cannot be asked for first.
            raise S3Error(Code.NOT_IMPLEMENTED, "PostObject is not implemented.", Operation="PostObject")
        if pairs and sigv2.is_presigned(pairs):
            # Signed over the path as it was sent, and the bucket where the host names it.
            named = bucket_of_host(head.headers.get("host", ""), self._base_domains)
            resource = f"/{named}{head.path}" if named else head.path
            signed = sigv2.verify(head.method, resource, pairs, head.headers, self._credentials, now_s)
        else:
            signed = self._verifier.verify(head.method, path, pairs, head.headers, now_s)
        query = _parameters(pairs) if pairs else _NO_PARAMETERS
        bucket, key = target
        operation = route(head.method, _scope_of(target), query, head.headers)
        check_target(target, creating=operation.name == "CreateBucket")
        check_owner(head.headers)
        if not operation.served:
            raise S3Error(
                Code.NOT_IMPLEMENTED,
                f"{operation.name} is not implemented.",
                Operation=operation.name,
            )
        return Request(exchange, operation, bucket, key, query, signed, request_id, tries)

    async def _internal(self, exchange: Exchange, now_s: float) -> Response:
        head = exchange.head
        path = decode_path(head.path)
        found = self._routes.get(path)
        pairs = parse_query(head.query) if head.query else ()
        body = b""
        if found is None or found.signed:
            signed = self._verifier.verify(head.method, path, pairs, head.headers, now_s)
            if found is None:
                raise S3Error(Code.NOT_FOUND)
            body = await self._admin_body(exchange, signed)
        if head.method not in found.methods:
            raise S3Error(Code.METHOD_NOT_ALLOWED, headers=(("Allow", ", ".join(sorted(found.methods))),))
        answer = await found.answer(AdminRequest(head.method, path, _parameters(pairs), body, head.headers))
        return Response(answer.status, [("Content-Type", answer.content_type)], answer.body)

    async def _admin_body(self, exchange: Exchange, signed: Signed) -> bytes:
        head = exchange.head
        if not head.length and not head.chunked:
            return b""
        body = await open_body(exchange, signed)
        if body.length > _ADMIN_BODY_BYTES_MAX:
            raise S3Error(Code.ENTITY_TOO_LARGE, MaxSizeAllowed=str(_ADMIN_BODY_BYTES_MAX))
        return b"".join([bytes(piece) async for piece in body])

    # The way out

    async def _send_stream(
        self,
        exchange: Exchange,
        response: Response,
        stream: Callable[[], AsyncIterator[Buffer]],
        request_id: RequestId,
        now_s: float,
    ) -> None:
        pieces = stream()
        sent = 0
        try:
            # The first piece comes before the head, so that what cannot be read at all is a plain error.
            piece = await anext(pieces, None)
            exchange.begin(response.status, self._fields(response, request_id, now_s))
            while piece is not None:
                sent += len(piece)
                if sent > response.length:
                    raise Bug("An object's body is longer than its length.")
                await exchange.write(piece)
                piece = await anext(pieces, None)
        finally:
            close = getattr(pieces, "aclose", None)
            if close is not None:
                await close()
        if sent != response.length:
            raise Bug("An object's body is shorter than its length.")
        exchange.end()

    def _error(self, exchange: Exchange, target: Target, error: Exception, request_id: RequestId) -> Response:
        head = exchange.head
        failure = to_s3_error(error, reading=head.method in {"GET", "HEAD"})
        if failure.code is Code.INTERNAL_ERROR:
            if isinstance(error, Damaged):
                _LOG.error("request %s: %s", request_id, error)
            else:
                _LOG.error("request %s failed", request_id, exc_info=error)
        elif failure.status > 500 and not isinstance(error, S3Error | Busy):
            self._tell_trouble(error, request_id)
        exchange.code = failure.code.wire
        if failure.code in _NO_BUCKET:
            exchange.subject = ""
        fields = list(failure.headers)
        if failure.code is Code.INVALID_RANGE and "range" in head.headers:
            failure.facts["RangeRequested"] = head.headers["range"]
        if failure.status == 304:
            if isinstance(error, NotModified) and "etag" in error.facts:
                fields.append(("ETag", f'"{error.facts["etag"]}"'))
                fields.append(("Last-Modified", http_date(int(str(error.facts["modified_ms"])) // 1000)))
            return Response(304, fields)
        fields.append(("Content-Type", "application/xml"))
        body = error_xml(
            failure,
            resource=head.path,
            bucket=target.bucket,
            key=target.key,
            request_id=request_id,
            host_id=self._host_id,
        )
        return Response(failure.status, fields, body)

    def _tell_trouble(self, error: Exception, request_id: RequestId) -> None:
        """Say in the log what the client is not told; once a second, since every request may meet it."""
        second = int(self._clock.monotonic())
        if second != self._trouble_second:
            self._trouble_second = second
            _LOG.warning("request %s: %s", request_id, error)

    def _fields(self, response: Response, request_id: RequestId, now_s: float) -> str:
        second = int(now_s)
        if second != self._second:
            self._second = second
            self._common = f"Server: Holdfast\r\nDate: {http_date(second)}\r\nx-amz-id-2: {self._host_id}\r\n"
        text = "".join([f"{name}: {value}\r\n" for name, value in response.fields])
        assert text.count("\n") == text.count("\r") == len(response.fields), "a header is one line"
        if response.status in _BODILESS:
            return f"{self._common}x-amz-request-id: {request_id}\r\n{text}"
        return f"{self._common}x-amz-request-id: {request_id}\r\n{text}Content-Length: {response.length}\r\n"


def _scope_of(target: Target) -> Scope:
    return Scope.OBJECT if target.key else Scope.BUCKET if target.bucket else Scope.SERVICE


def _is_form(head: Head) -> bool:
    return head.headers.get("content-type", "").lower().startswith("multipart/form-data")


_BODILESS = frozenset({204, 304})
_NO_BUCKET = frozenset({Code.NO_SUCH_BUCKET, Code.INVALID_BUCKET_NAME})
_NO_PARAMETERS: dict[str, str] = {}


def parse_query(query: str) -> list[tuple[str, str]]:
    """Names and values, decoded; a plus is a space. Raises InvalidURI for what is not UTF-8."""
    pairs = []
    for field in query.split("&"):
        if field:
            name, _, value = field.partition("=")
            pairs.append((_decode_parameter(name), _decode_parameter(value)))
    return pairs


def _decode_parameter(text: str) -> str:
    if "+" in text:
        text = text.replace("+", " ")
    if "%" not in text:
        return text
    try:
        return unquote_to_bytes(text).decode("utf-8")
    except UnicodeDecodeError:
        raise S3Error(Code.INVALID_URI, "A query parameter is not UTF-8.") from None


def _parameters(pairs: list[tuple[str, str]] | tuple[()]) -> dict[str, str]:
    parameters = dict(pairs)
    if len(parameters) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise S3Error(Code.INVALID_ARGUMENT, "A query parameter came more than once.", ArgumentName=twice)
    return parameters
