"""The pure parts of the S3 face: heads, names, XML, the table of operations, conditions, dates, errors."""

import botocore.session
import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.base.errors import Bug, Busy, Damaged, Fenced, Unavailable
from holdfast.objects import errors as o
from holdfast.s3.dates import amz_date, http_date, iso_date, parse_amz_date, parse_http_date
from holdfast.s3.errors import S3Error, to_s3_error
from holdfast.s3.handlers import HANDLERS
from holdfast.s3.handlers.tokens import read_token, write_token
from holdfast.s3.names import check_target, decode_path, find_target, is_bucket_name, parse_copy_source
from holdfast.s3.operations import OPERATIONS, Scope, route
from holdfast.s3.request import parse_etags, parse_range
from holdfast.s3.xml import MalformedXml, escape, parse, url_encode
from holdfast.stores.port import StoreFull
from holdfast.wire.http import Head, HeadError, parse_head


def head(*lines: str) -> Head | HeadError:
    return parse_head("".join(f"{line}\r\n" for line in lines).encode())


def test_a_head_is_read() -> None:
    got = head("PUT /b/k%20?a=b HTTP/1.1", "Host: h", "X-A:  1 ", "x-a:2", "Content-Length: 3")
    assert isinstance(got, Head)
    assert (got.method, got.path, got.query, got.length) == ("PUT", "/b/k%20", "a=b", 3)
    assert got.headers["x-a"] == "1,2"
    assert got.keep_alive
    absolute = head("GET http://h/b?c HTTP/1.1", "Host: h")
    assert isinstance(absolute, Head)
    assert (absolute.path, absolute.query) == ("/b", "c")
    unicode = head("GET / HTTP/1.1", "Host: h", "x-amz-meta-a: ü")
    assert isinstance(unicode, Head)
    assert unicode.headers["x-amz-meta-a"] == "ü"


@pytest.mark.parametrize(
    "lines",
    [
        ("GET /", "Host: h"),
        ("GET  / HTTP/1.1", "Host: h"),
        ("get / HTTP/1.1", "Host: h"),
        ("GET / HTTP/2.0", "Host: h"),
        ("GET /ü HTTP/1.1", "Host: h"),
        ("GET /#a HTTP/1.1", "Host: h"),
        ("GET http://other/ HTTP/1.1", "Host: h"),
        ("OPTIONS * HTTP/1.1", "Host: h"),
        ("GET / HTTP/1.1",),
        ("GET / HTTP/1.1", "Host: h", "Host: h"),
        ("GET / HTTP/1.1", "Host: h", "A : b"),
        ("GET / HTTP/1.1", "Host: h", "A: b", " folded"),
        ("GET / HTTP/1.1", "Host: h", "no colon"),
        ("GET / HTTP/1.1", "Host: h", ": no name"),
        ("GET / HTTP/1.1", "Host: h", "A: b\x00"),
        ("GET / HTTP/1.1", "Host: h", "A: b\rc"),
        ("GET / HTTP/1.1", "Host: h\nA: b"),
        ("PUT / HTTP/1.1", "Host: h", "Content-Length: 3", "Content-Length: 3"),
        ("PUT / HTTP/1.1", "Host: h", "Content-Length: 3", "Content-Length: 4"),
        ("PUT / HTTP/1.1", "Host: h", "Content-Length: 3, 3"),
        ("PUT / HTTP/1.1", "Host: h", "Content-Length: +3"),
        ("PUT / HTTP/1.1", "Host: h", "Content-Length: 0x3"),
        ("PUT / HTTP/1.1", "Host: h", "Content-Length: -3"),
        ("PUT / HTTP/1.1", "Host: h", "Content-Length: "),
        ("PUT / HTTP/1.1", "Host: h", "Content-Length: " + "9" * 30),
        ("PUT / HTTP/1.1", "Host: h", "Content-Length: 3", "Transfer-Encoding: chunked"),
        ("PUT / HTTP/1.1", "Host: h", "Transfer-Encoding: chunked", "Transfer-Encoding: chunked"),
        ("PUT / HTTP/1.1", "Host: h", "Transfer-Encoding: gzip, chunked"),
        ("PUT / HTTP/1.1", "Host: h", "Transfer-Encoding: identity"),
        ("PUT / HTTP/1.0", "Transfer-Encoding: chunked"),
        ("PUT / HTTP/1.1", "Host: h", "Expect: something"),
    ],
)
def test_a_head_with_two_readings_is_refused(lines: tuple[str, ...]) -> None:
    assert isinstance(head(*lines), HeadError)


