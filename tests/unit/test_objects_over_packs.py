"""Objects over real packs and memory stores: the two keep the contract between them."""

import asyncio

import pytest

from holdfast.base.ids import RequestId, StoreId
from holdfast.base.randomness import SeededRandomness
from holdfast.chores.collect import Collect
from holdfast.index.port import prefix_end
from holdfast.objects.errors import PreconditionFailed
from holdfast.objects.model import (
    CompletePart,
    CompleteUpload,
    Conditions,
    CopyObject,
    CreateUpload,
    DeleteKey,
    PutObject,
    ReadObject,
    UploadPart,
)
from holdfast.objects.service import Objects
from holdfast.objects.settings import ObjectsLimits, ObjectsSettings
from holdfast.packs.model import PACK_BYTES_MAX
from tests.kit.objects import BUCKET, BytesBody, content
from tests.kit.rig import Rig, build_rig

pytestmark = pytest.mark.virtual


async def ready() -> tuple[Rig, Objects]:
    rig = build_rig()
    objects = Objects(
        rig.index,
        rig.packs,
        rig.clock,
        SeededRandomness(5),
        ObjectsSettings(
            default_scheme="rs-4-2",
            stores=lambda: 6,
            limits=ObjectsLimits(hashing_threads=0, part_bytes_min=1, inline_bytes_max=64),
        ),
    )
    await objects.create_bucket(BUCKET, None)
    return rig, objects


async def got(objects: Objects, key: str) -> bytes:
    return await content(await objects.read_object(ReadObject(bucket=BUCKET, key=key)))


def put(key: str, data: bytes, **more: object) -> PutObject:
    return PutObject(bucket=BUCKET, key=key, body=BytesBody(data), **more)  # type: ignore[arg-type]


async def packs_left(rig: Rig) -> int:
    return len(await rig.index.scan(b"pack/", prefix_end(b"pack/"), limit=1000))


async def test_objects_of_all_sizes_survive_the_loss_of_two_stores_and_leave_nothing_when_deleted() -> None:
    rig, objects = await ready()
    bodies = {f"key-{size}": bytes([size % 251]) * size for size in (0, 1, 5000, 131_073, PACK_BYTES_MAX + 9)}
    await asyncio.gather(*(objects.put_object(put(key, data)) for key, data in bodies.items()))
    await objects.copy_object(
        CopyObject(source_bucket=BUCKET, source_key="key-5000", bucket=BUCKET, key="copy")
    )
    bodies["copy"] = bodies["key-5000"]
    for store in rig.stores[:2]:
        rig.attached.pop(StoreId(store))
    for key, data in bodies.items():
        assert await got(objects, key) == data
    results = await objects.delete_objects(BUCKET, [DeleteKey(key=key) for key in bodies], RequestId(""))
    assert not any(result.error for result in results)
    collect = Collect(rig.index, rig.packs.rows, rig.packs.reader.in_use)
    while await collect.step():
        pass
    assert await packs_left(rig) == 0


async def test_creators_in_one_pack_are_decided_each_on_its_own() -> None:
    _, objects = await ready()
    only = Conditions(if_none_match=("*",))
    results = await asyncio.gather(
        *(objects.put_object(put("same", b"%d" % number, conditions=only)) for number in range(8)),
        *(objects.put_object(put(f"other-{number}", b"x")) for number in range(8)),
        return_exceptions=True,
    )
    assert sum(isinstance(result, PreconditionFailed) for result in results[:8]) == 7
    assert not any(isinstance(result, BaseException) for result in results[8:])


async def test_a_multipart_object_with_a_table_reads_back_and_is_collected() -> None:
    rig, objects = await ready()
    upload = (await objects.create_upload(CreateUpload(bucket=BUCKET, key="key"))).upload
    parts, whole = [], b""
    for number in range(1, 6):
        data = bytes([number]) * (number * 60_000)
        part = UploadPart(bucket=BUCKET, key="key", upload=upload, number=number, body=BytesBody(data))
        parts.append(CompletePart(number, (await objects.upload_part(part)).etag))
        whole += data
    await objects.complete_upload(CompleteUpload(bucket=BUCKET, key="key", upload=upload, parts=tuple(parts)))
    assert await got(objects, "key") == whole
    third = await objects.read_object(ReadObject(bucket=BUCKET, key="key", part=3))
    assert await content(third) == b"\x03" * 180_000
    await objects.delete_objects(BUCKET, [DeleteKey(key="key")], RequestId(""))
    assert await objects.finish_cleanups(100)
    collect = Collect(rig.index, rig.packs.rows, rig.packs.reader.in_use)
    while await collect.step():
        pass
    assert await packs_left(rig) == 0
