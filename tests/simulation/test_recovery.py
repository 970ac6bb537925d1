"""A node loses its index and two stores at a random moment; all that was acknowledged is there again.

Clients write, overwrite, delete, copy and upload in parts, each on keys of its own and one thing after the
other, so that it is known at every moment what each key holds. Then everything stops where it is. What
recovery makes of the stores that are left is held against that: what the journal covers exactly, of the rest
every object whose bytes were acknowledged last; and nothing that was refused, ever.
"""

import asyncio
from bisect import insort
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import pytest

from holdfast.base.clock import Clock
from holdfast.base.errors import HoldfastError
from holdfast.base.ids import RequestId, StoreId
from holdfast.base.randomness import SeededRandomness
from holdfast.chores.collect import Collect, Sweep
from holdfast.chores.compact import Compact
from holdfast.index.memory import MemoryIndex, MemoryRows
from holdfast.index.port import Row
from holdfast.objects.errors import NoSuchKey, PreconditionFailed
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
from holdfast.packs.disposal import Disposal
from holdfast.packs.named import NamedPacks, find_names
from holdfast.packs.storage import Packs
from holdfast.packs.verifying import Verifier
from holdfast.packs.watched import WatchedIndex
from holdfast.recovery.applying import Applied, Applier, candidates, read_young
from holdfast.recovery.keeping import Keeping
from holdfast.recovery.loading import Loaded, load, newest_lineage
from holdfast.recovery.names import PREFIX
from holdfast.recovery.scratch import Scratch
from holdfast.recovery.surveying import Survey, survey
from holdfast.scheme import Scheme
from tests.kit.kept import INCARNATION
from tests.kit.objects import BUCKET, BytesBody, content
from tests.kit.rig import Rig, build_rig
from tests.kit.virtual import run_virtual

SETTINGS = ObjectsSettings(
    default_scheme="rs-4-2",
    stores=6,
    limits=ObjectsLimits(hashing_threads=0, part_bytes_min=1, inline_bytes_max=64),
)
KEYS_EACH = 3
CLIENTS = 5
LIVES = 8


@dataclass
class Deed:
    """One thing that a client did to a key: what the key holds since (None: nothing), the revisions of the
    index when it was begun and when it was acknowledged (None: it never was), and whether its bytes lie in a
    pack that says so."""

    holds: bytes | None
    begun: int
    acked: int | None = None
    told_by_pack: bool = False


@dataclass
class World:
    rig: Rig
    rows: MemoryRows
    objects: Objects
    deeds: dict[str, list[Deed]] = field(default_factory=dict)
    refused: set[bytes] = field(default_factory=set)
    tasks: list[asyncio.Task[None]] = field(default_factory=list)


async def make_world(seed: int) -> World:
    rig = build_rig(seed=seed)
    rows = rig.index.rows
    rows.incarnation = INCARNATION
    rig.index.commit_delay_s = 0.002
    index = WatchedIndex(rig.index)
    clock, chance = rig.clock, rig.randomness
    topology = rig.packs.writer._topology
    packs = Packs(rig.attached, topology, index, rig.health, clock, chance, lambda *_: None)
    objects = Objects(index, packs, clock, chance, SETTINGS)
    named = NamedPacks(rig.attached, topology, rig.health, clock, chance, lambda: Scheme(4, 2))
    keeping = Keeping(index, named, lambda: frozenset(rig.attached), clock, chance, lambda _: None)
    keeping.snapshots._journal_bytes_min = 20_000
    keeping.snapshots._page_bytes = 4_000
    disposal = Disposal(rig.attached, index, is_covered=keeping.journal.covers)
    compact = Compact(index, objects.moving(clock).move, walk_every_s=2.0)
    collect = Collect(index, packs.rows, packs.reader.in_use, compact.partly_dead, index.let_go)
    world = World(rig, rows, objects)
    await objects.create_bucket(BUCKET, None)
    world.tasks = [
        asyncio.ensure_future(_again(clock, chore.step, pause_s))
        for chore, pause_s in (
            (keeping.journal, 1.0),
            (keeping.snapshots, 0.5),
            (keeping.upkeep, 5.0),
            (collect, 0.3),
            (compact, 0.3),
            (Sweep(disposal), 0.3),
        )
    ]
    return world