@given(st.binary(max_size=300))
def test_noise_is_no_head(noise: bytes) -> None:
    assert isinstance(parse_head(noise), Head | HeadError)


@pytest.mark.parametrize("name", ["abc", "a-b", "a.b.c", "1bucket", "b" * 63, "with-dash.and.dot"])
def test_names_of_buckets(name: str) -> None:
    assert is_bucket_name(name)


@pytest.mark.parametrize(
    "name",
    [
        *("", "b" * 64, "ab", "Abc", "a_b", "-ab", "ab-", ".ab", "ab.", "a..b", "192.168.5.4", "xn--abc"),
        *("abc-s3alias", "ü-bucket", "a/b", "abc--x-s3"),
    ],
)
def test_names_that_are_not_buckets(name: str) -> None:
    assert not is_bucket_name(name)


@pytest.mark.parametrize(
    ("path", "key"),
    [
        ("/bucket/a/../b", "a/../b"),
        ("/bucket//a//b/", "/a//b/"),
        ("/bucket/%2e%2e/%2E", "../."),
        ("/bucket/a%2Fb", "a/b"),
        ("/bucket/a+b%2Bc%20d", "a+b+c d"),
        ("/bucket/%25%32%35", "%25"),
        ("/bucket/%C3%BC%E2%82%AC", "ü€"),
        ("/bucket/a%00b", "a\0b"),
        ("/bucket/.", "."),
    ],
)
def test_keys_are_decoded_once_and_left_alone(path: str, key: str) -> None:
    assert find_target(decode_path(path), "h", ()) == ("bucket", key)


@pytest.mark.parametrize("path", ["/b/%FF", "/b/%C3", "/b/%", "/b/%2", "/b/%zz", "/b/%ED%A0%80"])
def test_paths_that_are_not_utf8_are_refused(path: str) -> None:
    with pytest.raises(S3Error) as caught:
        decode_path(path)
    assert caught.value.code.wire == "InvalidURI"


def test_a_key_has_at_most_1024_bytes() -> None:
    check_target(find_target("/bucket/" + "ü" * 512, "h", ()), creating=False)
    for key in ["k" * 1025, "ü" * 513]:
        with pytest.raises(S3Error) as caught:
            check_target(find_target(f"/bucket/{key}", "h", ()), creating=False)
        assert caught.value.code.wire == "KeyTooLongError"


def test_virtual_hosts() -> None:
    domains = ("s3.example.com",)
    assert find_target("/a/b", "bucket.s3.example.com:9000", domains) == ("bucket", "a/b")
    assert find_target("/a/b", "s3.example.com", domains) == ("a", "b")
    assert find_target("/a/b", "127.0.0.1", domains) == ("a", "b")


@pytest.mark.parametrize(
    ("source", "parts"),
    [
        ("bucket/key", ("bucket", "key", None)),
        ("/bucket/a%20b+c/d%3F", ("bucket", "a b+c/d?", None)),
        ("bucket/key?versionId=null", ("bucket", "key", "null")),
    ],
)
def test_copy_sources(source: str, parts: tuple[str, str, str | None]) -> None:
    assert parse_copy_source(source) == parts


@pytest.mark.parametrize(
    "source", ["", "/", "bucket", "bucket/", "b/k?x=y", "bucket/%FF", "bucket/k?versionId="]
)
def test_wrong_copy_sources(source: str) -> None:
    with pytest.raises(S3Error) as caught:
        parse_copy_source(source)
    assert caught.value.code.wire == "InvalidArgument"


def test_xml_is_read() -> None:
    root = parse(b'<?xml version="1.0"?><a xmlns="http://x/"><b>1 &amp; 2</b><b/><c> x </c></a>')
    assert root.name == "a"
    assert [b.text for b in root.all("b")] == ["1 & 2", ""]
    assert root.value("c") == " x "
    assert root.value("d") is None


@pytest.mark.parametrize(
    "document",
    [
        b"",
        b"text",
        b"<a>",
        b"<a></b>",
        b"<a/><b/>",
        b"<a>&undefined;</a>",
        b"<a>\x00</a>",
        b"\xff\xfe<a/>",
        b'<!DOCTYPE a [<!ENTITY x "lol"><!ENTITY y "&x;&x;&x;&x;&x;&x;&x;&x;">]><a>&y;</a>',
        b'<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><a>&x;</a>',
        b'<!DOCTYPE a SYSTEM "http://127.0.0.1/x.dtd"><a/>',
        b"<a>" * 100 + b"</a>" * 100,
        b"<a>" + b"x" * (2 << 20) + b"</a>",
        b"<a>" + b"x" * 20_000 + b"</a>",
    ],
)
def test_xml_that_is_refused(document: bytes) -> None:
    with pytest.raises(MalformedXml):
        parse(document)


