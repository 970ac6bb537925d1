"""boto3, unmodified, against the S3 face: what it writes it reads back, and errors have S3's codes."""

import asyncio
import base64
import hashlib
import io
from typing import Any
from urllib.request import Request, urlopen

import pytest
from botocore.exceptions import ClientError

from tests.kit.s3 import Running, serving

PART = 5 << 20


def code_of(call: Any, **arguments: Any) -> tuple[str, int]:
    with pytest.raises(ClientError) as caught:
        call(**arguments)
    response = caught.value.response
    return response["Error"]["Code"], response["ResponseMetadata"]["HTTPStatusCode"]


async def test_buckets_come_and_go() -> None:
    def story(running: Running) -> None:
        s3 = running.client()
        made = s3.create_bucket(Bucket="first")
        assert made["Location"] == "/first"
        s3.create_bucket(Bucket="second-bucket")
        assert [b["Name"] for b in s3.list_buckets()["Buckets"]] == ["first", "second-bucket"]
        page = s3.list_buckets(MaxBuckets=1)
        assert [b["Name"] for b in page["Buckets"]] == ["first"]
        rest = s3.list_buckets(MaxBuckets=1, ContinuationToken=page["ContinuationToken"])
        assert [b["Name"] for b in rest["Buckets"]] == ["second-bucket"]
        assert "ContinuationToken" not in rest
        assert s3.head_bucket(Bucket="first")["BucketRegion"] == "us-east-1"
        assert s3.get_bucket_location(Bucket="first")["LocationConstraint"] is None
        assert s3.create_bucket(Bucket="first")["Location"] == "/first", "as in AWS's first region"
        s3.put_object(Bucket="first", Key="k", Body=b"")
        assert code_of(s3.delete_bucket, Bucket="first") == ("BucketNotEmpty", 409)
        s3.delete_object(Bucket="first", Key="k")
        s3.delete_bucket(Bucket="first")
        assert code_of(s3.delete_bucket, Bucket="first") == ("NoSuchBucket", 404)
        assert code_of(s3.head_bucket, Bucket="first") == ("404", 404)
        constraint = {"LocationConstraint": "eu-west-1"}
        assert code_of(s3.create_bucket, Bucket="third", CreateBucketConfiguration=constraint) == (
            "IllegalLocationConstraintException",
            400,
        )

    async with serving() as running:
        await asyncio.to_thread(story, running)


@pytest.mark.parametrize("region", ["us-east-1", "eu-west-1"])
async def test_making_ones_own_bucket_again_is_answered_by_region(region: str) -> None:
    def story(running: Running) -> None:
        s3 = running.client()
        where = {} if region == "us-east-1" else {"LocationConstraint": region}
        arguments = {"CreateBucketConfiguration": where} if where else {}
        s3.create_bucket(Bucket="first", **arguments)
        s3.put_object(Bucket="first", Key="k", Body=b"there")
        if region == "us-east-1":
            assert s3.create_bucket(Bucket="first")["Location"] == "/first"
        else:
            assert code_of(s3.create_bucket, Bucket="first", **arguments) == ("BucketAlreadyOwnedByYou", 409)
        assert s3.get_object(Bucket="first", Key="k")["Body"].read() == b"there"
        # With another scheme than it has it is not the same bucket again.
        s3.meta.events.register(
            "before-sign.s3.CreateBucket",
            lambda request, **_: request.headers.add_header("x-holdfast-scheme", "mirror-3"),
        )
        assert code_of(s3.create_bucket, Bucket="first", **arguments) == ("BucketAlreadyOwnedByYou", 409)

    async with serving(region=region) as running:
        await asyncio.to_thread(story, running)


