"""What was moved while the journal was held up, and swept for want of room, is there after recovery all the
same; and nothing that was deleted or replaced comes back by it."""

import random
from collections.abc import Iterable

import pytest

from holdfast.base.ids import PackId, RequestId, UploadId
from holdfast.chores.collect import Collect, Sweep
from holdfast.index.port import Index, Row, prefix_end
from holdfast.objects.model import (
    CompletePart,
    CompleteUpload,
    CopyObject,
    CreateUpload,
    DeleteKey,
    PutObject,
    UploadPart,
)
from holdfast.packs.disposal import Disposal
from holdfast.packs.model import PACK_BYTES_MAX
from holdfast.packs.storage import Packs
from holdfast.scheme import Scheme
from tests.kit.objects import BUCKET, BytesBody
from tests.kit.recovery_world import Again, World, held, make_world, recover, serve_again

pytestmark = pytest.mark.virtual


async def put(world: World, key: str, body: bytes) -> None:
    await world.objects.put_object(PutObject(bucket=BUCKET, key=key, body=BytesBody(body)))


async def copy(world: World, source: str, key: str) -> None:
    await world.objects.copy_object(
        CopyObject(source_bucket=BUCKET, source_key=source, bucket=BUCKET, key=key)
    )


async def delete(world: World, *names: str) -> None:
    wanted = [DeleteKey(key=key) for key in names]
    results = await world.objects.delete_objects(BUCKET, wanted, RequestId(""))
    assert all(result.error is None for result in results)


async def begin_upload(world: World, key: str, *bodies: bytes) -> CompleteUpload:
    upload: UploadId = (await world.objects.create_upload(CreateUpload(bucket=BUCKET, key=key))).upload
    parts = []
    for number, body in enumerate(bodies, 1):
        part = UploadPart(bucket=BUCKET, key=key, upload=upload, number=number, body=BytesBody(body))
        parts.append(CompletePart(number, (await world.objects.upload_part(part)).etag))
    return CompleteUpload(bucket=BUCKET, key=key, upload=upload, parts=tuple(parts))


async def journaled(world: World) -> None:
    while world.keeping.status().behind_commits or not world.keeping.journal.is_open:
        await world.keeping.journal.step()


async def packs_of(index: Index) -> list[PackId]:
    found = await index.scan(b"pack/", prefix_end(b"pack/"), limit=1000)
    return [PackId(bytes.fromhex(row.key.removeprefix(b"pack/").decode())) for row in found]


async def move_all(world: World) -> list[PackId]:
    """Everything into one new pack, behind the journal's back; the packs that were left."""
    left = await packs_of(world.rig.index)
    worth = dict.fromkeys(left, PACK_BYTES_MAX)
    report = await world.objects.moving(world.rig.clock).move(worth, Scheme(4, 2))
    assert report.moved
    return left


async def bury_and_sweep(index: Index, packs: Packs, attached: World) -> None:
    collect = Collect(index, packs.rows, lambda pack: False, lambda *_: None, lambda: ())
    for _ in range(10):
        await attached.objects.finish_cleanups(100)
        await collect.step()
    await Sweep(Disposal(attached.rig.attached, index)).step()


async def lose_what_was_left(world: World, left: Iterable[PackId]) -> None:
    """Full stores, and a journal that is held up for more than a minute: dead shards go without it."""
    await bury_and_sweep(world.rig.index, world.packs, world)
    gone = {pack.hex() for pack in left}
    blobs = [blob for memory in world.rig.memories.values() for blob in memory._blobs]
    assert not any(blob.partition(".")[0] in gone for blob in blobs), "nothing is left of them"


async def what_is_there(world: World, *names: str) -> tuple[Again, list[bytes | None]]:
    again = await recover(world.rig)
    objects, *_ = serve_again(world.rig, again.rows)
    return again, [await held(objects, key) for key in names]


