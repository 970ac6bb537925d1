"""What was done after the journal's end: objects come back by their packs; what cannot be known is told."""

import asyncio

import pytest

from holdfast.base.errors import HoldfastError
from holdfast.base.ids import PackId, RequestId, shard_name
from holdfast.index.memory import Fault, Mishap
from holdfast.index.port import Row, prefix_end
from holdfast.objects.model import (
    NO_CONDITIONS,
    CompletePart,
    CompleteUpload,
    Conditions,
    CopyObject,
    CreateUpload,
    DeleteKey,
    PutObject,
    UploadPart,
)
from holdfast.packs.rewrite_plan import Reason, Target
from holdfast.packs.rewriting import Rewritten
from holdfast.packs.rows import decode_row
from holdfast.recovery.loading import WINDOW_MS
from tests.kit.objects import BUCKET, BytesBody
from tests.kit.recovery_world import Again, World, held, make_world, recover, serve_again

pytestmark = pytest.mark.virtual
ABSENT = Conditions(if_none_match=("*",))


async def put(
    world: World, key: str, body: bytes, conditions: Conditions = NO_CONDITIONS, bucket: str = BUCKET
) -> None:
    await world.objects.put_object(
        PutObject(bucket=bucket, key=key, body=BytesBody(body), conditions=conditions)
    )


async def fail_to_put(world: World, key: str, body: bytes) -> None:
    """All shards land, the commit does not, and a crash keeps anybody from clearing up."""
    await world.packs.settler.close()
    world.rig.index.faults.append(Fault(Mishap.UNAVAILABLE))
    with pytest.raises(HoldfastError):
        await put(world, key, body)
    assert not world.rig.index.faults


async def delete(world: World, key: str) -> None:
    (result,) = await world.objects.delete_objects(BUCKET, [DeleteKey(key=key)], RequestId(""))
    assert result.error is None


async def journaled(world: World) -> None:
    while world.keeping.status().behind_commits or not world.keeping.journal.is_open:
        await world.keeping.journal.step()


async def what_is_there(world: World, *keys: str) -> tuple[Again, list[bytes | None]]:
    again = await recover(world.rig)
    objects, *_ = serve_again(world.rig, again.rows)
    return again, [await held(objects, key) for key in keys]


async def test_objects_of_the_last_moment_come_back_and_deletions_of_it_do_not_count() -> None:
    world = await make_world(1)
    await put(world, "kept", b"1")
    await put(world, "overwritten", b"old")
    await put(world, "deleted", b"still there")
    await put(world, "gone", b"x")
    await delete(world, "gone")
    await journaled(world)
    await put(world, "overwritten", b"newer")
    await put(world, "overwritten", b"newest")
    await put(world, "new", b"new")
    await put(world, "large", b"l" * 300_000)
    await put(world, "empty", b"")
    await delete(world, "deleted")
    again, found = await what_is_there(
        world, "kept", "overwritten", "new", "large", "empty", "deleted", "gone"
    )
    assert found == [b"1", b"newest", b"new", b"l" * 300_000, b"", b"still there", None]
    assert len(again.applied.applied) == 5
    assert again.applied.doubtful == []


async def test_a_key_that_was_deleted_and_written_again_holds_what_was_written() -> None:
    world = await make_world(2)
    for number in range(3):
        await put(world, "a", f"old {number}".encode())
    await journaled(world)
    await delete(world, "a")
    await put(world, "a", b"new")
    again, found = await what_is_there(world, "a")
    assert found == [b"new"]
    assert "it counts" in again.applied.doubtful[0].why


async def test_a_write_that_may_have_been_refused_does_not_count_and_is_told() -> None:
    world = await make_world(3)
    await put(world, "a", b"old")
    await put(world, "lock", b"mine", ABSENT)
    await journaled(world)
    await put(world, "other", b"x", ABSENT)
    await delete(world, "a")
    await put(world, "a", b"new", ABSENT)
    again, found = await what_is_there(world, "a", "lock", "other")
    assert found == [b"old", b"mine", b"x"]
    assert [told.key for told in again.applied.doubtful] == ["a"]
    assert "may have been refused" in again.applied.doubtful[0].why


