"""Objects end to end over memory: what is put is what is got, and what is wrong is refused."""

import asyncio
import base64
import hashlib

import pytest
from msgspec.structs import replace

from holdfast.base.checksums import ChecksumAlgorithm, new_hasher
from holdfast.base.clock import SystemClock
from holdfast.base.errors import InvalidInput, Unavailable
from holdfast.base.ids import PackId, RequestId, VersionId
from holdfast.index.port import Expect, Transaction
from holdfast.objects import rows
from holdfast.objects.errors import (
    BadDigest,
    BucketNotEmpty,
    EntityTooLarge,
    IncompleteBody,
    InvalidKey,
    InvalidPartNumber,
    InvalidRange,
    InvalidRequest,
    KeyTooLong,
    MetadataTooLarge,
    NoSuchBucket,
    NoSuchKey,
    NoSuchVersion,
    PreconditionFailed,
)
from holdfast.objects.model import (
    BODY_BYTES_MAX,
    Checksum,
    Conditions,
    ContentHeaders,
    DeleteKey,
    PutObject,
    ReadObject,
)
from holdfast.packs.model import PACK_BYTES_MAX, SMALL_BYTES_MAX, Extent, pack_row
from holdfast.scheme import Scheme
from tests.kit.objects import BUCKET, BytesBody, Desk, content

SIZES = [0, 1, 4096, SMALL_BYTES_MAX, SMALL_BYTES_MAX + 1, (1 << 20) + 1, PACK_BYTES_MAX + 1]