@given(st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="\ufffe\uffff")))
def test_what_is_escaped_reads_back(text: str) -> None:
    assert parse(f"<a><b>{escape(text)}</b></a>".encode()).value("b") == (text if len(text) else "")


def test_what_xml_cannot_carry_is_a_reference() -> None:
    assert escape("a\x01\r\"<>&'") == "a&#x1;&#13;&quot;&lt;&gt;&amp;'"
    assert url_encode("a/b c+ü\x01") == "a/b%20c%2B%C3%BC%01"


def test_every_operation_is_found_by_its_own_request() -> None:
    for operation in OPERATIONS:
        query = dict(([*name.split("="), ""])[:2] for name in operation.query)
        headers = {operation.header: "x"} if operation.header else {}
        assert route(operation.method, operation.scope, query, headers) == operation
    assert len({operation.name for operation in OPERATIONS}) == len(OPERATIONS)
    assert HANDLERS.keys() == {operation.name for operation in OPERATIONS if operation.served}


_OLD_NAMES = {
    "GetBucketLifecycle": "GetBucketLifecycleConfiguration",
    "PutBucketLifecycle": "PutBucketLifecycleConfiguration",
    "GetBucketNotification": "GetBucketNotificationConfiguration",
    "PutBucketNotification": "PutBucketNotificationConfiguration",
}
_AT_OTHER_ENDPOINTS = {"ListDirectoryBuckets", "WriteGetObjectResponse"}


def test_the_table_holds_every_operation_that_a_client_of_today_can_send() -> None:
    """One that is missing would be taken for its plain sibling: `PUT /b/k?new` for a PUT of the object."""
    model = botocore.session.get_session().get_service_model("s3")
    assert len(model.operation_names) > 100
    for name in model.operation_names:
        operation = model.operation_model(name)
        path, _, text = operation.http["requestUri"].partition("?")
        query = {pair.partition("=")[0]: pair.partition("=")[2] for pair in text.split("&") if pair}
        headers: dict[str, str] = {}
        shape = operation.input_shape
        for member in shape.required_members if shape is not None else ():
            place = shape.members[member].serialization
            if place.get("location") == "querystring":
                query[place["name"]] = "x"
            elif place.get("location") == "header":
                headers[place["name"].lower()] = "x"
        scope = Scope.OBJECT if "{Key+}" in path else Scope.BUCKET if "{Bucket}" in path else Scope.SERVICE
        if name not in _AT_OTHER_ENDPOINTS:
            wanted = _OLD_NAMES.get(name, name)
            assert route(operation.http["method"], scope, query, headers).name == wanted, name


@pytest.mark.parametrize(
    ("method", "scope", "query", "headers", "name"),
    [
        ("GET", Scope.OBJECT, {"x-id": "GetObject"}, {}, "GetObject"),
        ("GET", Scope.OBJECT, {"partNumber": "1"}, {}, "GetObject"),
        ("GET", Scope.OBJECT, {"versionId": "null", "response-content-type": "a/b"}, {}, "GetObject"),
        ("GET", Scope.BUCKET, {"prefix": "x"}, {}, "ListObjects"),
        ("PUT", Scope.OBJECT, {"whatever": ""}, {}, "PutObject"),
        ("PUT", Scope.OBJECT, {"uploadId": "u", "partNumber": "1"}, {}, "UploadPart"),
        ("GET", Scope.BUCKET, {"inventory": "", "id": "a"}, {}, "GetBucketInventoryConfiguration"),
    ],
)
def test_routes(method: str, scope: Scope, query: dict[str, str], headers: dict[str, str], name: str) -> None:
    assert route(method, scope, query, headers).name == name


@pytest.mark.parametrize(
    ("method", "scope", "query", "code"),
    [
        ("POST", Scope.SERVICE, {}, "MethodNotAllowed"),
        ("PATCH", Scope.OBJECT, {}, "MethodNotAllowed"),
        ("POST", Scope.OBJECT, {}, "MethodNotAllowed"),
        ("POST", Scope.OBJECT, {"acl": ""}, "MethodNotAllowed"),
        ("DELETE", Scope.OBJECT, {"acl": ""}, "MethodNotAllowed"),
        ("PUT", Scope.OBJECT, {"acl": "", "tagging": ""}, "MethodNotAllowed"),
        ("PUT", Scope.OBJECT, {"partNumber": "1"}, "InvalidArgument"),
        ("PUT", Scope.OBJECT, {"uploadId": "1"}, "InvalidArgument"),
        ("DELETE", Scope.OBJECT, {"partNumber": "1"}, "InvalidArgument"),
        ("GET", Scope.BUCKET, {"list-type": "3"}, "InvalidArgument"),
        ("PUT", Scope.BUCKET, {"delete": ""}, "MethodNotAllowed"),
    ],
)
def test_requests_that_mean_nothing(method: str, scope: Scope, query: dict[str, str], code: str) -> None:
    with pytest.raises(S3Error) as caught:
        route(method, scope, query, {})
    assert caught.value.code.wire == code