async def _again(clock: Clock, step: Callable[[], Awaitable[bool]], pause_s: float) -> None:
    while True:
        if not await step():
            await clock.sleep(pause_s)


class Client:
    """Works on keys of its own until it is stopped."""

    def __init__(self, world: World, number: int, seed: int) -> None:
        self._world = world
        self._keys = [f"c{number}/k{key}" for key in range(KEYS_EACH)]
        self._chance = SeededRandomness(f"client {number} of {seed}")
        self._count = 0

    async def run(self) -> None:
        while True:
            await self._one()
            await self._world.rig.clock.sleep(self._chance.fraction() * 0.2)

    async def _one(self) -> None:
        key = self._keys[self._chance.below(KEYS_EACH)]
        deeds = self._world.deeds.setdefault(key, [Deed(None, 0, 0)])
        what = self._chance.below(10)
        if what < 5:
            await self._put(key, deeds)
        elif what < 7:
            await self._delete(key, deeds)
        elif what < 8:
            await self._copy(key, deeds)
        elif what < 9:
            await self._upload(key, deeds)
        else:
            await self._refused(key, deeds)

    def _body(self) -> bytes:
        self._count += 1
        size = 150_000 if self._chance.below(8) == 0 else 20 + self._chance.below(3_000)
        return f"{self._keys[0]} {self._count} ".encode().ljust(size, b".")

    async def _do(self, deeds: list[Deed], deed: Deed, work: Awaitable[object]) -> None:
        deeds.append(deed)
        await work
        deed.acked = self._world.rows.revision

    async def _put(self, key: str, deeds: list[Deed]) -> None:
        body = self._body()
        put = PutObject(bucket=BUCKET, key=key, body=BytesBody(body))
        deed = Deed(body, self._world.rows.revision, told_by_pack=True)
        await self._do(deeds, deed, self._world.objects.put_object(put))

    async def _delete(self, key: str, deeds: list[Deed]) -> None:
        deed = Deed(None, self._world.rows.revision)
        keys = [DeleteKey(key=key)]
        await self._do(deeds, deed, self._world.objects.delete_objects(BUCKET, keys, RequestId("")))

    async def _copy(self, key: str, deeds: list[Deed]) -> None:
        source = self._keys[self._chance.below(KEYS_EACH)]
        held = self._world.deeds.get(source, [Deed(None, 0, 0)])[-1].holds
        if source == key or held is None:
            return
        copy = CopyObject(source_bucket=BUCKET, source_key=source, bucket=BUCKET, key=key)
        deed = Deed(held, self._world.rows.revision)
        await self._do(deeds, deed, self._world.objects.copy_object(copy))

    async def _upload(self, key: str, deeds: list[Deed]) -> None:
        objects = self._world.objects
        upload = (await objects.create_upload(CreateUpload(bucket=BUCKET, key=key))).upload
        bodies = [self._body(), self._body()]
        parts = []
        for number, body in enumerate(bodies, 1):
            part = UploadPart(bucket=BUCKET, key=key, upload=upload, number=number, body=BytesBody(body))
            parts.append(CompletePart(number, (await objects.upload_part(part)).etag))
        complete = CompleteUpload(bucket=BUCKET, key=key, upload=upload, parts=tuple(parts))
        deed = Deed(b"".join(bodies), self._world.rows.revision)
        await self._do(deeds, deed, objects.complete_upload(complete))

    async def _refused(self, key: str, deeds: list[Deed]) -> None:
        """What may not be there, must not come back."""
        if deeds[-1].holds is None:
            return
        body = self._body()
        self._world.refused.add(body)
        conditions = Conditions(if_none_match=("*",))
        put = PutObject(bucket=BUCKET, key=key, body=BytesBody(body), conditions=conditions)
        with pytest.raises(PreconditionFailed):
            await self._world.objects.put_object(put)


@dataclass
class Again:
    """What recovery made."""

    loaded: Loaded
    surveyed: Survey
    applied: Applied
    rows: MemoryRows