async def test_what_was_moved_is_found_where_it_is() -> None:
    world = await make_world(1)
    names = [f"k{number}" for number in range(8)]
    for key in names:
        await put(world, key, key.encode() * 300)
    await journaled(world)
    await lose_what_was_left(world, await move_all(world))
    again, found = await what_is_there(world, *names)
    assert found == [key.encode() * 300 for key in names]
    assert sorted(told.key for told in again.applied.relocated) == names
    assert again.applied.packs_added == 0
    # The bytes in the new place are known as such: when they are let go, nothing is left over.
    objects, packs, index = serve_again(world.rig, again.rows)
    world.objects = objects
    await delete(world, *names)
    await bury_and_sweep(index, packs, world)
    assert await packs_of(index) == []


async def test_what_was_moved_twice_is_found_in_the_last_place() -> None:
    world = await make_world(2)
    await put(world, "a", b"a" * 5000)
    await put(world, "b", b"b" * 5000)
    await journaled(world)
    left = await move_all(world)
    await put(world, "c", b"c" * 5000)
    left += await move_all(world)
    await lose_what_was_left(world, left)
    _, found = await what_is_there(world, "a", "b")
    assert found == [b"a" * 5000, b"b" * 5000]


async def test_nothing_comes_back_that_was_deleted_or_replaced() -> None:
    world = await make_world(3)
    for key in ("kept", "deleted", "replaced"):
        await put(world, key, key.encode() * 300)
    before = await packs_of(world.rig.index)
    moving = world.objects.moving(world.rig.clock)
    # Two packs that say the same: one that was moved into, and left again; then all is moved on.
    await moving.move(dict.fromkeys(before, PACK_BYTES_MAX), Scheme(4, 2))
    await delete(world, "deleted")
    await put(world, "replaced", b"new" * 300)
    await journaled(world)
    await lose_what_was_left(world, await move_all(world))
    again, found = await what_is_there(world, "kept", "deleted", "replaced")
    assert found == [b"kept" * 300, None, b"new" * 300]
    assert sorted(told.key for told in again.applied.relocated) == ["kept", "replaced"]


async def test_a_move_that_was_under_way_when_its_object_went_brings_nothing_back() -> None:
    """The new pack is there and says that it holds the object; the journal says that it was deleted."""
    world = await make_world(4)
    await put(world, "deleted", b"x" * 5000)
    await put(world, "kept", b"k" * 5000)
    await journaled(world)
    left = await move_all(world)
    await delete(world, "deleted")
    await journaled(world)
    again, found = await what_is_there(world, "deleted", "kept")
    assert found == [None, b"k" * 5000]
    assert again.applied.relocated == []
    # The pack's row is gone as well: its manifest alone is no reason for anything.
    await lose_what_was_left(world, left)
    _, found = await what_is_there(world, "deleted", "kept")
    assert found == [None, b"k" * 5000]


async def test_copies_follow() -> None:
    world = await make_world(5)
    await put(world, "source", b"s" * 5000)
    await copy(world, "source", "copy")
    await put(world, "gone", b"g" * 5000)
    await copy(world, "gone", "heir")
    await copy(world, "gone", "second heir")
    await delete(world, "gone")
    await journaled(world)
    await lose_what_was_left(world, await move_all(world))
    names = ("source", "copy", "gone", "heir", "second heir")
    again, found = await what_is_there(world, *names)
    assert found == [b"s" * 5000, b"s" * 5000, None, b"g" * 5000, b"g" * 5000]
    objects, packs, index = serve_again(world.rig, again.rows)
    world.objects = objects
    await delete(world, "source", "heir")
    await bury_and_sweep(index, packs, world)
    assert await held(objects, "copy") == b"s" * 5000
    assert await held(objects, "second heir") == b"g" * 5000
    await delete(world, "copy", "second heir")
    await bury_and_sweep(index, packs, world)
    assert await packs_of(index) == []


