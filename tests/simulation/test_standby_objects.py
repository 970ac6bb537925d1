"""Objects at a standby: real objects over real packs on both sides, on other stores and in other schemes.

Clients write, overwrite, delete, copy and upload in parts at the active, whose chores collect and compact
meanwhile. The standby follows; when the active is gone it serves: each object as it was, an upload that was
begun goes on, and nothing that it has is lost to its own chores."""

import asyncio
from hashlib import md5

import pytest

from holdfast.base.clock import Clock
from holdfast.base.errors import Busy, Unavailable
from holdfast.base.ids import RequestId
from holdfast.base.randomness import SeededRandomness
from holdfast.chores.collect import Collect, Sweep
from holdfast.chores.compact import Compact
from holdfast.chores.runner import ChoreRunner
from holdfast.index.memory import Fault, MemoryIndex, Mishap
from holdfast.index.port import Expect, Transaction
from holdfast.objects import model as m
from holdfast.objects.errors import NoSuchKey
from holdfast.objects.service import Objects
from holdfast.objects.settings import ObjectsLimits, ObjectsSettings
from holdfast.packs.disposal import Disposal
from holdfast.packs.watched import WatchedIndex
from holdfast.sites.following import Follower
from holdfast.sites.landing import PacksLanding
from holdfast.sites.rows import STATE_ROW
from holdfast.sites.source import IndexSource
from tests.kit.objects import BUCKET, BytesBody, content
from tests.kit.rig import build_rig
from tests.kit.virtual import VirtualClock, run_virtual
from tests.simulation.standby_world import all_rows, state_of

KEYS = [f"key {number}" for number in range(12)]


class Place:
    """One site: stores, packs, objects and the chores that give space back."""

    def __init__(self, clock: Clock, stores: int, seed: int) -> None:
        self.index = MemoryIndex(clock)
        self.rig = build_rig(stores, seed=seed, clock=clock, index=self.index)
        watched = WatchedIndex(self.index)
        limits = ObjectsLimits(hashing_threads=0, part_bytes_min=1, inline_bytes_max=64)
        settings = ObjectsSettings(default_scheme="rs-4-2", stores=lambda: stores, limits=limits)
        self.objects = Objects(watched, self.rig.packs, clock, SeededRandomness(seed), settings)
        compact = Compact(watched, self.objects.moving(clock).move, walk_every_s=2.0)
        collect = Collect(
            watched, self.rig.packs.rows, self.rig.packs.reader.in_use, compact.partly_dead, watched.let_go
        )
        self.errors: list[object] = []
        self.chores = ChoreRunner(
            [compact, collect, Sweep(Disposal(self.rig.attached, watched))],
            clock,
            lambda name, error: self.errors.append((name, error)),
        )

    async def held(self, key: str) -> bytes | None:
        try:
            return await content(await self.objects.read_object(m.ReadObject(bucket=BUCKET, key=key)))
        except NoSuchKey:
            return None

    async def put(self, key: str, data: bytes) -> None:
        await self.objects.put_object(m.PutObject(bucket=BUCKET, key=key, body=BytesBody(data)))

    async def part(self, upload: m.Upload, number: int, data: bytes) -> None:
        part = m.UploadPart(
            bucket=BUCKET, key=upload.key, upload=upload.upload, number=number, body=BytesBody(data)
        )
        await self.objects.upload_part(part)

    async def complete(self, upload: m.Upload, parts: dict[int, bytes]) -> None:
        chosen = [m.CompletePart(number, md5(data).hexdigest()) for number, data in sorted(parts.items())]
        complete = m.CompleteUpload(bucket=BUCKET, key=upload.key, upload=upload.upload, parts=tuple(chosen))
        await self.objects.complete_upload(complete)


async def both(seed: int) -> None:
    clock = VirtualClock()
    chance = SeededRandomness(seed)
    active, standby = Place(clock, 6, seed), Place(clock, 4, seed + 1000)
    (stated,) = await standby.index.commit([Transaction((), ((STATE_ROW, b"standby"),))])
    state = Expect(STATE_ROW, getattr(stated, "revision"))  # noqa: B009
    source = IndexSource(active.index, active.rig.packs)

    async def follow() -> None:
        while True:
            try:
                await Follower(standby.index, source, PacksLanding(standby.rig.packs), clock, state).run()
            except (Unavailable, Busy):
                await clock.sleep(0.1)

    await active.objects.create_bucket(BUCKET, None)
    active.chores.start()
    begun = chance.below(30)
    following: asyncio.Task[None] | None = None
    upload = await active.objects.create_upload(m.CreateUpload(bucket=BUCKET, key="upload"))
    parts: dict[int, bytes] = {}
    for number in range(60):
        if number == begun:
            following = asyncio.get_running_loop().create_task(follow())
        key = KEYS[chance.below(len(KEYS))]
        match chance.below(7):
            case 0 | 1:
                await active.put(key, chance.token(1 + chance.below(3000)))
            case 2:
                await active.put(key, chance.token(200_000 + chance.below(100_000)))
            case 3:
                await active.objects.delete_objects(BUCKET, [m.DeleteKey(key=key)], RequestId(""))
            case 4:
                copy = m.CopyObject(source_bucket=BUCKET, source_key=key, bucket=BUCKET, key=KEYS[0])
                if key != KEYS[0] and await active.held(key) is not None:
                    await active.objects.copy_object(copy)
            case 5:
                part = 1 + chance.below(3)
                parts[part] = chance.token(1 + chance.below(5000))
                await active.part(upload, part, parts[part])
            case 6:
                other = await active.objects.create_upload(m.CreateUpload(bucket=BUCKET, key=key))
                one = {1: chance.token(150_000), 2: chance.token(100)}
                for part, data in one.items():
                    await active.part(other, part, data)
                await active.complete(other, one)
        if chance.below(5) == 0:
            standby.index.faults.append(Fault(list(Mishap)[chance.below(4)], chance.fraction()))
        await clock.sleep(chance.fraction() * 2)
    await active.objects.finish_cleanups(50)
    for _ in range(600):
        await clock.sleep(0.5)
        if state_of(all_rows(standby.index.rows)) == state_of(all_rows(active.index.rows)):
            break
    else:
        raise AssertionError("the standby does not get what the active has")
    await active.chores.close()
    assert not active.errors
    held = {key: await active.held(key) for key in KEYS}
    assert following is not None
    following.cancel()
    standby.index.faults.clear()

    # The active is gone.
    await standby.index.commit([Transaction((state,), ((STATE_ROW, b"active"),))])
    active.rig.attached.clear()
    assert {key: await standby.held(key) for key in KEYS} == held
    standby.chores.start()
    if parts:
        parts[1] = b"a part that was sent again"
        await standby.part(upload, 1, parts[1])
        await standby.complete(upload, parts)
        held["upload"] = b"".join(data for _, data in sorted(parts.items()))
    await standby.put("new", b"written here")
    held["new"] = b"written here"
    await standby.objects.finish_cleanups(50)
    await clock.sleep(600)
    await standby.chores.close()
    assert not standby.errors
    assert {key: await standby.held(key) for key in held} == held


@pytest.mark.virtual
@pytest.mark.parametrize("seed", range(6))
def test_a_standby_serves_what_the_active_had(seed: int) -> None:
    run_virtual(both(seed))
