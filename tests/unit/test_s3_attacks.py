"""What an attacker tries on the S3 face: other people's requests changed, floods, and forms.

Every operation of the table refuses what was not signed as it came; no client makes the server hold more
than a little for it, or keeps the others waiting.
"""

import asyncio
import base64
import hashlib
import time
import zlib
from collections.abc import Iterator
from unittest.mock import ANY

import pytest

from holdfast.base.errors import Fenced, Unavailable
from holdfast.packs.errors import BelowFloor
from holdfast.s3.errors import Code
from holdfast.s3.operations import OPERATIONS, Operation, Scope
from holdfast.s3.xml import MalformedXml, XmlReader
from holdfast.stores.port import StoreFailed, StoreFull
from holdfast.wire.chunked import ChunkedDecoder
from holdfast.wire.connection import PIPELINED_BYTES_MAX
from holdfast.wire.exchange import Limits
from tests.kit.s3 import (
    SECRET_KEY,
    Running,
    call,
    exchange,
    let_go,
    presign,
    read_answer,
    render,
    serving,
    sign,
)

_PATHS = {Scope.SERVICE: "/", Scope.BUCKET: "/bucket", Scope.OBJECT: "/bucket/k"}
Attack = tuple[str, str, str, dict[str, str]]
"""A name, a method, a target, headers."""


def attacks(operation: Operation, port: int) -> Iterator[Attack]:
    """Everything that is not the request that was signed."""
    path = _PATHS[operation.scope]
    query = "&".join(f"{name}=1" if name in {"partNumber", "uploadId"} else name for name in operation.query)
    target = f"{path}?{query}" if query else path
    more = f"{target}{'&' if query else '?'}prefix=x"
    elsewhere = target.replace(path, path.rstrip("/") + "/other", 1)
    method, host = operation.method, {"Host": f"127.0.0.1:{port}"}
    other = "GET" if method != "GET" else "DELETE"
    extra = {operation.header: "bucket/k"} if operation.header else {}
    good = sign(method, target, port, headers=extra)
    access_key = good["Authorization"].partition("Credential=")[2].partition("/")[0]
    yield "unsigned", method, target, {**host, **extra}
    signature = good["Authorization"].rpartition("=")[2]
    wrong = good["Authorization"].replace(signature, signature[::-1])
    yield "wrong signature", method, target, {**good, "Authorization": wrong}
    nobody = good["Authorization"].replace(access_key, "SOMEBODYELSE")
    yield "wrong key", method, target, {**good, "Authorization": nobody}
    yield "another method", other, target, good
    yield "another key", method, elsewhere, good
    yield "another host", method, target, {**good, "Host": "elsewhere"}
    yield "another query", method, more, good
    yield "another body", method, target, {**good, "X-Amz-Content-SHA256": "UNSIGNED-PAYLOAD"}
    yield "a header more", method, target, {**good, "x-amz-meta-a": "b"}
    yield "a header of ours more", method, target, {**good, "x-holdfast-scheme": "raid0"}
    if query:
        yield "a parameter twice", method, f"{target}&{query}", good
    if extra:
        yield "another source", method, target, {**good, operation.header: "bucket/other"}
    url = presign(method, target, port)
    yield "presigned for another method", other, url, host
    yield "presigned for another key", method, url.replace(path, path.rstrip("/") + "/other", 1), host
    yield "presigned with more query", method, f"{url}&prefix=x", host
    yield "presigned with a header more", method, url, {**host, "x-amz-meta-a": "b"}
    yield "presigned for another host", method, url, {"Host": "elsewhere"}
    yield "presigned for longer", method, url.replace("X-Amz-Expires=60", "X-Amz-Expires=6000"), host


@pytest.mark.parametrize("operation", [o for o in OPERATIONS if o.served], ids=lambda o: o.name)
async def test_no_operation_takes_what_was_not_signed(operation: Operation) -> None:
    async with serving() as running:
        await running.objects.create_bucket("bucket", None)
        for name, method, target, headers in attacks(operation, running.port):
            length = {"Content-Length": "0"} if method in {"PUT", "POST"} else {}
            answer = await exchange(
                running.port, render(method, target, {**headers, **length}), method=method
            )
            assert (name, answer.status) == (name, 403)
        assert running.objects.buckets == {"bucket": ANY}
        assert not running.objects.objects["bucket"]


