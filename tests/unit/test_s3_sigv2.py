"""Presigned URLs of Signature Version 2: AWS's example and boto3's own hold, and nothing else does.

Example: Amazon S3 Developer Guide, "Signing and Authenticating REST Requests". The others of that page are
for headers, which differ in where the date comes from.
"""

import asyncio
from http.client import HTTPConnection
from typing import Any
from urllib.parse import parse_qsl, quote, urlsplit
from xml.etree import ElementTree

import pytest
from botocore.auth import HmacV1QueryAuth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from hypothesis import given
from hypothesis import strategies as st

from holdfast.s3 import sigv2
from holdfast.s3.errors import S3Error
from holdfast.s3.face import AdminAnswer, AdminRequest, Route, parse_query
from holdfast.s3.sigv4 import Payload, Signed
from tests.kit.s3 import ACCESS_KEY, SECRET_KEY, Running, exchange, presign, render, serving

ACCESS = "AKIAIOSFODNN7EXAMPLE"
SECRET = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"
NOW = 1175139000.0
EXAMPLE = f"AWSAccessKeyId={ACCESS}&Signature=NpgCjnDzrM%2BWFzoENXmpNDUsSn8%3D&Expires=1175139620"
RESOURCE = "/johnsmith/photos/puppy.jpg"


def verify(
    method: str = "GET",
    resource: str = RESOURCE,
    query: str = EXAMPLE,
    headers: dict[str, str] | None = None,
    now: float = NOW,
) -> Signed:
    return sigv2.verify(method, resource, parse_query(query), headers or {}, {ACCESS: SECRET}, now)


def refusal(**changes: Any) -> S3Error:
    with pytest.raises(S3Error) as caught:
        verify(**changes)
    return caught.value


def presign_v2(method: str, url: str, headers: dict[str, str] | None = None, expires: int = 60) -> str:
    """A URL presigned by botocore."""
    request = AWSRequest(method, url, headers or {})
    HmacV1QueryAuth(Credentials(ACCESS_KEY, SECRET_KEY), expires=expires).add_auth(request)
    return str(request.url)


def test_the_published_example_holds_until_it_expires() -> None:
    signed = verify()
    assert (signed.access_key, signed.payload) == (ACCESS, Payload.UNSIGNED)
    verify(now=1175139620.0)
    late = refusal(now=1175139620.5)
    assert (late.code.wire, late.message) == ("AccessDenied", "Request has expired")