async def test_parts_of_open_uploads_and_tables_of_large_objects_too() -> None:
    world = await make_world(6)
    await world.objects.complete_upload(await begin_upload(world, "large", b"1" * 9000, b"2" * 9000))
    upload = await begin_upload(world, "open", b"3" * 9000, b"4" * 9000)
    for _ in range(5):
        await world.objects.finish_cleanups(100)
    await journaled(world)
    await lose_what_was_left(world, await move_all(world))
    again, found = await what_is_there(world, "large")
    assert found == [b"1" * 9000 + b"2" * 9000]
    assert sorted(told.key for told in again.applied.relocated) == ["large", "open", "open"]
    objects, *_ = serve_again(world.rig, again.rows)
    await objects.complete_upload(upload)
    assert await held(objects, "open") == b"3" * 9000 + b"4" * 9000


async def test_where_the_new_place_lacks_bytes_as_well_it_is_told() -> None:
    world = await make_world(7)
    await put(world, "a", b"a" * 100_000)
    await journaled(world)
    left = await move_all(world)
    await lose_what_was_left(world, left)
    (new,) = await packs_of(world.rig.index)
    for memory in list(world.rig.memories.values())[:3]:
        for blob in [blob for blob in memory._blobs if blob.startswith(new.hex())]:
            memory._set(blob, None)
    again = await recover(world.rig)
    assert (again.applied.relocated, again.applied.unreadable) == ([], 1)
    assert again.surveyed.short == [pack.hex() for pack in left]
    (row,) = [row for row in again.rows.scan(b"head/", b"head0", 10, b"", 0) if isinstance(row, Row)]
    assert left[0] in row.value, "what the journal has is left as it is"


@pytest.mark.parametrize("seed", range(30))
async def test_whatever_was_done_before_and_behind_the_journals_end(seed: int) -> None:
    """Keys that nobody touched behind the end hold what they held; others that, or what came later; and
    nothing that the journal knows to be gone."""
    chance = random.Random(seed)
    world = await make_world(100 + seed)
    there: dict[str, bytes] = {}
    gone: set[str] = set()

    async def some(count: int, *, copies: bool = True) -> set[str]:
        touched: set[str] = set()
        for _ in range(count):
            key = f"k{chance.randrange(12)}"
            what = chance.random()
            if what < 0.3 and there:
                key = chance.choice(sorted(there))
                await delete(world, key)
                del there[key]
                gone.add(key)
            elif what < 0.5 and there and copies:
                source = chance.choice(sorted(there))
                key = key if key != source else "another"
                await copy(world, source, key)
                there[key] = there[source]
            else:
                there[key] = chance.randbytes(chance.choice((0, 900, 5000, 80_000)))
                await put(world, key, there[key])
            gone.difference_update(there)
            touched.add(key)
        return touched

    left: list[PackId] = []
    await some(15)
    if chance.random() < 0.5:
        worth = dict.fromkeys(await packs_of(world.rig.index), PACK_BYTES_MAX)
        await world.objects.moving(world.rig.clock).move(worth, Scheme(4, 2))
        await some(5)
    await journaled(world)
    known, dead = dict(there), set(gone)
    touched: set[str] = set()
    for _ in range(chance.randrange(1, 4)):
        left += await packs_of(world.rig.index)
        worth = dict.fromkeys(left[-100:], PACK_BYTES_MAX)
        await world.objects.moving(world.rig.clock).move(worth, Scheme(4, 2))
        # What a copy made behind the end inherits is known to no row and no manifest.
        touched |= await some(chance.randrange(4), copies=False)
    await bury_and_sweep(world.rig.index, world.packs, world)
    again = await recover(world.rig)
    objects, *_ = serve_again(world.rig, again.rows)
    for key, body in known.items():
        if key not in touched:
            assert await held(objects, key) == body, key
    for key in dead - touched:
        assert await held(objects, key) is None, key