async def test_a_header_that_is_signed_cannot_come_twice() -> None:
    async with serving() as running:
        signed = sign("GET", "/bucket", running.port)
        for name in ("x-amz-date", "X-Amz-Content-Sha256", "Authorization"):
            twice = render("GET", "/bucket", signed).replace(b"\r\n", f"\r\n{name}: x\r\n".encode(), 1)
            answer = await exchange(running.port, twice)
            assert (answer.status, answer.code, answer.closed) == (400, "BadRequest", True)


async def test_a_signed_digest_holds_for_every_body_that_is_used() -> None:
    async with serving() as running:
        await running.objects.create_bucket("bucket", None)
        for method, target in [
            ("PUT", "/second"),
            ("PUT", "/bucket/k"),
            ("PUT", "/bucket/k?partNumber=1&uploadId=u"),
            ("POST", "/bucket?delete"),
            ("POST", "/bucket/k?uploadId=u"),
        ]:
            headers = {**sign(method, target, running.port, body=b"<mine/>"), "Content-Length": "7"}
            answer = await exchange(running.port, render(method, target, headers, b"<your/>"))
            assert (answer.status, answer.code) == (400, "XAmzContentSHA256Mismatch")
        assert running.objects.buckets == {"bucket": ANY}


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/-/status", 403),
        ("//-/status", 403),
        ("/%2d/status", 403),
        ("/-/%73tatus", 403),
        ("/-/./status", 403),
        ("/-/live/../status", 403),
        ("/-/STATUS", 403),
        ("/-/", 403),
    ],
)
async def test_no_spelling_opens_an_internal_path(path: str, status: int) -> None:
    async with serving() as running:
        answer = await exchange(running.port, render("GET", path, {"Host": "h"}))
        assert (answer.status, answer.code) == (status, "AccessDenied")


async def test_in_a_buckets_own_host_an_internal_path_is_a_key() -> None:
    async with serving(base_domains=("s3.example",)) as running:
        await running.objects.create_bucket("bucket", None)
        host = "bucket.s3.example"
        assert (await call(running.port, "PUT", "/-/status", body=b"mine", host=host)).status == 200
        assert (await call(running.port, "GET", "/-/status", host=host)).body == b"mine"
        assert (await call(running.port, "GET", "/bucket/-/status")).body == b"mine"


async def test_forms_are_told_that_they_are_not_implemented() -> None:
    def story(running: Running) -> dict[str, str]:
        made = running.client().generate_presigned_post("bucket", "k")
        fields: dict[str, str] = made["fields"]
        return fields

    async with serving() as running:
        await running.objects.create_bucket("bucket", None)
        fields = await asyncio.to_thread(story, running)
        parts = "".join(
            f'--edge\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'
            for name, value in {**fields, "file": "data"}.items()
        )
        body = f"{parts}--edge--\r\n".encode()
        kind = {"Host": "h", "Content-Type": "multipart/form-data; boundary=edge"}
        length = {"Content-Length": str(len(body))}
        answer = await exchange(running.port, render("POST", "/bucket", {**kind, **length}, body))
        assert (answer.status, answer.code) == (501, "NotImplemented")
        assert b"PostObject" in answer.body