def test_conditions_and_ranges() -> None:
    assert parse_etags('"a", W/"b",c') == ("a", "b", "c")
    assert parse_etags("*") == ("*",)
    assert parse_etags('"a,b"') == ("a,b",)
    assert parse_range("bytes=0-") == (0, None)
    assert parse_range("bytes=-5") == (None, 5)
    assert parse_range("BYTES=1-2") == (1, 2)
    for text in [
        None,
        "",
        "bytes=",
        "bytes=-",
        "bytes=2-1",
        "bytes=1-2,3-4",
        "bytes=a-b",
        "bytes=" + "9" * 40,
    ]:
        assert parse_range(text) is None


def test_dates() -> None:
    assert http_date(784111777) == "Sun, 06 Nov 1994 08:49:37 GMT"
    assert iso_date(1255369830123) == "2009-10-12T17:50:30.123Z"
    assert parse_amz_date(amz_date(1369353600)) == 1369353600
    for text in ["", "20130524T000000", "20130532T000000Z", "20130230T000000Z", "20130524T240000Z", "x" * 16]:
        assert parse_amz_date(text) is None
    for text in [
        "Sun, 06 Nov 1994 08:49:37 GMT",
        "Sunday, 06-Nov-94 08:49:37 GMT",
        "Sun Nov  6 08:49:37 1994",
        "1994-11-06T08:49:37Z",
    ]:
        assert parse_http_date(text) == 784111777000
    assert parse_http_date("soon") is None


@given(st.text(max_size=50))
def test_tokens_continue_where_they_were_given(name: str) -> None:
    assert read_token(write_token(name)) == name


@pytest.mark.parametrize(
    "token", ["", "a", "AAAA", "üü", "a b", write_token("x")[:-4], "A" + write_token("x")]
)
def test_tokens_that_are_not_ours_are_refused(token: str) -> None:
    with pytest.raises(S3Error) as caught:
        read_token(token)
    assert caught.value.code.wire == "InvalidArgument"


@pytest.mark.parametrize(
    ("error", "code", "status"),
    [
        (o.NoSuchKey("x"), "NoSuchKey", 404),
        (o.ConditionalConflict("x"), "ConditionalRequestConflict", 409),
        (o.TooBusy("x"), "SlowDown", 503),
        (Busy("x"), "SlowDown", 503),
        (Unavailable("x"), "ServiceUnavailable", 503),
        (Fenced("x"), "ServiceUnavailable", 503),
        (StoreFull("x"), "InsufficientStorage", 507),
        (Damaged("x"), "InternalError", 500),
        (Bug("secret"), "InternalError", 500),
        (RuntimeError("secret"), "InternalError", 500),
        (o.InvalidPartNumber("x"), "InvalidPartNumber", 416),
        (o.InvalidRange("x", size=5), "InvalidRange", 416),
    ],
)
def test_each_error_has_one_code(error: Exception, code: str, status: int) -> None:
    got = to_s3_error(error, reading=True)
    assert (got.code.wire, got.status) == (code, status)
    assert "secret" not in got.message
    assert (status == 503) == (("Retry-After", "1") in got.headers)
    if isinstance(error, Damaged):
        assert "damaged" in got.message


def test_errors_tell_what_a_client_needs_to_mend_them() -> None:
    small = o.EntityTooSmall("x", part=2, size=9, size_min=10, etag="e")
    assert to_s3_error(small, reading=False).facts == {
        "ProposedSize": "9",
        "MinSizeAllowed": "10",
        "PartNumber": "2",
        "ETag": "e",
    }
    wrong = o.InvalidPart("x", part=3, etag="f")
    assert to_s3_error(wrong, reading=False).facts == {"PartNumber": "3", "ETag": "f"}


def test_what_goes_on_with_a_hint_that_is_not_told_ends_as_a_sentence() -> None:
    told = to_s3_error(Unavailable("Fewer than 4 shards answer:", hint="disk1 is away."), reading=True)
    assert told.message == "Fewer than 4 shards answer."
