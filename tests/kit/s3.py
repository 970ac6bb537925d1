"""A running S3 face over objects in memory, and clients for it: boto3, and bytes on a socket."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any, NamedTuple
from xml.etree import ElementTree

import boto3
from botocore.auth import S3SigV4Auth, S3SigV4QueryAuth
from botocore.awsrequest import AWSRequest
from botocore.config import Config
from botocore.credentials import Credentials

from holdfast.base.clock import SystemClock
from holdfast.base.randomness import SeededRandomness
from holdfast.s3.face import Routes
from holdfast.s3.server import S3Server
from holdfast.wire.exchange import Limits
from tests.kit.fake_objects import FakeObjects

ACCESS_KEY = "HOLDFASTTESTKEY"
SECRET_KEY = "a/secret+for/tests=only"
REGION = "us-east-1"
CREDENTIALS = Credentials(ACCESS_KEY, SECRET_KEY)


class Running(NamedTuple):
    """A server under test. Its clients are closed with it."""

    server: S3Server
    objects: FakeObjects
    port: int
    clients: list[Any]
    region: str = REGION

    def client(self, **config: Any) -> Any:
        """An unmodified boto3 client."""
        settings: dict[str, Any] = {
            "s3": {"addressing_style": "path"},
            "retries": {"total_max_attempts": 1},
            "max_pool_connections": 4,
        }
        client = boto3.client(
            "s3",
            endpoint_url=f"http://127.0.0.1:{self.port}",
            aws_access_key_id=ACCESS_KEY,
            aws_secret_access_key=SECRET_KEY,
            region_name=self.region,
            config=Config(**{**settings, **config}),
        )
        self.clients.append(client)
        return client


@asynccontextmanager
async def serving(
    limits: Limits | None = None,
    routes: Routes | None = None,
    base_domains: tuple[str, ...] = (),
    balancer_secret: str = "",
    region: str = REGION,
) -> AsyncIterator[Running]:
    """A server on a free port of 127.0.0.1, gone with the block."""
    clock = SystemClock()
    objects = FakeObjects(clock, region=region)
    server = S3Server(
        objects,
        {ACCESS_KEY: SECRET_KEY},
        clock,
        SeededRandomness("s3"),
        port=0,
        region=region,
        limits=limits,
        routes=routes,
        base_domains=base_domains,
        balancer_secrets=(balancer_secret,) if balancer_secret else (),
    )
    await server.start()
    running = Running(server, objects, server.port, [], region)
    try:
        yield running
    finally:
        for client in running.clients:
            client.close()
        await server.stop(1.0)


class Answer(NamedTuple):
    """One HTTP answer, as it was on the wire."""

    status: int
    headers: dict[str, str]
    body: bytes
    closed: bool

    @property
    def code(self) -> str:
        """The S3 error code in the body."""
        found = ElementTree.fromstring(self.body).find("Code")
        assert found is not None
        assert found.text is not None
        return found.text


def sign(
    method: str,
    target: str,
    port: int,
    *,
    headers: Mapping[str, str] | None = None,
    body: bytes = b"",
    sha256: str = "",
    host: str = "",
    credentials: Credentials = CREDENTIALS,
) -> dict[str, str]:
    """The headers of a request signed by botocore, an implementation that is not ours."""
    host = host or f"127.0.0.1:{port}"
    request = AWSRequest(method, f"http://{host}{target}", dict(headers or {}), body)
    request.headers["Host"] = host
    digest = sha256 or hashlib.sha256(body).hexdigest()
    request.headers["X-Amz-Content-SHA256"] = digest
    auth = S3SigV4Auth(credentials, "s3", REGION)
    auth.payload = lambda _request: digest  # type: ignore[method-assign]
    auth.add_auth(request)
    signed = dict(request.headers.items())
    signed["X-Amz-Content-SHA256"] = digest
    return signed


def presign(method: str, target: str, port: int, expires: int = 60) -> str:
    """A presigned target, by botocore."""
    request = AWSRequest(method, f"http://127.0.0.1:{port}{target}")
    S3SigV4QueryAuth(CREDENTIALS, "s3", REGION, expires=expires).add_auth(request)
    return str(request.url).partition(f":{port}")[2]


def render(method: str, target: str, headers: Mapping[str, str], body: bytes = b"") -> bytes:
    """A request as bytes."""
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"{method} {target} HTTP/1.1\r\n{lines}\r\n".encode() + body


async def exchange(port: int, data: bytes, *, method: str = "GET", finish: bool = False) -> Answer:
    """Send bytes, read one answer. `finish` closes the sending side after them."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(data)
        if finish:
            writer.write_eof()
        async with asyncio.timeout(60):
            return await read_answer(reader, method)
    finally:
        await let_go(writer)


async def let_go(writer: asyncio.StreamWriter) -> None:
    """Close a connection, and return when it is: none is left for the garbage collector to complain of in
    another test. What was not sent by now never will be."""
    if writer.transport.get_write_buffer_size():
        writer.transport.abort()
    writer.close()
    with suppress(OSError):
        await writer.wait_closed()


async def read_answer(reader: asyncio.StreamReader, method: str = "GET") -> Answer:
    """Read one answer off a connection."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    first, *lines = head.split("\r\n")[:-2]
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    status = int(first.split(" ")[1])
    length = 0 if method == "HEAD" or status in {100, 204, 304} else int(headers["content-length"])
    body = await reader.readexactly(length)
    return Answer(status, headers, body, headers.get("connection") == "close")


async def call(
    port: int,
    method: str,
    target: str,
    *,
    headers: Mapping[str, str] | None = None,
    body: bytes = b"",
    sha256: str = "",
    host: str = "",
    credentials: Credentials = CREDENTIALS,
) -> Answer:
    """A signed request and its answer."""
    signed = sign(
        method, target, port, headers=headers, body=body, sha256=sha256, host=host, credentials=credentials
    )
    if body or method in {"PUT", "POST"}:
        signed.setdefault("Content-Length", str(len(body)))
    return await exchange(port, render(method, target, signed, body), method=method)
