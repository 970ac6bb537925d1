"""Writers that race, on virtual time: conditions decide, nobody is forgotten, neighbours do not wait."""

import asyncio

import pytest

from holdfast.base.errors import Busy, HoldfastError, Unavailable
from holdfast.base.ids import RequestId
from holdfast.base.randomness import SeededRandomness
from holdfast.index.memory.index import Fault, MemoryIndex, Mishap
from holdfast.objects import rows
from holdfast.objects.errors import (
    BucketAlreadyOwnedByYou,
    BucketNotEmpty,
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
    UploadPart,
)
from holdfast.objects.settings import ObjectsLimits
from tests.kit.memory_packs import MemoryPacks
from tests.kit.objects import BUCKET, BytesBody, Desk
from tests.kit.virtual import VirtualClock

pytestmark = pytest.mark.virtual

ABSENT = Conditions(if_none_match=("*",))
LIMITS = ObjectsLimits(hashing_threads=0, part_bytes_min=1)


async def desks(count: int, *, delay_s: float = 0.002, seed: int = 0) -> list[Desk]:
    """Nodes over one index and one lot of packs."""
    clock = VirtualClock()
    index = MemoryIndex(clock, commit_delay_s=delay_s)
    packs = MemoryPacks(index, SeededRandomness(seed))
    made = [
        Desk(clock, seed=seed * 100 + number, index=index, packs=packs, limits=LIMITS)
        for number in range(count)
    ]
    await made[0].bucket()
    return made


@pytest.mark.parametrize("nodes", [1, 3])
@pytest.mark.parametrize("seed", range(5))
async def test_of_conditional_creators_exactly_one_wins(nodes: int, seed: int) -> None:
    nodes_ = await desks(nodes, seed=seed)
    sizes = [10, 200_000]

    async def attempt(number: int) -> bytes | None:
        await VirtualClock().sleep(0.0001 * ((number * (seed + 1)) % 7))
        data = bytes([number]) * sizes[number % 2]
        try:
            await nodes_[number % nodes].put("key", data, ABSENT)
        except PreconditionFailed:
            return None
        return data

    winners = [data for data in await asyncio.gather(*map(attempt, range(12))) if data is not None]
    assert winners == [await nodes_[0].get("key")]
    await nodes_[0].audit()


@pytest.mark.parametrize("nodes", [1, 3])
async def test_unconditional_puts_on_a_hot_key_all_get_through(nodes: int) -> None:
    nodes_ = await desks(nodes)
    started = VirtualClock().monotonic()
    puts = [nodes_[number % nodes].put("hot", b"%d" % number) for number in range(40)]
    results = await asyncio.gather(*puts)
    assert len({result.etag for result in results}) == 40
    assert VirtualClock().monotonic() - started < 10
    await nodes_[0].audit()


async def test_a_hot_key_does_not_hold_up_its_neighbours() -> None:
    (desk,) = await desks(1, delay_s=0.010)
    hot = asyncio.gather(*(desk.put("hot", b"%d" % number) for number in range(30)))
    await VirtualClock().sleep(0.015)
    started = VirtualClock().monotonic()
    await desk.put("cool", b"x")
    assert VirtualClock().monotonic() - started < 0.025
    assert not hot.done()
    await hot


@pytest.mark.parametrize("seed", range(4))
async def test_increments_under_if_match_are_counted_exactly_once_whatever_the_index_does(seed: int) -> None:
    nodes_ = await desks(3, seed=seed)
    index = nodes_[0].index
    chance = SeededRandomness(seed)
    await nodes_[0].put("counter", b"0")
    acknowledged = unknown = 0

    async def client(desk: Desk) -> None:
        nonlocal acknowledged, unknown
        for _ in range(12):
            await VirtualClock().sleep(chance.fraction() * 0.02)
            if chance.below(3) == 0:
                mishap = list(Mishap)[chance.below(len(Mishap))]
                index.faults.append(Fault(mishap, chance.fraction() * 0.05))
            try:
                view = await desk.view("counter")
                assert view.whole is not None
                value = int(bytes(view.whole)) + 1
                await desk.put("counter", b"%d" % value, Conditions(if_match=(view.record.etag,)))
            except (PreconditionFailed, Busy):
                continue
            except Unavailable as error:
                unknown += bool(error.facts.get("unknown"))
            else:
                acknowledged += 1

    await asyncio.gather(*(client(desk) for desk in nodes_ for _ in range(3)))
    index.faults.clear()
    await VirtualClock().sleep(10)
    total = int(await nodes_[0].get("counter"))
    assert acknowledged <= total <= acknowledged + unknown
    assert acknowledged > 10


