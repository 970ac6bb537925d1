"""Signatures: AWS's published examples hold, and nothing that differs from them does.

Examples: Amazon S3 API Reference, "Signature Calculations for the Authorization Header", "Authenticating
Requests: Using Query Parameters".
"""

import pytest

from holdfast.s3.errors import S3Error
from holdfast.s3.face import parse_query
from holdfast.s3.sigv4 import Payload, Signed, Verifier

ACCESS = "AKIAIOSFODNN7EXAMPLE"
SECRET = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"
NOW = 1369353600.0  # 2013-05-24T00:00:00Z
EMPTY = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
HOST = "examplebucket.s3.amazonaws.com"
CREDENTIAL = f"{ACCESS}/20130524/us-east-1/s3/aws4_request"


def authorization(names: str, signature: str, credential: str = CREDENTIAL) -> str:
    return f"AWS4-HMAC-SHA256 Credential={credential},SignedHeaders={names},Signature={signature}"


def example(name: str) -> tuple[str, str, str, dict[str, str]]:
    """Method, decoded path, query and headers of a published example."""
    base = {"host": HOST, "x-amz-content-sha256": EMPTY, "x-amz-date": "20130524T000000Z"}
    plain = "host;x-amz-content-sha256;x-amz-date"
    match name:
        case "get":
            names = "host;range;x-amz-content-sha256;x-amz-date"
            signature = "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41"
            headers = {**base, "range": "bytes=0-9", "authorization": authorization(names, signature)}
            return "GET", "/test.txt", "", headers
        case "put":
            names = "date;host;x-amz-content-sha256;x-amz-date;x-amz-storage-class"
            signature = "98ad721746da40c64f1a55b78f14c238d841ea1380cd77a1b5971af0ece108bd"
            headers = {
                **base,
                "date": "Fri, 24 May 2013 00:00:00 GMT",
                "x-amz-content-sha256": "44ce7dd67c959e0d3524ffac1771dfbba87d2b6b4b4e99e42034a8b803f8b072",
                "x-amz-storage-class": "REDUCED_REDUNDANCY",
                "authorization": authorization(names, signature),
            }
            return "PUT", "/test$file.text", "", headers
        case "lifecycle":
            signature = "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543"
            return "GET", "/", "lifecycle", {**base, "authorization": authorization(plain, signature)}
        case _:
            signature = "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7"
            headers = {**base, "authorization": authorization(plain, signature)}
            return "GET", "/", "max-keys=2&prefix=J", headers


def verify(
    method: str, path: str, query: str, headers: dict[str, str], now: float = NOW, secret: str = SECRET
) -> Signed:
    return Verifier({ACCESS: secret}, "us-east-1").verify(method, path, parse_query(query), headers, now)


def refusal(*arguments: object, **named: object) -> S3Error:
    with pytest.raises(S3Error) as caught:
        verify(*arguments, **named)  # type: ignore[arg-type]
    return caught.value


@pytest.mark.parametrize("name", ["get", "put", "lifecycle", "list"])
def test_published_examples_hold(name: str) -> None:
    signed = verify(*example(name))
    assert signed.access_key == ACCESS
    assert signed.payload is Payload.SIGNED


@pytest.mark.parametrize("name", ["get", "put", "lifecycle", "list"])
def test_nothing_else_holds(name: str) -> None:
    method, path, query, headers = example(name)
    wrong = "SignatureDoesNotMatch"
    assert refusal("POST", path, query, headers).code.wire == wrong
    assert refusal(method, path + "x", query, headers).code.wire == wrong
    assert refusal(method, path, query + "&a=b", headers).code.wire == wrong
    assert refusal(method, path, query, headers, secret="other").code.wire == wrong
    assert refusal(method, path, query, {**headers, "host": "other"}).code.wire == wrong
    swapped = {**headers, "x-amz-content-sha256": "0" * 64}
    assert refusal(method, path, query, swapped).code.wire == wrong


PRESIGNED = (
    "X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=AKIAIOSFODNN7EXAMPLE%2F20130524%2Fus-east-1%2Fs3%2F"
    "aws4_request&X-Amz-Date=20130524T000000Z&X-Amz-Expires=86400&X-Amz-SignedHeaders=host"
)
PRESIGNATURE = "&X-Amz-Signature=aeeed9bbccd4d02ee5c0109b86d86835f995330da4c265957d157751f604d404"


