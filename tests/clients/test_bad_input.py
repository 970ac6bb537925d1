"""Bad input at a whole node: each gets its exact code, nothing of it is stored, and the node goes on."""

import asyncio
import base64
import hashlib
import http.client
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import quote, urlsplit

import pytest

from tests.kit.process import NodeProcess
from tests.kit.s3 import ACCESS_KEY, SECRET_KEY, Answer, call, exchange, render, sign

Headers = Mapping[str, str]


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeProcess]:
    known = {"HOLDFAST_ACCESS_KEY_ID": ACCESS_KEY, "HOLDFAST_SECRET_ACCESS_KEY": SECRET_KEY}
    with NodeProcess(tmp_path_factory.mktemp("node"), environment=known) as running:
        running.s3().create_bucket(Bucket="bucket")
        running.s3().put_object(Bucket="bucket", Key="kept", Body=b"kept")
        yield running
        assert SECRET_KEY not in running.output
        assert "Traceback" not in running.output


def port(node: NodeProcess) -> int:
    found = urlsplit(node.endpoint).port
    assert found is not None
    return found


def md5(body: bytes) -> dict[str, str]:
    return {"Content-MD5": base64.b64encode(hashlib.md5(body).digest()).decode()}


def delete(inner: str) -> bytes:
    return f"<Delete>{inner}</Delete>".encode()


BOMB = (
    b'<!DOCTYPE d [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;&a;">]>'
    b"<Delete><Object><Key>&b;</Key></Object></Delete>"
)
OUTSIDE = (
    b'<!DOCTYPE d [<!ENTITY a SYSTEM "file:///etc/hostname">]>'
    b"<Delete><Object><Key>&a;</Key></Object></Delete>"
)


