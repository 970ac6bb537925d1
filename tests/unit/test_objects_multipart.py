"""Multipart uploads over memory: parts, completion, tables of large objects, abort."""

import hashlib

import pytest

from holdfast.base.checksums import ChecksumAlgorithm, new_hasher
from holdfast.base.clock import SystemClock
from holdfast.base.ids import UploadId
from holdfast.objects import rows
from holdfast.objects.errors import (
    BadDigest,
    EntityTooSmall,
    InvalidPart,
    InvalidPartNumber,
    InvalidPartOrder,
    InvalidRange,
    InvalidRequest,
    NoSuchBucket,
    NoSuchKey,
    NoSuchUpload,
    PreconditionFailed,
)
from holdfast.objects.model import (
    Checksum,
    CompletePart,
    CompleteUpload,
    Conditions,
    ContentHeaders,
    CopyObject,
    CopyPart,
    CreateUpload,
    ReadObject,
    Stored,
    UploadPart,
)
from holdfast.objects.settings import ObjectsLimits
from holdfast.objects.table import Table
from holdfast.packs.model import PACK_BYTES_MAX
from tests.kit.objects import BUCKET, BytesBody, Desk, content

KEY = "dir/key"
CRCS = (ChecksumAlgorithm.CRC32, ChecksumAlgorithm.CRC32C, ChecksumAlgorithm.CRC64NVME)
COMPOSITES = (
    ChecksumAlgorithm.CRC32,
    ChecksumAlgorithm.CRC32C,
    ChecksumAlgorithm.SHA1,
    ChecksumAlgorithm.SHA256,
)


def limits(part_bytes_min: int = 1, inline_bytes_max: int = 32 << 10) -> ObjectsLimits:
    return ObjectsLimits(hashing_threads=0, part_bytes_min=part_bytes_min, inline_bytes_max=inline_bytes_max)


async def ready(**wanted: int) -> Desk:
    return await Desk(SystemClock(), limits=limits(**wanted)).bucket()


class Multipart:
    """One upload, with short ways to use it."""

    def __init__(self, desk: Desk, upload: UploadId) -> None:
        self.desk = desk
        self.upload = upload
        self.parts: dict[int, CompletePart] = {}
        self.data: dict[int, bytes] = {}

    async def part(self, number: int, data: bytes, **body: object) -> Stored:
        part = UploadPart(
            bucket=BUCKET,
            key=KEY,
            upload=self.upload,
            number=number,
            body=BytesBody(data, **body),  # type: ignore[arg-type]
        )
        stored = await self.desk.objects.upload_part(part)
        self.parts[number] = CompletePart(number, stored.etag)
        self.data[number] = data
        return stored

    async def complete(self, *numbers: int, **more: object) -> Stored:
        parts = tuple(self.parts[number] for number in numbers or sorted(self.parts))
        return await self.desk.objects.complete_upload(
            CompleteUpload(bucket=BUCKET, key=KEY, upload=self.upload, parts=parts, **more)  # type: ignore[arg-type]
        )

    @property
    def whole(self) -> bytes:
        return b"".join(self.data[number] for number in sorted(self.data))


async def begun(desk: Desk, **more: object) -> Multipart:
    create = CreateUpload(bucket=BUCKET, key=KEY, **more)  # type: ignore[arg-type]
    return Multipart(desk, (await desk.objects.create_upload(create)).upload)


async def audited(desk: Desk) -> None:
    assert await desk.objects.finish_cleanups(1000)
    assert not await desk.rows(b"part/")
    await desk.audit()


@pytest.mark.parametrize("inline_bytes_max", [32 << 10, 1], ids=["in its row", "with a table"])
async def test_an_object_in_parts_reads_as_one(inline_bytes_max: int) -> None:
    desk = await ready(inline_bytes_max=inline_bytes_max, part_bytes_min=0)
    upload = await begun(desk, headers=ContentHeaders(content_type="a/b"), metadata=(("n", "v"),))
    for number, size in ((1, 300_000), (3, PACK_BYTES_MAX + 7), (4, 0), (9, 5)):
        await upload.part(number, bytes([number]) * size)
    stored = await upload.complete()
    md5s = b"".join(hashlib.md5(upload.data[number]).digest() for number in (1, 3, 4, 9))
    assert stored.etag == f"{hashlib.md5(md5s).hexdigest()}-4"
    view = await desk.view(KEY)
    assert await content(view) == upload.whole
    record = view.record
    assert (record.headers.content_type, record.metadata) == ("a/b", (("n", "v"),))
    assert (record.part_count, view.part_count) == (4, 4)
    assert (record.extents_at is None) == (inline_bytes_max > 1)
    crc = new_hasher(ChecksumAlgorithm.CRC64NVME)
    crc.update(upload.whole)
    assert stored.checksum == record.checksum == Checksum(ChecksumAlgorithm.CRC64NVME, crc.digest())
    for number in (1, 3, 4, 9):
        part = await desk.objects.read_object(ReadObject(bucket=BUCKET, key=KEY, part=number))
        assert (await content(part), part.partial) == (upload.data[number], True)
    for number in (0, 2, 10, 10_001):
        with pytest.raises(InvalidPartNumber):
            await desk.objects.read_object(ReadObject(bucket=BUCKET, key=KEY, part=number))
    size = len(upload.whole)
    for first, last in ((0, 0), (299_990, 300_010), (size - 6, size - 1), (299_000, size)):
        read = ReadObject(bucket=BUCKET, key=KEY, range_=(first, last))
        assert await content(await desk.objects.read_object(read)) == upload.whole[first : last + 1]
    await audited(desk)
    await desk.delete(KEY)
    await audited(desk)


