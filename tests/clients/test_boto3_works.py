"""boto3, as shipped, with its own checksums and retries: every operation the node says it has."""

import hashlib
import http.client
import io
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest
from boto3.s3.transfer import TransferConfig
from botocore.exceptions import ClientError

from tests.kit.process import NodeProcess

MIB = 1 << 20


@pytest.fixture
def s3(node: NodeProcess) -> Any:
    return node.s3()


@pytest.fixture
def bucket(node: NodeProcess, request: pytest.FixtureRequest) -> Iterator[str]:
    """A bucket of its own, emptied and deleted afterwards."""
    s3 = node.s3()
    name = hashlib.sha256(request.node.name.encode()).hexdigest()[:20]
    s3.create_bucket(Bucket=name)
    yield name
    for page in s3.get_paginator("list_objects_v2").paginate(Bucket=name):
        if found := page.get("Contents"):
            s3.delete_objects(Bucket=name, Delete={"Objects": [{"Key": entry["Key"]} for entry in found]})
    for upload in s3.list_multipart_uploads(Bucket=name).get("Uploads", []):
        s3.abort_multipart_upload(Bucket=name, Key=upload["Key"], UploadId=upload["UploadId"])
    s3.delete_bucket(Bucket=name)


def refused(code: str, call: Any, **arguments: Any) -> None:
    with pytest.raises(ClientError) as caught:
        call(**arguments)
    assert caught.value.response["Error"]["Code"] == code


def test_buckets(s3: Any) -> None:
    s3.create_bucket(Bucket="one-bucket")
    assert "one-bucket" in [entry["Name"] for entry in s3.list_buckets()["Buckets"]]
    assert s3.head_bucket(Bucket="one-bucket")["ResponseMetadata"]["HTTPStatusCode"] == 200
    assert s3.get_bucket_location(Bucket="one-bucket")["LocationConstraint"] is None
    s3.put_object(Bucket="one-bucket", Key="a", Body=b"a")
    refused("BucketNotEmpty", s3.delete_bucket, Bucket="one-bucket")
    s3.delete_object(Bucket="one-bucket", Key="a")
    s3.delete_bucket(Bucket="one-bucket")
    refused("404", s3.head_bucket, Bucket="one-bucket")
    refused("NoSuchBucket", s3.list_objects_v2, Bucket="one-bucket")


@pytest.mark.parametrize("size", [0, 1, 4096, 130_000, 5 * MIB + 1])
def test_an_object_comes_back_as_it_went(s3: Any, bucket: str, size: int) -> None:
    body = hashlib.shake_128(str(size).encode()).digest(size)
    stored = s3.put_object(
        Bucket=bucket,
        Key="dir/ä b+c%2f.txt",
        Body=body,
        ContentType="text/x-test",
        CacheControl="no-cache",
        Metadata={"colour": "blue"},
    )
    got = s3.get_object(Bucket=bucket, Key="dir/ä b+c%2f.txt")
    assert got["Body"].read() == body
    assert got["ETag"] == stored["ETag"] == f'"{hashlib.md5(body).hexdigest()}"'
    assert (got["ContentType"], got["CacheControl"], got["Metadata"]) == (
        "text/x-test",
        "no-cache",
        {"colour": "blue"},
    )
    head = s3.head_object(Bucket=bucket, Key="dir/ä b+c%2f.txt")
    assert head["ContentLength"] == size


@pytest.mark.parametrize("algorithm", ["CRC32", "CRC32C", "CRC64NVME", "SHA1", "SHA256"])
def test_checksums_are_verified_and_returned(s3: Any, bucket: str, algorithm: str) -> None:
    stored = s3.put_object(Bucket=bucket, Key="a", Body=b"hello world", ChecksumAlgorithm=algorithm)
    field = f"Checksum{algorithm}"
    head = s3.head_object(Bucket=bucket, Key="a", ChecksumMode="ENABLED")
    assert head[field] == stored[field]
    assert s3.get_object(Bucket=bucket, Key="a", ChecksumMode="ENABLED")["Body"].read() == b"hello world"
    wrong = stored[field][::-1] if stored[field][::-1] != stored[field] else stored[field].swapcase()
    with pytest.raises(ClientError):
        s3.put_object(Bucket=bucket, Key="b", Body=b"hello world", **{field: wrong})
    refused("404", s3.head_object, Bucket=bucket, Key="b")