async def recover(rig: Rig) -> Again:
    scratch = Scratch(None)
    names = await find_names(rig.attached, PREFIX)
    loaded = await load(rig.attached, names, newest_lineage(names, ""), scratch, lambda _: None)
    revision = loaded.revision

    def following() -> int:
        nonlocal revision
        revision += 1
        return revision

    surveyed = await survey(rig.attached, scratch, loaded.window, following)
    applied = Applied([], [], [], [])
    young = await read_young(rig.attached, loaded, surveyed.nameless, surveyed.recent, applied)
    applier = Applier(scratch, loaded, young, following, "us-east-1", rig.randomness)
    applier.run(candidates(young, applied), applied)
    rows = MemoryRows("cd" * 16)
    for row in scratch.scan(b""):
        insort(rows._keys, row.key)
        rows._rows[row.key] = Row(*row)
    rows.revision = revision
    scratch.close()
    return Again(loaded, surveyed, applied, rows)


def allowed(deeds: list[Deed], covered: int) -> list[bytes | None]:
    """What a key may hold when the journal covers that revision: the last deed that it surely covers, or
    the last one behind it that a pack tells of and that was acknowledged, or any that came after that."""
    least = 0
    for number, deed in enumerate(deeds):
        if deed.acked is not None and (deed.acked <= covered or deed.told_by_pack):
            least = number
    return [deed.holds for deed in deeds[least:]]


async def one_life(seed: int) -> tuple[World, Again]:
    world = await make_world(seed)
    rig = world.rig
    chance = SeededRandomness(f"end of {seed}")
    work = [asyncio.ensure_future(Client(world, number, seed).run()) for number in range(CLIENTS)]
    ended, _ = await asyncio.wait([*work, *world.tasks], timeout=3 + chance.fraction() * 12)
    for task in ended:
        task.result()
    for task in (*work, *world.tasks):
        task.cancel()
    await asyncio.gather(*work, *world.tasks, return_exceptions=True)
    for _ in range(2):
        store = rig.stores[chance.below(len(rig.stores))]
        rig.attached.pop(store, None)
    return world, await recover(rig)


async def check_life(seed: int) -> tuple[World, Again]:
    world, again = await one_life(seed)
    rig = world.rig
    assert again.loaded.gap == ""
    assert again.surveyed.short == []
    assert again.applied.incomplete == []
    index = MemoryIndex(rig.clock, again.rows)
    topology = rig.packs.writer._topology
    for store in rig.stores:
        if store not in rig.attached:
            rig.health.vanished(StoreId(store), rig.clock.monotonic(), "lost")
    packs = Packs(rig.attached, topology, index, rig.health, rig.clock, rig.randomness, lambda *_: None)
    objects = Objects(index, packs, rig.clock, rig.randomness, SETTINGS)
    for key, deeds in world.deeds.items():
        found: bytes | None
        try:
            found = await content(await objects.read_object(ReadObject(bucket=BUCKET, key=key)))
        except NoSuchKey:
            found = None
        except HoldfastError as error:
            raise AssertionError(f"seed {seed}: {key} cannot be read: {error}") from error
        assert found not in world.refused, f"seed {seed}: {key} holds what was refused"
        may = allowed(deeds, again.loaded.revision)
        assert found in may, (
            f"seed {seed}: {key} holds {(found or b'')[:20]!r} at {again.loaded.revision}, and may hold "
            f"{[(one or b'')[:20] for one in may]}; {again.applied}"
        )
    # And the next life goes on with it: nothing is torn.
    verifier = Verifier(rig.attached, index, packs.rows, packs.reader, rig.clock)
    assert all([report.losses_left >= 0 async for report in verifier.verify_all()])
    for key in world.deeds:
        await objects.put_object(PutObject(bucket=BUCKET, key=key, body=BytesBody(b"new " * 10)))
        assert await content(await objects.read_object(ReadObject(bucket=BUCKET, key=key))) == b"new " * 10
    return world, again


def test_an_index_and_two_stores_are_lost_at_any_moment() -> None:
    snapshots = applied = pieces = 0
    for seed in range(LIVES):
        _, again = run_virtual(check_life(seed))
        snapshots += again.loaded.snapshot is not None
        applied += len(again.applied.applied)
        pieces += again.loaded.pieces
    # It would prove little if no life had a snapshot, or anything behind the journal.
    assert snapshots >= LIVES // 4
    assert applied >= LIVES
    assert pieces >= LIVES