@pytest.mark.parametrize("algorithm", CRCS)
async def test_full_object_checksums_are_those_of_the_whole(algorithm: ChecksumAlgorithm) -> None:
    desk = await ready()
    upload = await begun(desk, algorithm=algorithm)
    await upload.part(1, b"a" * 1000)
    await upload.part(2, b"b" * 77)
    hasher = new_hasher(algorithm)
    hasher.update(upload.whole)
    with pytest.raises(BadDigest):
        await upload.complete(checksum=Checksum(algorithm, bytes(algorithm.length)))
    stored = await upload.complete(checksum=Checksum(algorithm, hasher.digest()), size=1077)
    assert stored.checksum == Checksum(algorithm, hasher.digest())


@pytest.mark.parametrize("algorithm", COMPOSITES)
async def test_composite_checksums_are_checksums_of_checksums(algorithm: ChecksumAlgorithm) -> None:
    desk = await ready()
    upload = await begun(desk, algorithm=algorithm, full_object=False)
    parts = [await upload.part(1, b"a" * 1000), await upload.part(2, b"b" * 77)]
    hasher = new_hasher(algorithm)
    for part in parts:
        assert part.checksum is not None
        hasher.update(part.checksum.value)
    with pytest.raises(BadDigest):
        await upload.complete(checksum=Checksum(algorithm, hasher.digest(), 3))
    expected = Checksum(algorithm, hasher.digest(), 2)
    assert (await upload.complete(checksum=expected)).checksum == expected
    assert (await desk.view(KEY)).record.checksum == expected


@pytest.mark.parametrize(
    ("algorithm", "full_object"),
    [
        (ChecksumAlgorithm.SHA1, True),
        (ChecksumAlgorithm.SHA256, True),
        (ChecksumAlgorithm.CRC64NVME, False),
        (None, False),
    ],
)
async def test_checksum_types_that_do_not_exist_are_refused(
    algorithm: ChecksumAlgorithm | None, full_object: bool
) -> None:
    desk = await ready()
    with pytest.raises(InvalidRequest):
        await begun(desk, algorithm=algorithm, full_object=full_object)


async def test_a_part_is_checked_against_what_the_client_and_the_upload_say() -> None:
    desk = await ready()
    upload = await begun(desk, algorithm=ChecksumAlgorithm.CRC32)
    with pytest.raises(BadDigest):
        await upload.part(1, b"x", md5=bytes(16))
    with pytest.raises(InvalidRequest):
        await upload.part(1, b"x", algorithm=ChecksumAlgorithm.SHA256)
    for number in (0, -1, 10_001):
        with pytest.raises(InvalidPartNumber):
            await upload.part(number, b"x")
    free = await begun(desk)
    right = Checksum(ChecksumAlgorithm.SHA256, hashlib.sha256(b"x").digest())
    stored = await free.part(1, b"x", checksum=right)
    assert stored.checksum is not None
    assert stored.checksum.algorithm is ChecksumAlgorithm.CRC64NVME
    with pytest.raises(BadDigest):
        await free.part(1, b"y", checksum=right)
    assert not await desk.rows(b"dead/")


async def test_the_newest_attempt_of_a_part_counts_and_the_others_are_let_go() -> None:
    desk = await ready()
    upload = await begun(desk)
    await upload.part(1, b"first" * 40_000)
    old = upload.parts[1]
    await upload.part(1, b"second")
    await upload.part(2, b"unused")
    listing = await desk.objects.list_parts(BUCKET, KEY, upload.upload, 0, 1000)
    assert [(part.number, part.size) for part in listing.parts] == [(1, 6), (2, 6)]
    with pytest.raises(InvalidPart):
        await desk.objects.complete_upload(
            CompleteUpload(bucket=BUCKET, key=KEY, upload=upload.upload, parts=(old,))
        )
    await upload.complete(1)
    assert await desk.get(KEY) == b"second"
    await audited(desk)
    assert sum(rows.decode_dead(row.value).size for row in await desk.rows(b"dead/")) == 200_006


