"""Copies over memory: shared where that is possible, written anew where it is not."""

import hashlib

import pytest
from msgspec.structs import replace

from holdfast.base.checksums import ChecksumAlgorithm
from holdfast.base.clock import SystemClock
from holdfast.index.port import Transaction
from holdfast.objects.errors import InvalidRequest, NoSuchBucket, NoSuchKey, PreconditionFailed
from holdfast.objects.model import (
    BODY_BYTES_MAX,
    Conditions,
    ContentHeaders,
    CopyObject,
    PutObject,
)
from holdfast.objects.rows import decode_head, encode_head, encode_record
from tests.kit.objects import BUCKET, BytesBody, Desk

SIZES = [0, 10, 200_000]


def copy(key: str, *, source: str = "source", bucket: str = BUCKET, **more: object) -> CopyObject:
    return CopyObject(source_bucket=BUCKET, source_key=source, bucket=bucket, key=key, **more)  # type: ignore[arg-type]


async def ready(size: int = 10) -> Desk:
    desk = await Desk(SystemClock()).bucket()
    await desk.bucket("mirrored", "mirror-2")
    await desk.objects.put_object(
        PutObject(
            bucket=BUCKET,
            key="source",
            body=BytesBody(b"s" * size),
            headers=ContentHeaders(content_type="a/b"),
            metadata=(("n", "v"),),
        )
    )
    return desk


@pytest.mark.parametrize("size", SIZES)
async def test_a_copy_outlives_its_source_and_moves_no_bytes(size: int) -> None:
    desk = await ready(size)
    packs = len(desk.packs.data)
    stored = await desk.objects.copy_object(copy("copy"))
    record = (await desk.view("copy")).record
    assert stored.etag == record.etag == hashlib.md5(b"s" * size).hexdigest()
    assert (record.headers.content_type, record.metadata) == ("a/b", (("n", "v"),))
    assert (len(desk.packs.data) == packs) == (size > 0)
    await desk.audit()
    await desk.objects.copy_object(copy("copy-of-copy", source="copy"))
    await desk.delete("source")
    await desk.audit()
    assert await desk.get("copy") == b"s" * size
    await desk.delete("copy")
    assert await desk.get("copy-of-copy") == b"s" * size
    await desk.put("copy-of-copy", b"new")
    await desk.audit()
    assert not await desk.rows(b"share/")


@pytest.mark.parametrize("size", SIZES)
async def test_a_copy_under_another_scheme_or_checksum_is_written_anew(size: int) -> None:
    desk = await ready(size)
    await desk.objects.copy_object(copy("copy", bucket="mirrored"))
    assert (await desk.view("copy", bucket="mirrored")).record.scheme != (
        await desk.view("source")
    ).record.scheme
    assert await desk.get("copy", bucket="mirrored") == b"s" * size
    stored = await desk.objects.copy_object(copy("copy", algorithm=ChecksumAlgorithm.SHA256))
    assert stored.checksum is not None
    assert stored.checksum.value == hashlib.sha256(b"s" * size).digest()
    await desk.audit()


@pytest.mark.parametrize("size", SIZES)
async def test_a_copy_onto_itself_changes_what_is_said_and_keeps_the_bytes(size: int) -> None:
    desk = await ready(size)
    with pytest.raises(InvalidRequest):
        await desk.objects.copy_object(copy("source"))
    await desk.objects.copy_object(copy("source", replace=True, metadata=(("new", "1"),)))
    await desk.objects.copy_object(copy("source", storage_class="GLACIER"))
    record = (await desk.view("source")).record
    assert (record.metadata, record.storage_class) == ((("new", "1"),), "GLACIER")
    await desk.audit()
    await desk.objects.copy_object(copy("copy"))
    await desk.objects.copy_object(copy("copy", source="copy", replace=True))
    assert await desk.get("copy") == b"s" * size
    await desk.audit()
    await desk.delete("source", "copy")
    await desk.audit()
    assert not await desk.rows(b"share/")


async def test_conditions_of_source_and_target_are_both_asked() -> None:
    desk = await ready()
    etag = (await desk.view("source")).record.etag
    with pytest.raises(PreconditionFailed):
        await desk.objects.copy_object(copy("copy", source_conditions=Conditions(if_none_match=(etag,))))
    with pytest.raises(NoSuchKey):
        await desk.objects.copy_object(copy("copy", conditions=Conditions(if_match=(etag,))))
    await desk.objects.copy_object(copy("copy", conditions=Conditions(if_none_match=("*",))))
    with pytest.raises(PreconditionFailed):
        await desk.objects.copy_object(copy("copy", conditions=Conditions(if_none_match=("*",))))
    with pytest.raises(NoSuchKey):
        await desk.objects.copy_object(copy("copy", source="no"))
    with pytest.raises(NoSuchBucket):
        await desk.objects.copy_object(copy("copy", bucket="bucket-z"))
    await desk.audit()


async def test_a_source_that_is_too_large_for_one_copy_is_refused() -> None:
    desk = await ready()
    (row,) = await desk.rows(b"head/")
    record = replace(decode_head(row.value).current, size=BODY_BYTES_MAX + 1)
    await desk.index.commit([Transaction((), ((row.key, encode_head(encode_record(record), "", ())),))])
    with pytest.raises(InvalidRequest):
        await desk.objects.copy_object(copy("copy"))


async def test_a_repeated_copy_gets_the_first_answer() -> None:
    desk = await ready()
    first = await desk.objects.copy_object(copy("copy", request="r-1"))
    await desk.put("copy", b"later")
    again = await desk.objects.copy_object(copy("copy", request="r-1"))
    assert (again.etag, again.modified_ms) == (first.etag, first.modified_ms)
    assert await desk.get("copy") == b"later"