@pytest.mark.parametrize(
    ("method", "kind", "date", "resource", "signature"),
    [
        ("GET", "", "36:42", "photos/puppy.jpg", "bWq2s1WEIj+Ydj0vQ697zp+IXMU="),
        ("PUT", "image/jpeg", "", "photos/puppy.jpg", "MyyxeRY7whkBe+bq8fHCL/2kKUg="),
        ("GET", "", "42:41", "", "htDYFYduRNen8P9ZfE/s9SuKy0U="),
        ("GET", "", "44:46", "?acl", "c2WLPFtWHVgbEmeEG93a4cG37dM="),
    ],
)
def test_published_texts_have_their_published_signatures(
    method: str, kind: str, date: str, resource: str, signature: str
) -> None:
    when = f"Tue, 27 Mar 2007 {f'19:{date}' if date else '21:15:45'} +0000"
    path, _, query = f"/johnsmith/{resource}".partition("?")
    headers = {"content-type": kind} if kind else {}
    to_sign = sigv2.string_to_sign(method, path, parse_query(query), headers, when)
    assert to_sign == f"{method}\n\n{kind}\n{when}\n/johnsmith/{resource}"
    assert sigv2.signature(SECRET, to_sign) == signature


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"method": "PUT"}, "SignatureDoesNotMatch"),
        ({"method": "HEAD"}, "SignatureDoesNotMatch"),
        ({"method": "POST"}, "InvalidRequest"),
        ({"resource": "/johnsmith/photos/kitten.jpg"}, "SignatureDoesNotMatch"),
        ({"resource": "/johnsmith/photos/puppy%2Ejpg"}, "SignatureDoesNotMatch"),
        ({"resource": "/smithjohn/photos/puppy.jpg"}, "SignatureDoesNotMatch"),
        ({"headers": {"content-type": "text/html"}}, "SignatureDoesNotMatch"),
        ({"headers": {"content-md5": "AAAA"}}, "SignatureDoesNotMatch"),
        ({"headers": {"x-amz-acl": "private"}}, "SignatureDoesNotMatch"),
        ({"headers": {"x-amz-copy-source": "a/b"}}, "SignatureDoesNotMatch"),
        ({"headers": {"x-holdfast-scheme": "raid0"}}, "AccessDenied"),
        ({"headers": {"x-amz-security-token": "t"}}, "InvalidToken"),
        ({"headers": {"authorization": "AWS4-HMAC-SHA256 x"}}, "InvalidArgument"),
        ({"query": EXAMPLE + "&acl"}, "SignatureDoesNotMatch"),
        ({"query": EXAMPLE + "&uploads"}, "SignatureDoesNotMatch"),
        ({"query": EXAMPLE + "&versionId=v"}, "SignatureDoesNotMatch"),
        ({"query": EXAMPLE + "&response-content-type=text%2Fhtml"}, "SignatureDoesNotMatch"),
        ({"query": EXAMPLE + "&attributes"}, "AccessDenied"),
        ({"query": EXAMPLE + "&encryption"}, "AccessDenied"),
        ({"query": EXAMPLE + "&x-amz-security-token=t"}, "InvalidToken"),
        ({"query": EXAMPLE + "&X-Amz-Algorithm=AWS4-HMAC-SHA256"}, "InvalidArgument"),
        ({"query": EXAMPLE + "&Expires=1175139620"}, "AccessDenied"),
        ({"query": EXAMPLE + "&Signature=x"}, "AccessDenied"),
        ({"query": EXAMPLE.replace("Expires=1175139620", "Expires=1175139621")}, "SignatureDoesNotMatch"),
        ({"query": EXAMPLE.replace("Expires=1175139620", "Expires=1175139620a")}, "AccessDenied"),
        ({"query": EXAMPLE.replace("Expires=1175139620", "Expires=" + "9" * 30)}, "AccessDenied"),
        ({"query": EXAMPLE.replace("Expires=1175139620", "Expires=-1")}, "AccessDenied"),
        ({"query": EXAMPLE.replace("&Expires=1175139620", "")}, "AccessDenied"),
        ({"query": EXAMPLE.replace(ACCESS, "SOMEBODYELSE")}, "InvalidAccessKeyId"),
        ({"query": EXAMPLE.replace("Npg", "npg")}, "SignatureDoesNotMatch"),
        ({"query": EXAMPLE.replace("Npg", "%C3%BC")}, "SignatureDoesNotMatch"),
        ({"query": f"AWSAccessKeyId={ACCESS}"}, "AccessDenied"),
    ],
)
def test_what_differs_is_refused(changes: dict[str, Any], code: str) -> None:
    error = refusal(**changes)
    assert error.code.wire == code
    assert SECRET not in repr((error, error.facts, error.message))


_NAMES = st.sampled_from(["uploadId", "partNumber", "versionId", "acl", "prefix", "response-content-type"])


@given(
    st.sampled_from(sorted(sigv2.METHODS)),
    st.dictionaries(_NAMES, st.text("ab+ %/=&ü", min_size=1, max_size=6), max_size=3),
    st.dictionaries(
        st.sampled_from(["x-amz-acl", "content-type", "x-amz-meta-b"]), st.text("abc", min_size=1)
    ),
)
def test_what_botocore_signs_holds(method: str, query: dict[str, str], headers: dict[str, str]) -> None:
    parameters = "&".join(f"{name}={quote(value)}" for name, value in query.items())
    url = presign_v2(method, f"http://h/bucket/k%C3%BC%2B~%28?{parameters}", headers)
    parts = urlsplit(url)
    pairs = parse_qsl(parts.query, keep_blank_values=True)
    signed = sigv2.verify(method, parts.path, pairs, headers, {ACCESS_KEY: SECRET_KEY}, 0.0)
    assert signed.access_key == ACCESS_KEY


def fetch(url: str, method: str = "GET", data: bytes | None = None, **headers: str) -> tuple[int, bytes]:
    # Not urllib, which adds a Content-Type of its own, and that is signed.
    parts = urlsplit(url)
    connection = HTTPConnection(parts.netloc, timeout=60)
    try:
        connection.request(method, f"{parts.path}?{parts.query}", data, headers)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def code(answer: tuple[int, bytes]) -> tuple[int, str | None]:
    return answer[0], ElementTree.fromstring(answer[1]).findtext("Code")