def test_the_published_presigned_example_holds_until_it_expires() -> None:
    presigned = ("GET", "/test.txt", PRESIGNED + PRESIGNATURE, {"host": HOST})
    assert verify(*presigned).payload is Payload.UNSIGNED
    assert verify(*presigned, now=NOW + 86400).payload is Payload.UNSIGNED
    late = refusal(*presigned, now=NOW + 86401)
    assert (late.code.wire, late.message) == ("AccessDenied", "Request has expired")
    early = refusal(*presigned, now=NOW - 901)
    assert (early.code.wire, early.message) == ("AccessDenied", "Request is not yet valid")


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (("X-Amz-Expires=86400", "X-Amz-Expires=604801"), "AuthorizationQueryParametersError"),
        (("X-Amz-Expires=86400", "X-Amz-Expires=-1"), "AuthorizationQueryParametersError"),
        (("X-Amz-Expires=86400", "X-Amz-Expires=x"), "AuthorizationQueryParametersError"),
        (("X-Amz-Expires=86400", "X-Amz-Expires=0"), "AuthorizationQueryParametersError"),
        (("&X-Amz-Date=20130524T000000Z", ""), "AuthorizationQueryParametersError"),
        (("20130524T000000Z", "20130524"), "AuthorizationQueryParametersError"),
        (("20130524T000000Z", "20130525T000000Z"), "AuthorizationQueryParametersError"),
        (("us-east-1", "eu-west-1"), "AuthorizationQueryParametersError"),
        (("%2Fs3%2F", "%2Fec2%2F"), "AuthorizationQueryParametersError"),
        (("SignedHeaders=host", "SignedHeaders=range"), "AccessDenied"),
        (("AKIAIOSFODNN7EXAMPLE", "SOMEBODYELSE"), "InvalidAccessKeyId"),
        (("X-Amz-Expires=86400", "X-Amz-Expires=86399"), "SignatureDoesNotMatch"),
        (("AWS4-HMAC-SHA256", "AWS4-ECDSA-P256-SHA256"), "NotImplemented"),
    ],
)
def test_wrong_presigned_requests(change: tuple[str, str], code: str) -> None:
    query = (PRESIGNED + PRESIGNATURE).replace(*change)
    assert refusal("GET", "/test.txt", query, {"host": HOST}).code.wire == code


def test_a_signature_that_is_no_text_of_digits_is_refused() -> None:
    query = PRESIGNED + "&X-Amz-Signature=%C3%BC"
    assert refusal("GET", "/test.txt", query, {"host": HOST}).code.wire == "SignatureDoesNotMatch"


def test_nobody_and_both() -> None:
    assert refusal("GET", "/test.txt", "", {"host": HOST}).code.wire == "AccessDenied"
    method, path, _, headers = example("get")
    both = refusal(method, path, PRESIGNED + PRESIGNATURE, headers)
    assert both.code.wire == "InvalidArgument"


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"authorization": "AWS AKIAIOSFODNN7EXAMPLE:frJIUN8DYpKDtOLCwo//yllqDzg="}, "InvalidRequest"),
        ({"authorization": "AWS4-ECDSA-P256-SHA256 Credential=x"}, "NotImplemented"),
        ({"authorization": "Bearer x"}, "InvalidArgument"),
        ({"authorization": "AWS4-HMAC-SHA256 nonsense"}, "AuthorizationHeaderMalformed"),
        ({"authorization": "AWS4-HMAC-SHA256 Signature=" + "0" * 64}, "AuthorizationHeaderMalformed"),
        ({"x-amz-date": "20130523T000000Z"}, "RequestTimeTooSkewed"),
        ({"x-amz-date": "yesterday"}, "AccessDenied"),
        ({"x-amz-content-sha256": "UNSIGNED"}, "InvalidArgument"),
        ({"x-amz-content-sha256": "STREAMING-AWS4-ECDSA-P256-SHA256-PAYLOAD"}, "NotImplemented"),
        ({"x-amz-acl": "public-read"}, "AccessDenied"),
    ],
)
def test_wrong_signed_requests(changes: dict[str, str], code: str) -> None:
    method, path, query, headers = example("get")
    assert refusal(method, path, query, {**headers, **changes}).code.wire == code


def test_a_wrong_region_is_told_the_right_one() -> None:
    method, path, query, headers = example("get")
    wrong = CREDENTIAL.replace("us-east-1", "mars")
    headers["authorization"] = authorization("host", "0" * 64, wrong)
    error = refusal(method, path, query, headers)
    assert error.code.wire == "AuthorizationHeaderMalformed"
    assert error.facts["Region"] == "us-east-1"
    assert error.message.endswith("the region 'mars' is wrong; expecting 'us-east-1'")


def test_an_unsigned_header_of_amazon_is_named() -> None:
    method, path, query, headers = example("get")
    error = refusal(method, path, query, {**headers, "x-amz-tagging": "a=b"})
    assert error.facts["HeadersNotSigned"] == "x-amz-tagging"


def test_clocks_may_differ_by_a_quarter_of_an_hour() -> None:
    for offset in (-900, 900):
        verify(*example("get"), now=NOW + offset)
    for offset in (-901, 901):
        assert refusal(*example("get"), now=NOW + offset).code.wire == "RequestTimeTooSkewed"


def test_secrets_are_in_no_error() -> None:
    method, path, query, headers = example("get")
    error = refusal(method, path + "x", query, headers)
    assert SECRET not in repr((error, error.facts, error.message))