@pytest.mark.parametrize("seed", range(8))
async def test_of_deletions_and_creations_under_conditions_no_two_win_alike(seed: int) -> None:
    """A lock: creating the key takes it, deleting it by its ETag gives it back. Never two holders."""
    nodes_ = await desks(2, seed=seed)
    index = nodes_[0].index
    chance = SeededRandomness(seed)
    holders = 0
    taken = 0

    async def client(desk: Desk, name: int) -> None:
        nonlocal holders, taken
        for turn in range(6):
            await VirtualClock().sleep(chance.fraction() * 0.05)
            if chance.below(4) == 0:
                mishap = [Mishap.APPLIED, Mishap.NOT_APPLIED, Mishap.APPLIED_LATER][chance.below(3)]
                index.faults.append(Fault(mishap, chance.fraction() * 0.1))
            try:
                stored = await desk.put("lock", b"%d of %d" % (turn, name), ABSENT)
            except (PreconditionFailed, Busy):
                continue
            holders += 1
            taken += 1
            assert holders == 1
            await VirtualClock().sleep(chance.fraction() * 0.01)
            holders -= 1
            (result,) = await desk.objects.delete_objects(
                BUCKET, [DeleteKey(key="lock", if_match=(stored.etag,))], RequestId("")
            )
            assert result.error is None

    await asyncio.gather(*(client(desk, number) for number, desk in enumerate(nodes_ * 3)))
    assert taken > 6
    index.faults.clear()
    await VirtualClock().sleep(10)
    with pytest.raises(NoSuchKey):
        await nodes_[0].get("lock")
    await nodes_[0].audit()


@pytest.mark.parametrize("seed", range(6))
async def test_a_bucket_is_deleted_empty_or_not_at_all(seed: int) -> None:
    nodes_ = await desks(2, seed=seed)
    chance = SeededRandomness(seed)

    async def put(number: int) -> bool:
        await VirtualClock().sleep(chance.fraction() * 0.02)
        try:
            await nodes_[number % 2].put(f"key-{number}", b"x" * (1 + number * 40_000))
        except NoSuchBucket:
            return False
        return True

    async def delete() -> bool:
        await VirtualClock().sleep(chance.fraction() * 0.01)
        try:
            await nodes_[1].objects.delete_bucket(BUCKET)
        except (BucketNotEmpty, NoSuchBucket, Busy):
            return False
        return True

    *puts, first, second = await asyncio.gather(*map(put, range(5)), delete(), delete())
    assert not (first and second)
    if first or second:
        await nodes_[0].objects.create_bucket(BUCKET, None)
    for number, done in enumerate(puts):
        if done:
            assert not first
            assert not second
            await nodes_[0].get(f"key-{number}")
    await nodes_[0].audit()


async def test_of_creators_of_a_bucket_one_wins() -> None:
    nodes_ = await desks(3)

    async def create(desk: Desk) -> bool:
        try:
            await desk.objects.create_bucket("another", None)
        except BucketAlreadyOwnedByYou:
            return False
        return True

    assert sum(await asyncio.gather(*map(create, nodes_ * 2))) == 1