async def test_a_flood_of_pipelined_requests_is_cut_off_after_the_answer_that_is_due() -> None:
    request = b"GET /bucket/k HTTP/1.1\r\nHost: h\r\n\r\n"
    async with serving() as running:
        reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
        writer.write(request * (8 * PIPELINED_BYTES_MAX // len(request)))
        answers: list[int] = []

        async def take_answers() -> None:
            while True:
                answers.append((await read_answer(reader)).status)

        with pytest.raises((asyncio.IncompleteReadError, ConnectionResetError)):
            await asyncio.wait_for(take_answers(), 120)
        assert set(answers) == {403}
        assert len(answers) < 4 * PIPELINED_BYTES_MAX // len(request)
        await let_go(writer)


async def test_who_reads_no_answers_gets_no_more_of_them() -> None:
    """Else each connection of a client that only sends could fill memory with answers."""
    request = b"GET /bucket/k HTTP/1.1\r\nHost: h\r\n\r\n"
    async with serving(Limits(stall_s=0.5)) as running:
        _, writer = await asyncio.open_connection("127.0.0.1", running.port, limit=1024)

        async def ask() -> None:
            while True:
                writer.write(request * 100)
                await writer.drain()

        with pytest.raises(ConnectionError):
            await asyncio.wait_for(ask(), 120)
        await let_go(writer)
        assert (await call(running.port, "GET", "/bucket/k")).status == 404


async def longest_hold(during: "asyncio.Task[None]") -> float:
    """The longest step of the loop while a task runs, in processor seconds of its thread: what others do to
    the machine meanwhile does not count."""
    worst = 0.0
    while not during.done():
        before = time.thread_time()
        await asyncio.sleep(0)
        worst = max(worst, time.thread_time() - before)
    during.result()
    return worst


@pytest.mark.parametrize("coding", ["http", "aws"])
async def test_chunks_of_one_byte_are_decoded_in_small_steps(coding: str) -> None:
    size = 60_000
    data = b"x" * size
    tiny = b"1\r\nx\r\n" * size + b"0\r\n"
    checksum = base64.b64encode(zlib.crc32(data).to_bytes(4, "big"))
    trailer = b"x-amz-checksum-crc32:" + checksum + b"\r\n\r\n"
    headers = {"x-amz-trailer": "x-amz-checksum-crc32", "x-amz-decoded-content-length": str(size)}
    if coding == "http":
        coded = b"%x\r\n" % size + data + b"\r\n0\r\n" + trailer
        body = b"".join(b"1\r\n%c\r\n" % byte for byte in coded) + b"0\r\n\r\n"
    else:
        body = tiny + trailer
    async with serving() as running:
        await running.objects.create_bucket("bucket", None)
        kind = "STREAMING-UNSIGNED-PAYLOAD-TRAILER"
        signed = sign("PUT", "/bucket/k", running.port, headers=headers, sha256=kind)
        if coding == "http":
            signed["Transfer-Encoding"] = "chunked"
        else:
            signed["Content-Length"] = str(len(body))

        async def put() -> None:
            answer = await exchange(running.port, render("PUT", "/bucket/k", signed, body))
            assert answer.status == 200

        begun = time.thread_time()
        ChunkedDecoder(trailers=() if coding == "http" else ("x-amz-checksum-crc32",)).feed(body)
        at_once = time.thread_time() - begun
        # The best of three: a busy machine makes single steps dearer, too.
        holds = [await longest_hold(asyncio.create_task(put())) for _ in range(3)]
        assert min(holds) < at_once / 4
        assert running.objects.objects["bucket"]["k"].data == data


async def test_unsigned_chunks_are_not_even_decoded() -> None:
    body = b"1\r\nx\r\n" * 30_000
    head = {"Host": "h", "Transfer-Encoding": "chunked"}
    async with serving() as running:
        answer = await exchange(running.port, render("PUT", "/bucket/k", head, body))
        assert (answer.status, answer.code, answer.closed) == (403, "AccessDenied", True)


@pytest.mark.parametrize("size", [1, 5, 65_535, 65_536, 300_000])
async def test_what_follows_a_chunked_body_is_the_next_request(size: int) -> None:
    data = b"y" * size
    trailer = base64.b64encode(zlib.crc32(data).to_bytes(4, "big")).decode()
    coded = b"%x\r\n" % size + data + f"\r\n0\r\nx-amz-checksum-crc32:{trailer}\r\n\r\n".encode()
    wire = b"%x\r\n" % len(coded) + coded + b"\r\n0\r\n\r\n"
    headers = {"x-amz-trailer": "x-amz-checksum-crc32", "x-amz-decoded-content-length": str(size)}
    async with serving() as running:
        await running.objects.create_bucket("bucket", None)
        kind = "STREAMING-UNSIGNED-PAYLOAD-TRAILER"
        signed = sign("PUT", "/bucket/k", running.port, headers=headers, sha256=kind)
        signed["Transfer-Encoding"] = "chunked"
        get = render("GET", "/bucket/k", sign("GET", "/bucket/k", running.port))
        reader, writer = await asyncio.open_connection("127.0.0.1", running.port, limit=1 << 20)
        writer.write(render("PUT", "/bucket/k", signed, wire) + get)
        async with asyncio.timeout(60):
            assert (await read_answer(reader)).status == 200
            assert (await read_answer(reader)).body == data
        await let_go(writer)


async def test_large_documents_are_worked_on_a_few_at_a_time() -> None:
    keys = "".join(f"<Object><Key>{'k' * 1000}{number}</Key></Object>" for number in range(1000))
    body = f"<Delete><Quiet>true</Quiet>{keys}</Delete>".encode()
    digest = base64.b64encode(hashlib.md5(body).digest()).decode()
    async with serving() as running:
        await running.objects.create_bucket("bucket", None)
        async with asyncio.timeout(120):
            answers = await asyncio.gather(
                *(
                    call(running.port, "POST", "/bucket?delete", headers={"Content-MD5": digest}, body=body)
                    for _ in range(20)
                )
            )
        assert {answer.status for answer in answers} == {200}


@pytest.mark.parametrize(
    ("document", "complaint"),
    [
        (b"<a>" + b"<b/>" * 100_000 + b"</a>", "too many elements"),
        (b"<a " + b" ".join(b'b%d="c"' % number for number in range(10_000)) + b"/>", "tag or comment"),
        (b"<a><!--" + b"b" * 100_000 + b"--></a>", "tag or comment"),
        (b"<a>" * 100, "too deep"),
        (b"<a>" + b"b" * 20_000 + b"</a>", "too much text"),
        (b"<a>" + (b"<b>" + b"c" * 10_000 + b"</b>") * 300 + b"</a>", "too large"),
    ],
)
def test_documents_that_cost_more_than_they_say_are_refused(document: bytes, complaint: str) -> None:
    reader = XmlReader(2 << 20)

    def read() -> None:
        for at in range(0, len(document), 8192):
            reader.feed(document[at : at + 8192])

    with pytest.raises(MalformedXml, match=complaint):
        read()


def test_the_longest_list_of_parts_is_read() -> None:
    sums = "".join(f"<Checksum{n}>AAAAAAAAAAAAAAAAAAAAAA==</Checksum{n}>" for n in ("CRC32", "SHA1"))
    part = f"<Part><PartNumber>1</PartNumber><ETag>&quot;{'a' * 32}&quot;</ETag>{sums}</Part>".encode()
    reader = XmlReader(4 << 20)
    for at in range(10_000):
        reader.feed(b"<C>" + part if at == 0 else part)
    reader.feed(b"</C>")
    assert len(reader.finish().children) == 10_000


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (Unavailable("No copy can be read.", hint="/data/disk1/index: failed."), 503, "No copy can be read."),
        (
            StoreFailed("/data/disk1: Input/output error while writing."),
            503,
            Code.SERVICE_UNAVAILABLE.message,
        ),
        (StoreFull("/data/disk1: no room for 7 bytes."), 507, Code.INSUFFICIENT_STORAGE.message),
        (BelowFloor("Too few.", hint="Free space."), 503, "Too few. Free space."),
        (Fenced("Another node serves (/data/disk1)."), 503, Code.SERVICE_UNAVAILABLE.message),
        (OSError(5, "Input/output error", "/data/disk1"), 500, Code.INTERNAL_ERROR.message),
    ],
)
async def test_no_error_tells_where_things_lie(
    error: Exception, status: int, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving() as running:
        await running.objects.create_bucket("bucket", None)
        running.objects.failure = error
        answer = await call(running.port, "GET", "/bucket/fail")
        assert answer.status == status
        assert f"<Message>{said}</Message>".encode() in answer.body
        assert b"/data" not in answer.body
        assert str(error) in caplog.text
        assert SECRET_KEY not in caplog.text
        assert "Signature" not in caplog.text