async def test_lists_of_parts_that_are_wrong_are_refused_and_the_upload_goes_on() -> None:
    desk = await ready(part_bytes_min=100)
    upload = await begun(desk)
    await upload.part(1, b"a" * 100)
    await upload.part(2, b"b" * 99)
    await upload.part(3, b"c")

    async def complete(*parts: CompletePart, **more: object) -> None:
        request = CompleteUpload(bucket=BUCKET, key=KEY, upload=upload.upload, parts=parts, **more)  # type: ignore[arg-type]
        await desk.objects.complete_upload(request)

    one, two, three = upload.parts[1], upload.parts[2], upload.parts[3]
    with pytest.raises(InvalidRequest):
        await complete()
    with pytest.raises(InvalidPartOrder):
        await complete(two, one)
    with pytest.raises(InvalidPartOrder):
        await complete(one, one)
    with pytest.raises(InvalidPart):
        await complete(one, CompletePart(2, "0" * 32))
    with pytest.raises(InvalidPart):
        await complete(one, CompletePart(7, two.etag))
    with pytest.raises(InvalidPart):
        await complete(CompletePart(0, one.etag))
    with pytest.raises(InvalidPart):
        await complete(one, two, CompletePart(7, two.etag))  # graver than that the second is small
    with pytest.raises(EntityTooSmall) as small:
        await complete(one, two, three)
    assert small.value.facts == {"part": 2, "size": 99, "size_min": 100, "etag": two.etag}
    with pytest.raises(InvalidRequest):
        await complete(one, three, size=100)
    crc = Checksum(ChecksumAlgorithm.CRC64NVME, bytes(8))
    with pytest.raises(InvalidPart):
        await complete(CompletePart(1, one.etag, crc))
    with pytest.raises(InvalidRequest):
        await complete(CompletePart(1, one.etag, Checksum(ChecksumAlgorithm.SHA1, bytes(20))))
    with pytest.raises(InvalidRequest):
        await complete(one, checksum=Checksum(ChecksumAlgorithm.SHA1, bytes(20)))
    with pytest.raises(NoSuchKey):
        await complete(one, conditions=Conditions(if_match=("*",)))
    with pytest.raises(NoSuchKey):
        await desk.get(KEY)
    await complete(one, three, size=101)
    assert await desk.get(KEY) == b"a" * 100 + b"c"
    await audited(desk)


async def test_completing_again_gives_the_same_answer() -> None:
    desk = await ready()
    upload = await begun(desk)
    await upload.part(1, b"x")
    first = await upload.complete()
    again = await upload.complete()
    await desk.put(KEY, b"later")
    once_more = await upload.complete()
    for stored in (again, once_more):
        assert (stored.etag, stored.checksum, stored.modified_ms) == (
            first.etag,
            first.checksum,
            first.modified_ms,
        )
    assert await desk.get(KEY) == b"later"


async def test_a_condition_on_completion_holds_or_nothing_happens() -> None:
    desk = await ready(inline_bytes_max=1)
    await desk.put(KEY, b"there")
    upload = await begun(desk)
    await upload.part(1, b"x" * 200_000)
    with pytest.raises(PreconditionFailed):
        await upload.complete(conditions=Conditions(if_none_match=("*",)))
    assert await desk.get(KEY) == b"there"
    await desk.audit()
    await upload.complete()
    assert await desk.get(KEY) == upload.whole
    await audited(desk)


async def test_an_upload_that_is_aborted_leaves_nothing() -> None:
    desk = await ready()
    upload = await begun(desk)
    for number in range(1, 4):
        await upload.part(number, b"x" * 150_000)
    await desk.objects.abort_upload(BUCKET, KEY, upload.upload)
    await audited(desk)
    with pytest.raises(NoSuchUpload):
        await upload.part(1, b"y")
    with pytest.raises(NoSuchUpload):
        await upload.complete()
    with pytest.raises(NoSuchUpload):
        await desk.objects.abort_upload(BUCKET, KEY, upload.upload)
    with pytest.raises(NoSuchUpload):
        await desk.objects.list_parts(BUCKET, KEY, upload.upload, 0, 10)
    await desk.objects.delete_bucket(BUCKET)


@pytest.mark.parametrize("upload", ["", "x", "../" * 9, "0" * 31 + "g", "F" * 32, "0" * 32, "\ud800"])
async def test_an_upload_that_never_was_is_not_found(upload: str) -> None:
    desk = await ready()
    with pytest.raises(NoSuchUpload):
        await desk.objects.list_parts(BUCKET, KEY, UploadId(upload), 0, 10)
    with pytest.raises(NoSuchBucket):
        await desk.objects.list_parts("bucket-z", KEY, UploadId(upload), 0, 10)


