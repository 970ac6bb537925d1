"""A request that is tried again gets the answer that it earned, and changes things once.

Every operation that changes something is made, its answer lost, and tried again: at once, after somebody else
deleted what it made, and while its first try is still on its way and comes last.
"""

import hashlib
from collections.abc import Awaitable, Callable

import pytest

from holdfast.base.errors import HoldfastError
from holdfast.base.ids import RequestId, UploadId
from holdfast.index.port import Transaction
from holdfast.objects import rows
from holdfast.objects.errors import (
    BucketAlreadyOwnedByYou,
    NoSuchBucket,
    NoSuchKey,
    NoSuchUpload,
    PreconditionFailed,
)
from holdfast.objects.model import (
    CompletePart,
    CompleteUpload,
    Conditions,
    CopyObject,
    CreateUpload,
    DeleteKey,
    PutObject,
    UploadPart,
)
from holdfast.objects.repeats import CARRY_MS, FORGET_AFTER_S, Overtaken
from holdfast.objects.settings import ObjectsLimits
from tests.kit.objects import BUCKET, BytesBody, Desk, before_commit
from tests.kit.virtual import VirtualClock

pytestmark = pytest.mark.virtual

LIMITS = ObjectsLimits(hashing_threads=0, part_bytes_min=1, inline_bytes_max=100)
ID = RequestId("0123456789abcdef0123456789abcdef")
OTHER = RequestId("f" * 32)
ABSENT = Conditions(if_none_match=("*",))
LARGE = b"L" * (200 << 10)
OPEN = UploadId("a" * 32)

Operation = Callable[[Desk, RequestId, int], Awaitable[object]]


async def put(desk: Desk, request: RequestId, tries: int) -> object:
    body = BytesBody(b"small")
    ask = PutObject(bucket=BUCKET, key="new", body=body, conditions=ABSENT, request=request, tries=tries)
    return (await desk.objects.put_object(ask)).etag


async def put_large(desk: Desk, request: RequestId, tries: int) -> object:
    body = BytesBody(LARGE)
    ask = PutObject(bucket=BUCKET, key="new", body=body, conditions=ABSENT, request=request, tries=tries)
    return (await desk.objects.put_object(ask)).etag


async def copy(desk: Desk, request: RequestId, tries: int) -> object:
    ask = CopyObject(
        source_bucket=BUCKET,
        source_key="large",
        bucket=BUCKET,
        key="new",
        conditions=ABSENT,
        request=request,
        tries=tries,
    )
    return (await desk.objects.copy_object(ask)).etag


async def complete(desk: Desk, request: RequestId, tries: int) -> object:
    part = CompletePart(1, PART_ETAG)
    ask = CompleteUpload(
        bucket=BUCKET,
        key="new",
        upload=OPEN,
        parts=(part,),
        conditions=ABSENT,
        request=request,
        tries=tries,
    )
    return (await desk.objects.complete_upload(ask)).etag


async def delete(desk: Desk, request: RequestId, tries: int) -> object:
    (result,) = await desk.objects.delete_objects(BUCKET, [DeleteKey(key="old")], request, tries)
    if result.error is not None:
        raise result.error
    return result.key


async def delete_if(desk: Desk, request: RequestId, tries: int) -> object:
    key = DeleteKey(key="old", if_match=("*",))
    (result,) = await desk.objects.delete_objects(BUCKET, [key], request, tries)
    if result.error is not None:
        raise result.error
    return result.key


async def make_bucket(desk: Desk, request: RequestId, tries: int) -> object:
    return (await desk.objects.create_bucket("bucket-n", None, request, tries)).name


async def drop_bucket(desk: Desk, request: RequestId, tries: int) -> object:
    return await desk.objects.delete_bucket("bucket-b", request, tries)


async def abort(desk: Desk, request: RequestId, tries: int) -> object:
    return await desk.objects.abort_upload(BUCKET, "new", OPEN, request, tries)


PART = b"part"
PART_ETAG = hashlib.md5(PART).hexdigest()