def test_ranges(s3: Any, bucket: str) -> None:
    body = bytes(range(256)) * 1000
    s3.put_object(Bucket=bucket, Key="a", Body=body)
    for asked, part in (
        ("bytes=0-0", body[:1]),
        ("bytes=1000-99999", body[1000:100_000]),
        ("bytes=255000-", body[255_000:]),
        ("bytes=-10", body[-10:]),
    ):
        got = s3.get_object(Bucket=bucket, Key="a", Range=asked)
        assert got["Body"].read() == part
        assert got["ResponseMetadata"]["HTTPStatusCode"] == 206
    refused("InvalidRange", s3.get_object, Bucket=bucket, Key="a", Range="bytes=256000-")


def test_conditions_on_reads_and_writes(s3: Any, bucket: str) -> None:
    first = s3.put_object(Bucket=bucket, Key="a", Body=b"1", IfNoneMatch="*")["ETag"]
    refused("PreconditionFailed", s3.put_object, Bucket=bucket, Key="a", Body=b"2", IfNoneMatch="*")
    second = s3.put_object(Bucket=bucket, Key="a", Body=b"2", IfMatch=first)["ETag"]
    refused("PreconditionFailed", s3.put_object, Bucket=bucket, Key="a", Body=b"3", IfMatch=first)
    assert s3.get_object(Bucket=bucket, Key="a", IfMatch=second)["Body"].read() == b"2"
    refused("304", s3.get_object, Bucket=bucket, Key="a", IfNoneMatch=second)
    refused("PreconditionFailed", s3.get_object, Bucket=bucket, Key="a", IfMatch=first)


def test_listings_in_pages_with_prefixes_and_folders(s3: Any, bucket: str) -> None:
    keys = [f"{folder}/{number:02}" for folder in ("a", "b", "c") for number in range(7)] + ["top"]
    for key in keys:
        s3.put_object(Bucket=bucket, Key=key, Body=key.encode())
    for operation in ("list_objects", "list_objects_v2"):
        pages = s3.get_paginator(operation).paginate(Bucket=bucket, PaginationConfig={"PageSize": 4})
        assert [entry["Key"] for page in pages for entry in page["Contents"]] == sorted(keys)
        top = getattr(s3, operation)(Bucket=bucket, Delimiter="/")
        assert [entry["Prefix"] for entry in top["CommonPrefixes"]] == ["a/", "b/", "c/"]
        assert [entry["Key"] for entry in top["Contents"]] == ["top"]
        only = getattr(s3, operation)(Bucket=bucket, Prefix="b/")
        assert len(only["Contents"]) == 7


def test_deleting_one_and_many(s3: Any, bucket: str) -> None:
    for number in range(10):
        s3.put_object(Bucket=bucket, Key=str(number), Body=b"x")
    s3.delete_object(Bucket=bucket, Key="0")
    s3.delete_object(Bucket=bucket, Key="never was")
    done = s3.delete_objects(
        Bucket=bucket, Delete={"Objects": [{"Key": str(number)} for number in range(1, 9)] + [{"Key": "no"}]}
    )
    assert len(done["Deleted"]) == 9
    assert [entry["Key"] for entry in s3.list_objects_v2(Bucket=bucket)["Contents"]] == ["9"]


def test_copies(s3: Any, bucket: str) -> None:
    s3.put_object(Bucket=bucket, Key="from", Body=b"copied" * 100_000, Metadata={"a": "1"})
    s3.copy_object(Bucket=bucket, Key="to", CopySource={"Bucket": bucket, "Key": "from"})
    s3.copy_object(
        Bucket=bucket,
        Key="from",
        CopySource={"Bucket": bucket, "Key": "from"},
        Metadata={"b": "2"},
        MetadataDirective="REPLACE",
    )
    s3.delete_object(Bucket=bucket, Key="from")
    got = s3.get_object(Bucket=bucket, Key="to")
    assert got["Body"].read() == b"copied" * 100_000
    assert got["Metadata"] == {"a": "1"}


