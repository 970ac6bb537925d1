"""The S3 face from outside, as bytes on a socket: attacks, broken bodies, slow and vanishing clients.

Each bad request gets its exact code, nothing of it is stored, and the server goes on.
"""

import asyncio
import base64
import hashlib
import zlib
from typing import Any
from urllib.parse import quote, unquote

import pytest
import uvloop

from holdfast.base.clock import SystemClock
from holdfast.base.errors import Damaged, InvalidInput, Unavailable
from holdfast.base.randomness import SeededRandomness
from holdfast.s3.chunk_signing import ChunkSigner
from holdfast.s3.server import S3Server
from holdfast.s3.sigv4 import signing_key
from holdfast.wire.exchange import Limits
from tests.kit.fake_objects import FakeObjects
from tests.kit.s3 import (
    REGION,
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

UNSIGNED_TRAILER = "STREAMING-UNSIGNED-PAYLOAD-TRAILER"
SIGNED_CHUNKS = "STREAMING-AWS4-HMAC-SHA256-PAYLOAD"
BOMB = (
    b'<!DOCTYPE d [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;&a;">]>'
    b"<Delete><Object><Key>&b;</Key></Object></Delete>"
)


async def bucket(running: Running) -> None:
    await running.objects.create_bucket("bucket", None)


async def busy(running: Running, wanted: bool = True) -> None:
    """Wait until a request is under way, or none is."""
    while bool(running.server.in_flight) != wanted:  # noqa: ASYNC110 (nobody tells when)
        await asyncio.sleep(0.01)


def stored(running: Running) -> dict[str, bytes]:
    return {key: found.data for key, found in running.objects.objects["bucket"].items()}


def md5_of(body: bytes) -> dict[str, str]:
    return {"Content-MD5": base64.b64encode(hashlib.md5(body).digest()).decode()}


@pytest.mark.parametrize(
    ("raw", "status", "code"),
    [
        (
            b"PUT /bucket/k HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
            400,
            "BadRequest",
        ),
        (
            b"PUT /bucket/k HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\nabc",
            400,
            "BadRequest",
        ),
        (
            b"PUT /bucket/k HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n",
            400,
            "BadRequest",
        ),
        (b"PUT /bucket/k HTTP/1.1\r\nHost: h\r\nContent-Length: +3\r\n\r\nabc", 400, "BadRequest"),
        (b"GET /bucket HTTP/1.1\nHost: h\n\n", 400, "BadRequest"),
        (b"GET /bucket HTTP/1.1\r\nHost: h\r\nA: b\r\n c\r\n\r\n", 400, "BadRequest"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400, "BadRequest"),
        (b"GET /bucket HTTP/1.1\r\n\r\n", 400, "BadRequest"),
        (
            b"GET /bucket HTTP/1.1\r\nHost: h\r\nA: " + b"a" * 40_000 + b"\r\n\r\n",
            400,
            "RequestHeaderSectionTooLarge",
        ),
        (b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\nHost: h\r\n\r\n", 414, "URITooLong"),
        (b"PUT /b HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: gzip\r\n\r\n", 501, "NotImplemented"),
        (b"GET /bucket HTTP/1.1\r\nHost: h\r\n\r\n", 403, "AccessDenied"),
        (b"GET /bucket/%FF HTTP/1.1\r\nHost: h\r\n\r\n", 400, "InvalidURI"),
        (b"OPTIONS /bucket HTTP/1.1\r\nHost: h\r\n\r\n", 403, "AccessForbidden"),
    ],
)
async def test_requests_that_cannot_be_believed(raw: bytes, status: int, code: str) -> None:
    async with serving() as running:
        answer = await exchange(running.port, raw)
        assert (answer.status, answer.code) == (status, code)
        assert answer.headers["server"] == "Holdfast"
        assert answer.headers["x-amz-request-id"].encode() in answer.body


@pytest.mark.parametrize(
    ("method", "target", "status", "code"),
    [
        ("GET", "/bucket/none", 404, "NoSuchKey"),
        ("GET", "/nowhere/k", 404, "NoSuchBucket"),
        ("GET", "/Bad_Bucket/k", 400, "InvalidBucketName"),
        ("GET", "/ab", 400, "InvalidBucketName"),
        ("PUT", "/192.168.0.1", 400, "InvalidBucketName"),
        ("GET", "/bucket/" + "k" * 1025, 400, "KeyTooLongError"),
        ("POST", "/bucket/k", 405, "MethodNotAllowed"),
        ("PUT", "/bucket/k?acl", 501, "NotImplemented"),
        ("GET", "/bucket/k?torrent", 501, "NotImplemented"),
        ("POST", "/bucket/k?select&select-type=2", 501, "NotImplemented"),
        ("PUT", "/bucket/k?partNumber=1", 400, "InvalidArgument"),
        ("PUT", "/bucket/k?partNumber=0&uploadId=u", 400, "InvalidArgument"),
        ("PUT", "/bucket/k?partNumber=99999999999&uploadId=u", 400, "InvalidArgument"),
        ("GET", "/bucket?max-keys=x", 400, "InvalidArgument"),
        ("GET", "/bucket?encoding-type=latin", 400, "InvalidArgument"),
        ("GET", "/bucket?prefix=a&prefix=b", 400, "InvalidArgument"),
        ("GET", "/-/nothing", 404, "NotFound"),
    ],
)
async def test_signed_requests_that_are_wrong(method: str, target: str, status: int, code: str) -> None:
    async with serving() as running:
        await bucket(running)
        answer = await call(running.port, method, target)
        assert (answer.status, answer.code) == (status, code)


async def test_a_range_outside_an_object_is_told_with_its_size() -> None:
    async with serving() as running:
        await bucket(running)
        assert (await call(running.port, "PUT", "/bucket/k", body=b"abc")).status == 200
        answer = await call(running.port, "GET", "/bucket/k", headers={"Range": "bytes=3-"})
        assert (answer.status, answer.code) == (416, "InvalidRange")
        assert answer.headers["content-range"] == "bytes */3"
        assert b"<ActualObjectSize>3</ActualObjectSize>" in answer.body
        assert b"<RangeRequested>bytes=3-</RangeRequested>" in answer.body


async def test_parameters_nobody_knows_are_ignored() -> None:
    async with serving() as running:
        await bucket(running)
        assert (await call(running.port, "PUT", "/bucket/k?x-id=PutObject&foo=bar")).status == 200
        assert (await call(running.port, "GET", "/bucket/k?x-id=GetObject")).status == 200


@pytest.mark.parametrize(
    "key", ["a/../b", "/a//b/", "%2e%2e/x", "a+b", "a%20b", "a%00b", "%C3%BC", "..", "a%2Fb"]
)
async def test_keys_are_kept_as_they_are(key: str) -> None:
    async with serving() as running:
        await bucket(running)
        answer = await exchange(
            running.port, render("PUT", f"/bucket/{key}", signed_raw(running, "PUT", key))
        )
        assert answer.status == 200, answer.body
        assert list(stored(running)) == [unquote(key)]


def signed_raw(running: Running, method: str, key: str) -> dict[str, str]:
    """Signed over the canonical form of the path, whatever form is sent."""
    path = "/bucket/" + quote(unquote(key), safe="/-._~")
    return {**sign(method, path, running.port), "Content-Length": "0"}


async def test_documents_that_are_refused() -> None:
    async with serving() as running:
        await bucket(running)
        for body in [BOMB, b"<Delete>", b"<Other/>", b"<Delete><Object/></Delete>", b"x" * (3 << 20)]:
            answer = await call(running.port, "POST", "/bucket?delete", headers=md5_of(body), body=body)
            assert (answer.status, answer.code) == (400, "MalformedXML")
        body = b"<Delete><Object><Key>k</Key></Object></Delete>"
        answer = await call(running.port, "POST", "/bucket?delete", body=body)
        assert (answer.status, answer.code) == (400, "InvalidRequest")
        answer = await call(running.port, "POST", "/bucket?delete", headers=md5_of(b"other"), body=body)
        assert (answer.status, answer.code) == (400, "BadDigest")


@pytest.mark.parametrize("size", [10, 400_000])
async def test_a_body_other_than_the_signed_one_is_refused(size: int) -> None:
    async with serving() as running:
        await bucket(running)
        digest = hashlib.sha256(b"other").hexdigest()
        answer = await call(running.port, "PUT", "/bucket/k", body=b"x" * size, sha256=digest)
        assert (answer.status, answer.code) == (400, "XAmzContentSHA256Mismatch")
        assert stored(running) == {}


@pytest.mark.parametrize("size", [10, 400_000])
async def test_a_short_body_is_refused_and_stores_nothing(size: int) -> None:
    async with serving() as running:
        await bucket(running)
        headers = {**sign("PUT", "/bucket/k", running.port, body=b"x" * size), "Content-Length": str(size)}
        raw = render("PUT", "/bucket/k", headers, b"x" * (size - 1))
        answer = await exchange(running.port, raw, finish=True)
        assert (answer.status, answer.code, answer.closed) == (400, "IncompleteBody", True)
        assert stored(running) == {}


async def test_bytes_after_a_body_are_the_next_request() -> None:
    async with serving() as running:
        await bucket(running)
        put = {**sign("PUT", "/bucket/k", running.port, body=b"abc"), "Content-Length": "3"}
        raw = render("PUT", "/bucket/k", put, b"abc") + render(
            "GET", "/bucket/k", sign("GET", "/bucket/k", running.port)
        )
        reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
        writer.write(raw)
        assert (await read_answer(reader)).status == 200
        assert (await read_answer(reader)).body == b"abc"
        writer.write(b"garbage\r\n\r\n")
        assert (await read_answer(reader)).code == "BadRequest"
        assert await reader.read() == b""
        await let_go(writer)


async def test_a_put_without_a_length_is_refused() -> None:
    async with serving() as running:
        await bucket(running)
        signed = sign("PUT", "/bucket/k", running.port)
        answer = await exchange(running.port, render("PUT", "/bucket/k", signed))
        assert (answer.status, answer.code) == (411, "MissingContentLength")
        chunked = render("PUT", "/bucket/k", {**signed, "Transfer-Encoding": "chunked"}, b"0\r\n\r\n")
        answer = await exchange(running.port, chunked)
        assert (answer.status, answer.code) == (411, "MissingContentLength")
        huge = {**signed, "Content-Length": str(6 << 30)}
        answer = await exchange(running.port, render("PUT", "/bucket/k", huge))
        assert (answer.status, answer.code) == (400, "EntityTooLarge")


# aws-chunked


def unsigned_chunks(data: bytes, trailer: bytes) -> bytes:
    body = b"".join(
        b"%x\r\n%s\r\n" % (len(data[at : at + 65536]), data[at : at + 65536])
        for at in range(0, len(data), 65536)
    )
    return body + b"0\r\n" + trailer + b"\r\n"


def crc32_trailer(data: bytes) -> bytes:
    value = base64.b64encode(zlib.crc32(data).to_bytes(4, "big"))
    return b"x-amz-checksum-crc32:" + value + b"\r\n"


async def put_chunked(
    running: Running, body: bytes, length: int, *, transfer: bool = False, **extra: str
) -> Any:
    headers = {
        "Content-Encoding": "aws-chunked",
        "X-Amz-Decoded-Content-Length": str(length),
        "X-Amz-Trailer": "x-amz-checksum-crc32",
        **extra,
    }
    signed = sign("PUT", "/bucket/k", running.port, headers=headers, sha256=UNSIGNED_TRAILER)
    if transfer:
        signed["Transfer-Encoding"] = "chunked"
        body = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
    else:
        signed["Content-Length"] = str(len(body))
    return await exchange(running.port, render("PUT", "/bucket/k", signed, body), finish=True)


@pytest.mark.parametrize("size", [0, 5, 300_000])
@pytest.mark.parametrize("transfer", [False, True])
async def test_unsigned_chunks_with_a_trailer(size: int, transfer: bool) -> None:
    data = b"d" * size
    async with serving() as running:
        await bucket(running)
        body = unsigned_chunks(data, crc32_trailer(data))
        answer = await put_chunked(running, body, size, transfer=transfer)
        assert answer.status == 200, answer.body
        assert answer.headers["x-amz-checksum-crc32"].encode() in crc32_trailer(data)
        assert stored(running) == {"k": data}
        assert running.objects.objects["bucket"]["k"].record.headers.content_encoding == ""


@pytest.mark.parametrize("size", [5, 300_000])
async def test_wrong_chunks(size: int) -> None:
    data = b"d" * size
    good = unsigned_chunks(data, crc32_trailer(data))
    cases: list[tuple[bytes, int, str]] = [
        (unsigned_chunks(data, crc32_trailer(b"other")), size, "BadDigest"),
        (unsigned_chunks(data, b""), size, "MalformedTrailerError"),
        (unsigned_chunks(data, b"x-amz-other:a\r\n"), size, "MalformedTrailerError"),
        (unsigned_chunks(data, b"x-amz-checksum-crc32:AAA=\r\n"), size, "InvalidRequest"),
        (b"0x" + good, size, "InvalidRequest"),
        (b"+" + good, size, "InvalidRequest"),
        (good.replace(b"\r\n", b"\n", 1), size, "InvalidRequest"),
        (good, size + 1, "IncompleteBody"),
        (good, size - 1, "IncompleteBody"),
        (good + b"more", size, "IncompleteBody"),
        (good[:-2], size, "IncompleteBody"),
    ]
    async with serving() as running:
        await bucket(running)
        for body, length, code in cases:
            answer = await put_chunked(running, body, length)
            assert (answer.code, stored(running)) == (code, {}), body[:40]
        answer = await put_chunked(running, good, size, **{"X-Amz-Decoded-Content-Length": "x"})
        assert answer.code == "InvalidArgument"


@pytest.mark.parametrize("broken", [False, True])
@pytest.mark.parametrize("size", [5, 300_000])
async def test_signed_chunks(size: int, broken: bool) -> None:
    data = b"s" * size
    async with serving() as running:
        await bucket(running)
        headers = {"Content-Encoding": "gzip,aws-chunked", "X-Amz-Decoded-Content-Length": str(size)}
        signed = sign("PUT", "/bucket/k", running.port, headers=headers, sha256=SIGNED_CHUNKS)
        date = signed["X-Amz-Date"]
        key = signing_key(SECRET_KEY, date[:8], REGION, "s3")
        seed = signed["Authorization"].rpartition("=")[2]
        chain = ChunkSigner(key, seed, date, f"{date[:8]}/{REGION}/s3/aws4_request")
        body = b""
        for piece in [data[at : at + 65536] for at in range(0, size, 65536)] + [b""]:
            signature = chain.chunk(hashlib.sha256(piece).hexdigest())
            body += f"{len(piece):x};chunk-signature={signature}\r\n".encode() + piece + b"\r\n"
        if broken:
            body = body.replace(b"s", b"t", 2).replace(b"chunk-tignature", b"chunk-signature")
        signed["Content-Length"] = str(len(body))
        answer = await exchange(running.port, render("PUT", "/bucket/k", signed, body))
        if broken:
            assert (answer.status, answer.code, stored(running)) == (403, "SignatureDoesNotMatch", {})
        else:
            assert (answer.status, stored(running)) == (200, {"k": data})
            assert running.objects.objects["bucket"]["k"].record.headers.content_encoding == "gzip"


# Who asks first


async def test_no_body_is_asked_for_before_the_signature_holds() -> None:
    async with serving() as running:
        await bucket(running)
        signed = sign("PUT", "/bucket/k", running.port, body=b"hello")
        expecting = {**signed, "Content-Length": "5", "Expect": "100-continue"}
        wrong = {**expecting, "Authorization": signed["Authorization"][:-1] + "x"}
        for headers, status in [
            (wrong, 400),
            ({"Host": "h", "Content-Length": "5", "Expect": "100-continue"}, 403),
        ]:
            answer = await exchange(running.port, render("PUT", "/bucket/k", headers))
            assert (answer.status, answer.closed) == (status, True)
        reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
        writer.write(render("PUT", "/bucket/k", expecting))
        assert (await read_answer(reader)).status == 100
        writer.write(b"hello")
        assert (await read_answer(reader)).status == 200
        assert stored(running) == {"k": b"hello"}
        await let_go(writer)


async def test_an_early_error_keeps_the_connection_when_the_rest_is_short() -> None:
    async with serving() as running:
        reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
        for _ in range(2):
            writer.write(b"PUT /bucket/k HTTP/1.1\r\nHost: h\r\nContent-Length: 100000\r\n\r\n")
            answer = await read_answer(reader)
            assert (answer.code, answer.closed) == ("AccessDenied", False)
            writer.write(b"x" * 100_000)
        await let_go(writer)


async def test_an_early_error_arrives_though_much_is_still_being_sent() -> None:
    async with serving() as running:
        reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
        writer.write(b"PUT /bucket/k HTTP/1.1\r\nHost: h\r\nContent-Length: 8000000\r\n\r\n")
        writer.write(b"x" * 8_000_000)
        answer = await read_answer(reader)
        assert (answer.code, answer.closed) == ("AccessDenied", True)
        await let_go(writer)


async def test_heads_have_no_bodies() -> None:
    async with serving() as running:
        await bucket(running)
        await call(running.port, "PUT", "/bucket/k", body=b"hello")
        reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
        for target, status, length in [
            ("/bucket/k", 200, "5"),
            ("/bucket/none", 404, None),
            ("/bucket", 200, "0"),
        ]:
            writer.write(render("HEAD", target, sign("HEAD", target, running.port)))
            answer = await read_answer(reader, "HEAD")
            assert answer.status == status
            assert length is None or answer.headers["content-length"] == length
        await let_go(writer)


async def test_what_is_answered_carries_the_standard_headers() -> None:
    async with serving() as running:
        await bucket(running)
        put = await call(running.port, "PUT", "/bucket/k", body=b"hello")
        assert put.headers["x-holdfast-receipt"] == (
            "scheme=rs-4-2; durable=6/6; survives=store:2; debt=none"
        )
        got = await call(running.port, "GET", "/bucket/k")
        for name in ["x-amz-request-id", "x-amz-id-2", "date", "last-modified", "etag"]:
            assert got.headers[name]
        assert (got.headers["server"], got.headers["accept-ranges"]) == ("Holdfast", "bytes")
        assert got.headers["etag"] == f'"{hashlib.md5(b"hello").hexdigest()}"'
        assert put.headers["x-amz-request-id"] != got.headers["x-amz-request-id"]


async def test_metadata_that_is_not_ascii_comes_back_as_rfc_2047() -> None:
    async with serving() as running:
        await bucket(running)
        signed = sign("PUT", "/bucket/k", running.port, headers={"x-amz-meta-name": "blü"})
        raw = render("PUT", "/bucket/k", {**signed, "Content-Length": "0"})
        answer = await exchange(running.port, raw)
        assert answer.status == 200, answer.body
        got = await call(running.port, "GET", "/bucket/k")
        assert got.headers["x-amz-meta-name"] == "=?UTF-8?B?YmzDvA==?="


async def test_a_range_holds_only_for_the_same_object() -> None:
    async with serving() as running:
        await bucket(running)
        await call(running.port, "PUT", "/bucket/k", body=b"hello")
        etag = f'"{hashlib.md5(b"hello").hexdigest()}"'
        for if_range, status in [(etag, 206), ('"other"', 200)]:
            headers = {"Range": "bytes=0-1", "If-Range": if_range}
            assert (await call(running.port, "GET", "/bucket/k", headers=headers)).status == status


async def test_presigned_requests() -> None:
    async with serving() as running:
        await bucket(running)
        target = presign("PUT", "/bucket/k", running.port)
        host = {"Host": f"127.0.0.1:{running.port}"}
        answer = await exchange(running.port, render("PUT", target, {**host, "Content-Length": "2"}, b"hi"))
        assert answer.status == 200
        answer = await exchange(running.port, render("GET", target, host))
        assert answer.code == "SignatureDoesNotMatch"


async def test_virtual_hosts_name_the_bucket() -> None:
    async with serving(base_domains=("s3.test",)) as running:
        await bucket(running)
        answer = await call(running.port, "PUT", "/dir/k", body=b"v", host="bucket.s3.test")
        assert answer.status == 200, answer.body
        assert stored(running) == {"dir/k": b"v"}


# When things go wrong inside


async def test_failures_inside_become_errors_that_tell_nothing(caplog: pytest.LogCaptureFixture) -> None:
    async with serving() as running:
        await bucket(running)
        for failure, status, code in [
            (RuntimeError("secret"), 500, "InternalError"),
            (Damaged("three shards are wrong"), 500, "InternalError"),
            (Unavailable("too few stores"), 503, "ServiceUnavailable"),
        ]:
            running.objects.failure = failure
            answer = await call(running.port, "GET", "/bucket/fail")
            assert (answer.status, answer.code) == (status, code)
            assert b"secret" not in answer.body
            assert (answer.headers.get("retry-after") == "1") == (status == 503)
            if status == 500:
                assert answer.headers["x-amz-request-id"] in caplog.text
        assert SECRET_KEY not in caplog.text
        assert "Signature" not in caplog.text


async def test_an_answer_that_breaks_off_is_never_taken_for_whole() -> None:
    async with serving() as running:
        await bucket(running)
        await call(running.port, "PUT", "/bucket/k", body=b"x" * (3 << 20))
        running.objects.break_after = 1 << 20
        with pytest.raises((asyncio.IncompleteReadError, ConnectionResetError)):
            await call(running.port, "GET", "/bucket/k")
        running.objects.break_after = 0
        assert (await call(running.port, "GET", "/bucket/k")).code == "SlowDown"


# Slow, many, gone


async def test_a_client_that_reads_nothing_costs_little_and_is_dropped() -> None:
    limits = Limits(stall_s=0.5)
    async with serving(limits) as running:
        await bucket(running)
        await call(running.port, "PUT", "/bucket/k", body=b"x" * (32 << 20))
        reader, writer = await asyncio.open_connection("127.0.0.1", running.port, limit=1024)
        writer.write(render("GET", "/bucket/k", sign("GET", "/bucket/k", running.port)))
        async with asyncio.timeout(60):
            await busy(running)
            await busy(running, False)
        with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
            await reader.readexactly(32 << 20)
        await let_go(writer)


async def test_a_client_that_stops_sending_is_told_and_dropped() -> None:
    async with serving(Limits(stall_s=0.2, head_s=0.2)) as running:
        await bucket(running)
        headers = {**sign("PUT", "/bucket/k", running.port, body=b"hello"), "Content-Length": "5"}
        answer = await exchange(running.port, render("PUT", "/bucket/k", headers, b"he"))
        assert (answer.status, answer.code, answer.closed) == (400, "RequestTimeout", True)
        answer = await exchange(running.port, b"GET /bucket HTTP/1.1\r\nHost:")
        assert (answer.status, answer.code, answer.closed) == (400, "RequestTimeout", True)
        assert stored(running) == {}


async def test_a_body_nobody_takes_is_not_read() -> None:
    """Reading stops at the limit; the kernel's buffers fill, and the client waits."""

    taken = asyncio.Event()

    class Stuck(FakeObjects):
        async def put_object(self, put: Any) -> Any:
            await taken.wait()
            return await super().put_object(put)

    async with serving(Limits(body_buffer_bytes=64 << 10)) as running:
        await bucket(running)
        running.objects.__class__ = Stuck
        size = 32 << 20
        body = b"x" * size
        headers = {**sign("PUT", "/bucket/k", running.port, body=body), "Content-Length": str(size)}
        reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
        writer.write(render("PUT", "/bucket/k", headers))
        writer.write(body)
        await asyncio.sleep(0.3)
        assert writer.transport.get_write_buffer_size() > 8 << 20
        taken.set()
        assert (await read_answer(reader)).status == 200
        await let_go(writer)


async def test_too_many_requests_are_told_to_slow_down() -> None:
    async with serving(Limits(requests_max=1)) as running:
        await bucket(running)
        headers = {**sign("PUT", "/bucket/k", running.port, body=b"hello"), "Content-Length": "5"}
        reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
        writer.write(render("PUT", "/bucket/k", headers, b"he"))
        await busy(running)
        answer = await call(running.port, "GET", "/bucket")
        assert (answer.status, answer.code, answer.headers["retry-after"]) == (503, "SlowDown", "1")
        many, pen = await asyncio.open_connection("127.0.0.1", running.port)
        pen.write(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n" * 2000)
        for _ in range(2000):
            assert (await read_answer(many)).status == 503
        await let_go(pen)
        writer.write(b"llo")
        assert (await read_answer(reader)).status == 200
        await let_go(writer)


def test_it_runs_on_uvloop() -> None:
    async def story() -> None:
        async with serving() as running:
            await bucket(running)
            data = bytes(range(256)) * (64 << 10)
            assert (await call(running.port, "PUT", "/bucket/k", body=data)).status == 200
            assert (await call(running.port, "GET", "/bucket/k")).body == data
            with pytest.raises(InvalidInput):
                await S3Server(
                    running.objects, {}, SystemClock(), SeededRandomness(1), port=running.port
                ).start()

    uvloop.run(story())


async def test_an_empty_body_that_was_expected_is_asked_for_too() -> None:
    """The AWS CLI hangs on the next request of a connection on which an answer came without a 100."""
    async with serving() as running:
        await bucket(running)
        reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
        headers = {**sign("PUT", "/bucket/k", running.port), "Content-Length": "0", "Expect": "100-continue"}
        for _ in range(2):
            writer.write(render("PUT", "/bucket/k", headers))
            assert (await read_answer(reader)).status == 100
            answer = await read_answer(reader)
            assert (answer.status, answer.closed) == (200, False)
        await let_go(writer)