@pytest.mark.parametrize(
    ("method", "target", "headers", "body", "status", "code"),
    [
        ("PUT", "/bucket/" + "k" * 1025, {}, b"", 400, "KeyTooLongError"),
        ("PUT", "/bucket/" + quote("ü" * 513), {}, b"", 400, "KeyTooLongError"),
        ("PUT", "/bucket/a%00b", {}, b"", 400, "InvalidURI"),
        ("PUT", "/bucket/%ED%A0%80", {}, b"", 400, "InvalidURI"),
        ("PUT", "/Bucket", {}, b"", 400, "InvalidBucketName"),
        ("PUT", "/..", {}, b"", 400, "InvalidBucketName"),
        ("PUT", "/192.168.5.4", {}, b"", 400, "InvalidBucketName"),
        ("PUT", "/" + "b" * 64, {}, b"", 400, "InvalidBucketName"),
        ("PUT", "//key", {}, b"", 404, "NoSuchBucket"),
        ("PUT", "/new-bucket", {"x-holdfast-scheme": "rs-99-99"}, b"", 400, "InvalidArgument"),
        ("PUT", "/new-bucket", {"x-holdfast-scheme": "rs-16-6"}, b"", 400, "InvalidArgument"),
        ("PUT", "/bucket/k", {"x-amz-meta-a": "x" * 2048}, b"", 400, "MetadataTooLarge"),
        ("PUT", "/bucket/k", {"Content-MD5": "nonsense"}, b"", 400, "InvalidDigest"),
        ("PUT", "/bucket/k", md5(b"other"), b"body", 400, "BadDigest"),
        ("PUT", "/bucket/k", {"x-amz-checksum-crc32": "AAAAAA=="}, b"body", 400, "BadDigest"),
        ("PUT", "/bucket/k", {"x-amz-checksum-crc32": "short"}, b"body", 400, "InvalidRequest"),
        ("PUT", "/bucket/k", {"x-amz-copy-source": "../../etc/passwd"}, b"", 400, "InvalidBucketName"),
        ("PUT", "/bucket/k", {"x-amz-copy-source": "bucket/../kept"}, b"", 404, "NoSuchKey"),
        ("PUT", "/bucket/k", {"x-amz-copy-source": "bucket/%00"}, b"", 400, "InvalidURI"),
        ("PUT", "/bucket/k", {"x-amz-copy-source": "bucket"}, b"", 400, "InvalidArgument"),
        ("PUT", "/bucket/k?partNumber=0&uploadId=u", {}, b"x", 400, "InvalidArgument"),
        ("PUT", "/bucket/k?partNumber=10001&uploadId=u", {}, b"x", 400, "InvalidArgument"),
        ("PUT", "/bucket/k?partNumber=1e3&uploadId=u", {}, b"x", 400, "InvalidArgument"),
        ("PUT", f"/bucket/k?partNumber={'9' * 40}&uploadId=u", {}, b"x", 400, "InvalidArgument"),
        ("PUT", "/bucket/k?partNumber=1&uploadId=..", {}, b"x", 404, "NoSuchUpload"),
        ("GET", "/bucket/kept?partNumber=2", {}, b"", 416, "InvalidPartNumber"),
        ("GET", "/bucket/kept", {"Range": "bytes=4-"}, b"", 416, "InvalidRange"),
        ("GET", "/bucket/kept", {"Range": "bytes=-0"}, b"", 416, "InvalidRange"),
        ("GET", "/bucket/kept?versionId=..%2F..", {}, b"", 404, "NoSuchVersion"),
        ("GET", "/bucket/kept?response-content-type=a%0D%0Ab%3A%20c", {}, b"", 400, "InvalidArgument"),
        ("GET", f"/bucket?max-keys={'9' * 40}", {}, b"", 400, "InvalidArgument"),
        ("GET", "/bucket?max-keys=-1", {}, b"", 400, "InvalidArgument"),
        ("GET", "/bucket?list-type=2&continuation-token=x", {}, b"", 400, "InvalidArgument"),
        ("POST", "/bucket?delete", md5(BOMB), BOMB, 400, "MalformedXML"),
        ("POST", "/bucket?delete", md5(OUTSIDE), OUTSIDE, 400, "MalformedXML"),
        ("POST", "/bucket?delete", md5(delete("<Object>")), delete("<Object>"), 400, "MalformedXML"),
        ("POST", "/bucket?delete", md5(delete("\0")), delete("\0"), 400, "MalformedXML"),
        ("POST", "/bucket?delete", md5(b""), b"", 400, "MalformedXML"),
        ("POST", "/bucket?delete", {}, delete("<Object><Key>k</Key></Object>"), 400, "InvalidRequest"),
        ("POST", "/bucket/k?uploadId=u", {}, b"<CompleteMultipartUpload/>", 400, "MalformedXML"),
    ],
)
async def test_each_gets_its_exact_code(
    node: NodeProcess, method: str, target: str, headers: Headers, body: bytes, status: int, code: str
) -> None:
    answer = await call(port(node), method, target, headers=headers, body=body)
    assert (answer.status, answer.code) == (status, code)
    assert str(node.home).encode() not in answer.body
    listed = await call(port(node), "GET", "/bucket?list-type=2")
    assert listed.body.count(b"<Key>") == 1
    assert (await call(port(node), "GET", "/bucket/kept")).body == b"kept"


@pytest.mark.parametrize(
    "key",
    [
        "..", "../../etc/passwd", "a//b", "//", "%2e%2e/%2f", "a\r\nb: c", " spaces ", "ü", "u\u0308",
        "\U0001f600", "-/status", "k" * 1024, "\x01\x7f", "<&>",
    ],
)  # fmt: skip
async def test_any_other_key_is_kept_as_it_is(node: NodeProcess, key: str) -> None:
    target = "/bucket/" + quote(key, safe="/-_.~")
    answers: list[Answer] = []
    for method, body in (("PUT", key.encode()), ("GET", b""), ("DELETE", b"")):
        answers.append(await call(port(node), method, target, body=body))
    assert [answer.status for answer in answers] == [200, 200, 204]
    assert answers[1].body == key.encode()