async def test_what_a_failed_write_left_behind_does_not_replace_what_came_after_it() -> None:
    world = await make_world(4)
    await put(world, "a", b"1")
    await fail_to_put(world, "b", b"never acknowledged")
    await put(world, "b", b"acknowledged")
    await delete(world, "b")
    await journaled(world)
    again, found = await what_is_there(world, "a", "b")
    assert found == [b"1", None]
    assert again.applied.applied == []
    assert [told.key for told in again.applied.doubtful] == ["b"]


async def test_what_a_crash_left_behind_long_ago_stays_where_it_is() -> None:
    world = await make_world(5)
    await put(world, "a", b"1")
    await journaled(world)
    await fail_to_put(world, "b", b"never acknowledged")
    await put(world, "c", b"2")
    await journaled(world)
    await asyncio.sleep(2 * WINDOW_MS / 1000)
    for number in range(3):
        await put(world, f"c{number}", b"2")
        await journaled(world)
        await asyncio.sleep(1)
    again, found = await what_is_there(world, "a", "b", "c2")
    assert found == [b"1", None, b"2"]
    assert again.applied.older >= 1


async def test_a_bucket_of_the_last_moment_is_made_again_for_what_is_in_it() -> None:
    world = await make_world(6)
    await put(world, "a", b"1")
    await journaled(world)
    await world.objects.create_bucket("other-bucket", "mirror-3")
    await put(world, "k", b"in it", bucket="other-bucket")
    again = await recover(world.rig)
    objects, *_ = serve_again(world.rig, again.rows)
    assert again.applied.buckets_made == ["other-bucket"]
    assert await held(objects, "k", "other-bucket") == b"in it"
    assert (await objects.get_bucket("other-bucket")).scheme.name == "mirror-3"


async def test_uploads_and_copies_are_as_the_journal_has_them() -> None:
    world = await make_world(7)
    objects = world.objects
    await put(world, "source", b"s" * 1000)
    await objects.copy_object(
        CopyObject(source_bucket=BUCKET, source_key="source", bucket=BUCKET, key="copy")
    )
    upload = (await objects.create_upload(CreateUpload(bucket=BUCKET, key="up"))).upload
    bodies = [b"1" * 70_000, b"2" * 70_000]
    parts = []
    for number, body in enumerate(bodies, 1):
        part = UploadPart(bucket=BUCKET, key="up", upload=upload, number=number, body=BytesBody(body))
        parts.append(CompletePart(number, (await objects.upload_part(part)).etag))
    await journaled(world)
    complete = CompleteUpload(bucket=BUCKET, key="up", upload=upload, parts=tuple(parts))
    await objects.complete_upload(complete)
    await delete(world, "source")
    again = await recover(world.rig)
    objects, *_ = serve_again(world.rig, again.rows)
    assert await held(objects, "copy") == b"s" * 1000
    assert await held(objects, "up") is None
    await objects.complete_upload(complete)
    assert await held(objects, "up") == b"".join(bodies)


async def test_what_was_moved_or_written_anew_after_the_end_is_found_where_it_is() -> None:
    world = await make_world(8)
    await put(world, "a", b"a" * 300_000)
    await journaled(world)
    rig = world.rig
    (row,) = await rig.index.scan(b"pack/", prefix_end(b"pack/"), limit=10)
    assert isinstance(row, Row)
    pack = PackId(bytes.fromhex(row.key.removeprefix(b"pack/").decode()))
    bad = (0, 1, 2)
    for place in decode_row(row.value).places:
        if place.shard in bad:
            name = shard_name(pack, place.shard, place.attempt)
            await rig.attached[place.store].delete(name, timeout_s=1)
            rewritten = await rig.rewriter.rewrite(pack, Reason.HEAL, Target(bad=(place.shard,)))
            assert rewritten is Rewritten.DONE
    again, found = await what_is_there(world, "a")
    assert found == [b"a" * 300_000]
    assert again.surveyed.moved == 1
    assert again.surveyed.short == []