OPERATIONS: dict[str, tuple[Operation, type[HoldfastError] | None]] = {
    "put": (put, PreconditionFailed),
    "put large": (put_large, PreconditionFailed),
    "copy": (copy, PreconditionFailed),
    "complete": (complete, None),
    "delete": (delete, None),
    "delete if": (delete_if, NoSuchKey),
    "make bucket": (make_bucket, BucketAlreadyOwnedByYou),
    "drop bucket": (drop_bucket, NoSuchBucket),
    "abort": (abort, NoSuchUpload),
}
"""With what another request is told that asks for the same afterwards; None where it is answered alike."""

every_operation = pytest.mark.parametrize("name", OPERATIONS)


async def prepared(clock: VirtualClock | None = None) -> Desk:
    desk = await Desk(clock or VirtualClock(), limits=LIMITS).bucket()
    await desk.put("old", b"before")
    await desk.put("large", LARGE)
    await desk.bucket("bucket-b")
    create = CreateUpload(bucket=BUCKET, key="new", request=RequestId(OPEN))
    assert (await desk.objects.create_upload(create)).upload == OPEN
    part = UploadPart(bucket=BUCKET, key="new", upload=OPEN, number=1, body=BytesBody(PART))
    assert (await desk.objects.upload_part(part)).etag == PART_ETAG
    return desk


async def state(desk: Desk) -> dict[bytes, bytes]:
    """What there is, apart from what is only remembered."""
    found = {}
    for prefix in (b"bucket/", b"head/", b"upload/", b"part/"):
        found |= {row.key: row.value for row in await desk.rows(prefix)}
    return found


async def settled(desk: Desk) -> None:
    """Whatever is left over is done, and the books balance."""
    assert await desk.objects.finish_cleanups(100)
    await desk.audit()


@every_operation
async def test_a_second_try_gets_what_the_first_one_earned(name: str) -> None:
    operation, refusal = OPERATIONS[name]
    desk = await prepared()
    first = await operation(desk, ID, 1)
    made = await state(desk)
    for tries in (2, 3):
        assert await operation(desk, ID, tries) == first
        assert await state(desk) == made
    if refusal is not None:
        with pytest.raises(refusal):
            await operation(desk, OTHER, 1)
    else:
        assert await operation(desk, OTHER, 1) == first
    await settled(desk)


@every_operation
async def test_it_does_so_after_others_undid_it(name: str) -> None:
    """Deleted what it made, or made anew what it deleted: the second try changes none of that."""
    operation, _ = OPERATIONS[name]
    desk = await prepared()
    first = await operation(desk, ID, 1)
    match name:
        case "put" | "put large" | "copy":
            await desk.delete("new")
            if name == "copy":
                await desk.delete("large")
        case "complete":
            await desk.put("new", b"of others")
        case "delete" | "delete if":
            await desk.put("old", b"of others", ABSENT)
        case "make bucket":
            await desk.objects.delete_bucket("bucket-n")
        case "drop bucket":
            await desk.bucket("bucket-b")
    undone = await state(desk)
    assert await operation(desk, ID, 2) == first
    assert await state(desk) == undone
    await settled(desk)


def changes_things(transaction: Transaction) -> bool:
    """Whether this is what an operation is about, not what prepares or tidies it up."""
    keys = [key for key, _ in transaction.puts] + list(transaction.deletes)
    if any(key.startswith(b"request/") and key.count(b"/") == 1 for key in keys):
        return False
    about = (b"head/" + BUCKET.encode() + b"/", b"upload/", b"bucket/bucket-n")
    gone = b"bucket/bucket-b" in transaction.deletes
    return gone or any(key.startswith(about) for key in keys)


@every_operation
async def test_a_first_try_that_comes_late_does_nothing(name: str) -> None:
    """It is held up right before its commit; the second try is made and answered, others undo it; then it
    goes on."""
    operation, _ = OPERATIONS[name]
    desk = await prepared()
    # At another node: within one, tries take turns at a key.
    other = Desk(desk.clock, limits=LIMITS, seed=2, index=desk.index, packs=desk.packs)
    after: dict[bytes, bytes] = {}

    async def overtake(_: list[Transaction]) -> None:
        await operation(other, ID, 2)
        match name:
            case "put" | "put large" | "copy" | "complete":
                await other.delete("new")
            case "delete" | "delete if":
                await other.put("old", b"of others", ABSENT)
            case "make bucket":
                await other.objects.delete_bucket("bucket-n")
            case "drop bucket":
                await other.bucket("bucket-b")
        after.update(await state(desk))

    async with before_commit(desk, changes_things, overtake):
        with pytest.raises((Overtaken, NoSuchUpload)):
            await operation(desk, ID, 1)
    assert await state(desk) == after
    await settled(desk)