async def test_what_boto3_presigns_by_default_works() -> None:
    def story(running: Running) -> None:
        s3 = running.client()
        s3.create_bucket(Bucket="bucket")
        key = "a b+ü/~(x)%2e//.."
        where = {"Bucket": "bucket", "Key": key}
        put = s3.generate_presigned_url(
            "put_object", Params={**where, "ContentType": "text/plain", "Metadata": {"a": "b"}}
        )
        assert "AWSAccessKeyId=" in put
        assert code(fetch(put, "PUT", b"data")) == (403, "SignatureDoesNotMatch")
        headers = {"Content-Type": "text/plain", "x-amz-meta-a": "b"}
        assert fetch(put, "PUT", b"data", **headers)[0] == 200
        assert code(fetch(put, "GET")) == (403, "SignatureDoesNotMatch")
        get = s3.generate_presigned_url("get_object", Params={**where, "ResponseCacheControl": "no-store"})
        assert fetch(get) == (200, b"data")
        assert code(fetch(get.replace("no-store", "public"))) == (403, "SignatureDoesNotMatch")
        params = {**where, "ResponseContentDisposition": 'attachment; filename="ü b+c.txt"'}
        assert fetch(s3.generate_presigned_url("get_object", Params=params)) == (200, b"data")
        head = s3.head_object(**where)
        assert head["Metadata"] == {"a": "b"}
        assert fetch(s3.generate_presigned_url("head_object", Params=where), "HEAD")[0] == 200
        listed = fetch(s3.generate_presigned_url("list_objects_v2", Params={"Bucket": "bucket"}))
        assert listed[0] == 200
        assert code(fetch(s3.generate_presigned_url("get_object", Params=where, ExpiresIn=-1))) == (
            403,
            "AccessDenied",
        )
        assert fetch(s3.generate_presigned_url("list_buckets"))[0] == 200
        upload = s3.create_multipart_upload(**where)["UploadId"]
        params = {**where, "UploadId": upload, "PartNumber": 1}
        url = s3.generate_presigned_url("upload_part", Params=params)
        assert fetch(url, "PUT", b"part")[0] == 200
        assert code(fetch(url.replace("partNumber=1", "partNumber=2"), "PUT", b"x")) == (
            403,
            "SignatureDoesNotMatch",
        )
        (part,) = s3.list_parts(**where, UploadId=upload)["Parts"]
        s3.complete_multipart_upload(
            **where, UploadId=upload, MultipartUpload={"Parts": [{"PartNumber": 1, "ETag": part["ETag"]}]}
        )
        assert fetch(get) == (200, b"part")
        assert fetch(s3.generate_presigned_url("delete_object", Params=where), "DELETE")[0] == 204
        assert code(fetch(get)) == (404, "NoSuchKey")

    async with serving() as running:
        await asyncio.to_thread(story, running)


async def test_the_bucket_in_the_host_is_part_of_what_was_signed() -> None:
    async with serving(base_domains=("s3.example",)) as running:
        for name in ("bucket", "other"):
            await running.objects.create_bucket(name, None)
        target = presign_v2("GET", "http://s3.example/bucket/k").partition("s3.example")[2]
        asked = target.removeprefix("/bucket")
        mine = await exchange(running.port, render("GET", asked, {"Host": "bucket.s3.example"}))
        assert mine.code == "NoSuchKey"
        theirs = await exchange(running.port, render("GET", asked, {"Host": "other.s3.example"}))
        assert theirs.code == "SignatureDoesNotMatch"


async def test_internal_paths_and_headers_want_version_4() -> None:
    async def answer(request: AdminRequest) -> AdminAnswer:
        return AdminAnswer(200, b"{}")

    async with serving(routes={"/-/status": Route(answer, signed=True)}) as running:
        url = presign_v2("GET", f"http://127.0.0.1:{running.port}/-/status").partition(str(running.port))[2]
        refused = await exchange(running.port, render("GET", url, {"Host": "h"}))
        assert (refused.status, refused.code) == (400, "InvalidRequest")
        url = presign("GET", "/-/status", running.port)
        assert (
            await exchange(running.port, render("GET", url, {"Host": f"127.0.0.1:{running.port}"}))
        ).status == 200
        headers = {"Host": "h", "Date": "Tue, 27 Mar 2007 19:36:42 +0000", "Authorization": "AWS a:b"}
        refused = await exchange(running.port, render("GET", "/bucket/k", headers))
        assert (refused.status, refused.code) == (400, "InvalidRequest")