def pattern(size: int) -> bytes:
    return (b"0123456789abcdefghijklmnopqrstuvwxyz!" * (size // 37 + 1))[:size]


async def ready() -> Desk:
    return await Desk(SystemClock()).bucket()


@pytest.mark.parametrize("size", SIZES)
async def test_what_is_put_is_what_is_got(size: int) -> None:
    desk = await ready()
    data = pattern(size)
    headers = ContentHeaders(content_type="text/x", cache_control="no-store")
    stored = await desk.objects.put_object(
        PutObject(
            bucket=BUCKET,
            key="dir/ключ",
            body=BytesBody(data, step=300_007),
            headers=headers,
            metadata=(("a", "ä"),),
        )
    )
    view = await desk.view("dir/ключ")
    assert await content(view) == data
    crc = new_hasher(ChecksumAlgorithm.CRC64NVME)
    crc.update(data)
    assert stored.etag == view.record.etag == hashlib.md5(data).hexdigest()
    assert stored.checksum == view.record.checksum == Checksum(ChecksumAlgorithm.CRC64NVME, crc.digest())
    assert (view.record.headers, view.record.metadata) == (headers, (("a", "ä"),))
    assert (view.first, view.length, view.partial, view.part_count) == (0, size, False, 0)
    assert stored.receipt is not None
    assert stored.version is None
    head = await desk.objects.head_object(ReadObject(bucket=BUCKET, key="dir/ключ"))
    assert (head.record, head.whole, head.body) == (view.record, None, None)
    await desk.audit()


async def test_a_small_object_costs_one_look_up_and_one_read() -> None:
    desk = await ready()
    await desk.put("key", b"x" * 4096)
    looks = 0
    get = desk.index.get

    async def counting(keys):  # type: ignore[no-untyped-def]
        nonlocal looks
        looks += 1
        return await get(keys)

    desk.index.get = counting  # type: ignore[method-assign]
    desk.packs.reads = 0
    await desk.view("key")
    assert (looks - 1, desk.packs.reads) == (1, 1), "the packs in memory look their own row up once"


@pytest.mark.parametrize("size", [100, SMALL_BYTES_MAX + 5, PACK_BYTES_MAX + 100])
@pytest.mark.parametrize("range_", [(0, 0), (5, 60), (50, None), (None, 7), (90, 10**9), (None, 10**9)])
async def test_ranges_are_slices(size: int, range_: tuple[int | None, int | None]) -> None:
    desk = await ready()
    data = pattern(size)
    await desk.put("key", data)
    view = await desk.objects.read_object(ReadObject(bucket=BUCKET, key="key", range_=range_))
    first, last = range_
    if first is None:
        assert last is not None
        expected = data[-last:] if last < size else data
    else:
        expected = data[first : None if last is None else last + 1]
    assert await content(view) == expected
    assert view.partial
    assert data[view.first : view.first + view.length] == expected


async def test_a_range_across_packs_is_read_in_order() -> None:
    desk = await ready()
    data = pattern(PACK_BYTES_MAX + 5000)
    await desk.put("key", data)
    record = (await desk.view("key")).record
    border = record.extents[0].length
    view = await desk.objects.read_object(
        ReadObject(bucket=BUCKET, key="key", range_=(border - 10, border + 9))
    )
    assert await content(view) == data[border - 10 : border + 10]


async def test_reads_that_cannot_be_answered_say_why() -> None:
    desk = await ready()
    await desk.put("key", b"0123456789")
    read = desk.objects.read_object
    with pytest.raises(NoSuchBucket):
        await read(ReadObject(bucket="bucket-z", key="key"))
    with pytest.raises(NoSuchKey):
        await read(ReadObject(bucket=BUCKET, key="no"))
    with pytest.raises(NoSuchVersion):
        await read(ReadObject(bucket=BUCKET, key="key", version=VersionId("f" * 32)))
    assert (await read(ReadObject(bucket=BUCKET, key="key", version=VersionId("null")))).length == 10
    with pytest.raises(InvalidRange) as caught:
        await read(ReadObject(bucket=BUCKET, key="key", range_=(10, None)))
    assert caught.value.facts["size"] == 10
    with pytest.raises(InvalidPartNumber):
        await read(ReadObject(bucket=BUCKET, key="key", part=2))
    with pytest.raises(InvalidRequest):
        await read(ReadObject(bucket=BUCKET, key="key", part=1, range_=(0, 1)))
    assert (await read(ReadObject(bucket=BUCKET, key="key", part=1))).length == 10
    with pytest.raises(PreconditionFailed):
        await read(ReadObject(bucket=BUCKET, key="key", conditions=Conditions(if_match=("no",))))


@pytest.mark.parametrize("size", [100, SMALL_BYTES_MAX + 100], ids=["small", "large"])
class TestBodies:
    """Whatever is wrong with a body, nothing of it is visible and nothing is accounted."""

    async def refused(self, error: type[BaseException], body: BytesBody) -> BaseException:
        desk = await ready()
        await desk.put("key", b"before")
        with pytest.raises(error) as caught:
            await desk.objects.put_object(PutObject(bucket=BUCKET, key="key", body=body))
        assert await desk.get("key") == b"before"
        await desk.audit()
        assert len(await desk.rows(b"pack/")) == 1
        return caught.value

    async def test_shorter_than_announced(self, size: int) -> None:
        await self.refused(IncompleteBody, BytesBody(pattern(size), length=size + 1))

    async def test_longer_than_announced(self, size: int) -> None:
        await self.refused(IncompleteBody, BytesBody(pattern(size), length=size - 1))

    async def test_broken_off(self, size: int) -> None:
        await self.refused(ConnectionError, BytesBody(pattern(size), step=50, fail_after=50))

    async def test_with_another_md5(self, size: int) -> None:
        error = await self.refused(BadDigest, BytesBody(pattern(size), md5=b"0" * 16))
        assert isinstance(error, BadDigest)
        assert error.facts["digest"] == "MD5"

    @pytest.mark.parametrize("algorithm", ChecksumAlgorithm)
    async def test_with_another_checksum(self, size: int, algorithm: ChecksumAlgorithm) -> None:
        wrong = Checksum(algorithm, b"\x01" * algorithm.length)
        error = await self.refused(BadDigest, BytesBody(pattern(size), checksum=wrong))
        assert isinstance(error, BadDigest)
        assert error.facts["digest"] == algorithm.value

    @pytest.mark.parametrize("algorithm", ChecksumAlgorithm)
    async def test_with_the_right_checksum(self, size: int, algorithm: ChecksumAlgorithm) -> None:
        desk = await ready()
        data = pattern(size)
        hasher = new_hasher(algorithm)
        hasher.update(data)
        checksum = Checksum(algorithm, hasher.digest())
        body = BytesBody(data, checksum=checksum, md5=hashlib.md5(data).digest())
        stored = await desk.objects.put_object(PutObject(bucket=BUCKET, key="key", body=body))
        assert stored.checksum == checksum


async def test_requests_beyond_the_limits_are_refused_before_the_body_is_read() -> None:
    desk = await ready()

    async def put(key: str = "key", length: int = 0, metadata: tuple[tuple[str, str], ...] = ()) -> None:
        body = BytesBody(b"", length=length)
        put_ = PutObject(bucket=BUCKET, key=key, body=body, metadata=metadata)
        await desk.objects.put_object(put_)

    for error, arguments in (
        (EntityTooLarge, {"length": BODY_BYTES_MAX + 1}),
        (InvalidRequest, {"length": -1}),
        (MetadataTooLarge, {"metadata": (("a", "ü" * 1024),)}),
        (KeyTooLong, {"key": "k" * 1025}),
        (InvalidKey, {"key": "a\0"}),
        (InvalidKey, {"key": ""}),
    ):
        with pytest.raises(error):
            await put(**arguments)  # type: ignore[arg-type]
    with pytest.raises(NoSuchBucket):
        await desk.put("key", b"", bucket="bucket-z")
    assert not await desk.rows(b"head/")


async def test_a_condition_that_fails_is_told_before_the_body_is_read() -> None:
    desk = await ready()
    await desk.put("key", b"x")
    never = BytesBody(b"x" * 10, fail_after=0)
    with pytest.raises(PreconditionFailed):
        await desk.objects.put_object(
            PutObject(bucket=BUCKET, key="key", body=never, conditions=Conditions(if_none_match=("*",)))
        )
    with pytest.raises(NoSuchKey):
        await desk.put("other", b"y", Conditions(if_match=("*",)))


async def test_overwriting_and_deleting_account_for_every_byte() -> None:
    desk = await ready()
    for size in (10, SMALL_BYTES_MAX + 1, 0, PACK_BYTES_MAX + 1, 5):
        await asyncio.gather(desk.put("key", pattern(size)), desk.put(f"other-{size}", b"z" * 7))
        await desk.audit()
    results = await desk.delete("key", "other-10", "never-there", "key")
    assert [result.key for result in results] == ["key", "other-10", "never-there", "key"]
    assert all(result.error is None for result in results)
    with pytest.raises(NoSuchKey):
        await desk.get("key")
    await desk.audit()


async def test_deleting_many_keys_answers_for_each() -> None:
    desk = await ready()
    await asyncio.gather(*(desk.put(f"k{number}", b"x") for number in range(1000)))
    wanted = [DeleteKey(key=f"k{number}") for number in range(1000)]
    wanted[3] = DeleteKey(key="k3", if_match=("wrong",))
    wanted[4] = DeleteKey(key="gone", if_match=("*",))
    wanted[5] = DeleteKey(key="")
    wanted[6] = DeleteKey(key="k6", version=VersionId("f" * 32))
    wanted[7] = DeleteKey(key="k7", version=VersionId("null"))
    results = await desk.objects.delete_objects(BUCKET, wanted, RequestId(""))
    errors = {place: type(result.error) for place, result in enumerate(results) if result.error}
    assert errors == {3: PreconditionFailed, 4: NoSuchKey, 5: InvalidKey}
    left = {row.key.rpartition(b"/")[2] for row in await desk.rows(b"head/")}
    assert left == {b"k3", b"k4", b"k5", b"k6"}
    with pytest.raises(NoSuchBucket):
        await desk.delete("a", bucket="bucket-z")
    await desk.audit()


async def test_a_bucket_has_the_scheme_it_was_made_with() -> None:
    desk = Desk(SystemClock(), scheme="raid6")
    assert (await desk.objects.create_bucket("default", None)).scheme == Scheme(4, 2)
    assert (await desk.objects.create_bucket("mirrored", "mirror-3")).scheme == Scheme(1, 2)
    await desk.put("key", b"x", bucket="mirrored")
    assert (await desk.view("key", bucket="mirrored")).record.scheme == Scheme(1, 2)
    with pytest.raises(InvalidInput):
        await desk.objects.create_bucket("strange", "rs-99-1")
    with pytest.raises(NoSuchBucket):
        await desk.objects.get_bucket("strange")


async def test_a_bucket_is_deleted_when_nothing_is_in_it() -> None:
    desk = await ready()
    await desk.put("key", b"x")
    with pytest.raises(BucketNotEmpty):
        await desk.objects.delete_bucket(BUCKET)
    await desk.put("key", b"y")
    await desk.delete("key")
    await desk.objects.delete_bucket(BUCKET)
    with pytest.raises(NoSuchBucket):
        await desk.objects.delete_bucket(BUCKET)
    with pytest.raises(NoSuchBucket):
        await desk.put("key", b"x")


async def test_a_bucket_whose_deletion_crashed_is_a_bucket_like_any_other() -> None:
    desk = await ready()
    await desk.put("old", b"x")
    (row,) = await desk.rows(b"bucket/")
    marked = replace(rows.decode_bucket(row.value), state=rows.BucketState.DELETING)
    await desk.index.commit([Transaction((), ((row.key, rows.encode(marked)),))])
    assert await desk.get("old") == b"x"
    assert (await desk.objects.get_bucket(BUCKET)).name == BUCKET
    await desk.put("new", b"y")
    (row,) = await desk.rows(b"bucket/")
    assert rows.decode_bucket(row.value).state is rows.BucketState.ACTIVE
    await desk.delete("old", "new")
    await desk.index.commit([Transaction((), ((row.key, rows.encode(marked)),))])
    await desk.objects.delete_bucket(BUCKET)


async def moved(desk: Desk, key: bytes) -> None:
    """What a rewrite of packs does: the same version, with its bytes elsewhere, the old pack gone."""
    (row,) = await desk.index.get([b"head/" + BUCKET.encode() + b"/" + key])
    assert row is not None
    head = rows.decode_head(row.value)
    extents, puts, gone = [], [], []
    for extent in head.current.extents:
        pack = PackId(bytes(reversed(extent.pack)))
        (old,) = await desk.index.get([pack_row(extent.pack)])
        assert old is not None
        desk.packs.data[pack] = desk.packs.data[extent.pack]
        puts.append((pack_row(pack), old.value))
        gone.append(pack_row(extent.pack))
        extents.append(Extent(pack, extent.offset, extent.length))
    record = rows.encode_record(replace(head.current, extents=tuple(extents)))
    puts.append((row.key, rows.encode_head(record, head.request, head.earlier)))
    await desk.index.commit([Transaction((Expect(row.key, row.revision),), tuple(puts), tuple(gone))])


@pytest.mark.parametrize("size", [100, PACK_BYTES_MAX + 100])
async def test_a_read_goes_on_when_the_bytes_move_under_it(size: int) -> None:
    desk = await ready()
    data = pattern(size)
    await desk.put("key", data)
    reads = 0
    read = desk.objects._context.index.get  # type: ignore[attr-defined]
    lock = asyncio.Lock()

    async def moving(keys):  # type: ignore[no-untyped-def]
        nonlocal reads
        if keys[0].startswith(b"pack/"):
            reads += 1
            if reads in (1, 5) and not lock.locked():
                async with lock:
                    await moved(desk, b"key")
        return await read(keys)

    desk.index.get = moving  # type: ignore[method-assign]
    assert await desk.get("key") == data
    assert reads > 1


async def test_a_stream_never_goes_on_with_another_version() -> None:
    desk = await ready()
    data = pattern(3 << 20)
    await desk.put("key", data)
    view = await desk.view("key")
    assert view.body is not None
    pieces = view.body()
    first = await anext(aiter(pieces))
    assert data.startswith(bytes(first))
    await desk.put("key", b"new" * (1 << 20))
    gone = tuple(pack_row(extent.pack) for extent in view.record.extents)
    await desk.index.commit([Transaction((), (), gone)])
    with pytest.raises(Unavailable):
        await anext(pieces)


async def test_packs_describe_what_is_in_them() -> None:
    desk = await ready()
    data = pattern(PACK_BYTES_MAX + 10)
    stored = await desk.put("key", data)
    record = (await desk.view("key")).record
    entries = [desk.packs.manifests[extent.pack][0] for extent in record.extents]
    assert [entry.piece for entry in entries] == list(range(len(entries)))
    assert {(entry.bucket, entry.key, entry.version) for entry in entries} == {
        (BUCKET, "key", record.version)
    }
    assert not any(entry.record for entry in entries[:-1])
    described = rows.decode_record(entries[-1].record)
    assert described.etag == stored.etag
    assert described.extents[:-1] == record.extents[:-1]
    own = described.extents[-1]
    assert (own.pack, own.offset, own.length) == (b"", 0, record.extents[-1].length)


def test_the_default_checksum_is_what_s3_would_say() -> None:
    # AWS, "Checking object integrity": CRC64NVME of "123456789" is AE8B14860A799888.
    hasher = new_hasher(ChecksumAlgorithm.CRC64NVME)
    hasher.update(b"123456789")
    assert base64.b16encode(hasher.digest()) == b"AE8B14860A799888"