@pytest.mark.parametrize(
    ("lines", "body", "status", "code"),
    [
        ("Content-Length: 3\r\nContent-Length: 3\r\n", b"abc", 400, "BadRequest"),
        ("Content-Length: 3\r\nTransfer-Encoding: chunked\r\n", b"3\r\nabc\r\n0\r\n\r\n", 400, "BadRequest"),
        (f"Content-Length: 1{'0' * 30}\r\n", b"abc", 400, "BadRequest"),
        (f"Content-Length: 1{'0' * 15}\r\n", b"abc", 400, "EntityTooLarge"),
        ("", b"", 411, "MissingContentLength"),
        ("X-Long: " + "x" * 40_000 + "\r\n", b"", 400, "RequestHeaderSectionTooLarge"),
        ("X-Folded: a\r\n b\r\n", b"", 400, "BadRequest"),
        ("X-Bare: a\nb: c\r\n", b"", 400, "BadRequest"),
    ],
)
async def test_framing_with_two_meanings(
    node: NodeProcess, lines: str, body: bytes, status: int, code: str
) -> None:
    signed = sign("PUT", "/bucket/k", port(node), body=body)
    head = "".join(f"{name}: {value}\r\n" for name, value in signed.items())
    raw = f"PUT /bucket/k HTTP/1.1\r\n{head}{lines}\r\n".encode() + body
    answer = await exchange(port(node), raw)
    assert (answer.status, answer.code) == (status, code)


async def test_a_short_body_and_a_vanished_client_store_nothing(node: NodeProcess) -> None:
    for size in (10, 100_000, 30_000_000):
        signed = sign("PUT", "/bucket/short", port(node), sha256="UNSIGNED-PAYLOAD")
        head = render("PUT", "/bucket/short", {**signed, "Content-Length": str(size)})
        answer = await exchange(port(node), head + b"x" * (size - 1), finish=True)
        assert (answer.status, answer.code) == (400, "IncompleteBody")
        _, writer = await asyncio.open_connection("127.0.0.1", port(node))
        writer.write(head + b"x" * (size - 1))
        writer.transport.abort()
    assert (await call(port(node), "GET", "/bucket/short")).status == 404


def descriptors(node: NodeProcess) -> int:
    """How many the node has open."""
    return len(list(Path(f"/proc/{node.pid}/fd").iterdir()))


async def test_a_thousand_connections_at_once(node: NodeProcess) -> None:
    """Half of them never finish their request; the others are answered, and all descriptors come back."""
    before = descriptors(node)
    half = [await asyncio.open_connection("127.0.0.1", port(node)) for _ in range(500)]
    for _, writer in half:
        writer.write(b"GET /bucket/kept HTTP/1.1\r\nHost: h\r\nX: ")
    answers = await asyncio.gather(*(call(port(node), "GET", "/bucket/kept") for _ in range(500)))
    assert {answer.status for answer in answers} <= {200, 503}
    assert sum(answer.status == 200 for answer in answers) > 100
    for _, writer in half:
        writer.transport.abort()
    async with asyncio.timeout(60):
        while descriptors(node) > before + 50:  # noqa: ASYNC110 (nobody tells when)
            await asyncio.sleep(0.1)


def fetch(url: str) -> tuple[int, bytes]:
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.netloc, timeout=60)
    try:
        connection.request("GET", f"{parts.path}?{parts.query}")
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def test_aws_s3_presign(node: NodeProcess) -> None:
    url = node.run("aws", "s3", "presign", "s3://bucket/kept", "--expires-in", "60").stdout.strip()
    assert fetch(url) == (200, b"kept")
    assert fetch(url.replace("kept", "other"))[0] == 403
    late = node.run("aws", "s3", "presign", "s3://bucket/kept", "--expires-in", "1").stdout.strip()
    subprocess.run(["sleep", "2.1"], check=True)
    status, body = fetch(late)
    assert status == 403
    assert b"Request has expired" in body