async def test_an_open_upload_keeps_its_bucket() -> None:
    desk = await ready()
    upload = await begun(desk)
    with pytest.raises(Exception, match="not empty"):
        await desk.objects.delete_bucket(BUCKET)
    await desk.objects.abort_upload(BUCKET, KEY, upload.upload)
    await desk.objects.delete_bucket(BUCKET)


async def test_parts_are_listed_by_page() -> None:
    desk = await ready()
    upload = await begun(desk)
    for number in (1, 2, 5, 300, 10_000):
        await upload.part(number, b"%d" % number)
    seen: list[int] = []
    after = 0
    while True:
        page = await desk.objects.list_parts(BUCKET, KEY, upload.upload, after, 2)
        seen += [part.number for part in page.parts]
        if not page.truncated:
            break
        after = page.next_after
    assert seen == [1, 2, 5, 300, 10_000]
    assert not (await desk.objects.list_parts(BUCKET, KEY, upload.upload, 10_000, 2)).parts
    assert not (await desk.objects.list_parts(BUCKET, KEY, upload.upload, 0, 0)).parts


async def test_parts_can_be_copied_from_objects() -> None:
    desk = await ready()
    source = bytes(range(256)) * 2000
    await desk.put("source", source)
    upload = await begun(desk)

    async def copy(number: int, range_: tuple[int, int] | None, **more: object) -> None:
        part = CopyPart(
            bucket=BUCKET,
            key=KEY,
            upload=upload.upload,
            number=number,
            source_bucket=BUCKET,
            source_key=str(more.pop("key", "source")),
            range_=range_,
            **more,  # type: ignore[arg-type]
        )
        upload.parts[number] = CompletePart(number, (await desk.objects.copy_part(part)).etag)

    await copy(1, None)
    await copy(2, (100, 300_000))
    await copy(3, (5, 5))
    for range_ in ((0, len(source)), (-1, 5), (9, 3)):
        with pytest.raises(InvalidRange):
            await copy(4, range_)
    with pytest.raises(NoSuchKey):
        await copy(4, None, key="no")
    with pytest.raises(PreconditionFailed):
        await copy(4, None, source_conditions=Conditions(if_match=("no",)))
    await upload.complete()
    assert await desk.get(KEY) == source + source[100:300_001] + source[5:6]
    await desk.delete("source")
    assert len(await desk.get(KEY)) == len(source) + 299_901 + 1
    await audited(desk)


async def test_a_table_is_let_go_with_the_bytes_it_names_in_bounded_steps_that_may_crash(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("holdfast.objects.cleanup.STEP_DEAD", 3)
    monkeypatch.setattr("holdfast.objects.cleanup.STEP_PARTS", 4)
    desk = await ready(inline_bytes_max=1)
    upload = await begun(desk)
    for number in range(1, 12):
        await upload.part(number, bytes([number]) * 50)
        await upload.part(number, bytes([number]) * 140_000)
    await upload.complete()
    assert await desk.get(KEY) == upload.whole
    await desk.put("copied-over", b"old")
    copied = CopyObject(source_bucket=BUCKET, source_key=KEY, bucket=BUCKET, key="copied-over")
    await desk.objects.copy_object(copied)
    await desk.delete(KEY)
    assert await desk.get("copied-over") == upload.whole
    steps = 0
    while not await desk.objects.finish_cleanups(1):
        steps += 1
        assert steps < 100
    assert steps > 5
    assert await desk.get("copied-over") == upload.whole
    await desk.audit()
    await desk.put("copied-over", b"new")
    await audited(desk)
    assert not await desk.rows(b"share/")


async def test_a_table_finds_every_byte_and_part() -> None:
    desk = await ready(inline_bytes_max=1)
    upload = await begun(desk)
    for number in range(1, 60, 2):
        await upload.part(number, bytes([number]) * (number * 10))
    await upload.complete()
    record = (await desk.view(KEY)).record
    assert record.extents_at is not None
    table = Table(desk.packs, record.extents_at)
    assert await table.count() == 30
    for number in range(1, 62):
        located = await table.part(number)
        if number % 2 and number < 60:
            assert located is not None
            assert (located.info.number, located.info.size) == (number, number * 10)
            assert upload.whole[located.first : located.first + 1] == bytes([number])
        else:
            assert located is None
    for first in range(0, len(upload.whole), 97):
        read = ReadObject(bucket=BUCKET, key=KEY, range_=(first, first + 150))
        assert await content(await desk.objects.read_object(read)) == upload.whole[first : first + 151]