def test_a_large_file_goes_up_and_down_in_parts(s3: Any, bucket: str) -> None:
    body = hashlib.shake_128(b"large").digest(23 * MIB + 17)
    config = TransferConfig(multipart_threshold=6 * MIB, multipart_chunksize=6 * MIB)
    s3.upload_fileobj(io.BytesIO(body), bucket, "large", Config=config)
    assert s3.head_object(Bucket=bucket, Key="large")["ETag"].endswith('-4"')
    back = io.BytesIO()
    s3.download_fileobj(bucket, "large", back, Config=config)
    assert back.getvalue() == body
    part = s3.get_object(Bucket=bucket, Key="large", PartNumber=4)
    assert part["Body"].read() == body[18 * MIB :]
    assert part["PartsCount"] == 4


def test_uploads_are_listed_copied_into_and_aborted(s3: Any, bucket: str) -> None:
    s3.put_object(Bucket=bucket, Key="source", Body=bytes(6 * MIB))
    upload = s3.create_multipart_upload(Bucket=bucket, Key="m")["UploadId"]
    s3.upload_part_copy(
        Bucket=bucket,
        Key="m",
        UploadId=upload,
        PartNumber=1,
        CopySource={"Bucket": bucket, "Key": "source"},
        CopySourceRange=f"bytes=0-{5 * MIB - 1}",
    )
    s3.upload_part(Bucket=bucket, Key="m", UploadId=upload, PartNumber=2, Body=b"end")
    parts = s3.list_parts(Bucket=bucket, Key="m", UploadId=upload)["Parts"]
    assert [part["Size"] for part in parts] == [5 * MIB, 3]
    assert [entry["UploadId"] for entry in s3.list_multipart_uploads(Bucket=bucket)["Uploads"]] == [upload]
    s3.complete_multipart_upload(
        Bucket=bucket,
        Key="m",
        UploadId=upload,
        MultipartUpload={
            "Parts": [{"PartNumber": part["PartNumber"], "ETag": part["ETag"]} for part in parts]
        },
    )
    assert s3.get_object(Bucket=bucket, Key="m")["Body"].read() == bytes(5 * MIB) + b"end"
    other = s3.create_multipart_upload(Bucket=bucket, Key="n")["UploadId"]
    s3.abort_multipart_upload(Bucket=bucket, Key="n", UploadId=other)
    refused("NoSuchUpload", s3.list_parts, Bucket=bucket, Key="n", UploadId=other)


def fetch(method: str, address: str, body: bytes | None = None) -> tuple[int, bytes]:
    """As a browser or curl would; without headers that nobody asked for."""
    parts = urlsplit(address)
    connection = http.client.HTTPConnection(parts.netloc, timeout=60)
    try:
        connection.request(method, f"{parts.path}?{parts.query}", body=body)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


@pytest.mark.parametrize("version", ["s3v4", "s3"])
def test_presigned_addresses_work_without_credentials(node: NodeProcess, bucket: str, version: str) -> None:
    s3 = node.s3(signature_version=version)
    where = {"Bucket": bucket, "Key": "pre signed"}
    put = s3.generate_presigned_url("put_object", Params=where, ExpiresIn=60)
    assert fetch("PUT", put, b"by anybody") == (200, b"")
    get = s3.generate_presigned_url("get_object", Params=where, ExpiresIn=60)
    assert fetch("GET", get) == (200, b"by anybody")
    assert fetch("GET", get.replace("pre%20signed", "another"))[0] == 403


def test_a_bucket_has_the_scheme_it_was_given(s3: Any) -> None:
    s3.meta.events.register(
        "before-sign.s3.CreateBucket",
        lambda request, **_: request.headers.__setitem__("x-holdfast-scheme", "mirror-3"),
    )
    s3.create_bucket(Bucket="mirrored")
    stored = s3.put_object(Bucket="mirrored", Key="a", Body=bytes(50_000))
    receipt = stored["ResponseMetadata"]["HTTPHeaders"]["x-holdfast-receipt"]
    assert receipt.startswith("scheme=mirror-3; durable=")  # a busy disk may make one of them late


def test_what_is_not_there_yet_says_so(s3: Any, bucket: str) -> None:
    refused(
        "NotImplemented",
        s3.put_bucket_versioning,
        Bucket=bucket,
        VersioningConfiguration={"Status": "Enabled"},
    )