async def test_a_part_that_comes_late_is_not_the_one_that_counts() -> None:
    desk = await prepared()

    def part(data: bytes, request: RequestId, tries: int) -> UploadPart:
        return UploadPart(
            bucket=BUCKET,
            key="new",
            upload=OPEN,
            number=1,
            body=BytesBody(data),
            request=request,
            tries=tries,
        )

    async def overtake(_: list[Transaction]) -> None:
        await desk.objects.upload_part(part(b"first", ID, 2))
        await desk.objects.upload_part(part(b"second", OTHER, 1))

    async with before_commit(
        desk, lambda one: any(key.startswith(b"part/") for key, _ in one.puts), overtake
    ):
        with pytest.raises(Overtaken):
            await desk.objects.upload_part(part(b"first", ID, 1))
    (listed,) = (await desk.objects.list_parts(BUCKET, "new", OPEN, 0, 10)).parts
    assert listed.size == len(b"second")
    await desk.objects.abort_upload(BUCKET, "new", OPEN)
    await settled(desk)


async def test_tries_that_overtook_each_other_are_told_so() -> None:
    desk = await prepared()
    first = await put(desk, ID, 3)
    await desk.delete("new")
    with pytest.raises(Overtaken):
        await put(desk, ID, 2)
    with pytest.raises(Overtaken):
        await put(desk, ID, 1)
    assert await put(desk, ID, 4) == first
    with pytest.raises(NoSuchKey):
        await desk.get("new")
    await settled(desk)


async def test_many_deletions_are_remembered_one_by_one() -> None:
    desk = await prepared()
    keys = [DeleteKey(key=f"k{number}") for number in range(300)]
    for key in keys:
        await desk.put(key.key, b"x")
    # The first try got half of the way.
    await desk.objects.delete_objects(BUCKET, keys[:150], ID, 1)
    await desk.put("k7", b"of others")
    results = await desk.objects.delete_objects(BUCKET, keys, ID, 2)
    assert [result.key for result in results] == [key.key for key in keys]
    assert not any(result.error for result in results)
    assert await desk.get("k7") == b"of others"
    assert len(await desk.rows(b"head/")) == 3
    await settled(desk)


async def test_requests_without_a_balancer_leave_nothing() -> None:
    desk = await prepared()
    await desk.put("new", b"x", request="0123456789ABCDEF")
    await desk.delete("new", "old")
    assert await desk.rows(b"request/") == []


async def test_what_a_key_remembered_goes_on_being_known_only_while_it_is_young() -> None:
    clock = VirtualClock()
    desk = await prepared(clock)
    await put(desk, ID, 1)
    await clock.sleep(CARRY_MS / 1000 + 1)
    await desk.delete("new")
    assert await desk.rows(b"request/") == []


async def test_requests_are_forgotten_after_a_while_and_not_before() -> None:
    clock = VirtualClock()
    desk = await prepared(clock)
    for number in range(600):
        await desk.put(f"k{number}", b"x")
        (result,) = await desk.objects.delete_objects(
            BUCKET, [DeleteKey(key=f"k{number}")], RequestId(f"{number:032x}")
        )
        assert result.error is None
    assert await desk.objects.finish_cleanups(100)
    await clock.sleep(FORGET_AFTER_S / 2)
    await delete(desk, ID, 1)
    assert await desk.objects.finish_cleanups(100)
    assert len(await desk.rows(b"request/")) == 601
    await clock.sleep(FORGET_AFTER_S / 2 + 1)
    steps = 0
    while not await desk.objects.finish_cleanups(100):
        steps += 1
    assert 2 <= steps <= 4, "a bounded number of rows at once"
    (young,) = await desk.rows(b"request/")
    assert ID.encode() in young.key
    assert rows.decode_request(young.value).result is None
    await clock.sleep(FORGET_AFTER_S + 1)
    while not await desk.objects.finish_cleanups(100):
        pass
    assert await desk.rows(b"request/") == []