@pytest.mark.parametrize("size", [0, 1, 4096, 200_000, 3 << 20])
async def test_an_object_is_read_back_as_it_was_written(size: int) -> None:
    data = bytes(range(256)) * (size // 256) + b"x" * (size % 256)

    def story(running: Running) -> None:
        s3 = running.client()
        s3.create_bucket(Bucket="bucket")
        put = s3.put_object(
            Bucket="bucket",
            Key="dir/naïve +%2e/..//key",
            Body=data,
            ContentType="text/plain",
            CacheControl="no-cache",
            Metadata={"colour": "blue"},
        )
        assert put["ETag"] == f'"{hashlib.md5(data).hexdigest()}"'
        assert put["ResponseMetadata"]["HTTPHeaders"]["x-holdfast-receipt"].startswith("scheme=rs-4-2;")
        got = s3.get_object(Bucket="bucket", Key="dir/naïve +%2e/..//key")
        assert got["Body"].read() == data
        assert got["ContentType"] == "text/plain"
        assert got["CacheControl"] == "no-cache"
        assert got["Metadata"] == {"colour": "blue"}
        assert got["ETag"] == put["ETag"]
        head = s3.head_object(Bucket="bucket", Key="dir/naïve +%2e/..//key")
        assert head["ContentLength"] == size
        assert code_of(s3.get_object, Bucket="bucket", Key="dir/naïve +./..//key") == ("NoSuchKey", 404)

    async with serving() as running:
        await asyncio.to_thread(story, running)


@pytest.mark.parametrize("algorithm", ["CRC32", "CRC32C", "CRC64NVME", "SHA1", "SHA256"])
async def test_each_checksum_is_verified_and_given_back(algorithm: str) -> None:
    def story(running: Running) -> None:
        s3 = running.client()
        s3.create_bucket(Bucket="bucket")
        put = s3.put_object(Bucket="bucket", Key="k", Body=b"hello", ChecksumAlgorithm=algorithm)
        name = f"Checksum{algorithm}"
        got = s3.get_object(Bucket="bucket", Key="k", ChecksumMode="ENABLED")
        assert got[name] == put[name]
        assert got["ChecksumType"] == "FULL_OBJECT"
        got["Body"].read()
        wrong = {name: base64.b64encode(bytes(len(base64.b64decode(put[name])))).decode()}
        assert code_of(s3.put_object, Bucket="bucket", Key="k", Body=b"hello", **wrong) == ("BadDigest", 400)

    async with serving() as running:
        await asyncio.to_thread(story, running)


async def test_wrong_digests_are_refused() -> None:
    def story(running: Running) -> None:
        s3 = running.client()
        s3.create_bucket(Bucket="bucket")
        put = {"Bucket": "bucket", "Key": "k", "Body": b"hello"}
        assert code_of(s3.put_object, **put, ContentMD5="bm90IGl0") == ("InvalidDigest", 400)
        other = base64.b64encode(hashlib.md5(b"other").digest()).decode()
        assert code_of(s3.put_object, **put, ContentMD5=other) == ("BadDigest", 400)
        assert code_of(s3.put_object, **put, ChecksumCRC32="AAA=") == ("InvalidRequest", 400)

    async with serving() as running:
        await asyncio.to_thread(story, running)


async def test_ranges_parts_and_overrides() -> None:
    def story(running: Running) -> None:
        s3 = running.client()
        s3.create_bucket(Bucket="bucket")
        s3.put_object(Bucket="bucket", Key="k", Body=b"0123456789")
        where = {"Bucket": "bucket", "Key": "k"}
        for range_, body, shown in [
            ("bytes=2-4", b"234", "bytes 2-4/10"),
            ("bytes=7-", b"789", "bytes 7-9/10"),
            ("bytes=-3", b"789", "bytes 7-9/10"),
            ("bytes=5-99999", b"56789", "bytes 5-9/10"),
        ]:
            got = s3.get_object(**where, Range=range_)
            assert (got["Body"].read(), got["ContentRange"]) == (body, shown)
        for ignored in ["bytes=0-1,3-4", "bytes=4-2", "lines=1-2", "bytes=-"]:
            assert s3.get_object(**where, Range=ignored)["Body"].read() == b"0123456789"
        assert code_of(s3.get_object, **where, Range="bytes=10-") == ("InvalidRange", 416)
        assert code_of(s3.get_object, **where, Range="bytes=0-1", PartNumber=1) == ("InvalidRequest", 400)
        assert code_of(s3.get_object, **where, PartNumber=2) == ("InvalidPartNumber", 416)
        assert code_of(s3.get_object, **where, PartNumber=0) == ("InvalidArgument", 400)
        got = s3.get_object(**where, ResponseContentType="a/b", ResponseContentDisposition="inline")
        assert (got["ContentType"], got["ContentDisposition"]) == ("a/b", "inline")
        assert got["Body"].read() == b"0123456789"
        assert code_of(s3.get_object, **where, ResponseContentType="a\r\nb: c") == ("InvalidArgument", 400)

    async with serving() as running:
        await asyncio.to_thread(story, running)


async def test_conditions_on_reads_and_writes() -> None:
    def story(running: Running) -> None:
        s3 = running.client()
        s3.create_bucket(Bucket="bucket")
        where = {"Bucket": "bucket", "Key": "k"}
        etag = s3.put_object(**where, Body=b"one", IfNoneMatch="*")["ETag"]
        assert code_of(s3.put_object, **where, Body=b"two", IfNoneMatch="*") == ("PreconditionFailed", 412)
        assert code_of(s3.put_object, **where, Body=b"two", IfMatch='"no"') == ("PreconditionFailed", 412)
        assert code_of(s3.put_object, **where, Body=b"two", IfNoneMatch=etag) == ("NotImplemented", 501)
        modified = s3.head_object(**where)["LastModified"]
        assert code_of(s3.get_object, **where, IfNoneMatch=etag) == ("304", 304)
        assert code_of(s3.get_object, **where, IfModifiedSince=modified) == ("304", 304)
        assert code_of(s3.get_object, **where, IfMatch='"no"') == ("PreconditionFailed", 412)
        assert s3.get_object(**where, IfMatch=etag, IfUnmodifiedSince="2001-01-01")["Body"].read() == b"one"
        assert code_of(s3.delete_object, **where, IfMatch='"no"') == ("PreconditionFailed", 412)
        s3.put_object(**where, Body=b"two", IfMatch=etag)
        s3.delete_object(**where)
        s3.delete_object(**where)

    async with serving() as running:
        await asyncio.to_thread(story, running)


async def test_copies() -> None:
    def story(running: Running) -> None:
        s3 = running.client()
        s3.create_bucket(Bucket="bucket")
        s3.put_object(Bucket="bucket", Key="a b+c", Body=b"data", Metadata={"x": "1"})
        source = {"Bucket": "bucket", "Key": "a b+c"}
        result = s3.copy_object(Bucket="bucket", Key="copy", CopySource=source)
        assert result["CopyObjectResult"]["ETag"] == f'"{hashlib.md5(b"data").hexdigest()}"'
        assert s3.head_object(Bucket="bucket", Key="copy")["Metadata"] == {"x": "1"}
        s3.copy_object(
            Bucket="bucket", Key="copy", CopySource=source, MetadataDirective="REPLACE", Metadata={"y": "2"}
        )
        assert s3.head_object(Bucket="bucket", Key="copy")["Metadata"] == {"y": "2"}
        same = {"Bucket": "bucket", "Key": "a b+c", "CopySource": source}
        assert code_of(s3.copy_object, **same) == ("InvalidRequest", 400)
        elsewhere = {"Bucket": "bucket", "Key": "x", "CopySource": source}
        assert code_of(s3.copy_object, **elsewhere, CopySourceIfMatch="no") == ("PreconditionFailed", 412)
        missing = {"Bucket": "bucket", "Key": "x", "CopySource": "bucket/none"}
        assert code_of(s3.copy_object, **missing) == ("NoSuchKey", 404)
        nonsense = {"Bucket": "bucket", "Key": "x", "CopySource": "bucket"}
        assert code_of(s3.copy_object, **nonsense) == ("InvalidArgument", 400)

    async with serving() as running:
        await asyncio.to_thread(story, running)


async def test_listings_page_and_roll_up() -> None:
    keys = [f"d{n // 4}/k{n:02}" for n in range(12)] + ["top", "ü & <x>", "a\x01b", "sp ace+"]

    def story(running: Running) -> None:
        s3 = running.client()
        s3.create_bucket(Bucket="bucket")
        for key in keys:
            s3.put_object(Bucket="bucket", Key=key, Body=b"x")
        for version in ("list_objects", "list_objects_v2"):
            pages = s3.get_paginator(version).paginate(Bucket="bucket", PaginationConfig={"PageSize": 3})
            assert [o["Key"] for page in pages for o in page.get("Contents", [])] == sorted(keys)
            found = [
                entry
                for page in s3.get_paginator(version).paginate(
                    Bucket="bucket", Delimiter="/", PaginationConfig={"PageSize": 2}
                )
                for entry in [o["Key"] for o in page.get("Contents", [])]
                + [p["Prefix"] for p in page.get("CommonPrefixes", [])]
            ]
            assert sorted(found) == sorted(["d0/", "d1/", "d2/", *keys[12:]])
        one = s3.list_objects_v2(Bucket="bucket", Prefix="d1/", MaxKeys=5000, FetchOwner=True)
        assert (one["KeyCount"], one["MaxKeys"], one["IsTruncated"]) == (4, 1000, False)
        assert one["Contents"][0]["Owner"]["ID"] == "holdfast"
        assert one["Contents"][0]["StorageClass"] == "STANDARD"
        assert s3.list_objects_v2(Bucket="bucket", MaxKeys=0)["KeyCount"] == 0
        after = s3.list_objects_v2(Bucket="bucket", StartAfter="d2/k10")
        assert after["Contents"][0]["Key"] == "d2/k11"
        # What the client names is a key; of a prefix that it lies in, the rest is still to come.
        inside = s3.list_objects_v2(Bucket="bucket", StartAfter="d1/k05", Delimiter="/")
        assert [one["Prefix"] for one in inside["CommonPrefixes"]] == ["d1/", "d2/"]
        marked = s3.list_objects(Bucket="bucket", Marker="d1/k05", Delimiter="/")
        assert [one["Prefix"] for one in marked["CommonPrefixes"]] == ["d2/"]
        listing = {"Bucket": "bucket"}
        assert code_of(s3.list_objects_v2, **listing, MaxKeys=-1) == ("InvalidArgument", 400)
        assert code_of(s3.list_objects_v2, **listing, ContinuationToken="zzz") == ("InvalidArgument", 400)
        assert code_of(s3.list_objects_v2, Bucket="nowhere") == ("NoSuchBucket", 404)

    async with serving() as running:
        await asyncio.to_thread(story, running)


async def test_deleting_many() -> None:
    def story(running: Running) -> None:
        s3 = running.client()
        s3.create_bucket(Bucket="bucket")
        keys = [f"k&{n}" for n in range(1000)]
        s3.put_object(Bucket="bucket", Key=keys[5], Body=b"x")
        result = s3.delete_objects(Bucket="bucket", Delete={"Objects": [{"Key": key} for key in keys]})
        assert [d["Key"] for d in result["Deleted"]] == keys
        quiet = {"Objects": [{"Key": "a"}, {"Key": "x" * 1025}], "Quiet": True}
        result = s3.delete_objects(Bucket="bucket", Delete=quiet)
        assert "Deleted" not in result
        assert [(e["Key"], e["Code"]) for e in result["Errors"]] == [("x" * 1025, "KeyTooLongError")]
        many = {"Objects": [{"Key": key} for key in [*keys, "more"]]}
        assert code_of(s3.delete_objects, Bucket="bucket", Delete=many) == ("MalformedXML", 400)

    async with serving() as running:
        await asyncio.to_thread(story, running)


async def test_multipart_uploads() -> None:
    def story(running: Running) -> None:
        s3 = running.client()
        s3.create_bucket(Bucket="bucket")
        where = {"Bucket": "bucket", "Key": "big"}
        upload = s3.create_multipart_upload(
            **where, ChecksumAlgorithm="CRC32", ChecksumType="FULL_OBJECT", Metadata={"m": "v"}
        )
        assert (upload["ChecksumAlgorithm"], upload["ChecksumType"]) == ("CRC32", "FULL_OBJECT")
        s3.put_object(Bucket="bucket", Key="source", Body=b"c" * PART)
        part = {**where, "UploadId": upload["UploadId"]}
        first = s3.upload_part(**part, PartNumber=1, Body=b"a" * PART, ChecksumAlgorithm="CRC32")
        copied = s3.upload_part_copy(
            **part, PartNumber=2, CopySource="bucket/source", CopySourceRange=f"bytes=0-{PART - 1}"
        )
        last = s3.upload_part(**part, PartNumber=7, Body=b"end", ChecksumAlgorithm="CRC32")
        listed = s3.list_parts(**part, MaxParts=2)
        assert [p["PartNumber"] for p in listed["Parts"]] == [1, 2]
        assert listed["IsTruncated"]
        assert listed["NextPartNumberMarker"] == 2
        assert listed["Parts"][0]["ChecksumCRC32"] == first["ChecksumCRC32"]
        uploads = s3.list_multipart_uploads(Bucket="bucket", Prefix="b")["Uploads"]
        assert [(u["Key"], u["UploadId"]) for u in uploads] == [("big", upload["UploadId"])]
        etags = [(1, first["ETag"]), (2, copied["CopyPartResult"]["ETag"]), (7, last["ETag"])]
        parts = [{"PartNumber": number, "ETag": etag} for number, etag in etags]
        complete = s3.complete_multipart_upload
        assert code_of(complete, **part, MultipartUpload={"Parts": parts[::-1]}) == ("InvalidPartOrder", 400)
        wrong = [{"PartNumber": 1, "ETag": "00"}]
        assert code_of(complete, **part, MultipartUpload={"Parts": wrong}) == ("InvalidPart", 400)
        assert code_of(complete, **part, MultipartUpload={"Parts": []}) == ("MalformedXML", 400)
        done = complete(**part, MultipartUpload={"Parts": parts})
        assert done["ETag"].endswith('-3"')
        assert done["ChecksumType"] == "FULL_OBJECT"
        assert done["ResponseMetadata"]["HTTPHeaders"]["x-holdfast-receipt"]
        got = s3.get_object(**where, ChecksumMode="ENABLED")
        assert got["Body"].read() == b"a" * PART + b"c" * PART + b"end"
        assert got["Metadata"] == {"m": "v"}
        two = s3.get_object(**where, PartNumber=2)
        assert (two["Body"].read(), two["PartsCount"]) == (b"c" * PART, 3)
        attributes = s3.get_object_attributes(**where, ObjectAttributes=["ETag", "ObjectParts", "ObjectSize"])
        assert attributes["ObjectParts"]["TotalPartsCount"] == 3
        assert attributes["ObjectSize"] == 2 * PART + 3
        assert code_of(s3.abort_multipart_upload, **part) == ("NoSuchUpload", 404)
        assert code_of(s3.upload_part, **part, PartNumber=1, Body=b"") == ("NoSuchUpload", 404)
        assert code_of(s3.upload_part, **part, PartNumber=10_001, Body=b"") == ("InvalidArgument", 400)
        other = s3.create_multipart_upload(**where)
        s3.abort_multipart_upload(**where, UploadId=other["UploadId"])

    async with serving() as running:
        await asyncio.to_thread(story, running)


async def test_managed_transfers_of_streams() -> None:
    data = bytes(range(256)) * (9 << 12)

    def story(running: Running) -> None:
        s3 = running.client()
        s3.create_bucket(Bucket="bucket")
        s3.upload_fileobj(io.BytesIO(data), "bucket", "k")
        into = io.BytesIO()
        s3.download_fileobj("bucket", "k", into)
        assert into.getvalue() == data

    async with serving() as running:
        await asyncio.to_thread(story, running)


async def test_what_is_not_there_is_said_truthfully() -> None:
    def story(running: Running) -> None:
        s3 = running.client()
        s3.create_bucket(Bucket="bucket")
        s3.put_object(Bucket="bucket", Key="k", Body=b"")
        bucket = {"Bucket": "bucket"}
        assert "Status" not in s3.get_bucket_versioning(**bucket)
        assert s3.get_bucket_acl(**bucket)["Grants"][0]["Permission"] == "FULL_CONTROL"
        assert s3.get_object_acl(**bucket, Key="k")["Grants"][0]["Permission"] == "FULL_CONTROL"
        assert s3.get_object_tagging(**bucket, Key="k")["TagSet"] == []
        assert s3.get_bucket_policy_status(**bucket)["PolicyStatus"]["IsPublic"] is False
        for call, code in [
            (s3.get_bucket_cors, "NoSuchCORSConfiguration"),
            (s3.get_bucket_tagging, "NoSuchTagSet"),
            (s3.get_bucket_encryption, "ServerSideEncryptionConfigurationNotFoundError"),
            (s3.get_bucket_lifecycle_configuration, "NoSuchLifecycleConfiguration"),
            (s3.get_bucket_policy, "NoSuchBucketPolicy"),
            (s3.get_object_lock_configuration, "ObjectLockConfigurationNotFoundError"),
        ]:
            assert code_of(call, **bucket) == (code, 404)
            assert code_of(call, Bucket="nowhere") == ("NoSuchBucket", 404)
        versioned = {"VersioningConfiguration": {"Status": "Enabled"}}
        assert code_of(s3.put_bucket_versioning, **bucket, **versioned) == ("NotImplemented", 501)
        put = {**bucket, "Key": "k", "Body": b""}
        assert code_of(s3.put_object, **put, ServerSideEncryption="AES256") == ("NotImplemented", 501)
        assert code_of(s3.put_object, **put, Tagging="a=b") == ("NotImplemented", 501)
        acl = code_of(s3.put_object, **put, ACL="public-read")
        assert acl == ("AccessControlListNotSupported", 400)
        s3.put_object(**put, ACL="bucket-owner-full-control")

    async with serving() as running:
        await asyncio.to_thread(story, running)


async def test_presigned_urls() -> None:
    def story(running: Running) -> None:
        s3 = running.client(signature_version="s3v4")
        s3.create_bucket(Bucket="bucket")
        url = s3.generate_presigned_url("put_object", {"Bucket": "bucket", "Key": "a b/ü"}, 60)
        with urlopen(Request(url, data=b"presigned", method="PUT")) as answer:
            assert answer.status == 200
        url = s3.generate_presigned_url("get_object", {"Bucket": "bucket", "Key": "a b/ü"}, 60)
        with urlopen(url) as answer:
            assert answer.read() == b"presigned"

    async with serving() as running:
        await asyncio.to_thread(story, running)