@pytest.mark.parametrize("seed", range(25))
async def test_completing_aborting_and_late_parts_end_an_upload_once(seed: int) -> None:
    nodes_ = await desks(3, seed=seed)
    desk = nodes_[0]
    chance = SeededRandomness(seed)
    upload = (await desk.objects.create_upload(CreateUpload(bucket=BUCKET, key="key"))).upload

    async def part(node: Desk, number: int, data: bytes) -> CompletePart:
        request = UploadPart(bucket=BUCKET, key="key", upload=upload, number=number, body=BytesBody(data))
        return CompletePart(number, (await node.objects.upload_part(request)).etag)

    parts = (await part(desk, 1, b"a" * 150_000), await part(desk, 2, b"b" * 100))

    async def ends(node: Desk, *, by_abort: bool) -> str:
        await VirtualClock().sleep(chance.fraction() * 0.006)
        try:
            if by_abort:
                await node.objects.abort_upload(BUCKET, "key", upload)
            else:
                await node.objects.complete_upload(
                    CompleteUpload(bucket=BUCKET, key="key", upload=upload, parts=parts)
                )
        except NoSuchUpload:
            return "late"
        return "aborted" if by_abort else "completed"

    async def late(node: Desk, size: int) -> None:
        await VirtualClock().sleep(chance.fraction() * 0.006)
        try:
            await part(node, 3, b"c" * size)
        except NoSuchUpload:
            return

    ended = await asyncio.gather(
        ends(nodes_[1], by_abort=False),
        ends(nodes_[2], by_abort=False),
        ends(nodes_[0], by_abort=True),
        late(nodes_[0], 200_000),
        late(nodes_[1], 100),
    )
    completed = ended[:2]
    assert (ended[2] == "aborted") == (completed == ["late", "late"] or "completed" not in completed)
    if "completed" in completed:
        assert list(completed) == ["completed", "completed"], "asked again, the answer is the same"
        assert await desk.get("key") == b"a" * 150_000 + b"b" * 100
    assert await desk.objects.finish_cleanups(100)
    await desk.audit()


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("size", [100, 200_000])
async def test_copies_of_a_source_that_is_being_deleted_keep_their_bytes(size: int, seed: int) -> None:
    nodes_ = await desks(2, seed=seed)
    chance = SeededRandomness(seed)
    await nodes_[0].put("source", b"s" * size)

    async def copy(number: int) -> bool:
        await VirtualClock().sleep(chance.fraction() * 0.004)
        request = CopyObject(source_bucket=BUCKET, source_key="source", bucket=BUCKET, key=f"copy-{number}")
        try:
            await nodes_[number % 2].objects.copy_object(request)
        except NoSuchKey:
            return False
        return True

    async def delete() -> None:
        await VirtualClock().sleep(0.002)
        await nodes_[0].delete("source")

    *copied, _ = await asyncio.gather(*map(copy, range(8)), delete())
    revisions = {row.key: row.revision for row in await nodes_[0].rows(b"head/")}
    died = [row.revision for row in await nodes_[0].rows(b"dead/") if rows.decode_dead(row.value).size]
    for number, done in enumerate(copied):
        if done:
            assert await nodes_[0].get(f"copy-{number}") == b"s" * size
            name = b"head/%b/copy-%d" % (BUCKET.encode(), number)
            assert all(revisions[name] < revision for revision in died), "shared what was let go already"
    await nodes_[0].audit()


async def test_a_writer_that_cannot_get_through_is_told_to_come_back() -> None:
    (desk,) = await desks(1)
    await desk.put("key", b"")

    index = desk.index
    other = Desk(VirtualClock(), seed=9, index=index, packs=desk.packs)
    original = index.commit
    inside = False

    async def commit(transactions):  # type: ignore[no-untyped-def]
        nonlocal inside
        if not inside:
            inside = True
            try:
                await other.put("key", b"theirs")
            finally:
                inside = False
        return await original(transactions)

    index.commit = commit  # type: ignore[method-assign]
    with pytest.raises(HoldfastError) as caught:
        await desk.put("key", b"mine")
    assert isinstance(caught.value, Busy)
    index.commit = original  # type: ignore[method-assign]
    assert await desk.get("key") == b"theirs"
